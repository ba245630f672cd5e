//! What a client asks of `/v1/process`, and what is wrong with it: with all of it, or with one document.

use super::PipelineConfig;
use super::chunk::{Chunker, Cut};
use super::document::{Rejected, Source};
use super::identity::document_id;
use crate::format::Format;
use crate::http::ApiError;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Room that a chunk always has, in tokens, whatever the context takes.
const SMALLEST_CHUNK: usize = 16;

/// Changes when the same file would be read or cut otherwise, so that what was kept of it is made anew.
const READING_VERSION: u32 = 1;

/// Body of the request.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessRequest {
    /// The documents.
    pub documents: Vec<DocumentRequest>,
    /// What is to be done otherwise than configured.
    #[serde(default)]
    pub options: Options,
}

/// One document as a client gives it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentRequest {
    /// Its id; made from its content where it has none.
    id: Option<String>,
    /// Its title, instead of its own.
    title: Option<String>,
    /// Its characters; a document has these or its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Its bytes, in Base64.
    #[serde(default, with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("contentEncoding" = "base64"))]
    data: Option<Bytes>,
    /// How it is written; absent where the content tells.
    // Read as any text: an unknown format is this document's problem alone.
    format: Option<String>,
    /// What the client wants back with every chunk.
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What a request says otherwise than the configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Whether chunks are put in context.
    #[serde(skip_serializing_if = "Option::is_none")]
    enrich: Option<bool>,
    /// By what documents are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunker: Option<Chunker>,
    /// Most tokens of a chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = SMALLEST_CHUNK))]
    chunk_max_tokens: Option<usize>,
    /// Tokens that neighboring chunks share.
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk_overlap: Option<usize>,
}

/// A request that can be done.
#[derive(Debug)]
pub struct Request {
    /// The documents, those that can't be processed among them; ids of the others are unique.
    pub documents: Vec<Result<Source, Rejected>>,
    /// How they are processed.
    pub settings: Settings,
}

/// How documents are processed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether chunks are put in context.
    pub enrich: bool,
    /// How they are cut: into chunks as large as was asked for, or smaller, so that context and chunk fit into the model
    /// together.
    pub cut: Cut,
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
        for (place, document) in self.documents.iter().enumerate() {
            document.check(place).map_err(ApiError::validation)?;
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
        let chunker = self.chunker.unwrap_or(config.chunker);
        Ok(Settings { enrich, cut: Cut { chunker, most: chunk_tokens, overlap } })
    }
}

impl Settings {
    /// What cuts a document: a name, a version, and how it is set. For those who keep chunks.
    pub fn chunker(&self, name: &str) -> String {
        format!("{name}/{READING_VERSION} tokens={} overlap={}", self.cut.most, self.cut.overlap)
    }
}

impl DocumentRequest {
    /// Holds one document against what can be processed; `seen` are the ids of those before it.
    ///
    /// # Errors
    /// The document with a sentence that names the field, its value and what would be right.
    pub fn validate(self, place: usize, seen: &mut HashSet<String>) -> Result<Source, Rejected> {
        let checked = self.check(place);
        let Self { id, title, text, data, format, metadata } = self;
        let bytes = text.map(Bytes::from).or(data).unwrap_or_default();
        let id = id.unwrap_or_else(|| document_id(&bytes));
        let format = checked.and_then(|()| {
            let named = format.as_deref().map(|name| {
                Format::named(name).map_err(|right| format!("documents[{place}].format is {name:?}: {right}"))
            });
            named.transpose()
        });
        match format {
            Err(error) => Err(Rejected { id, title, error }),
            Ok(_) if !seen.insert(id.clone()) => {
                let error = format!(
                    "documents[{place}].id is {id:?} for the second time: ids are unique within a request"
                );
                Err(Rejected { id, title, error })
            }
            Ok(format) => Ok(Source { id, title, bytes, format, metadata }),
        }
    }

    /// A file; its name is its id.
    pub fn file(name: Option<String>, bytes: Bytes) -> Self {
        Self { id: name, title: None, text: None, data: Some(bytes), format: None, metadata: None }
    }

    /// A document has characters or bytes.
    fn check(&self, place: usize) -> Result<(), String> {
        match (&self.text, &self.data) {
            (None, None) => Err(format!(
                "documents[{place}] has no text: give it as `text`, or a file as `data` in Base64"
            )),
            (Some(_), Some(_)) => {
                Err(format!("documents[{place}] has both `text` and `data`: give one of them"))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes as a string of JSON.
pub mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let decoded = STANDARD.decode(text.trim_end());
        let wrong = |error| serde::de::Error::custom(format!("it is no Base64: {error}"));
        decoded.map(|bytes| Some(bytes.into())).map_err(wrong)
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
            assert_eq!(validate(body, ollama).unwrap().settings.cut.most, tokens, "{body}");
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
            {"id":"x","text":"a"}, {"id":"y","text":"b","format":"xlsx"}, {"id":"x","text":"c"}, {"id":"y","text":"d"}]}"#;
        let documents = validate(body, false).unwrap().documents;
        let found: Vec<_> =
            documents.iter().map(|document| document.as_ref().map(|good| good.bytes.as_ref())).collect();
        assert_eq!(
            (found[0].unwrap(), found[3].unwrap()),
            (&b"a"[..], &b"d"[..]),
            "an id is taken only by a document that is processed"
        );
        assert!(
            found[1]
                .unwrap_err()
                .error
                .contains(r#"documents[1].format is "xlsx": it can be text, markdown"#)
        );
        assert!(found[2].unwrap_err().error.contains(r#"documents[2].id is "x""#));
    }
}
