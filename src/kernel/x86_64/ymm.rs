//! 256-bit vectors for the kernels of `kernel::narrow`: 8 rows of W each. Loads, stores, arithmetic and
//! code extraction; the only unsafe lines of the AVX2 and AVX-VNNI kernels.

use core::arch::x86_64::*;

use crate::layout::packed::LINE;
use crate::layout::{Coded, QUAD, ScaleType, Values};

/// 8 x i32: a sum for each row.
pub(super) type Int = __m256i;
/// 8 x f32: an accumulator for each row.
pub(super) type Float = __m256;
/// 8 x 4 codes.
pub(super) type Bytes = __m256i;

/// Rows of W in a vector.
pub(super) const LANES: usize = 8;

// ---- loads and stores -------------------------------------------------------------------------

/// Part `h` of a line.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load(line: &[u8; LINE], h: usize) -> Bytes {
    let place: &[u8] = &line[h * 32..][..32];
    // SAFETY: `place` is 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(place.as_ptr().cast()) }
}

/// 8 quads of x.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quads(x: &[i8; 32]) -> Bytes {
    // SAFETY: `x` is 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

/// Stores part `h` of a line.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store(line: &mut [u8; LINE], h: usize, v: Bytes) {
    let place: &mut [u8] = &mut line[h * 32..][..32];
    // SAFETY: `place` is 32 bytes; the store asks for no alignment.
    unsafe { _mm256_storeu_si256(place.as_mut_ptr().cast(), v) }
}

/// The floats at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn floats(values: &[f32], at: usize) -> Float {
    let place: &[f32] = &values[at..at + LANES];
    // SAFETY: `place` is 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_ps(place.as_ptr()) }
}

/// The integers at `at`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn integers(values: &[i32], at: usize) -> Int {
    let place: &[i32] = &values[at..at + LANES];
    // SAFETY: `place` is 32 bytes; the load asks for no alignment.
    unsafe { _mm256_loadu_si256(place.as_ptr().cast()) }
}

/// Stores floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn put_floats(values: &mut [f32], at: usize, v: Float) {
    let place: &mut [f32] = &mut values[at..at + LANES];
    // SAFETY: `place` is 32 bytes; the store asks for no alignment.
    unsafe { _mm256_storeu_ps(place.as_mut_ptr(), v) }
}

/// Asks for the cache line at byte `at` of `values`, which may be past the end.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch<T>(values: &[T], at: usize) {
    _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_byte_add(at).cast())
}

/// The same for later: the line goes to the second cache.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_far(bytes: &[u8], at: usize) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(at).cast())
}

/// The scales of rows `lane ..` as f32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scales(ty: ScaleType, bytes: &[u8], lane: usize) -> Float {
    let place = &bytes[lane * ty.bytes()..][..LANES * ty.bytes()];
    match ty {
        // SAFETY: `place` is 32 bytes.
        ScaleType::F32 => unsafe { _mm256_loadu_ps(place.as_ptr().cast()) },
        // SAFETY: `place` is 16 bytes.
        ScaleType::F16 => _mm256_cvtph_ps(unsafe { _mm_loadu_si128(place.as_ptr().cast()) }),
        ScaleType::Bf16 => {
            // SAFETY: `place` is 16 bytes.
            let half = unsafe { _mm_loadu_si128(place.as_ptr().cast()) };
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        }
        ScaleType::E8m0 => {
            let e = unsigned_bytes(place, 0);
            // 2^(e - 128): a normal float from e = 2 on, else the subnormal 2^21 << e ulps.
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
            let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
            _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
        }
    }
}

/// Signed bytes as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn signed_bytes(bytes: &[u8], at: usize) -> Int {
    let place = &bytes[at..at + LANES];
    // SAFETY: `place` is 8 bytes.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(place.as_ptr().cast()) })
}

/// Unsigned bytes as i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unsigned_bytes(bytes: &[u8], at: usize) -> Int {
    let place = &bytes[at..at + LANES];
    // SAFETY: `place` is 8 bytes.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(place.as_ptr().cast()) })
}

/// Quad `i` of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quad_of(x: &[i8], i: usize) -> Bytes {
    let q = &x[i * QUAD..][..QUAD];
    _mm256_set1_epi32(i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]))
}

// ---- arithmetic -------------------------------------------------------------------------------

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn ints(v: i32) -> Int {
    _mm256_set1_epi32(v)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_ints(a: Int, b: Int) -> Int {
    _mm256_add_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sub_ints(a: Int, b: Int) -> Int {
    _mm256_sub_epi32(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn mul_ints(a: Int, b: Int) -> Int {
    _mm256_mullo_epi32(a, b)
}

/// Two numbers of 16 bits for each row, and two for all rows: what [`add_two`] multiplies.
pub(super) type Two = __m256i;

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn two(a: Int, b: Int) -> Two {
    _mm256_blend_epi16::<0xaa>(a, _mm256_slli_epi32::<16>(b))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn of_two(a: i32, b: i32) -> Two {
    ints(a & 0xffff | b << 16)
}

/// `acc + a.0 b.0 + a.1 b.1`
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_two(acc: Int, a: Two, b: Two) -> Int {
    _mm256_add_epi32(acc, _mm256_madd_epi16(a, b))
}

/// To the nearest float.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn to_floats(v: Int) -> Float {
    _mm256_cvtepi32_ps(v)
}

/// The same bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn as_floats(v: Int) -> Float {
    _mm256_castsi256_ps(v)
}

/// The same bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn as_ints(v: Float) -> Int {
    _mm256_castps_si256(v)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn all(v: f32) -> Float {
    _mm256_set1_ps(v)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add(a: Float, b: Float) -> Float {
    _mm256_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn sub(a: Float, b: Float) -> Float {
    _mm256_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn mul(a: Float, b: Float) -> Float {
    _mm256_mul_ps(a, b)
}

/// `a b + c`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fma(a: Float, b: Float, c: Float) -> Float {
    _mm256_fmadd_ps(a, b, c)
}

/// `c - a b`, rounded once.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn fnma(a: Float, b: Float, c: Float) -> Float {
    _mm256_fnmadd_ps(a, b, c)
}

// ---- codes ------------------------------------------------------------------------------------

/// The table of 4-bit codes in both 128-bit lanes; zero without a table.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn table(coded: &Coded) -> Bytes {
    match coded.values {
        Values::Table(table) => {
            // SAFETY: a table is 16 bytes.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
        }
        _ => _mm256_setzero_si256(),
    }
}

/// The table's values at codes of 4 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn look_up(table: Bytes, codes: Bytes) -> Bytes {
    _mm256_shuffle_epi8(table, codes)
}

/// Bytes with their top bit flipped: 0..255 becomes -128..127.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn flipped(v: Bytes) -> Bytes {
    _mm256_xor_si256(v, _mm256_set1_epi8(-128))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn or(a: Bytes, b: Bytes) -> Bytes {
    _mm256_or_si256(a, b)
}

/// The bits `mask` of every byte after a shift right by `by` (left where it is negative), which is a
/// constant after unrolling. A mask keeps out what a 16-bit shift brings in from the other byte.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn masked(v: Bytes, by: i32, mask: i8) -> Bytes {
    let shifted = match by {
        -4 => _mm256_slli_epi16::<4>(v),
        -3 => _mm256_slli_epi16::<3>(v),
        -2 => _mm256_slli_epi16::<2>(v),
        -1 => _mm256_slli_epi16::<1>(v),
        1 => _mm256_srli_epi16::<1>(v),
        2 => _mm256_srli_epi16::<2>(v),
        3 => _mm256_srli_epi16::<3>(v),
        4 => _mm256_srli_epi16::<4>(v),
        5 => _mm256_srli_epi16::<5>(v),
        6 => _mm256_srli_epi16::<6>(v),
        7 => _mm256_srli_epi16::<7>(v),
        _ => v,
    };
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// Column `c` of a quad as i32: byte `c` of every lane, with its sign.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn column(v: Bytes, c: usize) -> Int {
    let top = match c {
        0 => _mm256_slli_epi32::<24>(v),
        1 => _mm256_slli_epi32::<16>(v),
        2 => _mm256_slli_epi32::<8>(v),
        _ => v,
    };
    _mm256_srai_epi32::<24>(top)
}

/// Where `pick` finds byte `c` of every row's four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn byte_of_rows(c: i32) -> Bytes {
    // The other bytes are 0.
    let first = |row: i32| (4 * row) | !0xff;
    let rows =
        _mm256_setr_epi32(first(0), first(1), first(2), first(3), first(0), first(1), first(2), first(3));
    _mm256_add_epi32(rows, _mm256_set1_epi32(c))
}

/// A byte of every row's four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn pick(v: Bytes, place: Bytes) -> Int {
    _mm256_shuffle_epi8(v, place)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn xor(a: Int, b: Int) -> Int {
    _mm256_xor_si256(a, b)
}

crate::kernel::narrow::decode!("avx2,fma,f16c");
