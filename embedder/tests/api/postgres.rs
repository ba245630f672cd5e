//! The sink PostgreSQL against a real server with pgvector.

use super::jobs::with_folder;
use super::server::cached;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// A server that ends with the test.
struct Database {
    folder: TempDir,
    port: u16,
}

/// What a server of PostgreSQL never runs as, and what it runs as instead.
fn as_nobody(program: PathBuf) -> Command {
    let mut id = Command::new("id");
    let root = id.arg("-u").output().unwrap().stdout.starts_with(b"0\n");
    if !root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

fn run(command: &mut Command) {
    let output = command.env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Database {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let database = Self { folder, port };
        // The cache may be in a home that is closed to whom the server runs as.
        run(Command::new("cp")
            .arg("-r")
            .arg(cached("databases/postgres-pgserver-0.1.4"))
            .arg(database.folder.path().join("install")));
        let password = database.folder.path().join("password");
        fs::write(&password, "geheim").unwrap();
        run(as_nobody(database.program("initdb"))
            .args(["--username=writer", "--auth=scram-sha-256", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(database.data()));
        let options =
            format!("-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off");
        run(database.pg_ctl().args(["-w", "-l", "/dev/null", "-o", &options, "start"]));
        database
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.path().join("install/pgserver/pginstall/bin").join(name)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn pg_ctl(&self) -> Command {
        let mut command = as_nobody(self.program("pg_ctl"));
        command.arg("-D").arg(self.data());
        command
    }

    fn url(&self) -> String {
        format!("postgres://writer:geheim@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It may never have been started.
        let _ = self.pg_ctl().args(["-m", "immediate", "stop"]).output();
    }
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
}

#[tokio::test]
async fn rows_follow_the_corpus_and_the_nearest_is_found_by_sql() {
    let database = Database::start();
    let folder = tempfile::tempdir().unwrap();
    let server = with_folder(folder.path(), &["--postgres-url", &database.url()]);
    let documents = json!([
        { "id": "vasa", "title": "Vasa", "text": "The ship sank in the harbor of Stockholm.", "metadata": { "year": 1628 } },
        { "id": "moon", "text": "Three men flew around the moon.\u{0} They came back in their lifeboat." },
    ]);
    let body = json!({ "documents": documents, "sink": { "type": "postgres", "table": "chunks" } });
    let job = server.run_job(&body).await;
    assert_eq!((&job["state"], &job["progress"]["sink_upserts"]), (&json!("succeeded"), &json!(2)), "{job}");
    assert!(!job.to_string().contains("geheim"));

    let question = server.post("/embed", &json!({ "inputs": "astronauts" })).await.json()[0].to_string();
    let client = database.client().await;
    let nearest =
        "SELECT document_id, text, model FROM chunks ORDER BY embedding <=> $1::text::vector LIMIT 1";
    let row = client.query_one(nearest, &[&question]).await.unwrap();
    let (document, text, model): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((document.as_str(), model.is_empty()), ("moon", false));
    assert_eq!(text, "Three men flew around the moon.\u{FFFD} They came back in their lifeboat.");
    let year: i64 = client
        .query_one("SELECT (metadata->>'year')::bigint FROM chunks WHERE title = 'Vasa'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(year, 1628);

    // The server is away for a moment: the job waits for it.
    run(database.pg_ctl().args(["-m", "immediate", "stop"]));
    let changed = json!({ "id": "away", "documents": [{ "id": "vasa", "text": "She was raised in 1961." }], "delete": ["moon"] });
    assert_eq!(server.post("/v1/jobs", &changed).await.status, 202);
    loop {
        let job = server.get("/v1/jobs/away").await.json();
        if job["error"].as_str().is_some_and(|error| error.starts_with("waiting for the sink postgres")) {
            break;
        }
        assert_ne!(job["state"], "succeeded", "{job}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    run(database
        .pg_ctl()
        .args(["-w", "-l", "/dev/null", "-o"])
        .arg(format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories= -c fsync=off",
            database.port
        ))
        .arg("start"));
    let job = server.end_of_job("away").await;
    assert_eq!((&job["state"], job.get("error")), (&json!("succeeded"), None), "{job}");
    let client = database.client().await;
    let rows = client.query("SELECT text FROM chunks", &[]).await.unwrap();
    let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(texts, ["She was raised in 1961."]);

    // Another corpus brings the same chunk: it is that one's from then on.
    let same = json!({ "corpus": "other", "documents": changed["documents"], "sink": body["sink"] });
    assert_eq!(server.run_job(&same).await["state"], "succeeded");
    for (corpus, left) in [("default", 1), ("other", 0)] {
        let job = server.run_job(&json!({ "corpus": corpus, "delete": ["vasa"] })).await;
        assert_eq!(job["state"], "succeeded", "{job}");
        assert_eq!(client.query("SELECT 1 FROM chunks", &[]).await.unwrap().len(), left, "after {corpus}");
    }
}
