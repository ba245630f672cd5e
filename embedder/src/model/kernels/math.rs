//! Functions of single numbers, which loops over rows inline: the instruction set is theirs, and `FMA` says whether it has a
//! fused multiply-add.

/// `a * b + c`, in one step where there is an instruction for it: anywhere else that would be a slow function.
#[inline(always)]
pub(super) fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA || cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
pub(super) fn gelu<const FMA: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fused::<FMA>(half, erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

#[inline(always)]
pub(super) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    // 1 + tanh(y) = 2 · sigmoid(2y)
    let y = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp::<FMA>(-2.0 * y))
}

#[inline(always)]
pub(super) fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// erf by a rational minimax approximation on [-4, 4], outside of which f32 can't tell it from ±1.
/// The coefficients are the well-known ones of Eigen; at most some units in the last place off.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the coefficients as published")]
fn erf<const FMA: bool>(x: f32) -> f32 {
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
        p = fused::<FMA>(p, s, coefficient);
    }
    let mut q = -1.456_607_184_649_96e-5;
    for coefficient in [
        -2.133_740_552_789_05e-4,
        -1.682_826_974_382_03e-3,
        -7.373_329_167_204_68e-3,
        -1.426_473_905_141_89e-2,
    ] {
        q = fused::<FMA>(q, s, coefficient);
    }
    x * p / q
}

/// 1.5 · 2^23: what is added to a small float to round it to a whole number, which then stands in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// exp between -87 and 88: 2^n · e^r with |r| ≤ ln 2 / 2, the polynomial of degree 6 in r.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "ln 2 in two parts, so that n times the first is exact")]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = fused::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fused::<FMA>(n, 2.121_944_40e-4, fused::<FMA>(n, -0.693_359_375, x));
    let mut p = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fused::<FMA>(p, r, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127).wrapping_shl(23);
    p * f32::from_bits(exponent)
}

/// 2^x for x between -100 and 127, and 2^-100 below: 2^n · 2^r with |r| ≤ 1/2, the minimax polynomial of degree 5 in r, which is
/// off by 7.5e-8 of the result.
#[inline(always)]
pub(super) fn exp2<const FMA: bool>(x: f32) -> f32 {
    // As good as zero where the largest is one, and far from where numbers have fewer digits and processors are slow.
    let x = if x > -100.0 { x } else { -100.0 };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.327_647_2e-3;
    for coefficient in [9.675_541e-3, 5.550_713e-2, 0.240_221_2, 0.693_146_97, 1.000_000_1] {
        p = fused::<FMA>(p, r, coefficient);
    }
    // The low bits of `shifted` are n, and those of `ROUND` itself leave the word.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// erf by its series in f64, exact to more digits than f32 has for |x| < 4.
    pub(in super::super) fn reference_erf(x: f64) -> f64 {
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
        for erf in [erf::<false>, erf::<true>] {
            for step in -390..390_i16 {
                let x = f32::from(step) / 100.0;
                assert!(
                    (f64::from(erf(x)) - reference_erf(f64::from(x))).abs() < 5e-7,
                    "erf({x}) = {}",
                    erf(x)
                );
            }
            assert!((erf(9.0) - 1.0).abs() < 1e-6);
            assert!((erf(-9.0) + 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn exp2_has_the_precision_of_f32_and_is_as_good_as_zero_below() {
        for exp2 in [exp2::<false>, exp2::<true>] {
            for step in -10_000..12_690_i16 {
                let x = f32::from(step) / 100.0;
                let relative = f64::from(exp2(x)) / f64::from(x).exp2() - 1.0;
                assert!(relative.abs() < 3e-7, "2^{x} is off by {relative}");
            }
            assert!((0.0..1e-30).contains(&exp2(f32::NEG_INFINITY)));
        }
    }

    #[test]
    fn exp_has_the_precision_of_f32() {
        for exp in [exp::<false>, exp::<true>] {
            for step in -8600..8700_i16 {
                let x = f32::from(step) / 100.0;
                let relative = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
                assert!(relative.abs() < 5e-7, "exp({x}) is off by {relative}");
            }
        }
    }
}
