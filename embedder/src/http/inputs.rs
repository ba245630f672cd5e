//! Inputs of requests: texts or token ids, one or many; how they become tokens and then numbers.

use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::room::{self, Room};
use super::{Served, cost};
use crate::batch::{INTERACTIVE_INPUTS, Kind};
use crate::model::{self, Input, Output, Side, TextTokenizer, TokenizeError, Truncation, Wants, normalize};

/// `"text"`, `["text", …]`, `[1, 2]` (the ids of one text) or `[[1, 2], …]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a text, a list of texts, a list of token ids or a list of such lists"
)]
pub(super) enum Inputs {
    Text(String),
    Ids(Vec<u32>),
    Many(Vec<OneInput>),
}

/// One text, as itself or as the ids of its tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text or a list of token ids")]
pub(super) enum OneInput {
    Text(String),
    Ids(Vec<u32>),
}

/// Which end of an input that is too long goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum Direction {
    #[serde(alias = "left")]
    Left,
    #[default]
    #[serde(alias = "right")]
    Right,
}

/// How vectors are wanted.
pub(super) struct VectorOptions {
    pub(super) truncation: Truncation,
    pub(super) prompt: Option<String>,
    pub(super) normalize: bool,
    pub(super) dimensions: Option<usize>,
}

/// Vectors in the order of the inputs, and the tokens that they took.
pub(super) struct Vectors {
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) tokens: usize,
}

impl Inputs {
    /// The inputs in a request's `field` as a list, which is never empty.
    pub(super) fn into_list(self, field: &str) -> Result<Vec<OneInput>, ApiError> {
        let list = match self {
            Self::Text(text) => vec![OneInput::Text(text)],
            // `[]` reads as a list of no ids, and means no input.
            Self::Ids(ids) if ids.is_empty() => Vec::new(),
            Self::Ids(ids) => vec![OneInput::Ids(ids)],
            Self::Many(inputs) => inputs,
        };
        if list.is_empty() {
            return Err(ApiError::empty(format!("{field} is []: give at least one text")));
        }
        let ids: usize = list.iter().map(OneInput::ids).sum();
        if let Some(room) = Room::of_request().filter(|_| ids > 0) {
            room.take_ids(field, ids)?;
        }
        Ok(list)
    }
}

impl OneInput {
    /// How many token ids it is made of; a text of none.
    fn ids(&self) -> usize {
        match self {
            Self::Text(_) => 0,
            Self::Ids(ids) => ids.len(),
        }
    }

    /// Characters of a text; those of ids nobody sent.
    fn characters(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Ids(_) => 0,
        }
    }

    pub(super) fn into_text(self, tokenizer: &TextTokenizer) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Ids(ids) => Ok(tokenizer.decode_input(&ids)?),
        }
    }
}

/// Reads what is true or false. `null` means what its absence does, as in every other field that may be left out.
pub(super) fn flag<'de, D: Deserializer<'de>, const ABSENT: bool>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<bool>::deserialize(deserializer)?.unwrap_or(ABSENT))
}

/// What stands where a field that is true unless the request says otherwise is left out.
pub(super) fn yes() -> bool {
    true
}

/// What a request's `truncate` and `truncation_direction` mean; inputs are cut unless the request says otherwise.
pub(super) fn truncation(truncate: Option<bool>, direction: Option<Direction>) -> Truncation {
    match (truncate, direction.unwrap_or_default()) {
        (Some(false), _) => Truncation::Refuse,
        (_, Direction::Right) => Truncation::DropEnd,
        (_, Direction::Left) => Truncation::DropStart,
    }
}

/// The prompt that the model's files give for a name, or for no name.
pub(super) fn prompt(model: &Served, name: Option<&str>) -> Result<Option<String>, ApiError> {
    let prompts = &model.files.prompts;
    let Some(name) = name.or(prompts.default.as_deref()) else { return Ok(None) };
    prompts.by_name.get(name).cloned().map(Some).ok_or_else(|| {
        let known: Vec<&str> = prompts.by_name.keys().map(String::as_str).collect();
        ApiError::validation(format!("the model has no prompt {name:?}; it has {known:?}"))
    })
}

/// Tokenizes beside the threads that serve, on all cores where there is much to do. A few items don't share these cores: they would
/// wait for all that a bulk request has there. What nobody waits for any more is left where it is.
pub(super) async fn tokenize<T, U, F>(items: Vec<T>, tokenize: F) -> Result<Vec<U>, ApiError>
where
    T: Send + 'static,
    U: Send + 'static,
    F: Fn(T) -> Result<U, ApiError> + Send + Sync + 'static,
{
    let gone = CancellationToken::new();
    let client = gone.clone().drop_guard();
    let tokenize = move |item: T| {
        if gone.is_cancelled() {
            return Err(ApiError::unhealthy("the client is gone"));
        }
        tokenize(item)
    };
    let all = move || {
        if items.len() <= INTERACTIVE_INPUTS {
            items.into_iter().map(tokenize).collect()
        } else {
            items.into_par_iter().map(tokenize).collect()
        }
    };
    let tokenized = tokio::task::spawn_blocking(all)
        .await
        .map_err(|error| ApiError::backend(format!("tokenizing the inputs: {error}")));
    drop(client);
    tokenized?
}

/// What went into the engine and what came out.
pub(super) struct Run {
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<Output>,
    /// Tokens of all inputs.
    pub(super) tokens: usize,
}

/// Makes inputs of `items`, which have so many `characters`, and computes them; the request is told what it cost. A request
/// that the engine would refuse is refused before anything is made of it, and one that would take too much memory before anything is
/// computed.
pub(super) async fn run<T, F>(
    model: &Served,
    items: Vec<T>,
    characters: usize,
    prepare: F,
) -> Result<Run, ApiError>
where
    T: Send + 'static,
    F: Fn(T) -> Result<Input, ApiError> + Send + Sync + 'static,
{
    model.engine.admit()?;
    let started = Instant::now();
    let (room, files, count) = (Room::of_request(), Arc::clone(&model.files), items.len());
    let bounded = move |item: T| -> Result<Input, ApiError> {
        let input = prepare(item)?;
        if let Some(room) = &room {
            room.take(room::numbers(&files, &input), count)?;
        }
        Ok(input)
    };
    let inputs = tokenize(items, bounded).await?;
    let tokenization = started.elapsed();
    let tokens = inputs.iter().map(Input::len).sum();
    let outputs = model.engine.run_as(Kind::of(inputs.len()), inputs.clone()).await?;
    let (outputs, waited): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
    cost::add(characters, tokens, tokenization, &waited);
    Ok(Run { inputs, outputs, tokens })
}

/// What was computed of a request's inputs, in their order.
pub(super) struct Computed {
    pub(super) outputs: Vec<Output>,
    /// The ids of each input's tokens.
    pub(super) ids: Vec<Vec<u32>>,
    /// Tokens of all inputs.
    pub(super) tokens: usize,
}

/// How texts become inputs.
pub(super) struct Preparation {
    pub(super) truncation: Truncation,
    pub(super) prompt: Option<String>,
    /// Marks the texts for a model with one vector a token.
    pub(super) side: Option<Side>,
    pub(super) wants: Wants,
}

/// Computes what is wanted of a list of inputs.
pub(super) async fn compute(
    model: &Arc<Served>,
    list: Vec<OneInput>,
    preparation: Preparation,
) -> Result<Computed, ApiError> {
    let tokenizer = model.tokenizer.clone();
    let prepare = move |input: OneInput| {
        let Preparation { truncation, prompt, side, wants } = &preparation;
        let text = input.into_text(&tokenizer)?;
        let prompt = prompt.as_deref().unwrap_or_default();
        let mut input = match side {
            Some(side) => tokenizer.marked(prompt, &text, *side, *truncation)?,
            None => tokenizer.prompted(prompt, &text, *truncation)?,
        };
        input.wants = *wants;
        Ok(input)
    };
    let characters = list.iter().map(OneInput::characters).sum();
    let Run { inputs, outputs, tokens } = run(model, list, characters, prepare).await?;
    Ok(Computed { outputs, ids: inputs.into_iter().map(|input| input.ids).collect(), tokens })
}

/// The part of each text that `most` of its tokens cover, as many as a request's `field` says.
pub(super) async fn excerpts(
    model: &Arc<Served>,
    texts: Vec<String>,
    field: &'static str,
    most: usize,
    truncation: Truncation,
) -> Result<Vec<String>, ApiError> {
    model.engine.admit()?;
    let tokenizer = model.tokenizer.plain();
    let cut = move |text: String| match model::excerpt(&tokenizer, &text, most, truncation) {
        Ok(part) => Ok(part.to_owned()),
        // It is the request that takes no more, and not the model.
        Err(TokenizeError::TooLong { .. } | TokenizeError::FarTooLong { .. }) => Err(ApiError::too_long(
            format!("an input has more tokens than {field}, which is {most}: shorten it or set `truncate`"),
        )),
        Err(error) => Err(error.into()),
    };
    tokenize(texts, cut).await
}

/// Embeds a list of inputs as a request wants it.
pub(super) async fn embed(
    model: &Arc<Served>,
    list: Vec<OneInput>,
    options: VectorOptions,
) -> Result<Vectors, ApiError> {
    let VectorOptions { truncation, prompt, normalize: normalized, dimensions } = options;
    let Some(dense) = &model.files.heads.dense else {
        return Err(ApiError::backend(
            "the model gives no vector for a whole text: it is no embedding model",
        ));
    };
    shorter_than(dimensions, "dimensions", dense.width)?;
    let preparation = Preparation { truncation, prompt, side: None, wants: Wants::VECTOR };
    let Computed { outputs, tokens, .. } = compute(model, list, preparation).await?;
    let vectors = outputs.into_iter().map(|output| finish(output.vector, dimensions, normalized)).collect();
    Ok(Vectors { vectors, tokens })
}

/// Refuses a wrong number of dimensions in a request's `field`.
pub(super) fn shorter_than(dimensions: Option<usize>, field: &str, width: usize) -> Result<(), ApiError> {
    match dimensions {
        Some(dimensions) if dimensions == 0 || dimensions > width => {
            Err(ApiError::validation(format!("{field} is {dimensions}; the model has 1 to {width}")))
        }
        _ => Ok(()),
    }
}

/// The first dimensions of a vector, with length one where that is wanted.
pub(super) fn finish(mut vector: Vec<f32>, dimensions: Option<usize>, normalized: bool) -> Vec<f32> {
    vector.truncate(dimensions.unwrap_or(usize::MAX));
    if normalized {
        normalize(&mut vector);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_in_all_four_forms() {
        let text = |text: &str| OneInput::Text(text.to_owned());
        let cases = [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![OneInput::Ids(vec![1, 2])]),
            ("[[1],[2,3]]", vec![OneInput::Ids(vec![1]), OneInput::Ids(vec![2, 3])]),
        ];
        for (json, expected) in cases {
            assert_eq!(
                serde_json::from_str::<Inputs>(json).unwrap().into_list("inputs").unwrap(),
                expected,
                "{json}"
            );
        }
        assert!(serde_json::from_str::<Inputs>("[]").unwrap().into_list("inputs").is_err());
        assert!(serde_json::from_str::<Inputs>(r#"{"a":1}"#).is_err());
    }

    #[tokio::test]
    async fn a_few_texts_do_not_wait_for_those_of_a_bulk_request() {
        // A bulk request that has all of the cores until the other one is answered.
        let (answered, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        rayon::spawn_broadcast(move |_| drop(wait.lock().map(|wait| wait.recv())));
        let few = tokenize(vec![1; INTERACTIVE_INPUTS], |number| Ok(number + 1));
        let few = tokio::time::timeout(std::time::Duration::from_secs(10), few).await;
        drop(answered);
        assert_eq!(few.unwrap().unwrap(), [2; INTERACTIVE_INPUTS]);
        assert_eq!(tokenize(vec![1; 100], |number| Ok(number + 1)).await.unwrap(), [2; 100]);
    }

    #[tokio::test]
    async fn what_a_client_no_longer_waits_for_is_not_tokenized() {
        let (begin, begun) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let left = std::sync::Mutex::new(left);
        let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Arc::clone(&done);
        let work = tokenize(vec![(); INTERACTIVE_INPUTS], move |()| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            begin.send(()).unwrap();
            left.lock().unwrap().recv().unwrap_err();
            Ok(())
        });
        let request = tokio::spawn(work);
        // The first one is under way until the client is gone.
        let begun = tokio::task::spawn_blocking(move || {
            begun.recv().unwrap();
            begun
        });
        let begun = begun.await.unwrap();
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        drop(leave);
        // The work has ended once nobody can say any more that something begins.
        let ended = tokio::task::spawn_blocking(move || begun.recv().is_err());
        assert!(ended.await.unwrap());
        assert_eq!(done.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[test]
    fn inputs_are_cut_unless_the_request_says_otherwise() {
        assert_eq!(truncation(None, None), Truncation::DropEnd);
        assert_eq!(truncation(None, Some(Direction::Right)), Truncation::DropEnd);
        assert_eq!(truncation(Some(true), Some(Direction::Left)), Truncation::DropStart);
        assert_eq!(truncation(Some(false), Some(Direction::Left)), Truncation::Refuse);
    }
}
