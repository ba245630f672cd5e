//! The chart: linted with several sets of values, and what it renders with each is what the API server takes, as far as
//! schemas say it. A set is a file of `charts/principium/ci/`.

use super::manifests::Validator;
use super::values;
use anyhow::{Context, Result, ensure};
use principium_local_cluster::command::run;
use principium_local_cluster::progress::step;
use principium_local_cluster::{Cache, NAMESPACE, tools};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a set must render, and what it must not, where no schema can tell.
const EXPECTED: [(&str, &[&str], &[&str]); 4] = [
    ("default-values", &["--ollama-image=docker.io/ollama/ollama:0.17.4"], &[]),
    // A mirror has Ollama's tags, whatever the tag of the other images is.
    ("mirror-values", &["--ollama-image=registry.example.com/mirror/ollama:0.17.4"], &[]),
    (
        "no-cluster-rights-values",
        &["kind: DaemonSet", "matchNames: [team-a]"],
        &[
            "kind: CustomResourceDefinition",
            "kind: ClusterRole",
            "kind: PriorityClass",
            "kind: ValidatingAdmission",
        ],
    ),
    (
        "operator-only-values",
        &["kind: Deployment"],
        &["component: device-plugin", "kind: DaemonSet", "kind: ValidatingAdmission"],
    ),
];

/// Checks the chart, the manifests that are made from it, and the examples.
pub fn check(cache: &Cache) -> Result<()> {
    let helm = tools::ensure_extra(cache, "helm")?.join("helm");
    let chart = crate::root().join("charts/principium");
    step("chart: wrong values are refused", || values::check(&helm, &chart))?;
    let validator = Validator::new(cache)?;
    for set in sets(&chart)? {
        let name = set.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        step(&format!("chart: {name}"), || {
            let values = |command: &mut Command| run(command.arg("--values").arg(&set));
            values(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))?;
            let rendered = values(
                Command::new(&helm).args(["template", "principium", "--namespace", NAMESPACE]).arg(&chart),
            )?;
            as_expected(&name, &rendered)?;
            validator.text(&rendered)
        })?;
    }
    step("manifests and examples", || {
        validator.folders(&[crate::root().join("manifests"), crate::root().join("examples")])
    })
}

fn as_expected(set: &str, rendered: &str) -> Result<()> {
    for (_, there, absent) in EXPECTED.iter().filter(|(name, ..)| *name == set) {
        for text in *there {
            ensure!(rendered.contains(text), "{set} does not render {text:?}");
        }
        for text in *absent {
            ensure!(!rendered.contains(text), "{set} renders {text:?}");
        }
    }
    Ok(())
}

fn sets(chart: &Path) -> Result<Vec<PathBuf>> {
    let folder = chart.join("ci");
    let found = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut sets: Vec<PathBuf> = found.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sets.sort();
    ensure!(!sets.is_empty(), "no sets of values in {}", folder.display());
    Ok(sets)
}
