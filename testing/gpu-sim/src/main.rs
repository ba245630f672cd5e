//! `principium-gpu-sim`: shows and changes simulated GPUs, and installs the simulated driver.

use clap::{Parser, Subcommand};
use principium_gpu_sim::{GpuCommand, SimError, install, store};
use std::path::PathBuf;
use std::process::ExitCode;

/// Simulated NVIDIA GPUs that can be heated, filled, lost and recovered while programs read them through NVML.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// The state file.
    #[arg(long, global = true, env = store::STATE_VARIABLE, default_value = store::DEFAULT_STATE_PATH)]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Gpu(GpuCommand),
    /// Copy the simulated driver and this program to a directory, and create the state file where there is none.
    Install {
        /// Where to.
        #[arg(long, value_name = "DIRECTORY")]
        to: PathBuf,
        /// The simulated driver.
        #[arg(long, value_name = "FILE", default_value = "/usr/lib/principium/libnvidia-ml.so.1")]
        library: PathBuf,
        /// How many GPUs a new state file has.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=64))]
        gpus: u32,
    },
}

fn main() -> ExitCode {
    let Cli { state, command } = Cli::parse();
    let outcome = match command {
        Command::Gpu(command) => command.run(&state),
        Command::Install { to, library, gpus } => {
            install_driver(&to, &library).and_then(|()| GpuCommand::Init { gpus }.run(&state))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("principium-gpu-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install_driver(to: &std::path::Path, library: &std::path::Path) -> Result<(), SimError> {
    let program = std::env::current_exe()
        .map_err(|error| SimError::Command(format!("cannot find this program's own file: {error}")))?;
    for path in install::install(library, &program, to)? {
        println!("{} was written.", path.display());
    }
    Ok(())
}
