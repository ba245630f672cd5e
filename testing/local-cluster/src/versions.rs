//! The pinned versions: `versions.toml`, read at compile time.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;

const TEXT: &str = include_str!("../versions.toml");

/// `versions.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Versions {
    /// Debian packages.
    pub debian: Vec<String>,
    /// Debian packages that only the tests need.
    pub debian_tests: Vec<String>,
    /// Debian packages that compile C and C++ for 64-bit Arm.
    pub debian_cross: Vec<String>,
    /// Go programs by name.
    pub go: BTreeMap<String, GoTool>,
    /// Folders of CustomResourceDefinitions by the module (`module@version`) that has them.
    pub crds: BTreeMap<String, String>,
    /// Cargo programs by name.
    pub cargo: BTreeMap<String, CargoTool>,
}

/// A program from the Go module proxy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoTool {
    /// Module that is required.
    pub module: String,
    /// Its version.
    pub version: String,
    /// Packages to build; `package=name` where the binary's name is not the package's last word.
    pub binaries: Vec<String>,
    /// Added to the linker's flags.
    #[serde(default)]
    pub ldflags: String,
    /// Version of the modules that `module` requires as v0.0.0.
    pub staging: Option<String>,
    /// Flags of the C and C++ compilers; the program is built with cgo if they are given.
    pub cflags: Option<String>,
    /// Replace modules as the module's own go.mod does.
    #[serde(default)]
    pub replaces: bool,
    /// A program of ours that uses the module: a file beside `versions.toml`, built as the package `.`.
    pub program: Option<String>,
    /// A header that the module lacks.
    pub header: Option<Header>,
}

/// A header taken from another module.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// `module@version`.
    pub module: String,
    /// Name of the file, anywhere in that module.
    pub file: String,
    /// Folder under which it is included.
    pub folder: String,
}

/// A program from crates.io.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CargoTool {
    /// Its version.
    pub version: String,
}

impl Versions {
    /// What `versions.toml` says.
    ///
    /// # Errors
    /// When it is not in order.
    pub fn pinned() -> Result<Self> {
        toml::from_str(TEXT).context("reading versions.toml")
    }

    /// One Go program.
    ///
    /// # Errors
    /// When it is not listed.
    pub fn go(&self, name: &str) -> Result<&GoTool> {
        self.go.get(name).with_context(|| format!("versions.toml has no [go.{name}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_versions_are_in_order() {
        let versions = Versions::pinned().unwrap();
        assert!(versions.go("kubernetes").unwrap().staging.is_some());
        assert!(versions.go.values().all(|tool| tool.version.starts_with('v') && !tool.binaries.is_empty()));
    }
}
