//! Pods that work are replaced: whose turn it is, and what fits once they are stopped.

use super::exchange::{Later, Mover, exchange};
use super::{
    Need, Outcome, Placement, Request, Round, SlotId, Wish, again, count, enter, exact, hold, precedence,
};
use crate::inventory::{Holder, HolderState, Inventory, NodeGpus, Who};
use crate::resource::ResourceKey;
use principium_api::gpu::MIB_PER_UNIT;
use std::collections::{BTreeMap, BTreeSet};

/// Which of a resource's pods that work change in a pass: the first ones that have somewhere to go.
#[derive(Default)]
pub(super) struct Turns<'o> {
    taken: BTreeMap<ResourceKey, usize>,
    /// Those that are to be stopped.
    in_place: Vec<Request>,
    /// The nodes as they are once those are stopped, and their successors are there, as far as that was looked at.
    changed: BTreeMap<String, NodeGpus<'o>>,
    /// Those that would have been stopped for GPUs that others get.
    given_up: BTreeSet<SlotId>,
    /// Requests for exact devices that wait, or whose turn it isn't.
    vain: BTreeMap<ResourceKey, Vec<Request>>,
}

impl<'o> Turns<'o> {
    /// Whether a request is looked at: others of its resource may have had the turn.
    pub(super) fn is_on(&self, request: &Request) -> bool {
        let taken = self.taken.get(&request.slot.resource).copied().unwrap_or_default();
        request.turns.is_none_or(|most| taken < most)
    }

    /// Whether the pod of this request is not stopped in this pass, because others get what its successor would have.
    pub(super) fn was_given_up(&self, request: &Request) -> bool {
        self.given_up.contains(&request.slot)
    }

    /// The outcome for who replaces a pod that works, which it can also do in that pod's place. That takes a turn, waiting does not.
    pub(super) fn taken(
        &mut self,
        inventory: &Inventory<'_>,
        request: &Request,
        outcome: Outcome,
    ) -> Outcome {
        let in_place = match &outcome {
            Outcome::Waiting { .. } if request.round == Round::Beside && !self.was_given_up(request) => {
                let home = request.previous.as_ref().and_then(|previous| self.changed.get(&previous.node));
                match home {
                    Some(home) => gpus_on(&without(home, request), request),
                    None => in_place(inventory, request),
                }
            }
            _ => None,
        };
        let outcome = match in_place {
            Some(placement) => {
                self.in_place.push(request.clone());
                Outcome::InPlace(placement)
            }
            None => outcome,
        };
        match &outcome {
            Outcome::Granted(_) | Outcome::InPlace(_) if request.turns.is_some() => {
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

    /// When all were served whose turn it is: the requests whose pods are not stopped after all, for what others get. They are
    /// to be served once more, and then those whose turn theirs was.
    pub(super) fn give_up(
        &mut self,
        inventory: &Inventory<'o>,
        outcomes: &mut BTreeMap<SlotId, Outcome>,
    ) -> Vec<Request> {
        let mut given_up = Vec::new();
        // What was granted since changes the nodes: each is looked at anew.
        self.changed.clear();
        for request in std::mem::take(&mut self.in_place) {
            let Some(previous) = &request.previous else { continue };
            let home = &previous.node;
            let Some(now) = self.changed.get(home).or_else(|| inventory.nodes.get(home)) else { continue };
            let mut node = without(now, &request);
            if let Some(placement) = gpus_on(&node, &request) {
                hold(&mut node, &request.slot.resource, &placement);
                self.changed.insert(home.clone(), node);
                if let Some(outcome) = outcomes.get_mut(&request.slot) {
                    *outcome = Outcome::InPlace(placement);
                }
                self.in_place.push(request);
            } else {
                self.give_back(&request);
                outcomes.remove(&request.slot);
                self.given_up.insert(request.slot.clone());
                given_up.push(request);
            }
        }
        given_up
    }

    /// Its turn is another's.
    fn give_back(&mut self, request: &Request) {
        let key = &request.slot.resource;
        if request.turns.is_some()
            && let Some(taken) = self.taken.get_mut(key)
        {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                self.taken.remove(key);
            }
        }
    }

    /// When all requests were served but those whose turn it isn't: pods of one resource that keep each other from their devices
    /// are stopped after all.
    pub(super) fn end(
        mut self,
        inventory: &mut Inventory<'o>,
        off: &[Request],
        outcomes: &mut BTreeMap<SlotId, Outcome>,
    ) {
        for request in off {
            if !self.taken.contains_key(&request.slot.resource) {
                self.keep(request);
            }
        }
        let Self { taken, in_place: _, mut changed, given_up: _, vain } = self;
        for (key, mut requests) in vain.into_iter().filter(|(key, _)| !taken.contains_key(key)) {
            requests.sort_by(|a, b| precedence(a).cmp(&precedence(b)));
            let moved = exchange(Later { changed: &changed, inventory: &*inventory }, &key, &requests);
            for mover in &moved {
                let stops = change(inventory, mover, outcomes);
                let Some(now) = inventory.nodes.get(&mover.to.node) else { continue };
                // Those that come after it count on nothing of what it gets.
                if stops || changed.contains_key(&mover.to.node) {
                    let later = changed.entry(mover.to.node.clone()).or_insert_with(|| now.clone());
                    release(later, mover.request);
                    hold(later, &key, &mover.to);
                }
            }
        }
    }
}

/// What becomes of a pod that others of its resource wait for: its successor starts beside it where that can be, else it is stopped;
/// whether it is.
fn change(
    inventory: &mut Inventory<'_>,
    mover: &Mover<'_>,
    outcomes: &mut BTreeMap<SlotId, Outcome>,
) -> bool {
    let Mover { request, to } = mover;
    let node = inventory.nodes.get(&to.node).filter(|_| request.surge);
    let free = node.and_then(|node| place(node, &request.wish, &request.slot.resource));
    let outcome = match free {
        Some(placement) => {
            enter(inventory, request, &placement);
            Outcome::Granted(placement)
        }
        None => Outcome::InPlace(to.clone()),
    };
    let stops = matches!(outcome, Outcome::InPlace(_));
    outcomes.insert(request.slot.clone(), outcome);
    stops
}

/// The GPUs that a pod has which must stop before its successor starts: that comes back to them, and no others are looked for.
pub(super) fn stays(inventory: &Inventory<'_>, request: &Request) -> Option<Placement> {
    if request.round != Round::Beside || request.surge {
        return None;
    }
    again(&home(inventory, request)?, request)
}

/// The GPUs for a request on the node of the pod that it replaces, once that is stopped.
pub(super) fn in_place(inventory: &Inventory<'_>, request: &Request) -> Option<Placement> {
    gpus_on(&home(inventory, request)?, request)
}

/// The node of the pod that a request replaces, without that pod.
fn home<'o>(inventory: &Inventory<'o>, request: &Request) -> Option<NodeGpus<'o>> {
    let previous = request.previous.as_ref()?;
    Some(without(inventory.nodes.get(&previous.node)?, request))
}

/// The GPUs for a request on its own node: those that it had, if they are what is wanted.
fn gpus_on(node: &NodeGpus<'_>, request: &Request) -> Option<Placement> {
    again(node, request).or_else(|| place(node, &request.wish, &request.slot.resource))
}

/// The GPUs for a request on this node, if it can have them there.
pub(super) fn place(node: &NodeGpus<'_>, wish: &Wish, resource: &ResourceKey) -> Option<Placement> {
    match &wish.need {
        Need::Nothing => None,
        Need::Exact(devices) => exact::place(node, wish, devices),
        Need::Count(need) => count::place(node, wish, need, resource),
    }
}

/// A node as it is once the pods are gone that a request replaces.
pub(super) fn without<'o>(node: &NodeGpus<'o>, request: &Request) -> NodeGpus<'o> {
    let mut node = node.clone();
    release(&mut node, request);
    node
}

/// Takes the pods that a request replaces out of the ledger of a node.
pub(super) fn release(node: &mut NodeGpus<'_>, request: &Request) {
    if request.previous.as_ref().is_none_or(|previous| *previous.node != *node.name) {
        return;
    }
    // A pod beside which one is asked for goes on; where one comes after it, it is ending.
    let state = if request.round == Round::Beside { HolderState::Holds } else { HolderState::Leaving };
    for stopped in &request.stops {
        let own = |holder: &Holder<'_>| {
            holder.units == stopped.units
                && holder.state == state
                && matches!(&holder.who, Who::Resource(key) if **key == request.slot.resource)
        };
        let Some(gpu) = node.gpu_mut(stopped.index) else { continue };
        if let Some(at) = gpu.holders.iter().position(own) {
            gpu.holders.remove(at);
            gpu.memory_free = gpu.memory_free.saturating_add(u64::from(stopped.units) * MIB_PER_UNIT);
        }
    }
}
