//! Everything that a plan is made from, as plain data. It is gathered by `observe`, and by tests directly.

use crate::ingestion::JobAnswer;
use crate::pods::{PodView, units};
use crate::resource::{Kind, Order, ResourceKey};
use hashbrown::HashMap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Resource;
use principium_api::names::gpu_index;
use principium_api::{DataFactory, GPUNode, Ingestion, OllamaPool, Reranker};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A snapshot of the cluster. Lists are sorted by namespace and name: they are searched by it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub settings: Arc<Settings>,
    pub data_factories: Vec<Arc<DataFactory>>,
    pub rerankers: Vec<Arc<Reranker>>,
    pub ollama_pools: Vec<Arc<OllamaPool>>,
    pub ingestions: Vec<Arc<Ingestion>>,
    pub gpu_nodes: Vec<Arc<GPUNode>>,
    pub nodes: HashMap<String, Arc<NodeView>>,
    /// The operator's pods, and all others that ask for GPUs.
    pub pods: Vec<Arc<PodView>>,
    /// The operator's Services.
    pub services: Vec<Arc<Service>>,
    /// The operator's budgets for drains.
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    /// Until when each node's device plugin is taken to be alive.
    pub lease_expiry: HashMap<String, Timestamp>,
    pub priorities: Priorities,
    /// What pods answered, by their UID.
    pub answers: Arc<Answers>,
    /// What could not be written for a resource the last time.
    pub failures: BTreeMap<ResourceKey, String>,
}

/// How the operator was installed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    pub embedder_image: String,
    pub ollama_image: String,
    /// Image of this program, which also pulls models beside Ollama.
    pub puller_image: String,
    pub require_acceleration: bool,
    /// The namespace that is looked after; absent: all. Of others no pod is seen.
    pub watch_namespace: Option<String>,
}

/// A node as the plan needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub ready: bool,
    pub leaving: bool,
    /// Units that it offers, by index of the GPU.
    pub allocatable: BTreeMap<u32, u32>,
    pub address: Option<String>,
}

impl NodeView {
    pub fn read(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            ready: status.and_then(|status| status.conditions.as_ref()).is_some_and(|found| {
                found.iter().any(|found| found.type_ == "Ready" && found.status == "True")
            }),
            leaving: node.metadata.deletion_timestamp.is_some(),
            allocatable: status
                .and_then(|status| status.allocatable.as_ref())
                .into_iter()
                .flatten()
                .filter_map(|(name, quantity)| Some((gpu_index(name)?, units(quantity))))
                .collect(),
            address: status.and_then(|status| status.addresses.as_ref()).and_then(|addresses| {
                addresses.iter().find(|found| found.type_ == "InternalIP").map(|found| found.address.clone())
            }),
        }
    }
}

/// The PriorityClasses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Priorities {
    pub by_name: BTreeMap<String, i32>,
    /// Of pods that name no class.
    pub default: i32,
}

impl Priorities {
    pub fn of(&self, class: Option<&str>) -> i32 {
        class.and_then(|class| self.by_name.get(class)).copied().unwrap_or(self.default)
    }
}

/// What pods answered over HTTP, by UID.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    pub workers: HashMap<String, WorkerInfo>,
    pub instances: HashMap<String, Vec<ModelAnswer>>,
    pub pulls: HashMap<String, PullProgress>,
    /// By the UID of the Ingestion.
    pub jobs: HashMap<String, JobAnswer>,
}

/// How far the pull of a model is, as the pulling container says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PullProgress {
    pub model: String,
    /// In bytes.
    pub completed: u64,
    /// In bytes, as far as known yet.
    pub total: u64,
}

impl PullProgress {
    /// In whole percent.
    pub fn percent(&self) -> Option<u32> {
        let completed = u128::from(self.completed.min(self.total));
        u32::try_from((completed * 100).checked_div(u128::from(self.total))?).ok()
    }
}

/// What a worker of the embedder says about itself at `/info`. Everything else that it says is left aside.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct WorkerInfo {
    #[serde(default)]
    pub model_id: String,
    #[serde(default)]
    pub weights_digest: Option<String>,
    #[serde(default)]
    pub model_dtype: Option<String>,
    #[serde(default)]
    pub dimension: Option<u32>,
    #[serde(default)]
    pub kernel: Option<String>,
    #[serde(default)]
    pub device: Option<String>,
    #[serde(default)]
    pub accelerated: bool,
}

/// What an Ollama instance answered about one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelAnswer {
    pub name: String,
    pub step: ModelStep,
    pub digest: Option<String>,
    /// In bytes.
    pub size: Option<u64>,
    /// In bytes of GPU memory; 0: it runs on the CPU.
    pub size_vram: Option<u64>,
    /// Whether it computes on the GPU, all of it.
    pub on_gpu: Option<bool>,
    pub message: Option<String>,
}

/// How far the verification of a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelStep {
    /// The instance doesn't list it.
    #[default]
    Missing,
    /// It is listed, and being loaded.
    Loading,
    /// It answered.
    Ready,
    /// It was asked and failed.
    Failed,
}

/// Identity and age of a resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    pub key: ResourceKey,
    pub uid: String,
    pub generation: Option<i64>,
    pub created: Timestamp,
    pub leaving: bool,
    pub order: Order,
}

impl Identity {
    pub fn of<K: Resource>(kind: Kind, resource: &K, priority: i32) -> Self {
        let meta = resource.meta();
        let key = ResourceKey {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let created = meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        Self {
            order: Order::new(priority, created, &key),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation,
            leaving: meta.deletion_timestamp.is_some(),
            created,
            key,
        }
    }
}
