//! Measured values without their noise, for people and for the API server. Decisions never wait for these. Pure.

/// Weight of a new value: what is told follows within half a minute of measurements at one a second.
const WEIGHT: f64 = 0.1;
/// A temperature that jumps by so much is no noise, in °C.
const TEMPERATURE_JUMP: f64 = 8.0;
/// The same for power, in W.
const POWER_JUMP: f64 = 100.0;

/// Values of one GPU, smoothed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Smooth {
    temperature: Option<f64>,
    power: Option<f64>,
}

impl Smooth {
    /// After one more measurement.
    #[must_use]
    pub fn step(self, temperature: Option<u32>, power: Option<u32>) -> Self {
        Self {
            temperature: follow(self.temperature, temperature, TEMPERATURE_JUMP),
            power: follow(self.power, power, POWER_JUMP),
        }
    }

    /// Temperature in °C.
    #[must_use]
    pub fn temperature(self) -> Option<u32> {
        self.temperature.map(rounded)
    }

    /// Power in W.
    #[must_use]
    pub fn power(self) -> Option<u32> {
        self.power.map(rounded)
    }
}

fn follow(last: Option<f64>, now: Option<u32>, jump: f64) -> Option<f64> {
    let now = f64::from(now?);
    Some(match last {
        Some(last) if (now - last).abs() < jump => last + (now - last) * WEIGHT,
        _ => now,
    })
}

// Averages of values that fit.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rounded(value: f64) -> u32 {
    value.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_taken_out_and_jumps_are_followed_at_once() {
        let mut smooth = Smooth::default();
        for second in 0..600_u32 {
            smooth = smooth.step(Some(58 + second * 7 % 5), Some(150 + second * 13 % 61));
            assert!((57..=63).contains(&smooth.temperature().unwrap()), "second {second}");
        }
        assert_eq!(smooth.temperature(), Some(60));
        assert_eq!(smooth.step(Some(75), None).temperature(), Some(75));
        assert_eq!(smooth.step(None, None), Smooth::default(), "a value that is not known is not told");
        let mut rising = smooth;
        for _ in 0..30 {
            rising = rising.step(Some(64), None);
        }
        assert_eq!(rising.temperature(), Some(64), "followed within half a minute");
    }
}
