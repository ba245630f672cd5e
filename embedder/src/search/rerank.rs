//! The reranker that puts results into their last order: any server with text-embeddings-inference's `/rerank`.

use reqwest::Client;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A reranking server.
pub struct Reranker {
    client: Client,
    url: String,
}

#[derive(Deserialize)]
struct Rank {
    index: usize,
    score: f64,
}

impl Reranker {
    /// A server at a base URL, which is asked nothing yet.
    pub fn new(url: &str) -> Result<Self, reqwest::Error> {
        let client = crate::tls::http_client().timeout(PATIENCE).build()?;
        Ok(Self { client, url: format!("{}/rerank", url.trim_end_matches('/')) })
    }

    /// The places of texts with their scores, the best first.
    pub async fn order(&self, query: &str, texts: &[String]) -> Result<Vec<(usize, f64)>, String> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let body = json!({ "query": query, "texts": texts, "truncate": true });
        let failed = |error: reqwest::Error| format!("the reranker at {}: {error}", self.url);
        let response = self
            .client
            .post(&self.url)
            .headers(crate::trace::headers())
            .json(&body)
            .send()
            .await
            .map_err(failed)?;
        let ranks: Vec<Rank> = response.error_for_status().map_err(failed)?.json().await.map_err(failed)?;
        Ok(ranks.into_iter().map(|rank| (rank.index, rank.score)).collect())
    }
}
