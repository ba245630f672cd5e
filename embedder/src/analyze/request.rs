//! What a client asks of `/v1/analyze`: one document, or several.

use crate::format::Format;
use crate::http::{ApiError, parse};
use crate::pipeline::{self, base64_bytes};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// One document.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnalyzeRequest {
    /// Told back where there are several.
    pub id: Option<String>,
    /// Its characters; a document has these or its bytes.
    text: Option<String>,
    /// Its bytes, in Base64.
    #[serde(default, with = "base64_bytes")]
    #[schemars(with = "Option<String>", extend("contentEncoding" = "base64"))]
    data: Option<Bytes>,
    /// How it is written; absent where the content tells.
    format: Option<String>,
    /// A hint where the content leaves the kind open.
    pub filename: Option<String>,
}

/// One document, or several.
#[derive(JsonSchema)]
#[schemars(untagged, deny_unknown_fields)]
pub enum OneOrMany {
    /// One document.
    One(AnalyzeRequest),
    /// Several, which are compared with one another.
    Many {
        /// The documents.
        documents: Vec<AnalyzeRequest>,
    },
}

/// Several documents.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Several {
    documents: Vec<AnalyzeRequest>,
}

/// What tells several documents from one; nothing of them is kept.
#[derive(Deserialize)]
#[expect(dead_code, reason = "that it is there is all")]
struct Which {
    documents: IgnoredAny,
}

/// The documents in a body: JSON, or a form of files.
///
/// # Errors
/// What is wrong with it.
pub async fn read(request: Request) -> Result<OneOrMany, ApiError> {
    if pipeline::is_form(&request) {
        return read_form(request).await;
    }
    let body = Bytes::from_request(request, &()).await?;
    let several = body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<Which>(&body).is_ok();
    match several {
        true => parse::<Several>(Ok(body)).map(|Several { documents }| OneOrMany::Many { documents }),
        false => parse(Ok(body)).map(OneOrMany::One),
    }
}

async fn read_form(request: Request) -> Result<OneOrMany, ApiError> {
    let mut form = pipeline::form(request).await?;
    let mut documents = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| pipeline::refused(&error))? {
        let filename = field.file_name().map(ToOwned::to_owned);
        let data = Some(field.bytes().await.map_err(|error| pipeline::refused(&error))?);
        documents.push(AnalyzeRequest { id: filename.clone(), filename, data, ..AnalyzeRequest::default() });
    }
    match documents.len() {
        0 => Err(ApiError::empty("the form has no file")),
        1 => Ok(OneOrMany::One(documents.remove(0))),
        _ => Ok(OneOrMany::Many { documents }),
    }
}

impl AnalyzeRequest {
    /// The document's bytes, and how they are written where the client says.
    pub fn content(self) -> Result<(Bytes, Option<Format>), ApiError> {
        let format = self.format.as_deref().map(|name| {
            Format::named(name).map_err(|right| ApiError::validation(format!("format is {name:?}: {right}")))
        });
        let bytes = match (self.text, self.data) {
            (Some(text), None) if text.trim().is_empty() => {
                return Err(ApiError::empty(format!("text is {text:?}: give the document's text")));
            }
            (Some(text), None) => Bytes::from(text),
            (None, Some(data)) => data,
            (None, None) => {
                return Err(ApiError::validation(
                    "there is no document: give it as `text`, or a file as `data` in Base64",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::validation("there are both `text` and `data`: give one of them"));
            }
        };
        Ok((bytes, format.transpose()?))
    }
}
