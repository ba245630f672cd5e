//! The lines that `/v1/process` streams: JSON objects told apart by `type`.

use super::about::About;
use super::document::Origin;
use super::enrich::InstanceFigures;
use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;

/// One line.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ProcessLine")]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    /// A finished chunk.
    Chunk(Box<ChunkLine>),
    /// How far the job is.
    Progress(ProgressLine),
    /// A document whose chunks have all been sent, or that failed.
    Document(Box<DocumentLine>),
    /// The last line.
    Summary(Box<SummaryLine>),
}

/// A finished chunk.
#[derive(Serialize, JsonSchema)]
pub struct ChunkLine {
    /// Place of its document in the job, for callers inside of this process.
    #[serde(skip)]
    pub place: usize,
    /// Id of its document.
    pub document_id: String,
    /// Id that is the same whenever the same text of the same document is processed in the same way, wherever it stands.
    pub chunk_id: String,
    /// Place among the chunks of its document, from 0.
    pub index: usize,
    /// First byte in the document's text: for text, Markdown and source code in UTF-8 that is the original.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
    /// Headings above it; in source code, the definitions around it.
    pub heading_path: Vec<String>,
    /// Its first and its last page, where the document has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<(usize, usize)>,
    /// The chunk itself: the document's text from `start` to `end`.
    pub text: String,
    /// Where it stands in its document, in an LLM's words; absent if nobody was asked or could say.
    pub context: Option<String>,
    /// Whether only the beginning of the context is in the vector, because the model has no room for all of it.
    #[serde(skip_serializing_if = "is_false")]
    pub context_truncated: bool,
    /// Why there is no context although one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_error: Option<String>,
    /// Whether it was made before and nothing was computed; no client asks for that.
    #[serde(skip)]
    pub made_before: bool,
    /// Tokens that were embedded.
    pub tokens: usize,
    /// Vector of context and chunk.
    pub vector: Vec<f32>,
    /// Embedding model.
    pub model: String,
    /// What the client gave with the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// How far the job is.
#[derive(Serialize, JsonSchema)]
pub struct ProgressLine {
    /// Chunks sent.
    pub chunks_done: usize,
    /// Chunks known so far; grows while documents are still being cut.
    pub chunks_total: usize,
    /// Documents sent whole.
    pub documents_done: usize,
    /// Documents of the request.
    pub documents_total: usize,
}

/// The end of a document.
#[derive(Serialize, JsonSchema)]
pub struct DocumentLine {
    /// Its place in the job, for callers inside of this process.
    #[serde(skip)]
    pub place: usize,
    /// Where it comes from, for the same.
    #[serde(skip)]
    pub origin: Origin,
    /// Its id.
    pub document_id: String,
    /// Its title, where the client gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How many chunks it has.
    pub chunks: usize,
    /// What it was read as; absent where it could not be.
    #[serde(flatten)]
    pub read: Option<ReadAs>,
    /// Seconds from the start of the job.
    pub seconds: f64,
    /// Why it failed. Other documents are not touched by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a document was read as.
#[derive(Serialize, JsonSchema)]
pub struct ReadAs {
    /// Its format.
    pub format: &'static str,
    /// How its bytes became characters, where they were characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Its programming language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_language: Option<&'static str>,
    /// How many pages it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<usize>,
    /// By what it was cut.
    pub chunker: &'static str,
    /// What can be seen of it, where the job tells.
    #[serde(flatten)]
    pub about: Option<About>,
}

/// What it all came to.
#[derive(Default, Serialize, JsonSchema)]
pub struct SummaryLine {
    /// Documents that were processed.
    pub documents: usize,
    /// Documents that failed.
    pub failed: usize,
    /// Chunks.
    pub chunks: usize,
    /// Chunks that should have been put in context and were not.
    pub without_context: usize,
    /// Tokens embedded.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// Chunks a second.
    pub chunks_per_second: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Contexts a minute, over all instances.
    pub contexts_per_minute: f64,
    /// Contexts that were given in another job, and not asked for again.
    pub contexts_from_cache: u64,
    /// Each Ollama instance that took part.
    pub instances: Vec<InstanceFigures>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl SummaryLine {
    /// Sets what follows from the counts and the time that it all took.
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    pub fn count_rates(&mut self, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-9);
        let contexts: u64 = self.instances.iter().map(|instance| instance.contexts).sum();
        self.seconds = seconds;
        self.chunks_per_second = self.chunks as f64 / seconds;
        self.tokens_per_second = self.tokens as f64 / seconds;
        self.contexts_per_minute = contexts as f64 * 60.0 / seconds;
    }
}

impl Line {
    /// The line as it is sent.
    pub fn to_bytes(&self) -> bytes::Bytes {
        // Numbers and strings always serialize; a map key that is no string can't occur in these types.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}
