//! Pods that are being deleted and don't end, on nodes that are well: of a finalizer, a kubelet or a runtime that hangs.

use super::cluster::{Cluster, factory, reranker};
use super::rollout::image;
use super::turns::{go_on, replicas};
use crate::actions::Write;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

/// Keeps a pod from ending once it is deleted.
fn hold(cluster: &mut Cluster, name: &str) {
    let pod = cluster.pods.get_mut(&("demo".to_owned(), name.to_owned())).unwrap();
    pod.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
}

/// Deletes a pod that does not end, and says when it should have.
fn delete(cluster: &mut Cluster, name: &str) -> Timestamp {
    hold(cluster, name);
    let due = cluster.now + SignedDuration::from_secs(30);
    let pod = cluster.pods.get_mut(&("demo".to_owned(), name.to_owned())).unwrap();
    pod.metadata.deletion_timestamp = Some(Time(due));
    due
}

#[test]
fn a_pod_that_does_not_end_gets_a_successor_on_another_gpu_a_minute_later() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    let due = delete(&mut cluster, "rr-0-1");
    cluster.now = due + SignedDuration::from_secs(50);
    let plan = cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"], "it is about to end");
    assert_eq!(cluster.ready("rr").2, "Pod rr-0-1 is ending; its successor starts then");
    assert_eq!(plan.requeue_after, Some(SignedDuration::from_secs(10)), "nothing else tells of it");
    cluster.now += SignedDuration::from_secs(10);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-2 n0 1:8"]);
    assert_eq!(cluster.ready("rr").0, "True");

    // A successor that fails beside it is made again as slowly as any other.
    cluster.fail("rr-0-2", "UnexpectedAdmissionError");
    let plan = cluster.pass();
    assert!(plan.actions.iter().all(|action| !matches!(action.write, Write::CreatePod(_))), "{plan:?}");
    cluster.now += SignedDuration::from_secs(10);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-3 n0 1:8"]);
}

#[test]
fn a_pod_that_does_not_end_keeps_its_gpu_and_the_status_says_where_to_look() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("Reranker", "rr", reranker(json!({"devices": [{"index": 0}]})));
    cluster.settle();
    let due = delete(&mut cluster, "rr-0-1");
    cluster.now = due + SignedDuration::from_mins(1);
    cluster.settle();
    let told = "GPU 0 on node n0 is still held by Reranker demo/rr (8 of 8 GiB), which should have ended by now: look at its \
                finalizers and at the kubelet of its node; waiting for 8 GiB";
    assert_eq!(cluster.ready("rr"), ("False".to_owned(), "WaitingForGPU".to_owned(), told.to_owned()));
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}

#[test]
fn nobody_counts_on_the_gpu_of_a_pod_that_does_not_end() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply("Reranker", "rr", replicas(2));
    cluster.settle();
    hold(&mut cluster, "rr-0-1");
    cluster.apply("Reranker", "rr", image(replicas(2), "embedder:2"));
    go_on(&mut cluster, 30, |_| ());
    let soon = ["rr-0-1 n0 0:8", "rr-0-2 n0 2:8", "rr-1-1 n0 1:8"];
    assert_eq!(cluster.held(), soon, "a GPU is about to be free for the second");
    go_on(&mut cluster, 70, |_| ());
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-2 n0 2:8", "rr-1-2 n0 1:8"]);
    assert_eq!(cluster.ready("rr").0, "True");
}

#[test]
fn what_is_never_two_waits_for_a_pod_that_does_not_end_and_says_where_to_look() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("DataFactory", "df", factory(json!({"count": 1})));
    cluster.settle();
    let due = delete(&mut cluster, "df-0-1");
    cluster.now = due + SignedDuration::from_mins(1);
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 0:8"]);
    let told = |cluster: &Cluster| cluster.ready("df");
    let late = format!(
        "Pod df-0-1 should have ended at {due}: look at its finalizers and at the kubelet of node n0; its successor starts then"
    );
    assert_eq!(told(&cluster), ("False".to_owned(), "Starting".to_owned(), late));
    let before = told(&cluster);
    cluster.now += SignedDuration::from_hours(1);
    let plan = cluster.pass();
    assert_eq!((plan.statuses, told(&cluster)), (Vec::new(), before), "it is said once");
    let key = ("demo".to_owned(), "df-0-1".to_owned());
    cluster.pods.get_mut(&key).unwrap().metadata.finalizers = None;
    cluster.settle();
    assert_eq!((cluster.held(), cluster.ready("df").0.as_str()), (vec!["df-0-2 n0 0:8".to_owned()], "True"));
}
