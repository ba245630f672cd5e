//! The log of the program itself, whose lines say which request they are about.

use super::drain::start_with_log;
use super::models::folder;
use serde_json::{Value, json};
use std::io::BufRead as _;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

#[tokio::test(flavor = "multi_thread")]
async fn every_line_about_a_request_has_its_id_and_its_trace() {
    let model = folder("bert").display().to_string();
    let (mut program, url, log) = start_with_log(&["--model", &model], "principium_embedder=debug");
    let lines = std::thread::spawn(move || -> Vec<Value> {
        log.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    });
    let client = reqwest::Client::new();
    let ask = async |path: &str, id: Option<&str>| {
        let mut request = client.post(format!("{url}{path}")).body(json!({ "inputs": "hot" }).to_string());
        if let Some(id) = id {
            let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
            request = request.header("x-request-id", id).header("traceparent", parent);
        }
        let answer = request.send().await.unwrap();
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), id)
    };
    assert_eq!(ask("/embed", Some("well-1")).await, (200, "well-1".to_owned()));
    // One that fails, which is told without any debugging, too.
    assert_eq!(ask("/embed_sparse", Some("ill-2")).await, (424, "ill-2".to_owned()));
    let (_, own) = ask("/embed", None).await;
    // What was written is read to its end.
    program.0.kill().unwrap();
    let lines = tokio::task::spawn_blocking(|| lines.join().unwrap()).await.unwrap();
    let expected = [(Some("well-1"), Some(TRACE)), (Some(own.as_str()), None)];
    assert_eq!(told(&lines, "/embed"), expected, "{lines:#?}");
    assert_eq!(told(&lines, "/embed_sparse"), [(Some("ill-2"), Some(TRACE))], "{lines:#?}");
    let warned = lines.iter().any(|line| line["level"] == "WARN" && line["span"]["id"] == "ill-2");
    assert!(warned, "{lines:#?}");
}

/// Id and trace of the requests to a route, as the lines about them tell them, each once.
fn told<'a>(lines: &'a [Value], route: &str) -> Vec<(Option<&'a str>, Option<&'a str>)> {
    let about = lines.iter().map(|line| &line["span"]).filter(|span| span["route"] == route);
    let mut told: Vec<_> = about.map(|span| (span["id"].as_str(), span["trace"].as_str())).collect();
    told.dedup();
    told
}
