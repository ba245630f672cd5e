//! `POST /v1/embeddings` and `GET /v1/models` of OpenAI.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cohere::floats_base64;
use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Inputs, VectorOptions};
use super::{App, parse};
use crate::model::Truncation;

/// `model` and `user` are accepted and say nothing: one model is served.
#[derive(Deserialize, JsonSchema)]
pub(super) struct EmbeddingsRequest {
    input: Inputs,
    /// `float` where nothing is said.
    encoding_format: Option<EncodingFormat>,
    /// How many of the first dimensions are kept.
    #[schemars(range(min = 1))]
    dimensions: Option<usize>,
}

#[derive(Deserialize, JsonSchema, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    Base64,
}

/// Vectors in the order of the inputs.
#[derive(Serialize, JsonSchema)]
pub(super) struct EmbeddingsResponse {
    object: &'static str,
    data: Vec<EmbeddingObject>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct EmbeddingObject {
    object: &'static str,
    index: usize,
    embedding: Encoded,
}

#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Encoded {
    Float(Vec<f32>),
    Base64(String),
}

/// Tokens that were computed.
#[derive(Serialize, JsonSchema)]
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
        prompt: inputs::prompt(&app.model, None)?,
        normalize: true,
        dimensions: request.dimensions,
    };
    let format = request.encoding_format.unwrap_or_default();
    let vectors = inputs::embed(&app.model, request.input.into_list("input")?, options).await?;
    let data = vectors.vectors.into_iter().enumerate().map(|(index, vector)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: encode(vector, format),
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
        EncodingFormat::Base64 => Encoded::Base64(floats_base64(&vector)),
    }
}

/// The models that are served.
#[derive(Serialize, JsonSchema)]
pub(super) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

/// The model that is served.
#[derive(Serialize, JsonSchema)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn of(app: &App) -> Self {
        Self { id: app.model.name.clone(), object: "model", created: 0, owned_by: "principium" }
    }
}

pub(super) async fn models(State(app): State<App>) -> Json<Models> {
    Json(Models { object: "list", data: vec![Model::of(&app)] })
}

pub(super) async fn model(State(app): State<App>, Path(name): Path<String>) -> Response {
    let found = if name == app.model.name {
        Ok(Json(Model::of(&app)))
    } else {
        let message = format!("there is no model {name:?}; {:?} is served", app.model.name);
        Err(ApiError::no_route(StatusCode::NOT_FOUND, message))
    };
    answer(found, Dialect::OpenAi)
}
