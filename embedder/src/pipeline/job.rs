//! One job: cut → put in context → embed → send, all at once, with bounded room between the stages. This file owns the
//! first stage and the way between them; `enrich` is the second, `output` the last.

use super::enrich::{Enricher, Outcome, Prepared};
use super::identity::{chunk_ids, recipe};
use super::lines::Line;
use super::output::Output;
use super::request::{Document, Rejected, Request, Settings};
use super::{EmbedTexts, PipelineConfig, chunk};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks between two stages.
const BETWEEN: usize = 256;

/// What is to be done.
pub struct Job {
    /// The documents, which may come as slowly as they like; those that can't be processed among them. Ids of the others
    /// are unique.
    pub documents: BoxStream<'static, Result<Document, Rejected>>,
    /// How many they are, where that is known.
    pub documents_total: usize,
    /// How they are processed.
    pub settings: Settings,
    /// What is known of chunks that were made before.
    pub made: Arc<dyn MadeBefore>,
}

impl From<Request> for Job {
    fn from(request: Request) -> Self {
        Self {
            documents_total: request.documents.len(),
            documents: stream::iter(request.documents).boxed(),
            settings: request.settings,
            made: Arc::new(NothingMade),
        }
    }
}

/// A store of what was made of chunks. A chunk's id says what it was made of and how, so what has the id is the chunk's.
pub trait MadeBefore: Send + Sync {
    /// What was made of a document's chunk; `None` where it is to be made.
    fn made(&self, document_id: &str, chunk_id: &str) -> Option<Made>;
}

/// Every chunk is to be made.
struct NothingMade;

impl MadeBefore for NothingMade {
    fn made(&self, _: &str, _: &str) -> Option<Made> {
        None
    }
}

/// What a model and an LLM made of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// Where the chunk stands in its document; `None` where nobody was asked.
    pub context: Option<String>,
    /// Whether only the beginning of the context is in the vector.
    pub context_truncated: bool,
    /// Tokens that were embedded.
    pub tokens: usize,
    /// Vector of context and chunk.
    pub vector: Vec<f32>,
}

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
    lines: mpsc::Sender<Line>,
) {
    let (outcomes, chunks) = mpsc::channel(BETWEEN);
    let contexts = match config
        .ollama
        .as_ref()
        .filter(|_| job.settings.enrich)
        .map(|it| Enricher::start(it, outcomes.clone()))
    {
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
    let Job { mut documents, documents_total: _, settings, made } = job;
    let Settings { enrich, chunk_tokens, overlap } = settings;
    let recipe: Arc<str> = recipe(&config, enrich).into();
    let mut place = 0..;
    while let (Some(document), Some(place)) = (documents.next().await, place.next()) {
        let document = match document {
            Ok(document) => cut_document(document, &config, &recipe, (chunk_tokens, overlap)).await,
            Err(rejected) => Err(rejected),
        };
        let prepared = document.as_ref().ok().cloned();
        if arrivals.send(Arrival { place, document }).await.is_err() {
            return;
        }
        let Some(prepared) = prepared else { continue };
        let (before, open) = known(&*made, &prepared);
        for (chunk, made) in before {
            let outcome = Outcome { document: place, chunk, context: Ok(None), made: Some(made) };
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
        let without = match &contexts {
            Contexts::From(enricher) => {
                enricher.add(place, prepared, &open);
                continue;
            }
            Contexts::None => Ok(None),
            Contexts::Failed(message) => Err(message.clone()),
        };
        for chunk in open {
            let outcome = Outcome { document: place, chunk, context: without.clone(), made: None };
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }
    if let Contexts::From(enricher) = contexts {
        enricher.finish();
    }
}

/// What was made of a document's chunks before, and the places of those that are to be made.
fn known(made: &dyn MadeBefore, prepared: &Prepared) -> (Vec<(usize, Made)>, Vec<usize>) {
    let (mut before, mut open) = (Vec::new(), Vec::new());
    for (place, id) in prepared.chunk_ids.iter().enumerate() {
        match made.made(&prepared.document.id, id) {
            Some(made) => before.push((place, made)),
            None => open.push(place),
        }
    }
    (before, open)
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
