//! Watches: what the operator knows of the cluster, kept up to date. Reads only; a change wakes the loop.

use crate::metrics::Metrics;
use crate::pods::relevant;
use futures::{Stream, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use principium_api::names::{LABEL_MANAGED_BY, MANAGED_BY};
use principium_api::{DataFactory, GPUNode, OllamaPool, Reranker};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// The prefix of the Leases that device plugins renew; the node's name follows.
pub const PLUGIN_LEASE: &str = "principium-gpu-";

/// A cache of objects of which some may be unreadable.
pub type Guarded<K> = Store<DeserializeGuard<K>>;

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    pub data_factories: Guarded<DataFactory>,
    pub rerankers: Guarded<Reranker>,
    pub ollama_pools: Guarded<OllamaPool>,
    pub gpu_nodes: Guarded<GPUNode>,
    pub nodes: Store<Node>,
    pub pods: Store<Pod>,
    pub services: Store<Service>,
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
                    Some(event)
                }
                _ => Some(event),
            });
        let ours = Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        Self {
            data_factories: with.run("DataFactory", with.api(), Config::default(), Wake::Always, Some),
            rerankers: with.run("Reranker", with.api(), Config::default(), Wake::Always, Some),
            ollama_pools: with.run("OllamaPool", with.api(), Config::default(), Wake::Always, Some),
            gpu_nodes: with.run(
                "GPUNode",
                Api::all(with.client.clone()),
                Config::default(),
                Wake::Always,
                Some,
            ),
            nodes: with.run(
                "Node",
                Api::all(with.client.clone()),
                Config::default(),
                Wake::Always,
                |event| Some(event.modify(trim_node)),
            ),
            pods: with.run("Pod", with.api(), Config::default(), Wake::Always, only_relevant),
            services: with.run("Service", with.api(), ours, Wake::Always, Some),
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
        self.gpu_nodes.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
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

    fn run<K>(
        &self,
        kind: &'static str,
        api: Api<K>,
        config: Config,
        wake: Wake,
        keep: impl Fn(Event<K>) -> Option<Event<K>> + Send + 'static,
    ) -> Store<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
    {
        let (store, writer) = reflector::store::<K>();
        let events = watch(api, config)
            .default_backoff()
            .try_filter_map(move |event| std::future::ready(Ok(keep(event))))
            .map_ok(|event| {
                event.modify(|object| {
                    object.managed_fields_mut().clear();
                })
            });
        let changed = Arc::clone(&self.changed);
        let metrics = Arc::clone(&self.metrics);
        tokio::spawn(follow(kind, writer, events, wake, changed, metrics));
        store
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
    K: Resource + Clone + 'static,
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
fn only_relevant(event: Event<Pod>) -> Option<Event<Pod>> {
    match &event {
        Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) if !relevant(pod) => None,
        _ => Some(event),
    }
}

/// Drops what is large and not needed.
fn trim_node(node: &mut Node) {
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
}

/// Objects that can't be read, with what is wrong with them.
pub fn unreadable<K>(store: &Guarded<K>) -> Vec<InvalidObject>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.state().iter().filter_map(|object| object.0.as_ref().err().cloned()).collect()
}

/// Objects that can be read.
pub fn readable<K>(store: &Guarded<K>) -> Vec<Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.state().iter().filter_map(|object| object.0.as_ref().ok().cloned().map(Arc::new)).collect()
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

    /// By node.
    pub fn read(&self) -> std::collections::BTreeMap<String, Timestamp> {
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
    fn a_renewal_counts_from_when_it_is_seen() {
        let clock = LeaseClock::default();
        clock.saw(&lease(100), at(1000));
        assert_eq!(clock.read()["a"], at(140), "at first sight its own time is all there is");
        clock.saw(&lease(110), at(1010));
        assert_eq!(clock.read()["a"], at(1050), "a plugin whose clock is behind is alive");
        clock.saw(&lease(110), at(1040));
        assert_eq!(clock.read()["a"], at(1050), "the same renewal seen again is no life");
    }
}
