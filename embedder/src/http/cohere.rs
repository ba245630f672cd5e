//! `POST /v2/embed` of Cohere: vectors as floats, as bytes and as bits.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::access::request_id;
use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, OneInput, VectorOptions};
use super::{App, parse};
use crate::model::Truncation;

/// What is embedded. `model` is accepted and says nothing: one model is served.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "CohereEmbedRequest")]
pub(super) struct EmbedRequest {
    /// The texts, or `inputs`.
    texts: Option<Vec<String>>,
    /// The texts in the form that also takes images, which are refused.
    inputs: Option<Vec<Mixed>>,
    /// Chooses the model's prompt for it, where it has one.
    input_type: Option<InputType>,
    /// Floats where nothing is said.
    embedding_types: Option<Vec<Kind>>,
    /// How many of the first dimensions are kept.
    #[schemars(range(min = 1))]
    output_dimension: Option<usize>,
    /// Most tokens of a text.
    max_tokens: Option<usize>,
    /// Which end of texts that are too long goes, the end where nothing is said; `NONE` refuses them.
    truncate: Option<Truncate>,
}

#[derive(Deserialize, JsonSchema)]
struct Mixed {
    /// Its parts, which are put together as lines.
    content: Vec<Content>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content {
    Text {
        /// What it says.
        text: String,
    },
}

#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum InputType {
    SearchQuery,
    SearchDocument,
    Classification,
    Clustering,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Float,
    Int8,
    Uint8,
    Binary,
    Ubinary,
    Base64,
}

#[derive(Deserialize, JsonSchema, Clone, Copy, Default)]
#[serde(rename_all = "UPPERCASE")]
enum Truncate {
    None,
    Start,
    #[default]
    End,
}

/// The vectors in every form that was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CohereEmbedResponse")]
pub(super) struct EmbedResponse {
    id: String,
    embeddings: Embeddings,
    texts: Vec<String>,
    meta: Meta,
    /// Always `embeddings_by_type`.
    response_type: &'static str,
}

#[derive(Serialize, JsonSchema, Default)]
struct Embeddings {
    #[serde(skip_serializing_if = "Option::is_none")]
    float: Option<Vec<Vec<f32>>>,
    /// Each vector scaled so that its largest component is 127.
    #[serde(skip_serializing_if = "Option::is_none")]
    int8: Option<Vec<Vec<i8>>>,
    /// The same plus 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    uint8: Option<Vec<Vec<u8>>>,
    /// The signs, eight to a number, less 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<Vec<Vec<i8>>>,
    /// The signs, eight to a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    ubinary: Option<Vec<Vec<u8>>>,
    /// The floats, little-endian.
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<Vec<String>>,
}

/// Version and what was computed.
#[derive(Serialize, JsonSchema)]
pub(super) struct Meta {
    api_version: ApiVersion,
    billed_units: Units,
}

#[derive(Serialize, JsonSchema)]
struct ApiVersion {
    version: &'static str,
}

#[derive(Serialize, JsonSchema, Default)]
struct Units {
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    search_units: Option<usize>,
}

impl Meta {
    fn of(billed_units: Units) -> Self {
        Self { api_version: ApiVersion { version: "2" }, billed_units }
    }

    /// The meta data of one search.
    pub(super) fn search() -> Self {
        Self::of(Units { search_units: Some(1), ..Units::default() })
    }
}

pub(super) async fn embed(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Cohere)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<EmbedResponse>, ApiError> {
    let request: EmbedRequest = parse(body)?;
    let texts = match (request.texts, request.inputs) {
        (Some(texts), None) => texts,
        (None, Some(inputs)) => inputs.into_iter().map(Mixed::into_text).collect(),
        (None, None) => return Err(ApiError::validation("the request has neither texts nor inputs")),
        (Some(_), Some(_)) => return Err(ApiError::validation("the request has texts and inputs: give one")),
    };
    if texts.is_empty() {
        return Err(ApiError::empty("texts is []: give at least one text"));
    }
    if let Some(dense) = &app.model.files.heads.dense {
        inputs::shorter_than(request.output_dimension, "output_dimension", dense.width)?;
    }
    let truncation = match request.truncate.unwrap_or_default() {
        Truncate::None => Truncation::Refuse,
        Truncate::Start => Truncation::DropStart,
        Truncate::End => Truncation::DropEnd,
    };
    let options = VectorOptions {
        truncation,
        prompt: request
            .input_type
            .map_or_else(|| inputs::prompt(&app.model, None), |kind| kind.prompt(app))?,
        normalize: true,
        dimensions: request.output_dimension,
    };
    let list = match request.max_tokens {
        Some(most) => inputs::excerpts(&app.model, texts.clone(), "max_tokens", most, truncation).await?,
        None => texts.clone(),
    };
    let list = list.into_iter().map(OneInput::Text).collect();
    let embedded = inputs::embed(&app.model, list, options).await?;
    let kinds = request.embedding_types.unwrap_or_else(|| vec![Kind::Float]);
    Ok(Json(EmbedResponse {
        id: request_id(),
        embeddings: Embeddings::of(embedded.vectors, &kinds),
        texts,
        meta: Meta::of(Units { input_tokens: Some(embedded.tokens), ..Units::default() }),
        response_type: "embeddings_by_type",
    }))
}

impl Mixed {
    fn into_text(self) -> String {
        let texts = self.content.into_iter().map(|Content::Text { text }| text);
        texts.collect::<Vec<_>>().join("\n")
    }
}

impl InputType {
    fn prompt(self, app: &App) -> Result<Option<String>, ApiError> {
        let name = match self {
            Self::SearchQuery => "query",
            Self::SearchDocument => "document",
            Self::Classification => "classification",
            Self::Clustering => "clustering",
        };
        inputs::prompt(&app.model, app.model.files.prompts.name_for(name))
    }
}

impl Embeddings {
    fn of(vectors: Vec<Vec<f32>>, kinds: &[Kind]) -> Self {
        let wanted = |kind: Kind| kinds.contains(&kind);
        let bits = || vectors.iter().map(|vector| signs(vector));
        Self {
            int8: wanted(Kind::Int8).then(|| vectors.iter().map(|vector| bytes(vector)).collect()),
            uint8: wanted(Kind::Uint8).then(|| {
                let shifted = |vector: &Vec<f32>| bytes(vector).into_iter().map(unsigned).collect();
                vectors.iter().map(shifted).collect()
            }),
            binary: wanted(Kind::Binary)
                .then(|| bits().map(|bits| bits.into_iter().map(signed).collect()).collect()),
            ubinary: wanted(Kind::Ubinary).then(|| bits().collect()),
            base64: wanted(Kind::Base64)
                .then(|| vectors.iter().map(|vector| floats_base64(vector)).collect()),
            float: wanted(Kind::Float).then_some(vectors),
        }
    }
}

/// The floats of a vector in little-endian order, as base64.
pub(super) fn floats_base64(vector: &[f32]) -> String {
    STANDARD.encode(vector.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// Directions survive a scale of each vector's own, and all eight bits are used.
fn bytes(vector: &[f32]) -> Vec<i8> {
    let largest = vector.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "within ±127")]
    vector.iter().map(|value| (value * scale).round() as i8).collect()
}

fn signs(vector: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        (0..8).fold(0, |byte, place| byte << 1 | u8::from(eight.get(place).is_some_and(|value| *value > 0.0)))
    };
    vector.chunks(8).map(byte).collect()
}

/// Less 128, as the other side expects signed numbers.
fn signed(byte: u8) -> i8 {
    (byte ^ 0x80).cast_signed()
}

fn unsigned(byte: i8) -> u8 {
    byte.cast_unsigned() ^ 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_bits_are_packed_as_numpy_packs_them() {
        let vector = [0.5, -0.25, 0.0, 0.125, -0.5, 0.5, 0.1, -0.1, 0.2];
        assert_eq!(bytes(&vector), [127, -64, 0, 32, -127, 127, 25, -25, 51]);
        assert_eq!(bytes(&vector).into_iter().map(unsigned).collect::<Vec<_>>()[..3], [255, 64, 128]);
        // numpy.packbits(vector > 0), and the same less 128.
        assert_eq!(signs(&vector), [0b1001_0110, 0b1000_0000]);
        assert_eq!(signs(&vector).into_iter().map(signed).collect::<Vec<_>>(), [22, 0]);
        assert_eq!(signed(0), -128);
        assert_eq!(bytes(&[0.0, 0.0]), [0, 0]);
    }
}
