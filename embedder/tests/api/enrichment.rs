//! `POST /v1/process` with a language model of which some instances fail: no document may be lost.

use super::ollama::{Behavior, instance, instance_at};
use super::process::of_type;
use super::program::Program;
use super::server::{Server, cosine, floats, minilm, start};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// Waits until an instance was asked something that it had not been asked before.
async fn is_asked(asked: &AtomicUsize) {
    let (before, give_up) = (asked.load(Ordering::Relaxed), Instant::now() + Duration::from_secs(60));
    while asked.load(Ordering::Relaxed) == before {
        assert!(Instant::now() < give_up, "it is not asked anything");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn instances_come_and_go_with_the_addresses_of_their_name_while_a_job_runs() {
    principium_embedder::tls::install();
    // A resolver that reads a file, in place of the system's.
    let library = format!("/usr/lib/{}-linux-gnu/libnss_wrapper.so", std::env::consts::ARCH);
    assert!(Path::new(&library).exists(), "{library} is missing: `cargo xtask test` installs libnss-wrapper");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let resolve = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|address| format!("{address} ollama.test\n")).collect();
        let next = hosts.with_extension("next");
        std::fs::write(&next, lines).unwrap();
        std::fs::rename(&next, &hosts).unwrap();
    };
    let (url, first) = instance(Behavior::Well(200)).await;
    let port = url.rsplit(':').next().unwrap();
    let (_, second) = instance_at(Behavior::Well(200), &format!("127.0.0.2:{port}")).await;
    resolve(&["127.0.0.1"]);
    let program = Program::start_with(folder.path(), |command| {
        command.env("LD_PRELOAD", &library).env("NSS_WRAPPER_HOSTS", &hosts);
        command.args(["--ollama-url", &format!("http://ollama.test:{port}"), "--ollama-model", "small"])
    });
    program.ask(reqwest::Client::new().get(format!("{}/info", program.url))).await;
    // What was said of a chunk is not asked again: each has to be another one.
    let sentence = |n| format!("Card {n} is moved from the hot node to the cool one. ");
    let text = |n| format!("Document {n}. {}", (0..100).map(sentence).collect::<String>());
    let documents: Vec<Value> = (0..20).map(|n| json!({ "id": n.to_string(), "text": text(n) })).collect();
    let job = json!({ "documents": documents, "options": { "chunk_max_tokens": 40 } });
    let job = program.submit(&job).await;
    is_asked(&first).await;
    assert_eq!(second.load(Ordering::Relaxed), 0);
    resolve(&["127.0.0.1", "127.0.0.2"]);
    is_asked(&second).await;
    is_asked(&first).await;
    resolve(&["127.0.0.2"]);
    // What it was asked before it left, it may still answer.
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let before = first.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
        if first.load(Ordering::Relaxed) == before {
            break;
        }
        assert!(Instant::now() < give_up, "it is asked for ever");
    }
    is_asked(&second).await;
    let id = job["id"].as_str().unwrap();
    let cancel = reqwest::Client::new().post(format!("{}/v1/jobs/{id}/cancel", program.url));
    program.ask(cancel).await;
    let ended = program.end_of_job(id).await;
    let without = &ended["progress"]["chunks_without_context"];
    assert_eq!((&ended["state"], without), (&json!("cancelled"), &json!(0)), "{ended}");
}
