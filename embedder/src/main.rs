//! The program `principium-embedder`: reads its arguments, sets up logging, serves.

use clap::Parser;
use principium_embedder::args::{Args, Command};
use principium_embedder::serve;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { command } = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    match command {
        Command::Serve(args) => serve::serve(&args).await,
    }
}
