//! What the process says about itself: `/info`, `/health`, `/ready`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::Shared;
use super::error::{ApiError, Dialect, answer};

/// The answer of `/info`: that of text-embeddings-inference and what an operator wants to know.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Info {
    /// data-factory, reranker or doc-analyzer.
    pub role: &'static str,
    /// Version of this program.
    pub version: &'static str,
    /// Commit of this program; null, for `version` names the release.
    pub sha: Option<&'static str>,
    /// Label of the image; null: a program does not know in which image it is.
    pub docker_label: Option<&'static str>,
    /// What is known about the model; absent in the doc-analyzer.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelInfo>,
    /// `cpu`, or `cuda:0,cuda:1`.
    pub device: String,
    /// Whether every GPU that was given is used.
    pub accelerated: bool,
    /// Why not, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acceleration_message: Option<String>,
    /// The GPUs that were given.
    pub gpus: Vec<GpuInfo>,
    /// Where documents are analyzed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub analyzer_url: Option<String>,
}

impl Info {
    /// What computes, as text-embeddings-inference calls it in `x-compute-type`.
    pub(super) fn compute_type(&self) -> &'static str {
        if self.device == "cpu" { "cpu+optimized" } else { "gpu+optimized" }
    }
}

/// The model's part of `/info`.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ModelInfo {
    /// The name that clients see.
    pub model_id: String,
    /// The same: the name for clients of OpenAI.
    pub served_model_name: String,
    /// The hub's commit, or the SHA-256 of the weights where the model came from a folder.
    pub model_sha: String,
    /// SHA-256 of the weights.
    pub weights_digest: String,
    /// Type that is computed in.
    pub model_dtype: &'static str,
    /// `{"embedding":{"pooling":…}}`, or `reranker` or `classifier` with `{"id2label":…,"label2id":…}`.
    #[schemars(with = "BTreeMap<String, BTreeMap<String, serde_json::Value>>")]
    pub model_type: serde_json::Value,
    /// Class of the model in transformers.
    pub architecture: String,
    /// Width of the vectors; absent for a reranker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimension: Option<usize>,
    /// What `/v1/encode` gives: dense, sparse, multi_vector; nothing for a model that scores.
    pub outputs: Vec<&'static str>,
    /// Names of the prompts that the model was trained with.
    pub prompts: Vec<String>,
    /// Most tokens of an input.
    pub max_input_length: usize,
    /// Most tokens of a batch.
    pub max_batch_tokens: usize,
    /// Most inputs of a batch.
    pub max_batch_requests: usize,
    /// Waiting inputs from which on requests are refused for the moment.
    pub max_concurrent_requests: usize,
    /// Inputs that one request may hold without waiting for room; larger ones are split and taken as well.
    pub max_client_batch_size: usize,
    /// Whether longer inputs are cut unless a request says otherwise.
    pub auto_truncate: bool,
    /// Threads that tokenize.
    pub tokenization_workers: usize,
    /// Instruction set or library of the kernels.
    pub kernel: &'static str,
    /// Replicas of the model that compute at the same time.
    pub workers: usize,
}

/// One GPU that was given.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct GpuInfo {
    /// Index on the node.
    pub index: u32,
    /// The driver's name for the card.
    pub uuid: String,
    /// The product, where the driver could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The share of its memory, in MiB.
    pub memory_mib: u64,
    /// Whether a replica of the model runs on it.
    pub used: bool,
}

/// The answer of `/ready`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Ready {
    /// Always: who is not says why.
    ready: bool,
}

pub(super) async fn info(State(shared): State<Arc<Shared>>) -> Json<Info> {
    Json(shared.info.clone())
}

/// The process lives and computes. What a GPU lacks from the start is `/ready`'s matter: a restart would not mend it.
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    answer(shared.health().await, Dialect::Tei)
}

pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let reason = if shared.draining.is_cancelled() {
        Some("the server is shutting down".to_owned())
    } else {
        shared.not_ready.clone()
    };
    let ready = match reason {
        Some(reason) => Err(ApiError::unhealthy(reason)),
        None => shared.health().await.map(|()| Json(Ready { ready: true })),
    };
    answer(ready, Dialect::Tei)
}

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.metrics.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => ApiError::backend(format!("rendering the metrics: {error}")).response(Dialect::Tei),
    }
}
