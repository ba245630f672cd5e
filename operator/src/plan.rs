//! One pass over the whole cluster, as a pure function: from what is observed and the time to what is to be done.

use crate::actions::Plan;
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
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long after a Lease runs out the pass that notices it comes.
const AFTER_EXPIRY: SignedDuration = SignedDuration::from_secs(1);
/// How often to look again while a node's plugin is silent: its return changes nothing that is watched for.
const SILENT_PLUGIN: SignedDuration = SignedDuration::from_secs(5);

/// Plans everything.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut inventory = inventory::read(observed, now);
    let mut pods = by_resource(&observed.pods);
    let children = Children::read(observed);
    let desired = desired::all(observed);
    let looked: Vec<Looked<'_, '_>> = desired
        .iter()
        .map(|desired| {
            let pods = pods.remove(&desired.id.key).unwrap_or_default();
            look(observed, &inventory, desired, Family::new(pods, &desired.id.uid), now)
        })
        .collect();
    let requests = looked.iter().flat_map(|looked| looked.requests(&inventory, now)).collect();
    let outcomes = placement::allocate(&mut inventory, requests);
    let mut writers = ollama_pool::writers(&observed.pods);
    for looked in &looked {
        if looked.desired.problem.is_none() {
            children.settle(looked.desired, &mut plan);
        }
        settle(observed, &inventory, looked, &outcomes, &mut writers, now, &mut plan);
    }
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
fn by_resource(pods: &[Arc<PodView>]) -> HashMap<&ResourceKey, Vec<&PodView>> {
    let mut found: HashMap<&ResourceKey, Vec<&PodView>> = HashMap::new();
    for pod in pods {
        if let Some(key) = &pod.resource {
            found.entry(key).or_default().push(pod);
        }
    }
    found
}

fn look<'a, 'd>(
    observed: &Observed,
    inventory: &Inventory<'_>,
    desired: &'d Desired<'a>,
    family: Family<'a>,
    now: Timestamp,
) -> Looked<'a, 'd> {
    let slots: Vec<(&Slot, Found<'_>)> = desired
        .slots
        .iter()
        .map(|slot| (slot, lifecycle::look(desired, slot, &family, inventory, now)))
        .collect();
    let ready = |pod: &PodView| serves(observed, inventory, desired, pod);
    let may_change = may_change(desired, &slots, ready);
    Looked { desired, family, slots, may_change }
}

fn serves(observed: &Observed, inventory: &Inventory<'_>, desired: &Desired<'_>, pod: &PodView) -> bool {
    match desired.resource {
        AnyResource::OllamaPool(resource) if pod.role == Role::Worker => {
            ollama_pool::serves(observed, inventory, resource, pod)
        }
        _ => pod.ready,
    }
}

fn settle(
    observed: &Observed,
    inventory: &Inventory<'_>,
    looked: &Looked<'_, '_>,
    outcomes: &BTreeMap<SlotId, Outcome>,
    writers: &mut ollama_pool::Writers,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Looked { desired, family, slots, may_change } = looked;
    let pods = family.all.as_slice();
    remove_surplus(desired, pods, plan);
    let outcomes = looked.outcomes(outcomes);
    let mut pulled: BTreeMap<String, Pulled<'_>> = BTreeMap::new();
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
    let reports: Vec<Report<'_>> = if desired.problem.is_some() {
        Vec::new()
    } else {
        let slots = slots.iter().zip(may_change).zip(&outcomes);
        slots
            .map(|(((slot, found), may), outcome)| {
                lifecycle::settle(&with, slot, found, *may, *outcome, plan)
            })
            .collect()
    };
    let with = Reporting { observed, inventory, desired, pods, reports: &reports, now };
    match desired.resource {
        AnyResource::DataFactory(resource) => data_factory::report(&with, resource, plan),
        AnyResource::Reranker(resource) => reranker::report(&with, resource, plan),
        AnyResource::OllamaPool(resource) => ollama_pool::report(&with, resource, &pulled, plan),
    }
}

/// The nodes that have instances of a pool, or get one, or get one back.
fn nodes(desired: &Desired<'_>, pods: &[&PodView], outcomes: &[Option<&Outcome>]) -> BTreeSet<String> {
    let living = pods
        .iter()
        .filter(|pod| pod.owner.as_deref() == Some(&desired.id.uid) && pod.role == Role::Worker)
        .filter_map(|pod| pod.node.clone());
    let remembered = desired.assignments.iter().map(|assignment| assignment.node.clone());
    let coming = outcomes.iter().flatten().filter_map(|outcome| match outcome {
        Outcome::Granted(placement) | Outcome::Returning { placement, .. } => Some(placement.node.clone()),
        Outcome::Soon { .. }
        | Outcome::InPlace { .. }
        | Outcome::Waiting { .. }
        | Outcome::Impossible { .. } => None,
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

/// Plans again when the next Lease runs out; Leases themselves don't start a pass.
fn wake(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    for gpu_node in &observed.gpu_nodes {
        let name = gpu_node.metadata.name.as_deref().unwrap_or_default();
        match observed.lease_expiry.get(name) {
            Some(expiry) if *expiry >= now => plan.requeue(expiry.duration_since(now) + AFTER_EXPIRY),
            _ => plan.requeue(SILENT_PLUGIN),
        }
    }
}
