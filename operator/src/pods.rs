//! A pod as the plan needs it: who owns it, what it holds, how far it is. Made from the API's pod, knows no client.

mod asked;
mod due;

use crate::resource::{Kind, ResourceKey, Role};
use asked::requested;
pub use asked::units;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, NodeSelectorTerm, Pod};
use principium_api::names::{
    GENERIC_GPU_RESOURCE, LABEL_KIND, LABEL_MANAGED_BY, LABEL_NAME, LABEL_ORDINAL, LABEL_ROLE, MANAGED_BY,
    gpu_index,
};
use principium_api::status::AssignedGpu;
use std::collections::BTreeMap;

/// Annotation of a pod: the GPUs that it was given, as JSON.
pub const GPUS_ANNOTATION: &str = "principium.ai/gpus";
/// Annotation of a pod: why these GPUs were chosen.
pub const REASON_ANNOTATION: &str = "principium.ai/placement-reason";
/// Annotation of a pod: how many pods before it failed one after another.
pub const FAILURES_ANNOTATION: &str = "principium.ai/failures";
/// Annotation of a puller: the model store that it fills. One puller writes to a store at a time.
pub const STORE_ANNOTATION: &str = "principium.ai/store";
/// Readiness gate of Ollama instances, set by the operator when the models answer.
pub const MODELS_READY_GATE: &str = "principium.ai/models-ready";
/// The reason of that gate where an instance only rests.
pub const RESTING: &str = "Overheated";

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Not started; the reason and message of the kubelet.
    Waiting(String, String),
    Running,
    /// Ended well.
    Done,
    /// Ended badly; what the kubelet says.
    Failed(String),
}

/// A container, init containers too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    pub name: String,
    pub state: ContainerState,
    pub restarts: i32,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The resource that its labels name; `None` for pods that are not the operator's.
    pub resource: Option<ResourceKey>,
    /// UID of its controller.
    pub owner: Option<String>,
    pub role: Role,
    pub ordinal: u32,
    pub revision: u32,
    /// The node that it runs on, or is meant for: of several the first.
    pub node: Option<String>,
    /// The nodes of which the scheduler may choose one; none once it has bound it.
    pub meant_for: Vec<String>,
    /// Whether the scheduler has bound it.
    pub scheduled: bool,
    /// Units that it asks for, by index of the GPU.
    pub units: BTreeMap<u32, u32>,
    /// Whole GPUs of the generic pool that it asks for.
    pub generic: u32,
    /// The port of its node that it takes.
    pub host_port: Option<u32>,
    /// GPUs that the operator gave it.
    pub assigned: Vec<AssignedGpu>,
    pub placement_reason: String,
    pub phase: Phase,
    pub ready: bool,
    /// Whether all its containers are ready, whatever its readiness gates say.
    pub containers_ready: bool,
    /// Whether it is not ready for its readiness gates, as the kubelet says.
    pub gated: bool,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// When it should be gone: its deletion and its grace period; `None` where it is not being deleted.
    pub due: Option<Timestamp>,
    pub created: Timestamp,
    /// When it ended, or was created where nothing tells.
    pub ended: Timestamp,
    pub ip: Option<String>,
    pub template: Option<String>,
    /// The model store that it fills, for a puller.
    pub store: Option<String>,
    /// Pods before it that failed one after another.
    pub failures: u32,
    /// The state of [`MODELS_READY_GATE`]; `None` where it was never set.
    pub gate: Option<bool>,
    /// When the last of the containers that run now was started, by the clock of its node.
    pub started: Option<Timestamp>,
    /// Whether the gate was opened after that.
    pub gate_is_current: bool,
    /// Whether it was closed since, and for nothing but heat.
    pub rests: bool,
    pub containers: Vec<ContainerView>,
    /// What the kubelet or the scheduler says keeps it from running.
    pub trouble: Option<String>,
}

impl PodView {
    /// A pod that ended, well or badly: it holds nothing any more.
    pub fn ended(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// As it is for somebody whose clock says `now`: nothing of it is later, whatever the clocks of nodes say. A back-off that
    /// is counted from there ends in time.
    pub fn not_after(mut self, now: Timestamp) -> Self {
        self.created = self.created.min(now);
        self.ended = self.ended.min(now);
        self
    }

    /// Starts of its containers after the first, summed up: tells one life of a container from the next.
    pub fn restarts(&self) -> i32 {
        self.containers.iter().map(|container| container.restarts).fold(0, i32::saturating_add)
    }

    pub fn read(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let labels = meta.labels.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        let annotation = |name: &str| meta.annotations.as_ref().and_then(|found| found.get(name)).cloned();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let ours = label(LABEL_MANAGED_BY) == Some(MANAGED_BY);
        let resource = ours
            .then(|| {
                let kind = Kind::from_label(label(LABEL_KIND)?)?;
                Some(ResourceKey { kind, namespace: namespace.clone(), name: label(LABEL_NAME)?.to_owned() })
            })
            .flatten();
        let created = meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let status = pod.status.as_ref();
        let condition = |type_: &str| {
            status
                .and_then(|status| status.conditions.as_ref())
                .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == type_))
        };
        let phase = match status.and_then(|status| status.phase.as_deref()) {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            _ => Phase::Pending,
        };
        let containers = containers(pod);
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let meant_for = if bound.is_some() { Vec::new() } else { meant_for(pod) };
        let started = started(pod);
        let gate_since_start = |status: &str, reason: Option<&str>| {
            condition(MODELS_READY_GATE)
                .filter(|gate| {
                    gate.status == status && (reason.is_none() || gate.reason.as_deref() == reason)
                })
                .and_then(|gate| gate.last_transition_time.as_ref())
                .is_some_and(|set| started.is_some_and(|started| set.0 >= started))
        };
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource,
            owner: meta
                .owner_references
                .as_ref()
                .and_then(|owners| owners.iter().find(|owner| owner.controller == Some(true)))
                .map(|owner| owner.uid.clone()),
            role: label(LABEL_ROLE).and_then(Role::from_label).unwrap_or(Role::Worker),
            ordinal: label(LABEL_ORDINAL).and_then(|ordinal| ordinal.parse().ok()).unwrap_or_default(),
            revision: revision(&name),
            scheduled: bound.is_some(),
            node: bound.or_else(|| meant_for.first().cloned()),
            meant_for,
            units: requested(pod, gpu_index),
            generic: requested(pod, |name| (name == GENERIC_GPU_RESOURCE).then_some(()))
                .get(&())
                .copied()
                .unwrap_or_default(),
            host_port: host_port(pod),
            assigned: annotation(GPUS_ANNOTATION)
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            placement_reason: annotation(REASON_ANNOTATION).unwrap_or_default(),
            ready: condition("Ready").is_some_and(|condition| condition.status == "True"),
            containers_ready: condition("ContainersReady")
                .is_some_and(|condition| condition.status == "True"),
            gated: condition("Ready").is_some_and(|condition| {
                condition.status != "True" && condition.reason.as_deref() == Some("ReadinessGatesNotReady")
            }),
            leaving: meta.deletion_timestamp.is_some(),
            due: meta.deletion_timestamp.as_ref().map(|time| time.0),
            created,
            ended: ended(pod).unwrap_or(created),
            ip: status.and_then(|status| status.pod_ip.clone()).filter(|ip| !ip.is_empty()),
            template: annotation(crate::template::ANNOTATION),
            store: annotation(STORE_ANNOTATION),
            failures: annotation(FAILURES_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or_default(),
            gate: condition(MODELS_READY_GATE).map(|condition| condition.status == "True"),
            started,
            gate_is_current: gate_since_start("True", None),
            rests: gate_since_start("False", Some(RESTING)),
            trouble: trouble(pod, phase, &containers),
            phase,
            containers,
            namespace,
            name,
        }
    }
}

/// Whether the operator must know this pod: its own pods, and every pod that asks for a GPU.
pub fn relevant(pod: &Pod) -> bool {
    let ours = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(LABEL_MANAGED_BY))
        .is_some_and(|value| value == MANAGED_BY);
    ours || !requested(pod, |name| name.starts_with(GENERIC_GPU_RESOURCE).then_some(())).is_empty()
}

/// The revision at the end of a name `<resource>-<ordinal>-<revision>`; 0 where there is none.
fn revision(name: &str) -> u32 {
    name.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or_default()
}

/// The nodes that its affinity names, up to the first term that names none.
fn meant_for(pod: &Pod) -> Vec<String> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let required =
        affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    let named = |term: &NodeSelectorTerm| {
        let mut fields = term.match_fields.iter().flatten();
        fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
    };
    required.into_iter().flat_map(|required| &required.node_selector_terms).map_while(named).collect()
}

fn host_port(pod: &Pod) -> Option<u32> {
    let ports = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| u32::try_from(port.host_port?).ok()).next()
}

fn containers(pod: &Pod) -> Vec<ContainerView> {
    let Some(status) = &pod.status else { return Vec::new() };
    let view = |container: &ContainerStatus| {
        let state = container.state.as_ref();
        let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let state = if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            ContainerState::Waiting(
                waiting.reason.clone().unwrap_or_default(),
                // The kubelet says how long it waits with the next start, the container why the last one failed.
                before.and_then(error).or(waiting.message.as_deref()).unwrap_or_default().to_owned(),
            )
        } else if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
            if ended.exit_code == 0 {
                ContainerState::Done
            } else {
                let reason = ended.reason.as_deref().unwrap_or("Error");
                let why = error(ended).map(|error| format!(": {error}")).unwrap_or_default();
                ContainerState::Failed(format!("{reason}, exit code {}{why}", ended.exit_code))
            }
        } else if state.is_some_and(|state| state.running.is_some()) {
            ContainerState::Running
        } else {
            ContainerState::Waiting(String::new(), String::new())
        };
        ContainerView { name: container.name.clone(), state, restarts: container.restart_count }
    };
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).map(view).collect()
}

/// The error with which a program of ours ended: the last line that says so of the log that Kubernetes keeps of it.
fn error(ended: &ContainerStateTerminated) -> Option<&str> {
    let lines = ended.message.as_deref()?.lines();
    lines.rev().find_map(|line| line.strip_prefix("Error: ")).map(str::trim)
}

/// When the last of the containers was started.
fn started(pod: &Pod) -> Option<Timestamp> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    containers.filter_map(|found| Some(found.state.as_ref()?.running.as_ref()?.started_at.as_ref()?.0)).max()
}

fn ended(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let of_containers = init
        .chain(status.container_statuses.iter().flatten())
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref())
        .map(|time| time.0)
        .max();
    let of_conditions = status
        .conditions
        .iter()
        .flatten()
        .filter_map(|found| found.last_transition_time.as_ref())
        .map(|time| time.0);
    of_containers.or_else(|| of_conditions.max()).or_else(|| status.start_time.as_ref().map(|time| time.0))
}

fn trouble(pod: &Pod, phase: Phase, containers: &[ContainerView]) -> Option<String> {
    let status = pod.status.as_ref()?;
    if phase == Phase::Failed {
        let reason = status.reason.as_deref().unwrap_or("Failed");
        let of_container = containers.iter().find_map(|container| match &container.state {
            ContainerState::Failed(why) => Some(format!("container {}: {why}", container.name)),
            _ => None,
        });
        let message = status.message.clone().or(of_container).unwrap_or_default();
        return Some(if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") });
    }
    let unscheduled = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled" && condition.status == "False" && condition.message.is_some()
    });
    if let Some(condition) = unscheduled {
        return Some(format!("not scheduled: {}", condition.message.as_deref().unwrap_or_default()));
    }
    let waits = containers.iter().find_map(|container| match &container.state {
        ContainerState::Waiting(reason, message)
            if !matches!(reason.as_str(), "" | "ContainerCreating" | "PodInitializing") =>
        {
            let message = if message.is_empty() { String::new() } else { format!(": {message}") };
            Some(format!("container {}: {reason}{message}", container.name))
        }
        _ => None,
    });
    // The kubelet tells only in Events which volume is missing, such as one of a ConfigMap that does not exist.
    let unprepared = || {
        let mut conditions = status.conditions.iter().flatten();
        conditions.any(|it| it.type_ == "PodReadyToStartContainers" && it.status == "False")
    };
    waits.or_else(|| {
        (phase == Phase::Pending && unprepared()).then(|| {
            "waits for its volumes and its network; if that lasts, its Events say what is missing".to_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn nothing_of_a_pod_is_later_than_the_operators_own_clock() {
        let ended = json!({"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T10:00:05Z"}});
        let status = json!({"name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": ended});
        let view = PodView::read(&pod(json!({
            "metadata": {"name": "x", "creationTimestamp": "2026-01-01T10:00:00Z"},
            "status": {"phase": "Failed", "containerStatuses": [status]},
        })));
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let times = |now| {
            let view = view.clone().not_after(at(now));
            (view.created, view.ended)
        };
        let (created, ended) = (at("2026-01-01T10:00:00Z"), at("2026-01-01T10:00:05Z"));
        assert_eq!(times("2026-01-01T11:00:00Z"), (created, ended));
        assert_eq!(times("2026-01-01T10:00:03Z"), (created, at("2026-01-01T10:00:03Z")));
        assert_eq!(times("2026-01-01T09:00:00Z"), (at("2026-01-01T09:00:00Z"), at("2026-01-01T09:00:00Z")));
    }

    #[test]
    fn a_container_that_starts_again_and_again_says_why() {
        let ended =
            |message: &str| json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}});
        let log = "started\nError: no prompt \"p\"\n";
        for (phase, state, last, trouble) in [
            (Phase::Running, &waiting, ended(log), "container main: CrashLoopBackOff: no prompt \"p\""),
            (Phase::Running, &waiting, ended("killed"), "container main: CrashLoopBackOff: back-off 20s"),
            (
                Phase::Failed,
                &ended(log),
                json!({}),
                "Failed: container main: Error, exit code 1: no prompt \"p\"",
            ),
        ] {
            let status = json!({"name": "main", "image": "i", "imageID": "", "ready": false, "restartCount": 2,
                "state": state, "lastState": last});
            let pod = pod(
                json!({"metadata": {"name": "x"}, "status": {"phase": "Running", "containerStatuses": [status]}}),
            );
            assert_eq!(super::trouble(&pod, phase, &containers(&pod)).as_deref(), Some(trouble));
        }
    }

    #[test]
    fn a_pod_holds_what_the_scheduler_counts() {
        let pod = pod(json!({
            "metadata": {"name": "x", "namespace": "n"},
            "spec": {
                "nodeName": "a",
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "resources": {"limits": {"principium.ai/gpu-1": "1"}}},
                    {"name": "once", "resources": {"limits": {"principium.ai/gpu-2": "9"}}}],
                "containers": [
                    {"name": "c", "resources": {"limits": {"principium.ai/gpu-1": "2", "cpu": "1"},
                                                "requests": {"principium.ai/gpu-1": "2"}}},
                    {"name": "d", "resources": {"limits": {"principium.ai/gpu-2": "3", "principium.ai/gpu": "1"}}}]
            }
        }));
        let view = PodView::read(&pod);
        assert_eq!(view.units, BTreeMap::from([(1, 3), (2, 9)]));
        assert_eq!((view.generic, view.node.as_deref(), view.resource.clone()), (1, Some("a"), None));
        assert!(relevant(&pod));
    }

    #[test]
    fn a_pod_without_gpus_that_is_not_ours_does_not_matter() {
        let pod = pod(json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c"}]}}));
        assert!(!relevant(&pod));
    }

    #[test]
    fn the_chosen_node_counts_before_the_scheduler_has_bound_the_pod() {
        let pod = pod(json!({
            "metadata": {"name": "rr-0-3", "namespace": "demo", "labels": {
                "app.kubernetes.io/managed-by": "principium-operator", "principium.ai/kind": "reranker",
                "principium.ai/name": "rr", "principium.ai/role": "worker", "principium.ai/ordinal": "0"}},
            "spec": {
                "containers": [{"name": "c"}],
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}
            }
        }));
        let view = PodView::read(&pod);
        assert_eq!((view.node.as_deref(), view.scheduled, view.revision), (Some("b"), false, 3));
        assert_eq!(view.resource.unwrap().to_string(), "Reranker demo/rr");
    }

    #[test]
    fn of_several_nodes_the_one_counts_to_which_the_scheduler_has_bound_the_pod() {
        let affinity = json!(crate::finish::only_on_one_of(["b", "a"]));
        for (node, bound, meant_for) in [("b", None, vec!["b", "a"]), ("a", Some("a"), vec![])] {
            let spec = json!({"containers": [], "nodeName": bound, "affinity": affinity});
            let view = PodView::read(&pod(json!({"metadata": {"name": "x"}, "spec": spec})));
            assert_eq!((view.node.as_deref(), view.scheduled), (Some(node), bound.is_some()));
            assert_eq!(view.meant_for, meant_for);
        }
    }

    #[test]
    fn what_keeps_a_pod_from_running_is_told() {
        let failed = pod(json!({
            "metadata": {"name": "x"}, "spec": {"containers": []},
            "status": {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
        }));
        let view = PodView::read(&failed);
        assert_eq!(view.trouble.as_deref(), Some("UnexpectedAdmissionError: Allocate failed"));
        let pulling = pod(json!({
            "metadata": {"name": "x"}, "spec": {"containers": []},
            "status": {"phase": "Pending", "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]}
        }));
        let view = PodView::read(&pulling);
        assert_eq!(view.trouble.as_deref(), Some("container c: ImagePullBackOff: no such image"));
        let view = PodView::read(&pod(json!({
            "metadata": {"name": "x"},
            "status": {"phase": "Pending", "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}]},
        })));
        assert!(view.trouble.unwrap().starts_with("waits for its volumes"));
    }
}
