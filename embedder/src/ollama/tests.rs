//! A stand-in for an Ollama instance that fails on demand, and the tests of the client against it.

use super::*;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use std::sync::{Arc, Mutex};

/// Every question that a stand-in was asked.
pub(crate) type Asked = Arc<Mutex<Vec<Value>>>;

/// An instance on a port of its own that answers each question as `answer` says.
pub(crate) async fn stand_in(
    answer: impl Fn(&Value) -> (StatusCode, Value) + Clone + Send + Sync + 'static,
) -> (String, Asked) {
    let asked = Asked::default();
    let record = asked.clone();
    let generate = post(move |Json(question): Json<Value>| async move {
        let answer = answer(&question);
        record.lock().unwrap().push(question);
        (answer.0, Json(answer.1))
    });
    let router = Router::new().route("/api/generate", generate).route("/api/version", get(|| async { "{}" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// What an instance answers when all is well.
pub(crate) fn well(text: &str) -> (StatusCode, Value) {
    (
        StatusCode::OK,
        json!({ "response": text, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3 }),
    )
}

/// A pool of some instances.
pub(crate) fn pool(urls: &[&str]) -> OllamaConfig {
    OllamaConfig { hosts: hosts(&urls.join(",")).unwrap(), model: "m".into(), context_max_tokens: 100 }
}

async fn ask(url: &str) -> Result<Answer, Failure> {
    let address = resolve(&hosts(url).unwrap()).await.unwrap()[0];
    let question = Question { prompt: "p", most_tokens: 5, format: None };
    Client::new("m").unwrap().ask(address, question).await
}

#[tokio::test]
async fn a_failure_says_what_can_be_done_about_it() {
    type Kind = fn(&Failure) -> bool;
    let cases: &[(u16, &str, Kind)] = &[
        (400, "the input length exceeds the context length", |failure| {
            matches!(failure, Failure::TooLong(_))
        }),
        (400, "invalid option", |failure| matches!(failure, Failure::Refused(_))),
        (404, "model not found", |failure| matches!(failure, Failure::Broken(_))),
        (429, "slow down", |failure| matches!(failure, Failure::Busy(_))),
        (500, "the runner died", |failure| matches!(failure, Failure::Broken(_))),
        (503, "server busy", |failure| matches!(failure, Failure::Busy(_))),
    ];
    for (status, message, expected) in cases {
        let status = StatusCode::from_u16(*status).unwrap();
        let (url, _) = stand_in(move |_| (status, json!({ "error": message }))).await;
        let failure = ask(&url).await.unwrap_err();
        assert!(
            expected(&failure) && failure.to_string().contains(message),
            "{status} {message}: {failure:?}"
        );
    }
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(ask(&format!("http://{free}")).await, Err(Failure::Unreachable(_))));
}

#[tokio::test]
async fn a_prompt_is_never_cut_silently() {
    let (url, asked) = stand_in(|_| well("yes")).await;
    assert_eq!(ask(&url).await.unwrap().response, "yes");
    let question = asked.lock().unwrap()[0].clone();
    assert_eq!(question["truncate"], false);
    assert_eq!(question["options"]["num_ctx"], CONTEXT_WINDOW);
}

#[test]
fn urls_become_hosts_or_are_named() {
    assert_eq!(hosts("http://a:1, http://b/").unwrap(), ["a:1", "b:11434"]);
    for wrong in ["a:1", "https://a", "http://", "http://a:x", "http://a:1/v1", "http://a,"] {
        assert!(hosts(wrong).unwrap_err().contains("right is http://<host>:<port>"), "{wrong}");
    }
}
