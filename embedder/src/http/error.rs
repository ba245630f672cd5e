//! Refusals: one type inside, four dialects outside. The status codes are those of text-embeddings-inference in all of them. But
//! the name of a prompt that is not there is a wrong field as any other, 422, where it says 413.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::engine::EngineError;
use crate::model::TokenizeError;

/// Seconds after which a refused client may come back, where nothing tells how long it will take.
const SOON: u32 = 1;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    status: StatusCode,
    /// text-embeddings-inference's name for it.
    kind: &'static str,
    message: String,
    /// Seconds after which the client may come back, where it is told to.
    retry_after: u32,
}

/// Whose clients are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// text-embeddings-inference: `{"error","error_type"}`.
    Tei,
    /// OpenAI: `{"error":{"message","type","code"}}`.
    OpenAi,
    /// Jina: `{"detail"}`.
    Jina,
    /// Cohere: `{"message"}`.
    Cohere,
}

impl Dialect {
    /// The dialect of the clients that ask at `path`.
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/v1/embeddings" | "/embeddings" => Self::OpenAi,
            "/v1/rerank" => Self::Jina,
            _ if path.starts_with("/v1/models") => Self::OpenAi,
            _ if path.starts_with("/v2/") => Self::Cohere,
            _ => Self::Tei,
        }
    }
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry_after: SOON }
    }

    /// No input at all: 400.
    pub fn empty(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Empty", message)
    }

    /// A body beyond the limit: 413.
    pub fn too_large() -> Self {
        let message = "the request's body is larger than the payload limit: send it in several requests";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Validation", message)
    }

    /// An answer beyond the limit: 413.
    pub fn answer_too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Validation", message)
    }

    /// An input that is too long and must not be cut: 413.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "Validation", message)
    }

    /// A request that can't be understood or fulfilled: 422.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Validation", message)
    }

    /// The process can't answer now: 503.
    pub fn unhealthy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Unhealthy", message)
    }

    /// A fault on this side: 424, as text-embeddings-inference answers it.
    pub fn backend(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FAILED_DEPENDENCY, "Backend", message)
    }

    /// No key, or a wrong one: 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// What the path names is not there: 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "Validation", message)
    }

    /// What is asked for contradicts what is there: 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Validation", message)
    }

    /// Too much waits already: 429.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Overloaded", message)
    }

    /// The volume fails or is full: 507.
    pub fn storage(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "Backend", message)
    }

    /// No such route or method.
    pub fn no_route(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "Validation", message)
    }

    /// The answer in the form that `dialect`'s clients read.
    pub fn response(self, dialect: Dialect) -> Response {
        let Self { status, kind, message, retry_after } = self;
        let body = match dialect {
            Dialect::Tei => json!({ "error": message, "error_type": kind }),
            Dialect::OpenAi => {
                let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
                json!({ "error": { "message": message, "type": kind, "code": status.as_u16() } })
            }
            Dialect::Jina => json!({ "detail": message }),
            Dialect::Cohere => json!({ "message": message }),
        };
        let mut response = (status, Json(body)).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
        }
        response
    }
}

/// A result as an answer in `dialect`.
pub fn answer<T: IntoResponse>(result: Result<T, ApiError>, dialect: Dialect) -> Response {
    match result {
        Ok(value) => value.into_response(),
        Err(error) => error.response(dialect),
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Overloaded { seconds, .. } => {
                Self { retry_after: seconds, ..Self::overloaded(message) }
            }
            EngineError::Backend(_) => Self::backend(message),
            EngineError::Stopped => Self::unhealthy(message),
        }
    }
}

impl From<TokenizeError> for ApiError {
    fn from(error: TokenizeError) -> Self {
        let message = error.to_string();
        match error {
            TokenizeError::TooLong { .. } | TokenizeError::FarTooLong { .. } => Self::too_long(message),
            TokenizeError::NoTokens | TokenizeError::UnknownId { .. } => Self::validation(message),
            TokenizeError::Tokenizer(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Tokenizer", message),
        }
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Self::too_large(),
            status => Self::new(status, "Validation", rejection.body_text()),
        }
    }
}
