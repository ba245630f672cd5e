//! What is done about a slot, with what placement answered.

use super::write::{ahead, create, delete, latest_revision};
use super::{
    Family, Found, May, Report, State, failures_in_a_row, has_successor, held, patient_until, remembered,
    retry_at,
};
use crate::actions::{Plan, Severity};
use crate::desired::{AnyResource, Desired, Slot};
use crate::inventory::Inventory;
use crate::observed::Observed;
use crate::placement::{Need, Outcome, Placement};
use crate::pods::{Phase, PodView};
use jiff::Timestamp;

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
    with: &Settling<'_, '_>,
    slot: &Slot,
    found: &Found<'a>,
    may: May,
    outcome: Option<&Outcome>,
    plan: &mut Plan,
) -> Report<'a> {
    let may_change = match may {
        May::Not => false,
        May::Change => true,
        // Others had the turn where placement said nothing.
        May::InTurn(_) => outcome.is_some(),
    };
    let mut report = Report {
        role: slot.role,
        ordinal: slot.ordinal,
        pod: None,
        serving: found.alive().find(|pod| (with.ready)(pod)),
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
        Found::Leaving(pods) => {
            report.pod = pods.first().copied();
            let late = pods.iter().find_map(|pod| pod.late(with.now));
            let ends = late.unwrap_or_else(|| format!("Pod {} is ending", names(pods)));
            report.state = State::Starting(format!("{ends}; its successor starts then"));
            let chosen = match outcome {
                Some(
                    Outcome::Granted(placement)
                    | Outcome::Returning { placement, .. }
                    | Outcome::Waiting { kept: Some(placement), .. },
                ) => Some(placement.clone()),
                // Where it may never end nothing is kept. What was chosen is remembered.
                None if slot.wish.need != Need::Nothing
                    && pods.first().is_some_and(|pod| has_successor(with.desired, slot, pod)) =>
                {
                    remembered(with.desired, slot)
                }
                _ => None,
            };
            report.ahead = chosen.map(|chosen| ahead(with, slot, report.revision, &chosen));
        }
        Found::Current { pod, others, off, failed } => {
            report.pod = Some(pod);
            let ready = (with.ready)(pod);
            report.state = match closed_under(pod, with.inventory) {
                _ if ready => State::Ready,
                Some(why) => State::WaitingForGpu(why),
                None => State::Starting(unready(pod)),
            };
            // One that works goes on until its successor does: one on a hot GPU may be ready, and take no requests yet.
            let takes_over = |other: &PodView| ready && (pod.ready || pod.rests || !other.ready);
            for other in others.iter().filter(|other| takes_over(other) || !goes_on(with, other)) {
                delete(with, other, plan);
            }
            if let (true, Some(off), Some(Outcome::Granted(placement))) = (may_change, off, outcome)
                && !plan.is_full()
            {
                if (with.gate)(&placement.node).is_some() {
                    report.ahead = Some(ahead(with, slot, report.revision, placement));
                    wait_for_failed(with, found, plan);
                    return report;
                }
                let text = format!("Pod {} leaves its GPU: {}", pod.name, off.why);
                plan.note(&with.desired.id, Severity::Warning, off.event, text);
                if slot.surge && !off.idle {
                    succeed(with, slot, *failed, Some(placement), &mut report, plan);
                } else {
                    report.ahead = Some(ahead(with, slot, report.revision, placement));
                    delete(with, pod, plan);
                }
            }
            wait_for_failed(with, found, plan);
        }
        Found::Outdated { pods, why, failed } => {
            report.pod = pods.first().copied();
            let why = why.join("; ");
            report.state = State::Updating(format!("ordinal {}: {why}", slot.ordinal));
            let (works, idle): (Vec<&PodView>, Vec<&PodView>) =
                pods.iter().copied().partition(|pod| goes_on(with, pod));
            // Those that came to nothing make room for the next one.
            let makes_room = !works.is_empty() && !idle.is_empty();
            if makes_room {
                stop(with, &idle, &why, plan);
            }
            let chosen = match outcome {
                Some(Outcome::Granted(placement)) => Some(placement),
                _ => None,
            };
            if let Some(why) = wait_for_failed(with, found, plan) {
                report.state = State::Updating(format!("ordinal {}: {why}", slot.ordinal));
            } else if may_change && !plan.is_full() {
                if slot.surge && (slot.wish.need == Need::Nothing || chosen.is_some()) {
                    start_beside(with, slot, (pods, *failed), &why, chosen, &mut report, plan);
                } else if !makes_room {
                    restart(with, slot, (pods, !works.is_empty()), &why, outcome, &mut report, plan);
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
        // It tells how often this went wrong.
        _ => found.failed_beside().map(|pod| pod.uid.as_str()),
    };
    for pod in with.family.of(slot) {
        if pod.ended() && !pod.leaving && kept != Some(pod.uid.as_str()) {
            delete(with, pod, plan);
        }
    }
}

/// Asks for a pass when a successor that failed may be tried again, and says what is waited for.
fn wait_for_failed(with: &Settling<'_, '_>, found: &Found<'_>, plan: &mut Plan) -> Option<String> {
    let failed = found.failed_beside()?;
    let retry_at = retry_at(failed);
    (with.now < retry_at).then(|| {
        plan.requeue(retry_at.duration_since(with.now));
        format!("Pod {} failed and is tried again: {}", failed.name, trouble(failed))
    })
}

fn trouble(failed: &PodView) -> &str {
    failed.trouble.as_deref().unwrap_or("it ended")
}

/// Makes a successor beside a pod that goes on; `failed` is the one before it.
fn succeed(
    with: &Settling<'_, '_>,
    slot: &Slot,
    failed: Option<&PodView>,
    placement: Option<&Placement>,
    report: &mut Report<'_>,
    plan: &mut Plan,
) {
    if let Some(pod) = failed {
        replace_failed(with, pod, plan);
    }
    create(with, slot, placement, failed.map_or(0, failures_in_a_row), report, plan);
}

fn replace_failed(with: &Settling<'_, '_>, pod: &PodView, plan: &mut Plan) {
    let text = format!("Pod {} is replaced: {}", pod.name, trouble(pod));
    plan.note(&with.desired.id, Severity::Warning, "ReplacingFailed", text);
    delete(with, pod, plan);
}

/// Whether a pod works. One whose node doesn't answer may go on there: Kubernetes says then that it is not ready, but not so of its
/// containers.
fn goes_on(with: &Settling<'_, '_>, pod: &PodView) -> bool {
    let pool = matches!(with.desired.resource, AnyResource::OllamaPool(_));
    let open = pod.rests || !pod.gated && (!pool || pod.gate == Some(true));
    (with.ready)(pod) || pod.containers_ready && open
}

/// Makes a successor beside a pod that is outdated.
fn start_beside(
    with: &Settling<'_, '_>,
    slot: &Slot,
    (pods, failed): (&[&PodView], Option<&PodView>),
    why: &str,
    placement: Option<&Placement>,
    report: &mut Report<'_>,
    plan: &mut Plan,
) {
    if let Some((why, placement)) = placement.and_then(|it| Some(((with.gate)(&it.node)?, it))) {
        report.state = State::WaitingForStore(why);
        report.ahead = Some(ahead(with, slot, report.revision, placement));
        return;
    }
    let name = pods.first().map(|pod| pod.name.as_str()).unwrap_or_default();
    let text = format!("Pod {name} gets a successor beside it: {why}");
    plan.note(&with.desired.id, Severity::Normal, "Replacing", text);
    succeed(with, slot, failed, placement, report, plan);
}

/// Stops outdated pods for a successor that comes after them. One that serves is not stopped where that could not start.
fn restart(
    with: &Settling<'_, '_>,
    slot: &Slot,
    (pods, works): (&[&PodView], bool),
    why: &str,
    outcome: Option<&Outcome>,
    report: &mut Report<'_>,
    plan: &mut Plan,
) {
    let serves = pods.iter().any(|pod| (with.ready)(pod));
    if works && !serves {
        let text = format!("Pod {} may go on; it is replaced when its node answers", names(pods));
        report.state = State::Updating(format!("ordinal {}: {text}", slot.ordinal));
        return;
    }
    let chosen = match outcome {
        Some(Outcome::Granted(placement) | Outcome::InPlace(placement)) => Some(placement),
        _ => None,
    };
    if serves {
        let chosen = chosen.filter(|chosen| !follows(with, pods, chosen));
        let store = || chosen.and_then(|chosen| (with.gate)(&chosen.node)).map(State::WaitingForStore);
        if let Some(state) = outcome.and_then(in_vain).or_else(store) {
            report.state = state;
            report.ahead = chosen.map(|chosen| ahead(with, slot, report.revision, chosen));
            return;
        }
    }
    stop(with, pods, why, plan);
    // What a pod has is kept for its slot anyway.
    let has = |chosen: &Placement| {
        let same = |pod: &&PodView| {
            pod.node.as_ref() == Some(&chosen.node) && *held(pod, with.inventory) == *chosen.gpus
        };
        pods.first().is_some_and(same)
    };
    let other = chosen.filter(|chosen| !has(chosen));
    report.ahead = other.map(|chosen| ahead(with, slot, report.revision, chosen));
}

/// Whether the claim of a pool comes to another node with its pods only: it may be open on one node at a time.
fn follows(with: &Settling<'_, '_>, pods: &[&PodView], chosen: &Placement) -> bool {
    let AnyResource::OllamaPool(pool) = with.desired.resource else { return false };
    pool.spec.store.as_ref().is_some_and(|store| store.persistent_volume_claim.is_some())
        && pods.iter().all(|pod| pod.node.as_ref() != Some(&chosen.node))
}

/// Why a pod that serves is not stopped though the spec has changed: its successor would have no GPU.
fn in_vain(outcome: &Outcome) -> Option<State> {
    match outcome {
        Outcome::Granted(_) | Outcome::Returning { .. } | Outcome::InPlace(_) => None,
        Outcome::Soon { message } => Some(State::Updating(message.clone())),
        Outcome::Impossible { reason, message } => Some(State::Impossible(reason, message.clone())),
        Outcome::Waiting { message, .. } => Some(State::WaitingForGpu(message.clone())),
    }
}

/// Stops pods for the one that comes after them.
fn stop(with: &Settling<'_, '_>, pods: &[&PodView], why: &str, plan: &mut Plan) {
    let text = format!("Pod {} is stopped for its successor: {why}", names(pods));
    plan.note(&with.desired.id, Severity::Normal, "Restarting", text);
    for pod in pods {
        delete(with, pod, plan);
    }
}

fn names(pods: &[&PodView]) -> String {
    pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// A slot without a living pod.
fn enter<'a>(
    with: &Settling<'_, '_>,
    slot: &Slot,
    failed: Option<(&'a PodView, Timestamp)>,
    outcome: Option<&Outcome>,
    report: &mut Report<'a>,
    plan: &mut Plan,
) {
    // Only a pod that had these GPUs before comes back to them; a new one has no claim to remember.
    let had = || failed.is_some() || remembered(with.desired, slot).is_some();
    let placement = match outcome {
        Some(Outcome::Granted(placement)) => Some(placement),
        Some(Outcome::Returning { message, placement }) => {
            report.state = State::Starting(message.clone());
            Some(placement)
        }
        Some(Outcome::Soon { .. } | Outcome::InPlace(_)) => return,
        Some(Outcome::Waiting { message, kept }) => {
            report.state = State::WaitingForGpu(message.clone());
            if let Some((pod, _)) = failed
                && with.now < patient_until(pod)
            {
                plan.requeue(patient_until(pod).duration_since(with.now));
            }
            report.ahead =
                kept.as_ref().filter(|_| had()).map(|kept| ahead(with, slot, report.revision, kept));
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
        report.pod = Some(pod);
        report.state = State::Failed(format!("Pod {} failed and is replaced: {}", pod.name, trouble(pod)));
        if with.now < retry_at {
            plan.requeue(retry_at.duration_since(with.now));
            return;
        }
    }
    if matches!(outcome, Some(Outcome::Returning { .. })) {
        return;
    }
    if let Some(why) = placement.and_then(|placement| (with.gate)(&placement.node)) {
        report.state = State::WaitingForStore(why);
        return;
    }
    if plan.is_full() {
        report.ahead = report.ahead.take().filter(|_| had());
        report.state = State::Starting(format!("ordinal {}: its pod is next to be made", slot.ordinal));
        return;
    }
    let failures = failed.map_or(0, |(pod, _)| failures_in_a_row(pod));
    if let Some((pod, _)) = failed {
        replace_failed(with, pod, plan);
    } else {
        report.state = State::Starting(format!("ordinal {}: its pod is being made", slot.ordinal));
    }
    create(with, slot, placement, failures, report, plan);
}

/// Why the GPU of a pod that the scheduler has not bound takes no pod any more.
fn closed_under(pod: &PodView, inventory: &Inventory<'_>) -> Option<String> {
    let node = pod.node.as_ref().filter(|_| !pod.scheduled)?;
    let node = inventory.nodes.get(node)?;
    let closed = |index| Some((index, node.gpu(index)?.closed.as_ref()?));
    let (index, closed) = pod.units.keys().copied().find_map(closed)?;
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
