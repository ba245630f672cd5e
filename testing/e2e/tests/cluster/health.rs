//! Failing cards, sensors and drivers: told with a reason, nothing else touched, and over when they are over.

use crate::pods::{identity, running, third_party};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use principium_api::gpu_node::WithheldReason;
use principium_api::names::gpu_resource;
use principium_e2e::plugin::Kubelet;
use principium_e2e::{World, gpus, run};
use principium_gpu_sim::state::Driver;
use principium_gpu_sim::{state_path, update};
use std::time::{Duration, Instant};

#[test]
fn a_failure_is_withheld_with_its_reason_on_its_own_gpu_and_ends_when_it_is_mended() -> Result<()> {
    run("failures", |world| async move {
        world.apply::<Pod>(&third_party("runs", Some((0, 2)))).await?;
        let before = identity(&running(&world, "runs").await?);
        for (index, breaks, mends, reason) in [
            (0, ["--xid", "79"], ["--recover"].as_slice(), WithheldReason::Xid),
            (1, ["--ecc-uncorrected", "2"], &["--recover"], WithheldReason::Ecc),
            (2, ["--sensors", "failing"], &["--sensors", "working"], WithheldReason::Unreadable),
        ] {
            gpus::set(index, &breaks)?;
            let in_use = if index == 0 { 2 } else { 0 };
            world.wait_for_devices(&gpu_resource(index), in_use).await?;
            world.wait_for_withheld(index, true).await?;
            assert_eq!(world.gpu(index).await?.withheld.map(|withheld| withheld.reason), Some(reason));
            let devices = Kubelet::new()?.allocatable().await?;
            for other in (0..8).filter(|other| *other != index) {
                assert_eq!(devices[&gpu_resource(other)], 8, "GPU {other} while {index} has {reason:?}");
            }
            let active = format!("reason=\"{reason:?}\"}} 1");
            assert!(world.plugin_metrics().await?.iter().any(|line| line.ends_with(&active)), "{active}");
            gpus::set(index, mends)?;
            world.wait_for_devices(&gpu_resource(index), 8).await?;
            world.wait_for_withheld(index, false).await?;
        }
        // A card without sensors is nothing unusual.
        gpus::set(3, &["--sensors", "unsupported"])?;
        world
            .eventually("no temperature", || async {
                Ok(world.gpu(3).await?.temperature.is_none().then_some(()))
            })
            .await?;
        world
            .stays("GPU 3 is offered", Duration::from_secs(5), || async {
                Ok(world.gpu(3).await?.withheld.is_none() && world.allocatable(3).await? == 8)
            })
            .await?;
        assert_eq!(identity(&world.api::<Pod>().get("runs").await?), before);
        Ok(())
    })
}

#[test]
fn a_hot_gpu_is_gone_at_the_kubelet_within_two_seconds() -> Result<()> {
    run("reaction", |world| async move {
        let mut kubelet = Kubelet::new()?;
        gpus::set(4, &["--temperature", "92"])?;
        let heated = Instant::now();
        while kubelet.allocatable().await?.contains_key(&gpu_resource(4)) {
            assert!(heated.elapsed() < Duration::from_secs(2), "still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gpus::set(4, &["--temperature", "40"])?;
        world.wait_for_devices(&gpu_resource(4), 8).await
    })
}

/// Keeps the driver from answering, in this way, and lets it answer again: it is told in these words, what runs stays as it
/// is, and the plugin too.
async fn driver_is_silent_for_a_while(
    world: &World,
    change: impl Fn(&mut Driver),
    words: &str,
) -> Result<()> {
    let set = |change: &dyn Fn(&mut Driver)| {
        update(&state_path(), |state| {
            change(&mut state.driver);
            Ok(())
        })
    };
    world.apply::<Pod>(&third_party("runs", Some((1, 3)))).await?;
    let before = identity(&running(world, "runs").await?);
    let plugin = identity(&world.plugin_ready(None).await?);
    set(&change)?;
    world.wait_for_devices(&gpu_resource(0), 0).await?;
    world.wait_for_devices(&gpu_resource(1), 3).await?;
    world
        .eventually("the GPUNode says so", || async {
            let message = world.gpu_node().await?.status.and_then(|status| status.message);
            Ok(message.is_some_and(|message| message.contains(words)).then_some(()))
        })
        .await?;
    assert!(world.plugin_metrics().await?.contains("principium_driver_up 0"));
    set(&|driver| *driver = Driver::default())?;
    world.wait_for_devices(&gpu_resource(0), 8).await?;
    world.wait_until_calm().await?;
    assert_eq!(identity(&world.plugin_ready(None).await?), plugin, "the same pod, not restarted");
    assert_eq!(identity(&world.api::<Pod>().get("runs").await?), before);
    Ok(())
}

#[test]
fn a_driver_that_goes_away_and_comes_back_needs_no_new_pod() -> Result<()> {
    run("driver", |world| async move {
        driver_is_silent_for_a_while(&world, |driver| driver.loaded = false, "not loaded").await?;
        let before = identity(&world.api::<Pod>().get("runs").await?);

        // One that starts without a driver waits for it, and doesn't end.
        gpus::driver("unload")?;
        let old = world.delete_plugin().await?;
        let waiting = world
            .eventually("a new plugin runs", || async {
                let pods = world.plugin_pods().await?;
                Ok(pods.into_iter().find(|pod| {
                    let status = pod.status.as_ref();
                    pod.uid().as_deref() != Some(&old)
                        && status.and_then(|status| status.phase.as_deref()) == Some("Running")
                }))
            })
            .await?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(world.plugin_pod().await?.is_none(), "not ready");
        gpus::driver("load")?;
        let ready = world.plugin_ready(Some(&old)).await?;
        assert_eq!(ready.uid(), waiting.uid());
        assert_eq!(identity(&ready).2, 0, "it was not restarted");
        world.wait_for_devices(&gpu_resource(0), 8).await?;
        assert_eq!(identity(&world.api::<Pod>().get("runs").await?), before);
        Ok(())
    })
}

#[test]
fn a_driver_that_hangs_is_told_of_and_is_read_again_when_it_answers() -> Result<()> {
    run("hangs", |world| async move {
        driver_is_silent_for_a_while(&world, |driver| driver.hangs = true, "one of its calls hangs").await
    })
}

#[test]
fn a_reader_that_panics_is_told_of_and_started_anew() -> Result<()> {
    run("panics", |world| async move {
        let restarts = || async {
            let metrics = world.plugin_metrics().await?;
            let value =
                metrics.iter().find_map(|line| line.strip_prefix("principium_nvml_reader_restarts_total "));
            Ok::<u64, anyhow::Error>(value.context("no such metric")?.parse()?)
        };
        let before = restarts().await?;
        let breaks = |driver: &mut Driver| "breaks the reader".clone_into(&mut driver.version);
        driver_is_silent_for_a_while(&world, breaks, "failed unexpectedly").await?;
        assert!(restarts().await? > before);
        Ok(())
    })
}

#[test]
fn a_card_that_fails_again_is_proven_for_longer() -> Result<()> {
    run("flapping", |world| async move {
        let work = async {
            // How long each proof must take at least, in seconds: twice as long after each further failure.
            for least in [3, 6] {
                gpus::set(7, &["--lost"])?;
                world.wait_for_devices(&gpu_resource(7), 0).await?;
                gpus::set(7, &["--recover"])?;
                let kept = Duration::from_secs(least - 1);
                let is_kept =
                    || async { Ok(!Kubelet::new()?.allocatable().await?.contains_key(&gpu_resource(7))) };
                world.stays("GPU 7 is proven", kept, is_kept).await?;
                world.wait_for_devices(&gpu_resource(7), 8).await?;
            }
            world.wait_for_withheld(7, false).await
        };
        world.with_fresh_plugin(|_| (), work).await
    })
}

#[test]
fn a_card_that_is_pulled_leaves_a_gap_and_takes_its_place_again() -> Result<()> {
    run("pulled", |world| async move {
        let uuid = world.gpu(5).await?.uuid;
        gpus::set(5, &["--remove"])?;
        world.wait_for_devices(&gpu_resource(5), 0).await?;
        world.wait_for_withheld(5, true).await?;
        let node = world.gpu_node().await?.status.unwrap_or_default();
        let indices: Vec<u32> = node.gpus.iter().map(|gpu| gpu.index).collect();
        assert_eq!((indices, node.summary.gpus), ((0..8).collect(), 7));
        world.apply::<Pod>(&third_party("neighbor", Some((6, 8)))).await?;
        running(&world, "neighbor").await?;
        gpus::set(5, &["--insert"])?;
        world.wait_for_devices(&gpu_resource(5), 8).await?;
        assert_eq!(world.gpu(5).await?.uuid, uuid);
        Ok(())
    })
}
