//! One pass over the whole cluster, as a pure function: from what is observed and the time to what is to be done.

use crate::actions::{Action, Plan};
use crate::children::Children;
use crate::desired::{self, AnyResource, Desired, Slot};
use crate::inventory::{self, Inventory};
use crate::lifecycle::{self, Family, Found, May, Report, Settling, may_change};
use crate::observed::Observed;
use crate::ollama_pool::{self, Pull, Pulled};
use crate::placement::{self, Outcome, SlotId};
use crate::pods::PodView;
use crate::resource::{ResourceKey, Role};
use crate::summary::Reporting;
use crate::{data_factory, ingestion, reranker};
use hashbrown::{HashMap, HashSet};
use jiff::{SignedDuration, Timestamp};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long after a Lease runs out the pass that notices it comes.
const AFTER_EXPIRY: SignedDuration = SignedDuration::from_secs(1);
/// How often to look again while a node's plugin is silent: its return changes nothing that is watched for.
const SILENT_PLUGIN: SignedDuration = SignedDuration::from_secs(5);

/// Plans everything. What each resource needs by itself is worked out on all cores; what they compete for, one after another.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut inventory = inventory::read(observed, now);
    let mut pods = Pods::read(&observed.pods);
    let children = Children::read(observed);
    let desired: Vec<(Desired<'_>, Vec<&PodView>)> = desired::all(observed)
        .into_iter()
        .map(|desired| {
            let pods = pods.take(&desired.id.key);
            (desired, pods)
        })
        .collect();
    let looked: Vec<Looked<'_, '_>> = desired
        .par_iter()
        .map(|(desired, pods)| look(observed, &inventory, &children, desired, pods, now))
        .collect();
    let requests = looked.iter().flat_map(|looked| looked.requests(&inventory, now)).collect();
    let outcomes = placement::allocate(&mut inventory, requests);
    let mut writers = ollama_pool::writers(&observed.pods);
    let settled: Vec<Settled<'_, '_, '_>> = looked
        .iter()
        .map(|looked| settle(observed, &inventory, looked, &outcomes, &mut writers, now, &mut plan))
        .collect();
    let reported: Vec<Plan> =
        settled.par_iter().map(|settled| report(observed, &inventory, settled, now)).collect();
    reported.into_iter().for_each(|reported| plan.append(reported));
    ingestion::plan(observed, now, &mut plan);
    wake(observed, now, &mut plan);
    plan
}

/// A resource, its pods, and how its slots were found.
struct Looked<'a, 'd> {
    desired: &'d Desired<'a>,
    family: Family<'a>,
    slots: Vec<(&'d Slot, Found<'a>)>,
    may_change: Vec<May>,
    /// What is to be done about its Services and its budget.
    children: Vec<Action>,
}

/// A resource, and what was decided about its slots.
struct Settled<'l, 'a, 'd> {
    looked: &'l Looked<'a, 'd>,
    reports: Vec<Report<'a>>,
    /// How far the shared stores of a pool are, by node.
    pulled: BTreeMap<String, Pulled<'a>>,
}

impl Looked<'_, '_> {
    fn requests(&self, inventory: &Inventory<'_>, now: Timestamp) -> Vec<placement::Request> {
        if self.desired.problem.is_some() {
            return Vec::new();
        }
        let slots = self.slots.iter().zip(&self.may_change);
        slots
            .filter_map(|((slot, found), may)| {
                lifecycle::request(self.desired, slot, found, *may, inventory, now)
            })
            .collect()
    }

    /// What placement answered to each slot.
    fn outcomes<'p>(&self, all: &'p BTreeMap<SlotId, Outcome>) -> Vec<Option<&'p Outcome>> {
        let mut id = SlotId { resource: self.desired.id.key.clone(), ordinal: 0 };
        let outcome = |slot: &Slot| {
            id.ordinal = slot.ordinal;
            if slot.role == Role::Worker { all.get(&id) } else { None }
        };
        self.slots.iter().map(|(slot, _)| *slot).map(outcome).collect()
    }
}

/// The pods of each resource by their labels. Whose they are is told by their owner, later.
#[derive(Default)]
struct Pods<'a> {
    numbers: HashMap<&'a ResourceKey, usize>,
    by_number: Vec<Vec<&'a PodView>>,
}

impl<'a> Pods<'a> {
    fn read(pods: &'a [Arc<PodView>]) -> Self {
        let mut found = Self::default();
        // In the order of their names those of a resource come one after another: most are not looked up.
        let mut last: Option<(&ResourceKey, usize)> = None;
        for pod in pods {
            let Some(key) = &pod.resource else { continue };
            let number = match last {
                Some((of, number)) if of == key => number,
                _ => *found.numbers.entry(key).or_insert_with(|| {
                    found.by_number.push(Vec::new());
                    found.by_number.len() - 1
                }),
            };
            found.by_number[number].push(pod);
            last = Some((key, number));
        }
        found
    }

    fn take(&mut self, key: &ResourceKey) -> Vec<&'a PodView> {
        self.numbers.get(key).map(|number| std::mem::take(&mut self.by_number[*number])).unwrap_or_default()
    }
}

fn look<'a, 'd>(
    observed: &Observed,
    inventory: &Inventory<'_>,
    children: &Children<'_>,
    desired: &'d Desired<'a>,
    pods: &[&'a PodView],
    now: Timestamp,
) -> Looked<'a, 'd> {
    let family = Family::new(pods.to_vec(), &desired.id.uid);
    let slots: Vec<(&Slot, Found<'_>)> = desired
        .slots
        .iter()
        .map(|slot| (slot, lifecycle::look(observed, desired, slot, &family, inventory, now)))
        .collect();
    let ready = |pod: &PodView| serves(observed, inventory, desired, pod);
    let may_change = may_change(desired, &slots, ready);
    let children = if desired.problem.is_none() { children.settle(desired) } else { Vec::new() };
    Looked { desired, family, slots, may_change, children }
}

fn serves(observed: &Observed, inventory: &Inventory<'_>, desired: &Desired<'_>, pod: &PodView) -> bool {
    match desired.resource {
        AnyResource::OllamaPool(resource) if pod.role == Role::Worker => {
            ollama_pool::serves(observed, inventory, resource, pod)
        }
        _ => pod.ready,
    }
}

fn settle<'l, 'a, 'd>(
    observed: &Observed,
    inventory: &Inventory<'_>,
    looked: &'l Looked<'a, 'd>,
    outcomes: &BTreeMap<SlotId, Outcome>,
    writers: &mut ollama_pool::Writers,
    now: Timestamp,
    plan: &mut Plan,
) -> Settled<'l, 'a, 'd> {
    let Looked { desired, family, slots, may_change, children } = looked;
    let pods = family.all.as_slice();
    plan.actions.extend_from_slice(children);
    remove_surplus(desired, pods, plan);
    let outcomes = looked.outcomes(outcomes);
    let mut pulled: BTreeMap<String, Pulled<'a>> = BTreeMap::new();
    if let (AnyResource::OllamaPool(resource), None) = (desired.resource, &desired.problem) {
        let nodes = || nodes(desired, pods, &outcomes);
        let with = Pull { observed, desired, resource, pods, nodes: &nodes, now };
        pulled = ollama_pool::pull(&with, writers, plan);
    }
    let gate = |node: &str| match pulled.get(node) {
        Some(Pulled::Waiting(why, _)) => Some(why.clone()),
        Some(Pulled::Done) | None => None,
    };
    let ready = |pod: &PodView| serves(observed, inventory, desired, pod);
    let with = Settling { observed, inventory, desired, family, now, ready: &ready, gate: &gate };
    let reports: Vec<Report<'a>> = if desired.problem.is_some() {
        Vec::new()
    } else {
        let slots = slots.iter().zip(may_change).zip(&outcomes);
        slots
            .map(|(((slot, found), may), outcome)| {
                lifecycle::settle(&with, slot, found, *may, *outcome, plan)
            })
            .collect()
    };
    Settled { looked, reports, pulled }
}

/// The status of a resource, and the pods to ask.
fn report(
    observed: &Observed,
    inventory: &Inventory<'_>,
    settled: &Settled<'_, '_, '_>,
    now: Timestamp,
) -> Plan {
    let Settled { looked, reports, pulled } = settled;
    let (desired, pods) = (looked.desired, looked.family.all.as_slice());
    let mut plan = Plan::default();
    let with = Reporting { observed, inventory, desired, pods, reports, now };
    match desired.resource {
        AnyResource::DataFactory(resource) => data_factory::report(&with, resource, &mut plan),
        AnyResource::Reranker(resource) => reranker::report(&with, resource, &mut plan),
        AnyResource::OllamaPool(resource) => ollama_pool::report(&with, resource, pulled, &mut plan),
    }
    plan
}

/// The nodes that have instances of a pool, or get one, or get one back.
fn nodes(desired: &Desired<'_>, pods: &[&PodView], outcomes: &[Option<&Outcome>]) -> BTreeSet<String> {
    let living = pods
        .iter()
        .filter(|pod| pod.owner.as_deref() == Some(&desired.id.uid) && pod.role == Role::Worker)
        .filter_map(|pod| pod.node.clone());
    let remembered = desired.assignments.iter().map(|assignment| assignment.node.clone());
    let coming = outcomes.iter().flatten().filter_map(|outcome| match outcome {
        Outcome::Granted(placement) | Outcome::Returning { placement, .. } | Outcome::InPlace(placement) => {
            Some(placement.node.clone())
        }
        Outcome::Soon { .. } | Outcome::Waiting { .. } | Outcome::Impossible { .. } => None,
    });
    living.chain(remembered).chain(coming).collect()
}

/// Pods that no slot wants: the resource was scaled down, lost its analyzer, or is being deleted.
fn remove_surplus(desired: &Desired<'_>, pods: &[&PodView], plan: &mut Plan) {
    if desired.problem.is_some() && !desired.id.leaving {
        // What runs is not stopped for a spec that can't be understood.
        return;
    }
    let slots: HashSet<(Role, u32)> = desired.slots.iter().map(|slot| (slot.role, slot.ordinal)).collect();
    for pod in pods.iter().filter(|pod| pod.owner.as_deref() == Some(&desired.id.uid) && !pod.leaving) {
        let wanted = slots.contains(&(pod.role, pod.ordinal));
        // Pullers are looked after by the pool, unless it goes.
        let cared_for = pod.role == Role::Puller && !desired.id.leaving;
        if !wanted && !cared_for {
            if !desired.id.leaving {
                let text = format!("Pod {} is no longer wanted", pod.name);
                plan.note(&desired.id, crate::actions::Severity::Normal, "ScalingDown", text);
            }
            plan.actions.push(lifecycle::delete_action(desired, pod));
        }
    }
}

/// Plans again when the next Lease runs out, or a pod should have ended: nothing that is watched tells of either.
fn wake(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    for gpu_node in &observed.gpu_nodes {
        let name = gpu_node.metadata.name.as_deref().unwrap_or_default();
        match observed.lease_expiry.get(name) {
            Some(expiry) if *expiry >= now => plan.requeue(expiry.duration_since(now) + AFTER_EXPIRY),
            _ => plan.requeue(SILENT_PLUGIN),
        }
    }
    let overdue = observed.pods.iter().filter(|pod| !pod.ended()).filter_map(|pod| pod.overdue_at());
    for at in overdue.filter(|at| *at > now) {
        plan.requeue(at.duration_since(now));
    }
}
