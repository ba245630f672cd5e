//! What a resource wants, in the same words for all three kinds that become pods: slots for pods, Services, and where its memory of
//! former passes lies in its status.

use crate::conditions::reason;
use crate::observed::{Identity, Observed};
use crate::placement::Wish;
use crate::resource::Role;
use crate::template::Template;
use crate::{data_factory, ollama_pool, reranker};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use principium_api::gpu::{GpuRequest, OnOverheat, OnUnhealthy};
use principium_api::pod::PodSettings;
use principium_api::status::Assignment;
use principium_api::{DataFactory, OllamaPool, Reranker};
use rayon::prelude::*;
use std::sync::Arc;

/// The longest name of a resource, so that the names of its pods and Services are valid labels of DNS.
const LONGEST_NAME: usize = 48;

/// A resource of any kind.
#[derive(Clone, Copy, Debug)]
pub enum AnyResource<'a> {
    DataFactory(&'a DataFactory),
    Reranker(&'a Reranker),
    OllamaPool(&'a OllamaPool),
}

/// What a resource wants.
#[derive(Debug)]
pub struct Desired<'a> {
    pub id: Identity,
    pub resource: AnyResource<'a>,
    pub settings: &'a PodSettings,
    pub gpu: Option<&'a GpuRequest>,
    /// The pods that it wants; none while it is being deleted.
    pub slots: Vec<Slot>,
    pub services: Vec<Service>,
    /// Why the spec can't be served at all: a reason and a sentence. What runs is left alone.
    pub problem: Option<(&'static str, String)>,
    /// From its status: conditions, assignments and revisions as they were last written.
    pub conditions: &'a [Condition],
    pub assignments: &'a [Assignment],
    pub revisions: &'a [u32],
}

/// A place for one pod.
#[derive(Clone, Debug)]
pub struct Slot {
    pub role: Role,
    pub ordinal: u32,
    pub wish: Arc<Wish>,
    pub template: Arc<Template>,
    /// Whether a new pod may run beside the one that it replaces.
    pub surge: bool,
    /// The port of the node that its pod takes.
    pub host_port: Option<u32>,
}

impl Desired<'_> {
    pub fn on_overheat(&self) -> OnOverheat {
        self.gpu.and_then(|gpu| gpu.on_overheat).unwrap_or_default()
    }

    pub fn on_unhealthy(&self) -> OnUnhealthy {
        self.gpu.and_then(|gpu| gpu.on_unhealthy).unwrap_or_default()
    }

    /// The pod for a slot, without its name and GPUs.
    pub fn build_pod(&self, observed: &Observed, slot: &Slot) -> Pod {
        match self.resource {
            AnyResource::DataFactory(resource) => data_factory::build_pod(observed, resource, slot.role),
            AnyResource::Reranker(resource) => reranker::build_pod(observed, resource),
            AnyResource::OllamaPool(resource) => ollama_pool::build_pod(observed, resource, slot.ordinal),
        }
    }
}

/// What every resource wants, in the order in which they are served.
pub fn all(observed: &Observed) -> Vec<Desired<'_>> {
    let mut found: Vec<Desired<'_>> = Vec::new();
    found.par_extend(observed.data_factories.par_iter().map(|it| data_factory::desire(observed, it)));
    found.par_extend(observed.rerankers.par_iter().map(|it| reranker::desire(observed, it)));
    found.par_extend(observed.ollama_pools.par_iter().map(|it| ollama_pool::desire(observed, it)));
    for desired in &mut found {
        if desired.problem.is_none() {
            desired.problem = invalid_name(&desired.id.key.name);
        }
        if desired.id.leaving {
            desired.slots.clear();
            desired.services.clear();
        }
    }
    found.sort_by(|a, b| a.id.order.cmp(&b.id.order));
    found
}

/// Pods and Services are named after the resource, and their names are narrower than those of resources.
fn invalid_name(name: &str) -> Option<(&'static str, String)> {
    let begins_well = name.starts_with(|first: char| first.is_ascii_lowercase());
    (name.len() > LONGEST_NAME || name.contains('.') || !begins_well).then(|| {
        let message = format!(
            "the name {name:?} can't name Services: choose one of at most {LONGEST_NAME} characters that begins with a letter \
             and has no dots"
        );
        (reason::INVALID_NAME, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_service_can_have_are_refused() {
        for (name, valid) in [("factory", true), ("a.b", false), ("9x", false), (&*"x".repeat(49), false)] {
            assert_eq!(invalid_name(name).is_none(), valid, "{name}");
        }
    }
}
