//! Asking an LLM what kind of document a text is: one of a pool of Ollamas, or one behind OpenAI's API.

use super::heuristics::TYPES;
use super::openai::{self, OpenAiConfig};
use crate::ollama::{Client, OllamaConfig, Question};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the answer may take before the heuristics' stands.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of the document is shown, in bytes: fits into the context window even if every byte is a token.
const SHOWN: usize = 3000;
/// Most tokens of an answer: the longest kind in its JSON has about ten.
const ANSWER_TOKENS: usize = 40;

/// Who is asked.
#[derive(Clone, Debug)]
pub enum Llm {
    /// A pool of Ollamas, the first that answers.
    Ollama(OllamaConfig),
    /// A server that speaks OpenAI's API.
    OpenAi(OpenAiConfig),
}

impl Llm {
    /// The kind of a document.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn document_type(&self, text: &str) -> Result<&'static str, String> {
        #[derive(Deserialize)]
        struct Choice {
            document_type: String,
        }
        let prompt = format!(
            "Document:\n{}\n\nWhich kind of document is it? Answer in JSON, such as {{\"document_type\": \"{}\"}}; the kinds are {}.",
            &text[..text.floor_char_boundary(SHOWN)],
            TYPES[0],
            TYPES.join(", ")
        );
        // The server holds the model to this schema, so that every answer is one of the kinds.
        let schema = json!({
            "type": "object",
            "properties": { "document_type": { "type": "string", "enum": TYPES } },
            "required": ["document_type"],
            "additionalProperties": false,
        });
        let answer = tokio::time::timeout(PATIENCE, self.ask(&prompt, &schema))
            .await
            .map_err(|_| format!("{} gave no answer in {} s", self.in_words(), PATIENCE.as_secs()))??;
        let choice: Choice =
            serde_json::from_str(&answer).map_err(|error| format!("the LLM answered {answer:?}: {error}"))?;
        let known = TYPES.into_iter().find(|kind| *kind == choice.document_type);
        known.ok_or_else(|| format!("the LLM answered with the unknown kind {:?}", choice.document_type))
    }

    async fn ask(&self, prompt: &str, schema: &Value) -> Result<String, String> {
        match self {
            Self::Ollama(config) => ask_ollama(config, prompt, schema).await,
            Self::OpenAi(config) => openai::ask(config, prompt, schema, ANSWER_TOKENS).await,
        }
    }

    fn in_words(&self) -> String {
        match self {
            Self::Ollama(config) => config.hosts_in_words(),
            Self::OpenAi(config) => config.url.to_string(),
        }
    }
}

/// The first answer that an instance gives.
async fn ask_ollama(config: &OllamaConfig, prompt: &str, schema: &Value) -> Result<String, String> {
    let question = Question { prompt, most_tokens: ANSWER_TOKENS, format: Some(schema) };
    let client = Client::new(config)?;
    let mut failure = format!("{} has no address", config.hosts_in_words());
    for instance in client.find().await? {
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
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use axum::{Json, Router};

    #[tokio::test]
    async fn the_llm_chooses_and_a_failing_instance_is_passed_over() {
        let (broken, _) =
            stand_in(|_| (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "out of order" }))).await;
        let (good, asked) = stand_in(|_| well(r#"{"document_type":"contract"}"#)).await;
        let text = "数".repeat(5000);
        let kind = async |urls: &[&str]| Llm::Ollama(pool(urls)).document_type(&text).await;
        assert_eq!(kind(&[&broken, &good]).await, Ok("contract"));
        let question = asked.lock().unwrap()[0].clone();
        assert_eq!(question["options"]["num_ctx"], 4096, "as the pipeline asks, or the model is loaded anew");
        assert!(question["prompt"].as_str().unwrap().len() < SHOWN + 300);
        assert!(kind(&[&broken]).await.unwrap_err().contains("out of order"));
    }

    #[tokio::test]
    async fn a_server_with_openais_api_is_asked_with_its_key() {
        let answer = post(|headers: HeaderMap, Json(question): Json<Value>| async move {
            if headers.get("authorization").is_none_or(|key| key != "Bearer secret") {
                return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "no such key" } })));
            }
            assert_eq!((&question["model"], &question["temperature"]), (&json!("m"), &json!(0)));
            assert_eq!(
                question["response_format"]["json_schema"]["schema"]["required"],
                json!(["document_type"])
            );
            let content = json!({ "document_type": "faq" }).to_string();
            (
                StatusCode::OK,
                Json(json!({ "choices": [{ "message": { "role": "assistant", "content": content } }] })),
            )
        });
        let router = Router::new().route("/v1/chat/completions", answer);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let with_key = |key: Option<&str>| {
            let (url, model) = (url.parse().unwrap(), "m".to_owned());
            Llm::OpenAi(OpenAiConfig { url, model, key: key.map(ToOwned::to_owned) })
        };
        assert_eq!(with_key(Some("secret")).document_type("Q: why? A: so.").await, Ok("faq"));
        let refused = with_key(None).document_type("Q: why? A: so.").await.unwrap_err();
        assert!(refused.contains("401") && refused.contains("no such key"), "{refused}");
        assert!(!format!("{:?}", with_key(Some("secret"))).contains("secret"));
    }
}
