//! `POST /v1/embeddings` and `GET /v1/models` of OpenAI.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Inputs, VectorOptions};
use super::{App, parse};
use crate::model::Truncation;

/// `model` and `user` are accepted and say nothing: one model is served.
#[derive(Deserialize)]
struct EmbeddingsRequest {
    input: Inputs,
    #[serde(default)]
    encoding_format: EncodingFormat,
    dimensions: Option<usize>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

#[derive(Serialize)]
struct EmbeddingsResponse {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Encoded,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Encoded {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) total_tokens: usize,
}

impl Usage {
    pub(super) fn of(tokens: usize) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

pub(super) async fn embeddings(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::OpenAi)
}

async fn respond(
    app: &App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<EmbeddingsResponse>, ApiError> {
    let request: EmbeddingsRequest = parse(body)?;
    let options = VectorOptions {
        truncation: Truncation::DropEnd,
        prompt: None,
        normalize: true,
        dimensions: request.dimensions,
    };
    let vectors = inputs::embed(&app.model, request.input.into_list("input")?, options).await?;
    let data = vectors.vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: encode(vector, request.encoding_format),
    });
    Ok(Json(EmbeddingsResponse {
        object: "list",
        data: data.collect(),
        model: app.model.name.clone(),
        usage: Usage::of(vectors.tokens),
    }))
}

fn encode(vector: Vec<f32>, format: EncodingFormat) -> Encoded {
    match format {
        EncodingFormat::Float => Encoded::Float(vector),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Encoded::Base64(STANDARD.encode(bytes))
        }
    }
}

pub(super) async fn models(State(app): State<App>) -> Json<Value> {
    let model = json!({ "id": app.model.name, "object": "model", "created": 0, "owned_by": "principium" });
    Json(json!({ "object": "list", "data": [model] }))
}
