//! The HTTP API: routes by role, what they share, and the numbers about them. Each dialect has a file of its own. The tables
//! of operations below are what the router, the metrics and `/openapi.json` are made from.

mod access;
mod body;
mod cohere;
mod embed;
mod encode;
mod error;
mod inputs;
mod openai;
mod openapi;
mod predict;
mod rerank;
mod status;
mod tokenize;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{Html, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tracing::Instrument as _;

pub use access::Keys;
pub use body::parse;
pub use encode::{EncodeOptions, Encoded, encode_texts};
pub use error::{ApiError, Dialect, answer};
pub use rerank::score_texts;
pub use status::{GpuInfo, Info, ModelInfo};

use crate::engine::Engine;
use crate::jobs;
use crate::metrics::{Metrics, RequestLabels, RouteLabels};
use crate::model::{ModelFiles, TextTokenizer};
use crate::search;
use openapi::{Operation, of};

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

/// Routes of one role, with what `/openapi.json` says about them.
pub struct Routes {
    router: Router,
    operations: Vec<&'static Operation>,
    /// What is served to everybody: the page, which holds nothing of its own.
    open: Router,
}

const EMBEDDING: &[Operation] = &[
    Operation {
        method: "post",
        path: "/embed",
        summary: "Texts to vectors",
        request: Some(of::<embed::EmbedRequest>),
        response: Some(of::<Vec<Vec<f32>>>),
        handler: Some(|| post(embed::embed)),
    },
    Operation {
        method: "post",
        path: "/",
        summary: "The same as /embed",
        request: Some(of::<embed::EmbedRequest>),
        response: Some(of::<Vec<Vec<f32>>>),
        handler: Some(|| post(embed::embed)),
    },
    Operation {
        method: "post",
        path: "/embed_all",
        summary: "Texts to the hidden states of all their tokens",
        request: Some(of::<embed::TextsRequest>),
        response: Some(of::<Vec<Vec<Vec<f32>>>>),
        handler: Some(|| post(embed::embed_all)),
    },
    Operation {
        method: "post",
        path: "/embed_sparse",
        summary: "Texts to weights of words",
        request: Some(of::<embed::TextsRequest>),
        response: Some(of::<Vec<Vec<embed::SparseValue>>>),
        handler: Some(|| post(embed::embed_sparse)),
    },
    Operation {
        method: "post",
        path: "/similarity",
        summary: "A sentence compared with others",
        request: Some(of::<embed::SimilarityRequest>),
        response: Some(of::<Vec<f32>>),
        handler: Some(|| post(embed::similarity)),
    },
    Operation {
        method: "post",
        path: "/v1/encode",
        summary: "Texts to dense, sparse and multi-vector form in one pass",
        request: Some(of::<encode::EncodeRequest>),
        response: Some(of::<encode::EncodeResponse>),
        handler: Some(|| post(encode::encode)),
    },
    Operation {
        method: "post",
        path: "/v1/embeddings",
        summary: "OpenAI: texts to vectors",
        request: Some(of::<openai::EmbeddingsRequest>),
        response: Some(of::<openai::EmbeddingsResponse>),
        handler: Some(|| post(openai::embeddings)),
    },
    Operation {
        method: "post",
        path: "/embeddings",
        summary: "The same as /v1/embeddings",
        request: Some(of::<openai::EmbeddingsRequest>),
        response: Some(of::<openai::EmbeddingsResponse>),
        handler: Some(|| post(openai::embeddings)),
    },
    Operation {
        method: "post",
        path: "/v2/embed",
        summary: "Cohere: texts to vectors as floats, bytes or bits",
        request: Some(of::<cohere::EmbedRequest>),
        response: Some(of::<cohere::EmbedResponse>),
        handler: Some(|| post(cohere::embed)),
    },
];

const RERANKING: &[Operation] = &[
    Operation {
        method: "post",
        path: "/rerank",
        summary: "Texts in the order of their scores by a query",
        request: Some(of::<rerank::TeiRequest>),
        response: Some(of::<Vec<rerank::TeiRank>>),
        handler: Some(|| post(rerank::tei)),
    },
    Operation {
        method: "post",
        path: "/predict",
        summary: "Labels of texts or pairs with their scores",
        request: Some(of::<predict::PredictRequest>),
        response: Some(of::<predict::Predictions>),
        handler: Some(|| post(predict::predict)),
    },
    Operation {
        method: "post",
        path: "/v1/rerank",
        summary: "Jina: documents in the order of their scores by a query",
        request: Some(of::<rerank::JinaRequest>),
        response: Some(of::<rerank::JinaResponse>),
        handler: Some(|| post(rerank::jina)),
    },
    Operation {
        method: "post",
        path: "/v2/rerank",
        summary: "Cohere: documents in the order of their scores by a query",
        request: Some(of::<rerank::CohereRequest>),
        response: Some(of::<rerank::CohereResponse>),
        handler: Some(|| post(rerank::cohere)),
    },
];

/// `POST /` of a model with one label, and of one with several.
const RERANK_ROOT: Operation = Operation {
    method: "post",
    path: "/",
    summary: "The same as /rerank",
    request: Some(of::<rerank::TeiRequest>),
    response: Some(of::<Vec<rerank::TeiRank>>),
    handler: Some(|| post(rerank::tei)),
};
const PREDICT_ROOT: Operation = Operation {
    method: "post",
    path: "/",
    summary: "The same as /predict",
    request: Some(of::<predict::PredictRequest>),
    response: Some(of::<predict::Predictions>),
    handler: Some(|| post(predict::predict)),
};

const ANY_MODEL: &[Operation] = &[
    Operation {
        method: "post",
        path: "/tokenize",
        summary: "Texts to tokens with their places",
        request: Some(of::<tokenize::TokenizeRequest>),
        response: Some(of::<Vec<Vec<tokenize::Token>>>),
        handler: Some(|| post(tokenize::tokenize)),
    },
    Operation {
        method: "post",
        path: "/decode",
        summary: "Token ids to texts",
        request: Some(of::<tokenize::DecodeRequest>),
        response: Some(of::<Vec<String>>),
        handler: Some(|| post(tokenize::decode)),
    },
    Operation {
        method: "get",
        path: "/v1/models",
        summary: "OpenAI: the model",
        request: None,
        response: Some(of::<openai::Models>),
        handler: Some(|| get(openai::models)),
    },
    Operation {
        method: "get",
        path: "/v1/models/{*model}",
        summary: "OpenAI: the model by its name",
        request: None,
        response: Some(of::<openai::Model>),
        handler: Some(|| get(openai::model)),
    },
];

const PROCESS: Operation = Operation {
    method: "post",
    path: "/v1/process",
    summary: "Documents to chunks in context with vectors, as a stream of JSON lines",
    request: Some(openapi::object),
    response: None,
    handler: None,
};
/// An open stream of events says nothing of how fast requests are answered.
const JOB_EVENTS: &str = "/v1/jobs/{id}/events";

const JOBS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/jobs",
        summary: "Takes a job: documents through the pipeline into a corpus and its sink",
        request: Some(of::<jobs::JobRequest>),
        response: Some(of::<jobs::JobRecord>),
        handler: None,
    },
    reading("/v1/jobs", "The jobs, the newest first", Some(of::<jobs::JobList>)),
    reading("/v1/jobs/{id}", "One job", Some(of::<jobs::JobRecord>)),
    Operation {
        method: "delete",
        path: "/v1/jobs/{id}",
        summary: "Ends a job that goes on, forgets one that has ended",
        request: None,
        response: Some(of::<jobs::JobRecord>),
        handler: None,
    },
    Operation {
        method: "post",
        path: "/v1/jobs/{id}/cancel",
        summary: "Ends a job",
        request: None,
        response: Some(of::<jobs::JobRecord>),
        handler: None,
    },
    reading(JOB_EVENTS, "A job as it changes, as server-sent events", None),
    reading("/v1/corpora", "What jobs have made", Some(of::<jobs::CorpusList>)),
    reading("/v1/corpora/{corpus}", "One corpus", Some(of::<jobs::CorpusRecord>)),
    reading("/v1/corpora/{corpus}/documents", "Its documents, by id", Some(of::<jobs::DocumentList>)),
    reading("/v1/corpora/{corpus}/chunks", "Its chunks, as JSON lines", None),
    Operation {
        method: "post",
        path: "/v1/search",
        summary: "The chunks of a corpus that fit a query best",
        request: Some(of::<search::SearchRequest>),
        response: Some(of::<search::SearchResponse>),
        handler: None,
    },
];
const ANALYZE: Operation = Operation {
    method: "post",
    path: "/v1/analyze",
    summary: "A document's type, language, structure and the chunking that suits it",
    request: Some(openapi::object),
    response: Some(openapi::object),
    handler: None,
};

const COMMON: &[Operation] = &[
    Operation {
        method: "get",
        path: "/info",
        summary: "What is served, and on what",
        request: None,
        response: Some(of::<Info>),
        handler: None,
    },
    Operation {
        method: "get",
        path: "/health",
        summary: "Whether the process lives",
        request: None,
        response: None,
        handler: None,
    },
    Operation {
        method: "get",
        path: "/ping",
        summary: "The same as /health",
        request: None,
        response: None,
        handler: None,
    },
    Operation {
        method: "get",
        path: "/ready",
        summary: "Whether the process may be used",
        request: None,
        response: Some(openapi::object),
        handler: None,
    },
    Operation {
        method: "get",
        path: "/metrics",
        summary: "Numbers for Prometheus",
        request: None,
        response: None,
        handler: None,
    },
    Operation {
        method: "get",
        path: "/openapi.json",
        summary: "This description",
        request: None,
        response: Some(openapi::object),
        handler: None,
    },
    Operation {
        method: "get",
        path: "/docs",
        summary: "This description as a page",
        request: None,
        response: None,
        handler: None,
    },
];

/// A route that only reads, which another module brings along.
const fn reading(
    path: &'static str,
    summary: &'static str,
    response: Option<openapi::SchemaOf>,
) -> Operation {
    Operation { method: "get", path, summary, request: None, response, handler: None }
}

impl Routes {
    fn new(model: Arc<Served>, operations: Vec<&'static Operation>) -> Self {
        let router = operations
            .iter()
            .filter_map(|operation| Some((operation.path, operation.handler?)))
            .fold(Router::new(), |router, (path, handler)| router.route(path, handler()));
        Self { router: router.with_state(App { model }), operations, open: Router::new() }
    }

    /// Routes that embed, for the role data-factory.
    pub fn embedding(model: Arc<Served>) -> Self {
        Self::new(model, EMBEDDING.iter().chain(ANY_MODEL).collect())
    }

    /// Routes that score pairs or classify, for the role reranker.
    pub fn scoring(model: Arc<Served>) -> Self {
        let reranks = model.files.heads.labels.as_ref().is_some_and(|labels| labels.len() == 1);
        let root = if reranks { &RERANK_ROOT } else { &PREDICT_ROOT };
        Self::new(model, RERANKING.iter().chain(ANY_MODEL).chain([root]).collect())
    }

    /// Routes that analyze documents, for the role doc-analyzer.
    pub fn analyzing(router: Router) -> Self {
        Self { router, operations: vec![&ANALYZE], open: Router::new() }
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
        Self { router: self.router.merge(router), open: self.open.merge(page), ..self }
    }
}

/// Adds to a role's routes what every role has: status, metrics, limits, keys, answers to what is not there.
pub fn with_common_routes(routes: Routes, shared: Arc<Shared>, payload_limit: usize, keys: Keys) -> Router {
    let document = Arc::new(openapi::document(&routes.operations, COMMON, !keys.is_empty()));
    let common = Router::new()
        .route("/info", get(status::info))
        .route("/health", get(status::health))
        .route("/ping", get(status::health))
        .route("/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .route("/openapi.json", get(async move || Json((*document).clone())))
        .route("/docs", get(async || Html(openapi::PAGE)))
        .with_state(Arc::clone(&shared));
    routes
        .router
        .layer(DefaultBodyLimit::max(payload_limit))
        .route_layer(middleware::from_fn_with_state(Arc::new(keys), access::guard))
        .merge(common)
        .merge(routes.open)
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(shared, measure))
}

/// Counts and names every request.
async fn measure(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let mut known =
        [EMBEDDING, RERANKING, ANY_MODEL, &[PROCESS, ANALYZE], JOBS, COMMON].into_iter().flatten();
    let route = known.find(|it| Some(it.path) == matched).map_or("other", |it| it.path);
    let id = access::id_of(request.headers());
    let trace = access::trace_of(request.headers()).map(str::to_owned);
    let span = tracing::info_span!("request", id, route, trace);
    let mut response = next.run(request).instrument(span.clone()).await;
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
    if !COMMON.iter().any(|it| it.path == route) && route != JOB_EVENTS {
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
    ApiError::no_route(StatusCode::NOT_FOUND, message).response(Dialect::Tei)
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("the route {} does not take {method}", uri.path());
    ApiError::no_route(StatusCode::METHOD_NOT_ALLOWED, message).response(Dialect::Tei)
}
