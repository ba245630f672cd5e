//! The shared libraries that a program needs, found as its loader would.

use anyhow::{Context, Result};
use goblin::elf::Elf;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where Debian's loader looks.
const FOLDERS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib"];

/// The loader and all libraries of some programs and libraries, by the path at which an image must have them.
///
/// # Errors
/// When a file is no ELF file, or a library is on this machine nowhere.
pub fn needed(programs: &[&Path], extra: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open: Vec<PathBuf> = programs.iter().map(|path| path.to_path_buf()).collect();
    for name in extra {
        open.push(add(name, &mut found)?.with_context(|| format!("{name} twice"))?);
    }
    while let Some(path) = open.pop() {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let elf = Elf::parse(&bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
        if let Some(loader) = elf.interpreter {
            found.insert(loader.trim_start_matches('/').to_owned(), fs::canonicalize(loader)?);
        }
        for name in elf.libraries {
            if !name.starts_with("ld-linux")
                && let Some(library) =
                    add(name, &mut found).with_context(|| format!("needed by {}", path.display()))?
            {
                open.push(library);
            }
        }
    }
    Ok(found)
}

/// Notes a library; returns its file if it is new.
fn add(name: &str, found: &mut BTreeMap<String, PathBuf>) -> Result<Option<PathBuf>> {
    let target = format!("lib/x86_64-linux-gnu/{name}");
    if found.contains_key(&target) {
        return Ok(None);
    }
    let file = FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    let file = file.with_context(|| format!("the library {name} is in none of {}", FOLDERS.join(", ")))?;
    let file = fs::canonicalize(file)?;
    found.insert(target, file.clone());
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_needs_its_loader_and_its_libraries_and_theirs() {
        let me = std::env::current_exe().unwrap();
        let found = needed(&[&me], &[]).unwrap();
        assert!(found.contains_key("lib64/ld-linux-x86-64.so.2"), "{found:?}");
        assert!(found.contains_key("lib/x86_64-linux-gnu/libc.so.6"), "{found:?}");
        assert!(needed(&[&me], &["libno-such-thing.so.1"]).is_err());
    }
}
