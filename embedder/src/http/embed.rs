//! `POST /embed` of text-embeddings-inference.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use serde::Deserialize;

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction, Inputs, VectorOptions};
use super::{App, parse};

#[derive(Deserialize)]
struct EmbedRequest {
    inputs: Inputs,
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Direction,
    #[serde(default = "yes")]
    normalize: bool,
    prompt_name: Option<String>,
    dimensions: Option<usize>,
}

fn yes() -> bool {
    true
}

pub(super) async fn embed(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Vec<Vec<f32>>>, ApiError> {
    let request: EmbedRequest = parse(body)?;
    let options = VectorOptions {
        truncation: inputs::truncation(request.truncate, request.truncation_direction),
        prompt: inputs::prompt(&app.model, request.prompt_name.as_deref())?,
        normalize: request.normalize,
        dimensions: request.dimensions,
    };
    let vectors = inputs::embed(&app.model, request.inputs.into_list("inputs")?, options).await?;
    Ok(Json(vectors.vectors))
}
