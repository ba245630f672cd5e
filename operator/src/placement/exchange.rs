//! Exact devices that pods of one resource have of each other: which of them are stopped, so that each gets its own in the end.

use super::beside::{place, release, without};
use super::{Placement, Request, Round, hold};
use crate::inventory::{Holder, HolderState, Inventory, NodeGpus, Who};
use crate::resource::ResourceKey;
use principium_api::status::AssignedGpu;
use std::collections::BTreeMap;

/// The nodes as they are once those pods are stopped that are to be, and their successors are there.
#[derive(Clone, Copy)]
pub(super) struct Later<'n, 'o> {
    pub changed: &'n BTreeMap<String, NodeGpus<'o>>,
    pub inventory: &'n Inventory<'o>,
}

impl<'n, 'o> Later<'n, 'o> {
    fn node(self, name: &str) -> Option<&'n NodeGpus<'o>> {
        self.changed.get(name).or_else(|| self.inventory.nodes.get(name))
    }
}

/// A request with the devices that it is to get.
#[derive(Clone)]
pub(super) struct Mover<'r> {
    pub request: &'r Request,
    pub to: Placement,
}

impl Mover<'_> {
    /// Whether its pod has a GPU that the other is to get. One that stays on a GPU gives nothing of it up.
    fn makes_way_for(&self, other: &Self) -> bool {
        let from = self.request.previous.as_ref().map(|previous| &previous.node);
        let on = |to: &Placement, gpu: &AssignedGpu| {
            from == Some(&to.node) && to.gpus.iter().any(|it| it.index == gpu.index)
        };
        let gives = |gpu: &AssignedGpu| on(&other.to, gpu) && !on(&self.to, gpu);
        self.request.round == Round::Beside && self.request.stops.iter().any(gives)
    }
}

/// Which pods are to be stopped, of the requests of a resource that wait for exact devices or whose turn it isn't.
pub(super) fn exchange<'r>(
    later: Later<'_, '_>,
    key: &ResourceKey,
    requests: &'r [Request],
) -> Vec<Mover<'r>> {
    let movers = movers(later, key, requests);
    // One that has no pod waits for the others; else it is somebody's turn.
    let begins = |mover: &&Mover<'_>| mover.request.round != Round::Beside || mover.request.turns != Some(0);
    let mut begun = movers.iter().filter(begins);
    begun.find_map(|first| chain(later, key, first, &movers)).unwrap_or_default()
}

/// Where each is to go: to its own node, if that has its devices. Left out are those that would not get them even if all the
/// others had gone.
fn movers<'r>(later: Later<'_, '_>, key: &ResourceKey, requests: &'r [Request]) -> Vec<Mover<'r>> {
    let emptied = emptied(later, key, requests);
    let to = |request: &Request| {
        let home = request.previous.as_ref().map(|previous| previous.node.as_str());
        let others = later.inventory.nodes.all().iter().map(|node| &*node.name);
        home.into_iter().chain(others).find_map(|name| {
            let node = emptied.get(name).or_else(|| later.node(name))?;
            place(node, &request.wish, key)
        })
    };
    requests.iter().filter_map(|request| Some(Mover { request, to: to(request)? })).collect()
}

/// Which pods are to be stopped so that `first` gets its devices in the end: those that have them, those that have the devices of
/// these, and so on. If one of them can move by itself it goes first; if each has what another is to get, they go together.
fn chain<'r>(
    later: Later<'_, '_>,
    key: &ResourceKey,
    first: &Mover<'r>,
    all: &[Mover<'r>],
) -> Option<Vec<Mover<'r>>> {
    let mut chain = vec![first];
    let mut at = 0;
    while let Some(mover) = chain.get(at).copied() {
        for other in all.iter().filter(|other| other.makes_way_for(mover)) {
            if !chain.iter().any(|it| it.request.slot == other.request.slot) {
                chain.push(other);
            }
        }
        at += 1;
    }
    // Nobody is stopped where `first` would gain nothing by it.
    let mut nodes = emptied(later, key, chain.iter().map(|mover| mover.request));
    let node = nodes.get(&first.to.node).or_else(|| later.node(&first.to.node))?;
    place(node, &first.request.wish, key)?;
    let moving: Vec<&Mover<'r>> =
        chain.iter().copied().filter(|mover| mover.request.round == Round::Beside).collect();
    let by_itself = |mover: &&&Mover<'r>| {
        let node = later.node(&mover.to.node).map(|node| without(node, mover.request));
        node.is_some_and(|node| place(&node, &mover.request.wish, key).is_some())
    };
    if let Some(alone) = moving.iter().find(by_itself) {
        return Some(vec![(**alone).clone()]);
    }
    for mover in &chain {
        let now = later.node(&mover.to.node)?;
        let node = nodes.entry(mover.to.node.clone()).or_insert_with(|| now.clone());
        let placement = place(node, &mover.request.wish, key)?;
        hold(node, key, &placement);
    }
    (!moving.is_empty()).then(|| moving.into_iter().cloned().collect())
}

/// The nodes of the pods that these requests replace, without those pods, and without what is kept for them: that is for them.
fn emptied<'r, 'o>(
    later: Later<'_, 'o>,
    key: &ResourceKey,
    requests: impl IntoIterator<Item = &'r Request>,
) -> BTreeMap<String, NodeGpus<'o>> {
    let kept = |holder: &Holder<'_>| {
        holder.state == HolderState::Reserved && matches!(&holder.who, Who::Resource(of) if **of == *key)
    };
    let mut nodes = BTreeMap::new();
    for request in requests {
        let home = request.previous.as_ref().and_then(|previous| later.node(&previous.node));
        let Some(home) = home else { continue };
        let node: &mut NodeGpus<'o> = nodes.entry(home.name.to_string()).or_insert_with(|| {
            let mut node = home.clone();
            node.gpus.iter_mut().for_each(|gpu| gpu.holders.retain(|holder| !kept(holder)));
            node
        });
        release(node, request);
    }
    nodes
}
