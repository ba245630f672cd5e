//! The reranker that puts results into their last order: any server with text-embeddings-inference's `/rerank`.

use crate::answer::read_at_most;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer, in bytes. Some servers repeat the texts.
const ANSWER_LIMIT: usize = 16 << 20;

/// A reranking server.
pub struct Reranker {
    client: Client,
    url: String,
    key: Option<String>,
}

#[derive(Deserialize)]
struct Rank {
    index: usize,
    score: f64,
}

impl Reranker {
    /// A server at a base URL, which is asked nothing yet, and the key for it.
    pub fn new(url: &str, key: Option<String>) -> Result<Self, reqwest::Error> {
        let client = crate::tls::http_client().timeout(PATIENCE).build()?;
        Ok(Self { client, url: format!("{}/rerank", url.trim_end_matches('/')), key })
    }

    /// The places of texts with their scores, the best first.
    pub async fn order(&self, query: &str, texts: &[String]) -> Result<Vec<(usize, f64)>, String> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let body = json!({ "query": query, "texts": texts, "truncate": true });
        let failed = |error: &dyn std::error::Error| format!("the reranker at {}: {error}", self.url);
        let mut request = self.client.post(&self.url).headers(crate::trace::headers()).json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| failed(&error))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let key = if self.key.is_some() { "another API key" } else { "an API key" };
            return Err(format!(
                "the reranker at {} wants {key}: give it by search.rerankerRef.apiKeySecretRef, or PRINCIPIUM_RERANKER_API_KEY",
                self.url
            ));
        }
        let response = response.error_for_status().map_err(|error| failed(&error))?;
        let body = read_at_most(response, ANSWER_LIMIT).await.map_err(|error| failed(&error))?;
        let ranks: Vec<Rank> = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
        Ok(ranks.into_iter().map(|rank| (rank.index, rank.score)).collect())
    }
}
