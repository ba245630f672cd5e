//! Models by name: fetched from a hub, here one that serves a fixture with the headers that the real one sends.

use super::models::{folder, walk};
use super::server::floats;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked for, in its order.
type Asked = Arc<Mutex<Vec<String>>>;

async fn file(
    State((name, asked)): State<(&'static str, Asked)>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(headers["authorization"], "Bearer secret");
    asked.lock().unwrap().push(path.clone());
    let Ok(bytes) = std::fs::read(folder(name).join(&path)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"].to_str().unwrap().trim_start_matches("bytes=").to_owned();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let headers = [
        ("x-repo-commit", COMMIT.to_owned()),
        ("etag", format!("\"{}\"", path.replace('/', "-"))),
        ("content-range", format!("bytes {first}-{last}/{}", bytes.len())),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[first..=last].to_vec()).into_response()
}

/// Starts a hub with the fixture `name` as `group/small`, and some files beside it that no model needs.
async fn hub(name: &'static str) -> (String, Asked) {
    let root = folder(name);
    let own = walk(&root).into_iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string());
    let others = ["README.md", "pytorch_model.bin", "onnx/model.onnx"].map(str::to_owned);
    let siblings: Vec<Value> = own.chain(others).map(|name| json!({ "rfilename": name })).collect();
    let info = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
    let asked = Asked::default();
    let router = Router::new()
        .route("/api/models/group/small/revision/main", get(async move || info))
        .route("/group/small/resolve/main/{*path}", get(file))
        .with_state((name, Arc::clone(&asked)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_by_its_name_and_kept() {
    // With dense layers, whose weights lie in folders of their own.
    let (url, asked) = hub("gemma3").await;
    let expected = std::fs::read_to_string(folder("gemma3").join("expected.json")).unwrap();
    let expected = serde_json::from_str::<Value>(&expected).unwrap()["references"][0].clone();
    let cache = tempfile::tempdir().unwrap();
    let text = cache.path().join("text.txt");
    std::fs::write(&text, expected["text"].as_str().unwrap()).unwrap();
    let embed = async |model: &'static str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
        command.args(["embed", "--model", model, "--model-cache"]).arg(cache.path()).arg(&text);
        command.env("HF_ENDPOINT", &url).env("HF_TOKEN", "secret");
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let output = embed("group/small").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The model has a prompt for documents, of which the reference knows nothing: only the length is compared.
    assert_eq!(floats(&line["dense"]).len(), expected["vector"].as_array().unwrap().len());
    let first = asked.lock().unwrap().clone();
    for needed in
        ["model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors", "3_Dense/config.json"]
    {
        assert!(first.iter().any(|path| path == needed), "{needed} was not fetched: {first:?}");
    }
    assert!(
        !first.iter().any(|path| path.contains("onnx") || path.ends_with(".bin") || path == "README.md"),
        "{first:?}"
    );
    let again = embed("group/small").await;
    assert_eq!((again.status.success(), &again.stdout), (true, &output.stdout));
    assert_eq!(asked.lock().unwrap().len(), first.len(), "what is in the cache is not fetched again");
    let missing = embed("group/none").await;
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        !missing.status.success() && said.contains("fetching the model group/none from http://"),
        "{said}"
    );
}
