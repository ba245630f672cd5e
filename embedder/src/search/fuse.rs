//! Reciprocal rank fusion: several ordered lists become one, by places alone. Pure.

use std::collections::HashMap;

/// How little the first places count for more than those behind them; the customary value.
const K: f64 = 60.0;

/// All that is in the lists, the best first; equally good ones by number.
pub fn reciprocal_rank(lists: &[Vec<(u32, f32)>]) -> Vec<(u32, f64)> {
    let mut scores: HashMap<u32, f64> = HashMap::new();
    for list in lists {
        let mut rank = K;
        for (chunk, _) in list {
            rank += 1.0;
            *scores.entry(*chunk).or_default() += 1.0 / rank;
        }
    }
    let mut fused: Vec<(u32, f64)> = scores.into_iter().collect();
    fused.sort_by(|one, two| two.1.total_cmp(&one.1).then(one.0.cmp(&two.0)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_lists_have_stands_before_what_one_has() {
        let list = |chunks: &[u32]| chunks.iter().map(|chunk| (*chunk, 0.0)).collect::<Vec<_>>();
        let fused = reciprocal_rank(&[list(&[1, 2, 3]), list(&[3, 4])]);
        let order: Vec<u32> = fused.iter().map(|(chunk, _)| *chunk).collect();
        assert_eq!(order, [3, 1, 2, 4]);
        assert!((fused[0].1 - (1.0 / 63.0 + 1.0 / 61.0)).abs() < 1e-12);
    }
}
