//! Whether the embedder compiles for 64-bit Arm: its kernels for x86-64 are chosen at run time, and must be left out there.
//! Done, as for CUDA, where something that the outcome depends on has changed since it last went well. That is taken to be
//! the sources that ask for the architecture: what only x86-64 has may stand in those, or behind a module that is left out
//! elsewhere, which is checked each time.

use super::digest::{digits, embedder, is_unchanged, keep, sources};
use anyhow::{Context, Result, ensure};
use principium_local_cluster::progress::step;
use principium_local_cluster::tools;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The digest of the sources that were last seen to compile.
const VERIFIED: &str = "testing/aarch64/verified";
const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// What a source contains that asks for the architecture.
const MARKER: &str = "target_arch";
/// What stands before a module that is left out elsewhere.
const GATE: &str = "#[cfg(target_arch = \"x86_64\")]";
/// What only x86-64 has, or is only written for it.
const X86_ONLY: [&str; 6] =
    ["arch::x86_64", "is_x86_feature_detected!", "target_feature", "_mm_", "_mm256_", "_mm512_"];

/// Compiles it, unless nothing has changed; looks through the sources in any case.
pub fn check() -> Result<()> {
    let sources = sources()?;
    let unguarded = unguarded(&sources);
    ensure!(
        unguarded.is_empty(),
        "{unguarded:?} name what only x86-64 has; have it stand behind `{GATE}`, or behind a module that does"
    );
    let digest = digits(embedder(MARKER, &["candle", "gemm", "onig", "ring", "tree-sitter"])?);
    if is_unchanged(VERIFIED, &digest) {
        println!("    aarch64: unchanged since the embedder was last seen to compile for it");
        return Ok(());
    }
    // Some libraries are written in C.
    tools::install_cross_compiler()?;
    step(&format!("aarch64: Rust's standard library for {TARGET}"), || {
        let installed =
            Command::new("rustup").args(["target", "add", TARGET]).current_dir(crate::root()).status();
        let installed = installed.context("running rustup, which is how the library is had")?;
        ensure!(installed.success(), "`rustup target add {TARGET}` failed");
        Ok(())
    })?;
    let mut cargo = crate::cargo();
    cargo.args(["check", "--package", "principium-embedder", "--target", TARGET, "--target-dir"]);
    cargo.arg(crate::target().join("aarch64"));
    cargo.env("CC_aarch64_unknown_linux_gnu", COMPILER);
    cargo.env("CXX_aarch64_unknown_linux_gnu", COMPILER.replace("gcc", "g++"));
    crate::run(&mut cargo).context("the embedder does not compile for aarch64")?;
    keep(VERIFIED, &digest)
}

/// The sources that name what only x86-64 has, although they are compiled everywhere and don't ask for the architecture.
fn unguarded(sources: &BTreeMap<PathBuf, String>) -> Vec<&Path> {
    let names_it = |text: &str| X86_ONLY.iter().any(|name| text.contains(name));
    let found = sources.iter().filter(|(path, text)| {
        names_it(text) && !text.contains(MARKER) && !is_left_out_elsewhere(path, sources)
    });
    found.map(|(path, _)| path.as_path()).collect()
}

/// Whether a source is a module, or below one, that is there for x86-64 alone.
fn is_left_out_elsewhere(source: &Path, sources: &BTreeMap<PathBuf, String>) -> bool {
    let own = source.with_extension("");
    let module = if own.ends_with("mod") { own.parent().unwrap_or(&own) } else { own.as_path() };
    let (Some(folder), Some(name)) = (module.parent(), module.file_name()) else { return false };
    if name == "lib" || name == "main" {
        return false;
    }
    let declaration = format!("mod {};", name.to_string_lossy());
    let declares = |line: &str| line.trim().ends_with(&declaration);
    let parents = ["mod.rs", "lib.rs", "main.rs"].map(|file| folder.join(file));
    let parents = parents.into_iter().chain([folder.with_extension("rs")]);
    parents.filter_map(|parent| sources.get_key_value(&parent)).any(|(parent, text)| {
        text.split(GATE).skip(1).any(|rest| rest.trim_start().lines().next().is_some_and(declares))
            || is_left_out_elsewhere(parent, sources)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_x86_has_is_found_where_nothing_leaves_it_out() {
        let gated = format!("mod plain;\n{GATE}\nmod x86;\n");
        let sources: BTreeMap<PathBuf, String> = [
            ("src/lib.rs", "mod kernels;\npub mod weights;"),
            ("src/weights.rs", "unsafe { from_mmaped_safetensors(paths) }"),
            ("src/kernels/mod.rs", "mod dot;\nmod rows;"),
            ("src/kernels/dot.rs", gated.as_str()),
            ("src/kernels/dot/plain.rs", "use std::arch::x86_64::__m256;"),
            ("src/kernels/dot/x86.rs", "mod deep;\n_mm256_setzero_ps()"),
            ("src/kernels/dot/x86/deep.rs", "#[target_feature(enable = \"avx2\")]"),
            ("src/kernels/rows.rs", "#[cfg(target_arch = \"x86_64\")]\nuse core::arch::x86_64::__m512;"),
            ("src/main.rs", "if is_x86_feature_detected!(\"avx2\") {}"),
        ]
        .into_iter()
        .map(|(path, text)| (PathBuf::from(path), text.to_owned()))
        .collect();
        assert_eq!(unguarded(&sources), [Path::new("src/kernels/dot/plain.rs"), Path::new("src/main.rs")]);
    }

    #[test]
    fn the_sources_of_the_embedder_name_it_and_guard_it() {
        let sources = sources().unwrap();
        assert!(sources.values().any(|text| text.contains("_mm512_")));
        let unguarded = unguarded(&sources);
        assert!(unguarded.is_empty(), "{unguarded:?}");
    }
}
