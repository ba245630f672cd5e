//! A stand-in for an Ollama instance that fails as a test wants it.

use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How an instance behaves.
#[derive(Clone, Copy)]
pub enum Behavior {
    /// Answers after so many milliseconds.
    Well(u64),
    /// Answers so many questions, and is gone in the middle of the next one.
    Dies(usize),
    /// Has too much to do, always.
    Busy,
    /// Answers what the analyzer asks for.
    Analyzes,
}

/// Starts an instance; its URL, and how many questions it was asked.
pub async fn instance(behavior: Behavior) -> (String, Arc<AtomicUsize>) {
    instance_at(behavior, "127.0.0.1:0").await
}

/// The same at an address.
pub async fn instance_at(behavior: Behavior, address: &str) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let (kill, killed) = tokio::sync::watch::channel(false);
    let generate = post(move |Json(question): Json<Value>| async move {
        let before = count.fetch_add(1, Ordering::Relaxed);
        assert_eq!((&question["model"], &question["truncate"]), (&json!("small"), &json!(false)));
        match behavior {
            Behavior::Well(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                well("It is about cards.")
            }
            Behavior::Dies(after) if before >= after => {
                kill.send_replace(true);
                std::future::pending().await
            }
            Behavior::Dies(_) => well("It is about cards."),
            Behavior::Busy => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "server busy" }))),
            Behavior::Analyzes => well(r#"{"document_type":"manual"}"#),
        }
    });
    let router = Router::new().route("/api/generate", generate).route("/api/version", get(|| async { "{}" }));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // A runtime of its own, because ending it is what cuts the connections off, as the end of a pod would.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let mut killed = killed;
            tokio::select! {
                served = axum::serve(listener, router) => served.unwrap(),
                _ = killed.wait_for(|killed| *killed) => {}
            }
        });
    });
    (url, asked)
}

fn well(response: &str) -> (StatusCode, Json<Value>) {
    (
        StatusCode::OK,
        Json(
            json!({ "response": response, "done_reason": "stop", "prompt_eval_count": 50, "eval_count": 5 }),
        ),
    )
}
