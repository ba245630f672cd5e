//! Reranker: replicas of a cross-encoder, each on GPUs or a share of one, behind one Service.

mod build;
mod status;

pub use build::build_pod;
pub use status::report;

use crate::desired::{AnyResource, Desired, Slot};
use crate::embedder::uses_claim;
use crate::observed::{Identity, Observed};
use crate::placement::{Need, Wish};
use crate::resource::{Kind, Role};
use crate::services::{ServiceParts, build_service};
use build::template;
use principium_api::Reranker;
use principium_api::names::RERANKER_PORT;
use std::sync::Arc;

/// What a Reranker wants.
pub fn desire<'a>(observed: &'a Observed, resource: &'a Reranker) -> Desired<'a> {
    let spec = &resource.spec;
    let priority = observed.priorities.of(spec.pod.priority_class_name.as_deref());
    let id = Identity::of(Kind::Reranker, resource, priority);
    let template = Arc::new(template(observed, resource));
    let wish = Arc::new(Wish::new(Need::of(spec.gpu.as_ref()), &spec.pod));
    let slots = (0..replicas(resource))
        .map(|ordinal| Slot {
            role: Role::Worker,
            ordinal,
            wish: Arc::clone(&wish),
            template: Arc::clone(&template),
            // A claim may be open to one pod only, and then the successor would wait for it forever.
            surge: !uses_claim(&spec.model),
            host_port: None,
        })
        .collect();
    let status = resource.status.as_ref();
    Desired {
        services: vec![build_service(ServiceParts {
            id: &id,
            name: id.key.name.clone(),
            role: Role::Worker,
            port: port(resource),
            headless: false,
        })],
        slots,
        problem: None,
        resource: AnyResource::Reranker(resource),
        settings: &spec.pod,
        gpu: spec.gpu.as_ref(),
        conditions: status.map(|status| status.conditions.as_slice()).unwrap_or_default(),
        assignments: status.map(|status| status.assignments.as_slice()).unwrap_or_default(),
        revisions: status.map(|status| status.revisions.as_slice()).unwrap_or_default(),
        id,
    }
}

fn replicas(resource: &Reranker) -> u32 {
    resource.spec.replicas.unwrap_or(1)
}

fn port(resource: &Reranker) -> u32 {
    resource.spec.port.unwrap_or_else(|| RERANKER_PORT.into())
}
