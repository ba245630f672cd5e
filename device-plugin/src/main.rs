//! Wires the plugin: reads the arguments, opens the channels, starts the tasks and waits for the end.

use anyhow::Context;
use clap::Parser;
use principium_api::gpu_node::Injection;
use principium_device_plugin::args::{Cli, Command};
use principium_device_plugin::config::{Config, File};
use principium_device_plugin::{check, runtime};
use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> anyhow::Result<ExitCode> {
    let Cli { command, options } = Cli::parse();
    if let Some(Command::Check(options)) = command {
        return Ok(check::run(&options));
    }
    log()?;
    let file = File::read(options.config.as_deref())?;
    let config = Config::new(options, file)?;
    tracing::info!(
        node = config.node_name,
        simulated = config.simulated,
        cdi = config.injection == Injection::Cdi,
        "principium device plugin {}",
        env!("CARGO_PKG_VERSION")
    );
    // One thread is enough for eight GPUs and one kubelet, and each thread more costs memory on every node.
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    tokio.block_on(runtime::run(config))?;
    Ok(ExitCode::SUCCESS)
}

/// Logs to standard error as `RUST_LOG` says. Plain targets and levels: the richer filter would bring a regular
/// expression engine into a program that counts its kilobytes.
fn log() -> anyhow::Result<()> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let targets: Targets =
        wanted.parse().with_context(|| format!("RUST_LOG={wanted:?} is not understood"))?;
    let layer = fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(targets).with(layer).init();
    Ok(())
}
