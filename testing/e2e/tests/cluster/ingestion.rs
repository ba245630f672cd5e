//! Ingestions on real DataFactories: a corpus follows a folder into a file, says how far it is, and leaves nothing behind.

use crate::pods::{data_factory, reranker};
use crate::restarts::restart_part;
use crate::scenarios::url;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, LogParams};
use principium_api::ingestion::{IngestionRun, RunState};
use principium_api::names::LABEL_NAME;
use principium_api::status::condition::{READY, STALLED};
use principium_api::{DataFactory, Ingestion, Reranker};
use principium_e2e::world::PATIENCE;
use principium_e2e::{World, run};
use principium_local_cluster::NAMESPACE;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of the node, which is this machine, for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("principium-e2e-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for part in ["documents", "out", "data"] {
            fs::create_dir_all(folder.join(part))?;
        }
        Ok(Self(folder))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.0.join("documents").join(name), text)?)
    }

    /// The chunks in the file of the sink, by their ids.
    fn chunks(&self) -> Result<BTreeMap<String, Value>> {
        let text = fs::read_to_string(self.0.join("out/chunks.jsonl")).context("the sink's file")?;
        let mut found = BTreeMap::new();
        for line in text.lines() {
            let chunk: Value = serde_json::from_str(line)?;
            let id = chunk["chunk_id"].as_str().context("a chunk without an id")?.to_owned();
            ensure!(found.insert(id, chunk).is_none(), "a chunk is there twice: {line}");
        }
        Ok(found)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A DataFactory whose store, documents and files are in a folder of the node.
fn on_the_node(folder: &Path) -> String {
    let folder = folder.display();
    data_factory("factory", "{count: 1, memory: 2Gi}")
        + &format!(
            r"
  storage: {{hostPath: {{path: {folder}/data}}}}
  volumes:
    - {{name: documents, hostPath: {{path: {folder}/documents}}, readOnly: true}}
    - {{name: out, hostPath: {{path: {folder}/out}}}}
"
        )
}

fn ingestion(spec: &str) -> String {
    format!(
        "apiVersion: principium.ai/v1alpha1
kind: Ingestion
metadata: {{name: handbook}}
spec:
  dataFactoryRef: {{name: factory}}
  source: {{folder: {{path: documents}}}}
{spec}"
    )
}

const REFUNDS: &str = "# Refunds\n\nCustomers get their money back within thirty days.\n";
const HOLIDAYS: &str = "# Holidays\n\nEverybody has thirty days a year.\n";

#[test]
fn a_corpus_follows_a_folder_and_only_what_has_changed_is_done_again() -> Result<()> {
    run("ingestion", |world| async move {
        let folder = Folder::new("ingestion")?;
        folder.write("refunds.md", REFUNDS)?;
        folder.write("holidays.md", HOLIDAYS)?;
        world.apply::<DataFactory>(&on_the_node(&folder.0)).await?;
        world
            .apply::<Ingestion>(&ingestion(
                "  sink: {jsonl: {path: out/chunks.jsonl}}\n  schedule: '* * * * *'\n  historyLimit: 3\n",
            ))
            .await?;
        let ready = world.ready::<Ingestion>("handbook").await?;
        let status = ready.status.context("an Ingestion without a status")?;
        let first = status.runs.last().context("an Ingestion without a run")?;
        assert_eq!((first.state, first.documents_done, first.documents_failed), (RunState::Succeeded, 2, 0));
        assert!(first.tokens > 0 && status.last_successful_time.is_some(), "{status:?}");
        assert_eq!((status.progress.as_str(), status.next_run_time.is_some()), ("2/2", true));
        let before = folder.chunks()?;
        let corpus = status.corpus.context("a corpus of unknown size")?;
        assert_eq!((u64::try_from(before.len())?, corpus.documents), (corpus.chunks, 2));

        folder.write("holidays.md", "# Holidays\n\nEverybody has thirty-one days a year.\n")?;
        let changed = run_with(&world, "one document is done again", |run| run.documents_done == 1).await?;
        assert_eq!((changed.documents, changed.documents_unchanged), (2, 1), "{changed:?}");
        let after = folder.chunks()?;
        for (id, chunk) in &before {
            let kept = chunk["document_id"] == "refunds.md";
            assert_eq!(after.get(id) == Some(chunk), kept, "{chunk}");
        }

        fs::remove_file(folder.0.join("documents/refunds.md"))?;
        run_with(&world, "a document is taken out", |run| run.documents_removed == 1).await?;
        let left = folder.chunks()?;
        assert!(!left.is_empty() && left.values().all(|chunk| chunk["document_id"] == "holidays.md"));

        // No other run was needed for what is the same, and deleting it leaves the file.
        world.delete::<Ingestion>("handbook").await?;
        assert_eq!(folder.chunks()?, left);
        world.delete::<DataFactory>("factory").await
    })
}

/// Waits for a run that has succeeded and is as `wanted` says.
async fn run_with(world: &World, what: &str, wanted: impl Fn(&IngestionRun) -> bool) -> Result<IngestionRun> {
    world
        .eventually(what, || async {
            let status = world.api::<Ingestion>().get("handbook").await?.status.unwrap_or_default();
            let done = |run: &IngestionRun| run.state == RunState::Succeeded && wanted(run);
            Ok(status.runs.into_iter().find(done))
        })
        .await
}

#[test]
fn a_run_survives_its_pod_and_the_operator() -> Result<()> {
    const DOCUMENTS: u64 = 300;
    run("ingestion-survives", |world| async move {
        let folder = Folder::new("ingestion-survives")?;
        for number in 0..DOCUMENTS {
            folder.write(&format!("{number}.md"), &format!("# Rule {number}\n\n{}", REFUNDS.repeat(3)))?;
        }
        world.apply::<DataFactory>(&on_the_node(&folder.0)).await?;
        world.ready::<DataFactory>("factory").await?;
        world.apply::<Ingestion>(&ingestion("  sink: {jsonl: {path: out/chunks.jsonl}}\n")).await?;
        let begun = world
            .eventually("the run is under way", || async {
                let status = world.api::<Ingestion>().get("handbook").await?.status.unwrap_or_default();
                Ok(status.runs.into_iter().find(|run| run.documents > 0))
            })
            .await?;
        // Without a chance to say good-bye.
        let killed = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for pod in world.pods_of("factory").await? {
            world.api::<Pod>().delete(&pod.name_any(), &killed).await?;
        }
        restart_part(&world, "operator").await?;
        let status = world.ready::<Ingestion>("handbook").await?.status.context("no status")?;
        let run = status.runs.first().context("no run")?;
        assert_eq!((status.runs.len(), &run.id), (1, &begun.id), "it is the same run: {status:?}");
        assert_eq!((run.documents, run.documents_failed), (DOCUMENTS, 0), "{run:?}");
        let chunks = folder.chunks()?;
        let documents: BTreeSet<&str> =
            chunks.values().filter_map(|chunk| chunk["document_id"].as_str()).collect();
        assert_eq!(u64::try_from(documents.len())?, DOCUMENTS, "none is lost");
        world.delete::<Ingestion>("handbook").await?;
        world.delete::<DataFactory>("factory").await
    })
}

#[test]
fn what_a_data_factory_cannot_do_is_stalled_with_its_reason() -> Result<()> {
    run("ingestion-refused", |world| async move {
        let folder = Folder::new("ingestion-refused")?;
        folder.write("refunds.md", REFUNDS)?;
        world.apply::<DataFactory>(&on_the_node(&folder.0)).await?;
        world.apply::<Ingestion>(&ingestion("  processing: {enrich: true}\n")).await?;
        let message = world.reason::<Ingestion>("handbook", STALLED, "Refused").await?;
        assert!(message.contains("enrich"), "{message}");
        world.apply::<Ingestion>(&ingestion("  processing: {enrich: false}\n")).await?;
        world.ready::<Ingestion>("handbook").await?;
        world.delete::<Ingestion>("handbook").await?;
        world.delete::<DataFactory>("factory").await
    })
}

/// What the pods with these labels log.
async fn log(pods: &Api<Pod>, labels: &str) -> Result<String> {
    let mut log = String::new();
    for pod in pods.list(&ListParams::default().labels(labels)).await? {
        log += &pods.logs(&pod.name_any(), &LogParams::default()).await?;
    }
    Ok(log)
}

/// A route of a Service opens with the key, and with no other and none it doesn't.
async fn opens_with_the_key(world: &World, service: &str, route: &str, body: &Value) -> Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let url = format!("{}{route}", url(world, service).await?);
    for (key, status) in [(None, 401), (Some("close-sesame"), 401), (Some("open-sesame"), 200)] {
        let asked = client.post(&url).json(body);
        let asked = match key {
            Some(key) => asked.bearer_auth(key),
            None => asked,
        };
        let answered = asked.send().await?.status();
        ensure!(answered == status, "{service} answers {route} with {answered}, asked with the key {key:?}");
    }
    Ok(())
}

#[test]
fn a_data_factory_with_a_key_takes_jobs_once_the_operator_may_read_it() -> Result<()> {
    run("ingestion-key", |world| async move {
        let folder = Folder::new("ingestion-key")?;
        folder.write("refunds.md", REFUNDS)?;
        let key = "{apiVersion: v1, kind: Secret, metadata: {name: key}, stringData: {api-key: open-sesame}}";
        world.apply::<Secret>(key).await?;
        let with_key = "  apiKeySecretRef: {name: key}\n";
        let factory = on_the_node(&folder.0) + "  docAnalyzer: {}\n" + with_key;
        world.apply::<DataFactory>(&factory).await?;
        let ranker = reranker("ranker", "{count: 1, memory: 2Gi}") + with_key;
        world.apply::<Reranker>(&ranker).await?;
        world.apply::<Ingestion>(&ingestion("")).await?;
        let message = world.reason::<Ingestion>("handbook", READY, "DataFactorySilent").await?;
        assert!(message.contains(&format!("Secret {}/key", world.namespace)), "{message}");
        world
            .apply::<Role>(
                "{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: ingestion-key}, rules: \
                 [{apiGroups: [''], resources: [secrets], resourceNames: [key], verbs: [get]}]}",
            )
            .await?;
        world
            .apply::<RoleBinding>(&format!(
                "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: ingestion-key}}, \
                 roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: ingestion-key}}, subjects: \
                 [{{kind: ServiceAccount, name: principium-operator, namespace: {NAMESPACE}}}]}}"
            ))
            .await?;
        let ready = world.ready::<Ingestion>("handbook").await?;
        let told = serde_json::to_string(&ready.status)?;
        assert!(!told.contains("open-sesame"), "a key is in the status");
        world.ready::<DataFactory>("factory").await?;
        world.ready::<Reranker>("ranker").await?;
        let pair = json!({"query": "refunds", "texts": [REFUNDS]});
        for (service, route, body) in [
            ("factory", "/embed", json!({"inputs": REFUNDS})),
            ("factory-analyzer", "/v1/analyze", json!({"text": REFUNDS})),
            ("ranker", "/rerank", pair),
        ] {
            opens_with_the_key(&world, service, route, &body).await?;
        }
        let ours = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
        for (pods, labels) in [
            (ours, "app.kubernetes.io/component=operator".to_owned()),
            (world.api::<Pod>(), format!("{LABEL_NAME}=factory")),
            (world.api::<Pod>(), format!("{LABEL_NAME}=ranker")),
        ] {
            let log = log(&pods, &labels).await?;
            assert!(
                !log.is_empty() && !log.contains("open-sesame"),
                "a key is in the log of {labels}: {log}"
            );
        }
        world.delete::<Reranker>("ranker").await?;
        world.delete::<Ingestion>("handbook").await?;
        world.delete::<DataFactory>("factory").await
    })
}
