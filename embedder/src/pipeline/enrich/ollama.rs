//! One question to one Ollama instance.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one answer may take; the first question about a long document reads it first.
const ANSWER: Duration = Duration::from_secs(180);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// Context window in tokens: the same with every request, because another one makes Ollama load the model anew.
const CONTEXT_WINDOW: u32 = 4096;

/// Talks to instances.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    model: String,
    most_tokens: usize,
}

/// What an instance said, and what it cost.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// The text.
    #[serde(default)]
    pub response: String,
    /// `length` when the answer was cut off.
    #[serde(default)]
    pub done_reason: String,
    /// Tokens of the prompt that were evaluated: those in the prefix cache are not counted.
    #[serde(default)]
    pub prompt_eval_count: u64,
    /// Nanoseconds for them.
    #[serde(default)]
    pub prompt_eval_duration: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub eval_count: u64,
    /// Nanoseconds for them.
    #[serde(default)]
    pub eval_duration: u64,
}

/// What went wrong.
#[derive(Debug)]
pub enum Failure {
    /// The instance is not there, busy or broken: another may do it.
    Instance(String),
    /// Every instance would say the same.
    Request(String),
}

impl Client {
    /// A client for one model.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn new(model: &str, most_tokens: usize) -> Result<Self, String> {
        let http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER).no_proxy().build();
        let http = http.map_err(|error| format!("making an HTTP client: {error}"))?;
        Ok(Self { http, model: model.to_owned(), most_tokens })
    }

    /// Whether an instance answers at all.
    pub async fn answers(&self, instance: SocketAddr) -> bool {
        let asked = self.http.get(format!("http://{instance}/api/version")).timeout(CONNECT).send().await;
        asked.is_ok_and(|response| response.status().is_success())
    }

    /// Asks an instance for the continuation of a prompt.
    ///
    /// # Errors
    /// Whose fault it is, and what was said.
    pub async fn generate(&self, instance: SocketAddr, prompt: &str) -> Result<Answer, Failure> {
        #[derive(Serialize)]
        struct Question<'a> {
            model: &'a str,
            prompt: &'a str,
            stream: bool,
            keep_alive: i32,
            options: Options,
        }
        #[derive(Serialize)]
        struct Options {
            temperature: f32,
            seed: u32,
            num_ctx: u32,
            num_predict: usize,
        }
        let options = Options { temperature: 0.0, seed: 1, num_ctx: CONTEXT_WINDOW, num_predict: self.most_tokens };
        let question = Question { model: &self.model, prompt, stream: false, keep_alive: -1, options };
        let sent = self.http.post(format!("http://{instance}/api/generate")).json(&question).send().await;
        let mut response = sent.map_err(|error| Failure::Instance(format!("{instance}: {}", root_cause(&error))))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| Failure::Instance(format!("{instance}: {error}")))? {
            body.extend_from_slice(&part);
            if body.len() > ANSWER_LIMIT {
                return Err(Failure::Instance(format!("{instance} answers with more than {ANSWER_LIMIT} bytes")));
            }
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| Failure::Instance(format!("{instance} answers no JSON: {error}")));
        }
        let said = format!("{instance}: {status}: {}", String::from_utf8_lossy(&body).trim());
        // A request that is wrong is wrong everywhere; a model that is missing may be on the next instance.
        Err(if status == 400 { Failure::Request(said) } else { Failure::Instance(said) })
    }
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
