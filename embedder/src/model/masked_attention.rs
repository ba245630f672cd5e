//! Attention in which not every token sees every other alike: before it only, near it only, or less with the distance; with
//! several heads of queries for one of keys. Texts lie one behind another without padding.

use candle_core::{Result, Tensor};

/// Query rows whose scores are held at once.
const ROWS: usize = 64;

/// Who sees whom, and through how many heads.
pub(super) struct Masked<'a> {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head: usize,
    /// Factor of the scores.
    pub(super) scale: f32,
    /// Whether a token sees those before it alone.
    pub(super) causal: bool,
    /// The largest distance of two tokens that see each other.
    pub(super) window: Option<usize>,
    /// By how much the scores of each head fall with every token of distance; empty for not at all.
    pub(super) slopes: &'a [f32],
    /// Tokens of each text.
    pub(super) lengths: &'a [usize],
}

/// The slopes of ALiBi: a geometric series for a power of two of heads, and for other numbers the rest from between.
pub(super) fn slopes(heads: usize) -> Vec<f32> {
    #[expect(clippy::cast_precision_loss, reason = "heads are few")]
    let series = |count: usize| {
        let ratio = 2_f32.powf(-8.0 / count as f32);
        std::iter::successors(Some(ratio), move |slope| Some(slope * ratio)).take(count)
    };
    if heads.is_power_of_two() {
        return series(heads).collect();
    }
    let below = heads.next_power_of_two() / 2;
    series(below).chain(series(2 * below).step_by(2).take(heads - below)).collect()
}

impl Masked<'_> {
    /// Attention of queries ([tokens, heads · head]) to keys and values ([tokens, `kv_heads` · head]).
    pub(super) fn attend(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let mut start = 0;
        let mut outputs = Vec::with_capacity(self.lengths.len());
        for &length in self.lengths {
            let part = |tensor: &Tensor| tensor.narrow(0, start, length);
            outputs.push(self.attend_text(&part(queries)?, &part(keys)?, &part(values)?)?);
            start += length;
        }
        Tensor::cat(&outputs, 0)
    }

    /// The same for one text.
    fn attend_text(&self, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let length = queries.dim(0)?;
        // The heads of queries that share one of keys stand beside one another: [kv_heads, group, length, head].
        let group = self.heads / self.kv_heads;
        let shared = |tensor: &Tensor| {
            tensor.reshape((length, self.kv_heads, 1, self.head))?.permute((1, 2, 0, 3))?.contiguous()
        };
        let queries = queries
            .reshape((length, self.kv_heads, group, self.head))?
            .permute((1, 2, 0, 3))?
            .contiguous()?;
        let mut blocks = Vec::new();
        for row in (0..length).step_by(ROWS) {
            let rows = ROWS.min(length - row);
            let (first, last) = self.visible(row, rows, length);
            let count = last - first;
            let keys = shared(keys)?.narrow(2, first, count)?.repeat((1, group, 1, 1))?;
            let values = shared(values)?.narrow(2, first, count)?.repeat((1, group, 1, 1))?;
            let scores = (queries.narrow(2, row, rows)?.contiguous()?.matmul(&keys.t()?.contiguous()?)?
                * f64::from(self.scale))?;
            let mut bias = Vec::with_capacity(self.heads * rows * count);
            for head in 0..self.heads {
                for query in row..row + rows {
                    bias.extend((first..last).map(|key| self.bias(head, query, key)));
                }
            }
            let bias = Tensor::from_vec(bias, (self.kv_heads, group, rows, count), queries.device())?;
            let scores = candle_nn::ops::softmax_last_dim(&scores.add(&bias.to_dtype(scores.dtype())?)?)?;
            let output = scores.matmul(&values.contiguous()?)?;
            blocks.push(output.permute((2, 0, 1, 3))?.reshape((rows, self.heads * self.head))?);
        }
        Tensor::cat(&blocks, 0)
    }

    /// The keys that any of the queries from `row` on sees.
    fn visible(&self, row: usize, rows: usize, length: usize) -> (usize, usize) {
        let reach = self.window.unwrap_or(length);
        let last = if self.causal { row + rows } else { (row + rows).saturating_add(reach).min(length) };
        (row.saturating_sub(reach), last)
    }

    /// What is added to a score.
    fn bias(&self, head: usize, query: usize, key: usize) -> f32 {
        let distance = query.abs_diff(key);
        if (self.causal && key > query) || self.window.is_some_and(|window| distance > window) {
            return f32::NEG_INFINITY;
        }
        #[expect(clippy::cast_precision_loss, reason = "texts are shorter than 2^24 tokens")]
        self.slopes.get(head).map_or(0.0, |slope| -slope * distance as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let twelve = slopes(12);
        assert_eq!(twelve.len(), 12);
        for (found, expected) in twelve[8..].iter().zip([0.5, 1.5, 2.5, 3.5].map(|n: f32| 2_f32.powf(-n))) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }

    #[test]
    fn blocks_give_what_a_whole_matrix_of_scores_gives() {
        let (heads, kv_heads, head) = (4, 2, 8);
        let lengths = [1, 70, 150];
        let tokens: usize = lengths.iter().sum();
        let random = |width: usize| Tensor::randn(0_f32, 1.0, (tokens, width), &Device::Cpu).unwrap();
        let (queries, keys, values) =
            (random(heads * head), random(kv_heads * head), random(kv_heads * head));
        let alibi = slopes(heads);
        for (causal, window, slopes) in
            [(false, None, alibi.as_slice()), (true, None, &[]), (false, Some(5), &[]), (true, Some(9), &[])]
        {
            let masked =
                Masked { heads, kv_heads, head, scale: 0.3, causal, window, slopes, lengths: &lengths };
            let found = masked.attend(&queries, &keys, &values).unwrap();
            let mut start = 0;
            for length in lengths {
                let part = |tensor: &Tensor| tensor.narrow(0, start, length).unwrap();
                let (queries, keys, values) = (part(&queries), part(&keys), part(&values));
                for index in 0..heads {
                    let column = |tensor: &Tensor, at: usize| {
                        tensor.narrow(1, at * head, head).unwrap().contiguous().unwrap()
                    };
                    let shared = index * kv_heads / heads;
                    let scores =
                        (column(&queries, index).matmul(&column(&keys, shared).t().unwrap()).unwrap() * 0.3)
                            .unwrap();
                    let bias: Vec<f32> =
                        (0..length * length).map(|at| masked.bias(index, at / length, at % length)).collect();
                    let scores =
                        (scores + Tensor::from_vec(bias, (length, length), &Device::Cpu).unwrap()).unwrap();
                    let expected = candle_nn::ops::softmax(&scores, D::Minus1)
                        .unwrap()
                        .matmul(&column(&values, shared))
                        .unwrap();
                    let off = (column(&part(&found), index) - expected).unwrap().abs().unwrap();
                    let off = off.max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(off < 1e-5, "causal {causal}, window {window:?}: off by {off}");
                }
                start += length;
            }
        }
    }
}
