//! `cargo xtask bench devices`: how the throughput of one DataFactory grows with its GPUs. The devices are stand-ins that take so
//! long for a batch as its tokens take at a fixed rate. The tokenizer, the pipeline and the queue before them are the real ones.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use principium_embedder::batch::Budget;
use principium_embedder::engine::{Engine, EngineLimits, PipelineEmbedder, Replica, Worker};
use principium_embedder::format::Reader;
use principium_embedder::gpus::Temperature;
use principium_embedder::metrics::Metrics;
use principium_embedder::model::{Input, ModelError, ModelFiles, Output, load_tokenizer};
use principium_embedder::pipeline::{Chunker, PipelineConfig, router};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens that a device computes in a second, and at once: batches of a quarter of a second.
const RATE: f64 = 8_000.0;
const BATCH_TOKENS: usize = 2_000;
const DOCUMENTS: usize = 40;
/// Of one document.
const WORDS: usize = 8_000;

struct Paced;

impl Replica for Paced {
    fn run(&self, inputs: &[&Input]) -> Result<Vec<Output>, ModelError> {
        let tokens: usize = inputs.iter().map(|input| input.len()).sum();
        #[expect(clippy::cast_precision_loss, reason = "batches are small")]
        std::thread::sleep(Duration::from_secs_f64(tokens as f64 / RATE));
        Ok(vec![Output { vector: vec![1.0; 384], ..Output::default() }; inputs.len()])
    }

    fn padding(&self, _: &[usize]) -> usize {
        0
    }
}

/// Tokens a second of so many devices.
async fn run(folder: &str, devices: usize, documents: &Value) -> f64 {
    let files = ModelFiles::read(Path::new(folder)).unwrap();
    let tokenizer = load_tokenizer(&files).unwrap();
    let budget = Budget { tokens: BATCH_TOKENS, inputs: 1024 };
    let worker = || Worker { replica: Paced, budget, temperature: Temperature::default(), express: false };
    let workers = std::iter::repeat_with(worker).take(devices).collect();
    let limits = EngineLimits { queue_inputs: 16_384 };
    let engine = Engine::start(workers, limits, Arc::new(Metrics::default())).unwrap();
    let config = PipelineConfig {
        tokenizer: tokenizer.plain(),
        max_tokens: tokenizer.maximum(),
        model_name: "all-MiniLM-L6-v2".into(),
        model_digest: "none".into(),
        similarity: files.similarity,
        reader: Reader::new(None),
        chunker: Chunker::Recursive,
        chunk_max_tokens: 200,
        chunk_overlap: 0,
        ollama: None,
        contexts: Arc::default(),
        metrics: Arc::default(),
    };
    let embedder = PipelineEmbedder {
        engine: engine.clone(),
        tokenizer,
        prompts: files.prompts,
        similarity: files.similarity,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/process", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router(Arc::new(config), Arc::new(embedder))).await });
    let started = Instant::now();
    let request = reqwest::Client::new().post(url).json(documents);
    let answer = request.send().await.unwrap().text().await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    engine.stop();
    let summary: Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(DOCUMENTS), &json!(0)), "{summary}");
    summary["tokens"].as_f64().unwrap() / seconds
}

#[tokio::main]
async fn main() {
    principium_embedder::tls::install();
    let folder = std::env::var("PRINCIPIUM_BENCH_MODEL").unwrap();
    let sentence = |number: usize| {
        format!("In test {number} of the rack the fan of card {} was slow and its heat rose. ", number % 8)
    };
    let document = |document: usize| {
        let text: String = (0..WORDS / 17).map(|number| sentence(document * 1000 + number)).collect();
        json!({ "id": document.to_string(), "text": text })
    };
    let documents = json!({ "documents": (0..DOCUMENTS).map(document).collect::<Vec<_>>() });
    println!("{DOCUMENTS} documents, devices of {RATE:.0} tokens/s\n");
    println!("| GPUs | tokens/s | of n times the pace |\n|---|---|---|");
    for devices in [1_u8, 2, 4, 8] {
        let rate = run(&folder, devices.into(), &documents).await;
        println!("| {devices} | {rate:.0} | {:.3} |", rate / RATE / f64::from(devices));
    }
}
