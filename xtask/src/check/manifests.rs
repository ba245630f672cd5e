//! Manifests held against the schemas of their kinds, strictly: an unknown field is a mistake.

use super::schemas;
use anyhow::{Result, ensure};
use principium_local_cluster::command::{run, run_with_input};
use principium_local_cluster::{Cache, tools};
use std::path::PathBuf;
use std::process::Command;

/// Kinds that are read by a tool, not by the API server, or whose definitions are in no module of the Go proxy.
const WITHOUT_SCHEMA: &str = "kustomize.config.k8s.io/v1beta1/Kustomization,GitRepository,HelmRelease";

/// kubeconform with its schemas.
pub struct Validator {
    kubeconform: PathBuf,
    schemas: PathBuf,
}

impl Validator {
    pub fn new(cache: &Cache) -> Result<Self> {
        let kubeconform = tools::ensure_extra(cache, "kubeconform")?.join("kubeconform");
        let schemas = crate::target().join("schemas");
        schemas::write(&schemas)?;
        Ok(Self { kubeconform, schemas })
    }

    /// Checks a text of several documents.
    pub fn text(&self, manifests: &str) -> Result<()> {
        let said = run_with_input(&mut self.command(), manifests)?;
        checked_something(&said)
    }

    /// Checks every file in folders.
    pub fn folders(&self, folders: &[PathBuf]) -> Result<()> {
        let said =
            run(self.command().args(["-ignore-filename-pattern", r"\.(md|txt|json|lua)$"]).args(folders))?;
        checked_something(&said)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.kubeconform);
        let location = self.schemas.join("{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json");
        command
            .arg("-strict")
            .arg("-summary")
            .args(["-skip", WITHOUT_SCHEMA])
            .arg("-schema-location")
            .arg(location);
        command
    }
}

fn checked_something(said: &str) -> Result<()> {
    ensure!(!said.contains("Valid: 0"), "kubeconform checked nothing: {said}");
    Ok(())
}
