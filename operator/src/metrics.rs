//! Metrics of the operator, `principium_operator_*`, in the text format of Prometheus.

use crate::actions::{Plan, Status};
use crate::observed::Observed;
use crate::resource::{Kind, ResourceKey};
use principium_api::status::condition;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWrite {
    verb: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResources {
    kind: &'static str,
    ready: &'static str,
}

/// All metrics.
pub struct Metrics {
    registry: Registry,
    plans: Histogram,
    writes: Family<OfWrite, Counter>,
    watch_errors: Family<OfKind, Counter>,
    resources: Family<OfResources, Gauge>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("principium_operator");
        let plans = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        registry.register_with_unit(
            "plan_duration",
            "Time of one plan of the whole cluster",
            Unit::Seconds,
            plans.clone(),
        );
        let writes = Family::default();
        registry.register(
            "writes",
            "Writes to the API server, by what was done and how it ended",
            writes.clone(),
        );
        let watch_errors = Family::default();
        registry.register("watch_errors", "Errors of watches, by kind", watch_errors.clone());
        let resources = Family::default();
        registry.register("resources", "Resources, by kind and whether they are Ready", resources.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 when this operator is the one that works", leader.clone());
        Self { registry, plans, writes, watch_errors, resources, leader }
    }
}

impl Metrics {
    pub fn planned(&self, took: Duration) {
        self.plans.observe(took.as_secs_f64());
    }

    pub fn wrote(&self, verb: &'static str, succeeded: bool) {
        let result = if succeeded { "success" } else { "failure" };
        self.writes.get_or_create(&OfWrite { verb, result }).inc();
    }

    pub fn watch_failed(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&OfKind { kind }).inc();
    }

    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Counts the resources as they will be once the plan is applied.
    pub fn count(&self, observed: &Observed, plan: &Plan) {
        let is_ready = |conditions: &[principium_api::status::Condition]| {
            conditions.iter().any(|found| found.type_ == condition::READY && found.status == "True")
        };
        let planned: HashMap<&ResourceKey, bool> = plan
            .statuses
            .iter()
            .map(|update| {
                let conditions = match &update.status {
                    Status::DataFactory(status) => &status.conditions,
                    Status::Reranker(status) => &status.conditions,
                    Status::OllamaPool(status) => &status.conditions,
                };
                (&update.key, is_ready(conditions))
            })
            .collect();
        let planned = |kind: Kind, namespace: Option<&String>, name: Option<&String>| {
            let key = ResourceKey {
                kind,
                namespace: namespace.cloned().unwrap_or_default(),
                name: name.cloned().unwrap_or_default(),
            };
            planned.get(&key).copied()
        };
        let factories = observed.data_factories.iter().map(|found| {
            let now = found.status.as_ref().is_some_and(|status| is_ready(&status.conditions));
            (
                Kind::DataFactory,
                planned(Kind::DataFactory, found.metadata.namespace.as_ref(), found.metadata.name.as_ref())
                    .unwrap_or(now),
            )
        });
        let rerankers = observed.rerankers.iter().map(|found| {
            let now = found.status.as_ref().is_some_and(|status| is_ready(&status.conditions));
            (
                Kind::Reranker,
                planned(Kind::Reranker, found.metadata.namespace.as_ref(), found.metadata.name.as_ref())
                    .unwrap_or(now),
            )
        });
        let pools = observed.ollama_pools.iter().map(|found| {
            let now = found.status.as_ref().is_some_and(|status| is_ready(&status.conditions));
            (
                Kind::OllamaPool,
                planned(Kind::OllamaPool, found.metadata.namespace.as_ref(), found.metadata.name.as_ref())
                    .unwrap_or(now),
            )
        });
        let mut counts = std::collections::BTreeMap::new();
        for found in factories.chain(rerankers).chain(pools) {
            *counts.entry(found).or_insert(0i64) += 1;
        }
        for kind in Kind::ALL {
            for (ready, label) in [(true, "true"), (false, "false")] {
                let labels = OfResources { kind: kind.name(), ready: label };
                self.resources
                    .get_or_create(&labels)
                    .set(counts.get(&(kind, ready)).copied().unwrap_or_default());
            }
        }
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
