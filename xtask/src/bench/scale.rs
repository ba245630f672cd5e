//! `cargo xtask bench scale`: compiles the operator and the benchmark, which starts everything else itself.

use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

/// Sizes of the benchmark of scale.
#[derive(clap::Args)]
pub struct Scale {
    /// Nodes of 8 GPUs.
    #[arg(long, default_value_t = 5000)]
    nodes: u32,
    /// DataFactories, Rerankers and OllamaPools.
    #[arg(long, default_value_t = 1000)]
    resources: u32,
    /// Pods of all of them.
    #[arg(long, default_value_t = 10_000)]
    pods: u32,
    /// GPUs that turn hot, one after the other.
    #[arg(long, default_value_t = 100)]
    heats: u32,
}

impl Scale {
    /// Measures, and prints a table.
    pub fn run(&self) -> Result<()> {
        let Self { nodes, resources, pods, heats } = self;
        let mut build = super::optimized("build", &super::OPERATOR);
        crate::run(build.args(["--bin", "principium-operator"]))?;
        let operator = crate::target().join("debug/principium-operator");
        let mut bench = super::optimized("bench", &super::OPERATOR);
        bench.args(["--bench", "scale", "--", "--operator"]).arg(operator);
        for (name, value) in [("nodes", nodes), ("resources", resources), ("pods", pods), ("heats", heats)] {
            bench.arg(format!("--{name}={value}"));
        }
        // In place of this program: who ends it ends cargo, and with it the benchmark, which then leaves nothing behind.
        Err(bench.exec()).context("starting the benchmark")
    }
}
