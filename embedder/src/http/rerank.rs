//! Scores of documents by a query, in three dialects: text-embeddings-inference, Jina and Cohere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction};
use super::openai::Usage;
use super::{App, parse};
use crate::model::{self, Input, Truncation};

#[derive(Deserialize)]
struct TeiRequest {
    query: String,
    texts: Vec<String>,
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    #[serde(default)]
    raw_scores: bool,
    #[serde(default)]
    return_text: bool,
}

#[derive(Serialize)]
struct TeiRank {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    score: f32,
}

#[derive(Deserialize)]
struct JinaRequest {
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    #[serde(default = "yes")]
    return_documents: bool,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct CohereRequest {
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    max_tokens_per_doc: Option<usize>,
}

/// A text, bare or in an object.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or an object with a text")]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

pub(super) async fn tei(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_tei(&app, body).await, Dialect::Tei)
}

async fn respond_tei(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Vec<TeiRank>>, ApiError> {
    let request: TeiRequest = parse(body)?;
    let truncation = inputs::truncation(request.truncate, request.truncation_direction);
    let texts = if request.return_text { request.texts.clone() } else { Vec::new() };
    some("texts", &request.texts)?;
    let scored = score(app, request.query, request.texts, truncation, None).await?;
    let ranks = scored.ranking.into_iter().map(|(index, logit)| TeiRank {
        index,
        text: texts.get(index).cloned(),
        score: if request.raw_scores { logit } else { sigmoid(logit) },
    });
    Ok(Json(ranks.collect()))
}

pub(super) async fn jina(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_jina(&app, body).await, Dialect::Jina)
}

async fn respond_jina(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, ApiError> {
    let request: JinaRequest = parse(body)?;
    some("documents", &request.documents)?;
    let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let texts = if request.return_documents { documents.clone() } else { Vec::new() };
    let scored = score(app, request.query, documents, Truncation::DropEnd, None).await?;
    let results: Vec<Value> = scored
        .top(request.top_n)
        .map(|(index, score)| match texts.get(index) {
            Some(text) => json!({ "index": index, "relevance_score": score, "document": { "text": text } }),
            None => json!({ "index": index, "relevance_score": score }),
        })
        .collect();
    let model = request.model.unwrap_or_else(|| app.model.name.clone());
    Ok(Json(json!({ "model": model, "usage": Usage::of(scored.tokens), "results": results })))
}

pub(super) async fn cohere(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_cohere(&app, body).await, Dialect::Cohere)
}

async fn respond_cohere(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, ApiError> {
    let request: CohereRequest = parse(body)?;
    some("documents", &request.documents)?;
    let documents = request.documents.into_iter().map(Document::into_text).collect();
    let scored =
        score(app, request.query, documents, Truncation::DropEnd, request.max_tokens_per_doc).await?;
    let results: Vec<Value> = scored
        .top(request.top_n)
        .map(|(index, score)| json!({ "index": index, "relevance_score": score }))
        .collect();
    let meta = json!({ "api_version": { "version": "2" }, "billed_units": { "search_units": 1 } });
    Ok(Json(json!({ "id": request_id(), "results": results, "meta": meta })))
}

struct Scored {
    /// Position of each document and its logit, the best one first.
    ranking: Vec<(usize, f32)>,
    tokens: usize,
}

impl Scored {
    /// The best documents with their scores between 0 and 1.
    fn top(&self, count: Option<usize>) -> impl Iterator<Item = (usize, f32)> + '_ {
        let count = count.unwrap_or(usize::MAX);
        self.ranking.iter().take(count).map(|(index, logit)| (*index, sigmoid(*logit)))
    }
}

/// Refuses a request without anything to score in its `field`.
fn some<T>(field: &str, list: &[T]) -> Result<(), ApiError> {
    if list.is_empty() { Err(ApiError::empty(format!("{field} is []: give at least one"))) } else { Ok(()) }
}

async fn score(
    app: &App,
    query: String,
    documents: Vec<String>,
    truncation: Truncation,
    document_tokens: Option<usize>,
) -> Result<Scored, ApiError> {
    let tokenizer = app.model.tokenizer.clone();
    let inputs = inputs::tokenize(documents, move |document| {
        let document = match document_tokens {
            Some(maximum) => model::beginning(&tokenizer.plain(), &document, maximum)?,
            None => &document,
        };
        Ok(tokenizer.pair(&query, document, truncation)?)
    })
    .await?;
    let tokens = inputs.iter().map(Input::len).sum();
    let logits = app.model.engine.run(inputs).await?;
    let mut ranking: Vec<(usize, f32)> = logits.into_iter().flatten().enumerate().collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Scored { ranking, tokens })
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Tells two answers of this process apart, and most likely those of two processes.
fn request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{now:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}
