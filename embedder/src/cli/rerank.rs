//! `rerank`: texts of files in the order of their scores by a query.

use std::io::{BufWriter, Write};
use std::time::Instant;

use anyhow::ensure;
use futures::StreamExt as _;
use serde::Serialize;

use super::texts::{self, Text};
use super::{CHUNK, CHUNKS, bar, is_read, load, summary};
use crate::args::{RerankArgs, Role};
use crate::http::score_texts;

/// Most characters of a text that a line for people shows.
const SHOWN: usize = 100;

#[derive(Serialize)]
struct Line<'a> {
    score: f32,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    text: &'a str,
}

/// Scores every text of the files and prints the best.
pub async fn rerank(args: &RerankArgs) -> anyhow::Result<()> {
    let served = load(&args.model, Role::Reranker).await?;
    let started = Instant::now();
    let texts: Vec<Text> =
        texts::read(&args.input, &indicatif::ProgressBar::hidden()).collect::<anyhow::Result<_>>()?;
    ensure!(!texts.is_empty(), "there is no text in the files");
    let progress = bar(Some(texts.len() as u64), "{bar:40} {pos}/{len} texts, {eta} left");
    let chunks = texts.chunks(CHUNK).map(|chunk| chunk.iter().map(|text| text.text.clone()).collect());
    let mut scored = futures::stream::iter(chunks)
        .map(|chunk: Vec<String>| score_texts(&served, &args.query, chunk))
        .buffered(CHUNKS);
    let (mut scores, mut tokens) = (Vec::with_capacity(texts.len()), 0);
    while let Some(chunk) = scored.next().await {
        let (chunk, more) = chunk?;
        progress.inc(chunk.len() as u64);
        scores.extend(chunk);
        tokens += more;
    }
    drop(scored);
    progress.finish_and_clear();
    let mut ranked: Vec<(f32, &Text)> = scores.into_iter().zip(&texts).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.truncate(args.top.unwrap_or(usize::MAX));
    if is_read(print(&ranked, args.json))? {
        eprintln!("{}", summary(texts.len(), tokens, started.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Writes a line for each text.
fn print(ranked: &[(f32, &Text)], json: bool) -> std::io::Result<()> {
    let mut output = BufWriter::new(std::io::stdout().lock());
    for (score, Text { source, line, text }) in ranked {
        if json {
            serde_json::to_writer(&mut output, &Line { score: *score, source, line: *line, text })?;
            writeln!(output)?;
        } else {
            let place = line.map_or_else(|| source.clone(), |line| format!("{source}:{line}"));
            let shown: String =
                text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SHOWN).collect();
            writeln!(output, "{score:.4}  {place}  {shown}")?;
        }
    }
    output.flush()
}
