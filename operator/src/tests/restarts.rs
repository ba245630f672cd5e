//! Pods that stop before their successors start: who gets their GPUs meanwhile, and how many are away at once.

use super::cluster::{Cluster, factory, reranker};
use super::rollout::image;
use jiff::SignedDuration;
use serde_json::json;

#[test]
fn who_waits_for_a_gpu_gets_none_of_a_pod_that_restarts_on_it_whatever_its_priority() {
    let mut cluster = Cluster::new(&[1]);
    cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
    let spec = factory(json!({"count": 1}));
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    let mut gold = reranker(json!({"count": 1}));
    gold["priorityClassName"] = json!("gold");
    cluster.apply("Reranker", "gold", gold);
    cluster.settle();
    cluster.apply("DataFactory", "df", image(spec, "embedder:2"));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 0:8"]);
    assert_eq!(cluster.ready("gold").1, "WaitingForGPU");
}

#[test]
fn a_pod_that_stops_first_comes_back_to_its_own_gpus_though_others_are_free() {
    let mut cluster = Cluster::new(&[8]);
    let spec = factory(json!({"count": 2, "prefer": {"indices": [6, 7]}}));
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 6:8,7:8"]);
    cluster.apply("DataFactory", "df", image(spec, "embedder:2"));
    let mut told = Vec::new();
    while !cluster.pod_names().contains(&"df-0-2".to_owned()) {
        cluster.pass();
        cluster.run_pods();
        cluster.now += SignedDuration::from_secs(1);
        told.push(cluster.ready("df"));
    }
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 6:8,7:8"]);
    let counted =
        "GPU 6 on node n0 is still held by Pod demo/df-0-1 (8 of 8 GiB), which is ending; waiting for 8 GiB";
    assert!(
        told.iter().any(|(_, reason, message)| reason == "Starting" && message.contains(counted)),
        "{told:?}"
    );
    assert!(
        told.iter().all(|(_, reason, _)| reason != "WaitingForGPU"),
        "its own former pod is nothing to warn of"
    );
}

#[test]
fn exact_devices_that_two_nodes_have_stay_where_they_are() {
    let mut cluster = Cluster::new(&[2, 2]);
    let spec = factory(json!({"devices": [{"index": 1}]}));
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 1:8"]);
    cluster.apply("DataFactory", "df", image(spec, "embedder:2"));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 1:8"]);
}

#[test]
fn a_spec_that_is_taken_back_keeps_the_pod_that_it_describes() {
    for gpus in [1, 2] {
        let mut cluster = Cluster::new(&[gpus]);
        cluster.stuck = Some("embedder:bad".to_owned());
        let spec = reranker(json!({"count": 1, "memory": if gpus == 1 { "3Gi" } else { "8Gi" }}));
        cluster.apply("Reranker", "rr", spec.clone());
        cluster.settle();
        cluster.apply("Reranker", "rr", image(spec.clone(), "embedder:bad"));
        cluster.settle();
        assert_eq!(cluster.pod_names(), ["rr-0-1", "rr-0-2"], "the new one does not start");
        assert_eq!(cluster.ready("rr").1, "Starting");
        cluster.apply("Reranker", "rr", spec);
        cluster.settle();
        assert_eq!(cluster.pod_names(), ["rr-0-1"]);
        assert_eq!(cluster.ready("rr").0, "True");
    }
}

#[test]
fn with_host_ports_no_more_instances_are_away_than_may_be() {
    let mut cluster = Cluster::new(&[3]);
    let spec = json!({"instances": 3, "models": [{"name": "tiny"}], "hostPorts": {"start": 11434}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    let before = cluster.held();
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    let mut least = 3;
    for _ in 0..60 {
        cluster.pass();
        let pods = cluster.pods.values().map(crate::pods::PodView::read);
        least = least.min(pods.filter(|pod| pod.ready && !pod.leaving).count());
        cluster.run_pods();
        cluster.now += SignedDuration::from_secs(1);
    }
    assert_eq!(least, 2, "one at a time");
    let after: Vec<String> = before.iter().map(|held| held.replacen("-1 ", "-2 ", 1)).collect();
    assert_eq!(cluster.held(), after, "each on its own GPU");
}

#[test]
fn the_status_says_what_the_worker_says_of_its_model() {
    let mut cluster = Cluster::new(&[1]);
    cluster.apply("DataFactory", "df", factory(json!({"count": 1})));
    cluster.settle();
    let told = json!(cluster.factory("df").status.as_ref().unwrap().model);
    let said =
        json!({"name": "mini", "digest": "sha256:1", "dtype": "f16", "dimension": 384, "device": "cuda:0"});
    assert_eq!(told, said);
}
