//! Which documents say nearly the same: MinHash over runs of words, with bands to find candidates. Pure, and the same on every
//! machine.

use std::collections::HashMap;

/// Words in a row that are compared.
const RUN: usize = 4;
/// Hashes of a signature.
const HASHES: usize = 64;
/// Rows of a band: documents with an equal band are compared.
const ROWS: usize = 4;
/// Share of common runs from which on documents are near-duplicates.
const NEAR: f64 = 0.8;
/// Most documents that are kept of those with an equal band. Others are found by their other bands.
const MEMBERS: usize = 16;
/// Most documents that are kept, of about 2 KiB each.
const MOST: usize = 1 << 16;

/// What is kept of a document to compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature([u64; HASHES]);

impl Signature {
    /// The signature of a text; `None` where it has no words.
    pub fn of(text: &str) -> Option<Self> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(word_hash);
        let words: Vec<u64> = words.collect();
        let run = RUN.min(words.len());
        if run == 0 {
            return None;
        }
        let mut least = [u64::MAX; HASHES];
        for run in words.windows(run) {
            let hash = run.iter().fold(0, |hash: u64, word| mix(hash ^ word));
            for (place, least) in (0_u64..).zip(&mut least) {
                *least = mix(hash ^ mix(place)).min(*least);
            }
        }
        Some(Self(least))
    }

    /// The share of runs that two documents have in common, about.
    #[expect(clippy::cast_precision_loss, reason = "at most 64")]
    pub fn similarity(&self, other: &Self) -> f64 {
        let equal = self.0.iter().zip(&other.0).filter(|(one, two)| one == two).count();
        equal as f64 / HASHES as f64
    }
}

/// Documents that have been seen: so many, and of those that have a band in common so many. Further ones are compared with them,
/// and not kept.
#[derive(Default)]
pub struct Seen {
    documents: Vec<(String, Signature)>,
    bands: HashMap<(usize, u64), Vec<usize>>,
}

impl Seen {
    /// Adds a document; the id of the most similar of those before it, and how similar it is, where they are near-duplicates.
    pub fn add(&mut self, id: &str, signature: Signature) -> Option<(String, f64)> {
        let bands =
            signature.0.chunks(ROWS).map(|rows| rows.iter().fold(0, |hash, row| mix(hash ^ row))).enumerate();
        let bands: Vec<(usize, u64)> = bands.collect();
        let candidates = bands.iter().filter_map(|band| self.bands.get(band)).flatten();
        let similar = candidates.map(|place| (signature.similarity(&self.documents[*place].1), *place));
        // The first of equally similar ones.
        let best = similar
            .filter(|(similarity, _)| *similarity >= NEAR)
            .max_by(|one, two| one.0.total_cmp(&two.0).then(two.1.cmp(&one.1)));
        let best = best.map(|(similarity, place)| (self.documents[place].0.clone(), similarity));
        // The first of equal documents stands for all of them.
        let known = best.as_ref().is_some_and(|(_, similarity)| *similarity >= 1.0);
        if !known && self.documents.len() < MOST {
            self.keep(id, signature, bands);
        }
        best
    }

    fn keep(&mut self, id: &str, signature: Signature, bands: Vec<(usize, u64)>) {
        let mut found = false;
        for band in bands {
            let members = self.bands.entry(band).or_default();
            if members.len() < MEMBERS {
                members.push(self.documents.len());
                found = true;
            }
        }
        // What is in no band is never compared.
        if found {
            self.documents.push((id.to_owned(), signature));
        }
    }
}

/// FNV-1a of a word, whatever its case.
fn word_hash(word: &str) -> u64 {
    let bytes = word.chars().flat_map(char::to_lowercase).flat_map(|c| {
        let mut buffer = [0; 4];
        let length = c.encode_utf8(&mut buffer).len();
        buffer.into_iter().take(length)
    });
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of SplitMix64.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_the_same_is_told_from_something_else() {
        let words = |word: fn(usize) -> usize| {
            (0..400).map(|place| format!("word{} ", word(place))).collect::<String>()
        };
        let text = words(|place| place);
        let edited = words(|place| if place % 100 == 50 { place + 1000 } else { place });
        let half = words(|place| if place < 200 { place } else { place + 1000 });
        let mut seen = Seen::default();
        let mut add = |id: &str, text: &str| seen.add(id, Signature::of(text).unwrap());
        assert_eq!(add("a", &text), None);
        let (id, similarity) = add("b", &edited.to_uppercase()).unwrap();
        assert_eq!(id, "a");
        assert!(similarity >= NEAR, "{similarity}");
        assert_eq!(add("c", &text), Some(("a".to_owned(), 1.0)));
        assert_eq!(add("d", &half), None);
        assert_eq!(add("e", "Short."), None);
        assert_eq!(add("f", "short"), Some(("e".to_owned(), 1.0)));
        assert_eq!(Signature::of(" -- "), None);
        assert_eq!((seen.documents.len(), seen.bands.len() >= 16), (4, true), "equal ones are kept once");
    }

    #[test]
    fn a_chain_of_edits_is_followed_and_what_is_kept_of_many_alike_is_bounded() {
        let text = |edits: usize| {
            let word = |place: usize| if place < edits { place + 5000 } else { place };
            (0..400).map(|place| format!("word{} ", word(place))).collect::<String>()
        };
        let mut seen = Seen::default();
        for edits in (0..400).step_by(5) {
            let near = seen.add(&edits.to_string(), Signature::of(&text(edits)).unwrap());
            let last = edits.checked_sub(5).map(|before| before.to_string());
            assert_eq!(near.is_some(), last.is_some(), "{edits}: {near:?}");
        }
        // The first row of the first band is the same in all of them, and the rest of their signatures is not.
        let mut seen = Seen::default();
        for number in 0..100 {
            let mut hashes = [number; HASHES];
            hashes[..ROWS].fill(7);
            assert_eq!(seen.add(&number.to_string(), Signature(hashes)), None);
        }
        assert_eq!(seen.bands.values().map(Vec::len).max(), Some(MEMBERS));
    }
}
