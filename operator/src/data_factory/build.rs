//! The pods of a DataFactory, and the templates by which a change of them is told.

use super::{analyzer_port, analyzer_url, pool, pool_url, volumes};
use crate::embedder::{EmbedderPod, build_embedder_pod, embedder_template};
use crate::observed::Observed;
use crate::pod_parts::env;
use crate::pods::PodView;
use crate::resource::Role;
use crate::template::Template;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use principium_api::data_factory::OllamaPoolRef;
use principium_api::names::{DATA_FACTORY_PORT, DOC_ANALYZER_PORT, RERANKER_PORT};
use principium_api::pod::PodSettings;
use principium_api::{DataFactory, OllamaPool};
use serde_json::{Value, json};
use std::sync::Arc;

/// Who asks a pool, and the field of its template that says what.
const ENRICHMENT: (Role, &str) = (Role::Worker, "enrichment");
const ANALYSIS: (Role, &str) = (Role::Analyzer, "analysis");

/// Builds the pod of a role, without its name and GPUs.
pub fn build_pod(observed: &Observed, resource: &DataFactory, role: Role) -> Pod {
    match role {
        Role::Analyzer => build_analyzer_pod(observed, resource),
        Role::Worker | Role::Puller => build_worker_pod(observed, resource),
    }
}

fn build_worker_pod(observed: &Observed, resource: &DataFactory) -> Pod {
    let spec = &resource.spec;
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    let name = resource.metadata.name.as_deref().unwrap_or_default();
    let mut variables = Vec::new();
    if let Some(enrichment) = &spec.enrichment {
        variables.extend(env([("PRINCIPIUM_OLLAMA_URL", pool_url(namespace, &enrichment.ollama_pool_ref))]));
        if let Some(model) = enrichment_model(observed, resource) {
            variables.extend(env([("PRINCIPIUM_OLLAMA_MODEL", model)]));
        }
        variables.extend(number("PRINCIPIUM_CONTEXT_MAX_TOKENS", enrichment.max_tokens));
        let window = context_window(observed, resource, &enrichment.ollama_pool_ref, ENRICHMENT);
        variables.extend(number("PRINCIPIUM_CONTEXT_WINDOW", window.map(at_least)));
        let prompt = enrichment.prompt.clone();
        variables.extend(prompt.into_iter().flat_map(|prompt| env([("PRINCIPIUM_CONTEXT_PROMPT", prompt)])));
    }
    if let Some(chunking) = &spec.chunking {
        let strategy = chunking.strategy.map(|strategy| strategy.name().to_owned());
        variables.extend(strategy.into_iter().flat_map(|name| env([("PRINCIPIUM_CHUNKER", name)])));
        variables.extend(number("PRINCIPIUM_CHUNK_MAX_TOKENS", chunking.max_tokens));
        variables.extend(number("PRINCIPIUM_CHUNK_OVERLAP", chunking.overlap));
    }
    if let Some(port) = analyzer_port(resource) {
        variables.extend(env([("PRINCIPIUM_ANALYZER_URL", analyzer_url(namespace, name, port))]));
    }
    let reranker = spec.search.as_ref().and_then(|search| search.reranker_ref.as_ref());
    if let Some(reranker) = reranker {
        let port = reranker.port.unwrap_or_else(|| RERANKER_PORT.into());
        let url = format!("http://{}.{namespace}.svc:{port}", reranker.name);
        variables.extend(env([("PRINCIPIUM_RERANKER_URL", url)]));
    }
    let prompt = spec.default_prompt_name.clone();
    variables.extend(prompt.into_iter().flat_map(|prompt| env([("PRINCIPIUM_DEFAULT_PROMPT_NAME", prompt)])));
    variables.extend(volumes::variables(spec));
    let mut pod = build_embedder_pod(EmbedderPod {
        settings: &observed.settings,
        pod: &spec.pod,
        role: "data-factory",
        port: DATA_FACTORY_PORT,
        model: Some(&spec.model),
        dtype: spec.dtype,
        env: variables,
        require_acceleration: spec.require_acceleration.unwrap_or(observed.settings.require_acceleration),
        api_key: spec.api_key_secret_ref.as_ref(),
        reranker_key: reranker.and_then(|reranker| reranker.api_key_secret_ref.as_ref()),
    });
    volumes::add_to(&mut pod, spec);
    pod
}

fn build_analyzer_pod(observed: &Observed, resource: &DataFactory) -> Pod {
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    let mut variables = Vec::new();
    if let Some(reference) = analyzer_pool(resource) {
        variables.extend(env([("PRINCIPIUM_OLLAMA_URL", pool_url(namespace, reference))]));
        if let Some(model) = first_model(observed, resource, reference, ANALYSIS) {
            variables.extend(env([("PRINCIPIUM_OLLAMA_MODEL", model)]));
        }
        // That of the worker, if they ask the same pool: Ollama loads a model anew for another window.
        let window = context_window(observed, resource, reference, ANALYSIS);
        variables.extend(number("PRINCIPIUM_CONTEXT_WINDOW", window.map(at_least)));
    }
    build_embedder_pod(EmbedderPod {
        settings: &observed.settings,
        pod: &analyzer_settings(resource),
        role: "doc-analyzer",
        port: DOC_ANALYZER_PORT,
        model: None,
        dtype: None,
        env: variables,
        // It has no GPU to compute on.
        require_acceleration: false,
        // Who may not ask the worker may not have the analyzer ask a language model, which may cost money.
        api_key: resource.spec.api_key_secret_ref.as_ref(),
        reranker_key: None,
    })
}

/// The least window that an embedder can do with.
fn at_least(window: u32) -> u32 {
    window.max(1024)
}

fn number(name: &str, value: Option<u32>) -> Vec<EnvVar> {
    value.map(|value| env([(name, value.to_string())])).into_iter().flatten().collect()
}

fn analyzer_pool(resource: &DataFactory) -> Option<&OllamaPoolRef> {
    resource.spec.doc_analyzer.as_ref()?.ollama_pool_ref.as_ref()
}

/// The model that puts chunks in context: the named one, or the first of the pool.
fn enrichment_model(observed: &Observed, resource: &DataFactory) -> Option<String> {
    let enrichment = resource.spec.enrichment.as_ref()?;
    let named = enrichment.model.clone();
    named.or_else(|| first_model(observed, resource, &enrichment.ollama_pool_ref, ENRICHMENT))
}

/// A reference to a pool of which no model is known: the field, what would be right, and the reference.
pub fn unnamed_model<'a>(
    observed: &Observed,
    resource: &'a DataFactory,
) -> Option<(&'static str, &'static str, &'a OllamaPoolRef)> {
    let enrichment = resource.spec.enrichment.as_ref().map(|enrichment| &enrichment.ollama_pool_ref);
    if let Some(reference) = enrichment.filter(|_| enrichment_model(observed, resource).is_none()) {
        return Some((
            "spec.enrichment",
            "name it in spec.enrichment.model, or in the pool's spec.models",
            reference,
        ));
    }
    let unknown = |reference: &&OllamaPoolRef| first_model(observed, resource, reference, ANALYSIS).is_none();
    let reference = analyzer_pool(resource).filter(unknown)?;
    Some(("spec.docAnalyzer", "name it in the pool's spec.models", reference))
}

/// The first model of a pool.
fn first_model(
    observed: &Observed,
    resource: &DataFactory,
    reference: &OllamaPoolRef,
    asks: (Role, &str),
) -> Option<String> {
    let first = |pool: &OllamaPool| pool.spec.models.first().map(|model| model.name.clone());
    let running = |values: &Value| values["model"].as_str().map(ToOwned::to_owned);
    of_pool(observed, resource, reference, asks, first, running)
}

/// The context window that a pool's instances have, where its spec says so.
fn context_window(
    observed: &Observed,
    resource: &DataFactory,
    reference: &OllamaPoolRef,
    asks: (Role, &str),
) -> Option<u32> {
    let length = |pool: &OllamaPool| pool.spec.settings.as_ref()?.context_length;
    let running = |values: &Value| values["contextWindow"].as_u64()?.try_into().ok();
    of_pool(observed, resource, reference, asks, length, running)
}

/// What a pool says. While there is no such pool, what the running pod was made with, by the field of its template: a pool
/// that goes restarts nobody.
fn of_pool<T>(
    observed: &Observed,
    resource: &DataFactory,
    reference: &OllamaPoolRef,
    (role, field): (Role, &str),
    says: impl FnOnce(&OllamaPool) -> Option<T>,
    running: impl FnOnce(&Value) -> Option<T>,
) -> Option<T> {
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(pool) = pool(observed, namespace, reference) {
        return says(pool);
    }
    let prefix = format!("{}-", resource.metadata.name.as_deref().unwrap_or_default());
    let first = observed
        .pods
        .partition_point(|pod| (pod.namespace.as_str(), pod.name.as_str()) < (namespace, prefix.as_str()));
    let named = |pod: &&Arc<PodView>| pod.namespace == namespace && pod.name.starts_with(&prefix);
    let own = |pod: &&Arc<PodView>| pod.role == role && pod.owner == resource.metadata.uid && !pod.leaving;
    let pods = observed.pods.iter().skip(first).take_while(named);
    let newest = pods.filter(own).max_by_key(|pod| pod.revision)?;
    let template: Value = serde_json::from_str(newest.template.as_deref()?).ok()?;
    let values = template.get(field)?;
    if values["pool"] == reference.name.as_str() { running(values) } else { None }
}

/// What the analyzer shares with the worker. CPU and memory are the worker's.
fn analyzer_settings(resource: &DataFactory) -> PodSettings {
    PodSettings { resources: None, ..resource.spec.pod.clone() }
}

pub fn worker_template(observed: &Observed, resource: &DataFactory) -> Template {
    let spec = &resource.spec;
    let enrichment = spec.enrichment.as_ref().map(|enrichment| {
        let mut values = json!({
            "pool": enrichment.ollama_pool_ref.name,
            "model": enrichment_model(observed, resource),
            "maxTokens": enrichment.max_tokens,
        });
        // Not there unless given, so that pods from before this field need no restart.
        if let Some(prompt) = &enrichment.prompt {
            values["prompt"] = json!(prompt);
        }
        if let Some(window) = context_window(observed, resource, &enrichment.ollama_pool_ref, ENRICHMENT) {
            values["contextWindow"] = json!(window);
        }
        values
    });
    embedder_template(&observed.settings, &spec.pod, Some(&spec.model), spec.dtype)
        .with("defaultPromptName", &spec.default_prompt_name)
        .with("enrichment", &enrichment)
        .with("chunking", &spec.chunking)
        .with("storage", &spec.storage)
        .with("volumes", &volumes::template(spec))
        .with("search", &spec.search)
        .with("analyzerPort", &analyzer_port(resource))
        .with("requireAcceleration", &spec.require_acceleration)
        .with("apiKeySecretRef", &spec.api_key_secret_ref)
}

pub fn analyzer_template(observed: &Observed, resource: &DataFactory) -> Template {
    let analysis = analyzer_pool(resource).map(|reference| {
        let model = first_model(observed, resource, reference, ANALYSIS);
        let mut values = json!({"pool": reference.name, "model": model});
        if let Some(window) = context_window(observed, resource, reference, ANALYSIS) {
            values["contextWindow"] = json!(window);
        }
        values
    });
    embedder_template(&observed.settings, &analyzer_settings(resource), None, None)
        .with("analysis", &analysis)
        .with("apiKeySecretRef", &resource.spec.api_key_secret_ref)
}
