//! The real program in a process of its own, which can be killed, and is given an environment.

use super::server::minilm;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program at work in a folder.
pub struct Program {
    child: Child,
    pub url: String,
}

/// The program with its jobs and volumes in a folder.
pub fn command(folder: &Path, listen: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_principium-embedder"));
    command.args(["serve", "--listen", listen, "--model", &minilm()]);
    command.arg("--data-dir").arg(folder.join("data")).arg("--volumes").arg(folder.join("volumes"));
    // The last bits of a vector depend on the inputs beside it: alone, it is the same every time.
    command.args(["--max-batch-tokens", "1"]);
    command
}

impl Program {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, |command| command)
    }

    /// Starts it with further flags or another environment.
    pub fn start_with(folder: &Path, more: impl Fn(&mut Command) -> &mut Command) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = command(folder, &free.to_string());
        let child = more(&mut command).stdout(Stdio::null()).spawn().unwrap();
        Self { child, url: format!("http://{free}") }
    }

    /// SIGKILL: nothing of the program runs after it.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// The answer to a request, once it listens.
    pub async fn ask(&self, request: reqwest::RequestBuilder) -> Value {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            match request.try_clone().unwrap().send().await {
                Ok(response) => return response.json().await.unwrap(),
                Err(error) => assert!(Instant::now() < give_up, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn submit(&self, body: &Value) -> Value {
        let request = reqwest::Client::new().post(format!("{}/v1/jobs", self.url)).body(body.to_string());
        self.ask(request).await
    }

    /// A job once it has ended.
    pub async fn end_of_job(&self, id: &str) -> Value {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            let job = self.ask(reqwest::Client::new().get(format!("{}/v1/jobs/{id}", self.url))).await;
            if job["finished_ms"].is_u64() {
                return job;
            }
            assert!(Instant::now() < give_up, "{job}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a job to its end.
    pub async fn run_job(&self, body: &Value) -> Value {
        let job = self.submit(body).await;
        let id = job["id"].as_str().unwrap_or_else(|| panic!("{job}"));
        self.end_of_job(id).await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}
