//! The connections to the API server: one for requests, one for watches. They differ in how long a silence may last.

use anyhow::Context;
use kube::{Client, Config};
use std::time::Duration;

/// How long the API server may be silent about a request. It itself gives up on one after a minute, but a connection that
/// is frozen says nothing for ever.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a watch may be silent: longer than [`WATCH_SECONDS`] and the few seconds that kube adds, after which it begins a
/// watch anew itself. This is for the lists between two watches.
const WATCH_SILENCE: Duration = Duration::from_secs(75);
/// How long one watch lasts, in seconds. What was missed on a frozen connection is seen after this time at the latest.
pub const WATCH_SECONDS: u32 = 60;

/// Clients of one API server.
#[derive(Clone)]
pub struct Clients {
    /// For what is answered at once: reads, writes, Events, the Lease.
    pub requests: Client,
    /// For what goes on and on.
    pub watches: Client,
}

impl Clients {
    /// Clients of the API server that the service account or the kubeconfig names.
    ///
    /// # Errors
    /// If neither is there, or what it says can't be used.
    pub async fn infer() -> anyhow::Result<Self> {
        let config = Config::infer().await.context("finding the API server")?;
        Ok(Self { requests: client(config.clone(), SILENCE)?, watches: client(config, WATCH_SILENCE)? })
    }
}

fn client(mut config: Config, silence: Duration) -> anyhow::Result<Client> {
    config.read_timeout = Some(silence);
    // Counted from the request, not from when its connection was used before.
    config.reset_reader_on_write = true;
    // What asks has a back-off of its own. kube's would ask a busy API server fifteen times, and hold up for minutes what waits
    // for the answer: a whole pass, or a renewal of the Lease. So a request lasts as long as this silence, not many times that.
    config.default_retry = false;
    Client::try_from(config).context("making a client of the API server")
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn an_api_server_that_is_busy_is_asked_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let busy = move || async move {
            count.fetch_add(1, Ordering::Relaxed);
            (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")])
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(busy)).await });
        let client = client(Config::new(address.parse().unwrap()), SILENCE).unwrap();
        let pods: Api<Pod> = Api::namespaced(client, "demo");
        assert!(tokio::time::timeout(SILENCE, pods.get("x")).await.unwrap().is_err());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
