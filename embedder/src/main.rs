//! The program `principium-embedder`: reads its arguments, sets up logging, serves or works on local files.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::{cli, format, serve};
use tracing_subscriber::EnvFilter;

/// How long the end waits for work that blocks and that nobody can break off, such as reading a folder.
const LAST_WAIT: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting the threads of the process")?;
    let ended = runtime.block_on(run());
    // Left to itself the runtime waits without limit: one volume that does not answer would keep a process that is told to end
    // until it is killed. What was to be kept is kept whole or not at all, whenever the process ends.
    runtime.shutdown_timeout(LAST_WAIT);
    ended
}

async fn run() -> anyhow::Result<()> {
    let Args { mut command } = Args::parse();
    // Without a log: what it writes is its answer.
    if let Command::Read { format } = command {
        return Ok(format::serve_one(format)?);
    }
    let filter = |default| EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    if let Command::Serve(args) = &mut command {
        tracing_subscriber::fmt().json().with_env_filter(filter("info")).init();
        if args.reader_program.is_none() {
            args.reader_program = Some(std::env::current_exe()?);
        }
        return serve::serve(args).await;
    }
    // These print their results: what is logged goes where the progress goes, and is for people.
    tracing_subscriber::fmt()
        .without_time()
        .with_writer(std::io::stderr)
        .with_env_filter(filter("warn"))
        .init();
    match command {
        Command::Serve(_) | Command::Read { .. } => Ok(()),
        Command::Embed(args) => cli::embed(&args).await,
        Command::Rerank(args) => cli::rerank(&args).await,
        Command::Bench(args) => cli::bench(&args).await,
    }
}
