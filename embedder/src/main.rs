//! The program `principium-embedder`: reads its arguments, sets up logging, serves or works on local files.

use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::{cli, serve};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { command } = Args::parse();
    let filter = |default| EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    if let Command::Serve(args) = &command {
        tracing_subscriber::fmt().json().with_env_filter(filter("info")).init();
        return serve::serve(args).await;
    }
    // These print their results: what is logged goes where the progress goes, and is for people.
    tracing_subscriber::fmt()
        .without_time()
        .with_writer(std::io::stderr)
        .with_env_filter(filter("warn"))
        .init();
    match command {
        Command::Serve(_) => Ok(()),
        Command::Embed(args) => cli::embed(&args).await,
        Command::Rerank(args) => cli::rerank(&args).await,
        Command::Bench(args) => cli::bench(&args).await,
    }
}
