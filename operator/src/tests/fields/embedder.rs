//! The rows of what the embedder image serves.

use super::has::{Has, env, key_file, mount, volume};
use super::json_patch;
use super::rows::Effect::{Nothing, Restart};
use super::rows::Row;
use serde_json::{Value, json};

/// Where the pool is that resources refer to.
const POOL: &str = "http://pool-instances.demo.svc:11434";

/// The settings of whatever serves a model.
pub fn model() -> Vec<Row> {
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
            Restart(
                "model.hub.name changed from a/mini to a/other",
                Has::All(vec![env("PRINCIPIUM_MODEL", "a/other"), env("PRINCIPIUM_MODEL_NAME", "a/other")]),
            ),
        ),
        (
            "model.hub.revision",
            model(json!({"hub": {"revision": "v2"}})),
            Restart("model.hub.revision set to v2", env("PRINCIPIUM_MODEL_REVISION", "v2")),
        ),
        (
            "model.hub.cache.persistentVolumeClaim.claimName",
            model(json!({"hub": {"cache": {"persistentVolumeClaim": {"claimName": "c"}}}})),
            Restart(
                "model.hub.cache.persistentVolumeClaim.claimName set to c",
                volume(json!({"name": "cache", "persistentVolumeClaim": {"claimName": "c"}})),
            ),
        ),
        (
            "model.hub.cache.hostPath.path",
            model(json!({"hub": {"cache": {"hostPath": {"path": "/c"}}}})),
            Restart(
                "model.hub.cache.hostPath.path set to /c",
                volume(json!({"name": "cache", "hostPath": {"path": "/c", "type": "DirectoryOrCreate"}})),
            ),
        ),
        (
            "model.image.reference",
            instead("image", json!({"reference": "m:1"})),
            Restart(
                "model.image.reference set to m:1",
                volume(json!({"name": "model", "image": {"reference": "m:1", "pullPolicy": "IfNotPresent"}})),
            ),
        ),
        (
            "model.image.path",
            instead("image", json!({"reference": "m:1", "path": "p"})),
            Restart("model.image.path set to p", env("PRINCIPIUM_MODEL", "/models/p")),
        ),
        (
            "model.persistentVolumeClaim.claimName",
            instead("persistentVolumeClaim", claim.clone()),
            Restart(
                "model.persistentVolumeClaim.claimName set to c",
                volume(json!({"name": "model", "persistentVolumeClaim": {"claimName": "c"}})),
            ),
        ),
        (
            "model.persistentVolumeClaim.path",
            instead("persistentVolumeClaim", claim),
            Restart("model.persistentVolumeClaim.path set to p", env("PRINCIPIUM_MODEL", "/models/p")),
        ),
        (
            "model.hostPath.path",
            instead("hostPath", json!({"path": "/m"})),
            Restart(
                "model.hostPath.path set to /m",
                volume(json!({"name": "model", "hostPath": {"path": "/m", "type": "Directory"}})),
            ),
        ),
        ("dtype", json!({"dtype": "bf16"}), Restart("dtype set to bf16", env("PRINCIPIUM_DTYPE", "bf16"))),
        ("port", json!({"port": 9999}), Nothing),
        (
            "requireAcceleration",
            json!({"requireAcceleration": false}),
            Restart("requireAcceleration set to false", env("PRINCIPIUM_REQUIRE_ACCELERATION", "false")),
        ),
        (
            "apiKeySecretRef.name",
            json!({"apiKeySecretRef": {"name": "s"}}),
            Restart(
                "apiKeySecretRef.name set to s",
                key_file("api-key", "PRINCIPIUM_API_KEYS_FILE", "s", "api-key"),
            ),
        ),
        (
            "apiKeySecretRef.key",
            json!({"apiKeySecretRef": {"name": "s", "key": "k"}}),
            Restart(
                "apiKeySecretRef.key set to k",
                key_file("api-key", "PRINCIPIUM_API_KEYS_FILE", "s", "k"),
            ),
        ),
    ]
}

/// The settings that only a DataFactory has.
pub fn data_factory() -> Vec<Row> {
    let enrichment = |change: Value| {
        let mut enrichment = json!({"ollamaPoolRef": {"name": "pool"}});
        json_patch(&mut enrichment, &change);
        json!({"enrichment": enrichment})
    };
    let with_volume = |more: Value| {
        let mut made = json!({"name": "v"});
        json_patch(&mut made, &more);
        json!({"volumes": [made]})
    };
    vec![
        (
            "enrichment.ollamaPoolRef.name",
            enrichment(json!({})),
            Restart(
                "enrichment.pool set to pool",
                Has::All(vec![env("PRINCIPIUM_OLLAMA_URL", POOL), env("PRINCIPIUM_OLLAMA_MODEL", "tiny")]),
            ),
        ),
        (
            "enrichment.model",
            enrichment(json!({"model": "m"})),
            Restart("enrichment.model set to m", env("PRINCIPIUM_OLLAMA_MODEL", "m")),
        ),
        (
            "enrichment.maxTokens",
            enrichment(json!({"maxTokens": 50})),
            Restart("enrichment.maxTokens set to 50", env("PRINCIPIUM_CONTEXT_MAX_TOKENS", "50")),
        ),
        (
            "enrichment.prompt",
            enrichment(json!({"prompt": "p"})),
            Restart("enrichment.prompt set to p", env("PRINCIPIUM_CONTEXT_PROMPT", "p")),
        ),
        (
            "chunking.maxTokens",
            json!({"chunking": {"maxTokens": 100}}),
            Restart("chunking.maxTokens set to 100", env("PRINCIPIUM_CHUNK_MAX_TOKENS", "100")),
        ),
        (
            "chunking.overlap",
            json!({"chunking": {"overlap": 9}}),
            Restart("chunking.overlap set to 9", env("PRINCIPIUM_CHUNK_OVERLAP", "9")),
        ),
        (
            "chunking.strategy",
            json!({"chunking": {"strategy": "fixed"}}),
            Restart("chunking.strategy set to fixed", env("PRINCIPIUM_CHUNKER", "fixed")),
        ),
        (
            "storage.emptyDir.sizeLimit",
            json!({"storage": {"emptyDir": {"sizeLimit": "9Gi"}}}),
            Restart(
                "storage.emptyDir.sizeLimit set to 9Gi",
                volume(json!({"name": "data", "emptyDir": {"sizeLimit": "9Gi"}})),
            ),
        ),
        (
            "storage.persistentVolumeClaim.claimName",
            json!({"storage": {"persistentVolumeClaim": {"claimName": "c"}}}),
            Restart(
                "storage.persistentVolumeClaim.claimName set to c",
                volume(json!({"name": "data", "persistentVolumeClaim": {"claimName": "c"}})),
            ),
        ),
        (
            "storage.hostPath.path",
            json!({"storage": {"hostPath": {"path": "/d"}}}),
            Restart(
                "storage.hostPath.path set to /d",
                volume(json!({"name": "data", "hostPath": {"path": "/d", "type": "DirectoryOrCreate"}})),
            ),
        ),
        (
            "volumes[].name",
            with_volume(json!({})),
            Restart("volumes.v.name set to v", mount(json!({"name": "volume-v", "mountPath": "/volumes/v"}))),
        ),
        (
            "volumes[].configMap.name",
            with_volume(json!({"configMap": {"name": "m"}})),
            Restart(
                "volumes.v.configMap.name set to m",
                volume(json!({"name": "volume-v", "configMap": {"name": "m"}})),
            ),
        ),
        (
            "volumes[].persistentVolumeClaim.claimName",
            with_volume(json!({"persistentVolumeClaim": {"claimName": "c"}})),
            Restart(
                "volumes.v.persistentVolumeClaim.claimName set to c",
                volume(json!({"name": "volume-v", "persistentVolumeClaim": {"claimName": "c"}})),
            ),
        ),
        (
            "volumes[].hostPath.path",
            with_volume(json!({"hostPath": {"path": "/d"}})),
            Restart(
                "volumes.v.hostPath.path set to /d",
                volume(json!({"name": "volume-v", "hostPath": {"path": "/d", "type": "Directory"}})),
            ),
        ),
        (
            "volumes[].readOnly",
            with_volume(json!({"readOnly": true})),
            Restart(
                "volumes.v.readOnly set to true",
                mount(json!({"name": "volume-v", "mountPath": "/volumes/v", "readOnly": true})),
            ),
        ),
        (
            "search.rerankerRef.name",
            json!({"search": {"rerankerRef": {"name": "r"}}}),
            Restart(
                "search.rerankerRef.name set to r",
                env("PRINCIPIUM_RERANKER_URL", "http://r.demo.svc:9200"),
            ),
        ),
        (
            "search.rerankerRef.port",
            json!({"search": {"rerankerRef": {"name": "r", "port": 9201}}}),
            Restart(
                "search.rerankerRef.port set to 9201",
                env("PRINCIPIUM_RERANKER_URL", "http://r.demo.svc:9201"),
            ),
        ),
        (
            "search.rerankerRef.apiKeySecretRef.name",
            json!({"search": {"rerankerRef": {"name": "r", "apiKeySecretRef": {"name": "s"}}}}),
            Restart(
                "search.rerankerRef.apiKeySecretRef.name set to s",
                key_file("reranker-key", "PRINCIPIUM_RERANKER_API_KEY_FILE", "s", "api-key"),
            ),
        ),
        (
            "search.rerankerRef.apiKeySecretRef.key",
            json!({"search": {"rerankerRef": {"name": "r", "apiKeySecretRef": {"name": "s", "key": "k"}}}}),
            Restart(
                "search.rerankerRef.apiKeySecretRef.key set to k",
                key_file("reranker-key", "PRINCIPIUM_RERANKER_API_KEY_FILE", "s", "k"),
            ),
        ),
        (
            "defaultPromptName",
            json!({"defaultPromptName": "query"}),
            Restart("defaultPromptName set to query", env("PRINCIPIUM_DEFAULT_PROMPT_NAME", "query")),
        ),
        (
            "docAnalyzer.port",
            json!({"docAnalyzer": {"port": 9555}}),
            Restart(
                "analyzerPort set to 9555",
                env("PRINCIPIUM_ANALYZER_URL", "http://x-analyzer.demo.svc:9555"),
            ),
        ),
        (
            "docAnalyzer.ollamaPoolRef.name",
            json!({"docAnalyzer": {"ollamaPoolRef": {"name": "pool"}}}),
            Restart("analyzerPort set to 9100", Has::Analyzer(Box::new(env("PRINCIPIUM_OLLAMA_URL", POOL)))),
        ),
    ]
}
