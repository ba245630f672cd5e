//! Loops over one row of f32, compiled for several instruction sets and chosen when the program runs.
//!
//! The bodies are plain Rust that the compiler vectorizes; sums run in sixteen lanes, so that it may.

/// Lanes of a sum: one AVX-512 register, two of AVX2.
const LANES: usize = 16;

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
enum Level {
    Avx512,
    Avx2,
    Portable,
}

#[cfg(target_arch = "x86_64")]
fn level() -> Level {
    // std caches the answer of CPUID: this is a load and a bit test.
    if is_x86_feature_detected!("avx512f") {
        Level::Avx512
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Level::Avx2
    } else {
        Level::Portable
    }
}

/// The instruction set in use, as `/info` shows it.
pub fn name() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return match level() {
        Level::Avx512 => "avx512",
        Level::Avx2 => "avx2",
        Level::Portable => "portable",
    };
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH
}

macro_rules! by_instruction_set {
    ($(#[$doc:meta])* $name:ident = $body:ident($($argument:ident: $kind:ty),*)) => {
        $(#[$doc])*
        #[allow(unsafe_code, reason = "functions with a target feature, called after the feature was detected")]
        pub(super) fn $name($($argument: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $kind),*) {
                    $body($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $kind),*) {
                    $body($($argument),*);
                }
                match level() {
                    // SAFETY: the processor has avx512f, as `level` found out.
                    Level::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: the processor has avx2 and fma, as `level` found out.
                    Level::Avx2 => return unsafe { avx2($($argument),*) },
                    Level::Portable => {}
                }
            }
            $body($($argument),*);
        }
    };
}

by_instruction_set! {
    /// `row += bias`
    add_bias = add_bias_body(row: &mut [f32], bias: &[f32])
}
by_instruction_set! {
    /// `row = gelu(row + bias)`, the exact form with erf.
    add_bias_gelu = add_bias_gelu_body(row: &mut [f32], bias: &[f32])
}
by_instruction_set! {
    /// `row = layer_norm(row + bias + residual) * weight + shift`
    add_layer_norm = add_layer_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm)
}
by_instruction_set! {
    /// `row = softmax(row * scale)`
    softmax = softmax_body(row: &mut [f32], scale: f32)
}

/// The constants of one residual connection with layer normalization.
pub(super) struct Norm {
    pub(super) bias: Vec<f32>,
    pub(super) weight: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) epsilon: f32,
}

#[inline(always)]
fn add_bias_body(row: &mut [f32], bias: &[f32]) {
    for (value, bias) in row.iter_mut().zip(bias) {
        *value += bias;
    }
}

#[inline(always)]
fn add_bias_gelu_body(row: &mut [f32], bias: &[f32]) {
    for (value, bias) in row.iter_mut().zip(bias) {
        let x = *value + bias;
        *value = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[inline(always)]
fn add_layer_norm_body(row: &mut [f32], residual: &[f32], norm: &Norm) {
    for ((value, residual), bias) in row.iter_mut().zip(residual).zip(&norm.bias) {
        *value += residual + bias;
    }
    let scale = 1.0 / row.len() as f32;
    let mean = sum(row, |value| value) * scale;
    // Two passes: the difference of large squares would lose the digits of the variance.
    let variance = sum(row, |value| (value - mean) * (value - mean)) * scale;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    for ((value, weight), shift) in row.iter_mut().zip(&norm.weight).zip(&norm.shift) {
        *value = (*value - mean) * inverse * weight + shift;
    }
}

#[inline(always)]
fn softmax_body(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let highest = lanes.iter().chain(chunks.remainder()).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
    for value in row.iter_mut() {
        *value = exp((*value - highest) * scale);
    }
    let inverse = 1.0 / sum(row, |value| value);
    for value in row.iter_mut() {
        *value *= inverse;
    }
}

#[inline(always)]
fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += term(*value);
        }
    }
    lanes.iter().sum::<f32>() + chunks.remainder().iter().map(|value| term(*value)).sum::<f32>()
}

/// erf by a rational minimax approximation on [-4, 4], outside of which f32 can't tell it from ±1.
/// The coefficients are the well-known ones of Eigen; at most some units in the last place off.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the coefficients as published")]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_258_013_06e-10;
    for coefficient in [
        2.770_681_424_959_02e-8,
        -2.101_024_020_825_08e-6,
        -5.692_506_394_623_46e-5,
        -7.349_906_303_268_55e-4,
        -2.954_599_808_540_25e-3,
        -1.609_603_332_624_15e-2,
    ] {
        p = p * s + coefficient;
    }
    let mut q = -1.456_607_184_649_96e-5;
    for coefficient in [
        -2.133_740_552_789_05e-4,
        -1.682_826_974_382_03e-3,
        -7.373_329_167_204_68e-3,
        -1.426_473_905_141_89e-2,
    ] {
        q = q * s + coefficient;
    }
    x * p / q
}

/// exp for arguments of at most 0: 2^n · e^r with |r| ≤ ln 2 / 2, the polynomial of degree 6 in r.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "ln 2 in two parts, so that n times the first is exact")]
fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 - n * -2.121_944_40e-4;
    let mut p = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127).wrapping_shl(23);
    p * f32::from_bits(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its series in f64, exact to more digits than f32 has for |x| < 4.
    fn reference_erf(x: f64) -> f64 {
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -x * x / n;
            total += term / (2.0 * n + 1.0);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_is_the_exact_one_and_not_the_tanh_form() {
        for step in -390..390_i16 {
            let x = f32::from(step) / 100.0;
            assert!((f64::from(erf(x)) - reference_erf(f64::from(x))).abs() < 5e-7, "erf({x}) = {}", erf(x));
        }
        assert!((erf(9.0) - 1.0).abs() < 1e-6);
        assert!((erf(-9.0) + 1.0).abs() < 1e-6);
    }

    #[test]
    fn exp_has_the_precision_of_f32() {
        for step in 0..8600_u16 {
            let x = -f32::from(step) / 100.0;
            let relative = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(relative.abs() < 5e-7, "exp({x}) is off by {relative}");
        }
    }

    #[test]
    fn every_row_of_a_softmax_adds_up_to_one_at_any_length() {
        for length in [1, 2, 15, 16, 17, 250, 512_u16] {
            let mut row: Vec<f32> = (0..length).map(|i| f32::from(i % 37) - 5.0).collect();
            let expected: Vec<f64> = row.iter().map(|x| f64::from(*x * 0.25).exp()).collect();
            softmax(&mut row, 0.25);
            let total: f64 = expected.iter().sum();
            for (value, expected) in row.iter().zip(&expected) {
                assert!((f64::from(*value) - expected / total).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn layer_norm_of_a_row_has_mean_zero_and_variance_one() {
        let length = 50_u8;
        let mut row: Vec<f32> = (0..length).map(f32::from).collect();
        let ones = vec![1.0; row.len()];
        let norm =
            Norm { bias: ones.clone(), weight: ones.clone(), shift: vec![0.0; row.len()], epsilon: 1e-12 };
        add_layer_norm(&mut row, &ones, &norm);
        let mean = row.iter().sum::<f32>() / f32::from(length);
        let variance = row.iter().map(|x| x * x).sum::<f32>() / f32::from(length);
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "mean {mean}, variance {variance}");
    }
}
