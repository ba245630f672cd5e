//! The installed device plugin: its pod, its process, its flags, its metrics, and what the kubelet has been told by it.

use crate::World;
use crate::world::event;
use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use principium_device_plugin::proto::pod_resources::AllocatableResourcesRequest;
use principium_device_plugin::proto::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
use principium_gpu_sim::state::State;
use principium_gpu_sim::{state_path, update};
use principium_local_cluster::NAMESPACE;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tonic::transport::{Channel, Endpoint};

/// The kubelet's folder on every node.
pub const KUBELET: &str = "/var/lib/kubelet";
const DAEMON_SET: &str = "principium-device-plugin";

/// Address of a Unix socket.
///
/// # Errors
/// When the path is no address.
pub fn endpoint(socket: &Path) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("unix://{}", socket.display()))?)
}

/// The kubelet's own view of the devices.
pub struct Kubelet {
    client: PodResourcesListerClient<Channel>,
}

impl Kubelet {
    /// A client that connects when it is first asked.
    ///
    /// # Errors
    /// When the socket's path is no address.
    pub fn new() -> Result<Self> {
        let socket = Path::new(KUBELET).join("pod-resources/kubelet.sock");
        Ok(Self { client: PodResourcesListerClient::new(endpoint(&socket)?.connect_lazy()) })
    }

    /// Devices of each resource that the kubelet would give to a pod.
    ///
    /// # Errors
    /// When the kubelet does not answer.
    pub async fn allocatable(&mut self) -> Result<BTreeMap<String, usize>> {
        let answer =
            self.client.get_allocatable_resources(AllocatableResourcesRequest {}).await?.into_inner();
        let mut devices: BTreeMap<String, usize> = BTreeMap::new();
        for of_node in answer.devices {
            *devices.entry(of_node.resource_name).or_default() += of_node.device_ids.len();
        }
        Ok(devices)
    }
}

/// The folder in `/proc` of the first process whose program has this file name.
///
/// # Errors
/// When there is none.
pub fn process(program: &str) -> Result<PathBuf> {
    let wanted = format!("/{program}");
    let is_it = |folder: &Path| {
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).next().is_some_and(|program| program.ends_with(wanted.as_bytes()))
    };
    let mut folders = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    folders.find(|folder| is_it(folder)).with_context(|| format!("no {program} runs on this machine"))
}

impl World {
    /// The pod of the device plugin, if there is exactly one and it is ready.
    ///
    /// # Errors
    /// When the API server can't be reached.
    pub async fn plugin_pod(&self) -> Result<Option<Pod>> {
        let mut pods = self.plugin_pods().await?;
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let one = pods.pop().filter(|pod| pods.is_empty() && pod.metadata.deletion_timestamp.is_none());
        Ok(one.filter(ready))
    }

    /// Every pod of the device plugin, ready or not.
    ///
    /// # Errors
    /// When the API server can't be reached.
    pub async fn plugin_pods(&self) -> Result<Vec<Pod>> {
        let labels = ListParams::default().labels("app.kubernetes.io/component=device-plugin");
        Ok(Api::<Pod>::namespaced(self.client.clone(), NAMESPACE).list(&labels).await?.items)
    }

    /// Waits until the plugin is ready, in a pod with another UID than `before`.
    ///
    /// # Errors
    /// When it isn't in time.
    pub async fn plugin_ready(&self, before: Option<&str>) -> Result<Pod> {
        self.eventually("the device plugin is ready", || async {
            Ok(self.plugin_pod().await?.filter(|pod| before.is_none() || pod.uid().as_deref() != before))
        })
        .await
    }

    /// Ends the plugin's pod; the DaemonSet makes another one. Gives the UID of the old one.
    ///
    /// # Errors
    /// When there is none.
    pub async fn delete_plugin(&self) -> Result<String> {
        let pod = self.plugin_pods().await?.pop().context("no device plugin runs")?;
        let pods = Api::<Pod>::namespaced(self.client.clone(), NAMESPACE);
        pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        Ok(pod.uid().unwrap_or_default())
    }

    /// Runs the plugin with these flags and variables beside what the chart gives it, and waits until it is ready.
    ///
    /// # Errors
    /// When it doesn't get ready.
    pub async fn configure_plugin(&self, flags: &[&str], simulated: bool) -> Result<()> {
        let before = self.plugin_pods().await?.pop().and_then(|pod| pod.uid());
        if self.change_plugin(flags, simulated).await? {
            self.plugin_ready(before.as_deref()).await?;
        }
        Ok(())
    }

    /// Gives the plugin these flags and variables beside what the chart gives it. `true`: it is run anew for that.
    ///
    /// # Errors
    /// When the API server doesn't take them.
    pub async fn change_plugin(&self, flags: &[&str], simulated: bool) -> Result<bool> {
        let sets = Api::<DaemonSet>::namespaced(self.client.clone(), NAMESPACE);
        let flags = if flags.is_empty() { Value::Null } else { json!(flags) };
        // The variable keeps the chart's value in the end, so that Helm finds nothing of anybody else's.
        let container = json!({
            "name": "device-plugin",
            "args": flags,
            "env": [{"name": "PRINCIPIUM_SIMULATED", "value": simulated.to_string()}],
        });
        let patch = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let generation = |set: &DaemonSet| set.metadata.generation;
        let old = generation(&sets.get(DAEMON_SET).await?);
        let new =
            generation(&sets.patch(DAEMON_SET, &PatchParams::default(), &Patch::Strategic(patch)).await?);
        Ok(new != old)
    }

    /// Does a test's work with a plugin that remembers nothing (a card that failed is proven longer after its next
    /// failure, one that was there once is missed) and with the simulated hardware changed for it. Puts both back whatever
    /// happens.
    ///
    /// # Errors
    /// The work's own, or that the plugin doesn't get ready.
    pub async fn with_fresh_plugin<F>(&self, hardware: impl FnOnce(&mut State), work: F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let before = fs::read(state_path())?;
        update(&state_path(), |state| {
            hardware(state);
            Ok(())
        })?;
        let memory = format!("{KUBELET}/device-plugins/principium/e2e");
        let outcome = match self.configure_plugin(&[&format!("--state-dir={memory}")], true).await {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        fs::write(state_path(), before)?;
        self.configure_plugin(&[], true).await?;
        fs::remove_dir_all(memory)?;
        outcome
    }

    /// The plugin's metrics, line by line.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn plugin_metrics(&self) -> Result<BTreeSet<String>> {
        let pod = self.plugin_pods().await?.pop().context("no device plugin runs")?;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}:9401/proxy/metrics", pod.name_any());
        let text = self.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits until the kubelet would give out this many devices of a resource.
    ///
    /// # Errors
    /// When it never does.
    pub async fn wait_for_devices(&self, resource: &str, devices: usize) -> Result<()> {
        self.eventually(&format!("the kubelet has {devices} of {resource}"), || async {
            let now = Kubelet::new()?.allocatable().await.unwrap_or_default();
            Ok((now.get(resource).copied().unwrap_or_default() == devices).then_some(()))
        })
        .await
    }

    /// Waits for an Event about the GPUNode whose text contains all of these.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn wait_for_event(&self, reason: &str, parts: &[&str]) -> Result<()> {
        event(&Api::namespaced(self.client.clone(), "default"), reason, parts).await
    }
}
