//! A pod that is being deleted: until when it counts as one that is about to end.

use super::PodView;
use jiff::{SignedDuration, Timestamp};

/// How long after its grace period a pod is still about to end. The kubelet needs seconds to take a pod down; one that is there
/// after a minute has a finalizer, or a kubelet or a container runtime that hangs, and may never end.
const LATE: SignedDuration = SignedDuration::from_mins(1);

impl PodView {
    /// From when on nobody counts on its end; `None` where it is not being deleted.
    pub fn overdue_at(&self) -> Option<Timestamp> {
        self.due.map(|due| due.checked_add(LATE).unwrap_or(due))
    }

    /// Whether it should have ended long ago.
    pub fn overdue(&self, now: Timestamp) -> bool {
        self.overdue_at().is_some_and(|at| at <= now)
    }

    /// What is said of one that should have ended long ago. Names nothing that drifts; `None` for all others.
    pub fn late(&self, now: Timestamp) -> Option<String> {
        let due = self.due.filter(|_| self.overdue(now))?;
        // One that no node has, no kubelet keeps.
        let node = self.node.as_ref().filter(|_| self.scheduled);
        let kubelet = node.map(|node| format!(" and at the kubelet of node {node}")).unwrap_or_default();
        Some(format!("Pod {} should have ended at {due}: look at its finalizers{kubelet}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn a_pod_is_overdue_a_minute_after_the_time_that_its_deletion_leaves_it() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let read = |meta: serde_json::Value, spec: serde_json::Value| {
            PodView::read(&serde_json::from_value::<Pod>(json!({"metadata": meta, "spec": spec})).unwrap())
        };
        let deleted = json!({"name": "x", "deletionTimestamp": "2026-01-01T10:00:30Z"});
        let pod = read(deleted.clone(), json!({"nodeName": "a", "containers": []}));
        assert!(!pod.overdue(at("2026-01-01T10:01:29Z")) && pod.overdue(at("2026-01-01T10:01:30Z")));
        assert_eq!(pod.late(at("2026-01-01T10:01:29Z")), None);
        let late = "Pod x should have ended at 2026-01-01T10:00:30Z: look at its finalizers";
        let kubelet = format!("{late} and at the kubelet of node a");
        assert_eq!(pod.late(at("2026-01-01T10:30:00Z")), Some(kubelet));
        let unbound = read(deleted, json!({"containers": []}));
        assert_eq!(unbound.late(at("2026-01-01T10:30:00Z")).as_deref(), Some(late));
        let stays = read(json!({"name": "x"}), json!({"containers": []}));
        assert!(stays.overdue_at().is_none() && !stays.overdue(at("2026-01-01T10:30:00Z")));
    }
}
