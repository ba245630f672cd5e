//! Where a DataFactory keeps jobs and corpora, which volumes its jobs read and write, and who reranks its searches.

use crate::model::HostPathModel;
use crate::ollama_pool::{ClaimStore, HostPathStore};
use crate::pod::SecretKeyRef;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where jobs and corpora are kept: exactly one of the fields. One pod has it, alone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.hostPath)].filter(x, x).size() == 1")
    .message("storage is exactly one of emptyDir, persistentVolumeClaim or hostPath"))]
pub struct Storage {
    /// A folder that goes with the pod: restarts of the container lose nothing, a new pod begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirStorage>,
    /// A PersistentVolumeClaim of the namespace. The user 65532 must be able to write there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStore>,
    /// A folder of the node. Needs a namespace that allows host paths; the pod runs as root without capabilities then. On
    /// another node the pod begins anew, so choose its node with `nodeSelector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathStore>,
}

/// A folder that goes with the pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EmptyDirStorage {
    /// Most that it may hold, for example `20Gi`: the kubelet ends the pod beyond that. Default: what the node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(self)").message(Message::Expression(
        r#"'storage.emptyDir.sizeLimit is "' + self + '": it is an amount of memory, for example 20Gi'"#.into())))]
    #[schemars(length(min = 1, max = 32))]
    pub size_limit: Option<String>,
}

/// A volume that jobs read documents from or write files to: exactly one of the sources. Jobs see it as the folder of its name.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.persistentVolumeClaim), has(self.configMap), has(self.hostPath)].filter(x, x).size() == 1")
    .message("a volume is exactly one of persistentVolumeClaim, configMap or hostPath"))]
pub struct DataVolume {
    /// Name of the volume: the first part of paths in jobs.
    #[schemars(length(min = 1, max = 55), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A PersistentVolumeClaim of the namespace. Jobs run as user 65532.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStore>,
    /// A ConfigMap of the namespace; always read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapVolume>,
    /// A folder of the node that is there. Needs a namespace that allows host paths; unless it is read-only, the pod runs as root
    /// without capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathModel>,
    /// `true`: jobs can't write to it. Default `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// A ConfigMap.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapVolume {
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
    /// Port of its Service. Default 9200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,
    /// The key that it is shown, where it wants one: usually its own `apiKeySecretRef`. A key that changes counts from the next
    /// start of a pod on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
}
