//! Pods that must stop before their successors start: whose turn it is where others get what one would have, where its successor
//! goes, and for whom GPUs are kept meanwhile.

use super::cluster::{Cluster, factory, reranker};
use super::turns::{go_on, replicas};
use serde_json::{Value, json};

/// One instance with models in a folder of its node and a port of it.
fn pool(memory: &str, model: &str) -> Value {
    json!({"models": [{"name": model}], "gpu": {"count": 1, "memory": memory},
        "store": {"hostPath": {"path": "/srv/models"}}, "hostPorts": {"start": 11434}})
}

/// A share of a GPU.
fn share(memory: &str) -> Value {
    json!({"count": 1, "memory": memory})
}

/// A pool on GPU 0 that wants more of it, and waits for a model that never comes.
fn growing(cluster: &mut Cluster) {
    cluster.pulling = true;
    cluster.apply("OllamaPool", "a", pool("6Gi", "wrong"));
}

#[test]
fn the_turn_of_a_pod_that_is_not_stopped_after_all_is_anothers() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("OllamaPool", "a", pool("4Gi", "tiny"));
    cluster.settle();
    let b = |memory: &str, count: u32| {
        let mut spec = reranker(share(memory));
        spec["replicas"] = json!(count);
        spec
    };
    cluster.apply("Reranker", "b", b("2Gi", 1));
    cluster.settle();
    cluster.foreign_pod("guest", "n0", &[(0, 2)]);
    cluster.foreign_pod("stranger", "n0", &[(1, 5)]);
    cluster.apply("Reranker", "b", b("2Gi", 2));
    cluster.settle();
    cluster.pods.remove(&("other".to_owned(), "guest".to_owned()));
    let others = |cluster: &Cluster| {
        cluster.held().into_iter().filter(|held| !held.starts_with("stranger")).collect::<Vec<_>>()
    };
    assert_eq!(others(&cluster), ["a-0-1 n0 0:4", "b-0-1 n0 0:2", "b-1-1 n0 1:2"]);
    growing(&mut cluster);
    cluster.apply("Reranker", "b", b("3Gi", 2));
    go_on(&mut cluster, 40, |cluster| {
        let held = others(cluster);
        assert!(held.contains(&"b-0-1 n0 0:2".to_owned()), "it would be stopped in vain: {held:?}");
    });
    assert_eq!(others(&cluster), ["a-0-1 n0 0:4", "b-0-1 n0 0:2", "b-1-2 n0 1:3"]);
    assert_eq!(cluster.ready("a").1, "PullingModels");
}

#[test]
fn devices_are_exchanged_also_where_another_pod_of_the_resource_can_not_be_stopped() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply("OllamaPool", "a", pool("4Gi", "tiny"));
    cluster.settle();
    let b = |devices: [(u32, &str); 3]| {
        let devices = devices.map(|(index, memory)| json!({"index": index, "memory": memory}));
        json!({"instances": 3, "models": [{"name": "tiny"}], "gpu": {"devices": devices}})
    };
    cluster.apply("OllamaPool", "b", b([(0, "2Gi"), (1, "8Gi"), (2, "8Gi")]));
    cluster.settle();
    growing(&mut cluster);
    cluster.apply("OllamaPool", "b", b([(0, "3Gi"), (2, "8Gi"), (1, "8Gi")]));
    go_on(&mut cluster, 60, |_| ());
    assert_eq!(cluster.held(), ["a-0-1 n0 0:4", "b-0-1 n0 0:2", "b-1-2 n0 2:8", "b-2-2 n0 1:8"]);
}

#[test]
fn a_pod_that_stops_for_more_memory_stays_on_its_node_where_that_has_it() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("DataFactory", "df", factory(share("4Gi")));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 0:4"]);
    cluster.apply("DataFactory", "df", factory(share("6Gi")));
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 0:6"]);
}

#[test]
fn a_pod_whose_node_gives_the_memory_to_another_goes_elsewhere() {
    let mut cluster = Cluster::new(&[1, 1]);
    cluster.apply("OllamaPool", "a", pool("4Gi", "tiny"));
    cluster.settle();
    cluster.apply("DataFactory", "df", factory(share("2Gi")));
    cluster.settle();
    assert_eq!(cluster.held(), ["a-0-1 n0 0:4", "df-0-1 n0 0:2"]);
    growing(&mut cluster);
    cluster.apply("DataFactory", "df", factory(share("3Gi")));
    go_on(&mut cluster, 40, |_| ());
    assert_eq!(cluster.held(), ["a-0-1 n0 0:4", "df-0-2 n1 0:3"]);
}

#[test]
fn nothing_is_kept_for_the_successor_of_a_pod_that_ends_on_a_node_that_does_not_answer() {
    for others in [true, false] {
        let mut cluster = Cluster::new(&[1, 1]);
        cluster.apply("DataFactory", "df", factory(share("4Gi")));
        cluster.settle();
        cluster.apply("DataFactory", "df", factory(share("6Gi")));
        cluster.pass();
        cluster.node("n0", |node| node.ready = false);
        let mut expected = vec!["df-0-2 n0 0:6"];
        if others {
            cluster.apply("Reranker", "late", replicas(1));
            expected.push("late-0-1 n1 0:8");
        }
        go_on(&mut cluster, 10, |cluster| {
            let assigned = cluster.assignments("df");
            assert!(assigned.iter().all(|it| it.node == "n0"), "what was chosen is remembered: {assigned:?}");
        });
        assert_eq!(cluster.held().contains(&"late-0-1 n1 0:8".to_owned()), others);
        cluster.node("n0", |node| node.ready = true);
        cluster.settle();
        assert_eq!(cluster.held(), expected);
    }
}

#[test]
fn gpus_of_any_size_are_added_up() {
    for strategy in ["Pack", "Spread"] {
        let mut cluster = Cluster::new(&[2]);
        for gpu in cluster.nodes.get_mut("n0").unwrap() {
            gpu.units = u32::MAX;
        }
        let gpu = json!({"count": 2, "memory": "1Gi", "strategy": strategy});
        cluster.apply("Reranker", "rr", reranker(gpu));
        cluster.settle();
        assert_eq!(cluster.held(), ["rr-0-1 n0 0:1,1:1"], "{strategy}");
    }
}
