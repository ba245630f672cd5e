//! Ollama's HTTP API as far as it is used here: which instances a pool has, and one question to one of them.
//! Whom to ask, and what to do after a failure, is decided by the callers.

use crate::answer::read_at_most;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// A pool of instances that serve one language model.
#[derive(Clone, Debug)]
pub struct OllamaConfig {
    /// Each of its names; every address behind one is an instance.
    pub hosts: Vec<Host>,
    /// Name of the model.
    pub model: String,
    /// Most tokens of a chunk's context.
    pub context_max_tokens: usize,
    /// Context window in tokens: the same with every question of every part, because another one makes Ollama load the model
    /// anew.
    pub context_window: u32,
    /// What the model is told to do with a chunk; its usual instruction if absent.
    pub prompt: Option<String>,
    /// Certificates, in PEM, that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long what may take.
    pub timing: Timing,
}

impl OllamaConfig {
    /// What the model is told to do with a chunk.
    pub fn instruction(&self) -> &str {
        self.prompt.as_deref().unwrap_or(crate::pipeline::INSTRUCTION)
    }

    /// The hosts for a message.
    pub fn hosts_in_words(&self) -> String {
        self.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// How long what may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// One answer; the first question about a long document reads it first.
    pub answer: Duration,
    /// Between two look-ups of the pool's names.
    pub refresh: Duration,
    /// How long a failing, busy or slow instance is left alone: the first time, and at most.
    pub leave: (Duration, Duration),
    /// Without an instance that answers, before chunks go on without context.
    pub unreachable: Duration,
    /// With instances that do nothing but turn questions away, before chunks go on without context.
    pub stalled: Duration,
    /// An answer, at least, before an idle instance is asked for the same.
    pub overdue: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            answer: seconds(180),
            refresh: seconds(10),
            leave: (Duration::from_millis(500), seconds(15)),
            unreachable: seconds(30),
            stalled: seconds(300),
            overdue: seconds(5),
        }
    }
}

/// A name of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whether it speaks TLS.
    pub secure: bool,
    /// A DNS name or an address.
    pub name: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.name, self.port)
    }
}

/// Talks to instances.
pub struct Client {
    hosts: Vec<Host>,
    model: String,
    window: u32,
    plain: reqwest::Client,
    /// What a client for TLS is built with.
    timing: Timing,
    /// Told to every instance.
    trace: HeaderMap,
    trusted: Vec<reqwest::Certificate>,
    /// Instances behind TLS, by their addresses.
    secure: Mutex<HashMap<SocketAddr, Secure>>,
}

/// An instance behind TLS: the certificate is for its name, the connection goes to its address.
#[derive(Clone)]
struct Secure {
    http: reqwest::Client,
    base: String,
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
    #[error("{message}")]
    Busy {
        /// What it said.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
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
    /// A client for a pool, for the request that the task works for.
    ///
    /// # Errors
    /// When the HTTP client can't be made.
    pub fn new(config: &OllamaConfig) -> Result<Self, String> {
        crate::tls::install();
        let trusted = match &config.ca_file {
            None => Vec::new(),
            Some(path) => {
                let pem =
                    std::fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
                    format!("the certificates in {}: {}", path.display(), root_cause(&error))
                })?
            }
        };
        let timing = config.timing;
        let trace = crate::trace::headers();
        let plain = builder(timing, &trace)
            .build()
            .map_err(|error| format!("making an HTTP client: {}", root_cause(&error)))?;
        let (hosts, model) = (config.hosts.clone(), config.model.clone());
        Ok(Self {
            hosts,
            model,
            window: config.context_window,
            plain,
            timing,
            trace,
            trusted,
            secure: Mutex::default(),
        })
    }

    /// Every address behind the pool's names, in the order in which the resolver gave them.
    ///
    /// # Errors
    /// When a name has no address.
    pub async fn find(&self) -> Result<Vec<SocketAddr>, String> {
        let mut addresses = Vec::new();
        for host in &self.hosts {
            let found = tokio::net::lookup_host((host.name.as_str(), host.port)).await;
            let found: Vec<SocketAddr> =
                found.map_err(|error| format!("looking up {host}: {error}"))?.collect();
            // An instance with two families would be counted twice, such as localhost.
            let has_v4 = found.iter().any(SocketAddr::is_ipv4);
            let found: Vec<SocketAddr> = found.into_iter().filter(|it| it.is_ipv4() || !has_v4).collect();
            if host.secure {
                for address in &found {
                    self.secure(host, *address)?;
                }
            }
            addresses.extend(found);
        }
        Ok(addresses)
    }

    /// Makes an instance behind TLS known.
    fn secure(&self, host: &Host, address: SocketAddr) -> Result<(), String> {
        let mut secure = self.secure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(place) = secure.entry(address) {
            let http = builder(self.timing, &self.trace)
                .resolve(&host.name, address)
                .tls_certs_merge(self.trusted.clone())
                .build();
            let http = http.map_err(|error| format!("making a client for {host}: {}", root_cause(&error)))?;
            place.insert(Secure { http, base: format!("https://{host}") });
        }
        Ok(())
    }

    /// The client and the beginning of the URL for an instance.
    fn at(&self, instance: SocketAddr) -> Secure {
        let secure = self.secure.lock().unwrap_or_else(PoisonError::into_inner);
        let plain = || Secure { http: self.plain.clone(), base: format!("http://{instance}") };
        secure.get(&instance).cloned().unwrap_or_else(plain)
    }

    /// Whether an instance answers at all.
    pub async fn answers(&self, instance: SocketAddr) -> bool {
        let Secure { http, base } = self.at(instance);
        let asked = http.get(format!("{base}/api/version")).timeout(CONNECT).send().await;
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
        let options = Options { temperature: 0.0, seed: 1, num_ctx: self.window, num_predict: most_tokens };
        let model = &self.model;
        let body = Body { model, prompt, stream: false, truncate: false, keep_alive: -1, format, options };
        let Secure { http, base } = self.at(instance);
        let sent = http.post(format!("{base}/api/generate")).json(&body).send().await;
        let response = sent.map_err(|error| match error.is_connect() {
            true => Failure::Unreachable(format!("{instance}: {}", root_cause(&error))),
            false => Failure::Broken(format!("{instance}: {}", root_cause(&error))),
        })?;
        let status = response.status();
        let seconds =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let broken = |what: String| Failure::Broken(format!("{instance}: {what}"));
        let body = read_at_most(response, ANSWER_LIMIT).await.map_err(|error| broken(root_cause(&error)))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|error| broken(format!("the answer is no JSON: {error}")));
        }
        let said = format!("{instance}: {status}: {}", String::from_utf8_lossy(&body).trim());
        Err(match status.as_u16() {
            400 if said.contains("exceeds the context length") => Failure::TooLong(said),
            400 => Failure::Refused(said),
            429 | 503 => Failure::Busy { message: said, retry_after },
            // A model that is missing here may be on the next instance.
            _ => Failure::Broken(said),
        })
    }
}

/// The host of every URL in a list divided by commas.
///
/// # Errors
/// A sentence that names the URL that is none.
pub fn hosts(urls: &str) -> Result<Vec<Host>, String> {
    let host = |url: &str| {
        let (scheme, rest) = url.trim().split_once("://")?;
        let (secure, usual) = match scheme {
            "http" => (false, "11434"),
            "https" => (true, "443"),
            _ => return None,
        };
        let rest = rest.trim_end_matches('/');
        let (name, port) = rest.rsplit_once(':').unwrap_or((rest, usual));
        let name = Some(name).filter(|name| !name.is_empty() && !name.contains('/'))?.to_owned();
        Some(Host { secure, name, port: port.parse().ok()? })
    };
    let wrong = |url: &str| {
        format!("{url:?} is no address of Ollama instances: right is http://<host>:<port> or https://<host>")
    };
    urls.split(',').map(|url| host(url).ok_or_else(|| wrong(url))).collect()
}

fn builder(timing: Timing, trace: &HeaderMap) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .timeout(timing.answer)
        .no_proxy()
        .default_headers(trace.clone())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
pub(crate) mod tests;
