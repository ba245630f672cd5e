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
            validator.text(&rendered)
        })?;
    }
    step("manifests and examples", || {
        validator.folders(&[crate::root().join("manifests"), crate::root().join("examples")])
    })
}

fn sets(chart: &Path) -> Result<Vec<PathBuf>> {
    let folder = chart.join("ci");
    let found = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut sets: Vec<PathBuf> = found.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    sets.sort();
    ensure!(!sets.is_empty(), "no sets of values in {}", folder.display());
    Ok(sets)
}
