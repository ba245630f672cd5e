//! `POST /predict` of text-embeddings-inference: scores of all labels for texts or pairs.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, Dialect, answer};
use super::inputs::{self, Direction};
use super::rerank::sigmoid;
use super::{App, parse};

/// What is classified.
#[derive(Deserialize, JsonSchema)]
pub(super) struct PredictRequest {
    inputs: Sequences,
    /// Whether inputs that are too long are cut; they are where nothing is said.
    truncate: Option<bool>,
    /// Which end of them goes; the right one where nothing is said.
    truncation_direction: Option<Direction>,
    /// Logits instead of probabilities.
    #[serde(default, deserialize_with = "inputs::flag::<_, false>")]
    raw_scores: bool,
}

/// `"text"`, `["text", "other"]` (a pair), or a list of `["text"]` and `["text", "other"]`.
#[derive(Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a text, a pair of texts, or a list of such, each in a list of its own"
)]
enum Sequences {
    Text(String),
    One(Vec<String>),
    Many(Vec<Vec<String>>),
}

/// One text, or a pair.
struct Sequence(String, Option<String>);

/// One label.
#[derive(Serialize, JsonSchema)]
pub(super) struct Prediction {
    score: f32,
    label: String,
}

/// The labels of one input, or of several; the likeliest first.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Predictions {
    One(Vec<Prediction>),
    Many(Vec<Vec<Prediction>>),
}

pub(super) async fn predict(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Response {
    answer(respond(&app, body).await, Dialect::Tei)
}

async fn respond(app: &App, body: Result<Bytes, BytesRejection>) -> Result<Json<Predictions>, ApiError> {
    Ok(Json(predictions(app, parse(body)?).await?))
}

/// What `/predict` answers.
pub(super) async fn predictions(app: &App, request: PredictRequest) -> Result<Predictions, ApiError> {
    let truncation = inputs::truncation(request.truncate, request.truncation_direction);
    let (sequences, single) = match request.inputs {
        Sequences::Text(text) => (vec![vec![text]], true),
        Sequences::One(texts) if texts.is_empty() => (Vec::new(), true),
        Sequences::One(texts) => (vec![texts], true),
        Sequences::Many(list) => (list, false),
    };
    if sequences.is_empty() {
        return Err(ApiError::empty("inputs is []: give at least one text"));
    }
    let sequences = sequences.into_iter().map(Sequence::of).collect::<Result<Vec<_>, _>>()?;
    let tokenizer = app.model.tokenizer.clone();
    let characters = sequences.iter().map(Sequence::characters).sum();
    let prepare = move |Sequence(text, other): Sequence| {
        Ok(match other {
            Some(other) => tokenizer.pair(&text, &other, truncation)?,
            None => tokenizer.text(&text, truncation)?,
        })
    };
    let outputs = inputs::run(&app.model, sequences, characters, prepare).await?.outputs;
    let labels = app.model.files.heads.labels.as_deref().unwrap_or_default();
    let mut predictions: Vec<Vec<Prediction>> = outputs
        .into_iter()
        .map(|output| {
            rank(labels, if request.raw_scores { output.vector } else { probabilities(&output.vector) })
        })
        .collect();
    Ok(match (single, predictions.pop()) {
        (true, Some(only)) => Predictions::One(only),
        (_, last) => Predictions::Many(predictions.into_iter().chain(last).collect()),
    })
}

impl Sequence {
    fn characters(&self) -> usize {
        self.0.chars().count() + self.1.as_ref().map_or(0, |other| other.chars().count())
    }

    fn of(texts: Vec<String>) -> Result<Self, ApiError> {
        let count = texts.len();
        let mut texts = texts.into_iter();
        match (texts.next(), texts.next(), texts.next()) {
            (Some(text), other, None) => Ok(Self(text, other)),
            _ => Err(ApiError::validation(format!(
                "an input has {count} texts: give one, or the two of a pair"
            ))),
        }
    }
}

/// One label stands for itself, several exclude one another.
fn probabilities(logits: &[f32]) -> Vec<f32> {
    if let [logit] = logits {
        return vec![sigmoid(*logit)];
    }
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let total: f32 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}

fn rank(labels: &[String], scores: Vec<f32>) -> Vec<Prediction> {
    let mut ranked: Vec<Prediction> =
        labels.iter().zip(scores).map(|(label, score)| Prediction { score, label: label.clone() }).collect();
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_read_in_all_forms() {
        let read = |json: &str| serde_json::from_str::<Sequences>(json);
        assert!(matches!(read(r#""a""#), Ok(Sequences::Text(_))));
        assert!(matches!(read(r#"["a","b"]"#), Ok(Sequences::One(pair)) if pair.len() == 2));
        assert!(matches!(read(r#"[["a"],["b","c"]]"#), Ok(Sequences::Many(list)) if list.len() == 2));
        assert!(read("5").is_err());
    }

    #[test]
    fn probabilities_add_up_unless_there_is_but_one_label() {
        let three = probabilities(&[1000.0, 999.0, -5.0]);
        assert!((three.iter().sum::<f32>() - 1.0).abs() < 1e-6 && (three[0] - 0.731_058_6).abs() < 1e-5);
        assert_eq!(probabilities(&[0.0]), [0.5]);
    }
}
