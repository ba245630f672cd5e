//! Cutting where neighboring sentences speak of different things. Sentences become units; the vectors of neighboring units say
//! how far apart they are; cuts are made at the largest distances until every chunk fits.

use super::Tokens;
use std::ops::Range;
use text_splitter::{ChunkConfig, TextSplitter};
use tokenizers::Tokenizer;

/// Share of a chunk that a unit may have: as small as sentences are, and no smaller.
const UNITS: usize = 6;
/// Fewest tokens of a unit's limit.
const SMALLEST: usize = 8;
/// Standard deviations above the mean that make a distance a change of subject.
const CHANGE: f64 = 1.0;
/// Distances are compared in steps of this size: what the last bits of a vector say must not move a cut.
const STEP: f64 = 1e-3;

/// Most tokens of a unit, for chunks of at most `most` tokens.
pub fn unit_tokens(most: usize) -> usize {
    (most / UNITS).max(SMALLEST).min(most)
}

/// The units of a text and their tokens, for chunks of at most `most` tokens.
pub fn units(tokenizer: &Tokenizer, text: &str, most: usize) -> Vec<(Range<usize>, usize)> {
    let config = ChunkConfig::new(unit_tokens(most)).with_sizer(Tokens(tokenizer));
    let unit = |(start, part): (usize, &str)| (start..start + part.len(), super::count(tokenizer, part));
    TextSplitter::new(config).chunk_indices(text).map(unit).collect()
}

/// How far apart neighboring units are. Their vectors come one after another, and only the last is kept.
#[derive(Default)]
pub struct Neighbors {
    last: Option<Vec<f32>>,
    distances: Vec<i64>,
}

impl Neighbors {
    /// Adds the vector of the next unit.
    pub fn add(&mut self, vector: Vec<f32>) {
        if let Some(last) = &self.last {
            self.distances.push(distance(last, &vector));
        }
        self.last = Some(vector);
    }

    /// How many units were added.
    pub fn units(&self) -> usize {
        self.distances.len() + usize::from(self.last.is_some())
    }
}

/// The chunks that units make, given how far apart they are. `fits` says whether a part of the text is within a chunk's tokens.
pub fn group(
    units: &[(Range<usize>, usize)],
    Neighbors { distances, .. }: &Neighbors,
    most: usize,
    fits: impl Fn(Range<usize>) -> bool,
) -> Vec<Range<usize>> {
    let change = change(distances);
    // Tokens before each unit, and of all.
    let before: Vec<usize> = std::iter::once(0)
        .chain(units.iter().scan(0_usize, |sum, (_, tokens)| {
            *sum += tokens;
            Some(*sum)
        }))
        .collect();
    let mut chunks = Vec::new();
    // From left to right; the later part waits on the stack.
    let mut waiting: Vec<Range<usize>> = std::iter::once(0..units.len()).collect();
    while let Some(part) = waiting.pop() {
        if part.is_empty() {
            continue;
        }
        let span = units[part.start].0.start..units[part.end - 1].0.end;
        // A part at a change of subject is not made so small that it says nothing.
        let least = most / 4;
        let sum = |part: Range<usize>| before[part.end] - before[part.start];
        let must = part.len() > 1 && (sum(part.clone()) > most || !fits(span.clone()));
        let worth = |cut: &usize| {
            distances[cut - 1] > change && sum(part.start..*cut) >= least && sum(*cut..part.end) >= least
        };
        // The largest distance; of equal ones the one nearest to the middle, then the first.
        let middle = part.start + part.len() / 2;
        let best = |cuts: &mut dyn Iterator<Item = usize>| {
            cuts.max_by_key(|cut| {
                (distances[cut - 1], std::cmp::Reverse(cut.abs_diff(middle)), std::cmp::Reverse(*cut))
            })
        };
        let inside = part.start + 1..part.end;
        let cut = best(&mut inside.clone().filter(worth))
            .or_else(|| if must { best(&mut inside.clone()) } else { None });
        match cut {
            Some(cut) => {
                waiting.push(cut..part.end);
                waiting.push(part.start..cut);
            }
            None => chunks.push(span),
        }
    }
    chunks
}

/// How far apart the directions of two vectors are, in steps. One of zeros has none, and is as far from all others as what has
/// nothing to do with them.
#[expect(clippy::cast_possible_truncation, reason = "distances lie between 0 and 2")]
fn distance(one: &[f32], two: &[f32]) -> i64 {
    let dot = |one: &[f32], two: &[f32]| {
        one.iter().zip(two).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    // Vectors need not have length 1: those that are compared by their dot product keep their own.
    let lengths = (dot(one, one) * dot(two, two)).sqrt();
    let cosine = if lengths > 0.0 { dot(one, two) / lengths } else { 0.0 };
    ((1.0 - cosine) / STEP).round() as i64
}

/// The distance above which the subject has changed.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "distances are small")]
fn change(distances: &[i64]) -> i64 {
    let count = distances.len().max(1) as f64;
    let mean = distances.iter().sum::<i64>() as f64 / count;
    let variance = distances.iter().map(|distance| (*distance as f64 - mean).powi(2)).sum::<f64>() / count;
    (mean + CHANGE * variance.sqrt()).floor() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grouped(subjects: &str, tokens: usize, most: usize) -> Vec<(usize, usize)> {
        let units: Vec<_> = (0..subjects.len()).map(|place| (place * 10..place * 10 + 9, tokens)).collect();
        // Of lengths that must make no difference.
        let vector = |(subject, length): (char, f32)| match subject {
            'a' => vec![length, 0.0, 0.0],
            'b' => vec![0.0, length, 0.0],
            _ => vec![0.0, 0.0, length],
        };
        let vectors = subjects.chars().zip([1.0, 30.0, 0.2].into_iter().cycle()).map(vector);
        let mut neighbors = Neighbors::default();
        vectors.for_each(|vector| neighbors.add(vector));
        assert_eq!(neighbors.units(), units.len());
        let fits = |part: Range<usize>| part.len().div_ceil(10) * tokens <= most;
        group(&units, &neighbors, most, fits).into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn cuts_are_made_where_the_subject_changes_and_where_they_must_be() {
        assert_eq!(grouped("aaabbb", 10, 100), [(0, 29), (30, 59)]);
        assert_eq!(grouped("aaaaaa", 10, 100), [(0, 59)], "one subject stays whole");
        assert_eq!(grouped("aaaaaaaa", 10, 40), [(0, 39), (40, 79)], "what is too large is halved");
        assert_eq!(grouped("aabbcc", 10, 20), [(0, 19), (20, 39), (40, 59)]);
        assert_eq!(grouped("", 10, 20), []);
    }
}
