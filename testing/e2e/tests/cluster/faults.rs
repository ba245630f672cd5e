//! What goes wrong around an operator: it dies after each write, sees late or nothing, is paused past its Lease, loses the
//! API server. After each: no memory is granted twice, requests, podresources and devices agree, and the cluster gets
//! there in bounded time. `cargo xtask soak` runs the long forms; faults of all kinds at random are in [`crate::churn`].

use crate::pods::{data_factory, identity, phase, requested, reranker, serves};
use crate::pools::{MODEL, Store};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use principium_api::names::gpu_resource;
use principium_api::status::condition::{READY, STALLED};
use principium_api::{DataFactory, OllamaPool, Reranker};
use principium_e2e::container::Container;
use principium_e2e::operator::{Operator, without_operator};
use principium_e2e::proxy::Proxy;
use principium_e2e::world::PATIENCE;
use principium_e2e::{World, gpus, run};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Operators, one after another, after which all is to be Ready.
const LIVES: u32 = 80;
/// GPUs of the local cluster.
const GPUS: usize = 8;
/// How long the real API server is away: also as long as a pod stays before it may move away from heat.
const AWAY: Duration = Duration::from_secs(300);

/// Whether the long forms are run.
fn soaks() -> bool {
    std::env::var_os("PRINCIPIUM_SOAK").is_some()
}

/// Σ requests ≤ memory, and a whole GPU has one owner, whatever the operator has just done.
pub async fn nothing_is_granted_twice(world: &World) -> Result<()> {
    let gpus = world.gpu_node().await?.status.unwrap_or_default().gpus;
    // A lost one stays listed, also while the plugin is away: of fewer less would be known than is said here.
    anyhow::ensure!(gpus.len() == GPUS, "the GPUNode lists {} of {GPUS} GPUs", gpus.len());
    let pods = Api::<Pod>::all(world.client.clone()).list(&ListParams::default()).await?.items;
    for gpu in gpus {
        let holders: Vec<(String, u32)> = pods
            .iter()
            .filter(|pod| !matches!(phase(pod), "Succeeded" | "Failed"))
            .filter_map(|pod| Some((pod.name_any(), *requested(pod).get(&gpu.index)?)))
            .collect();
        let sum: u32 = holders.iter().map(|(_, units)| units).sum();
        assert!(sum <= gpu.units, "GPU {} has {} units: {holders:?}", gpu.index, gpu.units);
    }
    Ok(())
}

/// What running pods asked for, what the kubelet counts and what their containers see is the same.
pub async fn requests_podresources_and_devices_agree(world: &World) -> Result<()> {
    nothing_is_granted_twice(world).await?;
    let pods = world.api::<Pod>();
    world
        .eventually("the kubelet counts what pods ask for", || async {
            let gpus = world.gpu_node().await?.status.unwrap_or_default().gpus;
            let mut counted: BTreeMap<(String, u32), u32> = BTreeMap::new();
            for gpu in gpus {
                for held in gpu.allocations {
                    *counted.entry((held.pod, gpu.index)).or_default() += held.units;
                }
            }
            let mut asked: BTreeMap<(String, u32), u32> = BTreeMap::new();
            for pod in pods.list(&ListParams::default()).await?.items {
                asked.extend(requested(&pod).into_iter().map(|(gpu, units)| ((pod.name_any(), gpu), units)));
            }
            Ok((counted == asked).then_some(()))
        })
        .await?;
    let alive = ListParams::default().fields("status.phase=Running");
    for pod in pods.list(&alive).await?.items {
        let name = pod.spec.as_ref().map(|spec| spec.containers[0].name.clone()).unwrap_or_default();
        let nodes = Container::of(&pod, &name)?.nvidia_nodes()?;
        let seen: BTreeSet<u32> =
            nodes.iter().filter_map(|node| node.trim_start_matches("nvidia").parse().ok()).collect();
        assert_eq!(seen, requested(&pod).into_keys().collect(), "devices of {}", pod.name_any());
    }
    Ok(())
}

/// Whether a Reranker is Ready for its newest spec.
async fn is_ready(world: &World, name: &str) -> Result<bool> {
    world.is_ready::<Reranker>(name).await
}

/// Gives the work to one operator after another, each of which dies after its first write, until all is Ready. Returns how
/// many there were.
async fn one_write_a_life<F: Future<Output = Result<bool>>>(
    world: &World,
    proxy: &Proxy,
    all_ready: impl Fn() -> F,
) -> Result<u32> {
    for life in 1..=LIVES {
        proxy.cut_after(1);
        let operator = Operator::start(world, proxy, "mortal", false).await?;
        let end = Instant::now() + PATIENCE;
        while !proxy.is_cut() {
            if all_ready().await? {
                operator.kill()?;
                return Ok(life - 1);
            }
            if Instant::now() > end {
                bail!("life {life} writes nothing, and not all are Ready:\n{}", operator.log());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        operator.kill()?;
        nothing_is_granted_twice(world).await?;
    }
    bail!("not all are Ready after {LIVES} lives")
}

#[test]
fn an_operator_that_dies_after_every_single_write_gets_there() -> Result<()> {
    run("faults-mortal", |world| async move {
        without_operator(&world.clone(), async move {
            let proxy = Proxy::start().await?;
            world.apply::<Reranker>(&reranker("pinned", "{devices: [{index: 3}]}")).await?;
            world.apply::<Reranker>(&reranker("chosen", "{count: 1, memory: 2Gi}")).await?;
            let both =
                || async { Ok(is_ready(&world, "pinned").await? && is_ready(&world, "chosen").await?) };
            let lives = one_write_a_life(&world, &proxy, both).await?;
            assert!(lives >= 6, "a Service, a pod and a status each: {lives} lives");
            requests_podresources_and_devices_agree(&world).await?;
            // Made first where a GPU is free, and stopped first where it is pinned.
            world.apply::<Reranker>(&reranker("pinned", "{devices: [{index: 3, memory: 5Gi}]}")).await?;
            world.apply::<Reranker>(&reranker("chosen", "{count: 1, memory: 3Gi}")).await?;
            one_write_a_life(&world, &proxy, both).await?;
            for name in ["pinned", "chosen"] {
                assert_eq!(world.pods_of(name).await?.len(), 1, "{name}: the old pod is gone");
            }
            // The one that stopped or replaced a pod died of it, and had said why.
            let why = "spec.gpu asks for other GPUs than";
            world.told("Restarting", &["Pod pinned-0-", "is stopped for its successor", why]).await?;
            world.told("Replacing", &["Pod chosen-0-", "gets a successor beside it", why]).await?;
            requests_podresources_and_devices_agree(&world).await?;
            // Deleting needs no operator at all.
            for name in ["pinned", "chosen"] {
                world.delete::<Reranker>(name).await?;
            }
            let pods = world.api::<Pod>();
            let left =
                || async { Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(())) };
            world.eventually("no pod is left", left).await
        })
        .await
    })
}

#[test]
fn a_pool_with_a_store_and_a_factory_with_an_analyzer_come_up_one_write_a_life() -> Result<()> {
    run("faults-children", |world| async move {
        without_operator(&world.clone(), async move {
            let proxy = Proxy::start().await?;
            let store = Store::new();
            world.apply::<OllamaPool>(&store.pool(1024)).await?;
            let factory = data_factory("factory", "{count: 1, memory: 2Gi}")
                + &format!(
                    "  enrichment: {{ollamaPoolRef: {{name: pool}}, model: '{MODEL}'}}\n  docAnalyzer: {{}}\n"
                );
            world.apply::<DataFactory>(&factory).await?;
            let both = || async {
                Ok(world.is_ready::<OllamaPool>("pool").await?
                    && world.is_ready::<DataFactory>("factory").await?)
            };
            // Pods: a puller, the instances, a worker and an analyzer; gates, Services, disruption budgets and statuses.
            let lives = one_write_a_life(&world, &proxy, both).await?;
            assert!(lives >= 12, "{lives} lives");
            requests_podresources_and_devices_agree(&world).await
        })
        .await
    })
}

#[test]
fn an_operator_that_sees_everything_late_grants_nothing_twice() -> Result<()> {
    run("faults-late", |world| async move {
        without_operator(&world.clone(), async move {
            let proxy = Proxy::start().await?;
            proxy.delay(Duration::from_secs(3));
            let operator = Operator::start(&world, &proxy, "late", false).await?;
            let rounds = if soaks() { 20 } else { 1 };
            for _ in 0..rounds {
                // Three that want the same GPU, changed faster than the operator can see.
                for name in ["a", "b", "c"] {
                    world.apply::<Reranker>(&reranker(name, "{devices: [{index: 2, memory: 3Gi}]}")).await?;
                }
                for memory in ["4Gi", "3Gi", "5Gi"] {
                    let gpu = format!("{{devices: [{{index: 2, memory: {memory}}}]}}");
                    world.apply::<Reranker>(&reranker("b", &gpu)).await?;
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    nothing_is_granted_twice(&world).await?;
                }
                world.delete::<Reranker>("a").await?;
                world.apply::<Reranker>(&reranker("a", "{count: 1, prefer: {indices: [2]}}")).await?;
                let end = Instant::now() + PATIENCE;
                while !(is_ready(&world, "a").await?
                    && is_ready(&world, "b").await?
                    && is_ready(&world, "c").await?)
                {
                    nothing_is_granted_twice(&world).await?;
                    anyhow::ensure!(Instant::now() < end, "not Ready in time:\n{}", operator.log());
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                requests_podresources_and_devices_agree(&world).await?;
                for name in ["a", "b", "c"] {
                    world.delete::<Reranker>(name).await?;
                }
            }
            operator.kill()
        })
        .await
    })
}

#[test]
fn events_that_are_lost_and_an_api_server_that_is_away_are_caught_up_with() -> Result<()> {
    run("faults-away", |world| async move {
        without_operator(&world.clone(), async move {
            let proxy = Proxy::start().await?;
            let operator = Operator::start(&world, &proxy, "deaf", false).await?;
            world.apply::<Reranker>(&reranker("first", "{count: 1, memory: 2Gi}")).await?;
            world.ready::<Reranker>("first").await?;
            let before = world.pods_of("first").await?[0].uid();

            for fault in ["lost", "expired", "away"] {
                match fault {
                    "away" => proxy.go_away(),
                    _ => proxy.lose_events(),
                }
                world.apply::<Reranker>(&reranker(fault, "{devices: [{index: 6}]}")).await?;
                let long = if soaks() && fault == "away" { 300 } else { 10 };
                tokio::time::sleep(Duration::from_secs(long)).await;
                assert!(world.pods_of(fault).await?.is_empty(), "{fault}: nobody can have made a pod");
                proxy.recover(fault == "expired");
                let ready = world.ready::<Reranker>(fault).await;
                ready.with_context(|| format!("{fault}:\n{}", operator.log()))?;
                requests_podresources_and_devices_agree(&world).await?;
                world.delete::<Reranker>(fault).await?;
            }
            assert_eq!(world.pods_of("first").await?[0].uid(), before, "what ran was left alone");
            operator.kill()
        })
        .await
    })
}

#[test]
fn a_leader_that_was_paused_past_its_lease_writes_nothing_more() -> Result<()> {
    run("faults-leaders", |world| async move {
        without_operator(&world.clone(), async move {
            let (one, other) = (Proxy::start().await?, Proxy::start().await?);
            let mut first = Operator::start(&world, &one, "first", true).await?;
            world.apply::<Reranker>(&reranker("before", "{count: 1, memory: 2Gi}")).await?;
            world.ready::<Reranker>("before").await?;
            let second = Operator::start(&world, &other, "second", true).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(other.writes_since(Instant::now() - PATIENCE).is_empty(), "of two one works");

            // In the midst of a plan: it waits for an answer about the Service, and the pod and the status come after that.
            one.hold_back("/services/after");
            world.apply::<Reranker>(&reranker("after", "{count: 1, memory: 2Gi}")).await?;
            let waits = || async { Ok(one.holds().then_some(())) };
            world.eventually("the leader is about to make a pod", waits).await?;
            assert!(world.pods_of("after").await?.is_empty(), "the Service comes first");
            first.signal("STOP")?;
            world.ready::<Reranker>("after").await.with_context(|| second.log())?;
            let made: Vec<_> = world.pods_of("after").await?.iter().map(identity).collect();
            let resumed = Instant::now();
            one.recover(false);
            first.signal("CONT")?;
            // It finds that it no longer leads, and ends.
            let end = Instant::now() + Duration::from_secs(30);
            while !first.ended()? {
                anyhow::ensure!(Instant::now() < end, "it goes on:\n{}", first.log());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            assert_eq!(one.writes_since(resumed), [""; 0], "writes of the former leader");
            assert_eq!(world.pods_of("after").await?.iter().map(identity).collect::<Vec<_>>(), made);
            requests_podresources_and_devices_agree(&world).await?;
            second.kill()
        })
        .await
    })
}

#[test]
fn the_real_api_server_may_be_away_for_five_minutes() -> Result<()> {
    if !soaks() {
        println!("the API server is not stopped: `cargo xtask soak` does that");
        return Ok(());
    }
    run("faults-api-server", |world| async move {
        let gpu = "{count: 1, memory: 2Gi, prefer: {indices: [2, 3]}, onOverheat: Migrate}";
        world.apply::<Reranker>(&reranker("mover", gpu)).await?;
        let gpu = "{devices: [{index: 2, memory: 2Gi}], onOverheat: Migrate}";
        world.apply::<Reranker>(&reranker("pinned", gpu)).await?;
        world.apply::<Reranker>(&reranker("neighbor", "{devices: [{index: 5}]}")).await?;
        let names = ["mover", "pinned", "neighbor"];
        for name in names {
            world.ready::<Reranker>(name).await?;
        }
        assert_eq!(requested(&world.pods_of("mover").await?[0]), BTreeMap::from([(2, 2)]));
        let others = || async {
            let (pinned, neighbor) = (world.pods_of("pinned").await?, world.pods_of("neighbor").await?);
            Ok::<_, anyhow::Error>(pinned.iter().chain(&neighbor).map(identity).collect::<Vec<_>>())
        };
        let before = others().await?;

        let stop = || principium_local_cluster::stop_component("kube-apiserver");
        let away = tokio::task::spawn_blocking(stop).await?.context("stopping the API server")?;
        let stopped = Instant::now();
        gpus::set(2, &["--temperature", "92"])?;
        // Heat needs no API server: the kubelet gives out nothing but what the two pods hold.
        world.wait_for_devices(&gpu_resource(2), 4).await?;
        tokio::time::sleep(AWAY.saturating_sub(stopped.elapsed())).await;
        assert!(away.is_away(), "somebody has started the API server");
        tokio::task::spawn_blocking(move || away.start()).await?.context("starting the API server")?;

        world.wait_for_withheld(2, true).await?;
        let left = || async {
            nothing_is_granted_twice(&world).await?;
            let pods = world.pods_of("mover").await?;
            let [pod] = pods.as_slice() else { return Ok(None) };
            Ok((serves(pod) && !requested(pod).contains_key(&2)).then_some(()))
        };
        world.eventually("the pod that may move has left the hot GPU", left).await?;
        let all = || async {
            let mut ready = true;
            for name in names {
                ready &= is_ready(&world, name).await?;
            }
            Ok(ready.then_some(()))
        };
        world.eventually("all are Ready", all).await?;
        assert_eq!(others().await?, before, "what runs is left alone");
        requests_podresources_and_devices_agree(&world).await
    })
}

#[test]
fn an_operator_whose_clock_is_an_hour_off_works_as_any_other() -> Result<()> {
    run("faults-clock", |world| async move {
        without_operator(&world.clone(), async move {
            for (name, off) in [("behind", "-1h"), ("ahead", "+1h")] {
                let proxy = Proxy::start().await?;
                let operator = Operator::start_with_clock(&world, &proxy, name, off).await?;
                gpus::set(5, &["--temperature", "92"])?;
                let hot = || async {
                    Ok(world
                        .gpu_node()
                        .await?
                        .status
                        .is_some_and(|status| {
                            status.gpus.iter().any(|gpu| gpu.index == 5 && gpu.withheld.is_some())
                        })
                        .then_some(()))
                };
                world.eventually("GPU 5 is withheld", hot).await?;
                world.apply::<Reranker>(&reranker(name, "{count: 1, prefer: {indices: [5, 6]}}")).await?;
                let ready = world.ready::<Reranker>(name).await.with_context(|| operator.log())?;
                let status = ready.status.unwrap_or_default();
                assert_eq!(status.gpus, "6:8", "the hot one was seen as one");
                let told = status.conditions.iter().find(|found| found.type_ == READY);
                let told = told.context("a condition")?.last_transition_time.0;
                let minutes = told.duration_since(jiff::Timestamp::now()).as_mins().abs();
                assert!((55..=65).contains(&minutes), "its clock is off by {minutes} minutes");
                requests_podresources_and_devices_agree(&world).await?;
                world.delete::<Reranker>(name).await?;
                gpus::reset()?;
                operator.kill()?;
            }
            Ok(())
        })
        .await
    })
}

#[test]
fn a_bad_spec_stops_nothing_and_a_good_one_goes_on() -> Result<()> {
    run("faults-spec", |world| async move {
        world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 4}]}")).await?;
        world.ready::<Reranker>("ranker").await?;
        let before = world.pods_of("ranker").await?[0].uid();
        // Refused by the API server: with a message, and without any effect.
        for (gpu, words) in [
            ("{devices: [{index: 4}], count: 1}", "exclude each other"),
            ("{count: 1, memory: 5GB}", "amount of GPU memory"),
            ("{devices: [{index: 4}, {index: 4}]}", "names a GPU twice"),
            ("{devices: [{index: 4}], strategy: Spread}", "gpu.strategy belong to gpu.count"),
        ] {
            let refused = world.apply::<Reranker>(&reranker("ranker", gpu)).await;
            let message = format!("{:#}", refused.err().context("it was accepted")?);
            assert!(message.contains(words), "{gpu}: {message}");
        }
        assert!(is_ready(&world, "ranker").await?);
        // Accepted, and impossible on this cluster.
        world.apply::<Reranker>(&reranker("other", "{devices: [{index: 40}]}")).await?;
        let message = world.reason::<Reranker>("other", STALLED, "NoSuchGPU").await?;
        assert!(message.contains("has no GPU 40"), "{message}");
        world.apply::<Reranker>(&reranker("other", "{devices: [{index: 5}]}")).await?;
        world.ready::<Reranker>("other").await?;
        assert_eq!(world.pods_of("ranker").await?[0].uid(), before);
        requests_podresources_and_devices_agree(&world).await
    })
}

#[test]
fn a_kubelet_that_restarts_in_any_phase_of_a_pod_changes_nothing_in_the_end() -> Result<()> {
    run("faults-kubelet", |world| async move {
        let pods = world.api::<Pod>();
        for at in ["made", "running", "ready", "ending"] {
            world.apply::<Reranker>(&reranker("ranker", "{devices: [{index: 1, memory: 4Gi}]}")).await?;
            world
                .eventually(&format!("its pod is {at}"), || async {
                    let found = pods.list(&ListParams::default()).await?.items;
                    let reached = match at {
                        "made" => !found.is_empty(),
                        "running" => found.iter().any(|pod| phase(pod) == "Running"),
                        _ => is_ready(&world, "ranker").await?,
                    };
                    Ok(reached.then_some(()))
                })
                .await?;
            if at == "ending" {
                world.api::<Reranker>().delete("ranker", &kube::api::DeleteParams::default()).await?;
            }
            tokio::task::spawn_blocking(|| principium_local_cluster::restart_component("kubelet"))
                .await?
                .context("restarting the kubelet")?;
            nothing_is_granted_twice(&world).await?;
            if at != "ending" {
                world.ready::<Reranker>("ranker").await?;
                requests_podresources_and_devices_agree(&world).await?;
                world.delete::<Reranker>("ranker").await?;
            }
            let left =
                || async { Ok(pods.list(&ListParams::default()).await?.items.is_empty().then_some(())) };
            world.eventually("no pod is left", left).await?;
            world.wait_until_idle().await?;
        }
        Ok(())
    })
}
