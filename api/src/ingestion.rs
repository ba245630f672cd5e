//! `Ingestion`: keeps a corpus of a DataFactory as its source is, once or on a schedule.
//!
//! The name is the field's for bringing documents into what is searched. It is not a Job: like a CronJob or a Flux source it
//! stays, and what it declares — this corpus follows that source — holds again after every run.

use crate::status::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An Ingestion.
#[derive(CustomResource, Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[kube(
    group = "principium.ai",
    version = "v1alpha1",
    kind = "Ingestion",
    plural = "ingestions",
    shortname = "ing",
    category = "principium",
    namespaced,
    status = "IngestionStatus",
    derive = "PartialEq",
    doc = "Keeps a corpus of a DataFactory as its source is: reads what has changed, removes what is gone, and brings the chunks to a sink. Once, or on a schedule.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "documents"
    ),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.runs[0].documentsFailed"),
    printcolumn(name = "Chunks", type_ = "integer", json_path = ".status.runs[0].chunks"),
    printcolumn(name = "Last run", type_ = "date", json_path = ".status.runs[0].startTime"),
    printcolumn(name = "Next run", type_ = "string", json_path = ".status.nextRunTime", priority = 1),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IngestionSpec {
    /// The DataFactory that does it, in the same namespace.
    pub data_factory_ref: DataFactoryRef,

    /// Name of the corpus. Default: the name of the Ingestion.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"))]
    pub corpus: Option<String>,

    /// Where the documents are.
    pub source: IngestionSource,

    /// Where the chunks go. Absent: they stay in the DataFactory, and can be searched and read there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<IngestionSink>,

    /// How documents are processed, where it differs from the DataFactory's own settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processing: Option<Processing>,

    /// `false`: documents that the source no longer has stay in the corpus. Default `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<bool>,

    /// When to look for changes, as a cron expression in UTC, for example `0 3 * * *`. Absent: once, and again when the spec
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 9, max = 100))]
    pub schedule: Option<String>,

    /// `true`: nothing is begun; what runs goes on. Default `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// How many runs are kept in status. Default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: Option<u32>,
}

/// Names a DataFactory of the same namespace.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataFactoryRef {
    /// Name of the DataFactory.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where documents are: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.folder), has(self.s3), has(self.http)].filter(x, x).size() == 1")
    .message("a source is exactly one of folder, s3 and http"))]
pub struct IngestionSource {
    /// The files of a folder in one of the DataFactory's `volumes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<FolderSource>,
    /// The objects of a bucket. Credentials are the DataFactory's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Source>,
    /// Single addresses, on hosts that the DataFactory allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
}

/// The files of a folder.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FolderSource {
    /// `<name of the volume>/<folder>`.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
    /// Only files that fit one of these patterns, such as `**/*.md`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// No files that fit one of these patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,
}

/// The objects of a bucket.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Source {
    /// `s3://bucket/prefix`.
    #[x_kube(validation = Rule::new("self.startsWith('s3://')").message("an S3 address has the form s3://bucket/prefix"))]
    #[schemars(length(max = 2048))]
    pub url: String,
    /// Only objects whose key after the prefix fits one of these patterns. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<String>>,
    /// No objects whose key after the prefix fits one of these patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<String>>,
}

/// Single addresses.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Addresses that begin with `http://` or `https://`.
    #[schemars(length(min = 1, max = 1024))]
    pub urls: Vec<String>,
}

/// Where chunks go: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.jsonl), has(self.parquet), has(self.qdrant), has(self.postgres)].filter(x, x).size() == 1")
    .message("a sink is exactly one of jsonl, parquet, qdrant and postgres"))]
pub struct IngestionSink {
    /// A file of JSON lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<FileSink>,
    /// A Parquet file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parquet: Option<FileSink>,
    /// A collection of the DataFactory's Qdrant server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qdrant: Option<QdrantSink>,
    /// A table of the DataFactory's PostgreSQL database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresSink>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSink {
    /// `<name of the volume>/<file>`, or `s3://bucket/key`.
    #[schemars(length(min = 1, max = 4096))]
    pub path: String,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QdrantSink {
    /// Name of the collection; made where it is missing.
    #[schemars(length(min = 1, max = 63))]
    pub collection: String,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSink {
    /// Name of the table, with its schema or without; made where it is missing.
    #[schemars(length(min = 1, max = 127))]
    pub table: String,
}

/// How documents are processed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processing {
    /// Whether chunks are put in context. Default: if the DataFactory has a pool for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrich: Option<bool>,
    /// Most tokens of a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 32768))]
    pub chunk_max_tokens: Option<u32>,
    /// Tokens that neighboring chunks share.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16384))]
    pub chunk_overlap: Option<u32>,
}

/// What an Ingestion reports.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestionStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling, Stalled.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Documents of the last run that are done, of those that there are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// When the next run is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_time: Option<Time>,
    /// The last runs, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<IngestionRun>,
}

/// One run: a job of the DataFactory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestionRun {
    /// Id of the job.
    pub id: String,
    /// Generation of the spec that it was made from.
    pub generation: i64,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    pub state: String,
    /// When it was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_time: Option<Time>,
    /// When it was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Documents that the source has.
    #[serde(default)]
    pub documents: u64,
    /// Documents that were processed.
    #[serde(default)]
    pub documents_done: u64,
    /// Documents that were as before.
    #[serde(default)]
    pub documents_unchanged: u64,
    /// Documents that could not be processed.
    #[serde(default)]
    pub documents_failed: u64,
    /// Documents that were taken out of the corpus.
    #[serde(default)]
    pub documents_removed: u64,
    /// Chunks of the documents that were processed.
    #[serde(default)]
    pub chunks: u64,
    /// Tokens that were embedded.
    #[serde(default)]
    pub tokens: u64,
    /// Seconds that it ran.
    #[serde(default)]
    pub seconds: u64,
    /// The first documents that could not be processed, with their reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
