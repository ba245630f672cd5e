//! A configuration for tests, and jobs in which a stage fails.

use super::chunk::tests::words;
use super::request::ProcessRequest;
use super::*;
use crate::ollama::tests::{pool, stand_in, well};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A pipeline whose tokens are words, with or without a pool that nobody asks.
pub(crate) fn config(ollama: bool) -> PipelineConfig {
    PipelineConfig {
        tokenizer: Arc::new(words()),
        max_tokens: 256,
        model_name: "m".into(),
        model_digest: "d".into(),
        similarity: Similarity::Cosine,
        reader: Reader::new(None),
        chunker: Chunker::Auto,
        chunk_max_tokens: 200,
        chunk_overlap: 0,
        ollama: ollama.then(|| pool(&["http://nobody"])),
        contexts: Arc::default(),
        metrics: Arc::default(),
    }
}

/// The vector of a text is its length; a text with `poison` in it fails its batch.
pub(crate) struct Lengths;

impl EmbedTexts for Lengths {
    #[expect(clippy::cast_precision_loss, reason = "short texts")]
    fn embed(&self, texts: Vec<String>, _: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        Box::pin(async move {
            if texts.iter().any(|text| text.contains("poison")) {
                return Err("poisoned".to_owned());
            }
            let embedding =
                |text: &String| Embedding { vector: vec![text.len() as f32], tokens: words_of(text) };
            Ok(texts.iter().map(embedding).collect())
        })
    }

    fn capacity(&self) -> usize {
        0
    }
}

fn words_of(text: &str) -> usize {
    chunk::count(&words(), text)
}

/// All lines of a job.
async fn process(config: PipelineConfig, body: Value) -> Vec<Value> {
    let job = serde_json::from_value::<ProcessRequest>(body).unwrap().validate(&config).unwrap().into();
    let (lines, mut receiver) = tokio::sync::mpsc::channel(LINE_BUFFER);
    tokio::spawn(job::run(job, Arc::new(config), Arc::new(Lengths), lines));
    let mut read = Vec::new();
    while let Some(line) = receiver.recv().await {
        read.push(serde_json::to_value(&line).unwrap());
    }
    read
}

fn of_type<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

#[tokio::test]
async fn a_context_that_does_not_fit_is_cut_and_the_line_says_so() {
    for (context, room, cut) in [("one two three four", 20, true), ("one two three four", 30, false)] {
        let (url, _) = stand_in(move |_| well(context)).await;
        let pool = OllamaConfig { context_max_tokens: 2, ..pool(&[&url]) };
        let config =
            PipelineConfig { max_tokens: room + SPECIAL_TOKENS, ollama: Some(pool), ..config(false) };
        let text = "word ".repeat(18);
        let lines = process(config, json!({ "documents": [{ "text": text }] })).await;
        let chunk = of_type(&lines, "chunk")[0];
        assert_eq!(chunk["context"], context, "the client sees all of it");
        assert_eq!(chunk.get("context_truncated"), cut.then_some(&json!(true)), "{chunk}");
        assert!(chunk["tokens"].as_u64().unwrap() <= room as u64, "{chunk}");
    }
}

#[tokio::test]
async fn documents_that_are_wrong_or_fail_do_not_touch_the_others() {
    let documents = json!([
        { "id": "good", "text": "all is well" },
        { "id": "good", "text": "twice" },
        { "id": "sheet", "text": "x", "format": "xlsx" },
        { "id": "empty", "text": " " },
        { "id": "also good", "text": "well too" },
    ]);
    let lines = process(config(false), json!({ "documents": documents })).await;
    let ended: Vec<(&str, bool)> = of_type(&lines, "document")
        .iter()
        .map(|line| (line["document_id"].as_str().unwrap(), line.get("error").is_none()))
        .collect();
    assert_eq!(ended.iter().filter(|(_, well)| *well).count(), 2, "{ended:?}");
    for failed in [("good", false), ("sheet", false), ("empty", false)] {
        assert!(ended.contains(&failed), "{failed:?} in {ended:?}");
    }
    let summary = lines.last().unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(2), &json!(3)));
}

/// All lines of a job whose documents are cut by meaning, and the most texts that were embedded in one call.
async fn process_by_meaning(text: &str, describe: bool) -> (Vec<Value>, usize) {
    let config = PipelineConfig { chunker: Chunker::Semantic, ..config(false) };
    let request = json!({ "documents": [{ "id": "one", "text": text }, { "id": "two", "text": text }] });
    let request = serde_json::from_value::<ProcessRequest>(request).unwrap().validate(&config).unwrap();
    let job = Job { describe, ..request.into() };
    let (lines, mut receiver) = tokio::sync::mpsc::channel(LINE_BUFFER);
    let embedder = Arc::new(Counts::default());
    tokio::spawn(job::run(job, Arc::new(config), embedder.clone(), lines));
    let mut read = Vec::new();
    while let Some(line) = receiver.recv().await {
        read.push(serde_json::to_value(&line).unwrap());
    }
    (read, embedder.0.load(Ordering::Relaxed))
}

/// Keeps the most texts that it was given in one call.
#[derive(Default)]
struct Counts(AtomicUsize);

impl EmbedTexts for Counts {
    fn embed(&self, texts: Vec<String>, purpose: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        self.0.fetch_max(texts.len(), Ordering::Relaxed);
        Box::pin(async move { Lengths.embed(texts, purpose).await })
    }

    fn capacity(&self) -> usize {
        0
    }
}

#[tokio::test]
async fn the_sentences_of_a_large_document_are_compared_page_by_page() {
    let text: String = (0..3000).map(|n| format!("Word {n} of a long document stands here. ")).collect();
    let (lines, most) = process_by_meaning(&text, true).await;
    let summary = lines.last().unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(2), &json!(0)), "{summary}");
    assert_eq!(most, 256, "a page of sentences is full, and no call is larger");
}

#[tokio::test]
async fn nobody_looks_at_the_documents_of_a_job_that_does_not_tell() {
    let text = "Write to anna@example.org. ".repeat(20);
    for describe in [true, false] {
        let (lines, _) = process_by_meaning(&text, describe).await;
        for document in of_type(&lines, "document") {
            assert_eq!(document["error"], Value::Null, "{document}");
            assert_eq!(document.get("document_type").is_some(), describe, "{document}");
            assert_eq!(document.get("personal_data").is_some(), describe, "{document}");
        }
        let similar = of_type(&lines, "document").iter().any(|it| it.get("near_duplicate_of").is_some());
        assert_eq!(similar, describe);
    }
}

#[tokio::test]
async fn a_batch_that_can_not_be_embedded_fails_its_documents() {
    let lines = process(config(false), json!({ "documents": [{ "id": "bad", "text": "poison" }] })).await;
    assert!(of_type(&lines, "document")[0]["error"].as_str().unwrap().contains("poisoned"));
    assert_eq!(lines.last().unwrap()["failed"], 1);
}

/// A document of one chunk, as it arrives.
fn arrival(place: usize) -> job::Arrival {
    let content = crate::format::Extracted::plain("all is well".to_owned());
    let prepared = enrich::Prepared {
        chunks: chunk::Chunk::all(&content, std::iter::once(0..3)),
        chunk_ids: vec!["c".into()],
        about: None,
        chunker: Chunker::Recursive,
        document: Arc::new(document::Document {
            id: place.to_string(),
            title: None,
            content,
            metadata: None,
        }),
    };
    let origin = Origin { source: place, documents: 1 };
    job::Arrival { place, origin, document: Ok(Arc::new(prepared)), near_duplicate_of: None }
}

fn outcome(document: usize) -> enrich::Outcome {
    enrich::Outcome { document, chunk: 0, context: Ok(None), made: None }
}

/// The output of a job and what it sends.
fn output() -> (output::Output, tokio::sync::mpsc::Receiver<Line>) {
    let config = Arc::new(config(false));
    let request = json!({ "documents": [{ "text": "all is well" }] });
    let request: ProcessRequest = serde_json::from_value(request).unwrap();
    let job = Job::from(request.validate(&config).unwrap());
    let (lines, receiver) = tokio::sync::mpsc::channel(LINE_BUFFER);
    (output::Output::new(&job, config, lines), receiver)
}

type Channels = (tokio::sync::mpsc::Sender<job::Arrival>, tokio::sync::mpsc::Sender<enrich::Outcome>);

/// While it embeds for the first time, a second document comes with its chunk.
struct Meanwhile(std::sync::Mutex<Option<Channels>>);

impl EmbedTexts for Meanwhile {
    fn embed(&self, texts: Vec<String>, _: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>> {
        let channels = self.0.lock().unwrap().take();
        Box::pin(async move {
            if let Some((arrivals, outcomes)) = channels {
                arrivals.try_send(arrival(1)).unwrap_or_else(|_| panic!("it has room"));
                outcomes.try_send(outcome(1)).unwrap_or_else(|_| panic!("it has room"));
                tokio::task::yield_now().await;
            }
            Lengths.embed(texts, Purpose::Document).await
        })
    }

    fn capacity(&self) -> usize {
        0
    }
}

#[tokio::test]
async fn a_document_that_comes_just_before_its_chunk_loses_nothing() {
    let (output, mut receiver) = output();
    let (arrivals, arriving) = tokio::sync::mpsc::channel(2);
    let (outcomes, chunks) = tokio::sync::mpsc::channel(2);
    arrivals.send(arrival(0)).await.unwrap();
    outcomes.send(outcome(0)).await.unwrap();
    let embedder = Meanwhile(std::sync::Mutex::new(Some((arrivals, outcomes))));
    output.collect(Arc::new(embedder), None, arriving, chunks).await;
    let mut last = None;
    while let Some(line) = receiver.recv().await {
        last = Some(serde_json::to_value(line).unwrap());
    }
    let summary = last.unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(2), &json!(0)));
}

#[tokio::test]
async fn documents_whose_chunks_get_lost_are_reported_as_failed() {
    let (output, mut receiver) = output();
    let (arrivals, arriving) = tokio::sync::mpsc::channel(1);
    let (outcomes, chunks) = tokio::sync::mpsc::channel(1);
    arrivals.send(arrival(0)).await.unwrap();
    drop((arrivals, outcomes));
    output.collect(Arc::new(Lengths), None, arriving, chunks).await;
    let document: Value = serde_json::to_value(receiver.recv().await.unwrap()).unwrap();
    assert!(document["error"].as_str().unwrap().contains("1 of its 1 chunks got lost"), "{document}");
    let summary: Value = serde_json::to_value(receiver.recv().await.unwrap()).unwrap();
    assert_eq!((&summary["documents"], &summary["failed"]), (&json!(0), &json!(1)));
}
