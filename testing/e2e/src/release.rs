//! The Helm release on the local cluster, changed for a test and put back.

use anyhow::{Context, Result};
use principium_local_cluster::command::{run, run_with_input};
use principium_local_cluster::{Cache, Cluster, NAMESPACE, chart, repository};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Helm and kubectl on the local cluster.
#[derive(Clone, Debug)]
pub struct Release {
    cluster: Cluster,
}

impl Release {
    /// The release that the tests run against.
    ///
    /// # Errors
    /// When the cluster's programs are not built.
    pub fn existing() -> Result<Self> {
        Ok(Self { cluster: Cluster::existing(&Cache::from_environment()?)? })
    }

    /// The folder of the chart.
    #[must_use]
    pub fn chart() -> PathBuf {
        repository().join("charts/principium")
    }

    /// Runs Helm in the release's namespace.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = self.cluster.tools.command("helm")?;
        helm.env("KUBECONFIG", self.cluster.paths.kubeconfig());
        run(helm.args(arguments).args(["--namespace", NAMESPACE]))
    }

    /// Upgrades to a chart with the release's own values and these, and waits until all is ready.
    ///
    /// # Errors
    /// When Helm fails, with what it says.
    pub fn upgrade(&self, chart: &Path, set: &[&str]) -> Result<()> {
        let chart = chart.display().to_string();
        let mut arguments = vec!["upgrade", chart::RELEASE, &chart, "--reset-then-reuse-values"];
        arguments.extend(["--wait", "--timeout", "3m"]);
        arguments.extend(set.iter().flat_map(|value| ["--set", value]));
        self.helm(&arguments).map(drop)
    }

    /// A `kubectl` with the administrator's rights.
    ///
    /// # Errors
    /// When it is not built.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Command> {
        let mut kubectl = self.cluster.kubectl()?;
        kubectl.args(arguments);
        Ok(kubectl)
    }

    /// Runs kubectl with a text on its standard input.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        run_with_input(&mut self.kubectl(arguments)?, input)
    }

    /// Does a test's work with other values, and puts the values back whatever happens.
    ///
    /// # Errors
    /// The work's own, or Helm's.
    pub async fn with<F: Future<Output = Result<()>>>(&self, set: &[&str], work: F) -> Result<()> {
        let values = self.helm(&["get", "values", chart::RELEASE, "--output", "json"])?;
        let kept = std::env::temp_dir().join(format!("principium-e2e-values-{}.json", std::process::id()));
        std::fs::write(&kept, values).with_context(|| format!("writing {}", kept.display()))?;
        let upgraded = self.upgrade(&Self::chart(), set);
        let outcome = match upgraded {
            Ok(()) => work.await,
            Err(error) => Err(error),
        };
        let back = self.put_back(&kept);
        std::fs::remove_file(&kept)?;
        outcome.and(back)
    }

    fn put_back(&self, values: &Path) -> Result<()> {
        let (chart, values) = (Self::chart().display().to_string(), values.display().to_string());
        let arguments = ["upgrade", chart::RELEASE, &chart, "--reset-values", "--values", &values];
        self.helm(&[&arguments[..], &["--wait", "--timeout", "3m"]].concat()).map(drop)
    }
}
