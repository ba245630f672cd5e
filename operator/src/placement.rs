//! The one allocator of the cluster: which request gets which GPUs. A pure function of the ledger and the requests.
//!
//! Held, tested as properties: what is granted on a GPU never exceeds its units; a whole GPU has one owner; exact
//! devices get exactly those; the same input gives the same result, whatever the order of the requests.
//!
//! Requests are served in three rounds, each in [`Order`]: pods that come back to the GPU that they had, then new pods,
//! then pods that could start beside one that still runs. A request for exact devices that waits keeps its devices from
//! those that come after it; a request for a count keeps nothing.

mod survey;
mod words;

use crate::conditions::reason;
use crate::inventory::{
    Admission, Closed, GpuState, Holder, HolderState, Inventory, MEMORY_TOLERANCE_MIB, NodeGpus, Who,
};
use crate::resource::{Order, ResourceKey};
use k8s_openapi::api::core::v1::Toleration;
use principium_api::gpu::{GpuDevice, GpuMemory, GpuRequest, MIB_PER_UNIT};
use principium_api::status::AssignedGpu;
use std::collections::{BTreeMap, BTreeSet};
use survey::Survey;
use words::{brief, degrees, explain, named, shortage};

/// The width of a temperature band in °C: GPUs within one band are equally cool.
const BAND: u32 = 10;

/// What a pod wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// No GPU: the scheduler chooses the node.
    Nothing,
    /// Exactly these, all on one node.
    Exact(Vec<GpuDevice>),
    /// Any that fit, all on one node.
    Count(CountNeed),
}

/// GPUs that the operator chooses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CountNeed {
    pub count: u32,
    /// Absent: whole GPUs.
    pub memory: Option<GpuMemory>,
    pub product: Option<String>,
    /// In °C.
    pub max_temperature: Option<u32>,
    /// Indices, most wanted first.
    pub prefer: Vec<u32>,
}

impl Need {
    /// The need of one pod that takes the whole request.
    pub fn of(request: Option<&GpuRequest>) -> Self {
        let Some(request) = request else {
            return Self::Count(CountNeed { count: 1, ..CountNeed::default() });
        };
        if let Some(devices) = &request.devices {
            return Self::Exact(devices.clone());
        }
        let count = request.count.unwrap_or(1);
        if count == 0 {
            return Self::Nothing;
        }
        Self::Count(CountNeed {
            count,
            memory: request.memory.clone(),
            product: request.product.clone(),
            max_temperature: request.max_temperature,
            prefer: request.prefer.as_ref().map(|prefer| prefer.indices.clone()).unwrap_or_default(),
        })
    }
}

/// GPUs on a node, and why these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    pub node: String,
    pub gpus: Vec<AssignedGpu>,
    pub reason: String,
}

/// The round in which a request is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Round {
    /// A pod that had GPUs and comes back.
    Return,
    /// A new pod.
    Fresh,
    /// A pod that could start beside the one that it replaces, or move off its GPU. Nobody waits for it.
    Beside,
}

/// Names a pod to be: the resource, and the ordinal within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId {
    pub resource: ResourceKey,
    pub ordinal: u32,
}

/// A pod that wants GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub slot: SlotId,
    pub order: Order,
    pub round: Round,
    pub need: Need,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    /// The GPUs that its former pod had.
    pub previous: Option<Placement>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Granted(Placement),
    /// It can come by itself: a sentence that says what is waited for, and the devices that are kept for it.
    Waiting {
        message: String,
        kept: Option<Placement>,
    },
    /// It can't come unless the spec changes.
    Impossible {
        reason: &'static str,
        message: String,
    },
}

/// Serves the requests from what is free, and enters what is granted or kept into the ledger.
pub fn allocate(inventory: &mut Inventory, mut requests: Vec<Request>) -> BTreeMap<SlotId, Outcome> {
    requests.sort_by(|a, b| (a.round, &a.order, &a.slot).cmp(&(b.round, &b.order, &b.slot)));
    let mut outcomes = BTreeMap::new();
    let mut later = Vec::new();
    for request in requests {
        // A choice of the operator can be chosen anew where its old GPU is not to be had; exact devices can't.
        if request.round == Round::Return && matches!(request.need, Need::Count(_)) {
            match returned(inventory, &request) {
                Some(placement) => {
                    enter(inventory, &request, &placement);
                    outcomes.insert(request.slot, Outcome::Granted(placement));
                }
                None => later.push(Request { round: Round::Fresh, ..request }),
            }
        } else {
            later.push(request);
        }
    }
    later.sort_by(|a, b| (a.round, &a.order, &a.slot).cmp(&(b.round, &b.order, &b.slot)));
    for request in later {
        let outcome = match &request.need {
            Need::Nothing => continue,
            Need::Exact(devices) => exact(inventory, &request, devices),
            Need::Count(need) => count(inventory, &request, need),
        };
        match &outcome {
            Outcome::Granted(placement) => enter(inventory, &request, placement),
            Outcome::Waiting { kept: Some(kept), .. } if request.round != Round::Beside => {
                keep(inventory, &request, kept);
            }
            Outcome::Waiting { .. } | Outcome::Impossible { .. } => {}
        }
        outcomes.insert(request.slot, outcome);
    }
    outcomes
}

/// Whether GPUs that a pod has are still what its resource wants. What is not known any more (the node, the GPU) is no
/// reason against a running pod.
pub fn accepts(inventory: &Inventory, need: &Need, node: &str, gpus: &[AssignedGpu]) -> bool {
    let known = inventory.nodes.get(node);
    match need {
        Need::Nothing => gpus.is_empty(),
        Need::Exact(devices) => {
            let Some(known) = known else { return gpus.len() == devices.len() };
            let Ok(wanted) = resolve(known, devices) else { return gpus.len() == devices.len() };
            let wanted: BTreeSet<(u32, u32)> =
                wanted.iter().map(|(gpu, units)| (gpu.index, *units)).collect();
            wanted == gpus.iter().map(|gpu| (gpu.index, gpu.units)).collect()
        }
        Need::Count(need) => {
            usize::try_from(need.count).is_ok_and(|count| gpus.len() == count)
                && gpus.iter().all(|assigned| {
                    let Some(gpu) = known.and_then(|node| node.gpus.get(&assigned.index)) else {
                        return true;
                    };
                    need.wanted(gpu) == assigned.units && need.is_product(gpu)
                })
        }
    }
}

impl CountNeed {
    /// Units on this GPU.
    fn wanted(&self, gpu: &GpuState) -> u32 {
        self.memory.as_ref().map_or(gpu.units, GpuMemory::units)
    }

    fn is_product(&self, gpu: &GpuState) -> bool {
        self.product
            .as_ref()
            .is_none_or(|product| gpu.product.to_lowercase().contains(&product.to_lowercase()))
    }

    fn is_cool(&self, gpu: &GpuState) -> bool {
        self.max_temperature.is_none_or(|max| gpu.temperature.is_some_and(|temperature| temperature < max))
    }
}

/// The GPUs of the former pod, if they can be had now.
fn returned(inventory: &Inventory, request: &Request) -> Option<Placement> {
    let Need::Count(need) = &request.need else { return None };
    let previous = request.previous.as_ref()?;
    let node = inventory.nodes.get(&previous.node)?;
    node.admits(&request.node_selector, &request.tolerations).ok()?;
    if !accepts(inventory, &request.need, &previous.node, &previous.gpus) {
        return None;
    }
    let mut gpus = Vec::new();
    for former in &previous.gpus {
        let gpu = node.gpus.get(&former.index)?;
        if !need.is_cool(gpu) || blocked(gpu, former.units).is_some() {
            return None;
        }
        gpus.push(AssignedGpu { index: gpu.index, uuid: gpu.uuid.clone(), units: former.units });
    }
    Some(Placement { node: node.name.clone(), gpus, reason: "the GPUs that its former pod had".to_owned() })
}

/// What keeps these units of this GPU from being granted now.
fn blocked(gpu: &GpuState, units: u32) -> Option<Blocked<'_>> {
    if let Some(closed) = &gpu.closed {
        return Some(Blocked::Closed(closed));
    }
    if gpu.free() < units {
        return Some(Blocked::Held);
    }
    if gpu.offered < gpu.taken().saturating_add(units) {
        return Some(Blocked::NotOffered);
    }
    if gpu.memory_free.saturating_add(MEMORY_TOLERANCE_MIB) < u64::from(units) * MIB_PER_UNIT {
        return Some(Blocked::InUse);
    }
    None
}

#[derive(Clone, Copy)]
enum Blocked<'a> {
    Closed(&'a Closed),
    Held,
    NotOffered,
    InUse,
}

/// The devices on this node with their units, or what is missing.
fn resolve<'a>(
    node: &'a NodeGpus,
    devices: &[GpuDevice],
) -> Result<Vec<(&'a GpuState, u32)>, (&'static str, String)> {
    let mut found: Vec<(&GpuState, u32)> = Vec::new();
    for device in devices {
        let gpu = node.gpus.values().find(|gpu| match (&device.index, &device.uuid) {
            (Some(index), _) => gpu.index == *index,
            (None, Some(uuid)) => gpu.uuid == *uuid,
            (None, None) => false,
        });
        let Some(gpu) = gpu else {
            let has = node.gpus.values().map(|gpu| gpu.index.to_string()).collect::<Vec<_>>().join(", ");
            let has = if has.is_empty() { "no GPUs".to_owned() } else { format!("GPUs {has}") };
            return Err((
                reason::NO_SUCH_GPU,
                format!("node {} has no {}; it has {has}", node.name, named(device)),
            ));
        };
        let units = device.memory.as_ref().map_or(gpu.units, GpuMemory::units);
        if units > gpu.units {
            let message = format!(
                "GPU {} on node {} has {} GiB; {} were asked for",
                gpu.index,
                node.name,
                gpu.units,
                device.memory.as_ref().map(GpuMemory::to_string).unwrap_or_default()
            );
            return Err((reason::TOO_MUCH_MEMORY, message));
        }
        if found.iter().any(|(other, _)| other.index == gpu.index) {
            let message = format!("spec.gpu.devices names GPU {} on node {} twice", gpu.index, node.name);
            return Err((reason::DUPLICATE_DEVICES, message));
        }
        found.push((gpu, units));
    }
    Ok(found)
}

fn exact(inventory: &Inventory, request: &Request, devices: &[GpuDevice]) -> Outcome {
    let mut impossible: Option<(&'static str, String)> = None;
    let mut waiting: Option<(String, Placement)> = None;
    let mut homes = 0;
    let mut unselected = 0;
    for node in candidates(inventory, request) {
        let admission = node.admits(&request.node_selector, &request.tolerations);
        if admission == Err(Admission::NotSelected) {
            unselected += 1;
            continue;
        }
        let wanted = match resolve(node, devices) {
            Ok(wanted) => wanted,
            Err(missing) => {
                impossible.get_or_insert(missing);
                continue;
            }
        };
        homes += 1;
        let placement = Placement {
            node: node.name.clone(),
            gpus: wanted
                .iter()
                .map(|(gpu, units)| AssignedGpu { index: gpu.index, uuid: gpu.uuid.clone(), units: *units })
                .collect(),
            reason: "named in spec.gpu.devices".to_owned(),
        };
        let against = match admission {
            Err(Admission::Closed(why)) => Some(format!("node {} {why}", node.name)),
            _ => {
                wanted.iter().find_map(|(gpu, units)| Some(explain(node, gpu, *units, blocked(gpu, *units)?)))
            }
        };
        match against {
            None => return Outcome::Granted(placement),
            Some(message) => {
                waiting.get_or_insert((message, placement));
            }
        }
    }
    match (waiting, impossible) {
        // With several nodes that have the devices, which one it will be is open: nothing is kept.
        (Some((message, placement)), _) => {
            Outcome::Waiting { message, kept: (homes == 1).then_some(placement) }
        }
        (None, Some((reason, message))) => Outcome::Impossible { reason, message },
        (None, None) => nowhere(inventory, unselected),
    }
}

/// No node was even looked at: the cluster has none yet, or none is selected.
fn nowhere(inventory: &Inventory, unselected: usize) -> Outcome {
    let message = if inventory.nodes.is_empty() {
        "no node reports GPUs yet; does the device plugin run?".to_owned()
    } else {
        format!("spec.nodeSelector matches none of the {unselected} nodes with GPUs")
    };
    Outcome::Waiting { message, kept: None }
}

/// The nodes, the former one first.
fn candidates<'a>(inventory: &'a Inventory, request: &Request) -> Vec<&'a NodeGpus> {
    let former = request.previous.as_ref().map(|previous| previous.node.as_str());
    let mut nodes: Vec<&NodeGpus> = inventory.nodes.values().collect();
    nodes.sort_by_key(|node| former != Some(node.name.as_str()));
    nodes
}

fn count(inventory: &Inventory, request: &Request, need: &CountNeed) -> Outcome {
    let Ok(wanted) = usize::try_from(need.count) else {
        return Outcome::Impossible {
            reason: reason::NOT_ENOUGH_GPUS,
            message: "gpu.count is too large".to_owned(),
        };
    };
    let mut best: Option<(Rank, Placement)> = None;
    let mut closest: Option<(usize, String)> = None;
    let mut survey = Survey::default();
    for node in candidates(inventory, request) {
        let admission = node.admits(&request.node_selector, &request.tolerations);
        if admission == Err(Admission::NotSelected) {
            survey.unselected += 1;
            continue;
        }
        let fitting = survey.look(node, need);
        if fitting < wanted {
            continue;
        }
        let mut free: Vec<&GpuState> = Vec::new();
        let mut against: Vec<String> = Vec::new();
        for gpu in node.gpus.values().filter(|gpu| need.is_product(gpu) && need.wanted(gpu) <= gpu.units) {
            let units = need.wanted(gpu);
            if let Some(why) = blocked(gpu, units) {
                against.push(brief(gpu, why));
            } else if !need.is_cool(gpu) {
                against.push(format!("GPU {} has {}", gpu.index, degrees(gpu)));
            } else {
                free.push(gpu);
            }
        }
        if let Err(Admission::Closed(why)) = &admission {
            closest.get_or_insert((0, format!("node {} {why}", node.name)));
            continue;
        }
        if free.len() < wanted {
            if closest.as_ref().is_none_or(|(most, _)| free.len() > *most || *most == 0) {
                closest = Some((free.len(), shortage(node, need, free.len(), &against)));
            }
            continue;
        }
        free.sort_by_key(|gpu| suitability(gpu, need));
        free.truncate(wanted);
        let rank = Rank::of(&free, need, request, node);
        if best.as_ref().is_none_or(|(other, _)| rank < *other) {
            best = Some((rank, chosen(node, &free, need)));
        }
    }
    match (best, closest) {
        (Some((_, placement)), _) => Outcome::Granted(placement),
        (None, Some((_, message))) => Outcome::Waiting { message, kept: None },
        (None, None) => survey.impossible(need).unwrap_or_else(|| nowhere(inventory, survey.unselected)),
    }
}

/// Preferred first, then the coolest band, then the tightest fit, so that whole GPUs stay whole.
fn suitability(gpu: &GpuState, need: &CountNeed) -> (usize, u32, u32, u32, u32) {
    let preferred = need.prefer.iter().position(|index| *index == gpu.index).unwrap_or(usize::MAX);
    let temperature = gpu.temperature.unwrap_or(u32::MAX);
    (preferred, temperature / BAND, gpu.free() - need.wanted(gpu), temperature, gpu.index)
}

/// How good a node's best GPUs are; the least is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    elsewhere: bool,
    unpreferred: usize,
    hottest_band: u32,
    left_over: u32,
    node: String,
}

impl Rank {
    fn of(gpus: &[&GpuState], need: &CountNeed, request: &Request, node: &NodeGpus) -> Self {
        let former = request.previous.as_ref().map(|previous| previous.node.as_str());
        Self {
            elsewhere: former != Some(node.name.as_str()),
            unpreferred: gpus.iter().filter(|gpu| !need.prefer.contains(&gpu.index)).count(),
            hottest_band: gpus
                .iter()
                .map(|gpu| gpu.temperature.unwrap_or(u32::MAX) / BAND)
                .max()
                .unwrap_or_default(),
            left_over: gpus.iter().map(|gpu| gpu.free() - need.wanted(gpu)).sum(),
            node: node.name.clone(),
        }
    }
}

fn chosen(node: &NodeGpus, gpus: &[&GpuState], need: &CountNeed) -> Placement {
    let why: Vec<String> = gpus
        .iter()
        .map(|gpu| {
            let preferred = if need.prefer.contains(&gpu.index) { "preferred, " } else { "" };
            format!("GPU {} ({preferred}{})", gpu.index, degrees(gpu))
        })
        .collect();
    let mut gpus: Vec<AssignedGpu> = gpus
        .iter()
        .map(|gpu| AssignedGpu { index: gpu.index, uuid: gpu.uuid.clone(), units: need.wanted(gpu) })
        .collect();
    gpus.sort();
    Placement {
        node: node.name.clone(),
        gpus,
        reason: format!("chosen by preference, temperature and fit: {}", why.join(", ")),
    }
}

fn enter(inventory: &mut Inventory, request: &Request, placement: &Placement) {
    for assigned in &placement.gpus {
        if let Some(gpu) = gpu_mut(inventory, &placement.node, assigned.index) {
            let who = Who::Resource(request.slot.resource.clone());
            gpu.holders.push(Holder { who, units: assigned.units, state: HolderState::Granted });
        }
    }
}

fn keep(inventory: &mut Inventory, request: &Request, placement: &Placement) {
    for assigned in &placement.gpus {
        if let Some(gpu) = gpu_mut(inventory, &placement.node, assigned.index) {
            let units = assigned.units.min(gpu.free());
            if units > 0 {
                let who = Who::Resource(request.slot.resource.clone());
                gpu.holders.push(Holder { who, units, state: HolderState::Reserved });
            }
        }
    }
}

fn gpu_mut<'a>(inventory: &'a mut Inventory, node: &str, index: u32) -> Option<&'a mut GpuState> {
    inventory.nodes.get_mut(node)?.gpus.get_mut(&index)
}
