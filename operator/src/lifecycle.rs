//! The life of a pod in its slot: make it, keep it, replace it, move it. Pure, and the same for every kind.
//!
//! A pass looks at each slot ([`look`]), asks placement for what the slot needs ([`request`]), and settles it with what
//! placement answered ([`settle`]).

mod family;
mod write;

use crate::actions::{Plan, Severity};
use crate::desired::{Desired, Slot};
use crate::inventory::{Cause, Inventory};
use crate::observed::Observed;
use crate::placement::{Need, Outcome, Placement, Request, Round, SlotId, accepts, fits_when_gone};
use crate::pods::{Phase, PodView};
use crate::resource::Role;
use jiff::{SignedDuration, Timestamp};
use principium_api::gpu::{OnOverheat, OnUnhealthy};
use principium_api::status::{AssignedGpu, Assignment};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use family::Family;
pub use write::delete_action;
use write::{ahead, create, delete, latest_revision};

/// A pod that moved stays at least this long, so that pods don't chase the heat around.
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
    /// Only pods that are ending.
    Leaving(&'a PodView),
    /// A pod as it is wanted, and older ones that it replaces.
    Current { pod: &'a PodView, older: Vec<&'a PodView>, off: Option<MoveOff> },
    /// Pods made from an older spec, the newest first.
    Outdated { pods: Vec<&'a PodView>, why: Vec<String> },
    /// A pod that ended though it should run.
    Failed { pod: &'a PodView, retry_at: Timestamp },
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
    desired: &Desired<'_>,
    slot: &Slot,
    family: &Family<'a>,
    inventory: &Inventory<'_>,
    now: Timestamp,
) -> Found<'a> {
    let pods = family.of(slot);
    let alive: Vec<&PodView> = pods.iter().copied().filter(|pod| !pod.leaving && !pod.ended()).collect();
    let Some(newest) = alive.first().copied() else {
        return match pods.iter().find(|pod| pod.leaving && !pod.ended()) {
            // That it has ended may never be heard. Its successor takes nothing that it has.
            Some(pod) if slot.surge && is_lost(pod, inventory) => Found::Missing,
            Some(pod) => Found::Leaving(pod),
            None => match pods.iter().find(|pod| !pod.leaving) {
                Some(pod) => Found::Failed { pod, retry_at: retry_at(pod) },
                None => Found::Missing,
            },
        };
    };
    let why = differences(desired, slot, newest, inventory);
    if why.is_empty() {
        let older = alive.into_iter().skip(1).collect();
        Found::Current { pod: newest, older, off: move_off(desired, slot, newest, inventory, now) }
    } else {
        Found::Outdated { pods: alive, why }
    }
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
fn differences(desired: &Desired<'_>, slot: &Slot, pod: &PodView, inventory: &Inventory<'_>) -> Vec<String> {
    let mut found = slot.template.differences(pod.template.as_deref());
    let labels = pod.node.as_ref().and_then(|node| inventory.nodes.get(node)).map(|node| &node.labels);
    if let Some(labels) = labels {
        let selector = desired.settings.node_selector.iter().flatten();
        let selected = selector.clone().all(|(key, value)| labels.get(key) == Some(value));
        // A new selector that this node matches too moves nothing.
        found.retain(|difference| !(selected && difference.starts_with("nodeSelector")));
    }
    if let Some(node) = &pod.node
        && !accepts(inventory, &slot.wish.need, node, &held(pod, inventory))
    {
        found.push(format!("spec.gpu asks for other GPUs than {}", in_words(&held(pod, inventory))));
    }
    for assigned in &pod.assigned {
        let now = pod.node.as_ref().and_then(|node| inventory.nodes.get(node)?.gpus.get(&assigned.index));
        if let Some(gpu) = now
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
        let known = || Some(inventory.nodes.get(pod.node.as_ref()?)?.gpus.get(index)?.uuid.to_string());
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
    if !matches!(slot.wish.need, Need::Count(_)) {
        return None;
    }
    let node = inventory.nodes.get(pod.node.as_ref()?)?;
    pod.units.keys().find_map(|index| {
        let gpu = node.gpus.get(index)?;
        let closed = gpu.closed.as_ref()?;
        let why = format!("GPU {index} on node {} {}", node.name, closed.message);
        if !pod.scheduled {
            return Some(MoveOff { event: "Replanned", why, idle: true });
        }
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

/// Which of a resource's slots may be replaced or moved in this pass: every one whose pod does no work, because nothing is
/// lost, and of the others the first ones, as many as may be away beyond those that are.
pub fn may_change(
    desired: &Desired<'_>,
    found: &[(&Slot, Found<'_>)],
    ready: impl Fn(&PodView) -> bool,
) -> Vec<bool> {
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
            Found::Current { older, .. } => !older.is_empty() || *serves != Some(true),
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
            (Some(false), _) => true,
            (Some(true), Some(left)) if wants && *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        });
    }
    may
}

/// What a slot asks of placement, if anything.
pub fn request(
    desired: &Desired<'_>,
    slot: &Slot,
    found: &Found<'_>,
    may_change: bool,
    inventory: &Inventory<'_>,
    now: Timestamp,
) -> Option<Request> {
    if slot.wish.need == Need::Nothing {
        return None;
    }
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
        Found::Leaving(_) | Found::Outdated { .. } | Found::Current { .. } => return None,
    };
    Some(Request {
        slot: SlotId { resource: desired.id.key.clone(), ordinal: slot.ordinal },
        order: desired.id.order.clone(),
        round,
        wish: Arc::clone(&slot.wish),
        previous,
        patient: matches!(found, Found::Failed { pod, .. } if now < patient_until(pod)),
    })
}

fn patient_until(pod: &PodView) -> Timestamp {
    pod.ended.checked_add(PATIENCE).unwrap_or(pod.ended)
}

/// The GPUs that the status remembers for a worker: its pod is gone, and it comes back to them.
fn remembered(desired: &Desired<'_>, slot: &Slot) -> Option<Placement> {
    let prefix = format!("{}-{}-", desired.id.key.name, slot.ordinal);
    let assignment = desired.assignments.iter().find(|assignment| {
        assignment.pod.strip_prefix(&prefix).is_some_and(|rest| rest.parse::<u32>().is_ok())
    })?;
    Some(Placement {
        node: assignment.node.clone(),
        gpus: assignment.gpus.clone(),
        reason: assignment.reason.clone(),
    })
}

/// What settling a slot needs to know besides the slot.
pub struct Settling<'a, 'd> {
    pub observed: &'a Observed,
    pub inventory: &'a Inventory<'a>,
    pub desired: &'a Desired<'d>,
    pub family: &'a Family<'a>,
    pub now: Timestamp,
    /// Whether a pod serves.
    pub ready: &'a dyn Fn(&PodView) -> bool,
    /// Why no pod may start on this node yet, where a shared model store is not filled.
    pub gate: &'a dyn Fn(&str) -> Option<String>,
}

/// Decides what is done about a slot.
pub fn settle<'a>(
    with: &Settling<'a, '_>,
    slot: &Slot,
    found: &Found<'a>,
    may_change: bool,
    outcome: Option<&Outcome>,
    plan: &mut Plan,
) -> Report<'a> {
    let mut report = Report {
        role: slot.role,
        ordinal: slot.ordinal,
        pod: None,
        ahead: None,
        revision: latest_revision(with, slot),
        state: State::Starting(String::new()),
    };
    remove_ended(with, slot, found, plan);
    match found {
        Found::Missing => enter(with, slot, None, outcome, &mut report, plan),
        Found::Failed { pod, retry_at } => {
            enter(with, slot, Some((pod, *retry_at)), outcome, &mut report, plan);
        }
        Found::Leaving(pod) => {
            report.pod = Some(pod);
            report.state = State::Starting(format!("Pod {} is ending; its successor starts then", pod.name));
        }
        Found::Current { pod, older, off } => {
            report.pod = Some(pod);
            let ready = (with.ready)(pod);
            report.state = match closed_under(pod, with.inventory) {
                _ if ready => State::Ready,
                Some(why) => State::WaitingForGpu(why),
                None => State::Starting(unready(pod)),
            };
            if ready || !older.iter().any(|pod| (with.ready)(pod)) {
                for former in older {
                    delete(with, former, plan);
                }
            }
            if let (true, Some(off), Some(Outcome::Granted(placement))) = (may_change, off, outcome) {
                let text = format!("Pod {} leaves its GPU: {}", pod.name, off.why);
                plan.note(&with.desired.id, Severity::Warning, off.event, text);
                if slot.surge && !off.idle {
                    create(with, slot, Some(placement), 0, &mut report, plan);
                } else {
                    delete(with, pod, plan);
                }
            }
        }
        Found::Outdated { pods, why } => {
            report.pod = pods.first().copied();
            let why = why.join("; ");
            report.state = State::Updating(format!("ordinal {}: {why}", slot.ordinal));
            if may_change {
                match in_vain(with, slot, pods, outcome) {
                    Some(state) => report.state = state,
                    None => replace(with, slot, pods, &why, outcome, &mut report, plan),
                }
            }
        }
    }
    report
}

/// Pods that ended and are not needed to remember their GPUs.
fn remove_ended(with: &Settling<'_, '_>, slot: &Slot, found: &Found<'_>, plan: &mut Plan) {
    let kept = match found {
        Found::Failed { pod, .. } => Some(pod.uid.as_str()),
        _ => None,
    };
    for pod in with.family.of(slot) {
        if pod.ended() && !pod.leaving && kept != Some(pod.uid.as_str()) {
            delete(with, pod, plan);
        }
    }
}

/// Why pods that work should not be stopped though the spec has changed: their successor would have no GPU.
fn in_vain(
    with: &Settling<'_, '_>,
    slot: &Slot,
    pods: &[&PodView],
    outcome: Option<&Outcome>,
) -> Option<State> {
    if !pods.iter().any(|pod| (with.ready)(pod)) {
        return None;
    }
    match outcome? {
        Outcome::Granted(_) => None,
        Outcome::Impossible { reason, message } => Some(State::Impossible(reason, message.clone())),
        Outcome::Waiting { message, .. } => {
            let node = pods.first()?.node.as_deref()?;
            let here = pods.iter().filter(|pod| pod.node.as_deref() == Some(node));
            let gpus: Vec<AssignedGpu> =
                here.flat_map(|pod| held(pod, with.inventory).into_owned()).collect();
            let key = &with.desired.id.key;
            let fits = fits_when_gone(with.inventory, &slot.wish, key, node, &gpus);
            (!fits).then(|| State::WaitingForGpu(message.clone()))
        }
    }
}

fn replace(
    with: &Settling<'_, '_>,
    slot: &Slot,
    pods: &[&PodView],
    why: &str,
    outcome: Option<&Outcome>,
    report: &mut Report<'_>,
    plan: &mut Plan,
) {
    let placement = match outcome {
        Some(Outcome::Granted(placement)) => Some(placement),
        _ => None,
    };
    let name = pods.first().map(|pod| pod.name.as_str()).unwrap_or_default();
    let id = &with.desired.id;
    let beside = slot.surge && (slot.wish.need == Need::Nothing || placement.is_some());
    if beside && placement.is_none_or(|placement| (with.gate)(&placement.node).is_none()) {
        plan.note(id, Severity::Normal, "Replacing", format!("Pod {name} gets a successor beside it: {why}"));
        create(with, slot, placement, 0, report, plan);
    } else if !beside {
        plan.note(
            id,
            Severity::Normal,
            "Restarting",
            format!("Pod {name} is stopped for its successor: {why}"),
        );
        for pod in pods {
            delete(with, pod, plan);
        }
    }
}

/// A slot without a living pod.
fn enter<'a>(
    with: &Settling<'a, '_>,
    slot: &Slot,
    failed: Option<(&'a PodView, Timestamp)>,
    outcome: Option<&Outcome>,
    report: &mut Report<'a>,
    plan: &mut Plan,
) {
    let placement = match outcome {
        Some(Outcome::Granted(placement)) => Some(placement),
        Some(Outcome::Waiting { message, kept }) => {
            report.state = State::WaitingForGpu(message.clone());
            if let Some((pod, _)) = failed
                && with.now < patient_until(pod)
            {
                plan.requeue(patient_until(pod).duration_since(with.now));
            }
            // Only a pod that had these GPUs before comes back to them; a new one has no claim to remember.
            let had = failed.is_some() || remembered(with.desired, slot).is_some();
            report.ahead = kept.as_ref().filter(|_| had).map(|kept| ahead(with, slot, report.revision, kept));
            report.pod = failed.map(|(pod, _)| pod);
            return;
        }
        Some(Outcome::Impossible { reason, message }) => {
            report.state = State::Impossible(reason, message.clone());
            return;
        }
        None if slot.wish.need == Need::Nothing => None,
        None => return,
    };
    report.ahead = placement.map(|placement| ahead(with, slot, report.revision, placement));
    if let Some((pod, retry_at)) = failed {
        let trouble = pod.trouble.clone().unwrap_or_else(|| "it ended".to_owned());
        report.pod = Some(pod);
        report.state = State::Failed(format!("Pod {} failed and is replaced: {trouble}", pod.name));
        if with.now < retry_at {
            plan.requeue(retry_at.duration_since(with.now));
            return;
        }
    }
    if let Some(why) = placement.and_then(|placement| (with.gate)(&placement.node)) {
        report.state = State::WaitingForStore(why);
        return;
    }
    let failures = failed.map_or(0, |(pod, _)| failures_in_a_row(pod));
    if let Some((pod, _)) = failed {
        let trouble = pod.trouble.as_deref().unwrap_or("it ended");
        let text = format!("Pod {} is replaced: {trouble}", pod.name);
        plan.note(&with.desired.id, Severity::Warning, "ReplacingFailed", text);
        delete(with, pod, plan);
    } else {
        report.state = State::Starting(format!("ordinal {}: its pod is being made", slot.ordinal));
    }
    create(with, slot, placement, failures, report, plan);
}

/// Why the GPU of a pod that the scheduler has not bound takes no pod any more.
fn closed_under(pod: &PodView, inventory: &Inventory<'_>) -> Option<String> {
    let node = inventory.nodes.get(pod.node.as_ref()?).filter(|_| !pod.scheduled)?;
    let closed = |index| Some((index, node.gpus.get(index)?.closed.as_ref()?));
    let (index, closed) = pod.units.keys().find_map(closed)?;
    Some(format!(
        "GPU {index} on node {} {}; Pod {} starts when it is offered again",
        node.name, closed.message, pod.name
    ))
}

fn unready(pod: &PodView) -> String {
    if let Some(trouble) = &pod.trouble {
        return format!("Pod {}: {trouble}", pod.name);
    }
    match pod.phase {
        Phase::Pending if !pod.scheduled => format!("Pod {} is being scheduled", pod.name),
        Phase::Pending => format!("Pod {} is starting", pod.name),
        _ => format!("Pod {} runs and is not ready yet", pod.name),
    }
}
