//! What all kinds say in their status in the same way: progress from the reports of the slots, assignments, the line
//! about GPUs, revisions, acceleration.

use crate::actions::{Plan, Severity};
use crate::conditions::{self, Progress, Verdict, reason};
use crate::desired::Desired;
use crate::inventory::Inventory;
use crate::lifecycle::{Report, State, held};
use crate::observed::{Observed, WorkerInfo};
use crate::pods::PodView;
use crate::resource::{ResourceKey, Role};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use principium_api::model::RunningModel;
use principium_api::status::{Assignment, condition};
use std::fmt::Write;

/// What a status is made from.
#[derive(Clone, Copy)]
pub struct Reporting<'a, 'd> {
    pub observed: &'a Observed,
    pub inventory: &'a Inventory<'a>,
    pub desired: &'a Desired<'d>,
    /// All pods that carry the labels of the resource.
    pub pods: &'a [&'a PodView],
    pub reports: &'a [Report<'a>],
    pub now: Timestamp,
}

/// How far a resource is, by its slots: the worst of them speaks for it. `None`: all its pods serve.
pub fn progress(desired: &Desired<'_>, reports: &[Report<'_>], failure: Option<&String>) -> Option<Progress> {
    if desired.id.leaving {
        let message = "it is being deleted; its pods are ending".to_owned();
        return Some(Progress::Reconciling { reason: reason::DELETING, message });
    }
    if let Some((reason, message)) = &desired.problem {
        let message = message.clone();
        // What waits for another resource needs no change of this one.
        let waits = *reason == reason::POOL_MISSING;
        return Some(if waits {
            Progress::Reconciling { reason, message }
        } else {
            Progress::Stalled { reason, message }
        });
    }
    let states = || reports.iter().map(|report| &report.state);
    if let Some((reason, message)) = states().find_map(|state| match state {
        State::Impossible(reason, message) => Some((*reason, message)),
        _ => None,
    }) {
        return Some(Progress::Stalled { reason, message: message.clone() });
    }
    if let Some(message) = failure {
        return Some(Progress::Reconciling { reason: reason::APPLY_FAILED, message: message.clone() });
    }
    let of = |state: &State| match state {
        State::WaitingForGpu(message) => Some((0, reason::WAITING_FOR_GPU, message.clone())),
        State::Failed(message) => Some((1, reason::POD_FAILED, message.clone())),
        State::WaitingForStore(message) => Some((2, reason::PULLING_MODELS, message.clone())),
        State::Updating(message) => Some((3, reason::UPDATING, message.clone())),
        State::Starting(message) => Some((4, reason::STARTING, message.clone())),
        State::Ready | State::Impossible(..) => None,
    };
    let (_, reason, message) = states().filter_map(of).min_by_key(|(rank, ..)| *rank)?;
    let waiting = states().filter(|state| of(state).is_some_and(|(_, other, _)| other == reason)).count();
    let message = if waiting > 1 { format!("{message} (and {} more pods)", waiting - 1) } else { message };
    Some(Progress::Reconciling { reason, message })
}

/// Which pod holds which GPUs: the pods that there are, and those that are about to be made.
pub fn assignments(
    desired: &Desired<'_>,
    pods: &[&PodView],
    reports: &[Report<'_>],
    inventory: &Inventory<'_>,
) -> Vec<Assignment> {
    let mut found: Vec<Assignment> = pods
        .iter()
        .filter(|pod| {
            pod.owner.as_deref() == Some(&desired.id.uid)
                && pod.role == Role::Worker
                && !pod.ended()
                && !pod.units.is_empty()
        })
        .filter_map(|pod| {
            Some(Assignment {
                pod: pod.name.clone(),
                node: pod.node.clone()?,
                gpus: held(pod, inventory).into_owned(),
                reason: pod.placement_reason.clone(),
            })
        })
        .collect();
    for ahead in reports.iter().filter_map(|report| report.ahead.as_ref()) {
        if !found.iter().any(|assignment| assignment.pod == ahead.pod) {
            found.push(ahead.clone());
        }
    }
    // By number, so that the tenth instance does not stand between the first and the second.
    found.sort_by(|a, b| (a.pod.len(), &a.pod).cmp(&(b.pod.len(), &b.pod)));
    found
}

/// The GPUs in one line: `6:8,7:5`, index and GiB; the node stands before it where there are several.
pub fn gpus_line(assignments: &[Assignment]) -> String {
    let several = assignments
        .iter()
        .any(|assignment| Some(&assignment.node) != assignments.first().map(|first| &first.node));
    let mut gpus: Vec<(&str, u32, u32)> = assignments
        .iter()
        .flat_map(|assignment| {
            assignment.gpus.iter().map(|gpu| (assignment.node.as_str(), gpu.index, gpu.units))
        })
        .collect();
    gpus.sort_unstable();
    let mut line = String::new();
    for (node, index, units) in gpus {
        let comma = if line.is_empty() { "" } else { "," };
        let (node, slash) = if several { (node, "/") } else { ("", "") };
        // A String takes whatever is written to it.
        let _ = write!(line, "{comma}{node}{slash}{index}:{units}");
    }
    line
}

/// The revisions to remember: they only ever rise, and outlive the pods.
pub fn revisions(before: &[u32], reports: &[Report<'_>]) -> Vec<u32> {
    let mut revisions = before.to_vec();
    for report in reports.iter().filter(|report| report.role == Role::Worker) {
        let Ok(at) = usize::try_from(report.ordinal) else { continue };
        if revisions.len() <= at {
            revisions.resize(at + 1, 0);
        }
        if let Some(revision) = revisions.get_mut(at) {
            *revision = (*revision).max(report.revision);
        }
    }
    revisions
}

/// Ready slots of wanted slots, for example `5/6`.
pub fn ready_line(reports: &[Report<'_>]) -> String {
    let workers = || reports.iter().filter(|report| report.role == Role::Worker);
    // An older pod serves until its successor does.
    let serving = workers().filter(|report| report.serving.is_some()).count();
    format!("{serving}/{}", workers().count())
}

/// Whether the workers compute on the GPUs that they were given.
pub struct Acceleration {
    pub verdict: Verdict,
    /// Whether the resource may be Ready.
    pub allows_ready: bool,
}

impl Acceleration {
    /// Whether this is why the workers don't get ready: one that must not compute on the CPU, and does, takes no requests.
    pub fn explains(&self, progress: &Progress) -> bool {
        let starting = matches!(progress, Progress::Reconciling { reason: reason::STARTING, .. });
        starting && !self.allows_ready && self.verdict.status == Some(false)
    }
}

/// The condition `Accelerated` from what workers say: `Some(true)` it computes on its GPUs, `Some(false)` on the CPU,
/// `None` it has not said.
pub fn acceleration(
    asked: bool,
    says: &[Option<bool>],
    simulated: impl FnOnce() -> bool,
    required: bool,
) -> Acceleration {
    let verdict = |status, reason, message: &str| Verdict {
        type_: condition::ACCELERATED,
        status,
        reason,
        message: message.to_owned(),
    };
    if !asked {
        let message = "no GPU was asked for; it computes on the CPU";
        return Acceleration {
            verdict: verdict(Some(false), reason::NO_GPU_REQUESTED, message),
            allows_ready: true,
        };
    }
    if says.contains(&Some(false)) {
        let verdict = if simulated() {
            verdict(Some(false), reason::SIMULATED_HARDWARE, "the GPUs are simulated; it computes on the CPU")
        } else {
            verdict(
                Some(false),
                reason::COMPUTES_ON_CPU,
                "it was given GPUs and computes on the CPU; does the image have CUDA, and does the driver fit?",
            )
        };
        return Acceleration { verdict, allows_ready: !required };
    }
    if says.is_empty() || says.contains(&None) {
        return Acceleration {
            verdict: verdict(None, reason::NOT_ANSWERED, "the pods have not said yet where they compute"),
            allows_ready: !required,
        };
    }
    Acceleration {
        verdict: verdict(Some(true), reason::ON_GPU, "it computes on its GPUs"),
        allows_ready: true,
    }
}

/// Whether a worker computes on its GPUs: what it said, or what the status says of this pod. An operator that has just
/// started has asked nobody, and nothing is different for that.
pub fn says(desired: &Desired<'_>, pod: &PodView, info: Option<&WorkerInfo>) -> Option<bool> {
    if let Some(info) = info {
        return Some(info.accelerated);
    }
    if !remembers(desired, pod) {
        return None;
    }
    let before = conditions::before(desired.conditions, condition::ACCELERATED)?;
    match before.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Whether the status is about this pod, and it serves since.
pub fn remembers(desired: &Desired<'_>, pod: &PodView) -> bool {
    pod.ready && desired.assignments.iter().any(|assignment| assignment.pod == pod.name)
}

/// What is said when acceleration is required and missing.
pub fn not_accelerated(acceleration: &Acceleration) -> Progress {
    let message = format!(
        "{}; set spec.requireAcceleration to false to accept that",
        acceleration.verdict.message.trim_end_matches('?')
    );
    match acceleration.verdict.status {
        // It has not said yet: it will.
        None => {
            Progress::Reconciling { reason: reason::STARTING, message: acceleration.verdict.message.clone() }
        }
        Some(_) => Progress::Stalled { reason: reason::NOT_ACCELERATED, message },
    }
}

/// The label selector of the workers as text, for the scale subresource.
pub fn selector(key: &ResourceKey) -> String {
    let parts: Vec<String> =
        key.selector(Role::Worker).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    parts.join(",")
}

/// Whether GPUs of these nodes are simulated.
pub fn simulated(inventory: &Inventory<'_>, assignments: &[Assignment]) -> bool {
    assignments
        .iter()
        .any(|assignment| inventory.nodes.get(&assignment.node).is_some_and(|node| node.simulated))
}

/// The running model, as the worker says.
pub fn running_model(info: &WorkerInfo) -> RunningModel {
    let device = match (&info.device, &info.kernel) {
        (Some(device), Some(kernel)) if !info.accelerated => Some(format!("{device} ({kernel})")),
        (device, _) => device.clone(),
    };
    RunningModel {
        name: info.model_id.clone(),
        digest: info.weights_digest.clone(),
        dimension: info.dimension,
        dtype: info.model_dtype.clone(),
        device,
    }
}

/// GPUs of running pods that are withheld now: the pods stay, and the status says so.
pub fn withheld(pods: &[&PodView], inventory: &Inventory<'_>) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.leaving && !pod.ended()) {
        let Some(node) = pod.node.as_ref().and_then(|node| inventory.nodes.get(node)) else { continue };
        for index in pod.units.keys() {
            if let Some(closed) = node.gpu(*index).and_then(|gpu| gpu.closed.as_ref()) {
                parts.push(format!("GPU {index} of Pod {} {}", pod.name, closed.message));
            }
        }
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The conditions to write; a change of what `Ready` says becomes an Event.
pub fn conditions(
    desired: &Desired<'_>,
    progress: &Progress,
    more: &[Verdict],
    now: Timestamp,
    plan: &mut Plan,
) -> Vec<Condition> {
    let mut verdicts = progress.verdicts();
    verdicts.extend_from_slice(more);
    let written = conditions::updated(desired.conditions, &verdicts, desired.id.generation, now);
    let before = conditions::before(desired.conditions, condition::READY);
    let after = conditions::before(&written, condition::READY);
    let (reason, message) = progress.why();
    let same = |before: &Condition, after: &Condition| {
        before.status == after.status && before.reason == after.reason && before.message == after.message
    };
    if before.zip(after).is_none_or(|(before, after)| !same(before, after)) {
        let severity = match progress {
            Progress::Ready { .. } => Some(Severity::Normal),
            Progress::Stalled { .. } => Some(Severity::Warning),
            Progress::Reconciling { reason, .. } => match *reason {
                reason::WAITING_FOR_GPU
                | reason::POD_FAILED
                | reason::APPLY_FAILED
                | reason::MODEL_FAILED => Some(Severity::Warning),
                // Steps of a normal start are told by what is done, not by what is waited for.
                _ => None,
            },
        };
        if let Some(severity) = severity {
            plan.note(&desired.id, severity, reason, message.to_owned());
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use principium_api::status::AssignedGpu;

    #[test]
    fn required_acceleration_gates_ready_and_simulation_is_named() {
        for (asked, says, simulated, required, status, reason, ready) in [
            (true, vec![Some(true)], false, true, Some(true), reason::ON_GPU, true),
            (true, vec![Some(false)], false, true, Some(false), reason::COMPUTES_ON_CPU, false),
            (true, vec![Some(false)], false, false, Some(false), reason::COMPUTES_ON_CPU, true),
            (true, vec![Some(false)], true, false, Some(false), reason::SIMULATED_HARDWARE, true),
            (true, vec![Some(false)], true, true, Some(false), reason::SIMULATED_HARDWARE, false),
            (true, vec![Some(true), None], false, true, None, reason::NOT_ANSWERED, false),
            (true, vec![Some(true), Some(false)], false, true, Some(false), reason::COMPUTES_ON_CPU, false),
            (false, vec![Some(false)], false, true, Some(false), reason::NO_GPU_REQUESTED, true),
        ] {
            let found = acceleration(asked, &says, || simulated, required);
            assert_eq!(
                (found.verdict.status, found.verdict.reason, found.allows_ready),
                (status, reason, ready),
                "{asked} {says:?} {simulated} {required}"
            );
        }
    }

    #[test]
    fn the_line_about_gpus_is_sorted_by_index_and_names_nodes_only_where_there_are_several() {
        let assignment = |node: &str, gpus: &[(u32, u32)]| Assignment {
            node: node.to_owned(),
            gpus: gpus
                .iter()
                .map(|(index, units)| AssignedGpu { index: *index, uuid: String::new(), units: *units })
                .collect(),
            ..Assignment::default()
        };
        assert_eq!(gpus_line(&[assignment("a", &[(10, 8), (7, 5)])]), "7:5,10:8");
        assert_eq!(gpus_line(&[assignment("b", &[(0, 8)]), assignment("a", &[(1, 8)])]), "a/1:8,b/0:8");
        assert_eq!(gpus_line(&[]), "");
    }
}
