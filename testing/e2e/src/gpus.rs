//! The simulated hardware, and what the cluster says about it.

use crate::World;
use anyhow::{Context, Result};
use clap::Parser;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use principium_api::GPUNode;
use principium_api::gpu_node::Gpu;
use principium_api::names::gpu_resource;
use principium_gpu_sim::{GpuCommand, state_path};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: GpuCommand,
}

/// Changes one simulated GPU with the words of `cargo xtask gpu set`.
///
/// # Errors
/// When the words are wrong or the state can't be written.
pub fn set(index: u32, change: &[&str]) -> Result<()> {
    let index = index.to_string();
    command(&[&["set", &index], change].concat())
}

/// Changes the driver with a word of `cargo xtask gpu driver`.
///
/// # Errors
/// When the word is wrong or the state can't be written.
pub fn driver(change: &str) -> Result<()> {
    command(&["driver", change])
}

/// All GPUs cool, healthy and there, and the driver too.
///
/// # Errors
/// When the state can't be written.
pub fn reset() -> Result<()> {
    command(&["reset"])
}

fn command(words: &[&str]) -> Result<()> {
    let line = Line::try_parse_from([&["gpu"], words].concat())?;
    line.command
        .run_to(&state_path(), &mut std::io::sink())
        .with_context(|| format!("gpu {}", words.join(" ")))
}

impl World {
    /// The only GPUNode of the local cluster.
    ///
    /// # Errors
    /// When there is none.
    pub async fn gpu_node(&self) -> Result<GPUNode> {
        let nodes = Api::<GPUNode>::all(self.client.clone()).list(&ListParams::default()).await?;
        nodes.items.into_iter().next().context("no GPUNode: does the device plugin run?")
    }

    /// One GPU as GPUNode shows it.
    ///
    /// # Errors
    /// When there is none of this index.
    pub async fn gpu(&self, index: u32) -> Result<Gpu> {
        let node = self.gpu_node().await?;
        let gpus = node.status.unwrap_or_default().gpus;
        gpus.into_iter()
            .find(|gpu| gpu.index == index)
            .with_context(|| format!("GPUNode lists no GPU {index}"))
    }

    /// Units of a GPU that the kubelet reports as allocatable: in use, or free and offered.
    ///
    /// # Errors
    /// When the node can't be read.
    pub async fn allocatable(&self, index: u32) -> Result<u32> {
        let nodes = Api::<Node>::all(self.client.clone());
        let name = self.gpu_node().await?.name_any();
        let allocatable = nodes.get(&name).await?.status.and_then(|s| s.allocatable).unwrap_or_default();
        Ok(allocatable.get(&gpu_resource(index)).and_then(|q| q.0.parse().ok()).unwrap_or(0))
    }

    /// Waits until the kubelet reports this many units of a GPU.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn wait_for_allocatable(&self, index: u32, units: u32) -> Result<()> {
        self.eventually(&format!("the kubelet reports {units} units of GPU {index}"), || async {
            Ok((self.allocatable(index).await? == units).then_some(()))
        })
        .await
    }

    /// Waits until every GPU is offered and nobody holds one: what the last test did has passed by.
    ///
    /// # Errors
    /// When something is still held or withheld in the end.
    pub async fn wait_until_idle(&self) -> Result<()> {
        self.eventually("no GPU is held or withheld", || async {
            let gpus = self.gpu_node().await?.status.unwrap_or_default().gpus;
            let idle = |gpu: &Gpu| gpu.allocations.is_empty() && gpu.withheld.is_none();
            Ok((gpus.len() == 8 && gpus.iter().all(idle)).then_some(()))
        })
        .await
    }

    /// Waits until the GPUNode tells of nothing unusual.
    ///
    /// # Errors
    /// When it still does in the end.
    pub async fn wait_until_calm(&self) -> Result<()> {
        self.eventually("the GPUNode tells of nothing unusual", || async {
            let status = self.gpu_node().await?.status.unwrap_or_default();
            let calm = status.message.is_none()
                && status.disagreements.is_empty()
                && status.gpus.iter().all(|gpu| gpu.withheld.is_none());
            Ok(calm.then_some(()))
        })
        .await
    }

    /// Waits until the plugin withholds a GPU (`true`) or offers it (`false`).
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn wait_for_withheld(&self, index: u32, withheld: bool) -> Result<()> {
        self.eventually(&format!("GPU {index} withheld: {withheld}"), || async {
            Ok((self.gpu(index).await?.withheld.is_some() == withheld).then_some(()))
        })
        .await
    }
}
