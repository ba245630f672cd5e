//! DataFactory: one pod that scales by GPUs, a doc analyzer beside it where one is wanted, and their Services.

mod build;
mod status;
mod volumes;

pub use build::build_pod;
pub use status::report;

use crate::desired::{AnyResource, Desired, Slot};
use crate::observed::{Identity, Observed};
use crate::placement::Need;
use crate::resource::{Kind, Role};
use crate::services::{ServiceParts, build_service};
use build::{analyzer_template, worker_template};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Service;
use principium_api::data_factory::OllamaPoolRef;
use principium_api::names::{DATA_FACTORY_PORT, DOC_ANALYZER_PORT, OLLAMA_PORT};
use principium_api::{DataFactory, OllamaPool};
use std::sync::Arc;

/// How long a new DataFactory waits for a pool that is not there: usually both come from one `kubectl apply`, and the
/// pool's model goes into the pod.
const POOL_GRACE: SignedDuration = SignedDuration::from_secs(3);

/// What a DataFactory wants.
pub fn desire<'a>(observed: &'a Observed, resource: &'a DataFactory, now: Timestamp) -> Desired<'a> {
    let spec = &resource.spec;
    let priority = observed.priorities.of(spec.pod.priority_class_name.as_deref());
    let id = Identity::of(Kind::DataFactory, resource, priority);
    let mut slots = vec![Slot {
        role: Role::Worker,
        ordinal: 0,
        need: Need::of(spec.gpu.as_ref()),
        template: Arc::new(worker_template(observed, resource)),
        // It has its documents to itself: never two of them.
        surge: false,
    }];
    if spec.doc_analyzer.is_some() {
        slots.push(Slot {
            role: Role::Analyzer,
            ordinal: 0,
            need: Need::Nothing,
            template: Arc::new(analyzer_template(observed, resource)),
            surge: true,
        });
    }
    let status = resource.status.as_ref();
    let young = now.duration_since(id.created) < POOL_GRACE;
    let awaited =
        pools(resource).find(|pool| young && self::pool(observed, &id.key.namespace, pool).is_none());
    Desired {
        services: services(&id, resource),
        slots,
        problem: None,
        hold: awaited
            .map(|pool| format!("waiting a moment for OllamaPool {}/{}", id.key.namespace, pool.name)),
        resource: AnyResource::DataFactory(resource),
        settings: &spec.pod,
        gpu: spec.gpu.as_ref(),
        conditions: status.map(|status| status.conditions.as_slice()).unwrap_or_default(),
        assignments: status.map(|status| status.assignments.as_slice()).unwrap_or_default(),
        revisions: status.map(|status| status.revisions.as_slice()).unwrap_or_default(),
        id,
    }
}

/// The pools that it refers to.
fn pools(resource: &DataFactory) -> impl Iterator<Item = &OllamaPoolRef> {
    let enrichment = resource.spec.enrichment.as_ref().map(|enrichment| &enrichment.ollama_pool_ref);
    let analyzer = resource.spec.doc_analyzer.as_ref().and_then(|analyzer| analyzer.ollama_pool_ref.as_ref());
    enrichment.into_iter().chain(analyzer)
}

/// A pool of the namespace.
fn pool<'a>(observed: &'a Observed, namespace: &str, reference: &OllamaPoolRef) -> Option<&'a OllamaPool> {
    observed.ollama_pools.iter().map(AsRef::as_ref).find(|pool| {
        pool.metadata.namespace.as_deref() == Some(namespace)
            && pool.metadata.name.as_deref() == Some(&reference.name)
    })
}

fn services(id: &Identity, resource: &DataFactory) -> Vec<Service> {
    let name = &id.key.name;
    let mut services = vec![build_service(ServiceParts {
        id,
        name: name.clone(),
        role: Role::Worker,
        port: port(resource),
        headless: false,
    })];
    if let Some(port) = analyzer_port(resource) {
        services.push(build_service(ServiceParts {
            id,
            name: format!("{name}-analyzer"),
            role: Role::Analyzer,
            port,
            headless: false,
        }));
    }
    services
}

fn port(resource: &DataFactory) -> u32 {
    resource.spec.port.unwrap_or_else(|| DATA_FACTORY_PORT.into())
}

/// Port of the analyzer's Service; `None` without an analyzer.
fn analyzer_port(resource: &DataFactory) -> Option<u32> {
    let analyzer = resource.spec.doc_analyzer.as_ref()?;
    Some(analyzer.port.unwrap_or_else(|| DOC_ANALYZER_PORT.into()))
}

/// A name behind which every ready instance of a pool stands.
fn pool_url(namespace: &str, pool: &OllamaPoolRef) -> String {
    format!("http://{}-instances.{namespace}.svc:{OLLAMA_PORT}", pool.name)
}

fn analyzer_url(namespace: &str, name: &str, port: u32) -> String {
    format!("http://{name}-analyzer.{namespace}.svc:{port}")
}
