//! Groups of blocks of bytes with AVX2: `block::pack_group`, which compilers do not turn into vectors (its f64
//! sums least of all). One pass: values are read once, and what is across lanes is done for four blocks at a time.

use core::arch::x86_64::*;

use super::BLOCK;
use super::block::{Codes, EPSILON, GROUP, MOST, NEAR, SQUARED, Values, pack_group};
use super::statistics::Sums;

/// How far ahead values are asked for.
const AHEAD: usize = 4096;

/// Packs groups, and gives the bits of the largest magnitude.
#[target_feature(enable = "avx2")]
pub(super) fn pack_groups(
    values: &[Values],
    codes: &mut [Codes],
    scales: &mut [[f32; GROUP]],
    sums: Option<&mut Sums>,
) -> u32 {
    match sums {
        None => run::<false>(values, codes, scales, &mut Sums::default()),
        Some(sums) => run::<true>(values, codes, scales, sums),
    }
}

#[target_feature(enable = "avx2")]
fn run<const MEASURED: bool>(
    values: &[Values],
    codes: &mut [Codes],
    scales: &mut [[f32; GROUP]],
    sums: &mut Sums,
) -> u32 {
    let mut bits = 0;
    let mut seen = _mm_setzero_si128();
    for ((values, codes), scales) in values.iter().zip(codes).zip(scales) {
        match group::<MEASURED>(values, codes, scales, sums) {
            Some(largest) => seen = _mm_max_epi32(seen, largest),
            None => bits = pack_group(values, codes, scales, MEASURED.then_some(&mut *sums)).max(bits),
        }
    }
    let mut largest = [0u32; 4];
    // SAFETY: 16 bytes.
    unsafe { _mm_storeu_si128(largest.as_mut_ptr().cast(), seen) };
    largest.into_iter().fold(bits, u32::max)
}

/// The bits of the largest magnitude of each block. `None`, and nothing summed, where a quotient is too near a
/// half or f32 may not add the squares.
#[inline]
#[target_feature(enable = "avx2")]
fn group<const MEASURED: bool>(
    values: &Values,
    codes: &mut Codes,
    scales: &mut [f32; GROUP],
    sums: &mut Sums,
) -> Option<__m128i> {
    let positive = _mm256_set1_epi32(0x7fff_ffff);
    let mut largest = [_mm256_setzero_si256(); GROUP];
    for (values, largest) in values.iter().zip(&mut largest) {
        let ahead = values.as_ptr().cast::<i8>().wrapping_add(AHEAD);
        _mm_prefetch::<_MM_HINT_T0>(ahead);
        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
        let bits = |i| _mm256_and_si256(_mm256_castps_si256(eight(values, i)), positive);
        *largest = _mm256_max_epi32(_mm256_max_epi32(bits(0), bits(1)), _mm256_max_epi32(bits(2), bits(3)));
    }
    let largest = largest_of_each(largest);
    let scale = _mm_div_ps(_mm_castsi128_ps(largest), _mm_set1_ps(127.0));
    let scale = _mm_min_ps(_mm_max_ps(scale, _mm_set1_ps(EPSILON)), _mm_set1_ps(MOST));
    let mut inverse = [0.0f32; GROUP];
    // SAFETY: four floats each.
    unsafe {
        _mm_storeu_ps(scales.as_mut_ptr(), scale);
        _mm_storeu_ps(inverse.as_mut_ptr(), _mm_div_ps(_mm_set1_ps(1.0), scale));
    }
    let (zero, positive) = (_mm256_setzero_ps(), _mm256_castsi256_ps(positive));
    let (mut left, mut most) = (zero, zero);
    let (mut original, mut restored, mut error) = ([zero; GROUP], [zero; GROUP], [zero; GROUP]);
    for b in 0..GROUP {
        let (inverse, scale) = (_mm256_set1_ps(inverse[b]), _mm256_set1_ps(scales[b]));
        let mut q = [_mm256_setzero_si256(); 4];
        for (i, q) in q.iter_mut().enumerate() {
            let v = eight(&values[b], i);
            let t = _mm256_mul_ps(v, inverse);
            *q = _mm256_cvtps_epi32(t);
            let rounded = _mm256_cvtepi32_ps(*q);
            left = _mm256_max_ps(left, _mm256_and_ps(_mm256_sub_ps(t, rounded), positive));
            if MEASURED {
                let difference = _mm256_sub_ps(v, _mm256_mul_ps(rounded, scale));
                let difference = _mm256_and_ps(difference, positive);
                most = _mm256_max_ps(most, difference);
                original[b] = _mm256_add_ps(original[b], _mm256_mul_ps(v, v));
                error[b] = _mm256_add_ps(error[b], difference);
            }
        }
        let (low, high) = (_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        if MEASURED {
            let squares = _mm256_add_epi32(_mm256_madd_epi16(low, low), _mm256_madd_epi16(high, high));
            restored[b] = _mm256_cvtepi32_ps(squares); // exact: at most 4 * 127^2
        }
        let in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let q = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), in_order);
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes[b].as_mut_ptr().cast(), q) };
    }
    let near = _mm256_cmp_ps::<_CMP_GE_OQ>(left, _mm256_set1_ps(NEAR));
    if _mm256_movemask_ps(near) != 0 {
        return None;
    }
    if MEASURED {
        let bits = |bits: u32| _mm_set1_epi32(bits as i32);
        let small = _mm_cmpgt_epi32(bits(*SQUARED.start()), largest);
        let small = _mm_and_si128(small, _mm_cmpgt_epi32(largest, _mm_setzero_si128()));
        let large = _mm_cmpgt_epi32(largest, bits(*SQUARED.end()));
        if _mm_movemask_epi8(_mm_or_si128(small, large)) != 0 {
            return None;
        }
        let scale = _mm256_cvtps_pd(scale);
        let restored = _mm256_mul_pd(sum_of_each(restored), _mm256_mul_pd(scale, scale));
        add(&mut sums.original, sum_of_each(original));
        add(&mut sums.restored, restored);
        add(&mut sums.error, sum_of_each(error));
        // SAFETY: the first eight of more floats.
        unsafe {
            let place = sums.largest[..8].as_mut_ptr();
            _mm256_storeu_ps(place, _mm256_max_ps(most, _mm256_loadu_ps(place)));
        }
    }
    Some(largest)
}

/// Values 8 i to 8 i + 7 of a block.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(values: &[f32; BLOCK], i: usize) -> __m256 {
    // SAFETY: eight floats.
    unsafe { _mm256_loadu_ps(values.as_chunks::<8>().0[i].as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest_of_each(m: [__m256i; GROUP]) -> __m128i {
    let [a, b, c, d] = m.map(|m| _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m)));
    let ab = _mm_max_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let cd = _mm_max_epi32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    _mm_max_epi32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd))
}

/// The sum of the lanes of each, in the order of `block::measure_group`.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_each(m: [__m256; GROUP]) -> __m256d {
    let [a, b, c, d] = m.map(|m| _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps::<1>(m)));
    let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    _mm256_cvtps_pd(_mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)))
}

/// Adds one number of each block to the first lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn add(lanes: &mut [f64; BLOCK], more: __m256d) {
    // SAFETY: the first four of more doubles.
    unsafe {
        let place = lanes[..GROUP].as_mut_ptr();
        _mm256_storeu_pd(place, _mm256_add_pd(_mm256_loadu_pd(place), more));
    }
}
