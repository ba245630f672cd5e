//! The sink Qdrant against a stand-in that keeps points as Qdrant's REST API documents it, and fails on demand.

use super::jobs::with_folder;
use super::models::{first_state, folder, unnormalized};
use super::server::{floats, start};
use axum::body::Bytes;
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
    /// By what it compares.
    distance: Option<String>,
    /// Whether there is an index of the corpora.
    indexed: bool,
    points: BTreeMap<String, Value>,
    vectors: BTreeMap<String, Value>,
    /// Requests that are turned away before any is taken.
    failing: usize,
    /// Most bytes of a request, and how a larger one is turned away.
    limit: Option<(usize, StatusCode, &'static str)>,
    /// Requests that find that somebody has deleted the collection.
    vanishing: usize,
    writes: usize,
}

async fn collection(State(it): State<StandIn>, Path(name): Path<String>) -> (StatusCode, Json<Value>) {
    let kept = it.0.lock().unwrap();
    match kept.size {
        Some(size) => {
            let vectors = json!({ "size": size, "distance": kept.distance });
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
    let mut kept = it.0.lock().unwrap();
    kept.size = body["vectors"]["size"].as_u64();
    kept.distance = body["vectors"]["distance"].as_str().map(str::to_owned);
    Json(json!({ "result": true, "status": "ok" }))
}

async fn upsert(State(it): State<StandIn>, headers: HeaderMap, body: Bytes) -> (StatusCode, &'static str) {
    assert_eq!(headers["api-key"], "key");
    let mut kept = it.0.lock().unwrap();
    kept.writes += 1;
    if kept.failing > 0 {
        kept.failing -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, "");
    }
    if let Some((most, status, says)) = kept.limit
        && body.len() > most
    {
        return (status, says);
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    if kept.vanishing > 0 {
        kept.vanishing -= 1;
        (kept.size, kept.indexed) = (None, false);
        kept.points.clear();
    }
    if kept.size.is_none() {
        return (StatusCode::NOT_FOUND, "");
    }
    for point in body["points"].as_array().unwrap() {
        let id = point["id"].as_str().unwrap();
        assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id} is a UUID");
        assert_eq!(point["vector"].as_array().unwrap().len() as u64, kept.size.unwrap());
        kept.points.insert(id.to_owned(), point["payload"].clone());
        kept.vectors.insert(id.to_owned(), point["vector"].clone());
    }
    (StatusCode::OK, "")
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
        assert_eq!(kept.distance.as_deref(), Some("Cosine"));
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
async fn vectors_that_are_compared_by_their_dot_product_are_kept_and_searched_at_their_length() {
    let expected = std::fs::read_to_string(folder("modernbert").join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let row = |index: usize| &expected["references"][index];
    let dot = |one: &[f64], two: &[f64]| one.iter().zip(two).map(|(a, b)| a * b).sum::<f64>();
    for (similarity, distance) in [("dot", "Dot"), ("cosine", "Cosine")] {
        let (it, url) = stand_in().await;
        let vector = |index| match similarity {
            "dot" => first_state(row(index)),
            _ => floats(&row(index)["vector"]),
        };
        let (model, data) = (unnormalized(similarity), tempfile::tempdir().unwrap());
        let [model, data] = [&model, &data].map(|folder| folder.path().display().to_string());
        let server =
            start(&["--model", &model, "--data-dir", &data, "--qdrant-url", &url, "--qdrant-api-key", "key"]);
        let document = |index: usize| json!({ "id": index.to_string(), "text": row(index)["text"] });
        let documents: Value = [0, 1, 3].map(document).into_iter().collect();
        let sink = json!({ "type": "qdrant", "collection": "lengths" });
        let job = server.run_job(&json!({ "documents": documents, "sink": sink })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        {
            let kept = it.0.lock().unwrap();
            assert_eq!((kept.distance.as_deref(), kept.vectors.len()), (Some(distance), 3));
            for (id, payload) in &kept.points {
                let expected = vector(payload["document_id"].as_str().unwrap().parse().unwrap());
                let found = floats(&kept.vectors[id]);
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(found.len() == expected.len() && off < 1e-4, "{payload} is off by {off}");
            }
        }
        let question = json!({ "query": row(0)["text"], "mode": "vector" });
        let answer = server.post("/v1/search", &question).await.json();
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 3, "{answer}");
        for result in results {
            let index = result["document_id"].as_str().unwrap().parse().unwrap();
            let expected = dot(&vector(0), &vector(index));
            let off = (result["score"].as_f64().unwrap() - expected).abs();
            assert!(off < 1e-4 * expected.abs().max(10.0), "{result} is off by {off}");
        }
    }
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
async fn what_is_too_large_for_the_server_is_sent_in_parts_and_one_chunk_stops_no_other() {
    let as_qdrant = "Payload error: JSON payload (1 bytes) is larger than allowed (limit: 1 bytes).";
    let answers = [(StatusCode::BAD_REQUEST, as_qdrant), (StatusCode::PAYLOAD_TOO_LARGE, "no")];
    for (status, says) in answers {
        let (it, url) = stand_in().await;
        it.0.lock().unwrap().limit = Some((100_000, status, says));
        let folder = tempfile::tempdir().unwrap();
        let server = with_folder(folder.path(), &["--qdrant-url", &url, "--qdrant-api-key", "key"]);
        let document = |id: &str, bytes: usize| {
            let note = "n".repeat(bytes);
            json!({ "id": id, "text": format!("The ship {id}."), "metadata": { "note": note } })
        };
        // Before and behind the one that does not fit.
        let mut documents: Vec<Value> =
            ["a", "b", "c", "x", "y", "z"].into_iter().map(|id| document(id, 40_000)).collect();
        documents.push(document("huge", 200_000));
        let sink = json!({ "type": "qdrant", "collection": "ships" });
        let job = server.run_job(&json!({ "documents": documents, "sink": sink })).await;
        let error = job["error"].as_str().unwrap_or_default();
        assert!(job["state"] == "failed" && error.contains(r#"document "huge" is too large"#), "{job}");
        assert_eq!((it.0.lock().unwrap().points.len(), &job["progress"]["sink_upserts"]), (6, &json!(6)));
        let job = server.run_job(&json!({ "delete": ["huge"] })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(it.0.lock().unwrap().points.len(), 6);
    }
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
