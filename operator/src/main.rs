//! principium-operator: reads its arguments, connects, and runs until it is told to stop.

use anyhow::Context;
use clap::Parser;
use principium_operator::{Args, Clients, Command, check, pull, run};
use std::io::IsTerminal;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log).context("reading --log")?;
    let colors = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colors);
    if args.log_json {
        log.json().init();
    } else {
        log.init();
    }
    if let Some(Command::Pull(pulling)) = args.command {
        let Err(error) = pull(pulling).await else { return Ok(ExitCode::SUCCESS) };
        // In one line, which is what the pool's status says.
        eprintln!("Error: {error:#}");
        return Ok(ExitCode::FAILURE);
    }
    let clients = Clients::infer().await.context("connecting to the API server")?;
    if let Some(Command::Check) = args.command {
        return Ok(check(&args, clients.requests).await);
    }
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        told.cancel();
    });
    run(args, clients, stop).await?;
    Ok(ExitCode::SUCCESS)
}
