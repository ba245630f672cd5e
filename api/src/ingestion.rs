//! `Ingestion`: keeps a corpus of a DataFactory as its source is, once or on a schedule.
//!
//! The name is the field's for bringing documents into what is searched. It is not a Job: like a CronJob it stays, and what
//! it declares — this corpus follows that source — holds again after every run.

use crate::data_factory::Chunking;
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
    shortname = "ingest",
    category = "principium",
    namespaced,
    status = "IngestionStatus",
    derive = "PartialEq",
    doc = "Keeps a corpus of a DataFactory as its source is: reads what has changed, takes out what is gone, and brings the chunks to a sink. Once, or on a schedule.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Documents",
        type_ = "string",
        json_path = ".status.progress",
        description = "Documents of the last run that are done / that there are"
    ),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.runs[0].documentsFailed"),
    printcolumn(
        name = "Chunks",
        type_ = "integer",
        json_path = ".status.corpus.chunks",
        description = "Chunks of the corpus"
    ),
    printcolumn(name = "Last Run", type_ = "date", json_path = ".status.runs[0].startTime"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule", priority = 1),
    printcolumn(name = "Next Run", type_ = "string", json_path = ".status.nextRunTime", priority = 1),
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

    /// Where the chunks go. Absent: they stay in the DataFactory, where they can be searched and read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<IngestionSink>,

    /// How documents are processed, where it differs from the DataFactory's own settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processing: Option<Processing>,

    /// `false`: documents that the source no longer has stay in the corpus. Default `true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<bool>,

    /// When to look for changes after the first run, as a cron expression of five fields in UTC, for example `0 3 * * *`. Of
    /// several times that were missed, the last is made up for. Absent: it runs once, and again when what is to be done
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(r"self.matches('^\\S+( +\\S+){4}$')").message(Message::Expression(
        r#"'schedule is "' + self + '": a cron expression has five fields: minute, hour, day of the month, month and day of the week, for example 0 3 * * *'"#.into())))]
    #[schemars(length(min = 9, max = 100))]
    pub schedule: Option<String>,

    /// `true`: no run is begun; one that is under way goes on. Default `false`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// How many runs that have ended are kept in status. Default 5.
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
    .message("a source is exactly one of folder, s3 or http"))]
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

/// The files of a folder, and of the folders inside it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FolderSource {
    /// `<name of the volume>`, or `<name of the volume>/<folder>`.
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?(/.*)?$') && !self.matches('(^|/)[.][.](/|$)')")
        .message(Message::Expression(
            r#"'source.folder.path is "' + self + '": it begins with the name of a volume of the DataFactory, as in documents/handbook, and has no .. in it'"#.into())))]
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// Only files that fit one of these patterns, for example `**/*.md`. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub include: Option<Vec<String>>,
    /// No files that fit one of these patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub exclude: Option<Vec<String>>,
}

/// The objects of a bucket.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Source {
    /// `s3://bucket/prefix`.
    #[x_kube(validation = Rule::new("self.matches('^s3://[^/@ ]+(/.*)?$')").message(Message::Expression(
        r#"'source.s3.url is "' + self + '": it has the form s3://bucket/prefix, and no credentials'"#.into())))]
    #[schemars(length(min = 6, max = 1024))]
    pub url: String,
    /// Only objects whose key after the prefix fits one of these patterns. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub include: Option<Vec<String>>,
    /// No objects whose key after the prefix fits one of these patterns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub exclude: Option<Vec<String>>,
}

/// Single addresses.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.urls.all(url, url.matches('^https?://[^/ ]'))").message(Message::Expression(
        r#"'source.http.urls has "' + self.urls.filter(url, !url.matches("^https?://[^/ ]"))[0] + '": an address begins with http:// or https://'"#.into())),
    // Without the address: who wrote it there knows it, and it is shown to nobody else.
    validation = Rule::new("self.urls.all(url, !url.matches('^[^/]*//[^/]*@'))")
        .message("source.http.urls has an address with credentials in it: they are for variables of the DataFactory")
)]
pub struct HttpSource {
    /// Addresses that begin with `http://` or `https://`.
    #[schemars(length(min = 1, max = 256), inner(length(min = 8, max = 1024)))]
    pub urls: Vec<String>,
}

/// Where chunks go: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.jsonl), has(self.parquet), has(self.qdrant), has(self.postgres)].filter(x, x).size() == 1")
    .message("a sink is exactly one of jsonl, parquet, qdrant or postgres"))]
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

/// A file. It is written whole, and takes the place of the one before it in one step.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileSink {
    /// `<name of the volume>/<file>`, or `s3://bucket/key`.
    #[x_kube(validation = Rule::new(
        r"self.matches('^(s3://[^/@ ]+|[a-z0-9]([-a-z0-9]*[a-z0-9])?)/.*[^/]$') && !self.matches('(^|/)[.][.](/|$)')")
        .message(Message::Expression(
            r#"'path is "' + self + '": a file of a sink is <name of a volume of the DataFactory>/<file>, or s3://bucket/key'"#.into())))]
    #[schemars(length(min = 3, max = 1024))]
    pub path: String,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QdrantSink {
    /// Name of the collection; made where it is missing.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9_-]+$"))]
    pub collection: String,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresSink {
    /// Name of the table, with its schema or without; made where it is missing.
    #[schemars(length(min = 1, max = 127), regex(pattern = "^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)?$"))]
    pub table: String,
}

/// How documents are processed.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processing {
    /// Whether chunks are put in context. Default: if the DataFactory has a pool for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrich: Option<bool>,
    /// How documents are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunking: Option<Chunking>,
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
    /// Documents of the last run that are done, of those that there are, for example `37/40`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// What is in the corpus since the last run that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<CorpusSize>,
    /// When the next run is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_run_time: Option<Time>,
    /// When the last run that succeeded ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// The last runs, the newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<IngestionRun>,
}

/// How large a corpus is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CorpusSize {
    /// Documents, those of other Ingestions and those that were uploaded among them.
    #[serde(default)]
    pub documents: u64,
    /// Their chunks.
    #[serde(default)]
    pub chunks: u64,
}

/// One run: a job of the DataFactory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngestionRun {
    /// Id of the job.
    pub id: String,
    /// How far it is.
    pub state: RunState,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Digest of what of the spec it does; empty while it is ended for another spec.
    pub spec_hash: String,
    /// The DataFactory that does it.
    pub data_factory: String,
    /// UID of the pod that does it.
    #[serde(default, rename = "podUID", skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    /// Where its corpus is kept. Gone with it, the corpus is made anew.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub store: String,
    /// How many runs before it failed in a row.
    #[serde(default)]
    pub retries: u32,
    /// When it was due, where the schedule asked for it.
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
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum RunState {
    /// It waits: for the DataFactory to take it, or for other jobs there.
    #[default]
    Queued,
    /// It is under way.
    Running,
    /// All was done. Single documents may have failed.
    Succeeded,
    /// It ended before all was done.
    Failed,
    /// Somebody ended it, or the spec changed.
    Cancelled,
    /// The DataFactory can't do what the spec says.
    Refused,
}

impl RunState {
    /// Whether nothing will change any more.
    pub fn ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}
