//! Microkernels: products of a few rows with one panel of 32 columns, which stay in registers until the sum is complete.
//!
//! All formats are seen as words of 32 bits: one f32, two bf16 or four bytes, whose products are added to the same lane. So
//! the loop is the same for every format and instruction set, and only the instruction in its middle differs.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Columns of a panel: two registers of AVX-512, four of AVX2.
pub(in super::super) const PANEL: usize = 32;

/// How numbers are multiplied. Sums are f32, or whole numbers of 32 bits for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Format {
    /// 32-bit floats, as the weights usually are.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// Unsigned bytes on the left, signed bytes on the right.
    Int8,
}

impl Format {
    /// Numbers in a word.
    pub(in super::super) const fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Words that hold `count` numbers, the last one filled up with zeros.
    pub(in super::super) const fn words(self, count: usize) -> usize {
        count.div_ceil(self.per_word())
    }
}

/// Where a microkernel reads and writes. Rows of the left side lie `left_row` words apart, rows of the output `output_row`.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) left: *const u32,
    pub(super) left_row: usize,
    /// The panel: `words` times 32 words.
    pub(super) panel: *const u32,
    pub(super) words: usize,
    /// What the sums of every row begin with: 32 of them, such as a bias.
    pub(super) start: *const u32,
    pub(super) output: *mut u32,
    pub(super) output_row: usize,
}

/// Sums that begin with zero.
pub(super) const ZEROS: &[u32; PANEL] = &[0; PANEL];

type Function = unsafe fn(Operands);

/// One way to multiply in one format.
#[derive(Clone, Copy)]
pub(in super::super) struct Microkernel {
    /// The instruction set, as `/info` shows it.
    pub(in super::super) name: &'static str,
    pub(in super::super) format: Format,
    /// Whether this processor has the instructions.
    available: fn() -> bool,
    /// The function for one row, for two, …
    by_rows: &'static [Function],
}

impl Microkernel {
    /// The fastest one for `format` on this processor.
    pub(in super::super) fn best(format: Format) -> Self {
        Self::all(format).next().unwrap_or(PORTABLE_F32)
    }

    /// The one for bf16, or the one for f32 where that is faster: some processors take two steps for an instruction of bf16. Found
    /// out by trying, once.
    pub(in super::super) fn best_for_16_bits() -> Self {
        static CHOSEN: OnceLock<Microkernel> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let [bf16, f32] = [Format::Bf16, Format::F32].map(Self::best);
            if bf16.time() < f32.time() { bf16 } else { f32 }
        })
    }

    /// What a row of a product takes, at best.
    #[allow(unsafe_code, reason = "a microkernel takes pointers")]
    fn time(self) -> Duration {
        const INNER: usize = 384;
        let (rows, words) = (self.rows(), self.format.words(INNER));
        let (left, panel) = (vec![0; rows * words], vec![0; words * PANEL]);
        let mut output = vec![0; rows * PANEL];
        let mut round = || {
            let started = Instant::now();
            for _ in 0..32 {
                let operands = Operands {
                    left: left.as_ptr(),
                    left_row: words,
                    panel: panel.as_ptr(),
                    words,
                    start: ZEROS.as_ptr(),
                    output: output.as_mut_ptr(),
                    output_row: PANEL,
                };
                // SAFETY: there are `rows` rows of `words` words, a panel of as many, and an output of `rows` panels.
                unsafe { self.run(rows, operands) };
            }
            started.elapsed()
        };
        let best = (0..16).map(|_| round()).min().unwrap_or_default();
        best / u32::try_from(rows).unwrap_or(u32::MAX)
    }

    /// Those for `format` that this processor can run, the fastest one first. The last one runs everywhere.
    pub(in super::super) fn all(format: Format) -> impl Iterator<Item = Self> {
        MICROKERNELS.iter().copied().filter(move |it| it.format == format && (it.available)())
    }

    /// The most rows of one call.
    pub(super) fn rows(self) -> usize {
        self.by_rows.len()
    }

    /// `output[r][c] = start[c] + Σ left[r][w] · panel[w][c]` for `rows` rows and 32 columns, in words.
    ///
    /// # Safety
    /// `rows` is at most `self.rows()`; the left side may be read and the output written at every row for `words` and 32
    /// words, the panel may be read for `words * 32` words and the start for 32; the output overlaps none of them and nobody else
    /// uses it.
    #[allow(
        unsafe_code,
        reason = "pointers, because rows of an output are shared between threads by columns"
    )]
    #[inline]
    pub(super) unsafe fn run(self, rows: usize, operands: Operands) {
        if let Some(function) = rows.checked_sub(1).and_then(|index| self.by_rows.get(index)) {
            // SAFETY: the caller promises the pointers; a microkernel is only given out where its instructions are available.
            unsafe { function(operands) }
        }
    }
}

/// The loop of every microkernel: `$begin`s the sums, `$load`s the registers of a panel's row, `$splat`s a word of the left side and `$add`s
/// their products, for one group of registers after another: with few registers, more rows of half a panel are better than
/// fewer of a whole one. No closures: they would not inherit the instruction set through functions of the standard library.
macro_rules! microkernel {
    (
        $(#[target_feature(enable = $features:literal)])? $name:ident, $sum:ty, [$([$($offset:literal),+]),+],
        $begin:ident, $load:ident, $splat:ident, $add:ident, $store:ident
    ) => {
        #[allow(unsafe_code, reason = "SIMD over pointers")]
        $(#[target_feature(enable = $features)])?
        unsafe fn $name<const ROWS: usize>(operands: Operands) {
            let Operands { left, left_row, panel, words, start, output, output_row } = operands;
            $({
                const OFFSETS: &[usize] = &[$($offset),+];
                // SAFETY: whoever calls `Microkernel::run` vouches for 32 words.
                let first: [$sum; OFFSETS.len()] = unsafe { [$($begin(start.wrapping_add($offset))),+] };
                let mut sums = [first; ROWS];
                // Wrapping: a check for overflow has no place in the loop that everything waits for.
                let (mut left, mut panel) = (left, panel);
                for _ in 0..words {
                    // SAFETY: whoever calls `Microkernel::run` vouches for `words` times 32 words.
                    let right = unsafe { [$($load(panel.wrapping_add($offset))),+] };
                    for row in 0..ROWS {
                        // SAFETY: the same for a word of each of `ROWS` rows.
                        let factor = unsafe { $splat(left.wrapping_add(row.wrapping_mul(left_row))) };
                        for index in 0..OFFSETS.len() {
                            sums[row][index] = $add(sums[row][index], factor, right[index]);
                        }
                    }
                    left = left.wrapping_add(1);
                    panel = panel.wrapping_add(PANEL);
                }
                for row in 0..ROWS {
                    for index in 0..OFFSETS.len() {
                        let place = output.wrapping_add(row.wrapping_mul(output_row).wrapping_add(OFFSETS[index]));
                        // SAFETY: the same for 32 words of each of `ROWS` rows of the output.
                        unsafe { $store(place, sums[row][index]) };
                    }
                }
            })+
        }
    };
}

/// The functions for one row, for two, …, as far as registers go.
macro_rules! by_rows {
    ($name:ident, $($rows:literal),+) => { &[$($name::<$rows>),+] };
}

#[cfg(target_arch = "x86_64")]
mod x86;

mod portable {
    //! Plain Rust, which the compiler turns into the vectors of any processor: SSE2, NEON.

    use super::super::math::fused;
    use super::{Operands, PANEL};

    #[inline(always)]
    #[allow(unsafe_code, reason = "reads through a pointer")]
    unsafe fn begin<T: Copy>(start: *const u32) -> [T; PANEL] {
        // SAFETY: the caller has 32 words there, and T is a word.
        unsafe { start.cast::<[T; PANEL]>().read_unaligned() }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "reads through a pointer")]
    unsafe fn load(panel: *const u32) -> [u32; PANEL] {
        // SAFETY: the caller has 32 words there.
        unsafe { panel.cast::<[u32; PANEL]>().read() }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "reads through a pointer")]
    unsafe fn word(left: *const u32) -> u32 {
        // SAFETY: the caller has a word there.
        unsafe { left.read() }
    }

    #[inline(always)]
    fn add_f32(mut sums: [f32; PANEL], left: u32, right: [u32; PANEL]) -> [f32; PANEL] {
        let left = f32::from_bits(left);
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum = fused::<false>(left, f32::from_bits(right), *sum);
        }
        sums
    }

    #[inline(always)]
    fn add_bf16(mut sums: [f32; PANEL], left: u32, right: [u32; PANEL]) -> [f32; PANEL] {
        let (even, odd) = (f32::from_bits(left << 16), f32::from_bits(left & 0xffff_0000));
        for (sum, right) in sums.iter_mut().zip(right) {
            *sum = fused::<false>(even, f32::from_bits(right << 16), *sum);
            *sum = fused::<false>(odd, f32::from_bits(right & 0xffff_0000), *sum);
        }
        sums
    }

    #[inline(always)]
    fn add_int8(mut sums: [i32; PANEL], left: u32, right: [u32; PANEL]) -> [i32; PANEL] {
        let left = left.to_le_bytes();
        for (sum, right) in sums.iter_mut().zip(right) {
            for (left, right) in left.into_iter().zip(right.to_le_bytes()) {
                *sum += i32::from(left) * i32::from(right.cast_signed());
            }
        }
        sums
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "writes through a pointer")]
    unsafe fn store<T>(place: *mut u32, sums: [T; PANEL]) {
        // SAFETY: the caller has 32 words there, and T is a word.
        unsafe { place.cast::<[T; PANEL]>().write_unaligned(sums) }
    }

    microkernel!(f32_rows, [f32; PANEL], [[0]], begin, load, word, add_f32, store);
    microkernel!(bf16_rows, [f32; PANEL], [[0]], begin, load, word, add_bf16, store);
    microkernel!(int8_rows, [i32; PANEL], [[0]], begin, load, word, add_int8, store);

    pub(super) const F32: &[super::Function] = by_rows!(f32_rows, 1, 2);
    pub(super) const BF16: &[super::Function] = by_rows!(bf16_rows, 1, 2);
    pub(super) const INT8: &[super::Function] = by_rows!(int8_rows, 1, 2);
}

const fn portable(format: Format, by_rows: &'static [Function]) -> Microkernel {
    Microkernel { name: "portable", format, available: || true, by_rows }
}

const PORTABLE_F32: Microkernel = portable(Format::F32, portable::F32);

/// Fastest first within each format.
const MICROKERNELS: &[Microkernel] = &[
    #[cfg(target_arch = "x86_64")]
    x86::AVX512_F32,
    #[cfg(target_arch = "x86_64")]
    x86::AVX2_F32,
    #[cfg(target_arch = "x86_64")]
    x86::AVX512_BF16,
    #[cfg(target_arch = "x86_64")]
    x86::AVX2_BF16,
    #[cfg(target_arch = "x86_64")]
    x86::AVX512_VNNI,
    #[cfg(target_arch = "x86_64")]
    x86::AVX_VNNI,
    PORTABLE_F32,
    portable(Format::Bf16, portable::BF16),
    portable(Format::Int8, portable::INT8),
];
