//! Self-attention over texts that lie one behind another without padding: each text attends to itself alone.

use candle_core::{CpuStorage, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{kernels, ops};

/// Query rows of one task: their scores against 512 keys stay in the second-level cache.
const ROWS: usize = 64;

/// Attention of `qkv` ([tokens, 3 · width]: queries, keys, values) for texts of `lengths` tokens; gives [tokens, width].
pub(super) fn attend(qkv: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        return qkv.apply_op1_no_bwd(&Attention { lengths, heads });
    }
    let width = qkv.dim(1)? / 3;
    let head = width / heads;
    #[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
    let scale = 1.0 / (head as f64).sqrt();
    let mut start = 0;
    let mut outputs = Vec::with_capacity(lengths.len());
    for length in lengths {
        // [3, heads, length, head]
        let text = qkv
            .narrow(0, start, *length)?
            .reshape((*length, 3, heads, head))?
            .permute((1, 2, 0, 3))?
            .contiguous()?;
        let (queries, keys, values) = (text.get(0)?, text.get(1)?, text.get(2)?);
        let scores = (queries.matmul(&keys.t()?)? * scale)?;
        let output = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&values)?;
        outputs.push(output.transpose(0, 1)?.reshape((*length, width))?);
        start += length;
    }
    Tensor::cat(&outputs, 0)
}

struct Attention<'a> {
    lengths: &'a [usize],
    heads: usize,
}

/// Some query rows of one text.
struct Block<'a> {
    /// First token of the text.
    text: usize,
    /// Tokens of the text.
    length: usize,
    /// First query row, counted from the text's first token.
    row: usize,
    output: &'a mut [f32],
}

impl candle_core::CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = ops::contiguous(storage, layout)?;
        let (tokens, triple) = layout.shape().dims2()?;
        let width = triple / 3;
        if self.lengths.iter().sum::<usize>() != tokens {
            candle_core::bail!(
                "attention over {tokens} tokens got lengths for {}",
                self.lengths.iter().sum::<usize>()
            );
        }
        let mut output = vec![0.0; tokens * width];
        let mut blocks = Vec::new();
        let (mut rest, mut text) = (output.as_mut_slice(), 0);
        for &length in self.lengths {
            for row in (0..length).step_by(ROWS) {
                let (output, tail) = rest.split_at_mut(ROWS.min(length - row) * width);
                rest = tail;
                blocks.push(Block { text, length, row, output });
            }
            text += length;
        }
        blocks.into_par_iter().for_each_init(Vec::new, |scores, mut block| {
            attend_block(qkv, width, self.heads, &mut block, scores);
        });
        Ok((CpuStorage::F32(output), Shape::from((tokens, width))))
    }
}

fn attend_block(qkv: &[f32], width: usize, heads: usize, block: &mut Block<'_>, scores: &mut Vec<f32>) {
    let head = width / heads;
    #[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
    let scale = 1.0 / (head as f32).sqrt();
    let rows = block.output.len() / width;
    scores.resize(rows * block.length, 0.0);
    let triple = 3 * width;
    for index in 0..heads {
        let queries = Matrix {
            values: &qkv[(block.text + block.row) * triple + index * head..],
            row: triple,
            column: 1,
        };
        let keys = &qkv[block.text * triple + width + index * head..];
        let values = &qkv[block.text * triple + 2 * width + index * head..];
        // The keys stand in rows; read by columns they are their own transpose.
        let transposed = Matrix { values: keys, row: 1, column: triple };
        multiply((rows, block.length, head), scores, block.length, &queries, &transposed);
        for row in scores.chunks_exact_mut(block.length) {
            kernels::softmax(row, scale);
        }
        let scores = Matrix { values: scores, row: block.length, column: 1 };
        let values = Matrix { values, row: triple, column: 1 };
        multiply((rows, head, block.length), &mut block.output[index * head..], width, &scores, &values);
    }
}

/// A view of a matrix: `values[r * row + c * column]`.
struct Matrix<'a> {
    values: &'a [f32],
    row: usize,
    column: usize,
}

impl Matrix<'_> {
    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// `output[m × n] = left[m × k] · right[k × n]` on this thread; rows of the output lie `row` floats apart.
#[allow(unsafe_code, reason = "gemm takes raw pointers, so that it can read transposed and strided matrices")]
#[allow(clippy::cast_possible_wrap, reason = "strides are far below isize::MAX")]
fn multiply(
    (m, n, k): (usize, usize, usize),
    output: &mut [f32],
    row: usize,
    left: &Matrix<'_>,
    right: &Matrix<'_>,
) {
    assert!(left.holds(m, k) && right.holds(k, n), "a product reads outside of its matrices");
    assert!(
        n <= row && (m == 0 || (m - 1) * row + n <= output.len()),
        "a product writes outside of its matrix"
    );
    // SAFETY: the assertions above keep every element inside the slices; the output is borrowed mutably, so that nothing
    // else reads or writes it, and every element of it is initialized.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output.as_mut_ptr(),
            1,
            row as isize,
            false,
            left.values.as_ptr(),
            left.column as isize,
            left.row as isize,
            right.values.as_ptr(),
            right.column as isize,
            right.row as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
