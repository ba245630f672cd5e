//! Self-attention over texts that lie one behind another without padding: each text attends to itself alone.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::dot::{Format, Microkernel, Operands, PANEL, ZEROS};
use super::output::Output;
use super::panels::Panels;
use super::reduce::LANES;
use super::rows;

/// Which tokens a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Reach {
    /// All of its text.
    All,
    /// Itself and those before it.
    Before,
    /// Those at most so many tokens away, in both directions.
    Within(usize),
    /// Itself and so many before it.
    Window(usize),
}

/// A text among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Extent {
    /// Its tokens.
    pub(in super::super) length: usize,
    /// How many of these, from the first on, are attended to.
    pub(in super::super) seen: usize,
}

impl Reach {
    /// The tokens that token `position` of a text attends to. Neither bound is below that of the position before.
    fn range(self, position: usize, Extent { length, seen }: Extent) -> Range<usize> {
        let reach = match self {
            Self::All => 0..length,
            Self::Before => 0..position + 1,
            Self::Within(distance) => position.saturating_sub(distance)..length.min(position + distance + 1),
            Self::Window(distance) => position.saturating_sub(distance)..position + 1,
        };
        // As transformers has it: who would see nothing sees all within reach.
        if reach.start < seen { reach.start..reach.end.min(seen) } else { reach }
    }
}

/// What attention computes, but for the numbers.
#[derive(Debug, Clone)]
pub(in super::super) struct Heads {
    /// Heads of the queries.
    pub(in super::super) queries: usize,
    /// Heads of keys and values; neighboring query heads share one.
    pub(in super::super) keys: usize,
    /// Numbers of a head.
    pub(in super::super) width: usize,
    /// Factor of the products of queries and keys.
    pub(in super::super) scale: f32,
    pub(in super::super) reach: Reach,
    /// What each token of distance costs, by query head; empty for nothing.
    pub(in super::super) slopes: Vec<f32>,
}

/// The rows of a matrix, which may be part of a wider one.
#[derive(Clone, Copy)]
pub(in super::super) struct Strided<'a> {
    pub(in super::super) values: &'a [f32],
    /// From one row to the next.
    pub(in super::super) row: usize,
}

impl<'a> Strided<'a> {
    fn part(self, row: usize, start: usize, length: usize) -> &'a [f32] {
        self.parts(row, 1, start, length)
    }

    /// From the part of row `first` to that of the last of `count` rows, with what lies between.
    fn parts(self, first: usize, count: usize, start: usize, length: usize) -> &'a [f32] {
        &self.values[first * self.row + start..][..(count - 1) * self.row + length]
    }
}

#[derive(Default)]
struct Scratch {
    keys: Panels,
    values: Panels,
    queries: Vec<u32>,
    scores: Vec<u32>,
    weights: Vec<u32>,
    output: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Attention of texts; gives [tokens, heads.queries * heads.width].
///
/// # Panics
/// When the matrices have fewer rows than the texts tokens.
#[allow(unsafe_code, reason = "tasks write into one output")]
pub(in super::super) fn attend(
    microkernel: Microkernel,
    [queries, keys, values]: [Strided<'_>; 3],
    texts: &[Extent],
    heads: &Heads,
) -> Vec<f32> {
    let tokens: usize = texts.iter().map(|text| text.length).sum();
    let row = heads.queries * heads.width;
    let output = Output::new(tokens * row);
    let starts =
        texts.iter().scan(0, |next, extent| Some((std::mem::replace(next, *next + extent.length), *extent)));
    let tasks: Vec<(usize, Extent, usize)> =
        starts.flat_map(|(start, extent)| (0..heads.keys).map(move |head| (start, extent, head))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(start, extent, head)| {
        SCRATCH.with_borrow_mut(|scratch| {
            let text = Text { microkernel, queries, keys, values, start, extent, heads };
            text.attend(head, scratch, &output);
        });
    });
    // SAFETY: the tasks have written every head of every token.
    unsafe { output.finish() }
}

struct Text<'a> {
    microkernel: Microkernel,
    queries: Strided<'a>,
    keys: Strided<'a>,
    values: Strided<'a>,
    start: usize,
    extent: Extent,
    heads: &'a Heads,
}

impl Text<'_> {
    fn attend(&self, head: usize, scratch: &mut Scratch, output: &Output) {
        let Heads { width, queries, keys, .. } = *self.heads;
        let format = self.microkernel.format;
        let key = |token: usize| self.keys.part(self.start + token, head * width, width);
        let value = |token: usize| self.values.part(self.start + token, head * width, width);
        scratch.keys.pack_columns(format, (width, self.extent.length), key);
        scratch.values.pack_rows(format, (self.extent.length, width), value);
        let share = queries / keys;
        let tiles = self.extent.length.div_ceil(self.microkernel.rows());
        for query in head * share..(head + 1) * share {
            for tile in 0..tiles {
                let rows = tile * self.extent.length / tiles..(tile + 1) * self.extent.length / tiles;
                self.tile(query, rows, scratch, output);
            }
        }
    }

    /// Some rows of one head of the queries.
    #[allow(unsafe_code, reason = "microkernels take pointers, and tasks write into one output")]
    fn tile(&self, head: usize, rows: Range<usize>, scratch: &mut Scratch, output: &Output) {
        let Scratch { keys, values, queries, scores, weights, output: sums } = scratch;
        let Heads { width, scale, reach, ref slopes, .. } = *self.heads;
        let format = self.microkernel.format;
        // Keys that any of the rows attends to, in whole panels.
        let first = reach.range(rows.start, self.extent).start / PANEL * PANEL;
        let last = reach.range(rows.end - 1, self.extent).end;
        let (panels, inner) = (first / PANEL..last.div_ceil(PANEL), format.words(width));
        let (count, row_length) = (rows.len(), panels.len() * PANEL);
        let (left, left_row) = match format {
            Format::Bf16 => {
                queries.resize(count * inner, 0);
                for (row, words) in rows.clone().zip(queries.chunks_exact_mut(inner)) {
                    rows::to_bf16(self.queries.part(self.start + row, head * width, width), words);
                }
                (queries.as_ptr(), inner)
            }
            Format::F32 | Format::Int8 => {
                let first = self.start + rows.start;
                (self.queries.parts(first, count, head * width, width).as_ptr().cast(), self.queries.row)
            }
        };
        scores.resize(count * row_length, 0);
        for (index, panel) in panels.enumerate() {
            let (panel, words) = keys.panel(panel, 0);
            let operands = Operands {
                left,
                left_row,
                panel,
                words,
                start: ZEROS.as_ptr(),
                output: scores.as_mut_ptr().wrapping_add(index * PANEL),
                output_row: row_length,
            };
            // SAFETY: `count` rows of `words` words are there, `left_row` words apart, and the scores have room for a panel from `index` on.
            unsafe { self.microkernel.run(count, operands) };
        }
        let words = format.words(last - first);
        // Softmax and rounding take whole registers; what is beyond the last key is as far away as what is out of reach.
        let seen = (last - first).next_multiple_of(LANES);
        let mut totals = [0.0; 16];
        for ((row, scores), total) in rows.clone().zip(scores.chunks_exact_mut(row_length)).zip(&mut totals) {
            let scores: &mut [f32] = &mut bytemuck::cast_slice_mut(scores)[..seen];
            let range = reach.range(row, self.extent);
            let within = range.start - first..range.end - first;
            scores[..within.start].fill(f32::NEG_INFINITY);
            scores[within.end..].fill(f32::NEG_INFINITY);
            if let Some(slope) = slopes.get(head) {
                rows::subtract_distance(&mut scores[within], range.start, row, slope / scale);
            }
            *total = rows::softmax_exp(scores.as_chunks_mut().0, scale);
        }
        let (left, left_row) = match format {
            Format::Bf16 => {
                weights.resize(count * seen / 2, 0);
                let scores = scores.chunks_exact(row_length).map(|row| &row[..seen]);
                for (scores, weights) in scores.zip(weights.chunks_exact_mut(seen / 2)) {
                    rows::to_bf16(bytemuck::cast_slice(scores), weights);
                }
                (weights.as_ptr(), seen / 2)
            }
            Format::F32 | Format::Int8 => (scores.as_ptr(), row_length),
        };
        sums.resize(count * PANEL, 0);
        for panel in 0..width.div_ceil(PANEL) {
            let (right, _) = values.panel(panel, first / format.per_word());
            let operands = Operands {
                left,
                left_row,
                panel: right,
                words,
                start: ZEROS.as_ptr(),
                output: sums.as_mut_ptr(),
                output_row: PANEL,
            };
            // SAFETY: `count` rows of `words` words are there, `left_row` words apart; the panel holds all tokens of the text, of which
            // `words` hold those from `first` to `last`; `sums` has room for a panel.
            unsafe { self.microkernel.run(count, operands) };
            let columns = (width - panel * PANEL).min(PANEL);
            rows::divide_rows(sums, columns, &totals);
            for (row, sums) in rows.clone().zip(sums.chunks_exact(PANEL)) {
                let token = (self.start + row) * self.heads.queries * width;
                // SAFETY: no other task has this head of this token.
                unsafe {
                    output
                        .write(token + head * width + panel * PANEL, bytemuck::cast_slice(&sums[..columns]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::level::tests::on_each_level;
    use super::*;
    use proptest::prelude::*;

    /// Attention by its definition, in f64.
    fn reference([q, k, v]: [Strided<'_>; 3], texts: &[Extent], heads: &Heads) -> Vec<f64> {
        let mut result = Vec::new();
        let mut start = 0;
        for text in texts {
            for row in 0..text.length {
                for head in 0..heads.queries {
                    let shared = head / (heads.queries / heads.keys);
                    let query = q.part(start + row, head * heads.width, heads.width);
                    let range = heads.reach.range(row, *text);
                    let scores = range.clone().map(|token| {
                        let key = k.part(start + token, shared * heads.width, heads.width);
                        let product: f64 =
                            query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        let slope = heads.slopes.get(head).copied().unwrap_or_default();
                        product * f64::from(heads.scale) - f64::from(slope) * row.abs_diff(token) as f64
                    });
                    let weights: Vec<f64> = scores.map(f64::exp).collect();
                    let total: f64 = weights.iter().sum();
                    for column in 0..heads.width {
                        let sum: f64 = weights
                            .iter()
                            .zip(range.clone())
                            .map(|(weight, token)| {
                                weight
                                    * f64::from(
                                        v.part(start + token, shared * heads.width, heads.width)[column],
                                    )
                            })
                            .sum();
                        result.push(sum / total);
                    }
                }
            }
            start += text.length;
        }
        result
    }

    fn reach() -> impl Strategy<Value = Reach> {
        prop_oneof![
            Just(Reach::All),
            Just(Reach::Before),
            (0..50_usize).prop_map(Reach::Within),
            (0..50_usize).prop_map(Reach::Window),
        ]
    }

    /// Mostly all of it is seen.
    fn extent() -> impl Strategy<Value = Extent> {
        (0..100_usize, 0..200_usize).prop_map(|(length, seen)| Extent { length, seen: seen.min(length) })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn attention_is_that_of_the_definition_on_every_instruction_set(
            texts in prop::collection::vec(extent(), 1..4), keys in 1..3_usize, share in 1..3_usize,
            width in 1..70_usize, reach in reach(), fading: bool, seed in 0..1000_u32,
        ) {
            let queries = keys * share;
            let heads = Heads {
                queries, keys, width, scale: 0.5, reach,
                slopes: if fading { (0..queries).map(|head| 0.1 * head as f32).collect() } else { Vec::new() },
            };
            let row = (queries + 2 * keys) * width;
            let tokens: usize = texts.iter().map(|text| text.length).sum();
            let qkv: Vec<f32> = (0..tokens * row).map(|n| ((n as f32 + seed as f32) * 12.9898).sin()).collect();
            let part = |start: usize| Strided { values: qkv.get(start..).unwrap_or_default(), row };
            let parts = [part(0), part(queries * width), part((queries + keys) * width)];
            let expected = reference(parts, &texts, &heads);
            for format in [Format::F32, Format::Bf16] {
                let bound = if format == Format::F32 { 2e-5 } else { 4e-2 };
                for microkernel in Microkernel::all(format) {
                    let made = on_each_level(|level| (level, attend(microkernel, parts, &texts, &heads)));
                    for (level, got) in made {
                        prop_assert_eq!(got.len(), expected.len());
                        for (got, expected) in got.iter().zip(&expected) {
                            prop_assert!(
                                (f64::from(*got) - expected).abs() < bound,
                                "{} {:?} {:?}: {} instead of {}",
                                microkernel.name, level, format, got, expected
                            );
                        }
                    }
                }
            }
        }
    }
}
