//! Kubernetes Events: a GPU was withheld, a GPU is offered again, a pod uses more of one than it holds, somebody
//! contradicts somebody about who holds what.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use principium_api::GPUNode;
use principium_api::gpu_node::{Disagreement, Gpu, GpuNodeStatus, Overuse, WithheldReason};

/// Events about objects without a namespace live here.
const NAMESPACE: &str = "default";
const CONTROLLER: &str = "principium.ai/device-plugin";

/// Something that people should hear about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    warning: bool,
    /// A constant.
    reason: &'static str,
    action: &'static str,
    note: String,
}

/// What happened between two statuses.
#[must_use]
pub fn announcements(last: &GpuNodeStatus, next: &GpuNodeStatus) -> Vec<Announcement> {
    let before = |gpu: &Gpu| last.gpus.iter().find(|other| other.uuid == gpu.uuid);
    let withheld = |gpu: &Gpu| {
        let whose = whose(gpu);
        match (before(gpu).and_then(|gpu| gpu.withheld.as_ref()), &gpu.withheld) {
            (before, Some(now)) if before.is_none_or(|before| before.reason != now.reason) => {
                Some(Announcement {
                    warning: !is_intended(now.reason),
                    reason: "GPUWithheld",
                    action: "Withhold",
                    note: format!("{whose}: free units are withheld, {:?}: {}", now.reason, now.message),
                })
            }
            (Some(before), None) => Some(Announcement {
                warning: false,
                reason: "GPURestored",
                action: "Offer",
                note: format!(
                    "{whose}: free units are offered again; they were withheld, {:?}",
                    before.reason
                ),
            }),
            _ => None,
        }
    };
    let overused = |gpu: &Gpu| -> Vec<Announcement> {
        let known = |pod: &Overuse| {
            before(gpu).is_some_and(|gpu| {
                gpu.overuse.iter().any(|other| (&other.namespace, &other.pod) == (&pod.namespace, &pod.pod))
            })
        };
        let new = gpu.overuse.iter().filter(|pod| !known(pod));
        new.map(|Overuse { namespace, pod, share, used }| Announcement {
            warning: true,
            reason: "GPUMemoryOveruse",
            action: "Report",
            note: format!(
                "{}: pod {namespace}/{pod} uses {used} MiB of its memory and holds {share} MiB",
                whose(gpu)
            ),
        })
        .collect()
    };
    let disagreements =
        next.disagreements.iter().filter(|disagreement| !last.disagreements.contains(disagreement));
    let disagreements =
        disagreements.map(|Disagreement { namespace, pod, container, message, .. }| Announcement {
            warning: true,
            reason: "GPUAllocationDisagreement",
            action: "Report",
            note: format!("container {container} of pod {namespace}/{pod} {message}"),
        });
    let of_gpus = next.gpus.iter().flat_map(|gpu| withheld(gpu).into_iter().chain(overused(gpu)));
    of_gpus.chain(disagreements).collect()
}

/// A GPU that is not offered for one of these is in no trouble.
fn is_intended(reason: WithheldReason) -> bool {
    matches!(reason, WithheldReason::Divided | WithheldReason::Moving)
}

fn whose(gpu: &Gpu) -> String {
    format!("GPU {} ({}, {})", gpu.index, gpu.product, gpu.uuid)
}

/// Sends events about the `GPUNode` of this node.
#[derive(Clone)]
pub struct Announcer {
    events: Api<Event>,
    node_name: String,
}

impl Announcer {
    /// An announcer for this node.
    #[must_use]
    pub fn new(client: Client, node_name: String) -> Self {
        Self { events: Api::namespaced(client, NAMESPACE), node_name }
    }

    /// Sends one. An event that doesn't arrive is logged: it must not hold up what it tells about.
    pub async fn announce(&self, announcement: &Announcement, uid: &str) {
        let Announcement { warning, reason, action, note } = announcement;
        if *warning {
            tracing::warn!("{note}");
        } else {
            tracing::info!("{note}");
        }
        let now = Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", self.node_name, now.as_nanosecond())),
                namespace: Some(NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            type_: Some(if *warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some((*reason).to_owned()),
            action: Some((*action).to_owned()),
            note: Some(note.chars().take(1024).collect()),
            regarding: Some(ObjectReference {
                api_version: Some(GPUNode::api_version(&()).into_owned()),
                kind: Some(GPUNode::kind(&()).into_owned()),
                name: Some(self.node_name.clone()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            ..Event::default()
        };
        if let Err(error) = self.events.create(&PostParams::default(), &event).await {
            tracing::warn!(%error, "cannot send the event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use principium_api::gpu_node::Withheld;

    fn status(withheld: &[Option<WithheldReason>]) -> GpuNodeStatus {
        let gpu = |(index, reason): (u32, &Option<WithheldReason>)| Gpu {
            index,
            uuid: format!("GPU-{index}"),
            withheld: reason
                .map(|reason| Withheld { reason, message: "92 °C".into(), since: String::new() }),
            ..Gpu::default()
        };
        GpuNodeStatus { gpus: (0..).zip(withheld).map(gpu).collect(), ..GpuNodeStatus::default() }
    }

    #[test]
    fn only_changes_are_announced_and_only_of_the_gpu_that_changed() {
        let (hot, xid) = (Some(WithheldReason::Overheated), Some(WithheldReason::Xid));
        for (last, next, expected) in [
            ([None, None], [None, hot], vec!["GPUWithheld"]),
            ([None, hot], [None, hot], vec![]),
            ([None, hot], [None, xid], vec!["GPUWithheld"]),
            ([None, hot], [xid, None], vec!["GPUWithheld", "GPURestored"]),
        ] {
            let announced = announcements(&status(&last), &status(&next));
            let reasons: Vec<_> = announced.iter().map(|announcement| announcement.reason).collect();
            assert_eq!(reasons, expected, "{last:?} -> {next:?}");
        }
    }

    #[test]
    fn a_pod_above_its_share_is_announced_once() {
        let over = |used| {
            let mut status = status(&[None]);
            let pod = Overuse { namespace: "ai".into(), pod: "a".into(), share: 2048, used };
            status.gpus[0].overuse = vec![pod];
            status
        };
        let announced = announcements(&status(&[None]), &over(3000));
        assert_eq!(announced.len(), 1);
        for part in ["GPU 0", "ai/a", "3000 MiB", "2048 MiB"] {
            assert!(announced[0].note.contains(part), "{}", announced[0].note);
        }
        assert_eq!(announcements(&over(3000), &over(4000)), []);
    }

    #[test]
    fn a_disagreement_is_announced_once() {
        let disagreement = Disagreement {
            namespace: "ai".into(),
            pod: "a".into(),
            container: "main".into(),
            message: "asks for 3 principium.ai/gpu-2, and the kubelet lists 0".into(),
            ..Disagreement::default()
        };
        let told = GpuNodeStatus { disagreements: vec![disagreement], ..status(&[None]) };
        let announced = announcements(&status(&[None]), &told);
        assert_eq!(
            announced[0].note,
            "container main of pod ai/a asks for 3 principium.ai/gpu-2, and the kubelet lists 0"
        );
        assert_eq!((announced.len(), announcements(&told, &told)), (1, vec![]));
    }

    #[test]
    fn an_event_names_the_gpu_the_reason_and_the_value() {
        let announced = announcements(&status(&[None]), &status(&[Some(WithheldReason::Overheated)]));
        for part in ["GPU 0", "GPU-0", "Overheated", "92 °C"] {
            assert!(announced[0].note.contains(part), "{}", announced[0].note);
        }
    }
}
