//! Where a DataFactory keeps jobs and corpora, which volumes its jobs read and write, and who reranks its searches.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where jobs and corpora are kept: at most one of the fields. None: a folder that lasts as long as the pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.emptyDir) && has(self.persistentVolumeClaim))")
    .message("storage is an emptyDir or a persistentVolumeClaim, not both"))]
pub struct Storage {
    /// A folder that lasts as long as the pod: restarts of the container lose nothing, another pod begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDir>,
    /// A PersistentVolumeClaim in the resource's namespace. One pod at a time has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
}

/// A folder that lasts as long as the pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDir {
    /// Most that it may hold, for example `20Gi`; the pod is evicted beyond that. Default: what the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub size_limit: Option<String>,
}

/// A claim of the resource's namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// A volume that jobs read documents from or write files to, mounted at `/volumes/<name>`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistentVolumeClaim) != has(self.configMap)")
    .message("a volume is a persistentVolumeClaim or a configMap"))]
pub struct DataVolume {
    /// Name of the folder; the first part of paths in jobs.
    #[schemars(length(min = 1, max = 55), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A PersistentVolumeClaim in the resource's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<Claim>,
    /// A ConfigMap in the resource's namespace; read only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMap>,
    /// `true`: jobs can't write to it. Default `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// A ConfigMap of the resource's namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMap {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How corpora are searched.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Search {
    /// A Reranker that puts results into their last order. Absent: they stay as vectors and words have them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reranker_ref: Option<RerankerRef>,
}

/// Names a Reranker of the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RerankerRef {
    /// Name of the Reranker.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
