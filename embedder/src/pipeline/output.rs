//! The last stage of a job: chunks are embedded in batches and sent; documents end; the summary is drawn.

use super::chunk::{self, Chunk};
use super::enrich::{Enricher, Outcome, Prepared};
use super::job::{Arrival, Job, Made};
use super::lines::{ChunkLine, DocumentLine, Line, ProgressLine, SummaryLine};
use super::request::Document;
use super::{EmbedTexts, Embedding, PipelineConfig};
use crate::model;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Most chunks in one call of the embedder.
const BATCH: usize = 32;
/// Calls of the embedder under way at once: while one computes, the next is ready.
const CALLS: usize = 4;

/// What is known of each document, and the way out.
pub struct Output {
    config: Arc<PipelineConfig>,
    lines: mpsc::Sender<Line>,
    started: Instant,
    documents: BTreeMap<usize, Open>,
    documents_total: usize,
    chunks_total: usize,
    summary: SummaryLine,
}

/// A document of which not all chunks have been sent.
struct Open {
    prepared: Arc<Prepared>,
    /// Chunks to come.
    left: usize,
}

/// A chunk on its way through the embedder.
struct Embedded {
    outcome: Outcome,
    context_truncated: bool,
    made_before: bool,
}

/// Nobody reads the lines any more.
struct Gone;

impl Output {
    /// An output that has sent nothing yet.
    pub fn new(job: &Job, config: Arc<PipelineConfig>, lines: mpsc::Sender<Line>) -> Self {
        Self {
            config,
            lines,
            started: Instant::now(),
            documents: BTreeMap::new(),
            documents_total: job.documents_total,
            chunks_total: 0,
            summary: SummaryLine::default(),
        }
    }

    /// Takes in documents and their chunks until all are sent, or nobody reads any more.
    pub async fn collect(
        mut self,
        embedder: Arc<dyn EmbedTexts>,
        enricher: Option<Enricher>,
        arrivals: mpsc::Receiver<Arrival>,
        outcomes: mpsc::Receiver<Outcome>,
    ) {
        let reader = self.lines.clone();
        let all = async {
            self.take_in(embedder, arrivals, outcomes).await?;
            self.finish(enricher).await
        };
        // Each end is the same to whoever started the job: its lines are sent, or nobody wants them.
        tokio::select! {
            _ = all => {}
            () = reader.closed() => {}
        }
    }

    async fn take_in(
        &mut self,
        embedder: Arc<dyn EmbedTexts>,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut outcomes: mpsc::Receiver<Outcome>,
    ) -> Result<(), Gone> {
        let mut calls = FuturesUnordered::new();
        let (mut more_documents, mut more_chunks) = (true, true);
        while more_documents || !calls.is_empty() || (more_chunks && !self.documents.is_empty()) {
            tokio::select! {
                // Documents first: a chunk is of use only when its document is known.
                biased;
                arrival = arrivals.recv(), if more_documents => match arrival {
                    Some(arrival) => self.arrive(arrival).await?,
                    None => more_documents = false,
                },
                Some((batch, vectors)) = calls.next(), if !calls.is_empty() => self.send(batch, vectors).await?,
                outcome = outcomes.recv(), if more_chunks && calls.len() < CALLS => match outcome {
                    Some(first) => {
                        let mut batch = vec![first];
                        while batch.len() < BATCH && let Ok(next) = outcomes.try_recv() {
                            batch.push(next);
                        }
                        let (before, batch): (Vec<_>, Vec<_>) =
                            batch.into_iter().partition(|outcome| outcome.made.is_some());
                        self.send_known(before).await?;
                        // Those of a document that has failed meanwhile are of no use.
                        let known = batch.into_iter().filter_map(|outcome| self.text(outcome));
                        let (batch, texts): (Vec<_>, Vec<_>) = known.unzip();
                        if !batch.is_empty() {
                            let embedder = embedder.clone();
                            calls.push(async move { (batch, embedder.embed(texts).await) });
                        }
                    }
                    None => more_chunks = false,
                },
            }
        }
        Ok(())
    }

    async fn arrive(&mut self, arrival: Arrival) -> Result<(), Gone> {
        match arrival.document {
            Ok(prepared) => {
                let left = prepared.chunks.len();
                self.chunks_total += left;
                self.documents.insert(arrival.place, Open { prepared, left });
                Ok(())
            }
            Err(rejected) => self.end_document(rejected.id, rejected.title, Err(rejected.error)).await,
        }
    }

    /// What is embedded for a chunk: its context, cut to the room that the chunk leaves, and the chunk.
    fn text(&self, outcome: Outcome) -> Option<(Embedded, String)> {
        let Open { prepared, .. } = self.documents.get(&outcome.document)?;
        let chunk = prepared.chunks.get(outcome.chunk)?;
        let text = &prepared.document.text[chunk.start..chunk.end];
        let Ok(Some(context)) = &outcome.context else {
            return Some((
                Embedded { outcome, context_truncated: false, made_before: false },
                text.to_owned(),
            ));
        };
        let tokenizer = &self.config.tokenizer;
        let room = self.config.room().saturating_sub(chunk::count(tokenizer, text));
        // The chunk was tokenized before, so the tokenizer takes texts; a context that it does not take is left out.
        let kept = model::beginning(tokenizer, context, room).unwrap_or_default();
        let context_truncated = kept.len() < context.len();
        let text = format!("{kept}\n\n{text}");
        Some((Embedded { outcome, context_truncated, made_before: false }, text))
    }

    /// Sends chunks that were made before.
    async fn send_known(&mut self, outcomes: Vec<Outcome>) -> Result<(), Gone> {
        for mut outcome in outcomes {
            let Some(Made { context, context_truncated, tokens, vector }) = outcome.made.take() else {
                continue;
            };
            outcome.context = Ok(context);
            let embedded = Embedded { outcome, context_truncated, made_before: true };
            self.send_chunk(embedded, Embedding { vector, tokens }).await?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        batch: Vec<Embedded>,
        vectors: Result<Vec<Embedding>, String>,
    ) -> Result<(), Gone> {
        let vectors = match vectors {
            Ok(vectors) if vectors.len() == batch.len() => vectors,
            Ok(vectors) => {
                return self
                    .fail(&batch, &format!("{} vectors came for {} texts", vectors.len(), batch.len()))
                    .await;
            }
            Err(error) => return self.fail(&batch, &format!("embedding failed: {error}")).await,
        };
        for (embedded, vector) in batch.into_iter().zip(vectors) {
            self.send_chunk(embedded, vector).await?;
        }
        let line = ProgressLine {
            chunks_done: self.summary.chunks,
            chunks_total: self.chunks_total,
            documents_done: self.summary.documents + self.summary.failed,
            documents_total: self.documents_total,
        };
        self.line(Line::Progress(line)).await
    }

    async fn send_chunk(&mut self, embedded: Embedded, vector: Embedding) -> Result<(), Gone> {
        let Embedded { outcome, context_truncated, made_before } = embedded;
        let Some(open) = self.documents.get_mut(&outcome.document) else { return Ok(()) };
        open.left -= 1;
        let (prepared, last) = (open.prepared.clone(), open.left == 0);
        let (context, context_error) = match outcome.context {
            Ok(context) => (context, None),
            Err(error) => (None, Some(error)),
        };
        self.summary.chunks += 1;
        self.summary.tokens += vector.tokens;
        self.summary.without_context += usize::from(context_error.is_some());
        let Document { id, title, text, metadata, .. } = &prepared.document;
        let Chunk { start, end, headings } = &prepared.chunks[outcome.chunk];
        let line = ChunkLine {
            document_id: id.clone(),
            chunk_id: prepared.chunk_ids[outcome.chunk].clone(),
            index: outcome.chunk,
            start: *start,
            end: *end,
            heading_path: headings.clone(),
            text: text[*start..*end].to_owned(),
            context,
            context_truncated,
            context_error,
            made_before,
            tokens: vector.tokens,
            vector: vector.vector,
            model: self.config.model_name.clone(),
            metadata: metadata.clone(),
        };
        self.line(Line::Chunk(Box::new(line))).await?;
        if last {
            self.documents.remove(&outcome.document);
            self.end_document(id.clone(), title.clone(), Ok(prepared.chunks.len())).await?;
        }
        Ok(())
    }

    /// The documents of a batch that could not be embedded fail; the others go on.
    async fn fail(&mut self, batch: &[Embedded], error: &str) -> Result<(), Gone> {
        for embedded in batch {
            if let Some(Open { prepared, .. }) = self.documents.remove(&embedded.outcome.document) {
                let Document { id, title, .. } = &prepared.document;
                self.end_document(id.clone(), title.clone(), Err(error.to_owned())).await?;
            }
        }
        Ok(())
    }

    /// Says that a document is through with so many chunks, or why it is not.
    async fn end_document(
        &mut self,
        document_id: String,
        title: Option<String>,
        chunks: Result<usize, String>,
    ) -> Result<(), Gone> {
        let (chunks, error) = match chunks {
            Ok(chunks) => (chunks, None),
            Err(error) => (0, Some(error)),
        };
        let counter = if error.is_none() { &mut self.summary.documents } else { &mut self.summary.failed };
        *counter += 1;
        let seconds = self.started.elapsed().as_secs_f64();
        self.line(Line::Document(DocumentLine { document_id, title, chunks, seconds, error })).await
    }

    async fn finish(&mut self, enricher: Option<Enricher>) -> Result<(), Gone> {
        // A document whose chunks got lost in a stage before must not look as if it had gone well.
        for Open { prepared, left } in std::mem::take(&mut self.documents).into_values() {
            let Document { id, title, .. } = &prepared.document;
            let error = format!(
                "{left} of its {} chunks got lost on the way: process it again",
                prepared.chunks.len()
            );
            tracing::error!(document = id, error);
            self.end_document(id.clone(), title.clone(), Err(error)).await?;
        }
        let mut summary = std::mem::take(&mut self.summary);
        summary.instances = enricher.map(|enricher| enricher.figures()).unwrap_or_default();
        summary.count_rates(self.started.elapsed());
        self.line(Line::Summary(Box::new(summary))).await
    }

    async fn line(&self, line: Line) -> Result<(), Gone> {
        self.lines.send(line).await.map_err(|_| Gone)
    }
}
