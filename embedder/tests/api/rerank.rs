//! Reranking in its three dialects: text-embeddings-inference, Jina and Cohere.

use super::server::{Answer, reranker};
use serde_json::{Value, json};

const QUERY: &str = "how is a hot graphics card cooled down";
const TEXTS: [&str; 3] = [
    "Berlin is the capital of Germany.",
    "Fans cool the graphics card when it gets hot.",
    "A hot card loses its pods.",
];

/// Positions in the order of an answer, and their scores.
fn ranking(results: &Value, score: &str) -> (Vec<u64>, Vec<f64>) {
    let results = results.as_array().unwrap();
    let indices = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    (indices, results.iter().map(|result| result[score].as_f64().unwrap()).collect())
}

#[tokio::test]
async fn tei_answers_with_a_bare_list_best_first() {
    let answer = reranker().post("/rerank", &json!({ "query": QUERY, "texts": TEXTS })).await.json();
    let (indices, scores) = ranking(&answer, "score");
    assert_eq!(indices, [1, 2, 0]);
    assert!(
        scores.is_sorted_by(|a, b| a >= b) && scores.iter().all(|score| (0.0..=1.0).contains(score)),
        "{scores:?}"
    );
    assert_eq!(answer[0].get("text"), None);
    let body = json!({ "query": QUERY, "texts": TEXTS, "return_text": true, "raw_scores": true });
    let raw = reranker().post("/", &body).await.json();
    assert_eq!(raw[0]["text"], TEXTS[1]);
    for (score, logit) in scores.iter().zip(ranking(&raw, "score").1) {
        assert!((score - 1.0 / (1.0 + (-logit).exp())).abs() < 1e-6, "{score} is not the sigmoid of {logit}");
    }
}

#[tokio::test]
async fn jina_answers_with_documents_unless_the_request_says_otherwise() {
    let body = json!({ "model": "jina-reranker", "query": QUERY, "documents": TEXTS, "top_n": 2 });
    let answer = reranker().post("/v1/rerank", &body).await.json();
    assert_eq!(ranking(&answer["results"], "relevance_score").0, [1, 2]);
    assert_eq!(
        (&answer["model"], &answer["results"][0]["document"]["text"]),
        (&json!("jina-reranker"), &json!(TEXTS[1]))
    );
    assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 30);
    let documents: Vec<Value> = TEXTS.iter().map(|text| json!({ "text": text })).collect();
    let body = json!({ "query": QUERY, "documents": documents, "return_documents": false });
    let bare = reranker().post("/v1/rerank", &body).await.json();
    assert_eq!(
        ranking(&bare["results"], "relevance_score").0,
        [1, 2, 0],
        "objects with a text are documents, too"
    );
    assert_eq!(bare["results"][0].get("document"), None);
}

#[tokio::test]
async fn cohere_answers_with_indices_and_cuts_documents_on_request() {
    let body = json!({ "model": "rerank-v3.5", "query": QUERY, "documents": TEXTS, "top_n": 1 });
    let answer = reranker().post("/v2/rerank", &body).await.json();
    assert_eq!(ranking(&answer["results"], "relevance_score").0, [1]);
    assert!(answer["id"].is_string() && answer["meta"]["api_version"]["version"] == "2", "{answer}");
    let late = format!("{} {}", TEXTS[0], TEXTS[1]);
    // Seven tokens hold the first sentence alone.
    for (most, whole) in [(json!(7), false), (Value::Null, true)] {
        let body = json!({ "query": QUERY, "documents": [TEXTS[0], late], "max_tokens_per_doc": most });
        let (indices, scores) =
            ranking(&reranker().post("/v2/rerank", &body).await.json()["results"], "relevance_score");
        assert_eq!((scores[0] > scores[1] + 0.1, whole), (whole, whole), "{indices:?} {scores:?}");
    }
}

#[tokio::test]
async fn pairs_that_are_too_long_are_cut_or_refused() {
    let long = "hot ".repeat(2000);
    let cut = reranker().post("/rerank", &json!({ "query": QUERY, "texts": [long] })).await.json();
    assert_eq!(cut.as_array().unwrap().len(), 1);
    let refused =
        reranker().post("/rerank", &json!({ "query": QUERY, "texts": [long], "truncate": false })).await;
    refused.refused(413, "Validation", "the model takes 512");
}

#[tokio::test]
async fn refusals_have_the_form_of_each_dialect() {
    let error = |answer: &Answer, field: &str| {
        let body: Value = serde_json::from_str(&answer.text).unwrap();
        (answer.status, body[field].as_str().unwrap_or_else(|| panic!("{body} has no {field}")).to_owned())
    };
    for (body, status, says) in [
        (json!({ "query": "q", "documents": [] }), 400, "documents is []"),
        (json!({ "query": "q" }), 422, "missing field `documents`"),
        (json!({ "query": 1, "documents": ["a"] }), 422, "query is 1"),
        (
            json!({ "query": "q", "documents": ["a", 2] }),
            422,
            "documents[1] is 2: expected a text or an object",
        ),
        (json!({ "query": "q", "documents": ["a"], "top_n": -1 }), 422, "top_n is -1"),
    ] {
        for (path, field) in [("/v1/rerank", "detail"), ("/v2/rerank", "message")] {
            let (found, message) = error(&reranker().post(path, &body).await, field);
            assert!(found == status && message.contains(says), "{path} {body}: {found} {message}");
        }
    }
    reranker().post("/rerank", &json!({ "query": "q", "texts": [] })).await.refused(
        400,
        "Empty",
        "texts is []",
    );
    let body = json!({ "query": "q", "texts": [{ "text": "a" }] });
    reranker().post("/rerank", &body).await.refused(422, "Validation", "texts[0] is {\"text\":\"a\"}");
    reranker().post("/embed", &json!({ "inputs": "a" })).await.refused(
        404,
        "Validation",
        "no route POST /embed",
    );
}
