//! The generic pool, and the way of a GPU into it and back.

use crate::pods::{running, third_party, third_party_asking};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use principium_api::gpu_node::{GpuView, WithheldReason};
use principium_api::names::{GENERIC_GPU_RESOURCE, gpu_resource};
use principium_e2e::container::Container;
use principium_e2e::{World, gpus, run};
use principium_gpu_sim::{state_path, update};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_gpu_changes_between_its_own_resource_and_the_pool_only_while_nobody_holds_it() -> Result<()> {
    run("views", |world| async move {
        let outcome = generic(&world).await;
        world.configure_plugin(&[], true).await?;
        outcome?;
        world.wait_for_devices(&gpu_resource(5), 8).await?;
        world.wait_for_devices(&gpu_resource(6), 8).await?;
        world.wait_for_devices(&gpu_resource(7), 8).await
    })
}

async fn generic(world: &World) -> Result<()> {
    world.apply::<Pod>(&third_party("holder", Some((7, 2)))).await?;
    running(world, "holder").await?;
    world.configure_plugin(&["--generic-gpus=5,6,7"], true).await?;
    // Nobody holds 5 and 6, so they are in the pool; 7 is held, and gives nothing out meanwhile.
    world.wait_for_devices(GENERIC_GPU_RESOURCE, 2).await?;
    world.wait_for_devices(&gpu_resource(6), 0).await?;
    world.wait_for_devices(&gpu_resource(7), 2).await?;
    let moving = world.gpu(7).await?;
    assert_eq!(moving.withheld.map(|withheld| withheld.reason), Some(WithheldReason::Moving));
    assert_eq!(moving.allocations[0].pod, "holder");
    world
        .stays("GPU 7 is not in the pool", Duration::from_secs(5), || async {
            Ok(world.gpu(7).await?.view == GpuView::Exact)
        })
        .await?;

    // Any of them: the cooler one, whole.
    gpus::set(5, &["--temperature", "70"])?;
    gpus::set(6, &["--temperature", "50"])?;
    world
        .eventually("GPU 5 is the warmer one", || async {
            let (fifth, sixth) = (world.gpu(5).await?.temperature, world.gpu(6).await?.temperature);
            Ok((fifth > sixth).then_some(()))
        })
        .await?;
    world.apply::<Pod>(&third_party_asking("any", &[(GENERIC_GPU_RESOURCE, 1)])).await?;
    let pod = running(world, "any").await?;
    let nodes = Container::of(&pod, "main")?.nvidia_nodes()?;
    assert_eq!(nodes, BTreeSet::from(["nvidia6".to_owned()]));
    world
        .eventually("the GPUNode shows it whole", || async {
            let gpu = world.gpu(6).await?;
            Ok(gpu.allocations.first().map(|held| (held.pod.clone(), held.units)))
        })
        .await
        .map(|held| assert_eq!(held, ("any".to_owned(), 8)))?;

    world.delete::<Pod>("holder").await?;
    world.wait_for_devices(GENERIC_GPU_RESOURCE, 3).await?;
    world.wait_for_devices(&gpu_resource(7), 0).await?;

    // The way back, too, waits for who holds it.
    world.configure_plugin(&[], true).await?;
    world.wait_for_devices(&gpu_resource(5), 8).await?;
    world.wait_for_devices(&gpu_resource(7), 8).await?;
    let held = world.gpu(6).await?;
    assert_eq!(
        (held.view, held.withheld.map(|w| w.reason)),
        (GpuView::Generic, Some(WithheldReason::Moving))
    );
    world.delete::<Pod>("any").await?;
    world.wait_for_devices(&gpu_resource(6), 8).await
}

#[test]
fn several_gpus_of_the_pool_are_of_one_numa_node_unless_that_is_much_warmer() -> Result<()> {
    run("numa", |world| async move {
        let cards = std::fs::read(state_path())?;
        let outcome = near(&world).await;
        std::fs::write(state_path(), cards)?;
        world.configure_plugin(&[], true).await?;
        outcome?;
        world.wait_for_devices(&gpu_resource(4), 8).await?;
        world.wait_for_devices(&gpu_resource(7), 8).await
    })
}

async fn near(world: &World) -> Result<()> {
    // The two coolest are of two nodes; those of node 1 are little warmer, and those of node 0 much.
    let sixth_and_seventh: BTreeSet<String> = ["nvidia6", "nvidia7"].map(str::to_owned).into();
    for (index, numa_node, temperature) in [(4, 0, 40), (5, 0, 70), (6, 1, 41), (7, 1, 48)] {
        update(&state_path(), |state| {
            state.gpus[index].numa_node = numa_node;
            Ok(())
        })?;
        gpus::set(u32::try_from(index)?, &["--temperature", &temperature.to_string()])?;
    }
    world.configure_plugin(&["--generic-gpus=4,5,6,7"], true).await?;
    world.wait_for_devices(GENERIC_GPU_RESOURCE, 4).await?;
    world.apply::<Pod>(&third_party_asking("near", &[(GENERIC_GPU_RESOURCE, 2)])).await?;
    let nodes = Container::of(&running(world, "near").await?, "main")?.nvidia_nodes()?;
    assert_eq!(nodes, sixth_and_seventh);
    world.delete::<Pod>("near").await?;

    // Nearness is not worth this much heat.
    gpus::set(7, &["--temperature", "65"])?;
    world
        .eventually("GPU 7 is shown as warm", || async {
            Ok((world.gpu(7).await?.temperature > Some(60)).then_some(()))
        })
        .await?;
    world.apply::<Pod>(&third_party_asking("cool", &[(GENERIC_GPU_RESOURCE, 2)])).await?;
    let nodes = Container::of(&running(world, "cool").await?, "main")?.nvidia_nodes()?;
    assert_eq!(nodes, ["nvidia4", "nvidia6"].map(str::to_owned).into());
    world.delete::<Pod>("cool").await
}

#[test]
fn legacy_injection_gives_device_nodes_and_the_variable_of_the_nvidia_runtime() -> Result<()> {
    run("legacy", |world| async move {
        // The nodes that a driver would have made.
        let nodes: Vec<String> = (0..8).map(|index| format!("/dev/nvidia{index}")).collect();
        for (index, node) in nodes.iter().enumerate() {
            let made = std::process::Command::new("mknod")
                .arg(node)
                .args(["c", "120", &index.to_string()])
                .status()?;
            anyhow::ensure!(made.success(), "mknod {node}");
        }
        let outcome = legacy(&world).await;
        for node in &nodes {
            std::fs::remove_file(node).context(node.clone())?;
        }
        world.delete::<Pod>("two").await?;
        world.configure_plugin(&[], true).await?;
        outcome
    })
}

async fn legacy(world: &World) -> Result<()> {
    world.configure_plugin(&["--injection=legacy"], false).await?;
    world.wait_for_devices(&gpu_resource(2), 8).await?;
    let asked = [(gpu_resource(2), 3), (gpu_resource(3), 8)];
    let asked: Vec<(&str, u32)> = asked.iter().map(|(resource, units)| (resource.as_str(), *units)).collect();
    world.apply::<Pod>(&third_party_asking("two", &asked)).await?;
    world.apply::<Pod>(&third_party("one", Some((4, 1)))).await?;
    world.apply::<Pod>(&third_party("none", None)).await?;
    for (name, indices) in [("two", vec![2, 3]), ("one", vec![4]), ("none", vec![])] {
        let container = Container::of(&running(world, name).await?, "main")?;
        let expected: BTreeSet<String> = indices.iter().map(|index| format!("nvidia{index}")).collect();
        assert_eq!(container.nvidia_nodes()?, expected, "{name}: nodes of several calls are joined");
        for index in 0..8 {
            let open = container.open(index)?;
            assert_eq!(
                open == principium_e2e::container::Open::Allowed,
                indices.contains(&index),
                "{name} {index}"
            );
        }
        let visible = container.environment()?.get("NVIDIA_VISIBLE_DEVICES").cloned();
        match indices[..] {
            [] => assert_eq!(visible, None),
            [index] => assert_eq!(visible, Some(world.gpu(index).await?.uuid)),
            // Of two calls' variables one survives; who asks for two GPUs names them himself.
            _ => assert!(visible.is_some()),
        }
    }
    Ok(())
}
