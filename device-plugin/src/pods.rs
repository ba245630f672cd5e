//! Finds the names of pods by their UIDs: a process's cgroup has the UID, the kubelet's list of holders has the names.
//!
//! The API server is asked only when a UID turns up that is not known yet, and from its cache.

use crate::processes::PodName;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;

/// Least time between two questions to the API server.
const PAUSE: Duration = Duration::from_secs(10);

/// Answers `wanted` UIDs with `names`, for as long as both ends live.
pub async fn run(
    client: Client,
    node_name: String,
    mut wanted: watch::Receiver<BTreeSet<String>>,
    names: watch::Sender<BTreeMap<String, PodName>>,
) {
    let pods: Api<Pod> = Api::all(client);
    // Version 0 lets the API server answer from memory.
    let on_this_node = ListParams::default().fields(&format!("spec.nodeName={node_name}")).match_any();
    while wanted.wait_for(|wanted| !wanted.is_empty()).await.is_ok() {
        match pods.list_metadata(&on_this_node).await {
            Ok(list) => {
                let name = |pod: &kube::core::PartialObjectMeta<Pod>| {
                    Some((pod.uid()?, (pod.namespace().unwrap_or_default(), pod.name_any())))
                };
                names.send_replace(list.iter().filter_map(name).collect());
            }
            Err(error) => tracing::warn!(
                %error,
                "cannot list this node's pods, so processes of pods can't be told from each other; the plugin needs \
                 the right to list pods"
            ),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
