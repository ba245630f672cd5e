//! DataFactory: one pod that scales by GPUs, a doc analyzer beside it where one is wanted, and their Services.

mod build;
mod status;
mod volumes;

pub use build::build_pod;
pub use status::report;
pub use volumes::store;

use crate::conditions::reason;
use crate::desired::{AnyResource, Desired, Slot};
use crate::observed::{Identity, Observed};
use crate::placement::{Need, Wish};
use crate::resource::{Kind, Role};
use crate::services::{ServiceParts, build_service};
use build::{analyzer_template, unnamed_model, worker_template};
use k8s_openapi::api::core::v1::Service;
use principium_api::data_factory::OllamaPoolRef;
use principium_api::names::{DATA_FACTORY_PORT, DOC_ANALYZER_PORT, OLLAMA_PORT};
use principium_api::{DataFactory, OllamaPool};
use std::sync::Arc;

/// What a DataFactory wants.
pub fn desire<'a>(observed: &'a Observed, resource: &'a DataFactory) -> Desired<'a> {
    let spec = &resource.spec;
    let priority = observed.priorities.of(spec.pod.priority_class_name.as_deref());
    let id = Identity::of(Kind::DataFactory, resource, priority);
    let mut slots = vec![Slot {
        role: Role::Worker,
        ordinal: 0,
        wish: Arc::new(Wish::new(Need::of(spec.gpu.as_ref()), &spec.pod)),
        template: Arc::new(worker_template(observed, resource)),
        // It has its store to itself: never two of them, and the old one goes before the new one comes.
        surge: false,
        host_port: None,
    }];
    if spec.doc_analyzer.is_some() {
        slots.push(Slot {
            role: Role::Analyzer,
            ordinal: 0,
            wish: Arc::new(Wish::new(Need::Nothing, &spec.pod)),
            template: Arc::new(analyzer_template(observed, resource)),
            surge: true,
            host_port: None,
        });
    }
    let status = resource.status.as_ref();
    Desired {
        services: services(&id, resource),
        slots,
        problem: no_model(observed, resource),
        resource: AnyResource::DataFactory(resource),
        settings: &spec.pod,
        gpu: spec.gpu.as_ref(),
        conditions: status.map(|status| status.conditions.as_slice()).unwrap_or_default(),
        assignments: status.map(|status| status.assignments.as_slice()).unwrap_or_default(),
        revisions: status.map(|status| status.revisions.as_slice()).unwrap_or_default(),
        id,
    }
}

/// A language model is to be asked, and nothing tells which: its pods could not even start.
fn no_model(observed: &Observed, resource: &DataFactory) -> Option<(&'static str, String)> {
    let (field, remedy, reference) = unnamed_model(observed, resource)?;
    let namespace = resource.metadata.namespace.as_deref().unwrap_or_default();
    let name = format!("OllamaPool {namespace}/{}", reference.name);
    Some(match pool(observed, namespace, reference) {
        Some(_) => {
            (reason::NO_MODEL, format!("{field} needs a language model, and {name} has none: {remedy}"))
        }
        None => (
            reason::POOL_MISSING,
            format!(
                "{field} takes the first model of {name}, which does not exist yet: make it, or {remedy}"
            ),
        ),
    })
}

/// A pool of the namespace.
fn pool<'a>(observed: &'a Observed, namespace: &str, reference: &OllamaPoolRef) -> Option<&'a OllamaPool> {
    let key = |pool: &'a OllamaPool| (pool.metadata.namespace.as_deref(), pool.metadata.name.as_deref());
    let pools = &observed.ollama_pools;
    let at = pools.binary_search_by(|pool| key(pool).cmp(&(Some(namespace), Some(&reference.name)))).ok()?;
    pools.get(at).map(AsRef::as_ref)
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
