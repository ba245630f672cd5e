//! `POST /vertex`: several requests of text-embeddings-inference in one, in the envelope of Google's Vertex AI.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{ApiError, Dialect, answer};
use super::{App, embed, parse, predict, rerank};

/// Instances that are computed at the same time: enough to fill batches, without a thread and a place in the queue for each of thousands.
const AT_ONCE: usize = 64;

/// Requests `T` of the route that the model is for: `/embed`, `/embed_sparse`, `/rerank` or `/predict`.
#[derive(Deserialize, JsonSchema)]
pub(super) struct VertexRequest<T> {
    /// Bodies of requests, each as that route takes it.
    instances: Vec<T>,
}

/// The answers in the same order.
#[derive(Serialize, JsonSchema)]
pub(super) struct VertexResponse<T> {
    predictions: Vec<T>,
}

/// What a model with one label takes or gives, which ranks and labels.
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "it is only described")]
pub(super) enum Either<A, B> {
    Ranking(A),
    Labeling(B),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Vectors(Vec<Vec<f32>>),
    Words(Vec<Vec<embed::SparseValue>>),
    Ranks(Vec<rerank::TeiRank>),
    Labels(predict::Predictions),
}

pub(super) async fn vertex(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(
    app: &App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<VertexResponse<Answer>>, ApiError> {
    let VertexRequest::<Value> { instances } = parse(body)?;
    let answers = instances.into_iter().enumerate().map(|(place, instance)| one(app, place, instance));
    Ok(Json(VertexResponse { predictions: stream::iter(answers).buffered(AT_ONCE).try_collect().await? }))
}

async fn one(app: &App, place: usize, instance: Value) -> Result<Answer, ApiError> {
    let heads = &app.model.files.heads;
    if heads.labels.is_some() {
        // A classifier with one label takes both: what has a query is to be ranked.
        return if instance.get("query").is_some() {
            Ok(Answer::Ranks(rerank::ranks(app, read(place, instance)?).await?))
        } else {
            Ok(Answer::Labels(predict::predictions(app, read(place, instance)?).await?))
        };
    }
    if heads.dense.is_none() && heads.sparse.is_some() {
        return Ok(Answer::Words(embed::words(app, read(place, instance)?).await?));
    }
    Ok(Answer::Vectors(embed::vectors(app, read(place, instance)?).await?))
}

fn read<T: DeserializeOwned>(place: usize, instance: Value) -> Result<T, ApiError> {
    serde_json::from_value(instance)
        .map_err(|error| ApiError::validation(format!("instances[{place}]: {error}")))
}
