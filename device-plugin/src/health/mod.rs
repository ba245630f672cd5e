//! Decides whether a GPU is offered: a pure step from the last state and what was seen to the next state.
//!
//! Four causes keep a GPU's free units back, each with its own memory and its own way out: heat ([`thermal`]), failure
//! ([`failure`]), silence ([`silence`]) and other people's processes ([`foreign`]). Nothing here reads a clock, a file or
//! a driver. Running pods are never touched: what is withheld is always only what nobody holds.

pub mod failure;
pub mod foreign;
pub mod silence;
pub mod thermal;

use crate::device::{Now, Probe};
use jiff::Timestamp;
use principium_api::gpu_node::{Health, Withheld, WithheldReason};
use std::time::Duration;

pub use failure::{Failure, Failures};

/// The limits in force for one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Withhold at this temperature in °C and above.
    pub withhold: u32,
    /// Offer again below this temperature in °C.
    pub restore: u32,
    /// How long it must stay below.
    pub dwell: Duration,
    /// Memory in MiB that processes outside Kubernetes may use before units are withheld.
    pub foreign_tolerance_mib: u64,
}

/// What was seen of one GPU.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// How it answered.
    pub probe: &'a Probe,
    /// Critical Xids since the last step; those that only blame an application are left out.
    pub xids: &'a [u64],
    /// Memory in MiB of processes that belong to no pod that holds the GPU.
    pub foreign_mib: u64,
    /// Number of times that the driver was loaded so far.
    pub session: u64,
}

/// What is remembered of one GPU from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    thermal: thermal::Heat,
    failures: Failures,
    silence: silence::Silence,
    foreign: foreign::Foreign,
}

/// Why and since when something is so, as people read it. It is worded once, so that a status that repeats it is equal.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// A sentence with the measured value and the limit.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// What survives a restart of the plugin: without it, a restart would offer a failed GPU again.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// Set while the GPU is withheld for heat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heat: Option<Mark>,
    /// Set while the GPU has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<(WithheldReason, Mark)>,
}

/// What follows for the GPU.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether it works.
    pub health: Health,
    /// The most serious reason to withhold, with its sentence.
    pub withheld: Option<Withheld>,
    /// How much is withheld.
    pub extent: Extent,
}

/// How much of a GPU is withheld.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Nothing.
    #[default]
    Nothing,
    /// This many units, as far as nobody holds them.
    Units(u32),
    /// Every unit that nobody holds.
    AllFree,
}

/// The state after this evidence.
#[must_use]
pub fn step(previous: &State, evidence: &Evidence<'_>, limits: &Limits, now: Now) -> State {
    State {
        thermal: previous.thermal.step(evidence.probe, limits, now),
        failures: previous.failures.step(evidence, now),
        silence: previous.silence.step(evidence.probe, now),
        foreign: previous.foreign.step(evidence.foreign_mib, limits.foreign_tolerance_mib, now),
    }
}

impl State {
    /// A state that goes on from what an earlier run of the plugin kept.
    #[must_use]
    pub fn resumed(kept: &Kept) -> Self {
        Self {
            thermal: thermal::Heat::resumed(kept.heat.clone()),
            failures: Failures::resumed(kept.failure.clone()),
            ..Self::default()
        }
    }

    /// What a later run of the plugin must know.
    #[must_use]
    pub fn kept(&self) -> Kept {
        Kept {
            heat: self.thermal.mark().cloned(),
            failure: self.failures.current().map(|failure| (failure.reason, failure.mark.clone())),
        }
    }

    /// What follows for the GPU. The most serious reason is the one that is told.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let told = |reason: WithheldReason, mark: &Mark| {
            Some(Withheld { reason, message: mark.message.clone(), since: mark.since.to_string() })
        };
        if let Some(Failure { reason, mark, .. }) = self.failures.current() {
            let health = if *reason == WithheldReason::Lost { Health::Lost } else { Health::Unhealthy };
            return Verdict { health, withheld: told(*reason, mark), extent: Extent::AllFree };
        }
        if let Some(mark) = self.silence.mark() {
            return Verdict {
                health: Health::Unhealthy,
                withheld: told(WithheldReason::Unreadable, mark),
                extent: Extent::AllFree,
            };
        }
        if let Some(mark) = self.thermal.mark() {
            return Verdict {
                health: Health::Healthy,
                withheld: told(WithheldReason::Overheated, mark),
                extent: Extent::AllFree,
            };
        }
        if let Some((units, mark)) = self.foreign.withheld() {
            return Verdict {
                health: Health::Healthy,
                withheld: told(WithheldReason::ForeignProcess, mark),
                extent: Extent::Units(units),
            };
        }
        Verdict::default()
    }
}

impl Verdict {
    /// The verdict on a GPU that is not offered for a reason of its own, `(reason, mark)`, that is no trouble. Trouble
    /// is told first.
    #[must_use]
    pub fn set_aside(self, aside: Option<&(WithheldReason, Mark)>) -> Self {
        match aside {
            Some((reason, mark)) if self.health == Health::Healthy => Self {
                withheld: Some(Withheld {
                    reason: *reason,
                    message: mark.message.clone(),
                    since: mark.since.to_string(),
                }),
                extent: Extent::AllFree,
                ..self
            },
            _ => self,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::device::Reading;

    /// The moment this many seconds after an arbitrary start.
    pub(crate) fn at(seconds: u64) -> Now {
        let wall = Timestamp::from_second(1_700_000_000 + i64::try_from(seconds).unwrap()).unwrap();
        Now { elapsed: Duration::from_secs(seconds), wall }
    }

    pub(crate) fn warm(temperature: u32) -> Probe {
        Probe::Answer(Reading { temperature: Some(temperature), ..Reading::default() })
    }

    pub(crate) fn limits() -> Limits {
        Limits { withhold: 85, restore: 75, dwell: Duration::from_secs(10), foreign_tolerance_mib: 512 }
    }

    fn seen(probe: &Probe) -> Evidence<'_> {
        Evidence { probe, xids: &[], foreign_mib: 0, session: 1 }
    }

    #[test]
    fn the_most_serious_reason_is_told() {
        let (hot, lost) = (warm(95), Probe::Lost);
        let mut state = step(&State::default(), &seen(&hot), &limits(), at(0));
        let reason = |state: &State| state.verdict().withheld.map(|withheld| withheld.reason);
        assert_eq!(reason(&state), Some(WithheldReason::Overheated));
        assert_eq!(state.verdict().health, Health::Healthy);

        state = step(&state, &Evidence { xids: &[48], ..seen(&hot) }, &limits(), at(1));
        assert_eq!(reason(&state), Some(WithheldReason::Xid));
        assert_eq!(state.verdict().health, Health::Unhealthy);

        state = step(&state, &seen(&lost), &limits(), at(2));
        assert_eq!(reason(&state), Some(WithheldReason::Lost));
        assert_eq!(state.verdict().health, Health::Lost);
    }

    #[test]
    fn a_restart_forgets_neither_heat_nor_failure() {
        let hot = warm(95);
        for xids in [&[][..], &[79]] {
            let state = step(&State::default(), &Evidence { xids, ..seen(&hot) }, &limits(), at(0));
            let resumed = State::resumed(&state.kept());
            assert_eq!(resumed.verdict(), state.verdict());
            // Between the two limits: a fresh state would offer the GPU, a resumed one must not.
            let between = warm(80);
            let after = step(&resumed, &seen(&between), &limits(), at(100));
            assert_eq!(after.verdict(), state.verdict());
        }
    }

    #[test]
    fn a_healthy_gpu_is_offered_whole() {
        let state = step(&State::default(), &seen(&warm(60)), &limits(), at(0));
        assert_eq!(state.verdict(), Verdict::default());
    }
    #[test]
    fn what_is_set_aside_is_told_unless_it_failed() {
        let mark = Mark { message: "divided".into(), since: Timestamp::UNIX_EPOCH };
        let aside = (WithheldReason::Divided, mark);
        let (hot, lost) = (warm(95), Probe::Lost);
        for (probe, reason) in [(&hot, WithheldReason::Divided), (&lost, WithheldReason::Lost)] {
            let state = step(&State::default(), &seen(probe), &limits(), at(0));
            let verdict = state.verdict().set_aside(Some(&aside));
            assert_eq!(
                (verdict.withheld.map(|held| held.reason), verdict.extent),
                (Some(reason), Extent::AllFree)
            );
        }
        assert_eq!(Verdict::default().set_aside(None), Verdict::default());
    }
}
