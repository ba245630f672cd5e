//! What is kept and shown of a job: its state, how far it is, what failed.

use super::request::JobSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Failed documents that are kept of a job; the rest is counted.
pub const FAILURES_KEPT: usize = 100;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for those before it.
    Queued,
    /// Under way.
    Running,
    /// Done. Documents that could not be processed are in `failures`.
    Succeeded,
    /// Ended before all was done; `error` says why.
    Failed,
    /// Ended because somebody said so.
    Cancelled,
}

impl State {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Its name in the API and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing will change any more.
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A job as it is kept and as clients see it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct JobRecord {
    /// Its id.
    pub id: String,
    /// The corpus that it changes.
    pub corpus: String,
    /// Where it is.
    pub state: State,
    /// Why it failed, or what it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was begun for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// How often it was gone on with after the process had ended.
    pub resumed: u32,
    /// How far it is.
    pub progress: Progress,
    /// The first documents that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// What was asked for, without the documents.
    pub spec: JobSpec,
}

/// How far a job is. What is counted here is kept: a process that is killed takes no count with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Progress {
    /// Documents that are known so far. A file that holds several counts as one until it has been read.
    pub documents_total: u64,
    /// Processed and in the corpus.
    pub documents_done: u64,
    /// Could not be processed. An earlier version, where there is one, stays in the corpus.
    pub documents_failed: u64,
    /// Left alone, because neither they nor the way they are processed have changed.
    pub documents_unchanged: u64,
    /// Taken out of the corpus.
    pub documents_removed: u64,
    /// Chunks of the documents that were processed.
    pub chunks: u64,
    /// Chunks that were embedded; the others were known.
    pub chunks_embedded: u64,
    /// Chunks that should have been put in context and were not.
    pub chunks_without_context: u64,
    /// Tokens that were embedded.
    pub tokens: u64,
    /// Chunks that the sink has taken, and those that it has removed.
    pub sink_upserts: u64,
    /// See `sink_upserts`.
    pub sink_deletes: u64,
    /// Milliseconds of running, over all starts of the process.
    #[serde(default)]
    pub running_ms: u64,
}

/// A document that could not be processed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Failure {
    /// Its id.
    pub document_id: String,
    /// Why.
    pub error: String,
}

impl JobRecord {
    /// A job that was just taken.
    pub fn new(id: String, spec: JobSpec, now_ms: u64) -> Self {
        Self {
            id,
            corpus: spec.corpus.clone(),
            state: State::Queued,
            error: None,
            created_ms: now_ms,
            started_ms: None,
            finished_ms: None,
            resumed: 0,
            progress: Progress::default(),
            failures: Vec::new(),
            spec,
        }
    }

    /// Counts a document that failed, and keeps it while there is room.
    pub fn failed(&mut self, document_id: String, error: String) {
        self.progress.documents_failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(Failure { document_id, error });
        }
    }
}
