//! `POST /v1/analyze`: by heuristics, and by a language model where one answers.

use super::ollama::{Behavior, instance};
use super::server::start;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const TEXT: &str =
    "# Pump\n\nHow to install the pump: see below.\n\n## Usage\n\nWarning: the pump gets hot.\n";

#[tokio::test]
async fn heuristics_tell_kind_language_structure_and_chunking() {
    let server = start(&["--role", "doc-analyzer"]);
    let answer = server.post("/v1/analyze", &json!({ "text": TEXT, "filename": "pump.md" })).await.json();
    assert_eq!((&answer["document_type"], &answer["method"]), (&json!("manual"), &json!("heuristics")));
    assert_eq!(
        (&answer["language"]["code"], &answer["language"]["name"]),
        (&json!("eng"), &json!("English"))
    );
    assert_eq!(
        (&answer["structure"]["headings"], &answer["structure"]["paragraphs"]),
        (&json!(2), &json!(4))
    );
    assert_eq!(answer["suggested_chunking"]["strategy"], "markdown");
    assert!(answer["suggested_chunking"]["max_tokens"].as_u64().unwrap() > 0);
    for (body, status, kind, says) in [
        (json!({ "text": " " }), 400, "Empty", "text is \" \""),
        (json!({}), 422, "Validation", "there is no document"),
        (json!({ "text": "a", "format": "xlsx" }), 422, "Validation", "format is \"xlsx\": it can be text"),
        (json!({ "text": ["a"] }), 422, "Validation", "text is [\"a\"]"),
        (json!({ "text": "a", "url": "b" }), 422, "Validation", "url is \"b\": unknown field `url`"),
    ] {
        server.post("/v1/analyze", &body).await.refused(status, kind, says);
    }
    server.post("/embed", &json!({ "inputs": "a" })).await.refused(404, "Validation", "no route POST /embed");
}

#[tokio::test]
async fn a_language_model_chooses_the_kind_and_heuristics_stand_in_for_it() {
    let (good, _) = instance(Behavior::Analyzes).await;
    let (busy, _) = instance(Behavior::Busy).await;
    for (url, kind, method) in [(&good, "manual", "llm"), (&busy, "article", "heuristics")] {
        let server = start(&["--role", "doc-analyzer", "--ollama-url", url, "--ollama-model", "small"]);
        let answer = server.post("/v1/analyze", &json!({ "text": "The ship sank in 1628." })).await.json();
        assert_eq!((&answer["document_type"], &answer["method"]), (&json!(kind), &json!(method)));
        let error = answer.get("llm_error").and_then(|error| error.as_str());
        assert_eq!(
            error.is_some_and(|error| error.contains("server busy")),
            method == "heuristics",
            "{answer}"
        );
    }
}

/// A server with OpenAI's API, which wants a key.
async fn chat() -> String {
    let complete = post(|headers: HeaderMap, Json(question): Json<Value>| async move {
        if headers.get("authorization").is_none_or(|key| key != "Bearer sesame") {
            return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "no such key" } })));
        }
        let asked = question["messages"][0]["content"].as_str().unwrap();
        assert!(question["model"] == "small" && asked.contains("The ship sank in 1628."), "{question}");
        assert_eq!(question["response_format"]["type"], "json_schema", "{question}");
        let message = json!({ "role": "assistant", "content": "{\"document_type\":\"manual\"}" });
        (StatusCode::OK, Json(json!({ "choices": [{ "index": 0, "message": message }] })))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/chat/completions", complete);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_openais_api_is_asked_with_its_key_and_heuristics_stand_in_for_it() {
    let url = chat().await;
    for (key, kind, method) in [("sesame", "manual", "llm"), ("wrong", "article", "heuristics")] {
        let flags =
            ["--role", "doc-analyzer", "--llm-url", &url, "--llm-model", "small", "--llm-api-key", key];
        let server = start(&flags);
        let answer = server.post("/v1/analyze", &json!({ "text": "The ship sank in 1628." })).await.json();
        assert_eq!((&answer["document_type"], &answer["method"]), (&json!(kind), &json!(method)), "{answer}");
        let error = answer["llm_error"].as_str().unwrap_or_default();
        assert_eq!(error.contains("401") && error.contains("no such key"), key == "wrong", "{answer}");
        assert!(!answer.to_string().contains(key) || key == "wrong", "{answer}");
    }
}

#[tokio::test]
async fn files_are_analyzed_and_compared() {
    let server = start(&["--role", "doc-analyzer"]);
    let file = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/documents").join(name);
        STANDARD.encode(std::fs::read(path).unwrap())
    };
    let body = json!({ "documents": [
        { "id": "pdf", "data": file("vasa.pdf") },
        { "id": "html", "data": file("vasa.html") },
        { "id": "table", "data": file("ships.csv") },
        { "id": "code", "text": "import os\n\ndef sink(ship):\n    return os.remove(ship)\n\nclass Ship:\n    def __init__(self, tons):\n        self.tons = tons\n" },
        { "id": "letter", "text": "Sehr geehrte Frau Roe,\nbitte schreiben Sie an anna@example.org.\nMit freundlichen Grüßen" },
        { "id": "scan", "data": file("scan.pdf") },
    ]});
    let answer = server.post("/v1/analyze", &body).await.json();
    let documents = answer["documents"].as_array().unwrap();
    let of = |id: &str| documents.iter().find(|document| document["id"] == id).unwrap();
    assert_eq!(
        (&of("pdf")["format"], &of("pdf")["pages"], &of("pdf")["language"]["code"]),
        (&json!("pdf"), &json!(2), &json!("eng"))
    );
    assert_eq!(of("html")["near_duplicate_of"]["id"], "pdf", "{answer}");
    assert_eq!(
        (&of("table")["document_type"], &of("code")["code_language"]),
        (&json!("table"), &json!("python"))
    );
    assert_eq!(of("code")["suggested_chunking"]["strategy"], "code");
    assert_eq!(
        (&of("letter")["document_type"], &of("letter")["language"]["code"]),
        (&json!("letter"), &json!("deu"))
    );
    assert_eq!(of("letter")["personal_data"][0]["kind"], "email");
    assert!(of("scan")["error"].as_str().unwrap().contains("OCR"));
}

#[tokio::test]
async fn a_form_beyond_the_limit_is_refused_as_any_body_is() {
    let server = start(&["--role", "doc-analyzer"]);
    let head = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n";
    let body = [head.as_bytes(), &vec![b'a'; 64 << 20], b"\r\n--x--\r\n"].concat();
    let answer = server.post_bytes("/v1/analyze", "multipart/form-data; boundary=x", body).await;
    answer.refused(413, "Validation", "payload limit");
}
