//! What an operator reads when it starts was written by the one before it, of whatever version: pods with their annotations, and
//! statuses with assignments and revisions. One that reads them otherwise restarts pods, or forgets which GPUs they had. A file has
//! what a settled cluster with a resource of each kind has.

use super::cluster::{Cluster, factory, reranker};
use super::ingestions::{finish, runs, spec, work};
use crate::pods::PodView;
use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// GPUs of its node.
const GPUS: u32 = 8;

/// A resource of each kind, and all that belongs to it, at rest.
fn settled() -> Cluster {
    let mut cluster = Cluster::new(&[GPUS]);
    // Whoever reads it finds all equally cool: what was chosen is remembered, and not only chosen once more.
    for index in 0..4 {
        cluster.heat("n0", index, 70);
    }
    let mut pool = json!({"instances": 2, "models": [{"name": "tiny"}], "gpu": {"count": 1}});
    pool["store"] = json!({"hostPath": {"path": "/m"}});
    pool["hostPorts"] = json!({"start": 11434});
    pool["settings"] = json!({"contextLength": 4096});
    cluster.apply("OllamaPool", "pool", pool);
    let mut df = factory(json!({"devices": [{"index": 7}]}));
    df["enrichment"] = json!({"ollamaPoolRef": {"name": "pool"}});
    df["docAnalyzer"] = json!({"ollamaPoolRef": {"name": "pool"}});
    df["env"] = json!([{"name": "A", "value": "b"}]);
    cluster.apply("DataFactory", "df", df);
    let mut rr = reranker(json!({"count": 1, "memory": "3Gi"}));
    rr["replicas"] = json!(2);
    rr["resources"] = json!({"limits": {"memory": "1Gi"}});
    cluster.apply("Reranker", "rr", rr);
    cluster.settle();
    cluster.apply("Ingestion", "x", spec(&json!({})));
    work(&mut cluster);
    finish(&mut cluster, "succeeded");
    cluster.settle();
    cluster
}

fn line<K: Serialize>(kind: &str, object: &K) -> String {
    let mut value = json!(object);
    value["kind"] = json!(kind);
    format!("{value}\n")
}

/// The time, and what the API server has: an object a line.
fn written(cluster: &Cluster) -> String {
    let observed = &cluster.observed;
    let mut lines = vec![line("Time", &json!({"now": cluster.now.to_string()}))];
    lines.extend(observed.data_factories.iter().map(|found| line("DataFactory", &**found)));
    lines.extend(observed.rerankers.iter().map(|found| line("Reranker", &**found)));
    lines.extend(observed.ollama_pools.iter().map(|found| line("OllamaPool", &**found)));
    lines.extend(observed.ingestions.iter().map(|found| line("Ingestion", &**found)));
    lines.extend(observed.services.iter().map(|found| line("Service", &**found)));
    lines.extend(observed.budgets.iter().map(|found| line("PodDisruptionBudget", &**found)));
    lines.extend(cluster.pods.values().map(|found| line("Pod", found)));
    lines.concat()
}

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// A cluster that has this, and an operator that has just started.
fn read(text: &str) -> Cluster {
    let mut cluster = Cluster::new(&[GPUS]);
    let observed = &mut cluster.observed;
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let kind = value["kind"].as_str().unwrap().to_owned();
        match kind.as_str() {
            "Time" => cluster.now = value["now"].as_str().unwrap().parse().unwrap(),
            "DataFactory" => observed.data_factories.push(object(value)),
            "Reranker" => observed.rerankers.push(object(value)),
            "OllamaPool" => observed.ollama_pools.push(object(value)),
            "Ingestion" => observed.ingestions.push(object(value)),
            "Service" => observed.services.push(object(value)),
            "PodDisruptionBudget" => observed.budgets.push(object(value)),
            _ => {
                let pod: Pod = serde_json::from_value(value).unwrap();
                let (namespace, name) = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                cluster.pods.insert((namespace.unwrap(), name.unwrap()), pod);
            }
        }
    }
    cluster
}

/// Pods with their UIDs.
fn pods(cluster: &Cluster) -> BTreeMap<String, String> {
    cluster.pods.values().map(PodView::read).map(|pod| (pod.name, pod.uid)).collect()
}

/// Nothing is done about what runs, and what has gone comes back to what it had.
fn is_understood(text: &str) {
    let mut cluster = read(text);
    assert_eq!(cluster.names(), ["df", "rr", "pool", "x"]);
    assert_eq!(runs(&cluster).len(), 1);
    let has_gpus = |pod: &PodView| !pod.units.is_empty();
    let workers: Vec<PodView> = cluster.pods.values().map(PodView::read).filter(has_gpus).collect();
    assert_eq!(workers.len(), 5);
    for pod in workers {
        let assigned: BTreeMap<u32, u32> = pod.assigned.iter().map(|gpu| (gpu.index, gpu.units)).collect();
        assert_eq!(assigned, pod.units, "{}: its annotation names the GPUs that it asks for", pod.name);
    }
    let (before, held) = (pods(&cluster), cluster.held());
    let actions = cluster.plan().actions;
    let done: Vec<String> =
        actions.iter().map(|action| format!("{} {}", action.write.verb(), action.write.object())).collect();
    assert_eq!(done, [""; 0]);
    cluster.settle();
    assert_eq!(pods(&cluster), before, "{:?}", cluster.notes);
    cluster.pods.clear();
    cluster.settle();
    let again: Vec<String> = held.iter().map(|held| held.replacen("-1 ", "-2 ", 1)).collect();
    assert_eq!(cluster.held(), again, "by the status, on the same GPUs and under new names");
}

#[test]
fn an_operator_that_starts_understands_what_the_one_before_it_wrote() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden/settled.jsonl");
    let now = written(&settled());
    let before = std::fs::read_to_string(&file).ok();
    // What was written before is written anew only where it is still understood.
    for text in before.iter().chain([&now]) {
        is_understood(text);
    }
    if std::env::var_os("PRINCIPIUM_WRITE").is_some() {
        std::fs::write(&file, now).unwrap();
    }
    assert!(file.exists(), "run this test with PRINCIPIUM_WRITE=1 to write {}", file.display());
}
