//! What pods are compared with is the same in every version: where its text changes, an upgrade restarts every pod, and every
//! language model is loaded anew.

use super::cluster::{Cluster, factory, reranker};
use crate::template::ANNOTATION;
use serde_json::json;
use std::collections::BTreeMap;

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
