//! Deleting works in every state: nothing that we make waits for a part of ours that is gone.

use crate::pods::{data_factory, reranker};
use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use principium_api::status::condition::READY;
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
use principium_e2e::{Release, World, run, stand_in};

/// An Ingestion of a volume that the DataFactory does not have.
const INGESTION: &str = "
apiVersion: principium.ai/v1alpha1
kind: Ingestion
metadata: {name: handbook}
spec: {dataFactoryRef: {name: factory}, source: {folder: {path: nowhere}}}
";
const POOL: &str = "
apiVersion: principium.ai/v1alpha1
kind: OllamaPool
metadata: {name: pool}
spec: {instances: 2, gpu: {count: 1, memory: 2Gi}}
";

#[test]
fn every_kind_is_deleted_with_all_that_it_has_while_the_plugin_is_gone() -> Result<()> {
    run("deletion", |world| async move {
        world.apply::<DataFactory>(&data_factory("factory", "{devices: [{index: 3, memory: 4Gi}]}")).await?;
        world.apply::<Reranker>(&reranker("ranker", "{count: 1}")).await?;
        world.apply::<OllamaPool>(POOL).await?;
        world.apply::<Ingestion>(INGESTION).await?;
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;
        world.ready::<OllamaPool>("pool").await?;
        // A node that no selector fits: the DaemonSet has no pod.
        let gone = delete_all(world.clone());
        Release::existing()?.with(&["devicePlugin.nodeSelector.nowhere=yes"], gone).await?;
        // The plugin that comes back finds nobody on its GPUs.
        world.wait_until_idle().await
    })
}

#[test]
fn a_node_that_is_gone_for_ever_holds_up_nothing() -> Result<()> {
    const NODE: &str = "e2e-gone";
    run("gone", |world| async move {
        stand_in::make(&world.client, NODE, 99).await?;
        let done = leave_a_node(&world, NODE).await;
        // Also when something is wrong before it is taken away.
        let removed = stand_in::remove(&world.client, NODE).await;
        done?;
        removed?;
        let message = world.reason::<Reranker>("stays", READY, "WaitingForGPU").await?;
        assert!(message.contains("nodeSelector") || message.contains(NODE), "{message}");
        world.delete::<Reranker>("stays").await?;
        nothing_is_left(&world).await
    })
}

/// Has pods on a node that no kubelet answers for, and deletes one of the resources.
async fn leave_a_node(world: &World, node: &str) -> Result<()> {
    for name in ["leaves", "stays"] {
        let ranker = reranker(name, "{count: 1}");
        let on_it = format!("  nodeSelector: {{kubernetes.io/hostname: {node}}}");
        world.apply::<Reranker>(&format!("{}\n{on_it}\n", ranker.trim_end())).await?;
        let bound = || async {
            let pods = world.pods_of(name).await?;
            let nodes = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref());
            Ok(nodes.eq([node]).then_some(()))
        };
        world.eventually("its pod is on the node", bound).await?;
    }
    // Nobody says that its pod has ended, and yet it goes.
    world.delete::<Reranker>("leaves").await?;
    anyhow::ensure!(!world.pods_of("leaves").await?.is_empty(), "its pod ends when somebody says so");
    Ok(())
}

async fn delete_all(world: World) -> Result<()> {
    world
        .eventually("no plugin runs", || async { Ok(world.plugin_pods().await?.is_empty().then_some(())) })
        .await?;
    world.delete::<Ingestion>("handbook").await?;
    world.delete::<DataFactory>("factory").await?;
    world.delete::<Reranker>("ranker").await?;
    world.delete::<OllamaPool>("pool").await?;
    nothing_is_left(&world).await
}

async fn nothing_is_left(world: &World) -> Result<()> {
    let all = ListParams::default();
    world
        .eventually("nothing is left", || async {
            let left = world.api::<Pod>().list(&all).await?.items.len()
                + world.api::<Service>().list(&all).await?.items.len()
                + world.api::<PodDisruptionBudget>().list(&all).await?.items.len();
            Ok((left == 0).then_some(()))
        })
        .await
}
