//! Watches: what the operator knows of the cluster, kept up to date. Reads only; a change wakes the loop.

use crate::clients::WATCH_SECONDS;
use crate::metrics::Metrics;
use crate::observed::NodeView;
use crate::pods::{PodView, relevant};
use futures::{Stream, StreamExt, TryStreamExt};
use hashbrown::HashMap;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Lookup, ObjectRef, Store};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use principium_api::names::{LABEL_MANAGED_BY, MANAGED_BY};
use principium_api::{DataFactory, GPUNode, Ingestion, OllamaPool, Reranker};
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// The prefix of the Leases that device plugins renew; the node's name follows.
pub const PLUGIN_LEASE: &str = "principium-gpu-";

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    pub data_factories: Store<DataFactory>,
    pub rerankers: Store<Reranker>,
    pub ollama_pools: Store<OllamaPool>,
    pub ingestions: Store<Ingestion>,
    pub gpu_nodes: Store<GPUNode>,
    pub nodes: Store<NodeView>,
    pub pods: Store<PodView>,
    pub services: Store<Service>,
    pub budgets: Store<PodDisruptionBudget>,
    pub priority_classes: Store<PriorityClass>,
    pub leases: LeaseClock,
    lease_store: Store<Lease>,
}

/// What the watches are started with.
pub struct Watching {
    pub client: Client,
    /// Only the resources, pods and Services of this namespace.
    pub namespace: Option<String>,
    /// Where the device plugins' Leases are.
    pub lease_namespace: String,
    pub changed: Arc<Notify>,
    pub metrics: Arc<Metrics>,
}

impl Caches {
    /// Starts all watches.
    pub fn start(with: &Watching) -> Self {
        let leases = LeaseClock::default();
        let clock = leases.clone();
        let lease_api = Api::namespaced(with.client.clone(), &with.lease_namespace);
        // A renewal every few seconds of every node is no reason for a pass: the clock is read when one runs.
        let lease_store =
            with.run("Lease", lease_api, Config::default(), Wake::Never, move |event| match &event {
                Event::Apply(lease) | Event::InitApply(lease) => {
                    clock.saw(lease, Timestamp::now());
                    // The clock has what is needed of it.
                    Some(event.modify(|lease| lease.spec = None))
                }
                Event::Delete(lease) => {
                    clock.lost(lease);
                    Some(event)
                }
                Event::Init | Event::InitDone => Some(event),
            });
        let ours = Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        Self {
            data_factories: with.run_guarded("DataFactory", with.api()),
            rerankers: with.run_guarded("Reranker", with.api()),
            ollama_pools: with.run_guarded("OllamaPool", with.api()),
            ingestions: with.run_guarded("Ingestion", with.api()),
            gpu_nodes: with.run_guarded("GPUNode", Api::all(with.client.clone())),
            nodes: with.run(
                "Node",
                Api::all(with.client.clone()),
                Config::default(),
                Wake::Always,
                |event| Some(seen(&event, NodeView::read)),
            ),
            pods: with.run("Pod", with.api(), Config::default(), Wake::Always, |event| relevant_pods(&event)),
            services: with.run("Service", with.api(), ours.clone(), Wake::Always, Some),
            budgets: with.run("PodDisruptionBudget", with.api(), ours, Wake::Always, Some),
            priority_classes: with.run(
                "PriorityClass",
                Api::all(with.client.clone()),
                Config::default(),
                Wake::Always,
                Some,
            ),
            leases,
            lease_store,
        }
    }

    /// Waits until every cache has been filled once.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.data_factories.wait_until_ready().await?;
        self.rerankers.wait_until_ready().await?;
        self.ollama_pools.wait_until_ready().await?;
        self.ingestions.wait_until_ready().await?;
        self.gpu_nodes.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.budgets.wait_until_ready().await?;
        self.priority_classes.wait_until_ready().await?;
        self.lease_store.wait_until_ready().await
    }
}

/// Whether an event of a watch starts a pass.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wake {
    Always,
    Never,
}

impl Watching {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Watches objects and caches what `keep` makes of them.
    fn run<W, K>(
        &self,
        kind: &'static str,
        api: Api<W>,
        config: Config,
        wake: Wake,
        keep: impl Fn(Event<W>) -> Option<Event<K>> + Send + 'static,
    ) -> Store<K>
    where
        W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K: Lookup + Clone + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
    {
        let (store, writer) = reflector::store::<K>();
        self.follow(kind, api, config, wake, writer, keep);
        store
    }

    /// Watches objects of which some may be unreadable: those are told of in the log, and not cached.
    fn run_guarded<K>(&self, kind: &'static str, api: Api<DeserializeGuard<K>>) -> Store<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
    {
        let (store, writer) = reflector::store::<K>();
        let cached = store.clone();
        let keep = move |event| readable(kind, event, &cached);
        self.follow(kind, api, Config::default(), Wake::Always, writer, keep);
        store
    }

    fn follow<W, K>(
        &self,
        kind: &'static str,
        api: Api<W>,
        config: Config,
        wake: Wake,
        writer: Writer<K>,
        keep: impl Fn(Event<W>) -> Option<Event<K>> + Send + 'static,
    ) where
        W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K: Lookup + Clone + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Send + Sync,
    {
        let events = watch(api, config.timeout(WATCH_SECONDS))
            .default_backoff()
            .map_ok(|event| event.modify(|object| object.managed_fields_mut().clear()))
            .try_filter_map(move |event| std::future::ready(Ok(keep(event))));
        let changed = Arc::clone(&self.changed);
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(follow(kind, writer, events, wake, changed, metrics));
    }
}

async fn follow<K>(
    kind: &'static str,
    mut writer: Writer<K>,
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    wake: Wake,
    changed: Arc<Notify>,
    metrics: Arc<Metrics>,
) where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                let whole = !matches!(event, Event::Init | Event::InitApply(_));
                if wake == Wake::Always && whole {
                    changed.notify_one();
                }
            }
            Err(error) => {
                metrics.watch_failed(kind);
                tracing::warn!(kind, %error, "watching failed; trying again with back-off");
            }
        }
    }
}

/// Of all pods only the operator's and those that ask for GPUs are kept. What a pod asks for never changes.
fn relevant_pods(event: &Event<Pod>) -> Option<Event<PodView>> {
    match event {
        Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) if !relevant(pod) => None,
        _ => Some(seen(event, |pod| PodView::read(pod).not_after(Timestamp::now()))),
    }
}

/// The same event about what the operator needs of the object: thousands of pods and nodes are cached, and most of what is in
/// them is not for it.
fn seen<W, K>(event: &Event<W>, view: impl Fn(&W) -> K) -> Event<K> {
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(view(object)),
        Event::Apply(object) => Event::Apply(view(object)),
        Event::Delete(object) => Event::Delete(view(object)),
    }
}

/// How a view is found in its cache: as the object of which it is made.
macro_rules! as_its_object {
    ($view:ty, $object:ty, $namespace:expr) => {
        impl Lookup for $view {
            type DynamicType = ();

            fn kind((): &()) -> Cow<'_, str> {
                <$object as Resource>::kind(&())
            }

            fn group((): &()) -> Cow<'_, str> {
                <$object as Resource>::group(&())
            }

            fn version((): &()) -> Cow<'_, str> {
                <$object as Resource>::version(&())
            }

            fn plural((): &()) -> Cow<'_, str> {
                <$object as Resource>::plural(&())
            }

            fn name(&self) -> Option<Cow<'_, str>> {
                Some(Cow::Borrowed(&self.name))
            }

            fn namespace(&self) -> Option<Cow<'_, str>> {
                let namespace: fn(&Self) -> Option<&str> = $namespace;
                namespace(self).map(Cow::Borrowed)
            }

            fn resource_version(&self) -> Option<Cow<'_, str>> {
                None
            }

            fn uid(&self) -> Option<Cow<'_, str>> {
                None
            }
        }
    };
}

as_its_object!(PodView, Pod, |pod| Some(&pod.namespace));
as_its_object!(NodeView, Node, |_| None);

/// Of events about objects of which some are unreadable, those that the cache is to know. What can't be read is as if it
/// were not there: its pods are left as they are, and keep what they hold.
fn readable<K>(kind: &str, event: Event<DeserializeGuard<K>>, cached: &Store<K>) -> Option<Event<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let unreadable = |invalid: InvalidObject, told: bool| {
        let meta = invalid.metadata;
        let (name, namespace) = (meta.name.unwrap_or_default(), meta.namespace.unwrap_or_default());
        if told {
            tracing::error!(
                kind, namespace, name, error = %invalid.error,
                "this resource can't be read and is left as it is: change it, or upgrade the operator to the version of its CRD"
            );
        }
        let reference = ObjectRef::new(&name);
        let reference = if namespace.is_empty() { reference } else { reference.within(&namespace) };
        cached.get(&reference).map(|known| Event::Delete((*known).clone()))
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(DeserializeGuard(Ok(object))) => Some(Event::InitApply(object)),
        Event::Apply(DeserializeGuard(Ok(object))) => Some(Event::Apply(object)),
        Event::Delete(DeserializeGuard(Ok(object))) => Some(Event::Delete(object)),
        Event::InitApply(DeserializeGuard(Err(invalid))) => {
            unreadable(invalid, true);
            None
        }
        Event::Apply(DeserializeGuard(Err(invalid))) => unreadable(invalid, true),
        Event::Delete(DeserializeGuard(Err(invalid))) => unreadable(invalid, false),
    }
}

/// Until when each node's device plugin is taken to be alive. Counted from when a renewal was seen here, so that clocks
/// that differ don't matter.
#[derive(Clone, Debug, Default)]
pub struct LeaseClock(Arc<Mutex<HashMap<String, Seen>>>);

/// The last renewal that was seen of a Lease, and until when it counts.
type Seen = (Option<MicroTime>, Timestamp);

impl LeaseClock {
    fn saw(&self, lease: &Lease, now: Timestamp) {
        let Some(node) = lease.metadata.name.as_deref().and_then(|name| name.strip_prefix(PLUGIN_LEASE))
        else {
            return;
        };
        let Some(spec) = &lease.spec else { return };
        let lasts = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(40).into());
        let mut clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = clock.get(node).map(|(renewed, _)| renewed.clone());
        let from = match (&before, &spec.renew_time) {
            // The same renewal again, for example after the watch began anew.
            (Some(before), renewed) if before == renewed => return,
            (Some(_), _) => now,
            // At first sight its own time is all there is.
            (None, Some(renewed)) => renewed.0.min(now),
            (None, None) => return,
        };
        let until = from.checked_add(lasts).unwrap_or(from);
        clock.insert(node.to_owned(), (spec.renew_time.clone(), until));
    }

    /// A Lease goes with its node, and is made anew with it.
    fn lost(&self, lease: &Lease) {
        if let Some(node) = lease.metadata.name.as_deref().and_then(|name| name.strip_prefix(PLUGIN_LEASE)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        }
    }

    /// By node.
    pub fn read(&self) -> HashMap<String, Timestamp> {
        let clock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clock.iter().map(|(node, (_, until))| (node.clone(), *until)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;

    fn lease(renewed: i64) -> Lease {
        Lease {
            metadata: kube::core::ObjectMeta {
                name: Some("principium-gpu-a".to_owned()),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                lease_duration_seconds: Some(40),
                renew_time: Some(MicroTime(at(renewed))),
                ..LeaseSpec::default()
            }),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_resource_that_turns_unreadable_is_as_if_it_were_not_there() {
        let (store, mut writer) = reflector::store::<DataFactory>();
        let object = |model: serde_json::Value| -> DeserializeGuard<DataFactory> {
            let meta = serde_json::json!({"name": "df", "namespace": "demo"});
            serde_json::from_value(serde_json::json!({
                "apiVersion": "principium.ai/v1alpha1", "kind": "DataFactory", "metadata": meta, "spec": {"model": model}
            }))
            .unwrap()
        };
        let good = || object(serde_json::json!({"hub": {"name": "a"}}));
        let bad = || object(serde_json::json!("nonsense"));
        let mut happen = |event| {
            if let Some(event) = readable("DataFactory", event, &store) {
                writer.apply_watcher_event(&event);
            }
            store.state().len()
        };
        assert_eq!(happen(Event::Apply(bad())), 0);
        assert_eq!(happen(Event::Apply(good())), 1);
        assert_eq!(happen(Event::Apply(bad())), 0);
        assert_eq!(happen(Event::Apply(good())), 1);
        assert_eq!(happen(Event::Delete(bad())), 0);
    }

    #[test]
    fn a_pod_is_found_again_by_its_name_and_others_are_not_kept() {
        let (store, mut writer) = reflector::store::<PodView>();
        let mut happen = |event| {
            if let Some(event) = relevant_pods(&event) {
                writer.apply_watcher_event(&event);
            }
            let pods = store.state();
            pods.iter()
                .map(|pod| (pod.namespace.clone(), pod.ready))
                .collect::<std::collections::BTreeSet<_>>()
        };
        let pod = |namespace: &str, manager: &str, ready: &str| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "rr-0-1", "namespace": namespace, "labels": {LABEL_MANAGED_BY: manager}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap()
        };
        let ours = |namespace, ready| pod(namespace, MANAGED_BY, ready);
        let kept =
            |pods: &[(&str, bool)]| pods.iter().map(|(name, ready)| ((*name).to_owned(), *ready)).collect();
        assert_eq!(happen(Event::Apply(ours("a", "False"))), kept(&[("a", false)]));
        assert_eq!(happen(Event::Apply(pod("a", "other", "True"))), kept(&[("a", false)]));
        assert_eq!(happen(Event::Apply(ours("b", "False"))), kept(&[("a", false), ("b", false)]));
        assert_eq!(happen(Event::Apply(ours("a", "True"))), kept(&[("a", true), ("b", false)]));
        assert_eq!(happen(Event::Delete(ours("a", "True"))), kept(&[("b", false)]));
    }

    #[test]
    fn a_renewal_counts_from_when_it_is_seen() {
        let clock = LeaseClock::default();
        clock.saw(&lease(100), at(1000));
        assert_eq!(clock.read()["a"], at(140), "at first sight its own time is all there is");
        clock.saw(&lease(110), at(1010));
        assert_eq!(clock.read()["a"], at(1050), "a plugin whose clock is behind is alive");
        clock.saw(&lease(110), at(1040));
        assert_eq!(clock.read()["a"], at(1050), "the same renewal seen again is no life");
        clock.lost(&lease(110));
        assert!(clock.read().is_empty(), "a Lease that is gone says nothing");
    }
}
