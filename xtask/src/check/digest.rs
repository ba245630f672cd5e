//! Checks that take long are left out where nothing has changed that their outcome depends on: a file of the repository keeps
//! the digest of the inputs that last went well.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;

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
