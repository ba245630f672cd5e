//! Heat: withheld at one limit, offered again below a lower one and after a dwell time.

use super::{Limits, Mark};
use crate::device::{Now, Probe, Reading};
use std::time::Duration;

/// Whether the GPU is too hot to be given to another pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    withheld: Option<Withheld>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Withheld {
    mark: Mark,
    /// Since when it has been below the lower limit without a break.
    cool_since: Option<Duration>,
}

impl Heat {
    /// Goes on from what an earlier run knew. The dwell time starts anew.
    #[must_use]
    pub fn resumed(mark: Option<Mark>) -> Self {
        Self { withheld: mark.map(|mark| Withheld { mark, cool_since: None }) }
    }

    /// Why it is withheld, if it is.
    #[must_use]
    pub fn mark(&self) -> Option<&Mark> {
        self.withheld.as_ref().map(|withheld| &withheld.mark)
    }

    /// The state after this probe. Without a temperature nothing is known, so nothing changes.
    #[must_use]
    pub fn step(&self, probe: &Probe, limits: &Limits, now: Now) -> Self {
        let Probe::Answer(reading) = probe else { return self.clone() };
        let Some(temperature) = reading.temperature else { return self.clone() };
        let withheld = match &self.withheld {
            None => reason(reading, temperature, limits)
                .map(|message| Withheld { mark: Mark { message, since: now.wall }, cool_since: None }),
            Some(withheld) if temperature < limits.restore && !reading.slowdown.by_heat() => {
                let cool_since = withheld.cool_since.unwrap_or(now.elapsed);
                (now.elapsed.saturating_sub(cool_since) < limits.dwell)
                    .then(|| Withheld { mark: withheld.mark.clone(), cool_since: Some(cool_since) })
            }
            Some(withheld) => Some(Withheld { mark: withheld.mark.clone(), cool_since: None }),
        };
        Self { withheld }
    }
}

/// Why a GPU that is offered must be withheld now.
fn reason(reading: &Reading, temperature: u32, limits: &Limits) -> Option<String> {
    let Limits { withhold, restore, dwell, .. } = limits;
    let way_out = format!("offered again after {} s below {restore} °C", dwell.as_secs());
    if temperature >= *withhold {
        Some(format!("{temperature} °C, limit {withhold} °C; {way_out}"))
    } else if reading.slowdown.by_heat() {
        Some(format!("{temperature} °C, and the card slows itself down because of heat; {way_out}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, limits, warm};
    use super::*;
    use crate::device::Slowdown;

    /// Runs (second, temperature) pairs and gives the seconds after which the GPU was withheld.
    fn withheld_at(samples: &[(u64, u32)]) -> Vec<u64> {
        let mut heat = Heat::default();
        let mut withheld = Vec::new();
        for (second, temperature) in samples {
            heat = heat.step(&warm(*temperature), &limits(), at(*second));
            if heat.mark().is_some() {
                withheld.push(*second);
            }
        }
        withheld
    }

    #[test]
    fn hot_gpu_returns_below_the_lower_limit_and_after_the_dwell_time() {
        for (name, samples, expected) in [
            ("below the limit", vec![(0, 84)], vec![]),
            ("at the limit", vec![(0, 85)], vec![0]),
            ("between the limits it stays withheld", vec![(0, 85), (60, 75), (120, 84)], vec![0, 60, 120]),
            ("between the limits it stays offered", vec![(0, 75), (60, 84)], vec![]),
            ("cool, but not for the dwell time", vec![(0, 90), (1, 74), (10, 74)], vec![0, 1, 10]),
            ("cool for the dwell time", vec![(0, 90), (1, 74), (11, 74)], vec![0, 1]),
            (
                "a warm moment starts the dwell time anew",
                vec![(0, 90), (1, 74), (9, 75), (10, 74), (19, 74), (20, 74)],
                vec![0, 1, 9, 10, 19],
            ),
            ("hot again", vec![(0, 90), (1, 60), (11, 60), (12, 85)], vec![0, 1, 12]),
        ] {
            assert_eq!(withheld_at(&samples), expected, "{name}");
        }
    }

    #[test]
    fn a_noisy_sensor_at_the_limit_changes_nothing_after_the_first_time() {
        let noisy: Vec<_> = (0..100).map(|second| (second, 84 + u32::from(second % 2 == 0) * 2)).collect();
        assert_eq!(withheld_at(&noisy).len(), 100);
    }

    #[test]
    fn a_card_that_slows_itself_down_is_withheld_below_the_limit() {
        let by_hardware = Slowdown { hardware_heat: true, ..Slowdown::default() };
        let by_driver = Slowdown { software_heat: true, ..Slowdown::default() };
        let by_power = Slowdown { power: true, ..Slowdown::default() };
        let slowed = |temperature, slowdown| {
            Probe::Answer(Reading { temperature: Some(temperature), slowdown, ..Reading::default() })
        };
        for (slowdown, withheld) in [(by_hardware, true), (by_driver, true), (by_power, false)] {
            let heat = Heat::default().step(&slowed(83, slowdown), &limits(), at(0));
            assert_eq!(heat.mark().is_some(), withheld, "{slowdown:?}");
        }
        let slow = |temperature| slowed(temperature, by_hardware);
        let mut heat = Heat::default().step(&slow(83), &limits(), at(0));
        assert!(heat.mark().is_some_and(|mark| mark.message.contains("slows itself down")));
        for second in [1, 60] {
            heat = heat.step(&slow(70), &limits(), at(second));
            assert!(heat.mark().is_some());
        }
        assert!(heat.step(&warm(70), &limits(), at(61)).step(&warm(70), &limits(), at(71)).mark().is_none());
    }

    #[test]
    fn without_a_temperature_nothing_changes() {
        let unsupported = Probe::Answer(Reading::default());
        for probe in [&Probe::Lost, &Probe::Silent("no".into()), &unsupported] {
            let hot = Heat::default().step(&warm(90), &limits(), at(0));
            assert_eq!(hot.step(probe, &limits(), at(100)), hot);
            assert_eq!(Heat::default().step(probe, &limits(), at(100)), Heat::default());
        }
    }

    #[test]
    fn the_sentence_has_the_value_and_the_limits_and_does_not_change_with_the_value() {
        let heat = Heat::default().step(&warm(92), &limits(), at(0));
        let message = "92 °C, limit 85 °C; offered again after 10 s below 75 °C";
        assert_eq!(heat.mark().map(|mark| mark.message.as_str()), Some(message));
        let hotter = heat.step(&warm(97), &limits(), at(1));
        assert_eq!(hotter.mark(), heat.mark());
    }
}
