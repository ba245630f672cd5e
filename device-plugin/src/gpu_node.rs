//! Writes this node's `GPUNode`: the only writer of it, and only when something meaningful has changed.

use crate::events::{self, Announcement};
use crate::metrics::Metrics;
use crate::node_labels;
use crate::pace::Pace;
use crate::status::{self, NodeView};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use principium_api::GPUNode;
use principium_api::gpu_node::{GpuNodeSpec, GpuNodeStatus};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Name under which the API server knows our fields.
pub const FIELD_MANAGER: &str = "principium-device-plugin";

/// Shortest pause after a failed write, doubled after each further one.
const RETRY: Duration = Duration::from_millis(500);
/// Longest pause after failed writes.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often the status is applied even if nothing has changed, in case somebody else changed or deleted it. An apply
/// that changes nothing writes nothing.
const REFRESH: Duration = Duration::from_secs(600);

/// Writes one node's object.
pub struct Writer {
    gpu_nodes: Api<GPUNode>,
    nodes: Api<Node>,
    announcer: events::Announcer,
    node_name: String,
    label: bool,
    metrics: Arc<Metrics>,
    /// What was written last.
    last: Option<GpuNodeStatus>,
    /// The Node's labels as they were written last.
    labels: Option<BTreeMap<&'static str, String>>,
    /// UID of the object, once it is known to exist.
    uid: Option<String>,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("cannot read the Node {name}, which must own the GPUNode: {source}")]
    Node { name: String, source: kube::Error },
    #[error("cannot create the GPUNode {name}: {source}")]
    Create { name: String, source: kube::Error },
    #[error("cannot label the Node {name}: {source}")]
    Label { name: String, source: kube::Error },
    #[error("cannot write the status of the GPUNode {name}: {source}")]
    Status { name: String, source: kube::Error },
}

impl Writer {
    /// A writer for the object of this node; with `label`, for the Node's labels too.
    #[must_use]
    pub fn new(client: &Client, node_name: String, label: bool, metrics: Arc<Metrics>) -> Self {
        Self {
            gpu_nodes: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            announcer: events::Announcer::new(client.clone(), node_name.clone()),
            node_name,
            label,
            metrics,
            last: None,
            labels: None,
            uid: None,
        }
    }

    /// Writes what `views` show for as long as there are views.
    pub async fn run(mut self, mut views: watch::Receiver<Option<NodeView>>) {
        self.recall().await;
        if views.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut failures = 0;
        // The status is applied once at the start, whatever was there before.
        let mut refresh = Instant::now();
        let start = Instant::now();
        let mut pace = Pace::default();
        loop {
            let view = views.borrow_and_update().clone().unwrap_or_default();
            let next = status::status(&view, self.last.as_ref());
            let due = pace.due(self.last.as_ref(), &next).map(|due| start + due);
            let due = due.map_or(refresh, |due| due.min(refresh));
            if due > Instant::now() {
                tokio::select! {
                    changed = views.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(due) => {}
                }
                continue;
            }
            pace = pace.written(self.last.as_ref(), &next, start.elapsed());
            let written = self.write(next).await;
            self.metrics.status_written(written.is_ok());
            match written {
                Ok(()) => {
                    failures = 0;
                    refresh = Instant::now() + REFRESH;
                }
                Err(error) => {
                    tracing::warn!(%error, "trying again");
                    // Whatever failed, the object is looked at anew.
                    self.uid = None;
                    let retry = (RETRY * 2_u32.saturating_pow(failures)).min(LONGEST_RETRY);
                    failures = (failures + 1).min(16);
                    refresh = refresh.min(Instant::now() + retry);
                    tokio::time::sleep(retry).await;
                }
            }
        }
    }

    /// What an earlier run wrote, so that a restart neither announces old news nor rewrites what is so already.
    async fn recall(&mut self) {
        match self.gpu_nodes.get_opt(&self.node_name).await {
            Ok(existing) => self.last = existing.and_then(|existing| existing.status),
            Err(error) => tracing::warn!(node = self.node_name, %error, "cannot read the GPUNode"),
        }
    }

    async fn write(&mut self, next: GpuNodeStatus) -> Result<(), WriteError> {
        let uid = match self.uid.clone() {
            Some(uid) => uid,
            None => self.create().await?,
        };
        let name = &self.node_name;
        let patch = json!({
            "apiVersion": GPUNode::api_version(&()),
            "kind": GPUNode::kind(&()),
            "metadata": { "name": name },
            "status": next,
        });
        self.gpu_nodes
            .patch_status(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch))
            .await
            .map_err(|source| WriteError::Status { name: name.clone(), source })?;
        let announcements: Vec<Announcement> =
            self.last.as_ref().map(|last| events::announcements(last, &next)).unwrap_or_default();
        for announcement in announcements {
            self.announcer.announce(&announcement, &uid).await;
        }
        self.uid = Some(uid);
        let labels = node_labels::labels(&next);
        self.last = Some(next);
        if self.label { self.label(labels).await } else { Ok(()) }
    }

    /// Labels the Node. What was a label of ours and is none any more is taken away by the API server.
    async fn label(&mut self, labels: BTreeMap<&'static str, String>) -> Result<(), WriteError> {
        if self.labels.as_ref() == Some(&labels) {
            return Ok(());
        }
        let name = &self.node_name;
        let patch = json!({
            "apiVersion": Node::api_version(&()),
            "kind": Node::kind(&()),
            "metadata": { "name": name, "labels": labels },
        });
        self.nodes
            .patch_metadata(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&patch))
            .await
            .map_err(|source| WriteError::Label { name: name.clone(), source })?;
        self.labels = Some(labels);
        Ok(())
    }

    /// Makes sure that the object exists and belongs to its node, and gives its UID.
    async fn create(&self) -> Result<String, WriteError> {
        let name = &self.node_name;
        let node = self
            .nodes
            .get_metadata(name)
            .await
            .map_err(|source| WriteError::Node { name: name.clone(), source })?;
        let mut wanted = GPUNode::new(name, GpuNodeSpec::default());
        wanted.metadata.owner_references = Some(vec![owner(name, node.uid().unwrap_or_default())]);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.gpu_nodes
            .patch(name, &params, &Patch::Apply(&wanted))
            .await
            .map(|object| object.uid().unwrap_or_default())
            .map_err(|source| WriteError::Create { name: name.clone(), source })
    }
}

/// The Node as owner of what is written about it: that goes with the Node.
#[must_use]
pub fn owner(node_name: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node_name.to_owned(),
        uid,
        ..OwnerReference::default()
    }
}
