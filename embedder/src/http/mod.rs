//! The HTTP API: routes by role, what they share, and the numbers about them. Each dialect has a file of its own.

mod body;
mod embed;
mod error;
mod inputs;
mod openai;
mod rerank;
mod status;
mod tokenize;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

pub use body::parse;
pub use error::{ApiError, Dialect, answer};
pub use status::{GpuInfo, Info, ModelInfo};

use crate::engine::Engine;
use crate::metrics::{Metrics, RequestLabels};
use crate::model::{ModelFiles, TextTokenizer};

/// The routes that metrics name; every other one counts as `other`.
const ROUTES: &[&str] = &[
    "/embed",
    "/rerank",
    "/tokenize",
    "/decode",
    "/info",
    "/health",
    "/ready",
    "/metrics",
    "/v1/embeddings",
    "/v1/models",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/process",
    "/v1/analyze",
];

/// A model that is served.
pub struct Served {
    /// Computes.
    pub engine: Engine,
    /// Tokenizes.
    pub tokenizer: TextTokenizer,
    /// What the model's files say.
    pub files: Arc<ModelFiles>,
    /// The name that clients see.
    pub name: String,
}

/// What every route may look at.
pub struct Shared {
    /// Answers of `/info`.
    pub info: Info,
    /// Why the process must not be used, for as long as it lives; `None` where all is well.
    pub not_ready: Option<String>,
    /// Set once the process has been told to end.
    pub draining: AtomicBool,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Shared {
    /// Takes the process out of its Service, while requests are still answered.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// The state of the routes that need a model.
#[derive(Clone)]
struct App {
    model: Arc<Served>,
}

/// Routes that embed, for the role data-factory.
pub fn embedding_routes(model: Arc<Served>) -> Router {
    Router::new()
        .route("/embed", post(embed::embed))
        .route("/", post(embed::embed))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/decode", post(tokenize::decode))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/embeddings", post(openai::embeddings))
        .route("/v1/models", get(openai::models))
        .with_state(App { model })
}

/// Routes that score pairs, for the role reranker.
pub fn rerank_routes(model: Arc<Served>) -> Router {
    Router::new()
        .route("/rerank", post(rerank::tei))
        .route("/", post(rerank::tei))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/decode", post(tokenize::decode))
        .route("/v1/rerank", post(rerank::jina))
        .route("/v2/rerank", post(rerank::cohere))
        .route("/v1/models", get(openai::models))
        .with_state(App { model })
}

/// Adds to a role's routes what every role has: status, metrics, limits, answers to what is not there.
pub fn with_common_routes(role_routes: Router, shared: Arc<Shared>, payload_limit: usize) -> Router {
    let common = Router::new()
        .route("/info", get(status::info))
        .route("/health", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .with_state(Arc::clone(&shared));
    role_routes
        .layer(DefaultBodyLimit::max(payload_limit))
        .merge(common)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(shared, measure))
}

async fn measure(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = ROUTES.iter().copied().find(|route| Some(*route) == matched).unwrap_or("other");
    let response = next.run(request).await;
    let labels = RequestLabels { route, status: response.status().as_u16() };
    shared.metrics.requests.get_or_create(&labels).inc();
    // Probes and scrapes would hide the requests of clients.
    if !matches!(route, "/health" | "/ready" | "/metrics" | "/info") {
        shared.metrics.request_duration.observe(started.elapsed().as_secs_f64());
    }
    response
}

async fn no_route(method: Method, uri: Uri) -> Response {
    let message =
        format!("there is no route {method} {} in this role; GET /info says which role it is", uri.path());
    ApiError::no_route(StatusCode::NOT_FOUND, message).response(Dialect::Tei)
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("the route {} does not take {method}", uri.path());
    ApiError::no_route(StatusCode::METHOD_NOT_ALLOWED, message).response(Dialect::Tei)
}
