//! Where a resource's model comes from.

use crate::ollama_pool::{ClaimStore, HostPathStore};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the files of an embedding or reranking model come from: exactly one of the fields.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.hub), has(self.image), has(self.persistentVolumeClaim), has(self.hostPath)].filter(x, x).size() == 1")
    .message("a model has exactly one source: hub, image, persistentVolumeClaim or hostPath"))]
pub struct ModelSource {
    /// A model of the Hugging Face hub, downloaded by the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubModel>,

    /// An OCI image whose files are the model, mounted read-only as an image volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageModel>,

    /// A folder on a PersistentVolumeClaim in the resource's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimModel>,

    /// A folder on the node. Needs a namespace that allows host paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathModel>,
}

/// A model of the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HubModel {
    /// Repository, for example `sentence-transformers/all-MiniLM-L6-v2`.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Branch, tag or commit. Default `main`; a commit makes the deployment reproducible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Where the download is kept and shared with other pods. Default: in a volume of the pod, and every new pod downloads
    /// anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<ModelCache>,
}

/// Where downloads of models are kept: exactly one of the fields. The pods write there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.persistentVolumeClaim) != has(self.hostPath)")
    .message("a model cache is exactly one of persistentVolumeClaim or hostPath"))]
pub struct ModelCache {
    /// A PersistentVolumeClaim of the namespace. Its user 65532 must be able to write there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStore>,
    /// A folder of each node. Needs a namespace that allows host paths; the pods run as root without capabilities then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathStore>,
}

/// A folder or a file in an OCI image.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageModel {
    /// Image reference.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,
    /// Path inside the image: the folder of the model (default: the root), or a Modelfile (default `Modelfile`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A model on a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimModel {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Folder inside the volume. Default: its root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// A model in a folder of the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathModel {
    /// Absolute path on the node.
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("a host path is absolute: it begins with /"))]
    #[schemars(length(max = 4096))]
    pub path: String,
}

/// Number format in which a model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = crate::told_by_its_field)]
pub enum Dtype {
    /// `f32` on the CPU, 16 bits on a GPU.
    Auto,
    /// 32 bits: the numbers of the reference implementations.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits, for older cards. On GPUs only.
    F16,
    /// 8 bits. On the CPU only.
    Int8,
}

impl Dtype {
    /// Its name, as the embedder takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// The model that a worker says it runs, read from the worker itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunningModel {
    /// Name under which the worker serves it.
    pub name: String,
    /// SHA-256 of the files of the weights, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Length of a vector. Absent for a reranker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimension: Option<u32>,
    /// Number format of the computation, as text-embeddings-inference names it, for example `float32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Where it computes, for example `cuda:0` or `cpu (avx512)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}
