//! Sums and extremes of rows, in registers instead of one number at a time, so that the compiler may vectorize them. Loops inline
//! these: the instruction set is theirs.

/// Lanes of a register of AVX-512; two of AVX2.
pub(super) const LANES: usize = 16;

/// The smallest and the largest number of a row.
#[inline(always)]
pub(super) fn range(row: &[f32]) -> (f32, f32) {
    // Two registers for each of them, because each waits for what was compared before.
    let [mut low, mut lower] = [[f32::INFINITY; LANES]; 2];
    let [mut high, mut higher] = [[f32::NEG_INFINITY; LANES]; 2];
    let (registers, rest) = row.as_chunks::<LANES>();
    let (pairs, last) = registers.as_chunks::<2>();
    for [first, second] in pairs {
        for index in 0..LANES {
            low[index] = smaller(low[index], first[index]);
            high[index] = larger(high[index], first[index]);
            lower[index] = smaller(lower[index], second[index]);
            higher[index] = larger(higher[index], second[index]);
        }
    }
    for register in last {
        for index in 0..LANES {
            low[index] = smaller(low[index], register[index]);
            high[index] = larger(high[index], register[index]);
        }
    }
    for index in 0..LANES {
        low[index] = smaller(low[index], lower[index]);
        high[index] = larger(high[index], higher[index]);
    }
    rest.iter().fold((halve(low, smaller), halve(high, larger)), |(low, high), value| {
        (smaller(low, *value), larger(high, *value))
    })
}

#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
pub(super) fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    reduce(row, 0.0, term, |a, b| a + b)
}

/// The terms of a row combined, in any order, beginning with `start`, which changes nothing.
#[inline(always)]
pub(super) fn reduce(
    row: &[f32],
    start: f32,
    term: impl Fn(f32) -> f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    // Four registers, because each waits for what was combined before.
    let [mut a, mut b, mut c, mut d] = [[start; LANES]; 4];
    let (registers, rest) = row.as_chunks::<LANES>();
    let (fours, registers) = registers.as_chunks::<4>();
    for [first, second, third, fourth] in fours {
        for index in 0..LANES {
            a[index] = combine(a[index], term(first[index]));
            b[index] = combine(b[index], term(second[index]));
            c[index] = combine(c[index], term(third[index]));
            d[index] = combine(d[index], term(fourth[index]));
        }
    }
    for index in 0..LANES {
        a[index] = combine(combine(a[index], b[index]), combine(c[index], d[index]));
    }
    for register in registers {
        for index in 0..LANES {
            a[index] = combine(a[index], term(register[index]));
        }
    }
    rest.iter().fold(halve(a, &combine), |result, value| combine(result, term(*value)))
}

/// All lanes combined, half of them with the other half at a time.
#[inline(always)]
pub(super) fn halve(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for index in 0..half {
            lanes[index] = combine(lanes[index], lanes[index + half]);
        }
        half /= 2;
    }
    lanes[0]
}
