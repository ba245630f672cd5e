//! Hot and failing GPUs: nothing new comes, nothing that runs is touched, neighbors notice nothing, and it ends.

use crate::pods::{identity, phase, reranker, running, third_party};
use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use principium_api::Reranker;
use principium_api::gpu_node::WithheldReason;
use principium_api::status::condition::READY;
use principium_e2e::{gpus, run};
use std::time::Duration;

#[test]
fn a_hot_gpu_gets_no_new_pod_keeps_its_running_one_and_comes_back_below_the_lower_limit() -> Result<()> {
    run("heat", |world| async move {
        world.apply::<Pod>(&third_party("runs", Some((2, 3)))).await?;
        let before = identity(&running(&world, "runs").await?);

        gpus::set(2, &["--temperature", "92"])?;
        world.wait_for_withheld(2, true).await?;
        assert_eq!(world.gpu(2).await?.withheld.map(|w| w.reason), Some(WithheldReason::Overheated));
        // The units in use stay; the free ones go.
        world.wait_for_allocatable(2, 3).await?;
        world.apply::<Pod>(&third_party("comes", Some((2, 2)))).await?;
        world.apply::<Reranker>(&reranker("asks", "{devices: [{index: 2, memory: 2Gi}]}")).await?;
        let message = world.reason::<Reranker>("asks", READY, "WaitingForGPU").await?;
        assert!(message.contains("GPU 2") && message.contains("92"), "says that the GPU is hot: {message}");
        let api = world.api::<Pod>();
        world
            .stays("the new pod waits", Duration::from_secs(4), || async {
                Ok(phase(&api.get("comes").await?) == "Pending")
            })
            .await?;
        assert_eq!(identity(&api.get("runs").await?), before, "the running pod is untouched");

        // Between the limits nothing changes; below the lower one it comes back.
        gpus::set(2, &["--temperature", "80"])?;
        world
            .stays("withheld between the limits", Duration::from_secs(12), || async {
                Ok(world.gpu(2).await?.withheld.is_some())
            })
            .await?;
        gpus::set(2, &["--temperature", "50"])?;
        world.wait_for_withheld(2, false).await?;
        running(&world, "comes").await?;
        world.ready::<Reranker>("asks").await?;
        assert_eq!(identity(&api.get("runs").await?), before);
        Ok(())
    })
}

#[test]
fn a_chosen_gpu_is_never_a_hot_one() -> Result<()> {
    run("choice", |world| async move {
        for index in 0..7 {
            gpus::set(index, &["--temperature", "93"])?;
        }
        for index in 0..7 {
            world.wait_for_withheld(index, true).await?;
        }
        world
            .apply::<Reranker>(&reranker("ranker", "{count: 1, memory: 2Gi, prefer: {indices: [0, 1]}}"))
            .await?;
        let status = world.ready::<Reranker>("ranker").await?.status.unwrap_or_default();
        assert_eq!(
            status.assignments[0].gpus[0].index, 7,
            "the only cool one: {}",
            status.assignments[0].reason
        );
        Ok(())
    })
}

#[test]
fn a_lost_gpu_does_not_disturb_the_others_and_comes_back() -> Result<()> {
    run("lost", |world| async move {
        world.apply::<Pod>(&third_party("neighbor", Some((4, 8)))).await?;
        let before = identity(&running(&world, "neighbor").await?);
        gpus::set(5, &["--lost"])?;
        world.wait_for_allocatable(5, 0).await?;
        assert_eq!(world.gpu(5).await?.withheld.map(|w| w.reason), Some(WithheldReason::Lost));
        for index in [0, 1, 2, 3, 4, 6, 7] {
            assert_eq!(world.allocatable(index).await?, 8, "GPU {index}");
        }
        // One lost GPU must not keep the kubelet from admitting pods on the others.
        world.apply::<Pod>(&third_party("newcomer", Some((6, 8)))).await?;
        running(&world, "newcomer").await?;
        assert_eq!(identity(&world.api::<Pod>().get("neighbor").await?), before);

        gpus::set(5, &["--recover"])?;
        world.wait_for_allocatable(5, 8).await
    })
}
