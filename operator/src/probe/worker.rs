//! Asks a worker of the embedder what it runs and where.

use super::Shared;
use super::http::{Http, bounded};
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
                shared.worker_said(&target.uid, taken_over(info));
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

/// What of an answer goes into a status.
fn taken_over(info: WorkerInfo) -> WorkerInfo {
    let WorkerInfo { model_id, weights_digest, model_dtype, dimension, kernel, device, accelerated } = info;
    WorkerInfo {
        model_id: bounded(model_id),
        weights_digest: weights_digest.map(bounded),
        model_dtype: model_dtype.map(bounded),
        kernel: kernel.map(bounded),
        device: device.map(bounded),
        dimension,
        accelerated,
    }
}
