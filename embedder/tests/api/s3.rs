//! S3-compatible storage as source and as sink, against a server that speaks its protocol: `moto`, from the package index.

use super::program::Program;
use super::server::cached;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that ends with the test.
struct Storage {
    child: Child,
    url: String,
}

impl Storage {
    async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(cached("venvs/storage/bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let storage = Self { child, url: format!("http://127.0.0.1:{port}") };
        let give_up = Instant::now() + Duration::from_secs(60);
        while reqwest::get(&storage.url).await.is_err() {
            assert!(Instant::now() < give_up, "the storage server does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        storage
    }

    /// What the server answers to a request; it does not check signatures.
    async fn ask(&self, method: Method, path: &str, content: &'static str) -> Vec<u8> {
        let signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let request = reqwest::Client::new().request(method, format!("{}/{path}", self.url));
        let response = request.header("authorization", signed).body(content).send().await.unwrap();
        response.error_for_status().unwrap().bytes().await.unwrap().to_vec()
    }

    /// Makes a bucket, or an object in one.
    async fn put(&self, path: &str, content: &'static str) {
        self.ask(Method::PUT, path, content).await;
    }

    async fn lines(&self, path: &str) -> Vec<Value> {
        let text = String::from_utf8(self.ask(Method::GET, path, "").await).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Tells the program where the storage is, as the standard variables do.
    fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs([
            ("AWS_ENDPOINT_URL", self.url.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "geheim"),
        ])
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_bucket_is_followed_and_the_corpus_is_written_to_another() {
    principium_embedder::tls::install();
    let storage = Storage::start().await;
    storage.put("docs", "").await;
    storage.put("out", "").await;
    for (key, text) in [
        ("handbook/a.md", "# Refunds\n\nAsk the treasurer."),
        ("handbook/deep er/b.txt", "Fans are checked on Mondays."),
        ("handbook/picture.png", "\u{89}PNG"),
        ("handbook-old/c.md", "Nobody reads this."),
    ] {
        storage.put(&format!("docs/{key}"), text).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = Program::start_with(folder.path(), |command| storage.tell(command));
    let body = json!({
        "corpus": "handbook",
        "source": { "type": "s3", "url": "s3://docs/handbook", "include": ["**/*.md", "**/*.txt"] },
        "sink": { "type": "jsonl", "path": "s3://out/deep/handbook.jsonl" },
    });
    let job = program.run_job(&body).await;
    assert_eq!(
        (&job["state"], &job["progress"]["documents_done"]),
        (&json!("succeeded"), &json!(2)),
        "{job}"
    );
    assert!(!job.to_string().contains("geheim"));
    let lines = storage.lines("out/deep/handbook.jsonl").await;
    let ids: Vec<&Value> = lines.iter().map(|line| &line["document_id"]).collect();
    assert_eq!(ids, ["a.md", "deep er/b.txt"]);

    let again = program.run_job(&body).await;
    let progress = &again["progress"];
    assert_eq!(
        (&progress["documents_unchanged"], &progress["documents_done"]),
        (&json!(2), &json!(0)),
        "{again}"
    );

    storage.put("docs/handbook/a.md", "# Refunds\n\nAsk the new treasurer.").await;
    storage.ask(Method::DELETE, "docs/handbook/deep%20er/b.txt", "").await;
    let changed = program.run_job(&body).await;
    let progress = &changed["progress"];
    assert_eq!(
        (&progress["documents_done"], &progress["documents_removed"]),
        (&json!(1), &json!(1)),
        "{changed}"
    );
    let lines = storage.lines("out/deep/handbook.jsonl").await;
    assert!(lines.len() == 1 && lines[0]["text"].as_str().unwrap().contains("new treasurer"), "{lines:?}");

    let table = json!({ "corpus": "handbook", "delete": ["none"], "sink": { "type": "parquet", "path": "s3://out/h.parquet" } });
    assert_eq!(program.run_job(&table).await["state"], "succeeded");
    let table = storage.ask(Method::GET, "out/h.parquet", "").await;
    assert!(table.starts_with(b"PAR1") && table.ends_with(b"PAR1"));

    let nowhere = json!({ "source": { "type": "s3", "url": "s3://no-such-bucket" } });
    let failed = program.run_job(&nowhere).await;
    let error = failed["error"].as_str().unwrap_or_default();
    assert!(failed["state"] == "failed" && error.contains("S3 bucket no-such-bucket"), "{failed}");
}
