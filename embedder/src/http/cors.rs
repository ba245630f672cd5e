//! Which web pages of elsewhere may ask from a browser (CORS).

use std::str::FromStr;

use axum::http::{HeaderValue, Method};
use reqwest::Url;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

/// The origins whose pages a browser lets read answers. Read from a list divided by commas, or `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// None but the server's own.
    #[default]
    None,
    /// All of them.
    Any,
    /// These, each as a browser writes it: `https://app.example.com`.
    List(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            [] => Ok(Self::None),
            ["*"] => Ok(Self::Any),
            parts => parts.iter().map(|part| origin(part)).collect::<Result<_, _>>().map(Self::List),
        }
    }
}

impl Origins {
    /// What tells browsers of them; `None` where there is nothing to tell.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        let allowed = match self {
            Self::None => return None,
            Self::Any => AllowOrigin::any(),
            Self::List(origins) => AllowOrigin::list(origins.iter().cloned()),
        };
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // In browsers `*` leaves `Authorization` out.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(Any);
        Some(layer)
    }
}

/// One origin: a scheme, a host, and the port where it is not the scheme's own. Anything else would never be what a browser
/// sends.
fn origin(text: &str) -> Result<HeaderValue, String> {
    if text.contains('*') {
        return Err(format!("{text:?} is no origin: list each one, or write * alone for any"));
    }
    let unfit = |why: &str| format!("{text:?} is no origin such as https://app.example.com: {why}");
    let url = Url::parse(text).map_err(|error| unfit(&error.to_string()))?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| unfit("it has no host"))?;
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let written = format!("{}://{host}{port}", url.scheme());
    if written != text {
        return Err(format!("{text:?} is no origin: write {written}"));
    }
    HeaderValue::from_str(text).map_err(|error| unfit(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        let list = |origins: &[&'static str]| {
            Origins::List(origins.iter().copied().map(HeaderValue::from_static).collect())
        };
        for (text, expected) in [
            ("", Origins::None),
            (" , ", Origins::None),
            ("*", Origins::Any),
            ("https://app.example.com", list(&["https://app.example.com"])),
            (
                "http://localhost:3000, http://[::1]:3000",
                list(&["http://localhost:3000", "http://[::1]:3000"]),
            ),
            ("tauri://localhost", list(&["tauri://localhost"])),
        ] {
            assert_eq!(text.parse::<Origins>().unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn what_no_browser_sends_is_refused_with_what_would_be_right() {
        for (text, says) in [
            ("app.example.com", "\"app.example.com\" is no origin such as https://app.example.com: "),
            ("localhost:3000", "it has no host"),
            ("null", "\"null\" is no origin"),
            ("https://a.example/", "\"https://a.example/\" is no origin: write https://a.example"),
            ("https://a.example/path", "write https://a.example"),
            ("https://a.example:443", "write https://a.example"),
            ("HTTPS://A.example", "write https://a.example"),
            ("https://user:secret@a.example", "write https://a.example"),
            ("https://*.example.com", "write * alone for any"),
            ("https://a.example,*", "\"*\" is no origin"),
        ] {
            let error = text.parse::<Origins>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error:?} does not say {says:?}");
        }
    }
}
