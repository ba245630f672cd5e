//! `POST /v1/encode`: the dense, the sparse and the multi-vector form of texts, as far as the model has them, from one pass.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction, Inputs, Preparation};
use super::openai::Usage;
use super::{App, parse};
use crate::model::{Heads, Side, Wants};

/// What is encoded, into what.
#[derive(Deserialize, JsonSchema)]
pub(super) struct EncodeRequest {
    inputs: Inputs,
    /// What is wanted; everything that the model has where nothing is said.
    outputs: Option<Vec<Kind>>,
    /// On which side of a search the texts stand. Chooses the marker of models with one vector a token, and the prompt of
    /// that name where the model has one and `prompt_name` is not given.
    #[serde(default)]
    input_type: InputType,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes.
    #[serde(default)]
    truncation_direction: Direction,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
    /// Whether dense vectors have length one.
    #[serde(default = "yes")]
    normalize: bool,
    /// How many of the first dimensions of dense vectors are kept.
    dimensions: Option<usize>,
}

/// One form of a text.
#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Dense,
    Sparse,
    MultiVector,
}

/// One side of a search.
#[derive(Deserialize, JsonSchema, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
enum InputType {
    Query,
    #[default]
    Document,
}

/// Each text in every form that was wanted.
#[derive(Serialize, JsonSchema)]
pub(super) struct EncodeResponse {
    model: String,
    data: Vec<Encoded>,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct Encoded {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    dense: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sparse: Option<Sparse>,
    /// One vector for each token that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    multi_vector: Option<Vec<Vec<f32>>>,
}

/// Weights of words, in the form that vector databases take.
#[derive(Serialize, JsonSchema)]
struct Sparse {
    /// Token ids, ascending.
    indices: Vec<u32>,
    values: Vec<f32>,
}

fn yes() -> bool {
    true
}

pub(super) async fn encode(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<EncodeResponse>, ApiError> {
    let request: EncodeRequest = parse(body)?;
    let heads = &app.model.files.heads;
    let wants = wants(heads, request.outputs.as_deref())?;
    if let Some(dense) = &heads.dense {
        inputs::shorter_than(request.dimensions, "dimensions", dense.width)?;
    }
    let (side, name) = match request.input_type {
        InputType::Query => (Side::Query, "query"),
        InputType::Document => (Side::Document, "document"),
    };
    // A model with markers has them under the same names as prompts, and gets them as tokens.
    let marked = heads.multi.is_some() && heads.dense.is_none();
    let by_type = Some(name).filter(|name| !marked && app.model.files.prompts.by_name.contains_key(*name));
    let preparation = Preparation {
        truncation: inputs::truncation(request.truncate, request.truncation_direction),
        prompt: match request.prompt_name.as_deref().or(by_type) {
            None if marked => None,
            name => inputs::prompt(&app.model, name)?,
        },
        side: heads.multi.is_some().then_some(side),
        wants,
    };
    let computed = inputs::compute(&app.model, request.inputs.into_list("inputs")?, preparation).await?;
    let tokenizer = &app.model.tokenizer;
    let mut data = Vec::with_capacity(computed.outputs.len());
    for (index, (output, ids)) in computed.outputs.into_iter().zip(computed.ids).enumerate() {
        let dense =
            wants.vector.then(|| inputs::finish(output.vector, request.dimensions, request.normalize));
        let sparse = wants.sparse.then(|| {
            let (indices, values) = output.sparse.into_iter().unzip();
            Sparse { indices, values }
        });
        let multi_vector = wants.multi.then(|| {
            // The first tokens have no vector where the model leaves them out.
            let ids = &ids[ids.len() - output.multi.len()..];
            let counts = |id: u32| side == Side::Query || !tokenizer.is_skipped(id);
            output
                .multi
                .into_iter()
                .zip(ids)
                .filter(|(_, id)| counts(**id))
                .map(|(vector, _)| vector)
                .collect()
        });
        data.push(Encoded { index, dense, sparse, multi_vector });
    }
    Ok(Json(EncodeResponse { model: app.model.name.clone(), data, usage: Usage::of(computed.tokens) }))
}

/// What to compute for the kinds that a request names; everything for none.
fn wants(heads: &Heads, kinds: Option<&[Kind]>) -> Result<Wants, ApiError> {
    let all = [
        (Kind::Dense, "dense", heads.dense.is_some(), Wants::VECTOR),
        (Kind::Sparse, "sparse", heads.sparse.is_some(), Wants::SPARSE),
        (Kind::MultiVector, "multi_vector", heads.multi.is_some(), Wants::MULTI),
    ];
    let has: Vec<&str> = all.iter().filter(|(.., has, _)| *has).map(|(_, name, ..)| *name).collect();
    let mut wants = Wants::default();
    for (kind, name, has_it, what) in all {
        let named = kinds.is_some_and(|kinds| kinds.contains(&kind));
        if named && !has_it {
            return Err(ApiError::validation(format!(
                "outputs names {name}; the model has {}",
                has.join(", ")
            )));
        }
        if named || (kinds.is_none() && has_it) {
            wants = wants | what;
        }
    }
    if wants == Wants::default() {
        return Err(ApiError::empty(format!("outputs is []: name some of {}", has.join(", "))));
    }
    Ok(wants)
}
