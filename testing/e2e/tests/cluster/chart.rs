//! The chart through its life: upgraded from an older one and rolled back, applied again, uninstalled and installed again,
//! installed in other ways, tested with `helm test`.

use crate::pods::{identity, reranker, serves};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use principium_api::Reranker;
use principium_e2e::{Release, World, run};
use principium_local_cluster::{NAMESPACE, chart, command, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A field of a Reranker that the older chart's definition lacks.
const FIELD: &str = "dtype";
/// What the operator's pods carry that an upgrade has just made.
const UPGRADED: &str = "operator.podAnnotations.e2e=upgraded";

/// As [`identity`] tells it.
type Identity = (String, Option<String>, i32);

#[test]
fn an_upgrade_brings_the_new_definitions_and_restarts_no_workload() -> Result<()> {
    run("upgrade", |world| async move {
        let release = Release::existing()?;
        release.with(&[], upgrade(&world, &release)).await
    })
}

/// Errors instead of failed assertions: an error is what the release is put back after.
async fn upgrade(world: &World, release: &Release) -> Result<()> {
    let older = repository().join("testing/e2e/previous/principium-233c5b6.tar.gz");
    // The older chart names the images of its own version.
    let images = concat!("image.tag=", env!("CARGO_PKG_VERSION"));
    let plain = reranker("ranker", "{memory: 2Gi}");
    release.upgrade(&older, &[images])?;
    ensure!(!has_field(release)?, "the older definition is in force");
    world.apply::<Reranker>(&plain).await?;
    world.ready::<Reranker>("ranker").await?;
    let before = ranker(world).await?;

    let changed = plain.clone() + "  maxUnavailable: 2\n";
    upgrade_from_older(world, release, &changed, &before).await?;
    release.helm(&["rollback", chart::RELEASE, "--wait", "--timeout", "3m"])?;
    ensure!(!has_field(release)?, "the older definition is in force again");
    ensure!(ranker(world).await? == before, "the workload is left alone by a rollback");
    upgrade_from_older(world, release, &plain, &before).await
}

async fn upgrade_from_older(world: &World, release: &Release, spec: &str, before: &Identity) -> Result<()> {
    release.upgrade(&Release::chart(), &[UPGRADED])?;
    ensure!(has_field(release)?, "the definition is upgraded with the chart");
    // The new operator has looked at it: a change of the spec that needs no new pod is observed.
    world.apply::<Reranker>(spec).await?;
    world.ready::<Reranker>("ranker").await?;
    ensure!(ranker(world).await? == *before, "the workload is left alone by an upgrade");
    Ok(())
}

/// The identity of the only pod of the Reranker.
async fn ranker(world: &World) -> Result<Identity> {
    let pods = world.pods_of("ranker").await?;
    ensure!(pods.len() == 1, "{} pods instead of one", pods.len());
    Ok(identity(&pods[0]))
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
fn what_an_uninstallation_keeps_runs_on_and_is_taken_over_by_the_next_installation() -> Result<()> {
    run("uninstall", |world| async move {
        let release = Release::existing()?;
        let values =
            std::env::temp_dir().join(format!("principium-e2e-own-values-{}.json", std::process::id()));
        fs::write(&values, release.helm(&["get", "values", chart::RELEASE, "--output", "json"])?)
            .with_context(|| format!("writing {}", values.display()))?;
        let outcome = uninstall_and_install(&world, &release, &values).await;
        let back =
            install(&release, &["upgrade", "--install", "--reset-values", "--take-ownership"], &values);
        fs::remove_file(&values)?;
        outcome.and(back)
    })
}

async fn uninstall_and_install(world: &World, release: &Release, values: &Path) -> Result<()> {
    let plain = reranker("ranker", "{memory: 2Gi}");
    world.apply::<Reranker>(&plain).await?;
    let resource = world.ready::<Reranker>("ranker").await?;
    let holds = |resource: &Reranker| resource.status.clone().unwrap_or_default().assignments;
    let (pod, defined) = (ranker(world).await?, definitions(release)?);
    let generated = fs::read_dir(Release::chart().join("files/crds"))?.count();
    ensure!(defined.len() == generated, "{generated} definitions in the chart, but {defined:?} installed");

    release.helm(&["uninstall", chart::RELEASE, "--wait", "--timeout", "3m"])?;
    let parts = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/component in (operator, device-plugin)");
    let gone = || async { Ok(parts.list(&ours).await?.items.is_empty().then_some(())) };
    world.eventually("no operator and no device plugin runs", gone).await?;
    ensure!(definitions(release)? == defined, "the definitions are kept");
    let untouched = || async {
        let pods = world.pods_of("ranker").await?;
        Ok(matches!(&pods[..], [only] if serves(only) && identity(only) == pod))
    };
    world.stays("the workload serves without an operator", Duration::from_secs(5), untouched).await?;

    // Under the same name and in the same namespace Helm knows the definitions for its own.
    install(release, &["install"], values)?;
    ensure!(definitions(release)? == defined, "the definitions are taken over as they are");
    for index in 0..8 {
        world.wait_for_allocatable(index, 8).await?;
    }
    // The new operator has looked at it: a change of the spec that needs no new pod is observed.
    world.apply::<Reranker>(&(plain + "  maxUnavailable: 2\n")).await?;
    let after = world.ready::<Reranker>("ranker").await?;
    ensure!(
        after.uid() == resource.uid() && holds(&after) == holds(&resource),
        "the resource has what it had"
    );
    world.stays("the workload is left alone", Duration::from_secs(3), untouched).await
}

/// Installs the chart with these values and waits until all is ready.
fn install(release: &Release, how: &[&str], values: &Path) -> Result<()> {
    let (chart, values) = (Release::chart().display().to_string(), values.display().to_string());
    let what = [chart::RELEASE, &chart, "--values", &values, "--wait", "--timeout", "3m"];
    release.helm(&[how, &what].concat()).map(drop)
}

/// The installed definitions and their ids, which change when one is made anew.
fn definitions(release: &Release) -> Result<BTreeMap<String, String>> {
    let path = r#"jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{"\n"}{end}"#;
    let listed = command::run(&mut release.kubectl(&["get", "crd", "-o", path])?)?;
    let named = listed.lines().filter_map(|line| line.split_once(' '));
    let ours = named.filter(|(name, _)| name.ends_with(".principium.ai"));
    Ok(ours.map(|(name, id)| (name.to_owned(), id.to_owned())).collect())
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
