//! Pods that work are replaced: whose turn it is, and what fits once they are stopped.

use super::{Need, Outcome, Placement, Request, Round, SlotId, Wish, count, enter, exact, hold};
use crate::inventory::{Holder, HolderState, Inventory, NodeGpus, Who};
use crate::resource::ResourceKey;
use principium_api::gpu::MIB_PER_UNIT;
use principium_api::status::AssignedGpu;
use std::collections::{BTreeMap, BTreeSet};

/// Which of a resource's pods that work change in a pass: the first ones that have somewhere to go.
#[derive(Default)]
pub(super) struct Turns {
    taken: BTreeMap<ResourceKey, usize>,
    in_place: Vec<Request>,
    /// Requests for exact devices that wait, or whose turn it isn't.
    vain: BTreeMap<ResourceKey, Vec<Request>>,
}

impl Turns {
    /// Whether a request is looked at: others of its resource may have had the turn.
    pub(super) fn is_on(&mut self, request: &Request) -> bool {
        let taken = self.taken.get(&request.slot.resource).copied().unwrap_or_default();
        let on = request.turns.is_none_or(|most| taken < most);
        if !on {
            self.keep(request);
        }
        on
    }

    /// The outcome for who replaces a pod that works, which it can also do in that pod's place. That takes a turn, waiting does not.
    pub(super) fn taken(
        &mut self,
        inventory: &Inventory<'_>,
        request: &Request,
        outcome: Outcome,
    ) -> Outcome {
        let outcome = match outcome {
            Outcome::Waiting { message, kept }
                if request.round == Round::Beside && in_place(inventory, request) =>
            {
                self.in_place.push(request.clone());
                Outcome::InPlace { message, kept }
            }
            outcome => outcome,
        };
        match &outcome {
            Outcome::Granted(_) | Outcome::InPlace { .. } if request.turns.is_some() => {
                *self.taken.entry(request.slot.resource.clone()).or_default() += 1;
            }
            Outcome::Waiting { .. } => self.keep(request),
            _ => {}
        }
        outcome
    }

    fn keep(&mut self, request: &Request) {
        if matches!(request.wish.need, Need::Exact(_)) && request.previous.is_some() {
            self.vain.entry(request.slot.resource.clone()).or_default().push(request.clone());
        }
    }

    /// When all requests were served: nobody is stopped for what others were granted since, and pods of one resource that keep
    /// each other from their devices are stopped after all.
    pub(super) fn end(self, inventory: &mut Inventory<'_>, outcomes: &mut BTreeMap<SlotId, Outcome>) {
        // As it is once those are stopped that are to be, and their successors are there.
        let mut later: BTreeMap<&str, NodeGpus<'_>> = BTreeMap::new();
        for request in &self.in_place {
            let Some(home) = request.previous.as_ref().map(|previous| previous.node.as_str()) else {
                continue;
            };
            let Some(now) = later.get(home).or_else(|| inventory.nodes.get(home)) else { continue };
            let mut node = now.clone();
            request.stops.iter().for_each(|gpu| let_go(&mut node, &request.slot.resource, gpu));
            if let Some(placement) = place(&node, &request.wish, &request.slot.resource) {
                hold(&mut node, &request.slot.resource, &placement);
                later.insert(home, node);
            } else if let Some(Outcome::InPlace { message, kept }) = outcomes.remove(&request.slot) {
                outcomes.insert(request.slot.clone(), Outcome::Waiting { message, kept });
            }
        }
        for (key, requests) in self.vain.iter().filter(|(key, _)| !self.taken.contains_key(key)) {
            // One that has no pod waits for the others; else it is somebody's turn.
            let begins = |request: &&Request| request.round != Round::Beside || request.turns != Some(0);
            let mut begun = requests.iter().filter(begins);
            let exchanged = begun.find_map(|first| exchange(inventory, key, first, requests));
            for request in exchanged.into_iter().flatten() {
                change(inventory, request, outcomes);
            }
        }
    }
}

/// What becomes of a pod that others of its resource wait for: its successor starts beside it where that can be, else it is stopped.
fn change(inventory: &mut Inventory<'_>, request: &Request, outcomes: &mut BTreeMap<SlotId, Outcome>) {
    let home = request.previous.as_ref().and_then(|previous| inventory.nodes.get(&previous.node));
    let free = home.and_then(|node| place(node, &request.wish, &request.slot.resource));
    let outcome = match free.filter(|_| request.surge) {
        Some(placement) => {
            enter(inventory, request, &placement);
            Outcome::Granted(placement)
        }
        None => Outcome::InPlace {
            message: match outcomes.remove(&request.slot) {
                Some(Outcome::Waiting { message, .. }) => message,
                _ => String::new(),
            },
            kept: match (&request.wish.need, home) {
                (Need::Exact(devices), Some(node)) => exact::named(node, devices),
                _ => None,
            },
        },
    };
    outcomes.insert(request.slot.clone(), outcome);
}

/// The GPUs for a request on this node, if it can have them there.
fn place(node: &NodeGpus<'_>, wish: &Wish, resource: &ResourceKey) -> Option<Placement> {
    match &wish.need {
        Need::Nothing => None,
        Need::Exact(devices) => exact::place(node, wish, devices),
        Need::Count(need) => count::place(node, wish, need, resource),
    }
}

/// Whether a request can be served where its pod is, once that is stopped.
fn in_place(inventory: &Inventory<'_>, request: &Request) -> bool {
    let fits = |previous: &Placement| {
        fits_when_gone(inventory, &request.wish, &request.slot.resource, &previous.node, &request.stops)
    };
    request.previous.as_ref().is_some_and(fits)
}

/// Which pods are to be stopped so that `first` gets its devices in the end: those that have them, those that have the devices of
/// these, and so on. If one of them can move by itself it goes first; if each has what another is to get, they go together.
fn exchange<'r>(
    inventory: &Inventory<'_>,
    key: &ResourceKey,
    first: &'r Request,
    all: &'r [Request],
) -> Option<Vec<&'r Request>> {
    let home = first.previous.as_ref()?;
    let mut node = inventory.nodes.get(&home.node)?.clone();
    let there: Vec<&Request> =
        all.iter().filter(|it| it.previous.as_ref().is_some_and(|it| it.node == home.node)).collect();
    let wanted = |request: &Request| -> BTreeSet<u32> {
        let Need::Exact(devices) = &request.wish.need else { return BTreeSet::new() };
        let found = exact::resolve(&node, devices).unwrap_or_default();
        found.iter().map(|(gpu, _)| gpu.index).collect()
    };
    let mut chain = vec![first];
    let mut at = 0;
    while let Some(request) = chain.get(at) {
        let wants = wanted(request);
        // One that stays on a GPU gives nothing of it up.
        let blocks = |other: &&&Request| {
            let stays = wanted(other);
            let gives = |gpu: &AssignedGpu| wants.contains(&gpu.index) && !stays.contains(&gpu.index);
            other.round == Round::Beside && other.stops.iter().any(gives)
        };
        for other in there.iter().filter(blocks) {
            if !chain.iter().any(|it| it.slot == other.slot) {
                chain.push(other);
            }
        }
        at += 1;
    }
    let moves = |request: &&&Request| request.round == Round::Beside;
    if let Some(alone) = chain.iter().filter(moves).find(|request| in_place(inventory, request)) {
        return Some(vec![*alone]);
    }
    // What is kept for them is for them.
    for gpu in &mut node.gpus {
        let own = |holder: &Holder<'_>| matches!(&holder.who, Who::Resource(of) if **of == *key);
        gpu.holders.retain(|holder| holder.state != HolderState::Reserved || !own(holder));
    }
    for assigned in chain.iter().flat_map(|request| &request.stops) {
        let_go(&mut node, key, assigned);
    }
    for request in &chain {
        let placement = place(&node, &request.wish, key)?;
        hold(&mut node, key, &placement);
    }
    Some(chain.into_iter().filter(|request| request.round == Round::Beside).collect())
}

/// Whether a pod could be placed on this node once the resource's own pods that hold these GPUs are gone.
pub fn fits_when_gone(
    inventory: &Inventory<'_>,
    wish: &Wish,
    resource: &ResourceKey,
    node: &str,
    gpus: &[AssignedGpu],
) -> bool {
    let Some(mut node) = inventory.nodes.get(node).cloned() else { return false };
    for assigned in gpus {
        let_go(&mut node, resource, assigned);
    }
    wish.need == Need::Nothing || place(&node, wish, resource).is_some()
}

fn let_go(node: &mut NodeGpus<'_>, resource: &ResourceKey, assigned: &AssignedGpu) {
    let own = |holder: &Holder<'_>| {
        holder.units == assigned.units
            && holder.state == HolderState::Holds
            && matches!(&holder.who, Who::Resource(key) if **key == *resource)
    };
    let Some(gpu) = node.gpu_mut(assigned.index) else { return };
    if let Some(at) = gpu.holders.iter().position(own) {
        gpu.holders.remove(at);
        gpu.memory_free = gpu.memory_free.saturating_add(u64::from(assigned.units) * MIB_PER_UNIT);
    }
}
