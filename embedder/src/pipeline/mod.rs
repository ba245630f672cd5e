//! Documents in; chunks in context and their vectors out: `POST /v1/process`.
//!
//! It owns the way of a document through the stages and what is streamed back. It computes nothing itself: vectors come
//! from [`EmbedTexts`], contexts from Ollama.

mod about;
mod chunk;
mod document;
mod enrich;
mod identity;
mod job;
mod lines;
mod output;
mod prepare;
mod request;
#[cfg(test)]
pub(crate) mod tests;
mod upload;

pub use chunk::Chunker;
pub use document::{Origin, Rejected, Source};
pub use enrich::{ContextCache, INSTRUCTION};
pub use identity::whole_recipe;
pub use job::{Job, Made, MadeBefore, run};
pub use lines::{ChunkLine, DocumentLine, Line};
pub(crate) use request::base64_bytes;
pub use request::{DocumentRequest, Options, ProcessRequest, Settings};
pub(crate) use upload::{form, is_form, refused};

use crate::format::Reader;
use crate::http::{ApiError, Dialect, answer};
use crate::metrics::Metrics;
use crate::model::Similarity;
use crate::ollama::OllamaConfig;
use crate::trace;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use futures::future::BoxFuture;
use std::convert::Infallible;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;

/// Tokens that a BERT tokenizer puts around a text.
const SPECIAL_TOKENS: usize = 2;
/// Largest request, in bytes.
const BODY_LIMIT: usize = 64 << 20;
/// Lines that wait for a slow reader before the job itself waits.
const LINE_BUFFER: usize = 64;

/// One text's vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The vector, of length 1 where vectors are compared by their cosine.
    pub vector: Vec<f32>,
    /// How many tokens were embedded.
    pub tokens: usize,
}

/// What texts are embedded for: models are trained to see another prompt before each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They are searched in.
    Document,
    /// They are searched for.
    Query,
}

/// What turns texts into vectors.
pub trait EmbedTexts: Send + Sync + 'static {
    /// The vectors of some texts, in their order; waits while the engine is busy.
    fn embed(&self, texts: Vec<String>, purpose: Purpose) -> BoxFuture<'_, Result<Vec<Embedding>, String>>;

    /// Tokens that all its devices compute at once.
    fn capacity(&self) -> usize;
}

/// How documents are processed unless a request says otherwise.
#[derive(Clone)]
pub struct PipelineConfig {
    /// Tokenizer of the embedding model.
    pub tokenizer: Arc<tokenizers::Tokenizer>,
    /// Most tokens that the model embeds, special tokens included.
    pub max_tokens: usize,
    /// Name of the model, repeated with every vector.
    pub model_name: String,
    /// Digest of the model's weights: other weights make other vectors.
    pub model_digest: String,
    /// By what its vectors are compared.
    pub similarity: Similarity,
    /// Reads documents.
    pub reader: Reader,
    /// By what documents are cut.
    pub chunker: Chunker,
    /// Most tokens of a chunk.
    pub chunk_max_tokens: usize,
    /// Tokens that neighboring chunks share.
    pub chunk_overlap: usize,
    /// Who puts chunks in context; nobody if absent.
    pub ollama: Option<OllamaConfig>,
    /// Contexts that were given before.
    pub contexts: Arc<ContextCache>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl PipelineConfig {
    /// Tokens that a text may have beside those that the tokenizer puts around it.
    fn room(&self) -> usize {
        self.max_tokens.saturating_sub(SPECIAL_TOKENS)
    }
}

/// Serves `POST /v1/process`.
pub fn router(config: Arc<PipelineConfig>, embedder: Arc<dyn EmbedTexts>) -> Router {
    Router::new()
        .route("/v1/process", post(process))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Service { config, embedder })
}

#[derive(Clone)]
struct Service {
    config: Arc<PipelineConfig>,
    embedder: Arc<dyn EmbedTexts>,
}

async fn process(State(service): State<Service>, request: Request) -> Response {
    answer(respond(service, request).await, Dialect::Tei)
}

async fn respond(service: Service, request: Request) -> Result<impl IntoResponse, ApiError> {
    let request = upload::read(request).await?;
    let job = Job::from(request.validate(&service.config)?);
    let (lines, receiver) = tokio::sync::mpsc::channel(LINE_BUFFER);
    tokio::spawn(trace::carried(job::run(job, service.config, service.embedder, lines)));
    let stream = ReceiverStream::new(receiver).map(|line| Ok::<_, Infallible>(line.to_bytes()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)))
}
