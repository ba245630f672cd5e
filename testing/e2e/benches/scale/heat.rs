//! GPUs that turn hot, and how soon the operator acts.

use crate::NAMESPACE;
use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use principium_api::{GPUNode, Reranker};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a decision may take until something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two GPUs: the operator is to be found at rest.
const BETWEEN: Duration = Duration::from_millis(1500);

/// Heats a GPU under a pod of this many Rerankers, each another, and returns how long it took from the write to GPUNode until
/// the operator's decision stood in the resource's status, the way of both through the API server included. The decision is to
/// leave the pod there: it could not move so soon after it was placed.
pub async fn heat(client: &Client, times: usize) -> Result<Vec<Duration>> {
    let rerankers =
        Api::<Reranker>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await?;
    let mut took = Vec::new();
    for reranker in rerankers.items.iter().filter(|found| found.spec.replicas != Some(0)).take(times) {
        took.push(
            one(client, reranker)
                .await
                .with_context(|| format!("heating a GPU of {}", reranker.name_any()))?,
        );
        tokio::time::sleep(BETWEEN).await;
    }
    if took.len() < times {
        bail!("there are only {} Rerankers with pods for {times} hot GPUs", took.len());
    }
    Ok(took)
}

async fn one(client: &Client, reranker: &Reranker) -> Result<Duration> {
    let status = reranker.status.as_ref().context("no status")?;
    let assignment = status.assignments.first().context("no assignment")?;
    let index = assignment.gpus.first().context("no GPU")?.index;
    let nodes = Api::<GPUNode>::all(client.clone());
    let mut gpus = nodes.get(&assignment.node).await?.status.context("a GPUNode without status")?.gpus;
    let gpu = gpus.iter_mut().find(|gpu| gpu.index == index).context("no such GPU")?;
    gpu.temperature = Some(92);
    gpu.withheld = Some(principium_api::gpu_node::Withheld {
        reason: principium_api::gpu_node::WithheldReason::Overheated,
        message: "92 °C, withheld from 85 °C".to_owned(),
        since: jiff::Timestamp::now().to_string(),
    });

    let name = reranker.name_any();
    let rerankers = Api::<Reranker>::namespaced(client.clone(), NAMESPACE);
    let fields = format!("metadata.name={name}");
    // The version of a list is that of now; the object's own may be older than what the API server can watch from.
    let listed = rerankers.list(&ListParams::default().fields(&fields)).await?;
    let version = listed.metadata.resource_version.unwrap_or_default();
    let of_it = WatchParams::default().fields(&fields);
    let mut watch = rerankers.watch(&of_it, &version).await?.boxed();
    let started = Instant::now();
    let hot = json!({"status": {"gpus": gpus}});
    nodes.patch_status(&assignment.node, &PatchParams::default(), &Patch::Merge(hot)).await?;
    let decided = async {
        while let Some(event) = watch.try_next().await? {
            if let WatchEvent::Modified(seen) = event
                && seen
                    .status
                    .iter()
                    .flat_map(|status| &status.conditions)
                    .any(|found| found.message.contains("withheld"))
            {
                return Ok(started.elapsed());
            }
        }
        bail!("the watch of {name} ended")
    };
    tokio::time::timeout(PATIENCE, decided).await.context("the operator said nothing about it")?
}
