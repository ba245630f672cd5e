//! Restarts of the parts change no running assignment.

use crate::pods::{admitted, data_factory, identity, reranker};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use principium_api::status::Assignment;
use principium_api::{DataFactory, Reranker};
use principium_e2e::{World, run};
use std::time::Duration;

/// Who holds what, as the API, the node and the pods say it.
async fn holdings(world: &World) -> Result<(Vec<Assignment>, Vec<(String, Option<String>, i32)>)> {
    let mut assignments = Vec::new();
    assignments
        .extend(world.api::<DataFactory>().get("factory").await?.status.unwrap_or_default().assignments);
    assignments.extend(world.api::<Reranker>().get("ranker").await?.status.unwrap_or_default().assignments);
    let mut pods = Vec::new();
    for name in ["factory", "ranker"] {
        pods.extend(world.pods_of(name).await?.iter().map(identity));
    }
    Ok((assignments, pods))
}

/// Deletes the pods of one part of the installation and waits until new ones are ready.
pub async fn restart_part(world: &World, component: &str) -> Result<()> {
    let api = Api::<Pod>::namespaced(world.client.clone(), principium_local_cluster::NAMESPACE);
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
    let old: Vec<String> = api.list(&selector).await?.iter().filter_map(ResourceExt::uid).collect();
    assert!(!old.is_empty(), "no pod of {component}");
    api.delete_collection(&DeleteParams::default(), &selector).await?;
    world
        .eventually(&format!("a new {component} is ready"), || async {
            let pods = api.list(&selector).await?.items;
            let ready = |pod: &Pod| {
                let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
                conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
            };
            let new = pods.iter().all(|pod| pod.uid().is_some_and(|uid| !old.contains(&uid)));
            Ok((!pods.is_empty() && new && pods.iter().all(ready)).then_some(()))
        })
        .await
}

#[test]
fn restarts_of_kubelet_plugin_and_operator_change_no_running_assignment() -> Result<()> {
    run("restarts", |world| async move {
        world
            .apply::<DataFactory>(&data_factory(
                "factory",
                "{devices: [{index: 6}, {index: 7, memory: 5Gi}]}",
            ))
            .await?;
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 7, memory: 3Gi}]}")).await?;
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;
        let before = holdings(&world).await?;

        for (round, part) in ["operator", "device-plugin", "kubelet"].into_iter().enumerate() {
            if part == "kubelet" {
                tokio::task::spawn_blocking(|| principium_local_cluster::restart_component("kubelet"))
                    .await?
                    .context("restarting the kubelet")?;
            } else {
                restart_part(&world, part).await?;
            }
            // Every unit is offered again, and a new pod gets its own.
            for index in 0..8 {
                world.wait_for_allocatable(index, 8).await?;
            }
            let name = format!("newcomer-{round}");
            admitted(&world, &name, (0, 8)).await?;
            world.delete::<Pod>(&name).await?;
            world
                .stays(
                    &format!("the assignments after the restart of {part}"),
                    Duration::from_secs(3),
                    || async { Ok(holdings(&world).await? == before) },
                )
                .await?;
        }
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;
        Ok(())
    })
}
