//! The numbers against those of the reference implementations, which `fixtures/make_references.py` wrote down.

use super::server::{bge_small, colbert, cosine, data_factory, floats, norm, reranker, start};
use serde_json::{Value, json};

const EMBEDDINGS: &str = include_str!("../../fixtures/embeddings.json");
const BGE: &str = include_str!("../../fixtures/bge.json");
const COLBERT: &str = include_str!("../../fixtures/colbert.json");
const RERANK: &str = include_str!("../../fixtures/rerank.json");

fn references(file: &str) -> (Value, Vec<Value>) {
    let file: Value = serde_json::from_str(file).unwrap();
    let references = file["references"].as_array().unwrap().clone();
    assert!(references.len() >= 8);
    (file, references)
}

#[tokio::test]
async fn embeddings_are_those_of_sentence_transformers() {
    let (_, references) = references(EMBEDDINGS);
    let texts: Vec<&Value> = references.iter().map(|reference| &reference["text"]).collect();
    let together = data_factory().post("/v1/embeddings", &json!({ "input": texts })).await.json();
    let tokens: u64 = references.iter().map(|reference| reference["tokens"].as_u64().unwrap()).sum();
    assert_eq!(together["usage"]["prompt_tokens"], tokens);
    for (index, reference) in references.iter().enumerate() {
        let alone = data_factory().post("/embed", &json!({ "inputs": reference["text"] })).await.json();
        let expected = floats(&reference["vector"]);
        for vector in [&alone[0], &together["data"][index]["embedding"]].map(floats) {
            assert!((norm(&vector) - 1.0).abs() < 1e-5, "{}: length {}", reference["text"], norm(&vector));
            let cosine = cosine(&vector, &expected);
            assert!(cosine >= 0.999_999, "{}: cosine {cosine}", reference["text"]);
            let worst = vector.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-5, "{}: a component is off by {worst}", reference["text"]);
        }
    }
}

#[tokio::test]
async fn scores_are_those_of_onnx_runtime() {
    let (file, references) = references(RERANK);
    let texts: Vec<&Value> = references.iter().map(|reference| &reference["document"]).collect();
    let scores = async |raw: bool| {
        let body = json!({ "query": file["query"], "texts": texts, "raw_scores": raw });
        let answer = reranker().post("/rerank", &body).await.json();
        let mut ranks = answer.as_array().unwrap().clone();
        ranks.sort_by_key(|rank| rank["index"].as_u64());
        ranks.iter().map(|rank| rank["score"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let (logits, probabilities) = (scores(true).await, scores(false).await);
    assert_eq!(logits.len(), references.len());
    for ((reference, logit), probability) in references.iter().zip(logits).zip(probabilities) {
        let document = &reference["document"];
        let expected = reference["logit"].as_f64().unwrap();
        assert!((logit - expected).abs() < 1e-3, "{document}: {logit} instead of {expected}");
        let expected = 1.0 / (1.0 + (-expected).exp());
        assert!((probability - expected).abs() < 1e-3, "{document}: {probability} instead of {expected}");
        // The file as it is was not touched by any code of ours: a wrong dequantization would show here.
        let int8 = reference["int8_logit"].as_f64().unwrap();
        assert!((logit - int8).abs() < 0.5, "{document}: {logit}, far from the {int8} of the int8 file");
    }
}

#[tokio::test]
async fn first_tokens_of_bge_are_those_of_onnx_runtime() {
    let server = start(&["--model", &bge_small()]);
    let (_, references) = references(BGE);
    assert_eq!(server.get("/info").await.json()["model_type"]["embedding"]["pooling"], "cls");
    let texts: Vec<&Value> = references.iter().map(|reference| &reference["text"]).collect();
    let answer = server.post("/v1/embeddings", &json!({ "input": texts })).await.json();
    for (index, reference) in references.iter().enumerate() {
        let (found, expected) = (floats(&answer["data"][index]["embedding"]), floats(&reference["vector"]));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{}: a component is off by {worst}", reference["text"]);
    }
}

#[tokio::test]
async fn states_of_colbert_are_those_of_onnx_runtime() {
    let server = start(&["--model", &colbert()]);
    let (_, references) = references(COLBERT);
    let texts: Vec<&Value> = references.iter().map(|reference| &reference["text"]).collect();
    let answer = server.post("/embed_all", &json!({ "inputs": texts })).await.json();
    for (index, reference) in references.iter().enumerate() {
        let states = answer[index].as_array().unwrap();
        assert_eq!(json!(states.len()), reference["tokens"]);
        for (token, expected) in reference["states"].as_object().unwrap() {
            let (found, expected) = (floats(&states[token.parse::<usize>().unwrap()]), floats(expected));
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-3, "{}, token {token}: off by {worst}", reference["text"]);
        }
    }
}
