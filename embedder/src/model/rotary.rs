//! Rotary position embedding: pairs of numbers of a head are turned by an angle that grows with the token's position.

use candle_core::{CpuStorage, Layout, Result, Tensor};
use rayon::prelude::*;

use super::ops;
use super::precision::Place;

/// Cosines and sines of all positions, for heads whose number i is paired with number i + half of the width.
pub(super) struct Rotary {
    /// Numbers of a head.
    width: usize,
    /// [positions, half of the width]
    cosines: Vec<f32>,
    sines: Vec<f32>,
    tables: [Tensor; 2],
}

impl Rotary {
    /// For texts of at most `positions` tokens; `frequencies` are the angles of one position, one for each pair.
    pub(super) fn new(frequencies: &[f64], positions: usize, place: &Place) -> Result<Self> {
        let half = frequencies.len();
        let table = |function: fn(f64) -> f64| -> Vec<f32> {
            let angles = (0..positions)
                .flat_map(|position| frequencies.iter().map(move |frequency| position as f64 * frequency));
            #[expect(clippy::cast_possible_truncation, reason = "the computation is in f32")]
            let values = angles.map(|angle| function(angle) as f32).collect();
            values
        };
        let (cosines, sines) = (table(f64::cos), table(f64::sin));
        let tensor = |values: &[f32]| {
            Tensor::from_slice(values, (positions, half), &place.device)?.to_dtype(place.dtype())
        };
        Ok(Self { width: half * 2, tables: [tensor(&cosines)?, tensor(&sines)?], cosines, sines })
    }

    /// Turns the first `heads` heads of every row of `x`, in the memory of `x`, which nothing else may use: of queries, keys
    /// and values side by side, those of queries and keys.
    pub(super) fn forward(&self, x: Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
        if let Some(longest) = lengths.iter().max().filter(|it| **it * self.width / 2 > self.cosines.len()) {
            candle_core::bail!("a text of {longest} tokens is longer than the table of positions");
        }
        if !x.device().is_cpu() {
            return self.elsewhere(&x, lengths, heads);
        }
        x.inplace_op1(&Turn { rotary: self, lengths, heads })?;
        Ok(x)
    }

    /// With candle's functions.
    fn elsewhere(&self, x: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
        let (tokens, row) = x.dims2()?;
        let (turned, half) = (heads * self.width, self.width / 2);
        let positions: Vec<u32> = lengths.iter().flat_map(|length| (0..).take(*length)).collect();
        let positions = Tensor::new(positions, x.device())?;
        let pick = |table: &Tensor| table.index_select(&positions, 0)?.unsqueeze(1);
        let (cosines, sines) = (pick(&self.tables[0])?, pick(&self.tables[1])?);
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
    rotary: &'a Rotary,
    lengths: &'a [usize],
    heads: usize,
}

impl candle_core::InplaceOp1 for Turn<'_> {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let row = layout.shape().dims2()?.1;
        let rows = ops::contiguous_mut(storage, layout)?;
        let Rotary { width, ref cosines, ref sines, .. } = *self.rotary;
        let half = width / 2;
        let positions: Vec<usize> = self.lengths.iter().flat_map(|length| 0..*length).collect();
        rows.par_chunks_exact_mut(row).zip(positions).with_min_len(16).for_each(|(row, position)| {
            let angles = position * half..(position + 1) * half;
            let (cosines, sines) = (&cosines[angles.clone()], &sines[angles]);
            for head in row.chunks_exact_mut(width).take(self.heads) {
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
        let rotary = Rotary::new(&[1.0, 0.1], 8, &place).unwrap();
        let lengths = [3, 2];
        let make = || Tensor::arange(0_f32, 60.0, &Device::Cpu).unwrap().reshape((5, 12)).unwrap();
        let own = rotary.forward(make(), &lengths, 2).unwrap().to_vec2::<f32>().unwrap();
        let general = rotary.elsewhere(&make(), &lengths, 2).unwrap().to_vec2::<f32>().unwrap();
        let before = make().to_vec2::<f32>().unwrap();
        for (token, position) in [0_u8, 1, 2, 0, 1].into_iter().enumerate() {
            for head in 0..2 {
                for pair in 0..2 {
                    let angle = f32::from(position) / 100_f32.powf(if pair == 0 { 0.0 } else { 0.5 });
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
