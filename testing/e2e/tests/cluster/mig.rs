//! MIG devices as GPUs of their own: listed, shown, exact.

use crate::pods::{reranker, running, third_party_asking};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use principium_api::Reranker;
use principium_api::gpu_node::WithheldReason;
use principium_api::names::{gpu_resource, mig_index};
use principium_e2e::container::{Container, Open};
use principium_e2e::{gpus, run};
use std::collections::BTreeSet;

#[test]
fn mig_devices_are_offered_shown_and_given_exactly() -> Result<()> {
    run("mig", |world| async move {
        gpus::set(3, &["--mig", "1g.2gb,2g.4gb"])?;
        let [small, large] = [0, 1].map(|number| mig_index(3, number).unwrap_or_default());
        assert_eq!(gpu_resource(large), "principium.ai/gpu-3-mig-1");
        world.wait_for_devices(&gpu_resource(small), 2).await?;
        world.wait_for_devices(&gpu_resource(large), 4).await?;
        world.wait_for_devices(&gpu_resource(3), 0).await?;
        let divided = world.gpu(3).await?;
        assert_eq!(divided.withheld.map(|withheld| withheld.reason), Some(WithheldReason::Divided));
        let shown = world.gpu(large).await?;
        let part = shown.mig.context("the GPUNode doesn't say what it is")?;
        assert_eq!((part.parent, part.gpu_instance, shown.units, shown.memory.total), (3, 2, 4, 4096));
        assert!(shown.uuid.starts_with("MIG-") && shown.product.ends_with("MIG 2g.4gb"), "{}", shown.product);

        // Memory of a process that belongs to no pod is missing on its own part only.
        let outsider = format!("{}:2GiB", std::process::id());
        gpus::set(3, &["--process", &outsider, "--gpu-instance", "2"])?;
        world.wait_for_devices(&gpu_resource(large), 2).await?;
        world.wait_for_withheld(large, true).await?;
        let withheld = world.gpu(large).await?.withheld.map(|withheld| withheld.reason);
        assert_eq!(withheld, Some(WithheldReason::ForeignProcess));
        assert_eq!(world.gpu(small).await?.withheld, None);
        gpus::set(3, &["--clear-processes"])?;
        world.wait_for_devices(&gpu_resource(large), 4).await?;
        world.wait_for_withheld(large, false).await?;

        world.apply::<Pod>(&third_party_asking("part", &[(&gpu_resource(small), 2)])).await?;
        let request = format!("{{devices: [{{uuid: {}, memory: 3Gi}}]}}", shown.uuid);
        world.apply::<Reranker>(&reranker("ranker", &request)).await?;
        let pod = running(&world, "part").await?;
        let container = Container::of(&pod, "main")?;
        let nodes = container.nvidia_nodes()?;
        assert_eq!(nodes, BTreeSet::from(["nvidia-caps".to_owned(), "nvidia3".to_owned()]));
        for (index, allowed) in [(small, true), (large, false)] {
            assert_eq!(container.open_mig(index)? == Open::Allowed, allowed, "MIG device {index}");
        }
        for index in 0..8 {
            assert_eq!(container.open(index)? == Open::Allowed, index == 3, "GPU {index}");
        }

        let status = world.ready::<Reranker>("ranker").await?.status.unwrap_or_default();
        let given = &status.assignments[0].gpus[0];
        assert_eq!((given.index, given.units), (large, 3));
        let pod = world.pods_of("ranker").await?.pop().context("no pod")?;
        let name = pod.spec.as_ref().map(|spec| spec.containers[0].name.clone()).unwrap_or_default();
        let environment = Container::of(&pod, &name)?.environment()?;
        assert_eq!(environment.get("CUDA_VISIBLE_DEVICES"), Some(&shown.uuid));

        // Heat is the whole card's.
        gpus::set(3, &["--temperature", "92"])?;
        world.wait_for_withheld(large, true).await?;
        world.wait_for_devices(&gpu_resource(large), 3).await?;
        gpus::set(3, &["--temperature", "40"])?;
        world.wait_for_withheld(large, false).await?;

        world.delete::<Reranker>("ranker").await?;
        world.delete::<Pod>("part").await?;
        gpus::set(3, &["--mig", "off"])?;
        world.wait_for_devices(&gpu_resource(3), 8).await?;
        world
            .eventually("the MIG devices are forgotten", || async {
                Ok((world.gpu_node().await?.status.unwrap_or_default().gpus.len() == 8).then_some(()))
            })
            .await
    })
}
