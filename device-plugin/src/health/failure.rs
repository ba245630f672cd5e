//! Failure: Xid events, lost cards, uncorrectable memory errors; and the proof that a card works again.
//!
//! An answer to a query is no proof: a card with a critical Xid still answers. What counts is that the driver asks for
//! no reset or reboot any more, for some seconds without a break. Where the driver can't say that, only a driver that
//! was loaded anew is proof. A card that fails again and again must prove itself for longer and longer.

use super::{Evidence, Mark};
use crate::device::{Now, Probe, Reading};
use principium_api::gpu_node::WithheldReason;
use std::time::Duration;

/// How long a card must show that it works after its first failure.
const PROOF: Duration = Duration::from_secs(2);
/// How long at most, after many failures.
const LONGEST_PROOF: Duration = Duration::from_secs(600);
/// Time without a failure after which earlier failures are forgotten.
const FORGIVEN: Duration = Duration::from_secs(3600);
/// The number that the driver's first session has.
const FIRST_SESSION: u64 = 1;

/// A card's failure, and how often it failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    current: Option<Failure>,
    /// Failures that are not forgiven yet, the current one included.
    strikes: u32,
    /// When the last one ended.
    ended: Option<Duration>,
}

/// A failure that is not proven to be over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub reason: WithheldReason,
    /// How, and since when.
    pub mark: Mark,
    /// Since when the card has shown that it works, without a break.
    good_since: Option<Duration>,
    /// The driver's session in which it failed.
    session: u64,
}

impl Failures {
    /// Goes on from what an earlier run of the plugin knew. Another boot of the node is not the same card's failure:
    /// the caller drops it then.
    #[must_use]
    pub fn resumed(failure: Option<(WithheldReason, Mark)>) -> Self {
        let current =
            failure.map(|(reason, mark)| Failure { reason, mark, good_since: None, session: FIRST_SESSION });
        Self { strikes: u32::from(current.is_some()), current, ended: None }
    }

    /// The failure in force.
    #[must_use]
    pub fn current(&self) -> Option<&Failure> {
        self.current.as_ref()
    }

    /// The state after this evidence.
    #[must_use]
    pub fn step(&self, evidence: &Evidence<'_>, now: Now) -> Self {
        match (cause(evidence), &self.current) {
            (None, None) => self.clone(),
            (Some(cause), None) => {
                let forgiven = self.ended.is_none_or(|ended| now.elapsed.saturating_sub(ended) >= FORGIVEN);
                let strikes = if forgiven { 1 } else { self.strikes.saturating_add(1) };
                Self { current: Some(Failure::new(cause, evidence.session, now)), strikes, ended: None }
            }
            (Some(cause), Some(failure)) => {
                Self { current: Some(failure.again(cause, evidence.session, now)), ..self.clone() }
            }
            (None, Some(failure)) => {
                let good_since =
                    failure.shows_recovery(evidence).then(|| failure.good_since.unwrap_or(now.elapsed));
                let proven =
                    good_since.is_some_and(|since| now.elapsed.saturating_sub(since) >= proof(self.strikes));
                if proven {
                    Self { current: None, ended: Some(now.elapsed), ..self.clone() }
                } else {
                    Self { current: Some(Failure { good_since, ..failure.clone() }), ..self.clone() }
                }
            }
        }
    }
}

impl Failure {
    fn new((reason, message): (WithheldReason, String), session: u64, now: Now) -> Self {
        Self { reason, mark: Mark { message, since: now.wall }, good_since: None, session }
    }

    /// The same failure seen once more, or a worse one: a card that is lost stays told as lost.
    fn again(&self, cause: (WithheldReason, String), session: u64, now: Now) -> Self {
        if cause.0 == self.reason || self.reason == WithheldReason::Lost {
            Self { good_since: None, session, ..self.clone() }
        } else {
            Self {
                mark: Mark { since: self.mark.since, message: cause.1.clone() },
                ..Self::new(cause, session, now)
            }
        }
    }

    fn shows_recovery(&self, evidence: &Evidence<'_>) -> bool {
        let Probe::Answer(Reading { needs_recovery, .. }) = evidence.probe else { return false };
        match needs_recovery {
            Some(needed) => !needed,
            // A card that was off the bus answers only after it was reset, and the count of memory errors falls only
            // by a reset. After an Xid an answer says nothing.
            None => self.reason != WithheldReason::Xid || evidence.session != self.session,
        }
    }
}

/// What in this evidence is a failure, if anything.
fn cause(evidence: &Evidence<'_>) -> Option<(WithheldReason, String)> {
    match evidence.probe {
        Probe::Lost => return Some((WithheldReason::Lost, "the driver can't reach the GPU any more".into())),
        Probe::Answer(Reading { uncorrectable_errors: Some(count), .. }) if *count > 0 => {
            return Some((
                WithheldReason::Ecc,
                "uncorrectable memory errors since the driver was loaded".into(),
            ));
        }
        Probe::Answer(_) | Probe::Silent(_) => {}
    }
    if let Some(xid) = evidence.xids.last() {
        let meaning = meaning(*xid).map(|meaning| format!(" ({meaning})")).unwrap_or_default();
        return Some((WithheldReason::Xid, format!("critical Xid {xid}{meaning}")));
    }
    // The event itself may have come before the plugin ran.
    matches!(evidence.probe, Probe::Answer(Reading { needs_recovery: Some(true), .. }))
        .then(|| (WithheldReason::Xid, "the driver asks for a reset of the GPU".into()))
}

/// How long a card must show that it works after this many failures.
fn proof(strikes: u32) -> Duration {
    let doublings = strikes.saturating_sub(1).min(16);
    (PROOF * (1 << doublings)).min(LONGEST_PROOF)
}

/// What NVIDIA's catalog of Xid errors says about the ones that one meets.
fn meaning(xid: u64) -> Option<&'static str> {
    Some(match xid {
        48 => "double-bit memory error",
        61 | 62 => "internal micro-controller halt",
        63 | 64 => "row remapping of failed memory",
        74 => "NVLink error",
        79 => "GPU has fallen off the bus",
        92 => "high rate of single-bit memory errors",
        94 => "contained memory error",
        95 => "uncontained memory error",
        119 | 120 => "GPU system processor error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    fn answer(needs_recovery: Option<bool>) -> Probe {
        Probe::Answer(Reading { needs_recovery, ..Reading::default() })
    }

    fn step(failures: &Failures, probe: &Probe, xids: &[u64], session: u64, second: u64) -> Failures {
        failures.step(&Evidence { probe, xids, foreign_mib: 0, session }, at(second))
    }

    fn reason(failures: &Failures) -> Option<WithheldReason> {
        failures.current().map(|failure| failure.reason)
    }

    #[test]
    fn an_xid_is_over_when_the_driver_asks_for_no_reset_any_more() {
        let (sick, well) = (answer(Some(true)), answer(Some(false)));
        let mut failures = step(&Failures::default(), &sick, &[79], 1, 0);
        assert!(failures.current().unwrap().mark.message.contains("Xid 79 (GPU has fallen off the bus)"));
        for (second, probe, failed) in
            [(60, &sick, true), (61, &well, true), (62, &well, true), (63, &well, false)]
        {
            failures = step(&failures, probe, &[], 1, second);
            assert_eq!(failures.current().is_some(), failed, "second {second}");
        }
    }

    #[test]
    fn where_the_driver_cannot_tell_only_a_newly_loaded_driver_ends_an_xid() {
        let silent = answer(None);
        let mut failures = step(&Failures::default(), &silent, &[62], 1, 0);
        for second in [10, 1000, 100_000] {
            failures = step(&failures, &silent, &[], 1, second);
            assert_eq!(reason(&failures), Some(WithheldReason::Xid), "an answer is no proof");
        }
        failures = step(&failures, &silent, &[], 2, 100_001);
        assert!(step(&failures, &silent, &[], 2, 100_003).current().is_none());
    }

    #[test]
    fn a_lost_card_returns_when_it_answers_for_some_seconds() {
        for needs_recovery in [None, Some(false)] {
            let mut failures = step(&Failures::default(), &Probe::Lost, &[], 1, 0);
            assert_eq!(reason(&failures), Some(WithheldReason::Lost));
            failures = step(&failures, &answer(needs_recovery), &[], 1, 10);
            failures = step(&failures, &Probe::Lost, &[], 1, 12);
            failures = step(&failures, &answer(needs_recovery), &[], 1, 13);
            failures = step(&failures, &answer(needs_recovery), &[], 1, 14);
            assert!(failures.current().is_some(), "a break starts the proof anew");
            assert!(step(&failures, &answer(needs_recovery), &[], 1, 15).current().is_none());
        }
    }

    #[test]
    fn memory_errors_end_when_their_count_does() {
        let count =
            |count| Probe::Answer(Reading { uncorrectable_errors: Some(count), ..Reading::default() });
        let mut failures = step(&Failures::default(), &count(1), &[], 1, 0);
        failures = step(&failures, &count(5), &[], 1, 1);
        assert_eq!(reason(&failures), Some(WithheldReason::Ecc));
        failures = step(&failures, &count(0), &[], 1, 2);
        assert!(step(&failures, &count(0), &[], 1, 5).current().is_none());
    }

    #[test]
    fn a_card_that_fails_again_and_again_proves_itself_for_longer() {
        let (sick, well) = (answer(Some(true)), answer(Some(false)));
        let mut failures = Failures::default();
        let mut second = 0;
        let mut proofs = Vec::new();
        for _ in 0..10 {
            failures = step(&failures, &sick, &[48], 1, second);
            let start = second + 1;
            while failures.current().is_some() {
                second += 1;
                failures = step(&failures, &well, &[], 1, second);
            }
            proofs.push(second - start);
            second += 1;
        }
        assert_eq!(proofs, [2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
        second += 3600;
        failures = step(&failures, &sick, &[48], 1, second);
        failures = step(&failures, &well, &[], 1, second + 1);
        assert!(step(&failures, &well, &[], 1, second + 4).current().is_none(), "forgiven after an hour");
    }

    #[test]
    fn a_worse_cause_replaces_the_sentence_and_keeps_the_time() {
        let mut failures = step(&Failures::default(), &answer(Some(true)), &[79], 1, 0);
        let since = failures.current().unwrap().mark.since;
        failures = step(&failures, &Probe::Lost, &[], 1, 5);
        assert_eq!(
            (reason(&failures), failures.current().unwrap().mark.since),
            (Some(WithheldReason::Lost), since)
        );
        failures = step(&failures, &answer(Some(true)), &[62], 1, 6);
        assert_eq!(reason(&failures), Some(WithheldReason::Lost));
    }

    #[test]
    fn a_card_that_needs_a_reset_is_failed_even_if_nobody_saw_the_event() {
        let mut failures = step(&Failures::default(), &answer(Some(true)), &[], 1, 0);
        assert!(failures.current().is_some_and(|failure| failure.mark.message.contains("asks for a reset")));
        failures = step(&failures, &answer(Some(false)), &[], 1, 1);
        assert!(step(&failures, &answer(Some(false)), &[], 1, 4).current().is_none());
    }
}
