//! The real program, killed at random points: what a job makes must be what an undisturbed one makes, byte by byte, and no
//! chunk may be computed twice once it was kept.

use super::ollama::{Behavior, instance};
use super::program::{Program, command};
use serde_json::{Value, json};
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tempfile::TempDir;

const KILLS: usize = 6;
/// Contexts of each kill that may have to be asked for again: those under way, and those whose chunks were being embedded.
const UNDER_WAY: usize = 40;
/// Milliseconds of a context: longer than embedding takes a slow machine, so that no contexts wait for their vectors.
const SLOW: u64 = 60;

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
    // Files that hold several documents each, so that a kill meets them half done.
    for file in 0..4 {
        let record = |number: usize| {
            let text =
                format!("Record {number} of file {file} is about fan {}. ", number * 5 + file).repeat(4);
            json!({ "id": number, "text": text, "rack": file }).to_string()
        };
        let lines: Vec<String> = (0..20).map(record).collect();
        fs::write(documents.join(format!("records-{file}.jsonl")), lines.join("\n")).unwrap();
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

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_documents(folder.path());
    folder
}

/// Does the job undisturbed in one folder and disturbed in another; what it says of itself in both.
async fn disturb(more: impl Fn(&mut Command) -> &mut Command) -> (Value, Value) {
    let (undisturbed, disturbed) = (folder(), folder());
    let program = Program::start_with(undisturbed.path(), &more);
    program.submit(&body()).await;
    let began = Instant::now();
    let expected = program.end_of_job("corpus-1").await;
    let took = began.elapsed();
    program.kill();
    assert_eq!(expected["state"], "succeeded", "{expected}");

    let mut while_running = 0;
    for _ in 0..KILLS {
        let program = Program::start_with(disturbed.path(), &more);
        // The same request each time: a client that was cut off asks again.
        let job = program.submit(&body()).await;
        let random = RandomState::new().hash_one(0) % 1000;
        let share = f64::from(u32::try_from(random).unwrap()) / 1000.0;
        tokio::time::sleep(took.mul_f64(0.25).mul_f64(share)).await;
        while_running += usize::from(!job["finished_ms"].is_u64());
        program.kill();
    }
    let program = Program::start_with(disturbed.path(), &more);
    let ended = program.end_of_job("corpus-1").await;
    program.kill();

    assert!(while_running >= 3, "only {while_running} of {KILLS} kills met a running job");
    assert_eq!(ended["state"], "succeeded", "{ended}");
    for count in ["total", "done", "failed", "unchanged", "removed"].map(|it| format!("documents_{it}")) {
        assert_eq!(ended["progress"][&count], expected["progress"][&count], "{count} after {ended}");
    }
    for count in ["chunks", "chunks_embedded", "chunks_without_context", "tokens"] {
        assert_eq!(ended["progress"][count], expected["progress"][count], "{count} after {ended}");
    }
    assert_eq!(ended["progress"]["chunks_embedded"], ended["progress"]["chunks"], "each chunk was made once");
    let read = |folder: &TempDir| fs::read(folder.path().join("volumes/out/c.jsonl")).unwrap();
    let (one, two) = (read(&undisturbed), read(&disturbed));
    assert_eq!(
        one.iter().filter(|byte| **byte == b'\n').count(),
        usize::try_from(expected["progress"]["chunks"].as_u64().unwrap()).unwrap()
    );
    assert!(one == two, "the outputs differ: {} and {} bytes", one.len(), two.len());
    (expected, ended)
}

#[tokio::test]
async fn a_killed_process_goes_on_without_losing_or_repeating_anything() {
    principium_embedder::tls::install();
    disturb(|command| command).await;
}

#[tokio::test]
async fn a_killed_process_asks_for_no_context_that_was_kept() {
    principium_embedder::tls::install();
    let (url, asked) = instance(Behavior::Well(SLOW)).await;
    let more = |command: &mut Command| {
        command.args(["--ollama-url", &url, "--ollama-model", "small"]);
    };
    let (expected, _) = disturb(|command| {
        more(command);
        command
    })
    .await;
    let chunks = usize::try_from(expected["progress"]["chunks"].as_u64().unwrap()).unwrap();
    let asked = asked.load(Ordering::Relaxed);
    assert!(
        (2 * chunks..=2 * chunks + KILLS * UNDER_WAY).contains(&asked),
        "{asked} contexts were asked for, for {chunks} chunks undisturbed and as many disturbed"
    );
}

#[tokio::test]
async fn a_second_process_does_not_touch_the_folder_of_the_first() {
    principium_embedder::tls::install();
    let folder = tempfile::tempdir().unwrap();
    let first = Program::start(folder.path());
    first.submit(&json!({ "documents": [{ "text": "a" }] })).await;
    let second = command(folder.path(), "127.0.0.1:0").output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && error.contains("in use by another process"), "{error}");
    first.kill();
}
