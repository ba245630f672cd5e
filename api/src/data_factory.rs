//! `DataFactory`: documents in; chunks in context and their vectors out.

use crate::gpu::{DEVICES_ONCE, DEVICES_ONCE_MESSAGE, GpuRequest};
use crate::model::{Dtype, ModelSource, RunningModel};
use crate::pod::{PodSettings, SecretKeyRef};
use crate::status::{Assignment, Condition, Endpoint};
use crate::storage::{DataVolume, Search, Storage};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A DataFactory: one pod that scales by GPUs.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "principium.ai",
    version = "v1alpha1",
    kind = "DataFactory",
    plural = "datafactories",
    shortname = "df",
    category = "principium",
    namespaced,
    status = "DataFactoryStatus",
    derive = "PartialEq",
    doc = "Takes documents, chunks them, has an OllamaPool put every chunk in context, and embeds. One pod that scales by GPUs.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
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
    validation = Rule::new(DEVICES_ONCE).message(DEVICES_ONCE_MESSAGE),
    validation = Rule::new("!has(self.volumes) || self.volumes.all(v, self.volumes.exists_one(w, w.name == v.name))")
        .message("volumes has two volumes of one name")
)]
pub struct DataFactorySpec {
    /// The embedding model.
    pub model: ModelSource,

    /// Number format of the computation: `f32`, `bf16`, `int8` (without a GPU only), `f16` (on a GPU only) or `auto`, the default: `f32`
    /// on the CPU and 16 bits on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,

    /// Name of a prompt of the model's files that is put before texts of requests that name none. Default: the one that the files
    /// call the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub default_prompt_name: Option<String>,

    /// GPUs of the pod, one worker each. Default: one whole GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuRequest>,

    /// Have every chunk put in context by a pool of LLMs. Absent: chunks are embedded as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrichment: Option<Enrichment>,

    /// How documents are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunking: Option<Chunking>,

    /// Run a doc analyzer (a pod without a GPU) beside it. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_analyzer: Option<DocAnalyzer>,

    /// Where jobs and corpora are kept. Default: a folder that goes with the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// Volumes that jobs read documents from and write files to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub volumes: Option<Vec<DataVolume>>,

    /// How corpora are searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,

    /// Port of the Service. Default 9000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,

    /// `true`: not Ready unless it computes on its GPUs. Default: as the operator was installed (`true`, and `false`
    /// with simulated hardware).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_acceleration: Option<bool>,

    /// Clients of it and of its doc analyzer must show the key in this Secret as `Authorization: Bearer …`. Absent: whoever reaches
    /// the Services may use them. A key that changes counts from the next start of a pod on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,

    /// Settings of the pods.
    #[serde(flatten)]
    pub pod: PodSettings,
}

/// Contextual enrichment.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Enrichment {
    /// The pool that does it.
    pub ollama_pool_ref: OllamaPoolRef,
    /// Model of the pool. Default: its first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Most tokens of a context. Default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 1024))]
    pub max_tokens: Option<u32>,
    /// What the model is told to do, after it has read the document and the chunk. Default: to say in one sentence what the
    /// passage is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub prompt: Option<String>,
}

/// Names an OllamaPool of the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OllamaPoolRef {
    /// Name of the pool.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How documents are cut.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.overlap) || self.overlap < (has(self.maxTokens) ? self.maxTokens : 200)")
    .message("chunking.overlap must be smaller than chunking.maxTokens (default 200)"))]
pub struct Chunking {
    /// By what documents are cut. Default `auto`: by headings, lists and tables where a document has them, by definitions
    /// where it is source code, else by paragraphs and sentences. `recursive`: at paragraphs, else lines, sentences, words.
    /// `markdown`: at headings, blocks and items. `code`: at definitions and statements. `semantic`: where neighboring
    /// sentences speak of different things, as the embedding model sees it. `fixed`: every so many tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<ChunkingStrategy>,
    /// Most tokens of a chunk, counted with the embedding model's tokenizer. Default 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 32768))]
    pub max_tokens: Option<u32>,
    /// Tokens that neighbouring chunks share. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16384))]
    pub overlap: Option<u32>,
}

/// By what documents are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(transform = crate::told_by_its_field)]
pub enum ChunkingStrategy {
    /// By what each document is.
    Auto,
    /// At paragraphs, else lines, sentences, words.
    Recursive,
    /// At headings, blocks and items.
    Markdown,
    /// At definitions and statements of source code.
    Code,
    /// Where neighboring sentences speak of different things, as the embedding model sees it.
    Semantic,
    /// Every so many tokens.
    Fixed,
}

impl ChunkingStrategy {
    /// Its name, as the embedder takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Recursive => "recursive",
            Self::Markdown => "markdown",
            Self::Code => "code",
            Self::Semantic => "semantic",
            Self::Fixed => "fixed",
        }
    }
}

/// The doc analyzer: document type, language, structure, suggested chunking.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocAnalyzer {
    /// Port of its Service. Default 9100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,
    /// Ask this pool's LLM; heuristics where it fails. Absent: heuristics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ollama_pool_ref: Option<OllamaPoolRef>,
}

/// What a DataFactory reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataFactoryStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled, Accelerated.
    #[serde(default)]
    pub conditions: Vec<Condition>,
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
