//! The numbers against those of the reference implementations, which `fixtures/make_references.py` wrote down.

use super::program::Program;
use super::server::{
    Server, bge_small, colbert, cosine, data_factory, floats, minilm, norm, reranker, start,
};
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
async fn smaller_number_formats_are_named_and_keep_the_directions() {
    let (_, references) = references(EMBEDDINGS);
    let texts: Vec<&Value> = references.iter().map(|reference| &reference["text"]).collect();
    // One by its flag, the other by its variable.
    let bf16 = start(&["--model", &minilm(), "--dtype", "bf16"]);
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start_with(folder.path(), |command| command.env("PRINCIPIUM_DTYPE", "int8"));
    let int8 = Server { url: program.url.clone() };
    program.ask(reqwest::Client::new().get(format!("{}/info", int8.url))).await;
    // A processor that is faster with f32 computes that for bf16, and says so.
    let cases: [(Server, &[&str], f64); 2] =
        [(bf16, &["bfloat16", "float32"], 0.999), (int8, &["int8"], 0.98)];
    for (server, named, least) in cases {
        let info = server.get("/info").await.json();
        let (name, kernel) = (info["model_dtype"].as_str().unwrap(), info["kernel"].as_str().unwrap());
        let kernels: &[&str] = match name {
            "float32" => &["avx512", "avx2", "portable"],
            "bfloat16" => &["avx512-bf16", "avx2", "portable"],
            _ => &["avx512-vnni", "avx-vnni", "portable"],
        };
        assert!(named.contains(&name) && kernels.contains(&kernel), "{name} by {kernel}");
        let answer = server.post("/v1/embeddings", &json!({ "input": texts })).await.json();
        let mut worst = 0.0;
        for (index, reference) in references.iter().enumerate() {
            let (found, expected) =
                (floats(&answer["data"][index]["embedding"]), floats(&reference["vector"]));
            let cosine = cosine(&found, &expected);
            assert!(cosine >= least, "{name}, {}: cosine {cosine}", reference["text"]);
            worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(worst, f64::max);
        }
        // Kernels of several formats have one name, but not the same numbers.
        assert_eq!(worst < 1e-5, name == "float32", "{name} by {kernel}: a component is off by {worst}");
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
