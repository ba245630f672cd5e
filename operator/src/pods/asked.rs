//! How many units of each resource a pod asks for, as the scheduler counts them.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// What the scheduler counts for a pod: containers and sidecars together, or the largest init container.
pub(super) fn requested<K: Ord>(pod: &Pod, select: impl Fn(&str) -> Option<K>) -> BTreeMap<K, u32> {
    let Some(spec) = &pod.spec else { return BTreeMap::new() };
    let mut sum: BTreeMap<K, u32> = BTreeMap::new();
    let mut largest: BTreeMap<K, u32> = BTreeMap::new();
    for container in &spec.containers {
        for (key, units) in of_container(container, &select) {
            let entry = sum.entry(key).or_default();
            *entry = entry.saturating_add(units);
        }
    }
    for container in spec.init_containers.iter().flatten() {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        for (key, units) in of_container(container, &select) {
            if sidecar {
                let entry = sum.entry(key).or_default();
                *entry = entry.saturating_add(units);
            } else {
                let entry = largest.entry(key).or_default();
                *entry = (*entry).max(units);
            }
        }
    }
    for (key, units) in largest {
        let entry = sum.entry(key).or_default();
        *entry = (*entry).max(units);
    }
    sum
}

fn of_container<K: Ord>(container: &Container, select: impl Fn(&str) -> Option<K>) -> BTreeMap<K, u32> {
    let quantities = |resources: &ResourceRequirements| {
        let requests = resources.requests.clone().unwrap_or_default();
        let limits = resources.limits.clone().unwrap_or_default();
        // Extended resources are never overcommitted: a limit is a request.
        requests.into_iter().chain(limits).collect::<BTreeMap<String, Quantity>>()
    };
    container
        .resources
        .as_ref()
        .map(quantities)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, quantity)| Some((select(&name)?, units(&quantity))))
        .filter(|(_, units)| *units > 0)
        .collect()
}

/// The whole number in a quantity of an extended resource. The API server normalizes large ones (`2k`).
pub fn units(quantity: &Quantity) -> u32 {
    let text = quantity.0.trim();
    let (number, factor) = match text.strip_suffix('k') {
        Some(thousands) => (thousands, 1000),
        None => (text, 1),
    };
    number.parse::<u32>().map(|number| number.saturating_mul(factor)).unwrap_or_default()
}
