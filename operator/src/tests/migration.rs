//! Heat and failing GPUs under running pods.

use super::cluster::{Cluster, factory, reranker};
use super::rollout::image;
use jiff::SignedDuration;
use principium_api::gpu_node::{Withheld, WithheldReason};
use serde_json::json;

#[test]
fn a_running_pod_stays_on_a_hot_gpu_and_the_status_says_so() {
    let mut cluster = Cluster::new(&[2]);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
    let (status, _, message) = cluster.ready("rr");
    assert_eq!(status, "True");
    assert_eq!(message, "it scores; GPU 0 of Pod rr-0-1 is withheld (Overheated: 92 °C, the limit is 85 °C)");
}

#[test]
fn a_hot_gpu_gets_no_new_pod_and_a_cool_one_does_when_it_is_back() {
    let mut cluster = Cluster::new(&[1]);
    cluster.heat("n0", 0, 92);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.settle();
    assert_eq!(cluster.held(), [""; 0]);
    cluster.heat("n0", 0, 60);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}

#[test]
fn a_pod_migrates_off_a_hot_gpu_successor_first_and_only_where_a_gpu_is_free() {
    let mut cluster = Cluster::new(&[2]);
    cluster.reranker_on("other", 1);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1, "onOverheat": "Migrate"})));
    cluster.settle();
    cluster.now += SignedDuration::from_mins(10);
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(cluster.held(), ["other-0-1 n0 1:8", "rr-0-1 n0 0:8"], "nowhere to go");
    cluster.delete("other");
    cluster.run_pods();
    cluster.now += SignedDuration::from_secs(10);
    cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8", "rr-0-2 n0 1:8"], "the successor starts beside it");
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"]);
    let told =
        "Pod rr-0-1 leaves its GPU: GPU 0 on node n0 is withheld (Overheated: 92 °C, the limit is 85 °C)";
    assert_eq!(cluster.noted("Migrating"), [told]);
    cluster.heat("n0", 0, 40);
    cluster.heat("n0", 1, 92);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"], "it doesn't go to and fro");
}

#[test]
fn exact_devices_never_migrate() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Reranker", "rr", reranker(json!({"devices": [{"index": 0}], "onOverheat": "Migrate"})));
    cluster.settle();
    cluster.now += SignedDuration::from_mins(10);
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}

#[test]
fn a_pod_on_a_failed_gpu_is_replaced_on_another_unless_it_is_told_to_stay() {
    let leaves = "Pod df-0-1 leaves its GPU: GPU 0 on node n0 is withheld (Xid: Xid 79)";
    for (policy, expected, told) in
        [("Replace", "df-0-2 n0 1:8", vec![leaves]), ("Keep", "df-0-1 n0 0:8", Vec::new())]
    {
        let mut cluster = Cluster::new(&[2]);
        cluster.apply("DataFactory", "df", factory(json!({"count": 1, "onUnhealthy": policy})));
        cluster.settle();
        cluster.nodes.get_mut("n0").unwrap()[0].withheld = Some(Withheld {
            reason: WithheldReason::Xid,
            message: "Xid 79".to_owned(),
            since: String::new(),
        });
        cluster.settle();
        assert_eq!(cluster.held(), [expected]);
        assert_eq!(cluster.noted("Replacing"), told);
    }
}

#[test]
fn a_pod_that_was_not_started_before_its_gpu_turned_hot_is_planned_anew() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Reranker", "rr", reranker(json!({"count": 1})));
    cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
    cluster.heat("n0", 0, 92);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"]);
    let told =
        "Pod rr-0-1 leaves its GPU: GPU 0 on node n0 is withheld (Overheated: 92 °C, the limit is 85 °C)";
    assert_eq!(cluster.noted("Replanned"), [told]);
}

#[test]
fn a_replaced_card_restarts_its_pod() {
    let mut cluster = Cluster::new(&[1]);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    cluster.nodes.get_mut("n0").unwrap()[0].uuid = "GPU-new".to_owned();
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-2"]);
    assert!(cluster.noted("Restarting")[0].contains("GPU 0 is another card now (GPU-new instead of GPU-0)"));
}

#[test]
fn units_that_the_kubelet_still_counts_are_not_free() {
    let mut cluster = Cluster::new(&[1]);
    let held = principium_api::gpu_node::Allocation {
        namespace: "demo".to_owned(),
        pod: "gone-0-1".to_owned(),
        container: "ollama".to_owned(),
        units: 8,
    };
    cluster.nodes.get_mut("n0").unwrap()[0].allocations = vec![held];
    cluster.reranker_on("rr", 0);
    cluster.settle();
    let expected = "GPU 0 on node n0 is still held by Pod demo/gone-0-1 (8 of 8 GiB), which is ending; waiting for 8 GiB";
    assert_eq!(cluster.ready("rr").2, expected);
    cluster.nodes.get_mut("n0").unwrap()[0].allocations.clear();
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}

#[test]
fn of_a_pool_no_more_migrate_at_once_than_may_be_unavailable() {
    for may in [1, 2] {
        let mut cluster = Cluster::new(&[8]);
        let gpu = json!({"count": 1, "onOverheat": "Migrate"});
        let spec = json!({"instances": 4, "models": [{"name": "tiny"}], "gpu": gpu, "maxUnavailable": may});
        cluster.apply("OllamaPool", "pool", spec);
        cluster.settle();
        cluster.now += SignedDuration::from_mins(10);
        for index in 0..4 {
            cluster.heat("n0", index, 92);
        }
        cluster.pass();
        let moving =
            |cluster: &Cluster| cluster.pod_names().iter().filter(|name| name.ends_with("-2")).count();
        assert_eq!(moving(&cluster), may);
        cluster.pass();
        assert_eq!(moving(&cluster), may, "the next one moves when this one serves");
        cluster.settle();
        assert_eq!(moving(&cluster), 4);
        let gone = cluster
            .held()
            .iter()
            .all(|held| ["4:8", "5:8", "6:8", "7:8"].iter().any(|gpu| held.ends_with(gpu)));
        assert!(gone, "{:?}", cluster.held());
    }
}

#[test]
fn instances_that_stop_before_they_move_are_never_more_away_than_may_be() {
    // How many may be away, whether one failed by itself, whether the spec changes with the heat, and how many move.
    for (may, fails, changes, moved) in [
        (1, false, false, 4),
        (2, false, false, 4),
        (1, true, false, 3),
        (2, true, false, 3),
        (1, true, true, 0),
    ] {
        let case = format!("{may} may be away, one fails: {fails}, the spec changes: {changes}");
        let mut cluster = Cluster::new(&[8]);
        let gpu = json!({"count": 1, "onOverheat": "Migrate"});
        let spec = json!({"instances": 4, "models": [{"name": "tiny"}], "gpu": gpu, "maxUnavailable": may,
            "hostPorts": {"start": 11434}});
        cluster.apply("OllamaPool", "pool", spec.clone());
        cluster.settle();
        cluster.now += SignedDuration::from_mins(10);
        for index in 0..4 {
            cluster.heat("n0", index, 92);
        }
        if changes {
            cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
        }
        if fails {
            cluster.fail("pool-3-1", "Evicted");
        }
        for _ in 0..80 {
            cluster.pass_within_budgets();
            cluster.run_pods();
            cluster.now += SignedDuration::from_secs(1);
        }
        assert_eq!(cluster.ready("pool").0, "True", "{case}: {:?}", cluster.held());
        assert_eq!(cluster.pod_names(), ["pool-0-2", "pool-1-2", "pool-2-2", "pool-3-2"], "{case}");
        assert_eq!(cluster.noted("Migrating").len(), moved, "{case}: {:?}", cluster.notes);
    }
}
