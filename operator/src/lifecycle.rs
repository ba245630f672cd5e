//! The life of a pod in its slot: make it, keep it, replace it, move it. Pure, and the same for every kind.
//!
//! A pass looks at each slot ([`look`]), asks placement for what the slot needs ([`request`]), and settles it with what
//! placement answered ([`settle`]).

mod family;
mod settle;
mod write;

use crate::desired::{Desired, Slot};
use crate::inventory::{Admission, Cause, Inventory, NodeGpus};
use crate::observed::Observed;
use crate::placement::{Need, Placement, Request, Round, SlotId, accepts};
use crate::pods::PodView;
use crate::resource::Role;
use jiff::{SignedDuration, Timestamp};
use principium_api::gpu::{OnOverheat, OnUnhealthy};
use principium_api::status::{AssignedGpu, Assignment};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use family::Family;
pub use settle::{Settling, settle};
pub use write::delete_action;

/// A pod stays at least this long, counted from its creation, so that pods don't chase the heat around.
const MOVE_COOL_DOWN: SignedDuration = SignedDuration::from_mins(5);
/// A pod that lived this long before it failed begins a new count of failures.
const LONG_LIFE: SignedDuration = SignedDuration::from_mins(10);
/// Wait before the first replacement of a failed pod; doubled with each failure in a row.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(2);
/// Longest wait before a failed pod is replaced.
const LONGEST_RETRY: SignedDuration = SignedDuration::from_mins(5);
/// How long a pod that failed waits for its own GPUs where their node is only just starting: after a reboot every pod of
/// the node fails until the device plugin has registered, and none need move for it.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// How a slot is found.
#[derive(Debug)]
pub enum Found<'a> {
    /// Nothing there.
    Missing,
    /// Only pods that are ending, the newest first.
    Leaving(Vec<&'a PodView>),
    /// A pod as it is wanted, and the others, which it replaces.
    Current { pod: &'a PodView, others: Vec<&'a PodView>, off: Option<MoveOff>, failed: Option<&'a PodView> },
    /// Pods made from an older spec, the newest first.
    Outdated { pods: Vec<&'a PodView>, why: Vec<String>, failed: Option<&'a PodView> },
    /// A pod that ended though it should run.
    Failed { pod: &'a PodView, retry_at: Timestamp },
}

impl<'a> Found<'a> {
    /// The successor that ended while the pod before it goes on.
    fn failed_beside(&self) -> Option<&'a PodView> {
        match self {
            Self::Outdated { failed, .. } | Self::Current { failed, off: Some(_), .. } => *failed,
            Self::Missing | Self::Leaving(_) | Self::Failed { .. } | Self::Current { .. } => None,
        }
    }

    /// The pods that live.
    fn alive(&self) -> impl Iterator<Item = &'a PodView> + use<'_, 'a> {
        let (first, others): (Option<&PodView>, &[&PodView]) = match self {
            Self::Current { pod, others, .. } => (Some(pod), others),
            Self::Outdated { pods, .. } => (None, pods),
            Self::Missing | Self::Leaving(_) | Self::Failed { .. } => (None, &[]),
        };
        first.into_iter().chain(others.iter().copied())
    }
}

/// Whether the pods of a slot may be replaced or moved in this pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// There is nothing to change, or others come first.
    Not,
    /// Nothing is lost by it, or it is this slot's turn.
    Change,
    /// It is, if there are GPUs for its successor: so many pods that work may change in one pass, and those for which there are
    /// none keep no others waiting.
    InTurn(usize),
}

/// Why a pod should leave its GPU, if it can have another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveOff {
    pub event: &'static str,
    pub why: String,
    /// Whether it does no work where it is, so that nothing is lost by stopping it first.
    pub idle: bool,
}

/// What became of a slot.
#[derive(Debug)]
pub struct Report<'a> {
    pub role: Role,
    pub ordinal: u32,
    /// The pod that serves, or is to serve.
    pub pod: Option<&'a PodView>,
    /// One that serves now, if not that one then an older.
    pub serving: Option<&'a PodView>,
    /// GPUs chosen or kept for a pod that is not there yet.
    pub ahead: Option<Assignment>,
    pub revision: u32,
    pub state: State,
}

/// How far a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    Starting(String),
    Updating(String),
    WaitingForGpu(String),
    /// Waiting for models in a shared store.
    WaitingForStore(String),
    Failed(String),
    Impossible(&'static str, String),
}

/// Looks at a slot.
pub fn look<'a>(
    observed: &Observed,
    desired: &Desired<'_>,
    slot: &Slot,
    family: &Family<'a>,
    inventory: &Inventory<'_>,
    now: Timestamp,
) -> Found<'a> {
    let pods = family.of(slot);
    let alive = || pods.iter().copied().filter(|pod| !pod.leaving && !pod.ended());
    if alive().next().is_none() {
        // It may never end, or that it has may never be heard. Its successor takes nothing that it has.
        let forgotten = |pod: &PodView| slot.surge && (is_lost(pod, inventory) || pod.overdue(now));
        let leaving: Vec<&PodView> =
            pods.iter().copied().filter(|pod| pod.leaving && !pod.ended() && !forgotten(pod)).collect();
        if !leaving.is_empty() {
            return Found::Leaving(leaving);
        }
        return match pods.iter().find(|pod| !pod.leaving) {
            Some(pod) => Found::Failed { pod, retry_at: retry_at(pod) },
            None => Found::Missing,
        };
    }
    let differences = |pod: &PodView| differences(observed, desired, slot, pod, inventory);
    // One of an older spec says nothing about what is tried next.
    let newest = pods.iter().copied().find(|pod| !pod.leaving);
    let failed = newest.filter(|pod| pod.ended() && differences(pod).is_empty());
    let mut why = Vec::new();
    for pod in alive() {
        let differs = differences(pod);
        if differs.is_empty() {
            // Not always the newest: a spec that is taken back is that of the pod before.
            let others = alive().filter(|other| other.uid != pod.uid).collect();
            return Found::Current { pod, others, off: move_off(desired, slot, pod, inventory, now), failed };
        }
        if why.is_empty() {
            why = differs;
        }
    }
    Found::Outdated { pods: alive().collect(), why, failed }
}

/// Whether the node of a pod is gone or doesn't answer.
fn is_lost(pod: &PodView, inventory: &Inventory<'_>) -> bool {
    pod.scheduled
        && pod.node.as_ref().is_some_and(|node| inventory.nodes.get(node).is_none_or(|node| node.lost))
}

/// When a pod that ended may be replaced.
pub fn retry_at(pod: &PodView) -> Timestamp {
    let failures = i32::try_from(failures_in_a_row(pod).saturating_sub(1)).unwrap_or(i32::MAX).min(16);
    let wait = FIRST_RETRY.checked_mul(1 << failures).unwrap_or(LONGEST_RETRY).min(LONGEST_RETRY);
    pod.ended.checked_add(wait).unwrap_or(pod.ended)
}

/// Failures in a row, this pod's included.
pub fn failures_in_a_row(pod: &PodView) -> u32 {
    if pod.ended.duration_since(pod.created) > LONG_LIFE { 1 } else { pod.failures.saturating_add(1) }
}

/// What differs between a pod and what is wanted, in words.
fn differences(
    observed: &Observed,
    desired: &Desired<'_>,
    slot: &Slot,
    pod: &PodView,
    inventory: &Inventory<'_>,
) -> Vec<String> {
    let mut found = slot.template.differences(pod.template.as_deref());
    // A new selector that this node matches too moves nothing.
    let selected = || {
        let node = pod.node.as_ref().and_then(|node| observed.nodes.get(node));
        let mut selector = desired.settings.node_selector.iter().flatten();
        node.is_some_and(|node| selector.all(|(key, value)| node.labels.get(key) == Some(value)))
    };
    found.retain(|difference| !(difference.starts_with("nodeSelector") && selected()));
    let node = pod.node.as_ref().and_then(|node| inventory.nodes.get(node));
    if pod.node.is_some() && !accepts(node, &slot.wish.need, &held(pod, inventory)) {
        found.push(format!("spec.gpu asks for other GPUs than {}", in_words(&held(pod, inventory))));
    }
    for assigned in &pod.assigned {
        if let Some(gpu) = node.and_then(|node| node.gpu(assigned.index))
            && gpu.uuid != assigned.uuid
        {
            found.push(format!(
                "GPU {} is another card now ({} instead of {})",
                gpu.index, gpu.uuid, assigned.uuid
            ));
        }
    }
    found
}

/// The GPUs that a pod asks for: its own requests count, the inventory only adds the UUIDs.
pub fn held<'a>(pod: &'a PodView, inventory: &Inventory<'_>) -> Cow<'a, [AssignedGpu]> {
    let says = |gpu: &AssignedGpu| pod.units.get(&gpu.index) == Some(&gpu.units);
    if pod.assigned.len() == pod.units.len() && pod.assigned.iter().all(says) {
        return Cow::Borrowed(&pod.assigned);
    }
    let gpu = |(index, units): (&u32, &u32)| {
        let assigned = pod.assigned.iter().find(|gpu| gpu.index == *index).map(|gpu| gpu.uuid.clone());
        let known = || Some(inventory.nodes.get(pod.node.as_ref()?)?.gpu(*index)?.uuid.to_string());
        AssignedGpu { index: *index, uuid: assigned.or_else(known).unwrap_or_default(), units: *units }
    };
    pod.units.iter().map(gpu).collect()
}

fn in_words(gpus: &[AssignedGpu]) -> String {
    let parts: Vec<String> =
        gpus.iter().map(|gpu| format!("GPU {} ({} GiB)", gpu.index, gpu.units)).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn move_off(
    desired: &Desired<'_>,
    slot: &Slot,
    pod: &PodView,
    inventory: &Inventory<'_>,
    now: Timestamp,
) -> Option<MoveOff> {
    let name = pod.node.as_ref()?;
    let node = inventory.nodes.get(name);
    if !pod.scheduled {
        let why = hopeless(slot, pod, name, node)?;
        return Some(MoveOff { event: "Replanned", why, idle: true });
    }
    let node = node?;
    if !matches!(slot.wish.need, Need::Count(_)) {
        return None;
    }
    pod.units.keys().find_map(|index| {
        let gpu = node.gpu(*index)?;
        let closed = gpu.closed.as_ref()?;
        let why = format!("GPU {index} on node {} {}", node.name, closed.message);
        let settled = now.duration_since(pod.created) >= MOVE_COOL_DOWN;
        match closed.cause {
            Cause::Overheated if desired.on_overheat() == OnOverheat::Migrate && settled => {
                Some(MoveOff { event: "Migrating", why, idle: false })
            }
            Cause::Unhealthy if desired.on_unhealthy() == OnUnhealthy::Replace => {
                Some(MoveOff { event: "Replacing", why, idle: !pod.ready })
            }
            _ => None,
        }
    })
}

/// Why the scheduler will not bind a pod to the node that was chosen for it as things are.
fn hopeless(slot: &Slot, pod: &PodView, name: &str, node: Option<&NodeGpus<'_>>) -> Option<String> {
    let Some(node) = node else { return Some(format!("node {name} is gone")) };
    if let Err(Admission::Closed(why)) = node.admits(&slot.wish.node_selector, &slot.wish.tolerations) {
        return Some(format!("node {name} {why}"));
    }
    pod.units.keys().find_map(|index| {
        let gpu = node.gpu(*index)?;
        match &gpu.closed {
            Some(closed) => Some(format!("GPU {index} on node {name} {}", closed.message)),
            // The scheduler gave what was free to a pod that it knew first.
            None => (gpu.taken() > gpu.units).then(|| {
                format!("GPU {index} on node {name} was taken by a pod that does not belong to the operator")
            }),
        }
    })
}

/// Which of a resource's slots may be replaced or moved in this pass: every one whose pod does no work, because nothing is
/// lost, and of the others the first ones, as many as may be away beyond those that are.
pub fn may_change(
    desired: &Desired<'_>,
    found: &[(&Slot, Found<'_>)],
    ready: impl Fn(&PodView) -> bool,
) -> Vec<May> {
    // A port of a node that an instance still has: the one that is to have it comes after it.
    let port_is_held = |slot: &Slot| {
        slot.host_port.is_some()
            && found.iter().any(|(other, found)| {
                other.ordinal != slot.ordinal && found.alive().any(|pod| pod.host_port == slot.host_port)
            })
    };
    let serves: Vec<Option<bool>> = found
        .iter()
        .map(|(_, found)| match found {
            Found::Current { pod, .. } => Some(ready(pod)),
            Found::Outdated { pods, .. } => Some(pods.iter().any(|pod| ready(pod))),
            Found::Missing | Found::Leaving(_) | Found::Failed { .. } => None,
        })
        .collect();
    // Zero is for drains; what the user changed is to come.
    let most = usize::try_from(desired.settings.max_unavailable.unwrap_or(1).max(1)).unwrap_or(usize::MAX);
    let mut left: BTreeMap<Role, usize> = BTreeMap::new();
    for ((slot, found), serves) in found.iter().zip(&serves) {
        let away = match found {
            // Who waits for others of the resource keeps them from nothing.
            _ if *serves != Some(true) && port_is_held(slot) => false,
            Found::Current { others, .. } => !others.is_empty() || *serves != Some(true),
            Found::Outdated { .. } => *serves != Some(true),
            Found::Leaving(_) | Found::Failed { .. } => true,
            // One that has been waiting for a GPU all the time is no reason to leave the others as they are.
            Found::Missing => slot.wish.need == Need::Nothing || remembered(desired, slot).is_some(),
        };
        let left = left.entry(slot.role).or_insert(most);
        *left = left.saturating_sub(usize::from(away));
    }
    let mut may = Vec::with_capacity(found.len());
    for ((slot, found), serves) in found.iter().zip(&serves) {
        let wants = matches!(found, Found::Outdated { .. } | Found::Current { off: Some(_), .. });
        may.push(match (serves, left.get_mut(&slot.role)) {
            // Placement may find that others wait for it.
            _ if wants && port_is_held(slot) && slot.wish.need != Need::Nothing => May::InTurn(0),
            _ if wants && port_is_held(slot) => May::Not,
            (Some(false), _) => May::Change,
            (Some(true), Some(left)) if wants && slot.wish.need != Need::Nothing => May::InTurn(*left),
            (Some(true), Some(left)) if wants && *left > 0 => {
                *left -= 1;
                May::Change
            }
            _ => May::Not,
        });
    }
    may
}

/// What a slot asks of placement, if anything.
pub fn request(
    desired: &Desired<'_>,
    slot: &Slot,
    found: &Found<'_>,
    may: May,
    inventory: &Inventory<'_>,
    now: Timestamp,
) -> Option<Request> {
    if slot.wish.need == Need::Nothing || found.failed_beside().is_some_and(|pod| now < retry_at(pod)) {
        return None;
    }
    let may_change = may != May::Not;
    let placement = |pod: &PodView| {
        Some(Placement {
            node: pod.node.clone()?,
            gpus: held(pod, inventory).into_owned(),
            reason: pod.placement_reason.clone(),
        })
    };
    let (round, previous) = match found {
        Found::Missing => match remembered(desired, slot) {
            Some(previous) => (Round::Return, Some(previous)),
            None => (Round::Fresh, None),
        },
        Found::Failed { pod, .. } => (Round::Return, placement(pod)),
        Found::Outdated { pods, .. } if may_change => {
            (Round::Beside, pods.first().and_then(|pod| placement(pod)))
        }
        Found::Current { off: Some(_), .. } if may_change => (Round::Beside, None),
        // Its successor starts after it, which may be never: nothing is kept for it.
        Found::Leaving(pods) if pods.iter().any(|pod| is_lost(pod, inventory) || pod.overdue(now)) => {
            return None;
        }
        // What was chosen for its successor is kept for it.
        Found::Leaving(pods) => {
            let chosen = pods.first().is_some_and(|pod| has_successor(desired, slot, pod));
            (Round::Return, Some(remembered(desired, slot).filter(|_| chosen)?))
        }
        Found::Outdated { .. } | Found::Current { .. } => return None,
    };
    let stops = match (found, &previous) {
        (Found::Outdated { pods, .. } | Found::Leaving(pods), Some(previous)) => {
            let there = pods.iter().filter(|pod| pod.node.as_ref() == Some(&previous.node));
            there.flat_map(|pod| held(pod, inventory).into_owned()).collect()
        }
        _ => Vec::new(),
    };
    // A store may have to be filled there first.
    let hint = match found {
        Found::Outdated { pods, .. } => pods.first().copied(),
        Found::Current { pod, off: Some(_), .. } => Some(*pod),
        Found::Missing | Found::Leaving(_) | Found::Failed { .. } | Found::Current { .. } => None,
    };
    let hint = hint.filter(|pod| has_successor(desired, slot, pod)).and_then(|_| remembered(desired, slot));
    Some(Request {
        hint: hint.map(|chosen| chosen.node),
        slot: SlotId { resource: desired.id.key.clone(), ordinal: slot.ordinal },
        order: desired.id.order.clone(),
        round,
        wish: Arc::clone(&slot.wish),
        previous,
        stops,
        surge: slot.surge,
        turns: match may {
            May::InTurn(most) => Some(most),
            May::Not | May::Change => None,
        },
        patient: matches!(found, Found::Failed { pod, .. } if now < patient_until(pod)),
    })
}

fn patient_until(pod: &PodView) -> Timestamp {
    pod.ended.checked_add(PATIENCE).unwrap_or(pod.ended)
}

/// The newest assignment of a slot in the status, with the revision of its pod.
fn last_assignment<'d>(desired: &Desired<'d>, slot: &Slot) -> Option<(u32, &'d Assignment)> {
    let id = SlotId { resource: desired.id.key.clone(), ordinal: slot.ordinal };
    let of_slot = desired.assignments.iter().filter_map(|it| Some((id.revision(&it.pod)?, it)));
    of_slot.max_by_key(|(revision, _)| *revision)
}

/// Whether the status remembers GPUs for the successor of this pod.
fn has_successor(desired: &Desired<'_>, slot: &Slot, pod: &PodView) -> bool {
    last_assignment(desired, slot).is_some_and(|(revision, _)| revision > pod.revision)
}

/// The GPUs that the status remembers for a worker: its pod is gone, and it comes back to them.
fn remembered(desired: &Desired<'_>, slot: &Slot) -> Option<Placement> {
    let (_, assignment) = last_assignment(desired, slot)?;
    Some(Placement {
        node: assignment.node.clone(),
        gpus: assignment.gpus.clone(),
        reason: assignment.reason.clone(),
    })
}
