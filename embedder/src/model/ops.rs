//! The steps between the matrix products, each as one pass over memory: candle ops of our own on the CPU, candle's
//! functions on any other device. Rows are spread over the cores by rayon.

use candle_core::{CpuStorage, Layout, Result, Tensor};
use rayon::prelude::*;

use super::kernels::{self, Norm};

/// Floats that one task takes: enough to outweigh the hand-over, few enough to keep both halves of a pair of cores busy.
const FLOATS_PER_TASK: usize = 1 << 15;

/// `x + bias`, with or without GELU after it, for x of shape [tokens, width].
pub(super) struct Bias {
    tensor: Tensor,
    values: Vec<f32>,
}

impl Bias {
    pub(super) fn new(tensor: Tensor) -> Result<Self> {
        Ok(Self { values: tensor.to_vec1()?, tensor })
    }

    pub(super) fn add(&self, x: Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return x.broadcast_add(&self.tensor);
        }
        x.inplace_op1(&AddBias { bias: &self.values, gelu: false })?;
        Ok(x)
    }

    pub(super) fn add_and_gelu(&self, x: Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return x.broadcast_add(&self.tensor)?.gelu_erf();
        }
        x.inplace_op1(&AddBias { bias: &self.values, gelu: true })?;
        Ok(x)
    }
}

/// `layer_norm(x + bias + residual)`.
pub(super) struct AddLayerNorm {
    bias: Tensor,
    norm: candle_nn::LayerNorm,
    values: Norm,
}

impl AddLayerNorm {
    pub(super) fn new(bias: Tensor, weight: Tensor, shift: Tensor, epsilon: f64) -> Result<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
        let values = Norm {
            bias: bias.to_vec1()?,
            weight: weight.to_vec1()?,
            shift: shift.to_vec1()?,
            epsilon: epsilon as f32,
        };
        Ok(Self { bias, norm: candle_nn::LayerNorm::new(weight, shift, epsilon), values })
    }

    pub(super) fn forward(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return candle_nn::Module::forward(&self.norm, &x.broadcast_add(&self.bias)?.add(residual)?);
        }
        x.inplace_op2(residual, &NormalizeRows(&self.values))?;
        Ok(x)
    }
}

struct AddBias<'a> {
    bias: &'a [f32],
    gelu: bool,
}

impl candle_core::InplaceOp1 for AddBias<'_> {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let rows = contiguous_mut(storage, layout)?;
        let width = self.bias.len();
        rows.par_chunks_mut(rows_per_task(width) * width).for_each(|task| {
            for row in task.chunks_exact_mut(width) {
                if self.gelu {
                    kernels::add_bias_gelu(row, self.bias);
                } else {
                    kernels::add_bias(row, self.bias);
                }
            }
        });
        Ok(())
    }
}

struct NormalizeRows<'a>(&'a Norm);

impl candle_core::InplaceOp2 for NormalizeRows<'_> {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let rows = contiguous_mut(x, x_layout)?;
        let residual = contiguous(residual, layout)?;
        let width = self.0.weight.len();
        let task = rows_per_task(width) * width;
        rows.par_chunks_mut(task).zip(residual.par_chunks(task)).for_each(|(rows, residual)| {
            for (row, residual) in rows.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
                kernels::add_layer_norm(row, residual, self.0);
            }
        });
        Ok(())
    }
}

fn rows_per_task(width: usize) -> usize {
    FLOATS_PER_TASK.div_ceil(width.max(1))
}

/// The values behind a contiguous f32 tensor.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("a row op wants a contiguous tensor of f32"),
    }
}

fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a row op wants a contiguous tensor of f32"),
    }
}
