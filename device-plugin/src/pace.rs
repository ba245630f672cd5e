//! When a status is worth a write: what matters at once, drift of measured values less and less often while it goes on.
//! Pure.

use crate::status;
use principium_api::gpu_node::GpuNodeStatus;
use std::time::Duration;

/// Least time between two writes.
const PAUSE: Duration = Duration::from_millis(500);
/// Time from a write to the next one that only tells drift; twice as long after each such write.
const DRIFT: Duration = Duration::from_secs(5);
/// Longest such time: 60 writes an hour, a sixth of what the plugin's Lease takes.
const LONGEST_DRIFT: Duration = Duration::from_secs(60);

/// The writer's sense of time. Times count from an arbitrary start.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    written: Option<Duration>,
    drift: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { written: None, drift: DRIFT }
    }
}

impl Pace {
    /// When the next status may be written, if it need be.
    #[must_use]
    pub fn due(&self, last: Option<&GpuNodeStatus>, next: &GpuNodeStatus) -> Option<Duration> {
        let Some(last) = last else { return Some(Duration::ZERO) };
        let pause = if status::urgent(last, next) {
            PAUSE
        } else if last != next {
            self.drift
        } else {
            return None;
        };
        Some(self.written.map_or(Duration::ZERO, |written| written + pause))
    }

    /// The pace after a write.
    #[must_use]
    pub fn written(self, last: Option<&GpuNodeStatus>, next: &GpuNodeStatus, now: Duration) -> Self {
        let only_drift = last.is_some_and(|last| last != next && !status::urgent(last, next));
        let calm = self.written.is_none_or(|written| now.saturating_sub(written) > LONGEST_DRIFT);
        let drift = if only_drift && !calm { (self.drift * 2).min(LONGEST_DRIFT) } else { DRIFT };
        Self { written: Some(now), drift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smooth::Smooth;
    use crate::status::tests::{gpu, node};
    use crate::status::{GpuState, status};

    /// Numbers from 0 to below `span`, the same ones every time.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self, span: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % span
        }
    }

    /// Writes in an hour of eight GPUs whose temperature, memory and power are as told for each second. The hour before,
    /// in which the values settle, is not counted.
    fn writes(mut measured: impl FnMut(u64, u32) -> (u32, u64, u32)) -> u32 {
        let (mut pace, mut last, mut writes) = (Pace::default(), None::<GpuNodeStatus>, 0);
        let mut smooth = [Smooth::default(); 8];
        for second in 0..7200 {
            let gpus = (0..8).zip(&mut smooth).map(|(index, smooth)| {
                let (temperature, memory, power) = measured(second, index);
                let mut state: GpuState = gpu(index, temperature, memory);
                *smooth = smooth.step(Some(temperature), Some(power));
                state.steady = *smooth;
                state
            });
            let next = status(&node(gpus.collect()), last.as_ref());
            let now = Duration::from_secs(second);
            if pace.due(last.as_ref(), &next).is_some_and(|due| due <= now) {
                pace = pace.written(last.as_ref(), &next, now);
                last = Some(next);
                writes += u32::from(second >= 3600);
            }
        }
        writes
    }

    fn small(value: u64) -> u32 {
        u32::try_from(value).unwrap()
    }

    #[test]
    fn a_noisy_sensor_is_hardly_ever_written() {
        let mut noise = Noise(1);
        let noisy =
            writes(|_, _| (small(58 + noise.next(5)), 4000 + noise.next(200), small(130 + noise.next(61))));
        assert!(noisy <= 4, "{noisy} writes an hour");
        let mut noise = Noise(2);
        let at_the_limit = writes(|_, _| (small(83 + noise.next(4)), 4000, 150));
        assert!(at_the_limit <= 4, "{at_the_limit} writes an hour");
    }

    #[test]
    fn the_wildest_drift_is_written_once_a_minute() {
        let swinging = writes(|second, index| {
            let up = (second / 20 + u64::from(index)) % 2 == 0;
            (if up { 70 } else { 45 }, if up { 6000 } else { 500 }, if up { 190 } else { 20 })
        });
        assert!((50..=70).contains(&swinging), "{swinging} writes an hour");
    }

    #[test]
    fn what_matters_is_written_within_a_second_whatever_drifted_before() {
        let calm = status(&node(vec![gpu(0, 50, 0)]), None);
        let drifted = status(&node(vec![gpu(0, 60, 0)]), Some(&calm));
        let mut lost = drifted.clone();
        lost.gpus[0].health = principium_api::gpu_node::Health::Lost;
        let mut pace = Pace::default();
        for minute in 0..10 {
            pace = pace.written(Some(&calm), &drifted, Duration::from_secs(minute * 30));
        }
        assert_eq!(pace.due(Some(&drifted), &calm), Some(Duration::from_secs(270 + 60)));
        assert_eq!(pace.due(Some(&drifted), &lost), Some(Duration::from_millis(270_500)));
        assert_eq!(pace.due(Some(&drifted), &drifted), None);
    }
}
