//! Sentences on why a GPU can't be had. They decide nothing, and name nothing that drifts while all stays as it is: each change
//! of such a sentence is a write of the status and an Event.

use super::exact::Unresolved;
use super::{Blocked, CountNeed, Placement};
use crate::inventory::{GpuState, HolderState, NodeGpus, Who};
use principium_api::gpu::{GpuDevice, GpuMemory, MIB_PER_UNIT};
use std::collections::BTreeMap;

/// What is said of a holder that should have ended long ago.
const OVERDUE: &str =
    ", which should have ended by now: look at its finalizers and at the kubelet of its node";

/// A sentence on what keeps a GPU from being granted.
pub(super) fn explain(node: &NodeGpus<'_>, gpu: &GpuState<'_>, units: u32, why: Blocked<'_>) -> String {
    let place = format!("GPU {} on node {}", gpu.index, node.name);
    let waiting = format!("waiting for {units} GiB");
    match why {
        Blocked::Closed(closed) => format!("{place} {}; waiting until it is offered again", closed.message),
        Blocked::Held => format!("{place} {}; {waiting}", held(gpu)),
        Blocked::NotOffered => format!(
            "{place}: the node offers {} of {} GiB to the scheduler, {} GiB are taken; {waiting}",
            gpu.offered,
            gpu.units,
            gpu.taken()
        ),
        Blocked::InUse => format!(
            "{place}: only {} GiB of its memory are free although {} GiB are granted to nobody; {waiting}",
            gpu.memory_free / MIB_PER_UNIT,
            gpu.free()
        ),
    }
}

/// Who has a GPU, for a sentence that begins with it.
fn held(gpu: &GpuState<'_>) -> String {
    let mut by_holder: BTreeMap<(&Who<'_>, &str, &str), u32> = BTreeMap::new();
    for holder in &gpu.holders {
        let (state, ending) = match holder.state {
            HolderState::Holds | HolderState::Granted => ("is held by", ""),
            HolderState::Leaving => ("is still held by", ", which is ending"),
            HolderState::Overdue => ("is still held by", OVERDUE),
            HolderState::Reserved => ("is kept for", ""),
        };
        let sum = by_holder.entry((&holder.who, state, ending)).or_default();
        *sum = sum.saturating_add(holder.units);
    }
    let parts: Vec<String> = by_holder
        .into_iter()
        .map(|((who, state, ending), units)| format!("{state} {who} ({units} of {} GiB){ending}", gpu.units))
        .collect();
    if parts.is_empty() { format!("has {} GiB", gpu.units) } else { parts.join(" and ") }
}

/// A reason and a sentence on why devices can't be found on a node.
pub(super) fn unresolved(node: &NodeGpus<'_>, why: &Unresolved<'_>) -> (&'static str, String) {
    let name = &node.name;
    let message = match why {
        Unresolved::NoSuch(device) => {
            let has = node.gpus.iter().map(|gpu| gpu.index.to_string()).collect::<Vec<_>>().join(", ");
            let has = if has.is_empty() { "no GPUs".to_owned() } else { format!("GPUs {has}") };
            format!("node {name} has no {}; it has {has}", named(device))
        }
        Unresolved::TooMuch(device, index, units) => {
            let asked = device.memory.as_ref().map(GpuMemory::to_string).unwrap_or_default();
            format!("GPU {index} on node {name} has {units} GiB; {asked} were asked for")
        }
        Unresolved::Twice(index) => format!("spec.gpu.devices names GPU {index} on node {name} twice"),
    };
    (why.reason(), message)
}

/// Why a pod waits for the node of its former pod: the node, or its device plugin, is only just starting.
pub(super) fn starting(node: &NodeGpus<'_>, previous: &Placement) -> Option<String> {
    if node.lost {
        let why = node.closed.as_deref().unwrap_or("is not ready");
        return Some(format!("node {} {why}; its pod comes back to the GPUs that it had", node.name));
    }
    let gpus = || previous.gpus.iter().filter_map(|former| node.gpu(former.index));
    let starting =
        gpus().count() == previous.gpus.len() && gpus().all(|gpu| gpu.closed.is_none() && gpu.offered == 0);
    starting.then(|| {
        format!(
            "the device plugin of node {} registers; its pod comes back to the GPUs that it had",
            node.name
        )
    })
}

fn named(device: &GpuDevice) -> String {
    match (&device.index, &device.uuid) {
        (Some(index), _) => format!("GPU {index}"),
        (None, uuid) => format!("GPU {}", uuid.as_deref().unwrap_or_default()),
    }
}

pub(super) fn degrees(gpu: &GpuState<'_>) -> String {
    gpu.temperature
        .map_or_else(|| "an unknown temperature".to_owned(), |temperature| format!("{temperature} °C"))
}

pub(super) fn too_warm(gpu: &GpuState<'_>, need: &CountNeed) -> String {
    match (gpu.temperature, need.max_temperature) {
        (Some(_), Some(most)) => format!("GPU {} is not below {most} °C", gpu.index),
        _ => format!("GPU {} has {}", gpu.index, degrees(gpu)),
    }
}

pub(super) fn brief(gpu: &GpuState<'_>, why: Blocked<'_>) -> String {
    match why {
        Blocked::Closed(closed) => format!("GPU {} {}", gpu.index, closed.message),
        Blocked::Held => format!("GPU {} {}", gpu.index, held(gpu)),
        Blocked::NotOffered => format!("GPU {} is not offered to the scheduler", gpu.index),
        Blocked::InUse => format!("GPU {} has only {} GiB free", gpu.index, gpu.memory_free / MIB_PER_UNIT),
    }
}

fn amount(need: &CountNeed) -> String {
    let gpus = if need.count == 1 { "1 GPU".to_owned() } else { format!("{} GPUs", need.count) };
    match &need.memory {
        Some(memory) => format!("{gpus} with {} GiB free", memory.units()),
        None => format!("{gpus}, whole and free"),
    }
}

pub(super) fn shortage(node: &NodeGpus<'_>, need: &CountNeed, free: usize, against: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = against.len().saturating_sub(SHOWN);
    let mut parts = against.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 {
        parts.push_str(&format!("; and {more} more"));
    }
    let available = if free == 0 { "none is".to_owned() } else { format!("only {free} can be had") };
    format!("waiting for {} on one node; on node {} {available}: {parts}", amount(need), node.name)
}
