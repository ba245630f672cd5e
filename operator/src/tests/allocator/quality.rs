//! How good GPUs are for a request, by docs/gpus.md and nothing else: what the allocator chooses is held against it.

use crate::inventory::{GpuState, NodeGpus, Who};
use crate::placement::CountNeed;
use crate::resource::ResourceKey;
use principium_api::gpu::{GpuMemory, Strategy};

/// Whether this GPU could be granted.
pub fn could_have(gpu: &GpuState<'_>, need: &CountNeed) -> bool {
    let held: u32 = gpu.holders.iter().map(|holder| holder.units).sum();
    let product = need.product.as_ref().map(|product| product.to_lowercase());
    gpu.closed.is_none()
        && held + units(gpu, need) <= gpu.units.min(gpu.offered)
        && gpu.memory_free + 1024 >= u64::from(units(gpu, need)) * 1024
        // One whose temperature is not known is not cool.
        && need.max_temperature.is_none_or(|max| gpu.temperature.is_some_and(|found| found < max))
        && product.is_none_or(|product| gpu.product.to_lowercase().contains(&product))
}

/// Every set of GPUs of a node that the request could have.
pub fn sets<'n, 'o>(node: &'n NodeGpus<'o>, need: &CountNeed) -> Vec<Vec<&'n GpuState<'o>>> {
    let able: Vec<&GpuState<'o>> = node.gpus.iter().filter(|gpu| could_have(gpu, need)).collect();
    let mut sets = Vec::new();
    for mask in 0..1u32 << able.len() {
        if mask.count_ones() == need.count {
            let set = able.iter().zip(0u32..).filter(|(_, at)| (mask >> at) & 1 == 1);
            sets.push(set.map(|(gpu, _)| *gpu).collect());
        }
    }
    sets
}

/// How good a set of GPUs of one node is; the least is the best.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quality {
    /// The place of each GPU among the preferred ones, most wanted first; those that are not preferred come last.
    wanted: Vec<usize>,
    /// Bands of 10 °C, the coolest first; those whose temperature is not known come last.
    bands: Vec<u32>,
    /// Among GPUs that are equally wanted and equally cool.
    strategy: (usize, usize, i64),
}

impl Quality {
    pub fn of(node: &NodeGpus<'_>, gpus: &[&GpuState<'_>], resource: &ResourceKey, need: &CountNeed) -> Self {
        let place = |gpu: &GpuState<'_>| need.prefer.iter().position(|index| *index == gpu.index);
        let mut wanted: Vec<usize> = gpus.iter().map(|gpu| place(gpu).unwrap_or(need.prefer.len())).collect();
        let band = |gpu: &&GpuState<'_>| gpu.temperature.map_or(u32::MAX, |found| found / 10);
        let mut bands: Vec<u32> = gpus.iter().map(band).collect();
        wanted.sort_unstable();
        bands.sort_unstable();
        let own = |gpu: &GpuState<'_>| {
            let own = gpu
                .holders
                .iter()
                .filter(|holder| matches!(&holder.who, Who::Resource(key) if **key == *resource));
            own.count()
        };
        let left: i64 = gpus.iter().map(|gpu| i64::from(gpu.free()) - i64::from(units(gpu, need))).sum();
        let strategy = match need.strategy {
            // The fewest units over.
            Strategy::Pack => (0, 0, left),
            // The fewest pods of this resource, on the node and then on the GPUs, and then the emptiest.
            Strategy::Spread => {
                (node.gpus.iter().map(own).sum(), gpus.iter().map(|gpu| own(gpu)).sum(), -left)
            }
        };
        Self { wanted, bands, strategy }
    }

    /// Whether these are better, whatever is made of sets of which neither is better in all: the documentation orders GPUs, and
    /// says nothing of a cool and a hot one against two warm ones.
    pub fn beats(&self, other: &Self) -> bool {
        if self.wanted != other.wanted {
            return all_as_good(&self.wanted, &other.wanted);
        }
        if self.bands != other.bands {
            return all_as_good(&self.bands, &other.bands);
        }
        self.strategy < other.strategy
    }
}

/// Whether of two sets, each from its best GPU to its worst, one is as good as the other at every place.
fn all_as_good<T: Ord>(one: &[T], other: &[T]) -> bool {
    one.iter().zip(other).all(|(one, other)| one <= other)
}

/// Units that the request takes of a GPU.
fn units(gpu: &GpuState<'_>, need: &CountNeed) -> u32 {
    need.memory.as_ref().map_or(gpu.units, GpuMemory::units)
}
