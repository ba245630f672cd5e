//! What the API server knows of the node's pods: their names by UID, because a process's cgroup has the UID and the
//! kubelet's list of holders has names; and what their containers ask for, to compare it with that list.
//!
//! The API server is asked when there is something to learn, and answers from its cache.

use crate::agreement::{Asked, Requests};
use crate::allocations::Holder;
use crate::processes::PodName;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, ListParams};
use kube::core::{ApiResource, Object};
use kube::{Client, ResourceExt};
use principium_api::names::{GENERIC_GPU_RESOURCE, gpu_index};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;

/// Least time between two questions to the API server.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest time between two.
const REFRESH: Duration = Duration::from_secs(600);

/// What the monitor wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// UIDs of pods whose names it doesn't know.
    pub uids: BTreeSet<String>,
    /// How often others came to hold something: who is new asked for something, also when the kubelet has forgotten it
    /// before anybody looked.
    pub changes: u64,
    /// Whether what it knows is contradictory.
    pub doubtful: bool,
}

impl Wanted {
    /// Whether there is something to learn for who read when there had been that many changes.
    fn is_new(&self, read: Option<u64>) -> bool {
        !self.uids.is_empty() || self.doubtful || read != Some(self.changes)
    }
}

/// What the API server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Names by UID.
    pub names: BTreeMap<String, PodName>,
    /// What their containers ask for.
    pub requests: Requests,
}

/// The part of a pod that is read: a whole one is many times as large.
type Excerpt = Object<Spec, Status>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    resources: Resources,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Resources {
    limits: BTreeMap<String, Quantity>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct ContainerState {
    running: Option<serde_json::Value>,
}

/// Answers what is `wanted` with `pods`, for as long as both ends live.
pub async fn run(
    client: Client,
    node_name: String,
    mut wanted: watch::Receiver<Wanted>,
    pods: watch::Sender<Pods>,
) {
    let api: Api<Excerpt> = Api::all_with(client, &ApiResource::erase::<Pod>(&()));
    // Version 0 lets the API server answer from memory.
    let on_this_node = ListParams::default().fields(&format!("spec.nodeName={node_name}")).match_any();
    let mut known: Option<u64> = None;
    loop {
        let something_new = wanted.wait_for(|wanted| wanted.is_new(known));
        if let Ok(Err(_)) = tokio::time::timeout(REFRESH, something_new).await.map(|found| found.map(drop)) {
            return;
        }
        let changes = wanted.borrow().changes;
        match api.list(&on_this_node).await {
            Ok(list) => {
                let read = read(&list.items);
                // What is only about to run is looked at again: what it has is compared once it runs.
                known = read.requests.values().all(|asked| asked.running).then_some(changes);
                pods.send_replace(read);
            }
            Err(error) => tracing::warn!(
                %error,
                "cannot list this node's pods, so processes of pods can't be told from each other, and requests can't \
                 be compared with what the kubelet gave; the plugin needs the right to list pods"
            ),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn read(list: &[Excerpt]) -> Pods {
    let mut pods = Pods::default();
    for pod in list {
        let name: PodName = (pod.namespace().unwrap_or_default(), pod.name_any());
        if let Some(uid) = pod.uid() {
            pods.names.insert(uid, name.clone());
        }
        let status = pod.status.clone().unwrap_or_default();
        // A pod that is ending holds what it holds until the kubelet is done with it.
        let ending = pod.metadata.deletion_timestamp.is_some();
        if ending || !matches!(status.phase.as_str(), "Pending" | "Running") {
            continue;
        }
        // Init containers that end hold nothing afterwards; those that go on are sidecars.
        let sidecars =
            pod.spec.init_containers.iter().filter(|init| init.restart_policy.as_deref() == Some("Always"));
        for container in pod.spec.containers.iter().chain(sidecars) {
            let units: BTreeMap<String, u32> = container
                .resources
                .limits
                .iter()
                .filter(|(resource, _)| *resource == GENERIC_GPU_RESOURCE || gpu_index(resource).is_some())
                // Extended resources are whole numbers; 0 asks for nothing.
                .filter_map(|(resource, quantity)| Some((resource.clone(), quantity.0.parse().ok()?)))
                .filter(|(_, units)| *units > 0)
                .collect();
            if units.is_empty() {
                continue;
            }
            let statuses = status.container_statuses.iter().chain(&status.init_container_statuses);
            let running =
                statuses.into_iter().any(|of| of.name == container.name && of.state.running.is_some());
            let holder =
                Holder { namespace: name.0.clone(), pod: name.1.clone(), container: container.name.clone() };
            pods.requests.insert(holder, Asked { units, running });
        }
    }
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, phase: &str, containers: &Value, state: &Value) -> Excerpt {
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "ai", "uid": format!("uid-{name}")},
            "spec": {"containers": containers, "nodeName": "n", "volumes": [{"name": "v", "emptyDir": {}}]},
            "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": state, "ready": true}]},
        }))
        .unwrap()
    }

    #[test]
    fn the_pods_are_read_for_what_was_not_seen_and_no_more() {
        let wanted = Wanted { changes: 2, ..Wanted::default() };
        assert!(wanted.is_new(None), "nothing was read, or of a pod that did not run yet");
        assert!(wanted.is_new(Some(0)), "a pod came, and was forgotten before anybody read of it");
        assert!(!wanted.is_new(Some(2)));
        let doubtful = Wanted { doubtful: true, ..wanted.clone() };
        let unknown = Wanted { uids: ["uid".to_owned()].into(), ..wanted };
        assert!(doubtful.is_new(Some(2)) && unknown.is_new(Some(2)));
    }

    #[test]
    fn names_and_requests_are_read() {
        let limits = |limits: Value| json!([{"name": "main", "resources": {"limits": limits}}]);
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let asks = limits(json!({"principium.ai/gpu-3": "5", "principium.ai/gpu": "1", "memory": "1Gi"}));
        let list = [
            pod("runs", "Running", &asks, &running),
            pod(
                "starts",
                "Pending",
                &limits(json!({"principium.ai/gpu-3-mig-0": "2"})),
                &json!({"waiting": {}}),
            ),
            pod("ended", "Succeeded", &asks, &json!({"terminated": {"exitCode": 0}})),
            pod("other", "Running", &limits(json!({"nvidia.com/gpu": "1"})), &running),
        ];
        let pods = read(&list);
        assert_eq!(pods.names.len(), 4);
        assert_eq!(pods.names["uid-runs"], ("ai".to_owned(), "runs".to_owned()));
        let requests: Vec<_> = pods
            .requests
            .iter()
            .map(|(holder, asked)| (holder.pod.as_str(), asked.units.clone(), asked.running))
            .collect();
        let units = |units: &[(&str, u32)]| -> BTreeMap<String, u32> {
            units.iter().map(|(resource, units)| ((*resource).to_owned(), *units)).collect()
        };
        assert_eq!(
            requests,
            [
                ("runs", units(&[("principium.ai/gpu", 1), ("principium.ai/gpu-3", 5)]), true),
                ("starts", units(&[("principium.ai/gpu-3-mig-0", 2)]), false),
            ]
        );
    }
}
