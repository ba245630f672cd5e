//! `cargo xtask gpu`: the simulated hardware of the local cluster.

use anyhow::{Context, Result};
use clap::Parser;
use principium_gpu_sim::{GpuCommand, state_path};

/// Shows or changes the simulated GPUs.
pub fn run(command: &GpuCommand) -> Result<()> {
    Ok(command.run(&state_path())?)
}

/// Sets one temperature, in °C, and prints nothing.
pub fn set_temperature(index: u32, celsius: u32) -> Result<()> {
    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: GpuCommand,
    }
    let line =
        Line::try_parse_from(["gpu", "set", &index.to_string(), "--temperature", &celsius.to_string()])?;
    line.command.run_to(&state_path(), &mut std::io::sink()).context("cargo xtask gpu set")
}
