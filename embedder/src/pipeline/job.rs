//! One job: read and cut → put in context → embed → send, all at once, with bounded room between the stages. This file owns
//! the way between them; `prepare` is the first stage, `enrich` the second, `output` the last.

use super::document::{Origin, Rejected, Source};
use super::enrich::{Enricher, Outcome, Prepared};
use super::identity::recipe;
use super::lines::Line;
use super::output::Output;
use super::prepare::Preparer;
use super::request::{Request, Settings};
use super::{EmbedTexts, PipelineConfig};
use crate::analyze::NearDuplicate;
use crate::analyze::duplicates::Seen;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks between two stages.
const BETWEEN: usize = 256;
/// The same behind the language model: contexts that wait to be embedded are lost where the process is killed.
const CONTEXTS_BETWEEN: usize = 32;

/// What is to be done.
pub struct Job {
    /// The documents, which may come as slowly as they like; those that can't be processed among them. Ids of the others
    /// are unique.
    pub documents: BoxStream<'static, Result<Source, Rejected>>,
    /// How many they are, where that is known; those that hold several make it more.
    pub documents_total: usize,
    /// How they are processed.
    pub settings: Settings,
    /// What is known of chunks that were made before.
    pub made: Arc<dyn MadeBefore>,
    /// Whether what can be seen of a document is told with its end. Nobody looks where nobody reads it.
    pub describe: bool,
}

impl From<Request> for Job {
    fn from(request: Request) -> Self {
        Self {
            documents_total: request.documents.len(),
            documents: stream::iter(request.documents).boxed(),
            settings: request.settings,
            made: Arc::new(NothingMade),
            describe: true,
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
    /// Where it comes from.
    pub origin: Origin,
    /// The document in chunks, or why it has none.
    pub document: Result<Arc<Prepared>, Rejected>,
    /// A document before it that says nearly the same.
    pub near_duplicate_of: Option<NearDuplicate>,
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
    let (outcomes, chunks) = mpsc::channel(if job.settings.enrich { CONTEXTS_BETWEEN } else { BETWEEN });
    let contexts = match config
        .ollama
        .as_ref()
        .filter(|_| job.settings.enrich)
        .map(|it| Enricher::start(&config, it, outcomes.clone()))
    {
        None => Contexts::None,
        Some(Ok(enricher)) => Contexts::From(enricher),
        Some(Err(message)) => Contexts::Failed(message),
    };
    let enricher = if let Contexts::From(enricher) = &contexts { Some(enricher.clone()) } else { None };
    let (prepared, arrivals) = mpsc::channel(BETWEEN);
    let output = Output::new(&job, config.clone(), lines);
    tokio::spawn(prepare(job, config, embedder.clone(), contexts, outcomes, prepared));
    output.collect(embedder, enricher, arrivals, chunks).await;
}

/// Reads and cuts every document and hands it on; several at once, so that a large one keeps nobody waiting.
async fn prepare(
    job: Job,
    config: Arc<PipelineConfig>,
    embedder: Arc<dyn EmbedTexts>,
    contexts: Contexts,
    outcomes: mpsc::Sender<Outcome>,
    arrivals: mpsc::Sender<Arrival>,
) {
    let Job { documents, documents_total: _, settings, made, describe } = job;
    let Settings { enrich, cut } = settings;
    let recipe: Arc<str> = recipe(&config, enrich).into();
    let at_once = config.reader.at_once();
    let preparer = Preparer { config, embedder, cut, recipe, describe };
    let prepared = documents.enumerate().map(|(number, source)| {
        let preparer = preparer.clone();
        async move {
            let found = match source {
                Ok(source) => preparer.prepare(source).await,
                Err(rejected) => vec![Err(rejected)],
            };
            let origin = Origin { source: number, documents: found.len() };
            stream::iter(found.into_iter().map(move |document| (origin, document)))
        }
    });
    let mut documents = prepared.buffer_unordered(at_once).flatten().boxed();
    let mut seen = HashSet::new();
    let mut similar = Seen::default();
    let mut places = 0..;
    while let (Some((origin, document)), Some(place)) = (documents.next().await, places.next()) {
        let document = document.and_then(|prepared| match seen.insert(prepared.document.id.clone()) {
            true => Ok(prepared),
            false => Err(twice(&prepared)),
        });
        let prepared = document.as_ref().ok().cloned();
        let near_duplicate_of = prepared.as_ref().and_then(|prepared| {
            let signature = prepared.about.as_ref()?.signature.clone()?;
            let (id, similarity) = similar.add(&prepared.document.id, signature)?;
            Some(NearDuplicate { id, similarity })
        });
        if arrivals.send(Arrival { place, origin, document, near_duplicate_of }).await.is_err() {
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
                enricher.room(&outcomes).await;
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

/// A record whose id another document has.
fn twice(prepared: &Prepared) -> Rejected {
    let (id, title) = (prepared.document.id.clone(), prepared.document.title.clone());
    let error = format!("its id {id:?} is another document's already: ids are unique within a job");
    Rejected { id, title, error }
}
