//! Asks a worker of the embedder what it runs and where.

use super::Shared;
use super::http::Http;
use crate::actions::Target;
use crate::observed::WorkerInfo;
use std::time::Duration;
use tokio::time::sleep;

/// Between questions to a worker that answered.
const SLOW: Duration = Duration::from_secs(30);
/// Between questions to one that did not.
const FAST: Duration = Duration::from_secs(2);

pub async fn ask(http: Http, target: Target, shared: Shared) {
    let url = format!("{}/info", target.url);
    loop {
        // One that stays silent later is still what it said it is; that it is ill, the kubelet finds out.
        let wait = match http.get::<WorkerInfo>(&url).await {
            Ok(info) => {
                shared.worker_said(&target.uid, info);
                SLOW
            }
            Err(error) => {
                tracing::debug!(pod = target.uid, %error, "asking a worker");
                FAST
            }
        };
        sleep(wait).await;
    }
}
