//! What pods are compared with is the same in every version: where its text changes, an upgrade restarts every pod, and every
//! language model is loaded anew.

use super::cluster::{Cluster, factory, reranker};
use super::fields::{self, base, json_patch, table};
use crate::pods::PodView;
use crate::template::ANNOTATION;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[test]
fn the_templates_of_pods_stay_what_they_are() {
    let mut cluster = Cluster::new(&[4]);
    let mut spec = factory(json!({"count": 1}));
    spec["docAnalyzer"] = json!({"port": 9555});
    spec["env"] = json!([{"name": "A", "value": "b"}]);
    cluster.apply("DataFactory", "df", spec);
    let mut spec = reranker(json!({"count": 1}));
    spec["resources"] = json!({"limits": {"memory": "1Gi"}});
    cluster.apply("Reranker", "rr", spec);
    let models = json!([{"name": "tiny"}]);
    let store = json!({"hostPath": {"path": "/m"}});
    let settings = json!({"contextLength": 4096});
    cluster.apply("OllamaPool", "pool", json!({"models": models, "store": store, "settings": settings}));
    cluster.settle();
    let found: BTreeMap<String, String> = cluster
        .pods
        .iter()
        .map(|((_, name), pod)| {
            let text = pod.metadata.annotations.as_ref().and_then(|found| found.get(ANNOTATION)).cloned();
            (name.split("-puller").next().unwrap_or(name).to_owned(), text.unwrap_or_default())
        })
        .collect();
    let env = r#""env":{"A":{"name":"A","value":"b"}},"image":"embedder:1""#;
    let of_pool = r#""store":{"hostPath":{"path":"/m"}}"#;
    let expected = [
        ("df-0-1", format!(r#"{{"analyzerPort":9555,{env},"model":{{"hub":{{"name":"a/mini"}}}}}}"#)),
        ("df-analyzer-1", format!("{{{env}}}")),
        ("pool", format!(r#"{{"image":"ollama:1","models":[{{"name":"tiny"}}],{of_pool}}}"#)),
        ("pool-0-1", format!(r#"{{"image":"ollama:1","settings":{{"contextLength":4096}},{of_pool}}}"#)),
        (
            "rr-0-1",
            r#"{"image":"embedder:1","model":{"hub":{"name":"a/cross"}},"resources":{"limits":{"memory":"1Gi"}}}"#
                .to_owned(),
        ),
    ];
    assert_eq!(found, expected.map(|(name, text)| (name.to_owned(), text)).into());
}

/// Kinds, with what makes all the pods that they can have: their templates are compared for every change of every field.
fn kinds() -> [(&'static str, Value); 4] {
    [
        ("DataFactory", json!({"docAnalyzer": {}})),
        ("Reranker", json!({})),
        ("OllamaPool", json!({})),
        // It has a puller.
        ("OllamaPool", json!({"store": {"hostPath": {"path": "/m"}}})),
    ]
}

/// The templates of the pods of a resource, with their roles.
fn templates(kind: &str, also: &Value, change: &Value) -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut spec = base(kind);
    json_patch(&mut spec, also);
    json_patch(&mut spec, change);
    let mut cluster = fields::cluster();
    cluster.apply(kind, "x", spec);
    cluster.settle();
    let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for pod in cluster.pods.values().map(PodView::read) {
        found.entry(pod.role.label()).or_default().insert(pod.template.unwrap_or_default());
    }
    found
}

/// One line for the templates that each kind has anyway, and for each that a change of a field makes.
fn lines() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for (kind, also) in kinds() {
        let plain = templates(kind, &also, &json!({}));
        // Both say where models lie.
        let given = |field: &str| field.starts_with("store.") && also.get("store").is_some();
        let changes =
            table(kind).into_iter().filter(|(field, ..)| !given(field)).map(|(_, change, _)| change);
        for change in changes.chain([json!({})]) {
            let mut with = also.clone();
            json_patch(&mut with, &change);
            for (role, texts) in templates(kind, &also, &change) {
                let known = |text: &String| plain.get(role).is_some_and(|plain| plain.contains(text));
                for text in texts.iter().filter(|text| change == json!({}) || !known(text)) {
                    let template: Value = serde_json::from_str(text).unwrap();
                    let line = json!({"kind": kind, "with": with, "role": role, "template": template});
                    lines.insert(line.to_string());
                }
            }
        }
    }
    lines
}

#[test]
fn the_template_of_every_change_stays_what_it_is() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/golden/templates.jsonl");
    let now = lines();
    if std::env::var_os("PRINCIPIUM_WRITE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, text).unwrap();
    }
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    let before: BTreeSet<String> = before.lines().map(ToOwned::to_owned).collect();
    let gone: Vec<String> = before.difference(&now).map(|line| format!("- {line}")).collect();
    let new: Vec<String> = now.difference(&before).map(|line| format!("+ {line}")).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{} templates are no longer what they were, and {} are new. An operator that is upgraded restarts every pod whose template \
         is another, and every language model is loaded anew: a field keeps its name, and is left out where the spec says nothing \
         of it. Where that is meant, or only a row of the table of changes is new, run this test with PRINCIPIUM_WRITE=1 to write \
         {}.\n{}\n{}",
        gone.len(),
        new.len(),
        file.display(),
        gone.join("\n"),
        new.join("\n"),
    );
}
