//! Nodes that nobody runs: each with its GPUNode and the Lease of its device plugin, as the kubelet and the plugin would have
//! written them.

use anyhow::Result;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use principium_api::GPUNode;
use principium_local_cluster::NAMESPACE;
use serde_json::{Map, Value, json};

/// GPUs of a node, and units of each.
const GPUS: u32 = 8;
const UNITS: u32 = 8;

/// Makes a node. `number` tells its cards from others'.
///
/// # Errors
/// When the API server refuses it.
pub async fn make(client: &Client, name: &str, number: u32) -> Result<()> {
    let mut capacity = json!({"cpu": "64", "memory": "256Gi", "pods": "110"});
    for gpu in 0..GPUS {
        capacity[format!("principium.ai/gpu-{gpu}")] = json!(UNITS.to_string());
    }
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Scale", "message": ""}],
        },
    }))?;
    Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await?;

    // Long-lived: thousands of plugins that renew every ten seconds would measure etcd.
    let alive: Lease = serde_json::from_value(json!({
        "metadata": {"name": lease(name)},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 86400, "renewTime": "2020-01-01T00:00:00.000000Z"},
    }))?;
    Api::<Lease>::namespaced(client.clone(), NAMESPACE).create(&PostParams::default(), &fresh(alive)).await?;

    let api = Api::<GPUNode>::all(client.clone());
    api.create(&PostParams::default(), &GPUNode::new(name, principium_api::gpu_node::GpuNodeSpec::default()))
        .await?;
    let gpus: Vec<Value> = (0..GPUS).map(|index| gpu(number, index)).collect();
    let status = json!({"status": {"injection": "CDI", "gpus": gpus, "summary": {
        "gpus": GPUS, "product": "NVIDIA GeForce RTX 3060 Ti", "free": "64/64", "temperatures": "", "withheld": ""}}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

/// Takes a node away, as whoever runs a cloud does: at once and for ever.
///
/// # Errors
/// When it is not there.
pub async fn remove(client: &Client, name: &str) -> Result<()> {
    let now = DeleteParams::default();
    Api::<Node>::all(client.clone()).delete(name, &now).await?;
    Api::<GPUNode>::all(client.clone()).delete(name, &now).await?;
    Api::<Lease>::namespaced(client.clone(), NAMESPACE).delete(&lease(name), &now).await?;
    Ok(())
}

fn lease(node: &str) -> String {
    format!("principium-gpu-{node}")
}

/// A card whose temperature differs a little from its neighbors'.
fn gpu(node: u32, index: u32) -> Value {
    let mut card = Map::new();
    for (field, value) in [
        ("index", json!(index)),
        ("uuid", json!(format!("GPU-{node:08x}-0000-0000-0000-{index:012x}"))),
        ("product", json!("NVIDIA GeForce RTX 3060 Ti")),
        ("pciAddress", json!(format!("00000000:{:02x}:00.0", index + 1))),
        ("memory", json!({"total": 8192, "used": 256, "free": 7936})),
        ("units", json!(UNITS)),
        ("temperature", json!(38 + (node * 7 + index * 3) % 20)),
        ("temperatureLimits", json!({"withhold": 85, "restore": 75})),
        ("power", json!(20)),
    ] {
        card.insert(field.to_owned(), value);
    }
    Value::Object(card)
}

fn fresh(mut lease: Lease) -> Lease {
    if let Some(spec) = &mut lease.spec {
        spec.renew_time =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(jiff::Timestamp::now()));
    }
    lease
}
