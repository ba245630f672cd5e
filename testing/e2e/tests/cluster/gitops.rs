//! What is applied again changes nothing, whoever applies it: no perpetual differences for Argo CD, Flux and Helm.

use crate::pods::{data_factory, reranker};
use anyhow::{Context, Result};
use principium_api::{DataFactory, Ingestion, OllamaPool, Reranker};
use principium_e2e::{Release, World, run};
use serde_json::{Value, json};

const KINDS: &str = "datafactory,reranker,ollamapool,ingestion";

const POOL: &str = r"
apiVersion: principium.ai/v1alpha1
kind: OllamaPool
metadata: {name: pool}
spec:
  instances: 1
  gpu: {devices: [{index: 0, memory: 2Gi}]}
  settings: {contextLength: 2048}
  tolerations: [{key: gpu, operator: Exists}]
  env: [{name: A, value: b}]
  resources: {requests: {cpu: 10m, memory: 64Mi}}
";

const INGESTION: &str = r"
apiVersion: principium.ai/v1alpha1
kind: Ingestion
metadata: {name: corpus}
spec:
  dataFactoryRef: {name: factory}
  source: {folder: {path: documents, include: ['**/*.md']}}
  sink: {jsonl: {path: out/chunks.jsonl}}
  processing: {enrich: false, chunking: {maxTokens: 100, overlap: 10}}
  schedule: '0 3 * * *'
  suspend: true
";

#[test]
fn what_the_cluster_returns_changes_nothing_when_it_is_applied() -> Result<()> {
    run("gitops", |world| async move {
        let manifests = [
            data_factory("factory", "{devices: [{index: 6}, {index: 7, memory: 5Gi}]}")
                + "  enrichment: {ollamaPoolRef: {name: pool}, model: tiny}\n  docAnalyzer: {}\n",
            reranker("ranker", "{count: 1, memory: 3Gi, prefer: {indices: [7]}}"),
            POOL.to_owned(),
            INGESTION.to_owned(),
        ];
        let [factory, ranker, pool, ingestion] = &manifests;
        world.apply::<DataFactory>(factory).await?;
        world.apply::<Reranker>(ranker).await?;
        world.apply::<OllamaPool>(pool).await?;
        world.apply::<Ingestion>(ingestion).await?;
        let release = Release::existing()?;
        // As the first thing that a pipeline does: it must wait for what has no status yet, too.
        let wait = ["wait", KINDS, "--all", "--for=condition=Ready", "--timeout=3m"];
        release.kubectl_with(&[&wait[..], &["-n", &world.namespace]].concat(), "")?;

        let live = settled(&world, &release).await?;
        for (at, kind) in ["DataFactory", "Reranker", "OllamaPool", "Ingestion"].into_iter().enumerate() {
            let applied: Value = serde_yaml::from_str(&manifests[at])?;
            let found = live.iter().find(|object| object["kind"] == kind).context(kind)?;
            assert_eq!(found["spec"], applied["spec"], "the API server adds no field to a {kind}");
        }
        // The one who applied it, and one who takes it over: first as a Git repository has it, then all of what is returned.
        for manager in ["principium-e2e", "argocd-controller"] {
            for with_status in [false, true] {
                let text = json!({"apiVersion": "v1", "kind": "List", "items": as_kept(&live, with_status)})
                    .to_string();
                let apply =
                    ["apply", "--server-side", "--field-manager", manager, "-n", &world.namespace, "-f", "-"];
                release.kubectl_with(&apply, &text).with_context(|| format!("applying as {manager}"))?;
                let once = settled(&world, &release).await?;
                release.kubectl_with(&apply, &text)?;
                let twice = settled(&world, &release).await?;
                for (before, after) in live.iter().zip(&twice) {
                    let name = &before["metadata"]["name"];
                    assert_eq!(after["spec"], before["spec"], "{name}, applied by {manager}");
                    assert_eq!(after["status"], before["status"], "{name}, applied by {manager}");
                    let generation = |object: &Value| object["metadata"]["generation"].clone();
                    assert_eq!(generation(after), generation(before), "{name}, applied by {manager}");
                }
                let written = |objects: &[Value]| -> Vec<Value> {
                    objects.iter().map(|object| object["metadata"]["resourceVersion"].clone()).collect()
                };
                assert_eq!(
                    written(&twice),
                    written(&once),
                    "nothing is written the second time by {manager}"
                );
                let diff =
                    ["diff", "--server-side", "--field-manager", manager, "-n", &world.namespace, "-f", "-"];
                release.kubectl_with(&diff, &text).with_context(|| format!("kubectl diff by {manager}"))?;
            }
        }
        // What was kept restores what is lost.
        let kept = json!({"apiVersion": "v1", "kind": "List", "items": as_kept(&live, false)}).to_string();
        world.delete::<Reranker>("ranker").await?;
        release.kubectl_with(&["apply", "--server-side", "-n", &world.namespace, "-f", "-"], &kept)?;
        world.ready::<Reranker>("ranker").await?;
        Ok(())
    })
}

/// All resources, once nobody writes them any more.
async fn settled(world: &World, release: &Release) -> Result<Vec<Value>> {
    let get = ["get", KINDS, "-o", "json", "-n", &world.namespace];
    let read = || -> Result<Vec<Value>> {
        let list: Value = serde_json::from_str(&release.kubectl_with(&get, "")?)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    world
        .eventually("the resources are written no more", || async {
            let before = read()?;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            let after = read()?;
            Ok((before == after).then_some(after))
        })
        .await
}

/// Objects without what the API server alone writes.
fn as_kept(live: &[Value], with_status: bool) -> Vec<Value> {
    let mut kept = live.to_vec();
    for object in &mut kept {
        if let Some(meta) = object["metadata"].as_object_mut() {
            for field in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"] {
                meta.remove(field);
            }
        }
        if let Some(object) = object.as_object_mut().filter(|_| !with_status) {
            object.remove("status");
        }
    }
    kept
}
