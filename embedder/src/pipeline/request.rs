//! What a client asks of `/v1/process`, and what is wrong with it.

use super::PipelineConfig;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Room that a chunk always has, in tokens, whatever the context takes.
const SMALLEST_CHUNK: usize = 16;
/// Tokens that a BERT tokenizer puts around a text.
const SPECIAL_TOKENS: usize = 2;

/// Body of the request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRequest {
    documents: Vec<DocumentRequest>,
    #[serde(default)]
    options: Options,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentRequest {
    id: Option<String>,
    title: Option<String>,
    text: String,
    #[serde(default)]
    format: Format,
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// How a document is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text.
    #[default]
    Text,
    /// CommonMark.
    Markdown,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    enrich: Option<bool>,
    chunk_max_tokens: Option<usize>,
    chunk_overlap: Option<usize>,
}

/// A request that can be done.
#[derive(Debug)]
pub struct Job {
    /// The documents; ids are unique.
    pub documents: Vec<Document>,
    /// Whether chunks are put in context.
    pub enrich: bool,
    /// Most tokens of a chunk: what was asked for, or less, so that context and chunk fit into the model together.
    pub chunk_tokens: usize,
    /// Tokens that neighboring chunks share.
    pub overlap: usize,
}

/// One document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Id: the client's, or made from the content.
    pub id: String,
    /// Title, where the client gave one.
    pub title: Option<String>,
    /// All of it.
    pub text: String,
    /// How it is written.
    pub format: Format,
    /// What the client wants back with every chunk.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl ProcessRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// A sentence that names the field and the place.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(body).map_err(|error| {
            format!("the body is not what /v1/process takes: {error}; right is {{\"documents\": [{{\"id\": \"a\", \"text\": \"…\"}}]}}")
        })
    }

    /// Holds the request against what the model can do.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what would be right.
    pub fn validate(self, config: &PipelineConfig) -> Result<Job, String> {
        if self.documents.is_empty() {
            return Err("documents is empty: give at least one".into());
        }
        let enrich = self.options.enrich.unwrap_or(config.ollama.is_some());
        let context = match (&config.ollama, enrich) {
            (None, true) => {
                return Err("options.enrich is true, but this DataFactory has no OllamaPool: set spec.enrichment.ollamaPoolRef".into());
            }
            (Some(ollama), true) => ollama.context_max_tokens,
            (_, false) => 0,
        };
        let wanted = self.options.chunk_max_tokens.unwrap_or(config.chunk_max_tokens);
        if wanted < SMALLEST_CHUNK {
            return Err(format!("options.chunk_max_tokens is {wanted}: at least {SMALLEST_CHUNK} tokens make a chunk"));
        }
        let room = config.max_tokens.saturating_sub(SPECIAL_TOKENS + context).max(SMALLEST_CHUNK);
        let chunk_tokens = wanted.min(room);
        let overlap = self.options.chunk_overlap.unwrap_or(config.chunk_overlap.min(chunk_tokens / 2));
        if overlap >= chunk_tokens {
            return Err(format!("options.chunk_overlap is {overlap}: it must be smaller than a chunk, which has {chunk_tokens} tokens"));
        }
        let mut seen = HashSet::new();
        let mut documents = Vec::with_capacity(self.documents.len());
        for (place, document) in self.documents.into_iter().enumerate() {
            let id = document.id.unwrap_or_else(|| format!("sha256-{}", &digest(&[document.text.as_bytes()])[..16]));
            if !seen.insert(id.clone()) {
                return Err(format!("documents[{place}].id is {id:?} for the second time: ids are unique within a request"));
            }
            let DocumentRequest { title, text, format, metadata, .. } = document;
            documents.push(Document { id, title, text, format, metadata });
        }
        Ok(Job { documents, enrich, chunk_tokens, overlap })
    }
}

/// SHA-256 of some parts, in hexadecimal.
pub fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::OllamaConfig;
    use crate::pipeline::chunk::tests::words;
    use std::sync::Arc;

    fn config(ollama: bool) -> PipelineConfig {
        PipelineConfig {
            tokenizer: Arc::new(words()),
            max_tokens: 256,
            model_name: "m".into(),
            chunk_max_tokens: 200,
            chunk_overlap: 0,
            ollama: ollama.then(|| OllamaConfig { url: "http://x".into(), model: "m".into(), context_max_tokens: 100 }),
        }
    }

    #[test]
    fn a_chunk_leaves_room_for_its_context() {
        for (ollama, body, tokens) in [
            (false, r#"{"documents":[{"text":"a"}]}"#, 200),
            (true, r#"{"documents":[{"text":"a"}]}"#, 154),
            (true, r#"{"documents":[{"text":"a"}],"options":{"enrich":false}}"#, 200),
            (true, r#"{"documents":[{"text":"a"}],"options":{"chunk_max_tokens":64}}"#, 64),
        ] {
            let job = ProcessRequest::parse(body.as_bytes()).unwrap().validate(&config(ollama)).unwrap();
            assert_eq!(job.chunk_tokens, tokens, "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (body, says) in [
            ("", "documents"),
            (r#"{"documents":[]}"#, "documents is empty"),
            (r#"{"documents":[{"txt":"a"}]}"#, "unknown field `txt`"),
            (r#"{"documents":[{"text":"a","format":"docx"}]}"#, "`text` or `markdown`"),
            (r#"{"documents":[{"id":"x","text":"a"},{"id":"x","text":"b"}]}"#, "documents[1].id"),
            (r#"{"documents":[{"text":"a"}],"options":{"enrich":true}}"#, "ollamaPoolRef"),
            (r#"{"documents":[{"text":"a"}],"options":{"chunk_max_tokens":2}}"#, "options.chunk_max_tokens is 2"),
            (r#"{"documents":[{"text":"a"}],"options":{"chunk_overlap":200}}"#, "options.chunk_overlap is 200"),
        ] {
            let error = ProcessRequest::parse(body.as_bytes()).and_then(|r| r.validate(&config(false))).unwrap_err();
            assert!(error.contains(says), "{body}: {error}");
        }
    }
}
