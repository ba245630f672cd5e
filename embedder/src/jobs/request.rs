//! What a client asks of `POST /v1/jobs`, and what is wrong with it.

use crate::http::ApiError;
use crate::pipeline::{DocumentRequest, Options, PipelineConfig};
use crate::sinks::SinkSpec;
use crate::sources::SourceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest name of a job or a corpus, in bytes.
const LONGEST_NAME: usize = 200;
/// Longest name of a source, in characters: a Kubernetes object's namespace (63) and name (253) fit in.
const LONGEST_SOURCE_ID: usize = 320;
/// The corpus of those who name none.
const DEFAULT_CORPUS: &str = "default";

/// Body of the request.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// An id of the client's, so that asking twice makes one job.
    pub id: Option<String>,
    /// The corpus that is changed.
    corpus: Option<String>,
    /// Documents to add or replace.
    #[serde(default)]
    pub documents: Vec<DocumentRequest>,
    /// Where further documents come from.
    source: Option<SourceSpec>,
    /// A name of the client's for the source: of the documents that came under it, those that the source no longer has are
    /// taken out, and no others. Without one, the folder or URL is the source's name, and all HTTP addresses of a corpus
    /// are one source.
    source_id: Option<String>,
    /// Documents to take out of the corpus, by id.
    #[serde(default)]
    delete: Vec<String>,
    /// How documents are processed otherwise than configured.
    #[serde(default)]
    options: Options,
    /// Where chunks go beside the store; as before where there is none.
    sink: Option<SinkSpec>,
    /// Whether documents that the source no longer has are taken out of the corpus; they are where this is not given.
    prune: Option<bool>,
}

/// A job without the documents that came with it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct JobSpec {
    /// The corpus that is changed.
    pub corpus: String,
    /// Documents that came with the request.
    pub uploaded: u64,
    /// SHA-256 of these, so that the same id with other documents is told.
    pub digest: String,
    /// Where further documents come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSpec>,
    /// The client's name for the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// Documents to take out of the corpus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delete: Vec<String>,
    /// How documents are processed.
    #[serde(default)]
    pub options: Options,
    /// Where chunks go beside the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkSpec>,
    /// Whether documents that the source no longer has are taken out of the corpus.
    pub prune: bool,
}

impl JobRequest {
    /// Holds the request against what this process can do.
    ///
    /// # Errors
    /// A sentence that names the field, its value and what would be right.
    pub fn validate(self, config: &PipelineConfig) -> Result<(JobSpec, Vec<DocumentRequest>), ApiError> {
        let Self { id, corpus, documents, source, source_id, delete, options, sink, prune } = self;
        if documents.is_empty() && source.is_none() && delete.is_empty() {
            return Err(ApiError::empty(
                "there is nothing to do: give documents, a source, or ids to delete",
            ));
        }
        let corpus = corpus.unwrap_or_else(|| DEFAULT_CORPUS.to_owned());
        check_name("corpus", &corpus)?;
        if let Some(id) = &id {
            check_name("id", id)?;
        }
        options.validate(config)?;
        if let Some(source) = &source {
            source.check().map_err(ApiError::validation)?;
        }
        if let Some(source_id) = &source_id {
            check_source_id(source_id, source.is_some())?;
        }
        if let Some(sink) = &sink {
            sink.check().map_err(ApiError::validation)?;
        }
        let uploaded = documents.len() as u64;
        let digest = digest(&documents);
        let prune = prune.unwrap_or(true);
        let spec = JobSpec { corpus, uploaded, digest, source, source_id, delete, options, sink, prune };
        Ok((spec, documents))
    }
}

/// Names go into URLs, metrics and files.
fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(good) || name.starts_with('.') {
        return Err(ApiError::validation(format!(
            "{field} is {name:?}: it can have up to {LONGEST_NAME} letters, digits, '-', '_' and '.', and does not \
             begin with '.'"
        )));
    }
    Ok(())
}

/// It goes nowhere but into the store and into answers.
fn check_source_id(name: &str, has_source: bool) -> Result<(), ApiError> {
    if !has_source {
        return Err(ApiError::validation(format!(
            "source_id is {name:?}, and there is no source: give a source, or no source_id"
        )));
    }
    let characters = name.chars().count();
    if !(1..=LONGEST_SOURCE_ID).contains(&characters) || name.chars().any(char::is_control) {
        return Err(ApiError::validation(format!(
            "source_id is {name:?}: it can have 1 to {LONGEST_SOURCE_ID} characters, and no control characters"
        )));
    }
    Ok(())
}

fn digest(documents: &[DocumentRequest]) -> String {
    let mut hasher = Sha256::new();
    for document in documents {
        // Documents always serialize: their maps have strings for keys.
        let text = serde_json::to_vec(document).unwrap_or_default();
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::config;

    fn validate(body: &str) -> Result<(JobSpec, Vec<DocumentRequest>), ApiError> {
        serde_json::from_str::<JobRequest>(body).unwrap().validate(&config(false))
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        for (body, says) in [
            ("{}", "nothing to do"),
            (r#"{"corpus":"a b","delete":["x"]}"#, r#"corpus is "a b""#),
            (r#"{"corpus":"..","delete":["x"]}"#, r#"corpus is "..""#),
            (r#"{"id":"","delete":["x"]}"#, r#"id is """#),
            (r#"{"delete":["x"],"options":{"enrich":true}}"#, "options.enrich is true"),
            (r#"{"source":{"type":"http","urls":[]}}"#, "source.urls is []"),
            (r#"{"delete":["x"],"source_id":"a"}"#, r#"source_id is "a", and there is no source"#),
            (
                r#"{"source":{"type":"folder","path":"a"},"source_id":""}"#,
                r#"source_id is "": it can have 1 to"#,
            ),
            (
                r#"{"source":{"type":"folder","path":"a"},"source_id":"a\nb"}"#,
                r#"source_id is "a\nb": it can"#,
            ),
            (r#"{"source":{"type":"s3","url":"http://x"}}"#, r#"source.url is "http://x""#),
            (r#"{"source":{"type":"folder","path":"a","include":["["]}}"#, r#"source.include has "[""#),
            (
                r#"{"delete":["x"],"sink":{"type":"postgres","table":"a; drop"}}"#,
                r#"sink.table is "a; drop""#,
            ),
            (
                r#"{"delete":["x"],"sink":{"type":"qdrant","collection":"a/b"}}"#,
                r#"sink.collection is "a/b""#,
            ),
        ] {
            let error = validate(body).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn the_name_of_a_source_is_as_long_as_that_of_an_object_of_kubernetes() {
        let named = |characters: usize| {
            let name = "ß".repeat(characters);
            validate(&format!(r#"{{"source":{{"type":"folder","path":"a"}},"source_id":"{name}"}}"#))
        };
        assert_eq!(named(63 + 1 + 253).unwrap().0.source_id.map(|name| name.chars().count()), Some(317));
        assert!(named(LONGEST_SOURCE_ID + 1).is_err());
    }

    #[test]
    fn the_same_documents_have_the_same_digest() {
        let digest = |body: &str| validate(body).unwrap().0.digest;
        let one = digest(r#"{"documents":[{"text":"a"},{"text":"b"}]}"#);
        assert_eq!(one, digest(r#"{"documents":[{"text":"a"},{"text":"b"}],"corpus":"x"}"#));
        assert_ne!(one, digest(r#"{"documents":[{"text":"ab"}]}"#));
    }
}
