//! Linear layers: on the CPU one op of our own with packed weights, on any other device candle's functions.

use candle_core::{CpuStorage, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::device::has_own_kernels;
use super::kernels::{Activation, Matrix};
use super::ops;
use super::precision::Place;

/// `activation(x · weightᵀ + bias)` for x of [tokens, inner].
pub(super) struct Linear(Weights);

enum Weights {
    Packed(Matrix),
    Tensor { transposed: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// Packs `weight`, [columns, inner], once and for all.
    pub(super) fn new(weight: &Tensor, bias: Option<&Tensor>, place: &Place) -> Result<Self> {
        if !has_own_kernels(&place.device) {
            return Ok(Self(Weights::Tensor { transposed: weight.t()?, bias: bias.cloned() }));
        }
        let inner = weight.dim(1)?;
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        Ok(Self(Weights::Packed(Matrix::new(place.microkernel, &weight, inner, bias.as_deref()))))
    }

    /// Reads `weight` and, where it is there, `bias`. Several layers with the same input become one, whose outputs stand side by
    /// side.
    pub(super) fn load(parts: &[VarBuilder<'_>], place: &Place) -> Result<Self> {
        let all = |name: &str| -> Result<Tensor> {
            let tensors = parts.iter().map(|vb| vb.get_unchecked(name)).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&tensors, 0)
        };
        let bias = parts.iter().any(|vb| vb.contains_tensor("bias")).then(|| all("bias")).transpose()?;
        Self::new(&all("weight")?, bias.as_ref(), place)
    }

    /// `x · weightᵀ + bias`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::Identity)
    }

    /// `activation(x · weightᵀ + bias)`
    pub(super) fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.0 {
            Weights::Packed(matrix) => x.apply_op1_no_bwd(&Multiply { matrix, activation }),
            Weights::Tensor { transposed, bias } => {
                let product = x.matmul(transposed)?;
                let sums = match bias {
                    Some(bias) => product.broadcast_add(bias)?,
                    None => product,
                };
                ops::activate(&sums, activation)
            }
        }
    }
}

struct Multiply<'a> {
    matrix: &'a Matrix,
    activation: Activation,
}

impl candle_core::CustomOp1 for Multiply<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = ops::contiguous(storage, layout)?;
        let (tokens, inner) = layout.shape().dims2()?;
        if inner != self.matrix.inner() {
            candle_core::bail!("a linear layer of {} inputs got {inner}", self.matrix.inner());
        }
        let product = self.matrix.multiply(x, self.activation);
        Ok((CpuStorage::F32(product), Shape::from((tokens, self.matrix.columns()))))
    }
}
