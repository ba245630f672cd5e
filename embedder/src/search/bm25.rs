//! Okapi BM25 over chunks: how much a chunk's words say about a query. Pure.

use std::collections::HashMap;

/// How soon a word's further occurrences count for less.
const K1: f32 = 1.2;
/// How much a long chunk's words count for less.
const B: f32 = 0.75;

/// The words of all chunks.
#[derive(Debug, Default)]
pub struct Words {
    /// By word: the chunks that have it, and how often.
    postings: HashMap<String, Vec<(u32, u16)>>,
    /// Words of each chunk.
    lengths: Vec<u32>,
    total: u64,
}

impl Words {
    /// Adds the next chunk.
    pub fn add(&mut self, text: &str) {
        let chunk = u32::try_from(self.lengths.len()).unwrap_or(u32::MAX);
        let mut counts: HashMap<String, u16> = HashMap::new();
        let mut length = 0_u32;
        for word in words(text) {
            length += 1;
            let count = counts.entry(word).or_default();
            *count = count.saturating_add(1);
        }
        for (word, count) in counts {
            self.postings.entry(word).or_default().push((chunk, count));
        }
        self.lengths.push(length);
        self.total += u64::from(length);
    }

    /// The chunks that say most about a query, the best first; equally good ones in their order.
    #[expect(clippy::cast_precision_loss, reason = "scores need no more")]
    pub fn best(&self, query: &str, most: usize) -> Vec<(u32, f32)> {
        let chunks = self.lengths.len() as f32;
        let average = (self.total as f32 / chunks.max(1.0)).max(1.0);
        let mut scores: HashMap<u32, f32> = HashMap::new();
        let mut asked: Vec<String> = words(query).collect();
        asked.sort_unstable();
        asked.dedup();
        for word in &asked {
            let Some(found) = self.postings.get(word) else { continue };
            let having = found.len() as f32;
            let rarity = (1.0 + (chunks - having + 0.5) / (having + 0.5)).ln();
            for (chunk, count) in found {
                let length = self.lengths[*chunk as usize] as f32;
                let count = f32::from(*count);
                let weight = count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / average));
                *scores.entry(*chunk).or_default() += rarity * weight;
            }
        }
        let mut best: Vec<(u32, f32)> = scores.into_iter().collect();
        best.sort_by(|one, two| two.1.total_cmp(&one.1).then(one.0.cmp(&two.0)));
        best.truncate(most);
        best
    }
}

/// Letters and digits that follow one another, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(texts: &[&str]) -> Words {
        let mut words = Words::default();
        for text in texts {
            words.add(text);
        }
        words
    }

    #[test]
    fn rare_words_and_short_chunks_count_for_more() {
        let index = index(&[
            "the ship sank in the harbor",
            "the ship",
            "the harbor of Stockholm is cold, and the water of the harbor is brackish",
            "Über den Wolken",
        ]);
        for (query, best) in [
            ("ship", vec![1, 0]),
            ("Stockholm harbor", vec![2, 0]),
            ("über", vec![3]),
            ("the", vec![0, 1, 2]),
            ("nothing here", vec![]),
            ("", vec![]),
        ] {
            let found: Vec<u32> = index.best(query, 10).into_iter().map(|(chunk, _)| chunk).collect();
            assert_eq!(found, best, "{query:?}");
        }
    }

    /// By hand: N = 2, n = 1, tf = 2, length 3, average 2.5.
    #[test]
    fn the_score_is_that_of_the_formula() {
        let index = index(&["a a b", "c d"]);
        let (chunk, score) = index.best("a", 1)[0];
        let rarity = (1.0_f32 + 1.5 / 1.5).ln();
        let expected = rarity * (2.0 * 2.2) / (2.0 + 1.2 * (0.25 + 0.75 * 3.0 / 2.5));
        assert!(chunk == 0 && (score - expected).abs() < 1e-6, "{score} instead of {expected}");
    }
}
