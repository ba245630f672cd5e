//! Requests to pods, bounded in time and size: what answers there may be anything.

use super::secrets::Key;
use futures::future::BoxFuture;
use reqwest::{RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// Longest answer that is read, in bytes.
const LONGEST: usize = 1 << 20;
/// Longest part of an error text that is kept, in characters.
const LONGEST_ERROR: usize = 300;
/// Longest text that is taken over from an answer, in bytes: names, digests.
const LONGEST_TEXT: usize = 512;
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

/// A builder of clients for what runs inside of the cluster.
pub fn client() -> reqwest::ClientBuilder {
    // Built beside programs that speak TLS, a client wants to know by which cryptography, whether it does or not.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder()
        .no_proxy()
        .user_agent(concat!("principium-operator/", env!("CARGO_PKG_VERSION")))
}

impl Http {
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = client()
            .connect_timeout(Duration::from_secs(3))
            // Every pod is a host of its own, and is asked every half minute: thousands of open connections would only be
            // memory, here and there.
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self(client))
    }

    pub async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, HttpError> {
        self.get_within(url, SHORT, None).await
    }

    /// With a key for the server, where it wants one.
    pub async fn get_with<T: DeserializeOwned>(&self, url: &str, key: Option<&Key>) -> Result<T, HttpError> {
        self.get_within(url, SHORT, key).await
    }

    /// The time is for the whole of it, not for each part.
    async fn get_within<T: DeserializeOwned>(
        &self,
        url: &str,
        wait: Duration,
        key: Option<&Key>,
    ) -> Result<T, HttpError> {
        answer(url, self.0.get(url).timeout(wait), key).await
    }

    /// Posts JSON and waits for this long.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        body: &Value,
        wait: Duration,
    ) -> Result<T, HttpError> {
        self.post_with(url, body, wait, None).await
    }

    /// With a key for the server, where it wants one.
    pub async fn post_with<T: DeserializeOwned>(
        &self,
        url: &str,
        body: &Value,
        wait: Duration,
        key: Option<&Key>,
    ) -> Result<T, HttpError> {
        answer(url, self.0.post(url).timeout(wait).json(body), key).await
    }
}

/// Boxed: thousands of pods are asked by a task each, which waits most of the time, and should hold no room for a request
/// meanwhile.
fn answer<'a, T: DeserializeOwned + 'a>(
    url: &'a str,
    request: RequestBuilder,
    key: Option<&Key>,
) -> BoxFuture<'a, Result<T, HttpError>> {
    let request = match key {
        Some(key) => request.bearer_auth(key.text()),
        None => request,
    };
    Box::pin(async move { read(url, request.send().await.map_err(|source| failed(url, source))?).await })
}

/// The beginning of a text that comes from a pod and goes into a status: what answers there may be anything.
pub fn bounded(text: String) -> String {
    if text.len() <= LONGEST_TEXT { text } else { text.chars().take(LONGEST_TEXT / 4).collect() }
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
    async fn a_pod_that_says_nothing_or_trickles_is_given_up() {
        let silent = get(|| async { std::future::pending::<String>().await });
        let trickles = get(|| async {
            axum::body::Body::from_stream(futures::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Ok::<_, std::io::Error>(" "), ()))
            }))
        });
        let url = serve(Router::new().route("/silent", silent).route("/trickles", trickles)).await;
        let http = Http::new().unwrap();
        for path in ["silent", "trickles"] {
            let asked = std::time::Instant::now();
            let wait = Duration::from_millis(300);
            let error = http.post::<Value>(&format!("{url}/{path}"), &Value::Null, wait).await.unwrap_err();
            assert!(matches!(error, HttpError::Request { .. } | HttpError::Status { .. }), "{path}: {error}");
            let error = http.get_within::<Value>(&format!("{url}/{path}"), wait, None).await.unwrap_err();
            assert!(matches!(error, HttpError::Request { .. }), "{path}: {error}");
            assert!(asked.elapsed() < Duration::from_secs(5), "{path}");
        }
        assert_eq!(bounded("é".repeat(1000)).chars().count(), 128);
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
