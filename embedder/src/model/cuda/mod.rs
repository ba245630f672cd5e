//! Attention on a GPU: kernels of our own (`attention.cu`), which take texts of any lengths as they lie one behind another. candle
//! loads them as it does its own. Where there is no GPU, a test runs them on the CPU (`emulation`).

#[cfg(feature = "cuda")]
mod card;
#[cfg(test)]
mod emulation;

/// Tensor cores compute so many rows at once.
pub(super) const TENSOR_ROWS: usize = 16;

#[cfg(any(feature = "cuda", test))]
pub(super) use launch::{Attend, tiles};

/// What the kernels are told.
#[cfg(any(feature = "cuda", test))]
mod launch {
    use candle_core::{DType, Device, Layout, Result, Tensor};

    use crate::model::kernels::{Extent, Heads, Reach};

    /// Rows of a block: `ROWS` of `attention.cu`.
    const ROWS: usize = 64;

    /// For heads of so many numbers there are kernels.
    const WIDTHS: [usize; 4] = [32, 64, 128, 256];

    /// One layer's attention.
    pub(in crate::model) struct Attend<'a> {
        pub(in crate::model) heads: &'a Heads,
        pub(in crate::model) tokens: usize,
        /// What [`tiles`] gives.
        pub(in crate::model) tiles: &'a Tensor,
        /// What each token of distance costs, by query head.
        pub(in crate::model) slopes: Option<&'a Tensor>,
    }

    /// The blocks of texts, the longest texts first, so that no long one is left to the end: [blocks, 4], of each the text's first
    /// token, its tokens, how many of these are seen, and the first row.
    pub(in crate::model) fn tiles(texts: &[Extent], device: &Device) -> Result<Tensor> {
        let starts = texts.iter().scan(0, |next, text| Some(std::mem::replace(next, *next + text.length)));
        let mut texts: Vec<(usize, &Extent)> = starts.zip(texts).collect();
        texts.sort_by_key(|(_, text)| std::cmp::Reverse(text.length));
        let mut tiles = Vec::new();
        for (start, text) in texts {
            for row in (0..text.length).step_by(ROWS) {
                for number in [start, text.length, text.seen, row] {
                    tiles.push(u32::try_from(number).map_err(candle_core::Error::wrap)?);
                }
            }
        }
        let count = tiles.len() / 4;
        Tensor::from_vec(tiles, (count, 4), device)
    }

    /// Where the tensors are in the memory of the device: those of queries, keys and values, of the output, of the tiles, and of the
    /// slopes where there are any.
    pub(super) struct Addresses {
        pub(super) parts: [u64; 3],
        pub(super) output: u64,
        pub(super) tiles: u64,
        pub(super) slopes: Option<u64>,
    }

    /// `Parameters` of `attention.cu`.
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Parameters {
        parts: [u64; 3],
        output: u64,
        tiles: u64,
        slopes: u64,
        strides: [u32; 3],
        width: u32,
        share: u32,
        before: u32,
        after: u32,
        scale: f32,
    }

    /// A kernel, and with what it is started.
    pub(super) struct Launch {
        /// Its name in `attention.cu`.
        pub(super) kernel: String,
        /// Tiles and heads.
        pub(super) blocks: [u32; 2],
        /// Threads of a block.
        pub(super) threads: u32,
        pub(super) parameters: Parameters,
    }

    impl Attend<'_> {
        /// Numbers of the output: [tokens, heads.queries * heads.width].
        pub(super) fn outputs(&self) -> usize {
            self.tokens * self.heads.queries * self.heads.width
        }

        pub(super) fn launch(&self, dtype: DType, layouts: [&Layout; 3], at: &Addresses) -> Result<Launch> {
            let Heads { queries, keys, width, scale, reach, .. } = *self.heads;
            let Some(kernel) = WIDTHS.into_iter().find(|kernel| *kernel >= width) else {
                candle_core::bail!(
                    "heads of {width} numbers: a GPU computes those of at most {}",
                    WIDTHS[WIDTHS.len() - 1]
                );
            };
            let (name, threads) = match dtype {
                DType::F32 => ("f32", ROWS * kernel / 32),
                DType::F16 => ("f16", ROWS / super::TENSOR_ROWS * 32),
                DType::BF16 => ("bf16", ROWS / super::TENSOR_ROWS * 32),
                other => candle_core::bail!("attention on a GPU is for f32, f16 and bf16, not for {other:?}"),
            };
            let number = |value: usize| u32::try_from(value).map_err(candle_core::Error::wrap);
            let mut strides = [0; 3];
            for (stride, layout) in strides.iter_mut().zip(layouts) {
                let [row, 1] = layout.stride() else { candle_core::bail!("attention wants contiguous rows") };
                *stride = number(*row)?;
            }
            // No text is as long as the largest number.
            let most = |distance| u32::try_from(distance).unwrap_or(u32::MAX);
            let (before, after) = match reach {
                Reach::All => (u32::MAX, u32::MAX),
                Reach::Before => (u32::MAX, 0),
                Reach::Within(distance) => (most(distance), most(distance)),
                Reach::Window(distance) => (most(distance), 0),
            };
            let parameters = Parameters {
                parts: at.parts,
                output: at.output,
                tiles: at.tiles,
                slopes: at.slopes.unwrap_or(0),
                strides,
                width: number(width)?,
                share: number(queries / keys)?,
                before,
                after,
                scale,
            };
            Ok(Launch {
                kernel: format!("attention_{name}_{kernel}"),
                blocks: [number(self.tiles.dim(0)?)?, number(queries)?],
                threads: number(threads)?,
                parameters,
            })
        }
    }
}
