//! Asks a pod in which a model is being pulled how far it is.

use super::Shared;
use super::http::Http;
use crate::actions::Target;
use crate::observed::PullProgress;
use std::time::Duration;
use tokio::time::sleep;

/// Between questions. A pull takes minutes, and each answer may become a write of the status.
const PERIOD: Duration = Duration::from_secs(3);

pub async fn ask(http: Http, target: Target, shared: Shared) {
    let url = format!("{}/progress", target.url);
    loop {
        match http.get::<PullProgress>(&url).await {
            Ok(progress) => shared.pull_said(&target.uid, progress),
            // Between one model and the next nobody answers.
            Err(error) => tracing::debug!(pod = target.uid, %error, "asking how far a pull is"),
        }
        sleep(PERIOD).await;
    }
}
