//! Deleting works in every state: nothing that we make waits for a part of ours that is gone.

use crate::pods::{data_factory, reranker};
use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::ListParams;
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
use principium_e2e::{Release, World, run};

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

async fn delete_all(world: World) -> Result<()> {
    world
        .eventually("no plugin runs", || async { Ok(world.plugin_pods().await?.is_empty().then_some(())) })
        .await?;
    world.delete::<Ingestion>("handbook").await?;
    world.delete::<DataFactory>("factory").await?;
    world.delete::<Reranker>("ranker").await?;
    world.delete::<OllamaPool>("pool").await?;
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
