//! S3-compatible storage as source and as sink, against a server that speaks its protocol: `moto`, from the package index.

use super::program::Program;
use super::server::cached;
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that ends with the test.
struct Storage {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Storage {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Behind TLS with a certificate and its key, in a folder, where there is one.
    async fn start_with(certificate: Option<&Path>) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(cached("venvs/storage/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let (mut scheme, mut http) = ("http", reqwest::Client::builder());
        if let Some(folder) = certificate {
            let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.join(name));
            command.arg("-c").arg(&certificate).arg("-k").arg(key);
            let trusted = reqwest::Certificate::from_pem(&std::fs::read(certificate).unwrap()).unwrap();
            (scheme, http) = ("https", http.tls_certs_merge([trusted]));
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let url = format!("{scheme}://127.0.0.1:{port}");
        let storage = Self { child, url, http: http.build().unwrap() };
        let give_up = Instant::now() + Duration::from_secs(60);
        while storage.http.get(&storage.url).send().await.is_err() {
            assert!(Instant::now() < give_up, "the storage server does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        storage
    }

    /// What the server answers to a request; it does not check signatures.
    async fn ask(&self, method: Method, path: &str, content: &'static str) -> Vec<u8> {
        self.answer(method, path, content).await.bytes().await.unwrap().to_vec()
    }

    async fn answer(&self, method: Method, path: &str, content: &'static str) -> reqwest::Response {
        let signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let request = self.http.request(method, format!("{}/{path}", self.url));
        let response = request.header("authorization", signed).body(content).send().await.unwrap();
        response.error_for_status().unwrap()
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

#[tokio::test]
async fn a_large_corpus_goes_in_parts_to_a_storage_behind_tls_that_is_trusted() {
    principium_embedder::tls::install();
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = folder.path().join("cert.pem");
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let storage = Storage::start_with(Some(folder.path())).await;
    storage.put("out", "").await;
    // What comes with a document stands in each of its chunks.
    let words = ["Fans are checked on Mondays, and cards on Tuesdays."; 120].join("\n\n");
    let document = json!({ "id": "a", "text": words, "metadata": { "note": "n".repeat(150 << 10) } });
    let body = json!({
        "documents": [document],
        "options": { "chunk_max_tokens": 20 },
        "sink": { "type": "jsonl", "path": "s3://out/large.jsonl" },
    });
    let data = folder.path().join("trusting");
    let program =
        Program::start_with(&data, |command| storage.tell(command).env("SSL_CERT_FILE", &certificate));
    let job = program.run_job(&body).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    let answer = storage.answer(Method::GET, "out/large.jsonl", "").await;
    // The ETag of what came in parts says how many.
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap();
    let parts = text.len().div_ceil(8 << 20);
    assert!(parts > 1 && tag.ends_with(&format!("-{parts}\"")), "{} bytes, {tag}", text.len());
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["index"].clone());
    let places: Vec<Value> = lines.collect();
    assert_eq!(json!(places), json!((0..places.len()).collect::<Vec<_>>()), "whole and in order");

    let data = folder.path().join("wary");
    let program = Program::start_with(&data, |command| storage.tell(command));
    let source = json!({ "source": { "type": "s3", "url": "s3://out" } });
    let job = program.run_job(&source).await;
    let error = job["error"].as_str().unwrap_or_default();
    assert!(job["state"] == "failed" && error.contains("S3 bucket out"), "{job}");
}
