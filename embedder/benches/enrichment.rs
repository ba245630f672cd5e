//! `cargo xtask bench enrichment`: contexts a minute by the number of Ollama instances, and what it brings that a document's
//! chunks go to one instance. The instances are stand-ins that take the time of a language model: for each token of a prompt that
//! the one before did not begin with, and for each token that they write. The pipeline that asks them is the real one.

#![allow(clippy::unwrap_used, reason = "a benchmark ends where something is wrong")]

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::BoxFuture;
use principium_embedder::format::Reader;
use principium_embedder::model::Similarity;
use principium_embedder::ollama::{OllamaConfig, Timing, hosts};
use principium_embedder::pipeline::{Chunker, EmbedTexts, Embedding, PipelineConfig, Purpose, router};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;

const DOCUMENTS: usize = 36;
const CHUNKS: usize = 8;
const CHUNK_WORDS: usize = 100;
/// Seconds for a byte of a prompt, and for an answer: a prompt of 5,000 bytes takes as long as three answers.
const BYTE: f64 = 60e-6;
const ANSWER: f64 = 0.1;

/// Vectors cost nothing here.
struct Nothing;

impl EmbedTexts for Nothing {
    fn embed(&self, texts: Vec<String>, _: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        Box::pin(
            async move { Ok(texts.iter().map(|_| Embedding { vector: vec![1.0], tokens: 1 }).collect()) },
        )
    }

    fn capacity(&self) -> usize {
        0
    }
}

/// One instance: the prompt it read last. It answers one question at a time.
#[derive(Clone, Default)]
struct Instance {
    last: Arc<tokio::sync::Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Instance {
    /// Takes the time of a prompt and an answer.
    async fn answer(&self, prompt: String) {
        let mut last = self.last.lock().await;
        let shared = prompt.bytes().zip(last.bytes()).take_while(|(one, two)| one == two).count();
        #[expect(clippy::cast_precision_loss, reason = "prompts are short")]
        let seconds = (prompt.len() - shared) as f64 * BYTE + ANSWER;
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        last.clone_from(&prompt);
        self.asked.lock().unwrap().push(prompt);
    }

    async fn serve(self) -> String {
        let generate = post(|State(instance): State<Self>, Json(question): Json<Value>| async move {
            let prompt = question["prompt"].as_str().unwrap().to_owned();
            let tokens = prompt.len() / 4;
            instance.answer(prompt).await;
            Json(
                json!({ "response": "It is so.", "done_reason": "stop", "prompt_eval_count": tokens, "eval_count": 4 }),
            )
        });
        let router =
            Router::new().route("/api/generate", generate).route("/api/version", get(|| async { "{}" }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router.with_state(self)).await });
        url
    }
}

fn words() -> Tokenizer {
    let vocabulary = [("[UNK]".to_owned(), 0)].into_iter().collect();
    let model = WordLevel::builder().vocab(vocabulary).unk_token("[UNK]".into()).build().unwrap();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Whitespace {}));
    tokenizer
}

/// Puts all documents in context by so many instances; the summary, the seconds and the instances.
async fn run(instances: usize) -> (Value, f64, Vec<Instance>) {
    let instances: Vec<Instance> = (0..instances).map(|_| Instance::default()).collect();
    let mut urls = Vec::new();
    for instance in &instances {
        urls.push(instance.clone().serve().await);
    }
    let ollama = OllamaConfig {
        hosts: hosts(&urls.join(",")).unwrap(),
        model: "paced".into(),
        context_max_tokens: 50,
        context_window: 4096,
        prompt: None,
        ca_file: None,
        timing: Timing::default(),
    };
    let config = PipelineConfig {
        tokenizer: Arc::new(words()),
        max_tokens: 512,
        model_name: "none".into(),
        model_digest: "none".into(),
        similarity: Similarity::Cosine,
        reader: Reader::new(None),
        chunker: Chunker::Fixed,
        chunk_max_tokens: CHUNK_WORDS,
        chunk_overlap: 0,
        ollama: Some(ollama),
        contexts: Arc::default(),
        metrics: Arc::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/process", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router(Arc::new(config), Arc::new(Nothing))).await });
    let text = |document: usize| {
        (0..CHUNKS * CHUNK_WORDS).map(|word| format!("d{document}w{word} ")).collect::<String>()
    };
    let documents: Vec<Value> = (0..DOCUMENTS)
        .map(|document| json!({ "id": document.to_string(), "text": text(document) }))
        .collect();
    let started = Instant::now();
    let request = reqwest::Client::new().post(url).json(&json!({ "documents": documents }));
    let answer = request.send().await.unwrap().text().await.unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let summary: Value = serde_json::from_str(answer.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&summary["chunks"], &summary["without_context"]),
        (&json!(DOCUMENTS * CHUNKS), &json!(0)),
        "{summary}"
    );
    (summary, seconds, instances)
}

/// The same prompts, chunk by chunk to the next instance: how the system before did it.
async fn round_robin(prompts: &[String], instances: usize) -> f64 {
    let started = Instant::now();
    let workers = (0..instances).map(|number| {
        let own: Vec<String> = prompts.iter().skip(number).step_by(instances).cloned().collect();
        tokio::spawn(async move {
            let instance = Instance::default();
            for prompt in own {
                instance.answer(prompt).await;
            }
        })
    });
    futures::future::join_all(workers).await;
    started.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    principium_embedder::tls::install();
    println!("{DOCUMENTS} documents of {CHUNKS} chunks\n");
    println!("| instances | contexts/min | of n times one | prompt tokens cached |\n|---|---|---|---|");
    let mut one = None;
    let mut prompts = Vec::new();
    let mut six = 0.0;
    for instances in [1, 2, 4, 6] {
        let (summary, seconds, asked) = run(instances).await;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = (DOCUMENTS * CHUNKS) as f64 * 60.0 / seconds;
        if instances == 1 {
            one = Some(rate);
            prompts = asked[0].asked.lock().unwrap().clone();
        }
        six = seconds;
        let sum = |key: &str| {
            summary["instances"].as_array().unwrap().iter().filter_map(|it| it[key].as_f64()).sum::<f64>()
        };
        let cached = sum("prompt_tokens_cached") / sum("prompt_tokens");
        let share = rate / one.unwrap_or(rate) / f64::from(u8::try_from(instances).unwrap());
        println!("| {instances} | {rate:.0} | {share:.3} | {:.0} % |", cached * 100.0);
    }
    let robin = round_robin(&prompts, 6).await;
    println!(
        "\nthe same prompts round-robin by chunk over 6 instances: {robin:.1} s, by document {six:.1} s: {:.2} times as fast",
        robin / six
    );
}
