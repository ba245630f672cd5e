//! `/v1/jobs` and `/v1/corpora` over HTTP: what they answer, what they refuse, and the events of a job.

use super::server::{Server, data_factory, minilm, start};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;
use tempfile::TempDir;

/// A data factory with a folder of its own, which all tests share.
pub fn server() -> &'static Server {
    static SERVER: LazyLock<(TempDir, Server)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let server = with_folder(folder.path(), &[]);
        (folder, server)
    });
    &SERVER.1
}

/// A data factory that keeps its jobs in a folder, and has the volumes beside them.
pub fn with_folder(folder: &Path, more: &[&str]) -> Server {
    let (data, volumes) = (folder.join("data"), folder.join("volumes"));
    std::fs::create_dir_all(&volumes).unwrap();
    let (data, volumes, model) = (data.display().to_string(), volumes.display().to_string(), minilm());
    let mut flags = vec!["--model", &model, "--data-dir", &data, "--volumes", &volumes];
    flags.extend(more);
    start(&flags)
}

#[tokio::test]
async fn a_job_is_taken_followed_and_its_chunks_are_read() {
    let body = json!({
        "corpus": "ships",
        "documents": [
            { "id": "vasa", "title": "Vasa", "format": "markdown", "text": "# Vasa\n\nShe sank in 1628.", "metadata": { "year": 1628 } },
            { "id": "empty", "text": " " },
        ],
    });
    let answer = server().post("/v1/jobs", &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let job: Value = serde_json::from_str(&answer.text).unwrap();
    let id = job["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/v1/jobs/{id}"));

    let events = server().get(&format!("/v1/jobs/{id}/events")).await;
    assert_eq!(events.headers["content-type"], "text/event-stream");
    let last = events.text.rsplit("data: ").next().unwrap();
    let last: Value = serde_json::from_str(last.trim()).unwrap();
    assert!(events.text.contains("event: end"), "{}", events.text);
    assert_eq!(last["state"], "succeeded");
    let ended = server().end_of_job(id).await;
    assert_eq!(ended, last);
    assert_eq!(
        (&ended["progress"]["documents_done"], &ended["progress"]["documents_failed"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(ended["failures"], json!([{ "document_id": "empty", "error": "the document holds no text" }]));

    let chunks = server().get("/v1/corpora/ships/chunks").await;
    assert_eq!(chunks.headers["content-type"], "application/x-ndjson");
    let chunk = chunks.lines().remove(0);
    for (field, value) in [
        ("document_id", json!("vasa")),
        ("title", json!("Vasa")),
        ("heading_path", json!(["Vasa"])),
        ("metadata", json!({ "year": 1628 })),
        ("corpus", json!("ships")),
    ] {
        assert_eq!(chunk[field], value, "{field}");
    }
    assert_eq!(chunk["vector"].as_array().unwrap().len(), 384);
    let bare = server().get("/v1/corpora/ships/chunks?document=vasa&vectors=false").await.lines().remove(0);
    assert_eq!((bare.get("vector"), &bare["chunk_id"]), (None, &chunk["chunk_id"]));
    let documents = server().get("/v1/corpora/ships/documents").await.json();
    assert_eq!(documents["documents"][0]["document_id"], "vasa");
    assert_eq!(server().get("/v1/corpora").await.json()["corpora"]["ships"]["documents"], 1);
    let listed = server().get("/v1/jobs?limit=1000").await.json();
    assert!(listed["jobs"].as_array().unwrap().iter().any(|job| job["id"] == id));
    assert_eq!(server().delete(&format!("/v1/jobs/{id}")).await.status, 204);
    server().get(&format!("/v1/jobs/{id}")).await.refused(404, "Validation", "there is no job");
}

#[tokio::test]
async fn what_is_wrong_is_refused_in_words() {
    for (body, status, kind, says) in [
        (json!({}), 400, "Empty", "nothing to do"),
        (json!({ "documents": [{ "text": 1 }] }), 422, "Validation", "documents[0].text is 1"),
        (json!({ "source": { "type": "ftp" } }), 422, "Validation", "unknown variant `ftp`"),
        (json!({ "delete": ["x"], "sink": { "type": "jsonl", "path": "../x" } }), 422, "Validation", "'..'"),
    ] {
        server().post("/v1/jobs", &body).await.refused(status, kind, says);
    }
    server().get("/v1/jobs?limit=0").await.refused(422, "Validation", "limit is 0");
    server().get("/v1/jobs?before=none").await.refused(404, "Validation", "there is no job \"none\"");
    server().get("/v1/corpora/none/chunks").await.refused(404, "Validation", "there is no corpus \"none\"");
    let without = data_factory().post("/v1/jobs", &json!({ "delete": ["x"] })).await;
    without.refused(503, "Unhealthy", "set PRINCIPIUM_DATA_DIR");
}

#[tokio::test]
async fn a_running_job_can_be_cancelled_and_keeps_what_it_has_made() {
    let text = "The operator moves a workload to the coolest healthy card. ".repeat(2000);
    let documents: Vec<Value> = (0..4).map(|n| json!({ "id": n.to_string(), "text": text })).collect();
    let body = json!({ "corpus": "long", "id": "long-1", "documents": documents, "options": { "chunk_max_tokens": 16 } });
    assert_eq!(server().post("/v1/jobs", &body).await.status, 202);
    loop {
        let job = server().get("/v1/jobs/long-1").await.json();
        if job["progress"]["chunks_embedded"].as_u64().unwrap() > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(server().post("/v1/jobs/long-1/cancel", &json!({})).await.status, 202);
    let ended = server().end_of_job("long-1").await;
    assert_eq!(ended["state"], "cancelled");
    assert!(ended["progress"]["documents_done"].as_u64().unwrap() < 4, "{ended}");
    let metrics = server().get("/metrics").await.text;
    assert!(metrics.contains(r#"principium_embedder_jobs_ended_total{state="cancelled"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"principium_embedder_job_chunks_total{outcome="embedded"}"#), "{metrics}");
}

#[tokio::test]
async fn a_corpus_is_searched_by_vectors_by_words_and_by_both() {
    let documents = json!([
        { "id": "vasa", "text": "The warship Vasa sank in the harbor of Stockholm on her first voyage." },
        { "id": "moon", "text": "Three men flew around the moon and came back in their lifeboat." },
        { "id": "mold", "text": "A mold killed the bacteria in a dish that had been left open." },
    ]);
    server().run_job(&json!({ "corpus": "searched", "documents": documents })).await;
    let found = async |more: Value| {
        let mut body = json!({ "corpus": "searched" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server().post("/v1/search", &body).await.json();
        assert_eq!(answer["chunks"], 3);
        answer["results"].clone()
    };
    let by_vector = found(json!({ "query": "astronauts in trouble", "mode": "vector" })).await;
    assert_eq!(
        (&by_vector[0]["document_id"], &by_vector[0]["ranks"]),
        (&json!("moon"), &json!({ "vector": 1 }))
    );
    let by_words = found(json!({ "query": "bacteria Stockholm zzz", "mode": "bm25" })).await;
    assert_eq!(by_words.as_array().unwrap().len(), 2);
    let by_both = found(json!({ "query": "Which warship sank?", "top_k": 1 })).await;
    assert_eq!((by_both.as_array().unwrap().len(), &by_both[0]["document_id"]), (1, &json!("vasa")));
    assert_eq!(by_both[0]["ranks"], json!({ "vector": 1, "bm25": 1 }));
    assert!(by_both[0].get("vector").is_none() && by_both[0]["score"].is_f64());

    server().run_job(&json!({ "corpus": "searched", "delete": ["vasa"] })).await;
    let body = json!({ "corpus": "searched", "query": "Which warship sank?" });
    let after = server().post("/v1/search", &body).await.json();
    assert!(after["chunks"] == 2 && !after.to_string().contains("Vasa"), "{after}");
    for (body, status, kind, says) in [
        (json!({ "query": " " }), 400, "Empty", "query is empty"),
        (json!({ "query": "x", "corpus": "none" }), 404, "Validation", "there is no corpus \"none\""),
        (
            json!({ "query": "x", "corpus": "searched", "rerank": true }),
            422,
            "Validation",
            "PRINCIPIUM_RERANKER_URL",
        ),
        (json!({ "query": "x", "top_k": 0 }), 422, "Validation", "top_k is 0"),
    ] {
        server().post("/v1/search", &body).await.refused(status, kind, says);
    }
}

#[tokio::test]
async fn a_reranker_that_wants_a_key_is_shown_it() {
    let theirs =
        start(&["--model", &super::server::cross_encoder(), "--role", "reranker", "--api-keys", "old,right"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "right\n").unwrap();
    let file = file.display().to_string();
    let search = json!({ "query": "Why did the Vasa sink?" });
    let documents = json!([{ "id": "vasa", "text": "The Vasa sank because she was top-heavy." }]);
    for (flags, answer) in [
        (vec!["--reranker-api-key-file", &file], Ok(())),
        (vec!["--reranker-api-key", "old", "--reranker-api-key-file", &file], Ok(())),
        (vec!["--reranker-api-key", "wrong"], Err("wants another API key")),
        (vec![], Err("wants an API key: give it by search.rerankerRef.apiKeySecretRef")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = with_folder(folder.path(), &[&["--reranker-url", &theirs.url], &*flags].concat());
        server.run_job(&json!({ "documents": documents })).await;
        let found = server.post("/v1/search", &search).await;
        match answer {
            Ok(()) => assert_eq!(found.json()["results"][0]["ranks"]["rerank"], 1, "{flags:?}"),
            Err(says) => found.refused(424, "Backend", says),
        }
    }
}

#[tokio::test]
async fn search_results_are_reranked_where_a_reranker_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &["--reranker-url", &super::server::reranker().url]);
    let documents = json!([
        { "id": "sank", "text": "The Vasa sank because she was top-heavy and her lower gun ports stood open." },
        { "id": "built", "text": "The Vasa was built in Stockholm by four hundred people. Why so many? Nobody knows why." },
    ]);
    server.run_job(&json!({ "documents": documents })).await;
    let found = server.post("/v1/search", &json!({ "query": "Why did the Vasa sink?" })).await.json();
    assert_eq!(
        (&found["results"][0]["document_id"], &found["results"][0]["ranks"]["rerank"]),
        (&json!("sank"), &json!(1))
    );
    let without = server
        .post("/v1/search", &json!({ "query": "Why did the Vasa sink?", "rerank": false }))
        .await
        .json();
    assert!(without["results"][0]["ranks"].get("rerank").is_none());
}
