//! Whether the embedder compiles for 64-bit Arm: its kernels for x86-64 are chosen at run time, and must be left out there. Done, as
//! for CUDA, where something that the outcome depends on has changed since it last went well.

use super::digest::{digits, embedder, is_unchanged, keep};
use anyhow::{Context, Result, ensure};
use principium_local_cluster::progress::step;
use principium_local_cluster::tools;
use std::process::Command;

/// The digest of the sources that were last seen to compile.
const VERIFIED: &str = "testing/aarch64/verified";
const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";

/// Compiles it, unless nothing has changed.
pub fn check() -> Result<()> {
    let digest = digits(embedder("target_arch", &["candle", "gemm", "onig", "ring", "tree-sitter"])?);
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
