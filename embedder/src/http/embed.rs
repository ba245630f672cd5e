//! `POST /embed`, `/embed_all`, `/embed_sparse` and `/similarity` of text-embeddings-inference.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction, Inputs, OneInput, Preparation, VectorOptions};
use super::{App, parse};
use crate::model::Wants;

/// What is embedded, and how.
#[derive(Deserialize, JsonSchema)]
pub(super) struct EmbedRequest {
    inputs: Inputs,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
    /// Whether vectors have length one.
    #[serde(default = "inputs::yes", deserialize_with = "inputs::flag::<_, true>")]
    normalize: bool,
    /// How many of the first dimensions are kept.
    #[schemars(range(min = 1))]
    dimensions: Option<usize>,
}

/// What is embedded.
#[derive(Deserialize, JsonSchema)]
pub(super) struct TextsRequest {
    inputs: Inputs,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
}

/// How the sentences become tokens.
#[derive(Deserialize, JsonSchema, Default)]
struct SimilarityParameters {
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
}

/// A sentence, and those that it is compared with.
#[derive(Deserialize, JsonSchema)]
pub(super) struct SimilarityRequest {
    inputs: Sentences,
    /// How they become tokens.
    parameters: Option<SimilarityParameters>,
}

#[derive(Deserialize, JsonSchema)]
struct Sentences {
    /// What the others are compared with.
    source_sentence: String,
    /// The others.
    sentences: Vec<String>,
}

/// The weight of one word.
#[derive(Serialize, JsonSchema)]
pub(super) struct SparseValue {
    /// The word's token id.
    index: u32,
    value: f32,
}

type Body = Result<Bytes, BytesRejection>;

pub(super) async fn embed(State(app): State<App>, body: Body) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Body) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    Ok(Json(vectors(app, parse(body)?).await?))
}

/// What `/embed` answers.
pub(super) async fn vectors(app: &App, request: EmbedRequest) -> Result<Vec<Vec<f32>>, ApiError> {
    let options = VectorOptions {
        truncation: inputs::truncation(request.truncate, request.truncation_direction),
        prompt: inputs::prompt(&app.model, request.prompt_name.as_deref())?,
        normalize: request.normalize,
        dimensions: request.dimensions,
    };
    Ok(inputs::embed(&app.model, request.inputs.into_list("inputs")?, options).await?.vectors)
}

pub(super) async fn embed_all(State(app): State<App>, body: Body) -> Response {
    answer(respond_all(&app, body).await, Dialect::Tei)
}

async fn respond_all(app: &App, body: Body) -> Result<Json<Vec<Vec<Vec<f32>>>>, ApiError> {
    let request: TextsRequest = parse(body)?;
    let preparation = request.preparation(app, Wants::STATES)?;
    let computed = inputs::compute(&app.model, request.inputs.into_list("inputs")?, preparation).await?;
    Ok(Json(computed.outputs.into_iter().map(|output| output.states).collect()))
}

pub(super) async fn embed_sparse(State(app): State<App>, body: Body) -> Response {
    answer(respond_sparse(&app, body).await, Dialect::Tei)
}

async fn respond_sparse(app: &App, body: Body) -> Result<Json<Vec<Vec<SparseValue>>>, ApiError> {
    Ok(Json(words(app, parse(body)?).await?))
}

/// What `/embed_sparse` answers.
pub(super) async fn words(app: &App, request: TextsRequest) -> Result<Vec<Vec<SparseValue>>, ApiError> {
    if app.model.files.heads.sparse.is_none() {
        return Err(ApiError::backend("the model gives no weights of words: it is no sparse model"));
    }
    let preparation = request.preparation(app, Wants::SPARSE)?;
    let computed = inputs::compute(&app.model, request.inputs.into_list("inputs")?, preparation).await?;
    let values = |sparse: Vec<(u32, f32)>| {
        sparse.into_iter().map(|(index, value)| SparseValue { index, value }).collect()
    };
    Ok(computed.outputs.into_iter().map(|output| values(output.sparse)).collect())
}

pub(super) async fn similarity(State(app): State<App>, body: Body) -> Response {
    answer(respond_similarity(&app, body).await, Dialect::Tei)
}

async fn respond_similarity(app: &App, body: Body) -> Result<Json<Vec<f32>>, ApiError> {
    let SimilarityRequest { inputs: Sentences { source_sentence, sentences }, parameters } = parse(body)?;
    if sentences.is_empty() {
        return Err(ApiError::empty("inputs.sentences is []: give at least one text"));
    }
    let parameters = parameters.unwrap_or_default();
    let options = VectorOptions {
        truncation: inputs::truncation(parameters.truncate, parameters.truncation_direction),
        prompt: inputs::prompt(&app.model, parameters.prompt_name.as_deref())?,
        normalize: true,
        dimensions: None,
    };
    let list = std::iter::once(source_sentence).chain(sentences).map(OneInput::Text).collect();
    let vectors = inputs::embed(&app.model, list, options).await?.vectors;
    let Some((source, others)) = vectors.split_first() else { return Ok(Json(Vec::new())) };
    Ok(Json(others.iter().map(|other| source.iter().zip(other).map(|(a, b)| a * b).sum()).collect()))
}

impl TextsRequest {
    fn preparation(&self, app: &App, wants: Wants) -> Result<Preparation, ApiError> {
        Ok(Preparation {
            truncation: inputs::truncation(self.truncate, self.truncation_direction),
            prompt: inputs::prompt(&app.model, self.prompt_name.as_deref())?,
            side: None,
            wants,
        })
    }
}
