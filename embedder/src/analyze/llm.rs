//! Asking an LLM what kind of document a text is.

use super::heuristics::TYPES;
use crate::pipeline::OllamaConfig;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// How long the answer may take before the heuristics' stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of the document is shown, in characters.
const SHOWN: usize = 2000;

/// The kind that the LLM chooses.
///
/// # Errors
/// Why it did not.
pub async fn document_type(ollama: &OllamaConfig, text: &str) -> Result<&'static str, String> {
    #[derive(Deserialize)]
    struct Answer {
        response: String,
    }
    #[derive(Deserialize)]
    struct Choice {
        document_type: String,
    }
    let beginning: String = text.chars().take(SHOWN).collect();
    let question = json!({
        "model": ollama.model,
        "prompt": format!("Document:\n{beginning}\n\nWhich kind of document is it?"),
        "stream": false,
        "keep_alive": -1,
        "options": {"temperature": 0, "num_predict": 40},
        // Ollama holds the model to this schema, so that every answer is one of the kinds.
        "format": {"type": "object", "properties": {"document_type": {"enum": TYPES}}, "required": ["document_type"]},
    });
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().map_err(|error| error.to_string())?;
    let url = format!("{}/api/generate", ollama.url.trim_end_matches('/'));
    let response = client.post(&url).json(&question).send().await.map_err(|error| format!("{url}: {error}"))?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("{url}: {status}"));
    }
    let answer: Answer = response.json().await.map_err(|error| format!("{url}: {error}"))?;
    let choice: Choice = serde_json::from_str(&answer.response).map_err(|error| format!("the LLM answered {:?}: {error}", answer.response))?;
    let known = TYPES.into_iter().find(|kind| *kind == choice.document_type);
    known.ok_or_else(|| format!("the LLM answered with the unknown kind {:?}", choice.document_type))
}
