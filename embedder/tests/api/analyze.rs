//! `POST /v1/analyze`: by heuristics, and by a language model where one answers.

use super::ollama::{Behavior, instance};
use super::server::start;
use serde_json::json;

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
        (json!({}), 422, "Validation", "missing field `text`"),
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
