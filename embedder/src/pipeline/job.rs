//! One job: cut → put in context → embed → send, all at once, with bounded room between the stages.

use super::chunk::{self, Chunk};
use super::enrich::{Enricher, Outcome, Prepared};
use super::lines::{ChunkLine, DocumentLine, Line, ProgressLine, SummaryLine};
use super::request::{Job, digest};
use super::{EmbedTexts, PipelineConfig};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Most chunks in one call of the embedder.
const BATCH: usize = 32;
/// Calls of the embedder under way at once: while one computes, the next is ready.
const CALLS: usize = 4;
/// Chunks between two stages.
const BETWEEN: usize = 256;

/// Does a job and sends its lines; ends early when nobody reads them.
pub async fn run(job: Job, config: Arc<PipelineConfig>, embedder: Arc<dyn EmbedTexts>, lines: mpsc::Sender<Bytes>) {
    let (outcomes, chunks) = mpsc::channel(BETWEEN);
    let enricher = match config.ollama.as_ref().filter(|_| job.enrich).map(|ollama| Enricher::start(ollama, outcomes.clone())) {
        None => None,
        Some(Ok(enricher)) => Some(enricher),
        Some(Err(message)) => {
            tracing::error!(%message, "chunks stay without context");
            None
        }
    };
    let (prepared, arrivals) = mpsc::channel(BETWEEN);
    let output = Output::new(&job, &config, lines);
    tokio::spawn(cut(job, config.clone(), enricher.clone(), outcomes, prepared));
    output.collect(config, embedder, enricher, arrivals, chunks).await;
}

/// What the first stage says of a document.
struct Arrival {
    place: usize,
    document: Result<Arc<Prepared>, (String, Option<String>, String)>,
}

/// Cuts every document. Without an enricher it also says at once that there is no context to wait for.
async fn cut(
    job: Job,
    config: Arc<PipelineConfig>,
    enricher: Option<Enricher>,
    outcomes: mpsc::Sender<Outcome>,
    arrivals: mpsc::Sender<Arrival>,
) {
    for (place, document) in job.documents.into_iter().enumerate() {
        let tokenizer = config.tokenizer.clone();
        let named = (document.id.clone(), document.title.clone());
        let (most, overlap) = (job.chunk_tokens, job.overlap);
        let cut = tokio::task::spawn_blocking(move || {
            let chunks = chunk::split(&tokenizer, &document.text, document.format, most, overlap)?;
            if chunks.is_empty() {
                return Err("the document holds no text".to_owned());
            }
            Ok(Arc::new(Prepared { document, chunks }))
        });
        let prepared = cut.await.unwrap_or_else(|error| Err(format!("cutting it failed: {error}")));
        let document = prepared.clone().map_err(|error| (named.0, named.1, error));
        if arrivals.send(Arrival { place, document }).await.is_err() {
            return;
        }
        let Ok(prepared) = prepared else { continue };
        if let Some(enricher) = &enricher {
            enricher.add(place, prepared);
        } else {
            for chunk in 0..prepared.chunks.len() {
                if outcomes.send(Outcome { document: place, chunk, context: Ok(String::new()) }).await.is_err() {
                    return;
                }
            }
        }
    }
    if let Some(enricher) = enricher {
        enricher.finish();
    }
}

/// The last stage: what is known of each document, and the way out.
struct Output {
    lines: mpsc::Sender<Bytes>,
    started: Instant,
    documents: HashMap<usize, (Arc<Prepared>, usize)>,
    total: usize,
    summary: SummaryLine,
    chunks_total: usize,
    context_tokens: usize,
}

impl Output {
    fn new(job: &Job, config: &PipelineConfig, lines: mpsc::Sender<Bytes>) -> Self {
        Self {
            lines,
            started: Instant::now(),
            documents: HashMap::new(),
            total: job.documents.len(),
            summary: SummaryLine {
                documents: 0,
                failed: 0,
                chunks: 0,
                without_context: 0,
                tokens: 0,
                seconds: 0.0,
                chunks_per_second: 0.0,
                tokens_per_second: 0.0,
                contexts_per_minute: 0.0,
                instances: Vec::new(),
            },
            chunks_total: 0,
            // What the model has beyond the chunk and the tokens around a text.
            context_tokens: config.max_tokens.saturating_sub(2),
        }
    }

    async fn collect(
        mut self,
        config: Arc<PipelineConfig>,
        embedder: Arc<dyn EmbedTexts>,
        enricher: Option<Enricher>,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut outcomes: mpsc::Receiver<Outcome>,
    ) {
        let mut calls = FuturesUnordered::new();
        let (mut more_documents, mut more_chunks) = (true, true);
        loop {
            tokio::select! {
                // Documents first: a chunk is of use only when its document is known.
                biased;
                arrival = arrivals.recv(), if more_documents => match arrival {
                    Some(arrival) => if !self.arrive(arrival).await { return },
                    None => more_documents = false,
                },
                Some((batch, embedded)) = calls.next(), if !calls.is_empty() => {
                    if !self.send(&config, batch, embedded).await {
                        return;
                    }
                }
                outcome = outcomes.recv(), if more_chunks && calls.len() < CALLS => match outcome {
                    Some(first) => {
                        let mut batch = vec![first];
                        while batch.len() < BATCH && let Ok(next) = outcomes.try_recv() {
                            batch.push(next);
                        }
                        let texts: Vec<String> = batch.iter().map(|outcome| self.text(&config, outcome)).collect();
                        let embedder = embedder.clone();
                        calls.push(async move { (batch, embedder.embed(texts).await) });
                    }
                    None => more_chunks = false,
                },
                else => break,
            }
            if !more_documents && self.documents.is_empty() && calls.is_empty() {
                break;
            }
        }
        self.finish(enricher).await;
    }

    async fn arrive(&mut self, arrival: Arrival) -> bool {
        match arrival.document {
            Ok(prepared) => {
                self.chunks_total += prepared.chunks.len();
                let open = prepared.chunks.len();
                self.documents.insert(arrival.place, (prepared, open));
                true
            }
            Err((document_id, title, error)) => {
                self.summary.failed += 1;
                let seconds = self.started.elapsed().as_secs_f64();
                self.line(Line::Document(DocumentLine { document_id, title, chunks: 0, seconds, error: Some(error) })).await
            }
        }
    }

    /// What is embedded: the context, cut to the room that the chunk leaves, and the chunk.
    fn text(&self, config: &PipelineConfig, outcome: &Outcome) -> String {
        let Some((prepared, _)) = self.documents.get(&outcome.document) else { return String::new() };
        let Some(chunk) = prepared.chunks.get(outcome.chunk) else { return String::new() };
        let text = &prepared.document.text[chunk.start..chunk.end];
        match outcome.context.as_deref() {
            Ok(context) if !context.is_empty() => {
                let room = self.context_tokens.saturating_sub(chunk::count(&config.tokenizer, text));
                format!("{}\n\n{text}", shorten(config, context, room))
            }
            _ => text.to_owned(),
        }
    }

    async fn send(&mut self, config: &PipelineConfig, batch: Vec<Outcome>, embedded: Result<Vec<super::Embedding>, String>) -> bool {
        let embedded = match embedded {
            Ok(vectors) if vectors.len() == batch.len() => vectors,
            Ok(vectors) => return self.fail(&batch, &format!("{} vectors came for {} texts", vectors.len(), batch.len())).await,
            Err(error) => return self.fail(&batch, &format!("embedding failed: {error}")).await,
        };
        for (outcome, embedding) in batch.into_iter().zip(embedded) {
            let Some((prepared, open)) = self.documents.get_mut(&outcome.document) else { continue };
            *open -= 1;
            let (prepared, last) = (prepared.clone(), *open == 0);
            let Some(chunk) = prepared.chunks.get(outcome.chunk) else { continue };
            self.summary.chunks += 1;
            self.summary.tokens += embedding.tokens;
            let (context, context_error) = match outcome.context {
                Ok(context) => (Some(context).filter(|context| !context.is_empty()), None),
                Err(error) => {
                    self.summary.without_context += 1;
                    (None, Some(error))
                }
            };
            let line = chunk_line(config, &prepared, outcome.chunk, chunk, context, context_error, embedding);
            if !self.line(Line::Chunk(Box::new(line))).await {
                return false;
            }
            if last {
                self.documents.remove(&outcome.document);
                self.summary.documents += 1;
                let line = DocumentLine {
                    document_id: prepared.document.id.clone(),
                    title: prepared.document.title.clone(),
                    chunks: prepared.chunks.len(),
                    seconds: self.started.elapsed().as_secs_f64(),
                    error: None,
                };
                if !self.line(Line::Document(line)).await {
                    return false;
                }
            }
        }
        self.progress().await
    }

    /// The documents of a batch that could not be embedded fail; the others go on.
    async fn fail(&mut self, batch: &[Outcome], error: &str) -> bool {
        for outcome in batch {
            let Some((prepared, _)) = self.documents.remove(&outcome.document) else { continue };
            self.summary.failed += 1;
            let line = DocumentLine {
                document_id: prepared.document.id.clone(),
                title: prepared.document.title.clone(),
                chunks: 0,
                seconds: self.started.elapsed().as_secs_f64(),
                error: Some(error.to_owned()),
            };
            if !self.line(Line::Document(line)).await {
                return false;
            }
        }
        true
    }

    async fn progress(&self) -> bool {
        let line = ProgressLine {
            chunks_done: self.summary.chunks,
            chunks_total: self.chunks_total,
            documents_done: self.summary.documents + self.summary.failed,
            documents_total: self.total,
        };
        self.line(Line::Progress(line)).await
    }

    #[allow(clippy::cast_precision_loss)]
    async fn finish(mut self, enricher: Option<Enricher>) {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let summary = &mut self.summary;
        summary.seconds = seconds;
        summary.chunks_per_second = summary.chunks as f64 / seconds;
        summary.tokens_per_second = summary.tokens as f64 / seconds;
        summary.instances = enricher.map(|enricher| enricher.figures()).unwrap_or_default();
        let contexts: u64 = summary.instances.iter().map(|instance| instance.contexts).sum();
        summary.contexts_per_minute = contexts as f64 * 60.0 / seconds;
        let Self { lines, summary, .. } = self;
        let _ = lines.send(Line::Summary(Box::new(summary)).to_bytes()).await;
    }

    /// Sends a line; `false` when nobody reads any more.
    async fn line(&self, line: Line) -> bool {
        self.lines.send(line.to_bytes()).await.is_ok()
    }
}

fn chunk_line(
    config: &PipelineConfig,
    prepared: &Prepared,
    index: usize,
    chunk: &Chunk,
    context: Option<String>,
    context_error: Option<String>,
    embedding: super::Embedding,
) -> ChunkLine {
    let document = &prepared.document;
    let text = &document.text[chunk.start..chunk.end];
    let id = digest(&[document.id.as_bytes(), &chunk.start.to_le_bytes(), text.as_bytes(), config.model_name.as_bytes()]);
    ChunkLine {
        document_id: document.id.clone(),
        chunk_id: id[..32].to_owned(),
        index,
        start: chunk.start,
        end: chunk.end,
        heading_path: chunk.headings.clone(),
        text: text.to_owned(),
        context,
        context_error,
        tokens: embedding.tokens,
        vector: embedding.vector,
        model: config.model_name.clone(),
        metadata: document.metadata.clone(),
    }
}

/// A text cut to so many tokens.
fn shorten(config: &PipelineConfig, text: &str, room: usize) -> String {
    let Ok(encoding) = config.tokenizer.encode_fast(text, false) else { return text.to_owned() };
    if encoding.len() <= room {
        return text.to_owned();
    }
    // Offsets of the fast path are not kept, so words are taken off until the rest fits.
    let mut words: Vec<&str> = text.split(' ').collect();
    while !words.is_empty() && chunk::count(&config.tokenizer, &words.join(" ")) > room {
        words.pop();
    }
    words.join(" ")
}
