//! One question to an LLM behind OpenAI's API: `POST <url>/chat/completions`, which many servers speak.

use crate::answer::read_at_most;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// How much of an error is repeated, in characters.
const SHOWN: usize = 200;

/// An LLM behind OpenAI's API.
#[derive(Clone)]
pub struct OpenAiConfig {
    /// Base URL, such as `https://api.openai.com/v1`.
    pub url: Url,
    /// Name of the model.
    pub model: String,
    /// The key that is sent as a bearer token, where the server wants one.
    pub key: Option<String>,
}

impl std::fmt::Debug for OpenAiConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is a secret.
        formatter
            .debug_struct("OpenAiConfig")
            .field("url", &self.url.as_str())
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// What the model answers to a prompt, in JSON that follows `schema`.
///
/// # Errors
/// Why it does not.
pub async fn ask(
    config: &OpenAiConfig,
    prompt: &str,
    schema: &Value,
    most_tokens: usize,
) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Answer {
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        message: Message,
    }
    #[derive(Deserialize)]
    struct Message {
        content: Option<String>,
    }
    crate::tls::install();
    let url = format!("{}/chat/completions", config.url.as_str().trim_end_matches('/'));
    let body = json!({
        "model": config.model,
        "messages": [{ "role": "user", "content": prompt }],
        "temperature": 0,
        "max_tokens": most_tokens,
        "response_format": { "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": schema } },
    });
    let failed = |error: &dyn std::error::Error| format!("asking {url}: {error}");
    let http = reqwest::Client::builder().connect_timeout(CONNECT).build().map_err(|error| failed(&error))?;
    let mut request = http.post(&url).headers(crate::trace::headers()).json(&body);
    if let Some(key) = &config.key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.map_err(|error| failed(&error))?;
    let status = response.status();
    let body = read_at_most(response, ANSWER_LIMIT).await;
    if !status.is_success() {
        let said = body.map_or_else(
            |error| error.to_string(),
            |body| String::from_utf8_lossy(&body).chars().take(SHOWN).collect(),
        );
        return Err(format!("{url} answered {status}: {said}"));
    }
    let body = body.map_err(|error| failed(&error))?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
    let first = answer.choices.into_iter().next().and_then(|choice| choice.message.content);
    first.ok_or_else(|| format!("{url} gave no answer"))
}
