//! What a user may say about the pods of a resource, besides their GPUs.

use k8s_openapi::api::core::v1::{EnvVar, LocalObjectReference, ResourceRequirements, Toleration};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Settings of the pods, flattened into each resource's `spec`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSettings {
    /// Container image. Default: the one that the operator was installed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,

    /// When the image is pulled: at every start (`Always`), when the node doesn't have it (`IfNotPresent`), or never (`Never`).
    /// Default `IfNotPresent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,

    /// Secrets for pulling images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,

    /// Only nodes with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,

    /// Taints that the pods tolerate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerations: Option<Vec<Toleration>>,

    /// PriorityClass of the pods; also the order in which new pods that want the same GPU are served. With its default
    /// `preemptionPolicy` the scheduler may evict pods of lower priority for CPU or memory on the node; with `Never`, as in the
    /// chart's own classes, it evicts none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,

    /// CPU and memory. GPUs are asked for in `gpu`, never here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "without_gpus")]
    pub resources: Option<ResourceRequirements>,

    /// Environment variables added to the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<EnvVar>>,

    /// How many of the pods may be away at once, because the operator replaces or moves them, or because a node is drained:
    /// a PodDisruptionBudget says so where there is more than one pod. Default 1. 0: drains are refused, also of a single
    /// pod; changes of the spec still go one pod at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 512))]
    pub max_unavailable: Option<u32>,
}

/// [`ResourceRequirements`] that ask for none of the operator's resources: those are granted, and asked for in `gpu`.
fn without_gpus(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Option::<ResourceRequirements>::json_schema(generator);
    for list in ["limits", "requests"] {
        if let Some(Value::Object(list)) = schema.pointer_mut(&format!("/properties/{list}")) {
            // The API server adds up what a rule costs at the most.
            list.insert("maxProperties".to_owned(), json!(32));
        }
    }
    schema.insert(
        "x-kubernetes-validations".to_owned(),
        json!([{
            "rule": "(!has(self.limits) || self.limits.all(name, !name.startsWith('principium.ai/'))) && \
                (!has(self.requests) || self.requests.all(name, !name.startsWith('principium.ai/')))",
            "message": "GPUs are asked for in spec.gpu, not in resources: remove the names that begin with principium.ai/"
        }]),
    );
    schema
}

/// One key of a Secret in the resource's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it. Default `api-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// One key of a ConfigMap in the resource's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it. Default `ca.crt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub key: Option<String>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(transform = crate::told_by_its_field)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// When the node doesn't have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}
