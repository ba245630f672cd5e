//! What a resource has besides pods: Services, and a budget for drains. Applied where they differ, deleted where they are
//! no longer wanted.

use crate::actions::{Action, Write};
use crate::desired::Desired;
use crate::observed::Observed;
use crate::{budget, services};
use hashbrown::HashMap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The observed children, by the UID of their owner.
#[derive(Default)]
pub struct Children<'a> {
    services: HashMap<&'a str, Vec<&'a Service>>,
    budgets: HashMap<&'a str, Vec<&'a PodDisruptionBudget>>,
}

impl<'a> Children<'a> {
    pub fn read(observed: &'a Observed) -> Self {
        let mut children = Self::default();
        for service in observed.services.iter().map(AsRef::as_ref) {
            for owner in owners(&service.metadata) {
                children.services.entry(owner).or_default().push(service);
            }
        }
        for budget in observed.budgets.iter().map(AsRef::as_ref) {
            for owner in owners(&budget.metadata) {
                children.budgets.entry(owner).or_default().push(budget);
            }
        }
        children
    }

    /// Brings the children of a resource to what it wants.
    pub fn settle(&self, desired: &Desired<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut act = |write| actions.push(Action { resource: desired.id.key.clone(), write });
        let uid = desired.id.uid.as_str();
        let mine = self.services.get(uid).map(Vec::as_slice).unwrap_or_default();
        for wanted in &desired.services {
            let existing = mine.iter().find(|found| found.metadata.name == wanted.metadata.name);
            if !existing.is_some_and(|existing| services::covers(existing, wanted)) {
                act(Write::ApplyService { service: Box::new(wanted.clone()), ours: existing.is_some() });
            }
        }
        let budgets = self.budgets.get(uid).map(Vec::as_slice).unwrap_or_default();
        let wanted_budget = budget::wanted(desired);
        if let Some(wanted) = &wanted_budget {
            let existing = budgets.iter().find(|found| found.metadata.name == wanted.metadata.name);
            if !existing.is_some_and(|existing| budget::covers(existing, wanted)) {
                act(Write::ApplyBudget { budget: Box::new(wanted.clone()), ours: existing.is_some() });
            }
        }
        if desired.id.leaving {
            // The garbage collector takes what has an owner.
            return actions;
        }
        for service in mine {
            if !desired.services.iter().any(|wanted| wanted.metadata.name == service.metadata.name) {
                let (name, uid) = identity(&service.metadata);
                act(Write::DeleteService { name, uid });
            }
        }
        for budget in budgets {
            if wanted_budget.as_ref().is_none_or(|wanted| wanted.metadata.name != budget.metadata.name) {
                let (name, uid) = identity(&budget.metadata);
                act(Write::DeleteBudget { name, uid });
            }
        }
        actions
    }
}

/// The owners of an object that is not being deleted.
fn owners(meta: &ObjectMeta) -> impl Iterator<Item = &str> {
    let owners = meta.owner_references.iter().flatten();
    owners.filter(|_| meta.deletion_timestamp.is_none()).map(|owner| owner.uid.as_str())
}

fn identity(meta: &ObjectMeta) -> (String, String) {
    (meta.name.clone().unwrap_or_default(), meta.uid.clone().unwrap_or_default())
}
