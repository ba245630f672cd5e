//! `bench`: how many texts of a length the model takes on this machine, and how long one alone takes.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{bar, is_read, load, summary};
use crate::args::{BenchArgs, Role};
use crate::model::{Input, Truncation};

/// Tokens of it come in any number.
const SENTENCE: &str =
    "the operator moves a workload to the coolest healthy card and drains the hot one first . ";

/// Measures the throughput of many texts and the latency of one.
pub async fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let role = if args.reranker { Role::Reranker } else { Role::DataFactory };
    let served = load(&args.model, role).await?;
    let length = args.tokens.min(served.tokenizer.maximum());
    let repeated = SENTENCE.repeat(1 + length / 10);
    let whole = served.tokenizer.text(&repeated, Truncation::DropEnd)?;
    // The beginning and the last token, so that special tokens stay where they are.
    let cut = |values: &[u32]| -> Vec<u32> {
        let (head, tail) = (length.saturating_sub(1).min(values.len()), values.last().copied());
        values[..head].iter().copied().chain(tail).take(length).collect()
    };
    let input = Input { ids: cut(&whole.ids), type_ids: cut(&whole.type_ids), ..whole };
    let texts = vec![input.clone(); args.texts];
    // The first batch pays for what is made once.
    served.engine.run(vec![input.clone(); args.texts.min(8)]).await.context("computing the first batch")?;

    let limit = Duration::from_secs(args.seconds);
    let progress = bar(Some(args.seconds), "{bar:40} {pos}/{len} s, many texts");
    let started = Instant::now();
    let mut done = 0;
    while done == 0 || started.elapsed() < limit {
        served.engine.run(texts.clone()).await.context("computing many texts")?;
        done += texts.len();
        progress.set_position(started.elapsed().as_secs());
    }
    let seconds = started.elapsed().as_secs_f64();
    progress.finish_and_clear();
    if !is_read(writeln!(std::io::stdout(), "{}", summary(done, done * input.len(), seconds)))? {
        return Ok(());
    }

    let started = Instant::now();
    let mut latencies = Vec::new();
    while latencies.len() < 20 || (started.elapsed() < limit && latencies.len() < 1000) {
        let one = Instant::now();
        served.engine.run(vec![input.clone()]).await.context("computing one text")?;
        latencies.push(one.elapsed().as_secs_f64() * 1000.0);
    }
    latencies.sort_by(f64::total_cmp);
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    let written = writeln!(
        std::io::stdout(),
        "one text of {} tokens alone, {} times: p50 {:.2} ms, p99 {:.2} ms",
        input.len(),
        latencies.len(),
        at(50),
        at(99)
    );
    is_read(written).map(|_| ())
}
