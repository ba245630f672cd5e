//! Qdrant by its REST API: one point a chunk, whose id is the chunk's as a UUID.

use super::{Chunk, SinkError, SinkServers};
use crate::answer::{AnswerError, read_at_most};
use crate::model::Similarity;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer, in bytes: nothing is asked for that is long.
const ANSWER_LIMIT: usize = 1 << 20;
/// How much of a refusal is repeated, in characters.
const SHOWN: usize = 300;

/// A collection.
pub struct Qdrant {
    client: Client,
    base: String,
    api_key: Option<String>,
    collection: String,
    /// By what a collection that is made compares.
    similarity: Similarity,
    /// Width of its vectors, once it is known to be there.
    dimension: Option<usize>,
    /// Whether it is known to have an index of the corpora.
    indexed: bool,
}

impl Qdrant {
    pub(super) fn new(
        collection: &str,
        servers: &SinkServers,
        similarity: Similarity,
    ) -> Result<Self, SinkError> {
        let Some(base) = &servers.qdrant_url else {
            return Err(SinkError::Lasting(
                "there is no Qdrant server: set PRINCIPIUM_QDRANT_URL for the process".to_owned(),
            ));
        };
        let client = crate::tls::http_client().timeout(PATIENCE).build();
        let client = client.map_err(|error| SinkError::Lasting(format!("setting up a client: {error}")))?;
        Ok(Self {
            client,
            base: base.trim_end_matches('/').to_owned(),
            api_key: servers.qdrant_api_key.clone(),
            collection: collection.to_owned(),
            similarity,
            dimension: None,
            indexed: false,
        })
    }

    pub(super) async fn upsert(&mut self, chunks: &[Chunk]) -> Result<(), SinkError> {
        let Some(first) = chunks.first() else { return Ok(()) };
        self.ensure_collection(first.vector.len()).await?;
        let points: Vec<Value> = chunks.iter().map(point).collect();
        let path = format!("/collections/{}/points?wait=true", self.collection);
        self.put(&path, &json!({ "points": points })).await
    }

    pub(super) async fn delete(&mut self, corpus: &str, ids: &[String]) -> Result<(), SinkError> {
        if !self.ensure_index().await? {
            // Without the collection there is nothing to delete.
            return Ok(());
        }
        let points: Vec<String> = ids.iter().map(|id| uuid(id)).collect();
        let own = json!([{ "has_id": points }, { "key": "corpus", "match": { "value": corpus } }]);
        let path = format!("/collections/{}/points/delete?wait=true", self.collection);
        self.ask(Method::POST, &path, Some(&json!({ "filter": { "must": own } }))).await.map(drop)
    }

    /// Makes the collection where it is missing. One whose vectors have another width is not touched.
    async fn ensure_collection(&mut self, dimension: usize) -> Result<(), SinkError> {
        if self.dimension == Some(dimension) {
            return Ok(());
        }
        let path = format!("/collections/{}", self.collection);
        let Some(found) = self.ask(Method::GET, &path, None).await? else {
            let distance = match self.similarity {
                Similarity::Cosine => "Cosine",
                Similarity::Dot => "Dot",
            };
            let body = json!({ "vectors": { "size": dimension, "distance": distance } });
            match self.put(&path, &body).await {
                // Somebody else may have been faster; then the next attempt finds it.
                Err(SinkError::Lasting(message)) if message.contains("already exists") => {
                    return Err(SinkError::Passing(message));
                }
                other => other?,
            };
            self.dimension = Some(dimension);
            return Ok(());
        };
        let distance = found.pointer("/result/config/params/vectors/distance").and_then(Value::as_str);
        if (self.similarity, distance) == (Similarity::Dot, Some("Cosine")) {
            tracing::warn!(
                collection = self.collection,
                "the collection compares by the cosine, and the model's vectors are to be compared by their dot product"
            );
        }
        match found.pointer("/result/config/params/vectors/size").and_then(Value::as_u64) {
            Some(size) if size == dimension as u64 => {
                self.dimension = Some(dimension);
                Ok(())
            }
            size => Err(SinkError::Lasting(format!(
                "the collection {:?} has vectors of {} numbers, and the model makes {dimension}: name another collection",
                self.collection,
                size.map_or_else(|| "several kinds or an unknown count".to_owned(), |size| size.to_string())
            ))),
        }
    }

    /// Makes an index of the corpora where there is none, and says whether there is a collection. A server in strict mode, such as
    /// Qdrant's cloud, deletes nothing by a field without an index.
    async fn ensure_index(&mut self) -> Result<bool, SinkError> {
        if self.indexed {
            return Ok(true);
        }
        let path = format!("/collections/{}", self.collection);
        let Some(found) = self.ask(Method::GET, &path, None).await? else { return Ok(false) };
        if found.pointer("/result/payload_schema/corpus").is_none() {
            let index = json!({ "field_name": "corpus", "field_schema": "keyword" });
            self.put(&format!("{path}/index?wait=true"), &index).await?;
        }
        self.indexed = true;
        Ok(true)
    }

    /// Makes or fills something. To this 404 is no success: the collection was deleted meanwhile, or the address is that of
    /// something else. Neither has taken anything.
    async fn put(&mut self, path: &str, body: &Value) -> Result<(), SinkError> {
        if self.ask(Method::PUT, path, Some(body)).await?.is_some() {
            return Ok(());
        }
        // The next attempt looks at the collection again, and makes it where it is missing.
        (self.dimension, self.indexed) = (None, false);
        Err(SinkError::Passing(format!(
            "Qdrant at {} answered {} to PUT {path}: the collection was deleted meanwhile, or PRINCIPIUM_QDRANT_URL is not \
             the address of a Qdrant server",
            self.base,
            StatusCode::NOT_FOUND
        )))
    }

    /// The answer to a request; `None` where what it is about does not exist, which only the caller can tell from a fault.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Value>, SinkError> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.api_key {
            request = request.header("api-key", key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let passing = |error: reqwest::Error| {
            SinkError::Passing(format!("Qdrant at {} does not answer: {error}", self.base))
        };
        let response = request.send().await.map_err(passing)?;
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let body = read_at_most(response, ANSWER_LIMIT).await.map_err(|error| match error {
            AnswerError::Broken(error) => passing(error),
            error @ AnswerError::TooLong { .. } => {
                SinkError::Lasting(format!("Qdrant at {} answered {status}: {error}", self.base))
            }
        })?;
        if status.is_success() {
            return Ok(Some(serde_json::from_slice(&body).unwrap_or_default()));
        }
        let shown: String = String::from_utf8_lossy(&body).chars().take(SHOWN).collect();
        let message = format!("Qdrant at {} answered {status}: {shown}", self.base);
        // Qdrant answers 400 and says so; what stands before it answers 413.
        let too_large = status == StatusCode::PAYLOAD_TOO_LARGE
            || (status == StatusCode::BAD_REQUEST && shown.contains("larger than allowed"));
        if too_large {
            return Err(SinkError::TooLarge(message));
        }
        let passes = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        Err(if passes { SinkError::Passing(message) } else { SinkError::Lasting(message) })
    }
}

/// A chunk as a point: everything but the vector is payload.
fn point(chunk: &Chunk) -> Value {
    // Chunks always serialize: their maps have strings for keys.
    let mut payload = serde_json::to_value(chunk).unwrap_or_default();
    if let Some(payload) = payload.as_object_mut() {
        payload.remove("vector");
    }
    json!({ "id": uuid(&chunk.chunk_id), "vector": chunk.vector, "payload": payload })
}

/// 32 hexadecimal digits in the form of a UUID, which is what Qdrant takes beside numbers.
fn uuid(id: &str) -> String {
    let part = |range| id.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}
