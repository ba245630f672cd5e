//! Requests to pods, bounded in time and size: what answers there may be anything.

use reqwest::Response;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// Longest answer that is read, in bytes.
const LONGEST: usize = 1 << 20;
/// Longest part of an error text that is kept, in characters.
const LONGEST_ERROR: usize = 300;
/// Time for a whole short request.
const SHORT: Duration = Duration::from_secs(10);

/// Asks over HTTP.
#[derive(Clone)]
pub struct Http(reqwest::Client);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{url} does not answer: {source}")]
    Request { url: String, source: reqwest::Error },
    #[error("{url} answers {status}: {text}")]
    Status { url: String, status: u16, text: String },
    #[error("{url} answers with more than {LONGEST} bytes")]
    TooLong { url: String },
    #[error("{url} answers what is not understood: {source}")]
    Unreadable { url: String, source: serde_json::Error },
}

impl Http {
    pub fn new() -> Result<Self, reqwest::Error> {
        // Whoever was first has installed the same.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(3))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("principium-operator/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self(client))
    }

    pub async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, HttpError> {
        let request = self.0.get(url).timeout(SHORT).send();
        read(url, request.await.map_err(|source| failed(url, source))?).await
    }

    /// Posts JSON and waits for this long.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        body: &Value,
        wait: Duration,
    ) -> Result<T, HttpError> {
        let request = self.0.post(url).timeout(wait).json(body).send();
        read(url, request.await.map_err(|source| failed(url, source))?).await
    }
}

fn failed(url: &str, source: reqwest::Error) -> HttpError {
    // The URL stands in the message once.
    HttpError::Request { url: url.to_owned(), source: source.without_url() }
}

async fn read<T: DeserializeOwned>(url: &str, mut response: Response) -> Result<T, HttpError> {
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|source| failed(url, source))? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err(HttpError::TooLong { url: url.to_owned() });
        }
    }
    if !status.is_success() {
        let text = match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Object(object)) => match object.get("error") {
                Some(Value::String(error)) => error.clone(),
                _ => Value::Object(object).to_string(),
            },
            _ => String::from_utf8_lossy(&body).into_owned(),
        };
        let text = text.chars().take(LONGEST_ERROR).collect();
        return Err(HttpError::Status { url: url.to_owned(), status: status.as_u16(), text });
    }
    serde_json::from_slice(&body).map_err(|source| HttpError::Unreadable { url: url.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;

    async fn serve(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn an_answer_without_end_and_an_error_are_told_apart() {
        let router = Router::new()
            .route("/long", get(|| async { "x".repeat(LONGEST + 1) }))
            .route("/bad", get(|| async { (StatusCode::NOT_FOUND, r#"{"error":"model 'a' not found"}"#) }))
            .route("/moved", get(|| async { (StatusCode::FOUND, [("location", "http://192.0.2.1/")]) }))
            .route("/text", get(|| async { "hello" }));
        let url = serve(router).await;
        let http = Http::new().unwrap();
        let ask = async |path: &str| http.get::<Value>(&format!("{url}{path}")).await.unwrap_err();
        assert!(matches!(ask("/long").await, HttpError::TooLong { .. }));
        let HttpError::Status { status, text, .. } = ask("/bad").await else { panic!("no status") };
        assert_eq!((status, text.as_str()), (404, "model 'a' not found"));
        assert!(matches!(ask("/moved").await, HttpError::Status { status: 302, .. }), "it is not followed");
        assert!(matches!(ask("/text").await, HttpError::Unreadable { .. }));
    }
}
