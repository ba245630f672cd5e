//! The body of a server's answer, read up to a limit: who is asked may send without end, and this process would keep it all.
//! What an answer means is for the clients to say.

use reqwest::Response;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The connection failed meanwhile.
    #[error(transparent)]
    Broken(#[from] reqwest::Error),
    /// It is longer than what is read of it.
    #[error("the answer has more than {limit} bytes")]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
}

/// The whole body, which is given up as soon as it is longer than `limit` bytes.
///
/// # Errors
/// When the body is longer, or the connection fails.
pub async fn read_at_most(mut response: Response, limit: usize) -> Result<Vec<u8>, AnswerError> {
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        if body.len().saturating_add(part.len()) > limit {
            return Err(AnswerError::TooLong { limit });
        }
        body.extend_from_slice(&part);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use std::convert::Infallible;

    #[tokio::test]
    async fn an_answer_is_read_up_to_the_limit_and_an_endless_one_is_given_up() {
        let endless =
            || async { Body::from_stream(futures::stream::repeat_with(|| Ok::<_, Infallible>("12345"))) };
        let router = Router::new().route("/short", get(|| async { "12345" })).route("/endless", get(endless));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = crate::tls::http_client().build().unwrap();
        let ask = async |path: &str, limit| {
            let response = client.get(format!("{url}/{path}")).send().await.unwrap();
            read_at_most(response, limit).await.map_err(|error| error.to_string())
        };
        assert_eq!(ask("short", 5).await.unwrap(), b"12345");
        assert_eq!(ask("short", 4).await.unwrap_err(), "the answer has more than 4 bytes");
        assert_eq!(ask("endless", 1000).await.unwrap_err(), "the answer has more than 1000 bytes");
    }
}
