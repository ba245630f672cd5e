//! OllamaPool: instances with GPUs of their own, one Service over all, a stable name for each, and the models on them.

mod build;
mod puller;
mod status;
mod store;

pub use build::build_pod;
pub use puller::{Pull, Pulled, Writers, pull, writers};
pub use status::{report, serves};

use crate::desired::{AnyResource, Desired, Slot};
use crate::observed::{Identity, Observed};
use crate::placement::{Need, Wish};
use crate::resource::{Kind, Role};
use crate::services::{ServiceParts, build_service};
use build::{host_port, instance_template};
use k8s_openapi::api::core::v1::Service;
use principium_api::OllamaPool;
use principium_api::names::OLLAMA_PORT;
use std::borrow::Cow;
use std::sync::Arc;
use store::Store;

/// What a pool wants.
pub fn desire<'a>(observed: &'a Observed, resource: &'a OllamaPool) -> Desired<'a> {
    let spec = &resource.spec;
    let priority = observed.priorities.of(spec.pod.priority_class_name.as_deref());
    let id = Identity::of(Kind::OllamaPool, resource, priority);
    // A claim may be open to one pod only, and a port of a node always is: then the old instance goes first.
    let surge = spec.host_ports.is_none() && !matches!(Store::of(resource), Store::Claim(_));
    // What is the same for all instances is made once.
    let alike = Arc::new(Wish::new(need(resource, 0), &spec.pod));
    let own_devices = spec.gpu.as_ref().is_some_and(|gpu| gpu.devices.is_some());
    let template = Arc::new(instance_template(observed, resource, 0));
    let slots = (0..instances(resource))
        .map(|ordinal| Slot {
            role: Role::Worker,
            ordinal,
            wish: if own_devices {
                Arc::new(Wish::new(need(resource, ordinal), &spec.pod))
            } else {
                Arc::clone(&alike)
            },
            template: match spec.host_ports {
                None => Arc::clone(&template),
                Some(_) => Arc::new(instance_template(observed, resource, ordinal)),
            },
            surge,
            host_port: host_port(resource, ordinal),
        })
        .collect();
    let status = resource.status.as_ref();
    Desired {
        services: services(&id),
        slots,
        problem: None,
        resource: AnyResource::OllamaPool(resource),
        settings: &spec.pod,
        gpu: spec.gpu.as_ref(),
        conditions: status.map(|status| status.conditions.as_slice()).unwrap_or_default(),
        assignments: status.map(|status| status.assignments.as_slice()).unwrap_or_default(),
        revisions: status.map(|status| status.revisions.as_slice()).unwrap_or_default(),
        id,
    }
}

/// A model's name with its tag, as Ollama lists it: one without is `latest`.
pub fn tagged(name: &str) -> Cow<'_, str> {
    match name.rsplit('/').next() {
        Some(last) if last.contains(':') => Cow::Borrowed(name),
        _ => Cow::Owned(format!("{name}:latest")),
    }
}

fn instances(resource: &OllamaPool) -> u32 {
    resource.spec.instances.unwrap_or(1)
}

/// Of exact devices the i-th instance gets the i-th; a count is each instance's own.
fn need(resource: &OllamaPool, ordinal: u32) -> Need {
    let gpu = resource.spec.gpu.as_ref();
    let device = gpu.and_then(|gpu| gpu.devices.as_ref()).map(|devices| {
        usize::try_from(ordinal).ok().and_then(|at| devices.get(at)).cloned().into_iter().collect()
    });
    device.map_or_else(|| Need::of(gpu), Need::Exact)
}

fn services(id: &Identity) -> Vec<Service> {
    let name = &id.key.name;
    let parts = |name: String, headless| ServiceParts {
        id,
        name,
        role: Role::Worker,
        port: OLLAMA_PORT.into(),
        headless,
    };
    vec![build_service(parts(name.clone(), false)), build_service(parts(format!("{name}-instances"), true))]
}
