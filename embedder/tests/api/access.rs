//! API keys, request ids, and web pages that ask from a browser.

use super::models::folder;
use super::server::{Answer, Server, data_factory, start};
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
    for path in ["/info", "/health", "/ready", "/metrics", "/openapi.json", "/api-doc/openapi.json", "/docs"]
    {
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

/// What a server says to a browser that asks whether a page of `origin` may send a key and JSON to it.
async fn preflight(server: &Server, origin: &str) -> Answer {
    let request = reqwest::Client::new()
        .request(reqwest::Method::OPTIONS, format!("{}/embed", server.url))
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn pages_of_the_allowed_origins_may_ask_and_no_others() {
    let model = folder("bert").display().to_string();
    let (one, two, other) = ("https://app.example.com", "http://localhost:3000", "https://app.example.org");
    let origins = format!("{one}, {two}");
    let server = start(&["--model", &model, "--api-keys", "first", "--cors-allow-origin", &origins]);
    let any = start(&["--role", "doc-analyzer", "--cors-allow-origin", "*"]);
    let body = json!({ "inputs": "hot" });
    let allowed = "access-control-allow-origin";
    for origin in [one, two] {
        let may = preflight(&server, origin).await;
        assert_eq!((may.status, header(&may, allowed)), (200, Some(origin)), "it comes without a key");
        assert_eq!(header(&may, "access-control-allow-methods"), Some("GET,POST,DELETE"));
        assert_eq!(header(&may, "access-control-allow-headers"), Some("authorization,content-type"));
        for (key, status) in [("Bearer first", 200), ("Bearer second", 401)] {
            let headers = [("origin", origin), ("authorization", key)];
            let answer = server.post_with("/embed", &body, &headers).await;
            assert_eq!((answer.status, header(&answer, allowed)), (status, Some(origin)), "{key}");
            assert_eq!(header(&answer, "access-control-expose-headers"), Some("*"));
        }
    }
    assert_eq!(header(&preflight(&server, other).await, allowed), None);
    let headers = [("origin", other), ("authorization", "Bearer first")];
    let answer = server.post_with("/embed", &body, &headers).await;
    assert_eq!((answer.status, header(&answer, allowed)), (200, None), "the browser keeps it from the page");
    assert_eq!(header(&preflight(&any, other).await, allowed), Some("*"));
    let metrics = any.get("/metrics").await.text;
    assert!(!metrics.contains("request_duration_seconds_count{"), "a preflight is no request: {metrics}");
}

#[tokio::test]
async fn no_page_of_another_origin_may_ask_unless_it_is_allowed() {
    let may = preflight(data_factory(), "https://app.example.com").await;
    assert_eq!((may.status, header(&may, "access-control-allow-origin")), (405, None));
    let body = json!({ "inputs": "hot" });
    let answer = data_factory().post_with("/embed", &body, &[("origin", "https://app.example.com")]).await;
    assert_eq!((answer.status, header(&answer, "access-control-allow-origin")), (200, None));
}
