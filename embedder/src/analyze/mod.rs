//! The doc analyzer: what kind of document a text is, in which language, how it is built, and how to cut it:
//! `POST /v1/analyze`. Heuristics answer at once; an LLM is asked for the kind where one is configured.

mod heuristics;
mod llm;

use crate::http::{ApiError, Dialect, answer, parse};
use crate::ollama::OllamaConfig;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// Largest request, in bytes.
const BODY_LIMIT: usize = 16 << 20;

/// Body of the request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnalyzeRequest {
    text: String,
    filename: Option<String>,
}

/// What a document is.
#[derive(Debug, Serialize)]
pub struct Analysis {
    /// What kind of document.
    pub document_type: String,
    /// In which language.
    pub language: Language,
    /// How it is built.
    pub structure: heuristics::Structure,
    /// How to cut it.
    pub suggested_chunking: heuristics::Chunking,
    /// Who found the kind: `heuristics` or `llm`.
    pub method: &'static str,
    /// Why the LLM did not, although one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_error: Option<String>,
}

/// A language.
#[derive(Debug, Serialize)]
pub struct Language {
    /// ISO 639-3 code; `und` where the text is too short or no language.
    pub code: &'static str,
    /// Its English name.
    pub name: &'static str,
    /// From 0 to 1.
    pub confidence: f64,
}

/// Serves `POST /v1/analyze`.
pub fn router(ollama: Option<OllamaConfig>) -> Router {
    Router::new()
        .route("/v1/analyze", post(analyze))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(ollama)
}

async fn analyze(
    State(ollama): State<Option<OllamaConfig>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    answer(respond(ollama, body).await, Dialect::Tei)
}

async fn respond(
    ollama: Option<OllamaConfig>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Analysis>, ApiError> {
    let request: AnalyzeRequest = parse(body)?;
    if request.text.trim().is_empty() {
        return Err(ApiError::empty(format!("text is {:?}: give the document's text", request.text)));
    }
    let structure = heuristics::structure(&request.text);
    let mut analysis = Analysis {
        document_type: heuristics::document_type(&request.text, request.filename.as_deref(), &structure)
            .to_owned(),
        language: language(&request.text),
        suggested_chunking: heuristics::chunking(&structure),
        structure,
        method: "heuristics",
        llm_error: None,
    };
    if let Some(ollama) = ollama {
        match llm::document_type(&ollama, &request.text).await {
            Ok(kind) => (analysis.document_type, analysis.method) = (kind.to_owned(), "llm"),
            Err(error) => analysis.llm_error = Some(error),
        }
    }
    Ok(Json(analysis))
}

fn language(text: &str) -> Language {
    match whatlang::detect(text) {
        Some(found) => Language {
            code: found.lang().code(),
            name: found.lang().eng_name(),
            confidence: found.confidence(),
        },
        None => Language { code: "und", name: "undetermined", confidence: 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_have_a_language_too() {
        for (text, code) in [
            ("Das Schiff sank nach wenigen Minuten im Hafen.", "deu"),
            ("The ship sank within minutes in the harbor.", "eng"),
            ("Le navire a coulé en quelques minutes dans le port.", "fra"),
            ("12345 67890", "und"),
        ] {
            assert_eq!(language(text).code, code, "{text}");
        }
    }
}
