//! Loads, stores and code extraction: the only unsafe lines of the AVX-512 kernels.

use core::arch::x86_64::*;

use crate::layout::{Coded, PANEL, ScaleType, TILE, Values};

/// A line: 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn line(bytes: &[u8], at: usize) -> __m512i {
    let place: &[u8] = &bytes[at..at + 64];
    // SAFETY: `place` is 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_si512(place.as_ptr().cast()) }
}

/// 16 integers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn integers(values: &[i32; TILE], at: usize) -> __m512i {
    let v = &values[at..][..16];
    // SAFETY: sixteen integers, checked on the line above.
    unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
}

/// Stores a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn put_line(bytes: &mut [u8], at: usize, v: __m512i) {
    let place: &mut [u8] = &mut bytes[at..at + 64];
    // SAFETY: `place` is 64 bytes; the store asks for no alignment.
    unsafe { _mm512_storeu_si512(place.as_mut_ptr().cast(), v) }
}

/// 16 floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn floats(values: &[f32], at: usize) -> __m512 {
    let place: &[f32] = &values[at..at + 16];
    // SAFETY: `place` is 64 bytes; the load asks for no alignment.
    unsafe { _mm512_loadu_ps(place.as_ptr()) }
}

/// The bytes of floats.
#[inline]
pub(super) fn as_bytes(floats: &[f32]) -> &[u8] {
    // SAFETY: floats have no padding, and bytes no alignment: all of them are in the middle.
    unsafe { floats.align_to::<u8>().1 }
}

/// Stores 16 floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn put_floats(values: &mut [f32], at: usize, v: __m512) {
    let place: &mut [f32] = &mut values[at..at + 16];
    // SAFETY: `place` is 64 bytes; the store asks for no alignment.
    unsafe { _mm512_storeu_ps(place.as_mut_ptr(), v) }
}

/// At most 16 integers; the other lanes are 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn some_integers(values: &[i32]) -> __m512i {
    let values = &values[..values.len().min(16)];
    let mask = ((1u32 << values.len()) - 1) as u16;
    // SAFETY: lanes past the slice are masked off, and not read.
    unsafe { _mm512_maskz_loadu_epi32(mask, values.as_ptr()) }
}

/// The first lanes: as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn put_some_integers(values: &mut [i32], v: __m512i) {
    let len = values.len().min(16);
    let mask = ((1u32 << len) - 1) as u16;
    // SAFETY: lanes past the slice are masked off, and not written.
    unsafe { _mm512_mask_storeu_epi32(values.as_mut_ptr(), mask, v) }
}

/// Reads a cache line, though nothing needs it now.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn touch(line: &[u8; 64]) {
    // SAFETY: a reference is valid to read from.
    unsafe { core::ptr::read_volatile(&line[0]) };
}

/// Asks for the cache line at `at` of `bytes`, which may be past the end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn prefetch(bytes: &[u8], at: usize) {
    _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast())
}

/// The same, into the second cache.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn prefetch_far(bytes: &[u8], at: usize) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast())
}

/// The same, into the first cache and no other.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn prefetch_once(bytes: &[u8], at: usize) {
    _mm_prefetch::<_MM_HINT_NTA>(bytes.as_ptr().wrapping_add(at).cast())
}

/// 16 scales of a panel as f32; `lane` is the panel's first row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scales(ty: ScaleType, bytes: &[u8], lane: usize) -> __m512 {
    let place = &bytes[lane * ty.bytes()..][..PANEL * ty.bytes()];
    match ty {
        // SAFETY: `place` is 64 bytes.
        ScaleType::F32 => unsafe { _mm512_loadu_ps(place.as_ptr().cast()) },
        // SAFETY: `place` is 32 bytes.
        ScaleType::F16 => _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(place.as_ptr().cast()) }),
        ScaleType::Bf16 => {
            // SAFETY: `place` is 32 bytes.
            let half = unsafe { _mm256_loadu_si256(place.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
        ScaleType::E8m0 => {
            // SAFETY: `place` is 16 bytes.
            let e = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(place.as_ptr().cast()) });
            // 2^(e - 128): a normal float from e = 2 on, else the subnormal 2^21 << e ulps.
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
            let is_small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small))
        }
    }
}

/// 16 signed bytes of a panel as i32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn signed_bytes(bytes: &[u8], at: usize) -> __m512i {
    let place = &bytes[at..at + PANEL];
    // SAFETY: `place` is 16 bytes.
    _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(place.as_ptr().cast()) })
}

/// 16 unsigned bytes of a panel as i32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn unsigned_bytes(bytes: &[u8], at: usize) -> __m512i {
    let place = &bytes[at..at + PANEL];
    // SAFETY: `place` is 16 bytes.
    _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(place.as_ptr().cast()) })
}

/// The table of 4-bit codes, each value plus 128, in every 128-bit lane; zero without a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn table(coded: &Coded) -> __m512i {
    match coded.values {
        Values::Table(table) => {
            // SAFETY: a table is 16 bytes.
            let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
            _mm512_broadcast_i32x4(_mm_xor_si128(table, _mm_set1_epi8(-128)))
        }
        _ => _mm512_setzero_si512(),
    }
}

/// Shifts right (left where `by` is negative) inside 16-bit halves. `by` is a constant after unrolling.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn shift(v: __m512i, by: i32) -> __m512i {
    match by {
        -4 => _mm512_slli_epi16::<4>(v),
        -3 => _mm512_slli_epi16::<3>(v),
        -2 => _mm512_slli_epi16::<2>(v),
        -1 => _mm512_slli_epi16::<1>(v),
        1 => _mm512_srli_epi16::<1>(v),
        2 => _mm512_srli_epi16::<2>(v),
        3 => _mm512_srli_epi16::<3>(v),
        4 => _mm512_srli_epi16::<4>(v),
        5 => _mm512_srli_epi16::<5>(v),
        6 => _mm512_srli_epi16::<6>(v),
        7 => _mm512_srli_epi16::<7>(v),
        _ => v,
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn masked(v: __m512i, by: i32, mask: i8) -> __m512i {
    _mm512_and_si512(shift(v, by), _mm512_set1_epi8(mask))
}

/// Quad `i` of a unit: for 16 rows, the codes of 4 columns as unsigned bytes. `at` is the panel's first
/// line in the unit, `stride` the bytes from one line of the panel to the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quad<const BITS: u8, const TABLE: bool>(
    unit: &[u8],
    at: usize,
    stride: usize,
    i: usize,
    table: __m512i,
) -> __m512i {
    quad_of::<BITS, TABLE>(|k| line(unit, at + k * stride), i, table)
}

/// Quad `i` of a unit whose lines are these.
///
/// Signs come out as 0 or 2 and table values plus 128: see `zero_point`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quad_of<const BITS: u8, const TABLE: bool>(
    line: impl Fn(usize) -> __m512i,
    i: usize,
    table: __m512i,
) -> __m512i {
    let n = i as i32;
    match BITS {
        8 => line(0),
        4 => {
            let codes = masked(line(0), 4 * n, 15);
            if TABLE { _mm512_shuffle_epi8(table, codes) } else { codes }
        }
        2 => masked(line(0), 2 * n, 3),
        1 => masked(line(0), n - 1, 2),
        3 => {
            let low = masked(line(i / 4), 2 * (n % 4), 3);
            _mm512_or_si512(low, masked(line(2), n - 2, 4))
        }
        5 => {
            let low = masked(line(i / 2), 4 * (n % 2), 15);
            _mm512_or_si512(low, masked(line(4), n - 4, 16))
        }
        _ => {
            let low = masked(line(i / 2), 4 * (n % 2), 15);
            _mm512_or_si512(low, masked(line(2), 2 * n - 4, 48))
        }
    }
}
