//! `POST /v1/process` with a language model of which some instances fail: no document may be lost.

use super::ollama::{Behavior, instance};
use super::process::of_type;
use super::server::{Server, cosine, floats, minilm, start};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn data_factory(urls: &[&str]) -> Server {
    start(&["--model", &minilm(), "--ollama-url", &urls.join(","), "--ollama-model", "small"])
}

/// Processes ten documents of ten chunks, all of which must come with a context.
async fn process(server: &Server) -> Vec<Value> {
    let sentence = |n| {
        format!(
            "In step {n} the operator moves a workload to the coolest healthy card and drains the hot one. "
        )
    };
    let documents: Vec<Value> = (0..10)
        .map(|n| json!({ "id": n.to_string(), "text": format!("Document {n}. {}", (0..20).map(sentence).collect::<String>()) }))
        .collect();
    let body = json!({ "documents": documents, "options": { "chunk_max_tokens": 36 } });
    let lines = server.post("/v1/process", &body).await.lines();
    let summary = lines.last().unwrap();
    assert_eq!(
        (&summary["documents"], &summary["failed"], &summary["without_context"]),
        (&json!(10), &json!(0), &json!(0))
    );
    let chunks = of_type(&lines, "chunk");
    let promised: u64 =
        of_type(&lines, "document").iter().map(|document| document["chunks"].as_u64().unwrap()).sum();
    assert_eq!((chunks.len() as u64, &summary["chunks"]), (promised, &json!(promised)));
    assert!(promised >= 100);
    for chunk in chunks {
        assert_eq!(
            (&chunk["context"], chunk.get("context_error")),
            (&json!("It is about cards."), None),
            "{chunk}"
        );
    }
    lines
}

#[tokio::test]
async fn all_instances_take_part_and_the_vector_is_that_of_context_and_chunk() {
    let (one, _) = instance(Behavior::Well(5)).await;
    let (two, _) = instance(Behavior::Well(5)).await;
    let server = data_factory(&[&one, &two]);
    let lines = process(&server).await;
    let instances = lines.last().unwrap()["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2);
    for figures in instances {
        assert!(figures["contexts"].as_u64().unwrap() >= 30 && figures["failures"] == 0, "{figures}");
    }
    let chunk = of_type(&lines, "chunk")[0];
    let text = format!("{}\n\n{}", chunk["context"].as_str().unwrap(), chunk["text"].as_str().unwrap());
    let expected = server.post("/embed", &json!({ "inputs": text })).await.json();
    assert!(cosine(&floats(&chunk["vector"]), &floats(&expected[0])) > 0.999_999);
}

#[tokio::test]
async fn instances_that_die_or_never_lived_lose_nothing() {
    // Much slower than the one that dies: it must not be judged by that afterwards.
    let (good, _) = instance(Behavior::Well(10)).await;
    let (dying, asked) = instance(Behavior::Dies(5)).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let server = data_factory(&[&format!("http://{free}"), &dying, &good]);
    let lines = tokio::time::timeout(Duration::from_secs(60), process(&server)).await.unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 6, "five answers, and the question over which it died");
    let failures: u64 = lines.last().unwrap()["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|figures| figures["failures"].as_u64().unwrap())
        .sum();
    assert!(failures >= 2);
}

#[tokio::test]
async fn a_busy_instance_leaves_its_work_to_the_others() {
    let (good, _) = instance(Behavior::Well(1)).await;
    let (busy, asked) = instance(Behavior::Busy).await;
    let server = data_factory(&[&busy, &good]);
    process(&server).await;
    assert!(asked.load(Ordering::Relaxed) >= 1);
}

#[tokio::test]
async fn a_request_may_do_without_context() {
    let (idle, asked) = instance(Behavior::Well(1)).await;
    let server = data_factory(&[&idle]);
    let body = json!({ "documents": [{ "text": "A hot card." }], "options": { "enrich": false } });
    let lines = server.post("/v1/process", &body).await.lines();
    assert_eq!(of_type(&lines, "chunk")[0]["context"], json!(null));
    assert_eq!((asked.load(Ordering::Relaxed), &lines.last().unwrap()["without_context"]), (0, &json!(0)));
}
