//! Every field of every spec is changed on a live resource: which restart pods, with which words, and which don't. A new
//! field that has no row here fails.

use super::cluster::Cluster;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// What a change of a field does.
enum Effect {
    /// Every pod is replaced, and an Event says this.
    Restart(&'static str),
    /// No pod is touched.
    Nothing,
    /// There are so many workers then.
    Scale(usize),
}
use Effect::{Nothing, Restart, Scale};

/// A field, a change of the base by RFC 7386, and what it does.
type Row = (&'static str, Value, Effect);

/// Types of Kubernetes' own, compared as a whole.
const OPAQUE: &[&str] = &["env", "tolerations", "resources", "imagePullSecrets"];

fn base(kind: &str) -> Value {
    match kind {
        "OllamaPool" => json!({"models": [{"name": "tiny"}], "gpu": {"count": 1}}),
        _ => json!({"model": {"hub": {"name": "a/mini"}}, "gpu": {"count": 1}}),
    }
}

/// The settings that all kinds have.
fn common(kind: &str) -> Vec<Row> {
    let other_image = match kind {
        "OllamaPool" => "image changed from ollama:1 to own:2",
        _ => "image changed from embedder:1 to own:2",
    };
    let other_gpu = "spec.gpu asks for other GPUs than GPU 0 (8 GiB)";
    let gpu = |change: Value| json!({"gpu": change});
    vec![
        ("image", json!({"image": "own:2"}), Restart(other_image)),
        ("imagePullPolicy", json!({"imagePullPolicy": "Always"}), Restart("imagePullPolicy set to Always")),
        (
            "imagePullSecrets",
            json!({"imagePullSecrets": [{"name": "s"}]}),
            Restart("imagePullSecrets set to"),
        ),
        ("nodeSelector", json!({"nodeSelector": {"host": "n0"}}), Nothing),
        ("nodeSelector", json!({"nodeSelector": {"host": "n1"}}), Restart("nodeSelector.host set to n1")),
        ("tolerations", json!({"tolerations": [{"operator": "Exists"}]}), Restart("tolerations set to")),
        ("priorityClassName", json!({"priorityClassName": "gold"}), Restart("priorityClassName set to gold")),
        (
            "resources",
            json!({"resources": {"limits": {"memory": "1Gi"}}}),
            Restart("resources.limits.memory set to 1Gi"),
        ),
        (
            "env",
            json!({"env": [{"name": "A", "value": "secret"}]}),
            Restart("env.A.name changed; env.A.value changed"),
        ),
        ("maxUnavailable", json!({"maxUnavailable": 0}), Nothing),
        ("gpu.devices[].index", gpu(json!({"count": null, "devices": [{"index": 3}]})), Restart(other_gpu)),
        ("gpu.devices[].index", gpu(json!({"count": null, "devices": [{"index": 0}]})), Nothing),
        (
            "gpu.devices[].uuid",
            gpu(json!({"count": null, "devices": [{"uuid": "GPU-3"}]})),
            Restart(other_gpu),
        ),
        (
            "gpu.devices[].memory",
            gpu(json!({"count": null, "devices": [{"index": 0, "memory": "4Gi"}]})),
            Restart(other_gpu),
        ),
        ("gpu.count", gpu(json!({"count": 2})), Restart(other_gpu)),
        ("gpu.memory", gpu(json!({"memory": "4Gi"})), Restart(other_gpu)),
        ("gpu.prefer.indices", gpu(json!({"prefer": {"indices": [3]}})), Nothing),
        ("gpu.product", gpu(json!({"product": "3060"})), Nothing),
        ("gpu.maxTemperature", gpu(json!({"maxTemperature": 30})), Nothing),
        ("gpu.strategy", gpu(json!({"strategy": "Spread"})), Nothing),
        ("gpu.onOverheat", gpu(json!({"onOverheat": "Migrate"})), Nothing),
        ("gpu.onUnhealthy", gpu(json!({"onUnhealthy": "Keep"})), Nothing),
    ]
}

/// The settings of what the embedder image serves.
fn embedder() -> Vec<Row> {
    let model = |change: Value| json!({"model": change});
    let instead = |source: &str, value: Value| {
        let mut change = json!({"hub": null});
        change[source] = value;
        json!({"model": change})
    };
    let claim = json!({"claimName": "c", "path": "p"});
    vec![
        (
            "model.hub.name",
            model(json!({"hub": {"name": "a/other"}})),
            Restart("model.hub.name changed from a/mini to a/other"),
        ),
        (
            "model.hub.revision",
            model(json!({"hub": {"revision": "v2"}})),
            Restart("model.hub.revision set to v2"),
        ),
        (
            "model.hub.cache.persistentVolumeClaim.claimName",
            model(json!({"hub": {"cache": {"persistentVolumeClaim": {"claimName": "c"}}}})),
            Restart("model.hub.cache.persistentVolumeClaim.claimName set to c"),
        ),
        (
            "model.hub.cache.hostPath.path",
            model(json!({"hub": {"cache": {"hostPath": {"path": "/c"}}}})),
            Restart("model.hub.cache.hostPath.path set to /c"),
        ),
        (
            "model.image.reference",
            instead("image", json!({"reference": "m:1"})),
            Restart("model.image.reference set to m:1"),
        ),
        (
            "model.image.path",
            instead("image", json!({"reference": "m:1", "path": "p"})),
            Restart("model.image.path set to p"),
        ),
        (
            "model.persistentVolumeClaim.claimName",
            instead("persistentVolumeClaim", claim.clone()),
            Restart("model.persistentVolumeClaim.claimName set to c"),
        ),
        (
            "model.persistentVolumeClaim.path",
            instead("persistentVolumeClaim", claim),
            Restart("model.persistentVolumeClaim.path set to p"),
        ),
        (
            "model.hostPath.path",
            instead("hostPath", json!({"path": "/m"})),
            Restart("model.hostPath.path set to /m"),
        ),
        ("dtype", json!({"dtype": "bf16"}), Restart("dtype set to bf16")),
        ("port", json!({"port": 9999}), Nothing),
        (
            "requireAcceleration",
            json!({"requireAcceleration": false}),
            Restart("requireAcceleration set to false"),
        ),
        (
            "apiKeySecretRef.name",
            json!({"apiKeySecretRef": {"name": "s"}}),
            Restart("apiKeySecretRef.name set to s"),
        ),
        (
            "apiKeySecretRef.key",
            json!({"apiKeySecretRef": {"name": "s", "key": "k"}}),
            Restart("apiKeySecretRef.key set to k"),
        ),
    ]
}

fn data_factory() -> Vec<Row> {
    let enrichment = |change: Value| {
        let mut enrichment = json!({"ollamaPoolRef": {"name": "pool"}});
        json_patch(&mut enrichment, &change);
        json!({"enrichment": enrichment})
    };
    let volume = |more: Value| {
        let mut volume = json!({"name": "v"});
        json_patch(&mut volume, &more);
        json!({"volumes": [volume]})
    };
    vec![
        ("enrichment.ollamaPoolRef.name", enrichment(json!({})), Restart("enrichment.pool set to pool")),
        ("enrichment.model", enrichment(json!({"model": "m"})), Restart("enrichment.model set to m")),
        (
            "enrichment.maxTokens",
            enrichment(json!({"maxTokens": 50})),
            Restart("enrichment.maxTokens set to 50"),
        ),
        ("enrichment.prompt", enrichment(json!({"prompt": "p"})), Restart("enrichment.prompt set to p")),
        (
            "chunking.maxTokens",
            json!({"chunking": {"maxTokens": 100}}),
            Restart("chunking.maxTokens set to 100"),
        ),
        ("chunking.overlap", json!({"chunking": {"overlap": 9}}), Restart("chunking.overlap set to 9")),
        (
            "chunking.strategy",
            json!({"chunking": {"strategy": "fixed"}}),
            Restart("chunking.strategy set to fixed"),
        ),
        (
            "storage.emptyDir.sizeLimit",
            json!({"storage": {"emptyDir": {"sizeLimit": "9Gi"}}}),
            Restart("storage.emptyDir.sizeLimit set to 9Gi"),
        ),
        (
            "storage.persistentVolumeClaim.claimName",
            json!({"storage": {"persistentVolumeClaim": {"claimName": "c"}}}),
            Restart("storage.persistentVolumeClaim.claimName set to c"),
        ),
        (
            "storage.hostPath.path",
            json!({"storage": {"hostPath": {"path": "/d"}}}),
            Restart("storage.hostPath.path set to /d"),
        ),
        ("volumes[].name", volume(json!({})), Restart("volumes.v.name set to v")),
        (
            "volumes[].configMap.name",
            volume(json!({"configMap": {"name": "m"}})),
            Restart("volumes.v.configMap.name set to m"),
        ),
        (
            "volumes[].persistentVolumeClaim.claimName",
            volume(json!({"persistentVolumeClaim": {"claimName": "c"}})),
            Restart("volumes.v.persistentVolumeClaim.claimName set to c"),
        ),
        (
            "volumes[].hostPath.path",
            volume(json!({"hostPath": {"path": "/d"}})),
            Restart("volumes.v.hostPath.path set to /d"),
        ),
        ("volumes[].readOnly", volume(json!({"readOnly": true})), Restart("volumes.v.readOnly set to true")),
        (
            "search.rerankerRef.name",
            json!({"search": {"rerankerRef": {"name": "r"}}}),
            Restart("search.rerankerRef.name set to r"),
        ),
        (
            "search.rerankerRef.port",
            json!({"search": {"rerankerRef": {"name": "r", "port": 9201}}}),
            Restart("search.rerankerRef.port set to 9201"),
        ),
        (
            "search.rerankerRef.apiKeySecretRef.name",
            json!({"search": {"rerankerRef": {"name": "r", "apiKeySecretRef": {"name": "s"}}}}),
            Restart("search.rerankerRef.apiKeySecretRef.name set to s"),
        ),
        (
            "search.rerankerRef.apiKeySecretRef.key",
            json!({"search": {"rerankerRef": {"name": "r", "apiKeySecretRef": {"name": "s", "key": "k"}}}}),
            Restart("search.rerankerRef.apiKeySecretRef.key set to k"),
        ),
        (
            "defaultPromptName",
            json!({"defaultPromptName": "query"}),
            Restart("defaultPromptName set to query"),
        ),
        ("docAnalyzer.port", json!({"docAnalyzer": {"port": 9555}}), Restart("analyzerPort set to 9555")),
        (
            "docAnalyzer.ollamaPoolRef.name",
            json!({"docAnalyzer": {"ollamaPoolRef": {"name": "pool"}}}),
            Restart("analyzerPort set to 9100"),
        ),
    ]
}

fn ollama_pool() -> Vec<Row> {
    let settings = |change: Value| json!({"settings": change});
    let modelfile = json!({"image": {"reference": "m:1", "path": "Modelfile.x"}});
    let models = json!({"models": [{"name": "tiny", "modelfile": modelfile}]});
    vec![
        ("instances", json!({"instances": 3}), Scale(3)),
        ("instances", json!({"instances": 0}), Scale(0)),
        (
            "models[].name",
            json!({"models": [{"name": "other"}]}),
            Restart(r#"models changed from [{"name":"tiny"}] to [{"name":"other"}]"#),
        ),
        ("models[].modelfile.image.reference", models.clone(), Restart("models changed from")),
        ("models[].modelfile.image.path", models, Restart("models changed from")),
        ("hostPorts.start", json!({"hostPorts": {"start": 11434}}), Restart("hostPort set to 11434")),
        ("store.ephemeral", json!({"store": {"ephemeral": {}}}), Nothing),
        (
            "store.persistentVolumeClaim.claimName",
            json!({"store": {"persistentVolumeClaim": {"claimName": "c"}}}),
            Restart("store.persistentVolumeClaim.claimName set to c"),
        ),
        (
            "store.hostPath.path",
            json!({"store": {"hostPath": {"path": "/m"}}}),
            Restart("store.hostPath.path set to /m"),
        ),
        (
            "registryCaConfigMapRef.name",
            json!({"registryCaConfigMapRef": {"name": "c"}}),
            Restart("registryCaConfigMapRef.name set to c"),
        ),
        (
            "registryCaConfigMapRef.key",
            json!({"registryCaConfigMapRef": {"name": "c", "key": "k"}}),
            Restart("registryCaConfigMapRef.key set to k"),
        ),
        (
            "settings.contextLength",
            settings(json!({"contextLength": 8192})),
            Restart("settings.contextLength set to 8192"),
        ),
        (
            "settings.numParallel",
            settings(json!({"numParallel": 2})),
            Restart("settings.numParallel set to 2"),
        ),
        ("settings.keepAlive", settings(json!({"keepAlive": "5m"})), Restart("settings.keepAlive set to 5m")),
        (
            "settings.flashAttention",
            settings(json!({"flashAttention": true})),
            Restart("settings.flashAttention set to true"),
        ),
        (
            "settings.kvCacheType",
            settings(json!({"kvCacheType": "q8_0"})),
            Restart("settings.kvCacheType set to q8_0"),
        ),
        ("settings.maxQueue", settings(json!({"maxQueue": 9})), Restart("settings.maxQueue set to 9")),
        (
            "settings.loadTimeout",
            settings(json!({"loadTimeout": "9m"})),
            Restart("settings.loadTimeout set to 9m"),
        ),
        ("requireAcceleration", json!({"requireAcceleration": false}), Nothing),
    ]
}

fn table(kind: &str) -> Vec<Row> {
    let mut rows = common(kind);
    match kind {
        "DataFactory" => {
            rows.extend(embedder());
            rows.extend(data_factory());
        }
        "Reranker" => {
            rows.extend(embedder());
            rows.push(("replicas", json!({"replicas": 2}), Scale(2)));
        }
        _ => rows.extend(ollama_pool()),
    }
    rows
}

const KINDS: [&str; 3] = ["DataFactory", "Reranker", "OllamaPool"];

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
            let mut cluster = Cluster::new(&[4, 4]);
            // For who refers to one; it takes no GPU.
            cluster.apply("OllamaPool", "pool", json!({"instances": 0, "models": [{"name": "tiny"}]}));
            cluster.apply(kind, "x", base(kind));
            cluster.settle();
            let before = workers(&cluster);
            let mut spec = base(kind);
            json_patch(&mut spec, &change);
            cluster.apply(kind, "x", spec);
            cluster.settle();
            let after = workers(&cluster);
            let told: Vec<&str> =
                ["Restarting", "Replacing"].into_iter().flat_map(|reason| cluster.noted(reason)).collect();
            assert_eq!(cluster.ready("x").0, "True", "{kind} {field}: {:?}", cluster.ready("x"));
            match effect {
                Restart(words) => {
                    assert!(before.iter().all(|pod| !after.contains(pod)), "{kind} {field}: {after:?}");
                    let mut pods = cluster.pods.values().filter_map(|pod| pod.spec.as_ref());
                    let worker = json!(pods.rfind(|spec| spec.restart_policy.is_none()));
                    assert!(carries(&worker, field, &change), "{kind} {field}: {worker}");
                    assert!(told.iter().any(|text| text.contains(words)), "{kind} {field}: {told:?}");
                    assert!(!told.iter().any(|text| text.contains("secret")), "{kind} {field}: {told:?}");
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

fn workers(cluster: &Cluster) -> Vec<String> {
    let names = cluster.pod_names();
    names.into_iter().filter(|name| !name.contains("puller") && !name.contains("analyzer")).collect()
}

/// Whether a pod's spec has what a change of the resource's spec says; true for fields that have another form there.
fn carries(pod: &Value, field: &str, change: &Value) -> bool {
    let (container, wanted) = (&pod["containers"][0], &change[field]);
    match field {
        "image" | "imagePullPolicy" => container[field] == *wanted,
        "imagePullSecrets" | "tolerations" | "priorityClassName" | "nodeSelector" => pod[field] == *wanted,
        "resources" => container["resources"]["limits"]["memory"] == wanted["limits"]["memory"],
        "env" => container["env"].as_array().is_some_and(|env| env.contains(&wanted[0])),
        "model.hub.revision" => container["env"].as_array().is_some_and(|env| {
            env.contains(
                &json!({"name": "PRINCIPIUM_MODEL_REVISION", "value": change["model"]["hub"]["revision"]}),
            )
        }),
        _ => true,
    }
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
