//! Checks that take long are left out where nothing has changed that their outcome depends on: a file of the repository keeps
//! the digest of the inputs that last went well.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the sources of the embedder are.
const SOURCES: &str = "embedder/src";

/// Of what it depends on that the embedder compiles elsewhere: its sources that contain `marker`, its features, and the versions
/// of the packages whose names begin so.
pub fn embedder(marker: &str, packages: &[&str]) -> Result<Sha256> {
    let mut hasher = Sha256::new();
    for text in sources()?.into_values().filter(|text| text.contains(marker)) {
        hasher.update(text);
    }
    hasher.update(read(Path::new("embedder/Cargo.toml"))?);
    let lock = read(Path::new("Cargo.lock"))?;
    let counts = |block: &&str| packages.iter().any(|name| block.contains(&format!("name = \"{name}")));
    for block in lock.split("[[package]]").filter(counts) {
        hasher.update(block);
    }
    Ok(hasher)
}

/// The sources of the embedder, by their paths in the repository.
pub fn sources() -> Result<BTreeMap<PathBuf, String>> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![PathBuf::from(SOURCES)];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(crate::root().join(&folder)).with_context(|| format!("reading {SOURCES}"))?
        {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = read(&path)?;
                sources.insert(path, text);
            }
        }
    }
    Ok(sources)
}

/// A file of the repository.
pub fn read(file: &Path) -> Result<String> {
    fs::read_to_string(crate::root().join(file)).with_context(|| format!("reading {}", file.display()))
}

/// Whether these inputs are those that last went well.
pub fn is_unchanged(file: &str, digest: &str) -> bool {
    fs::read_to_string(crate::root().join(file)).is_ok_and(|old| old.trim() == digest)
}

/// Takes note that these inputs went well.
pub fn keep(file: &str, digest: &str) -> Result<()> {
    if !is_unchanged(file, digest) {
        fs::write(crate::root().join(file), format!("{digest}\n"))
            .with_context(|| format!("writing {file}"))?;
        println!("    {file} is written anew: commit it");
    }
    Ok(())
}

/// A digest as it is kept.
pub fn digits(hasher: Sha256) -> String {
    let mut digits = String::new();
    for byte in hasher.finalize() {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}
