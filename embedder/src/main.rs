//! The program `principium-embedder`: reads its arguments, sets up logging, serves or works on local files.

use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::{cli, format, serve};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
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
