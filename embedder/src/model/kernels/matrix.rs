//! Products with the weights of a linear layer, which are packed once. Blocks of rows and columns are spread over the cores.

use std::cell::RefCell;

use rayon::prelude::*;

use super::dot::{Format, Microkernel, Operands, PANEL, ZEROS};
use super::output::Output;
use super::panels::Panels;
use super::rows::{self, Activation, Columns};

/// Rows of one task: as floats they stay in the second-level cache together with a panel, and each panel that is read from
/// further away is used for all of them.
const ROWS: usize = 96;
/// Tasks for each core, so that one which was held up does not keep the others waiting for long.
const TASKS_PER_CORE: usize = 3;
/// Fewer panels are no task: each task converts its rows once more.
const PANELS: usize = 4;
/// The most rows of a microkernel.
const TILE: usize = 12;

/// `[inner, columns]` numbers, packed, with what comes after the product.
pub(in super::super) struct Matrix {
    microkernel: Microkernel,
    inner: usize,
    columns: usize,
    panels: Panels,
    /// Factors and bias of the columns, filled up to whole panels.
    after: Vec<Columns>,
}

/// The rows of a task as a microkernel reads them.
#[derive(Default)]
struct Converted {
    words: Vec<u32>,
    /// Scale and smallest number of each row of bytes.
    ranges: Vec<(f32, f32)>,
}

thread_local! {
    static CONVERTED: RefCell<Converted> = RefCell::default();
}

#[repr(align(64))]
struct Tile([u32; TILE * PANEL]);

impl Matrix {
    /// Packs `weight`, [columns, inner], for `microkernel`.
    pub(in super::super) fn new(
        microkernel: Microkernel,
        weight: &[f32],
        inner: usize,
        bias: Option<&[f32]>,
    ) -> Self {
        let columns = weight.len() / inner.max(1);
        let mut panels = Panels::default();
        let mut after = vec![Columns::default(); columns.div_ceil(PANEL)];
        for (index, bias) in bias.unwrap_or_default().iter().enumerate().take(columns) {
            after[index / PANEL].bias[index % PANEL] = *bias;
        }
        let column = |index: usize| &weight[index * inner..(index + 1) * inner];
        if microkernel.format == Format::Int8 {
            let mut bytes = vec![0_i8; weight.len()];
            for index in 0..columns {
                let bytes = &mut bytes[index * inner..(index + 1) * inner];
                let scale = rows::quantize_symmetric(column(index), bytes);
                let sum: f32 = bytes.iter().map(|byte| f32::from(*byte)).sum();
                after[index / PANEL].scale[index % PANEL] = scale;
                after[index / PANEL].sum[index % PANEL] = scale * sum;
            }
            panels.pack_bytes((inner, columns), |index| &bytes[index * inner..(index + 1) * inner]);
        } else {
            panels.pack_columns(microkernel.format, (inner, columns), column);
        }
        Self { microkernel, inner, columns, panels, after }
    }

    /// Numbers of a row of the left side.
    pub(in super::super) fn inner(&self) -> usize {
        self.inner
    }

    /// Numbers of a row of the product.
    pub(in super::super) fn columns(&self) -> usize {
        self.columns
    }

    /// `activation(left · self + bias)` for `left` of [rows, inner].
    #[allow(unsafe_code, reason = "tasks write into one output")]
    pub(in super::super) fn multiply(&self, left: &[f32], activation: Activation) -> Vec<f32> {
        let rows = left.len() / self.inner.max(1);
        let output = Output::new(rows * self.columns);
        let panels = self.after.len();
        let row_tasks = rows.div_ceil(ROWS).max(1);
        let cores = rayon::current_num_threads();
        let wanted = cores * TASKS_PER_CORE;
        let few = wanted.div_ceil(row_tasks).min(panels.div_ceil(PANELS)).max(1);
        // Where rows alone don't keep the cores busy, a task too many would keep all of them waiting for one.
        let column_tasks = (few..=panels)
            .find(|tasks| row_tasks >= cores || (tasks * row_tasks).is_multiple_of(cores))
            .unwrap_or(few);
        let task = |index: usize| {
            let (row, column) = (index / column_tasks, index % column_tasks);
            let rows = row * rows / row_tasks..(row + 1) * rows / row_tasks;
            let panels = column * panels / column_tasks..(column + 1) * panels / column_tasks;
            let left = &left[rows.start * self.inner..rows.end * self.inner];
            CONVERTED.with_borrow_mut(|converted| {
                self.block(left, panels, activation, converted, |row, column, values| {
                    // SAFETY: no other task has this row and column.
                    unsafe { output.write((rows.start + row) * self.columns + column, values) };
                });
            });
        };
        (0..row_tasks * column_tasks).into_par_iter().with_max_len(1).for_each(task);
        // SAFETY: the tasks have written every row and column.
        unsafe { output.finish() }
    }

    /// Some rows times some panels; `write` gets a row, a column and the numbers from there on.
    #[allow(unsafe_code, reason = "a microkernel takes pointers")]
    #[inline]
    fn block(
        &self,
        left: &[f32],
        panels: std::ops::Range<usize>,
        activation: Activation,
        converted: &mut Converted,
        write: impl Fn(usize, usize, &[f32]),
    ) {
        let rows = left.len() / self.inner.max(1);
        let words = self.microkernel.format.words(self.inner);
        let (left, left_row) = match self.microkernel.format {
            Format::F32 => (left.as_ptr().cast(), self.inner),
            Format::Bf16 => (converted.bf16(left, self.inner), words),
            Format::Int8 => (converted.bytes(left, self.inner), words),
        };
        let tiles = rows.div_ceil(self.microkernel.rows());
        let mut tile = Tile([0; TILE * PANEL]);
        for panel in panels {
            let columns = (self.columns - panel * PANEL).min(PANEL);
            let (right, words) = self.panels.panel(panel, 0);
            let start = match self.microkernel.format {
                Format::F32 | Format::Bf16 => self.after[panel].bias.as_ptr().cast(),
                Format::Int8 => ZEROS.as_ptr(),
            };
            for index in 0..tiles {
                let (first, last) = (index * rows / tiles, (index + 1) * rows / tiles);
                let operands = Operands {
                    left: left.wrapping_add(first * left_row),
                    left_row,
                    panel: right,
                    words,
                    start,
                    output: tile.0.as_mut_ptr(),
                    output_row: PANEL,
                };
                // SAFETY: a tile has at most as many rows as the microkernel takes, and those of the left side follow one
                // another for `words` words each; the panel has `words` words for each column; the start is as wide as a panel; the tile has room.
                unsafe { self.microkernel.run(last - first, operands) };
                let done = &mut tile.0[..(last - first) * PANEL];
                match self.microkernel.format {
                    Format::F32 | Format::Bf16 => rows::activate(done, activation),
                    Format::Int8 => {
                        rows::finish_int8(
                            done,
                            &converted.ranges[first..last],
                            &self.after[panel],
                            activation,
                        );
                    }
                }
                for (row, values) in done.chunks_exact(PANEL).enumerate() {
                    write(first + row, panel * PANEL, bytemuck::cast_slice(&values[..columns]));
                }
            }
        }
    }
}

impl Converted {
    fn bf16(&mut self, left: &[f32], inner: usize) -> *const u32 {
        let words = Format::Bf16.words(inner);
        self.words.resize(left.len() / inner * words, 0);
        for (row, target) in left.chunks_exact(inner).zip(self.words.chunks_exact_mut(words)) {
            rows::to_bf16(row, target);
        }
        self.words.as_ptr()
    }

    fn bytes(&mut self, left: &[f32], inner: usize) -> *const u32 {
        let words = Format::Int8.words(inner);
        self.words.resize(left.len() / inner * words, 0);
        self.ranges.clear();
        for (row, target) in left.chunks_exact(inner).zip(self.words.chunks_exact_mut(words)) {
            self.ranges.push(rows::quantize(row, target));
        }
        self.words.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::super::level::tests::on_each_level;
    use super::super::level::{Level, level};
    use super::*;
    use proptest::prelude::*;

    /// Numbers between -1 and 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1_u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Nearest of what the format can hold; bytes are looked at by their bound below.
    fn rounded(format: Format, value: f32) -> f64 {
        match format {
            Format::Bf16 => {
                let mut word = [0];
                rows::to_bf16(&[value], &mut word);
                f64::from(f32::from_bits(u32::from(bytemuck::cast::<u32, [u16; 2]>(word[0])[0]) << 16))
            }
            Format::F32 | Format::Int8 => f64::from(value),
        }
    }

    /// `shape` is of rows, what a row has, and columns.
    fn check(microkernel: Microkernel, level: Level, shape: [usize; 3], seed: u32) {
        let [rows, inner, columns] = shape;
        let (left, weight) = (numbers(rows * inner, seed), numbers(columns * inner, seed ^ 1));
        let bias = numbers(columns, seed ^ 2);
        let format = microkernel.format;
        let product =
            Matrix::new(microkernel, &weight, inner, Some(&bias)).multiply(&left, Activation::Identity);
        assert_eq!(product.len(), rows * columns);
        for row in 0..rows {
            let left = &left[row * inner..(row + 1) * inner];
            for column in 0..columns {
                let weight = &weight[column * inner..(column + 1) * inner];
                let terms = left.iter().zip(weight).map(|(a, b)| rounded(format, *a) * rounded(format, *b));
                let expected = f64::from(bias[column]) + terms.sum::<f64>();
                // Both sides are between -1 and 1. Bytes: half a step of 2/255 or 1/127, whatever the signs.
                let bound =
                    inner as f64 * if format == Format::Int8 { 0.5 / 127.0 * 2.1 } else { 4e-7 } + 1e-6;
                let got = f64::from(product[row * columns + column]);
                assert!(
                    (got - expected).abs() <= bound,
                    "{} {level:?} {format:?} {shape:?} at {row}, {column}: {got} instead of {expected}",
                    microkernel.name
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn products_are_those_of_the_definition_on_every_instruction_set(
            rows in 1..30_usize, inner in 1..80_usize, columns in 1..140_usize, seed: u32,
        ) {
            for format in [Format::F32, Format::Bf16, Format::Int8] {
                for microkernel in Microkernel::all(format) {
                    on_each_level(|level| check(microkernel, level, [rows, inner, columns], seed));
                }
            }
        }
    }

    #[test]
    fn tasks_cover_every_row_and_column_of_a_large_product() {
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            check(Microkernel::best(format), level(), [2 * ROWS + 5, 33, 4 * PANEL + 1], 7);
        }
    }

    #[test]
    fn bytes_are_the_same_on_every_instruction_set() {
        let (left, weight) = (numbers(5 * 67, 1), numbers(45 * 67, 2));
        let mut products = Microkernel::all(Format::Int8).flat_map(|it| {
            let matrix = Matrix::new(it, &weight, 67, None);
            on_each_level(|_| matrix.multiply(&left, Activation::Relu))
        });
        let first = products.next().unwrap();
        assert!(products.all(|product| product == first));
    }

    #[test]
    fn an_empty_left_side_gives_an_empty_product() {
        let matrix = Matrix::new(Microkernel::best(Format::F32), &numbers(12, 1), 3, None);
        assert!(matrix.multiply(&[], Activation::Identity).is_empty());
    }
}
