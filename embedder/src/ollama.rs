//! Ollama's HTTP API as far as it is used here: which instances a pool has, and one question to one of them.
//! Whom to ask, and what to do after a failure, is decided by the callers.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one answer may take; the first question about a long document reads it first.
const ANSWER: Duration = Duration::from_secs(180);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// Context window in tokens: the same with every question of every part, because another one makes Ollama load the model
/// anew.
pub(crate) const CONTEXT_WINDOW: u32 = 4096;

/// A pool of instances that serve one language model.
#[derive(Clone, Debug)]
pub struct OllamaConfig {
    /// `host:port` of each of its names; every address behind one is an instance.
    pub hosts: Vec<String>,
    /// Name of the model.
    pub model: String,
    /// Most tokens of a chunk's context.
    pub context_max_tokens: usize,
}

/// Talks to instances.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    model: String,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The text to go on from.
    pub prompt: &'a str,
    /// Most tokens of the answer.
    pub most_tokens: usize,
    /// A JSON schema that the answer must follow.
    pub format: Option<&'a Value>,
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
    /// Tokens of the whole prompt, those in the prefix cache included.
    #[serde(default)]
    pub prompt_eval_count: u64,
    /// Nanoseconds for those that were not in the prefix cache.
    #[serde(default)]
    pub prompt_eval_duration: u64,
    /// Tokens of the answer.
    #[serde(default)]
    pub eval_count: u64,
    /// Nanoseconds for them.
    #[serde(default)]
    pub eval_duration: u64,
}

/// Why there is no answer, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody is there. The question is not to blame: another instance may answer it.
    #[error("{0}")]
    Unreachable(String),
    /// The instance is well and has too much to do: it may be asked again in a moment.
    #[error("{0}")]
    Busy(String),
    /// The instance failed at this question, for a reason that may lie in either.
    #[error("{0}")]
    Broken(String),
    /// The prompt does not fit into the context window.
    #[error("{0}")]
    TooLong(String),
    /// The question is wrong, and every instance would say the same.
    #[error("{0}")]
    Refused(String),
}

impl Client {
    /// A client for one model.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn new(model: &str) -> Result<Self, String> {
        let http = crate::client::http().connect_timeout(CONNECT).timeout(ANSWER).no_proxy().build();
        let http = http.map_err(|error| format!("making an HTTP client: {error}"))?;
        Ok(Self { http, model: model.to_owned() })
    }

    /// Whether an instance answers at all.
    pub async fn answers(&self, instance: SocketAddr) -> bool {
        let asked = self.http.get(format!("http://{instance}/api/version")).timeout(CONNECT).send().await;
        asked.is_ok_and(|response| response.status().is_success())
    }

    /// Asks an instance one question.
    ///
    /// # Errors
    /// Whose fault it is, and what was said.
    pub async fn ask(&self, instance: SocketAddr, question: Question<'_>) -> Result<Answer, Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            model: &'a str,
            prompt: &'a str,
            stream: bool,
            /// Without it Ollama cuts the middle out of a long prompt and says nothing.
            truncate: bool,
            keep_alive: i32,
            #[serde(skip_serializing_if = "Option::is_none")]
            format: Option<&'a Value>,
            options: Options,
        }
        #[derive(Serialize)]
        struct Options {
            temperature: f32,
            seed: u32,
            num_ctx: u32,
            num_predict: usize,
        }
        let Question { prompt, most_tokens, format } = question;
        let options =
            Options { temperature: 0.0, seed: 1, num_ctx: CONTEXT_WINDOW, num_predict: most_tokens };
        let model = &self.model;
        let body = Body { model, prompt, stream: false, truncate: false, keep_alive: -1, format, options };
        let sent = self.http.post(format!("http://{instance}/api/generate")).json(&body).send().await;
        let mut response = sent.map_err(|error| match error.is_connect() {
            true => Failure::Unreachable(format!("{instance}: {}", root_cause(&error))),
            false => Failure::Broken(format!("{instance}: {}", root_cause(&error))),
        })?;
        let status = response.status();
        let broken = |what: String| Failure::Broken(format!("{instance}: {what}"));
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| broken(root_cause(&error)))? {
            body.extend_from_slice(&part);
            if body.len() > ANSWER_LIMIT {
                return Err(broken(format!("the answer has more than {ANSWER_LIMIT} bytes")));
            }
        }
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| broken(format!("the answer is no JSON: {error}")));
        }
        let said = format!("{instance}: {status}: {}", String::from_utf8_lossy(&body).trim());
        Err(match status.as_u16() {
            400 if said.contains("exceeds the context length") => Failure::TooLong(said),
            400 => Failure::Refused(said),
            429 | 503 => Failure::Busy(said),
            // A model that is missing here may be on the next instance.
            _ => Failure::Broken(said),
        })
    }
}

/// The `host:port` of every URL in a list divided by commas.
///
/// # Errors
/// A sentence that names the URL that is none.
pub fn hosts(urls: &str) -> Result<Vec<String>, String> {
    let host = |url: &str| {
        let rest = url.trim().strip_prefix("http://")?.trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "11434"));
        let right = !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok();
        right.then(|| format!("{host}:{port}"))
    };
    let wrong =
        |url: &str| format!("{url:?} is no address of Ollama instances: right is http://<host>:<port>");
    urls.split(',').map(|url| host(url).ok_or_else(|| wrong(url))).collect()
}

/// Every address behind some hosts, in the order in which the resolver gave them.
///
/// # Errors
/// When a host has no address.
pub async fn resolve(hosts: &[String]) -> Result<Vec<SocketAddr>, String> {
    let mut addresses = Vec::new();
    for host in hosts {
        let found =
            tokio::net::lookup_host(host).await.map_err(|error| format!("looking up {host}: {error}"))?;
        let found: Vec<SocketAddr> = found.collect();
        // An instance with two families would be counted twice, such as localhost.
        let has_v4 = found.iter().any(SocketAddr::is_ipv4);
        addresses.extend(found.into_iter().filter(|address| address.is_ipv4() || !has_v4));
    }
    Ok(addresses)
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
pub(crate) mod tests;
