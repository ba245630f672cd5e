//! Microkernels for x86-64: AVX2 with FMA, AVX-512, and its extensions for bf16 and bytes.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512bh, __m512i, _mm256_and_si256, _mm256_castsi256_ps,
    _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm512_castps_si512,
    _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::{Format, Microkernel, Operands, PANEL};

pub(super) const AVX512_F32: Microkernel = Microkernel {
    name: "avx512",
    format: Format::F32,
    available: || is_x86_feature_detected!("avx512f"),
    by_rows: by_rows!(avx512_f32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
};

pub(super) const AVX2_F32: Microkernel = Microkernel {
    name: "avx2",
    format: Format::F32,
    available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    by_rows: by_rows!(avx2_f32, 1, 2, 3, 4, 5, 6),
};

pub(super) const AVX512_BF16: Microkernel = Microkernel {
    name: "avx512-bf16",
    format: Format::Bf16,
    available: || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
    by_rows: by_rows!(avx512_bf16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
};

pub(super) const AVX2_BF16: Microkernel = Microkernel {
    name: "avx2",
    format: Format::Bf16,
    available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    by_rows: by_rows!(avx2_bf16, 1, 2, 3, 4),
};

pub(super) const AVX512_VNNI: Microkernel = Microkernel {
    name: "avx512-vnni",
    format: Format::Int8,
    available: || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"),
    by_rows: by_rows!(avx512_int8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
};

pub(super) const AVX_VNNI: Microkernel = Microkernel {
    name: "avx-vnni",
    format: Format::Int8,
    available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
    by_rows: by_rows!(avx_int8, 1, 2, 3, 4, 5, 6),
};

/// Wraps an intrinsic, so that all of a kind take the same pointers and values.
macro_rules! wrap {
    ($features:literal, unsafe fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? $body:block) => {
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(unsafe_code, reason = "SIMD over pointers")]
        unsafe fn $name($($argument: $kind),*) $(-> $result)? {
            // SAFETY: the microkernel's caller vouches for the words behind the pointer.
            unsafe { $body }
        }
    };
    ($features:literal, fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $name($($argument: $kind),*) -> $result $body
    };
}

wrap!(
    "avx512f",
    unsafe fn load_512(panel: *const u32) -> __m512 {
        _mm512_loadu_ps(panel.cast())
    }
);
wrap!(
    "avx512f",
    unsafe fn splat_512(left: *const u32) -> __m512 {
        _mm512_set1_ps(left.cast::<f32>().read())
    }
);
wrap!(
    "avx512f",
    fn add_512(sum: __m512, left: __m512, right: __m512) -> __m512 {
        _mm512_fmadd_ps(left, right, sum)
    }
);
wrap!(
    "avx512f",
    unsafe fn store_512(place: *mut u32, sum: __m512) {
        _mm512_storeu_ps(place.cast(), sum);
    }
);
wrap!(
    "avx512f",
    unsafe fn load_words(panel: *const u32) -> __m512i {
        _mm512_loadu_si512(panel.cast())
    }
);
wrap!(
    "avx512f",
    unsafe fn splat_word(left: *const u32) -> __m512i {
        _mm512_set1_epi32(left.cast::<i32>().read())
    }
);
wrap!(
    "avx512f",
    unsafe fn store_words(place: *mut u32, sum: __m512i) {
        _mm512_storeu_si512(place.cast(), sum);
    }
);
wrap!(
    "avx512f,avx512vnni",
    fn add_bytes(sum: __m512i, left: __m512i, right: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, left, right)
    }
);
wrap!(
    "avx512f,avx512bf16",
    fn add_pairs(sum: __m512, left: __m512, right: __m512) -> __m512 {
        _mm512_dpbf16_ps(sum, pairs(left), pairs(right))
    }
);
wrap!(
    "avx2",
    unsafe fn load_256(panel: *const u32) -> __m256 {
        _mm256_loadu_ps(panel.cast())
    }
);
wrap!(
    "avx2",
    unsafe fn splat_256(left: *const u32) -> __m256 {
        _mm256_set1_ps(left.cast::<f32>().read())
    }
);
wrap!(
    "avx2,fma",
    fn add_256(sum: __m256, left: __m256, right: __m256) -> __m256 {
        _mm256_fmadd_ps(left, right, sum)
    }
);
wrap!(
    "avx2",
    unsafe fn store_256(place: *mut u32, sum: __m256) {
        _mm256_storeu_ps(place.cast(), sum);
    }
);
wrap!(
    "avx2",
    unsafe fn load_words_256(panel: *const u32) -> __m256i {
        _mm256_loadu_si256(panel.cast())
    }
);
wrap!(
    "avx2",
    unsafe fn splat_word_256(left: *const u32) -> __m256i {
        _mm256_set1_epi32(left.cast::<i32>().read())
    }
);
wrap!(
    "avx2",
    unsafe fn store_words_256(place: *mut u32, sum: __m256i) {
        _mm256_storeu_si256(place.cast(), sum);
    }
);
wrap!(
    "avx2,avxvnni",
    fn add_bytes_256(sum: __m256i, left: __m256i, right: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(sum, left, right)
    }
);
wrap!(
    "avx2,fma",
    fn add_widened_256(sum: __m256, left: __m256i, right: __m256i) -> __m256 {
        // A bf16 is the upper half of an f32.
        let sum = _mm256_fmadd_ps(even(left), even(right), sum);
        _mm256_fmadd_ps(odd(left), odd(right), sum)
    }
);
wrap!(
    "avx2",
    fn even(words: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
);
wrap!(
    "avx2",
    fn odd(words: __m256i) -> __m256 {
        _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
    }
);

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "candle's intrinsics have a type of their own for registers of bf16")]
fn pairs(words: __m512) -> __m512bh {
    // SAFETY: both are the same 64 bytes, and any bits are a value of both.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_castps_si512(words)) }
}

microkernel!(
    #[target_feature(enable = "avx512f")]
    avx512_f32,
    __m512,
    [[0, 16]],
    load_512,
    load_512,
    splat_512,
    add_512,
    store_512
);
microkernel!(
    #[target_feature(enable = "avx512f,avx512bf16")]
    avx512_bf16,
    __m512,
    [[0, 16]],
    load_512,
    load_512,
    splat_512,
    add_pairs,
    store_512
);
microkernel!(
    #[target_feature(enable = "avx512f,avx512vnni")]
    avx512_int8,
    __m512i,
    [[0, 16]],
    load_words,
    load_words,
    splat_word,
    add_bytes,
    store_words
);
microkernel!(
    #[target_feature(enable = "avx2,fma")]
    avx2_f32,
    __m256,
    [[0, 8], [16, 24]],
    load_256,
    load_256,
    splat_256,
    add_256,
    store_256
);
microkernel!(
    #[target_feature(enable = "avx2,fma")]
    avx2_bf16,
    __m256,
    [[0, 8], [16, 24]],
    load_256,
    load_words_256,
    splat_word_256,
    add_widened_256,
    store_256
);
microkernel!(
    #[target_feature(enable = "avx2,avxvnni")]
    avx_int8,
    __m256i,
    [[0, 8], [16, 24]],
    load_words_256,
    load_words_256,
    splat_word_256,
    add_bytes_256,
    store_words_256
);
