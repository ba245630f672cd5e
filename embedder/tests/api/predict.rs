//! `POST /predict`: labels of texts and pairs.

use super::models::folder;
use super::server::{reranker, start};
use serde_json::{Value, json};

#[tokio::test]
async fn labels_are_ranked_by_the_softmax_of_their_logits() {
    let server = start(&["--role", "reranker", "--model", &folder("bert-classifier").display().to_string()]);
    let kind = &server.get("/info").await.json()["model_type"];
    assert_eq!(kind["classifier"]["label2id"], json!({ "calm": 0, "hot": 2, "warm": 1 }));
    let expected = std::fs::read_to_string(folder("bert-classifier").join("expected.json")).unwrap();
    let expected = serde_json::from_str::<Value>(&expected).unwrap()["references"].clone();
    let pairs: Vec<&Value> = expected.as_array().unwrap().iter().map(|row| &row["pair"]).collect();
    let answer = server.post("/predict", &json!({ "inputs": pairs })).await.json();
    for (found, row) in answer.as_array().unwrap().iter().zip(expected.as_array().unwrap()) {
        let logits: Vec<f64> =
            row["logits"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let found = found.as_array().unwrap();
        assert!(found.is_sorted_by(|a, b| a["score"].as_f64() >= b["score"].as_f64()), "{found:?}");
        for (label, logit) in ["calm", "warm", "hot"].iter().zip(&logits) {
            let score = found.iter().find(|it| it["label"] == *label).unwrap()["score"].as_f64().unwrap();
            assert!((score - logit.exp() / total).abs() < 1e-4, "{label}: {score}");
        }
    }
    // One text, one pair; and the root does the same.
    for inputs in [json!("hot"), json!(["a hot card", "warm"])] {
        let one = server.post("/", &json!({ "inputs": inputs, "raw_scores": true })).await.json();
        assert_eq!(one.as_array().unwrap().len(), 3, "{one}");
        assert!(one[0]["label"].is_string());
    }
    for (body, status, kind, says) in [
        (json!({ "inputs": [] }), 400, "Empty", "inputs is []"),
        (json!({ "inputs": ["a", "b", "c"] }), 422, "Validation", "an input has 3 texts"),
        (json!({ "inputs": [[]] }), 422, "Validation", "an input has 0 texts"),
        (json!({ "inputs": 1 }), 422, "Validation", "inputs is 1: expected a text, a pair of texts"),
    ] {
        server.post("/predict", &body).await.refused(status, kind, says);
    }
    let rerank = json!({ "query": "a", "texts": ["b"] });
    server.post("/rerank", &rerank).await.refused(424, "Backend", "several labels");
}

#[tokio::test]
async fn a_reranker_predicts_its_only_label() {
    let pair = json!({ "inputs": ["how is a card cooled", "Fans cool the card."] });
    let predicted = reranker().post("/predict", &pair).await.json();
    let body = json!({ "query": "how is a card cooled", "texts": ["Fans cool the card."] });
    let ranked = reranker().post("/rerank", &body).await.json();
    assert_eq!(predicted[0]["label"], "LABEL_0");
    let (one, two) = (predicted[0]["score"].as_f64().unwrap(), ranked[0]["score"].as_f64().unwrap());
    assert!((one - two).abs() < 1e-6, "{one} {two}");
}
