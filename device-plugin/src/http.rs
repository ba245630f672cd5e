//! `/metrics`, `/healthz` and `/readyz`.

use crate::metrics::Metrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A monitor that has not come round for this long hangs.
const STUCK: Duration = Duration::from_secs(30);

/// What the plugin knows about itself.
#[derive(Clone, Debug)]
pub struct Vitals {
    /// When the monitor came round last, and what keeps it from measuring.
    pub pulse: watch::Receiver<Pulse>,
    /// Whether every resource is registered with the kubelet.
    pub registered: watch::Receiver<bool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// A sign of life of the monitor.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// When.
    pub at: Instant,
    /// What keeps it from measuring.
    pub message: Option<String>,
}

impl Vitals {
    /// Whether the monitor comes round.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.pulse.borrow().at.elapsed() < STUCK
    }
}

/// The routes.
pub fn router(vitals: Vitals) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(vitals)
}

async fn metrics(State(vitals): State<Vitals>) -> impl IntoResponse {
    vitals.metrics.set_registered(*vitals.registered.borrow());
    match vitals.metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A missing driver is no reason to be restarted: it is waited for.
async fn healthz(State(vitals): State<Vitals>) -> (StatusCode, String) {
    if vitals.alive() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let seconds = vitals.pulse.borrow().at.elapsed().as_secs();
        (StatusCode::SERVICE_UNAVAILABLE, format!("the monitor has not come round for {seconds} s\n"))
    }
}

async fn readyz(State(vitals): State<Vitals>) -> (StatusCode, String) {
    let message = vitals.pulse.borrow().message.clone();
    match message {
        Some(message) => (StatusCode::SERVICE_UNAVAILABLE, format!("{message}\n")),
        None if !*vitals.registered.borrow() => {
            (StatusCode::SERVICE_UNAVAILABLE, "not registered with the kubelet\n".to_owned())
        }
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    async fn ask(path: &str, message: Option<&str>, registered: bool, age: Duration) -> (StatusCode, String) {
        let at = Instant::now().checked_sub(age).unwrap();
        let pulse = watch::channel(Pulse { at, message: message.map(str::to_owned) }).1;
        let vitals = Vitals { pulse, registered: watch::channel(registered).1, metrics: Arc::default() };
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(vitals).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_missing_driver_is_not_ready_and_yet_alive() {
        let missing = Some("the NVIDIA driver is not loaded");
        assert_eq!(ask("/healthz", missing, true, Duration::ZERO).await.0, StatusCode::OK);
        let (status, body) = ask("/readyz", missing, true, Duration::ZERO).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("not loaded"));
    }

    #[tokio::test]
    async fn ready_means_registered_and_alive_means_not_stuck() {
        assert_eq!(ask("/readyz", None, true, Duration::ZERO).await.0, StatusCode::OK);
        assert_eq!(ask("/readyz", None, false, Duration::ZERO).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            ask("/healthz", None, true, Duration::from_secs(31)).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert!(
            ask("/metrics", None, true, Duration::ZERO).await.1.contains("principium_kubelet_registered 1")
        );
    }
}
