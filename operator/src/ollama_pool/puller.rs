//! Filling a shared model store: one puller pod for each, and one writer at a time, whichever pool it belongs to.

use super::build::{build_puller, puller_template};
use super::store::Store;
use crate::actions::{Plan, Severity};
use crate::desired::Desired;
use crate::finish::{Finish, finish, only_on_one_of};
use crate::inventory::takes;
use crate::lifecycle::{delete_action, failures_in_a_row, retry_at};
use crate::observed::{ModelStep, Observed};
use crate::pods::{Phase, PodView};
use crate::resource::Role;
use crate::template::Template;
use jiff::{SignedDuration, Timestamp};
use principium_api::OllamaPool;
use principium_api::gpu_node::Injection;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Fields of a puller's template that say how models are pulled.
const HOW: [&str; 7] = [
    "env",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "priorityClassName",
    "registryCaConfigMapRef",
    "tolerations",
];

/// How long after a puller's end its models may be missed, so that pulls of what never stays don't follow at once.
const SETTLED: SignedDuration = SignedDuration::from_mins(1);

/// The UIDs of the resources whose puller writes to each place now.
pub type Writers = BTreeMap<String, String>;

/// How far a store is on a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Pulled<'a> {
    /// All models are there.
    Done,
    /// Not yet, and why; with the puller, where there is one.
    Waiting(String, Option<&'a PodView>),
}

/// The pullers at work, by the places that they write to.
pub fn writers(pods: &[Arc<PodView>]) -> Writers {
    pods.iter()
        .filter(|pod| !pod.ended())
        .filter_map(|pod| Some((pod.store.clone()?, pod.owner.clone().unwrap_or_default())))
        .collect()
}

/// What a pull works with.
pub struct Pull<'a, 's> {
    pub observed: &'s Observed,
    pub desired: &'s Desired<'s>,
    pub resource: &'s OllamaPool,
    /// The pods of the resource.
    pub pods: &'s [&'a PodView],
    /// The nodes that have, or get, instances.
    pub nodes: &'s dyn Fn() -> BTreeSet<String>,
    pub now: Timestamp,
}

/// A place that is to be filled.
struct Place<'n> {
    name: &'n str,
    /// The nodes that share it; the first is one on which a puller can start, where there is one.
    nodes: &'n [&'n str],
}

impl<'n> Place<'n> {
    fn node(&self) -> &'n str {
        self.nodes.first().copied().unwrap_or_default()
    }

    /// Where it is, in words.
    fn on(&self) -> String {
        match self.nodes {
            [node] => format!("on node {node}"),
            nodes => format!("on one of {} nodes", nodes.len()),
        }
    }
}

/// Makes the pullers that are missing, removes those that are not needed, and says how far each node's store is. Empty
/// for pools whose instances bring their own models.
pub fn pull<'a>(with: &Pull<'a, '_>, writers: &mut Writers, plan: &mut Plan) -> BTreeMap<String, Pulled<'a>> {
    let store = Store::of(with.resource);
    let namespace = &with.desired.id.key.namespace;
    let nodes = if store == Store::Ephemeral { BTreeSet::new() } else { (with.nodes)() };
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in &nodes {
        if let Some(place) = store.place(namespace, node) {
            places.entry(place).or_default().push(node);
        }
    }
    for nodes in places.values_mut() {
        if let Some(at) = nodes.iter().position(|node| can_start(with, node)) {
            nodes.swap(0, at);
        }
    }
    let template = OnceCell::new();
    let template = || template.get_or_init(|| puller_template(with.observed, with.resource));
    let mine =
        |pod: &&PodView| pod.role == Role::Puller && pod.owner.as_deref() == Some(&with.desired.id.uid);
    let mut states: BTreeMap<&str, Pulled<'a>> = BTreeMap::new();
    for (place, nodes) in &places {
        let mut pods: Vec<&PodView> = with
            .pods
            .iter()
            .copied()
            .filter(mine)
            .filter(|pod| pod.store.as_deref() == Some(place))
            .collect();
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.revision));
        let at = Place { name: place, nodes };
        states.insert(place, at_place(with, &at, &pods, template(), writers, plan));
    }
    for pod in with.pods.iter().copied().filter(mine) {
        if !pod.leaving && !pod.store.as_ref().is_some_and(|place| places.contains_key(place)) {
            plan.actions.push(delete_action(with.desired, pod));
        }
    }
    nodes
        .iter()
        .filter_map(|node| {
            let place = store.place(namespace, node)?;
            Some((node.clone(), states.get(place.as_str())?.clone()))
        })
        .collect()
}

fn at_place<'a>(
    with: &Pull<'a, '_>,
    place: &Place<'_>,
    pods: &[&'a PodView],
    template: &Template,
    writers: &mut Writers,
    plan: &mut Plan,
) -> Pulled<'a> {
    let waiting = |message: String, pod| Pulled::Waiting(message, pod);
    let Some((newest, older)) = pods.split_first() else {
        return start(with, place, 0, template, writers, plan);
    };
    for pod in older.iter().filter(|pod| !pod.leaving) {
        plan.actions.push(delete_action(with.desired, pod));
    }
    if newest.leaving {
        let message = match newest.late(with.now) {
            Some(late) => format!("{late}; the models are pulled anew then"),
            None => format!("Pod {} is ending before the models are pulled anew", newest.name),
        };
        return waiting(message, None);
    }
    let mut differences = template.differences(newest.template.as_deref());
    if newest.phase == Phase::Succeeded {
        // How the models came does not matter any more; the registry may be away by now.
        differences.retain(|difference| !how(difference));
    }
    if !differences.is_empty() {
        replace(with, newest, &differences.join("; "), plan);
        return waiting(format!("models are pulled anew {}", place.on()), None);
    }
    if let Some(node) = left_out(with, newest, place) {
        replace(with, newest, &format!("no node has taken it, and node {node} can"), plan);
        return waiting(format!("models are pulled {} instead", place.on()), None);
    }
    match newest.phase {
        Phase::Succeeded => {
            let Some(model) = lost(with, place.name, newest) else { return Pulled::Done };
            let age = with.now.duration_since(newest.ended);
            if age < SETTLED {
                plan.requeue(SETTLED - age);
                return Pulled::Done;
            }
            replace(with, newest, &format!("model {model} is no longer in the store"), plan);
            waiting(format!("models are pulled anew {}", place.on()), None)
        }
        Phase::Failed => {
            let trouble = newest.trouble.clone().unwrap_or_default();
            let retry_at = retry_at(newest);
            if with.now < retry_at {
                plan.requeue(retry_at.duration_since(with.now));
                return waiting(
                    format!("Pod {} failed and is tried again: {trouble}", newest.name),
                    Some(newest),
                );
            }
            plan.actions.push(delete_action(with.desired, newest));
            start(with, place, failures_in_a_row(newest), template, writers, plan)
        }
        Phase::Pending | Phase::Running => {
            let bound = newest.node.as_ref().filter(|_| newest.scheduled);
            let on = bound.map_or_else(|| place.on(), |node| format!("on node {node}"));
            let message = match &newest.trouble {
                Some(trouble) => format!("Pod {} can't pull the models: {trouble}", newest.name),
                None => format!("Pod {} pulls the models {on}", newest.name),
            };
            waiting(message, Some(newest))
        }
    }
}

/// Removes a puller, so that another takes its place.
fn replace(with: &Pull<'_, '_>, pod: &PodView, why: &str, plan: &mut Plan) {
    let text = format!("Pod {} is stopped for its successor: {why}", pod.name);
    plan.note(&with.desired.id, Severity::Normal, "PullingAgain", text);
    plan.actions.push(delete_action(with.desired, pod));
}

/// Whether a puller can start on a node, as far as the node is concerned.
fn can_start(with: &Pull<'_, '_>, node: &str) -> bool {
    with.observed.nodes.get(node).is_some_and(|node| takes(node, &with.resource.spec.pod))
}

/// A node that can take a puller which the scheduler has not bound, and that it isn't meant for: it came to share the place
/// later. Those that it is meant for may all be gone, closed, or out of reach of its volume.
fn left_out<'n>(with: &Pull<'_, '_>, pod: &PodView, place: &Place<'n>) -> Option<&'n str> {
    // One that names no node may start on any.
    if pod.phase != Phase::Pending || pod.meant_for.is_empty() {
        return None;
    }
    let may = |node: &str| pod.meant_for.iter().any(|meant| meant == node);
    place.nodes.iter().copied().find(|node| !may(node) && can_start(with, node))
}

/// A model that is missing although its puller is done: its node, or the claim, was made anew. It counts what an instance says
/// that was made since then; others may have looked before the model was there.
fn lost<'s>(with: &Pull<'_, 's>, place: &str, puller: &PodView) -> Option<&'s str> {
    let (observed, models) = (with.observed, &with.resource.spec.models);
    let store = Store::of(with.resource);
    let id = &with.desired.id;
    let since = with.pods.iter().copied().filter(|pod: &&PodView| {
        let filled = pod.node.as_deref().and_then(|node| store.place(&id.key.namespace, node));
        pod.role == Role::Worker
            && pod.owner.as_deref() == Some(&id.uid)
            && pod.created >= puller.ended
            && filled.as_deref() == Some(place)
    });
    since.filter_map(|pod| observed.answers.instances.get(&pod.uid)).flatten().find_map(|answer| {
        let is_missing =
            answer.step == ModelStep::Missing && models.iter().any(|model| model.name == answer.name);
        is_missing.then_some(answer.name.as_str())
    })
}

/// Whether a difference is one in how models are pulled, not in which ones or where to.
fn how(difference: &str) -> bool {
    let field = difference.split([' ', '.', '[']).next().unwrap_or_default();
    HOW.contains(&field)
}

/// Makes a puller, unless another pool's writes there. `failures`: pullers before it that failed one after another.
fn start<'a>(
    with: &Pull<'_, '_>,
    place: &Place<'_>,
    failures: u32,
    template: &Template,
    writers: &mut Writers,
    plan: &mut Plan,
) -> Pulled<'a> {
    let id = &with.desired.id;
    match writers.get(place.name) {
        Some(other) if *other != id.uid => {
            let node = place.node();
            let message =
                format!("another pool fills the model store on node {node}; it is this one's turn then");
            return Pulled::Waiting(message, None);
        }
        _ => {}
    }
    writers.insert(place.name.to_owned(), id.uid.clone());
    // Also those of a former pool of this name count, whose pods are still ending.
    let former = with.pods.iter().filter(|pod| pod.store.as_deref() == Some(place.name));
    let former = former.map(|pod| pod.revision);
    let revision = former.max().unwrap_or_default().saturating_add(1);
    let name = format!("{}-puller-{:08x}-{}", id.key.name, fnv1a(place.name), revision);
    let mut pod = build_puller(with.observed, with.resource, place.name);
    finish(
        &mut pod,
        &Finish {
            id,
            name: &name,
            role: Role::Puller,
            ordinal: 0,
            template,
            failures,
            placement: None,
            injection: Injection::Cdi,
        },
    );
    if let Some(spec) = &mut pod.spec {
        // The scheduler knows which of them its volume can be reached from.
        spec.affinity = Some(only_on_one_of(place.nodes.iter().copied()));
    }
    let text = format!("Pod {name} pulls the models {}", place.on());
    plan.note_made(id, &name, "Pulling", text.clone());
    plan.create(with.observed, id.key.clone(), pod);
    Pulled::Waiting(text, None)
}

/// FNV-1a with 32 bits: short, and the same in every version of the operator.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_in_a_name_is_fnv_1a() {
        assert_eq!(fnv1a(""), 0x811c_9dc5);
        assert_eq!(fnv1a("a"), 0xe40c_292c);
        assert_eq!(fnv1a("foobar"), 0xbf9c_f968);
    }
}
