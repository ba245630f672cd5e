//! `cargo xtask check`: what must hold of the sources, without a cluster.

mod aarch64;
mod chart;
mod cuda;
mod digest;
mod effects;
mod gitops;
mod manifests;
mod rights;
mod schemas;
mod values;

use anyhow::{Context, Result, bail};
use principium_local_cluster::{Cache, tools};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// All checks in a process of their own, beside something that mostly waits, with what it leaves of the processors.
pub struct Beside {
    check: Child,
    said: PathBuf,
}

impl Beside {
    /// Starts them, with this program.
    pub fn start(program: &Path) -> Result<Self> {
        let said = crate::target().join("check.log");
        let log = File::create(&said).with_context(|| format!("making {}", said.display()))?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(program).arg("check");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let check = command.spawn().context("starting the checks with `nice`")?;
        Ok(Self { check, said })
    }

    /// Waits for them and prints what they said.
    pub fn finish(&mut self) -> Result<()> {
        let status = self.check.wait().context("waiting for the checks")?;
        print!("{}", std::fs::read_to_string(&self.said)?);
        if !status.success() {
            bail!("`cargo xtask check` ended with {status}");
        }
        Ok(())
    }
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
    let mut command = Command::new(deny);
    crate::run(command.current_dir(crate::root()).args(["check", "bans", "licenses", "sources"]))
}
