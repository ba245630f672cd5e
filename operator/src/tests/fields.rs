//! Every field of every spec is changed on a live resource: which restart pods, with which words, what the new pods have, and
//! which don't. A new field that has no row here fails.

mod embedder;
mod has;
mod ollama_pool;
mod rows;

use super::cluster::Cluster;
use crate::pods::PodView;
use crate::resource::Role;
use jiff::SignedDuration;
use rows::Effect::{Nothing, Restart, Scale};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub use rows::{KINDS, base, table};

/// Types of Kubernetes' own, compared as a whole.
const OPAQUE: &[&str] = &["env", "tolerations", "resources", "imagePullSecrets"];

/// A cluster in which every row can come true.
pub fn cluster() -> Cluster {
    let mut cluster = Cluster::new(&[4, 4]);
    cluster.nodes.get_mut("n1").unwrap()[3].product = rows::OTHER_PRODUCT.to_owned();
    // For who refers to one; it takes no GPU.
    cluster.apply("OllamaPool", "pool", json!({"instances": 0, "models": [{"name": "tiny"}]}));
    cluster
}

#[test]
fn every_field_of_every_spec_has_a_row() {
    for kind in KINDS {
        let crd = principium_api::crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
        let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
        let mut fields = BTreeSet::new();
        leaves("", &schema["openAPIV3Schema"]["properties"]["spec"], &mut fields);
        let rows: BTreeSet<String> = table(kind).iter().map(|(field, ..)| (*field).to_owned()).collect();
        assert_eq!(fields, rows, "{kind}: fields of the schema on the left, rows of the table on the right");
    }
}

#[test]
fn every_change_of_a_live_resource_gets_there_and_says_what_restarts() {
    for kind in KINDS {
        for (field, change, effect) in table(kind) {
            let mut cluster = cluster();
            cluster.apply(kind, "x", base(kind));
            cluster.settle();
            let (before, beside) = (specs(&cluster, Role::Worker), specs(&cluster, Role::Analyzer));
            let mut spec = base(kind);
            json_patch(&mut spec, &change);
            cluster.apply(kind, "x", spec);
            settle_discreetly(&mut cluster, &format!("{kind} {field}"));
            let after = specs(&cluster, Role::Worker);
            let told: Vec<&str> =
                ["Restarting", "Replacing"].into_iter().flat_map(|reason| cluster.noted(reason)).collect();
            assert_eq!(cluster.ready("x").0, "True", "{kind} {field}: {:?}", cluster.ready("x"));
            match effect {
                Restart(words, has) => {
                    assert!(before.keys().all(|pod| !after.contains_key(pod)), "{kind} {field}: {after:?}");
                    let found = |workers: &Pods, analyzers: &Pods| -> Vec<bool> {
                        let analyzer = analyzers.values().next().unwrap_or(&Value::Null);
                        workers.values().map(|worker| has.is_in(worker, analyzer)).collect()
                    };
                    assert_eq!(found(&before, &beside), [false], "{kind} {field} shows nothing: {before:?}");
                    let beside = specs(&cluster, Role::Analyzer);
                    assert_eq!(found(&after, &beside), [true], "{kind} {field}: {has:?}: {after:?}");
                    assert!(told.iter().any(|text| text.contains(words)), "{kind} {field}: {told:?}");
                }
                Nothing => {
                    assert_eq!(before, after, "{kind} {field}");
                    assert_eq!(told, [""; 0], "{kind} {field}");
                }
                Scale(count) => {
                    assert_eq!(after.len(), count, "{kind} {field}");
                    assert_eq!(told, [""; 0], "{kind} {field}");
                }
            }
        }
    }
}

/// Settles, and what a variable is set to stands in no status on the way and in no Event.
fn settle_discreetly(cluster: &mut Cluster, case: &str) {
    for _ in 0..20 {
        let plan = cluster.pass();
        let said = format!("{:?} {:?}", plan.statuses, plan.notes);
        assert!(!said.contains(rows::SECRET), "{case}: {said}");
        cluster.run_pods();
        cluster.now += SignedDuration::from_secs(1);
    }
    cluster.settle();
}

/// The specs of pods by their names.
type Pods = BTreeMap<String, Value>;

fn specs(cluster: &Cluster, role: Role) -> Pods {
    let pods = cluster.pods.iter().filter(|(_, pod)| PodView::read(pod).role == role);
    pods.map(|((_, name), pod)| (name.clone(), json!(pod.spec))).collect()
}

/// The fields below a schema that have no fields of their own.
pub fn leaves(path: &str, schema: &Value, found: &mut BTreeSet<String>) {
    let properties =
        |schema: &Value| schema["properties"].as_object().filter(|found| !found.is_empty()).cloned();
    let (path, fields) = match properties(schema) {
        Some(fields) => (path.to_owned(), Some(fields)),
        None => match properties(&schema["items"]) {
            Some(fields) => (format!("{path}[]"), Some(fields)),
            None => (path.to_owned(), None),
        },
    };
    match fields {
        Some(fields) if !OPAQUE.contains(&path.trim_end_matches("[]")) => {
            for (name, schema) in &fields {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(&format!("{path}{dot}{name}"), schema, found);
            }
        }
        _ => {
            found.insert(path.trim_end_matches("[]").to_owned());
        }
    }
}

/// JSON merge patch, RFC 7386.
pub fn json_patch(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, change) in patch {
        if change.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            json_patch(&mut target[name], change);
        }
    }
}
