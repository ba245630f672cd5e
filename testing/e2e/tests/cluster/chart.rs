//! The chart through its life: upgraded from an older one, applied again, installed in other ways, tested with `helm test`.

use crate::pods::{identity, reranker};
use anyhow::{Context, Result, ensure};
use principium_api::Reranker;
use principium_e2e::{Release, run};
use principium_local_cluster::{NAMESPACE, chart, command, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A field and a column that the older chart's definition of Rerankers lacks.
const FIELD: &str = "priorityClassName";
const COLUMN: &str = "Device";
/// What pods of the chart carry that an upgrade has just made.
const UPGRADED: &str = "operator.podAnnotations.e2e=upgraded";

#[test]
fn an_upgrade_brings_the_new_definitions_and_restarts_no_workload() -> Result<()> {
    run("upgrade", |world| async move {
        let release = Release::existing()?;
        let older = older_chart()?;
        let outcome = async {
            release.upgrade(&older, &[])?;
            assert!(!has_column(&release)? && !has_field(&release)?, "the older definition is in force");
            world.apply::<Reranker>(&reranker("ranker", "{memory: 2Gi}")).await?;
            world.ready::<Reranker>("ranker").await?;
            let before = identity(&world.pods_of("ranker").await?[0]);

            release.upgrade(&Release::chart(), &[UPGRADED])?;
            assert!(
                has_column(&release)? && has_field(&release)?,
                "the definition is upgraded with the chart"
            );
            // The new operator has looked at it: a change of the spec that needs no new pod is observed.
            let changed = reranker("ranker", "{memory: 2Gi}") + "  requireAcceleration: false\n";
            world.apply::<Reranker>(&changed).await?;
            world.ready::<Reranker>("ranker").await?;
            assert_eq!(identity(&world.pods_of("ranker").await?[0]), before, "the workload is left alone");
            Ok(())
        }
        .await;
        fs::remove_dir_all(&older)?;
        release.with(&[], async { Ok(()) }).await?;
        outcome
    })
}

/// This chart as an earlier release could have been: another version, and definitions that lack a field and a column.
fn older_chart() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("principium-e2e-chart-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    command::run(Command::new("cp").arg("-r").arg(Release::chart()).arg(&folder))?;
    let about = fs::read_to_string(folder.join("Chart.yaml"))?;
    let version =
        about.lines().find(|line| line.starts_with("version:")).context("Chart.yaml has no version")?;
    fs::write(folder.join("Chart.yaml"), about.replace(version, "version: 0.0.1"))?;

    let file = folder.join("files/crds/rerankers.principium.ai.yaml");
    let mut definition: Value = serde_yaml::from_str(&fs::read_to_string(&file)?)?;
    let version = &mut definition["spec"]["versions"][0];
    let columns = version["additionalPrinterColumns"].as_array_mut().context("no columns")?;
    columns.retain(|column| column["name"] != COLUMN);
    let fields = version.pointer_mut("/schema/openAPIV3Schema/properties/spec/properties");
    let removed = fields.and_then(Value::as_object_mut).and_then(|fields| fields.remove(FIELD));
    ensure!(removed.is_some(), "a Reranker has no {FIELD}");
    // As the files are written: the chart puts labels in where `metadata:` stands alone in its line.
    fs::write(&file, serde_yaml::to_string(&definition)?)?;
    Ok(folder)
}

fn has_column(release: &Release) -> Result<bool> {
    let path = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
    let names =
        command::run(&mut release.kubectl(&["get", "crd", "rerankers.principium.ai", "-o", path])?)?;
    Ok(names.split(' ').any(|name| name == COLUMN))
}

fn has_field(release: &Release) -> Result<bool> {
    let path = format!(
        "jsonpath={{.spec.versions[0].schema.openAPIV3Schema.properties.spec.properties.{FIELD}.type}}"
    );
    let kind =
        command::run(&mut release.kubectl(&["get", "crd", "rerankers.principium.ai", "-o", &path])?)?;
    Ok(!kind.is_empty())
}

#[test]
fn what_is_installed_is_changed_by_nothing_that_is_applied_again() -> Result<()> {
    run("again", |_world| async move {
        let release = Release::existing()?;
        let manifest = release.helm(&["get", "manifest", chart::RELEASE])?;
        // Server-side apply by somebody else, as Argo CD and Flux do it, would change no field.
        let diff =
            ["diff", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-"];
        release.kubectl_with(&diff, &manifest).context("the release differs from its own manifests")?;

        let before = versions(&release, &manifest)?;
        assert!(before.len() > 15, "{before:?}");
        release.upgrade(&Release::chart(), &[])?;
        assert_eq!(versions(&release, &manifest)?, before, "a second upgrade writes nothing");
        Ok(())
    })
}

/// The version of every object of a manifest, as the API server counts them.
fn versions(release: &Release, manifest: &str) -> Result<BTreeMap<String, String>> {
    let found = release.kubectl_with(&["get", "-o", "json", "-f", "-"], manifest)?;
    let found: Value = serde_json::from_str(&found)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(found["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let name = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
            (name, text(&object["metadata"]["resourceVersion"]))
        })
        .collect())
}

#[test]
fn plain_manifests_and_kustomizations_are_taken_by_the_api_server() -> Result<()> {
    run("plain", |_world| async move {
        let release = Release::existing()?;
        let manifests = repository().join("manifests");
        let apply =
            ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "--field-manager=e2e"];
        for folder in ["default", "simulated"] {
            let said = command::run(release.kubectl(&apply)?.arg("-k").arg(manifests.join(folder)))?;
            for object in [
                "namespace/principium-system",
                "rerankers.principium.ai",
                "daemonset.apps/",
                "deployment.apps/",
            ] {
                assert!(said.contains(object), "{folder} has no {object}:\n{said}");
            }
        }
        let plain = |path: &Path| ["-f".to_owned(), path.display().to_string()];
        let files =
            [plain(&manifests.join("crds/crds.yaml")), plain(&manifests.join("default/install.yaml"))];
        command::run(release.kubectl(&apply)?.args(files.concat())).map(drop)
    })
}

#[test]
fn helm_test_finds_an_installation_that_works() -> Result<()> {
    run("helm-test", |_world| async move {
        let release = Release::existing()?;
        let said = release.helm(&["test", chart::RELEASE, "--logs", "--timeout", "2m"]);
        let pod = format!("{}-operator-check", chart::RELEASE);
        let delete = ["delete", "pod", &pod, "--namespace", NAMESPACE, "--ignore-not-found"];
        command::run(&mut release.kubectl(&delete)?)?;
        let said = said?;
        for found in
            ["rights: all that the operator needs", "leads and renews its Lease", "GPUs: 8 on 1 nodes"]
        {
            assert!(said.contains(found), "no {found:?} in\n{said}");
        }
        Ok(())
    })
}
