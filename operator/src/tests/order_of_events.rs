//! Properties of the whole: whatever happens in whatever order, nothing is granted twice, exact devices get exactly those,
//! every status says one thing, no more pods are stopped than may be, nobody waits for what nobody else has, and the cluster comes to
//! rest.

use super::cluster::{Cluster, factory, reranker};
use jiff::SignedDuration;
use proptest::prelude::*;
use serde_json::json;

const GPUS: u32 = 4;

/// Something that happens in a cluster of two nodes.
#[derive(Clone, Debug)]
enum Happening {
    Apply { name: u8, kind: u8, gpu: u8, image: u8, pods: u8 },
    Delete { name: u8 },
    Heat { node: u8, index: u32, temperature: u32 },
    Swap { node: u8, index: u32 },
    Shrink { node: u8 },
    Restore { node: u8 },
    Cordon { node: u8, on: bool },
    Silence { node: u8, on: bool },
    Lose { node: u8 },
    Stranger { node: u8, index: u32, units: u32 },
    Fail { pod: usize },
    Kill { pod: usize },
    RunPods,
    Pass,
    Wait,
}

fn happening() -> impl Strategy<Value = Happening> {
    let node = || 0..2u8;
    prop_oneof![
        4 => (0..4u8, 0..3u8, 0..14u8, 0..2u8, 0..4u8)
            .prop_map(|(name, kind, gpu, image, pods)| Happening::Apply { name, kind, gpu, image, pods }),
        1 => (0..4u8).prop_map(|name| Happening::Delete { name }),
        1 => (node(), 0..GPUS, prop_oneof![Just(40u32), Just(92u32)])
            .prop_map(|(node, index, temperature)| Happening::Heat { node, index, temperature }),
        1 => (node(), 0..GPUS).prop_map(|(node, index)| Happening::Swap { node, index }),
        1 => node().prop_map(|node| Happening::Shrink { node }),
        1 => node().prop_map(|node| Happening::Restore { node }),
        1 => (node(), any::<bool>()).prop_map(|(node, on)| Happening::Cordon { node, on }),
        1 => (node(), any::<bool>()).prop_map(|(node, on)| Happening::Silence { node, on }),
        1 => node().prop_map(|node| Happening::Lose { node }),
        1 => (node(), 0..GPUS, 1..8u32)
            .prop_map(|(node, index, units)| Happening::Stranger { node, index, units }),
        1 => (0..8usize).prop_map(|pod| Happening::Fail { pod }),
        1 => (0..8usize).prop_map(|pod| Happening::Kill { pod }),
        3 => Just(Happening::RunPods),
        5 => Just(Happening::Pass),
        1 => Just(Happening::Wait),
    ]
}

fn apply(cluster: &mut Cluster, name: u8, kind: u8, gpu: u8, image: u8, pods: u8) {
    // Each name stays of one kind, as in a cluster.
    let kind = (kind + name) % 3;
    let several = gpu >= 9;
    let gpu = match gpu {
        0 => json!({"count": 1, "onOverheat": "Migrate"}),
        1 => json!({"count": 2, "onUnhealthy": "Keep"}),
        2 => json!({"count": 1, "memory": "3Gi"}),
        3 => json!({"devices": [{"index": 0}]}),
        4 => json!({"devices": [{"index": 1, "memory": "5Gi"}]}),
        5 => json!({"devices": [{"uuid": "GPU-2"}]}),
        6 => json!({"count": 1, "memory": "2Gi", "strategy": "Spread"}),
        9 => json!({"devices": [{"index": 0}, {"index": 1}]}),
        // To one pod their order says nothing, to a pool which instance has which.
        10 if kind == 2 => json!({"devices": [{"index": 1}, {"index": 0}]}),
        10 | 11 => json!({"devices": [{"index": 1}, {"index": 2}]}),
        12 if kind == 2 => json!({"devices": [{"uuid": "GPU-2"}, {"uuid": "GPU-n1-2"}]}),
        13 if kind == 2 => json!({"devices": [{"uuid": "GPU-n1-2"}, {"uuid": "GPU-2"}]}),
        12 | 13 => json!({"devices": [{"uuid": "GPU-n1-1"}]}),
        _ => json!({"devices": [{"index": gpu - 6}]}),
    };
    let exact = gpu["devices"].is_array();
    let mut spec = match kind {
        0 => factory(gpu),
        1 => reranker(gpu),
        _ => json!({"models": [{"name": "tiny"}], "gpu": gpu, "store": {"hostPath": {"path": "/m"}}}),
    };
    if !exact {
        match kind {
            0 => {}
            1 => spec["replicas"] = json!(pods),
            _ => spec["instances"] = json!(pods),
        }
        // One or two of up to three.
        spec["maxUnavailable"] = json!(2 * image);
    }
    if several && kind == 2 {
        spec["instances"] = json!(2);
        spec["hostPorts"] = json!({"start": 11434 + 10 * u32::from(name) + u32::from(image)});
    }
    spec["image"] = json!(format!("image:{image}"));
    if name == 0 {
        spec["priorityClassName"] = json!("gold");
    }
    let kind = ["DataFactory", "Reranker", "OllamaPool"][usize::from(kind)];
    cluster.apply(kind, &format!("{}{name}", kind.to_lowercase()), spec);
}

fn happen(cluster: &mut Cluster, what: &Happening) {
    let node = |node: u8| format!("n{node}");
    match *what {
        Happening::Apply { name, kind, gpu, image, pods } => apply(cluster, name, kind, gpu, image, pods),
        Happening::Delete { name } => {
            let existing = cluster.names();
            if let Some(existing) = existing.get(usize::from(name) % existing.len().max(1)) {
                cluster.delete(existing);
            }
        }
        Happening::Heat { node: at, index, temperature } => {
            if cluster.has(&node(at), index) {
                cluster.heat(&node(at), index, temperature);
            }
        }
        Happening::Swap { node: at, index } => {
            let gpus = cluster.nodes.get_mut(&node(at)).into_iter().flatten();
            for gpu in gpus.filter(|gpu| gpu.index == index) {
                gpu.uuid.push('x');
            }
        }
        Happening::Shrink { node: at } => cluster.shrink(&node(at)),
        Happening::Restore { node: at } => cluster.restore(&node(at), GPUS),
        Happening::Cordon { node: at, on } => cluster.node(&node(at), |node| node.unschedulable = on),
        Happening::Silence { node: at, on } => cluster.node(&node(at), |node| node.ready = !on),
        Happening::Lose { node: at } => cluster.lose(&node(at)),
        Happening::Stranger { node: at, index, units } => cluster.stranger(&node(at), index, units),
        Happening::Fail { pod } => {
            let names = cluster.pod_names();
            if let Some(name) = names.get(pod).filter(|name| !name.starts_with("stranger")) {
                cluster.fail(name, "Evicted");
            }
        }
        Happening::Kill { pod } => {
            let keys: Vec<_> = cluster.pods.keys().cloned().collect();
            if let Some(key) = keys.get(pod) {
                cluster.kill(key);
            }
        }
        Happening::RunPods => {
            cluster.run_pods();
        }
        Happening::Pass => cluster.pass_within_budgets(),
        Happening::Wait => cluster.now += SignedDuration::from_mins(6),
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_granted_twice_and_the_cluster_comes_to_rest(
        happenings in proptest::collection::vec(happening(), 1..50)
    ) {
        let mut cluster = Cluster::new(&[GPUS, GPUS]);
        cluster.observed.priorities.by_name.insert("gold".to_owned(), 1000);
        for what in &happenings {
            happen(&mut cluster, what);
            cluster.check();
        }
        for name in ["n0", "n1"] {
            cluster.restore(name, GPUS);
            cluster.node(name, |node| (node.ready, node.unschedulable) = (true, false));
        }
        // Failed pods come back after their back-off; then nothing is left to do.
        for _ in 0..12 {
            cluster.pass_within_budgets();
            cluster.run_pods();
            cluster.now += SignedDuration::from_mins(6);
        }
        cluster.settle();
        for name in cluster.names() {
            let (status, reason, message) = cluster.ready(&name);
            let waits = ["WaitingForGPU", "NoSuchGPU"].contains(&reason.as_str());
            prop_assert!(status == "True" || waits, "{name}: {status} {reason}: {message}; {:?}", cluster.held());
            if status == "True" {
                cluster.check_devices(&name);
            }
            if reason == "WaitingForGPU" {
                prop_assert!(cluster.waits_for_others(&name), "{name} waits for itself: {message}; {:?}", cluster.held());
            }
        }
    }
}
