//! Loops over rows, compiled for several instruction sets and chosen when the program runs.
//!
//! The bodies are plain Rust that the compiler vectorizes.

use super::dot::PANEL;
use super::level::{Level, level};
use super::math::{ROUND, exp2, fused, gelu, gelu_tanh, silu};
use super::reduce::{LANES, halve, larger, range, reduce, sum};

/// What a linear layer does with its sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum Activation {
    /// Nothing.
    #[default]
    Identity,
    /// x · Φ(x) with the exact erf.
    Gelu,
    /// The approximation of GELU by tanh: only for models that were trained with it.
    GeluTanh,
    /// x · sigmoid(x), also known as swish.
    Silu,
    /// max(x, 0).
    Relu,
}

/// The constants of a normalization: `(x + bias + residual)` normalized, times `weight`, plus `shift`.
#[derive(Debug, Clone)]
pub(in super::super) struct Norm {
    pub(in super::super) weight: Vec<f32>,
    /// None for zeros.
    pub(in super::super) shift: Option<Vec<f32>>,
    pub(in super::super) epsilon: f32,
}

/// What follows the products of one panel, by column.
#[derive(Clone, Copy, Default)]
pub(super) struct Columns {
    pub(super) bias: [f32; PANEL],
    /// Of bytes: what one unit is worth.
    pub(super) scale: [f32; PANEL],
    /// Of bytes: the sum of the column, in units of the weights.
    pub(super) sum: [f32; PANEL],
}

/// Whether an instruction set has a fused multiply-add. The compiler never makes one of two operations by itself, because the
/// result is another one.
mod fma {
    #[cfg(target_arch = "x86_64")]
    pub(super) const THERE: bool = true;
    pub(super) const MISSING: bool = false;
}

/// A function that runs its body in the best instruction set there is. `[fma]`: the body is told whether that has one.
macro_rules! by_instruction_set {
    ($(#[$doc:meta])* $name:ident = $body:ident $([$fma:ident])? ($($argument:ident: $kind:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "functions with a target feature, called after the feature was detected")]
        pub(in super::super) fn $name($($argument: $kind),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn avx512($($argument: $kind),*) $(-> $result)? {
                $body$(::<{ $fma::THERE }>)?($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $kind),*) $(-> $result)? {
                $body$(::<{ $fma::THERE }>)?($($argument),*)
            }
            match level() {
                // SAFETY: the processor has these features, as `level` found out.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: the processor has these features, as `level` found out.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                Level::Portable => $body$(::<{ $fma::MISSING }>)?($($argument),*),
            }
        }
    };
}

by_instruction_set! {
    /// What a linear layer does with the sums of some rows of one panel, which are f32 as bits.
    activate = activate_body[fma](tile: &mut [u32], activation: Activation)
}
by_instruction_set! {
    /// The same with sums of bytes, to which the bias is not added yet; the result is f32 as bits. `ranges` has scale and smallest number of each row.
    finish_int8 = finish_int8_body[fma](tile: &mut [u32], ranges: &[(f32, f32)], columns: &Columns, activation: Activation)
}
by_instruction_set! {
    /// `out = activation(gate) * up`
    gate_row = gate_row_body[fma](gate: &[f32], up: &[f32], out: &mut [f32], activation: Activation)
}
by_instruction_set! {
    /// `row = layer_norm(row + residual)`; no residual is an empty one.
    add_layer_norm = add_layer_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm)
}
by_instruction_set! {
    /// `row = rms_norm(row + residual)`; no residual is an empty one.
    add_rms_norm = add_rms_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm)
}
by_instruction_set! {
    /// `row = exp((row - max(row)) * scale)`, which is a softmax but for the division by the sum, which it gives. Minus infinity
    /// becomes as good as zero.
    softmax_exp = softmax_exp_body[fma](row: &mut [[f32; LANES]], scale: f32) -> f32
}
by_instruction_set! {
    /// `row[i] -= slope * |i + first - position|`: attention that fades with distance.
    subtract_distance = subtract_distance_body(row: &mut [f32], first: usize, position: usize, slope: f32)
}
by_instruction_set! {
    /// Divides the first `width` numbers of the rows of one panel, f32 as bits, by a number each row.
    divide_rows = divide_rows_body(tile: &mut [u32], width: usize, divisors: &[f32])
}
by_instruction_set! {
    /// What `to_bf16` does where the processor has no instruction for it.
    to_bf16_by_steps = to_bf16_body(row: &[f32], words: &mut [u32])
}
by_instruction_set! {
    /// Rounds to bf16 the numbers of two rows, which share words.
    pair_bf16 = pair_bf16_body(first: &[f32], second: &[f32], words: &mut [u32])
}
by_instruction_set! {
    /// Rounds a row to unsigned bytes, four to a word, and gives scale and smallest number: `x ≈ smallest + scale * byte`.
    quantize = quantize_body(row: &[f32], words: &mut [u32]) -> (f32, f32)
}

/// Rounds to bf16, two to a word; what is left of the last word becomes zero.
#[allow(unsafe_code, reason = "a function with a target feature, called after the feature was detected")]
pub(in super::super) fn to_bf16(row: &[f32], words: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the processor has these features.
        return unsafe { to_bf16_avx512(row, words) };
    }
    to_bf16_by_steps(row, words);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code, reason = "SIMD over pointers")]
fn to_bf16_avx512(row: &[f32], words: &mut [u32]) {
    use std::arch::x86_64::{__m256bh, _mm512_cvtneps_pbh, _mm512_loadu_ps};
    let whole = row.len() / LANES * LANES;
    let (row, rest) = row.split_at(whole);
    let (words, rest_words) = words.split_at_mut(whole / 2);
    for (row, words) in row.chunks_exact(LANES).zip(words.chunks_exact_mut(LANES / 2)) {
        // SAFETY: sixteen floats are read, and their halves fill eight words.
        unsafe {
            words
                .as_mut_ptr()
                .cast::<__m256bh>()
                .write_unaligned(_mm512_cvtneps_pbh(_mm512_loadu_ps(row.as_ptr())));
        }
    }
    to_bf16_body(rest, rest_words);
}

/// Rounds a column of weights to signed bytes and gives the scale: `x ≈ scale * byte`.
pub(super) fn quantize_symmetric(column: &[f32], bytes: &mut [i8]) -> f32 {
    let highest = column.iter().fold(0.0_f32, |highest, value| highest.max(value.abs()));
    let scale = highest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    for (byte, value) in bytes.iter_mut().zip(column) {
        #[expect(clippy::cast_possible_truncation, reason = "the quotient is between -127 and 127")]
        let rounded = (value * inverse).round() as i8;
        *byte = rounded;
    }
    scale
}

#[inline(always)]
fn finish_int8_body<const FMA: bool>(
    tile: &mut [u32],
    ranges: &[(f32, f32)],
    columns: &Columns,
    activation: Activation,
) {
    for (row, (scale, smallest)) in tile.chunks_exact_mut(PANEL).zip(ranges) {
        for (((value, factor), sum), bias) in
            row.iter_mut().zip(&columns.scale).zip(&columns.sum).zip(&columns.bias)
        {
            // Σ (smallest + scale · byte) · weight
            let product = value.cast_signed() as f32 * (scale * factor) + (smallest * sum + bias);
            *value = product.to_bits();
        }
    }
    activate_body::<FMA>(tile, activation);
}

#[inline(always)]
fn activate_body<const FMA: bool>(tile: &mut [u32], activation: Activation) {
    /// One loop for each activation: a choice inside of it could not be vectorized.
    #[inline(always)]
    fn each(tile: &mut [u32], function: impl Fn(f32) -> f32) {
        for value in tile {
            *value = function(f32::from_bits(*value)).to_bits();
        }
    }
    match activation {
        Activation::Identity => {}
        Activation::Gelu => each(tile, gelu::<FMA>),
        Activation::GeluTanh => each(tile, gelu_tanh::<FMA>),
        Activation::Silu => each(tile, silu::<FMA>),
        Activation::Relu => each(tile, |x| x.max(0.0)),
    }
}

#[inline(always)]
fn gate_row_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32], activation: Activation) {
    #[inline(always)]
    fn each(gate: &[f32], up: &[f32], out: &mut [f32], function: impl Fn(f32) -> f32) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = function(*gate) * up;
        }
    }
    match activation {
        Activation::Identity => each(gate, up, out, |x| x),
        Activation::Gelu => each(gate, up, out, gelu::<FMA>),
        Activation::GeluTanh => each(gate, up, out, gelu_tanh::<FMA>),
        Activation::Silu => each(gate, up, out, silu::<FMA>),
        Activation::Relu => each(gate, up, out, |x| x.max(0.0)),
    }
}

#[inline(always)]
fn add(row: &mut [f32], residual: &[f32]) {
    for (value, residual) in row.iter_mut().zip(residual) {
        *value += residual;
    }
}

#[inline(always)]
fn add_layer_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm) {
    add(row, residual);
    let scale = 1.0 / row.len() as f32;
    let mean = sum(row, |value| value) * scale;
    // Two passes: the difference of large squares would lose the digits of the variance.
    let variance = sum(row, |value| (value - mean) * (value - mean)) * scale;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    for (value, weight) in row.iter_mut().zip(&norm.weight) {
        *value = (*value - mean) * inverse * weight;
    }
    add(row, norm.shift.as_deref().unwrap_or_default());
}

#[inline(always)]
fn add_rms_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm) {
    add(row, residual);
    let scale = 1.0 / row.len() as f32;
    let inverse = 1.0 / (sum(row, |value| value * value) * scale + norm.epsilon).sqrt();
    for (value, weight) in row.iter_mut().zip(&norm.weight) {
        *value *= inverse * weight;
    }
}

#[inline(always)]
fn softmax_exp_body<const FMA: bool>(row: &mut [[f32; LANES]], scale: f32) -> f32 {
    let scale = scale * std::f32::consts::LOG2_E;
    // Rounded once for the whole row, which the division by the sum takes out again.
    let shift = -scale * reduce(row.as_flattened(), f32::NEG_INFINITY, |value| value, larger);
    let mut totals = [0.0; LANES];
    for lanes in row {
        for (value, total) in lanes.iter_mut().zip(&mut totals) {
            *value = exp2::<FMA>(fused::<FMA>(*value, scale, shift));
            *total += *value;
        }
    }
    halve(totals, |a, b| a + b)
}

#[inline(always)]
fn subtract_distance_body(row: &mut [f32], first: usize, position: usize, slope: f32) {
    let mut distance = first as f32 - position as f32;
    for value in row {
        *value -= slope * distance.abs();
        distance += 1.0;
    }
}

#[inline(always)]
fn divide_rows_body(tile: &mut [u32], width: usize, divisors: &[f32]) {
    for (row, divisor) in tile.chunks_exact_mut(PANEL).zip(divisors) {
        let factor = 1.0 / divisor;
        // A length that the compiler doesn't know: it would go through the rows with gathers and scatters instead.
        for value in &mut row[..width] {
            *value = (f32::from_bits(*value) * factor).to_bits();
        }
    }
}

#[inline(always)]
fn to_bf16_body(row: &[f32], words: &mut [u32]) {
    if row.len() % 2 == 1 {
        words[row.len() / 2] = 0;
    }
    // As a list of halves it is one loop over a row, which needs no shuffling.
    for (half, value) in bytemuck::cast_slice_mut::<u32, u16>(words).iter_mut().zip(row) {
        *half = bf16(*value);
    }
}

#[inline(always)]
fn pair_bf16_body(first: &[f32], second: &[f32], words: &mut [u32]) {
    for ((word, first), second) in words.iter_mut().zip(first).zip(second) {
        // The first one is where `to_bf16` puts the first of two halves.
        *word = if cfg!(target_endian = "little") {
            u32::from(bf16(*first)) | u32::from(bf16(*second)) << 16
        } else {
            u32::from(bf16(*second)) | u32::from(bf16(*first)) << 16
        };
    }
}

/// The nearest bf16, to even where two are equally near; not-a-number stays one.
#[inline(always)]
fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let bits = if value.is_nan() { 0x7fc0_0000 } else { rounded };
    (bits >> 16) as u16
}

#[inline(always)]
fn quantize_body(row: &[f32], words: &mut [u32]) -> (f32, f32) {
    let (smallest, highest) = range(row);
    let scale = (highest - smallest) / 255.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    if let Some(last) = words.last_mut() {
        *last = 0;
    }
    for (byte, value) in bytemuck::cast_slice_mut::<u32, u8>(words).iter_mut().zip(row) {
        // Adding `ROUND` rounds to a whole number, which then stands in the low bits. Not fused: bytes are the same everywhere.
        #[expect(clippy::cast_possible_truncation, reason = "the quotient is between 0 and 255")]
        let rounded = ((value - smallest) * inverse + ROUND).to_bits() as u8;
        *byte = rounded;
    }
    (scale, smallest)
}

#[cfg(test)]
mod tests {
    use super::super::level::tests::on_each_level;
    use super::super::math::tests::reference_erf;
    use super::*;

    #[test]
    fn activations_are_those_of_their_formulas() {
        type Formula = fn(f64) -> f64;
        let cases: [(Activation, Formula); 4] = [
            (Activation::Gelu, |x| 0.5 * x * (1.0 + reference_erf(x / std::f64::consts::SQRT_2))),
            (Activation::GeluTanh, |x| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }),
            (Activation::Silu, |x| x / (1.0 + (-x).exp())),
            (Activation::Relu, |x| x.max(0.0)),
        ];
        let inputs: Vec<f32> = (-50..=50_i8).map(|step| f32::from(step) / 10.0).collect();
        on_each_level(|level| {
            for (activation, formula) in cases {
                let mut gated = vec![0.0; inputs.len()];
                gate_row(&inputs, &vec![2.0; inputs.len()], &mut gated, activation);
                let mut activated: Vec<u32> = inputs.iter().map(|x| x.to_bits()).collect();
                activate(&mut activated, activation);
                for ((x, gated), activated) in inputs.iter().zip(gated).zip(activated) {
                    let expected = formula(f64::from(*x));
                    for found in [gated / 2.0, f32::from_bits(activated)] {
                        let off = (f64::from(found) - expected).abs();
                        assert!(off < 2.5e-6, "{activation:?}({x}) = {found} with {level:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn every_row_of_a_softmax_adds_up_to_its_sum_at_any_length() {
        on_each_level(|level| {
            for length in [1, 2, 15, 16, 17, 250, 512_u16] {
                let mut row: Vec<f32> = (0..length).map(|i| f32::from(i % 37) - 5.0).collect();
                let expected: Vec<f64> = row.iter().map(|x| f64::from(*x * 0.25).exp()).collect();
                row.resize(row.len().next_multiple_of(LANES), f32::NEG_INFINITY);
                let sum = f64::from(softmax_exp(row.as_chunks_mut().0, 0.25));
                let total: f64 = expected.iter().sum();
                for (value, expected) in row.iter().zip(&expected) {
                    let off = (f64::from(*value) / sum - expected / total).abs();
                    assert!(off < 1e-6, "{length} with {level:?}: off by {off}");
                }
            }
        });
    }

    #[test]
    fn layer_norm_of_a_row_has_mean_zero_and_variance_one() {
        let length = 50_u8;
        let ones = vec![1.0; usize::from(length)];
        let norm = Norm { weight: ones.clone(), shift: Some(vec![0.5; ones.len()]), epsilon: 1e-12 };
        on_each_level(|level| {
            let mut row: Vec<f32> = (0..length).map(f32::from).collect();
            add_layer_norm(&mut row, &ones, &norm);
            let mean = row.iter().sum::<f32>() / f32::from(length);
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / f32::from(length);
            assert!(
                (mean - 0.5).abs() < 1e-5 && (variance - 1.0).abs() < 1e-4,
                "mean {mean}, variance {variance} with {level:?}"
            );
        });
    }

    #[test]
    fn rms_norm_of_a_row_has_the_square_of_its_weight_for_a_mean_square() {
        let length = 50_u8;
        let ones = vec![1.0; usize::from(length)];
        let norm = Norm { weight: vec![2.0; ones.len()], shift: None, epsilon: 1e-12 };
        on_each_level(|level| {
            let mut row: Vec<f32> = (0..length).map(f32::from).collect();
            add_rms_norm(&mut row, &ones, &norm);
            let square = row.iter().map(|x| x * x).sum::<f32>() / f32::from(length);
            // The residual is added first: nothing is left at zero.
            assert!((square - 4.0).abs() < 1e-4 && row[0] > 0.0, "{square} with {level:?}");
        });
    }

    #[test]
    fn bytes_are_within_half_a_step_and_the_same_on_every_instruction_set() {
        let row: Vec<f32> = (0..67_u16).map(|number| (f32::from(number) * 12.9898).sin() * 43.7).collect();
        let made = on_each_level(|_| {
            let mut words = vec![u32::MAX; row.len().div_ceil(4)];
            let (scale, smallest) = quantize(&row, &mut words);
            (words, scale, smallest)
        });
        let (words, scale, smallest) = &made[0];
        assert!(made.iter().all(|other| *other == made[0]), "{made:?}");
        let (bytes, rest) = bytemuck::cast_slice::<u32, u8>(words).split_at(row.len());
        assert_eq!(rest, [0]);
        for (byte, value) in bytes.iter().zip(&row) {
            let off = (smallest + scale * f32::from(*byte) - value).abs();
            assert!(off <= 0.501 * *scale, "{value} is off by {off}, of steps of {scale}");
        }
    }

    #[test]
    fn rows_of_bf16_are_the_same_with_and_without_the_instruction() {
        for length in [0, 1, 15, 16, 31, 32, 100_u16] {
            let row: Vec<f32> =
                (0..length).map(|number| (f32::from(number) * 12.9898).sin() * 43.7).collect();
            let made = on_each_level(|_| {
                let (mut one, mut other) = (vec![7; row.len().div_ceil(2)], vec![9; row.len().div_ceil(2)]);
                to_bf16(&row, &mut one);
                to_bf16_by_steps(&row, &mut other);
                assert_eq!(one, other, "{length}");
                one
            });
            assert!(made.iter().all(|other| *other == made[0]), "{length}: {made:?}");
        }
    }

    #[test]
    fn bf16_rounds_to_the_nearest_even_and_keeps_what_is_no_number() {
        for (value, expected) in [
            (1.0, 0x3f80),
            (f32::from_bits(0x3f80_8000), 0x3f80),
            (f32::from_bits(0x3f81_8000), 0x3f82),
            (f32::from_bits(0x3f80_8001), 0x3f81),
            (f32::INFINITY, 0x7f80),
            (f32::NAN, 0x7fc0),
            (-0.0, 0x8000),
        ] {
            assert_eq!(bf16(value), expected, "{value}");
        }
    }
}
