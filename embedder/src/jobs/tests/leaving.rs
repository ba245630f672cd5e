//! What becomes of a change of a job when nobody waits for it any more.

use super::*;
use futures::FutureExt as _;
use std::time::Instant;

/// Has all that is to be kept in a store wait, until what is given is dropped.
async fn busy(store: &Arc<Store>) -> std::sync::mpsc::Sender<()> {
    let (begin, begun) = tokio::sync::oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let store = store.clone();
    tokio::task::spawn_blocking(move || {
        store.write(|_| {
            begin.send(()).unwrap();
            // Nobody says anything.
            ended.recv().unwrap_err();
            Ok(())
        })
    });
    begun.await.unwrap();
    end
}

/// Waits for what nobody tells.
async fn until(is: impl AsyncFn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !is().await {
        assert!(Instant::now() < give_up);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_job_whose_client_leaves_while_it_is_taken_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = jobs(folder.path());
    let busy = busy(jobs.store()).await;
    let body = json!({ "id": "left", "documents": [{ "id": "x", "text": "one" }] });
    assert!(ask(&jobs, body).now_or_never().is_none(), "it is not yet taken, and nobody waits for it");
    drop(busy);
    until(async || {
        let job = jobs.job("left").await.unwrap();
        job.is_some_and(|job| job.state == State::Succeeded)
    })
    .await;
}

#[tokio::test]
async fn a_job_that_a_client_cancels_before_it_leaves_is_no_longer_counted() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = at_rest(folder.path());
    let Asked::Taken(job) = ask(&jobs, json!({ "delete": ["x"] })).await else { panic!("it is new") };
    let busy = busy(jobs.store()).await;
    assert!(jobs.cancel(&job.id).now_or_never().is_none());
    drop(busy);
    until(async || jobs.find(&job.id).is_none()).await;
    assert_eq!(jobs.job(&job.id).await.unwrap().map(|job| job.state), Some(State::Cancelled));
    assert_eq!(jobs.tools().metrics.jobs.open.get(), 0);
}

#[tokio::test]
async fn a_job_that_is_cancelled_just_before_its_turn_ends_once_and_is_never_begun() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = at_rest(folder.path());
    let Asked::Taken(job) = ask(&jobs, json!({ "delete": ["x"] })).await else { panic!("it is new") };
    let live = jobs.find(&job.id).unwrap();
    jobs.cancel(&job.id).await.unwrap();
    // Its turn came when it had just been found to wait.
    run::run(jobs.tools(), &live).await.unwrap();
    let ended = jobs.job(&job.id).await.unwrap().unwrap();
    assert_eq!((ended.state, ended.started_ms), (State::Cancelled, None));
    let metrics = jobs.tools().metrics.render().unwrap();
    assert!(metrics.contains("jobs_ended_total{state=\"cancelled\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn what_was_begun_is_kept_before_the_end_of_a_job_and_what_was_not_is_never() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = at_rest(folder.path());
    let Asked::Taken(job) = ask(&jobs, json!({ "delete": ["x"] })).await else { panic!("it is new") };
    let live = jobs.find(&job.id).unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let keep = |change: &'static str| {
        let order = order.clone();
        move |store: &Store, job: &JobRecord| {
            store.put_job(job)?;
            order.lock().unwrap().push(change);
            Ok::<(), StoreError>(())
        }
    };
    let busy = busy(jobs.store()).await;
    for change in ["begun", "waiting"] {
        let left = live.commit(jobs.store(), |_| {}, keep(change)).now_or_never();
        assert!(left.is_none(), "{change}");
    }
    let end = live.commit(jobs.store(), |_| {}, keep("end"));
    drop(busy);
    end.await.unwrap();
    assert_eq!(*order.lock().unwrap(), ["begun", "end"]);
}
