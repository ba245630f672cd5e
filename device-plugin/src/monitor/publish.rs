//! What the monitor tells the others: the servers what to offer, the container runtime which GPUs there are, people and
//! metrics how they are.

use super::{Memory, Monitor, Sight};
use crate::allocations::Holdings;
use crate::cdi;
use crate::device::{DeviceId, Identity, Now, Probe, Reading};
use crate::health::Extent;
use crate::injection::Injectable;
use crate::offers::{self, OfferedGpu};
use crate::preferred::Merit;
use crate::processes::Usage;
use crate::server::Snapshot;
use crate::status::{self, GpuState, NodeView};
use crate::views::Place;
use principium_api::gpu_node::GpuView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Monitor {
    pub(super) fn publish(&mut self, usage: &BTreeMap<u32, Usage>, now: Now) {
        // People and the operator are told that a GPU is free when its memory was seen to be.
        let told = self.holdings.as_ref().map(|held| self.released.and_held(held)).unwrap_or_default();
        let recent = Arc::clone(&self.inputs.recent);
        // No allocation is answered between the look at what is held and the new offers.
        let mut pending = recent.lock();
        let under_way = pending.settle(self.holdings.as_ref(), now);
        self.place(&under_way.iter().map(|device| device.gpu()).collect(), now);
        self.compare(pending.injected(), now);
        let in_use = self.holdings.as_ref().map(|held| used(held, &under_way));
        let taken = used(&told, &under_way);
        let gpus: Vec<(OfferedGpu, GpuState)> = self
            .registry
            .gpus()
            .map(|(index, known)| self.gpu(index, &known.identity, usage.get(&index), &told, &taken))
            .collect();
        let (offered, states): (Vec<_>, Vec<_>) = gpus.into_iter().unzip();
        let injectable = injectable(&states);
        let snapshot = Snapshot {
            offers: offers::offers(&offered, in_use.as_ref()),
            merits: states.iter().map(|gpu| (gpu.index, merit(gpu))).collect(),
            gpus: injectable.clone(),
        };
        // Before a new GPU is offered, the container runtime must know it.
        self.describe(&injectable);
        self.outputs.snapshot.send_if_modified(|last| {
            let changed = **last != snapshot;
            if changed {
                *last = Arc::new(snapshot);
            }
            changed
        });
        drop(pending);
        self.ask_for_pods(usage);
        let view = self.view(states, now);
        self.outputs.metrics.observe(&view);
        self.outputs.view.send_replace(Some(view));
    }

    /// One GPU for the kubelet and for people.
    fn gpu(
        &self,
        index: u32,
        identity: &Identity,
        usage: Option<&Usage>,
        told: &Holdings,
        taken: &BTreeSet<DeviceId>,
    ) -> (OfferedGpu, GpuState) {
        let memory = self.gpus.get(&index);
        let verdict = memory.map(Memory::verdict).unwrap_or_default();
        let place = memory.and_then(|gpu| gpu.place).unwrap_or(Place::new(GpuView::Exact));
        let units = identity.units();
        let offered = OfferedGpu {
            index,
            units,
            view: place.view,
            moved: place.moved,
            extent: verdict.extent,
            numa_node: identity.numa_node,
        };
        let free_units = offers::free_units(&offered, taken);
        let unwithheld = OfferedGpu { extent: Extent::Nothing, ..offered };
        // A divided GPU's units are those of its parts.
        let withheld_units =
            if identity.divided { 0 } else { offers::free_units(&unwithheld, taken) - free_units };
        let allocations = told.allocations(index, units);
        let state = GpuState {
            index,
            view: place.view,
            limits: self.config.limits_for(identity),
            reading: self.reading(&identity.uuid).cloned(),
            steady: memory.map(|gpu| gpu.smooth).unwrap_or_default(),
            pods: usage.map(|usage| status::pod_memory(&allocations, &usage.holders)).unwrap_or_default(),
            allocations,
            free_units,
            withheld_units,
            foreign: usage.map(|usage| usage.foreign.clone()).unwrap_or_default(),
            verdict,
            identity: identity.clone(),
        };
        (offered, state)
    }

    fn reading(&self, uuid: &str) -> Option<&Reading> {
        match &self.sight {
            Sight::Sample(sample, _) if self.unresponsive().is_none() => {
                sample.gpus.iter().find(|gpu| gpu.identity.uuid == uuid).and_then(|gpu| match &gpu.probe {
                    Probe::Answer(reading) => Some(reading),
                    Probe::Lost | Probe::Silent(_) => None,
                })
            }
            _ => None,
        }
    }

    fn view(&self, gpus: Vec<GpuState>, now: Now) -> NodeView {
        let sample = match &self.sight {
            Sight::Sample(sample, _) => Some(sample),
            Sight::Nothing | Sight::Unavailable(_) => None,
        };
        NodeView {
            driver_version: sample
                .map(|sample| sample.driver_version.clone())
                .filter(|version| !version.is_empty()),
            cuda_version: sample.and_then(|sample| sample.cuda_version.clone()),
            simulated: self.config.simulated,
            injection: self.config.injection,
            message: self.message(),
            disagreements: self.agreement.lasting(now.elapsed),
            gpus,
        }
    }

    /// Keeps the CDI specification of simulated GPUs in step. Every GPU that this node ever had stays in it: a
    /// container that holds a lost one can still be restarted.
    fn describe(&mut self, gpus: &BTreeMap<u32, Injectable>) {
        if self.injected.as_ref() == Some(gpus) {
            return;
        }
        let written = if self.config.simulated {
            cdi::write(&self.config.cdi_dir, gpus)
        } else {
            cdi::remove(&self.config.cdi_dir)
        };
        match written {
            Ok(()) => self.injected = Some(gpus.clone()),
            Err(error) => tracing::warn!(%error, "trying again"),
        }
    }
}

/// Devices that are held, and those that were handed out and are not listed yet.
fn used(held: &Holdings, under_way: &BTreeSet<DeviceId>) -> BTreeSet<DeviceId> {
    held.devices().chain(under_way.iter().copied()).collect()
}

fn injectable(gpus: &[GpuState]) -> BTreeMap<u32, Injectable> {
    gpus.iter()
        .map(|gpu| {
            let Identity { uuid, minor, part, .. } = &gpu.identity;
            let injectable = Injectable {
                uuid: uuid.clone(),
                minor: minor.unwrap_or(gpu.index),
                instance: part.as_ref().map(|part| (part.gpu_instance, part.compute_instance)),
                view: gpu.view,
            };
            (gpu.index, injectable)
        })
        .collect()
}

fn merit(gpu: &GpuState) -> Merit {
    Merit {
        temperature: gpu.reading.as_ref().and_then(|reading| reading.temperature),
        free_mib: gpu.reading.as_ref().map_or(0, |reading| reading.memory_free_mib),
        numa_node: gpu.identity.numa_node,
    }
}
