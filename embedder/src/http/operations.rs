//! Which routes there are: the tables that the router, the metrics and `/openapi.json` are made from.

use axum::routing::{get, post};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Value, json};

use super::openapi::{self, JSON, Operation, fields, files, of};
use super::status::{Info, Ready};
use super::vertex::{Either, VertexRequest, VertexResponse};
use super::{cohere, embed, encode, openai, predict, rerank, tokenize, vertex};
use crate::{analyze, jobs, pipeline, search, sinks};

/// Every operation of every role.
pub(super) fn all() -> impl Iterator<Item = &'static Operation> {
    let of_models = [EMBEDDING, RERANKING, DENSE_ROOTS, SPARSE_ROOTS, RERANK_ROOTS, PREDICT_ROOTS, ANY_MODEL];
    let of_roles: [&'static [Operation]; 5] = [&[PROCESS, ANALYZE], JOBS, COMMON, PAGE, ROOT_HEALTH];
    of_models.into_iter().chain(of_roles).flatten()
}

/// The path of a route that there is, by the pattern that matched.
pub(super) fn known(matched: Option<&str>) -> Option<&'static str> {
    all().map(|it| it.path).find(|path| Some(*path) == matched)
}

/// A JSON value a line.
const LINES: &str = "application/x-ndjson";

/// What the others differ from: it reads, and nothing can go wrong.
const GET: Operation = Operation {
    method: "get",
    path: "",
    summary: "",
    query: None,
    request: &[],
    successes: &[(200, "OK")],
    response: None,
    headers: &[],
    refusals: &[],
    handler: None,
};
/// Makes tokens of a body, or texts of tokens.
const TOKENIZE: Operation = Operation { method: "post", refusals: &[400, 413, 422, 424], ..GET };
/// Computes something of a body, which waits its turn and is told what it cost.
const COMPUTE: Operation = Operation { headers: COST, refusals: &[400, 413, 422, 424, 429, 503], ..TOKENIZE };
const COST: &[&str] = &[
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
];

const EMBED: Operation = Operation {
    path: "/embed",
    summary: "Texts to vectors",
    request: &[(JSON, of::<embed::EmbedRequest>)],
    response: Some((JSON, of::<Vec<Vec<f32>>>)),
    handler: Some(|| post(embed::embed)),
    ..COMPUTE
};
const EMBED_SPARSE: Operation = Operation {
    path: "/embed_sparse",
    summary: "Texts to weights of words",
    request: &[(JSON, of::<embed::TextsRequest>)],
    response: Some((JSON, of::<Vec<Vec<embed::SparseValue>>>)),
    handler: Some(|| post(embed::embed_sparse)),
    ..COMPUTE
};
const RERANK: Operation = Operation {
    path: "/rerank",
    summary: "Texts in the order of their scores by a query",
    request: &[(JSON, of::<rerank::TeiRequest>)],
    response: Some((JSON, of::<Vec<rerank::TeiRank>>)),
    handler: Some(|| post(rerank::tei)),
    ..COMPUTE
};
const PREDICT: Operation = Operation {
    path: "/predict",
    summary: "Labels of texts or pairs with their scores",
    request: &[(JSON, of::<predict::PredictRequest>)],
    response: Some((JSON, of::<predict::Predictions>)),
    handler: Some(|| post(predict::predict)),
    ..COMPUTE
};
const OPENAI: Operation = Operation {
    path: "/v1/embeddings",
    summary: "OpenAI: texts to vectors",
    request: &[(JSON, of::<openai::EmbeddingsRequest>)],
    response: Some((JSON, of::<openai::EmbeddingsResponse>)),
    handler: Some(|| post(openai::embeddings)),
    ..COMPUTE
};

pub(super) const EMBEDDING: &[Operation] = &[
    EMBED,
    Operation {
        path: "/embed_all",
        summary: "Texts to the hidden states of all their tokens",
        request: &[(JSON, of::<embed::TextsRequest>)],
        response: Some((JSON, of::<Vec<Vec<Vec<f32>>>>)),
        handler: Some(|| post(embed::embed_all)),
        ..COMPUTE
    },
    EMBED_SPARSE,
    Operation {
        path: "/similarity",
        summary: "A sentence compared with others",
        request: &[(JSON, of::<embed::SimilarityRequest>)],
        response: Some((JSON, of::<Vec<f32>>)),
        handler: Some(|| post(embed::similarity)),
        ..COMPUTE
    },
    Operation {
        path: "/v1/encode",
        summary: "Texts to dense, sparse and multi-vector form in one pass",
        request: &[(JSON, of::<encode::EncodeRequest>)],
        response: Some((JSON, of::<encode::EncodeResponse>)),
        handler: Some(|| post(encode::encode)),
        ..COMPUTE
    },
    OPENAI,
    Operation { path: "/embeddings", summary: "The same as /v1/embeddings", ..OPENAI },
    Operation {
        path: "/v2/embed",
        summary: "Cohere: texts to vectors as floats, bytes or bits",
        request: &[(JSON, of::<cohere::EmbedRequest>)],
        response: Some((JSON, of::<cohere::EmbedResponse>)),
        handler: Some(|| post(cohere::embed)),
        ..COMPUTE
    },
];

pub(super) const RERANKING: &[Operation] = &[
    RERANK,
    PREDICT,
    Operation {
        path: "/v1/rerank",
        summary: "Jina: documents in the order of their scores by a query",
        request: &[(JSON, of::<rerank::JinaRequest>)],
        response: Some((JSON, of::<rerank::JinaResponse>)),
        handler: Some(|| post(rerank::jina)),
        ..COMPUTE
    },
    Operation {
        path: "/v2/rerank",
        summary: "Cohere: documents in the order of their scores by a query",
        request: &[(JSON, of::<rerank::CohereRequest>)],
        response: Some((JSON, of::<rerank::CohereResponse>)),
        handler: Some(|| post(rerank::cohere)),
        ..COMPUTE
    },
];

const VERTEX: Operation = Operation {
    path: "/vertex",
    summary: "Vertex AI: several of these requests in one",
    handler: Some(|| post(vertex::vertex)),
    ..COMPUTE
};
const VERTEX_EMBED: Operation = Operation {
    request: &[(JSON, of::<VertexRequest<embed::EmbedRequest>>)],
    response: Some((JSON, of::<VertexResponse<Vec<Vec<f32>>>>)),
    ..VERTEX
};
const VERTEX_EMBED_SPARSE: Operation = Operation {
    request: &[(JSON, of::<VertexRequest<embed::TextsRequest>>)],
    response: Some((JSON, of::<VertexResponse<Vec<Vec<embed::SparseValue>>>>)),
    ..VERTEX
};
const VERTEX_RERANK: Operation = Operation {
    request: &[(JSON, of::<VertexRequest<Either<rerank::TeiRequest, predict::PredictRequest>>>)],
    response: Some((JSON, of::<VertexResponse<Either<Vec<rerank::TeiRank>, predict::Predictions>>>)),
    ..VERTEX
};
const VERTEX_PREDICT: Operation = Operation {
    request: &[(JSON, of::<VertexRequest<predict::PredictRequest>>)],
    response: Some((JSON, of::<VertexResponse<predict::Predictions>>)),
    ..VERTEX
};

/// The routes that text-embeddings-inference has for whatever a model is for: its own, SageMaker's and Vertex AI's.
const fn roots(main: Operation, same: &'static str, vertex: Operation) -> [Operation; 3] {
    [
        Operation { path: "/", summary: same, ..main },
        Operation { path: "/invocations", summary: same, ..main },
        vertex,
    ]
}

pub(super) const DENSE_ROOTS: &[Operation] = &roots(EMBED, "The same as /embed", VERTEX_EMBED);
pub(super) const SPARSE_ROOTS: &[Operation] =
    &roots(EMBED_SPARSE, "The same as /embed_sparse", VERTEX_EMBED_SPARSE);
pub(super) const RERANK_ROOTS: &[Operation] = &roots(RERANK, "The same as /rerank", VERTEX_RERANK);
pub(super) const PREDICT_ROOTS: &[Operation] = &roots(PREDICT, "The same as /predict", VERTEX_PREDICT);

pub(super) const ANY_MODEL: &[Operation] = &[
    Operation {
        path: "/tokenize",
        summary: "Texts to tokens with their places",
        request: &[(JSON, of::<tokenize::TokenizeRequest>)],
        response: Some((JSON, of::<Vec<Vec<tokenize::Token>>>)),
        handler: Some(|| post(tokenize::tokenize)),
        ..TOKENIZE
    },
    Operation {
        path: "/decode",
        summary: "Token ids to texts",
        request: &[(JSON, of::<tokenize::DecodeRequest>)],
        response: Some((JSON, of::<Vec<String>>)),
        handler: Some(|| post(tokenize::decode)),
        ..TOKENIZE
    },
    Operation {
        path: "/v1/models",
        summary: "OpenAI: the model",
        response: Some((JSON, of::<openai::Models>)),
        handler: Some(|| get(openai::models)),
        ..GET
    },
    Operation {
        path: "/v1/models/{*model}",
        summary: "OpenAI: the model by its name",
        response: Some((JSON, of::<openai::Model>)),
        refusals: &[404],
        handler: Some(|| get(openai::model)),
        ..GET
    },
];

pub(super) const PROCESS: Operation = Operation {
    method: "post",
    path: "/v1/process",
    summary: "Documents to chunks in context with vectors, as a stream of JSON lines",
    request: &[(JSON, of::<pipeline::ProcessRequest>), ("multipart/form-data", process_form)],
    successes: &[(200, "Lines, each of which is one of these; the last is the summary.")],
    response: Some((LINES, of::<pipeline::Line>)),
    refusals: &[400, 413, 422],
    ..GET
};
pub(super) const ANALYZE: Operation = Operation {
    method: "post",
    path: "/v1/analyze",
    summary: "A document's type, language, structure and the chunking that suits it",
    request: &[(JSON, of::<analyze::OneOrMany>), ("multipart/form-data", files)],
    response: Some((JSON, of::<analyze::Analyses>)),
    refusals: &[400, 413, 422, 424],
    ..GET
};

/// Files, and what is the same for all of them.
fn process_form(generator: &mut SchemaGenerator) -> Schema {
    let mut form = files(generator);
    if let Some(Value::Object(fields)) = form.get_mut("properties") {
        fields.insert("options".to_owned(), of::<pipeline::Options>(generator).to_value());
        let metadata = json!({ "type": "object", "description": "What comes back with every chunk." });
        fields.insert("metadata".to_owned(), metadata);
    }
    form
}

/// An open stream of events says nothing of how fast requests are answered.
pub(super) const JOB_EVENTS: &str = "/v1/jobs/{id}/events";
/// One of the things that are kept.
const KEPT: Operation = Operation { refusals: &[404, 507], ..GET };
const JOB: Operation = Operation {
    path: "/v1/jobs/{id}",
    summary: "One job",
    response: Some((JSON, of::<jobs::JobRecord>)),
    ..KEPT
};

pub(super) const JOBS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/v1/jobs",
        summary: "Takes a job: documents through the pipeline into a corpus and its sink",
        request: &[(JSON, of::<jobs::JobRequest>)],
        successes: &[(202, "It is taken."), (200, "It was taken before.")],
        headers: &["location"],
        refusals: &[400, 409, 413, 422, 429, 507],
        ..JOB
    },
    Operation {
        path: "/v1/jobs",
        summary: "The jobs, the newest first",
        query: Some(fields::<jobs::JobsPage>),
        response: Some((JSON, of::<jobs::JobList>)),
        refusals: &[404, 422, 507],
        ..GET
    },
    JOB,
    Operation {
        method: "delete",
        summary: "Ends a job that goes on, forgets one that has ended",
        successes: &[(202, "It will end."), (204, "It is forgotten.")],
        ..JOB
    },
    Operation {
        method: "post",
        path: "/v1/jobs/{id}/cancel",
        summary: "Ends a job",
        successes: &[(202, "It will end, or has ended before.")],
        ..JOB
    },
    Operation {
        path: JOB_EVENTS,
        summary: "A job as it changes, as server-sent events",
        successes: &[(
            200,
            "Events `progress`, and at last `end`: the data of each is the job as it is then.",
        )],
        response: Some(("text/event-stream", of::<jobs::JobRecord>)),
        ..JOB
    },
    Operation {
        path: "/v1/corpora",
        summary: "What jobs have made",
        response: Some((JSON, of::<jobs::CorpusList>)),
        refusals: &[507],
        ..GET
    },
    Operation {
        path: "/v1/corpora/{corpus}",
        summary: "One corpus",
        response: Some((JSON, of::<jobs::CorpusRecord>)),
        ..KEPT
    },
    Operation {
        path: "/v1/corpora/{corpus}/documents",
        summary: "Its documents, by id; none of a corpus that is not there",
        query: Some(fields::<jobs::DocumentsPage>),
        response: Some((JSON, of::<jobs::DocumentList>)),
        refusals: &[422, 507],
        ..GET
    },
    Operation {
        path: "/v1/corpora/{corpus}/chunks",
        summary: "Its chunks, as JSON lines",
        query: Some(fields::<jobs::WhichChunks>),
        successes: &[(200, "Lines, each of which is a chunk.")],
        response: Some((LINES, of::<sinks::Chunk>)),
        refusals: &[404, 422, 507],
        ..GET
    },
    Operation {
        method: "post",
        path: "/v1/search",
        summary: "The chunks of a corpus that fit a query best",
        request: &[(JSON, of::<search::SearchRequest>)],
        response: Some((JSON, of::<search::SearchResponse>)),
        refusals: &[400, 404, 413, 422, 424, 503, 507],
        ..GET
    },
];

const HEALTH: Operation = Operation {
    path: "/health",
    summary: "Whether the process lives and the model computes",
    refusals: &[503],
    ..GET
};

pub(super) const COMMON: &[Operation] = &[
    Operation {
        path: "/info",
        summary: "What is served, and on what",
        response: Some((JSON, of::<Info>)),
        ..GET
    },
    HEALTH,
    Operation { path: "/ping", summary: SAME_AS_HEALTH, ..HEALTH },
    Operation {
        path: "/ready",
        summary: "Whether the process may be used",
        response: Some((JSON, of::<Ready>)),
        ..HEALTH
    },
    Operation {
        path: "/metrics",
        summary: "Numbers for Prometheus",
        response: Some(("application/openmetrics-text", of::<String>)),
        refusals: &[424],
        ..GET
    },
    DESCRIPTION,
    Operation { path: "/api-doc/openapi.json", summary: "The same as /openapi.json", ..DESCRIPTION },
    Operation {
        path: "/docs",
        summary: "This description as a page",
        response: Some(("text/html", of::<String>)),
        ..GET
    },
];

const DESCRIPTION: Operation = Operation {
    path: "/openapi.json",
    summary: "This description",
    response: Some((JSON, openapi::description)),
    ..GET
};
const SAME_AS_HEALTH: &str = "The same as /health";
/// Beside [`COMMON`] where no page is there: text-embeddings-inference is asked for its health at its root as well.
pub(super) const ROOT_HEALTH: &[Operation] = &[Operation { path: "/", summary: SAME_AS_HEALTH, ..HEALTH }];
/// Beside [`COMMON`] where it is there.
pub(super) const PAGE: &[Operation] = &[
    Operation {
        path: "/",
        summary: "A page to upload documents, watch jobs, read chunks and search",
        response: Some(("text/html", of::<String>)),
        ..GET
    },
    Operation { path: "/page.css", summary: "Its looks", response: Some(("text/css", of::<String>)), ..GET },
    Operation {
        path: "/page.js",
        summary: "Its program",
        response: Some(("text/javascript", of::<String>)),
        ..GET
    },
];
