//! Models by name: fetched from a hub, here one that serves a fixture with the headers that the real one sends.

use super::models::{folder, walk};
use super::server::floats;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEXT_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// The files that were asked for, in their order.
type Asked = Arc<Mutex<Vec<String>>>;

/// What a branch or a tag of the model is: its newest commit, and the fixture that has its files.
#[derive(Clone, Copy)]
struct Revision {
    name: &'static str,
    commit: &'static str,
    fixture: &'static str,
}

#[derive(Clone)]
struct Hub {
    revisions: Arc<[Revision]>,
    asked: Asked,
}

/// The commit behind a revision, and its files with some beside them that no model needs.
async fn info(State(hub): State<Hub>, Path(revision): Path<String>) -> Response {
    let meant = hub.revisions.iter().find(|it| it.name == revision || it.commit == revision);
    let Some(Revision { commit, fixture, .. }) = meant else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let root = folder(fixture);
    let own = walk(&root).into_iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string());
    let others = ["README.md", "pytorch_model.bin", "onnx/model.onnx"].map(str::to_owned);
    let siblings: Vec<Value> = own.chain(others).map(|name| json!({ "rfilename": name })).collect();
    Json(json!({ "sha": commit, "siblings": siblings })).into_response()
}

/// A file of a commit. Whoever asks for one by the name of a branch may get half of one commit and half of the next.
async fn file(
    State(hub): State<Hub>,
    Path((revision, path)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(Revision { commit, fixture, .. }) = hub.revisions.iter().find(|it| it.commit == revision) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    hub.asked.lock().unwrap().push(path.clone());
    let Ok(bytes) = std::fs::read(folder(fixture).join(&path)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"].to_str().unwrap().trim_start_matches("bytes=").to_owned();
    let (first, last) = range.split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let headers = [
        ("x-repo-commit", (*commit).to_owned()),
        ("etag", format!("\"{fixture}-{}\"", path.replace('/', "-"))),
        ("content-range", format!("bytes {first}-{last}/{}", bytes.len())),
    ];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[first..=last].to_vec()).into_response()
}

/// Turns away who does not send what HF_TOKEN holds.
async fn authorized(headers: HeaderMap, request: Request, next: Next) -> Response {
    match headers.get("authorization") {
        Some(value) if value == "Bearer secret" => next.run(request).await,
        _ => StatusCode::UNAUTHORIZED.into_response(),
    }
}

/// Starts a hub with the fixture `name` as `group/small`.
async fn hub(name: &'static str, commit: &'static str) -> (String, Asked) {
    hub_of(&[Revision { name: "main", commit, fixture: name }]).await
}

/// Starts a hub with several revisions of `group/small`.
async fn hub_of(revisions: &[Revision]) -> (String, Asked) {
    let asked = Asked::default();
    let router = Router::new()
        .route("/api/models/group/small/revision/{revision}", get(info))
        .route("/group/small/resolve/{revision}/{*path}", get(file))
        .layer(middleware::from_fn(authorized))
        .with_state(Hub { revisions: revisions.into(), asked: Arc::clone(&asked) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, asked)
}

/// Embeds the file `text` with a model by name from the hub at `url`.
async fn embed(url: &str, model: &str, cache: &std::path::Path, text: &std::path::Path) -> Output {
    embed_with(url, model, cache, text, |_| ()).await
}

/// The same with further flags or another environment.
async fn embed_with(
    url: &str,
    model: &str,
    cache: &std::path::Path,
    text: &std::path::Path,
    more: impl FnOnce(&mut Command),
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
    command.args(["embed", "--model", model, "--model-cache"]).arg(cache).arg(text);
    command.env("HF_ENDPOINT", url).env("HF_TOKEN", "secret");
    more(&mut command);
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
async fn the_revision_that_is_asked_for_is_fetched_with_the_token_and_no_other_one() {
    let files = tempfile::tempdir().unwrap();
    let text = files.path().join("text.txt");
    std::fs::write(&text, "a hot card").unwrap();
    // Other models altogether, so that the vectors tell what was loaded.
    let revisions = [
        Revision { name: "main", commit: COMMIT, fixture: "bert" },
        Revision { name: "v1", commit: NEXT_COMMIT, fixture: "roberta" },
    ];
    let (url, asked) = hub_of(&revisions).await;
    let fetch = async |revision: Option<&str>, token: &str, cache: &std::path::Path| {
        let flag = revision.map(|revision| format!("--model-revision={revision}"));
        let more = |command: &mut Command| {
            command.args(&flag).env("HF_TOKEN", token);
        };
        embed_with(&url, "group/small", cache, &text, more).await
    };
    let mut vectors = Vec::new();
    for (revision, commit, fixture) in [
        (None, COMMIT, "bert"),
        (Some("v1"), NEXT_COMMIT, "roberta"),
        (Some(NEXT_COMMIT), NEXT_COMMIT, "roberta"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let output = fetch(revision, "secret", cache.path()).await;
        assert!(output.status.success(), "{revision:?}: {}", String::from_utf8_lossy(&output.stderr));
        let same = embed(&url, &folder(fixture).display().to_string(), cache.path(), &text).await;
        assert_eq!(output.stdout, same.stdout, "{revision:?}");
        vectors.push(output.stdout);
        let kept = cache.path().join("models--group--small");
        let snapshots = std::fs::read_dir(kept.join("snapshots")).unwrap();
        let snapshots: Vec<_> = snapshots.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(snapshots, [commit], "{revision:?}");
        let newest = std::fs::read_to_string(kept.join("refs").join(revision.unwrap_or("main"))).unwrap();
        assert_eq!(newest, commit, "{revision:?}");
    }
    assert_ne!(vectors[0], vectors[1]);
    asked.lock().unwrap().clear();
    for (revision, token, says) in [("v2", "secret", "404"), ("v1", "another", "401")] {
        let output = fetch(Some(revision), token, files.path()).await;
        let said = String::from_utf8_lossy(&output.stderr);
        let failed = !output.status.success() && said.contains("fetching the model group/small from");
        assert!(failed && said.contains(says), "{revision} with {token}: {said}");
    }
    assert_eq!(asked.lock().unwrap().len(), 0, "no file of what is not there, or not for everybody");
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
