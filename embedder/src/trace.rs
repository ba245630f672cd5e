//! The trace that a request belongs to, by the W3C's Trace Context: read from its headers, and passed on unchanged to whom this
//! process asks on the request's behalf. It makes no spans of its own.

use std::future::Future;

use axum::http::{HeaderMap, HeaderName};

/// The header with the caller's trace.
const PARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it.
const STATE: HeaderName = HeaderName::from_static("tracestate");

tokio::task_local! {
    /// The headers of the request that the task works for.
    static CURRENT: HeaderMap;
}

/// Does `work` for a request with these headers.
pub async fn within<F: Future>(headers: &HeaderMap, work: F) -> F::Output {
    let mut passed_on = HeaderMap::new();
    if id_of(headers).is_some() {
        for name in [PARENT, STATE] {
            // A state may be divided over several headers.
            for value in headers.get_all(&name) {
                passed_on.append(&name, value.clone());
            }
        }
    }
    CURRENT.scope(passed_on, work).await
}

/// `work`, to be done by another task for the same request.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(headers(), work)
}

/// What belongs into every question that is asked on behalf of the request; nothing outside of one.
pub fn headers() -> HeaderMap {
    CURRENT.try_with(HeaderMap::clone).unwrap_or_default()
}

/// The id of the trace, if the caller has one.
pub fn id_of(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(PARENT)?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    let zeros = |part: &str| part.bytes().all(|byte| byte == b'0');
    // Later versions may append parts; version ff is forbidden.
    let well_formed = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    (well_formed && !zeros(trace) && !zeros(span)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn request(parent: &str) -> HeaderMap {
        [(PARENT, parent), (STATE, "a=1"), (HeaderName::from_static("authorization"), "Bearer secret")]
            .map(|(name, value)| (name, HeaderValue::from_str(value).unwrap()))
            .into_iter()
            .collect()
    }

    #[test]
    fn traces_are_read_by_the_rules_of_trace_context() {
        for (value, read) in [
            (format!("00-{TRACE}-b7ad6b7169203331-01"), true),
            (format!("cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings"), true),
            (format!("ff-{TRACE}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()), false),
            (format!("00-{TRACE}-b7ad-01"), false),
            ("00".to_owned(), false),
        ] {
            assert_eq!(id_of(&request(&value)), read.then_some(TRACE), "{value}");
        }
    }

    #[tokio::test]
    async fn the_trace_alone_is_passed_on_to_other_tasks_too() {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let request_headers = request(&parent);
        let asked = within(&request_headers, async {
            let other = tokio::spawn(carried(async { headers() })).await.unwrap();
            (headers(), other, tokio::spawn(async { headers() }).await.unwrap())
        });
        let (own, other, without) = asked.await;
        assert!(own.len() == 2 && own[PARENT] == *parent && own[STATE] == "a=1", "{own:?}");
        assert_eq!((other, without.len(), headers().len()), (own, 0, 0));
        assert_eq!(within(&request("nonsense"), async { headers().len() }).await, 0);
    }
}
