//! Exact devices: which node has them, and whether they can be had there.

use super::beside::in_place;
use super::words::{explain, unresolved};
use super::{Outcome, Placement, Request, Round, Wish, assigned, blocked};
use crate::conditions::reason;
use crate::inventory::{Admission, GpuState, Inventory, NodeGpus};
use principium_api::gpu::{GpuDevice, GpuMemory};

/// Why exact devices are where they are.
pub(super) const REASON: &str = "named in spec.gpu.devices";

/// What was found out about the nodes for requests that name the same devices.
#[derive(Default)]
pub(super) struct Candidates {
    /// This many nodes, from the first on, can't serve: what is free only gets less within a pass.
    passed: usize,
    /// Nodes that have the devices and can't give them, and the number of the first of them.
    homes: usize,
    first: Option<usize>,
    impossible: Option<(&'static str, String)>,
    /// Why the first node that is closed and tells of no GPUs does so.
    silent: Option<String>,
    unselected: usize,
}

impl Candidates {
    /// The former node if it has them free, else the first node that does.
    pub(super) fn choose(
        &mut self,
        inventory: &Inventory<'_>,
        request: &Request,
        devices: &[GpuDevice],
    ) -> Outcome {
        let former = request.previous.as_ref().and_then(|previous| inventory.nodes.get(&previous.node));
        if let Some(Verdict::Granted(placement)) = former.map(|node| look(node, &request.wish, devices)) {
            return Outcome::Granted(placement);
        }
        // One that must stop first stays on its node where that has such devices, whatever others have.
        if request.round == Round::Beside && !request.surge && in_place(inventory, request).is_some() {
            return self.waiting(inventory, request, devices, former);
        }
        for node in inventory.nodes.all().iter().skip(self.passed) {
            match look(node, &request.wish, devices) {
                Verdict::Granted(placement) => return Outcome::Granted(placement),
                Verdict::NotSelected => self.unselected += 1,
                Verdict::Silent(why) => {
                    self.silent.get_or_insert_with(|| format!("node {} {why}", node.name));
                }
                Verdict::Missing(why) => {
                    self.impossible.get_or_insert_with(|| unresolved(node, &why));
                }
                Verdict::Blocked => {
                    self.homes += 1;
                    self.first.get_or_insert(self.passed);
                }
            }
            self.passed += 1;
        }
        self.waiting(inventory, request, devices, former)
    }

    fn waiting(
        &self,
        inventory: &Inventory<'_>,
        request: &Request,
        devices: &[GpuDevice],
        former: Option<&NodeGpus<'_>>,
    ) -> Outcome {
        let home = former
            .filter(|node| matches!(look(node, &request.wish, devices), Verdict::Blocked))
            .or_else(|| inventory.nodes.all().get(self.first?));
        if let Some(node) = home
            && let Ok(wanted) = resolve(node, devices)
        {
            let message = match node.admits(&request.wish.node_selector, &request.wish.tolerations) {
                Err(Admission::Closed(why)) => format!("node {} {why}", node.name),
                _ => wanted
                    .iter()
                    .find_map(|(gpu, units)| Some(explain(node, gpu, *units, blocked(gpu, *units)?)))
                    .unwrap_or_default(),
            };
            // With several nodes that have the devices, which one it will be is open: nothing is kept.
            let kept = (self.homes == 1).then(|| placement(node, &wanted));
            return Outcome::Waiting { message, kept };
        }
        if let Some(message) = &self.silent {
            return Outcome::Waiting { message: message.clone(), kept: None };
        }
        match &self.impossible {
            Some((reason, message)) => Outcome::Impossible { reason, message: message.clone() },
            None => super::count::nowhere(self.unselected),
        }
    }
}

/// The devices on this node, if they can be had.
pub(super) fn place(node: &NodeGpus<'_>, wish: &Wish, devices: &[GpuDevice]) -> Option<Placement> {
    match look(node, wish, devices) {
        Verdict::Granted(placement) => Some(placement),
        _ => None,
    }
}

enum Verdict<'a> {
    NotSelected,
    /// It is closed, and what it has is not known.
    Silent(String),
    Missing(Unresolved<'a>),
    Blocked,
    Granted(Placement),
}

fn look<'a>(node: &'a NodeGpus<'_>, wish: &Wish, devices: &'a [GpuDevice]) -> Verdict<'a> {
    let admission = node.admits(&wish.node_selector, &wish.tolerations);
    let closed = match admission {
        Ok(()) => None,
        Err(Admission::NotSelected) => return Verdict::NotSelected,
        Err(Admission::Closed(why)) => Some(why),
    };
    match (resolve(node, devices), closed) {
        (Err(_), Some(why)) if node.gpus.is_empty() => Verdict::Silent(why),
        (Err(why), _) => Verdict::Missing(why),
        (Ok(_), Some(_)) => Verdict::Blocked,
        (Ok(wanted), None) if wanted.iter().any(|(gpu, units)| blocked(gpu, *units).is_some()) => {
            Verdict::Blocked
        }
        (Ok(wanted), None) => Verdict::Granted(placement(node, &wanted)),
    }
}

fn placement(node: &NodeGpus<'_>, wanted: &[(&GpuState<'_>, u32)]) -> Placement {
    Placement {
        node: node.name.to_string(),
        gpus: wanted.iter().map(|(gpu, units)| assigned(gpu, *units)).collect(),
        reason: REASON.to_owned(),
    }
}

/// Why devices can't be found on a node.
pub(super) enum Unresolved<'a> {
    NoSuch(&'a GpuDevice),
    /// The device has this many units.
    TooMuch(&'a GpuDevice, u32, u32),
    Twice(u32),
}

impl Unresolved<'_> {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoSuch(_) => reason::NO_SUCH_GPU,
            Self::TooMuch(..) => reason::TOO_MUCH_MEMORY,
            Self::Twice(_) => reason::DUPLICATE_DEVICES,
        }
    }
}

/// The devices on this node with their units, or what is missing.
pub(super) fn resolve<'n, 'o, 'd>(
    node: &'n NodeGpus<'o>,
    devices: &'d [GpuDevice],
) -> Result<Vec<(&'n GpuState<'o>, u32)>, Unresolved<'d>> {
    let mut found: Vec<(&GpuState<'_>, u32)> = Vec::with_capacity(devices.len());
    for device in devices {
        let gpu = match (device.index, &device.uuid) {
            (Some(index), _) => node.gpu(index),
            (None, Some(uuid)) => node.gpus.iter().find(|gpu| gpu.uuid == *uuid),
            (None, None) => None,
        };
        let Some(gpu) = gpu else { return Err(Unresolved::NoSuch(device)) };
        let units = device.memory.as_ref().map_or(gpu.units, GpuMemory::units);
        if units > gpu.units {
            return Err(Unresolved::TooMuch(device, gpu.index, gpu.units));
        }
        if found.iter().any(|(other, _)| other.index == gpu.index) {
            return Err(Unresolved::Twice(gpu.index));
        }
        found.push((gpu, units));
    }
    Ok(found)
}
