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
    known: HashMap<I, Known>,
}

/// What is known of one instance.
#[derive(Debug, Default)]
struct Known {
    answers: u32,
    /// Seconds for a context of any chunk.
    any: Option<f64>,
    /// For that of a chunk with which it reads another document.
    first: Option<f64>,
    /// For that of a chunk of the document that it has read.
    further: Option<f64>,
}

/// Whether a prompt began as the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Another document was to be read.
    First,
    /// The document had been read.
    Further,
}

impl<I> Default for Pace<I> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<I: Copy + Eq + Hash> Pace<I> {
    /// Takes in how long an answer took.
    pub fn observe(&mut self, instance: I, took: Duration, prompt: Prompt) {
        let took = took.as_secs_f64();
        let known = self.known.entry(instance).or_default();
        known.answers += 1;
        let sort = match prompt {
            Prompt::First => &mut known.first,
            Prompt::Further => &mut known.further,
        };
        for seconds in [&mut known.any, sort] {
            let before = seconds.unwrap_or(took);
            *seconds = Some(before + (took - before) * LAST);
        }
    }

    /// Whether the work of `busy` ends sooner when `idle` reads its document too and takes the later half of the chunks that
    /// wait for it. It does while too little is known.
    #[expect(clippy::cast_precision_loss, reason = "chunks of a document are few")]
    pub fn pays(&self, idle: I, busy: I, waiting: usize) -> bool {
        let known = || {
            let (idle, busy) = (self.known.get(&idle)?, self.known.get(&busy)?);
            Some((idle.first?, idle.further?, busy.further?))
        };
        let Some((first, further, of_busy)) = known() else { return true };
        let taken = waiting.div_ceil(2);
        // Half of the one that it is at is still to be done.
        let alone = of_busy * (waiting as f64 + 0.5);
        first + further * (taken as f64 - 1.0) < alone
    }

    /// Forgets what is known of an instance, so that it is judged anew.
    pub fn forget(&mut self, instance: I) {
        self.known.remove(&instance);
    }

    /// Whether an instance is much slower than the others. One alone is never slow.
    pub fn is_slow(&self, instance: I) -> bool {
        let Some(Known { answers, any: Some(own), .. }) = self.known.get(&instance) else { return false };
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
        let mut seconds: Vec<f64> = others.filter_map(|(_, known)| known.any).collect();
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
            pace.observe('a', seconds(9.0), Prompt::Further);
        }
        assert!(!pace.is_slow('a'), "nobody else is known");
        for _ in 0..5 {
            pace.observe('b', seconds(1.0), Prompt::Further);
            pace.observe('c', seconds(1.5), Prompt::Further);
        }
        assert!(pace.is_slow('a') && !pace.is_slow('b') && !pace.is_slow('c') && !pace.is_slow('d'));
        assert_eq!(pace.overdue(seconds(2.0)), seconds(6.0));
        for _ in 0..20 {
            pace.observe('a', seconds(1.0), Prompt::Further);
        }
        assert!(!pace.is_slow('a'), "it has recovered");
        pace.observe('d', seconds(60.0), Prompt::Further);
        assert!(!pace.is_slow('d'), "one answer says little");
    }

    #[test]
    fn a_document_is_read_once_more_only_for_enough_of_its_chunks() {
        let mut pace = Pace::default();
        let seconds = Duration::from_secs_f64;
        assert!(pace.pays('a', 'b', 1), "nothing is known");
        for instance in ['a', 'b'] {
            pace.observe(instance, seconds(4.5), Prompt::First);
            assert!(pace.pays('a', 'b', 1), "nor is enough");
            pace.observe(instance, seconds(1.0), Prompt::Further);
        }
        // Five more, and half of the one that it is at: 5.5 s. With help for three of them 4.5 + 2 s.
        let most = (1..20).take_while(|waiting| !pace.pays('a', 'b', *waiting)).last();
        assert_eq!(most, Some(7));
        for _ in 0..20 {
            pace.observe('b', seconds(5.0), Prompt::Further);
        }
        assert!(pace.pays('a', 'b', 1), "one that is slow is helped sooner");
        assert!(!pace.pays('b', 'a', 7), "not by one that is slow");
    }
}
