//! `Reranker`: a cross-encoder that scores (query, passage) pairs.

use crate::gpu::{DEVICES_ONCE, DEVICES_ONCE_MESSAGE, GpuRequest};
use crate::model::{Dtype, ModelSource, RunningModel};
use crate::pod::{PodSettings, SecretKeyRef};
use crate::status::{Assignment, Condition, Endpoint};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Reranker.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "principium.ai",
    version = "v1alpha1",
    kind = "Reranker",
    plural = "rerankers",
    shortname = "rr",
    category = "principium",
    namespaced,
    status = "RerankerStatus",
    derive = "PartialEq",
    doc = "Scores (query, passage) pairs with a cross-encoder, on a GPU or a share of one.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Replicas",
        type_ = "string",
        json_path = ".status.readyReplicas",
        description = "Ready replicas / wanted replicas"
    ),
    printcolumn(name = "GPUs", type_ = "string", json_path = ".status.gpus", description = "index:GiB"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model.name"),
    printcolumn(name = "Device", type_ = "string", json_path = ".status.model.device", priority = 1),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.replicas) || !has(self.gpu) || !has(self.gpu.devices) || self.replicas <= 1")
        .message("replicas needs gpu.count: exact gpu.devices can be held by one replica only"),
    validation = Rule::new(DEVICES_ONCE).message(DEVICES_ONCE_MESSAGE)
)]
pub struct RerankerSpec {
    /// The cross-encoder.
    pub model: ModelSource,

    /// Number format of the computation: `f32`, `bf16`, `int8` (without a GPU only), `f16` (on a GPU only) or `auto`, the default: `f32`
    /// on the CPU and 16 bits on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,

    /// GPUs of each replica, one worker each. Default: one whole GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,

    /// Number of pods. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 512))]
    pub replicas: Option<u32>,

    /// Port of the Service. Default 9200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,

    /// `true`: not Ready unless it computes on its GPUs. Default: as the operator was installed (`true`, and `false`
    /// with simulated hardware).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_acceleration: Option<bool>,

    /// Clients must show the key in this Secret as `Authorization: Bearer …`. Absent: whoever reaches the Service may use
    /// it. A key that changes counts from the next start of a pod on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,

    /// Settings of the pods.
    #[serde(flatten)]
    pub pod: PodSettings,
}

/// What a Reranker reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RerankerStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Accelerated.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Replicas that exist.
    #[serde(default)]
    pub replicas: u32,
    /// Label selector of the replicas, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// Ready replicas of wanted replicas, for example `1/1`.
    #[serde(default)]
    pub ready_replicas: String,
    /// The GPUs in one line, for `kubectl get`.
    #[serde(default)]
    pub gpus: String,
    /// Which pod holds which GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignments: Vec<Assignment>,
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// The model that runs, as the worker says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<RunningModel>,
    /// How many pods were ever made, per ordinal: the revision in a pod's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<u32>,
}
