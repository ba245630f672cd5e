//! `principium-operator pull`: has an Ollama server pull a model, and says over HTTP how far it is. It runs in a container of
//! an OllamaPool's pods, so that a pull goes on whether or not an operator runs, and nobody but the pod itself can write to
//! the store.

use crate::args::PullArgs;
use crate::observed::PullProgress;
use crate::probe::client;
use anyhow::{Context, bail};
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long the server may say nothing before the pull counts as failed; the next one goes on where it ended.
const SILENCE: Duration = Duration::from_secs(300);
/// The longest line of an answer, in bytes.
const LONGEST_LINE: usize = 64 << 10;

/// A line of the answer to `/api/pull`.
#[derive(Debug, Default, Deserialize)]
struct Line {
    #[serde(default)]
    status: String,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    completed: u64,
    #[serde(default)]
    error: Option<String>,
}

/// Completed and total bytes of every part of a model.
#[derive(Default)]
struct Parts(BTreeMap<String, (u64, u64)>);

impl Parts {
    fn heard(&mut self, line: &Line) {
        if let Some(digest) = &line.digest {
            let part = self.0.entry(digest.clone()).or_default();
            // What the server has already is told without a number of completed bytes.
            *part = (line.completed.max(part.0), line.total.max(part.1));
        }
    }

    fn progress(&self, model: &str) -> PullProgress {
        let sum = |of: fn(&(u64, u64)) -> u64| self.0.values().map(of).fold(0, u64::saturating_add);
        PullProgress { model: model.to_owned(), completed: sum(|part| part.0), total: sum(|part| part.1) }
    }
}

/// Pulls. Returns when the server says that all is there.
///
/// # Errors
/// When the server can't be reached, refuses, or falls silent.
pub async fn pull(args: PullArgs) -> anyhow::Result<()> {
    let PullArgs { server, progress: listen, model } = args;
    let told = Arc::new(Mutex::new(PullProgress { model: model.clone(), ..PullProgress::default() }));
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let router = Router::new().route("/progress", get(progress)).with_state(Arc::clone(&told));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = client().connect_timeout(Duration::from_secs(10)).read_timeout(SILENCE).build()?;
    let url = format!("{server}/api/pull");
    let asked = client.post(&url).json(&json!({"model": model, "stream": true})).send().await;
    let mut answer = asked.with_context(|| format!("asking {url} for {model}"))?;
    let mut parts = Parts::default();
    let mut rest: Vec<u8> = Vec::new();
    let mut shown = None;
    while let Some(chunk) = answer.chunk().await.with_context(|| format!("pulling {model}"))? {
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Line = serde_json::from_slice(&line).context("reading what the server says")?;
            if let Some(error) = line.error {
                bail!("pulling {model}: {error}");
            }
            if line.status == "success" {
                tracing::info!(model, "pulled");
                return Ok(());
            }
            parts.heard(&line);
            let progress = parts.progress(&model);
            let tenth = progress.percent().map(|percent| percent / 10);
            if tenth != shown {
                shown = tenth;
                tracing::info!(
                    model,
                    completed = progress.completed,
                    total = progress.total,
                    "{}",
                    line.status
                );
            }
            *told.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        }
        anyhow::ensure!(rest.len() <= LONGEST_LINE, "the server's line has no end");
    }
    // A name that is none is answered without the end of a line.
    if let Ok(Line { error: Some(error), .. }) = serde_json::from_slice(&rest) {
        bail!("pulling {model}: {error}");
    }
    bail!("pulling {model}: the server ended before it was done")
}

async fn progress(State(told): State<Arc<Mutex<PullProgress>>>) -> Json<PullProgress> {
    Json(told.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, Bytes};
    use axum::routing::post;
    use tokio::sync::mpsc;

    /// A server that says what it is told to, and where it listens.
    async fn server() -> (mpsc::UnboundedSender<String>, String) {
        let (say, said) = mpsc::unbounded_channel::<String>();
        let said = Arc::new(Mutex::new(Some(said)));
        let pull = post(move || async move {
            let said = said.lock().unwrap().take().unwrap();
            Body::from_stream(futures::stream::unfold(said, |mut said| async move {
                let line = said.recv().await?;
                Some((Ok::<_, std::io::Error>(Bytes::from(line)), said))
            }))
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/api/pull", pull);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (say, format!("http://{address}"))
    }

    #[tokio::test]
    async fn progress_is_the_sum_of_all_parts_and_the_end_is_told() {
        let (say, server) = server().await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let pulling = tokio::spawn(pull(PullArgs { server, progress: free, model: "tiny".to_owned() }));
        let ask = async || -> Option<PullProgress> {
            client()
                .build()
                .unwrap()
                .get(format!("http://{free}/progress"))
                .send()
                .await
                .ok()?
                .json()
                .await
                .ok()
        };
        let until = async |completed: u64, total: u64| {
            for _ in 0..200 {
                let expected = PullProgress { model: "tiny".to_owned(), completed, total };
                if ask().await == Some(expected) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            panic!("never {completed} of {total}: {:?}", ask().await);
        };
        say.send("{\"status\":\"pulling manifest\"}\n{\"status\":\"pulling a\",\"digest\":\"a\",".to_owned())
            .unwrap();
        until(0, 0).await;
        say.send("\"total\":100,\"completed\":40}\n".to_owned()).unwrap();
        until(40, 100).await;
        say.send("{\"status\":\"pulling b\",\"digest\":\"b\",\"total\":300,\"completed\":260}\n".to_owned())
            .unwrap();
        until(300, 400).await;
        assert_eq!(ask().await.unwrap().percent(), Some(75));
        say.send("{\"status\":\"success\"}\n".to_owned()).unwrap();
        pulling.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_error_and_an_early_end_fail_the_pull() {
        let listen: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        for (said, expected) in [
            ("{\"error\":\"model not found\"}\n", "model not found"),
            ("{\"error\":\"invalid model name\"}", "invalid model name"),
            ("{\"status\":\"pulling manifest\"}\n", "ended before"),
        ] {
            let (say, server) = server().await;
            say.send(said.to_owned()).unwrap();
            drop(say);
            let error =
                pull(PullArgs { server, progress: listen, model: "tiny".to_owned() }).await.unwrap_err();
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
