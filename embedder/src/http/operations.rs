//! Which routes there are: the tables that the router, the metrics and `/openapi.json` are made from.

use axum::routing::{get, post};

use super::openapi::{self, Operation, of};
use super::status::Info;
use super::{cohere, embed, encode, openai, predict, rerank, tokenize, vertex};
use crate::{jobs, search};

/// The path of a route that there is, by the pattern that matched.
pub(super) fn known(matched: Option<&str>) -> Option<&'static str> {
    let tables = [EMBEDDING, RERANKING, DENSE_ROOTS, ANY_MODEL, &[PROCESS, ANALYZE], JOBS, COMMON]
        .into_iter()
        .flatten();
    let path = |it: &'static Operation| Some(it.path).filter(|path| Some(*path) == matched);
    tables.map(path).find_map(|path| path)
}

const EMBED: Operation = Operation {
    method: "post",
    path: "/embed",
    summary: "Texts to vectors",
    request: Some(of::<embed::EmbedRequest>),
    response: Some(of::<Vec<Vec<f32>>>),
    handler: Some(|| post(embed::embed)),
};
const EMBED_SPARSE: Operation = Operation {
    method: "post",
    path: "/embed_sparse",
    summary: "Texts to weights of words",
    request: Some(of::<embed::TextsRequest>),
    response: Some(of::<Vec<Vec<embed::SparseValue>>>),
    handler: Some(|| post(embed::embed_sparse)),
};
const RERANK: Operation = Operation {
    method: "post",
    path: "/rerank",
    summary: "Texts in the order of their scores by a query",
    request: Some(of::<rerank::TeiRequest>),
    response: Some(of::<Vec<rerank::TeiRank>>),
    handler: Some(|| post(rerank::tei)),
};
const PREDICT: Operation = Operation {
    method: "post",
    path: "/predict",
    summary: "Labels of texts or pairs with their scores",
    request: Some(of::<predict::PredictRequest>),
    response: Some(of::<predict::Predictions>),
    handler: Some(|| post(predict::predict)),
};

pub(super) const EMBEDDING: &[Operation] = &[
    EMBED,
    Operation {
        method: "post",
        path: "/embed_all",
        summary: "Texts to the hidden states of all their tokens",
        request: Some(of::<embed::TextsRequest>),
        response: Some(of::<Vec<Vec<Vec<f32>>>>),
        handler: Some(|| post(embed::embed_all)),
    },
    EMBED_SPARSE,
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

pub(super) const RERANKING: &[Operation] = &[
    RERANK,
    PREDICT,
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

/// The routes that text-embeddings-inference has for whatever a model is for: its own, SageMaker's and Vertex AI's.
const fn roots(main: Operation, same: &'static str) -> [Operation; 3] {
    let vertex = Operation {
        method: "post",
        path: "/vertex",
        summary: "Vertex AI: several of these requests in one",
        request: Some(of::<vertex::VertexRequest>),
        response: Some(of::<vertex::VertexResponse>),
        handler: Some(|| post(vertex::vertex)),
    };
    [
        Operation { path: "/", summary: same, ..main },
        Operation { path: "/invocations", summary: same, ..main },
        vertex,
    ]
}

pub(super) const DENSE_ROOTS: &[Operation] = &roots(EMBED, "The same as /embed");
pub(super) const SPARSE_ROOTS: &[Operation] = &roots(EMBED_SPARSE, "The same as /embed_sparse");
pub(super) const RERANK_ROOTS: &[Operation] = &roots(RERANK, "The same as /rerank");
pub(super) const PREDICT_ROOTS: &[Operation] = &roots(PREDICT, "The same as /predict");

pub(super) const ANY_MODEL: &[Operation] = &[
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

pub(super) const PROCESS: Operation = Operation {
    method: "post",
    path: "/v1/process",
    summary: "Documents to chunks in context with vectors, as a stream of JSON lines",
    request: Some(openapi::object),
    response: None,
    handler: None,
};
/// An open stream of events says nothing of how fast requests are answered.
pub(super) const JOB_EVENTS: &str = "/v1/jobs/{id}/events";

pub(super) const JOBS: &[Operation] = &[
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
pub(super) const ANALYZE: Operation = Operation {
    method: "post",
    path: "/v1/analyze",
    summary: "A document's type, language, structure and the chunking that suits it",
    request: Some(openapi::object),
    response: Some(openapi::object),
    handler: None,
};

pub(super) const COMMON: &[Operation] = &[
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
        summary: "Whether the process lives and the model computes",
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

/// Beside [`COMMON`] where no page is there: text-embeddings-inference is asked for its health at its root as well.
pub(super) const ROOT_HEALTH: Operation = reading("/", "The same as /health", None);

/// A route that only reads, which another module brings along.
const fn reading(
    path: &'static str,
    summary: &'static str,
    response: Option<openapi::SchemaOf>,
) -> Operation {
    Operation { method: "get", path, summary, request: None, response, handler: None }
}
