//! GPUs that change hands between kinds, and instances that rest while their GPU is hot.

use crate::pods::{data_factory, identity};
use anyhow::Result;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use principium_api::status::condition::READY;
use principium_api::{DataFactory, OllamaPool};
use principium_e2e::{World, gpus, run};
use std::time::Duration;

/// A pool without models, each instance on a GPU of its own.
fn pool(devices: &str) -> String {
    format!(
        "{{apiVersion: principium.ai/v1alpha1, kind: OllamaPool, metadata: {{name: pool}}, \
         spec: {{instances: 2, gpu: {{devices: [{devices}]}}}}}}"
    )
}

#[test]
fn a_gpu_goes_from_a_pool_to_a_data_factory_once_its_memory_is_free_and_back() -> Result<()> {
    run("handover", |world| async move {
        world.apply::<OllamaPool>(&pool("{index: 4}, {index: 5}")).await?;
        world.ready::<OllamaPool>("pool").await?;
        world.apply::<DataFactory>(&data_factory("factory", "{devices: [{index: 5}]}")).await?;
        let message = world.reason::<DataFactory>("factory", READY, "WaitingForGPU").await?;
        assert!(message.contains("GPU 5") && message.contains("pool"), "names the holder: {message}");

        // The pool's pods end, and the driver has not given the memory back yet.
        gpus::set(5, &["--memory-used", "6GiB"])?;
        world.delete::<OllamaPool>("pool").await?;
        let none = || async { Ok(world.pods_of("pool").await?.is_empty().then_some(())) };
        world.eventually("no instance is left", none).await?;
        world
            .stays("nobody starts in memory that is in use", Duration::from_secs(6), || async {
                let pods = world.pods_of("factory").await?;
                Ok(pods
                    .iter()
                    .all(|pod| pod.metadata.name.as_deref().is_some_and(|name| name.contains("analyzer"))))
            })
            .await?;
        gpus::set(5, &["--memory-used", "0"])?;
        world.ready::<DataFactory>("factory").await?;

        // And back.
        world.apply::<OllamaPool>(&pool("{index: 4}, {index: 5}")).await?;
        let message = world.reason::<OllamaPool>("pool", READY, "WaitingForGPU").await?;
        assert!(message.contains("GPU 5") && message.contains("factory"), "names the holder: {message}");
        world.delete::<DataFactory>("factory").await?;
        world.ready::<OllamaPool>("pool").await.map(drop)
    })
}

/// Pods that take the requests of the pool's Service.
async fn serving(world: &World) -> Result<Vec<String>> {
    let selector = ListParams::default().labels("kubernetes.io/service-name=pool");
    let slices = world.api::<EndpointSlice>().list(&selector).await?.items;
    let endpoints = slices.into_iter().flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
    });
    let mut names: Vec<String> = ready.filter_map(|endpoint| endpoint.target_ref?.name).collect();
    names.sort();
    Ok(names)
}

#[test]
fn a_hot_instance_takes_no_requests_while_another_does_and_comes_back() -> Result<()> {
    run("rest", |world| async move {
        world.apply::<OllamaPool>(&pool("{index: 1, memory: 2Gi}, {index: 2, memory: 2Gi}")).await?;
        world.ready::<OllamaPool>("pool").await?;
        let pods = || async {
            Ok::<_, anyhow::Error>(world.pods_of("pool").await?.iter().map(identity).collect::<Vec<_>>())
        };
        let before = pods().await?;
        let of = |wanted: &'static [&'static str]| {
            let world = &world;
            move || async move {
                let found = serving(world).await?;
                let same = found.len() == wanted.len()
                    && found.iter().zip(wanted).all(|(name, start)| name.starts_with(start));
                Ok(same.then_some(()))
            }
        };
        world.eventually("both instances serve", of(&["pool-0-", "pool-1-"])).await?;
        gpus::set(2, &["--temperature", "92"])?;
        world.eventually("the cool one serves alone", of(&["pool-0-"])).await?;
        gpus::set(2, &["--temperature", "40"])?;
        world.eventually("both serve again", of(&["pool-0-", "pool-1-"])).await?;
        assert_eq!(pods().await?, before, "no pod was touched for it");
        Ok(())
    })
}
