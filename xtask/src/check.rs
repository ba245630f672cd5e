//! `cargo xtask check`: what must hold of the sources, without a cluster.

use anyhow::{Context, Result};
use principium_local_cluster::{Cache, tools};

/// Format, lints, generated files, licenses and bans.
pub fn run() -> Result<()> {
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
    let deny = tools::ensure_cargo(&Cache::from_environment()?, "cargo-deny")?.join("cargo-deny");
    let mut command = std::process::Command::new(deny);
    crate::run(command.current_dir(crate::root()).args(["check", "bans", "licenses", "sources"]))?;
    let helm = tools::ensure_extra(&Cache::from_environment()?, "helm")?.join("helm");
    crate::run(
        std::process::Command::new(helm)
            .arg("lint")
            .arg("--strict")
            .arg(crate::root().join("charts/principium")),
    )
}
