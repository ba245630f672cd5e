//! The right side of a product as microkernels read it: panels of 32 columns, word by word.

use super::dot::{Format, PANEL};
use super::rows;

/// The words of 32 columns that are multiplied at the same time, on a boundary of cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row([u32; PANEL]);

/// A packed matrix; packing another one into it reuses the memory.
#[derive(Default)]
pub(super) struct Panels {
    rows: Vec<Row>,
    /// Rows of one panel.
    words: usize,
    converted: Vec<u32>,
}

impl Panels {
    /// Where panel `index` is, from its word `word` on, and how many words follow.
    pub(super) fn panel(&self, index: usize, word: usize) -> (*const u32, usize) {
        let rows = &self.rows[index * self.words + word..(index + 1) * self.words];
        (rows.as_ptr().cast(), rows.len())
    }

    /// Packs floats given by column: `column(c)` has the `inner` numbers of column c.
    pub(super) fn pack_columns<'a>(
        &mut self,
        format: Format,
        (inner, columns): (usize, usize),
        column: impl Fn(usize) -> &'a [f32],
    ) {
        self.clear(format.words(inner), columns);
        let mut converted = std::mem::take(&mut self.converted);
        converted.resize(self.words, 0);
        for index in 0..columns {
            let column = &column(index)[..inner];
            match format {
                Format::Bf16 => rows::to_bf16(column, &mut converted),
                Format::F32 | Format::Int8 => {
                    for (word, value) in converted.iter_mut().zip(column) {
                        *word = value.to_bits();
                    }
                }
            }
            self.put(index, &converted);
        }
        self.converted = converted;
    }

    /// Packs floats given by row: `row(r)` has the numbers of all `columns` that are multiplied by number r of the left side.
    pub(super) fn pack_rows<'a>(
        &mut self,
        format: Format,
        (inner, columns): (usize, usize),
        row: impl Fn(usize) -> &'a [f32],
    ) {
        self.clear(format.words(inner), columns);
        for word in 0..self.words {
            let first = row(word * format.per_word());
            let second =
                Some(word * 2 + 1).filter(|second| format == Format::Bf16 && *second < inner).map(&row);
            for panel in 0..columns.div_ceil(PANEL) {
                let range = panel * PANEL..columns.min((panel + 1) * PANEL);
                let target = &mut self.rows[panel * self.words + word].0;
                match (format, second) {
                    (Format::Bf16, Some(second)) => {
                        rows::pair_bf16(&first[range.clone()], &second[range], target);
                    }
                    (Format::Bf16, None) => {
                        rows::pair_bf16(&first[range.clone()], &[0.0; PANEL][..range.len()], target);
                    }
                    (Format::F32 | Format::Int8, _) => {
                        for (word, value) in target.iter_mut().zip(&first[range]) {
                            *word = value.to_bits();
                        }
                    }
                }
            }
        }
    }

    /// Packs signed bytes given by column.
    pub(super) fn pack_bytes<'a>(
        &mut self,
        (inner, columns): (usize, usize),
        column: impl Fn(usize) -> &'a [i8],
    ) {
        self.clear(Format::Int8.words(inner), columns);
        for index in 0..columns {
            let words = column(index)[..inner].chunks(4).map(|bytes| {
                let mut word = [0; 4];
                for (byte, value) in word.iter_mut().zip(bytes) {
                    *byte = value.to_le_bytes()[0];
                }
                u32::from_le_bytes(word)
            });
            self.converted.clear();
            self.converted.extend(words);
            let converted = std::mem::take(&mut self.converted);
            self.put(index, &converted);
            self.converted = converted;
        }
    }

    fn put(&mut self, column: usize, words: &[u32]) {
        let start = column / PANEL * self.words;
        for (row, word) in self.rows[start..start + self.words].iter_mut().zip(words) {
            row.0[column % PANEL] = *word;
        }
    }

    fn clear(&mut self, words: usize, columns: usize) {
        self.words = words;
        self.rows.clear();
        self.rows.resize(columns.div_ceil(PANEL) * words, Row([0; PANEL]));
    }
}
