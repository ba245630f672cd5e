//! Pods and resources that several tests use.

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use principium_api::names::{gpu_index, gpu_resource};
use principium_e2e::World;
use std::collections::BTreeMap;

/// The image registry and tag of the chart's defaults, under which the local cluster has the images.
pub fn image(name: &str) -> String {
    format!("ghcr.io/principium-ai/{name}:{}", env!("CARGO_PKG_VERSION"))
}

/// A pod of somebody else that asks for units of one GPU, or for none.
pub fn third_party(name: &str, gpu: Option<(u32, u32)>) -> String {
    let resource = gpu.map(|(index, units)| (gpu_resource(index), units));
    let asked: Vec<(&str, u32)> =
        resource.iter().map(|(resource, units)| (resource.as_str(), *units)).collect();
    third_party_asking(name, &asked)
}

/// A pod of somebody else that asks for these resources.
pub fn third_party_asking(name: &str, asked: &[(&str, u32)]) -> String {
    let limits: Vec<String> =
        asked.iter().map(|(resource, amount)| format!(r#""{resource}": "{amount}""#)).collect();
    let limits = limits.join(", ");
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {image}
      args: [serve]
      env: [{{name: PRINCIPIUM_ROLE, value: doc-analyzer}}]
      resources: {{limits: {{{limits}}}}}
"#,
        image = image("principium-embedder")
    )
}

/// A reranker on the GPUs that `gpu` says (YAML flow syntax).
pub fn reranker(name: &str, gpu: &str) -> String {
    format!(
        r#"
apiVersion: principium.ai/v1alpha1
kind: Reranker
metadata: {{name: {name}}}
spec:
  model: {{image: {{reference: "{model}"}}}}
  gpu: {gpu}
"#,
        model = image("principium-model-ms-marco-minilm-l12-v2")
    )
}

/// A DataFactory on the GPUs that `gpu` says (YAML flow syntax), without enrichment.
pub fn data_factory(name: &str, gpu: &str) -> String {
    format!(
        r#"
apiVersion: principium.ai/v1alpha1
kind: DataFactory
metadata: {{name: {name}}}
spec:
  model: {{image: {{reference: "{model}"}}}}
  gpu: {gpu}
"#,
        model = image("principium-model-all-minilm-l6-v2")
    )
}

/// What must not change while a pod is left alone: its identity, its node and how often its containers started.
pub fn identity(pod: &Pod) -> (String, Option<String>, i32) {
    let status = pod.status.as_ref();
    let restarts = status
        .and_then(|s| s.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .sum();
    (pod.uid().unwrap_or_default(), pod.spec.as_ref().and_then(|s| s.node_name.clone()), restarts)
}

/// The phase of a pod.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether a pod is ready and not being deleted.
pub fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Units that a pod asks for, by index of the GPU.
pub fn requested(pod: &Pod) -> BTreeMap<u32, u32> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits = containers.filter_map(|container| container.resources.as_ref()?.limits.as_ref()).flatten();
    limits.filter_map(|(name, amount)| Some((gpu_index(name)?, amount.0.parse().ok()?))).collect()
}

/// Waits until a pod runs.
pub async fn running(world: &World, name: &str) -> Result<Pod> {
    let api = world.api::<Pod>();
    world
        .eventually(&format!("pod {name} runs"), || async {
            let pod = api.get(name).await?;
            Ok((phase(&pod) == "Running").then_some(pod))
        })
        .await
}

/// Applies [`third_party`] until the kubelet takes it. A kubelet that has just started rejects the pods that come before the
/// device plugin has registered with it, for good: whoever owns a pod makes a new one then, as this does.
pub async fn admitted(world: &World, name: &str, gpu: (u32, u32)) -> Result<Pod> {
    let api = world.api::<Pod>();
    world
        .eventually(&format!("pod {name} is admitted and runs"), || async {
            let pod = match api.get_opt(name).await? {
                Some(pod) => pod,
                None => world.apply::<Pod>(&third_party(name, Some(gpu))).await?,
            };
            if phase(&pod) == "Failed" {
                world.delete::<Pod>(name).await?;
            }
            Ok((phase(&pod) == "Running").then_some(pod))
        })
        .await
}
