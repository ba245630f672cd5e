//! The pods of a Reranker, and the template by which a change of them is told.

use crate::embedder::{EmbedderPod, build_embedder_pod, embedder_template};
use crate::observed::Observed;
use crate::template::Template;
use k8s_openapi::api::core::v1::Pod;
use principium_api::Reranker;
use principium_api::names::RERANKER_PORT;

/// Builds a replica, without its name and GPUs.
pub fn build_pod(observed: &Observed, resource: &Reranker) -> Pod {
    let spec = &resource.spec;
    build_embedder_pod(EmbedderPod {
        settings: &observed.settings,
        pod: &spec.pod,
        role: "reranker",
        port: RERANKER_PORT,
        model: Some(&spec.model),
        dtype: spec.dtype,
        env: Vec::new(),
        require_acceleration: spec.require_acceleration.unwrap_or(observed.settings.require_acceleration),
        api_key: spec.api_key_secret_ref.as_ref(),
        reranker_key: None,
    })
}

pub fn template(observed: &Observed, resource: &Reranker) -> Template {
    let spec = &resource.spec;
    embedder_template(&observed.settings, &spec.pod, Some(&spec.model), spec.dtype)
        .with("requireAcceleration", &spec.require_acceleration)
        .with("apiKeySecretRef", &spec.api_key_secret_ref)
}
