//! 128-bit vectors for the kernels of `kernel::narrow`: 4 rows of W each. Loads, stores, arithmetic and
//! code extraction; with the steps' instructions the only unsafe lines of the kernels here.

use core::arch::aarch64::*;

use crate::layout::packed::LINE;
use crate::layout::{Coded, QUAD, ScaleType, Values};

/// 4 x i32: a sum for each row.
pub(super) type Int = int32x4_t;
/// 4 x f32: an accumulator for each row.
pub(super) type Float = float32x4_t;
/// 4 x 4 codes.
pub(super) type Bytes = int8x16_t;

/// Rows of W in a vector.
pub(super) const LANES: usize = 4;

// ---- loads and stores -------------------------------------------------------------------------

/// Part `h` of a line.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &[u8; LINE], h: usize) -> Bytes {
    let place: &[u8] = &line[h * 16..][..16];
    // SAFETY: `place` is 16 bytes.
    unsafe { vld1q_s8(place.as_ptr().cast()) }
}

/// Stores part `h` of a line.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(line: &mut [u8; LINE], h: usize, v: Bytes) {
    let place: &mut [u8] = &mut line[h * 16..][..16];
    // SAFETY: `place` is 16 bytes.
    unsafe { vst1q_s8(place.as_mut_ptr().cast(), v) }
}

/// The floats at `at`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn floats(values: &[f32], at: usize) -> Float {
    let place: &[f32] = &values[at..at + LANES];
    // SAFETY: `place` is 4 floats.
    unsafe { vld1q_f32(place.as_ptr()) }
}

/// The integers at `at`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn integers(values: &[i32], at: usize) -> Int {
    let place: &[i32] = &values[at..at + LANES];
    // SAFETY: `place` is 4 integers.
    unsafe { vld1q_s32(place.as_ptr()) }
}

/// Stores floats.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn put_floats(values: &mut [f32], at: usize, v: Float) {
    let place: &mut [f32] = &mut values[at..at + LANES];
    // SAFETY: `place` is 4 floats.
    unsafe { vst1q_f32(place.as_mut_ptr(), v) }
}

/// Asks for the cache line at byte `at` of `values`, which may be past the end.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn prefetch<T>(values: &[T], at: usize) {
    let place = values.as_ptr().wrapping_byte_add(at);
    // SAFETY: a prefetch changes nothing and does not fault, whatever the address. (The intrinsic is
    // unstable.)
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{0}]", in(reg) place, options(nostack, readonly, preserves_flags))
    }
}

/// The same for later: the line goes to the second cache.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn prefetch_far(bytes: &[u8], at: usize) {
    let place = bytes.as_ptr().wrapping_add(at);
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pldl2keep, [{0}]", in(reg) place, options(nostack, readonly, preserves_flags))
    }
}

/// The scales of rows `lane ..` as f32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scales(ty: ScaleType, bytes: &[u8], lane: usize) -> Float {
    let place = &bytes[lane * ty.bytes()..][..LANES * ty.bytes()];
    match ty {
        // SAFETY: `place` is 16 bytes; loads of bytes ask for no alignment.
        ScaleType::F32 => vreinterpretq_f32_u8(unsafe { vld1q_u8(place.as_ptr()) }),
        ScaleType::F16 => {
            // SAFETY: `place` is 8 bytes.
            let half = unsafe { vld1_u8(place.as_ptr()) };
            let wide;
            // SAFETY: an instruction of the base set on registers. (The intrinsic is unstable.)
            unsafe {
                core::arch::asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) half,
                    options(pure, nomem, nostack, preserves_flags));
            }
            wide
        }
        ScaleType::Bf16 => {
            // SAFETY: `place` is 8 bytes.
            let half = vreinterpret_u16_u8(unsafe { vld1_u8(place.as_ptr()) });
            vreinterpretq_f32_u32(vshll_n_u16::<16>(half))
        }
        ScaleType::E8m0 => {
            let e = unsigned_bytes(place, 0);
            // 2^(e - 128): a normal float from e = 2 on, else the subnormal 2^21 << e ulps.
            let normal = vshlq_n_s32::<23>(vsubq_s32(e, vdupq_n_s32(1)));
            let small = vshlq_s32(vdupq_n_s32(0x0020_0000), e);
            let is_small = vcltq_s32(e, vdupq_n_s32(2));
            vreinterpretq_f32_s32(vbslq_s32(is_small, small, normal))
        }
    }
}

/// 4 bytes as the lowest of a vector.
#[inline]
#[target_feature(enable = "neon")]
fn four(bytes: &[u8], at: usize) -> uint8x8_t {
    let b = &bytes[at..at + LANES];
    vcreate_u8(u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u64)
}

/// Signed bytes as i32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn signed_bytes(bytes: &[u8], at: usize) -> Int {
    vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four(bytes, at)))))
}

/// Unsigned bytes as i32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn unsigned_bytes(bytes: &[u8], at: usize) -> Int {
    vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(bytes, at)))))
}

/// Quad `i` of a row of activations in every lane.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quad_of(x: &[i8], i: usize) -> Bytes {
    let q = &x[i * QUAD..][..QUAD];
    let quad = i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]);
    vreinterpretq_s8_s32(vdupq_n_s32(quad))
}

// ---- arithmetic -------------------------------------------------------------------------------

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn ints(v: i32) -> Int {
    vdupq_n_s32(v)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_ints(a: Int, b: Int) -> Int {
    vaddq_s32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sub_ints(a: Int, b: Int) -> Int {
    vsubq_s32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn mul_ints(a: Int, b: Int) -> Int {
    vmulq_s32(a, b)
}

/// Two numbers of 16 bits for each row, and two for all rows: what [`add_two`] multiplies.
pub(super) type Two = [Int; 2];

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn two(a: Int, b: Int) -> Two {
    [a, b]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn of_two(a: i32, b: i32) -> Two {
    [ints(a), ints(b)]
}

/// `acc + a.0 b.0 + a.1 b.1`
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_two(acc: Int, a: Two, b: Two) -> Int {
    add_ints(add_ints(acc, mul_ints(a[0], b[0])), mul_ints(a[1], b[1]))
}

/// To the nearest float.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn to_floats(v: Int) -> Float {
    vcvtq_f32_s32(v)
}

/// The same bits.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn as_floats(v: Int) -> Float {
    vreinterpretq_f32_s32(v)
}

/// The same bits.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn as_ints(v: Float) -> Int {
    vreinterpretq_s32_f32(v)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn all(v: f32) -> Float {
    vdupq_n_f32(v)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add(a: Float, b: Float) -> Float {
    vaddq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sub(a: Float, b: Float) -> Float {
    vsubq_f32(a, b)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn mul(a: Float, b: Float) -> Float {
    vmulq_f32(a, b)
}

/// `a b + c`, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fma(a: Float, b: Float, c: Float) -> Float {
    vfmaq_f32(c, a, b)
}

/// `c - a b`, rounded once.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fnma(a: Float, b: Float, c: Float) -> Float {
    vfmsq_f32(c, a, b)
}

// ---- codes ------------------------------------------------------------------------------------

/// The table of 4-bit codes; zero without a table.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn table(coded: &Coded) -> Bytes {
    match coded.values {
        // SAFETY: a table is 16 bytes.
        Values::Table(table) => unsafe { vld1q_s8(table.as_ptr()) },
        _ => vdupq_n_s8(0),
    }
}

/// The table's values at codes of 4 bits.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn look_up(table: Bytes, codes: Bytes) -> Bytes {
    vqtbl1q_s8(table, vreinterpretq_u8_s8(codes))
}

/// Bytes with their top bit flipped: 0..255 becomes -128..127.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn flipped(v: Bytes) -> Bytes {
    veorq_s8(v, vdupq_n_s8(-128))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn or(a: Bytes, b: Bytes) -> Bytes {
    vorrq_s8(a, b)
}

/// The bits `mask` of every byte after a shift right by `by` (left where it is negative), which is a
/// constant after unrolling.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn masked(v: Bytes, by: i32, mask: i8) -> Bytes {
    let v = vreinterpretq_u8_s8(v);
    let shifted = match by {
        -4 => vshlq_n_u8::<4>(v),
        -3 => vshlq_n_u8::<3>(v),
        -2 => vshlq_n_u8::<2>(v),
        -1 => vshlq_n_u8::<1>(v),
        1 => vshrq_n_u8::<1>(v),
        2 => vshrq_n_u8::<2>(v),
        3 => vshrq_n_u8::<3>(v),
        4 => vshrq_n_u8::<4>(v),
        5 => vshrq_n_u8::<5>(v),
        6 => vshrq_n_u8::<6>(v),
        7 => vshrq_n_u8::<7>(v),
        _ => v,
    };
    vandq_s8(vreinterpretq_s8_u8(shifted), vdupq_n_s8(mask))
}

/// Column `c` of a quad as i32: byte `c` of every lane, with its sign.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn column(v: Bytes, c: usize) -> Int {
    let v = vreinterpretq_s32_s8(v);
    let top = match c {
        0 => vshlq_n_s32::<24>(v),
        1 => vshlq_n_s32::<16>(v),
        2 => vshlq_n_s32::<8>(v),
        _ => v,
    };
    vshrq_n_s32::<24>(top)
}

/// Where `pick` finds byte `c` of every row's four.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn byte_of_rows(c: i32) -> Bytes {
    // The other bytes are 0.
    let first = |row: u64| (4 * row) | 0xffff_ff00;
    let rows =
        vcombine_u64(vcreate_u64(first(0) | (first(1) << 32)), vcreate_u64(first(2) | (first(3) << 32)));
    vreinterpretq_s8_s32(vaddq_s32(vreinterpretq_s32_u64(rows), vdupq_n_s32(c)))
}

/// A byte of every row's four.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn pick(v: Bytes, place: Bytes) -> Int {
    vreinterpretq_s32_s8(vqtbl1q_s8(v, vreinterpretq_u8_s8(place)))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn xor(a: Int, b: Int) -> Int {
    veorq_s32(a, b)
}

crate::kernel::narrow::decode!("neon");
