//! What Argo CD and Flux make of our resources, by their own programs: every state that the operator reports is shown to
//! `argocd` with the health check of the examples, and to Flux's evaluator with the expressions of the examples.
//!
//! The programs take minutes to build. Where they are not there, they are built only if something that the outcome
//! depends on has changed since it was last seen to be right: its digest is kept in the repository.

use super::digest::{digits, is_unchanged, keep};
use anyhow::{Context, Result, bail, ensure};
use principium_local_cluster::command::{run, run_with_input};
use principium_local_cluster::progress::step;
use principium_local_cluster::{Cache, tools};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The states, written by a test of the operator from its own conditions.
const STATES: &str = "testing/gitops/states.json";
/// The digest of the inputs for which Argo CD and Flux were last seen to be right.
const VERIFIED: &str = "testing/gitops/verified";
const ARGOCD_HEALTH: &str = "examples/gitops/argocd/health.yaml";
const FLUX_HEALTH: &str = "examples/gitops/flux/resources.yaml";
const PROGRAMS: [&str; 2] = ["argocd", "flux-health"];

/// A state of a resource, and what it is.
#[derive(Deserialize)]
struct State {
    progress: Progress,
    resource: Value,
}

/// How far a resource is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Progress {
    Ready,
    Reconciling,
    Stalled,
    /// Not seen by the operator yet, or not since its spec was changed.
    Unseen,
}

impl Progress {
    fn in_argocd(self) -> &'static str {
        match self {
            Self::Ready => "Healthy",
            Self::Reconciling | Self::Unseen => "Progressing",
            Self::Stalled => "Degraded",
        }
    }

    fn in_flux(self) -> &'static str {
        match self {
            Self::Ready => "Current",
            Self::Reconciling | Self::Unseen => "InProgress",
            Self::Stalled => "Failed",
        }
    }
}

/// Checks every state with both, unless nothing has changed and the programs would have to be built.
pub fn check(cache: &Cache) -> Result<()> {
    let digest = digest()?;
    let mut built = true;
    for program in PROGRAMS {
        built &= tools::existing_extra(cache, program)?.is_some();
    }
    if is_unchanged(VERIFIED, &digest) && !built {
        println!("    GitOps: unchanged since Argo CD and Flux last saw it; they are not built for that");
        return Ok(());
    }
    let states: Vec<State> = read(STATES)?;
    ensure!(!states.is_empty(), "{STATES} has no states");
    let argocd = tools::ensure_extra(cache, "argocd")?.join("argocd");
    step("GitOps: health in Argo CD", || in_argocd(&argocd, &states))?;
    let flux = tools::ensure_extra(cache, "flux-health")?.join("flux-health");
    step("GitOps: health in Flux", || in_flux(&flux, &states))?;
    keep(VERIFIED, &digest)
}

fn in_argocd(argocd: &Path, states: &[State]) -> Result<()> {
    let file = crate::target().join("state.json");
    for State { progress, resource } in states {
        fs::write(&file, resource.to_string())?;
        let mut command = Command::new(argocd);
        command.args(["admin", "settings", "resource-overrides", "health"]).arg(&file);
        command.arg("--argocd-cm-path").arg(crate::root().join(ARGOCD_HEALTH));
        let said = run(&mut command)?;
        let health =
            said.lines().find_map(|line| line.strip_prefix("STATUS: ")).context("argocd tells no status")?;
        ensure!(
            health == progress.in_argocd(),
            "Argo CD takes this for {health}, not {}:\n{resource:#}",
            progress.in_argocd()
        );
    }
    Ok(())
}

fn in_flux(flux: &Path, states: &[State]) -> Result<()> {
    let example = fs::read_to_string(crate::root().join(FLUX_HEALTH))?;
    let documents: Vec<Value> =
        serde_yaml::Deserializer::from_str(&example).map(Value::deserialize).collect::<Result<_, _>>()?;
    let mut seen = 0;
    for expressions in
        documents.iter().filter_map(|found| found["spec"]["healthCheckExprs"].as_array()).flatten()
    {
        let of_kind: Vec<&State> =
            states.iter().filter(|state| state.resource["kind"] == expressions["kind"]).collect();
        let objects: Vec<&Value> = of_kind.iter().map(|state| &state.resource).collect();
        let said = run_with_input(
            &mut Command::new(flux),
            &json!({"expressions": expressions, "objects": objects}).to_string(),
        )?;
        for (state, line) in of_kind.iter().zip(said.lines()) {
            let Some((kstatus, by_expressions)) = line.split_once(' ') else {
                bail!("flux-health says {line:?}")
            };
            let wanted = match state.progress {
                // Without expressions Flux takes what nobody has looked at yet for finished; with them it waits.
                Progress::Unseen if state.resource["status"].is_null() => ("Current", "Unknown"),
                progress => (progress.in_flux(), progress.in_flux()),
            };
            ensure!(
                (kstatus, by_expressions) == wanted,
                "kstatus and the expressions say {kstatus} and {by_expressions}, not {wanted:?}, of\n{:#}",
                state.resource
            );
            seen += 1;
        }
    }
    ensure!(seen == states.len(), "{FLUX_HEALTH} has expressions for {seen} of {} states", states.len());
    Ok(())
}

fn read<T: for<'a> Deserialize<'a>>(file: &str) -> Result<T> {
    let text = fs::read_to_string(crate::root().join(file)).with_context(|| format!("reading {file}"))?;
    serde_yaml::from_str(&text).with_context(|| format!("reading {file}"))
}

fn digest() -> Result<String> {
    let mut hasher = Sha256::new();
    for file in [STATES, ARGOCD_HEALTH, FLUX_HEALTH] {
        hasher.update(fs::read(crate::root().join(file)).with_context(|| format!("reading {file}"))?);
    }
    for program in PROGRAMS {
        hasher.update(tools::extra_recipe(program)?);
    }
    Ok(digits(hasher))
}
