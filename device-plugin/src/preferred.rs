//! Which GPUs of the generic pool go first: the coolest, then those with the most free memory. Pure.

use crate::device::DeviceId;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What the choice follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merit {
    /// Core temperature in °C.
    pub temperature: Option<u32>,
    /// Free memory in MiB.
    pub free_mib: u64,
}

/// `size` devices: those that must be among them, then the best of the available ones.
#[must_use]
pub fn choose(
    available: &[DeviceId],
    must_include: &[DeviceId],
    size: usize,
    merits: &BTreeMap<u32, Merit>,
) -> Vec<DeviceId> {
    let mut others: Vec<DeviceId> =
        available.iter().copied().filter(|id| !must_include.contains(id)).collect();
    others.sort_by_key(|id| {
        let merit = merits.get(&id.gpu());
        // A GPU without a temperature comes last: nobody knows how hot it is.
        let temperature = merit.and_then(|merit| merit.temperature).unwrap_or(u32::MAX);
        (temperature, Reverse(merit.map_or(0, |merit| merit.free_mib)), *id)
    });
    must_include.iter().copied().chain(others).take(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coolest_come_first_and_then_the_emptiest() {
        let whole = |gpu| DeviceId::Whole { gpu };
        let merits = BTreeMap::from([
            (0, Merit { temperature: Some(60), free_mib: 8000 }),
            (1, Merit { temperature: Some(45), free_mib: 2000 }),
            (2, Merit { temperature: Some(45), free_mib: 8000 }),
            (3, Merit { temperature: None, free_mib: 8000 }),
        ]);
        let all: Vec<_> = (0..5).map(whole).collect();
        for (must, size, expected) in [
            (vec![], 1, vec![2]),
            (vec![], 3, vec![2, 1, 0]),
            (vec![0], 2, vec![0, 2]),
            (vec![], 9, vec![2, 1, 0, 3, 4]),
        ] {
            let must: Vec<_> = must.into_iter().map(whole).collect();
            let expected: Vec<_> = expected.into_iter().map(whole).collect();
            assert_eq!(choose(&all, &must, size, &merits), expected, "{must:?} {size}");
        }
    }
}
