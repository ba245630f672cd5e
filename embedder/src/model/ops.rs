//! What stands between the products of an encoder, each as one pass over memory: candle ops of our own on the CPU, candle's
//! functions on any other device. Rows are spread over the cores by rayon.
//!
//! A model is built from these, from `Linear` and from `Attention`; none of them needs to know the instruction sets. Tensors
//! are [tokens, width], with the tokens of all texts one behind another.

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use super::device::has_own_kernels;
pub(super) use super::kernels::Activation;
use super::kernels::{self, Norm};
use super::tokens::Input;

/// Floats that one task takes: enough to outweigh the hand-over, few enough to keep all cores busy.
const FLOATS_PER_TASK: usize = 1 << 15;

/// Which mean and spread a normalization takes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NormKind {
    Layer,
    Rms,
}

/// Layer or RMS normalization of rows, with or without a residual that is added before.
pub(super) struct Normalization {
    kind: NormKind,
    weight: Tensor,
    shift: Option<Tensor>,
    values: Norm,
}

impl Normalization {
    /// Layer normalization with `weight` and, if it is there, `bias`.
    pub(super) fn layer(vb: &VarBuilder<'_>, width: usize, epsilon: f64) -> Result<Self> {
        let shift = vb.contains_tensor("bias").then(|| vb.get(width, "bias")).transpose()?;
        Self::new(NormKind::Layer, vb.get(width, "weight")?, shift, epsilon)
    }

    /// RMS normalization with `weight`, to which `offset` is added: 1 in the Gemma family, which stores it so.
    pub(super) fn rms(vb: &VarBuilder<'_>, width: usize, epsilon: f64, offset: f64) -> Result<Self> {
        Self::new(NormKind::Rms, (vb.get(width, "weight")? + offset)?, None, epsilon)
    }

    fn new(kind: NormKind, weight: Tensor, shift: Option<Tensor>, epsilon: f64) -> Result<Self> {
        let floats = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec1();
        #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
        let values = Norm {
            weight: floats(&weight)?,
            shift: shift.as_ref().map(floats).transpose()?,
            epsilon: epsilon as f32,
        };
        Ok(Self { kind, weight, shift, values })
    }

    /// `norm(x)`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_own_kernels(x.device()) {
            return self.elsewhere(x);
        }
        x.apply_op1_no_bwd(&NormalizeRows(self))
    }

    /// `norm(x + residual)`, in the memory of `x`, which nothing else may use.
    pub(super) fn forward_residual(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if !has_own_kernels(x.device()) {
            return self.elsewhere(&x.add(residual)?);
        }
        x.inplace_op2(residual, &NormalizeRows(self))?;
        Ok(x)
    }

    fn elsewhere(&self, x: &Tensor) -> Result<Tensor> {
        match (self.kind, &self.shift) {
            (NormKind::Layer, Some(shift)) => {
                candle_nn::ops::layer_norm(x, &self.weight, shift, self.values.epsilon)
            }
            (NormKind::Layer, None) => {
                candle_nn::ops::layer_norm(x, &self.weight, &self.weight.zeros_like()?, self.values.epsilon)
            }
            (NormKind::Rms, _) => candle_nn::ops::rms_norm(x, &self.weight, self.values.epsilon),
        }
    }

    fn row(&self, row: &mut [f32], residual: &[f32]) {
        match self.kind {
            NormKind::Layer => kernels::add_layer_norm(row, residual, &self.values),
            NormKind::Rms => kernels::add_rms_norm(row, residual, &self.values),
        }
    }
}

/// `x + y`, in the memory of `x`, which nothing else may use.
pub(super) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if !has_own_kernels(x.device()) {
        return x.add(y);
    }
    x.inplace_op2(y, &Add)?;
    Ok(x)
}

struct Add;

impl candle_core::InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, layout: &Layout) -> Result<()> {
        let (x, y) = (contiguous_mut(x, x_layout)?, contiguous(y, layout)?);
        x.par_chunks_mut(FLOATS_PER_TASK).zip(y.par_chunks(FLOATS_PER_TASK)).for_each(|(x, y)| {
            for (x, y) in x.iter_mut().zip(y) {
                *x += y;
            }
        });
        Ok(())
    }
}

/// A table of embeddings, [ids, width].
pub(super) struct Table(Tensor);

impl Table {
    /// Reads `weight`.
    pub(super) fn load(vb: &VarBuilder<'_>) -> Result<Self> {
        vb.get_unchecked("weight").map(Self)
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The rows of `ids`: [ids, width].
    pub(super) fn rows(&self, ids: Vec<u32>) -> Result<Tensor> {
        if !has_own_kernels(self.0.device()) {
            return self.0.index_select(&Tensor::new(ids, self.0.device())?, 0);
        }
        self.0.apply_op1_no_bwd(&Rows { ids })
    }

    /// `x` and the rows of `ids` added up, in the memory of `x`, which nothing else may use.
    pub(super) fn add_rows(&self, x: Tensor, ids: Vec<u32>) -> Result<Tensor> {
        if !has_own_kernels(x.device()) {
            return x.add(&self.rows(ids)?);
        }
        x.inplace_op2(&self.0, &Rows { ids })?;
        Ok(x)
    }
}

impl Table {
    /// `x` and the rows of the types of all tokens added up, in the memory of `x`.
    pub(super) fn add_types(&self, x: Tensor, inputs: &[&Input]) -> Result<Tensor> {
        // Some tokenizers number the second text of a pair though the model knows one type.
        let last = u32::try_from(self.0.dim(0)?.saturating_sub(1)).map_err(candle_core::Error::wrap)?;
        let types = inputs.iter().flat_map(|input| &input.type_ids).map(|kind| *kind.min(&last)).collect();
        self.add_rows(x, types)
    }
}

struct Rows {
    ids: Vec<u32>,
}

impl Rows {
    /// Lets `each` have every row of `out` with the row of the table that belongs to it.
    fn walk(
        &self,
        out: &mut [f32],
        table: &[f32],
        width: usize,
        each: impl Fn(&mut [f32], &[f32]) + Sync,
    ) -> Result<()> {
        let count = table.len() / width.max(1);
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= count) {
            candle_core::bail!("id {id} is not in a table of {count} rows");
        }
        let tasks = out.par_chunks_exact_mut(width).zip(&self.ids).with_min_len(rows_per_task(width));
        tasks.for_each(|(out, id)| each(out, &table[*id as usize * width..][..width]));
        Ok(())
    }
}

impl candle_core::CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let mut out = vec![0.0; self.ids.len() * width];
        self.walk(&mut out, contiguous(storage, layout)?, width, |out, row| out.copy_from_slice(row))?;
        Ok((CpuStorage::F32(out), Shape::from((self.ids.len(), width))))
    }
}

impl candle_core::InplaceOp2 for Rows {
    fn name(&self) -> &'static str {
        "add-rows"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        table: &CpuStorage,
        layout: &Layout,
    ) -> Result<()> {
        let width = layout.shape().dims2()?.1;
        self.walk(contiguous_mut(x, x_layout)?, contiguous(table, layout)?, width, |out, row| {
            for (out, row) in out.iter_mut().zip(row) {
                *out += row;
            }
        })
    }
}

/// The mean over the tokens of each text: [texts, width].
pub(super) fn means_of_texts(x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    if has_own_kernels(x.device()) {
        return x.apply_op1_no_bwd(&Means { lengths });
    }
    let mut start = 0;
    let mut means = Vec::with_capacity(lengths.len());
    for length in lengths {
        // In f32: a sum of many numbers of 16 bits loses digits.
        means.push(x.narrow(0, start, *length)?.to_dtype(DType::F32)?.mean(0)?);
        start += length;
    }
    Tensor::stack(&means, 0)
}

/// The row of each text's first token: [texts, width].
pub(super) fn first_of_texts(x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
    let starts = lengths.iter().scan(0, |next, length| Some(std::mem::replace(next, *next + length)));
    let rows: Vec<u32> =
        starts.map(u32::try_from).collect::<std::result::Result<_, _>>().map_err(candle_core::Error::wrap)?;
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

struct Means<'a> {
    lengths: &'a [usize],
}

impl candle_core::CustomOp1 for Means<'_> {
    fn name(&self) -> &'static str {
        "means"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        let mut rest = contiguous(storage, layout)?;
        let mut texts = Vec::with_capacity(self.lengths.len());
        for length in self.lengths {
            let (text, after) = rest.split_at(length * width);
            texts.push(text);
            rest = after;
        }
        let mut means = vec![0.0; texts.len() * width];
        means.par_chunks_exact_mut(width.max(1)).zip(texts).for_each(|(mean, text)| {
            for row in text.chunks_exact(width) {
                for (mean, value) in mean.iter_mut().zip(row) {
                    *mean += value;
                }
            }
            let scale = 1.0 / (text.len() / width).max(1) as f32;
            for mean in mean {
                *mean *= scale;
            }
        });
        Ok((CpuStorage::F32(means), Shape::from((self.lengths.len(), width))))
    }
}

/// `activation(x)` on a device that is not the CPU, where linear layers do it themselves.
pub(super) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
        Activation::Relu => x.relu(),
    }
}

/// `activation(gate) · up` of [tokens, 2 · width], whose halves are gate and up, in this order or the other.
pub(super) fn gate(x: &Tensor, activation: Activation, gate_first: bool) -> Result<Tensor> {
    if has_own_kernels(x.device()) {
        return x.apply_op1_no_bwd(&Gate { activation, gate_first });
    }
    let width = x.dim(1)? / 2;
    let halves = [x.narrow(1, 0, width)?, x.narrow(1, width, width)?];
    let [gate, up] = if gate_first { [&halves[0], &halves[1]] } else { [&halves[1], &halves[0]] };
    activate(&gate.contiguous()?, activation)?.mul(&up.contiguous()?)
}

struct NormalizeRows<'a>(&'a Normalization);

impl candle_core::CustomOp1 for NormalizeRows<'_> {
    fn name(&self) -> &'static str {
        "normalize"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut rows = contiguous(storage, layout)?.to_vec();
        let width = self.0.values.weight.len();
        rows.par_chunks_mut(rows_per_task(width) * width).for_each(|task| {
            for row in task.chunks_exact_mut(width) {
                self.0.row(row, &[]);
            }
        });
        Ok((CpuStorage::F32(rows), layout.shape().clone()))
    }
}

impl candle_core::InplaceOp2 for NormalizeRows<'_> {
    fn name(&self) -> &'static str {
        "add-normalize"
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
        let width = self.0.values.weight.len();
        let task = rows_per_task(width) * width;
        rows.par_chunks_mut(task).zip(residual.par_chunks(task)).for_each(|(rows, residual)| {
            for (row, residual) in rows.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
                self.0.row(row, residual);
            }
        });
        Ok(())
    }
}

struct Gate {
    activation: Activation,
    gate_first: bool,
}

impl candle_core::CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let (tokens, double) = layout.shape().dims2()?;
        let width = double / 2;
        let mut result = vec![0.0; tokens * width];
        let rows = rows_per_task(width);
        result.par_chunks_mut(rows * width).zip(x.par_chunks(rows * double)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(double)) {
                let (first, second) = x.split_at(width);
                let (gate, up) = if self.gate_first { (first, second) } else { (second, first) };
                kernels::gate_row(gate, up, out, self.activation);
            }
        });
        Ok((CpuStorage::F32(result), Shape::from((tokens, width))))
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

pub(super) fn contiguous_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a row op wants a contiguous tensor of f32"),
    }
}
