//! Documents as files of a form (`multipart/form-data`), as browsers and `curl -F` send them.

use super::request::{DocumentRequest, Options, ProcessRequest};
use crate::http::{ApiError, parse};
use axum::body::Bytes;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

/// The request in a body: JSON, or a form with a file for each document, and maybe a field `options` and a field `metadata`.
///
/// # Errors
/// What is wrong with it.
pub async fn read(request: Request) -> Result<ProcessRequest, ApiError> {
    if !is_form(&request) {
        return parse(Bytes::from_request(request, &()).await);
    }
    read_form(form(request).await?).await
}

/// Whether a body is a form.
pub(crate) fn is_form(request: &Request) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|it| it.trim_start().to_ascii_lowercase().starts_with("multipart/form-data"))
}

/// The form in a body.
pub(crate) async fn form(request: Request) -> Result<Multipart, ApiError> {
    let form = Multipart::from_request(request, &()).await;
    form.map_err(|error| ApiError::validation(format!("the form: {}", error.body_text())))
}

/// The documents and the options in a form.
async fn read_form(mut form: Multipart) -> Result<ProcessRequest, ApiError> {
    let mut documents = Vec::new();
    let mut options = Options::default();
    let mut metadata: Option<serde_json::Map<String, serde_json::Value>> = None;
    while let Some(field) = form.next_field().await.map_err(|error| refused(&error))? {
        let name = field.name().unwrap_or_default().to_owned();
        let file = field.file_name().map(ToOwned::to_owned);
        match (name.as_str(), file) {
            ("options", None) => options = json(field).await?,
            ("metadata", None) => metadata = Some(json(field).await?),
            (_, Some(file)) => {
                documents.push(DocumentRequest::file(
                    Some(file).filter(|file| !file.is_empty()),
                    field.bytes().await.map_err(|error| refused(&error))?,
                ));
            }
            (_, None) => {
                let right = "send files, and what else there is as `options` and `metadata`";
                return Err(ApiError::validation(format!("the form's field {name:?} is no file: {right}")));
            }
        }
    }
    if let Some(metadata) = metadata {
        for document in &mut documents {
            document.metadata = Some(metadata.clone());
        }
    }
    Ok(ProcessRequest { documents, options })
}

async fn json<T: DeserializeOwned>(field: Field<'_>) -> Result<T, ApiError> {
    parse(Ok(field.bytes().await.map_err(|error| refused(&error))?))
}

/// Why a form could not be read on.
pub(crate) fn refused(error: &MultipartError) -> ApiError {
    match error.status() {
        axum::http::StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(),
        _ => ApiError::validation(format!("the form: {}", error.body_text())),
    }
}
