//! Scores of documents by a query, in three dialects: text-embeddings-inference, Jina and Cohere.

use std::sync::OnceLock;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::access::request_id;
use super::cohere::Meta;
use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction, Run};
use super::openai::Usage;
use super::{App, Served, parse};
use crate::model::{self, Truncation};

/// A query and the texts that are scored by it.
#[derive(Deserialize, JsonSchema)]
pub(super) struct TeiRequest {
    /// What is looked for.
    query: String,
    /// What is scored.
    texts: Vec<String>,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// Logits instead of scores between 0 and 1.
    #[serde(default, deserialize_with = "inputs::flag::<_, false>")]
    raw_scores: bool,
    /// Whether each text comes back with its score.
    #[serde(default, deserialize_with = "inputs::flag::<_, false>")]
    return_text: bool,
}

/// One text.
#[derive(Serialize, JsonSchema)]
pub(super) struct TeiRank {
    /// Place in the request.
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    score: f32,
}

/// A query and the documents that are scored by it.
#[derive(Deserialize, JsonSchema)]
pub(super) struct JinaRequest {
    /// Comes back, and says nothing: one model is served.
    model: Option<String>,
    /// What is looked for.
    query: String,
    /// What is scored.
    documents: Vec<Document>,
    /// How many of the best come back; all where nothing is said.
    top_n: Option<usize>,
    /// Whether each document comes back with its score.
    #[serde(default = "inputs::yes", deserialize_with = "inputs::flag::<_, true>")]
    return_documents: bool,
}

/// A query and the documents that are scored by it. `model` is accepted and says nothing: one model is served.
#[derive(Deserialize, JsonSchema)]
pub(super) struct CohereRequest {
    /// What is looked for.
    query: String,
    /// What is scored.
    documents: Vec<Document>,
    /// How many of the best come back; all where nothing is said.
    top_n: Option<usize>,
    /// Most tokens of a document; what is more is cut.
    max_tokens_per_doc: Option<usize>,
}

/// The documents in the order of their scores.
#[derive(Serialize, JsonSchema)]
pub(super) struct JinaResponse {
    model: String,
    usage: Usage,
    results: Vec<Ranked>,
}

/// The documents in the order of their scores.
#[derive(Serialize, JsonSchema)]
pub(super) struct CohereResponse {
    id: String,
    results: Vec<Ranked>,
    meta: Meta,
}

#[derive(Serialize, JsonSchema)]
struct Ranked {
    /// Place in the request.
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedDocument>,
}

#[derive(Serialize, JsonSchema)]
struct RankedDocument {
    text: String,
}

/// A text, bare or in an object.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text or an object with a text")]
enum Document {
    Text(String),
    Object {
        /// What it says.
        text: String,
    },
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
    Ok(Json(ranks(app, parse(body)?).await?))
}

/// What `/rerank` answers.
pub(super) async fn ranks(app: &App, request: TeiRequest) -> Result<Vec<TeiRank>, ApiError> {
    let truncation = inputs::truncation(request.truncate, request.truncation_direction);
    let texts = if request.return_text { request.texts.clone() } else { Vec::new() };
    some("texts", &request.texts)?;
    let scored = score(app, request.query, request.texts, truncation, None).await?;
    let ranks = scored.ranking.into_iter().map(|(index, logit)| TeiRank {
        index,
        text: texts.get(index).cloned(),
        score: if request.raw_scores { logit } else { sigmoid(logit) },
    });
    Ok(ranks.collect())
}

pub(super) async fn jina(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_jina(&app, body).await, Dialect::Jina)
}

async fn respond_jina(
    app: &App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<JinaResponse>, ApiError> {
    let request: JinaRequest = parse(body)?;
    some("documents", &request.documents)?;
    let documents: Vec<String> = request.documents.into_iter().map(Document::into_text).collect();
    let texts = if request.return_documents { documents.clone() } else { Vec::new() };
    let scored = score(app, request.query, documents, Truncation::DropEnd, None).await?;
    let results = scored
        .top(request.top_n)
        .map(|(index, relevance_score)| {
            let document = texts.get(index).map(|text| RankedDocument { text: text.clone() });
            Ranked { index, relevance_score, document }
        })
        .collect();
    let model = request.model.unwrap_or_else(|| app.model.name.clone());
    Ok(Json(JinaResponse { model, usage: Usage::of(scored.tokens), results }))
}

pub(super) async fn cohere(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_cohere(&app, body).await, Dialect::Cohere)
}

async fn respond_cohere(
    app: &App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<CohereResponse>, ApiError> {
    let request: CohereRequest = parse(body)?;
    some("documents", &request.documents)?;
    let documents = request.documents.into_iter().map(Document::into_text).collect();
    let scored =
        score(app, request.query, documents, Truncation::DropEnd, request.max_tokens_per_doc).await?;
    let results = scored
        .top(request.top_n)
        .map(|(index, relevance_score)| Ranked { index, relevance_score, document: None })
        .collect();
    Ok(Json(CohereResponse { id: request_id(), results, meta: Meta::search() }))
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

/// The scores of `texts` by `query`, between 0 and 1 in their order, and the tokens of all.
pub async fn score_texts(
    model: &Served,
    query: &str,
    texts: Vec<String>,
) -> Result<(Vec<f32>, usize), ApiError> {
    let (logits, tokens) = logits(model, query.to_owned(), texts, Truncation::DropEnd, None).await?;
    Ok((logits.into_iter().map(sigmoid).collect(), tokens))
}

async fn score(
    app: &App,
    query: String,
    documents: Vec<String>,
    truncation: Truncation,
    document_tokens: Option<usize>,
) -> Result<Scored, ApiError> {
    let (logits, tokens) = logits(&app.model, query, documents, truncation, document_tokens).await?;
    let mut ranking: Vec<(usize, f32)> = logits.into_iter().enumerate().collect();
    ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Scored { ranking, tokens })
}

/// One logit for each document, in their order, and the tokens of all pairs.
async fn logits(
    model: &Served,
    query: String,
    documents: Vec<String>,
    truncation: Truncation,
    document_tokens: Option<usize>,
) -> Result<(Vec<f32>, usize), ApiError> {
    if model.files.heads.labels.as_ref().is_none_or(|labels| labels.len() != 1) {
        return Err(ApiError::backend("the model has several labels: it classifies, and does not rerank"));
    }
    let tokenizer = model.tokenizer.clone();
    let characters = query.chars().count() + documents.iter().map(|it| it.chars().count()).sum::<usize>();
    // Once for all documents, by whoever comes first.
    let query_tokens = OnceLock::new();
    let prepare = move |document: String| {
        let document = match document_tokens {
            Some(most) => {
                let most = most.min(tokenizer.maximum());
                model::excerpt(&tokenizer.plain(), &document, most, Truncation::DropEnd)?
            }
            None => &document,
        };
        let query = query_tokens.get_or_init(|| tokenizer.query(&query, truncation));
        Ok(tokenizer.pair_with(query.as_ref().map_err(Clone::clone)?, document, truncation)?)
    };
    let Run { outputs, tokens, .. } = inputs::run(model, documents, characters, prepare).await?;
    Ok((outputs.into_iter().flat_map(|output| output.vector).collect(), tokens))
}

pub(super) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}
