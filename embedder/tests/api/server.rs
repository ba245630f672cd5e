//! Servers in this process, one a role, and a client for them.

use clap::Parser;
use principium_embedder::args::{Args, Command, ServeArgs};
use principium_embedder::serve;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::{LazyLock, mpsc};

/// A server that runs until the tests end.
pub struct Server {
    pub url: String,
}

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

/// The embedding server that all tests share.
pub fn data_factory() -> &'static Server {
    static SERVER: LazyLock<Server> =
        LazyLock::new(|| start(&["--role", "data-factory", "--model", &minilm()]));
    &SERVER
}

/// The reranking server that all tests share.
pub fn reranker() -> &'static Server {
    static SERVER: LazyLock<Server> =
        LazyLock::new(|| start(&["--role", "reranker", "--model", &cross_encoder()]));
    &SERVER
}

/// The folder of all-MiniLM-L6-v2.
pub fn minilm() -> String {
    model("all-minilm-l6-v2-0.1.0")
}

/// The folder of ms-marco-MiniLM-L-12-v2.
pub fn cross_encoder() -> String {
    model("ms-marco-minilm-l12-v2-2.2.0")
}

/// The folder of bge-small-en.
pub fn bge_small() -> String {
    model("bge-small-en-2.2.0")
}

/// The folder of answerai-colbert-small, without its linear layer.
pub fn colbert() -> String {
    model("answerai-colbert-small-2.2.0")
}

/// A file or folder that `cargo xtask test` put into the cache.
pub fn cached(path: &str) -> PathBuf {
    let cache = std::env::var_os("PRINCIPIUM_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/principium")));
    let path = cache.expect("neither PRINCIPIUM_CACHE nor HOME is set").join(path);
    assert!(
        path.exists(),
        "{} is missing: `cargo xtask test` fetches it and runs these tests",
        path.display()
    );
    path
}

fn model(name: &str) -> String {
    let folder = cached(&format!("models/{name}/model.safetensors"));
    folder.parent().unwrap().display().to_string()
}

/// The arguments of a server on a port that is free.
pub fn arguments(flags: &[&str]) -> ServeArgs {
    let reader = env!("CARGO_BIN_EXE_principium-embedder");
    let fixed = ["principium-embedder", "serve", "--listen", "127.0.0.1:0", "--reader-program", reader];
    match Args::try_parse_from(fixed.iter().chain(flags)).unwrap().command {
        Command::Serve(args) => *args,
        other => panic!("{other:?} does not serve"),
    }
}

/// Starts a server with threads of its own, so that it outlives the test that needs it first.
pub fn start(flags: &[&str]) -> Server {
    let args = arguments(flags);
    let (ready, listening) = mpsc::channel();
    std::thread::spawn(move || {
        let service = serve::build(&args).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(args.listen).await.unwrap();
            if let Some(jobs) = &service.jobs {
                jobs.start();
            }
            ready.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, service.router).await
        })
    });
    let address = listening.recv().expect("the server ended before it listened");
    Server { url: format!("http://{address}") }
}

impl Server {
    /// A metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").await.text;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(reqwest::Client::new().get(format!("{}{path}", self.url))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, body.to_string()).await
    }

    pub async fn post_text(&self, path: &str, body: String) -> Answer {
        self.send(reqwest::Client::new().post(format!("{}{path}", self.url)).body(body)).await
    }

    pub async fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).body(body.to_string());
        self.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    pub async fn post_bytes(&self, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url));
        self.send(request.header("content-type", content_type).body(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(reqwest::Client::new().delete(format!("{}{path}", self.url))).await
    }

    /// Runs a job to its end.
    pub async fn run_job(&self, body: &Value) -> Value {
        let answer = self.post("/v1/jobs", body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        let job: Value = serde_json::from_str(&answer.text).unwrap();
        self.end_of_job(job["id"].as_str().unwrap()).await
    }

    /// A job once it has ended.
    pub async fn end_of_job(&self, id: &str) -> Value {
        loop {
            let job = self.get(&format!("/v1/jobs/{id}")).await.json();
            if job["finished_ms"].is_u64() {
                return job;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// The status of an answer whose body is of no interest.
    pub async fn status(&self, path: &str, body: String) -> u16 {
        let request = reqwest::Client::new().post(format!("{}{path}", self.url)).body(body);
        request.send().await.unwrap().status().as_u16()
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.unwrap() }
    }
}

impl Answer {
    /// The body of a success.
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_str(&self.text).unwrap()
    }

    /// The JSON lines of a success.
    pub fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text);
        self.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Checks a refusal in the dialect of text-embeddings-inference.
    #[track_caller]
    pub fn refused(&self, status: u16, kind: &str, says: &str) {
        let body: Value =
            serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{} is no JSON", self.text));
        assert_eq!((self.status, body["error_type"].as_str()), (status, Some(kind)), "{}", self.text);
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

/// The numbers of a JSON list.
pub fn floats(vector: &Value) -> Vec<f64> {
    vector.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

pub fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

pub fn cosine(one: &[f64], two: &[f64]) -> f64 {
    assert_eq!(one.len(), two.len());
    one.iter().zip(two).map(|(a, b)| a * b).sum::<f64>() / (norm(one) * norm(two))
}
