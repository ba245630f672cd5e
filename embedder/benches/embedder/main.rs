//! The embedder against its peers, on the same texts, in one run: every round gives each of them its turn, so that whatever
//! else the machine does slows all of them alike. Writes its figures as JSON; `cargo xtask bench embedder` runs it and makes
//! the table and the plot.

mod contenders;
mod quality;
mod server;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use contenders::{Contender, Latency};
use serde_json::{Value, json};

/// Rounds that are not counted: caches fill, clocks settle, ONNX Runtime chooses its batch size.
const WARM_UP: usize = 1;
/// Single texts of one turn.
const SINGLES: usize = 40;

/// What `cargo xtask bench embedder` gives.
#[derive(Parser)]
pub struct Arguments {
    /// Folder of all-MiniLM-L6-v2.
    #[arg(long)]
    model: String,
    /// Folder for the texts and the peers' models.
    #[arg(long)]
    work: PathBuf,
    /// Python with the packages of the peers.
    #[arg(long)]
    python: PathBuf,
    /// `peers.py`
    #[arg(long)]
    peers: PathBuf,
    /// The program of candle's own model; without it, it does not take part.
    #[arg(long)]
    candle: Option<PathBuf>,
    /// Rounds that are counted.
    #[arg(long)]
    rounds: usize,
    /// Nothing but so many minutes of load on the server, to see whether its memory stays flat.
    #[arg(long)]
    load: Option<u32>,
    /// File for the figures.
    #[arg(long)]
    output: PathBuf,
    /// cargo says so to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let corpus = arguments.work.join("corpus.json");
    let texts: Value = serde_json::from_slice(&std::fs::read(&corpus).context("reading the texts")?)?;
    if let Some(minutes) = arguments.load {
        return server::load(&arguments.model, &texts, minutes);
    }
    let mut contenders = contenders::all(&arguments, &corpus, &texts)?;
    let tokens = contenders::tokens(&arguments.model, &texts)?;
    let mut report = json!({
        "texts": tokens.bulk.len(),
        "tokens": tokens.bulk.iter().sum::<usize>(),
        "short_tokens": tokens.short,
        "long_tokens": tokens.long,
        "rounds": arguments.rounds,
        "kernels": contenders::kernels(&arguments.model)?,
    });
    report["throughput"] = throughput(&mut contenders, tokens.bulk.iter().sum(), arguments.rounds)?;
    report["latency"] = latency(&mut contenders, arguments.rounds)?;
    report["quality"] = quality::measure(&mut contenders, &texts)?;
    drop(contenders);
    report["server"] = server::measure(&arguments.model, &texts)?;
    std::fs::write(&arguments.output, serde_json::to_vec_pretty(&report)?).context("writing the figures")
}

fn throughput(contenders: &mut [Contender], tokens: usize, rounds: usize) -> Result<Value> {
    let mut seconds = vec![Vec::new(); contenders.len()];
    for round in 0..WARM_UP + rounds {
        for (contender, seconds) in contenders.iter_mut().zip(&mut seconds) {
            let took = contender.bulk()?;
            eprintln!("round {round}: {:<24} {:>9.0} tokens/s", contender.name(), tokens as f64 / took);
            if round >= WARM_UP {
                seconds.push(took);
            }
        }
    }
    let rows = contenders.iter().zip(seconds).map(|(contender, mut seconds)| {
        seconds.sort_by(f64::total_cmp);
        json!({
            "name": contender.name(),
            "tokens_per_second": tokens as f64 / percentile(&seconds, 50),
            "slowest": tokens as f64 / percentile(&seconds, 100),
            "fastest": tokens as f64 / percentile(&seconds, 0),
        })
    });
    Ok(rows.collect())
}

fn latency(contenders: &mut [Contender], rounds: usize) -> Result<Value> {
    let mut rows = Vec::new();
    for text in [Latency::Short, Latency::Long] {
        let mut times = vec![Vec::new(); contenders.len()];
        for round in 0..WARM_UP + rounds {
            for (contender, times) in contenders.iter_mut().zip(&mut times) {
                let turn = contender.singles(text, SINGLES)?;
                if round >= WARM_UP {
                    times.extend(turn);
                }
            }
        }
        for (contender, mut times) in contenders.iter().zip(times) {
            times.sort_by(f64::total_cmp);
            rows.push(json!({
                "name": contender.name(),
                "text": text.name(),
                "p50": percentile(&times, 50),
                "p99": percentile(&times, 99),
            }));
        }
    }
    Ok(rows.into())
}

/// Of sorted numbers the one that `percent` of them don't exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}
