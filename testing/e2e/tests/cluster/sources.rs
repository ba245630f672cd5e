//! Models that lie on the node or in a claim, instead of in an image.

use crate::pods::{data_factory, reranker};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use principium_api::{DataFactory, Reranker};
use principium_e2e::{World, run};
use principium_local_cluster::{Cache, models, repository};

#[test]
fn a_model_is_read_from_a_folder_of_the_node_and_from_a_claim() -> Result<()> {
    run("sources", |world| async move {
        // The node is this machine, where they lie for the images that the other tests mount.
        let models = models::fetch(Cache::from_environment()?.root(), &repository(), |_| {})?;
        let source = format!("{{hostPath: {{path: {}}}}}", models.minilm.display());
        world
            .apply::<DataFactory>(&with_model(&data_factory("factory", "{count: 1, memory: 2Gi}"), &source))
            .await?;

        let (name, folder) = (world.namespace.as_str(), models.cross_encoder);
        let volume: PersistentVolume = serde_yaml::from_str(&format!(
            "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}}}, spec: {{capacity: {{storage: 1Gi}}, \
             accessModes: [ReadOnlyMany], storageClassName: '', persistentVolumeReclaimPolicy: Retain, \
             claimRef: {{namespace: {name}, name: models}}, hostPath: {{path: {}}}}}}}",
            folder.parent().context("a folder without a parent")?.display()
        ))?;
        let volumes = Api::<PersistentVolume>::all(world.client.clone());
        volumes.patch(name, &PatchParams::apply("principium-e2e").force(), &Patch::Apply(&volume)).await?;
        // A task of its own, so that a failed assertion does not leave the volume, which is in no namespace.
        let file = folder.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
        let outcome = tokio::spawn(from_a_claim(world.clone(), file)).await;
        volumes.delete(name, &DeleteParams::default()).await?;
        outcome.context("the test panicked")??;

        world.ready::<DataFactory>("factory").await?;
        // What it runs the worker is asked when it is ready.
        let told = || async {
            let status = world.api::<DataFactory>().get("factory").await?.status.unwrap_or_default();
            Ok(status.model)
        };
        let model = world.eventually("the status tells the model", told).await?;
        assert_eq!(model.dimension, Some(384));
        Ok(())
    })
}

async fn from_a_claim(world: World, path: String) -> Result<()> {
    let claim = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: models}, spec: {accessModes: [ReadOnlyMany], \
                 storageClassName: '', resources: {requests: {storage: 1Gi}}}}";
    world.apply::<PersistentVolumeClaim>(claim).await?;
    let source = format!("{{persistentVolumeClaim: {{claimName: models, path: {path}}}}}");
    world.apply::<Reranker>(&with_model(&reranker("ranker", "{count: 1, memory: 2Gi}"), &source)).await?;
    world.ready::<Reranker>("ranker").await.map(drop)
}

/// A resource whose model has another source.
pub fn with_model(resource: &str, source: &str) -> String {
    let lines = resource.lines().map(|line| {
        if line.starts_with("  model:") { format!("  model: {source}") } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
