//! Ingestions in whole plans: when a run is begun, what becomes of it, and that nothing is done twice or forgotten.

use super::cluster::{Cluster, factory};
use super::fields::{json_patch, leaves};
use crate::actions::Question;
use crate::ingestion::{Job, JobAnswer, JobQuestion, JobSaid, JobWish};
use jiff::{SignedDuration, Timestamp};
use principium_api::ingestion::{CorpusSize, IngestionRun, RunState};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The jobs that DataFactories know, as they would keep them.
#[derive(Debug, Default)]
pub struct Jobs {
    /// By id: the pod that took it, and how it is.
    known: BTreeMap<String, (String, Value)>,
    /// Ids of the jobs that were made, in their order.
    pub made: Vec<String>,
    /// Requests of these.
    pub requests: Vec<Value>,
    /// Why none is taken.
    pub refuses: Option<&'static str>,
    /// Why nothing is answered.
    pub silent: Option<&'static str>,
    /// Whether another pod still knows them.
    pub kept: bool,
}

impl Jobs {
    /// What the DataFactory's pod answers, after it has done what is asked.
    pub fn ask(&mut self, question: &JobQuestion) -> JobAnswer {
        let answer = |said| JobAnswer { job: question.job.clone(), pod_uid: question.pod_uid.clone(), said };
        if let Some(why) = self.silent {
            return answer(JobSaid::Silent(why.to_owned()));
        }
        let kept = self.kept;
        let found = self.known.get_mut(&question.job).filter(|(pod, _)| kept || *pod == question.pod_uid);
        match (found, &question.wish) {
            (Some((_, job)), JobWish::Ended) if job["state"] == "running" => {
                job["state"] = json!("cancelled");
            }
            (Some(_), _) => {}
            (None, JobWish::Ended) => return answer(JobSaid::Gone),
            (None, JobWish::Done(request)) => {
                if let Some(why) = self.refuses {
                    return answer(JobSaid::Refused(why.to_owned()));
                }
                self.made.push(question.job.clone());
                self.requests.push(request.clone());
                let progress = json!({"documents_total": 40, "documents_done": 12});
                let job = json!({"state": "running", "progress": progress});
                self.known.insert(question.job.clone(), (question.pod_uid.clone(), job));
            }
        }
        let mut job: Job = serde_json::from_value(self.known[&question.job].1.clone()).unwrap();
        job.corpus =
            (job.state.run() == RunState::Succeeded).then_some(CorpusSize { documents: 39, chunks: 400 });
        answer(JobSaid::Is(Box::new(job)))
    }

    fn state(&self, id: &str) -> &str {
        self.known[id].1["state"].as_str().unwrap()
    }

    /// How many go on.
    pub fn running(&self) -> usize {
        self.known.values().filter(|(_, job)| job["state"] == "running").count()
    }

    /// Ends what runs.
    pub fn end(&mut self, state: &str, now: Timestamp) {
        for (_, job) in self.known.values_mut().filter(|(_, job)| job["state"] == "running") {
            *job = json!({
                "state": state, "finished_ms": now.as_millisecond(),
                "error": (state == "failed").then_some("the sink is away"),
                "failures": [{"document_id": "a.pdf", "error": "it is locked"}],
                "progress": {"documents_total": 40, "documents_done": 37, "documents_failed": 1, "documents_unchanged": 2,
                    "documents_removed": 3, "chunks": 312, "tokens": 5000, "running_ms": 35_400},
            });
        }
    }
}

pub fn spec(more: &Value) -> Value {
    let mut spec = json!({"dataFactoryRef": {"name": "df"}, "source": {"folder": {"path": "docs"}}});
    json_patch(&mut spec, more);
    spec
}

/// With a DataFactory that is ready.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("DataFactory", "df", factory(json!({"count": 1})));
    cluster.settle();
    cluster
}

/// A few passes: what is decided is written, asked and heard.
pub fn work(cluster: &mut Cluster) {
    for _ in 0..3 {
        cluster.pass();
        cluster.run_pods();
    }
    cluster.pass();
}

pub fn finish(cluster: &mut Cluster, state: &str) {
    let now = cluster.now;
    cluster.jobs.end(state, now);
    work(cluster);
}

fn wait(cluster: &mut Cluster, seconds: i64) {
    cluster.now += SignedDuration::from_secs(seconds);
    work(cluster);
}

pub fn runs(cluster: &Cluster) -> Vec<IngestionRun> {
    cluster.ingestion("x").status.clone().unwrap_or_default().runs
}

fn states(cluster: &Cluster) -> Vec<RunState> {
    runs(cluster).iter().map(|run| run.state).collect()
}

/// Type and reason of the one condition that is true, and the message of Ready.
fn says(cluster: &Cluster) -> (String, String, String) {
    let mut conditions = cluster.conditions("x").into_iter();
    let found = conditions.find(|condition| condition.status == "True").unwrap();
    (found.type_, found.reason, cluster.ready("x").2)
}

fn is(cluster: &Cluster, type_: &str, reason: &str) -> bool {
    let (found, why, _) = says(cluster);
    (found.as_str(), why.as_str()) == (type_, reason)
}

#[test]
fn it_waits_for_its_data_factory_runs_once_and_says_what_came_of_it() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Ingestion", "x", spec(&json!({"corpus": "handbook"})));
    work(&mut cluster);
    assert_eq!(says(&cluster).2, "it waits for DataFactory demo/df, which does not exist");
    assert!(is(&cluster, "Reconciling", "DataFactoryMissing"));
    cluster.apply("DataFactory", "df", factory(json!({"count": 1})));
    cluster.pass();
    assert!(is(&cluster, "Reconciling", "DataFactoryNotReady"));
    cluster.settle();
    assert!(is(&cluster, "Reconciling", "Running"));
    assert_eq!(says(&cluster).2, "12 of 40 documents");
    assert_eq!(cluster.ingestion("x").status.clone().unwrap().progress, "12/40");
    assert_eq!((cluster.jobs.made.len(), &cluster.jobs.requests[0]["corpus"]), (1, &json!("handbook")));
    assert_eq!(cluster.jobs.requests[0]["source_id"], "demo/x");
    finish(&mut cluster, "succeeded");
    assert!(is(&cluster, "Ready", "Completed"));
    let said = "40 documents: 37 processed, 2 unchanged, 3 removed; 312 chunks in 35 s; 1 failed: a.pdf: it is locked";
    assert_eq!(says(&cluster).2, said);
    assert_eq!(cluster.noted("Completed"), [said], "told once");
    let corpus = cluster.ingestion("x").status.clone().unwrap().corpus.unwrap();
    assert_eq!((corpus.documents, corpus.chunks), (39, 400));
    wait(&mut cluster, 1_000_000);
    assert_eq!(cluster.jobs.made.len(), 1, "once is once");
    assert!(!cluster.targets.iter().any(|target| matches!(target.question, Question::Job(_))));
}

#[test]
fn a_run_is_written_down_before_it_is_asked_for() {
    let mut cluster = cluster();
    cluster.apply("Ingestion", "x", spec(&json!({})));
    let plan = cluster.pass();
    assert!(!plan.targets.iter().any(|target| matches!(target.question, Question::Job(_))));
    assert_eq!(states(&cluster), [RunState::Queued]);
    let again = cluster.pass();
    assert!(again.targets.iter().any(|target| matches!(target.question, Question::Job(_))));
    // So is one that takes the place of another.
    cluster.run_pods();
    cluster.apply("Ingestion", "x", spec(&json!({"prune": false})));
    for _ in 0..6 {
        let written = runs(&cluster).first().map(|run| run.id.clone()).unwrap();
        for target in cluster.pass().targets {
            if let Question::Job(question) = &target.question {
                assert_eq!(question.job, written);
            }
        }
        cluster.run_pods();
    }
    assert_eq!(states(&cluster), [RunState::Running, RunState::Cancelled]);
}

#[test]
fn a_clock_that_is_wrong_changes_neither_schedule_nor_retries() {
    for skew in [-7200, 7200] {
        let mut cluster = cluster();
        cluster.apply("Ingestion", "x", spec(&json!({"schedule": "0 * * * *"})));
        work(&mut cluster);
        let begun = cluster.now;
        cluster.now += SignedDuration::from_secs(10);
        let theirs = cluster.now + SignedDuration::from_secs(skew);
        cluster.jobs.end("succeeded", theirs);
        work(&mut cluster);
        let run = runs(&cluster).remove(0);
        let ended = run.completion_time.unwrap().0;
        assert!(ended >= begun - SignedDuration::from_secs(10) && ended <= cluster.now, "{skew}: {ended}");
        assert_eq!(cluster.jobs.made.len(), 1, "{skew}");
        wait(&mut cluster, 3600);
        assert_eq!(cluster.jobs.made.len(), 2, "{skew}: the next hour is not left out");
    }
}

#[test]
fn an_operator_that_starts_anew_asks_for_nothing_twice() {
    let mut cluster = cluster();
    cluster.apply("Ingestion", "x", spec(&json!({"schedule": "0 * * * *"})));
    for state in ["running", "succeeded"] {
        finish(&mut cluster, state);
        let before = cluster.ingestion("x").status.clone();
        cluster.observed.answers = Arc::default();
        work(&mut cluster);
        assert_eq!((cluster.jobs.made.len(), &cluster.ingestion("x").status), (1, &before));
    }
}

#[test]
fn a_schedule_makes_up_for_the_last_time_that_was_missed_and_not_while_suspended() {
    let mut cluster = cluster();
    let hourly = json!({"schedule": "0 * * * *", "historyLimit": 2});
    cluster.apply("Ingestion", "x", spec(&hourly));
    work(&mut cluster);
    assert!(is(&cluster, "Reconciling", "Running"), "the first run makes the corpus");
    finish(&mut cluster, "succeeded");
    let next = cluster.ingestion("x").status.clone().unwrap().next_run_time.unwrap().0;
    assert_eq!((next.as_second() % 3600, next > cluster.now), (0, true));
    let plan = cluster.pass();
    assert!(plan.requeue_after.unwrap() <= next.duration_since(cluster.now));
    let mut suspended = hourly.clone();
    suspended["suspend"] = json!(true);
    cluster.apply("Ingestion", "x", spec(&suspended));
    cluster.now = next + SignedDuration::from_secs(2 * 3600 + 5);
    work(&mut cluster);
    assert!(is(&cluster, "Ready", "Suspended") && cluster.jobs.made.len() == 1);
    assert_eq!(cluster.ingestion("x").status.clone().unwrap().next_run_time, None);
    cluster.apply("Ingestion", "x", spec(&hourly));
    work(&mut cluster);
    let last = next + SignedDuration::from_secs(2 * 3600);
    assert_eq!(runs(&cluster)[0].scheduled_time.as_ref().unwrap().0, last, "of three missed, the last");
    assert!(is(&cluster, "Ready", "Running"), "meanwhile the corpus is as it was");
    finish(&mut cluster, "succeeded");
    assert_eq!(cluster.jobs.made.len(), 2);
    wait(&mut cluster, 3600);
    assert_eq!(states(&cluster), [RunState::Running, RunState::Succeeded, RunState::Succeeded]);
    finish(&mut cluster, "succeeded");
    assert_eq!(states(&cluster).len(), 2, "as many as the history keeps");
}

#[test]
fn a_run_that_fails_is_tried_again_later_and_later() {
    let mut cluster = cluster();
    cluster.apply("Ingestion", "x", spec(&json!({"historyLimit": 1})));
    work(&mut cluster);
    for (wait_for, made) in [(60, 2), (120, 3), (240, 4), (480, 5), (960, 6), (1800, 7), (1800, 8)] {
        finish(&mut cluster, "failed");
        assert!(is(&cluster, "Reconciling", "RunFailed"));
        let message = says(&cluster).2;
        assert!(message.starts_with("the sink is away; it is tried again at "), "{message}");
        assert_eq!(cluster.noted("RunFailed").last(), Some(&message.as_str()));
        wait(&mut cluster, wait_for - 2);
        assert_eq!(cluster.jobs.made.len(), made - 1, "not yet");
        wait(&mut cluster, 2);
        assert_eq!(cluster.jobs.made.len(), made);
    }
    finish(&mut cluster, "succeeded");
    assert!(is(&cluster, "Ready", "Completed"));
    let distinct: BTreeSet<&String> = cluster.jobs.made.iter().collect();
    assert_eq!(distinct.len(), cluster.jobs.made.len(), "each try is a job of its own");
}

#[test]
fn what_is_refused_waits_for_a_change_of_either_spec() {
    let mut cluster = cluster();
    cluster.jobs.refuses = Some("source.path is \"docs\": there is no such volume");
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    assert!(is(&cluster, "Stalled", "Refused"));
    assert!(says(&cluster).2.contains("DataFactory df can't do it: source.path is"), "{}", says(&cluster).2);
    assert_eq!(cluster.noted("Refused").len(), 1);
    wait(&mut cluster, 10_000);
    assert_eq!(runs(&cluster).len(), 1, "it is not tried again for nothing");
    cluster.jobs.refuses = None;
    let mut changed = factory(json!({"count": 1}));
    changed["volumes"] = json!([{"name": "docs", "configMap": {"name": "m"}}]);
    cluster.apply("DataFactory", "df", changed);
    cluster.settle();
    work(&mut cluster);
    finish(&mut cluster, "succeeded");
    assert!(is(&cluster, "Ready", "Completed"));
}

#[test]
fn a_changed_spec_ends_the_run_and_begins_another() {
    let mut cluster = cluster();
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    cluster.apply("Ingestion", "x", spec(&json!({"prune": false})));
    cluster.pass();
    assert!(is(&cluster, "Reconciling", "Updating"));
    work(&mut cluster);
    work(&mut cluster);
    assert_eq!(cluster.ingestion("x").status.clone().unwrap().corpus, None, "it may be another one");
    let made = cluster.jobs.made.clone();
    assert_eq!(made.len(), 2);
    assert_eq!((cluster.jobs.state(&made[0]), cluster.jobs.state(&made[1])), ("cancelled", "running"));
    assert_eq!(states(&cluster), [RunState::Running, RunState::Cancelled]);
    // The former spec again is another run: what was done meanwhile has to be undone.
    finish(&mut cluster, "succeeded");
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    assert_eq!(cluster.jobs.made.len(), 3);
}

#[test]
fn ingestions_of_one_corpus_that_name_different_sinks_say_so() {
    let mut cluster = cluster();
    let fills = |corpus: &str, sink: Value| spec(&json!({"corpus": corpus, "sink": sink}));
    let table = |name: &str| json!({"postgres": {"table": name}});
    let agreed = |cluster: &Cluster, name: &str| {
        let status = cluster.ingestion(name).status.clone().unwrap();
        let found = status.conditions.iter().find(|condition| condition.type_ == "SinkAgreed").cloned();
        found.map(|found| (found.status, found.reason, found.message))
    };
    cluster.apply("Ingestion", "x", fills("shared", table("a")));
    cluster.apply("Ingestion", "y", fills("shared", json!(null)));
    cluster.apply("Ingestion", "z", fills("other", table("b")));
    work(&mut cluster);
    assert!(["x", "y", "z"].iter().all(|name| agreed(&cluster, name).is_none()), "nobody else names one");
    cluster.apply("Ingestion", "y", fills("shared", table("b")));
    work(&mut cluster);
    for (name, other) in [("x", "y"), ("y", "x")] {
        let (status, reason, message) = agreed(&cluster, name).unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("False", "OtherSink"), "{name}");
        assert!(message.contains(&format!("Ingestion {other} fills the corpus \"shared\" too")), "{message}");
    }
    assert_eq!(cluster.noted("OtherSink").len(), 2, "one Event each");
    work(&mut cluster);
    assert_eq!(cluster.noted("OtherSink").len(), 2, "and no more of them");
    assert_eq!(agreed(&cluster, "z"), None);
    cluster.apply("Ingestion", "x", fills("shared", table("b")));
    work(&mut cluster);
    assert_eq!(agreed(&cluster, "y").unwrap().1, "SameSink");
    cluster.delete("x");
    work(&mut cluster);
    assert_eq!(agreed(&cluster, "y"), None);
}

#[test]
fn the_job_of_an_ingestion_that_is_deleted_is_ended() {
    let mut cluster = cluster();
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    let made = cluster.jobs.made.clone();
    cluster.delete("x");
    work(&mut cluster);
    assert_eq!(cluster.jobs.state(&made[0]), "cancelled");
    work(&mut cluster);
    assert!(cluster.observed.answers.jobs.is_empty(), "it is forgotten then");
}

#[test]
fn a_data_factory_that_has_another_folder_gets_the_run_again() {
    for kept in [false, true] {
        let mut cluster = Cluster::new(&[2]);
        let mut made = factory(json!({"count": 1}));
        if kept {
            made["storage"] = json!({"persistentVolumeClaim": {"claimName": "c"}});
        }
        cluster.jobs.kept = kept;
        cluster.apply("DataFactory", "df", made.clone());
        cluster.apply("Ingestion", "x", spec(&json!({})));
        cluster.settle();
        // Once while the run is under way, and once after it.
        let mut times = 1;
        for state in ["running", "succeeded"] {
            finish(&mut cluster, state);
            made["image"] = json!(format!("embedder:{state}"));
            cluster.apply("DataFactory", "df", made.clone());
            cluster.settle();
            work(&mut cluster);
            times += usize::from(!kept);
            assert_eq!(cluster.jobs.made.len(), times, "{kept} {state}");
        }
        let expected = if kept { ("Ready", "Completed") } else { ("Reconciling", "Running") };
        assert!(is(&cluster, expected.0, expected.1), "{kept}: {:?}", says(&cluster));
        finish(&mut cluster, "succeeded");
        made["storage"] = json!({"persistentVolumeClaim": {"claimName": "other"}});
        cluster.apply("DataFactory", "df", made);
        cluster.settle();
        assert_eq!(cluster.jobs.made.len(), times + 1, "{kept}");
        let ids: BTreeSet<String> = runs(&cluster).into_iter().map(|run| run.id).collect();
        assert_eq!(ids.len(), runs(&cluster).len(), "each run has an id of its own: {ids:?}");
        assert!(is(&cluster, "Reconciling", "Running"), "there is no corpus yet");
    }
}

#[test]
fn a_data_factory_that_does_not_answer_is_named() {
    let mut cluster = cluster();
    cluster.jobs.silent = Some("http://10.0.0.1:9000/v1/jobs answers 429: too many jobs");
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    assert!(is(&cluster, "Reconciling", "DataFactorySilent"));
    assert!(says(&cluster).2.contains("429"));
    cluster.jobs.silent = None;
    work(&mut cluster);
    assert!(is(&cluster, "Reconciling", "Running"));
}

#[test]
fn a_schedule_that_is_none_is_stalled() {
    let mut cluster = cluster();
    for wrong in ["every day at three o'clock", "61 * * * *", "* * * * * *", "0 0 30 2 *", ", * * * *"] {
        cluster.apply("Ingestion", "x", spec(&json!({"schedule": wrong})));
        work(&mut cluster);
        assert!(is(&cluster, "Stalled", "InvalidSchedule"), "{wrong}");
        let message = says(&cluster).2;
        assert!(message.starts_with(&format!("spec.schedule is {wrong:?}: ")), "{message}");
        assert_eq!(cluster.noted("InvalidSchedule").last(), Some(&message.as_str()));
    }
    assert_eq!(cluster.jobs.made, [""; 0]);
}

/// A field, a change of the base by RFC 7386, and whether a run is begun for it.
type Row = (&'static str, Value, bool);

fn fields() -> Vec<Row> {
    let instead = |source: Value| {
        let mut change = json!({"source": {"folder": null}});
        json_patch(&mut change["source"], &source);
        change["source"]["folder"] = json!(null);
        change
    };
    let s3 = |more: Value| {
        let mut s3 = json!({"url": "s3://b/p"});
        json_patch(&mut s3, &more);
        instead(json!({"s3": s3}))
    };
    let chunking = |chunking: Value| json!({"processing": {"chunking": chunking}});
    vec![
        ("dataFactoryRef.name", json!({"dataFactoryRef": {"name": "other"}}), true),
        ("corpus", json!({"corpus": "c"}), true),
        ("source.folder.path", json!({"source": {"folder": {"path": "docs/a"}}}), true),
        ("source.folder.include", json!({"source": {"folder": {"include": ["*.md"]}}}), true),
        ("source.folder.exclude", json!({"source": {"folder": {"exclude": ["*.md"]}}}), true),
        ("source.s3.url", s3(json!({})), true),
        ("source.s3.include", s3(json!({"include": ["*.md"]})), true),
        ("source.s3.exclude", s3(json!({"exclude": ["*.md"]})), true),
        ("source.http.urls", instead(json!({"http": {"urls": ["https://a/b"]}})), true),
        ("sink.jsonl.path", json!({"sink": {"jsonl": {"path": "out/a.jsonl"}}}), true),
        ("sink.parquet.path", json!({"sink": {"parquet": {"path": "out/a.parquet"}}}), true),
        ("sink.qdrant.collection", json!({"sink": {"qdrant": {"collection": "c"}}}), true),
        ("sink.postgres.table", json!({"sink": {"postgres": {"table": "t"}}}), true),
        ("processing.enrich", json!({"processing": {"enrich": false}}), true),
        ("processing.chunking.strategy", chunking(json!({"strategy": "fixed"})), true),
        ("processing.chunking.maxTokens", chunking(json!({"maxTokens": 100})), true),
        ("processing.chunking.overlap", chunking(json!({"overlap": 9})), true),
        ("prune", json!({"prune": false}), true),
        ("schedule", json!({"schedule": "0 3 * * *"}), false),
        ("suspend", json!({"suspend": true}), false),
        ("historyLimit", json!({"historyLimit": 9}), false),
    ]
}

#[test]
fn every_field_of_the_spec_has_a_row() {
    let crd = principium_api::crds().into_iter().find(|crd| crd.spec.names.kind == "Ingestion").unwrap();
    let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
    let mut found = BTreeSet::new();
    leaves("", &schema["openAPIV3Schema"]["properties"]["spec"], &mut found);
    let rows: BTreeSet<String> = fields().iter().map(|(field, ..)| (*field).to_owned()).collect();
    assert_eq!(found, rows, "fields of the schema on the left, rows of the table on the right");
}

#[test]
fn a_run_is_begun_for_a_change_of_what_is_done_and_for_no_other() {
    for (field, change, begins) in fields() {
        let mut cluster = cluster();
        cluster.apply("DataFactory", "other", factory(json!({"count": 1})));
        cluster.settle();
        cluster.apply("Ingestion", "x", spec(&json!({})));
        work(&mut cluster);
        finish(&mut cluster, "succeeded");
        cluster.apply("Ingestion", "x", spec(&change));
        work(&mut cluster);
        assert_eq!(cluster.jobs.made.len(), if begins { 2 } else { 1 }, "{field}");
        finish(&mut cluster, "succeeded");
        assert_eq!(cluster.ready("x").0, "True", "{field}: {:?}", says(&cluster));
    }
}
