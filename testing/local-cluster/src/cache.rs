//! Where everything lies that is built or made outside the repository.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The folders of the cache. Nothing in them is precious: all is made again when it is missing.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$PRINCIPIUM_CACHE`, or `~/.cache/principium`.
    ///
    /// # Errors
    /// When neither variable `PRINCIPIUM_CACHE` nor `HOME` is set.
    pub fn from_environment() -> Result<Self> {
        let root = match std::env::var_os("PRINCIPIUM_CACHE").filter(|value| !value.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => {
                let home = std::env::var_os("HOME").context("neither PRINCIPIUM_CACHE nor HOME is set")?;
                Path::new(&home).join(".cache/principium")
            }
        };
        let root =
            std::path::absolute(&root).with_context(|| format!("the cache folder {}", root.display()))?;
        Ok(Self { root })
    }

    /// The root of the cache.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One version of one tool.
    #[must_use]
    pub fn tool(&self, name: &str, version: &str) -> PathBuf {
        self.root.join("tools").join(format!("{name}-{}", version.trim_start_matches('v')))
    }

    /// Waits until no other run of ours works in the cache, and keeps others out until the result is dropped.
    ///
    /// # Errors
    /// When the lock file can't be made.
    pub fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.root)
            .with_context(|| format!("making the cache folder {}", self.root.display()))?;
        let path = self.root.join("lock");
        let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }
}
