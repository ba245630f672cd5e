//! Nobody gets memory that somebody else has.

use crate::pods::{phase, reranker, running, third_party};
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use principium_api::Reranker;
use principium_api::status::condition::READY;
use principium_e2e::{World, run};
use std::time::Duration;

/// Units of GPU 3 that running pods of the namespace hold.
async fn held(world: &World) -> Result<u32> {
    let pods = world.api::<Pod>().list(&ListParams::default()).await?;
    Ok(pods
        .iter()
        .filter(|pod| phase(pod) == "Running")
        .filter_map(|pod| {
            pod.spec.as_ref()?.containers[0].resources.as_ref()?.limits.as_ref()?.get("principium.ai/gpu-3")
        })
        .filter_map(|quantity| quantity.0.parse::<u32>().ok())
        .sum())
}

#[test]
fn pods_of_others_can_not_overcommit_a_gpu_in_any_order() -> Result<()> {
    run("overcommit", |world| async move {
        for order in [[5, 3, 1], [1, 5, 3], [3, 1, 5]] {
            for units in order {
                world.apply::<Pod>(&third_party(&format!("wants-{units}"), Some((3, units)))).await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            // Nine units are wanted and eight are there: whoever comes last and does not fit waits.
            let fitting: Vec<u32> = order
                .iter()
                .scan(0, |sum, units| {
                    let fits = *sum + units <= 8;
                    *sum += if fits { *units } else { 0 };
                    Some(if fits { *units } else { 0 })
                })
                .filter(|units| *units > 0)
                .collect();
            for units in &fitting {
                running(&world, &format!("wants-{units}")).await?;
            }
            world
                .stays("at most 8 units of GPU 3 are held", Duration::from_secs(3), || async {
                    Ok(held(&world).await? <= 8)
                })
                .await?;
            assert_eq!(held(&world).await?, fitting.iter().sum::<u32>(), "order {order:?}");
            for units in order {
                world.delete::<Pod>(&format!("wants-{units}")).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn the_operator_gives_no_memory_that_is_held_and_waits_for_it() -> Result<()> {
    run("shares", |world| async move {
        world.apply::<Pod>(&third_party("stranger", Some((3, 4)))).await?;
        running(&world, "stranger").await?;
        world.apply::<Reranker>(&reranker("fits", "{devices: [{index: 3, memory: 3Gi}]}")).await?;
        world.ready::<Reranker>("fits").await?;
        world.apply::<Reranker>(&reranker("waits", "{devices: [{index: 3, memory: 2Gi}]}")).await?;
        let message = world.reason::<Reranker>("waits", READY, "WaitingForGPU").await?;
        assert!(
            message.contains("GPU 3") && message.contains("stranger") && message.contains("fits"),
            "names the holders: {message}"
        );
        assert!(world.pods_of("waits").await?.is_empty(), "no pod is made before its units are free");
        assert!(held(&world).await? <= 8);

        world.delete::<Pod>("stranger").await?;
        world.ready::<Reranker>("waits").await?;
        let names: Vec<String> = world.pods_of("fits").await?.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names.len(), 1, "the neighbor was left alone: {names:?}");
        Ok(())
    })
}
