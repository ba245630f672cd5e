//! `POST /v1/encode`: the dense, the sparse and the multi-vector form of texts, as far as the model has them, from one pass.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction, Inputs, OneInput, Preparation};
use super::openai::Usage;
use super::{App, Served, parse};
use crate::model::{Heads, Output, Side, Truncation, Wants};

/// What is encoded, into what.
#[derive(Deserialize, JsonSchema)]
pub(super) struct EncodeRequest {
    inputs: Inputs,
    /// What is wanted; everything that the model has where nothing is said.
    outputs: Option<Vec<Kind>>,
    /// On which side of a search the texts stand. Chooses the marker of models with one vector a token, and the prompt for
    /// that side where the model has one and `prompt_name` is not given. `document` where nothing is said.
    input_type: Option<InputType>,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
    /// Whether dense vectors have length one, or the one that the pooling and the dense layers give them; as the model's files
    /// say where nothing is said.
    normalize: Option<bool>,
    /// How many of the first dimensions of dense vectors are kept.
    #[schemars(range(min = 1))]
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
    data: Vec<Indexed>,
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct Indexed {
    index: usize,
    #[serde(flatten)]
    encoded: Encoded,
}

/// One text in the forms that were wanted.
#[derive(Serialize, JsonSchema)]
pub struct Encoded {
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

impl Kind {
    fn parse(name: &str) -> Result<Self, ApiError> {
        match name {
            "dense" => Ok(Self::Dense),
            "sparse" => Ok(Self::Sparse),
            "multi_vector" => Ok(Self::MultiVector),
            other => Err(ApiError::validation(format!(
                "the output {other:?} is none of dense, sparse, multi_vector"
            ))),
        }
    }
}

impl InputType {
    fn side(self) -> Side {
        match self {
            Self::Query => Side::Query,
            Self::Document => Side::Document,
        }
    }
}

pub(super) async fn encode(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<EncodeResponse>, ApiError> {
    let request: EncodeRequest = parse(body)?;
    let wants = wants(&app.model.files.heads, request.outputs.as_deref())?;
    let forms = Forms {
        wants,
        side: request.input_type.unwrap_or_default().side(),
        truncation: inputs::truncation(request.truncate, request.truncation_direction),
        prompt_name: request.prompt_name,
        normalize: request.normalize,
        dimensions: request.dimensions,
    };
    let (encoded, tokens) = forms.encode(&app.model, request.inputs.into_list("inputs")?).await?;
    let data = encoded.into_iter().enumerate().map(|(index, encoded)| Indexed { index, encoded }).collect();
    Ok(Json(EncodeResponse { model: app.model.name.clone(), data, usage: Usage::of(tokens) }))
}

/// How texts are encoded outside of a request.
pub struct EncodeOptions {
    /// Names of what is wanted; everything that the model has for `None`.
    pub outputs: Option<Vec<String>>,
    /// Whether the texts are queries.
    pub query: bool,
    /// A prompt of the model's files.
    pub prompt_name: Option<String>,
    /// Whether dense vectors have length one; as the model's files say for `None`.
    pub normalize: Option<bool>,
    /// How many of the first dimensions of dense vectors are kept.
    pub dimensions: Option<usize>,
}

/// Every text in the forms that are wanted, and the tokens of all.
pub async fn encode_texts(
    model: &Arc<Served>,
    texts: Vec<String>,
    options: &EncodeOptions,
) -> Result<(Vec<Encoded>, usize), ApiError> {
    let kinds = options.outputs.as_ref().map(|names| names.iter().map(|name| Kind::parse(name)).collect());
    let kinds: Option<Vec<Kind>> = kinds.transpose()?;
    let forms = Forms {
        wants: wants(&model.files.heads, kinds.as_deref())?,
        side: if options.query { Side::Query } else { Side::Document },
        truncation: Truncation::DropEnd,
        prompt_name: options.prompt_name.clone(),
        normalize: options.normalize,
        dimensions: options.dimensions,
    };
    forms.encode(model, texts.into_iter().map(OneInput::Text).collect()).await
}

/// What is made of texts.
struct Forms {
    wants: Wants,
    side: Side,
    truncation: Truncation,
    prompt_name: Option<String>,
    normalize: Option<bool>,
    dimensions: Option<usize>,
}

impl Forms {
    async fn encode(
        &self,
        model: &Arc<Served>,
        list: Vec<OneInput>,
    ) -> Result<(Vec<Encoded>, usize), ApiError> {
        let heads = &model.files.heads;
        if let Some(dense) = &heads.dense {
            inputs::shorter_than(self.dimensions, "dimensions", dense.width)?;
        }
        let name = match self.side {
            Side::Query => "query",
            Side::Document => "document",
        };
        // A model with markers has them under the same names as prompts, and gets them as tokens.
        let marked = heads.multi.is_some() && heads.dense.is_none();
        let by_side = if marked { None } else { model.files.prompts.name_for(name) };
        let preparation = Preparation {
            truncation: self.truncation,
            prompt: match self.prompt_name.as_deref().or(by_side) {
                None if marked => None,
                name => inputs::prompt(model, name)?,
            },
            side: heads.multi.is_some().then_some(self.side),
            wants: self.wants,
        };
        let computed = inputs::compute(model, list, preparation).await?;
        let encoded = computed.outputs.into_iter().zip(&computed.ids);
        Ok((encoded.map(|(output, ids)| self.finish(model, output, ids)).collect(), computed.tokens))
    }

    fn finish(&self, model: &Served, output: Output, ids: &[u32]) -> Encoded {
        // The first tokens have no vector where the model leaves them out.
        let ids = &ids[ids.len() - output.multi.len().min(ids.len())..];
        let counts = |id: u32| self.side == Side::Query || !model.tokenizer.is_skipped(id);
        let multi =
            output.multi.into_iter().zip(ids).filter(|(_, id)| counts(**id)).map(|(vector, _)| vector);
        let (indices, values) = output.sparse.into_iter().unzip();
        let as_trained = || model.files.heads.dense.as_ref().is_none_or(|head| head.normalized);
        let normalize = self.normalize.unwrap_or_else(as_trained);
        Encoded {
            multi_vector: self.wants.multi.then(|| multi.collect()),
            sparse: self.wants.sparse.then_some(Sparse { indices, values }),
            dense: self.wants.vector.then(|| inputs::finish(output.vector, self.dimensions, normalize)),
        }
    }
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
