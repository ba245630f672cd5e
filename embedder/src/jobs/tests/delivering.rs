//! What a sink has yet to hear: while it takes something else, in portions, from a store of the first format, and of a corpus
//! that is damaged.

use super::*;

fn qdrant() -> SinkSpec {
    SinkSpec::Qdrant { collection: "c".to_owned() }
}

fn portion(entries: usize, bytes: usize) -> outbox::Portion {
    outbox::Portion { entries, bytes, refused: HashSet::new() }
}

fn all() -> outbox::Portion {
    portion(100, usize::MAX)
}

#[tokio::test]
async fn what_changes_while_a_sink_takes_the_version_before_is_told_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let documents = json!([{ "id": "x", "title": "old", "text": "one" }]);
    let job = run(&jobs, json!({ "corpus": "c", "documents": documents })).await;
    let store = jobs.store();
    store.set_sink("c", Some(&qdrant())).unwrap();
    let titles = |delivery: &outbox::Delivery| {
        delivery.upserts.iter().filter_map(|chunk| chunk.title.clone()).collect::<Vec<_>>()
    };
    let first = store.undelivered("c", &all()).unwrap();
    let known = store.document("c", "x").unwrap().unwrap();
    let new = DocumentRecord { title: Some("new".to_owned()), ..known };
    let documents = vec![("x".to_owned(), new)];
    store.commit(&job, &change::Changes { documents, ..change::Changes::default() }).unwrap();
    store.delivered(&job, &first).unwrap();
    let second = store.undelivered("c", &all()).unwrap();
    assert_eq!((titles(&first), titles(&second)), (vec!["old".to_owned()], vec!["new".to_owned()]));
    store.delivered(&job, &second).unwrap();
    assert!(store.undelivered("c", &all()).unwrap().is_empty());
}

#[tokio::test]
async fn a_portion_has_so_many_entries_and_bytes_and_leaves_out_what_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let metadata = json!({ "note": "n".repeat(500) });
    let document = |id: &str| json!({ "id": id, "text": text(&[id]), "metadata": metadata });
    let documents: Vec<Value> = ["a", "b", "c", "d"].into_iter().map(document).collect();
    run(&jobs, json!({ "corpus": "c", "documents": documents })).await;
    let store = jobs.store();
    store.set_sink("c", Some(&qdrant())).unwrap();
    let told = |portion: &outbox::Portion| {
        let chunks = store.undelivered("c", portion).unwrap().upserts;
        chunks.into_iter().map(|chunk| chunk.document_id).collect::<Vec<_>>().concat()
    };
    assert_eq!(told(&portion(100, 1)), "a", "one, however large it is");
    let first = store.undelivered("c", &portion(100, 1)).unwrap();
    let size = serde_json::to_vec(&first.upserts[0]).unwrap().len();
    assert_eq!(told(&portion(100, 2 * size)), "ab");
    assert_eq!(told(&portion(100, 3 * size - 1)), "ab");
    assert_eq!(told(&portion(3, usize::MAX)), "abc");
    let rest = outbox::Portion { refused: first.done.into_iter().collect(), ..all() };
    assert_eq!(told(&rest), "bcd");
}

#[test]
fn what_a_store_of_the_first_format_has_to_tell_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let meta = redb::TableDefinition::<&str, &str>::new("meta");
    let outbox = redb::TableDefinition::<(&str, &str, &str), bool>::new("outbox");
    let database = redb::Database::create(folder.path().join("jobs.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(meta).unwrap().insert("schema", "1").unwrap();
    transaction.open_table(outbox).unwrap().insert(("c", "x", "1"), false).unwrap();
    transaction.commit().unwrap();
    drop(database);
    for opened in ["for the first time", "again"] {
        let store = Store::open(folder.path()).unwrap();
        let delivery = store.undelivered("c", &all()).unwrap();
        assert_eq!(delivery.deletes, [("x".to_owned(), "1".to_owned())], "opened {opened}");
    }
}

#[tokio::test]
async fn a_job_that_finds_its_corpus_damaged_fails_and_the_others_have_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody listens there, and nobody is asked.
    let servers = SinkServers { qdrant_url: Some("http://127.0.0.1:1".to_owned()), ..SinkServers::default() };
    let jobs = with_servers(folder.path(), servers);
    let end = async |body: Value| {
        let Asked::Taken(job) = ask(&jobs, body).await else { panic!("it is new") };
        let live = jobs.find(&job.id).unwrap();
        run::run(jobs.tools(), &live).await.unwrap();
        live.record()
    };
    let documents = json!([{ "id": "x", "text": "one" }]);
    assert_eq!(end(json!({ "corpus": "c", "documents": documents })).await.state, State::Succeeded);
    let store = jobs.store();
    let id = store.document("c", "x").unwrap().unwrap().chunks[0].id.clone();
    let damage = store.write(|transaction| {
        transaction.open_table(corpus::CHUNKS)?.remove(("c", "x", id.as_str()))?;
        Ok(())
    });
    damage.unwrap();
    let qdrant = json!({ "type": "qdrant", "collection": "c" });
    let file = json!({ "type": "jsonl", "path": "c.jsonl" });
    for sink in [qdrant, file] {
        let job = end(json!({ "corpus": "c", "delete": ["y"], "sink": sink })).await;
        let error = job.error.unwrap_or_default();
        assert!(job.state == State::Failed && error.contains(&id), "{error:?}");
    }
    assert_eq!(end(json!({ "corpus": "d", "documents": documents })).await.state, State::Succeeded);
}
