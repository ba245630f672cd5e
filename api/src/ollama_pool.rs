//! `OllamaPool`: Ollama instances, each a pod with a GPU of its own.

use crate::gpu::GpuRequest;
use crate::model::ImageModel;
use crate::pod::{ConfigMapKeyRef, PodSettings};
use crate::status::{Assignment, Condition, Endpoint};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pool of Ollama instances.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "principium.ai",
    version = "v1alpha1",
    kind = "OllamaPool",
    plural = "ollamapools",
    shortname = "op",
    category = "principium",
    namespaced,
    status = "OllamaPoolStatus",
    derive = "PartialEq",
    doc = "A pool of Ollama instances. Every instance is a pod with GPUs of its own and a stable address; one Service spreads over all.",
    scale(
        spec_replicas_path = ".spec.instances",
        status_replicas_path = ".status.instances",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Instances",
        type_ = "string",
        json_path = ".status.readyInstances",
        description = "Ready instances / wanted instances"
    ),
    printcolumn(
        name = "GPUs",
        type_ = "string",
        json_path = ".status.gpus",
        description = "index:GiB of every instance"
    ),
    printcolumn(name = "Models", type_ = "string", json_path = ".status.modelNames"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.gpu) || !has(self.gpu.devices) || (has(self.instances) ? self.instances <= self.gpu.devices.size() : self.gpu.devices.size() == 1)")
        .message("with exact gpu.devices a pool has at most one instance a device: set instances to the number of devices, or below it"),
    validation = Rule::new("!has(self.hostPorts) || self.hostPorts.start + (has(self.instances) ? self.instances : 1) <= 65536")
        .message("hostPorts.start plus instances must stay within 65535"),
    validation = Rule::new("!has(self.models) || self.models.all(m, self.models.exists_one(n, n.name == m.name))")
        .message("models names a model twice")
)]
pub struct OllamaPoolSpec {
    /// Number of instances. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 512))]
    pub instances: Option<u32>,

    /// Models that every instance serves. The first is the default one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub models: Vec<OllamaModel>,

    /// GPUs. `devices`: the i-th instance gets the i-th device; `count` is per instance. Default: one whole GPU each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,

    /// Also open a port of the node for each instance, as the servers that this replaces had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_ports: Option<HostPorts>,

    /// Where the models lie. Default: in a volume of each instance that goes with its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<ModelStore>,

    /// Certificate authorities, in PEM, that are trusted beside the public ones where models are pulled from: for a registry of
    /// your own, whose models are named `host:port/namespace/model:tag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_ca_config_map_ref: Option<ConfigMapKeyRef>,

    /// How Ollama serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<OllamaSettings>,

    /// `true`: not Ready unless the models sit in GPU memory. Default: as the operator was installed (`true`, and
    /// `false` with simulated hardware).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_acceleration: Option<bool>,

    /// Settings of the pods.
    #[serde(flatten)]
    pub pod: PodSettings,
}

/// A model of a pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OllamaModel {
    /// Name under which Ollama serves it. Pulled under this name from Ollama's library unless `modelfile` is given.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,

    /// Create the model from a Modelfile instead of pulling it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modelfile: Option<Modelfile>,
}

/// A Modelfile in an OCI image, beside the weights that it names.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Modelfile {
    /// The image; `path` is the Modelfile inside it (default `Modelfile`).
    pub image: ImageModel,
}

/// Ports of the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPorts {
    /// Port of instance 0; instance i has `start + i`. The old server's were 11434 and up.
    #[schemars(range(min = 1, max = 65535))]
    pub start: u32,
}

/// Where the models of a pool lie: exactly one of the fields. A shared store is filled once a node, by one writer, and
/// mounted read-only by the instances.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.ephemeral), has(self.persistentVolumeClaim), has(self.hostPath)].filter(x, x).size() == 1")
    .message("a model store is exactly one of ephemeral, persistentVolumeClaim or hostPath"))]
pub struct ModelStore {
    /// A volume of each instance that goes with its pod. Every instance pulls for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<EphemeralStore>,
    /// A PersistentVolumeClaim of the namespace, shared by the instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimStore>,
    /// A folder of each node, shared by the instances on it. Needs a namespace that allows host paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPathStore>,
}

/// A store that goes with the pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EphemeralStore {}

/// A store on a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimStore {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// A store in a folder of the node.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPathStore {
    /// Absolute path on the node; made if it is not there.
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("a host path is absolute: it begins with /"))]
    #[schemars(length(max = 4096))]
    pub path: String,
}

/// Typed settings of Ollama; each is the `OLLAMA_*` variable of the same name. The defaults are for GPUs that are shared:
/// memory that can be foretold before throughput that can't.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.kvCacheType) || self.kvCacheType == 'f16' || !has(self.flashAttention) || self.flashAttention")
    .message("settings.kvCacheType q8_0 and q4_0 need flash attention: leave settings.flashAttention out, or set it to true"))]
pub struct OllamaSettings {
    /// `OLLAMA_CONTEXT_LENGTH`, in tokens. Default 4096, whatever the card has: Ollama's own default grows with the memory
    /// that it finds, and a neighbor's share would count as free. The DataFactories of the pool cut longer documents to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 256, max = 1_048_576))]
    pub context_length: Option<u32>,
    /// `OLLAMA_NUM_PARALLEL`: requests that one model answers at once. Default 1: each costs a context of its own in GPU
    /// memory, and a document's chunks go one after another to use the prompt cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub num_parallel: Option<u32>,
    /// `OLLAMA_KEEP_ALIVE`: how long an idle model stays in GPU memory, for example `30m`. Default `-1`: always, because the
    /// GPU is held anyway and loading takes seconds to minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(-?[0-9]+|([0-9]+(\.[0-9]+)?(ms|s|m|h))+)$"), length(max = 32))]
    pub keep_alive: Option<String>,
    /// `OLLAMA_FLASH_ATTENTION`. Default: Ollama's own, which is on where card and model allow it; `true` where
    /// `kvCacheType` needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flash_attention: Option<bool>,
    /// `OLLAMA_KV_CACHE_TYPE`: `q8_0` halves the memory of the context, `q4_0` quarters it and may cost quality. Default:
    /// Ollama's own (`f16`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_cache_type: Option<KvCacheType>,
    /// `OLLAMA_MAX_QUEUE`: requests that wait before others are answered 503. Default: Ollama's own (512).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65536))]
    pub max_queue: Option<u32>,
    /// `OLLAMA_LOAD_TIMEOUT`: how long loading a model may stand still, for example `10m` for a slow disk. Default: Ollama's
    /// own (`5m`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"), length(max = 32))]
    pub load_timeout: Option<String>,
}

/// Number format of the attention cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::told_by_its_field)]
pub enum KvCacheType {
    /// 16 bit.
    F16,
    /// 8 bit.
    #[serde(rename = "q8_0")]
    Q8,
    /// 4 bit.
    #[serde(rename = "q4_0")]
    Q4,
}

/// What a pool reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OllamaPoolStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Accelerated.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Instances that exist.
    #[serde(default)]
    pub instances: u32,
    /// Label selector of the instances, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// Ready instances of wanted instances, for example `5/6`.
    #[serde(default)]
    pub ready_instances: String,
    /// The GPUs in one line, for `kubectl get`.
    #[serde(default)]
    pub gpus: String,
    /// Names of the models in one line, for `kubectl get`.
    #[serde(default)]
    pub model_names: String,
    /// Which pod holds which GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assignments: Vec<Assignment>,
    /// Where the pool and its instances answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// The models of every instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<OllamaModelStatus>,
    /// How many pods were ever made, per ordinal: the revision in a pod's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<u32>,
}

/// One model on one instance.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OllamaModelStatus {
    /// Name of the model.
    pub name: String,
    /// Ordinal of the instance.
    pub instance: u32,
    /// How far it is.
    pub state: OllamaModelState,
    /// Digest, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Size in bytes, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes that are there so far, while it is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled: Option<u64>,
    /// The same in percent of `size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Bytes in GPU memory, once loaded; 0 when it runs on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_vram: Option<u64>,
    /// What is being done or went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far a model is on an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum OllamaModelState {
    /// Not there yet.
    #[default]
    Pending,
    /// Being pulled or created.
    Pulling,
    /// There; being loaded to verify that it answers.
    Loading,
    /// It answered.
    Ready,
    /// It failed; tried again with back-off.
    Failed,
}
