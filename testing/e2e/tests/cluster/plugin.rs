//! The plugin against the real kubelet: killed at any moment, contradicted, with nothing to offer, and what it may do.

use crate::pods::{admitted, identity, phase, running, third_party};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use principium_api::gpu_node::DisagreementKind;
use principium_api::names::gpu_resource;
use principium_e2e::container::Container;
use principium_e2e::plugin::{KUBELET, process};
use principium_e2e::{World, gpus, run};
use principium_gpu_sim::{state_path, update};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Kills the plugin, and not its pod.
fn kill() -> Result<()> {
    let folder = process("principium-device-plugin")?;
    let pid = folder.file_name().context("no id")?.to_owned();
    anyhow::ensure!(Command::new("kill").arg("-9").arg(pid).status()?.success(), "kill -9");
    Ok(())
}

#[test]
fn a_plugin_that_is_killed_while_pods_come_gives_nothing_twice_and_takes_nothing_away() -> Result<()> {
    run("killed", |world| async move {
        world.apply::<Pod>(&third_party("runs", Some((2, 3)))).await?;
        let before = identity(&running(&world, "runs").await?);
        for (round, delay) in [0, 150].into_iter().enumerate() {
            // Five units are free: one of the two gets them.
            for name in ["first", "second"] {
                world.apply::<Pod>(&third_party(&format!("{name}-{round}"), Some((2, 5)))).await?;
            }
            tokio::time::sleep(Duration::from_millis(delay)).await;
            kill()?;
            world.wait_for_devices(&gpu_resource(2), 8).await?;
            let gpu = world.gpu(2).await?;
            let held: u32 = gpu.allocations.iter().map(|allocation| allocation.units).sum();
            assert!(held <= 8, "{:?}", gpu.allocations);
            assert_eq!(identity(&world.api::<Pod>().get("runs").await?), before, "round {round}");
            // Both are looked at before one goes: the other may run then.
            let both = ["first", "second"].map(|name| format!("{name}-{round}"));
            let mut running = Vec::new();
            for name in &both {
                let pod = world.api::<Pod>().get(name).await?;
                running.extend((phase(&pod) == "Running").then_some(name));
            }
            assert!(running.len() <= 1, "both run on five units: {running:?}");
            for name in &both {
                world.delete::<Pod>(name).await?;
            }
            admitted(&world, &format!("after-{round}"), (2, 5)).await?;
            world.delete::<Pod>(&format!("after-{round}")).await?;
        }
        Ok(())
    })
}

#[test]
fn a_kubelet_that_forgot_who_holds_what_is_an_alarm() -> Result<()> {
    run("alarm", |world| async move {
        world.apply::<Pod>(&third_party("forgotten", Some((2, 3)))).await?;
        let before = identity(&running(&world, "forgotten").await?);
        world
            .eventually("the kubelet lists the pod", || async {
                Ok((!world.gpu(2).await?.allocations.is_empty()).then_some(()))
            })
            .await?;
        // A kubelet that starts without its checkpoint believes that all units are free, while the container runs.
        std::fs::remove_file(Path::new(KUBELET).join("device-plugins/kubelet_internal_checkpoint"))?;
        tokio::task::spawn_blocking(|| principium_local_cluster::restart_component("kubelet")).await??;
        let disagreement = world
            .eventually("the GPUNode says so", || async {
                Ok(world.gpu_node().await?.status.and_then(|mut status| status.disagreements.pop()))
            })
            .await?;
        assert_eq!(
            (disagreement.kind, disagreement.pod.as_str()),
            (DisagreementKind::RequestDiffers, "forgotten")
        );
        let message = "asks for 3 principium.ai/gpu-2, and the kubelet lists 0";
        assert_eq!(disagreement.message, message);
        world.wait_for_event("GPUAllocationDisagreement", &["e2e-alarm/forgotten", message]).await?;
        let alarm = "principium_allocation_disagreements{kind=\"RequestDiffers\"} 1";
        assert!(world.plugin_metrics().await?.contains(alarm));
        assert_eq!(identity(&world.api::<Pod>().get("forgotten").await?), before, "told, and nothing done");
        world.delete::<Pod>("forgotten").await?;
        world.wait_until_calm().await
    })
}

#[test]
fn a_card_that_changes_under_a_running_container_is_an_alarm() -> Result<()> {
    run("exchanged", |world| async move {
        world.with_fresh_plugin(|_| (), exchange(&world)).await?;
        world.wait_until_calm().await
    })
}

async fn exchange(world: &World) -> Result<()> {
    world.apply::<Pod>(&third_party("holder", Some((4, 3)))).await?;
    let before = identity(&running(world, "holder").await?);
    let given = world.gpu(4).await?.uuid;
    let other = "GPU-00000000-1111-2222-3333-444444444444";
    gpus::set(4, &["--remove"])?;
    world.wait_for_withheld(4, true).await?;
    update(&state_path(), |state| {
        other.clone_into(&mut state.gpus[4].uuid);
        Ok(())
    })?;
    gpus::set(4, &["--insert"])?;
    let disagreement = world
        .eventually("the GPUNode says so", || async {
            Ok(world.gpu_node().await?.status.and_then(|mut status| status.disagreements.pop()))
        })
        .await?;
    assert_eq!(
        (disagreement.kind, disagreement.pod.as_str()),
        (DisagreementKind::InjectionDiffers, "holder")
    );
    let message = format!("was given {given}, and GPU 4 is {other} now");
    assert_eq!(disagreement.message, message);
    world.wait_for_event("GPUAllocationDisagreement", &["e2e-exchanged/holder", &message]).await?;
    let alarm = "principium_allocation_disagreements{kind=\"InjectionDiffers\"} 1";
    assert!(world.plugin_metrics().await?.contains(alarm));
    assert_eq!(identity(&world.api::<Pod>().get("holder").await?), before, "told, and nothing done");
    Ok(())
}

#[test]
fn a_node_without_gpus_is_shown_as_one() -> Result<()> {
    run("no-gpus", |world| async move {
        // The plugin that knows the eight cards would take them for lost.
        world.with_fresh_plugin(|state| state.gpus.clear(), without_gpus(&world)).await?;
        world.wait_for_devices(&gpu_resource(0), 8).await
    })
}

async fn without_gpus(world: &World) -> Result<()> {
    let status = world
        .eventually("the GPUNode has no GPU", || async {
            Ok(world.gpu_node().await?.status.filter(|status| status.gpus.is_empty()))
        })
        .await?;
    assert_eq!((status.message, status.summary.gpus, status.summary.free.as_str()), (None, 0, "0/0"));
    world.wait_for_devices(&gpu_resource(0), 0).await?;
    assert_eq!(identity(&world.plugin_ready(None).await?).2, 0, "it was not restarted");
    Ok(())
}

#[test]
fn the_plugin_runs_with_no_right_that_it_does_not_need() -> Result<()> {
    run("rights", |world| async move {
        let container = Container::of(&world.plugin_ready(None).await?, "device-plugin")?;
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh"] {
            assert_eq!(container.status(set)?, "0000000000000000", "{set}");
        }
        assert_eq!(
            (container.status("NoNewPrivs")?.as_str(), container.status("Seccomp")?.as_str()),
            ("1", "2")
        );
        assert!(container.root_options()?.contains("ro"), "the root file system can be written");
        assert!(container.nvidia_nodes()?.is_empty(), "a simulated driver needs no device node");
        Ok(())
    })
}
