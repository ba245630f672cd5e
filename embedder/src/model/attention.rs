//! Self-attention over texts that lie one behind another without padding: each text attends to itself alone. An op of our own, with
//! kernels for the CPU (`kernels`) and for GPUs (`cuda`).

#[cfg(any(feature = "cuda", test))]
use std::sync::OnceLock;

use candle_core::{CpuStorage, Layout, Result, Shape, Tensor};

use super::cuda;
use super::device::has_own_kernels;
pub(super) use super::kernels::Reach;
use super::kernels::{self, Extent, Heads, Microkernel, Strided};
use super::precision::{Place, Precision};
use super::tokens::Input;

/// Texts that lie one behind another.
pub(super) struct Texts {
    /// Tokens of each.
    pub(super) lengths: Vec<usize>,
    extents: Vec<Extent>,
    /// What the blocks of a GPU compute, the same in every layer.
    #[cfg(any(feature = "cuda", test))]
    tiles: OnceLock<Tensor>,
}

impl Texts {
    pub(super) fn of(inputs: &[&Input]) -> Self {
        Self::new(
            inputs
                .iter()
                .map(|input| Extent { length: input.len(), seen: input.len() - input.unseen })
                .collect(),
        )
    }

    fn new(extents: Vec<Extent>) -> Self {
        let lengths = extents.iter().map(|extent| extent.length).collect();
        Self {
            lengths,
            extents,
            #[cfg(any(feature = "cuda", test))]
            tiles: OnceLock::new(),
        }
    }
}

/// The attention of one layer.
pub(super) struct Attention {
    heads: Heads,
    microkernel: Microkernel,
    /// The slopes where a GPU reads them.
    #[cfg(any(feature = "cuda", test))]
    slopes: OnceLock<Tensor>,
}

impl Attention {
    /// As many heads of keys and values as of queries, `width` numbers each, scaled by `1 / sqrt(width)`; attends to the whole text.
    pub(super) fn new(heads: usize, width: usize, place: &Place) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "the width of a head is a small number")]
        let scale = 1.0 / (width as f32).sqrt();
        let heads =
            Heads { queries: heads, keys: heads, width, scale, reach: Reach::All, slopes: Vec::new() };
        Self {
            heads,
            microkernel: place.attention_microkernel,
            #[cfg(any(feature = "cuda", test))]
            slopes: OnceLock::new(),
        }
    }

    /// Fewer heads of keys and values, which neighboring heads of queries share.
    pub(super) fn with_key_heads(mut self, keys: usize) -> Self {
        self.heads.keys = keys;
        self
    }

    /// Another scale.
    pub(super) fn with_scale(mut self, scale: f32) -> Self {
        self.heads.scale = scale;
        self
    }

    /// Which tokens a token attends to.
    pub(super) fn with_reach(mut self, reach: Reach) -> Self {
        self.heads.reach = reach;
        self
    }

    /// What each token of distance costs, a number for each head of queries (ALiBi).
    pub(super) fn with_slopes(mut self, slopes: Vec<f32>) -> Self {
        self.heads.slopes = slopes;
        self
    }

    /// Attention of `qkv`: [tokens, queries, keys and values side by side].
    pub(super) fn forward(&self, qkv: &Tensor, texts: &Texts) -> Result<Tensor> {
        let (queries, keys) = (self.heads.queries * self.heads.width, self.heads.keys * self.heads.width);
        self.forward_parts(
            &qkv.narrow(1, 0, queries)?,
            &qkv.narrow(1, queries, keys)?,
            &qkv.narrow(1, queries + keys, keys)?,
            texts,
        )
    }

    /// The same for queries, keys and values as three tensors of [tokens, heads · width].
    pub(super) fn forward_parts(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        texts: &Texts,
    ) -> Result<Tensor> {
        let tokens: usize = texts.lengths.iter().sum();
        for (tensor, heads) in
            [(queries, self.heads.queries), (keys, self.heads.keys), (values, self.heads.keys)]
        {
            if tensor.dims2()? != (tokens, heads * self.heads.width) {
                candle_core::bail!(
                    "attention over {tokens} tokens with {heads} heads of {} got {:?}",
                    self.heads.width,
                    tensor.shape()
                );
            }
        }
        queries.apply_op3_no_bwd(keys, values, &Attend { attention: self, texts })
    }
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

/// Positions that attention computes for texts of `lengths` tokens beyond their tokens: none on the CPU.
pub(super) fn padding(lengths: &[usize], place: &Place) -> usize {
    match place.precision {
        _ if has_own_kernels(&place.device) => 0,
        Precision::F16 | Precision::Bf16 => {
            lengths.iter().map(|length| length.next_multiple_of(cuda::TENSOR_ROWS) - length).sum()
        }
        Precision::Auto | Precision::F32 | Precision::Int8 => 0,
    }
}

struct Attend<'a> {
    attention: &'a Attention,
    texts: &'a Texts,
}

#[cfg(any(feature = "cuda", test))]
impl Attend<'_> {
    /// What a GPU needs beside queries, keys and values.
    fn on_a_gpu(&self, device: &candle_core::Device) -> Result<cuda::Attend<'_>> {
        let heads = &self.attention.heads;
        let tiles = kept(&self.texts.tiles, || cuda::tiles(&self.texts.extents, device))?;
        let slopes = (!heads.slopes.is_empty())
            .then(|| kept(&self.attention.slopes, || Tensor::new(&heads.slopes[..], device)))
            .transpose()?;
        Ok(cuda::Attend { heads, tokens: self.texts.lengths.iter().sum(), tiles, slopes })
    }
}

#[cfg(any(feature = "cuda", test))]
fn kept(tensor: &OnceLock<Tensor>, make: impl FnOnce() -> Result<Tensor>) -> Result<&Tensor> {
    if let Some(tensor) = tensor.get() {
        return Ok(tensor);
    }
    let made = make()?;
    Ok(tensor.get_or_init(|| made))
}

impl candle_core::CustomOp3 for Attend<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Attention { heads, microkernel, .. } = self.attention;
        let tokens = self.texts.lengths.iter().sum::<usize>();
        let shape = Shape::from((tokens, heads.queries * heads.width));
        #[cfg(test)]
        if !has_own_kernels(&candle_core::Device::Cpu) {
            let parts = [(queries, queries_layout), (keys, keys_layout), (values, values_layout)];
            return Ok((self.on_a_gpu(&candle_core::Device::Cpu)?.emulated(parts)?, shape));
        }
        let parts =
            [strided(queries, queries_layout)?, strided(keys, keys_layout)?, strided(values, values_layout)?];
        let output = kernels::attend(*microkernel, parts, &self.texts.extents, heads);
        Ok((CpuStorage::F32(output), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        queries: &candle_core::CudaStorage,
        queries_layout: &Layout,
        keys: &candle_core::CudaStorage,
        keys_layout: &Layout,
        values: &candle_core::CudaStorage,
        values_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let attend = self.on_a_gpu(&candle_core::Device::Cuda(queries.device.clone()))?;
        let output = attend.run([(queries, queries_layout), (keys, keys_layout), (values, values_layout)])?;
        Ok((output, Shape::from((attend.tokens, attend.heads.queries * attend.heads.width))))
    }
}

/// A matrix whose rows are contiguous: whole, or some columns of a wider one.
fn strided<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Strided<'a>> {
    match (storage, layout.stride()) {
        (CpuStorage::F32(values), [row, 1]) => {
            Ok(Strided { values: &values[layout.start_offset()..], row: *row })
        }
        _ => candle_core::bail!("attention wants rows of f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::device::tests::generally;
    use candle_core::{DType, Device};

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        let twelve = slopes(12);
        assert_eq!(twelve.len(), 12);
        for (found, expected) in twelve[8..].iter().zip([0.5, 1.5, 2.5, 3.5].map(|n: f32| 2_f32.powf(-n))) {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }

    /// What the kernels for GPUs and those for the CPU make of the same random numbers of a format.
    fn compare(attention: &Attention, extents: &[(usize, usize)], dtype: DType, seed: u64) {
        let Heads { queries, keys, width, .. } = attention.heads;
        let tokens: usize = extents.iter().map(|(length, _)| length).sum();
        let row = (queries + 2 * keys) * width;
        let numbers = (0..tokens * row).map(|n| ((n as f32 + seed as f32) * 12.9898).sin() * 2.0);
        let numbers = Tensor::from_vec(numbers.collect::<Vec<f32>>(), (tokens, row), &Device::Cpu).unwrap();
        let numbers = numbers.to_dtype(dtype).unwrap();
        let extents = extents.iter().map(|(length, seen)| Extent { length: *length, seen: *seen });
        let texts = Texts::new(extents.collect());
        let own = attention.forward(&numbers.to_dtype(DType::F32).unwrap(), &texts).unwrap();
        let general = generally(|| attention.forward(&numbers, &texts)).unwrap();
        assert_eq!(general.dtype(), dtype);
        // Weights and sums are rounded to the format's digits.
        let most = match dtype {
            DType::F32 => 1e-5,
            DType::F16 => 2e-3,
            _ => 1.6e-2,
        };
        let off = (own - general.to_dtype(DType::F32).unwrap()).unwrap().flatten_all().unwrap();
        for off in off.to_vec1::<f32>().unwrap() {
            // What is no number is not below it either.
            assert!(
                off.abs() < most,
                "{:?} of {:?} in {dtype:?}: off by {off}",
                attention.heads,
                texts.extents
            );
        }
    }

    #[test]
    fn the_kernels_of_gpus_give_what_those_of_the_cpu_do() {
        let place = Place::new(Device::Cpu, Precision::F32).unwrap();
        let reaches = [Reach::All, Reach::Before, Reach::Within(5), Reach::Window(9)];
        // Of each kernel, with heads that fill it and others; words of 16 bytes, and less.
        let widths = [
            (4, 2, 8),
            (1, 1, 32),
            (2, 1, 26),
            (2, 2, 64),
            (3, 1, 72),
            (2, 1, 128),
            (1, 1, 256),
            (1, 1, 131),
        ];
        // Texts that end within, at and behind the bounds of tiles; some with tokens that nobody sees.
        let extents = [(1, 1), (70, 40), (0, 0), (64, 64), (17, 3)];
        for (index, (heads, keys, width)) in widths.into_iter().enumerate() {
            for (other, reach) in reaches.into_iter().enumerate() {
                let fading = (index + other) % 2 == 0;
                let attention = Attention::new(heads, width, &place)
                    .with_key_heads(keys)
                    .with_reach(reach)
                    .with_slopes(if fading { slopes(heads) } else { Vec::new() });
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    compare(&attention, &extents, dtype, (index * 10 + other) as u64);
                }
            }
        }
    }

    #[test]
    fn a_head_that_is_too_wide_for_a_gpu_is_refused() {
        let place = Place::new(Device::Cpu, Precision::F32).unwrap();
        let qkv = Tensor::zeros((3, 3 * 257), DType::F32, &Device::Cpu).unwrap();
        let texts = Texts::new(vec![Extent { length: 3, seen: 3 }]);
        let refused = generally(|| Attention::new(1, 257, &place).forward(&qkv, &texts)).unwrap_err();
        assert!(
            refused.to_string().contains("heads of 257 numbers: a GPU computes those of at most 256"),
            "{refused}"
        );
    }

    #[test]
    fn in_16_bits_a_gpu_computes_texts_in_multiples_of_16_tokens() {
        let lengths = [1, 16, 30];
        let on_a_gpu =
            |precision| generally(|| padding(&lengths, &Place::new(Device::Cpu, precision).unwrap()));
        assert_eq!((on_a_gpu(Precision::Bf16), on_a_gpu(Precision::F32)), (15 + 2, 0));
        assert_eq!(padding(&lengths, &Place::new(Device::Cpu, Precision::F32).unwrap()), 0);
    }
}
