//! Whose turn it is when pods that work are replaced, where their successors go, and what becomes of those that come to nothing.

use super::cluster::{Cluster, factory, reranker};
use super::rollout::image;
use crate::pods::PodView;
use jiff::SignedDuration;
use principium_api::gpu_node::{Withheld, WithheldReason};
use serde_json::{Value, json};

/// How many pods serve.
pub fn serving(cluster: &Cluster) -> usize {
    let serves = |pod: &PodView| pod.ready && !pod.leaving && !pod.ended();
    cluster.pods.values().map(PodView::read).filter(serves).count()
}

/// Passes as they come, a second after one another.
pub fn go_on(cluster: &mut Cluster, passes: u32, mut look: impl FnMut(&Cluster)) {
    for _ in 0..passes {
        cluster.pass();
        look(cluster);
        cluster.run_pods();
        cluster.now += SignedDuration::from_secs(1);
    }
}

pub fn replicas(count: u32) -> Value {
    let mut spec = reranker(json!({"count": 1}));
    spec["replicas"] = json!(count);
    spec
}

/// A Reranker of high priority on these GPUs.
fn gold(gpu: Value) -> Value {
    let mut spec = reranker(gpu);
    spec["priorityClassName"] = json!("gold");
    spec
}

pub fn pool(devices: &[u32]) -> Value {
    let devices: Vec<Value> = devices.iter().map(|index| json!({"index": index})).collect();
    json!({"instances": devices.len(), "models": [{"name": "tiny"}], "gpu": {"devices": devices}})
}

#[test]
fn a_pod_that_is_refused_is_tried_again_under_the_same_name() {
    let mut cluster = Cluster::new(&[1]);
    cluster.refusing = true;
    cluster.apply("Reranker", "rr", replicas(1));
    let names = |cluster: &mut Cluster| -> Vec<String> {
        let writes = cluster.pass().actions.into_iter().map(|action| action.write);
        writes.map(|write| write.object()).filter(|object| object.starts_with("Pod")).collect()
    };
    let first = names(&mut cluster);
    assert_eq!((first.clone(), names(&mut cluster)), (vec!["Pod rr-0-1".to_owned()], first));
    let resource = crate::desired::all(&cluster.observed)[0].id.key.clone();
    cluster.observed.failures.insert(resource.clone(), "exceeded quota".to_owned());
    cluster.pass();
    assert_eq!(cluster.ready("rr").1, "ApplyFailed");
    assert_eq!(cluster.noted("ApplyFailed"), ["exceeded quota"]);
    cluster.observed.failures.remove(&resource);
    cluster.refusing = false;
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-1"]);
    assert_eq!(cluster.reranker("rr").status.as_ref().unwrap().revisions, [1]);
}

#[test]
fn of_two_pods_on_hot_gpus_one_moves_to_the_gpu_that_is_free_and_the_other_stays() {
    let mut cluster = Cluster::new(&[3]);
    cluster.reranker_on("other", 2);
    for name in ["a", "b"] {
        cluster.apply("DataFactory", name, factory(json!({"count": 1, "onOverheat": "Migrate"})));
    }
    cluster.settle();
    cluster.delete("other");
    cluster.settle();
    cluster.now += SignedDuration::from_mins(10);
    cluster.heat("n0", 0, 92);
    cluster.heat("n0", 1, 92);
    let b = |cluster: &Cluster| {
        cluster.held().into_iter().filter(|held| held.starts_with("b-")).collect::<Vec<_>>()
    };
    let before = b(&cluster);
    go_on(&mut cluster, 30, |cluster| assert_eq!(b(cluster), before, "it has nowhere to go"));
    let moved = cluster.held();
    assert!(moved.contains(&"a-0-2 n0 2:8".to_owned()), "{moved:?}");
}

#[test]
fn a_device_that_was_chosen_anew_is_kept_while_the_pod_before_it_ends() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("DataFactory", "df", factory(json!({"devices": [{"index": 0}]})));
    cluster.settle();
    cluster.apply("DataFactory", "df", factory(json!({"devices": [{"index": 1}]})));
    cluster.pass();
    cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
    let mut gold = reranker(json!({"devices": [{"index": 1}]}));
    gold["priorityClassName"] = json!("gold");
    cluster.apply("Reranker", "gold", gold);
    cluster.settle();
    assert_eq!(cluster.held(), ["df-0-2 n0 1:8"]);
    assert_eq!(cluster.ready("gold").1, "WaitingForGPU");
}

/// Something that happens to a cluster.
type Change = fn(&mut Cluster);

#[test]
fn who_comes_back_is_before_who_is_new_and_that_one_before_who_replaces_whatever_their_priorities() {
    let cases: [(&str, Change, Change, [&str; 2]); 5] = [
        (
            "both are new",
            |cluster| cluster.reranker_on("other", 0),
            |cluster| {
                cluster.apply("Reranker", "low", replicas(1));
                cluster.apply("Reranker", "gold", gold(json!({"count": 1})));
            },
            ["gold-0-1 n0 1:8", "other-0-1 n0 0:8"],
        ),
        (
            "the lower one comes back",
            |cluster| {
                cluster.reranker_on("other", 0);
                cluster.apply("Reranker", "low", replicas(1));
            },
            |cluster| {
                cluster.kill(&("demo".to_owned(), "low-0-1".to_owned()));
                cluster.apply("Reranker", "gold", gold(json!({"count": 1})));
            },
            ["low-0-2 n0 1:8", "other-0-1 n0 0:8"],
        ),
        (
            "the higher one is rolled out",
            |cluster| cluster.apply("Reranker", "gold", gold(json!({"count": 1}))),
            |cluster| {
                cluster.apply("Reranker", "gold", image(gold(json!({"count": 1})), "embedder:2"));
                cluster.apply("Reranker", "low", replicas(1));
            },
            ["gold-0-2 n0 0:8", "low-0-1 n0 1:8"],
        ),
        (
            "the higher one moves away from heat",
            |cluster| cluster.apply("Reranker", "gold", gold(json!({"count": 1, "onOverheat": "Migrate"}))),
            |cluster| {
                cluster.now += SignedDuration::from_mins(10);
                cluster.heat("n0", 0, 92);
                cluster.apply("Reranker", "low", replicas(1));
            },
            ["gold-0-1 n0 0:8", "low-0-1 n0 1:8"],
        ),
        (
            "the higher one has waited longer for the device, beside a pod that runs",
            |cluster| {
                cluster.reranker_on("other", 1);
                cluster.apply("Reranker", "gold", gold(json!({"devices": [{"index": 0}]})));
            },
            |cluster| {
                cluster.apply("Reranker", "gold", gold(json!({"devices": [{"index": 1}]})));
                go_on(cluster, 5, |_| ());
                cluster.reranker_on("low", 1);
                go_on(cluster, 5, |_| ());
                cluster.delete("other");
            },
            ["gold-0-1 n0 0:8", "low-0-1 n0 1:8"],
        ),
    ];
    for (what, before, then, expected) in cases {
        let mut cluster = Cluster::new(&[2]);
        cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
        before(&mut cluster);
        cluster.settle();
        then(&mut cluster);
        go_on(&mut cluster, 60, |_| ());
        assert_eq!(cluster.held(), expected, "{what}");
    }
}

#[test]
fn a_pod_whose_gpu_is_withheld_keeps_no_other_from_being_changed() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply("Reranker", "rr", replicas(3));
    cluster.settle();
    cluster.nodes.get_mut("n0").unwrap()[0].withheld =
        Some(Withheld { reason: WithheldReason::ForeignProcess, ..Withheld::default() });
    cluster.apply("Reranker", "rr", image(replicas(3), "embedder:2"));
    go_on(&mut cluster, 60, |_| ());
    assert_eq!(cluster.pod_names(), ["rr-0-1", "rr-1-2", "rr-2-2"]);
    cluster.nodes.get_mut("n0").unwrap()[0].withheld = None;
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-2", "rr-1-2", "rr-2-2"]);
}

#[test]
fn devices_of_a_pool_can_be_shifted_and_exchanged() {
    for (before, after, least) in [
        (&[0, 1, 2][..], &[1, 2, 3][..], 2),
        (&[1, 2, 3], &[0, 1, 2], 2),
        (&[0, 1, 2], &[1, 0, 2], 1),
        (&[0, 1, 2], &[1, 2, 0], 0),
        (&[0, 1, 2, 3], &[1, 0, 3, 2], 2),
    ] {
        let mut cluster = Cluster::new(&[4]);
        cluster.apply("OllamaPool", "pool", pool(before));
        cluster.settle();
        cluster.apply("OllamaPool", "pool", pool(after));
        let mut found = 3;
        go_on(&mut cluster, 80, |cluster| found = found.min(serving(cluster)));
        let held: Vec<u32> =
            cluster.assignments("pool").iter().flat_map(|it| &it.gpus).map(|gpu| gpu.index).collect();
        assert_eq!((&*held, cluster.ready("pool").0.as_str()), (after, "True"), "{before:?} to {after:?}");
        assert!(found >= least, "{before:?} to {after:?}: {found} served");
    }
}

#[test]
fn a_device_that_is_anothers_keeps_no_other_instance_from_being_changed() {
    let mut cluster = Cluster::new(&[4]);
    cluster.reranker_on("other", 3);
    cluster.apply("OllamaPool", "pool", pool(&[0, 1, 2]));
    cluster.settle();
    cluster.apply("OllamaPool", "pool", image(pool(&[3, 1, 2]), "ollama:2"));
    go_on(&mut cluster, 60, |_| ());
    assert_eq!(cluster.pod_names(), ["other-0-1", "pool-0-1", "pool-1-2", "pool-2-2"]);
    assert_eq!(cluster.ready("pool").1, "WaitingForGPU");
}

#[test]
fn host_ports_can_be_shifted_both_ways_one_instance_at_a_time() {
    for (before, after) in [(11434, 11435), (11434, 11433), (11434, 11436)] {
        let mut cluster = Cluster::new(&[3]);
        let spec = |start: u32| {
            let mut spec = pool(&[0, 1, 2]);
            spec["hostPorts"] = json!({"start": start});
            spec
        };
        cluster.apply("OllamaPool", "pool", spec(before));
        cluster.settle();
        cluster.apply("OllamaPool", "pool", spec(after));
        let mut least = 3;
        go_on(&mut cluster, 80, |cluster| least = least.min(serving(cluster)));
        assert_eq!(cluster.pod_names(), ["pool-0-2", "pool-1-2", "pool-2-2"], "{before} to {after}");
        assert_eq!((cluster.ready("pool").0.as_str(), least), ("True", 2));
    }
}

#[test]
fn ports_can_be_shifted_where_the_first_instance_never_started() {
    let mut cluster = Cluster::new(&[2]);
    let spec = |start: u32, image: &str| {
        let mut spec = pool(&[0, 1]);
        spec["hostPorts"] = json!({"start": start});
        spec["image"] = json!(image);
        spec
    };
    cluster.apply("OllamaPool", "pool", spec(11434, "ollama:1"));
    cluster.settle();
    cluster.stuck = Some("ollama:bad".to_owned());
    cluster.apply("OllamaPool", "pool", spec(11434, "ollama:bad"));
    go_on(&mut cluster, 20, |_| ());
    assert_eq!(serving(&cluster), 1, "one does not start, the other goes on");
    cluster.apply("OllamaPool", "pool", spec(11435, "ollama:1"));
    go_on(&mut cluster, 60, |_| ());
    assert_eq!((serving(&cluster), cluster.ready("pool").0.as_str()), (2, "True"));
}

#[test]
fn what_is_about_to_be_free_stops_no_more_pods_than_may_be_away() {
    let mut cluster = Cluster::new(&[4]);
    let spec = json!({"instances": 3, "models": [{"name": "tiny"}], "gpu": {"count": 1}, "hostPorts": {"start": 11434}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.apply("Reranker", "other", replicas(1));
    cluster.settle();
    cluster.delete("other");
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    let mut least = 3;
    go_on(&mut cluster, 60, |cluster| least = least.min(serving(cluster)));
    assert_eq!(
        (least, cluster.pod_names()),
        (2, ["pool-0-2", "pool-1-2", "pool-2-2"].map(String::from).to_vec())
    );
}

#[test]
fn devices_are_exchanged_by_those_that_want_each_others_and_no_others() {
    let mut cluster = Cluster::new(&[5]);
    cluster.apply("OllamaPool", "pool", pool(&[0, 1, 2, 3, 4]));
    cluster.settle();
    cluster.apply("OllamaPool", "pool", image(pool(&[1, 0, 2, 3, 4]), "ollama:2"));
    cluster.fail("pool-0-1", "Evicted");
    let mut least = 5;
    go_on(&mut cluster, 120, |cluster| least = least.min(serving(cluster)));
    assert_eq!(cluster.ready("pool").0, "True", "{:?}", cluster.held());
    assert!(least >= 3, "only the one that failed and the one that has its GPU: {least}");
}

#[test]
fn those_that_share_a_gpu_are_not_stopped_for_one_of_them_that_can_not_come_back() {
    let mut cluster = Cluster::new(&[1]);
    let shares: Vec<Value> = (0..4).map(|_| json!({"index": 0, "memory": "2Gi"})).collect();
    let spec = json!({"instances": 4, "models": [{"name": "tiny"}], "gpu": {"devices": shares}});
    cluster.apply("OllamaPool", "pool", spec.clone());
    cluster.settle();
    cluster.kill(&("demo".to_owned(), "pool-0-1".to_owned()));
    cluster.foreign_pod("stranger", "n0", &[(0, 2)]);
    cluster.apply("OllamaPool", "pool", image(spec, "ollama:2"));
    let mut least = 3;
    go_on(&mut cluster, 60, |cluster| least = least.min(serving(cluster)));
    assert_eq!(least, 3, "{:?}", cluster.held());
}

#[test]
fn of_two_that_want_the_same_free_memory_one_is_stopped() {
    let mut cluster = Cluster::new(&[1]);
    let spec = |memory: &str| json!({"devices": [{"index": 0, "memory": memory}]});
    cluster.apply("DataFactory", "a", factory(spec("3Gi")));
    cluster.apply("Reranker", "b", reranker(spec("3Gi")));
    cluster.settle();
    cluster.apply("DataFactory", "a", factory(spec("5Gi")));
    cluster.apply("Reranker", "b", reranker(spec("5Gi")));
    go_on(&mut cluster, 60, |_| ());
    assert_eq!(cluster.held(), ["a-0-2 n0 0:5", "b-0-1 n0 0:3"]);
}

#[test]
fn devices_and_host_ports_can_be_changed_together() {
    for (before, after) in [(&[0, 1][..], &[1, 0][..]), (&[1, 2, 3], &[0, 1, 2]), (&[0, 1, 2], &[1, 2, 3])] {
        for start in [11433, 11435] {
            let mut cluster = Cluster::new(&[4]);
            let spec = |devices: &[u32], start: u32| {
                let mut spec = pool(devices);
                spec["hostPorts"] = json!({"start": start});
                spec
            };
            cluster.apply("OllamaPool", "pool", spec(before, 11434));
            cluster.settle();
            cluster.apply("OllamaPool", "pool", spec(after, start));
            go_on(&mut cluster, 100, |_| ());
            let held: Vec<u32> =
                cluster.assignments("pool").iter().flat_map(|it| &it.gpus).map(|gpu| gpu.index).collect();
            let ready = cluster.ready("pool");
            assert_eq!((&*held, ready.0.as_str()), (after, "True"), "{before:?}, {start}: {ready:?}");
        }
    }
}

#[test]
fn a_pod_that_can_have_its_successor_beside_it_is_not_stopped_for_another() {
    let mut cluster = Cluster::new(&[3]);
    cluster.apply("OllamaPool", "pool", pool(&[0, 1]));
    cluster.settle();
    cluster.kill(&("demo".to_owned(), "pool-0-1".to_owned()));
    cluster.apply("OllamaPool", "pool", pool(&[1, 2]));
    let mut least = 2;
    go_on(&mut cluster, 60, |cluster| least = least.min(serving(cluster)));
    assert_eq!((least, cluster.ready("pool").0.as_str()), (1, "True"), "{:?}", cluster.held());
}

#[test]
fn an_old_pod_that_serves_counts_while_its_successor_comes_or_waits() {
    let mut cluster = Cluster::new(&[2]);
    cluster.reranker_on("other", 1);
    cluster.reranker_on("rr", 0);
    cluster.settle();
    cluster.reranker_on("rr", 1);
    cluster.settle();
    let ready = |cluster: &Cluster| cluster.reranker("rr").status.clone().unwrap().ready_replicas;
    assert_eq!((cluster.ready("rr").1.as_str(), ready(&cluster).as_str()), ("WaitingForGPU", "1/1"));
    cluster.delete("other");
    go_on(&mut cluster, 30, |cluster| assert_eq!(ready(cluster), "1/1"));
    assert_eq!(cluster.held(), ["rr-0-2 n0 1:8"]);
}

#[test]
fn a_pod_is_not_stopped_for_memory_that_another_was_granted_meanwhile() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("DataFactory", "a", factory(json!({"devices": [{"index": 0, "memory": "4Gi"}]})));
    let b = |index: u32| reranker(json!({"devices": [{"index": index, "memory": "4Gi"}]}));
    cluster.apply("Reranker", "b", b(1));
    cluster.settle();
    cluster.apply("DataFactory", "a", factory(json!({"devices": [{"index": 0, "memory": "6Gi"}]})));
    cluster.apply("Reranker", "b", b(0));
    go_on(&mut cluster, 30, |cluster| {
        let a = cluster.pods.values().map(PodView::read).any(|pod| pod.name == "a-0-1" && !pod.leaving);
        assert!(a, "it is stopped in vain: {:?}", cluster.held());
    });
    assert_eq!(cluster.ready("a").1, "WaitingForGPU");
    assert_eq!(cluster.held(), ["a-0-1 n0 0:4", "b-0-2 n0 0:4"]);
}

#[test]
fn a_good_spec_after_a_bad_one_stops_the_pod_that_did_not_start_and_not_the_one_that_serves() {
    let mut cluster = Cluster::new(&[2]);
    cluster.stuck = Some("embedder:bad".to_owned());
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:bad"));
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["rr-0-1", "rr-0-2"]);
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:good"));
    go_on(&mut cluster, 30, |cluster| {
        let mut pods = cluster.pods.values().map(crate::pods::PodView::read);
        assert!(pods.any(|pod| pod.ready && !pod.leaving), "{:?}", cluster.pod_names());
    });
    assert_eq!(cluster.pod_names(), ["rr-0-3"]);
    assert!(cluster.noted("Restarting")[0].starts_with("Pod rr-0-2 is stopped"), "{:?}", cluster.notes);
}

#[test]
fn a_successor_that_fails_beside_a_pod_that_serves_is_tried_ever_slower() {
    let mut cluster = Cluster::new(&[2]);
    cluster.apply("Reranker", "rr", replicas(1));
    cluster.settle();
    cluster.apply("Reranker", "rr", image(replicas(1), "embedder:2"));
    cluster.pass();
    let mut waits = Vec::new();
    for revision in 2..6 {
        cluster.fail(&format!("rr-0-{revision}"), "TopologyAffinityError");
        let failed = cluster.now;
        let next = format!("rr-0-{}", revision + 1);
        loop {
            let plan = cluster.pass();
            if cluster.pod_names().contains(&next) {
                break;
            }
            cluster.now += plan.requeue_after.unwrap();
        }
        waits.push(cluster.now.duration_since(failed).as_secs());
    }
    assert!(waits.is_sorted() && waits[0] < waits[3], "{waits:?}");
    assert_eq!(cluster.noted("ReplacingFailed")[0], "Pod rr-0-2 is replaced: TopologyAffinityError");
    assert!(cluster.pod_names().contains(&"rr-0-1".to_owned()), "it serves all the time");
    cluster.settle();
    assert_eq!((cluster.pod_names(), cluster.ready("rr").0.as_str()), (vec!["rr-0-6".to_owned()], "True"));
}
