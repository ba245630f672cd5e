//! Properties: whatever happens in whatever order, nothing is granted twice, exact devices get exactly those, and the
//! cluster comes to rest.

use super::cluster::{Cluster, UNITS, factory, reranker};
use crate::inventory::{GpuState, Holder, HolderState, Inventory, NodeGpus, Who};
use crate::placement::{CountNeed, Need, Outcome, Request, Round, SlotId, allocate};
use crate::resource::{Kind, Order, ResourceKey};
use jiff::{SignedDuration, Timestamp};
use principium_api::gpu::GpuDevice;
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const GPUS: u32 = 4;

fn need() -> impl Strategy<Value = Need> {
    let memory = || proptest::option::of(1..=UNITS);
    let device = (0..GPUS, memory()).prop_map(|(index, memory)| GpuDevice {
        index: Some(index),
        uuid: None,
        memory: memory.map(|units| format!("{units}Gi").parse().unwrap()),
    });
    let exact = proptest::collection::vec(device, 1..3).prop_map(Need::Exact);
    let count =
        (1..3u32, memory(), proptest::option::of(30..90u32)).prop_map(|(count, memory, max_temperature)| {
            Need::Count(CountNeed {
                count,
                memory: memory.map(|units| format!("{units}Gi").parse().unwrap()),
                max_temperature,
                ..CountNeed::default()
            })
        });
    prop_oneof![exact, count]
}

fn inventory() -> impl Strategy<Value = Inventory> {
    let gpu = (0..=UNITS, 20..95u32, any::<bool>());
    let node = (proptest::collection::vec(gpu, GPUS as usize), proptest::bool::weighted(0.1));
    proptest::collection::vec(node, 1..3).prop_map(|nodes| {
        let nodes = nodes.into_iter().enumerate().map(|(at, (gpus, closed))| {
            let gpus = gpus.into_iter().zip(0u32..).map(|((held, temperature, withheld), index)| {
                let holders = (held > 0).then(|| Holder {
                    who: Who::Pod("other".to_owned(), "pod".to_owned()),
                    units: held,
                    state: HolderState::Holds,
                });
                let closed = (withheld && temperature > 80).then(|| crate::inventory::Closed {
                    cause: crate::inventory::Cause::Overheated,
                    message: "is withheld".to_owned(),
                });
                let state = GpuState {
                    index,
                    uuid: format!("GPU-{at}-{index}"),
                    product: "RTX".to_owned(),
                    units: UNITS,
                    offered: UNITS,
                    temperature: Some(temperature),
                    memory_free: 8192,
                    closed,
                    holders: holders.into_iter().collect(),
                };
                (index, state)
            });
            let node = NodeGpus {
                name: format!("n{at}"),
                closed: closed.then(|| "is cordoned".to_owned()),
                gpus: gpus.collect(),
                ..NodeGpus::default()
            };
            (node.name.clone(), node)
        });
        Inventory { nodes: nodes.collect() }
    })
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let round = prop_oneof![Just(Round::Return), Just(Round::Fresh), Just(Round::Beside)];
    proptest::collection::vec((need(), round, 0..3i32, 0..100i64), 1..12).prop_map(|found| {
        found
            .into_iter()
            .enumerate()
            .map(|(at, (need, round, priority, created))| {
                let resource = ResourceKey {
                    kind: Kind::Reranker,
                    namespace: "demo".to_owned(),
                    name: format!("r{at}"),
                };
                Request {
                    order: Order::new(priority, Timestamp::from_second(created).unwrap(), &resource),
                    slot: SlotId { resource, ordinal: 0 },
                    round,
                    need,
                    node_selector: BTreeMap::new(),
                    tolerations: Vec::new(),
                    previous: None,
                }
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn memory_is_never_granted_twice_and_exact_devices_are_exact(before in inventory(), requests in requests()) {
        let mut after = before.clone();
        let outcomes = allocate(&mut after, requests.clone());
        for node in after.nodes.values() {
            for gpu in node.gpus.values() {
                let had: u32 = gpu.holders.iter().map(|holder| holder.units).sum();
                prop_assert!(had <= gpu.units, "GPU {} on {}: {had} of {}", gpu.index, node.name, gpu.units);
                let granted = gpu.holders.iter().filter(|holder| holder.state == HolderState::Granted);
                if gpu.closed.is_some() || node.closed.is_some() {
                    prop_assert_eq!(granted.count(), 0, "a closed GPU or node gets nothing");
                }
            }
        }
        for request in &requests {
            let Some(Outcome::Granted(placement)) = outcomes.get(&request.slot) else { continue };
            let indices: BTreeSet<u32> = placement.gpus.iter().map(|gpu| gpu.index).collect();
            prop_assert_eq!(indices.len(), placement.gpus.len(), "each GPU once");
            match &request.need {
                Need::Exact(devices) => {
                    for (device, gpu) in devices.iter().zip(&placement.gpus) {
                        prop_assert_eq!(device.index, Some(gpu.index));
                        let units = device.memory.as_ref().map_or(UNITS, principium_api::gpu::GpuMemory::units);
                        prop_assert_eq!(units, gpu.units);
                    }
                }
                Need::Count(need) => {
                    prop_assert_eq!(u32::try_from(placement.gpus.len()).unwrap(), need.count);
                    for gpu in &placement.gpus {
                        let state = &before.nodes[&placement.node].gpus[&gpu.index];
                        prop_assert!(need.max_temperature.is_none_or(|max| state.temperature.unwrap() < max));
                    }
                }
                Need::Nothing => {}
            }
        }
    }

    #[test]
    fn the_order_in_which_requests_are_listed_does_not_matter(
        (before, requests, shuffled) in (inventory(), requests())
            .prop_flat_map(|(inventory, requests)| (Just(inventory), Just(requests.clone()), Just(requests).prop_shuffle()))
    ) {
        let (mut one, mut other) = (before.clone(), before);
        prop_assert_eq!(allocate(&mut one, requests), allocate(&mut other, shuffled));
    }
}

/// Something that happens in a cluster.
#[derive(Clone, Debug)]
enum Happening {
    Apply { name: u8, kind: u8, gpu: u8, image: u8 },
    Delete { name: u8 },
    Heat { index: u32, temperature: u32 },
    Fail { pod: usize },
    Kill { pod: usize },
    RunPods,
    Pass,
    Wait,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..4u8, 0..3u8, 0..8u8, 0..2u8)
            .prop_map(|(name, kind, gpu, image)| Happening::Apply { name, kind, gpu, image }),
        1 => (0..4u8).prop_map(|name| Happening::Delete { name }),
        1 => (0..GPUS, prop_oneof![Just(40u32), Just(92u32)])
            .prop_map(|(index, temperature)| Happening::Heat { index, temperature }),
        1 => (0..8usize).prop_map(|pod| Happening::Fail { pod }),
        1 => (0..8usize).prop_map(|pod| Happening::Kill { pod }),
        3 => Just(Happening::RunPods),
        4 => Just(Happening::Pass),
        1 => Just(Happening::Wait),
    ]
}

fn happen(cluster: &mut Cluster, what: &Happening) {
    match *what {
        Happening::Apply { name, kind, gpu, image } => {
            let gpu = match gpu {
                0 => json!({"count": 1, "onOverheat": "Migrate"}),
                1 => json!({"count": 2}),
                2 => json!({"count": 1, "memory": "3Gi"}),
                3 => json!({"devices": [{"index": 0}]}),
                4 => json!({"devices": [{"index": 1, "memory": "5Gi"}]}),
                _ => json!({"devices": [{"index": gpu - 4}]}),
            };
            // Each name stays of one kind, as in a cluster.
            let kind = (kind + name) % 3;
            let mut spec = match kind {
                0 => factory(gpu),
                1 => reranker(gpu),
                _ => json!({"models": [{"name": "tiny"}], "gpu": gpu, "store": {"hostPath": {"path": "/m"}}}),
            };
            spec["image"] = json!(format!("image:{image}"));
            let kind = ["DataFactory", "Reranker", "OllamaPool"][usize::from(kind)];
            cluster.apply(kind, &format!("{}{name}", kind.to_lowercase()), spec);
        }
        Happening::Delete { name } => {
            let existing = cluster.names();
            if let Some(existing) = existing.get(usize::from(name) % existing.len().max(1)) {
                cluster.delete(existing);
            }
        }
        Happening::Heat { index, temperature } => cluster.heat("n0", index, temperature),
        Happening::Fail { pod } => {
            let names = cluster.pod_names();
            if let Some(name) = names.get(pod) {
                cluster.fail(name, "Evicted");
            }
        }
        Happening::Kill { pod } => {
            let keys: Vec<_> = cluster.pods.keys().cloned().collect();
            if let Some(key) = keys.get(pod) {
                cluster.pods.remove(key);
            }
        }
        Happening::RunPods => {
            cluster.run_pods();
        }
        Happening::Pass => {
            cluster.pass();
        }
        Happening::Wait => cluster.now += SignedDuration::from_mins(6),
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_granted_twice_and_the_cluster_comes_to_rest(
        happenings in proptest::collection::vec(happening(), 1..40)
    ) {
        let mut cluster = Cluster::new(&[GPUS]);
        for what in &happenings {
            happen(&mut cluster, what);
            cluster.check();
        }
        // Failed pods come back after their back-off; then nothing is left to do.
        for _ in 0..12 {
            cluster.pass();
            cluster.run_pods();
            cluster.now += SignedDuration::from_mins(6);
        }
        cluster.settle();
        for name in cluster.names() {
            let (status, reason, message) = cluster.ready(&name);
            let waits = reason == "WaitingForGPU";
            prop_assert!(status == "True" || waits, "{name}: {status} {reason}: {message}; {:?}", cluster.held());
        }
    }
}
