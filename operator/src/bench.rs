//! A large cluster of plain data, for measuring plans: nodes, GPUs, resources, and the pods that come of them. Used by
//! `benches/plan.rs` only.

use crate::actions::{Plan, Status, Write};
use crate::observed::{Answers, ModelAnswer, ModelStep, NodeView, Observed, Settings, WorkerInfo};
use crate::plan::plan;
use crate::pods::PodView;
use hashbrown::HashMap;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use principium_api::gpu_node::{
    GPUNode, Gpu, GpuMemoryStatus, GpuNodeSpec, GpuNodeStatus, Withheld, WithheldReason,
};
use principium_api::{DataFactory, OllamaPool, Reranker};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Units of every GPU.
const UNITS: u32 = 24;
/// Node pools, told apart by a label that resources select by.
const ZONES: u32 = 4;
/// Namespaces of the resources.
const NAMESPACES: u32 = 50;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes.
    pub nodes: u32,
    /// GPUs of each node.
    pub gpus: u32,
    /// Resources: half OllamaPools of 12 instances, four of ten Rerankers of 10 replicas, one of ten a DataFactory.
    pub resources: u32,
}

/// A cluster at one moment.
#[derive(Clone, Debug)]
pub struct Fleet {
    observed: Observed,
    now: Timestamp,
}

/// What a plan says is to be done.
#[derive(Debug, Default)]
pub struct Planned(Plan);

impl Planned {
    /// Pods to be made.
    #[must_use]
    pub fn creations(&self) -> usize {
        self.0.actions.iter().filter(|action| matches!(action.write, Write::CreatePod(_))).count()
    }

    /// Statuses to be written.
    #[must_use]
    pub fn statuses(&self) -> usize {
        self.0.statuses.len()
    }
}

impl Fleet {
    /// A cluster in which the resources were made a moment ago.
    #[must_use]
    pub fn new(size: Size) -> Self {
        let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(500_000);
        let mut observed = Observed {
            settings: Arc::new(Settings {
                embedder_image: "embedder:1".to_owned(),
                ollama_image: "ollama:1".to_owned(),
                puller_image: "operator:1".to_owned(),
                require_acceleration: true,
                watch_namespace: None,
            }),
            ..Observed::default()
        };
        for at in 0..size.nodes {
            add_node(&mut observed, at, size.gpus, now);
        }
        for at in 0..size.resources {
            add_resource(&mut observed, at, now);
        }
        sort(&mut observed.data_factories);
        sort(&mut observed.rerankers);
        sort(&mut observed.ollama_pools);
        Self { observed, now }
    }

    /// Plans, without doing it.
    #[must_use]
    pub fn plan(&self) -> Planned {
        Planned(plan(&self.observed, self.now))
    }

    /// Pods in the cluster.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.observed.pods.len()
    }

    /// Plans and does it until nothing is left to do: every pod runs and answers.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            let plan = plan(&self.observed, self.now);
            let idle = plan.actions.is_empty() && plan.statuses.is_empty();
            self.perform(plan);
            if idle {
                return;
            }
            self.pass(SignedDuration::from_secs(1));
        }
    }

    /// Lets these minutes pass.
    pub fn wait(&mut self, minutes: i64) {
        self.pass(SignedDuration::from_mins(minutes));
    }

    /// Lets time pass, in which the device plugins renew their Leases.
    fn pass(&mut self, time: SignedDuration) {
        self.now += time;
        for expiry in self.observed.lease_expiry.values_mut() {
            *expiry = self.now + SignedDuration::from_secs(40);
        }
    }

    /// Overheats one GPU of every n-th node.
    pub fn heat(&mut self, every: usize) {
        for gpu_node in self.observed.gpu_nodes.iter_mut().step_by(every.max(1)) {
            let status = Arc::make_mut(gpu_node).status.as_mut();
            if let Some(gpu) = status.and_then(|status| status.gpus.first_mut()) {
                gpu.temperature = Some(92);
                gpu.withheld = Some(Withheld {
                    reason: WithheldReason::Overheated,
                    message: "92 °C, the limit is 85 °C".to_owned(),
                    since: String::new(),
                });
            }
        }
    }

    /// Takes all pods away, as if every node had been started anew.
    pub fn lose_pods(&mut self) {
        self.observed.pods.clear();
    }

    /// Leaves this many nodes: most resources wait for GPUs.
    pub fn leave(&mut self, nodes: usize) {
        self.observed.pods.clear();
        self.observed.gpu_nodes.truncate(nodes);
    }

    fn perform(&mut self, plan: Plan) {
        let mut pods: BTreeMap<(String, String), Arc<PodView>> = std::mem::take(&mut self.observed.pods)
            .into_iter()
            .map(|pod| ((pod.namespace.clone(), pod.name.clone()), pod))
            .collect();
        for action in plan.actions {
            match action.write {
                Write::CreatePod(mut pod) => {
                    pod.metadata.uid = pod.metadata.name.as_ref().map(|name| format!("uid-{name}"));
                    pod.metadata.creation_timestamp = Some(Time(self.now));
                    let view = running(PodView::read(&pod));
                    pods.insert((view.namespace.clone(), view.name.clone()), Arc::new(view));
                }
                Write::DeletePod { name, .. } => {
                    pods.remove(&(action.resource.namespace, name));
                }
                Write::ApplyService { service, .. } => self.observed.services.push(Arc::from(service)),
                Write::ApplyBudget { budget, .. } => self.observed.budgets.push(Arc::from(budget)),
                Write::SetGate { name, open, .. } => {
                    if let Some(pod) = pods.get_mut(&(action.resource.namespace, name)) {
                        let pod = Arc::make_mut(pod);
                        (pod.gate, pod.gate_is_current, pod.ready) = (Some(open), open, open);
                    }
                }
                Write::DeleteService { .. } | Write::DeleteBudget { .. } => {}
            }
        }
        let answers = answers(pods.values().map(AsRef::as_ref), &self.observed.ollama_pools);
        self.observed.answers = Arc::new(answers);
        self.observed.pods = pods.into_values().collect();
        let statuses: HashMap<_, _> =
            plan.statuses.into_iter().map(|update| (update.uid, update.status)).collect();
        let of = |meta: &ObjectMeta| statuses.get(meta.uid.as_deref().unwrap_or_default());
        for found in &mut self.observed.data_factories {
            if let Some(Status::DataFactory(status)) = of(&found.metadata) {
                Arc::make_mut(found).status = Some((**status).clone());
            }
        }
        for found in &mut self.observed.rerankers {
            if let Some(Status::Reranker(status)) = of(&found.metadata) {
                Arc::make_mut(found).status = Some((**status).clone());
            }
        }
        for found in &mut self.observed.ollama_pools {
            if let Some(Status::OllamaPool(status)) = of(&found.metadata) {
                Arc::make_mut(found).status = Some((**status).clone());
            }
        }
    }
}

fn running(pod: PodView) -> PodView {
    PodView {
        scheduled: true,
        phase: crate::pods::Phase::Running,
        ready: !pod.name.starts_with("pool"),
        containers_ready: true,
        ip: Some("10.0.0.1".to_owned()),
        ..pod
    }
}

fn answers<'a>(pods: impl Iterator<Item = &'a PodView>, pools: &[Arc<OllamaPool>]) -> Answers {
    let model = pools.first().and_then(|pool| pool.spec.models.first()).map(|model| model.name.clone());
    let mut answers = Answers::default();
    for pod in pods {
        if pod.name.starts_with("pool") {
            let answer = ModelAnswer {
                name: model.clone().unwrap_or_default(),
                step: ModelStep::Ready,
                size_vram: Some(1),
                on_gpu: Some(true),
                ..ModelAnswer::default()
            };
            answers.instances.insert(pod.uid.clone(), vec![answer]);
        } else {
            let info = WorkerInfo { model_id: "mini".to_owned(), accelerated: true, ..WorkerInfo::default() };
            answers.workers.insert(pod.uid.clone(), info);
        }
    }
    answers
}

fn add_node(observed: &mut Observed, at: u32, gpus: u32, now: Timestamp) {
    let name = format!("node-{at:05}");
    let mut gpu_node = GPUNode::new(&name, GpuNodeSpec {});
    gpu_node.status = Some(GpuNodeStatus {
        gpus: (0..gpus).map(|index| gpu(at, index)).collect(),
        ..GpuNodeStatus::default()
    });
    observed.gpu_nodes.push(Arc::new(gpu_node));
    observed.lease_expiry.insert(name.clone(), now + SignedDuration::from_secs(40));
    // As many labels as nodes of clouds have.
    let mut labels: BTreeMap<String, String> =
        (0..18).map(|label| (format!("example.com/label-{label}"), format!("value-{label}-{at}"))).collect();
    labels.insert("zone".to_owned(), format!("zone-{}", at % ZONES));
    let node = NodeView {
        labels,
        ready: true,
        allocatable: (0..gpus).map(|index| (index, UNITS)).collect(),
        ..NodeView::default()
    };
    observed.nodes.insert(name, Arc::new(node));
}

fn gpu(node: u32, index: u32) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{node:08x}-{index:04x}-4a5b-8c9d-0123456789ab"),
        product: "NVIDIA GeForce RTX 4090".to_owned(),
        pci_address: format!("00000000:{index:02X}:00.0"),
        units: UNITS,
        memory: GpuMemoryStatus { total: 24564, used: 300, free: 24264 },
        temperature: Some(35 + (node * 7 + index * 13) % 40),
        ..Gpu::default()
    }
}

fn add_resource(observed: &mut Observed, at: u32, now: Timestamp) {
    let namespace = format!("team-{:02}", at % NAMESPACES);
    let zone = json!({"zone": format!("zone-{}", at % ZONES)});
    let object = |kind: &str, name: String, spec: Value| {
        json!({
            "apiVersion": "principium.ai/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{at}"), "generation": 1,
                "creationTimestamp": (now - SignedDuration::from_hours(i64::from(at + 1))).to_string()},
            "spec": spec,
        })
    };
    match at % 10 {
        0..5 => {
            let gpu = json!({"count": 1, "onOverheat": "Migrate"});
            let spec = json!({"instances": 12, "models": [{"name": "llama3.2:3b"}], "gpu": gpu, "nodeSelector": zone});
            add::<OllamaPool>(&mut observed.ollama_pools, object("OllamaPool", format!("pool-{at}"), spec));
        }
        5..9 => {
            let gpu =
                json!({"count": 1, "memory": "3Gi", "prefer": {"indices": [6, 7]}, "maxTemperature": 80});
            let spec = json!({"model": {"hub": {"name": "a/cross"}}, "replicas": 10, "gpu": gpu});
            add::<Reranker>(&mut observed.rerankers, object("Reranker", format!("ranker-{at}"), spec));
        }
        _ => {
            let devices = json!({"devices": [{"index": 0}, {"index": 1, "memory": "5Gi"}]});
            let spec = json!({"model": {"hub": {"name": "a/mini"}}, "gpu": devices,
                "enrichment": {"ollamaPoolRef": {"name": format!("pool-{at}")}}, "nodeSelector": zone});
            add::<DataFactory>(
                &mut observed.data_factories,
                object("DataFactory", format!("factory-{at}"), spec),
            );
        }
    }
}

fn add<K: DeserializeOwned>(resources: &mut Vec<Arc<K>>, object: Value) {
    if let Ok(found) = serde_json::from_value(object) {
        resources.push(Arc::new(found));
    }
}

fn sort<K: kube::Resource>(objects: &mut [Arc<K>]) {
    objects.sort_by(|a, b| (&a.meta().namespace, &a.meta().name).cmp(&(&b.meta().namespace, &b.meta().name)));
}
