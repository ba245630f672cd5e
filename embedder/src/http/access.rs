//! Who may ask, and how a request is told from others: API keys and request ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::error::{ApiError, Dialect};

/// The header that names a request, in both directions.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name that is taken over from a client.
const LONGEST_ID: usize = 128;

/// The keys that open the routes of the model; none open them for everybody. Digests alone are kept.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Reads keys, one a line or divided by commas.
    pub fn parse(text: &str) -> Self {
        let keys = text.split([',', '\n']).map(str::trim).filter(|key| !key.is_empty());
        Self(keys.map(|key| Sha256::digest(key).into()).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with these headers may pass.
    fn admit(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        // Comparing digests takes as long for a key that is nearly right as for any other.
        key.is_some_and(|key| self.0.contains(&Sha256::digest(key).into()))
    }
}

/// Lets only those in who have a key.
pub(super) async fn guard(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    if keys.admit(request.headers()) {
        return next.run(request).await;
    }
    let message = "this server wants an API key in the header Authorization: Bearer <key>";
    let mut response = ApiError::unauthorized(message).response(Dialect::of(request.uri().path()));
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The client's name for its request, or one of ours.
pub(super) fn id_of(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let usable =
        |id: &&str| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    given.filter(usable).map_or_else(request_id, str::to_owned)
}

/// Tells two answers of this process apart, and most likely those of two processes.
pub(super) fn request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{now:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn keys_open_by_case() {
        for (keys, header, opens) in [
            ("", "", true),
            ("one,two", "Bearer one", true),
            ("one\ntwo\n", "bearer two", true),
            ("one", "Bearer  one", true),
            ("one", "Bearer One", false),
            ("one", "Basic one", false),
            ("one", "one", false),
            ("one", "", false),
            ("one", "Bearer ", false),
        ] {
            assert_eq!(
                Keys::parse(keys).admit(&headers("authorization", header)),
                opens,
                "{keys:?} {header:?}"
            );
        }
    }

    #[test]
    fn ids_are_taken_over_unless_they_are_unfit() {
        assert_eq!(id_of(&headers("x-request-id", "abc-1")), "abc-1");
        for unfit in ["", "a b", &"x".repeat(129)] {
            assert_ne!(id_of(&headers("x-request-id", unfit)), unfit);
        }
        assert_ne!(id_of(&HeaderMap::new()), id_of(&HeaderMap::new()));
    }
}
