//! More replicas and fewer, drains, and a node that takes no new pod.

use crate::pods::{data_factory, identity, reranker, serves};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, EvictParams};
use kube::{Client, Config, ResourceExt};
use principium_api::status::condition::READY;
use principium_api::{DataFactory, Reranker};
use principium_e2e::{Release, World, run};
use std::time::Duration;

#[test]
fn a_reranker_scales_by_kubectl_and_a_drain_takes_one_replica_at_a_time() -> Result<()> {
    run("replicas", |world| async move {
        let release = Release::existing()?;
        let scale = |replicas: &str| {
            let of = ["scale", "reranker/ranker", "--namespace", &world.namespace, "--replicas", replicas];
            release.kubectl_with(&of, "").map(drop)
        };
        world.apply::<Reranker>(&reranker("ranker", "{count: 1, memory: 2Gi}")).await?;
        world.ready::<Reranker>("ranker").await?;
        let before = identity(&world.pods_of("ranker").await?[0]);
        scale("3")?;
        let status = world.ready::<Reranker>("ranker").await?.status.unwrap_or_default();
        assert_eq!((status.replicas, status.ready_replicas.as_str()), (3, "3/3"));
        protected(&world, "ranker", 3).await?;
        let pods = world.pods_of("ranker").await?;
        let [first, second, third] = pods.as_slice() else { anyhow::bail!("{} pods", pods.len()) };
        assert_eq!(identity(first), before, "the others came beside it");

        assert!(evicted(&world, third).await?);
        assert!(!evicted(&world, second).await?, "one at a time");
        let away = || async { Ok(evicted(&world, second).await?.then_some(())) };
        world.eventually("it may go once the other one is back", away).await?;
        let back = world.pods_of("ranker").await?;
        let serves_anew = |pod: &Pod| serves(pod) && pod.uid() != third.uid();
        assert!(back.iter().any(|pod| pod.name_any().starts_with("ranker-2-") && serves_anew(pod)));

        scale("1")?;
        world
            .eventually("the first one is left", || async {
                let pods = world.pods_of("ranker").await?;
                Ok((pods.iter().map(identity).collect::<Vec<_>>() == [before.clone()]).then_some(()))
            })
            .await?;
        let status = world.ready::<Reranker>("ranker").await?.status.unwrap_or_default();
        assert_eq!((status.replicas, status.ready_replicas.as_str()), (1, "1/1"));
        unprotected(&world, "ranker").await
    })
}

#[test]
fn a_data_factory_that_may_not_be_away_is_drained_once_it_may() -> Result<()> {
    run("drains", |world| async move {
        let factory = data_factory("factory", "{count: 1, memory: 2Gi}");
        world.apply::<DataFactory>(&format!("{factory}  maxUnavailable: 0\n")).await?;
        world.ready::<DataFactory>("factory").await?;
        protected(&world, "factory", 1).await?;
        let pod = world.pods_of("factory").await?.pop().context("no pod")?;
        assert!(!evicted(&world, &pod).await?);
        world.apply::<DataFactory>(&factory).await?;
        unprotected(&world, "factory").await?;
        let kept = world.pods_of("factory").await?;
        assert_eq!(
            kept.iter().map(identity).collect::<Vec<_>>(),
            [identity(&pod)],
            "nothing restarts for it"
        );
        assert!(evicted(&world, &pod).await?);
        world
            .eventually("another pod serves", || async {
                let pods = world.pods_of("factory").await?;
                Ok(pods.iter().any(|other| serves(other) && other.uid() != pod.uid()).then_some(()))
            })
            .await
    })
}

/// Whether an eviction, as drains ask for it, was allowed.
async fn evicted(world: &World, pod: &Pod) -> Result<bool> {
    let mut config = Config::infer().await?;
    // A refusal has the code of too many requests, after which a client asks again until it gets its way.
    config.default_retry = false;
    let pods = Api::<Pod>::namespaced(Client::try_from(config)?, &world.namespace);
    match pods.evict(&pod.name_any(), &EvictParams::default()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(refused)) if refused.code == 429 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the budget of a resource counts so many healthy pods.
async fn protected(world: &World, name: &str, healthy: i32) -> Result<()> {
    let budgets = world.api::<PodDisruptionBudget>();
    world
        .eventually(&format!("a budget counts {healthy} pods of {name}"), || async {
            let Some(budget) = budgets.get_opt(name).await? else { return Ok(None) };
            let generation = budget.metadata.generation;
            let counted = budget.status.filter(|status| status.observed_generation == generation);
            Ok(counted.filter(|status| status.current_healthy == Some(healthy)).map(drop))
        })
        .await
}

async fn unprotected(world: &World, name: &str) -> Result<()> {
    let budgets = world.api::<PodDisruptionBudget>();
    let gone = || async { Ok(budgets.get_opt(name).await?.is_none().then_some(())) };
    world.eventually(&format!("{name} has no budget"), gone).await
}

#[test]
fn a_cordoned_node_keeps_its_pods_and_takes_no_new_one_until_it_is_uncordoned() -> Result<()> {
    run("cordoned", |world| async move {
        world.apply::<Reranker>(&reranker("runs", "{count: 1, memory: 2Gi}")).await?;
        world.ready::<Reranker>("runs").await?;
        let before = identity(&world.pods_of("runs").await?[0]);
        let nodes = Api::<Node>::all(world.client.clone());
        let node = world.gpu_node().await?.name_any();
        nodes.cordon(&node).await?;
        // A task of its own, so that a failed assertion does not leave the node cordoned.
        let outcome = tokio::spawn(waits(world.clone(), node.clone())).await;
        nodes.uncordon(&node).await?;
        outcome.context("the test panicked")??;
        world.ready::<Reranker>("waits").await?;
        assert_eq!(identity(&world.pods_of("runs").await?[0]), before);
        Ok(())
    })
}

async fn waits(world: World, node: String) -> Result<()> {
    world.apply::<Reranker>(&reranker("waits", "{count: 1, memory: 2Gi}")).await?;
    let message = world.reason::<Reranker>("waits", READY, "WaitingForGPU").await?;
    ensure!(message.contains(&format!("node {node} is cordoned")), "{message}");
    let none = || async { Ok(world.pods_of("waits").await?.is_empty()) };
    world.stays("no pod is made", Duration::from_secs(3), none).await
}
