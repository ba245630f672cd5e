//! The way from SIGTERM to the end, of the program itself: what runs is finished, and nothing new is promised.

use super::models::folder;
use super::server::minilm;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A running program, ended with the test whatever happens.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
    }
}

/// Starts the program on a port that is free, and reads from its log where it listens.
fn start(arguments: &[&str]) -> (Program, String) {
    let (program, url, mut log) = start_with_log(arguments, "info");
    // The rest is read, so that the program does not wait for a reader.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (program, url)
}

/// The same with what of its log was not read yet, and from which level on there is one.
pub fn start_with_log(arguments: &[&str], level: &str) -> (Program, String, BufReader<ChildStdout>) {
    // For who asks it: no server of this process has done so.
    principium_embedder::tls::install();
    let mut child = Command::new(env!("CARGO_BIN_EXE_principium-embedder"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .env("RUST_LOG", level)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stdout.take().unwrap());
    let program = Program(child);
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        let entry: Value = serde_json::from_str(&line).unwrap();
        line.clear();
        if let Some(address) = entry["fields"]["listen"].as_str() {
            return (program, format!("http://{address}"), log);
        }
    }
    panic!("the program ended before it listened");
}

fn terminate(program: &Program) {
    let killed = Command::new("kill").arg(program.0.id().to_string()).status().unwrap();
    assert!(killed.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_run_are_finished_and_the_process_ends_well() {
    let model = folder("modernbert").display().to_string();
    let (mut program, url) =
        start(&["--model", &model, "--max-batch-tokens", "512", "--drain-seconds", "300"]);
    let client = reqwest::Client::new();
    let texts = vec!["a node holds eight cards of memory and a pod asks for units ".repeat(8); 2000];
    let started = Instant::now();
    let body = json!({ "inputs": texts }).to_string();
    let request = tokio::spawn(client.post(format!("{url}/embed")).body(body).send());
    // The request is there once its texts wait.
    let waits = async || {
        let text = client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line.starts_with("principium_embedder_tokens_total") && !line.ends_with(" 0"))
    };
    while !waits().await {
        assert!(started.elapsed() < Duration::from_secs(60), "the request never began");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!request.is_finished(), "the request ended before the process was told to");
    terminate(&program);
    // Until every proxy has heard of it the process still answers, and says that it is about to go.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ready = client.get(format!("{url}/ready")).send().await.unwrap();
    assert_eq!(ready.status().as_u16(), 503);
    assert!(ready.text().await.unwrap().contains("shutting down"));
    let answer = request.await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let vectors: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(vectors.as_array().unwrap().len(), 2000);
    let status = tokio::task::spawn_blocking(move || program.0.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(client.get(format!("{url}/health")).send().await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_job_that_goes_on_do_not_hold_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (minilm(), folder.path().display().to_string());
    let (mut program, url) = start(&["--model", &model, "--data-dir", &data, "--drain-seconds", "300"]);
    let client = reqwest::Client::new();
    let text = "a node holds eight cards of memory and a pod asks for units ".repeat(1000);
    let documents: Vec<Value> =
        (0..50).map(|id| json!({ "id": id.to_string(), "text": format!("{id} {text}") })).collect();
    let body = json!({ "corpus": "ships", "documents": documents }).to_string();
    let answer = client.post(format!("{url}/v1/jobs")).body(body).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 202);
    let job: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let events = format!("{url}/v1/jobs/{}/events", job["id"].as_str().unwrap());
    let events = client.get(events).send().await.unwrap();
    assert_eq!(events.status().as_u16(), 200);
    terminate(&program);
    let events = tokio::time::timeout(Duration::from_secs(60), events.text()).await;
    let events = events.expect("the events go on").unwrap();
    assert!(!events.contains("event: end"), "the job ended before the process was told to: {events}");
    let ended = tokio::task::spawn_blocking(move || program.0.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(60), ended).await;
    let status = status.expect("the process waits for what has ended").unwrap();
    assert!(status.success(), "{status}");
}
