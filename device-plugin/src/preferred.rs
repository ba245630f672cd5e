//! Which GPUs of the generic pool go first: the coolest, then those with the most free memory; several of them from one
//! NUMA node, as long as that costs little warmth. Pure.

use crate::device::DeviceId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// How much warmer, in °C, GPUs of one NUMA node may be than the coolest that could be had from several.
const NEARNESS: u32 = 10;

/// What the choice follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merit {
    /// Core temperature in °C.
    pub temperature: Option<u32>,
    /// Free memory in MiB.
    pub free_mib: u64,
    /// NUMA node.
    pub numa_node: Option<u32>,
}

/// `size` devices: those that must be among them, then the best of the available ones.
#[must_use]
pub fn choose(
    available: &[DeviceId],
    must_include: &[DeviceId],
    size: usize,
    merits: &BTreeMap<u32, Merit>,
) -> Vec<DeviceId> {
    let merit = |id: &DeviceId| merits.get(&id.gpu());
    // A GPU without a temperature comes last: nobody knows how hot it is.
    let temperature = |id: &DeviceId| merit(id).and_then(|merit| merit.temperature).unwrap_or(u32::MAX);
    let numa_node = |id: &DeviceId| merit(id).and_then(|merit| merit.numa_node);
    let mut others: Vec<DeviceId> =
        available.iter().copied().filter(|id| !must_include.contains(id)).collect();
    others.sort_by_key(|id| (temperature(id), Reverse(merit(id).map_or(0, |merit| merit.free_mib)), *id));

    let missing = size.saturating_sub(must_include.len());
    let coolest: Vec<DeviceId> = others.iter().copied().take(missing).collect();
    let warmest = |chosen: &[DeviceId]| chosen.iter().map(temperature).max().unwrap_or_default();
    let given: BTreeSet<Option<u32>> = must_include.iter().map(numa_node).collect();
    let nodes: BTreeSet<u32> = others.iter().filter_map(numa_node).collect();
    let near = nodes
        .into_iter()
        .filter(|node| given.iter().all(|given| *given == Some(*node)))
        .map(|node| {
            let of_node = others.iter().copied().filter(|id| numa_node(id) == Some(node));
            of_node.take(missing).collect::<Vec<_>>()
        })
        .filter(|chosen| chosen.len() == missing)
        .filter(|chosen| warmest(chosen) <= warmest(&coolest).saturating_add(NEARNESS))
        // Of equally warm nodes the first.
        .min_by_key(|chosen| warmest(chosen));
    let alone = size < 2;
    let chosen = near.filter(|_| !alone).unwrap_or(coolest);
    must_include.iter().copied().chain(chosen).take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(merits: &[Merit], must: &[u32], size: usize) -> Vec<u32> {
        let whole = |gpu| DeviceId::Whole { gpu };
        let all: Vec<_> = (0..).zip(merits).map(|(gpu, _)| whole(gpu)).collect();
        let must: Vec<_> = must.iter().copied().map(whole).collect();
        let merits = (0..).zip(merits.iter().copied()).collect();
        choose(&all, &must, size, &merits).into_iter().map(DeviceId::gpu).collect()
    }

    #[test]
    fn the_coolest_come_first_and_then_the_emptiest() {
        let merit = |temperature, free_mib| Merit { temperature, free_mib, numa_node: None };
        let merits = [
            merit(Some(60), 8000),
            merit(Some(45), 2000),
            merit(Some(45), 8000),
            merit(None, 8000),
            merit(None, 9000),
        ];
        for (must, size, expected) in [
            (vec![], 1, vec![2]),
            (vec![], 3, vec![2, 1, 0]),
            (vec![0], 2, vec![0, 2]),
            (vec![], 9, vec![2, 1, 0, 4, 3]),
        ] {
            assert_eq!(choice(&merits, &must, size), expected, "{must:?} {size}");
        }
    }

    #[test]
    fn several_are_of_one_numa_node_unless_that_is_much_warmer() {
        let on = |node, temperature| Merit {
            temperature: Some(temperature),
            free_mib: 8000,
            numa_node: Some(node),
        };
        for (name, merits, must, size, expected) in [
            (
                "near and hardly warmer",
                vec![on(0, 40), on(1, 41), on(0, 48), on(1, 60)],
                vec![],
                2,
                vec![0, 2],
            ),
            ("near and much warmer", vec![on(0, 40), on(1, 41), on(0, 52), on(1, 60)], vec![], 2, vec![0, 1]),
            ("the cooler node", vec![on(0, 50), on(0, 50), on(1, 45), on(1, 49)], vec![], 2, vec![2, 3]),
            ("one alone is the coolest", vec![on(0, 50), on(1, 45)], vec![], 1, vec![1]),
            ("beside the one that is given", vec![on(0, 40), on(1, 45), on(1, 48)], vec![1], 2, vec![1, 2]),
            ("more than a node has", vec![on(0, 40), on(1, 45), on(0, 42)], vec![], 3, vec![0, 2, 1]),
        ] {
            assert_eq!(choice(&merits, &must, size), expected, "{name}");
        }
    }
}
