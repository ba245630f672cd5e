//! Two operators: one works, and the other takes over.

use crate::pods::reranker;
use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use principium_api::Reranker;
use principium_e2e::{Release, World, run};
use principium_local_cluster::{NAMESPACE, command};
use std::fs;
use std::process::Command;

#[test]
fn another_operator_takes_over_when_the_leader_is_killed() -> Result<()> {
    run("leadership", |world| async move {
        Release::existing()?
            .with(&["operator.replicas=2", "operator.podDisruptionBudget.enabled=true"], take_over(world))
            .await
    })
}

async fn take_over(world: World) -> Result<()> {
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let leases = Api::<Lease>::namespaced(world.client.clone(), NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let leader = || async {
        let lease = leases.get("principium-operator").await?;
        Ok::<_, anyhow::Error>(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
    };
    let first = world
        .eventually("one of two operators leads", || async {
            let names: Vec<String> = pods.list(&operators).await?.iter().map(ResourceExt::name_any).collect();
            let first = leader().await?;
            Ok((names.len() == 2 && names.contains(&first)).then_some(first))
        })
        .await?;

    // Without a word: its process is killed before it could give the Lease back, and its pod does not come back.
    kill_operator(&first)?;
    pods.delete(&first, &DeleteParams::default().grace_period(0)).await?;
    world.apply::<Reranker>(&reranker("ranker", "{memory: 2Gi}")).await?;
    // Which one is open: the Deployment has made a third by now, which waits for the end of the same Lease.
    world
        .eventually("another operator leads", || async {
            let leads = leader().await?;
            Ok((!leads.is_empty() && leads != first).then_some(()))
        })
        .await?;
    world.ready::<Reranker>("ranker").await?;
    assert_eq!(world.pods_of("ranker").await?.len(), 1, "made once");
    Ok(())
}

/// Kills the process of the operator that has this name.
fn kill_operator(name: &str) -> Result<()> {
    let variable = format!("POD_NAME={name}");
    let is_it = |folder: &std::path::Path| {
        let read = |file: &str| fs::read(folder.join(file)).unwrap_or_default();
        let starts = read("cmdline")
            .split(|byte| *byte == 0)
            .next()
            .is_some_and(|program| program.ends_with(b"principium-operator"));
        starts && read("environ").split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let found = fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).find(|folder| is_it(folder));
    let process = found.with_context(|| format!("no process of the operator {name}"))?;
    let id = process.file_name().unwrap_or_default();
    command::run(Command::new("kill").arg("-KILL").arg(id)).map(drop)
}
