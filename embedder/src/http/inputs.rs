//! Inputs of requests: texts or token ids, one or many; how they become tokens and then numbers.

use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::Served;
use super::error::ApiError;
use crate::engine::normalize;
use crate::model::{Input, TextTokenizer, Truncation};

/// `"text"`, `["text", …]`, `[1, 2]` (the ids of one text) or `[[1, 2], …]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of token ids")]
pub(super) enum OneInput {
    Text(String),
    Ids(Vec<u32>),
}

/// Which end of an input that is too long goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
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
            Err(ApiError::empty(format!("{field} is []: give at least one text")))
        } else {
            Ok(list)
        }
    }
}

impl OneInput {
    pub(super) fn into_text(self, tokenizer: &TextTokenizer) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Ids(ids) => Ok(tokenizer.decode(&ids, true)?),
        }
    }
}

/// What a request's `truncate` and `truncation_direction` mean; inputs are cut unless the request says otherwise.
pub(super) fn truncation(truncate: Option<bool>, direction: Direction) -> Truncation {
    match (truncate, direction) {
        (Some(false), _) => Truncation::Refuse,
        (_, Direction::Right) => Truncation::DropEnd,
        (_, Direction::Left) => Truncation::DropStart,
    }
}

/// The prompt that the model's files give for a name.
pub(super) fn prompt(model: &Served, name: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    let prompts = &model.files.prompts;
    prompts.get(name).cloned().map(Some).ok_or_else(|| {
        let known: Vec<&str> = prompts.keys().map(String::as_str).collect();
        ApiError::validation(format!("the model has no prompt {name:?}; it has {known:?}"))
    })
}

/// Tokenizes beside the threads that serve, on all cores where there is much to do.
pub(super) async fn tokenize<T, F>(items: Vec<T>, tokenize: F) -> Result<Vec<Input>, ApiError>
where
    T: Send + 'static,
    F: Fn(T) -> Result<Input, ApiError> + Send + Sync + 'static,
{
    tokio::task::spawn_blocking(move || items.into_par_iter().map(tokenize).collect())
        .await
        .map_err(|error| ApiError::backend(format!("tokenizing the inputs: {error}")))?
}

/// Embeds a list of inputs as a request wants it.
pub(super) async fn embed(
    model: &Arc<Served>,
    list: Vec<OneInput>,
    options: VectorOptions,
) -> Result<Vectors, ApiError> {
    let VectorOptions { truncation, prompt, normalize: normalized, dimensions } = options;
    if let Some(dimensions) = dimensions {
        let width = model.files.config.hidden_size;
        if dimensions == 0 || dimensions > width {
            return Err(ApiError::validation(format!(
                "dimensions is {dimensions}; the model has 1 to {width}"
            )));
        }
    }
    let tokenizer = model.tokenizer.clone();
    let inputs = tokenize(list, move |input| {
        let text = input.into_text(&tokenizer)?;
        let text = prompt.as_ref().map_or_else(|| text.clone(), |prompt| format!("{prompt}{text}"));
        Ok(tokenizer.text(&text, truncation)?)
    })
    .await?;
    let tokens = inputs.iter().map(Input::len).sum();
    let mut vectors = model.engine.run(inputs).await?;
    for vector in &mut vectors {
        vector.truncate(dimensions.unwrap_or(usize::MAX));
        if normalized {
            normalize(vector);
        }
    }
    Ok(Vectors { vectors, tokens })
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

    #[test]
    fn inputs_are_cut_unless_the_request_says_otherwise() {
        assert_eq!(truncation(None, Direction::Right), Truncation::DropEnd);
        assert_eq!(truncation(Some(true), Direction::Left), Truncation::DropStart);
        assert_eq!(truncation(Some(false), Direction::Left), Truncation::Refuse);
    }
}
