//! Nodes that are drained, fall silent, go, or come back different.

use super::cluster::{Cluster, factory, reranker};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;
use std::sync::Arc;

fn replicas(count: u32, gpu: serde_json::Value) -> serde_json::Value {
    let mut spec = reranker(gpu);
    spec["replicas"] = json!(count);
    spec
}

#[test]
fn a_cordoned_node_keeps_its_pods_and_a_drained_one_sends_them_elsewhere() {
    let mut cluster = Cluster::new(&[2, 2]);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.reranker_on("pinned", 1);
    cluster.settle();
    assert_eq!(cluster.held(), ["pinned-0-1 n0 1:8", "rr-0-1 n0 0:8"]);
    cluster.node("n0", |node| node.unschedulable = true);
    cluster.settle();
    assert_eq!(cluster.held(), ["pinned-0-1 n0 1:8", "rr-0-1 n0 0:8"]);
    cluster.pods.clear();
    cluster.settle();
    assert_eq!(cluster.held(), ["pinned-0-2 n1 1:8", "rr-0-2 n1 0:8"]);
}

#[test]
fn a_gpu_that_its_node_tells_of_under_two_indices_is_granted_once() {
    let mut cluster = Cluster::new(&[2]);
    cluster.nodes.get_mut("n0").unwrap()[1].uuid = "GPU-0".to_owned();
    cluster.apply("Reranker", "a", reranker(json!({"count": 1})));
    cluster.apply("Reranker", "b", reranker(json!({"count": 1})));
    cluster.settle();
    assert_eq!(cluster.held(), ["a-0-1 n0 0:8"]);
    assert_eq!(cluster.ready("b").1, "WaitingForGPU");
}

#[test]
fn exact_devices_of_a_drained_node_wait_for_it() {
    let mut cluster = Cluster::new(&[2]);
    cluster.reranker_on("rr", 1);
    cluster.settle();
    cluster.node("n0", |node| node.unschedulable = true);
    cluster.pods.clear();
    cluster.settle();
    assert_eq!(cluster.ready("rr").1, "WaitingForGPU");
    assert_eq!(cluster.ready("rr").2, "node n0 is cordoned");
    cluster.node("n0", |node| node.unschedulable = false);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"]);
}

#[test]
fn a_pod_that_is_ending_on_a_silent_node_gets_a_successor_elsewhere_but_a_data_factory_is_never_two() {
    let mut cluster = Cluster::new(&[2, 2]);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.apply("DataFactory", "df", factory(json!({"count": 1})));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 1:8", "rr-0-1 n0 0:8"]);
    cluster.node("n0", |node| node.ready = false);
    for pod in cluster.pods.values_mut() {
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(cluster.now));
    }
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 1:8", "rr-0-1 n0 0:8", "rr-0-2 n1 0:8"]);
    assert_eq!((cluster.ready("rr").0.as_str(), cluster.ready("df").1.as_str()), ("True", "Starting"));
    cluster.node("n0", |node| node.ready = true);
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 1:8", "rr-0-2 n1 0:8"]);
}

#[test]
fn a_pod_that_the_scheduler_can_no_longer_bind_is_planned_anew() {
    for exact in [false, true] {
        for what in ["gone", "cordoned", "taken"] {
            let mut cluster = Cluster::new(&[1]);
            let gpu = if exact { json!({"devices": [{"index": 0}]}) } else { json!({"count": 1}) };
            cluster.apply("Reranker", "rr", reranker(gpu));
            cluster.pass();
            assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"], "made, and not bound yet");
            match what {
                "gone" => cluster.lose("n0"),
                "cordoned" => cluster.node("n0", |node| node.unschedulable = true),
                _ => cluster.foreign_pod("thief", "n0", &[(0, 8)]),
            }
            let plan = cluster.plan();
            assert!(plan.actions.is_empty(), "{what}: there is no better place: {:?}", plan.actions);
            cluster.restore("n1", 1);
            cluster.settle();
            assert!(cluster.held().contains(&"rr-0-2 n1 0:8".to_owned()), "{what}: {:?}", cluster.held());
            assert_eq!(cluster.ready("rr").0, "True");
        }
    }
}

#[test]
fn a_node_that_measures_no_gpus_yet_is_waited_for() {
    for gpu in [json!({"count": 1}), json!({"devices": [{"index": 0}]})] {
        let mut cluster = Cluster::new(&[0]);
        cluster.silent = Some("the driver library is not there".to_owned());
        cluster.apply("Reranker", "rr", reranker(gpu));
        cluster.settle();
        let expected = "node n0 measures no GPUs: the driver library is not there";
        assert_eq!(
            (cluster.ready("rr").1.as_str(), cluster.ready("rr").2.as_str()),
            ("WaitingForGPU", expected)
        );
        assert_eq!(cluster.condition("rr", "Stalled").status, "False");
        cluster.silent = None;
        cluster.restore("n0", 1);
        cluster.settle();
        assert_eq!(cluster.ready("rr").0, "True");
    }
}

#[test]
fn the_pods_of_a_node_that_is_gone_come_back_on_another() {
    let mut cluster = Cluster::new(&[2, 2]);
    cluster.apply("Reranker", "rr", replicas(2, json!({"count": 1})));
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-1-1 n0 1:8"]);
    cluster.lose("n0");
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n1 0:8", "rr-1-2 n1 1:8"]);
}

#[test]
fn a_node_that_comes_back_with_fewer_gpus_serves_those_that_still_fit_and_names_the_missing_one() {
    let mut cluster = Cluster::new(&[3]);
    cluster.reranker_on("first", 0);
    cluster.reranker_on("last", 2);
    cluster.apply("Reranker", "any", reranker(json!({"count": 1})));
    cluster.settle();
    assert_eq!(cluster.held(), ["any-0-1 n0 1:8", "first-0-1 n0 0:8", "last-0-1 n0 2:8"]);
    cluster.shrink("n0");
    cluster.settle();
    assert_eq!(
        cluster.held().iter().filter(|held| !held.starts_with("last")).count(),
        2,
        "{:?}",
        cluster.held()
    );
    assert_eq!(cluster.ready("any").0, "True");
    assert_eq!(
        cluster.ready("last"),
        ("False".to_owned(), "NoSuchGPU".to_owned(), "node n0 has no GPU 2; it has GPUs 0, 1".to_owned())
    );
    cluster.restore("n0", 3);
    cluster.settle();
    assert_eq!(cluster.ready("last").0, "True");
}

#[test]
fn a_reboot_moves_nothing_that_can_come_back_and_a_node_that_stays_away_keeps_nothing_for_long() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.settle();
    for (away, expected) in [(30, "rr-0-2 n0 0:8"), (600, "rr-0-3 n1 0:8")] {
        let running = cluster.pod_names().into_iter().next_back().unwrap();
        cluster.node("n0", |node| node.ready = false);
        cluster.fail(&running, "UnexpectedAdmissionError");
        let failed = cluster.now;
        while cluster.now.duration_since(failed).as_secs() < away {
            let plan = cluster.pass();
            if cluster.now.duration_since(failed).as_secs() < 100 {
                assert_eq!(cluster.held().len(), 1, "nothing is made elsewhere: {:?}", cluster.held());
                assert_eq!(cluster.ready("rr").1, "WaitingForGPU");
            }
            cluster.now += plan.requeue_after.unwrap().max(SignedDuration::from_secs(1));
        }
        if away < 100 {
            cluster.node("n0", |node| node.ready = true);
        }
        cluster.settle();
        assert_eq!(cluster.held().last().unwrap(), expected);
    }
}

#[test]
fn budgets_follow_the_number_of_pods_and_what_may_be_away() {
    let mut cluster = Cluster::new(&[4]);
    let least = |cluster: &Cluster| -> Vec<IntOrString> {
        cluster.observed.budgets.iter().filter_map(|budget| budget.spec.clone()?.min_available).collect()
    };
    for (count, away, expected) in [
        (1, None, None),
        (3, None, Some(2)),
        (3, Some(2), Some(1)),
        (3, Some(3), None),
        (1, Some(0), Some(1)),
        (0, Some(0), None),
    ] {
        let mut spec = replicas(count, json!({"count": 1}));
        spec["maxUnavailable"] = json!(away);
        cluster.apply("Reranker", "rr", spec);
        cluster.settle();
        let expected: Vec<_> = expected.map(IntOrString::Int).into_iter().collect();
        assert_eq!(least(&cluster), expected, "{count} replicas of which {away:?} may be away");
    }
}

#[test]
fn a_pod_of_a_namespace_that_is_not_watched_is_not_said_to_end() {
    for (watched, said) in [
        (None, "is still held by Pod other/x (8 of 8 GiB), which is ending"),
        (Some("demo"), "is held by Pod other/x (8 of 8 GiB)"),
    ] {
        let mut cluster = Cluster::new(&[1]);
        Arc::make_mut(&mut cluster.observed.settings).watch_namespace = watched.map(str::to_owned);
        let listed = json!([{"namespace": "other", "pod": "x", "container": "c", "units": 8}]);
        cluster.nodes.get_mut("n0").unwrap()[0].allocations = serde_json::from_value(listed).unwrap();
        cluster.reranker_on("rr", 0);
        cluster.settle();
        assert_eq!(cluster.ready("rr").2, format!("GPU 0 on node n0 {said}; waiting for 8 GiB"));
    }
}

#[test]
fn a_pod_that_has_ended_holds_its_gpu_while_the_kubelet_lists_it() {
    let mut cluster = Cluster::new(&[1]);
    cluster.foreign_pod("old", "n0", &[(0, 8)]);
    let old = cluster.pods.get_mut(&("other".to_owned(), "old".to_owned())).unwrap();
    old.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    let listed = json!([{"namespace": "other", "pod": "old", "container": "c", "units": 8}]);
    cluster.nodes.get_mut("n0").unwrap()[0].allocations = serde_json::from_value(listed).unwrap();
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.pass();
    assert_eq!(cluster.pods.len(), 1, "its memory may not have been given back");
    assert_eq!(cluster.ready("rr").1, "WaitingForGPU");
    // A kubelet that lists it for as long as it is there does not keep the GPU from others for ever.
    let listed = cluster.nodes["n0"][0].allocations.clone();
    cluster.now += SignedDuration::from_secs(31);
    cluster.pass();
    assert!(cluster.held().contains(&"rr-0-1 n0 0:8".to_owned()));

    let mut cluster = Cluster::new(&[1]);
    cluster.foreign_pod("old", "n0", &[(0, 8)]);
    cluster.pods.clear();
    cluster.nodes.get_mut("n0").unwrap()[0].allocations = listed;
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.pass();
    assert!(cluster.pods.is_empty());
    cluster.nodes.get_mut("n0").unwrap()[0].allocations.clear();
    cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}
