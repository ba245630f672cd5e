//! Asking an LLM what kind of document a text is.

use super::heuristics::TYPES;
use crate::ollama::{self, Client, OllamaConfig, Question};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// How long the answer may take before the heuristics' stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of the document is shown, in bytes: fits into the context window even if every byte is a token.
const SHOWN: usize = 3000;
/// Most tokens of an answer: the longest kind in its JSON has about ten.
const ANSWER_TOKENS: usize = 40;

/// The kind that the LLM chooses.
///
/// # Errors
/// Why it did not.
pub async fn document_type(config: &OllamaConfig, text: &str) -> Result<&'static str, String> {
    #[derive(Deserialize)]
    struct Choice {
        document_type: String,
    }
    let answer = tokio::time::timeout(PATIENCE, ask(config, text)).await.map_err(|_| {
        format!("no instance of {} answered in {} s", config.hosts.join(", "), PATIENCE.as_secs())
    })??;
    let choice: Choice =
        serde_json::from_str(&answer).map_err(|error| format!("the LLM answered {answer:?}: {error}"))?;
    let known = TYPES.into_iter().find(|kind| *kind == choice.document_type);
    known.ok_or_else(|| format!("the LLM answered with the unknown kind {:?}", choice.document_type))
}

/// The first answer that an instance gives.
async fn ask(config: &OllamaConfig, text: &str) -> Result<String, String> {
    let prompt =
        format!("Document:\n{}\n\nWhich kind of document is it?", &text[..text.floor_char_boundary(SHOWN)]);
    // Ollama holds the model to this schema, so that every answer is one of the kinds.
    let schema = json!({"type": "object", "properties": {"document_type": {"enum": TYPES}}, "required": ["document_type"]});
    let question = Question { prompt: &prompt, most_tokens: ANSWER_TOKENS, format: Some(&schema) };
    let client = Client::new(&config.model)?;
    let mut failure = format!("{} has no address", config.hosts.join(", "));
    for instance in ollama::resolve(&config.hosts).await? {
        match client.ask(instance, question).await {
            Ok(answer) => return Ok(answer.response),
            Err(error) => failure = error.to_string(),
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ollama::tests::{pool, stand_in, well};
    use axum::http::StatusCode;

    #[tokio::test]
    async fn the_llm_chooses_and_a_failing_instance_is_passed_over() {
        let (broken, _) =
            stand_in(|_| (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "out of order" }))).await;
        let (good, asked) = stand_in(|_| well(r#"{"document_type":"contract"}"#)).await;
        let text = "数".repeat(5000);
        assert_eq!(document_type(&pool(&[&broken, &good]), &text).await, Ok("contract"));
        let question = asked.lock().unwrap()[0].clone();
        assert_eq!(
            question["options"]["num_ctx"],
            ollama::CONTEXT_WINDOW,
            "as the pipeline asks, or the model is loaded anew"
        );
        assert!(question["prompt"].as_str().unwrap().len() < SHOWN + 100);
        assert!(document_type(&pool(&[&broken]), &text).await.unwrap_err().contains("out of order"));
    }
}
