//! Pods that leave their GPU, come back to it or stay: heat, failure, restarts, a bad image, another card.

use crate::pods::{data_factory, identity, requested, reranker, serves};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use principium_api::{DataFactory, Reranker};
use principium_e2e::operator::{Operator, without_operator};
use principium_e2e::proxy::Proxy;
use principium_e2e::{World, gpus, run};
use principium_gpu_sim::{state_path, update};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[test]
fn a_pod_leaves_a_hot_gpu_and_then_a_lost_one_successor_first_and_a_pinned_one_stays() -> Result<()> {
    run("moves", |world| async move {
        without_operator(&world.clone(), async move {
            let proxy = Proxy::start().await?;
            // From heat moves who has been there for five minutes; by this clock everybody has.
            let operator = Operator::start_with_clock(&world, &proxy, "later", "+1h").await?;
            let gpu = "{count: 1, memory: 2Gi, prefer: {indices: [2, 3]}, onOverheat: Migrate, onUnhealthy: Replace}";
            world.apply::<Reranker>(&reranker("mover", gpu)).await?;
            let gpu = "{devices: [{index: 2, memory: 2Gi}], onOverheat: Migrate}";
            world.apply::<Reranker>(&reranker("pinned", gpu)).await?;
            for name in ["mover", "pinned"] {
                let ready = world.ready::<Reranker>(name).await.with_context(|| operator.log())?;
                assert_eq!(ready.status.unwrap_or_default().gpus, "2:2", "{name}");
            }
            let pinned = identity(&world.pods_of("pinned").await?[0]);

            gpus::set(2, &["--temperature", "92"])?;
            let cool = left(&world, "mover", 2).await.with_context(|| operator.log())?;
            assert_eq!(cool, 3, "the other one that it prefers");
            world.told("Migrating", &["GPU 2", "92"]).await?;
            gpus::set(3, &["--lost"])?;
            let good = left(&world, "mover", 3).await.with_context(|| operator.log())?;
            assert_ne!(good, 2, "it is hot still");
            world.told("Replacing", &["leaves its GPU: GPU 3"]).await?;
            let stayed = world.pods_of("pinned").await?;
            assert_eq!(stayed.iter().map(identity).collect::<Vec<_>>(), [pinned], "named GPUs are kept");
            operator.kill()
        })
        .await
    })
}

/// Waits until the only pod of a resource is on another GPU than this one, and tells which. Until then one serves all the time.
async fn left(world: &World, name: &str, gpu: u32) -> Result<u32> {
    world
        .eventually(&format!("{name} has left GPU {gpu}"), || async {
            let pods = world.pods_of(name).await?;
            ensure!(pods.iter().any(serves), "no pod of {name} serves");
            let [pod] = pods.as_slice() else { return Ok(None) };
            Ok(requested(pod).into_keys().next().filter(|now| *now != gpu))
        })
        .await
}

#[test]
fn a_data_factory_that_restarts_comes_back_to_the_gpus_that_it_prefers() -> Result<()> {
    run("returns", |world| async move {
        let mut seen = BTreeSet::new();
        for tokens in [200, 150, 100] {
            let factory = data_factory("factory", "{count: 2, prefer: {indices: [6, 7]}}");
            world.apply::<DataFactory>(&format!("{factory}  chunking: {{maxTokens: {tokens}}}\n")).await?;
            world.ready::<DataFactory>("factory").await?;
            let pods = world.pods_of("factory").await?;
            let [pod] = pods.as_slice() else { anyhow::bail!("{} pods", pods.len()) };
            assert!(seen.insert(pod.uid()), "it was restarted for {tokens} tokens");
            assert_eq!(requested(pod), BTreeMap::from([(6, 8), (7, 8)]), "with {tokens} tokens");
        }
        Ok(())
    })
}

#[test]
fn a_bad_image_and_then_the_good_one_again_leave_the_pod_that_ran_all_along() -> Result<()> {
    run("bad-image", |world| async move {
        let good = reranker("ranker", "{count: 1, memory: 2Gi}");
        world.apply::<Reranker>(&good).await?;
        world.ready::<Reranker>("ranker").await?;
        let before = identity(&world.pods_of("ranker").await?[0]);
        // Not pulled, so that no registry has a say.
        let bad = format!("{good}  image: principium.ai/no-such-image:1\n  imagePullPolicy: Never\n");
        world.apply::<Reranker>(&bad).await?;
        let api = world.api::<Reranker>();
        world
            .eventually("the status says what is wrong with the image", || async {
                let conditions = api.get("ranker").await?.status.unwrap_or_default().conditions;
                Ok(conditions.iter().any(|it| it.message.contains("ErrImageNeverPull")).then_some(()))
            })
            .await?;
        let runs = || async {
            let pods = world.pods_of("ranker").await?;
            Ok(pods.len() == 2 && pods.iter().any(|pod| serves(pod) && identity(pod) == before))
        };
        world.stays("the old pod serves beside the bad one", Duration::from_secs(5), runs).await?;

        world.apply::<Reranker>(&good).await?;
        world
            .eventually("the old pod is the only one", || async {
                let pods = world.pods_of("ranker").await?;
                ensure!(pods.iter().any(|pod| serves(pod) && identity(pod) == before), "it does not serve");
                Ok((pods.len() == 1).then_some(()))
            })
            .await?;
        world.ready::<Reranker>("ranker").await?;
        let after = world.pods_of("ranker").await?;
        assert_eq!(after.iter().map(identity).collect::<Vec<_>>(), [before]);
        Ok(())
    })
}

#[test]
fn a_pod_whose_card_is_exchanged_is_restarted_on_the_new_one_and_told_why() -> Result<()> {
    run("another-card", |world| async move {
        world.with_fresh_plugin(|_| (), another_card(&world)).await?;
        world.wait_until_calm().await
    })
}

async fn another_card(world: &World) -> Result<()> {
    const OTHER: &str = "GPU-00000000-1111-2222-3333-444444444444";
    world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 4}]}")).await?;
    world.ready::<Reranker>("ranker").await?;
    let before = world.pods_of("ranker").await?[0].uid();
    let given = world.gpu(4).await?.uuid;
    gpus::set(4, &["--remove"])?;
    world.wait_for_withheld(4, true).await?;
    update(&state_path(), |state| {
        OTHER.clone_into(&mut state.gpus[4].uuid);
        Ok(())
    })?;
    ensure!(world.pods_of("ranker").await?[0].uid() == before, "a card that is missing may come back");
    gpus::set(4, &["--insert"])?;
    let why = format!("GPU 4 is another card now ({OTHER} instead of {given})");
    world.told("Restarting", &[&why]).await?;
    world
        .eventually("another pod serves on the new card", || async {
            let pods = world.pods_of("ranker").await?;
            Ok(pods.iter().any(|pod| serves(pod) && pod.uid() != before).then_some(()))
        })
        .await?;
    let status = world.ready::<Reranker>("ranker").await?.status.unwrap_or_default();
    ensure!(status.assignments[0].gpus[0].uuid == OTHER, "{status:?}");
    // Before the former card is put back, which would be another one again.
    world.delete::<Reranker>("ranker").await
}
