//! `POST /vertex`: several requests of text-embeddings-inference in one, in the envelope of Google's Vertex AI.

use std::future::Future;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

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
    // Each is read as what it is meant to be: as trees of values they would take many times the body's size.
    let heads = &app.model.files.heads;
    if heads.labels.is_some() {
        return all(parse(body)?, |instance| labels(app, instance)).await;
    }
    if heads.dense.is_none() && heads.sparse.is_some() {
        return all(parse(body)?, |instance| words(app, instance)).await;
    }
    all(parse(body)?, |instance| vectors(app, instance)).await
}

/// The answers to all instances, of which a few are computed at the same time.
async fn all<T, F: Future<Output = Result<Answer, ApiError>>>(
    request: VertexRequest<T>,
    one: impl Fn(T) -> F,
) -> Result<Json<VertexResponse<Answer>>, ApiError> {
    let answers = stream::iter(request.instances.into_iter().map(one));
    Ok(Json(VertexResponse { predictions: answers.buffered(AT_ONCE).try_collect().await? }))
}

async fn vectors(app: &App, instance: embed::EmbedRequest) -> Result<Answer, ApiError> {
    Ok(Answer::Vectors(embed::vectors(app, instance).await?))
}

async fn words(app: &App, instance: embed::TextsRequest) -> Result<Answer, ApiError> {
    Ok(Answer::Words(embed::words(app, instance).await?))
}

async fn labels(app: &App, instance: Instance) -> Result<Answer, ApiError> {
    match instance {
        Instance::Ranking(request) => Ok(Answer::Ranks(rerank::ranks(app, request).await?)),
        Instance::Labeling(request) => Ok(Answer::Labels(predict::predictions(app, request).await?)),
    }
}

/// What a model with labels takes. One with one label takes both: what has a query is to be ranked.
enum Instance {
    Ranking(rerank::TeiRequest),
    Labeling(predict::PredictRequest),
}

impl<'de> Deserialize<'de> for Instance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[expect(dead_code, reason = "that it is there is all")]
        struct Asks {
            query: IgnoredAny,
        }
        let instance = <&RawValue>::deserialize(deserializer)?.get();
        let read = match serde_json::from_str::<Asks>(instance).is_ok() {
            true => serde_json::from_str(instance).map(Self::Ranking),
            false => serde_json::from_str(instance).map(Self::Labeling),
        };
        read.map_err(|error| {
            // A place within the instance would be taken for one within the body.
            let said = error.to_string();
            D::Error::custom(said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what))
        })
    }
}
