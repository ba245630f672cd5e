//! Models by name: fetched from a hub, here one that serves a fixture with the headers that the real one sends.

use super::models::{folder, walk};
use super::server::floats;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What was asked for, in its order.
type Asked = Arc<Mutex<Vec<String>>>;

/// A model, its newest commit, and what was asked for.
type Hub = (&'static str, &'static str, Asked);

async fn file(
    State((name, commit, asked)): State<Hub>,
    Path((revision, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    assert_eq!(headers["authorization"], "Bearer secret");
    assert_eq!(revision, commit, "{path}");
    asked.lock().unwrap().push(path.clone());
    let Ok(bytes) = std::fs::read(folder(name).join(&path)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"].to_str().unwrap().trim_start_matches("bytes=").to_owned();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let headers = [
        ("x-repo-commit", commit.to_owned()),
        ("etag", format!("\"{}\"", path.replace('/', "-"))),
        ("content-range", format!("bytes {first}-{last}/{}", bytes.len())),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[first..=last].to_vec()).into_response()
}

/// Starts a hub with the fixture `name` as `group/small`, and some files beside it that no model needs.
async fn hub(name: &'static str, commit: &'static str) -> (String, Asked) {
    let root = folder(name);
    let own = walk(&root).into_iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string());
    let others = ["README.md", "pytorch_model.bin", "onnx/model.onnx"].map(str::to_owned);
    let siblings: Vec<Value> = own.chain(others).map(|name| json!({ "rfilename": name })).collect();
    let info = json!({ "sha": commit, "siblings": siblings }).to_string();
    let asked = Asked::default();
    let router = Router::new()
        .route("/api/models/group/small/revision/main", get(async move || info))
        .route("/group/small/resolve/{revision}/{*path}", get(file))
        .with_state((name, commit, Arc::clone(&asked)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// Embeds the file `text` with a model by name from the hub at `url`.
async fn embed(url: &str, model: &str, cache: &std::path::Path, text: &std::path::Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
    command.args(["embed", "--model", model, "--model-cache"]).arg(cache).arg(text);
    command.env("HF_ENDPOINT", url).env("HF_TOKEN", "secret");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_by_its_name_and_kept() {
    // With dense layers, whose weights lie in folders of their own.
    let (url, asked) = hub("gemma3", COMMIT).await;
    let expected = std::fs::read_to_string(folder("gemma3").join("expected.json")).unwrap();
    let expected = serde_json::from_str::<Value>(&expected).unwrap()["references"][0].clone();
    let cache = tempfile::tempdir().unwrap();
    let text = cache.path().join("text.txt");
    std::fs::write(&text, expected["text"].as_str().unwrap()).unwrap();
    let output = embed(&url, "group/small", cache.path(), &text).await;
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
    let again = embed(&url, "group/small", cache.path(), &text).await;
    assert_eq!((again.status.success(), &again.stdout), (true, &output.stdout));
    assert_eq!(asked.lock().unwrap().len(), first.len(), "what is in the cache is not fetched again");
    let missing = embed(&url, "group/none", cache.path(), &text).await;
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        !missing.status.success() && said.contains("fetching the model group/none from http://"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_commit_is_fetched_whole_and_serves_while_the_hub_is_away() {
    let cache = tempfile::tempdir().unwrap();
    let text = cache.path().join("text.txt");
    std::fs::write(&text, "a hot card").unwrap();
    let kept = cache.path().join("models--group--small");
    let newest = || std::fs::read_to_string(kept.join("refs/main")).unwrap();
    let mut vectors = Vec::new();
    for commit in [COMMIT, NEXT_COMMIT] {
        let (url, asked) = hub("bert", commit).await;
        let output = embed(&url, "group/small", cache.path(), &text).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(asked.lock().unwrap().iter().any(|path| path == "model.safetensors"), "{commit}");
        assert_eq!(newest(), commit);
        for file in ["config.json", "model.safetensors", "1_Pooling/config.json"] {
            assert!(kept.join("snapshots").join(commit).join(file).exists(), "{commit}: {file}");
        }
        vectors = output.stdout;
    }
    // Nobody listens there.
    let away = "http://127.0.0.1:1";
    let output = embed(away, "group/small", cache.path(), &text).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(NEXT_COMMIT), "{said}");
    assert_eq!(output.stdout, vectors);
    let (busy, refusing) =
        (answering(StatusCode::SERVICE_UNAVAILABLE).await, answering(StatusCode::FORBIDDEN).await);
    let output = embed(&busy, "group/small", cache.path(), &text).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let fails = async |url: &str, why: &str| {
        let output = embed(url, "group/small", cache.path(), &text).await;
        let said = String::from_utf8_lossy(&output.stderr);
        let failed = !output.status.success() && said.contains("fetching the model group/small from");
        assert!(failed, "{why}: {said}");
    };
    fails(&refusing, "who may not have the model any more does not get it").await;
    // What lacks a file is not taken for the model.
    let pooling = kept.join("snapshots").join(NEXT_COMMIT).join("1_Pooling/config.json");
    let bytes = std::fs::read(&pooling).unwrap();
    std::fs::remove_file(&pooling).unwrap();
    fails(away, "a file is missing").await;
    std::fs::write(&pooling, bytes).unwrap();
    // Nor is what another program fetched, which may have needed less.
    std::fs::remove_file(kept.join("principium").join(NEXT_COMMIT)).unwrap();
    fails(away, "nobody says that all files are there").await;
}

/// Starts a hub that answers everything so.
async fn answering(status: StatusCode) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(async move || status);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_are_fetched_as_a_pickle_where_there_are_no_others() {
    let (url, asked) = hub("bert-pickled", COMMIT).await;
    let cache = tempfile::tempdir().unwrap();
    let text = cache.path().join("text.txt");
    std::fs::write(&text, "a hot card").unwrap();
    let output = embed(&url, "group/small", cache.path(), &text).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(asked.lock().unwrap().iter().any(|path| path == "pytorch_model.bin"));
}
