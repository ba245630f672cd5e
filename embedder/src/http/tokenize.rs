//! `POST /tokenize` and `POST /decode` of text-embeddings-inference: the tokens of texts, with their places in characters,
//! and the texts of tokens.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Inputs, OneInput};
use super::room::{BYTE, Room};
use super::{App, parse};

/// What is cut into tokens.
#[derive(Deserialize, JsonSchema)]
pub(super) struct TokenizeRequest {
    inputs: Inputs,
    /// Whether the tokens that the model puts around a text are among them.
    #[serde(default = "inputs::yes", deserialize_with = "inputs::flag::<_, true>")]
    add_special_tokens: bool,
    /// A prompt of the model's files that is put before each input.
    prompt_name: Option<String>,
}

/// One token.
#[derive(Serialize, JsonSchema)]
pub(super) struct Token {
    id: u32,
    text: String,
    special: bool,
    /// First character, where the token stands in the text.
    start: Option<usize>,
    /// Character behind the last one.
    stop: Option<usize>,
}

pub(super) async fn tokenize(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Vec<Vec<Token>>>, ApiError> {
    let request: TokenizeRequest = parse(body)?;
    let prompt = inputs::prompt(&app.model, request.prompt_name.as_deref())?.unwrap_or_default();
    let list = request.inputs.into_list("inputs")?;
    let tokenizer = app.model.tokenizer.clone();
    let take = taker(list.len());
    let tokenize = move |input: OneInput| {
        let text = format!("{prompt}{}", input.into_text(&tokenizer)?);
        take(text.len())?;
        tokens(&tokenizer.plain(), &text, request.add_special_tokens)
    };
    inputs::tokenize(list, tokenize).await.map(Json)
}

/// Takes room of the request for so many bytes or tokens of one of its `inputs`, before anything is made of them.
fn taker(inputs: usize) -> impl Fn(usize) -> Result<(), ApiError> + Send + Sync + 'static {
    let room = Room::of_request();
    move |count| room.as_ref().map_or(Ok(()), |room| room.take(BYTE.saturating_mul(count), inputs))
}

/// What is put together again.
#[derive(Deserialize, JsonSchema)]
pub(super) struct DecodeRequest {
    ids: Ids,
    /// Whether the tokens that the model puts around a text are left out.
    #[serde(default = "inputs::yes", deserialize_with = "inputs::flag::<_, true>")]
    skip_special_tokens: bool,
}

/// The token ids of one text or of several.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of token ids or a list of such lists")]
enum Ids {
    One(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

pub(super) async fn decode(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond_decode(&app, body).await, Dialect::Tei)
}

async fn respond_decode(
    app: &App,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Vec<String>>, ApiError> {
    let request: DecodeRequest = parse(body)?;
    let list = match request.ids {
        Ids::One(ids) if ids.is_empty() => Vec::new(),
        Ids::One(ids) => vec![ids],
        Ids::Many(lists) => lists,
    };
    if list.is_empty() {
        return Err(ApiError::empty("ids is []: give the ids of at least one token"));
    }
    let tokenizer = app.model.tokenizer.clone();
    let take = taker(list.len());
    let text = move |ids: Vec<u32>| {
        take(ids.len())?;
        Ok(tokenizer.decode(&ids, request.skip_special_tokens)?)
    };
    inputs::tokenize(list, text).await.map(Json)
}

fn tokens(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<Token>, ApiError> {
    let encoding = tokenizer
        .encode_char_offsets(text, add_special_tokens)
        .map_err(|error| ApiError::validation(format!("tokenizing an input: {error}")))?;
    let characters: Vec<char> = text.chars().collect();
    let parts = encoding.get_ids().iter().zip(encoding.get_tokens()).zip(encoding.get_special_tokens_mask());
    Ok(parts
        .zip(encoding.get_offsets())
        .map(|(((id, token), special), (start, stop))| {
            if *special == 1 {
                return Token { id: *id, text: token.clone(), special: true, start: None, stop: None };
            }
            let text =
                characters.get(*start..*stop).map_or_else(|| token.clone(), |part| part.iter().collect());
            Token { id: *id, text, special: false, start: Some(*start), stop: Some(*stop) }
        })
        .collect())
}
