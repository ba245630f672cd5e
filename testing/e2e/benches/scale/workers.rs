//! What answers for the pods, which are all on this machine: each says that it works, on a GPU.

use anyhow::{Context, Result};
use axum::Json;
use axum::Router;
use axum::routing::{get, post};
use principium_api::names::{DATA_FACTORY_PORT, OLLAMA_PORT, RERANKER_PORT};
use serde_json::json;

/// The model of every pool.
pub const MODEL: &str = "tiny";

/// Serves until the end.
pub async fn serve() -> Result<()> {
    let worker = Router::new().route(
        "/info",
        get(|| async {
            Json(json!({"model_id": "m", "model_sha": "s", "model_dtype": "float32", "dimension": 384,
                "device": "cuda", "accelerated": true}))
        }),
    );
    let listed = || async {
        Json(
            json!({"models": [{"name": format!("{MODEL}:latest"), "digest": "d", "size": 1, "size_vram": 1}]}),
        )
    };
    let ollama = Router::new()
        .route("/api/tags", get(listed))
        .route("/api/ps", get(listed))
        .route("/api/generate", post(|| async { Json(json!({"response": "x"})) }));
    for (port, router) in
        [(DATA_FACTORY_PORT, worker.clone()), (RERANKER_PORT, worker), (OLLAMA_PORT, ollama)]
    {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await;
        let listener = listener.with_context(|| format!("listening on port {port}; does something else?"))?;
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
    Ok(())
}
