//! Metrics of the operator, `principium_operator_*`, in the text format of Prometheus.

use crate::actions::{Plan, Status};
use crate::conditions::reason;
use crate::observed::Observed;
use crate::resource::{Kind, ResourceKey};
use hashbrown::HashMap;
use kube::core::ObjectMeta;
use principium_api::status::{Condition, condition};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfIngestions {
    reason: &'static str,
}

/// Reasons of the condition Ready of Ingestions.
const INGESTION_REASONS: [&str; 11] = [
    reason::COMPLETED,
    reason::SUSPENDED,
    reason::RUNNING,
    reason::UPDATING,
    reason::RUN_FAILED,
    reason::REFUSED,
    reason::INVALID_SCHEDULE,
    reason::DATA_FACTORY_MISSING,
    reason::DATA_FACTORY_NOT_READY,
    reason::DATA_FACTORY_SILENT,
    reason::DELETING,
];

/// All metrics.
pub struct Metrics {
    registry: Registry,
    plans: Histogram,
    writes: Family<OfWrite, Counter>,
    watch_errors: Family<OfKind, Counter>,
    resources: Family<OfResources, Gauge>,
    ingestions: Family<OfIngestions, Gauge>,
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
        let ingestions = Family::default();
        registry.register(
            "ingestions",
            "Ingestions, by the reason of their condition Ready",
            ingestions.clone(),
        );
        let leader = Gauge::default();
        registry.register("leader", "1 when this operator is the one that works", leader.clone());
        Self { registry, plans, writes, watch_errors, resources, ingestions, leader }
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
        let planned: HashMap<&ResourceKey, &[Condition]> = plan
            .statuses
            .iter()
            .map(|update| {
                let conditions = match &update.status {
                    Status::DataFactory(status) => &status.conditions,
                    Status::Reranker(status) => &status.conditions,
                    Status::OllamaPool(status) => &status.conditions,
                    Status::Ingestion(status) => &status.conditions,
                };
                (&update.key, conditions.as_slice())
            })
            .collect();
        let mut counts: BTreeMap<(Kind, bool), i64> = BTreeMap::new();
        let mut reasons: BTreeMap<&str, i64> = BTreeMap::new();
        let mut count = |kind: Kind, meta: &ObjectMeta, written: Option<&[Condition]>| {
            let key = ResourceKey {
                kind,
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            };
            let conditions = planned.get(&key).copied().or(written).unwrap_or_default();
            let ready = conditions.iter().find(|found| found.type_ == condition::READY);
            let is_ready = ready.is_some_and(|ready| ready.status == "True");
            *counts.entry((kind, is_ready)).or_default() += 1;
            let reason =
                ready.and_then(|ready| INGESTION_REASONS.iter().find(|known| **known == ready.reason));
            if let (Kind::Ingestion, Some(reason)) = (kind, reason) {
                *reasons.entry(reason).or_default() += 1;
            }
        };
        for found in &observed.data_factories {
            let status = found.status.as_ref();
            count(Kind::DataFactory, &found.metadata, status.map(|status| status.conditions.as_slice()));
        }
        for found in &observed.rerankers {
            let status = found.status.as_ref();
            count(Kind::Reranker, &found.metadata, status.map(|status| status.conditions.as_slice()));
        }
        for found in &observed.ollama_pools {
            let status = found.status.as_ref();
            count(Kind::OllamaPool, &found.metadata, status.map(|status| status.conditions.as_slice()));
        }
        for found in &observed.ingestions {
            let status = found.status.as_ref();
            count(Kind::Ingestion, &found.metadata, status.map(|status| status.conditions.as_slice()));
        }
        for kind in Kind::ALL {
            for (ready, label) in [(true, "true"), (false, "false")] {
                let labels = OfResources { kind: kind.name(), ready: label };
                self.resources
                    .get_or_create(&labels)
                    .set(counts.get(&(kind, ready)).copied().unwrap_or_default());
            }
        }
        for reason in INGESTION_REASONS {
            let labels = OfIngestions { reason };
            self.ingestions.get_or_create(&labels).set(reasons.get(reason).copied().unwrap_or_default());
        }
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
