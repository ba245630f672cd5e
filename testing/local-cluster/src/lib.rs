//! A real Kubernetes cluster of one node on this machine: etcd, API server, scheduler, controller manager, kubelet,
//! containerd, CoreDNS, all built from source; and the project installed into it. It is what tests and the demo run on.
//! It knows nothing of what the project does.

pub mod cache;
pub mod chart;
pub mod cluster;
pub mod command;
pub mod control_plane;
pub mod databases;
pub mod images;
pub mod models;
pub mod progress;
pub mod python;
pub mod tools;
mod versions;

pub use cache::Cache;
pub use chart::NAMESPACE;
pub use cluster::{Cluster, Stopped};

use anyhow::Result;
use std::path::{Path, PathBuf};

/// The root of the repository that this was built from.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// `kubectl` of the local cluster, or the one in `PATH`.
#[must_use]
pub fn kubectl() -> PathBuf {
    let built = Cache::from_environment()
        .and_then(|cache| tools::Tools::existing(&cache))
        .and_then(|tools| tools.path("kubectl"));
    built.unwrap_or_else(|_| "kubectl".into())
}

/// Restarts one component of the running cluster and waits until it answers.
///
/// # Errors
/// When the cluster is not up or the component does not come back.
pub fn restart_component(component: &str) -> Result<()> {
    Cluster::existing(&Cache::from_environment()?)?.restart(component)
}

/// Stops one component of the running cluster until what this returns is dropped.
///
/// # Errors
/// When the cluster is not up or the component does not end.
pub fn stop_component(component: &str) -> Result<Stopped> {
    Cluster::existing(&Cache::from_environment()?)?.stop(component)
}
