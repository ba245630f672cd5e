//! The project's commands. `cargo xtask --help` lists them.

mod bench;
mod check;
mod cluster;
mod demo;
mod generate;
mod gpu;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Commands for people who try principium or work on it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole system at work on this machine: a real cluster with eight simulated GPUs, real models and documents.
    Demo(demo::Demo),
    /// Run every test: unit, API, and end-to-end on the real cluster.
    Test(test::Test),
    /// Run random churn for an hour on the real cluster, then the long forms of the fault tests.
    Soak(test::Soak),
    /// Measure a part; takes minutes and wants a quiet machine.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// What must hold of the sources: format, lints, generated files, licenses, the chart.
    Check {
        /// Only this part.
        part: Option<check::Part>,
    },
    /// The local cluster alone.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show or change the simulated GPUs while everything runs.
    #[command(subcommand)]
    Gpu(principium_gpu_sim::GpuCommand),
    /// Build the container images as tarballs (OCI layouts) that can be pushed to a registry.
    Images {
        /// Folder for the tarballs.
        #[arg(long, default_value = "dist")]
        output: PathBuf,
    },
    /// Write what follows from the API types: crds/, the chart's copy and docs/api.md.
    Generate {
        /// Write nothing; fail where a file differs.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let outcome = match command {
        Command::Demo(demo) => demo.run(),
        Command::Test(test) => test.run(),
        Command::Soak(soak) => soak.run(),
        Command::Bench(bench) => bench.run(),
        Command::Check { part } => check::run(part),
        Command::Cluster(command) => command.run(),
        Command::Gpu(command) => gpu::run(&command),
        Command::Images { output } => cluster::export_images(&output),
        Command::Generate { check } => generate::run(check),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{} {error:#}", console::style("error:").red().bold());
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    principium_local_cluster::repository()
}

/// Where cargo puts what it builds, and checks put what they make.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A `cargo` that works in the repository.
fn cargo() -> std::process::Command {
    principium_local_cluster::command::cargo(&root())
}

/// Runs a command that prints for itself.
fn run(command: &mut std::process::Command) -> Result<()> {
    principium_local_cluster::command::run_visibly(command)
}
