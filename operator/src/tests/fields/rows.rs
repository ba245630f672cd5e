//! The table of changes: every field of every spec, with what a change of it does. Here are the fields that all kinds have.

use super::has::{Has, env, on_gpu};
use super::{embedder, ollama_pool};
use serde_json::{Value, json};

/// What a change of a field does.
pub enum Effect {
    /// Every pod is replaced, an Event says this, and the new pods have this, which those before them have not.
    Restart(&'static str, Has),
    /// No pod is touched.
    Nothing,
    /// There are so many workers then.
    Scale(usize),
}
use Effect::{Nothing, Restart, Scale};

/// A field, a change of the base by RFC 7386, and what it does.
pub type Row = (&'static str, Value, Effect);

/// What nobody but the pods is to see.
pub const SECRET: &str = "secret";

/// The product of one GPU of the cluster, the last of the second node.
pub const OTHER_PRODUCT: &str = "NVIDIA A100";

/// The kinds that have pods.
pub const KINDS: [&str; 3] = ["DataFactory", "Reranker", "OllamaPool"];

/// What is changed.
pub fn base(kind: &str) -> Value {
    match kind {
        "OllamaPool" => json!({"models": [{"name": "tiny"}], "gpu": {"count": 1}}),
        _ => json!({"model": {"hub": {"name": "a/mini"}}, "gpu": {"count": 1}}),
    }
}

/// What a change of each field of a kind does.
pub fn table(kind: &str) -> Vec<Row> {
    let mut rows = common(kind);
    match kind {
        "DataFactory" => {
            rows.extend(embedder::model());
            rows.extend(embedder::data_factory());
        }
        "Reranker" => {
            rows.extend(embedder::model());
            rows.push(("replicas", json!({"replicas": 2}), Scale(2)));
        }
        _ => rows.extend(ollama_pool::rows()),
    }
    rows
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
        (
            "image",
            json!({"image": "own:2"}),
            Restart(other_image, Has::At("/containers/0/image", json!("own:2"))),
        ),
        (
            "imagePullPolicy",
            json!({"imagePullPolicy": "Always"}),
            Restart(
                "imagePullPolicy set to Always",
                Has::At("/containers/0/imagePullPolicy", json!("Always")),
            ),
        ),
        (
            "imagePullSecrets",
            json!({"imagePullSecrets": [{"name": "s"}]}),
            Restart("imagePullSecrets set to", Has::At("/imagePullSecrets", json!([{"name": "s"}]))),
        ),
        ("nodeSelector", json!({"nodeSelector": {"host": "n0"}}), Nothing),
        (
            "nodeSelector",
            json!({"nodeSelector": {"host": "n1"}}),
            Restart(
                "nodeSelector.host set to n1",
                Has::All(vec![
                    Has::At("/nodeSelector", json!({"host": "n1"})),
                    Has::At("/nodeName", json!("n1")),
                ]),
            ),
        ),
        (
            "tolerations",
            json!({"tolerations": [{"operator": "Exists"}]}),
            Restart("tolerations set to", Has::At("/tolerations", json!([{"operator": "Exists"}]))),
        ),
        (
            "priorityClassName",
            json!({"priorityClassName": "gold"}),
            Restart("priorityClassName set to gold", Has::At("/priorityClassName", json!("gold"))),
        ),
        (
            "resources",
            json!({"resources": {"limits": {"memory": "1Gi"}}}),
            Restart(
                "resources.limits.memory set to 1Gi",
                Has::At("/containers/0/resources/limits/memory", json!("1Gi")),
            ),
        ),
        (
            "env",
            json!({"env": [{"name": "A", "value": SECRET}]}),
            Restart(
                "env.A.name changed; env.A.value changed",
                Has::In("/containers/0/env", json!({"name": "A", "value": SECRET})),
            ),
        ),
        ("maxUnavailable", json!({"maxUnavailable": 0}), Nothing),
        (
            "gpu.devices[].index",
            gpu(json!({"count": null, "devices": [{"index": 3}]})),
            Restart(other_gpu, on_gpu(3, 8)),
        ),
        ("gpu.devices[].index", gpu(json!({"count": null, "devices": [{"index": 0}]})), Nothing),
        (
            "gpu.devices[].uuid",
            gpu(json!({"count": null, "devices": [{"uuid": "GPU-3"}]})),
            Restart(other_gpu, on_gpu(3, 8)),
        ),
        (
            "gpu.devices[].memory",
            gpu(json!({"count": null, "devices": [{"index": 0, "memory": "4Gi"}]})),
            Restart(other_gpu, on_gpu(0, 4)),
        ),
        ("gpu.count", gpu(json!({"count": 2})), Restart(other_gpu, Has::Gpus(2, 8))),
        ("gpu.memory", gpu(json!({"memory": "4Gi"})), Restart(other_gpu, Has::Gpus(1, 4))),
        ("gpu.prefer.indices", gpu(json!({"prefer": {"indices": [3]}})), Nothing),
        ("gpu.product", gpu(json!({"product": "3060"})), Nothing),
        (
            "gpu.product",
            gpu(json!({"product": OTHER_PRODUCT})),
            Restart(
                other_gpu,
                Has::All(vec![
                    Has::At("/nodeName", json!("n1")),
                    on_gpu(3, 8),
                    env("CUDA_VISIBLE_DEVICES", "GPU-n1-3"),
                ]),
            ),
        ),
        ("gpu.maxTemperature", gpu(json!({"maxTemperature": 30})), Nothing),
        ("gpu.strategy", gpu(json!({"strategy": "Spread"})), Nothing),
        ("gpu.onOverheat", gpu(json!({"onOverheat": "Migrate"})), Nothing),
        ("gpu.onUnhealthy", gpu(json!({"onUnhealthy": "Keep"})), Nothing),
    ]
}
