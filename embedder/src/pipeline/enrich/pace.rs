//! How fast instances are, and which is too slow to be given more. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How many times slower than its peers an instance is when it is slow.
const SLOW: f64 = 4.0;
/// Answers before an instance is judged.
const JUDGED: u32 = 3;
/// Weight of the last answer.
const LAST: f64 = 0.3;
/// Longer than so many times the usual, an answer is not waited for by those who have nothing else to do.
const OVERDUE: f64 = 4.0;

/// Seconds that each instance takes for a context, smoothed.
#[derive(Debug)]
pub struct Pace<I> {
    known: HashMap<I, (f64, u32)>,
}

impl<I> Default for Pace<I> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<I: Copy + Eq + Hash> Pace<I> {
    /// Takes in how long an answer took.
    pub fn observe(&mut self, instance: I, took: Duration) {
        let took = took.as_secs_f64();
        let (seconds, answers) = self.known.entry(instance).or_insert((took, 0));
        *seconds += (took - *seconds) * LAST;
        *answers += 1;
    }

    /// Forgets what is known of an instance, so that it is judged anew.
    pub fn forget(&mut self, instance: I) {
        self.known.remove(&instance);
    }

    /// Whether an instance is much slower than the others. One alone is never slow.
    pub fn is_slow(&self, instance: I) -> bool {
        let Some((own, answers)) = self.known.get(&instance) else { return false };
        *answers >= JUDGED && self.usual(Some(instance)).is_some_and(|usual| *own > usual * SLOW)
    }

    /// How long an answer may take before an idle instance is asked for the same.
    pub fn overdue(&self, least: Duration) -> Duration {
        let usual = self.usual(None).map_or(Duration::MAX, |usual| Duration::from_secs_f64(usual * OVERDUE));
        usual.max(least)
    }

    /// The median of all instances but one.
    fn usual(&self, except: Option<I>) -> Option<f64> {
        let others = self.known.iter().filter(|(instance, _)| Some(**instance) != except);
        let mut seconds: Vec<f64> = others.map(|(_, (seconds, _))| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len().saturating_sub(1) / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_slow_by_its_peers_alone() {
        let mut pace = Pace::default();
        let seconds = Duration::from_secs_f64;
        for _ in 0..5 {
            pace.observe('a', seconds(9.0));
        }
        assert!(!pace.is_slow('a'), "nobody else is known");
        for _ in 0..5 {
            pace.observe('b', seconds(1.0));
            pace.observe('c', seconds(1.5));
        }
        assert!(pace.is_slow('a') && !pace.is_slow('b') && !pace.is_slow('c') && !pace.is_slow('d'));
        assert_eq!(pace.overdue(seconds(2.0)), seconds(6.0));
        for _ in 0..20 {
            pace.observe('a', seconds(1.0));
        }
        assert!(!pace.is_slow('a'), "it has recovered");
        pace.observe('d', seconds(60.0));
        assert!(!pace.is_slow('d'), "one answer says little");
    }
}
