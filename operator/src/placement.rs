//! The one allocator of the cluster: which request gets which GPUs. A pure function of the ledger and the requests.
//!
//! Held, tested as properties: what is granted on a GPU never exceeds its units; a whole GPU has one owner; exact
//! devices get exactly those; the same input gives the same result, whatever the order of the requests.
//!
//! Requests are served in three rounds, each in [`Order`]: pods that come back to the GPU that they had, then new pods,
//! then pods that could start beside one that still runs. A pod comes back also where the kubelet still counts its
//! predecessor, which has ended, on its GPUs: they are kept for it. Of the others a request for exact devices that waits
//! keeps its devices from those that come after it; a request for a count keeps nothing.
//!
//! Requests that want the same ([`Wish`]) share what was found out about the nodes, so that the time of a pass grows with
//! the nodes and with the requests, not with their product.

mod beside;
mod count;
mod exact;
mod exchange;
mod survey;
mod words;

use crate::inventory::{
    Closed, GpuState, Holder, HolderState, Inventory, MEMORY_TOLERANCE_MIB, NodeGpus, Who,
};
use crate::resource::{Order, ResourceKey};
use beside::{Turns, stays, without};
use k8s_openapi::api::core::v1::Toleration;
use principium_api::gpu::{GpuDevice, GpuMemory, GpuRequest, MIB_PER_UNIT, Strategy};
use principium_api::pod::PodSettings;
use principium_api::status::AssignedGpu;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use words::{explain, starting};

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
    pub strategy: Strategy,
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
            strategy: request.strategy.unwrap_or_default(),
        })
    }
}

/// What a pod wants, and where it may run.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    pub need: Need,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
}

impl Wish {
    pub fn new(need: Need, settings: &PodSettings) -> Self {
        Self {
            need,
            node_selector: settings.node_selector.clone().unwrap_or_default(),
            tolerations: settings.tolerations.clone().unwrap_or_default(),
        }
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

impl SlotId {
    /// The revision of a pod, by its name, if it is one of the slot's.
    pub fn revision(&self, pod: &str) -> Option<u32> {
        let (ordinal, revision) =
            pod.strip_prefix(self.resource.name.as_str())?.strip_prefix('-')?.split_once('-')?;
        if ordinal.parse() == Ok(self.ordinal) { revision.parse().ok() } else { None }
    }
}

/// A pod that wants GPUs.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub slot: SlotId,
    pub order: Order,
    pub round: Round,
    pub wish: Arc<Wish>,
    /// The GPUs that its former pod had, or one that still works has.
    pub previous: Option<Placement>,
    /// The node that was chosen for it in a pass before, and can't be gone to yet.
    pub hint: Option<String>,
    /// Of these, what is free once the pods are gone that it replaces, or comes after.
    pub stops: Vec<AssignedGpu>,
    /// Whether its pod may run beside the one that it replaces.
    pub surge: bool,
    /// How many pods of its resource that work may change in this pass; absent where nothing is lost by it.
    pub turns: Option<usize>,
    /// Whether it waits for the node of its former pod where that is only just starting.
    pub patient: bool,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Granted(Placement),
    /// It comes back to these in a moment: what is waited for, in a sentence.
    Returning {
        message: String,
        placement: Placement,
    },
    /// It can start beside the pod that works meanwhile once other pods have ended: a sentence that says what is waited for.
    Soon {
        message: String,
    },
    /// It can start on these once the pod that it replaces is stopped.
    InPlace(Placement),
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
pub fn allocate(inventory: &mut Inventory<'_>, mut requests: Vec<Request>) -> BTreeMap<SlotId, Outcome> {
    requests.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
    let mut outcomes = BTreeMap::new();
    let mut later = Vec::new();
    for request in requests {
        if request.round != Round::Return {
            later.push(request);
        } else if let Some(outcome) = comes_back(inventory, &request) {
            match &outcome {
                Outcome::Granted(placement) => enter(inventory, &request, placement),
                Outcome::Returning { placement, .. } => keep(inventory, &request, placement),
                Outcome::Soon { .. }
                | Outcome::InPlace(_)
                | Outcome::Waiting { .. }
                | Outcome::Impossible { .. } => {}
            }
            outcomes.insert(request.slot, outcome);
        } else {
            // A choice of the operator is made anew where its old GPU is not to be had; exact devices are not.
            let round =
                if matches!(request.wish.need, Need::Count(_)) { Round::Fresh } else { request.round };
            later.push(Request { round, ..request });
        }
    }
    later.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
    let mut classes = Classes::default();
    let mut turns = Turns::default();
    loop {
        let mut off = Vec::new();
        for request in later {
            if turns.is_on(&request) {
                serve(inventory, request, &mut classes, &mut turns, &mut outcomes);
            } else {
                off.push(request);
            }
        }
        later = turns.give_up(inventory, &mut outcomes);
        if later.is_empty() {
            turns.end(inventory, &off, &mut outcomes);
            return outcomes;
        }
        later.append(&mut off);
        later.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
    }
}

/// Where a request stands among others.
fn precedence(request: &Request) -> (Round, &Order, &SlotId) {
    (request.round, &request.order, &request.slot)
}

/// Serves a request whose turn it is, and that can't have just what its former pod had.
fn serve<'o>(
    inventory: &mut Inventory<'o>,
    request: Request,
    classes: &mut Classes,
    turns: &mut Turns<'o>,
    outcomes: &mut BTreeMap<SlotId, Outcome>,
) {
    let (class, changed) = classes.of(&request.wish);
    let outcome = match (stays(inventory, &request), &request.wish.need) {
        (_, Need::Nothing) => return,
        (Some(placement), _) => Outcome::InPlace(placement),
        (None, Need::Exact(devices)) => class.exact.choose(inventory, &request, devices),
        (None, Need::Count(need)) => {
            let leaves = turns.was_given_up(&request);
            class.count.choose(inventory, &request, need, leaves, changed)
        }
    };
    let outcome = turns.taken(inventory, &request, outcome);
    match &outcome {
        Outcome::Granted(placement) => {
            enter(inventory, &request, placement);
            classes.changed.extend(inventory.nodes.number(&placement.node));
        }
        Outcome::Waiting { kept: Some(kept), .. } if request.round != Round::Beside => {
            keep(inventory, &request, kept);
            classes.changed.extend(inventory.nodes.number(&kept.node));
        }
        Outcome::Returning { .. }
        | Outcome::Soon { .. }
        | Outcome::InPlace(_)
        | Outcome::Waiting { .. }
        | Outcome::Impossible { .. } => {}
    }
    outcomes.insert(request.slot, outcome);
}

/// Requests that want the same are of one class.
#[derive(Default)]
struct Classes {
    classes: Vec<Class>,
    /// Numbers of the nodes in whose ledger something was entered, one after another.
    changed: Vec<usize>,
}

struct Class {
    wish: Arc<Wish>,
    count: count::Candidates,
    exact: exact::Candidates,
}

impl Classes {
    /// The class of a wish, and the changes, of which it may not know all yet.
    fn of(&mut self, wish: &Arc<Wish>) -> (&mut Class, &[usize]) {
        // Requests of one resource come one after another: usually it is the last class.
        let same = |class: &Class| Arc::ptr_eq(&class.wish, wish) || class.wish == *wish;
        let at = self.classes.iter().rposition(same).unwrap_or_else(|| {
            self.classes.push(Class {
                wish: Arc::clone(wish),
                count: count::Candidates::default(),
                exact: exact::Candidates::default(),
            });
            self.classes.len() - 1
        });
        (&mut self.classes[at], &self.changed)
    }
}

/// Whether GPUs that a pod has are still what its resource wants. What is not known any more (the node, the GPU) is no
/// reason against a running pod.
pub fn accepts(known: Option<&NodeGpus<'_>>, need: &Need, gpus: &[AssignedGpu]) -> bool {
    match need {
        Need::Nothing => gpus.is_empty(),
        Need::Exact(devices) => {
            let Some(Ok(wanted)) = known.map(|node| exact::resolve(node, devices)) else {
                return gpus.len() == devices.len() && devices.iter().all(|device| names(device, gpus));
            };
            let wanted: BTreeSet<(u32, u32)> =
                wanted.iter().map(|(gpu, units)| (gpu.index, *units)).collect();
            wanted == gpus.iter().map(|gpu| (gpu.index, gpu.units)).collect()
        }
        Need::Count(need) => {
            usize::try_from(need.count).is_ok_and(|count| gpus.len() == count)
                && gpus.iter().all(|assigned| {
                    let Some(gpu) = known.and_then(|node| node.gpu(assigned.index)) else {
                        return true;
                    };
                    need.wanted(gpu) == assigned.units && need.is_product(gpu)
                })
        }
    }
}

/// Whether a device is one of these GPUs, by what the pod itself says of them.
fn names(device: &GpuDevice, gpus: &[AssignedGpu]) -> bool {
    gpus.iter().any(|gpu| {
        device.index.is_none_or(|index| index == gpu.index)
            && device.uuid.as_ref().is_none_or(|uuid| *uuid == gpu.uuid)
            && device.memory.as_ref().is_none_or(|memory| memory.units() == gpu.units)
    })
}

impl CountNeed {
    /// Units on this GPU.
    fn wanted(&self, gpu: &GpuState<'_>) -> u32 {
        self.memory.as_ref().map_or(gpu.units, GpuMemory::units)
    }

    fn is_product(&self, gpu: &GpuState<'_>) -> bool {
        self.product.as_ref().is_none_or(|product| {
            let (name, part) = (gpu.product.as_bytes(), product.as_bytes());
            part.is_empty() || name.windows(part.len()).any(|found| found.eq_ignore_ascii_case(part))
        })
    }

    fn is_cool(&self, gpu: &GpuState<'_>) -> bool {
        self.max_temperature.is_none_or(|max| gpu.temperature.is_some_and(|temperature| temperature < max))
    }
}

/// What becomes of a pod that had GPUs, where it comes back to them: now, or in a moment.
fn comes_back(inventory: &Inventory<'_>, request: &Request) -> Option<Outcome> {
    let previous = request.previous.as_ref()?;
    let node = inventory.nodes.get(&previous.node)?;
    if request.patient
        && accepts(Some(node), &request.wish.need, &previous.gpus)
        && let Some(message) = starting(node, previous)
    {
        return Some(Outcome::Waiting { message, kept: Some(previous.clone()) });
    }
    if let Some(placement) = again(node, request) {
        return Some(Outcome::Granted(placement));
    }
    let placement = again(&without_former(node, request), request)?;
    let counted = |former: &AssignedGpu| {
        let gpu = node.gpu(former.index)?;
        Some(explain(node, gpu, former.units, blocked(gpu, former.units)?))
    };
    let message = previous.gpus.iter().find_map(counted).unwrap_or_default();
    Some(Outcome::Returning { message, placement })
}

/// The GPUs that a pod had, if it can have them again on this node.
fn again(node: &NodeGpus<'_>, request: &Request) -> Option<Placement> {
    let previous = request.previous.as_ref()?;
    let need = &request.wish.need;
    if !accepts(Some(node), need, &previous.gpus) {
        return None;
    }
    node.admits(&request.wish.node_selector, &request.wish.tolerations).ok()?;
    let free = |former: &AssignedGpu| {
        let gpu = node.gpu(former.index)?;
        let hot = matches!(need, Need::Count(need) if !need.is_cool(gpu));
        (!hot && blocked(gpu, former.units).is_none()).then(|| assigned(gpu, former.units))
    };
    let gpus = previous.gpus.iter().map(free).collect::<Option<Vec<_>>>()?;
    let exact = matches!(need, Need::Exact(_));
    let reason = if exact { exact::REASON } else { "the GPUs that its former pod had" };
    Some(Placement { node: node.name.to_string(), gpus, reason: reason.to_owned() })
}

/// The node as it is once the former pods of a slot have ended, and the kubelet no longer counts them.
fn without_former<'o>(node: &NodeGpus<'o>, request: &Request) -> NodeGpus<'o> {
    let former = |holder: &Holder<'_>| match &holder.who {
        Who::Pod(namespace, name) => {
            holder.state == HolderState::Leaving
                && *namespace == request.slot.resource.namespace
                && request.slot.revision(name).is_some()
        }
        Who::Resource(_) => false,
    };
    let mut node = without(node, request);
    for gpu in &mut node.gpus {
        gpu.let_go(former);
    }
    node
}

/// What keeps these units of this GPU from being granted now.
fn blocked<'g>(gpu: &'g GpuState<'_>, units: u32) -> Option<Blocked<'g>> {
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

fn assigned(gpu: &GpuState<'_>, units: u32) -> AssignedGpu {
    AssignedGpu { index: gpu.index, uuid: gpu.uuid.clone().into_owned(), units }
}

fn enter(inventory: &mut Inventory<'_>, request: &Request, placement: &Placement) {
    if let Some(node) = inventory.nodes.get_mut(&placement.node) {
        hold(node, &request.slot.resource, placement);
    }
}

/// Enters into the ledger of a node what a resource gets there.
fn hold(node: &mut NodeGpus<'_>, resource: &ResourceKey, placement: &Placement) {
    for assigned in &placement.gpus {
        if let Some(gpu) = node.gpu_mut(assigned.index) {
            let who = Who::Resource(Cow::Owned(resource.clone()));
            gpu.holders.push(Holder { who, units: assigned.units, state: HolderState::Granted });
        }
    }
}

fn keep(inventory: &mut Inventory<'_>, request: &Request, placement: &Placement) {
    for assigned in &placement.gpus {
        if let Some(gpu) = gpu_mut(inventory, &placement.node, assigned.index) {
            let units = assigned.units.min(gpu.free());
            if units > 0 {
                let who = Who::Resource(Cow::Owned(request.slot.resource.clone()));
                gpu.holders.push(Holder { who, units, state: HolderState::Reserved });
            }
        }
    }
}

fn gpu_mut<'i, 'o>(inventory: &'i mut Inventory<'o>, node: &str, index: u32) -> Option<&'i mut GpuState<'o>> {
    inventory.nodes.get_mut(node)?.gpu_mut(index)
}
