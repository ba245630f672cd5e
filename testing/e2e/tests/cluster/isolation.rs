//! Each container sees exactly its own GPUs.

use crate::pods::{data_factory, reranker, running, third_party};
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use principium_api::{DataFactory, Reranker};
use principium_e2e::container::{Container, Open};
use principium_e2e::{World, run};
use std::collections::BTreeSet;

/// Holds a container against the GPUs that it should have.
async fn sees_exactly(world: &World, container: &Container, gpus: &[u32]) -> Result<()> {
    let wanted: BTreeSet<String> = gpus.iter().map(|index| format!("nvidia{index}")).collect();
    let nodes: BTreeSet<String> = container
        .nvidia_nodes()?
        .into_iter()
        .filter(|name| name.trim_start_matches("nvidia").parse::<u32>().is_ok())
        .collect();
    assert_eq!(nodes, wanted, "device nodes in /dev");
    for index in 0..8 {
        let expected = if gpus.contains(&index) { Open::Allowed } else { Open::Denied };
        assert_eq!(container.open(index)?, expected, "opening GPU {index} of a container that has {gpus:?}");
    }
    let environment = container.environment()?;
    let mut uuids = Vec::new();
    for index in gpus {
        uuids.push(world.gpu(*index).await?.uuid);
    }
    let visible = environment.get("CUDA_VISIBLE_DEVICES").cloned();
    assert_eq!(visible, (!gpus.is_empty()).then(|| uuids.join(",")), "CUDA_VISIBLE_DEVICES");
    Ok(())
}

#[test]
fn each_pod_sees_exactly_its_gpus_and_no_others() -> Result<()> {
    run("isolation", |world| async move {
        world
            .apply::<DataFactory>(&data_factory(
                "factory",
                "{devices: [{index: 6}, {index: 7, memory: 5Gi}]}",
            ))
            .await?;
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 7, memory: 3Gi}]}")).await?;
        world.apply::<Pod>(&third_party("no-gpu", None)).await?;
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;

        for (owner, gpus, gets) in
            [("factory", vec![6, 7], "GPU 6 (8 GiB), GPU 7 (5 GiB)"), ("ranker", vec![7], "GPU 7 (3 GiB)")]
        {
            let pods = world.pods_of(owner).await?;
            assert_eq!(pods.len(), 1, "{owner} is one pod");
            let told = format!("Pod {} gets {gets} on node ", pods[0].name_any());
            world.told("Placed", &[&told, "named in spec.gpu.devices"]).await?;
            let name = pods[0].spec.as_ref().map(|spec| spec.containers[0].name.clone()).unwrap_or_default();
            sees_exactly(&world, &Container::of(&pods[0], &name)?, &gpus).await?;
        }
        let stranger = running(&world, "no-gpu").await?;
        sees_exactly(&world, &Container::of(&stranger, "main")?, &[]).await
    })
}

#[test]
fn the_status_tells_which_model_runs_and_how_it_computes() -> Result<()> {
    run("model", |world| async move {
        world.apply::<DataFactory>(&data_factory("factory", "{count: 1, memory: 2Gi}")).await?;
        let api = world.api::<DataFactory>();
        let model = world
            .eventually("the worker has said what it runs", || async {
                Ok(api.get("factory").await?.status.and_then(|status| status.model))
            })
            .await?;
        assert_eq!((model.name.as_str(), model.dimension), ("all-minilm-l6-v2", Some(384)));
        assert_eq!(model.dtype.as_deref(), Some("float32"));
        let digest = model.digest.unwrap_or_default();
        assert!(
            digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "SHA-256: {digest}"
        );
        // With the instruction set, which depends on the machine.
        let device = model.device.unwrap_or_default();
        assert!(device.starts_with("cpu (") && device.len() > "cpu ()".len(), "{device}");
        Ok(())
    })
}

#[test]
fn assignments_in_status_are_what_the_kubelet_gave() -> Result<()> {
    run("assignments", |world| async move {
        world
            .apply::<DataFactory>(&data_factory(
                "factory",
                "{count: 2, memory: 3Gi, prefer: {indices: [4, 2]}}",
            ))
            .await?;
        let factory = world.ready::<DataFactory>("factory").await?;
        let status = factory.status.unwrap_or_default();
        let assignment = &status.assignments[0];
        let chosen: BTreeSet<u32> = assignment.gpus.iter().map(|gpu| gpu.index).collect();
        assert_eq!(
            chosen,
            BTreeSet::from([2, 4]),
            "preferred GPUs are free, so they are taken: {}",
            assignment.reason
        );
        for gpu in &assignment.gpus {
            assert_eq!(gpu.units, 3);
            let pod = assignment.pod.clone();
            world
                .eventually("GPUNode shows the allocation", || async {
                    let seen = world.gpu(gpu.index).await?;
                    assert_eq!(seen.uuid, gpu.uuid);
                    Ok(seen.allocations.iter().any(|a| a.pod == pod && a.units == 3).then_some(()))
                })
                .await?;
        }
        Ok(())
    })
}
