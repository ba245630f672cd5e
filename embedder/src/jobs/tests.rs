//! Jobs with a pipeline whose vectors are lengths: what is kept, what is done again, what a sink hears.

use super::*;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::pipeline::tests::{Lengths, config};
use crate::sinks::{SinkServers, SinkSpec};
use crate::sources::Reach;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;

mod delivering;
mod leaving;
mod owning;

/// Jobs that are taken and not begun.
fn at_rest(folder: &Path) -> Jobs {
    with_servers(folder, SinkServers::default())
}

/// The same, with servers for sinks.
fn with_servers(folder: &Path, servers: SinkServers) -> Jobs {
    let objects = Objects { volumes: Some(folder.join("volumes")) };
    let servers = SinkServers { objects: objects.clone(), scratch: folder.to_owned(), ..servers };
    let tools = Tools {
        store: Arc::new(Store::open(&folder.join("data")).unwrap()),
        config: Arc::new(config(false)),
        embedder: Arc::new(Lengths),
        reach: Reach { objects, hosts: "127.0.0.1".parse().unwrap() },
        servers,
        metrics: Arc::new(Metrics::default()),
    };
    Jobs::new(tools).unwrap()
}

fn jobs(folder: &Path) -> Jobs {
    let jobs = at_rest(folder);
    jobs.start();
    jobs
}

async fn ask(jobs: &Jobs, body: Value) -> Asked {
    let request: request::JobRequest = serde_json::from_value(body).unwrap();
    let id = request.id.clone();
    let (spec, documents) = request.validate(&jobs.tools().config).unwrap();
    jobs.ask(id, spec, documents).await.unwrap()
}

/// Runs a job to its end.
async fn run(jobs: &Jobs, body: Value) -> JobRecord {
    let Asked::Taken(job) = ask(jobs, body).await else { panic!("it is new") };
    if let Some(live) = jobs.find(&job.id) {
        let mut watch = live.watch();
        watch.wait_for(|record| record.state.ended()).await.unwrap();
    }
    jobs.job(&job.id).await.unwrap().unwrap()
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join("volumes").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn lines(folder: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("volumes").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A text of so many paragraphs, each of which becomes a chunk.
fn text(paragraphs: &[&str]) -> String {
    paragraphs.iter().map(|word| [*word; 18].join(" ")).collect::<Vec<_>>().join("\n\n")
}

#[tokio::test]
async fn a_corpus_follows_its_folder_and_only_what_changed_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "docs/a.txt", &text(&["one", "two", "three"]));
    write(folder.path(), "docs/b.txt", &text(&["four"]));
    write(folder.path(), "docs/c.bin", "\u{0}");
    std::fs::write(folder.path().join("volumes/docs/c.bin"), b"\x89PNG\r\n\x1a\n\0").unwrap();
    let jobs = jobs(folder.path());
    let body = json!({
        "corpus": "c",
        "source": { "type": "folder", "path": "docs" },
        "sink": { "type": "jsonl", "path": "out/c.jsonl" },
        "options": { "chunk_max_tokens": 20 },
    });
    let first = run(&jobs, body.clone()).await;
    assert_eq!((first.state, first.error.as_deref()), (State::Succeeded, None));
    let Progress { documents_done, documents_failed, chunks, chunks_embedded, .. } = first.progress;
    assert_eq!((documents_done, documents_failed, chunks, chunks_embedded), (2, 1, 4, 4));
    assert_eq!(first.failures[0].document_id, "c.bin");
    let before = lines(folder.path(), "out/c.jsonl");
    assert_eq!(before.len(), 4);
    assert_eq!((&before[0]["document_id"], &before[3]["document_id"]), (&json!("a.txt"), &json!("b.txt")));

    let again = run(&jobs, body.clone()).await;
    assert_eq!((again.progress.documents_unchanged, again.progress.documents_done), (2, 0));
    assert_eq!(lines(folder.path(), "out/c.jsonl"), before, "the same input twice is the same output");

    write(folder.path(), "docs/a.txt", &text(&["one", "other", "three"]));
    std::fs::remove_file(folder.path().join("volumes/docs/b.txt")).unwrap();
    let changed = run(&jobs, body).await;
    let Progress { documents_done, documents_removed, chunks, chunks_embedded, .. } = changed.progress;
    assert_eq!((documents_done, documents_removed, chunks, chunks_embedded), (1, 1, 3, 1));
    let after = lines(folder.path(), "out/c.jsonl");
    assert_eq!(after.len(), 3);
    let ids = |lines: &[Value]| lines.iter().map(|line| line["chunk_id"].clone()).collect::<Vec<_>>();
    assert_eq!((&ids(&after)[0], &ids(&after)[2]), (&ids(&before)[0], &ids(&before)[2]));
    assert_ne!(ids(&after)[1], ids(&before)[1]);
    let corpus = jobs.store().corpus("c").unwrap().unwrap();
    assert_eq!((corpus.documents, corpus.chunks), (1, 3));
}

#[tokio::test]
async fn the_records_of_a_file_are_documents_that_come_and_go_alone() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let record = |id: &str, text: &str| json!({ "id": id, "text": text, "year": 1628 }).to_string();
    let write = |lines: &[String]| write(folder.path(), "docs/s.jsonl", &lines.join("\n"));
    let body = json!({
        "corpus": "c",
        "source": { "type": "folder", "path": "docs" },
        "sink": { "type": "jsonl", "path": "out/c.jsonl" },
    });
    let counts = |job: &JobRecord| {
        let Progress {
            documents_total,
            documents_done,
            documents_unchanged,
            documents_removed,
            documents_failed,
            chunks_embedded,
            ..
        } = job.progress;
        let counts = [documents_total, documents_done, documents_unchanged, documents_removed];
        (counts, documents_failed, chunks_embedded)
    };
    let ids = || {
        let lines = lines(folder.path(), "out/c.jsonl");
        lines.iter().map(|line| line["document_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    write(&[record("a", "one"), record("b", "two"), record("c", "three")]);
    assert_eq!(counts(&run(&jobs, body.clone()).await), ([3, 3, 0, 0], 0, 3));
    assert_eq!(ids(), ["s.jsonl#a", "s.jsonl#b", "s.jsonl#c"]);
    assert_eq!(lines(folder.path(), "out/c.jsonl")[0]["metadata"], json!({ "year": 1628 }));
    assert_eq!(counts(&run(&jobs, body.clone()).await), ([3, 0, 3, 0], 0, 0));

    write(&[record("a", "one"), record("b", "other"), "nonsense".to_owned(), record("d", "four")]);
    let changed = run(&jobs, body.clone()).await;
    assert_eq!(counts(&changed), ([4, 2, 1, 0], 1, 2));
    assert!(changed.failures[0].error.contains("line 3 is no JSON object"), "{:?}", changed.failures);
    let said = "the broken line may be that of the third document";
    assert_eq!(ids(), ["s.jsonl#a", "s.jsonl#b", "s.jsonl#c", "s.jsonl#d"], "{said}");
    assert_eq!(counts(&run(&jobs, body.clone()).await), ([4, 0, 3, 0], 1, 0), "what failed is tried again");

    let delete = json!({ "corpus": "c", "delete": ["s.jsonl#a", "s.jsonl#a", "none"] });
    assert_eq!(counts(&run(&jobs, delete).await), ([0, 0, 0, 1], 0, 0));
    assert_eq!(counts(&run(&jobs, body.clone()).await), ([4, 1, 2, 0], 1, 1), "its file has it still");
    write(&[record("a", "one"), record("b", "other"), record("d", "four")]);
    assert_eq!(counts(&run(&jobs, body.clone()).await), ([3, 0, 3, 1], 0, 0), "now it is known to be gone");
    assert_eq!(ids(), ["s.jsonl#a", "s.jsonl#b", "s.jsonl#d"]);
    std::fs::remove_file(folder.path().join("volumes/docs/s.jsonl")).unwrap();
    assert_eq!(counts(&run(&jobs, body).await), ([0, 0, 0, 3], 0, 0));
    assert_eq!(ids(), [""; 0]);
    let corpus = jobs.store().corpus("c").unwrap().unwrap();
    assert_eq!((corpus.documents, corpus.chunks), (0, 0));
}

#[tokio::test]
async fn uploads_are_added_replaced_and_deleted_and_a_source_leaves_them_alone() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "docs/a.txt", "from the folder");
    let jobs = jobs(folder.path());
    let source = json!({ "type": "folder", "path": "docs" });
    let body = json!({ "documents": [{ "id": "x", "text": "one" }, { "id": "y", "text": "two" }], "source": source });
    let first = run(&jobs, body).await;
    assert_eq!(first.progress.documents_done, 3);
    let second =
        run(&jobs, json!({ "documents": [{ "id": "x", "text": "new" }], "delete": ["y", "z"] })).await;
    assert_eq!((second.progress.documents_done, second.progress.documents_removed), (1, 1));
    let third = run(&jobs, json!({ "source": source })).await;
    assert_eq!((third.progress.documents_unchanged, third.progress.documents_removed), (1, 0));
    assert_eq!(ids_of(&jobs, "default"), ["a.txt", "x"]);
    let chunks = jobs.store().chunks("default", "x").unwrap().unwrap();
    assert_eq!((chunks[0].text.as_str(), chunks[0].vector.as_slice()), ("new", [3.0].as_slice()));
}

/// A server whose pages say where they are.
async fn pages() -> String {
    let routes =
        axum::Router::new().fallback(|uri: axum::http::Uri| async move { format!("the page {uri}") });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, routes).into_future());
    url
}

fn ids_of(jobs: &Jobs, corpus: &str) -> Vec<String> {
    jobs.store().document_ids(corpus, None, 100).unwrap()
}

#[tokio::test]
async fn sources_with_names_leave_the_documents_of_each_other_in_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let url = pages().await;
    let at = |paths: &[&str]| paths.iter().map(|path| format!("{url}{path}")).collect::<Vec<_>>();
    let body = |name: &str, paths: &[&str]| {
        let source = json!({ "type": "http", "urls": at(paths) });
        json!({ "corpus": "c", "source_id": name, "source": source })
    };
    let first = run(&jobs, body("one", &["/a", "/b"])).await;
    assert_eq!((first.state, first.progress.documents_done), (State::Succeeded, 2), "{:?}", first.error);
    let second = run(&jobs, body("two", &["/c"])).await;
    assert_eq!((second.progress.documents_done, second.progress.documents_removed), (1, 0));
    assert_eq!(ids_of(&jobs, "c"), at(&["/a", "/b", "/c"]));
    let third = run(&jobs, body("one", &["/a"])).await;
    assert_eq!((third.progress.documents_unchanged, third.progress.documents_removed), (1, 1));
    assert_eq!(ids_of(&jobs, "c"), at(&["/a", "/c"]));
}

#[tokio::test]
async fn a_source_that_gets_a_name_adopts_what_it_has_and_moves_with_it() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["docs/a.md", "docs/gone.md", "docs/b.txt", "moved/c.md"] {
        write(folder.path(), name, name);
    }
    let jobs = jobs(folder.path());
    let all = json!({ "corpus": "c", "source": { "type": "folder", "path": "docs" } });
    let before = run(&jobs, all).await;
    assert_eq!(before.progress.documents_done, 3);
    std::fs::remove_file(folder.path().join("volumes/docs/gone.md")).unwrap();
    let named = |name: &str, path: &str, pattern: &str| {
        let source = json!({ "type": "folder", "path": path, "include": [pattern] });
        json!({ "corpus": "c", "source_id": name, "source": source })
    };
    let counts = |job: &JobRecord| {
        let Progress { documents_done, documents_unchanged, documents_removed, .. } = job.progress;
        [documents_done, documents_unchanged, documents_removed]
    };
    let owner = |id: &str| jobs.store().file("c", id).unwrap().map(|file| file.source_id);
    let adopted = run(&jobs, named("notes", "docs", "*.md")).await;
    assert_eq!(counts(&adopted), [0, 1, 1], "it is as it was, and what has gone from the folder goes");
    assert_eq!((owner("a.md").as_deref(), owner("b.txt").as_deref()), (Some("notes"), Some("")));
    assert_eq!(counts(&run(&jobs, named("texts", "docs", "*.txt")).await), [0, 1, 0]);
    assert_eq!(owner("b.txt").as_deref(), Some("texts"));
    assert_eq!(counts(&run(&jobs, named("notes", "moved", "*.md")).await), [1, 0, 1]);
    assert_eq!(ids_of(&jobs, "c"), ["b.txt", "c.md"]);
}

#[tokio::test]
async fn what_an_interrupted_job_left_goes_unless_it_came_to_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let document = json!([{ "id": "b", "text": text(&["one", "two"]) }]);
    let body = json!({ "corpus": "c", "documents": document, "options": { "chunk_max_tokens": 20 } });
    let job = run(&jobs, body.clone()).await;
    let store = jobs.store();
    let chunks = |id: &str| store.document("c", id).unwrap().map(|it| it.chunks).unwrap_or_default();
    let own: Vec<String> = chunks("b").into_iter().map(|place| place.id).collect();
    assert_eq!(own.len(), 2);
    let made = store.made("c", "b", &own[0]).unwrap().unwrap();
    let kept = || kept::KeptChunk { text: "t".to_owned(), context_error: None, made: made.clone() };
    // Before and behind the document, in order and not, and of another corpus.
    let left = ["a", "a/b", "bb"].map(|id| [("0".to_owned(), id), ("f".to_owned(), id)]).concat();
    let made = left.iter().map(|(chunk, id)| ((*id).to_owned(), chunk.clone(), kept())).collect();
    let changes = change::Changes { made, ..change::Changes::default() };
    store.commit(&job, &changes).unwrap();
    store.commit(&JobRecord { corpus: "d".to_owned(), ..job.clone() }, &changes).unwrap();
    run(&jobs, body).await;
    for (chunk, id) in &left {
        assert_eq!(store.made("c", id, chunk).unwrap(), None, "{id}");
        assert!(store.made("d", id, chunk).unwrap().is_some(), "another corpus is left alone");
    }
    assert!(own.iter().all(|id| store.made("c", "b", id).unwrap().is_some()));
    assert_eq!(store.sweep("d").unwrap(), 6);
}

#[tokio::test]
async fn a_sink_that_comes_back_hears_of_what_went_while_it_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let documents: Vec<Value> =
        ["a", "b", "c", "d"].iter().map(|id| json!({ "id": id, "text": text(&[*id]) })).collect();
    let job = run(&jobs, json!({ "corpus": "c", "documents": documents })).await;
    let store = jobs.store();
    let sink = |name: &str| SinkSpec::Qdrant { collection: name.to_owned() };
    let become_sink = |name: &str| store.set_sink("c", Some(&sink(name))).unwrap();
    let removed = |ids: &[&str]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        store.commit(&job, &store.without("c", &ids).unwrap()).unwrap();
    };
    let all = outbox::Portion { entries: 100, bytes: usize::MAX, refused: HashSet::new() };
    let told = || {
        let delivery = store.undelivered("c", &all).unwrap();
        let takes: Vec<String> = delivery.upserts.iter().map(|chunk| chunk.document_id.clone()).collect();
        let gives: Vec<String> = delivery.deletes.iter().map(|(document, _)| document.clone()).collect();
        store.delivered(&job, &delivery).unwrap();
        (takes.concat(), gives.concat())
    };
    let both = |takes: &str, gives: &str| (takes.to_owned(), gives.to_owned());
    let third = store.document("c", "c").unwrap().unwrap();
    let id = third.chunks[0].id.clone();
    let made = store.made("c", "c", &id).unwrap().unwrap();
    become_sink("first");
    assert_eq!(told(), both("abcd", ""));
    // One removal that it has not heard of, and more while another is the sink.
    removed(&["a"]);
    become_sink("second");
    removed(&["b", "c"]);
    assert_eq!(told(), both("d", "bc"), "to remove what it never had is nothing to it");
    // The third comes back as it was.
    let kept = kept::KeptChunk { text: "c".to_owned(), context_error: None, made };
    let changes = change::Changes {
        made: vec![("c".to_owned(), id, kept)],
        documents: vec![("c".to_owned(), third)],
        ..change::Changes::default()
    };
    store.commit(&job, &changes).unwrap();
    become_sink("first");
    assert_eq!(told(), both("cd", "ab"));
    assert_eq!(told(), both("", ""));
    let corpus = store.corpus("c").unwrap().unwrap();
    assert_eq!((corpus.sink, corpus.former), (Some(sink("first")), vec![sink("second")]));
}

#[tokio::test]
async fn the_same_id_is_one_job_and_another_request_with_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let body = json!({ "id": "mine", "documents": [{ "id": "x", "text": "one" }] });
    run(&jobs, body.clone()).await;
    assert!(matches!(ask(&jobs, body).await, Asked::Known(job) if job.state == State::Succeeded));
    let other = json!({ "id": "mine", "documents": [{ "id": "x", "text": "two" }] });
    assert!(matches!(ask(&jobs, other).await, Asked::Conflict));
}

#[tokio::test]
async fn a_job_that_can_not_be_done_says_why_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    for (more, says) in [
        (
            json!({ "source": { "type": "folder", "path": "none" } }),
            "is no folder in the folder of the volumes",
        ),
        (json!({ "sink": { "type": "qdrant", "collection": "c" } }), "set PRINCIPIUM_QDRANT_URL"),
        (json!({ "sink": { "type": "postgres", "table": "c" } }), "set PRINCIPIUM_POSTGRES_URL"),
        (json!({ "sink": { "type": "jsonl", "path": "/etc/x.jsonl" } }), "outside of"),
    ] {
        let mut body = json!({ "documents": [{ "id": "x", "text": "one" }] });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let job = run(&jobs, body).await;
        let error = job.error.clone().unwrap_or_default();
        assert!(job.state == State::Failed && error.contains(says), "{error:?} does not say {says:?}");
    }
}

#[tokio::test]
async fn jobs_that_wait_can_be_listed_and_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let mut ids = Vec::new();
    for number in 0..5 {
        let job = run(&jobs, json!({ "documents": [{ "id": number.to_string(), "text": "one" }] })).await;
        ids.push(job.id);
    }
    let page = |jobs: Vec<JobRecord>| jobs.into_iter().map(|job| job.id).collect::<Vec<_>>();
    let first = page(jobs.list(None, 2).await.unwrap().unwrap());
    assert_eq!(first, [ids[4].clone(), ids[3].clone()], "the newest first");
    let rest = page(jobs.list(Some(first[1].clone()), 10).await.unwrap().unwrap());
    assert_eq!(rest, [ids[2].clone(), ids[1].clone(), ids[0].clone()]);
    assert!(jobs.list(Some("none".to_owned()), 10).await.unwrap().is_none());
    let endless = json!({ "documents": [{ "id": "w", "text": "wait" }], "corpus": "w" });
    let Asked::Taken(waiting) = ask(&jobs, endless).await else { panic!("it is new") };
    let live = jobs.find(&waiting.id).unwrap();
    jobs.cancel(&waiting.id).await.unwrap();
    let mut watch = live.watch();
    let ended = watch.wait_for(|record| record.state.ended()).await.unwrap().state;
    assert!(matches!(ended, State::Cancelled | State::Succeeded));
}

#[tokio::test]
async fn what_could_not_be_kept_is_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(folder.path()).unwrap());
    let body = json!({ "delete": ["x"] });
    let (spec, _) =
        serde_json::from_value::<request::JobRequest>(body).unwrap().validate(&config(false)).unwrap();
    let live = Live::new(JobRecord::new("j".to_owned(), spec, 0));
    let count = |record: &mut JobRecord| record.progress.documents_done += 1;
    let full = |_: &Store, job: &JobRecord| {
        assert_eq!(job.progress.documents_done, 1);
        Err(StoreError::Full("x".into()))
    };
    assert!(live.commit(&store, count, full).await.is_err());
    assert_eq!(live.record().progress.documents_done, 0);
    live.commit(&store, count, Store::put_job).await.unwrap();
    assert_eq!(live.record().progress.documents_done, 1);
}

#[test]
fn a_store_that_can_not_be_opened_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).err().unwrap();
    assert!(
        matches!(error, StoreError::Locked(_)) && error.to_string().contains("another process"),
        "{error}"
    );
    drop(store);
    let file = folder.path().join("jobs.redb");
    std::fs::write(&file, vec![0x42; 1 << 16]).unwrap();
    let error = Store::open(folder.path()).err().unwrap();
    assert!(
        matches!(error, StoreError::Damaged { .. }) && error.to_string().contains("move it away"),
        "{error}"
    );
    std::fs::remove_file(&file).unwrap();
    assert!(Store::open(folder.path()).is_ok());
}
