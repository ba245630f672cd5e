//! Properties of the allocator: for any ledger and any requests, nothing is granted twice, exact devices get exactly
//! those, the best GPUs are chosen, and neither order nor company of a request changes what it gets.

mod quality;

use crate::inventory::{Cause, Closed, GpuState, Holder, HolderState, Inventory, NodeGpus, Who};
use crate::placement::{CountNeed, Need, Outcome, Placement, Request, Round, SlotId, Wish, allocate};
use crate::resource::{Kind, Order, ResourceKey};
use jiff::Timestamp;
use principium_api::gpu::{GpuDevice, GpuMemory, Strategy as Placing};
use principium_api::status::AssignedGpu;
use proptest::prelude::*;
use quality::{Quality, could_have, sets};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const GPUS: u32 = 4;
const UNITS: u32 = 8;
const PRODUCTS: [&str; 2] = ["NVIDIA GeForce RTX 3060 Ti", "NVIDIA A100"];

/// Resources by number. The first has pods already.
fn key(number: usize) -> ResourceKey {
    ResourceKey { kind: Kind::Reranker, namespace: "demo".to_owned(), name: format!("r{number}") }
}

fn gib(units: u32) -> GpuMemory {
    format!("{units}Gi").parse().unwrap()
}

fn need() -> impl Strategy<Value = Need> {
    let memory = || proptest::option::of(1..=UNITS);
    let device = (0..GPUS, any::<bool>(), memory()).prop_map(|(index, by_index, memory)| GpuDevice {
        index: by_index.then_some(index),
        uuid: (!by_index).then(|| format!("GPU-0-{index}")),
        memory: memory.map(gib),
    });
    let exact = proptest::collection::vec(device, 1..3).prop_map(Need::Exact);
    let count = (
        1..4u32,
        memory(),
        proptest::option::of(30..90u32),
        proptest::option::weighted(0.3, prop_oneof![Just("rtx 3060"), Just("A100"), Just("H100")]),
        proptest::sample::subsequence((0..GPUS).collect::<Vec<_>>(), 0..=3).prop_shuffle(),
        any::<bool>(),
    );
    let count = count.prop_map(|(count, memory, max_temperature, product, prefer, spread)| {
        Need::Count(CountNeed {
            count,
            memory: memory.map(gib),
            max_temperature,
            product: product.map(ToOwned::to_owned),
            prefer,
            strategy: if spread { Placing::Spread } else { Placing::Pack },
        })
    });
    prop_oneof![1 => exact, 2 => count]
}

fn inventory() -> impl Strategy<Value = Inventory<'static>> {
    // Half of the GPUs are free, so that there is something to choose from.
    let held = prop_oneof![1 => Just(0u32), 1 => 0..=UNITS];
    let free = prop_oneof![4 => Just(8192u64), 1 => 0..8192u64];
    let own = prop_oneof![3 => Just(0u32), 1 => 1..3u32];
    let known = proptest::bool::weighted(0.9);
    let gpu = (held, own, 20..95u32, known, any::<bool>(), 0..2usize, free);
    let gpus = proptest::collection::vec(gpu, 1..=GPUS as usize);
    let node = (gpus, proptest::bool::weighted(0.1), any::<bool>());
    proptest::collection::vec(node, 1..5).prop_map(|nodes| {
        let nodes = nodes.into_iter().enumerate().map(|(at, (gpus, closed, fast))| {
            let gpus = gpus.into_iter().zip(0u32..).map(
                |((held, own, temperature, known, withheld, product, free), index)| {
                    let holds = |who, units| Holder { who, units, state: HolderState::Holds };
                    let others = held.min(UNITS - own);
                    let mut holders = vec![holds(Who::Resource(Cow::Owned(key(0))), 1); own as usize];
                    if others > 0 {
                        holders.push(holds(Who::Pod("other".to_owned(), "pod".to_owned()), others));
                    }
                    let closed = (withheld && temperature > 80)
                        .then(|| Closed { cause: Cause::Overheated, message: "is withheld".to_owned() });
                    GpuState {
                        index,
                        uuid: format!("GPU-{at}-{index}").into(),
                        product: PRODUCTS[product].into(),
                        units: UNITS,
                        offered: if temperature % 7 == 0 { others + own } else { UNITS },
                        temperature: known.then_some(temperature),
                        memory_free: free,
                        closed,
                        holders,
                    }
                },
            );
            let labels = BTreeMap::from([("fast".to_owned(), fast.to_string())]);
            NodeGpus {
                name: format!("n{at}").into(),
                closed: closed.then(|| "is cordoned".to_owned()),
                labels: Cow::Owned(labels),
                gpus: gpus.collect(),
                ..NodeGpus::default()
            }
        });
        Inventory { nodes: nodes.collect() }
    })
}

fn previous() -> impl Strategy<Value = Option<Placement>> {
    let indices = proptest::sample::subsequence((0..GPUS).collect::<Vec<_>>(), 1..=3);
    let placement = (0..4u32, indices, 1..=UNITS).prop_map(|(node, indices, units)| {
        let gpu = |index| AssignedGpu { index, uuid: format!("GPU-{node}-{index}"), units };
        let gpus = indices.into_iter().map(gpu).collect();
        Placement { node: format!("n{node}"), gpus, reason: String::new() }
    });
    proptest::option::weighted(0.3, placement)
}

/// How a pod replaces the one before it: whether it may run beside it, whether that gives up a unit of each of its GPUs, how many of
/// its resource may change, and the node that was chosen for it before.
fn way() -> impl Strategy<Value = (bool, bool, Option<usize>, Option<u32>)> {
    let turns = proptest::option::weighted(0.3, 0..3usize);
    (any::<bool>(), any::<bool>(), turns, proptest::option::weighted(0.3, 0..5u32))
}

/// Requests of few resources with several pods each, of which some want the same.
fn requests(rounds: &'static [Round]) -> impl Strategy<Value = Vec<Request>> {
    let pods = proptest::collection::vec((proptest::sample::select(rounds), previous(), way()), 1..4);
    let resource = (need(), proptest::option::weighted(0.3, any::<bool>()), 0..3i32, 0..100i64, pods);
    proptest::collection::vec(resource, 1..8).prop_map(|found| {
        let resources = found.into_iter().enumerate();
        resources
            .flat_map(|(at, (need, fast, priority, created, pods))| {
                let resource = key(at);
                let node_selector =
                    fast.map(|fast| ("fast".to_owned(), fast.to_string())).into_iter().collect();
                let wish = Arc::new(Wish { need, node_selector, tolerations: Vec::new() });
                let order = Order::new(priority, Timestamp::from_second(created).unwrap(), &resource);
                pods.into_iter().zip(0u32..).map(move |((round, previous, way), ordinal)| {
                    let (surge, stops, turns, hint) = way;
                    let gives = previous.iter().filter(|_| stops).flat_map(|it| &it.gpus);
                    Request {
                        slot: SlotId { resource: resource.clone(), ordinal },
                        order: order.clone(),
                        round,
                        wish: Arc::clone(&wish),
                        stops: gives.map(|gpu| AssignedGpu { units: 1, ..gpu.clone() }).collect(),
                        previous,
                        hint: hint.map(|node| format!("n{node}")),
                        surge,
                        turns,
                        patient: false,
                    }
                })
            })
            .collect()
    })
}

const ALL: &[Round] = &[Round::Return, Round::Fresh, Round::Beside];
const CHOSEN: &[Round] = &[Round::Fresh, Round::Beside];

/// The first of the requests, as that of a new pod, if it leaves the choice to the operator.
fn newcomer(requests: Vec<Request>) -> Option<(Request, CountNeed)> {
    let request = requests.into_iter().next()?;
    let Need::Count(need) = request.wish.need.clone() else { return None };
    Some((Request { previous: None, hint: None, turns: None, ..request }, need))
}

/// How good a choice is, by the documentation.
fn chosen(before: &Inventory<'_>, placement: &Placement, request: &Request, need: &CountNeed) -> Quality {
    let node = before.nodes.get(&placement.node).unwrap();
    let gpus: Vec<_> = placement.gpus.iter().map(|gpu| node.gpu(gpu.index).unwrap()).collect();
    Quality::of(node, &gpus, &request.slot.resource, need)
}

/// The best that a node has, by the documentation.
fn best(node: &NodeGpus<'_>, request: &Request, need: &CountNeed) -> Option<Quality> {
    sets(node, need).iter().map(|set| Quality::of(node, set, &request.slot.resource, need)).min()
}

fn selected(node: &NodeGpus<'_>, wish: &Wish) -> bool {
    wish.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn memory_is_never_granted_twice_and_exact_devices_are_exact(before in inventory(), requests in requests(ALL)) {
        let mut after = before.clone();
        let outcomes = allocate(&mut after, requests.clone());
        for node in after.nodes.all() {
            for gpu in &node.gpus {
                let had: u32 = gpu.holders.iter().map(|holder| holder.units).sum();
                prop_assert!(had <= gpu.units, "GPU {} on {}: {had} of {}", gpu.index, node.name, gpu.units);
                let granted = || gpu.holders.iter().filter(|holder| holder.state == HolderState::Granted);
                if gpu.closed.is_some() || node.closed.is_some() {
                    prop_assert_eq!(granted().count(), 0, "a closed GPU or node gets nothing");
                }
                if granted().any(|holder| holder.units == gpu.units) {
                    prop_assert_eq!(gpu.holders.len(), 1, "a whole GPU has one owner");
                }
            }
        }
        for request in &requests {
            let Some(Outcome::Granted(placement)) = outcomes.get(&request.slot) else { continue };
            let node = &before.nodes.get(&placement.node).unwrap();
            prop_assert!(selected(node, &request.wish), "on a node that is selected");
            let indices: BTreeSet<u32> = placement.gpus.iter().map(|gpu| gpu.index).collect();
            prop_assert_eq!(indices.len(), placement.gpus.len(), "each GPU once");
            for gpu in &placement.gpus {
                prop_assert_eq!(&gpu.uuid, node.gpu(gpu.index).unwrap().uuid.as_ref());
            }
            match &request.wish.need {
                Need::Exact(devices) => {
                    prop_assert_eq!(devices.len(), placement.gpus.len());
                    for (device, gpu) in devices.iter().zip(&placement.gpus) {
                        prop_assert!(device.index.is_none_or(|index| index == gpu.index));
                        prop_assert!(device.uuid.as_ref().is_none_or(|uuid| *uuid == gpu.uuid));
                        prop_assert_eq!(device.memory.as_ref().map_or(UNITS, GpuMemory::units), gpu.units);
                    }
                }
                Need::Count(need) => {
                    prop_assert_eq!(u32::try_from(placement.gpus.len()).unwrap(), need.count);
                    for gpu in &placement.gpus {
                        let gpu = node.gpu(gpu.index).unwrap();
                        prop_assert!(could_have(gpu, need), "{gpu:?}");
                    }
                }
                Need::Nothing => {}
            }
        }
    }

    #[test]
    fn the_order_in_which_requests_are_listed_does_not_matter(
        (before, requests, shuffled) in (inventory(), requests(ALL))
            .prop_flat_map(|(inventory, requests)| (Just(inventory), Just(requests.clone()), Just(requests).prop_shuffle()))
    ) {
        let (mut one, mut other) = (before.clone(), before);
        prop_assert_eq!(allocate(&mut one, requests), allocate(&mut other, shuffled));
    }

    #[test]
    fn requests_that_share_what_was_found_out_get_what_each_would_have_got_alone(
        before in inventory(), mut requests in requests(CHOSEN)
    ) {
        // How many of a resource change is no matter of one, nor is who is stopped for what others leave.
        for request in &mut requests {
            (request.turns, request.stops) = (None, Vec::new());
        }
        let (mut together, mut one_by_one) = (before.clone(), before);
        let outcomes = allocate(&mut together, requests.clone());
        requests.sort_by(|a, b| (a.round, &a.order, &a.slot).cmp(&(b.round, &b.order, &b.slot)));
        for request in requests {
            let slot = request.slot.clone();
            let alone = allocate(&mut one_by_one, vec![request]).remove(&slot);
            let kind = |outcome: Option<&Outcome>| match outcome {
                Some(Outcome::Granted(placement)) => (0, Some(placement.clone())),
                Some(Outcome::Returning { placement, .. }) => (4, Some(placement.clone())),
                Some(Outcome::Waiting { kept, .. }) => (1, kept.clone()),
                Some(Outcome::Impossible { .. }) => (2, None),
                Some(Outcome::Soon { .. }) => (5, None),
                None | Some(Outcome::InPlace { .. }) => (3, None),
            };
            prop_assert_eq!(kind(outcomes.get(&slot)), kind(alone.as_ref()));
        }
        prop_assert_eq!(together, one_by_one);
    }

    #[test]
    fn a_pod_gets_the_best_gpus_of_its_node_and_nothing_waits_that_could_be_had(
        before in inventory(), requests in requests(CHOSEN)
    ) {
        let Some((request, need)) = newcomer(requests) else { return Ok(()) };
        let outcome = allocate(&mut before.clone(), vec![request.clone()]).remove(&request.slot).unwrap();
        let Outcome::Granted(placement) = outcome else {
            let open = |node: &&NodeGpus<'_>| node.closed.is_none() && selected(node, &request.wish);
            let mut nodes = before.nodes.all().iter().filter(open);
            prop_assert!(nodes.all(|node| sets(node, &need).is_empty()), "it could be had: {outcome:?}");
            return Ok(());
        };
        let node = before.nodes.get(&placement.node).unwrap();
        prop_assert_eq!(Some(chosen(&before, &placement, &request, &need)), best(node, &request, &need));
        for gpu in &placement.gpus {
            prop_assert!(placement.reason.contains(&format!("GPU {}", gpu.index)), "{}", placement.reason);
        }
    }

    #[test]
    fn no_node_has_better_gpus_than_those_that_a_pod_gets(before in inventory(), requests in requests(CHOSEN)) {
        let Some((request, need)) = newcomer(requests) else { return Ok(()) };
        let outcome = allocate(&mut before.clone(), vec![request.clone()]).remove(&request.slot).unwrap();
        let Outcome::Granted(placement) = outcome else { return Ok(()) };
        let chosen = chosen(&before, &placement, &request, &need);
        for node in before.nodes.all() {
            if node.closed.is_none() && selected(node, &request.wish) {
                for set in sets(node, &need) {
                    let other = Quality::of(node, &set, &request.slot.resource, &need);
                    prop_assert!(!other.beats(&chosen), "{}: {other:?} is better than {placement:?}: {chosen:?}", node.name);
                }
            }
        }
    }

    #[test]
    fn a_pod_that_comes_back_gets_its_gpus_if_they_can_be_had_and_else_stays_on_its_node(
        before in inventory(), mut requests in requests(&[Round::Return])
    ) {
        requests.truncate(1);
        let Some(request) = requests.pop() else { return Ok(()) };
        let request = Request { turns: None, ..request };
        let (Need::Count(need), Some(previous)) = (&request.wish.need, request.previous.clone()) else { return Ok(()) };
        let outcome = allocate(&mut before.clone(), vec![request.clone()]).remove(&request.slot).unwrap();
        let Some(node) = before.nodes.get(&previous.node) else { return Ok(()) };
        let admits = node.closed.is_none() && selected(node, &request.wish);
        let again = |former: &AssignedGpu| {
            let units = |gpu: &GpuState<'_>| need.memory.as_ref().map_or(gpu.units, GpuMemory::units);
            node.gpu(former.index).is_some_and(|gpu| units(gpu) == former.units && could_have(gpu, need))
        };
        let count = usize::try_from(need.count).unwrap();
        let same = admits && previous.gpus.len() == count && previous.gpus.iter().all(again);
        let best = best(node, &request, need).filter(|_| admits);
        let Outcome::Granted(placement) = outcome else {
            prop_assert!(best.is_none(), "it waits though its node has GPUs for it: {outcome:?}");
            return Ok(());
        };
        if same {
            prop_assert_eq!(&placement.gpus, &previous.gpus);
        } else if best.is_some() {
            prop_assert_eq!(&placement.node, &previous.node, "the fewest moves");
            prop_assert_eq!(Some(chosen(&before, &placement, &request, need)), best, "the best of them");
        }
    }
}
