//! What the kubelet is told: every device of every resource, and whether it may be handed out. Pure.
//!
//! A device ID never leaves its list while the plugin runs: the kubelet may be handing it out at this moment. What must
//! not be handed out is Unhealthy, and only where nobody holds it: a device that is in use stays Healthy, so that the
//! kubelet keeps the pod that has it, also over a restart of its own.

use crate::device::DeviceId;
use crate::health::Extent;
use principium_api::gpu_node::GpuView;
use std::collections::{BTreeMap, BTreeSet};

/// The devices of each resource, in a fixed order.
pub type Offers = BTreeMap<String, Vec<Offer>>;

/// A device and whether it may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The device.
    pub id: DeviceId,
    /// Whether it may be handed out.
    pub healthy: bool,
    /// NUMA node of its GPU.
    pub numa_node: Option<u32>,
}

/// What the offer of one GPU follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferedGpu {
    /// Index.
    pub index: u32,
    /// Units of the whole GPU.
    pub units: u32,
    /// The one view in which it is offered.
    pub view: GpuView,
    /// Whether the kubelet knows its devices in the other view too. There they are all Unhealthy.
    pub moved: bool,
    /// How much is withheld.
    pub extent: Extent,
    /// NUMA node.
    pub numa_node: Option<u32>,
}

/// The offers of all GPUs. While it is not known what is in use, nothing is withheld.
#[must_use]
pub fn offers(gpus: &[OfferedGpu], in_use: Option<&BTreeSet<DeviceId>>) -> Offers {
    let mut offers = Offers::new();
    for gpu in gpus {
        let ids = devices(gpu, gpu.view);
        let withheld = withheld(&ids, gpu.extent, in_use);
        let gone = if gpu.moved { devices(gpu, other(gpu.view)) } else { Vec::new() };
        let all = ids.into_iter().map(|id| (id, !withheld.contains(&id)));
        for (id, healthy) in all.chain(gone.into_iter().map(|id| (id, false))) {
            offers.entry(id.resource()).or_default().push(Offer { id, healthy, numa_node: gpu.numa_node });
        }
    }
    offers
}

fn other(view: GpuView) -> GpuView {
    match view {
        GpuView::Exact => GpuView::Generic,
        GpuView::Generic => GpuView::Exact,
    }
}

fn devices(gpu: &OfferedGpu, view: GpuView) -> Vec<DeviceId> {
    match view {
        GpuView::Exact => (0..gpu.units).map(|unit| DeviceId::Unit { gpu: gpu.index, unit }).collect(),
        GpuView::Generic => vec![DeviceId::Whole { gpu: gpu.index }],
    }
}

/// The free devices that are held back: all, or the last ones, so that the same ones are held back every time.
fn withheld(ids: &[DeviceId], extent: Extent, in_use: Option<&BTreeSet<DeviceId>>) -> BTreeSet<DeviceId> {
    let Some(in_use) = in_use else { return BTreeSet::new() };
    let free = ids.iter().copied().filter(|id| !in_use.contains(id));
    match extent {
        Extent::Nothing => BTreeSet::new(),
        Extent::AllFree => free.collect(),
        // A whole GPU of the generic pool is handed out whole or not at all.
        Extent::Units(_) if matches!(ids, [DeviceId::Whole { .. }]) => free.collect(),
        Extent::Units(count) => free.rev().take(count as usize).collect(),
    }
}

/// Number of devices of a GPU that could be handed out now, in units.
#[must_use]
pub fn free_units(gpu: &OfferedGpu, in_use: &BTreeSet<DeviceId>) -> u32 {
    let ids = devices(gpu, gpu.view);
    let withheld = withheld(&ids, gpu.extent, Some(in_use));
    let free = ids.iter().filter(|id| !in_use.contains(id) && !withheld.contains(id)).count();
    let units_each = if gpu.view == GpuView::Generic { gpu.units } else { 1 };
    u32::try_from(free).unwrap_or(u32::MAX).saturating_mul(units_each)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations::tests::unit;

    fn gpu(extent: Extent) -> OfferedGpu {
        OfferedGpu { index: 3, units: 8, view: GpuView::Exact, moved: false, extent, numa_node: Some(0) }
    }

    fn healthy(offers: &Offers, resource: &str) -> Vec<String> {
        offers[resource].iter().filter(|offer| offer.healthy).map(|offer| offer.id.to_string()).collect()
    }

    #[test]
    fn only_free_units_are_withheld() {
        let in_use = BTreeSet::from([unit(3, 0), unit(3, 6)]);
        for (extent, expected, free) in [
            (Extent::Nothing, "g3u0 g3u1 g3u2 g3u3 g3u4 g3u5 g3u6 g3u7", 6),
            (Extent::AllFree, "g3u0 g3u6", 0),
            (Extent::Units(2), "g3u0 g3u1 g3u2 g3u3 g3u4 g3u6", 4),
            (Extent::Units(99), "g3u0 g3u6", 0),
        ] {
            let offers = offers(&[gpu(extent)], Some(&in_use));
            assert_eq!(healthy(&offers, "principium.ai/gpu-3").join(" "), expected, "{extent:?}");
            assert_eq!(offers["principium.ai/gpu-3"].len(), 8, "no id leaves the list");
            assert_eq!(free_units(&gpu(extent), &in_use), free, "{extent:?}");
        }
    }

    #[test]
    fn nothing_is_withheld_while_it_is_not_known_what_is_in_use() {
        let offers = offers(&[gpu(Extent::AllFree)], None);
        assert_eq!(healthy(&offers, "principium.ai/gpu-3").len(), 8);
    }

    #[test]
    fn a_gpu_stands_in_one_view() {
        let generic = |index, extent| OfferedGpu { index, view: GpuView::Generic, ..gpu(extent) };
        let gpus = [generic(1, Extent::Nothing), generic(2, Extent::Units(1)), gpu(Extent::Nothing)];
        let offers = offers(&gpus, Some(&BTreeSet::new()));
        assert_eq!(offers.keys().collect::<Vec<_>>(), ["principium.ai/gpu", "principium.ai/gpu-3"]);
        assert_eq!(healthy(&offers, "principium.ai/gpu"), ["g1"]);
        assert_eq!(free_units(&gpus[0], &BTreeSet::new()), 8);
        assert_eq!(free_units(&gpus[1], &BTreeSet::new()), 0);
    }

    #[test]
    fn a_gpu_that_moved_is_offered_in_its_new_view_only_and_no_id_leaves_the_old_one() {
        let moved = OfferedGpu { moved: true, view: GpuView::Generic, ..gpu(Extent::Nothing) };
        let offers = offers(&[moved], Some(&BTreeSet::new()));
        assert_eq!(healthy(&offers, "principium.ai/gpu"), ["g3"]);
        assert_eq!(
            (offers["principium.ai/gpu-3"].len(), healthy(&offers, "principium.ai/gpu-3").len()),
            (8, 0)
        );
    }

    #[test]
    fn one_gpus_trouble_leaves_its_neighbors_as_they_are() {
        let other = |extent| OfferedGpu { index: 4, ..gpu(extent) };
        let calm = offers(&[gpu(Extent::Nothing), other(Extent::Nothing)], Some(&BTreeSet::new()));
        let trouble = offers(&[gpu(Extent::AllFree), other(Extent::Nothing)], Some(&BTreeSet::new()));
        assert_eq!(calm["principium.ai/gpu-4"], trouble["principium.ai/gpu-4"]);
    }
}
