//! Who gets which GPU, and what is said to those who wait.

use super::cluster::{Cluster, factory, reranker};
use serde_json::json;

#[test]
fn best_of_both_worlds_runs_on_one_node() {
    let mut cluster = Cluster::new(&[8]);
    let devices: Vec<_> = (0..6).map(|index| json!({"index": index})).collect();
    cluster.apply(
        "OllamaPool",
        "pool",
        json!({"instances": 6, "models": [{"name": "tiny"}], "gpu": {"devices": devices}}),
    );
    let mut spec = factory(json!({"devices": [{"index": 6}, {"index": 7, "memory": "5Gi"}]}));
    spec["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}});
    spec["docAnalyzer"] = json!({});
    cluster.apply("DataFactory", "df", spec);
    cluster.apply("Reranker", "rr", reranker(json!({"devices": [{"index": 7, "memory": "3Gi"}]})));
    cluster.settle();
    assert_eq!(
        cluster.held(),
        [
            "df-0-1 n0 6:8,7:5",
            "pool-0-1 n0 0:8",
            "pool-1-1 n0 1:8",
            "pool-2-1 n0 2:8",
            "pool-3-1 n0 3:8",
            "pool-4-1 n0 4:8",
            "pool-5-1 n0 5:8",
            "rr-0-1 n0 7:3"
        ]
    );
    for name in ["df", "pool", "rr"] {
        assert_eq!(cluster.ready(name).0, "True", "{name}: {:?}", cluster.ready(name));
    }
    let status = cluster.factory("df").status.clone().unwrap();
    assert_eq!(status.gpus, "6:8,7:5");
    assert_eq!(status.observed_generation, Some(1));
    let endpoints: Vec<_> = status.endpoints.iter().map(|endpoint| endpoint.url.as_str()).collect();
    assert_eq!(endpoints, ["http://df.demo.svc:9000", "http://df-analyzer.demo.svc:9100"]);
    let env = cluster.pods[&("demo".to_owned(), "df-0-1".to_owned())].spec.clone().unwrap().containers[0]
        .env
        .clone();
    let value =
        |name: &str| env.iter().flatten().find(|env| env.name == name).unwrap().value.clone().unwrap();
    assert_eq!(value("PRINCIPIUM_OLLAMA_URL"), "http://pool-instances.demo.svc:11434");
    assert_eq!(value("PRINCIPIUM_OLLAMA_MODEL"), "tiny");
    assert_eq!(value("CUDA_VISIBLE_DEVICES"), "GPU-6,GPU-7");
    let mut services: Vec<_> =
        cluster.observed.services.iter().map(|found| found.metadata.name.clone().unwrap()).collect();
    services.sort();
    assert_eq!(services, ["df", "df-analyzer", "pool", "pool-instances", "rr"]);
}

#[test]
fn the_second_claim_on_a_gpu_names_the_holder_and_starts_when_it_goes() {
    let mut cluster = Cluster::new(&[8]);
    cluster.reranker_on("rr", 1);
    cluster.settle();
    cluster.apply("DataFactory", "df", factory(json!({"devices": [{"index": 1}]})));
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 1:8"]);
    let (status, reason, message) = cluster.ready("df");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "WaitingForGPU"));
    assert_eq!(message, "GPU 1 on node n0 is held by Reranker demo/rr (8 of 8 GiB); waiting for 8 GiB");
    assert_eq!(cluster.noted("WaitingForGPU"), [message]);
    assert_eq!(cluster.condition("df", "Reconciling").status, "True");
    assert_eq!(cluster.condition("df", "Stalled").status, "False");
    cluster.delete("rr");
    cluster.pass();
    assert_eq!(cluster.held(), ["rr-0-1 n0 1:8"], "the leaving pod still has the GPU");
    let (_, _, message) = cluster.ready("df");
    assert_eq!(
        message,
        "GPU 1 on node n0 is still held by Reranker demo/rr (8 of 8 GiB), which is ending; waiting for 8 GiB"
    );
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 1:8"]);
    assert_eq!(cluster.ready("df").0, "True");
    assert_eq!(
        cluster.noted("Placed"),
        ["rr", "df"]
            .map(|name| format!("Pod {name}-0-1 gets GPU 1 (8 GiB) on node n0: named in spec.gpu.devices"))
    );
}

#[test]
fn a_pod_of_someone_else_is_a_holder_too() {
    let mut cluster = Cluster::new(&[2]);
    cluster.foreign_pod("notebook", "n0", &[(1, 3)]);
    cluster.reranker_on("rr", 1);
    cluster.settle();
    let (_, _, message) = cluster.ready("rr");
    assert_eq!(message, "GPU 1 on node n0 is held by Pod other/notebook (3 of 8 GiB); waiting for 8 GiB");
}

#[test]
fn the_older_resource_is_served_first_and_priority_comes_before_age() {
    let mut cluster = Cluster::new(&[1]);
    cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
    cluster.foreign_pod("notebook", "n0", &[(0, 1)]);
    cluster.reranker_on("older", 0);
    cluster.reranker_on("newer", 0);
    let mut spec = reranker(json!({"devices": [{"index": 0}]}));
    spec["priorityClassName"] = json!("gold");
    cluster.apply("Reranker", "urgent", spec);
    cluster.settle();
    cluster.pods.clear();
    cluster.settle();
    assert_eq!(cluster.held(), ["urgent-0-1 n0 0:8"], "the higher priority is served first");
    cluster.delete("urgent");
    cluster.settle();
    assert_eq!(cluster.held(), ["older-0-1 n0 0:8"]);
}

#[test]
fn a_higher_priority_takes_nothing_from_a_running_pod() {
    let mut cluster = Cluster::new(&[1]);
    cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    let mut spec = reranker(json!({"devices": [{"index": 0}]}));
    spec["priorityClassName"] = json!("gold");
    cluster.apply("Reranker", "urgent", spec);
    cluster.settle();
    assert_eq!(cluster.held(), ["rr-0-1 n0 0:8"]);
}

#[test]
fn a_waiting_exact_request_keeps_its_devices_from_later_ones() {
    let mut cluster = Cluster::new(&[8]);
    cluster.reranker_on("rr", 7);
    cluster.settle();
    cluster.apply("DataFactory", "df", factory(json!({"devices": [{"index": 6}, {"index": 7}]})));
    cluster.reranker_on("late", 6);
    cluster.settle();
    let (_, _, message) = cluster.ready("late");
    assert_eq!(message, "GPU 6 on node n0 is kept for DataFactory demo/df (8 of 8 GiB); waiting for 8 GiB");
    cluster.delete("rr");
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-1 n0 6:8,7:8"]);
}

#[test]
fn specs_that_can_never_work_are_stalled_and_say_why() {
    for (gpu, reason, message) in [
        (json!({"devices": [{"index": 9}]}), "NoSuchGPU", "node n0 has no GPU 9; it has GPUs 0, 1"),
        (json!({"devices": [{"uuid": "GPU-x"}]}), "NoSuchGPU", "node n0 has no GPU GPU-x; it has GPUs 0, 1"),
        (
            json!({"devices": [{"index": 1, "memory": "12Gi"}]}),
            "TooMuchMemory",
            "GPU 1 on node n0 has 8 GiB; 12Gi were asked for",
        ),
        (
            json!({"devices": [{"index": 1}, {"uuid": "GPU-1"}]}),
            "DuplicateDevices",
            "spec.gpu.devices names GPU 1 on node n0 twice",
        ),
        (
            json!({"count": 1, "product": "H100"}),
            "NoSuchProduct",
            "no GPU's product contains \"H100\"; the cluster has NVIDIA GeForce RTX 3060 Ti",
        ),
        (
            json!({"count": 3}),
            "NotEnoughGPUs",
            "3 GPUs on one node were asked for; node n0 has the most that match: 2",
        ),
        (
            json!({"count": 1, "memory": "9Gi"}),
            "TooMuchMemory",
            "9Gi of one GPU were asked for; the largest that matches has 8 GiB",
        ),
    ] {
        let mut cluster = Cluster::new(&[2]);
        cluster.apply("Reranker", "rr", reranker(gpu));
        cluster.settle();
        assert_eq!(cluster.ready("rr"), ("False".to_owned(), reason.to_owned(), message.to_owned()));
        assert_eq!(cluster.condition("rr", "Stalled").status, "True");
        assert_eq!(cluster.condition("rr", "Reconciling").status, "False");
        assert_eq!(cluster.noted(reason), [message]);
    }
}

#[test]
fn a_name_that_services_can_not_have_is_stalled() {
    let mut cluster = Cluster::new(&[1]);
    cluster.reranker_on("9x", 0);
    cluster.settle();
    assert_eq!((cluster.pod_names(), cluster.ready("9x").1.as_str()), (Vec::new(), "InvalidName"));
    assert_eq!(cluster.noted("InvalidName"), [cluster.ready("9x").2]);
}

/// Something that happens to a cluster.
type Change = fn(&mut Cluster);

#[test]
fn what_can_come_by_itself_is_waited_for() {
    let mut empty = Cluster::new(&[]);
    empty.reranker_on("rr", 0);
    empty.settle();
    assert_eq!(empty.ready("rr").1, "WaitingForGPU");
    let cases: [(&str, Change); 4] = [
        ("node n0 is cordoned", |cluster| cluster.node("n0", |node| node.unschedulable = true)),
        ("node n0 is not ready", |cluster| cluster.node("n0", |node| node.ready = false)),
        ("node n0 has the taint dedicated that is not tolerated", |cluster| {
            let taint = json!({"key": "dedicated", "effect": "NoSchedule"});
            cluster.node("n0", |node| node.taints = vec![serde_json::from_value(taint).unwrap()]);
        }),
        (
            "GPU 0 on node n0 is withheld (Overheated: 92 °C, the limit is 85 °C); waiting until it is offered again",
            |cluster| {
                cluster.heat("n0", 0, 92);
            },
        ),
    ];
    for (expected, change) in cases {
        let mut cluster = Cluster::new(&[1]);
        cluster.pass();
        change(&mut cluster);
        cluster.reranker_on("rr", 0);
        cluster.settle();
        let (_, reason, message) = cluster.ready("rr");
        assert_eq!((reason.as_str(), message.as_str()), ("WaitingForGPU", expected));
        assert_eq!(cluster.held(), [""; 0]);
    }
}

#[test]
fn memory_in_use_beyond_what_is_granted_is_waited_for() {
    let mut cluster = Cluster::new(&[1]);
    cluster.nodes.get_mut("n0").unwrap()[0].memory.free = 3000;
    cluster.reranker_on("rr", 0);
    cluster.settle();
    let (_, _, message) = cluster.ready("rr");
    let expected = "GPU 0 on node n0: only 2 GiB of its memory are free although 8 GiB are granted to nobody; waiting for 8 GiB";
    assert_eq!(message, expected);
}

#[test]
fn a_count_takes_preferred_then_cool_then_tight_gpus() {
    let mut cluster = Cluster::new(&[8]);
    for (index, temperature) in [(0, 70), (1, 55), (2, 41), (3, 49), (4, 48)] {
        cluster.heat("n0", index, temperature);
    }
    for index in 5..8 {
        cluster.heat("n0", index, 60);
    }
    cluster.foreign_pod("other", "n0", &[(3, 4)]);
    for (gpu, expected) in [
        (json!({"count": 1, "memory": "4Gi"}), "3:4"),
        (json!({"count": 1}), "2:8"),
        (json!({"count": 1, "prefer": {"indices": [7, 6]}}), "7:8"),
        (json!({"count": 2, "maxTemperature": 60}), "2:8,4:8"),
    ] {
        cluster.apply("Reranker", "rr", reranker(gpu.clone()));
        cluster.settle();
        let held = cluster.held();
        assert!(
            held.iter().any(|held| held.starts_with("rr-") && held.ends_with(expected)),
            "{gpu}: {held:?}"
        );
        cluster.delete("rr");
        cluster.settle();
    }
}

#[test]
fn a_count_that_waits_says_what_each_gpu_does() {
    let mut cluster = Cluster::new(&[3]);
    cluster.reranker_on("rr", 0);
    cluster.heat("n0", 2, 92);
    cluster.apply("DataFactory", "df", factory(json!({"count": 2})));
    cluster.settle();
    let (_, reason, message) = cluster.ready("df");
    assert_eq!(reason, "WaitingForGPU");
    assert_eq!(
        message,
        "waiting for 2 GPUs, whole and free on one node; on node n0 only 1 can be had: GPU 0 is held by Reranker demo/rr (8 of \
         8 GiB); GPU 2 is withheld (Overheated: 92 °C, the limit is 85 °C)"
    );
}

#[test]
fn a_node_selector_chooses_among_nodes_with_the_same_index() {
    let mut cluster = Cluster::new(&[2, 2]);
    let mut spec = reranker(json!({"devices": [{"index": 1}]}));
    spec["nodeSelector"] = json!({"host": "n1"});
    cluster.apply("Reranker", "rr", spec);
    cluster.reranker_on("anywhere", 1);
    cluster.reranker_on("elsewhere", 1);
    cluster.settle();
    assert_eq!(cluster.held(), ["anywhere-0-1 n0 1:8", "rr-0-1 n1 1:8"]);
    assert_eq!(cluster.ready("elsewhere").1, "WaitingForGPU");
}

#[test]
fn zero_gpus_need_no_gpu_and_no_acceleration() {
    let mut cluster = Cluster::new(&[]);
    cluster.accelerated = false;
    cluster.apply("Reranker", "rr", reranker(json!({"count": 0})));
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-1"]);
    assert_eq!(cluster.noted("Placed"), ["Pod rr-0-1 needs no GPU"]);
    assert_eq!(cluster.ready("rr").0, "True");
    assert_eq!(cluster.condition("rr", "Accelerated").reason, "NoGPURequested");
}

#[test]
fn a_worker_on_the_cpu_is_not_ready_where_acceleration_is_required() {
    for (simulated, required, ready, reason, accelerated) in [
        (false, json!(null), "False", "NotAccelerated", "ComputesOnCPU"),
        (false, json!(false), "True", "Ready", "ComputesOnCPU"),
        (true, json!(false), "True", "Ready", "SimulatedHardware"),
        (true, json!(true), "False", "NotAccelerated", "SimulatedHardware"),
    ] {
        let mut cluster = Cluster::new(&[1]);
        (cluster.accelerated, cluster.simulated) = (false, simulated);
        let mut spec = reranker(json!({"devices": [{"index": 0}]}));
        if !required.is_null() {
            spec["requireAcceleration"] = required;
        }
        cluster.apply("Reranker", "rr", spec);
        cluster.settle();
        let (status, why, _) = cluster.ready("rr");
        assert_eq!((status.as_str(), why.as_str()), (ready, reason));
        let condition = cluster.condition("rr", "Accelerated");
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", accelerated));
        assert_eq!(cluster.reranker("rr").status.as_ref().unwrap().model.as_ref().unwrap().name, "mini");
    }
}

#[test]
fn pods_are_packed_by_default_and_spread_where_that_is_asked_for() {
    for (strategy, expected) in [
        ("Pack", ["rr-0-1 n0 0:2", "rr-1-1 n0 0:2", "rr-2-1 n0 0:2", "rr-3-1 n0 0:2"]),
        ("Spread", ["rr-0-1 n0 0:2", "rr-1-1 n1 0:2", "rr-2-1 n0 1:2", "rr-3-1 n1 1:2"]),
    ] {
        let mut cluster = Cluster::new(&[2, 2]);
        let mut spec = reranker(json!({"count": 1, "memory": "2Gi", "strategy": strategy}));
        spec["replicas"] = json!(4);
        cluster.apply("Reranker", "rr", spec);
        cluster.settle();
        assert_eq!(cluster.held(), expected);
        let by = if strategy == "Pack" { "fit" } else { "spread" };
        let reason = &cluster.assignments("rr")[0].reason;
        assert_eq!(*reason, format!("chosen by preference, temperature and {by}: GPU 0 (40 °C)"));
        let placed = format!("Pod rr-0-1 gets GPU 0 (2 GiB) on node n0: {reason}");
        assert_eq!(cluster.noted("Placed")[0], placed);
    }
}
