//! The Kubernetes API of principium: five kinds in the group `principium.ai/v1alpha1`.
//!
//! This crate holds types, their schema and validation rules, and the names that every other crate must agree on. It
//! knows no client, no runtime and no policy, so that anything may depend on it.

pub mod data_factory;
pub mod gpu;
pub mod gpu_node;
pub mod ingestion;
pub mod model;
pub mod names;
pub mod ollama_pool;
pub mod pod;
pub mod reranker;
pub mod status;
pub mod storage;

pub use data_factory::{DataFactory, DataFactorySpec, DataFactoryStatus};
pub use gpu_node::{GPUNode, GpuNodeStatus};
pub use ingestion::{Ingestion, IngestionSpec, IngestionStatus};
pub use ollama_pool::{OllamaPool, OllamaPoolSpec, OllamaPoolStatus};
pub use reranker::{Reranker, RerankerSpec, RerankerStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Every CustomResourceDefinition of the project, in the order in which documents list them.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![DataFactory::crd(), Reranker::crd(), OllamaPool::crd(), Ingestion::crd(), GPUNode::crd()]
}
