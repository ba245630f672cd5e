//! Gathers what a plan is made from: reads the caches, and nothing else.

use crate::caches::Caches;
use crate::observed::{Answers, Observed, Priorities, Settings};
use crate::pods::PodView;
use crate::resource::ResourceKey;
use hashbrown::{HashMap, HashSet};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Gathers everything. `assumed` are pods that were made and that the cache may not show yet.
pub fn observe(
    caches: &Caches,
    settings: Arc<Settings>,
    answers: Arc<Answers>,
    failures: BTreeMap<ResourceKey, String>,
    assumed: &Assumed,
) -> Observed {
    let mut priorities = Priorities::default();
    for class in caches.priority_classes.state() {
        let value = class.value.unwrap_or_default();
        priorities.by_name.insert(class.name_any(), value);
        if class.global_default == Some(true) {
            priorities.default = value;
        }
    }
    let mut pods = caches.pods.state();
    let unseen = assumed.unseen(&pods);
    pods.extend(unseen);
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Observed {
        settings,
        data_factories: sorted(caches.data_factories.state()),
        rerankers: sorted(caches.rerankers.state()),
        ollama_pools: sorted(caches.ollama_pools.state()),
        ingestions: sorted(caches.ingestions.state()),
        gpu_nodes: sorted(caches.gpu_nodes.state()),
        nodes: caches.nodes.state().into_iter().map(|node| (node.name.clone(), node)).collect(),
        pods,
        services: sorted(caches.services.state()),
        budgets: sorted(caches.budgets.state()),
        lease_expiry: caches.leases.read(),
        priorities,
        answers,
        failures,
    }
}

fn sorted<K: Resource>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.sort_by(|a, b| (&a.meta().namespace, &a.meta().name).cmp(&(&b.meta().namespace, &b.meta().name)));
    objects
}

/// Pods that were made and may not be in the cache yet. Without them a pass on a stale cache would give their GPUs away.
#[derive(Debug, Default)]
pub struct Assumed {
    pods: HashMap<String, (Arc<PodView>, Timestamp)>,
}

/// How long a pod is assumed that the cache never shows: it was deleted before it could be seen.
const ASSUMED_FOR: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);

impl Assumed {
    pub fn made(&mut self, pod: &Pod, now: Timestamp) {
        let view = Arc::new(PodView::read(pod));
        self.pods.insert(view.uid.clone(), (view, now));
    }

    /// Forgets what the cache shows by now, and what it never will.
    pub fn forget_seen(&mut self, pods: &Store<PodView>, now: Timestamp) {
        if self.pods.is_empty() {
            return;
        }
        let seen: HashSet<String> = pods.state().iter().map(|pod| pod.uid.clone()).collect();
        self.pods.retain(|uid, (_, made)| !seen.contains(uid) && now.duration_since(*made) < ASSUMED_FOR);
    }

    fn unseen(&self, seen: &[Arc<PodView>]) -> Vec<Arc<PodView>> {
        if self.pods.is_empty() {
            return Vec::new();
        }
        let seen: HashSet<&str> = seen.iter().map(|pod| pod.uid.as_str()).collect();
        self.pods
            .values()
            .filter(|(pod, _)| !seen.contains(pod.uid.as_str()))
            .map(|(pod, _)| Arc::clone(pod))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "rr-0-1", "namespace": "demo", "uid": "u"}}))
            .unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_pod_that_was_made_counts_until_the_cache_shows_it() {
        let (store, mut writer) = reflector::store::<PodView>();
        let mut assumed = Assumed::default();
        assumed.made(&pod(), at(100));
        assumed.forget_seen(&store, at(101));
        assert_eq!(assumed.unseen(&[]).len(), 1);
        let seen = Arc::new(PodView::read(&pod()));
        assert_eq!(assumed.unseen(&[seen]), [], "not twice");
        writer.apply_watcher_event(&Event::Apply(PodView::read(&pod())));
        assumed.forget_seen(&store, at(102));
        assert_eq!(assumed.unseen(&[]), [], "the cache speaks for it now");
    }

    #[test]
    fn a_pod_that_the_cache_never_shows_is_forgotten_after_a_while() {
        let (store, _writer) = reflector::store::<PodView>();
        let mut assumed = Assumed::default();
        assumed.made(&pod(), at(100));
        assumed.forget_seen(&store, at(131));
        assert_eq!(assumed.unseen(&[]), []);
    }
}
