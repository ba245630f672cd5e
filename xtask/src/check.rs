//! `cargo xtask check`: what must hold of the sources, without a cluster.

mod aarch64;
mod chart;
mod cuda;
mod digest;
mod effects;
mod gitops;
mod manifests;
mod schemas;
mod values;

use anyhow::{Context, Result};
use principium_local_cluster::{Cache, tools};

/// A part of what must hold.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Format, lints, generated files, licenses and bans.
    Sources,
    /// The chart, and all manifests.
    Chart,
    /// What Argo CD and Flux make of the resources.
    Gitops,
    /// That the embedder compiles for CUDA.
    Cuda,
    /// That the embedder compiles for 64-bit Arm.
    Aarch64,
}

/// Checks one part, or all.
pub fn run(only: Option<Part>) -> Result<()> {
    let cache = Cache::from_environment()?;
    let wanted = |part| only.is_none_or(|only| only == part);
    if wanted(Part::Sources) {
        sources(&cache)?;
    }
    if wanted(Part::Chart) {
        chart::check(&cache)?;
    }
    if wanted(Part::Gitops) {
        gitops::check(&cache)?;
    }
    if wanted(Part::Cuda) {
        cuda::check(&cache)?;
    }
    if wanted(Part::Aarch64) {
        aarch64::check()?;
    }
    Ok(())
}

fn sources(cache: &Cache) -> Result<()> {
    crate::run(crate::cargo().args(["fmt", "--all", "--check"])).context("`cargo fmt --all` mends it")?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "principium-e2e/cluster",
        "--",
        "-D",
        "warnings",
    ];
    crate::run(crate::cargo().args(lints))?;
    crate::generate::run(true)?;
    // Advisories are left out: their database is not where every machine can reach it.
    let deny = tools::ensure_cargo(cache, "cargo-deny")?.join("cargo-deny");
    let mut command = std::process::Command::new(deny);
    crate::run(command.current_dir(crate::root()).args(["check", "bans", "licenses", "sources"]))
}
