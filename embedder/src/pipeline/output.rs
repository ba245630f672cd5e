//! The last stage of a job: chunks are embedded in batches and sent; documents end; the summary is drawn.

use super::about::About;
use super::chunk::{self, Chunk};
use super::document::{Document, Origin, Rejected};
use super::enrich::{Enricher, Outcome, Prepared};
use super::job::{Arrival, Job, Made};
use super::lines::{ChunkLine, DocumentLine, Line, ProgressLine, ReadAs, SummaryLine};
use super::{EmbedTexts, Embedding, PipelineConfig, Purpose};
use crate::analyze::NearDuplicate;
use crate::format::Markup;
use crate::model::{self, Truncation};
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Most chunks in one call of the embedder.
const BATCH: usize = 32;
/// Least calls of the embedder under way at once: while one computes, the next is ready.
const CALLS: usize = 4;

/// Calls of the embedder under way at once, so that all its devices have a batch to compute and another one ready.
fn calls_at_once(capacity: usize, chunk_max_tokens: usize) -> usize {
    (2 * capacity).div_ceil((BATCH * chunk_max_tokens).max(1)).max(CALLS)
}

/// What is known of each document, and the way out.
pub struct Output {
    config: Arc<PipelineConfig>,
    lines: mpsc::Sender<Line>,
    started: Instant,
    documents: BTreeMap<usize, Open>,
    documents_total: usize,
    documents_arrived: usize,
    chunks_total: usize,
    summary: SummaryLine,
}

/// A document of which not all chunks have been sent.
struct Open {
    prepared: Arc<Prepared>,
    origin: Origin,
    near_duplicate_of: Option<NearDuplicate>,
    /// Chunks to come.
    left: usize,
}

impl Open {
    /// What is said at its end: how many chunks it has, or why it failed.
    fn end(self, place: usize, chunks: Result<usize, String>) -> DocumentLine {
        let Self { prepared, origin, near_duplicate_of, left: _ } = self;
        let (chunks, error) = match chunks {
            Ok(chunks) => (chunks, None),
            Err(error) => (0, Some(error)),
        };
        DocumentLine {
            place,
            origin,
            document_id: prepared.document.id.clone(),
            title: prepared.document.title.clone(),
            chunks,
            read: Some(read_as(&prepared, near_duplicate_of)),
            seconds: 0.0,
            error,
        }
    }
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
            documents_arrived: 0,
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
        let most_calls = calls_at_once(embedder.capacity(), self.config.chunk_max_tokens);
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
                outcome = outcomes.recv(), if more_chunks && calls.len() < most_calls => match outcome {
                    Some(first) => {
                        let mut batch = vec![first];
                        while batch.len() < BATCH && let Ok(next) = outcomes.try_recv() {
                            batch.push(next);
                        }
                        // A document that arrived since may have a chunk among them already.
                        while let Ok(arrival) = arrivals.try_recv() {
                            self.arrive(arrival).await?;
                        }
                        let (before, batch): (Vec<_>, Vec<_>) =
                            batch.into_iter().partition(|outcome| outcome.made.is_some());
                        self.send_known(before).await?;
                        // Those of a document that has failed meanwhile are of no use.
                        let known = batch.into_iter().filter_map(|outcome| self.text(outcome));
                        let (batch, texts): (Vec<_>, Vec<_>) = known.unzip();
                        if !batch.is_empty() {
                            let embedder = embedder.clone();
                            calls.push(async move { (batch, embedder.embed(texts, Purpose::Document).await) });
                        }
                    }
                    None => more_chunks = false,
                },
            }
        }
        Ok(())
    }

    async fn arrive(&mut self, arrival: Arrival) -> Result<(), Gone> {
        self.documents_arrived += 1;
        match arrival.document {
            Ok(prepared) => {
                let left = prepared.chunks.len();
                self.chunks_total += left;
                let Arrival { place, origin, near_duplicate_of, .. } = arrival;
                self.documents.insert(place, Open { prepared, origin, near_duplicate_of, left });
                Ok(())
            }
            Err(Rejected { id, title, error }) => {
                let line = DocumentLine {
                    place: arrival.place,
                    origin: arrival.origin,
                    document_id: id,
                    title,
                    chunks: 0,
                    read: None,
                    seconds: 0.0,
                    error: Some(error),
                };
                self.end_document(line).await
            }
        }
    }

    /// What is embedded for a chunk: its context, cut to the room that the chunk leaves, and the chunk.
    fn text(&self, outcome: Outcome) -> Option<(Embedded, String)> {
        let Open { prepared, .. } = self.documents.get(&outcome.document)?;
        let chunk = prepared.chunks.get(outcome.chunk)?;
        let text = &prepared.document.text()[chunk.start..chunk.end];
        let Ok(Some(context)) = &outcome.context else {
            return Some((
                Embedded { outcome, context_truncated: false, made_before: false },
                text.to_owned(),
            ));
        };
        let tokenizer = &self.config.tokenizer;
        let room = self.config.room().saturating_sub(chunk::count(tokenizer, text));
        // The chunk was tokenized before, so the tokenizer takes texts; a context that it does not take is left out.
        let kept = model::excerpt(tokenizer, context, room, Truncation::DropEnd).unwrap_or_default();
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
            documents_total: self.documents_total.max(self.documents_arrived),
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
        let Document { id, title: _, content, metadata } = &*prepared.document;
        let Chunk { start, end, headings, pages } = &prepared.chunks[outcome.chunk];
        let line = ChunkLine {
            place: outcome.document,
            document_id: id.clone(),
            chunk_id: prepared.chunk_ids[outcome.chunk].clone(),
            index: outcome.chunk,
            start: *start,
            end: *end,
            heading_path: headings.clone(),
            pages: *pages,
            text: content.text[*start..*end].to_owned(),
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
        if last && let Some(open) = self.documents.remove(&outcome.document) {
            self.end_document(open.end(outcome.document, Ok(prepared.chunks.len()))).await?;
        }
        Ok(())
    }

    /// The documents of a batch that could not be embedded fail; the others go on.
    async fn fail(&mut self, batch: &[Embedded], error: &str) -> Result<(), Gone> {
        for embedded in batch {
            let place = embedded.outcome.document;
            if let Some(open) = self.documents.remove(&place) {
                self.end_document(open.end(place, Err(error.to_owned()))).await?;
            }
        }
        Ok(())
    }

    /// Says that a document is through, or why it is not.
    async fn end_document(&mut self, mut line: DocumentLine) -> Result<(), Gone> {
        let counter =
            if line.error.is_none() { &mut self.summary.documents } else { &mut self.summary.failed };
        *counter += 1;
        line.seconds = self.started.elapsed().as_secs_f64();
        self.line(Line::Document(Box::new(line))).await
    }

    async fn finish(&mut self, enricher: Option<Enricher>) -> Result<(), Gone> {
        // A document whose chunks got lost in a stage before must not look as if it had gone well.
        for (place, open) in std::mem::take(&mut self.documents) {
            let error = format!(
                "{} of its {} chunks got lost on the way: process it again",
                open.left,
                open.prepared.chunks.len()
            );
            tracing::error!(document = open.prepared.document.id, error);
            self.end_document(open.end(place, Err(error))).await?;
        }
        let mut summary = std::mem::take(&mut self.summary);
        if let Some(enricher) = enricher {
            summary.instances = enricher.figures();
            summary.contexts_from_cache = enricher.contexts_from_cache();
        }
        summary.count_rates(self.started.elapsed());
        self.line(Line::Summary(Box::new(summary))).await
    }

    async fn line(&self, line: Line) -> Result<(), Gone> {
        self.lines.send(line).await.map_err(|_| Gone)
    }
}

/// What a document was read as.
fn read_as(prepared: &Prepared, near_duplicate_of: Option<NearDuplicate>) -> ReadAs {
    let content = &prepared.document.content;
    ReadAs {
        format: content.format.name(),
        encoding: content.encoding.clone(),
        code_language: match content.markup {
            Markup::Code(language) => Some(language.name()),
            _ => None,
        },
        pages: Some(content.pages.len()).filter(|pages| *pages > 0),
        chunker: prepared.chunker.name(),
        about: prepared.about.clone().map(|about| About { near_duplicate_of, ..about }),
    }
}
