//! Documents through the DataFactory, and a question answered from what came out.

use super::tables;
use anyhow::{Context, Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// How many passages the vectors choose, and how many of those are shown after reranking.
const CANDIDATES: usize = 8;
const SHOWN: usize = 3;

/// A chunk as `POST /v1/process` streams it; only what is shown here.
#[derive(Deserialize)]
pub struct Chunk {
    document_id: String,
    text: String,
    #[serde(default)]
    context: Option<String>,
    vector: Vec<f32>,
}

/// Sends every document of a folder and shows the stream as it comes.
pub fn process(factory: &str, folder: &Path) -> Result<Vec<Chunk>> {
    let documents = read(folder)?;
    for document in &documents {
        let text = document["text"].as_str().unwrap_or_default();
        println!(
            "    {:<22} {} words",
            document["id"].as_str().unwrap_or_default(),
            text.split_whitespace().count()
        );
    }
    let url = format!("{factory}/v1/process");
    let mut response = ureq::post(&url)
        .send_json(json!({ "documents": documents }))
        .with_context(|| format!("POST {url}"))?;
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template("    {spinner:.cyan} {msg}")?);
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut summary = None;
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.with_context(|| format!("reading the stream of {url}"))?;
        let value: Value =
            serde_json::from_str(&line).with_context(|| format!("reading {line:?} from {url}"))?;
        match value["type"].as_str() {
            Some("chunk") => {
                chunks.push(serde_json::from_value(value).context("reading a chunk")?);
                bar.set_message(format!("{} chunks in context and embedded", chunks.len()));
            }
            Some("summary") => summary = Some(value),
            Some("document") if value.get("error").is_some_and(|error| !error.is_null()) => {
                bar.suspend(|| println!("    {} {value}", style("failed").red()));
            }
            _ => {}
        }
    }
    bar.finish_and_clear();
    let summary = summary.with_context(|| format!("the stream of {url} ended without a summary"))?;
    let Some(example) = chunks.iter().find(|chunk| chunk.context.as_ref().is_some_and(|c| !c.is_empty()))
    else {
        bail!("none of the {} chunks was put in context: is the OllamaPool ready?", chunks.len());
    };
    println!("\n    one of {} chunks, from {}:", chunks.len(), example.document_id);
    println!("      {} {}", style("chunk  ").dim(), shorten(&example.text, 150));
    println!(
        "      {} {}",
        style("context").dim(),
        shorten(example.context.as_deref().unwrap_or_default(), 150)
    );
    println!(
        "      {} {} numbers, {:.3?} …",
        style("vector ").dim(),
        example.vector.len(),
        &example.vector[..3.min(example.vector.len())]
    );
    let number = |key: &str| summary[key].as_f64().unwrap_or_default();
    println!(
        "\n    {} documents, {} chunks, {} tokens in {:.1} s: {:.1} chunks/s, {:.0} tokens/s",
        number("documents"),
        number("chunks"),
        number("tokens"),
        number("seconds"),
        number("chunks_per_second"),
        number("tokens_per_second")
    );
    Ok(chunks)
}

fn read(folder: &Path) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let format = match path.extension().and_then(|e| e.to_str()) {
            Some("md") if name != "README.md" => "markdown",
            Some("txt") => "text",
            _ => continue,
        };
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        documents.push(json!({ "id": name, "text": text, "format": format }));
    }
    documents.sort_by_key(|document| document["id"].to_string());
    Ok(documents)
}

/// Embeds a question, takes the nearest chunks and has the reranker order them.
pub fn ask(factory: &str, reranker: &str, corpus: &[Chunk], question: &str) -> Result<()> {
    println!("    {}\n", style(question).italic());
    let vectors: Vec<Vec<f32>> = post(&format!("{factory}/embed"), &json!({ "inputs": question }))?;
    let query = vectors.into_iter().next().context("the DataFactory returned no vector for the question")?;
    let mut nearest: Vec<(f32, &Chunk)> =
        corpus.iter().map(|chunk| (dot(&query, &chunk.vector), chunk)).collect();
    nearest.sort_by(|a, b| b.0.total_cmp(&a.0));
    nearest.truncate(CANDIDATES);
    let texts: Vec<&str> = nearest.iter().map(|(_, chunk)| chunk.text.as_str()).collect();

    #[derive(Deserialize)]
    struct Rank {
        index: usize,
        score: f32,
    }
    let ranks: Vec<Rank> =
        post(&format!("{reranker}/rerank"), &json!({ "query": question, "texts": texts }))?;
    let rows: Vec<_> = ranks
        .iter()
        .filter_map(|rank| nearest.get(rank.index).map(|(cosine, chunk)| (rank, cosine, chunk)))
        .take(SHOWN)
        .map(|(rank, cosine, chunk)| {
            (chunk.document_id.clone(), *cosine, rank.score, shorten(&chunk.text, 220))
        })
        .collect();
    print!("{}", tables::passages(&rows));
    println!(
        "    {} chunks searched by their vectors, the best {} reordered by the cross-encoder",
        corpus.len(),
        nearest.len()
    );
    Ok(())
}

fn post<T: serde::de::DeserializeOwned>(url: &str, body: &Value) -> Result<T> {
    let mut response = ureq::post(url).send_json(body).with_context(|| format!("POST {url}"))?;
    response.body_mut().read_json().with_context(|| format!("reading the answer of {url}"))
}

/// The cosine of two vectors of length 1, which is how the embedder returns them.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn shorten(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most { line } else { line.chars().take(most).chain(['…']).collect() }
}
