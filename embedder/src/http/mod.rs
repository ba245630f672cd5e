//! The HTTP API: routes by role, what they share, and the numbers about them. Each dialect has a file of its own. What the
//! routes of a role are, `operations` says.

mod access;
mod body;
mod cohere;
mod cors;
mod cost;
mod embed;
mod encode;
mod error;
mod inputs;
mod openai;
mod openapi;
mod operations;
mod predict;
mod rerank;
mod room;
mod status;
mod tokenize;
mod vertex;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{Html, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use access::Keys;
pub use body::parse;
pub use cors::Origins;
pub use encode::{EncodeOptions, Encoded, encode_texts};
pub use error::{ApiError, Dialect, answer};
pub use rerank::score_texts;
pub use status::{GpuInfo, Info, ModelInfo};

use crate::engine::Engine;
use crate::metrics::{Metrics, RequestLabels, RouteLabels};
use crate::model::{Input, ModelFiles, TextTokenizer, TokenizeError, Truncation, Wants};
use crate::trace;
use openapi::Operation;
use operations::{ANALYZE, COMMON, JOB_EVENTS, JOBS, PAGE, PROCESS, ROOT_HEALTH};

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

/// A try whether anything can be computed.
pub struct Probe {
    engine: Engine,
    input: Input,
}

impl Probe {
    /// A try of `model` with a short text.
    pub fn new(model: &Served) -> Result<Self, TokenizeError> {
        let mut input = model.tokenizer.text("well", Truncation::DropEnd)?;
        // Every model has them, whatever its heads.
        input.wants = Wants::STATES;
        Ok(Self { engine: model.engine.clone(), input })
    }
}

/// What every route may look at.
pub struct Shared {
    /// Answers of `/info`.
    pub info: Info,
    /// Why the process must not be used, for as long as it lives; `None` where all is well.
    pub not_ready: Option<String>,
    /// What shows whether the model still computes; absent in the doc-analyzer.
    pub probe: Option<Probe>,
    /// Cancelled once the process has been told to end.
    pub draining: CancellationToken,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl Shared {
    /// Takes the process out of its Service, while requests are still answered. Streams without an end of their own end.
    pub fn start_draining(&self) {
        self.draining.cancel();
    }

    /// Whether the model still computes.
    async fn health(&self) -> Result<(), ApiError> {
        let Some(Probe { engine, input }) = &self.probe else { return Ok(()) };
        let unhealthy = |error| ApiError::unhealthy(format!("the model computes nothing any more: {error}"));
        engine.check(input.clone()).await.map_err(unhealthy)
    }
}

/// The state of the routes that need a model.
#[derive(Clone)]
struct App {
    model: Arc<Served>,
}

/// Routes of one role, with what `/openapi.json` says about them.
pub struct Routes {
    router: Router,
    operations: Vec<&'static Operation>,
    /// What is served to everybody at the root: the page, which holds nothing of its own.
    page: Option<Router>,
}

impl Routes {
    fn new(model: Arc<Served>, operations: Vec<&'static Operation>) -> Self {
        let router = operations
            .iter()
            .filter_map(|operation| Some((operation.path, operation.handler?)))
            .fold(Router::new(), |router, (path, handler)| router.route(path, handler()));
        Self { router: router.with_state(App { model }), operations, page: None }
    }

    /// Routes that embed, for the role data-factory.
    pub fn embedding(model: Arc<Served>) -> Self {
        let roots = if model.files.heads.dense.is_none() && model.files.heads.sparse.is_some() {
            operations::SPARSE_ROOTS
        } else {
            operations::DENSE_ROOTS
        };
        Self::new(model, operations::EMBEDDING.iter().chain(operations::ANY_MODEL).chain(roots).collect())
    }

    /// Routes that score pairs or classify, for the role reranker.
    pub fn scoring(model: Arc<Served>) -> Self {
        let reranks = model.files.heads.labels.as_ref().is_some_and(|labels| labels.len() == 1);
        let roots = if reranks { operations::RERANK_ROOTS } else { operations::PREDICT_ROOTS };
        Self::new(model, operations::RERANKING.iter().chain(operations::ANY_MODEL).chain(roots).collect())
    }

    /// Routes that analyze documents, for the role doc-analyzer.
    pub fn analyzing(router: Router) -> Self {
        Self { router, operations: vec![&ANALYZE], page: None }
    }

    /// The same with the route that processes documents.
    #[must_use]
    pub fn with_pipeline(mut self, router: Router) -> Self {
        self.operations.push(&PROCESS);
        Self { router: self.router.merge(router), ..self }
    }

    /// The same with the routes of jobs, corpora and searches, and the page that shows them. Without a folder for them they
    /// only say so, and are not described.
    #[must_use]
    pub fn with_jobs(mut self, router: Router, page: Router, kept: bool) -> Self {
        self.operations.extend(JOBS.iter().filter(|_| kept));
        Self { router: self.router.merge(router), page: Some(page), ..self }
    }
}

/// Adds to a role's routes what every role has: status, metrics, limits, keys, answers to what is not there and to browsers.
/// `payload_limit` is in bytes.
pub fn with_common_routes(
    routes: Routes,
    shared: Arc<Shared>,
    payload_limit: usize,
    keys: Keys,
    origins: &Origins,
) -> Router {
    let root = if routes.page.is_some() { PAGE } else { ROOT_HEALTH };
    let open: Vec<&Operation> = COMMON.iter().chain(root).collect();
    let document = Arc::new(openapi::document(&routes.operations, &open, !keys.is_empty()));
    let description = async move || Json((*document).clone());
    let health = Router::new().route("/", get(status::health)).with_state(Arc::clone(&shared));
    let common = Router::new()
        .route("/info", get(status::info))
        .route("/health", get(status::health))
        .route("/ping", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(description.clone()))
        .route("/api-doc/openapi.json", get(description))
        .route("/docs", get(async || Html(openapi::PAGE)))
        .with_state(Arc::clone(&shared));
    let router = routes
        .router
        .layer(DefaultBodyLimit::max(payload_limit))
        .route_layer(middleware::from_fn_with_state(Arc::new(keys), access::guard))
        .merge(common)
        .merge(routes.page.unwrap_or(health))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method);
    // Around keys, which a browser's first question comes without, and inside of what counts.
    let router = match origins.layer() {
        Some(layer) => router.layer(layer),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(shared, measure))
}

/// Counts and names every request.
async fn measure(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = operations::known(matched).unwrap_or("other");
    let id = access::id_of(request.headers());
    let headers = request.headers().clone();
    // Nobody asks for a computation with GET at the root, nor a browser that asks whether it may.
    let probed = COMMON.iter().any(|it| it.path == route)
        || (route == "/" && request.method() == Method::GET)
        || request.method() == Method::OPTIONS;
    let span = tracing::info_span!("request", id, route, trace = trace::id_of(&headers));
    let answer = cost::told(shared.info.compute_type(), room::bounded(next.run(request)));
    let mut response = trace::within(&headers, answer).instrument(span.clone()).await;
    let seconds = started.elapsed().as_secs_f64();
    let status = response.status().as_u16();
    span.in_scope(|| {
        if matches!(response.status(), StatusCode::FAILED_DEPENDENCY) || response.status().is_server_error() {
            tracing::warn!(status, seconds, "a request failed");
        } else {
            tracing::debug!(status, seconds, "answered");
        }
    });
    shared.metrics.requests.get_or_create(&RequestLabels { route, status }).inc();
    // Probes and scrapes would hide the requests of clients.
    if !probed && route != JOB_EVENTS {
        shared.metrics.request_duration.get_or_create(&RouteLabels { route }).observe(seconds);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(access::REQUEST_ID, id);
    }
    response
}

async fn no_route(method: Method, uri: Uri) -> Response {
    let message =
        format!("there is no route {method} {} in this role; GET /info says which role it is", uri.path());
    ApiError::no_route(StatusCode::NOT_FOUND, message).response(Dialect::of(uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("the route {} does not take {method}", uri.path());
    ApiError::no_route(StatusCode::METHOD_NOT_ALLOWED, message).response(Dialect::of(uri.path()))
}
