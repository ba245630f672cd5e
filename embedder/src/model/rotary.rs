//! Rotary position embedding: pairs of numbers of a head are turned by an angle that grows with the token's position.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use rayon::prelude::*;

use super::device::has_own_kernels;
use super::ops;
use super::plan::{Rotation, Stretch};
use super::precision::Place;

/// Cosines and sines of positions, for heads whose number i is paired with number i + half of the width.
pub(super) struct Rotary {
    rotation: Rotation,
    /// Numbers of a head.
    width: usize,
    /// The longest text.
    positions: usize,
    /// Of all texts but those that have angles of their own.
    angles: Angles,
    tables: [Tensor; 2],
    dtype: DType,
}

/// [positions, half of a head's width]
struct Angles {
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Angles {
    fn new(rotation: Rotation, width: usize, length: usize) -> Self {
        let frequencies = rotation.frequencies(width, length);
        let table = |function: fn(f64) -> f64| -> Vec<f32> {
            let angles = (0..length)
                .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
            #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
            let values = angles.map(|angle| function(angle) as f32).collect();
            values
        };
        Self { cosines: table(f64::cos), sines: table(f64::sin) }
    }
}

impl Rotary {
    /// For heads of `width` numbers in texts of at most `positions` tokens.
    pub(super) fn new(rotation: Rotation, width: usize, positions: usize, place: &Place) -> Result<Self> {
        let usual = match rotation.stretch {
            Stretch::WithLength { trained, .. } => trained.min(positions),
            Stretch::None | Stretch::Fixed(_) => positions,
        };
        let angles = Angles::new(rotation, width, usual);
        let tensor = |values: &[f32]| {
            Tensor::from_slice(values, (usual, width / 2), &place.device)?.to_dtype(place.dtype())
        };
        let tables = [tensor(&angles.cosines)?, tensor(&angles.sines)?];
        Ok(Self { rotation, width, positions, angles, tables, dtype: place.dtype() })
    }

    /// Turns the first `heads` heads of every row of `x`, in the memory of `x`, which nothing else may use: of queries, keys
    /// and values side by side, those of queries and keys.
    pub(super) fn forward(&self, x: Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
        if let Some(longest) = lengths.iter().max().filter(|it| **it > self.positions) {
            candle_core::bail!("a text of {longest} tokens is longer than the table of positions");
        }
        // Made anew in every layer, which is a hundredth of what such a text costs there.
        let own: Vec<Option<Angles>> = lengths
            .iter()
            .map(|length| {
                let stretched = self.rotation.is_stretched_at(*length);
                stretched.then(|| Angles::new(self.rotation, self.width, *length))
            })
            .collect();
        let angles: Vec<&Angles> = own.iter().map(|own| own.as_ref().unwrap_or(&self.angles)).collect();
        if !has_own_kernels(x.device()) {
            return self.elsewhere(&x, lengths, &angles, heads);
        }
        x.inplace_op1(&Turn { width: self.width, lengths, angles: &angles, heads })?;
        Ok(x)
    }

    /// With candle's functions.
    fn elsewhere(&self, x: &Tensor, lengths: &[usize], angles: &[&Angles], heads: usize) -> Result<Tensor> {
        let (tokens, row) = x.dims2()?;
        let (turned, half) = (heads * self.width, self.width / 2);
        let [cosines, sines] = if angles.iter().all(|angles| std::ptr::eq(*angles, &raw const self.angles)) {
            let positions: Vec<u32> = lengths.iter().flat_map(|length| (0..).take(*length)).collect();
            let positions = Tensor::new(positions, x.device())?;
            [self.tables[0].index_select(&positions, 0)?, self.tables[1].index_select(&positions, 0)?]
        } else {
            let gather = |part: fn(&Angles) -> &[f32]| {
                let rows =
                    angles.iter().zip(lengths).flat_map(|(angles, length)| &part(angles)[..length * half]);
                let rows: Vec<f32> = rows.copied().collect();
                Tensor::from_vec(rows, (tokens, half), x.device())?.to_dtype(self.dtype)
            };
            [gather(|angles| &angles.cosines)?, gather(|angles| &angles.sines)?]
        };
        let (cosines, sines) = (cosines.unsqueeze(1)?, sines.unsqueeze(1)?);
        let parts = x.narrow(1, 0, turned)?.reshape((tokens, heads, self.width))?;
        let (first, second) = (parts.narrow(2, 0, half)?, parts.narrow(2, half, half)?);
        let turned_first = (first.broadcast_mul(&cosines)? - second.broadcast_mul(&sines)?)?;
        let turned_second = (second.broadcast_mul(&cosines)? + first.broadcast_mul(&sines)?)?;
        let parts = Tensor::cat(&[turned_first, turned_second], 2)?.reshape((tokens, turned))?;
        if turned == row {
            return Ok(parts);
        }
        Tensor::cat(&[parts, x.narrow(1, turned, row - turned)?], 1)
    }
}

struct Turn<'a> {
    width: usize,
    lengths: &'a [usize],
    /// Of each text.
    angles: &'a [&'a Angles],
    heads: usize,
}

impl candle_core::InplaceOp1 for Turn<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let row = layout.shape().dims2()?.1;
        let rows = ops::contiguous_mut(storage, layout)?;
        let half = self.width / 2;
        let places: Vec<(&Angles, usize)> = self
            .angles
            .iter()
            .zip(self.lengths)
            .flat_map(|(angles, length)| (0..*length).map(|position| (*angles, position)))
            .collect();
        rows.par_chunks_exact_mut(row).zip(places).with_min_len(16).for_each(|(row, (angles, position))| {
            let place = position * half..(position + 1) * half;
            let (cosines, sines) = (&angles.cosines[place.clone()], &angles.sines[place]);
            for head in row.chunks_exact_mut(self.width).take(self.heads) {
                let (first, second) = head.split_at_mut(half);
                for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                    (*x, *y) = (*x * cosine - *y * sine, *y * cosine + *x * sine);
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::precision::Precision;
    use candle_core::Device;

    #[test]
    fn every_token_is_turned_by_its_position_in_its_own_text() {
        let place = Place::new(Device::Cpu, Precision::F32).unwrap();
        // A text of three tokens is one too long, and has angles of its own.
        let stretch = Stretch::WithLength { factor: 2.0, trained: 2 };
        for (stretch, long_base) in [(Stretch::None, 100_f32), (stretch, 400.0)] {
            let rotary = Rotary::new(Rotation { base: 100.0, stretch }, 4, 8, &place).unwrap();
            let lengths = [3, 2];
            let make = || Tensor::arange(0_f32, 60.0, &Device::Cpu).unwrap().reshape((5, 12)).unwrap();
            let own = rotary.forward(make(), &lengths, 2).unwrap().to_vec2::<f32>().unwrap();
            let long = Angles::new(rotary.rotation, 4, 3);
            let angles = [if stretch == Stretch::None { &rotary.angles } else { &long }, &rotary.angles];
            let general = rotary.elsewhere(&make(), &lengths, &angles, 2).unwrap().to_vec2::<f32>().unwrap();
            let before = make().to_vec2::<f32>().unwrap();
            for (token, position) in [0_u8, 1, 2, 0, 1].into_iter().enumerate() {
                let base = if token < 3 { long_base } else { 100.0 };
                for head in 0..2 {
                    for pair in 0..2 {
                        let angle = f32::from(position) / base.powf(if pair == 0 { 0.0 } else { 0.5 });
                        let (x, y) = (before[token][head * 4 + pair], before[token][head * 4 + pair + 2]);
                        let expected = [x * angle.cos() - y * angle.sin(), y * angle.cos() + x * angle.sin()];
                        for got in [&own, &general] {
                            assert!((got[token][head * 4 + pair] - expected[0]).abs() < 1e-4);
                            assert!((got[token][head * 4 + pair + 2] - expected[1]).abs() < 1e-4);
                        }
                    }
                }
                assert_eq!(own[token][8..], before[token][8..]);
                assert_eq!(general[token][8..], before[token][8..]);
            }
        }
    }
}
