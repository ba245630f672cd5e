//! Documents that one file takes over from another, and those that are replaced while somebody reads them.

use super::*;

const VASA: &str = "ships.jsonl#vasa";

fn write_records(folder: &Path, records: &[(&str, &str)]) {
    let line = |(id, text): &(&str, &str)| json!({ "id": id, "text": text }).to_string();
    write(folder, "docs/ships.jsonl", &records.iter().map(line).collect::<Vec<_>>().join("\n"));
}

/// A job of the folder.
fn source() -> Value {
    json!({ "corpus": "c", "source": { "type": "folder", "path": "docs" } })
}

/// A job of an upload that has the id of a record.
fn upload() -> Value {
    json!({ "corpus": "c", "documents": [{ "id": VASA, "text": "uploaded" }] })
}

/// Documents that a job processed, left alone and took out.
async fn counts(jobs: &Jobs, body: Value) -> [u64; 3] {
    let Progress { documents_done, documents_unchanged, documents_removed, .. } =
        run(jobs, body).await.progress;
    [documents_done, documents_unchanged, documents_removed]
}

fn vasa(jobs: &Jobs) -> Option<String> {
    let chunks = jobs.store().chunks("c", VASA).unwrap();
    chunks.map(|chunks| chunks.into_iter().map(|chunk| chunk.text).collect())
}

#[tokio::test]
async fn an_upload_that_took_a_record_over_stays_when_the_file_of_the_record_goes() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    write_records(folder.path(), &[("vasa", "one"), ("mary", "two")]);
    assert_eq!(counts(&jobs, source()).await, [2, 0, 0]);
    assert_eq!(counts(&jobs, upload()).await, [1, 0, 0]);
    std::fs::remove_file(folder.path().join("volumes/docs/ships.jsonl")).unwrap();
    assert_eq!(counts(&jobs, source()).await, [0, 0, 1], "what it still has goes with it");
    assert_eq!(vasa(&jobs).as_deref(), Some("uploaded"));
    assert_eq!(counts(&jobs, upload()).await, [0, 1, 0]);
    assert_eq!(ids_of(&jobs, "c"), [VASA]);
}

#[tokio::test]
async fn a_document_belongs_to_the_file_whose_job_had_it_last() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    write_records(folder.path(), &[("vasa", "one"), ("mary", "two")]);
    assert_eq!(counts(&jobs, source()).await, [2, 0, 0]);
    for _ in 0..2 {
        assert_eq!(counts(&jobs, upload()).await, [1, 0, 0]);
        assert_eq!(vasa(&jobs).as_deref(), Some("uploaded"));
        assert_eq!(
            counts(&jobs, source()).await,
            [1, 1, 0],
            "it comes again, and the other one is as it was"
        );
        assert_eq!(vasa(&jobs).as_deref(), Some("one"));
        assert_eq!(counts(&jobs, source()).await, [0, 2, 0]);
    }
    let delete = json!({ "corpus": "c", "delete": [VASA] });
    assert_eq!(counts(&jobs, delete.clone()).await, [0, 0, 1], "the id is that of a record");
    assert_eq!(counts(&jobs, upload()).await, [1, 0, 0]);
    assert_eq!(counts(&jobs, delete).await, [0, 0, 1], "and that of an upload");
    assert_eq!(ids_of(&jobs, "c"), ["ships.jsonl#mary"]);
}

#[tokio::test]
async fn a_file_that_has_lost_a_record_leaves_the_upload_alone_that_came_with_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    write_records(folder.path(), &[("vasa", "one"), ("mary", "two")]);
    assert_eq!(counts(&jobs, source()).await, [2, 0, 0]);
    write_records(folder.path(), &[("mary", "two")]);
    let mut both = upload();
    both["source"] = source()["source"].take();
    run(&jobs, both).await;
    assert_eq!(vasa(&jobs).as_deref(), Some("uploaded"));
}

#[tokio::test]
async fn a_document_that_is_replaced_while_a_corpus_is_read_is_read_as_it_is_then() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    run(&jobs, upload()).await;
    assert_eq!(ids_of(&jobs, "c"), [VASA]);
    run(&jobs, json!({ "corpus": "c", "documents": [{ "id": VASA, "text": "another" }] })).await;
    assert_eq!(vasa(&jobs).as_deref(), Some("another"));
    run(&jobs, json!({ "corpus": "c", "delete": [VASA] })).await;
    assert_eq!(vasa(&jobs), None, "nothing is missing");
}

#[tokio::test]
async fn an_upload_finds_the_chunks_of_a_record_that_its_file_loses_before_the_upload_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    write_records(folder.path(), &[("vasa", "one"), ("mary", "two")]);
    let job = run(&jobs, source()).await;
    let store = jobs.store();
    let record = store.document("c", VASA).unwrap().unwrap();
    let lost_by = |file: &str| {
        let removed = vec![(file.to_owned(), VASA.to_owned())];
        store.commit(&job, &change::Changes { removed, ..change::Changes::default() }).unwrap();
    };
    lost_by("ships.jsonl");
    assert_eq!(store.document("c", VASA).unwrap(), None);
    // Its chunk was found as it had been made, and is not made again.
    let documents = vec![(VASA.to_owned(), DocumentRecord { file: VASA.to_owned(), ..record })];
    store.commit(&job, &change::Changes { documents, ..change::Changes::default() }).unwrap();
    assert_eq!(vasa(&jobs).as_deref(), Some("one"));
    assert_eq!(store.sweep("c").unwrap(), 0);
    lost_by(VASA);
    assert_eq!(store.sweep("c").unwrap(), 1, "what nobody has brought back goes at the end of the job");
}

#[tokio::test]
async fn a_new_version_of_a_file_leaves_what_has_become_of_it_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    write_records(folder.path(), &[("vasa", "one"), ("mary", "two")]);
    let job = run(&jobs, source()).await;
    run(&jobs, upload()).await;
    let owner = owner::Owner { place: "p".to_owned(), name: "n".to_owned() };
    let touched =
        |id: &str| change::Touched { id: id.to_owned(), version: Some("v".to_owned()), owner: owner.clone() };
    jobs.store().touch(&job, &[touched("ships.jsonl"), touched("gone")]).unwrap();
    let file = jobs.store().file("c", "ships.jsonl").unwrap().unwrap();
    assert_eq!(
        (file.version.as_deref(), file.source.as_str(), file.source_id.as_str()),
        (Some("v"), "p", "n")
    );
    assert!(!file.whole && file.documents == ["ships.jsonl#mary"], "the upload has the other one: {file:?}");
    assert_eq!(jobs.store().file("c", "gone").unwrap(), None);
}
