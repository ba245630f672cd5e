//! `POST /v1/search`: trying out what jobs have made. By vectors and by words, fused, and reranked where a reranker is
//! configured. No database: a corpus is read into memory when it is searched for the first time after a change.

mod bm25;
mod fuse;
mod index;
mod rerank;

pub use rerank::Reranker;

use crate::http::{ApiError, Dialect, answer, parse};
use crate::jobs::Jobs;
use crate::pipeline::Purpose;
use crate::sinks::Chunk;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use index::{Index, Indexes};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Results, where the client names no number, and at most.
const RESULTS: (usize, usize) = (10, 100);
/// The best by vectors and by words that are fused and reranked, where the client names no number.
const CANDIDATES: usize = 50;
/// Most candidates.
const MOST_CANDIDATES: usize = 1000;

#[derive(Clone)]
struct Search {
    jobs: Jobs,
    indexes: Indexes,
    reranker: Option<Arc<Reranker>>,
}

/// The route.
pub fn router(jobs: Jobs, reranker: Option<Reranker>) -> Router {
    let indexes = Indexes::new(&jobs.tools().config.model_digest);
    let search = Search { jobs, indexes, reranker: reranker.map(Arc::new) };
    Router::new().route("/v1/search", post(search_corpus)).with_state(search)
}

/// What is looked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// In words.
    query: String,
    /// Where.
    #[serde(default = "default_corpus")]
    corpus: String,
    /// Most results.
    #[schemars(range(min = 1, max = RESULTS.1), extend("default" = RESULTS.0))]
    top_k: Option<usize>,
    #[serde(default)]
    mode: Mode,
    /// The best by vectors and by words that are fused and reranked; never fewer than `top_k`.
    #[schemars(range(min = 1, max = MOST_CANDIDATES), extend("default" = CANDIDATES))]
    candidates: Option<usize>,
    /// Whether results are reranked; they are where a reranker is configured.
    rerank: Option<bool>,
}

/// What was found.
#[derive(Serialize, JsonSchema)]
pub struct SearchResponse {
    /// The best first.
    results: Vec<SearchResult>,
    /// Chunks that were searched.
    chunks: usize,
    seconds: f64,
}

/// A chunk that was found.
#[derive(Clone, Serialize, JsonSchema)]
struct SearchResult {
    #[serde(flatten)]
    chunk: Chunk,
    /// Of the last list that it went through: cosine (the dot product, where the model's vectors keep their length), BM25,
    /// fused ranks, or the reranker's.
    score: f64,
    ranks: Ranks,
}

fn default_corpus() -> String {
    "default".to_owned()
}

/// What is compared.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Both, fused by their ranks.
    #[default]
    Hybrid,
    /// Vectors.
    Vector,
    /// Words.
    Bm25,
}

/// Where a result stands in each of the lists that it is in, from 1.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
struct Ranks {
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bm25: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rerank: Option<usize>,
}

async fn search_corpus(State(search): State<Search>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&search, body).await, Dialect::Tei)
}

async fn respond(
    search: &Search,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<SearchResponse>, ApiError> {
    let started = Instant::now();
    let request: SearchRequest = parse(body)?;
    if request.query.trim().is_empty() {
        return Err(ApiError::empty("query is empty: ask something"));
    }
    let top = within("top_k", request.top_k.unwrap_or(RESULTS.0), RESULTS.1)?;
    let candidates =
        within("candidates", request.candidates.unwrap_or(CANDIDATES), MOST_CANDIDATES)?.max(top);
    let reranker = match (request.rerank, &search.reranker) {
        (Some(true), None) => {
            return Err(ApiError::validation(
                "rerank is true, but there is no reranker: set PRINCIPIUM_RERANKER_URL",
            ));
        }
        (Some(false), _) => None,
        (_, reranker) => reranker.clone(),
    };
    let index = index(search, &request.corpus).await?;
    let vector = if request.mode == Mode::Bm25 {
        Vec::new()
    } else {
        let embedded = search.jobs.tools().embedder.embed(vec![request.query.clone()], Purpose::Query).await;
        embedded.map_err(ApiError::backend)?.pop().map(|it| it.vector).unwrap_or_default()
    };
    let (query, mode, searched) = (request.query.clone(), request.mode, index.clone());
    let lists = tokio::task::spawn_blocking(move || {
        let by_vector = if mode == Mode::Bm25 { Vec::new() } else { searched.nearest(&vector, candidates) };
        let by_words =
            if mode == Mode::Vector { Vec::new() } else { searched.words.best(&query, candidates) };
        [by_vector, by_words]
    });
    let lists = lists.await.map_err(|error| ApiError::backend(format!("searching: {error}")))?;
    let found = ranked(&lists, mode, candidates);
    let chunks = index.chunks(search.jobs.store(), found.iter().map(|(chunk, ..)| *chunk).collect()).await?;
    let result = |(chunk, (_, score, ranks)): (Chunk, _)| {
        // Nobody asked for the vector.
        SearchResult { chunk: Chunk { vector: Vec::new(), ..chunk }, score, ranks }
    };
    let mut results: Vec<SearchResult> = chunks.into_iter().zip(found).map(result).collect();
    if let Some(reranker) = reranker {
        rerank(&reranker, &request.query, &mut results).await?;
    }
    results.truncate(top);
    Ok(Json(SearchResponse { results, chunks: index.len(), seconds: started.elapsed().as_secs_f64() }))
}

fn within(field: &str, value: usize, most: usize) -> Result<usize, ApiError> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(ApiError::validation(format!("{field} is {value}: it can be 1 to {most}")))
    }
}

/// The corpus as it is now.
async fn index(search: &Search, corpus: &str) -> Result<Arc<Index>, ApiError> {
    match search.indexes.get(search.jobs.store(), corpus).await? {
        index::Found::Index(index) => Ok(index),
        index::Found::NoCorpus => {
            Err(ApiError::not_found(format!("there is no corpus {corpus:?}; GET /v1/corpora lists them")))
        }
        index::Found::TooLarge { chunks } => Err(ApiError::validation(format!(
            "the corpus {corpus:?} has {chunks} chunks, and at most {} are searched here: send them to a vector database \
             by a sink, and search there",
            index::MOST_CHUNKS
        ))),
    }
}

/// Chunks with their scores and ranks, the best first.
fn ranked(lists: &[Vec<(u32, f32)>; 2], mode: Mode, candidates: usize) -> Vec<(u32, f64, Ranks)> {
    let mut ranks: HashMap<u32, Ranks> = HashMap::new();
    for (place, (chunk, _)) in lists[0].iter().enumerate() {
        ranks.entry(*chunk).or_default().vector = Some(place + 1);
    }
    for (place, (chunk, _)) in lists[1].iter().enumerate() {
        ranks.entry(*chunk).or_default().bm25 = Some(place + 1);
    }
    let scored: Vec<(u32, f64)> = match mode {
        Mode::Vector => lists[0].iter().map(|(chunk, score)| (*chunk, f64::from(*score))).collect(),
        Mode::Bm25 => lists[1].iter().map(|(chunk, score)| (*chunk, f64::from(*score))).collect(),
        Mode::Hybrid => fuse::reciprocal_rank(lists),
    };
    let with_ranks = scored.into_iter().take(candidates);
    with_ranks.map(|(chunk, score)| (chunk, score, ranks.get(&chunk).copied().unwrap_or_default())).collect()
}

async fn rerank(reranker: &Reranker, query: &str, results: &mut Vec<SearchResult>) -> Result<(), ApiError> {
    let texts: Vec<String> = results.iter().map(|it| index::searched_text(&it.chunk)).collect();
    let order = reranker.order(query, &texts).await.map_err(ApiError::backend)?;
    let mut reranked = Vec::with_capacity(order.len());
    for (place, (index, score)) in order.into_iter().enumerate() {
        if let Some(SearchResult { chunk, score: _, ranks }) = results.get(index) {
            let ranks = Ranks { rerank: Some(place + 1), ..*ranks };
            reranked.push(SearchResult { chunk: chunk.clone(), score, ranks });
        }
    }
    *results = reranked;
    Ok(())
}
