//! One job: cut → put in context → embed → send, all at once, with bounded room between the stages. This file owns the
//! first stage and the way between them; `enrich` is the second, `output` the last.

use super::enrich::{Enricher, Outcome, Prepared};
use super::identity::{chunk_ids, recipe};
use super::output::Output;
use super::request::{Document, Job, Rejected};
use super::{EmbedTexts, PipelineConfig, chunk};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks between two stages.
const BETWEEN: usize = 256;

/// What the first stage says of a document.
pub struct Arrival {
    /// Place of the document.
    pub place: usize,
    /// The document in chunks, or why it has none.
    pub document: Result<Arc<Prepared>, Rejected>,
}

/// Who puts chunks in context.
enum Contexts {
    /// Nobody: none was asked for.
    None,
    /// Nobody, for this reason.
    Failed(String),
    /// A pool.
    From(Enricher),
}

/// Does a job and sends its lines; ends early when nobody reads them.
pub async fn run(
    job: Job,
    config: Arc<PipelineConfig>,
    embedder: Arc<dyn EmbedTexts>,
    lines: mpsc::Sender<Bytes>,
) {
    let (outcomes, chunks) = mpsc::channel(BETWEEN);
    let contexts =
        match config.ollama.as_ref().filter(|_| job.enrich).map(|it| Enricher::start(it, outcomes.clone())) {
            None => Contexts::None,
            Some(Ok(enricher)) => Contexts::From(enricher),
            Some(Err(message)) => Contexts::Failed(message),
        };
    let enricher = if let Contexts::From(enricher) = &contexts { Some(enricher.clone()) } else { None };
    let (prepared, arrivals) = mpsc::channel(BETWEEN);
    let output = Output::new(&job, config.clone(), lines);
    tokio::spawn(cut(job, config, contexts, outcomes, prepared));
    output.collect(embedder, enricher, arrivals, chunks).await;
}

/// Cuts every document and hands it on.
async fn cut(
    job: Job,
    config: Arc<PipelineConfig>,
    contexts: Contexts,
    outcomes: mpsc::Sender<Outcome>,
    arrivals: mpsc::Sender<Arrival>,
) {
    let Job { documents, enrich, chunk_tokens, overlap } = job;
    let recipe: Arc<str> = recipe(&config, enrich).into();
    for (place, document) in documents.into_iter().enumerate() {
        let document = match document {
            Ok(document) => cut_document(document, &config, &recipe, (chunk_tokens, overlap)).await,
            Err(rejected) => Err(rejected),
        };
        let prepared = document.as_ref().ok().cloned();
        if arrivals.send(Arrival { place, document }).await.is_err() {
            return;
        }
        let Some(prepared) = prepared else { continue };
        let without = match &contexts {
            Contexts::From(enricher) => {
                enricher.add(place, prepared);
                continue;
            }
            Contexts::None => Ok(None),
            Contexts::Failed(message) => Err(message.clone()),
        };
        for chunk in 0..prepared.chunks.len() {
            if outcomes.send(Outcome { document: place, chunk, context: without.clone() }).await.is_err() {
                return;
            }
        }
    }
    if let Contexts::From(enricher) = contexts {
        enricher.finish();
    }
}

/// Cuts one document, beside the threads that serve.
async fn cut_document(
    document: Document,
    config: &Arc<PipelineConfig>,
    recipe: &Arc<str>,
    (most, overlap): (usize, usize),
) -> Result<Arc<Prepared>, Rejected> {
    let (id, title) = (document.id.clone(), document.title.clone());
    let (config, recipe) = (config.clone(), recipe.clone());
    let cut = tokio::task::spawn_blocking(move || {
        let chunks = chunk::split(&config.tokenizer, &document.text, document.format, most, overlap)?;
        if chunks.is_empty() {
            return Err("the document holds no text".to_owned());
        }
        let chunk_ids = chunk_ids(&document, &chunks, &recipe);
        Ok(Arc::new(Prepared { document, chunks, chunk_ids }))
    });
    let prepared = cut.await.unwrap_or_else(|error| Err(format!("cutting it failed: {error}")));
    prepared.map_err(|error| Rejected { id, title, error })
}
