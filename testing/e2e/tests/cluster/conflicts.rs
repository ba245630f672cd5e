//! Two resources that want one GPU, and specs that can't work.

use crate::pods::{data_factory, identity, reranker};
use anyhow::Result;
use principium_api::status::condition::{ACCELERATED, READY, STALLED};
use principium_api::{DataFactory, Reranker};
use principium_e2e::run;

#[test]
fn one_of_two_claims_runs_the_other_says_why_and_starts_when_the_first_goes() -> Result<()> {
    run("conflict", |world| async move {
        world.apply::<Reranker>(&reranker("first", "{devices: [{index: 1}]}")).await?;
        world.ready::<Reranker>("first").await?;
        let before = identity(&world.pods_of("first").await?[0]);
        world.apply::<DataFactory>(&data_factory("second", "{devices: [{index: 1}]}")).await?;
        let message = world.reason::<DataFactory>("second", READY, "WaitingForGPU").await?;
        assert!(
            message.contains("GPU 1") && message.contains("first"),
            "names the GPU and its holder: {message}"
        );
        assert!(world.pods_of("second").await?.is_empty());
        assert_eq!(identity(&world.pods_of("first").await?[0]), before, "the holder is left alone");

        world.delete::<Reranker>("first").await?;
        world.ready::<DataFactory>("second").await?;
        Ok(())
    })
}

#[test]
fn a_spec_that_can_not_work_is_stalled_and_recovers_when_it_is_mended() -> Result<()> {
    run("stalled", |world| async move {
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 42}]}")).await?;
        let message = world.reason::<Reranker>("ranker", STALLED, "NoSuchGPU").await?;
        assert!(message.contains("42"), "names the GPU: {message}");
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 4}]}")).await?;
        world.ready::<Reranker>("ranker").await?;
        Ok(())
    })
}

#[test]
fn what_must_compute_on_its_gpus_and_does_not_is_stalled_until_it_may_use_the_cpu() -> Result<()> {
    run("accelerated", |world| async move {
        let ranker = reranker("ranker", "{count: 1, memory: 2Gi}");
        let factory = data_factory("factory", "{count: 1, memory: 2Gi}");
        let required = "  requireAcceleration: true\n";
        world.apply::<Reranker>(&format!("{ranker}{required}")).await?;
        world.apply::<DataFactory>(&format!("{factory}{required}")).await?;
        let messages = [
            world.reason::<Reranker>("ranker", STALLED, "NotAccelerated").await?,
            world.reason::<DataFactory>("factory", STALLED, "NotAccelerated").await?,
        ];
        for message in messages {
            assert!(message.contains("simulated") && message.contains("requireAcceleration"), "{message}");
        }
        world.reason::<Reranker>("ranker", ACCELERATED, "SimulatedHardware").await?;
        world.apply::<Reranker>(&ranker).await?;
        world.apply::<DataFactory>(&factory).await?;
        world.ready::<Reranker>("ranker").await?;
        world.ready::<DataFactory>("factory").await.map(drop)
    })
}

#[test]
fn a_worker_that_can_not_start_says_why_in_the_status_and_starts_when_the_spec_is_mended() -> Result<()> {
    run("unstartable", |world| async move {
        let right = reranker("ranker", "{count: 0}");
        world.apply::<Reranker>(&format!("{right}  dtype: f16\n")).await?;
        let api = world.api::<Reranker>();
        world
            .eventually("the status has the worker's own error", || async {
                let status = api.get("ranker").await?.status.unwrap_or_default();
                let told = |message: &str| message.contains("float16 is not computed on the CPU");
                Ok(status.conditions.iter().any(|it| it.type_ == READY && told(&it.message)).then_some(()))
            })
            .await?;
        world.apply::<Reranker>(&right).await?;
        world.ready::<Reranker>("ranker").await?;
        Ok(())
    })
}
