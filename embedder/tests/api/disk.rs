//! A disk that is full in the middle of a job: the job says so, waits, and goes on by itself once there is room.

use super::program::Program;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A small disk in memory, which goes with the test however it ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` for those who may mount nothing.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder.to_owned()))
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(self.filler()).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At once for everybody, and for the program that may still be there when it ends.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn job(program: &Program, id: &str) -> Value {
    program.ask(reqwest::Client::new().get(format!("{}/v1/jobs/{id}", program.url))).await
}

/// The job once it is as a test waits for.
async fn until(program: &Program, id: &str, is: impl Fn(&Value) -> bool) -> Value {
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        let job = job(program, id).await;
        if is(&job) {
            return job;
        }
        assert!(Instant::now() < give_up && !job["finished_ms"].is_u64(), "{job}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_job_waits_for_room_on_a_full_disk_and_loses_nothing() {
    const DOCUMENTS: usize = 150;
    principium_embedder::tls::install();
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("data"), "24m") else {
        eprintln!("not tried: this user may mount nothing");
        return;
    };
    let documents = folder.path().join("volumes/docs");
    std::fs::create_dir_all(&documents).unwrap();
    for number in 0..DOCUMENTS {
        let text = format!("Card {number} is cooled by a fan.\n\n").repeat(4);
        std::fs::write(documents.join(format!("{number}.txt")), text).unwrap();
    }
    let program = Program::start(folder.path());
    let body = json!({ "corpus": "c", "source": { "type": "folder", "path": "docs" }, "options": { "chunk_max_tokens": 16 } });
    let id = program.submit(&body).await["id"].as_str().unwrap().to_owned();
    until(&program, &id, |job| job["progress"]["documents_done"].as_u64() > Some(5)).await;
    disk.fill();
    let full = until(&program, &id, |job| job["error"].is_string()).await;
    let error = full["error"].as_str().unwrap();
    assert!(
        error.contains("is full: make room") && error.contains("nothing that was done is lost"),
        "{error}"
    );
    assert_eq!(full["state"], "running", "it is not given up");
    disk.make_room();
    let ended = program.end_of_job(&id).await;
    let progress = |field: &str| ended["progress"][field].as_u64().unwrap();
    assert_eq!((&ended["state"], ended.get("error")), (&json!("succeeded"), None), "{ended}");
    assert_eq!(progress("documents_done"), DOCUMENTS as u64, "{ended}");
    assert_eq!(progress("chunks_embedded"), progress("chunks"), "no chunk was made twice");
    let again = program.run_job(&body).await;
    assert_eq!(again["progress"]["documents_unchanged"], DOCUMENTS, "{again}");
}
