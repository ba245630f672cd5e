//! The real program, killed at random points: what a job makes must be what an undisturbed one makes, byte by byte, and no
//! chunk may be computed twice once it was kept.

use super::server::minilm;
use serde_json::{Value, json};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 6;

/// The program at work in a folder.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = command(folder, &free.to_string()).stdout(Stdio::null()).spawn().unwrap();
        Self { child, url: format!("http://{free}") }
    }

    /// SIGKILL: nothing of the program runs after it.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            match request.try_clone().unwrap().send().await {
                Ok(response) => return response.json().await.unwrap(),
                Err(error) => assert!(Instant::now() < give_up, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn submit(&self, body: &Value) -> Value {
        let request = reqwest::Client::new().post(format!("{}/v1/jobs", self.url)).body(body.to_string());
        self.ask(request).await
    }

    async fn job(&self, id: &str) -> Value {
        self.ask(reqwest::Client::new().get(format!("{}/v1/jobs/{id}", self.url))).await
    }

    async fn end(&self, id: &str) -> Value {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            let job = self.job(id).await;
            if job["finished_ms"].is_u64() {
                return job;
            }
            assert!(Instant::now() < give_up, "{job}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn command(folder: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
    command.args(["serve", "--listen", listen, "--model", &minilm()]);
    command.arg("--data-dir").arg(folder.join("data")).arg("--volumes").arg(folder.join("volumes"));
    // The last bits of a vector depend on the inputs beside it: alone, it is the same every time.
    command.args(["--max-batch-tokens", "1"]);
    command
}

/// Documents of a few chunks each, no two of them alike.
fn write_documents(folder: &Path) {
    let documents = folder.join("volumes/documents");
    fs::create_dir_all(&documents).unwrap();
    for document in 0..30 {
        let paragraph = |number: usize| {
            format!(
                "Paragraph {number} of document {document} says how card {} is cooled. ",
                number * 7 + document
            )
            .repeat(3)
        };
        let text: Vec<String> = (0..8).map(paragraph).collect();
        fs::write(documents.join(format!("{document}.txt")), text.join("\n\n")).unwrap();
    }
}

fn body() -> Value {
    json!({
        "id": "corpus-1",
        "corpus": "c",
        "documents": [{ "id": "uploaded", "text": "It came with the request." }],
        "source": { "type": "folder", "path": "documents" },
        "sink": { "type": "jsonl", "path": "out/c.jsonl" },
        "options": { "chunk_max_tokens": 64 },
    })
}

#[tokio::test]
async fn a_killed_process_goes_on_without_losing_or_repeating_anything() {
    principium_embedder::client::install_tls();
    let (undisturbed, disturbed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&undisturbed, &disturbed] {
        write_documents(folder.path());
    }
    let process = Process::start(undisturbed.path());
    process.submit(&body()).await;
    let began = Instant::now();
    let expected = process.end("corpus-1").await;
    let took = began.elapsed();
    process.kill();
    assert_eq!(expected["state"], "succeeded", "{expected}");

    let mut while_running = 0;
    for _ in 0..KILLS {
        let process = Process::start(disturbed.path());
        // The same request each time: a client that was cut off asks again.
        let job = process.submit(&body()).await;
        let random = RandomState::new().hash_one(0) % 1000;
        tokio::time::sleep(took.mul_f64(0.25).mul_f64(f64::from(u32::try_from(random).unwrap()) / 1000.0))
            .await;
        while_running += usize::from(!job["finished_ms"].is_u64());
        process.kill();
    }
    let process = Process::start(disturbed.path());
    let ended = process.end("corpus-1").await;
    process.kill();

    assert!(while_running >= 3, "only {while_running} of {KILLS} kills met a running job");
    assert_eq!(ended["state"], "succeeded", "{ended}");
    for count in ["documents_done", "documents_failed", "chunks", "chunks_embedded", "tokens"] {
        assert_eq!(ended["progress"][count], expected["progress"][count], "{count} after {ended}");
    }
    assert_eq!(ended["progress"]["chunks_embedded"], ended["progress"]["chunks"], "each chunk was made once");
    let read = |folder: &Path| fs::read(folder.join("volumes/out/c.jsonl")).unwrap();
    let (one, two) = (read(undisturbed.path()), read(disturbed.path()));
    assert_eq!(
        one.iter().filter(|byte| **byte == b'\n').count(),
        usize::try_from(expected["progress"]["chunks"].as_u64().unwrap()).unwrap()
    );
    assert!(one == two, "the outputs differ: {} and {} bytes", one.len(), two.len());
}

#[tokio::test]
async fn a_second_process_does_not_touch_the_folder_of_the_first() {
    principium_embedder::client::install_tls();
    let folder = tempfile::tempdir().unwrap();
    let first = Process::start(folder.path());
    first.submit(&json!({ "documents": [{ "text": "a" }] })).await;
    let second = command(folder.path(), "127.0.0.1:0").output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && error.contains("in use by another process"), "{error}");
    first.kill();
}
