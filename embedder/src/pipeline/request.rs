//! What a client asks of `/v1/process`, and what is wrong with it: with all of it, or with one document.

use super::PipelineConfig;
use super::identity::document_id;
use crate::http::ApiError;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Room that a chunk always has, in tokens, whatever the context takes.
const SMALLEST_CHUNK: usize = 16;

/// Body of the request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRequest {
    documents: Vec<DocumentRequest>,
    #[serde(default)]
    options: Options,
}

/// One document as a client gives it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentRequest {
    id: Option<String>,
    title: Option<String>,
    text: String,
    /// Read as any text: an unknown format is this document's problem alone.
    format: Option<String>,
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// How a document is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    #[default]
    Text,
    /// CommonMark.
    Markdown,
}

/// What a request says otherwise than the configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    enrich: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_max_tokens: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_overlap: Option<usize>,
}

/// A request that can be done.
#[derive(Debug)]
pub struct Request {
    /// The documents, those that can't be processed among them; ids of the others are unique.
    pub documents: Vec<Result<Document, Rejected>>,
    /// How they are processed.
    pub settings: Settings,
}

/// How documents are processed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
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

/// A document that fails, while the others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its id.
    pub id: String,
    /// Its title, where the client gave one.
    pub title: Option<String>,
    /// Why.
    pub error: String,
}

impl Format {
    fn named(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "markdown" => Some(Self::Markdown),
            _ => None,
        }
    }
}

impl ProcessRequest {
    /// Holds the request against what the model can do.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what would be right.
    pub fn validate(self, config: &PipelineConfig) -> Result<Request, ApiError> {
        if self.documents.is_empty() {
            return Err(ApiError::empty("documents is []: give at least one, such as {\"text\": \"…\"}"));
        }
        let settings = self.options.validate(config)?;
        let mut seen = HashSet::new();
        let documents = self.documents.into_iter().enumerate();
        let documents = documents.map(|(place, document)| document.validate(place, &mut seen)).collect();
        Ok(Request { documents, settings })
    }
}

impl Options {
    /// Holds the options against what the model can do.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what would be right.
    pub fn validate(&self, config: &PipelineConfig) -> Result<Settings, ApiError> {
        let enrich = self.enrich.unwrap_or(config.ollama.is_some());
        let context = match (&config.ollama, enrich) {
            (None, true) => {
                let right = "set spec.enrichment.ollamaPoolRef of the DataFactory";
                return Err(ApiError::validation(format!(
                    "options.enrich is true, but there is no OllamaPool: {right}"
                )));
            }
            (Some(ollama), true) => ollama.context_max_tokens,
            (_, false) => 0,
        };
        let wanted = self.chunk_max_tokens.unwrap_or(config.chunk_max_tokens);
        if wanted < SMALLEST_CHUNK {
            return Err(ApiError::validation(format!(
                "options.chunk_max_tokens is {wanted}: at least {SMALLEST_CHUNK} tokens make a chunk"
            )));
        }
        let room = config.room().saturating_sub(context).max(SMALLEST_CHUNK);
        let chunk_tokens = wanted.min(room);
        let overlap = self.chunk_overlap.unwrap_or(config.chunk_overlap.min(chunk_tokens / 2));
        if overlap >= chunk_tokens {
            return Err(ApiError::validation(format!(
                "options.chunk_overlap is {overlap}: it must be smaller than a chunk, which has {chunk_tokens} tokens"
            )));
        }
        Ok(Settings { enrich, chunk_tokens, overlap })
    }
}

impl DocumentRequest {
    /// Holds one document against what can be processed; `seen` are the ids of those before it.
    ///
    /// # Errors
    /// The document with a sentence that names the field, its value and what would be right.
    pub fn validate(self, place: usize, seen: &mut HashSet<String>) -> Result<Document, Rejected> {
        let Self { id, title, text, format, metadata } = self;
        let id = id.unwrap_or_else(|| document_id(&text));
        let format = match format.as_deref() {
            None => Ok(Format::default()),
            Some(name) => Format::named(name).ok_or_else(|| {
                format!("documents[{place}].format is {name:?}: it can be \"text\" or \"markdown\"")
            }),
        };
        match format {
            Err(error) => Err(Rejected { id, title, error }),
            Ok(_) if !seen.insert(id.clone()) => {
                let error = format!(
                    "documents[{place}].id is {id:?} for the second time: ids are unique within a request"
                );
                Err(Rejected { id, title, error })
            }
            Ok(format) => Ok(Document { id, title, text, format, metadata }),
        }
    }
}

/// What cuts documents: a name, a version that changes when the same document is cut otherwise, and the settings.
pub fn chunker(settings: Settings) -> String {
    format!("text-splitter/1 tokens={} overlap={}", settings.chunk_tokens, settings.overlap)
}

/// A document from the bytes of a file: what it is called and its media type say how it is written.
///
/// # Errors
/// The document with a sentence that says what is wrong with it.
pub fn read_document(id: &str, bytes: Vec<u8>, media_type: Option<&str>) -> Result<Document, Rejected> {
    let id = id.to_owned();
    let markdown = media_type.is_some_and(|it| it.starts_with("text/markdown"))
        || [".md", ".markdown"].iter().any(|ending| id.to_ascii_lowercase().ends_with(ending));
    let format = if markdown { Format::Markdown } else { Format::Text };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document { id, title: None, text, format, metadata: None }),
        Err(error) => {
            let error = format!("it is no UTF-8 text: byte {} is none", error.utf8_error().valid_up_to());
            Err(Rejected { id, title: None, error })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::config;

    fn validate(body: &str, ollama: bool) -> Result<Request, ApiError> {
        serde_json::from_str::<ProcessRequest>(body).unwrap().validate(&config(ollama))
    }

    #[test]
    fn a_chunk_leaves_room_for_its_context() {
        for (ollama, body, tokens) in [
            (false, r#"{"documents":[{"text":"a"}]}"#, 200),
            (true, r#"{"documents":[{"text":"a"}]}"#, 154),
            (true, r#"{"documents":[{"text":"a"}],"options":{"enrich":false}}"#, 200),
            (true, r#"{"documents":[{"text":"a"}],"options":{"chunk_max_tokens":64}}"#, 64),
        ] {
            assert_eq!(validate(body, ollama).unwrap().settings.chunk_tokens, tokens, "{body}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (body, says) in [
            (r#"{"documents":[]}"#, "documents is []"),
            (r#"{"documents":[{"text":"a"}],"options":{"enrich":true}}"#, "ollamaPoolRef"),
            (
                r#"{"documents":[{"text":"a"}],"options":{"chunk_max_tokens":2}}"#,
                "options.chunk_max_tokens is 2",
            ),
            (
                r#"{"documents":[{"text":"a"}],"options":{"chunk_overlap":200}}"#,
                "options.chunk_overlap is 200",
            ),
        ] {
            let error = validate(body, false).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn a_document_that_is_wrong_fails_alone() {
        let body = r#"{"documents":[
            {"id":"x","text":"a"}, {"id":"y","text":"b","format":"docx"}, {"id":"x","text":"c"}, {"id":"y","text":"d"}]}"#;
        let documents = validate(body, false).unwrap().documents;
        let found: Vec<_> =
            documents.iter().map(|document| document.as_ref().map(|good| good.text.as_str())).collect();
        assert_eq!(
            (found[0].unwrap(), found[3].unwrap()),
            ("a", "d"),
            "an id is taken only by a document that is processed"
        );
        assert!(found[1].unwrap_err().error.contains(r#"documents[1].format is "docx""#));
        assert!(found[2].unwrap_err().error.contains(r#"documents[2].id is "x""#));
    }
}
