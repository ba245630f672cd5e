//! The chart: linted with several sets of values, and what it renders with each is what the API server takes, as far as
//! schemas say it. A set is a file of `charts/principium/ci/`.

use super::manifests::Validator;
use super::{effects, rights, values};
use anyhow::{Context, Result, ensure};
use principium_local_cluster::command::run;
use principium_local_cluster::progress::step;
use principium_local_cluster::{Cache, NAMESPACE, tools};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a set must render, and what it must not, where no schema can tell.
struct Expected {
    set: &'static str,
    definitions: Definitions,
    there: &'static [&'static str],
    absent: &'static [&'static str],
}

/// What a set makes of the CustomResourceDefinitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Definitions {
    /// All of them, and Helm keeps each when the chart is uninstalled.
    Kept,
    /// All of them, and with the chart they go.
    Removed,
    /// None.
    Absent,
}

/// A row for every set.
const EXPECTED: [Expected; 8] = [
    Expected {
        set: "default-values",
        definitions: Definitions::Kept,
        there: &[
            "--ollama-image=docker.io/ollama/ollama:0.17.4",
            "--require-acceleration=true",
            "name: NVIDIA_VISIBLE_DEVICES",
            "hostPID: true",
        ],
        absent: &[
            "kind: NetworkPolicy",
            "kind: PodDisruptionBudget",
            "kind: PrometheusRule",
            "kind: ServiceMonitor",
            "privileged: true",
            "runtimeClassName",
            "/simulation",
        ],
    },
    Expected {
        set: "everything-values",
        definitions: Definitions::Removed,
        there: &[
            "kind: NetworkPolicy",
            "kind: PodDisruptionBudget",
            "kind: PrometheusRule",
            "kind: ServiceMonitor",
            "grafana_dashboard: \"1\"",
            "name: gpus-operator",
            "team: retrieval",
            "/principium-operator:1.2.3",
            "--require-acceleration=false",
            "topologySpreadConstraints",
            "podAntiAffinity",
            "nodeAffinity",
            "key: node-role.kubernetes.io/control-plane",
            "priorityClassName: system-cluster-critical",
            "runtimeClassName: nvidia",
        ],
        absent: &["imagePullPolicy: IfNotPresent", "name: principium-operator\n"],
    },
    Expected {
        set: "host-driver-values",
        definitions: Definitions::Kept,
        there: &[
            "privileged: true",
            "path: /usr/lib/x86_64-linux-gnu",
            "injection: legacy",
            "imagePullSecrets:\n        - name: registry\n",
            "--ollama-image=registry.example.com/mirror/ollama/ollama@sha256:0123456789abcdef",
        ],
        absent: &["ghcr.io/principium-ai/principium-", "NVIDIA_VISIBLE_DEVICES", "/etc/cdi"],
    },
    Expected {
        set: "mirror-values",
        definitions: Definitions::Kept,
        // A mirror has Ollama's tags, whatever the tag of the other images is.
        there: &[
            "--ollama-image=registry.example.com/mirror/ollama:0.17.4",
            "registry.example.com/principium/principium-device-plugin:1.2.3",
        ],
        absent: &["docker.io", "ghcr.io/principium-ai/principium-"],
    },
    Expected {
        set: "namespaced-values",
        definitions: Definitions::Absent,
        there: &["--watch-namespace=team-a", "namespace: team-a"],
        absent: &["kind: PriorityClass", "rbac.authorization.k8s.io/aggregate-to", "hostPID: true"],
    },
    Expected {
        set: "no-cluster-rights-values",
        definitions: Definitions::Absent,
        there: &["kind: DaemonSet", "matchNames: [team-a]"],
        absent: &[
            "kind: ClusterRole",
            "kind: PriorityClass",
            "kind: RoleBinding",
            "kind: ServiceAccount",
            "kind: ValidatingAdmission",
        ],
    },
    Expected {
        set: "operator-only-values",
        definitions: Definitions::Kept,
        there: &["kind: Deployment"],
        absent: &["component: device-plugin", "kind: DaemonSet", "kind: ValidatingAdmission"],
    },
    Expected {
        set: "simulated-values",
        definitions: Definitions::Kept,
        there: &[
            "--ollama-image=ghcr.io/principium-ai/principium-ollama:",
            "--require-acceleration=false",
            "ghcr.io/principium-ai/principium-simulator:",
            "name: PRINCIPIUM_SIMULATED",
        ],
        absent: &["docker.io", "NVIDIA_VISIBLE_DEVICES", "/etc/cdi"],
    },
];

/// Checks the chart, the manifests that are made from it, and the examples.
pub fn check(cache: &Cache) -> Result<()> {
    let helm = tools::ensure_extra(cache, "helm")?.join("helm");
    let chart = crate::root().join("charts/principium");
    step("chart: wrong values are refused", || values::check(&helm, &chart))?;
    step("chart: every value has an effect", || effects::check(&helm, &chart))?;
    let definitions = files(&chart.join("files/crds"))?.len();
    let validator = Validator::new(cache)?;
    for set in files(&chart.join("ci"))? {
        let name = set.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        step(&format!("chart: {name}"), || {
            let values = |command: &mut Command| run(command.arg("--values").arg(&set));
            values(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))?;
            let rendered = values(
                Command::new(&helm).args(["template", "principium", "--namespace", NAMESPACE]).arg(&chart),
            )?;
            as_expected(&name, definitions, &rendered)?;
            rights::check(&name, &rendered)?;
            validator.text(&rendered)
        })?;
    }
    step("manifests and examples", || {
        validator.folders(&[crate::root().join("manifests"), crate::root().join("examples")])
    })
}

fn as_expected(set: &str, definitions: usize, rendered: &str) -> Result<()> {
    let expected = EXPECTED.iter().find(|expected| expected.set == set);
    let expected = expected.with_context(|| format!("EXPECTED in {} says nothing of {set}", file!()))?;
    for text in expected.there {
        ensure!(rendered.contains(text), "{set} does not render {text:?}");
    }
    for text in expected.absent {
        ensure!(!rendered.contains(text), "{set} renders {text:?}");
    }
    let (number, kept) = match expected.definitions {
        Definitions::Kept => (definitions, 1),
        Definitions::Removed => (definitions, 0),
        Definitions::Absent => (0, 0),
    };
    let found: Vec<&str> = rendered
        .split("\n---\n")
        .filter(|document| document.contains("\nkind: CustomResourceDefinition\n"))
        .collect();
    ensure!(found.len() == number, "{set} renders {} CustomResourceDefinitions, not {number}", found.len());
    for definition in found {
        let name = definition.lines().find_map(|line| line.strip_prefix("  name: ")).unwrap_or_default();
        let times = definition.matches("\n    helm.sh/resource-policy: keep\n").count();
        ensure!(times == kept, "{set} renders the annotation that keeps {name} {times} times, not {kept}");
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files: Vec<PathBuf> = found.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "no files in {}", folder.display());
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_definition_is_kept_once_or_not_at_all_as_the_set_says() {
        const KEEP: &str = "  annotations:\n    helm.sh/resource-policy: keep\n";
        let definition = |name: &str, annotations: &str| {
            format!(
                "\n---\n# Generated\nkind: CustomResourceDefinition\nmetadata:\n{annotations}  name: {name}\nspec: {{}}\n"
            )
        };
        let (kept, left) = (definition("a", KEEP), definition("b", ""));
        let twice = definition("a", &KEEP.repeat(2));
        let cases = [
            ("mirror-values", kept.as_str(), None),
            ("mirror-values", &left, Some("b 0 times, not 1")),
            ("mirror-values", &twice, Some("a 2 times, not 1")),
            ("mirror-values", "", Some("0 CustomResourceDefinitions, not 1")),
            ("everything-values", &left, None),
            ("everything-values", &kept, Some("a 1 times, not 0")),
            ("namespaced-values", "", None),
            ("namespaced-values", &left, Some("1 CustomResourceDefinitions, not 0")),
            ("new-values", "", Some("says nothing of new-values")),
        ];
        for (set, definitions, wrong) in cases {
            let there = EXPECTED.iter().find(|expected| expected.set == set).map(|expected| expected.there);
            let rendered = there.unwrap_or_default().join("\n") + definitions;
            let said = as_expected(set, 1, &rendered).err().map(|error| error.to_string());
            let right = match (&said, wrong) {
                (Some(said), Some(wrong)) => said.contains(wrong),
                (said, wrong) => said.is_none() && wrong.is_none(),
            };
            assert!(right, "{set} with {definitions:?}: {said:?}");
        }
    }
}
