//! `cargo xtask bench`: measurements that are no tests, with optimized programs.

use anyhow::Result;
use clap::Subcommand;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// The device plugin on the local cluster: memory, CPU time, Allocate, reaction to heat, and registration.
    DevicePlugin,
}

impl Bench {
    /// Measures, and prints a table.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::DevicePlugin => {
                let access = crate::cluster::install("release")?;
                crate::test::clear(&access)?;
                let mut cargo = crate::cargo();
                cargo.args([
                    "bench",
                    "--profile",
                    "release",
                    "--workspace",
                    "--features",
                    "principium-e2e/cluster",
                ]);
                cargo.args(["--bench", "device_plugin"]).env("KUBECONFIG", &access.kubeconfig);
                crate::run(&mut cargo)
            }
        }
    }
}
