//! The sink Qdrant against a stand-in that keeps points as Qdrant's REST API documents it, and fails on demand.

use super::jobs::with_folder;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct StandIn(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    size: Option<u64>,
    /// Whether there is an index of the corpora.
    indexed: bool,
    points: BTreeMap<String, Value>,
    /// Requests that are turned away before any is taken.
    failing: usize,
    /// Requests that find that somebody has deleted the collection.
    vanishing: usize,
    writes: usize,
}

async fn collection(State(it): State<StandIn>, Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    let kept = it.0.lock().unwrap();
    match kept.size {
        Some(size) => {
            let vectors = json!({ "size": size, "distance": "Cosine" });
            let indexes =
                if kept.indexed { json!({ "corpus": { "data_type": "keyword" } }) } else { json!({}) };
            let result = json!({ "config": { "params": { "vectors": vectors } }, "payload_schema": indexes });
            (StatusCode::OK, Json(json!({ "result": result })))
        }
        None => {
            (StatusCode::NOT_FOUND, Json(json!({ "status": { "error": format!("no collection {name}") } })))
        }
    }
}

async fn create(State(it): State<StandIn>, Json(body): Json<Value>) -> Json<Value> {
    assert_eq!(body["vectors"]["distance"], "Cosine");
    it.0.lock().unwrap().size = body["vectors"]["size"].as_u64();
    Json(json!({ "result": true, "status": "ok" }))
}

async fn upsert(State(it): State<StandIn>, headers: HeaderMap, Json(body): Json<Value>) -> StatusCode {
    assert_eq!(headers["api-key"], "key");
    let mut kept = it.0.lock().unwrap();
    kept.writes += 1;
    if kept.failing > 0 {
        kept.failing -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    if kept.vanishing > 0 {
        kept.vanishing -= 1;
        (kept.size, kept.indexed) = (None, false);
        kept.points.clear();
    }
    if kept.size.is_none() {
        return StatusCode::NOT_FOUND;
    }
    for point in body["points"].as_array().unwrap() {
        let id = point["id"].as_str().unwrap();
        assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id} is a UUID");
        assert_eq!(point["vector"].as_array().unwrap().len() as u64, kept.size.unwrap());
        kept.points.insert(id.to_owned(), point["payload"].clone());
    }
    StatusCode::OK
}

async fn index(State(it): State<StandIn>, Json(body): Json<Value>) -> StatusCode {
    assert_eq!(body, json!({ "field_name": "corpus", "field_schema": "keyword" }));
    let mut kept = it.0.lock().unwrap();
    assert!(!kept.indexed, "one that is there may be set otherwise, and is left alone");
    kept.indexed = true;
    StatusCode::OK
}

/// As a server in strict mode: a field without an index is not looked at.
async fn delete(State(it): State<StandIn>, Json(body): Json<Value>) -> StatusCode {
    let mut kept = it.0.lock().unwrap();
    let must = &body["filter"]["must"];
    assert_eq!((must.as_array().unwrap().len(), &must[1]["key"]), (2, &json!("corpus")), "{body}");
    if !kept.indexed {
        return StatusCode::BAD_REQUEST;
    }
    let (ids, corpus) = (must[0]["has_id"].as_array().unwrap(), &must[1]["match"]["value"]);
    kept.points.retain(|id, payload| !(ids.contains(&json!(id)) && payload["corpus"] == *corpus));
    StatusCode::OK
}

async fn stand_in() -> (StandIn, String) {
    let it = StandIn::default();
    let routes = Router::new()
        .route("/collections/{name}", get(collection).put(create))
        .route("/collections/{name}/index", put(index))
        .route("/collections/{name}/points", put(upsert))
        .route("/collections/{name}/points/delete", post(delete))
        .with_state(it.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, routes).into_future());
    (it, url)
}

#[tokio::test]
async fn points_follow_the_corpus_through_failures() {
    let (it, url) = stand_in().await;
    it.0.lock().unwrap().failing = 2;
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &["--qdrant-url", &url, "--qdrant-api-key", "key"]);
    let sink = json!({ "type": "qdrant", "collection": "ships" });
    let documents = json!([{ "id": "vasa", "text": "She sank.", "metadata": { "year": 1628 } }, { "id": "mary", "text": "So did she." }]);
    let job = server.run_job(&json!({ "documents": documents, "sink": sink })).await;
    assert_eq!((&job["state"], &job["progress"]["sink_upserts"]), (&json!("succeeded"), &json!(2)), "{job}");
    {
        let kept = it.0.lock().unwrap();
        assert_eq!((kept.points.len(), kept.size), (2, Some(384)));
        assert!(kept.writes >= 3, "two that were turned away, and one or two that were not");
        let vasa = kept.points.values().find(|payload| payload["document_id"] == "vasa").unwrap();
        assert_eq!((&vasa["text"], &vasa["metadata"]["year"]), (&json!("She sank."), &json!(1628)));
        assert!(
            vasa.get("vector").is_none() && vasa["chunker"].is_string() && vasa["model_digest"].is_string()
        );
    }
    // The corpus keeps its sink; what is the same is not sent again.
    let job = server.run_job(&json!({ "documents": documents })).await;
    assert_eq!(job["progress"]["sink_upserts"], 0, "{job}");
    let changed = json!({ "documents": [{ "id": "vasa", "text": "She was raised." }], "delete": ["mary"] });
    let job = server.run_job(&changed).await;
    assert_eq!(
        (&job["progress"]["sink_upserts"], &job["progress"]["sink_deletes"]),
        (&json!(1), &json!(2)),
        "{job}"
    );
    let kept = it.0.lock().unwrap();
    let texts: Vec<&Value> = kept.points.values().map(|payload| &payload["text"]).collect();
    assert_eq!(texts, [&json!("She was raised.")]);
}

#[tokio::test]
async fn a_corpus_takes_out_no_point_that_another_has_brought_since() {
    let (it, url) = stand_in().await;
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &["--qdrant-url", &url, "--qdrant-api-key", "key"]);
    let sink = json!({ "type": "qdrant", "collection": "ships" });
    let documents = json!([{ "id": "vasa", "text": "She sank." }]);
    for corpus in ["one", "two"] {
        let job = server.run_job(&json!({ "corpus": corpus, "documents": documents, "sink": sink })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
    }
    for (corpus, left) in [("one", 1), ("two", 0)] {
        let job = server.run_job(&json!({ "corpus": corpus, "delete": ["vasa"] })).await;
        assert_eq!(
            (&job["state"], &job["progress"]["sink_deletes"]),
            (&json!("succeeded"), &json!(1)),
            "{job}"
        );
        assert_eq!(it.0.lock().unwrap().points.len(), left, "after {corpus}");
    }
}

#[tokio::test]
async fn a_collection_that_goes_in_the_middle_of_a_job_is_made_again_and_takes_the_chunks() {
    let (it, url) = stand_in().await;
    it.0.lock().unwrap().vanishing = 1;
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &["--qdrant-url", &url, "--qdrant-api-key", "key"]);
    let sink = json!({ "type": "qdrant", "collection": "ships" });
    let documents = json!([{ "id": "vasa", "text": "She sank." }]);
    let job = server.run_job(&json!({ "documents": documents, "sink": sink })).await;
    assert_eq!((&job["state"], &job["progress"]["sink_upserts"]), (&json!("succeeded"), &json!(1)), "{job}");
    let kept = it.0.lock().unwrap();
    assert_eq!((kept.points.len(), kept.size, kept.writes), (1, Some(384), 2));
}

#[tokio::test]
async fn an_address_that_answers_404_to_everything_takes_nothing() {
    let (_, url) = stand_in().await;
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = format!("{url}/elsewhere");
    let server = with_folder(folder.path(), &["--qdrant-url", &elsewhere, "--qdrant-api-key", "key"]);
    let sink = json!({ "type": "qdrant", "collection": "ships" });
    let body = json!({ "id": "lost", "documents": [{ "id": "vasa", "text": "She sank." }], "sink": sink });
    assert_eq!(server.post("/v1/jobs", &body).await.status, 202);
    let error = loop {
        let job = server.get("/v1/jobs/lost").await.json();
        assert!(job["finished_ms"].is_null(), "nobody has the chunk: {job}");
        if let Some(error) = job["error"].as_str() {
            break error.to_owned();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(error.contains("answered 404 Not Found to PUT /collections/ships"), "{error}");
    assert_eq!(server.post("/v1/jobs/lost/cancel", &json!({})).await.status, 202);
}
