//! How many pods of a resource a drain may take at once: a PodDisruptionBudget.

use crate::desired::Desired;
use crate::finish::owner;
use crate::resource::Role;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The budget that a resource wants; `None` where it would forbid nothing.
pub fn wanted(desired: &Desired<'_>) -> Option<PodDisruptionBudget> {
    let workers = desired.slots.iter().filter(|slot| slot.role == Role::Worker).count();
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    // A number and not `maxUnavailable`, which works for kinds with a scale subresource only.
    let least = workers.saturating_sub(desired.settings.max_unavailable.unwrap_or(1));
    let key = &desired.id.key;
    (least > 0).then(|| PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            labels: Some(key.labels()),
            owner_references: Some(vec![owner(&desired.id)]),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(least).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(key.selector(Role::Worker)),
                ..LabelSelector::default()
            }),
            // A pod that does no work keeps no node from being drained.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

/// Whether an observed budget already is what is wanted.
pub fn covers(observed: &PodDisruptionBudget, wanted: &PodDisruptionBudget) -> bool {
    observed.spec == wanted.spec
}
