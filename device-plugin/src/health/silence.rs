//! Silence: a GPU about which NVML gives no answer. One missed answer is no reason; some seconds of them are.

use super::Mark;
use crate::device::{Now, Probe};
use std::time::Duration;

/// How long a GPU may be silent before it is withheld, and must answer before it is offered again.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the GPU answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Silence {
    mark: Option<Mark>,
    /// Since when it does the opposite of what the mark says.
    turned: Option<Duration>,
}

impl Silence {
    /// Why it is withheld, if it is.
    #[must_use]
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// The state after this probe. A lost GPU is not silent: it is lost.
    #[must_use]
    pub fn step(&self, probe: &Probe, now: Now) -> Self {
        let silent = match probe {
            Probe::Silent(reason) => Some(reason),
            Probe::Answer(_) | Probe::Lost => None,
        };
        if silent.is_some() == self.mark.is_some() {
            return Self { mark: self.mark.clone(), turned: None };
        }
        let turned = self.turned.unwrap_or(now.elapsed);
        if now.elapsed.saturating_sub(turned) < PATIENCE {
            return Self { mark: self.mark.clone(), turned: Some(turned) };
        }
        let mark = silent.map(|reason| Mark { message: format!("no answer: {reason}"), since: now.wall });
        Self { mark, turned: None }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, warm};
    use super::*;

    #[test]
    fn only_lasting_silence_withholds_and_only_lasting_answers_restore() {
        let (silent, answer) = (Probe::Silent("timeout".into()), warm(40));
        let mut silence = Silence::default();
        for (second, probe, withheld) in [
            (0, &silent, false),
            (2, &silent, false),
            (3, &silent, true),
            (4, &answer, true),
            (5, &silent, true),
            (6, &answer, true),
            (8, &answer, true),
            (9, &answer, false),
            (10, &silent, false),
            (11, &answer, false),
            (12, &silent, false),
            (14, &silent, false),
            (15, &Probe::Lost, false),
        ] {
            silence = silence.step(probe, at(second));
            assert_eq!(silence.mark().is_some(), withheld, "second {second}");
        }
    }
}
