//! A cluster of plain data: it applies plans, runs pods as the scheduler and the kubelet would, and answers for them.

mod kubelet;
mod oracle;
mod questions;

use super::ingestions::Jobs;
use crate::actions::{Plan, Question, Status, Target, Write};
use crate::observed::{ModelAnswer, ModelStep, NodeView, Observed, PullProgress, Settings, WorkerInfo};
use crate::plan::plan;
use crate::pods::{MODELS_READY_GATE, PodView};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use principium_api::gpu_node::{Allocation, Gpu, GpuMemoryStatus, GpuNodeStatus, Withheld, WithheldReason};
use principium_api::status::{Assignment, Condition};
use principium_api::{DataFactory, GPUNode, Ingestion, OllamaPool, Reranker};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Units of every GPU.
pub const UNITS: u32 = 8;
/// How long the kubelet's list, as GPUNode tells it, still counts a pod that is gone.
const COUNTED: SignedDuration = SignedDuration::from_secs(5);

pub struct Cluster {
    pub observed: Observed,
    pub now: Timestamp,
    pub pods: BTreeMap<(String, String), Pod>,
    pub nodes: BTreeMap<String, Vec<Gpu>>,
    /// Whether workers say that they compute on GPUs.
    pub accelerated: bool,
    pub simulated: bool,
    /// Whether pulls of models stand still on their way.
    pub pulling: bool,
    /// Why the device plugins measure no GPUs.
    pub silent: Option<String>,
    /// The model that no instance has yet, and whether the API server refuses pods.
    pub missing: Option<String>,
    pub refusing: bool,
    /// The image whose containers never start.
    pub stuck: Option<String>,
    /// All Events so far: reason and text.
    pub notes: Vec<(&'static str, String)>,
    /// What the DataFactories know of jobs.
    pub jobs: Jobs,
    pub targets: Vec<Target>,
    /// What pods had that are gone and still counted: until when, on which GPU.
    counted: Vec<(Timestamp, String, u32, Allocation)>,
    count: u32,
}

impl Cluster {
    /// Nodes `n0`, `n1`, … with these numbers of GPUs.
    pub fn new(gpus: &[u32]) -> Self {
        let settings = Settings {
            embedder_image: "embedder:1".to_owned(),
            ollama_image: "ollama:1".to_owned(),
            puller_image: "operator:1".to_owned(),
            require_acceleration: true,
            watch_namespace: None,
        };
        let nodes = gpus.iter().enumerate().map(|(at, count)| {
            let name = format!("n{at}");
            let gpus = (0..*count).map(|index| gpu(&name, index)).collect();
            (name, gpus)
        });
        Self {
            observed: Observed { settings: Arc::new(settings), ..Observed::default() },
            now: Timestamp::from_second(1_000_000).unwrap(),
            pods: BTreeMap::new(),
            nodes: nodes.collect(),
            accelerated: true,
            simulated: false,
            pulling: false,
            silent: None,
            missing: None,
            refusing: false,
            stuck: None,
            notes: Vec::new(),
            jobs: Jobs::default(),
            targets: Vec::new(),
            counted: Vec::new(),
            count: 0,
        }
    }

    /// Applies a manifest: kind, name and spec. A later one of the same name changes the spec.
    pub fn apply(&mut self, kind: &str, name: &str, spec: Value) {
        self.count += 1;
        self.now += SignedDuration::from_secs(10);
        let mut object = json!({
            "apiVersion": "principium.ai/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": "demo", "uid": format!("uid-{kind}-{name}-{}", self.count),
                "generation": 1, "creationTimestamp": self.now.to_string()},
        });
        object["spec"] = spec;
        let mut keep = |meta: &kube::core::ObjectMeta, status: Value| {
            object["metadata"] = json!(meta);
            object["metadata"]["generation"] = json!(meta.generation.unwrap() + 1);
            object["status"] = status;
        };
        match kind {
            "DataFactory" => {
                if let Some(old) = take(&mut self.observed.data_factories, name) {
                    keep(&old.metadata, json!(old.status.clone().unwrap_or_default()));
                }
                self.observed.data_factories.push(Arc::new(serde_json::from_value(object).unwrap()));
            }
            "Reranker" => {
                if let Some(old) = take(&mut self.observed.rerankers, name) {
                    keep(&old.metadata, json!(old.status.clone().unwrap_or_default()));
                }
                self.observed.rerankers.push(Arc::new(serde_json::from_value(object).unwrap()));
            }
            "Ingestion" => {
                if let Some(old) = take(&mut self.observed.ingestions, name) {
                    keep(&old.metadata, json!(old.status.clone().unwrap_or_default()));
                }
                self.observed.ingestions.push(Arc::new(serde_json::from_value(object).unwrap()));
            }
            _ => {
                if let Some(old) = take(&mut self.observed.ollama_pools, name) {
                    keep(&old.metadata, json!(old.status.clone().unwrap_or_default()));
                }
                self.observed.ollama_pools.push(Arc::new(serde_json::from_value(object).unwrap()));
            }
        }
    }

    /// Changes a node, if it is there.
    pub fn node(&mut self, name: &str, change: impl FnOnce(&mut NodeView)) {
        if self.nodes.contains_key(name) {
            self.look();
            change(Arc::make_mut(self.observed.nodes.get_mut(name).unwrap()));
        }
    }

    pub fn has(&self, node: &str, index: u32) -> bool {
        self.nodes.get(node).is_some_and(|gpus| gpus.iter().any(|gpu| gpu.index == index))
    }

    /// A node goes for good, its GPUNode and the pods that were bound to it with it.
    pub fn lose(&mut self, name: &str) {
        self.nodes.remove(name);
        self.observed.nodes.remove(name);
        self.pods.retain(|_, pod| {
            let pod = PodView::read(pod);
            !pod.scheduled || pod.node.as_deref() != Some(name)
        });
    }

    /// A node restarts without its last GPU: its pods fail, and those on the lost GPU can't come back.
    pub fn shrink(&mut self, name: &str) {
        let Some(gpus) = self.nodes.get_mut(name) else { return };
        gpus.pop();
        let here = |pod: &&mut Pod| PodView::read(pod).node.as_deref() == Some(name);
        for pod in self.pods.values_mut().filter(here) {
            pod.status.get_or_insert_with(PodStatus::default).phase = Some("Failed".to_owned());
        }
    }

    /// A node is there with all its GPUs, cool; what has another UUID by now keeps it.
    pub fn restore(&mut self, name: &str, gpus: u32) {
        let has = self.nodes.entry(name.to_owned()).or_default();
        for index in 0..gpus {
            if !has.iter().any(|found| found.index == index) {
                has.push(gpu(name, index));
            }
        }
        has.sort_by_key(|gpu| gpu.index);
        self.look();
        for index in 0..gpus {
            self.heat(name, index, 40);
        }
    }

    /// A pod of someone else where there is room.
    pub fn stranger(&mut self, node: &str, index: u32, units: u32) {
        let pods = self.pods.values().map(PodView::read);
        let taken: u32 = pods
            .filter(|pod| pod.node.as_deref() == Some(node) && !pod.ended())
            .filter_map(|pod| pod.units.get(&index).copied())
            .sum();
        if self.has(node, index) && taken + units <= UNITS {
            self.count += 1;
            let name = format!("stranger-{}", self.count);
            self.foreign_pod(&name, node, &[(index, units)]);
        }
    }

    /// A Reranker on one exact GPU.
    pub fn reranker_on(&mut self, name: &str, index: u32) {
        self.apply("Reranker", name, reranker(json!({"devices": [{"index": index}]})));
    }

    /// Deletes a resource; the garbage collector deletes its pods.
    pub fn delete(&mut self, name: &str) {
        let uid = take(&mut self.observed.data_factories, name)
            .and_then(|found| found.metadata.uid.clone())
            .or_else(|| take(&mut self.observed.rerankers, name).and_then(|found| found.metadata.uid.clone()))
            .or_else(|| {
                take(&mut self.observed.ollama_pools, name).and_then(|found| found.metadata.uid.clone())
            })
            .or_else(|| {
                take(&mut self.observed.ingestions, name).and_then(|found| found.metadata.uid.clone())
            })
            .unwrap();
        for pod in self.pods.values_mut() {
            if pod.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid) {
                pod.metadata.deletion_timestamp = Some(Time(self.now));
            }
        }
    }

    /// A pod of someone else, running on a node with units of GPUs.
    pub fn foreign_pod(&mut self, name: &str, node: &str, gpus: &[(u32, u32)]) {
        let limits: BTreeMap<String, String> = gpus
            .iter()
            .map(|(index, units)| (format!("principium.ai/gpu-{index}"), units.to_string()))
            .collect();
        let pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "other", "uid": format!("uid-{name}"),
                "creationTimestamp": self.now.to_string()},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"limits": limits}}]},
            "status": {"phase": "Running"},
        }));
        self.pods.insert(("other".to_owned(), name.to_owned()), pod.unwrap());
    }

    /// Plans once, and does what the plan says.
    pub fn pass(&mut self) -> Plan {
        let plan = self.plan();
        assert_eq!(plan, crate::plan::plan(&self.observed, self.now), "the same input gives the same plan");
        self.perform(&plan);
        self.check_after_pass();
        plan
    }

    /// What would be done now.
    pub fn plan(&mut self) -> Plan {
        self.look();
        plan(&self.observed, self.now)
    }

    /// Plans and runs pods until nothing changes.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            let plan = self.pass();
            let later = plan.requeue_after.is_none_or(|after| after > SignedDuration::from_secs(20));
            let idle =
                plan.actions.is_empty() && plan.statuses.is_empty() && later && self.counted.is_empty();
            if !self.run_pods() && idle {
                return;
            }
            self.now += SignedDuration::from_secs(1);
        }
        panic!("no rest after 100 passes; pods: {:?}", self.pod_names());
    }

    /// What the caches would show.
    fn look(&mut self) {
        let expiry = self.now + SignedDuration::from_secs(30);
        self.counted.retain(|(until, ..)| *until > self.now);
        self.observed.pods = self.pods.values().map(PodView::read).map(Arc::new).collect();
        self.observed.data_factories.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.observed.rerankers.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.observed.ollama_pools.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.observed.ingestions.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        self.observed.gpu_nodes.clear();
        for (name, gpus) in &self.nodes {
            let mut gpu_node = GPUNode::new(name, principium_api::gpu_node::GpuNodeSpec {});
            gpu_node.status = Some(GpuNodeStatus {
                gpus: gpus.iter().map(|gpu| self.measured(name, gpu)).collect(),
                simulated: self.simulated,
                message: self.silent.clone(),
                ..GpuNodeStatus::default()
            });
            self.observed.gpu_nodes.push(Arc::new(gpu_node));
            self.observed.lease_expiry.insert(name.clone(), expiry);
            let node = self.observed.nodes.entry(name.clone()).or_insert_with(|| {
                Arc::new(NodeView {
                    labels: BTreeMap::from([("host".to_owned(), name.clone())]),
                    ready: true,
                    address: Some("192.0.2.7".to_owned()),
                    ..NodeView::default()
                })
            });
            Arc::make_mut(node).allocatable = gpus
                .iter()
                .map(|gpu| {
                    let used = self
                        .observed
                        .pods
                        .iter()
                        .filter(|pod| pod.scheduled && pod.node.as_ref() == Some(name));
                    let used: u32 =
                        used.filter(|pod| !pod.ended()).filter_map(|pod| pod.units.get(&gpu.index)).sum();
                    (gpu.index, if gpu.withheld.is_some() { used } else { gpu.units })
                })
                .collect();
        }
    }

    fn perform(&mut self, plan: &Plan) {
        self.targets.clone_from(&plan.targets);
        self.notes.extend(plan.notes.iter().map(|note| (note.reason, note.text.clone())));
        for action in &plan.actions {
            let namespace = &action.resource.namespace;
            match &action.write {
                Write::CreatePod(_) if self.refusing => {}
                Write::CreatePod(pod) => {
                    let mut pod = (**pod).clone();
                    let name = pod.metadata.name.clone().unwrap();
                    self.count += 1;
                    pod.metadata.uid = Some(format!("pod-{}", self.count));
                    pod.metadata.creation_timestamp = Some(Time(self.now));
                    let before = self.pods.insert((namespace.clone(), name.clone()), pod);
                    assert!(before.is_none(), "{name} was made twice");
                }
                Write::DeletePod { name, uid } => {
                    let key = (namespace.clone(), name.clone());
                    let pod = self.pods.get_mut(&key).unwrap();
                    assert_eq!(pod.metadata.uid.as_ref(), Some(uid));
                    if PodView::read(pod).ended() {
                        self.kill(&key);
                    } else {
                        pod.metadata.deletion_timestamp = Some(Time(self.now));
                    }
                }
                Write::ApplyService { service, .. } => {
                    self.observed.services.retain(|found| found.metadata.name != service.metadata.name);
                    self.observed.services.push(Arc::new((**service).clone()));
                }
                Write::DeleteService { name, .. } => {
                    self.observed.services.retain(|found| found.metadata.name.as_ref() != Some(name));
                }
                Write::ApplyBudget { budget, .. } => {
                    self.observed.budgets.retain(|found| found.metadata.name != budget.metadata.name);
                    self.observed.budgets.push(Arc::new((**budget).clone()));
                }
                Write::DeleteBudget { name, .. } => {
                    self.observed.budgets.retain(|found| found.metadata.name.as_ref() != Some(name));
                }
                Write::SetGate { name, open, reason, not_before, .. } => {
                    let pod = self.pods.get_mut(&(namespace.clone(), name.clone())).unwrap();
                    set_condition(pod, MODELS_READY_GATE, *open);
                    let gate = pod.status.as_mut().unwrap().conditions.as_mut().unwrap().last_mut().unwrap();
                    (gate.last_transition_time, gate.reason) =
                        (Some(self.now).max(*not_before).map(Time), Some((*reason).to_owned()));
                }
            }
        }
        for update in &plan.statuses {
            match &update.status {
                Status::DataFactory(status) => {
                    let found =
                        self.observed.data_factories.iter_mut().find(|found| named(found, &update.key.name));
                    Arc::make_mut(found.unwrap()).status = Some((**status).clone());
                }
                Status::Reranker(status) => {
                    let found =
                        self.observed.rerankers.iter_mut().find(|found| named(found, &update.key.name));
                    Arc::make_mut(found.unwrap()).status = Some((**status).clone());
                }
                Status::OllamaPool(status) => {
                    let found =
                        self.observed.ollama_pools.iter_mut().find(|found| named(found, &update.key.name));
                    Arc::make_mut(found.unwrap()).status = Some((**status).clone());
                }
                Status::Ingestion(status) => {
                    let found =
                        self.observed.ingestions.iter_mut().find(|found| named(found, &update.key.name));
                    Arc::make_mut(found.unwrap()).status = Some((**status).clone());
                }
            }
        }
    }

    /// What must hold after every pass: nothing is granted twice, and the status of every resource is of its newest
    /// generation and says exactly one of Ready, Reconciling and Stalled.
    pub fn check_after_pass(&self) {
        self.check();
        for name in self.names() {
            let (observed, generation) = self.generations(&name);
            assert_eq!(observed, generation, "{name}");
            let is = |type_: &str| self.condition(&name, type_).status == "True";
            let said = ["Ready", "Reconciling", "Stalled"].map(is);
            assert_eq!(said.iter().filter(|said| **said).count(), 1, "{name}: {:?}", self.conditions(&name));
        }
    }

    /// The generation that the status is about, and that of the spec.
    fn generations(&self, name: &str) -> (Option<i64>, Option<i64>) {
        if let Some(found) = self.observed.data_factories.iter().find(|found| named(found, name)) {
            return (found.status.clone().unwrap_or_default().observed_generation, found.metadata.generation);
        }
        if let Some(found) = self.observed.rerankers.iter().find(|found| named(found, name)) {
            return (found.status.clone().unwrap_or_default().observed_generation, found.metadata.generation);
        }
        if let Some(found) = self.observed.ingestions.iter().find(|found| named(found, name)) {
            return (found.status.clone().unwrap_or_default().observed_generation, found.metadata.generation);
        }
        let found = self.observed.ollama_pools.iter().find(|found| named(found, name)).unwrap();
        (found.status.clone().unwrap_or_default().observed_generation, found.metadata.generation)
    }

    /// What must always hold: nothing is granted twice.
    pub fn check(&self) {
        let mut granted: BTreeMap<(String, u32), u32> = BTreeMap::new();
        // What is deleted before it was bound never is.
        let counts = |pod: &PodView| !pod.ended() && (pod.scheduled || !pod.leaving);
        for pod in self.pods.values().map(PodView::read).filter(counts) {
            for (index, units) in &pod.units {
                *granted.entry((pod.node.clone().unwrap(), *index)).or_default() += units;
            }
        }
        for ((node, index), units) in granted {
            assert!(
                units <= UNITS,
                "{units} units of GPU {index} on {node} are granted: {:?}",
                self.pod_names()
            );
        }
    }

    pub fn heat(&mut self, node: &str, index: u32, temperature: u32) {
        let gpu = self.nodes.get_mut(node).unwrap().iter_mut().find(|gpu| gpu.index == index).unwrap();
        gpu.temperature = Some(temperature);
        gpu.withheld = (temperature >= 85).then(|| Withheld {
            reason: WithheldReason::Overheated,
            message: "92 °C, the limit is 85 °C".to_owned(),
            since: String::new(),
        });
    }
}

/// The spec of a Reranker with these GPUs.
pub fn reranker(gpu: Value) -> Value {
    let mut spec = json!({"model": {"hub": {"name": "a/cross"}}});
    spec["gpu"] = gpu;
    spec
}

/// The spec of a DataFactory with these GPUs.
pub fn factory(gpu: Value) -> Value {
    let mut spec = json!({"model": {"hub": {"name": "a/mini"}}});
    spec["gpu"] = gpu;
    spec
}

/// `GPU-1` on the first node, `GPU-n1-1` on the next.
fn gpu(node: &str, index: u32) -> Gpu {
    let node = if node == "n0" { String::new() } else { format!("{node}-") };
    Gpu {
        index,
        uuid: format!("GPU-{node}{index}"),
        product: "NVIDIA GeForce RTX 3060 Ti".to_owned(),
        units: UNITS,
        memory: GpuMemoryStatus { total: 8192, used: 300, free: 7892 },
        temperature: Some(40),
        ..Gpu::default()
    }
}

fn named<K: kube::Resource>(object: &Arc<K>, name: &str) -> bool {
    object.meta().name.as_deref() == Some(name)
}

fn take<K: kube::Resource>(objects: &mut Vec<Arc<K>>, name: &str) -> Option<Arc<K>> {
    let at = objects.iter().position(|object| named(object, name))?;
    Some(objects.remove(at))
}

fn set_condition(pod: &mut Pod, type_: &str, status: bool) {
    let conditions = pod.status.get_or_insert_with(PodStatus::default).conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.push(PodCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        ..PodCondition::default()
    });
}
