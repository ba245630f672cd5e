//! Installing the project into the local cluster, as a user would: with Helm.

use crate::cluster::Cluster;
use crate::command::run;
use crate::progress::step;
use anyhow::Result;
use std::path::Path;

/// Namespace of the installation.
pub const NAMESPACE: &str = "principium-system";
/// Name of the Helm release.
pub const RELEASE: &str = "principium";

/// Installs or upgrades the chart with simulated GPUs and waits until all of it is ready.
///
/// `images` is a digest of the images' contents: their tags stay the same from build to build, so it is what makes Helm
/// start new pods when a binary has changed.
///
/// # Errors
/// When Helm fails, or the pods are not ready in time.
pub fn install(cluster: &Cluster, repository: &Path, images: &str) -> Result<()> {
    step("helm upgrade --install principium", || {
        let mut helm = cluster.tools.command("helm")?;
        helm.env("KUBECONFIG", cluster.paths.kubeconfig())
            .args(["upgrade", "--install", RELEASE])
            .arg(repository.join("charts/principium"))
            .args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m"])
            // CRDs that were applied by hand before become the release's.
            .arg("--take-ownership")
            .args(["--set", "simulation.enabled=true"])
            .args(["--set-string", &format!("podAnnotations.principium\\.ai/images={images}")]);
        run(&mut helm).map(drop)
    })
}
