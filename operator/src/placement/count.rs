//! A number of GPUs that the operator chooses: preferred first, then cool, then by strategy.

use super::beside::in_place;
use super::survey::impossible;
use super::words::{brief, degrees, shortage, too_warm};
use super::{CountNeed, Outcome, Placement, Request, Round, Wish, assigned, blocked};
use crate::conditions::reason;
use crate::inventory::{Admission, GpuState, HolderState, Inventory, NodeGpus, Who};
use crate::resource::ResourceKey;
use principium_api::gpu::Strategy;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The width of a temperature band in °C: GPUs within one band are equally cool.
const BAND: u32 = 10;

/// The nodes that can serve requests of one class, best first.
#[derive(Default)]
pub(super) struct Candidates {
    /// Filled at the first request; empty again for good once none is left.
    ranked: Option<BTreeSet<(Rank, usize)>>,
    ranks: BTreeMap<usize, Rank>,
    /// How many of the changes are known here.
    seen: usize,
    /// Once no node can serve, none can for the rest of the pass: what is free only gets less.
    refused: Option<Outcome>,
    /// Whether one could once the pods that are ending have ended; looked at when it is asked for.
    frees_up: Option<bool>,
}

impl Candidates {
    /// The former node if it can serve, else the one that was chosen before, else the best. `leaves` says that it does not wait for
    /// what its own pod would leave it there: others get that.
    pub(super) fn choose(
        &mut self,
        inventory: &Inventory<'_>,
        request: &Request,
        need: &CountNeed,
        leaves: bool,
        changed: &[usize],
    ) -> Outcome {
        let Ok(wanted) = usize::try_from(need.count) else {
            let message = "gpu.count is too large".to_owned();
            return Outcome::Impossible { reason: reason::NOT_ENOUGH_GPUS, message };
        };
        let wish = &request.wish;
        let former = request.previous.as_ref().and_then(|previous| inventory.nodes.get(&previous.node));
        let hinted = || request.hint.as_ref().and_then(|hint| inventory.nodes.get(hint));
        let fits = |node: &&NodeGpus<'_>| rank(node, wish, need, wanted).is_some();
        if let Some(node) = former.filter(fits) {
            return Outcome::Granted(choose_on(node, need, wanted, &request.slot.resource));
        }
        // One that must stop first stays on its node where that has GPUs for it then.
        if request.round == Round::Beside
            && !(request.surge || leaves)
            && let Some(home) = former
            && in_place(inventory, request).is_some()
        {
            let message = shortage(home, need, able(home, need).count(), &against(home, need));
            return Outcome::Waiting { message, kept: None };
        }
        if let Some(node) = hinted().filter(fits) {
            return Outcome::Granted(choose_on(node, need, wanted, &request.slot.resource));
        }
        if let Some(outcome) = self.refused.clone() {
            return self.beside(inventory, request, need, wanted, outcome);
        }
        self.catch_up(inventory, wish, need, wanted, changed);
        let mut best: Option<(Rank, Spread, &NodeGpus<'_>)> = None;
        for (rank, at) in self.ranked.iter().flatten() {
            let Some(node) = inventory.nodes.all().get(*at) else { continue };
            // The strategy chooses among nodes whose GPUs are equally wanted and equally cool.
            if best.as_ref().is_some_and(|(first, ..)| first.but_for_fit() != rank.but_for_fit()) {
                break;
            }
            let spread = spread(node, rank, need, wanted, &request.slot.resource);
            // Where it has no pods, the nodes after it fit worse.
            let free_of_own = spread.0 == 0;
            if best.as_ref().is_none_or(|(_, least, _)| spread < *least) {
                best = Some((*rank, spread, node));
            }
            if free_of_own {
                break;
            }
        }
        if let Some((.., node)) = best {
            return Outcome::Granted(choose_on(node, need, wanted, &request.slot.resource));
        }
        let outcome = refusal(inventory, wish, need, wanted);
        self.refused = Some(outcome.clone());
        self.beside(inventory, request, need, wanted, outcome)
    }

    /// The same for a pod that works meanwhile: it need not be stopped where GPUs are about to be free for its successor.
    fn beside(
        &mut self,
        inventory: &Inventory<'_>,
        request: &Request,
        need: &CountNeed,
        wanted: usize,
        refused: Outcome,
    ) -> Outcome {
        let Outcome::Waiting { message, .. } = &refused else { return refused };
        if request.round != Round::Beside || !request.surge {
            return refused;
        }
        let frees_up = || {
            let ending = |gpu: &GpuState<'_>| gpu.holders.iter().any(|it| it.state == HolderState::Leaving);
            let mut nodes = inventory.nodes.all().iter().filter(|node| node.gpus.iter().any(ending));
            nodes.any(|node| rank(&without_leaving(node), &request.wish, need, wanted).is_some())
        };
        if *self.frees_up.get_or_insert_with(frees_up) {
            return Outcome::Soon { message: message.clone() };
        }
        refused
    }

    fn catch_up(
        &mut self,
        inventory: &Inventory<'_>,
        wish: &Wish,
        need: &CountNeed,
        wanted: usize,
        changed: &[usize],
    ) {
        match &mut self.ranked {
            None => {
                let ranked = inventory.nodes.all().iter().enumerate();
                self.ranks =
                    ranked.filter_map(|(at, node)| Some((at, rank(node, wish, need, wanted)?))).collect();
                self.ranked = Some(self.ranks.iter().map(|(at, rank)| (*rank, *at)).collect());
            }
            Some(ranked) => {
                let news: BTreeSet<usize> = changed.iter().skip(self.seen).copied().collect();
                for at in news {
                    if let Some(before) = self.ranks.remove(&at) {
                        ranked.remove(&(before, at));
                    }
                    let node = inventory.nodes.all().get(at);
                    if let Some(now) = node.and_then(|node| rank(node, wish, need, wanted)) {
                        self.ranks.insert(at, now);
                        ranked.insert((now, at));
                    }
                }
            }
        }
        self.seen = changed.len();
    }
}

/// The node as it is once the pods that are ending there have ended.
fn without_leaving<'o>(node: &NodeGpus<'o>) -> NodeGpus<'o> {
    let mut node = node.clone();
    for gpu in &mut node.gpus {
        gpu.let_go(|holder| holder.state == HolderState::Leaving);
    }
    node
}

/// How good a node's best GPUs are; the least is the best.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    unpreferred: usize,
    /// The sum of their places among the preferred ones.
    places: usize,
    hottest_band: u32,
    /// The sum of all bands.
    bands: u32,
    fit: Fit,
}

impl Rank {
    fn but_for_fit(&self) -> (usize, usize, u32, u32) {
        (self.unpreferred, self.places, self.hottest_band, self.bands)
    }
}

/// Pods of the resource on the node, and on its best GPUs, and how these fit: by it nodes are told apart whose GPUs are
/// equally wanted and equally cool.
type Spread = (u32, u32, Fit);

fn spread(
    node: &NodeGpus<'_>,
    rank: &Rank,
    need: &CountNeed,
    wanted: usize,
    resource: &ResourceKey,
) -> Spread {
    if need.strategy == Strategy::Pack {
        return (0, 0, rank.fit);
    }
    let gpus = best_on(node, need, wanted, resource);
    let left = left_on(gpus.iter().copied(), need);
    let own = |gpu: &GpuState<'_>| own(gpu, resource);
    (node.gpus.iter().map(own).sum(), gpus.iter().map(|gpu| own(gpu)).sum(), Fit::of(need, left))
}

/// Units that would be left over: few are good to pack, many to spread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    Tight(u32),
    Loose(Reverse<u32>),
}

impl Fit {
    fn of(need: &CountNeed, left: u32) -> Self {
        match need.strategy {
            Strategy::Pack => Self::Tight(left),
            Strategy::Spread => Self::Loose(Reverse(left)),
        }
    }
}

/// Units that are left over on GPUs that can be granted.
fn left_on<'n, 'o: 'n>(gpus: impl Iterator<Item = &'n GpuState<'o>>, need: &CountNeed) -> u32 {
    // What a GPUNode says may be anything.
    gpus.map(|gpu| gpu.free() - need.wanted(gpu)).fold(0, u32::saturating_add)
}

/// The best GPUs of this node, if it can serve.
pub(super) fn place(
    node: &NodeGpus<'_>,
    wish: &Wish,
    need: &CountNeed,
    resource: &ResourceKey,
) -> Option<Placement> {
    let wanted = usize::try_from(need.count).ok()?;
    rank(node, wish, need, wanted)?;
    Some(choose_on(node, need, wanted, resource))
}

/// How good the node is, if it can serve.
fn rank(node: &NodeGpus<'_>, wish: &Wish, need: &CountNeed, wanted: usize) -> Option<Rank> {
    node.admits(&wish.node_selector, &wish.tolerations).ok()?;
    let mut able: Vec<_> = able(node, need).map(|gpu| (suitability(gpu, need, 0), gpu)).collect();
    if able.len() < wanted {
        return None;
    }
    able.sort_unstable_by_key(|(suitability, _)| *suitability);
    able.truncate(wanted);
    let gpus = || able.iter().map(|(_, gpu)| gpu);
    let places = || gpus().filter_map(|gpu| preference(gpu, need));
    Some(Rank {
        unpreferred: wanted - places().count(),
        places: places().sum(),
        hottest_band: gpus().map(|gpu| band(gpu)).max().unwrap_or_default(),
        bands: gpus().fold(0, |sum, gpu| sum.saturating_add(band(gpu))),
        fit: Fit::of(need, left_on(gpus().copied(), need)),
    })
}

/// GPUs of a node that can be granted now.
fn able<'n, 'o>(node: &'n NodeGpus<'o>, need: &CountNeed) -> impl Iterator<Item = &'n GpuState<'o>> {
    node.gpus.iter().filter(|gpu| {
        let units = need.wanted(gpu);
        units <= gpu.units && blocked(gpu, units).is_none() && need.is_cool(gpu) && need.is_product(gpu)
    })
}

/// Its place among the preferred GPUs.
fn preference(gpu: &GpuState<'_>, need: &CountNeed) -> Option<usize> {
    need.prefer.iter().position(|index| *index == gpu.index)
}

fn band(gpu: &GpuState<'_>) -> u32 {
    gpu.temperature.unwrap_or(u32::MAX) / BAND
}

/// How many shares of this resource are on the GPU.
fn own(gpu: &GpuState<'_>, resource: &ResourceKey) -> u32 {
    let own =
        gpu.holders.iter().filter(|holder| matches!(&holder.who, Who::Resource(key) if **key == *resource));
    u32::try_from(own.count()).unwrap_or(u32::MAX)
}

/// Preferred first, then the coolest band, then by strategy; the rest only breaks ties.
fn suitability(gpu: &GpuState<'_>, need: &CountNeed, own: u32) -> (usize, u32, u32, Fit, u32, u32) {
    let preferred = preference(gpu, need).unwrap_or(usize::MAX);
    let temperature = gpu.temperature.unwrap_or(u32::MAX);
    (preferred, band(gpu), own, Fit::of(need, gpu.free() - need.wanted(gpu)), temperature, gpu.index)
}

/// The best GPUs of a node that can serve, the best first.
fn best_on<'n, 'o>(
    node: &'n NodeGpus<'o>,
    need: &CountNeed,
    wanted: usize,
    resource: &ResourceKey,
) -> Vec<&'n GpuState<'o>> {
    let of_resource = |gpu: &GpuState<'_>| match need.strategy {
        Strategy::Pack => 0,
        Strategy::Spread => own(gpu, resource),
    };
    let mut gpus: Vec<&GpuState<'_>> = able(node, need).collect();
    gpus.sort_by_key(|gpu| suitability(gpu, need, of_resource(gpu)));
    gpus.truncate(wanted);
    gpus
}

fn choose_on(node: &NodeGpus<'_>, need: &CountNeed, wanted: usize, resource: &ResourceKey) -> Placement {
    let gpus = best_on(node, need, wanted, resource);
    let why: Vec<String> = gpus
        .iter()
        .map(|gpu| {
            let preferred = if need.prefer.contains(&gpu.index) { "preferred, " } else { "" };
            format!("GPU {} ({preferred}{})", gpu.index, degrees(gpu))
        })
        .collect();
    let by = match need.strategy {
        Strategy::Pack => "fit",
        Strategy::Spread => "spread",
    };
    let mut gpus: Vec<_> = gpus.into_iter().map(|gpu| assigned(gpu, need.wanted(gpu))).collect();
    gpus.sort();
    Placement {
        node: node.name.to_string(),
        gpus,
        reason: format!("chosen by preference, temperature and {by}: {}", why.join(", ")),
    }
}

/// Why no node can serve: the one that comes closest speaks for all.
fn refusal(inventory: &Inventory<'_>, wish: &Wish, need: &CountNeed, wanted: usize) -> Outcome {
    let mut closest: Option<(usize, &NodeGpus<'_>)> = None;
    let mut closed: Option<String> = None;
    let mut unselected = 0;
    for node in inventory.nodes.all() {
        let admission = node.admits(&wish.node_selector, &wish.tolerations);
        if admission == Err(Admission::NotSelected) {
            unselected += 1;
            continue;
        }
        let fitting = node.gpus.iter().filter(|gpu| need.is_product(gpu) && need.wanted(gpu) <= gpu.units);
        // What a closed node has that tells of no GPUs is not known.
        let unknown = node.gpus.is_empty() && admission.is_err();
        if fitting.count() < wanted && !unknown {
            continue;
        }
        if let Err(Admission::Closed(why)) = admission {
            closed.get_or_insert_with(|| format!("node {} {why}", node.name));
            continue;
        }
        let free = able(node, need).count();
        if closest.is_none_or(|(most, _)| free > most) {
            closest = Some((free, node));
        }
    }
    if let Some((free, node)) = closest {
        return Outcome::Waiting { message: shortage(node, need, free, &against(node, need)), kept: None };
    }
    if let Some(message) = closed {
        return Outcome::Waiting { message, kept: None };
    }
    impossible(inventory, wish, need).unwrap_or_else(|| nowhere(unselected))
}

/// What is against each GPU that would fit.
fn against(node: &NodeGpus<'_>, need: &CountNeed) -> Vec<String> {
    let fitting = node.gpus.iter().filter(|gpu| need.is_product(gpu) && need.wanted(gpu) <= gpu.units);
    fitting
        .filter_map(|gpu| {
            if let Some(why) = blocked(gpu, need.wanted(gpu)) {
                Some(brief(gpu, why))
            } else if need.is_cool(gpu) {
                None
            } else {
                Some(too_warm(gpu, need))
            }
        })
        .collect()
}

/// No node was even looked at: the cluster has none yet, or none is selected.
pub(super) fn nowhere(unselected: usize) -> Outcome {
    let message = if unselected == 0 {
        "no node reports GPUs yet; does the device plugin run?".to_owned()
    } else {
        format!("spec.nodeSelector matches none of the {unselected} nodes with GPUs")
    };
    Outcome::Waiting { message, kept: None }
}
