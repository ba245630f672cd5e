//! The doc analyzer: what kind of document it is, in which language, how it is built, how to cut it, what personal data it may
//! hold, and which documents say nearly the same: `POST /v1/analyze`. Heuristics answer at once; an LLM is asked for the kind
//! where one is configured. The document pipeline asks the heuristics, too.

pub mod duplicates;
mod heuristics;
mod language;
mod llm;
mod openai;
mod personal;
mod request;

pub use llm::Llm;
pub use openai::OpenAiConfig;
pub(crate) use request::OneOrMany;

use crate::format::{CodeLanguage, Extracted, Format, Markup, Reader};
use crate::http::{ApiError, Dialect, answer};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use duplicates::{Seen, Signature};
use language::Language;
use personal::PersonalData;
use request::AnalyzeRequest;
use schemars::JsonSchema;
use serde::Serialize;
use std::sync::Arc;

/// Largest request, in bytes.
const BODY_LIMIT: usize = 64 << 20;

/// What a document is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Analysis {
    /// How it is written.
    pub format: Format,
    /// What kind of document.
    pub document_type: &'static str,
    /// In which language.
    pub language: Language,
    /// In which programming language, where it is source code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_language: Option<CodeLanguage>,
    /// How many pages it has, where it has pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<usize>,
    /// How it is built.
    pub structure: heuristics::Structure,
    /// How to cut it.
    pub suggested_chunking: heuristics::Chunking,
    /// What looks like personal data.
    pub personal_data: Vec<PersonalData>,
    /// The document before it that says nearly the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub near_duplicate_of: Option<NearDuplicate>,
    /// Who found the kind: `heuristics` or `llm`.
    pub method: &'static str,
    /// Why the LLM did not, although one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_error: Option<String>,
}

/// A document that says nearly the same.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct NearDuplicate {
    /// Its id.
    pub id: String,
    /// The share of what both say, from 0 to 1.
    pub similarity: f64,
}

/// What can be seen of a document without understanding it. Pure.
pub fn analyze(document: &Extracted, filename: Option<&str>) -> Analysis {
    let text = document.text.as_str();
    let structure = heuristics::structure(text);
    let code_language = match document.markup {
        Markup::Code(language) => Some(language),
        _ => None,
    };
    let document_type = match document.format {
        Format::Code => "code",
        Format::Csv => "table",
        _ => heuristics::document_type(text, filename, &structure),
    };
    Analysis {
        format: document.format,
        document_type,
        language: language::language(text),
        code_language,
        pages: Some(document.pages.len()).filter(|pages| *pages > 0),
        suggested_chunking: heuristics::chunking(&structure, document.markup),
        structure,
        personal_data: personal::find(text),
        near_duplicate_of: None,
        method: "heuristics",
        llm_error: None,
    }
}

/// Serves `POST /v1/analyze`.
pub fn router(reader: Reader, llm: Option<Llm>) -> Router {
    Router::new()
        .route("/v1/analyze", post(route))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Analyzer { reader, llm: llm.map(Arc::new) })
}

#[derive(Clone)]
struct Analyzer {
    reader: Reader,
    llm: Option<Arc<Llm>>,
}

async fn route(State(analyzer): State<Analyzer>, request: Request) -> Response {
    answer(analyzer.respond(request).await.map(Json), Dialect::Tei)
}

/// One analysis, or one for each document.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Analyses {
    /// Of the one document.
    One(Box<Analysis>),
    /// Of several, in their order.
    Many { documents: Vec<Analyzed> },
}

/// What became of one of several documents.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Analyzed {
    Well {
        id: String,
        #[serde(flatten)]
        analysis: Box<Analysis>,
    },
    Failed {
        id: String,
        error: String,
    },
}

impl Analyzer {
    async fn respond(&self, request: Request) -> Result<Analyses, ApiError> {
        match request::read(request).await? {
            OneOrMany::One(document) => {
                let (analysis, _) = self.document(document).await?;
                Ok(Analyses::One(Box::new(analysis)))
            }
            OneOrMany::Many { documents } => {
                let mut seen = Seen::default();
                let mut analyzed = Vec::with_capacity(documents.len());
                for (place, document) in documents.into_iter().enumerate() {
                    let id = document.id.clone().unwrap_or_else(|| place.to_string());
                    analyzed.push(match self.document(document).await {
                        Ok((mut analysis, signature)) => {
                            let near = signature.and_then(|signature| seen.add(&id, signature));
                            analysis.near_duplicate_of =
                                near.map(|(id, similarity)| NearDuplicate { id, similarity });
                            Analyzed::Well { id, analysis: Box::new(analysis) }
                        }
                        Err(error) => Analyzed::Failed { id, error: error.to_string() },
                    });
                }
                Ok(Analyses::Many { documents: analyzed })
            }
        }
    }

    async fn document(&self, request: AnalyzeRequest) -> Result<(Analysis, Option<Signature>), ApiError> {
        let filename = request.filename.clone();
        let content = self.read(request).await?;
        let content = Arc::new(content);
        let looking = {
            let content = content.clone();
            move || (analyze(&content, filename.as_deref()), Signature::of(&content.text))
        };
        let looked = tokio::task::spawn_blocking(looking).await;
        let (mut analysis, signature) =
            looked.map_err(|error| ApiError::backend(format!("analyzing it: {error}")))?;
        if let Some(llm) = &self.llm {
            match llm.document_type(&content.text).await {
                Ok(kind) => (analysis.document_type, analysis.method) = (kind, "llm"),
                Err(error) => analysis.llm_error = Some(error),
            }
        }
        Ok((analysis, signature))
    }

    async fn read(&self, request: AnalyzeRequest) -> Result<Extracted, ApiError> {
        let (bytes, format) = request.content()?;
        let mut records =
            self.reader.read(bytes, format).await.map_err(|error| ApiError::validation(error.to_string()))?;
        let first = records.swap_remove(0).map_err(|error| ApiError::validation(error.to_string()))?;
        Ok(first.content)
    }
}
