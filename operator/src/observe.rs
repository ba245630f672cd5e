//! Gathers what a plan is made from: reads the caches, and looks up the pods that those ought to show and don't.

use crate::caches::Caches;
use crate::observed::{Answers, Observed, Priorities, Settings};
use crate::pods::PodView;
use crate::resource::ResourceKey;
use hashbrown::{HashMap, HashSet};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

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

/// Pods that were made and may not be in the cache yet. Without them a pass on a stale cache would give their GPUs away, or
/// make a second pod beside the first.
#[derive(Debug, Default)]
pub struct Assumed {
    /// By UID: the pod as it was made or found, and when that was, or was asked last.
    pods: HashMap<String, (Arc<PodView>, Timestamp)>,
}

/// How long a pod is assumed before it is looked up. Either it was deleted before the cache could show it, or the watch has
/// fallen silent: time alone does not tell.
const ASSUMED_FOR: Duration = Duration::from_secs(30);
/// Most pods that are looked up in a pass.
const LOOKED_UP: usize = 16;
/// How long a pass waits for them. What is not found out now is assumed on.
const PATIENCE: Duration = Duration::from_secs(5);

impl Assumed {
    pub fn made(&mut self, pod: &Pod, now: Timestamp) {
        let view = Arc::new(PodView::read(pod));
        self.pods.insert(view.uid.clone(), (view, now));
    }

    /// Forgets what the cache shows by now.
    pub fn forget_seen(&mut self, pods: &Store<PodView>) {
        if self.pods.is_empty() {
            return;
        }
        let seen: HashSet<String> = pods.state().iter().map(|pod| pod.uid.clone()).collect();
        self.pods.retain(|uid, _| !seen.contains(uid));
    }

    /// Asks the API server about pods that the cache has not shown for a while.
    pub async fn look_up(&mut self, client: &Client, now: Timestamp) {
        let look_up = |pod: Arc<PodView>| async move {
            let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
            let found = timeout(PATIENCE, api.get_opt(&pod.name)).await;
            (pod, found)
        };
        for (pod, found) in futures::future::join_all(self.doubtful(now).into_iter().map(look_up)).await {
            match found {
                Ok(Ok(found)) => self.found(&pod, found.as_ref(), now),
                Ok(Err(error)) => {
                    tracing::warn!(pod = pod.name, %error, "could not look up a pod that was made");
                    self.put_off(&pod, now);
                }
                Err(_) => {
                    tracing::warn!(pod = pod.name, "the API server says nothing about a pod that was made");
                    self.put_off(&pod, now);
                }
            }
        }
    }

    /// When to look again though nothing changes.
    pub fn doubt(&self) -> Option<Duration> {
        (!self.pods.is_empty()).then_some(ASSUMED_FOR)
    }

    /// Those that have been assumed for long, the longest first.
    fn doubtful(&self, now: Timestamp) -> Vec<Arc<PodView>> {
        let since = |made: Timestamp| now.duration_since(made).unsigned_abs();
        let mut found: Vec<_> = self.pods.values().filter(|(_, made)| since(*made) >= ASSUMED_FOR).collect();
        found.sort_by(|a, b| (a.1, &a.0.uid).cmp(&(b.1, &b.0.uid)));
        found.into_iter().take(LOOKED_UP).map(|(pod, _)| Arc::clone(pod)).collect()
    }

    /// Assumes a pod for another while.
    fn put_off(&mut self, pod: &PodView, now: Timestamp) {
        if let Some((_, since)) = self.pods.get_mut(&pod.uid) {
            *since = now;
        }
    }

    /// What the API server has under the name of a pod that was made.
    fn found(&mut self, pod: &PodView, found: Option<&Pod>, now: Timestamp) {
        self.pods.remove(&pod.uid);
        if let Some(found) = found.filter(|found| found.metadata.uid.as_ref() == Some(&pod.uid)) {
            let view = PodView::read(found).not_after(now);
            self.pods.insert(view.uid.clone(), (Arc::new(view), now));
        }
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
    use kube::core::ObjectMeta;
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
        assumed.forget_seen(&store);
        assert_eq!(assumed.unseen(&[]).len(), 1);
        let seen = Arc::new(PodView::read(&pod()));
        assert_eq!(assumed.unseen(&[seen]), [], "not twice");
        writer.apply_watcher_event(&Event::Apply(PodView::read(&pod())));
        assumed.forget_seen(&store);
        assert_eq!(assumed.unseen(&[]), [], "the cache speaks for it now");
    }

    #[test]
    fn a_pod_that_the_cache_does_not_show_is_forgotten_only_where_it_is_gone() {
        let another = Pod { metadata: ObjectMeta { uid: Some("v".to_owned()), ..pod().metadata }, ..pod() };
        for (found, kept) in [(Some(pod()), 1), (None, 0), (Some(another), 0)] {
            let mut assumed = Assumed::default();
            assumed.made(&pod(), at(100));
            assert!(assumed.doubtful(at(129)).is_empty() && assumed.doubt().is_some());
            let doubtful = assumed.doubtful(at(130));
            assert_eq!(doubtful.len(), 1);
            assumed.found(&doubtful[0], found.as_ref(), at(130));
            assert_eq!(assumed.unseen(&[]).len(), kept, "{found:?}");
            assert!(assumed.doubtful(at(159)).is_empty(), "it is not asked about in every pass");
        }
    }

    #[tokio::test]
    async fn a_pod_is_assumed_for_as_long_as_nobody_says_whether_it_is_there() {
        let nobody = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(nobody).unwrap();
        let mut assumed = Assumed::default();
        assumed.made(&pod(), at(100));
        assumed.look_up(&client, at(1000)).await;
        assert_eq!(assumed.unseen(&[]).len(), 1);
    }
}
