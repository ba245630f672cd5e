//! Filling a shared model store: one puller pod for each, and one writer at a time, whichever pool it belongs to.

use super::build::{build_puller, puller_template};
use super::store::Store;
use crate::actions::{Plan, Severity};
use crate::desired::Desired;
use crate::finish::{Finish, finish, only_on};
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

/// Makes the pullers that are missing, removes those that are not needed, and says how far each node's store is. Empty
/// for pools whose instances bring their own models.
pub fn pull<'a>(with: &Pull<'a, '_>, writers: &mut Writers, plan: &mut Plan) -> BTreeMap<String, Pulled<'a>> {
    let store = Store::of(with.resource);
    let namespace = &with.desired.id.key.namespace;
    let nodes = if store == Store::Ephemeral { BTreeSet::new() } else { (with.nodes)() };
    let mut places: BTreeMap<String, &String> = BTreeMap::new();
    for node in &nodes {
        if let Some(place) = store.place(namespace, node) {
            let chosen = places.entry(place).or_insert(node);
            // Of the nodes that share a place, the first on which a puller can start.
            if !can_start(with, chosen) && can_start(with, node) {
                *chosen = node;
            }
        }
    }
    let template = OnceCell::new();
    let template = || template.get_or_init(|| puller_template(with.observed, with.resource));
    let mine =
        |pod: &&PodView| pod.role == Role::Puller && pod.owner.as_deref() == Some(&with.desired.id.uid);
    let mut states: BTreeMap<&str, Pulled<'a>> = BTreeMap::new();
    for (place, node) in &places {
        let mut pods: Vec<&PodView> = with
            .pods
            .iter()
            .copied()
            .filter(mine)
            .filter(|pod| pod.store.as_deref() == Some(place))
            .collect();
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.revision));
        states.insert(place, at_place(with, place, node, &pods, template(), writers, plan));
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
    place: &str,
    node: &str,
    pods: &[&'a PodView],
    template: &Template,
    writers: &mut Writers,
    plan: &mut Plan,
) -> Pulled<'a> {
    let waiting = |message: String, pod| Pulled::Waiting(message, pod);
    let Some((newest, older)) = pods.split_first() else {
        return start(with, place, node, 0, template, writers, plan);
    };
    for pod in older.iter().filter(|pod| !pod.leaving) {
        plan.actions.push(delete_action(with.desired, pod));
    }
    if newest.leaving {
        return waiting(format!("Pod {} is ending before the models are pulled anew", newest.name), None);
    }
    let mut differences = template.differences(newest.template.as_deref());
    if newest.phase == Phase::Succeeded {
        // How the models came does not matter any more; the registry may be away by now.
        differences.retain(|difference| !how(difference));
    }
    if !differences.is_empty() {
        replace(with, newest, &differences.join("; "), plan);
        return waiting(format!("models are pulled anew on node {node}"), None);
    }
    match newest.phase {
        Phase::Succeeded => {
            let Some(model) = lost(with, place, newest) else { return Pulled::Done };
            let age = with.now.duration_since(newest.ended);
            if age < SETTLED {
                plan.requeue(SETTLED - age);
                return Pulled::Done;
            }
            replace(with, newest, &format!("model {model} is no longer in the store"), plan);
            waiting(format!("models are pulled anew on node {node}"), None)
        }
        Phase::Pending if !newest.scheduled && is_stuck(with, newest, node) => {
            replace(with, newest, &format!("it can't start on its node, and can on node {node}"), plan);
            waiting(format!("models are pulled on node {node} instead"), None)
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
            start(with, place, node, failures_in_a_row(newest), template, writers, plan)
        }
        Phase::Pending | Phase::Running => {
            let message = match &newest.trouble {
                Some(trouble) => format!("Pod {} can't pull the models: {trouble}", newest.name),
                None => format!("Pod {} pulls the models on node {node}", newest.name),
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

/// Whether a puller that was never bound waits for a node that has no instances any more or can't take it, while `better` can.
fn is_stuck(with: &Pull<'_, '_>, pod: &PodView, better: &str) -> bool {
    let Some(node) = pod.node.as_deref().filter(|node| *node != better) else { return false };
    can_start(with, better) && (!can_start(with, node) || !(with.nodes)().contains(node))
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
    place: &str,
    node: &str,
    failures: u32,
    template: &Template,
    writers: &mut Writers,
    plan: &mut Plan,
) -> Pulled<'a> {
    let id = &with.desired.id;
    match writers.get(place) {
        Some(other) if *other != id.uid => {
            let message =
                format!("another pool fills the model store on node {node}; it is this one's turn then");
            return Pulled::Waiting(message, None);
        }
        _ => {}
    }
    writers.insert(place.to_owned(), id.uid.clone());
    // Also those of a former pool of this name count, whose pods are still ending.
    let former = with.pods.iter().filter(|pod| pod.store.as_deref() == Some(place)).map(|pod| pod.revision);
    let revision = former.max().unwrap_or_default().saturating_add(1);
    let name = format!("{}-puller-{:08x}-{}", id.key.name, fnv1a(place), revision);
    let mut pod = build_puller(with.observed, with.resource, place);
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
        spec.affinity = Some(only_on(node));
    }
    let text = format!("Pod {name} pulls the models on node {node}");
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
