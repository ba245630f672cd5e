//! What all resources report: conditions by kstatus, assignments, endpoints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Condition types (kstatus).
pub mod condition {
    /// `True` when everything that the spec asks for runs and answers.
    pub const READY: &str = "Ready";
    /// `True` while the operator is working towards the spec, or waiting for something that can come by itself.
    pub const RECONCILING: &str = "Reconciling";
    /// `True` when nothing will happen until the spec changes.
    pub const STALLED: &str = "Stalled";
    /// `True` when every worker computes on the GPUs that it was given.
    pub const ACCELERATED: &str = "Accelerated";
}

/// One pod and the GPUs that it holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Name of the pod.
    pub pod: String,
    /// Node of the pod.
    pub node: String,
    /// GPUs of the pod.
    pub gpus: Vec<AssignedGpu>,
    /// Why these GPUs were chosen, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One GPU, or a share of it, that a pod holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssignedGpu {
    /// Index on the node.
    pub index: u32,
    /// NVML UUID.
    pub uuid: String,
    /// Memory in units of 1 GiB.
    pub units: u32,
}

/// An address at which a resource answers inside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// What answers there, for example `data-factory` or `instance-0`.
    pub name: String,
    /// URL.
    pub url: String,
}
