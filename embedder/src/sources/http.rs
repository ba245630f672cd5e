//! Single addresses of HTTP, on hosts that the configuration allows. Nobody can have this process ask another one.

use super::{LARGEST_DOCUMENT, Read, SourceError, too_large};
use futures::StreamExt as _;
use reqwest::header::{ETAG, HeaderMap, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use reqwest::{StatusCode, Url, redirect};
use std::str::FromStr;
use std::time::Duration;

/// Longest time for one document.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most redirections of one document.
const REDIRECTIONS: usize = 5;

/// The hosts that may be asked: `docs.example.com`, `*.example.com`, or `*` for any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl FromStr for Hosts {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hosts = text.split(',').map(|host| host.trim().to_ascii_lowercase());
        Ok(Self(hosts.filter(|host| !host.is_empty()).collect()))
    }
}

impl Hosts {
    fn allow(&self, host: &str) -> bool {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        self.0.iter().any(|allowed| match allowed.strip_prefix('*') {
            Some("") => true,
            Some(end) => host.ends_with(end),
            None => *allowed == host,
        })
    }

    fn check(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        if self.allow(host) {
            return Ok(());
        }
        Err(format!(
            "{host} is not among the hosts that documents may come from: see PRINCIPIUM_HTTP_SOURCES"
        ))
    }
}

/// What is wrong with an address as such.
pub fn check(url: &str) -> Result<(), String> {
    match Url::parse(url) {
        Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {
            if parsed.username().is_empty() && parsed.password().is_none() {
                Ok(())
            } else {
                Err("source.urls has an address with a user or a password: these would be kept and shown"
                    .to_owned())
            }
        }
        _ => Err(format!("source.urls has {url:?}: it begins with http:// or https://")),
    }
}

pub async fn read(hosts: &Hosts, url: &str, known: Option<&str>) -> Result<Read, SourceError> {
    let parsed = Url::parse(url).map_err(|error| SourceError::Lasting(format!("{url}: {error}")))?;
    hosts.check(&parsed).map_err(SourceError::Lasting)?;
    let allowed = hosts.clone();
    let policy = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > REDIRECTIONS {
            return attempt.error("it redirects too often");
        }
        match allowed.check(attempt.url()) {
            Ok(()) => attempt.follow(),
            Err(message) => attempt.error(message),
        }
    });
    let client = crate::tls::http_client().redirect(policy).timeout(PATIENCE).build();
    let client = client.map_err(|error| SourceError::Lasting(format!("setting up a client: {error}")))?;
    let mut request = client.get(parsed);
    if let Some((name, value)) = known.and_then(condition) {
        request = request.header(name, value);
    }
    let failed = |error: reqwest::Error| {
        let message = format!("{url}: {}", chain(&error));
        if error.is_redirect() { SourceError::Lasting(message) } else { SourceError::Passing(message) }
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    if status == StatusCode::NOT_MODIFIED {
        return Ok(Read::Unchanged);
    }
    if !status.is_success() {
        let message = format!("{url} answered {status}");
        let passes = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        return Err(if passes { SourceError::Passing(message) } else { SourceError::Lasting(message) });
    }
    let version = version(response.headers());
    let mut bytes = Vec::new();
    let mut body = response.bytes_stream();
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(failed)?);
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            return Err(too_large(url, bytes.len() as u64));
        }
    }
    Ok(Read::Content { bytes, version })
}

/// What a server says of a document's state: its ETag, or else the time of its last change.
fn version(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, ETAG).map(|etag| format!("etag {etag}"));
    etag.or_else(|| text(headers, LAST_MODIFIED).map(|time| format!("modified {time}")))
}

/// The header that asks for a document only if it has changed.
fn condition(version: &str) -> Option<(HeaderName, &str)> {
    if let Some(etag) = version.strip_prefix("etag ") {
        return Some((IF_NONE_MATCH, etag));
    }
    version.strip_prefix("modified ").map(|time| (IF_MODIFIED_SINCE, time))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}

/// An error with what is behind it: reqwest says only that it failed.
fn chain(error: &reqwest::Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        message = format!("{message}: {deeper}");
        cause = deeper.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::response::{IntoResponse as _, Redirect, Response};
    use axum::routing::get;

    async fn page(headers: axum::http::HeaderMap) -> Response {
        if headers.get(IF_NONE_MATCH).is_some_and(|etag| etag == "\"1\"") {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        ([(ETAG, "\"1\"")], "# A").into_response()
    }

    async fn server() -> String {
        let routes = Router::new()
            .route("/a", get(page))
            .route("/moved", get(|| async { Redirect::temporary("/a") }))
            .route("/away", get(|| async { Redirect::temporary("http://localhost:1/") }))
            .route("/busy", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/endless", get(|| async { vec![b'x'; usize::try_from(LARGEST_DOCUMENT).unwrap() + 1] }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, routes).into_future());
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_document_is_read_once_and_then_asked_for_by_its_version() {
        let (url, hosts) = (server().await, "127.0.0.1".parse::<Hosts>().unwrap());
        for path in ["/a", "/moved"] {
            let url = format!("{url}{path}");
            let first = read(&hosts, &url, None).await.unwrap();
            let Read::Content { bytes, version } = first else { panic!("it is new") };
            assert_eq!(bytes, b"# A");
            assert_eq!(read(&hosts, &url, version.as_deref()).await.unwrap(), Read::Unchanged);
        }
    }

    #[tokio::test]
    async fn what_is_not_allowed_or_too_much_is_refused() {
        let (url, hosts) = (server().await, "127.0.0.1".parse::<Hosts>().unwrap());
        for (path, passing, says) in [
            ("/away", false, "localhost is not among the hosts"),
            ("/none", false, "404"),
            ("/busy", true, "503"),
            ("/endless", false, "at most 67108864 are read"),
        ] {
            let error = read(&hosts, &format!("{url}{path}"), None).await.unwrap_err();
            assert!(error.to_string().contains(says), "{path}: {error}");
            assert_eq!(matches!(error, SourceError::Passing(_)), passing, "{path}: {error}");
        }
        let nobody = read(&Hosts::default(), &url, None).await.unwrap_err().to_string();
        assert!(nobody.contains("PRINCIPIUM_HTTP_SOURCES"), "{nobody}");
    }

    #[test]
    fn hosts_are_allowed_by_name_or_ending() {
        let hosts: Hosts = "docs.example.com, *.wiki.org".parse().unwrap();
        for (host, allowed) in [
            ("docs.example.com", true),
            ("DOCS.example.com", true),
            ("example.com", false),
            ("a.wiki.org", true),
            ("evilwiki.org", false),
        ] {
            assert_eq!(hosts.allow(host), allowed, "{host}");
        }
    }
}
