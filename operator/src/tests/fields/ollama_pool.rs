//! The rows of an OllamaPool.

use super::has::{Has, env, volume};
use super::rows::Effect::{Nothing, Restart, Scale};
use super::rows::Row;
use serde_json::{Value, json};

/// The settings that only a pool has.
pub fn rows() -> Vec<Row> {
    let settings = |change: Value| json!({"settings": change});
    let modelfile = json!({"image": {"reference": "m:1", "path": "Modelfile.x"}});
    let models = json!({"models": [{"name": "tiny", "modelfile": modelfile}]});
    let ca = |key: &str| {
        let source = json!({"name": "c", "items": [{"key": key, "path": "ca.crt"}]});
        volume(json!({"name": "registry-ca", "configMap": source}))
    };
    vec![
        ("instances", json!({"instances": 3}), Scale(3)),
        ("instances", json!({"instances": 0}), Scale(0)),
        (
            "models[].name",
            json!({"models": [{"name": "other"}]}),
            Restart(
                r#"models changed from [{"name":"tiny"}] to [{"name":"other"}]"#,
                Has::At("/initContainers/1/args/3", json!("other")),
            ),
        ),
        (
            "models[].modelfile.image.reference",
            models.clone(),
            Restart(
                "models changed from",
                volume(
                    json!({"name": "source-0", "image": {"reference": "m:1", "pullPolicy": "IfNotPresent"}}),
                ),
            ),
        ),
        (
            "models[].modelfile.image.path",
            models,
            Restart(
                "models changed from",
                Has::At("/initContainers/1/args", json!(["create", "tiny", "-f", "/sources/0/Modelfile.x"])),
            ),
        ),
        (
            "hostPorts.start",
            json!({"hostPorts": {"start": 11434}}),
            Restart("hostPort set to 11434", Has::At("/containers/0/ports/0/hostPort", json!(11434))),
        ),
        ("store.ephemeral", json!({"store": {"ephemeral": {}}}), Nothing),
        (
            "store.persistentVolumeClaim.claimName",
            json!({"store": {"persistentVolumeClaim": {"claimName": "c"}}}),
            Restart(
                "store.persistentVolumeClaim.claimName set to c",
                volume(json!({"name": "models", "persistentVolumeClaim": {"claimName": "c"}})),
            ),
        ),
        (
            "store.hostPath.path",
            json!({"store": {"hostPath": {"path": "/m"}}}),
            Restart(
                "store.hostPath.path set to /m",
                volume(json!({"name": "models", "hostPath": {"path": "/m", "type": "DirectoryOrCreate"}})),
            ),
        ),
        (
            "registryCaConfigMapRef.name",
            json!({"registryCaConfigMapRef": {"name": "c"}}),
            Restart("registryCaConfigMapRef.name set to c", ca("ca.crt")),
        ),
        (
            "registryCaConfigMapRef.key",
            json!({"registryCaConfigMapRef": {"name": "c", "key": "k"}}),
            Restart("registryCaConfigMapRef.key set to k", ca("k")),
        ),
        (
            "settings.contextLength",
            settings(json!({"contextLength": 8192})),
            Restart("settings.contextLength set to 8192", env("OLLAMA_CONTEXT_LENGTH", "8192")),
        ),
        (
            "settings.numParallel",
            settings(json!({"numParallel": 2})),
            Restart("settings.numParallel set to 2", env("OLLAMA_NUM_PARALLEL", "2")),
        ),
        (
            "settings.keepAlive",
            settings(json!({"keepAlive": "5m"})),
            Restart("settings.keepAlive set to 5m", env("OLLAMA_KEEP_ALIVE", "5m")),
        ),
        (
            "settings.flashAttention",
            settings(json!({"flashAttention": true})),
            Restart("settings.flashAttention set to true", env("OLLAMA_FLASH_ATTENTION", "true")),
        ),
        (
            "settings.kvCacheType",
            settings(json!({"kvCacheType": "q8_0"})),
            Restart("settings.kvCacheType set to q8_0", env("OLLAMA_KV_CACHE_TYPE", "q8_0")),
        ),
        (
            "settings.maxQueue",
            settings(json!({"maxQueue": 9})),
            Restart("settings.maxQueue set to 9", env("OLLAMA_MAX_QUEUE", "9")),
        ),
        (
            "settings.loadTimeout",
            settings(json!({"loadTimeout": "9m"})),
            Restart("settings.loadTimeout set to 9m", env("OLLAMA_LOAD_TIMEOUT", "9m")),
        ),
        ("requireAcceleration", json!({"requireAcceleration": false}), Nothing),
    ]
}
