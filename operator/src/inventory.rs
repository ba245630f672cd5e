//! The GPUs of the cluster and who holds how much of each: the ledger that placement works on, read from pods' own
//! requests, GPUNodes, Nodes and the plugins' Leases.

use crate::observed::{NodeView, Observed};
use crate::pods::PodView;
use crate::resource::ResourceKey;
use hashbrown::{HashMap, HashSet};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Taint, Toleration};
use principium_api::gpu::MIB_PER_UNIT;
use principium_api::gpu_node::{GPUNode, Gpu, GpuNodeStatus, GpuView, Health, Injection, WithheldReason};
use principium_api::pod::PodSettings;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How long the kubelet's list counts of a pod that has ended: some versions list such pods for as long as they are there.
const ENDED: SignedDuration = SignedDuration::from_secs(30);

/// Memory in MiB that may be in use on a GPU beyond what is granted: the driver's reserve, and the steps in which
/// GPUNode reports.
pub const MEMORY_TOLERANCE_MIB: u64 = MIB_PER_UNIT;

/// Every GPU that the operator may place on, by node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory<'o> {
    pub nodes: Nodes<'o>,
}

/// The nodes in the order of their names. Every pod looks for its node several times in a pass, so they are found by
/// hash; what a search in order would compare adds up to a third of the pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Nodes<'o> {
    sorted: Vec<NodeGpus<'o>>,
    numbers: HashMap<Cow<'o, str>, usize>,
}

impl<'o> Nodes<'o> {
    pub fn get(&self, name: &str) -> Option<&NodeGpus<'o>> {
        self.sorted.get(self.number(name)?)
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut NodeGpus<'o>> {
        let number = self.number(name)?;
        self.sorted.get_mut(number)
    }

    /// Where the node stands in [`Nodes::all`].
    pub fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// All nodes, in the order of their names.
    pub fn all(&self) -> &[NodeGpus<'o>] {
        &self.sorted
    }
}

impl<'o> FromIterator<NodeGpus<'o>> for Nodes<'o> {
    fn from_iter<I: IntoIterator<Item = NodeGpus<'o>>>(nodes: I) -> Self {
        let mut sorted: Vec<NodeGpus<'o>> = nodes.into_iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let numbers = sorted.iter().enumerate().map(|(number, node)| (node.name.clone(), number)).collect();
        Self { sorted, numbers }
    }
}

/// The GPUs of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeGpus<'o> {
    pub name: Cow<'o, str>,
    pub labels: Cow<'o, BTreeMap<String, String>>,
    pub taints: Cow<'o, [Taint]>,
    /// Why the node takes no placements now.
    pub closed: Option<String>,
    /// Whether the node is gone or doesn't answer: that something ended there may never be heard.
    pub lost: bool,
    pub injection: Injection,
    pub simulated: bool,
    /// In the order of their indices.
    pub gpus: Vec<GpuState<'o>>,
}

/// One GPU and its holders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuState<'o> {
    pub index: u32,
    pub uuid: Cow<'o, str>,
    pub product: Cow<'o, str>,
    /// Units of the whole GPU.
    pub units: u32,
    /// Units that the node offers to the scheduler, those in use included.
    pub offered: u32,
    /// In °C.
    pub temperature: Option<u32>,
    /// In MiB, as NVML measures it.
    pub memory_free: u64,
    /// Why the GPU takes no placements now.
    pub closed: Option<Closed>,
    pub holders: Vec<Holder<'o>>,
}

/// Why a GPU takes no placements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    pub cause: Cause,
    /// Ends a sentence that begins with the GPU, for example `is withheld (Overheated: …)`.
    pub message: String,
}

/// The causes that the operator acts on differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Overheated,
    Unhealthy,
    /// Anything else, for example a foreign process or the generic pool.
    Other,
}

/// Who has units of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder<'o> {
    pub who: Who<'o>,
    pub units: u32,
    pub state: HolderState,
}

/// A holder by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who<'o> {
    Resource(Cow<'o, ResourceKey>),
    /// A pod that is not the operator's: namespace and name.
    Pod(String, String),
}

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(key) => key.fmt(f),
            Self::Pod(namespace, name) => write!(f, "Pod {namespace}/{name}"),
        }
    }
}

/// How a holder has its units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderState {
    /// A pod asks for them.
    Holds,
    /// A pod that is ending still has them.
    Leaving,
    /// A pod that should have ended long ago still has them: nobody counts on its end.
    Overdue,
    /// Granted in this pass.
    Granted,
    /// Kept for a resource that comes first and waits for more.
    Reserved,
}

impl GpuState<'_> {
    /// Units that nobody has.
    pub fn free(&self) -> u32 {
        let held = self.holders.iter().fold(0u32, |sum, holder| sum.saturating_add(holder.units));
        self.units.saturating_sub(held)
    }

    /// Takes out the holders that `gone` says, with the memory that they use.
    pub fn let_go(&mut self, gone: impl Fn(&Holder<'_>) -> bool) {
        let units: u64 =
            self.holders.iter().filter(|holder| gone(holder)).map(|holder| u64::from(holder.units)).sum();
        self.holders.retain(|holder| !gone(holder));
        self.memory_free = self.memory_free.saturating_add(units * MIB_PER_UNIT);
    }

    /// Units that pods have or were granted; reserved ones don't count.
    pub fn taken(&self) -> u32 {
        self.holders
            .iter()
            .filter(|holder| holder.state != HolderState::Reserved)
            .fold(0u32, |sum, holder| sum.saturating_add(holder.units))
    }
}

impl<'o> NodeGpus<'o> {
    pub fn gpu(&self, index: u32) -> Option<&GpuState<'o>> {
        self.gpus.iter().find(|gpu| gpu.index == index)
    }

    pub fn gpu_mut(&mut self, index: u32) -> Option<&mut GpuState<'o>> {
        self.gpus.iter_mut().find(|gpu| gpu.index == index)
    }

    /// Whether a pod with this selector and these tolerations may run here; else what is against it.
    pub fn admits(
        &self,
        selector: &BTreeMap<String, String>,
        tolerations: &[Toleration],
    ) -> Result<(), Admission> {
        if selector.iter().any(|(key, value)| self.labels.get(key) != Some(value)) {
            return Err(Admission::NotSelected);
        }
        if let Some(why) = &self.closed {
            return Err(Admission::Closed(why.clone()));
        }
        match untolerated(&self.taints, tolerations) {
            Some(taint) => {
                Err(Admission::Closed(format!("has the taint {} that is not tolerated", taint.key)))
            }
            None => Ok(()),
        }
    }
}

/// Why a node takes no placement of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The node selector doesn't match.
    NotSelected,
    /// Ends a sentence that begins with the node.
    Closed(String),
}

/// Whether a pod without GPUs that is meant for this node can start there, as far as the node is concerned.
pub fn takes(node: &NodeView, settings: &PodSettings) -> bool {
    let mut selector = settings.node_selector.iter().flatten();
    let tolerations = settings.tolerations.as_deref().unwrap_or_default();
    node.ready
        && !node.leaving
        && !node.unschedulable
        && selector.all(|(key, value)| node.labels.get(key) == Some(value))
        && untolerated(&node.taints, tolerations).is_none()
}

/// What keeps pods with these tolerations away.
fn untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration]) -> Option<&'t Taint> {
    taints.iter().find(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

/// The ledger as it is observed.
pub fn read(observed: &Observed, now: Timestamp) -> Inventory<'_> {
    // One that has ended holds what the kubelet lists for it: the driver may not have given its memory back.
    let counted = |pod: &&Arc<PodView>| !pod.ended() || now.duration_since(pod.ended) > ENDED;
    let pods = observed.pods.iter().filter(counted);
    let known: HashSet<(&str, &str)> = pods.map(|pod| (pod.namespace.as_str(), pod.name.as_str())).collect();
    let nodes = observed.gpu_nodes.par_iter().map(|gpu_node| read_node(observed, gpu_node, &known, now));
    let mut inventory = Inventory { nodes: nodes.collect::<Vec<_>>().into_iter().collect() };
    for pod in observed.pods.iter().filter(|pod| !pod.ended() && !pod.units.is_empty()) {
        let Some(node) = pod.node.as_ref().and_then(|name| inventory.nodes.get_mut(name)) else { continue };
        for (index, units) in &pod.units {
            if let Some(gpu) = node.gpu_mut(*index) {
                let state = if pod.overdue(now) {
                    HolderState::Overdue
                } else if pod.leaving {
                    HolderState::Leaving
                } else {
                    HolderState::Holds
                };
                gpu.holders.push(Holder { who: who(pod), units: *units, state });
            }
        }
    }
    inventory
}

/// The name under which a pod holds GPUs.
pub fn who(pod: &PodView) -> Who<'_> {
    match &pod.resource {
        Some(key) => Who::Resource(Cow::Borrowed(key)),
        None => Who::Pod(pod.namespace.clone(), pod.name.clone()),
    }
}

fn read_node<'o>(
    observed: &'o Observed,
    gpu_node: &'o GPUNode,
    known: &HashSet<(&str, &str)>,
    now: Timestamp,
) -> NodeGpus<'o> {
    let name = gpu_node.metadata.name.as_deref().unwrap_or_default();
    let node = observed.nodes.get(name).map(AsRef::as_ref);
    let status = gpu_node.status.as_ref();
    let (lost, closed) = standing(observed, name, node, status, now);
    let mut listed: Vec<&Gpu> = status.iter().flat_map(|status| &status.gpus).collect();
    listed.sort_by_key(|gpu| gpu.index);
    let mut gpus: Vec<GpuState<'_>> = Vec::with_capacity(listed.len());
    for gpu in listed {
        // One that were there twice would be granted twice: under one index, or under two where it changed its slot.
        let is_it = |other: &GpuState<'_>| {
            other.index == gpu.index || (other.uuid == gpu.uuid && !gpu.uuid.is_empty())
        };
        if !gpus.iter().any(is_it) {
            let offered = node.and_then(|node| node.allocatable.get(&gpu.index)).copied().unwrap_or_default();
            gpus.push(read_gpu(gpu, offered, known, observed.settings.watch_namespace.as_deref()));
        }
    }
    NodeGpus {
        labels: node.map(|node| Cow::Borrowed(&node.labels)).unwrap_or_default(),
        taints: node.map(|node| Cow::Borrowed(node.taints.as_slice())).unwrap_or_default(),
        closed,
        lost,
        injection: status.map(|status| status.injection).unwrap_or_default(),
        simulated: status.is_some_and(|status| status.simulated),
        gpus,
        name: Cow::Borrowed(name),
    }
}

/// Whether a node is lost, and why it takes no placements.
fn standing(
    observed: &Observed,
    name: &str,
    node: Option<&NodeView>,
    status: Option<&GpuNodeStatus>,
    now: Timestamp,
) -> (bool, Option<String>) {
    let Some(node) = node else { return (true, Some("is gone".to_owned())) };
    if node.leaving {
        return (false, Some("is being deleted".to_owned()));
    }
    if node.unschedulable {
        return (!node.ready, Some("is cordoned".to_owned()));
    }
    if !node.ready {
        return (true, Some("is not ready".to_owned()));
    }
    if let Some(message) = status.and_then(|status| status.message.as_ref()) {
        return (false, Some(format!("measures no GPUs: {message}")));
    }
    match observed.lease_expiry.get(name) {
        None => (false, Some("has no Lease of its device plugin; does the plugin run?".to_owned())),
        Some(expiry) if *expiry < now => {
            (false, Some(format!("has a device plugin that last reported before {}", clock(*expiry))))
        }
        Some(_) => (false, None),
    }
}

fn read_gpu<'o>(
    gpu: &'o Gpu,
    offered: u32,
    known: &HashSet<(&str, &str)>,
    watched: Option<&str>,
) -> GpuState<'o> {
    // A pod that has ended or is gone, but that the kubelet still lists, is ending: its units are not free yet. One of a
    // namespace that is not watched may run.
    let state = |namespace: &str| match watched {
        Some(watched) if watched != namespace => HolderState::Holds,
        _ => HolderState::Leaving,
    };
    let holders = gpu
        .allocations
        .iter()
        .filter(|allocation| !known.contains(&(allocation.namespace.as_str(), allocation.pod.as_str())))
        .map(|allocation| Holder {
            who: Who::Pod(allocation.namespace.clone(), allocation.pod.clone()),
            units: allocation.units,
            state: state(&allocation.namespace),
        })
        .collect();
    GpuState {
        index: gpu.index,
        uuid: Cow::Borrowed(&gpu.uuid),
        product: Cow::Borrowed(&gpu.product),
        units: gpu.units,
        offered,
        temperature: gpu.temperature,
        memory_free: gpu.memory.free,
        closed: closed(gpu),
        holders,
    }
}

fn closed(gpu: &Gpu) -> Option<Closed> {
    if let Some(withheld) = &gpu.withheld {
        let cause = match withheld.reason {
            WithheldReason::Overheated => Cause::Overheated,
            WithheldReason::Xid | WithheldReason::Lost | WithheldReason::Ecc => Cause::Unhealthy,
            WithheldReason::ForeignProcess
            | WithheldReason::Unreadable
            | WithheldReason::Divided
            | WithheldReason::Moving => Cause::Other,
        };
        let message = if withheld.message.is_empty() {
            format!("is withheld ({:?})", withheld.reason)
        } else {
            format!("is withheld ({:?}: {})", withheld.reason, withheld.message.trim_end_matches('.'))
        };
        return Some(Closed { cause, message });
    }
    match (gpu.health, gpu.view) {
        (Health::Lost, _) => Some(Closed { cause: Cause::Unhealthy, message: "is lost".to_owned() }),
        (Health::Unhealthy, _) => {
            Some(Closed { cause: Cause::Unhealthy, message: "is unhealthy".to_owned() })
        }
        (Health::Healthy, GpuView::Generic) => Some(Closed {
            cause: Cause::Other,
            message: "is in the generic pool principium.ai/gpu".to_owned(),
        }),
        (Health::Healthy, GpuView::Exact) => None,
    }
}

fn clock(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
