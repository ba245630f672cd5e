//! Memory: units follow what is really free, and who takes more than its share is named.

use crate::pods::{identity, running, third_party};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use principium_api::gpu_node::WithheldReason;
use principium_api::names::gpu_resource;
use principium_e2e::container::Container;
use principium_e2e::{gpus, run};

#[test]
fn memory_of_outsiders_is_withheld_and_a_pod_above_its_share_is_named_and_left_alone() -> Result<()> {
    run("memory", |world| async move {
        world.apply::<Pod>(&third_party("greedy", Some((4, 2)))).await?;
        let pod = running(&world, "greedy").await?;
        let before = identity(&pod);
        let pid = Container::of(&pod, "main")?.pid();
        gpus::set(4, &["--process", &format!("{pid}:3GiB")])?;
        let overuse = world
            .eventually("the GPUNode names the pod", || async { Ok(world.gpu(4).await?.overuse.pop()) })
            .await?;
        assert_eq!((overuse.pod.as_str(), overuse.share, overuse.used), ("greedy", 2048, 3072));
        world.wait_for_event("GPUMemoryOveruse", &["GPU 4", "e2e-memory/greedy", "3072 MiB"]).await?;
        let used = format!(
            "principium_gpu_pod_memory_bytes{{gpu=\"4\",uuid=\"{}\",namespace=\"e2e-memory\",pod=\"greedy\",state=\"used\"}} {}",
            world.gpu(4).await?.uuid,
            3072_u64 << 20
        );
        assert!(world.plugin_metrics().await?.iter().any(|line| line.starts_with(&used)), "{used}");
        assert_eq!(world.gpu(4).await?.withheld, None, "the pod holds the GPU, so nothing is foreign");

        // This process belongs to no pod.
        gpus::set(6, &["--process", &format!("{}:3GiB", std::process::id())])?;
        world.wait_for_devices(&gpu_resource(6), 5).await?;
        let gpu = world
            .eventually("the GPUNode names the process", || async {
                Ok(Some(world.gpu(6).await?).filter(|gpu| gpu.withheld.is_some()))
            })
            .await?;
        assert_eq!(gpu.withheld.map(|withheld| withheld.reason), Some(WithheldReason::ForeignProcess));
        let process = gpu.foreign_processes.first().context("no process is named")?;
        assert_eq!((process.pid, process.used), (std::process::id(), 3072));
        let name = std::fs::read_to_string("/proc/self/comm")?;
        assert_eq!(process.name, name.trim_end());
        gpus::set(6, &["--clear-processes"])?;
        world.wait_for_devices(&gpu_resource(6), 8).await?;

        // A pod that uses a GPU without holding it is an outsider too.
        gpus::set(6, &["--process", &format!("{pid}:1GiB")])?;
        world.wait_for_devices(&gpu_resource(6), 7).await?;
        world
            .eventually("the GPUNode names the pod on the other GPU", || async {
                let processes = world.gpu(6).await?.foreign_processes;
                Ok(processes.iter().any(|process| process.name == "pod e2e-memory/greedy").then_some(()))
            })
            .await?;
        assert_eq!(identity(&world.api::<Pod>().get("greedy").await?), before, "reported, not ended");
        Ok(())
    })
}
