//! The doc analyzer beside a DataFactory.

use super::cluster::{Cluster, factory};
use serde_json::{Value, json};

#[test]
fn the_analyzer_comes_and_goes_without_a_gpu() {
    let mut cluster = Cluster::new(&[1]);
    let spec = factory(json!({"count": 1}));
    let mut with = spec.clone();
    with["docAnalyzer"] = json!({"port": 9555});
    cluster.apply("DataFactory", "df", with);
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["df-0-1", "df-analyzer-1"]);
    assert_eq!(cluster.held().len(), 1);
    cluster.apply("DataFactory", "df", spec);
    cluster.settle();
    assert_eq!(cluster.pod_names(), ["df-0-2"]);
    assert_eq!(cluster.observed.services.len(), 1);
}

/// The Secret whose key a pod wants of its clients, if it wants one, and the variable that names the file.
fn wants(cluster: &Cluster, pod: &str) -> Option<(Value, Value)> {
    let spec = json!(cluster.pods[&("demo".to_owned(), pod.to_owned())].spec);
    let named = |list: &Value, name: &str| list.as_array()?.iter().find(|it| it["name"] == name).cloned();
    let volume = named(&spec["volumes"], "api-key")?;
    let variable = named(&spec["containers"][0]["env"], "PRINCIPIUM_API_KEYS_FILE")?;
    Some((volume["secret"].clone(), variable["value"].clone()))
}

#[test]
fn the_analyzer_wants_the_key_that_its_data_factory_wants() {
    let mut cluster = Cluster::new(&[1]);
    let mut spec = factory(json!({"count": 1}));
    spec["docAnalyzer"] = json!({});
    cluster.apply("DataFactory", "df", spec.clone());
    cluster.settle();
    assert_eq!(["df-0-1", "df-analyzer-1"].map(|pod| wants(&cluster, pod)), [None, None]);
    let file = json!("/var/run/secrets/principium.ai/api-key/key");
    for (revision, name) in [(2, "a"), (3, "b")] {
        spec["apiKeySecretRef"] = json!({"name": name});
        cluster.apply("DataFactory", "df", spec.clone());
        cluster.settle();
        let pods = [format!("df-0-{revision}"), format!("df-analyzer-{revision}")];
        assert_eq!(cluster.pod_names(), pods);
        let items = json!([{"key": "api-key", "path": "key"}]);
        let secret = json!({"secretName": name, "items": items, "optional": false});
        for pod in pods {
            assert_eq!(wants(&cluster, &pod), Some((secret.clone(), file.clone())), "{pod}");
        }
    }
    assert_eq!(
        cluster.noted("Replacing"),
        [
            "Pod df-analyzer-1 gets a successor beside it: apiKeySecretRef.name set to a",
            "Pod df-analyzer-2 gets a successor beside it: apiKeySecretRef.name changed from a to b",
        ]
    );
}
