//! Other people's processes: memory in use on a GPU by processes that belong to no pod that holds it.

use super::Mark;
use crate::device::Now;
use principium_api::gpu::MIB_PER_UNIT;
use std::time::Duration;

/// How long such a process must be there: one that is just ending with its pod is none.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much such processes use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    seen_since: Option<Duration>,
    withheld: Option<(u32, Mark)>,
}

impl Foreign {
    /// Units to withhold and why, if any.
    #[must_use]
    pub fn withheld(&self) -> Option<(u32, &Mark)> {
        self.withheld.as_ref().map(|(units, mark)| (*units, mark))
    }

    /// The state after this measurement. Memory that is free again is offered at once.
    #[must_use]
    pub fn step(&self, used_mib: u64, tolerance_mib: u64, now: Now) -> Self {
        if used_mib <= tolerance_mib {
            return Self::default();
        }
        let seen_since = self.seen_since.unwrap_or(now.elapsed);
        if now.elapsed.saturating_sub(seen_since) < PATIENCE {
            return Self { seen_since: Some(seen_since), withheld: None };
        }
        let units = u32::try_from(used_mib.div_ceil(MIB_PER_UNIT)).unwrap_or(u32::MAX);
        let withheld = match &self.withheld {
            // The sentence is worded anew only when the number in it changes.
            Some((same, mark)) if *same == units => (units, mark.clone()),
            earlier => {
                let since = earlier.as_ref().map_or(now.wall, |(_, mark)| mark.since);
                let message =
                    format!("processes that hold no unit of this GPU use {units} GiB of its memory");
                (units, Mark { message, since })
            }
        };
        Self { seen_since: Some(seen_since), withheld: Some(withheld) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn units_are_withheld_above_the_tolerance_and_after_a_moment() {
        let mut foreign = Foreign::default();
        for (second, used, expected) in [
            (0, 512, None),
            (1, 3000, None),
            (2, 3000, None),
            (3, 3000, Some(3)),
            (4, 3070, Some(3)),
            (5, 3073, Some(4)),
            (6, 513, Some(1)),
            (7, 512, None),
            (8, 3000, None),
        ] {
            foreign = foreign.step(used, 512, at(second));
            assert_eq!(foreign.withheld().map(|(units, _)| units), expected, "second {second}");
        }
    }

    #[test]
    fn the_sentence_stays_while_the_number_of_units_does() {
        let start = Foreign::default().step(3000, 512, at(0)).step(3000, 512, at(2));
        assert_eq!(start.step(3001, 512, at(3)).withheld(), start.withheld());
        let more = start.step(4000, 512, at(3));
        let since = |foreign: &Foreign| foreign.withheld().map(|(_, mark)| mark.since);
        assert_eq!(since(&more), since(&start));
        assert!(more.withheld().is_some_and(|(_, mark)| mark.message.contains("4 GiB")));
    }
}
