//! `cargo xtask bench`: measurements that are no tests, with optimized programs.

mod embedder;
mod plot;
mod scale;

use anyhow::Result;
use clap::Subcommand;
use principium_local_cluster::Cache;
use principium_local_cluster::images::Optimized;
use principium_local_cluster::tools::ensure_extra;
use std::process::Command;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// The device plugin on the local cluster, beside NVIDIA's: memory, CPU time, Allocate, reactions, registration,
    /// writes.
    DevicePlugin,
    /// The embedder against ONNX Runtime, candle's own BERT and sentence-transformers, on the same texts in one run; writes
    /// docs/benchmarks.md and its plot.
    Embedder(embedder::Embedder),
    /// The operator with thousands of nodes: a real API server and scheduler, and kwok in place of the kubelets. Needs no
    /// cluster, and takes a quarter of an hour in full size.
    Scale(scale::Scale),
    /// One plan of the operator for 40,000 GPUs and 10,000 pods. Needs no cluster.
    Plan,
    /// Throughput of a DataFactory by the number of its GPUs, stand-ins that take the time of a device.
    Devices,
    /// Contexts a minute by the number of Ollama instances, stand-ins that take the time of a language model.
    Enrichment,
    /// How well passages are found again, with the real models: chunk alone, in context, with BM25, reranked.
    Retrieval,
}

impl Bench {
    /// Measures, and prints a table.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::DevicePlugin => {
                let peer = ensure_extra(&Cache::from_environment()?, "nvidia-device-plugin")?;
                let access = crate::cluster::install(Optimized::DevicePlugin)?;
                crate::test::clear(&access)?;
                let mut cargo = optimized("bench", &["principium-e2e", "principium-device-plugin"]);
                cargo.args(["--bench", "device_plugin"]).env("KUBECONFIG", &access.kubeconfig);
                cargo.env("PRINCIPIUM_BENCH_PEER", peer.join("nvidia-device-plugin"));
                crate::run(&mut cargo)
            }
            Self::Embedder(embedder) => embedder.run(),
            Self::Scale(scale) => scale.run(),
            Self::Plan => {
                let mut cargo = optimized("bench", &OPERATOR);
                cargo.args(["--bench", "plan"]);
                crate::run(&mut cargo)
            }
            // Dependencies, the tokenizer among them, are optimized in the dev profile already.
            Self::Devices => {
                let models = crate::cluster::fetch_models()?;
                let mut cargo = crate::cargo();
                cargo.args(["bench", "--profile", "dev", "--workspace", "--bench", "devices"]);
                cargo.env("PRINCIPIUM_BENCH_MODEL", models.minilm);
                crate::run(&mut cargo)
            }
            // The instances' pace is what takes the time, not this program.
            Self::Enrichment => {
                let mut cargo = crate::cargo();
                cargo.args(["bench", "--profile", "dev", "--workspace", "--bench", "enrichment"]);
                crate::run(&mut cargo)
            }
            Self::Retrieval => {
                crate::cluster::fetch_models()?;
                let mut cargo = crate::cargo();
                cargo.args([
                    "test",
                    "--workspace",
                    "--test",
                    "api",
                    "passages_are_found_again",
                    "--",
                    "--nocapture",
                ]);
                crate::run(&mut cargo)
            }
        }
    }
}

/// What decides in the operator, and whose types it compares and copies.
const OPERATOR: [&str; 5] = ["jiff", "k8s-openapi", "kube-core", "principium-api", "principium-operator"];

/// `cargo bench` or `cargo build` with these packages optimized as in releases. Dependencies are in the dev profile already: only
/// what is measured is compiled anew.
fn optimized(command: &str, packages: &[&str]) -> Command {
    let mut cargo = crate::cargo();
    cargo.args([command, "--profile", "dev", "--workspace", "--features", "principium-e2e/cluster"]);
    for package in packages {
        // Assertions check every pointer that the standard library is given.
        for setting in ["opt-level=3", "debug-assertions=false"] {
            cargo.args(["--config", &format!("profile.dev.package.{package}.{setting}")]);
        }
    }
    cargo
}
