//! API keys and request ids.

use super::models::folder;
use super::server::{data_factory, start};
use serde_json::{Value, json};

#[tokio::test]
async fn a_key_opens_what_the_model_does_and_the_rest_is_open() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "third\n").unwrap();
    let model = folder("bert").display().to_string();
    let path = file.path().display().to_string();
    let server = start(&["--model", &model, "--api-keys", "first,second", "--api-keys-file", &path]);
    let body = json!({ "inputs": "hot" });
    server.post("/embed", &body).await.refused(401, "Unauthorized", "Authorization: Bearer <key>");
    for (key, status) in [("first", 200), ("second", 200), ("third", 200), ("fourth", 401)] {
        let answer = server.post_with("/embed", &body, &[("authorization", &format!("Bearer {key}"))]).await;
        assert_eq!(answer.status, status, "{key}");
    }
    for (path, field) in [("/v1/embeddings", "error"), ("/v2/embed", "message")] {
        let answer = server.post(path, &json!({ "input": "hot" })).await;
        assert_eq!((answer.status, answer.headers["www-authenticate"].to_str().unwrap()), (401, "Bearer"));
        assert!(serde_json::from_str::<Value>(&answer.text).unwrap().get(field).is_some(), "{}", answer.text);
    }
    for path in ["/info", "/health", "/ready", "/metrics", "/openapi.json", "/docs"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/models").await.status, 401);
    assert_eq!(
        (server.get("/").await.status, server.post("/", &body).await.status),
        (200, 401),
        "its page is open"
    );
    let description = server.get("/openapi.json").await.json();
    assert_eq!(description["paths"]["/embed"]["post"]["security"], json!([{ "key": [] }]));
    assert_eq!(description["paths"]["/info"]["get"].get("security"), None);
}

#[tokio::test]
async fn a_key_opens_the_doc_analyzer_too() {
    let server = start(&["--role", "doc-analyzer", "--api-keys", "first"]);
    let body = json!({ "text": "# Pump\n\nIt gets hot." });
    server.post("/v1/analyze", &body).await.refused(401, "Unauthorized", "Authorization: Bearer <key>");
    let answer = server.post_with("/v1/analyze", &body, &[("authorization", "Bearer first")]).await;
    assert_eq!((answer.status, server.get("/ready").await.status), (200, 200));
}

#[tokio::test]
async fn every_answer_has_an_id_and_the_clients_own_is_kept() {
    let body = json!({ "inputs": "hot" });
    let own = data_factory().post_with("/embed", &body, &[("x-request-id", "mine-1")]).await;
    assert_eq!(own.headers["x-request-id"], "mine-1");
    let one = data_factory().post("/embed", &body).await;
    let two = data_factory().post("/no/such/route", &body).await;
    assert_ne!(one.headers["x-request-id"], two.headers["x-request-id"]);
}
