//! One piece of a state, block by block.

use super::statistics::Sums;
use super::{BLOCK, Format};
use crate::kernel::Portable;
use crate::nearest;

/// The least scale.
const EPSILON: f32 = 1e-8;

/// Values into codes and scales.
pub(super) struct Pack<'a> {
    pub(super) format: Format,
    pub(super) values: &'a [f32],
    /// A factor and the codes and scales of the values that are multiplied with it and added.
    pub(super) old: Option<(f32, &'a [u8], &'a [f32])>,
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [f32],
    pub(super) measured: bool,
}

impl Portable for Pack<'_> {
    /// `None` where a value was not finite; the codes are then of no use.
    type Output = Option<Sums>;

    #[inline(always)]
    fn run(self) -> Option<Sums> {
        let Pack { format, values, old, codes, scales, measured } = self;
        let mut sums = Sums::default();
        let mut bits = 0;
        let mut restored = [0.0f32; BLOCK];
        let mut updated = [0.0f32; BLOCK];
        let bytes = format.code_bytes(BLOCK);
        let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(bytes)).zip(scales);
        for (b, ((given, codes), scale)) in blocks.enumerate() {
            let mut values = given;
            if let Some((factor, codes, scales)) = old {
                let codes = &codes[b * bytes..(b * bytes + bytes).min(codes.len())];
                let updated = &mut updated[..given.len()];
                unpack(format, codes, scales[b], updated);
                for (u, v) in updated.iter_mut().zip(given) {
                    *u = factor * *u + v;
                }
                values = updated;
            }
            let largest;
            (largest, *scale) = match (
                format,
                <&[f32; BLOCK]>::try_from(values),
                <&mut [u8; BLOCK]>::try_from(&mut *codes),
            ) {
                // Arrays: their loops become a few vectors.
                (Format::Int8, Ok(values), Ok(codes)) => pack_int8(values, codes),
                _ => pack(format, values, codes),
            };
            bits = bits.max(largest);
            if measured {
                let restored = &mut restored[..values.len()];
                unpack(format, codes, *scale, restored);
                measure(values, restored, &mut sums);
            }
        }
        (bits < 0x7f80_0000).then_some(sums)
    }
}

/// Codes and scales into values.
pub(super) struct Unpack<'a> {
    pub(super) format: Format,
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [f32],
    pub(super) values: &'a mut [f32],
}

impl Portable for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Unpack { format, codes, scales, values } = self;
        let bytes = format.code_bytes(BLOCK);
        for ((values, codes), scale) in values.chunks_mut(BLOCK).zip(codes.chunks(bytes)).zip(scales) {
            unpack(format, codes, *scale, values);
        }
    }
}

/// The bits of the largest magnitude (not finite from 0x7f80_0000 on), and the scale.
#[inline(always)]
fn pack_int8(values: &[f32; BLOCK], codes: &mut [u8; BLOCK]) -> (u32, f32) {
    let largest = nearest::largest_bits(values);
    let scale = (f32::from_bits(largest) / 127.0).max(EPSILON);
    // With the inverse, quotients are off by less than 1e-4: codes are right where none is so near a half.
    // (And no magnitude is above 127, as the scale is what it is.)
    const NEAR: f32 = 0.4998;
    let inverse = 1.0 / scale;
    let mut left = [0.0; BLOCK];
    for ((v, code), left) in values.iter().zip(&mut *codes).zip(&mut left) {
        let t = v * inverse;
        *left = t - nearest::half_even(t);
        *code = nearest::byte(t);
    }
    if nearest::largest_bits(&left) >= NEAR.to_bits() {
        for (v, code) in values.iter().zip(codes) {
            *code = int8(*v, scale);
        }
    }
    (largest, scale)
}

/// `clamp(round(v / scale), -127, 127)`, halves away from zero.
#[inline(always)]
fn int8(v: f32, scale: f32) -> u8 {
    // The largest f32 below a half: with a half itself 0.49999997 would become 1.
    const HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    let t = v / scale;
    let t = if t > -127.0 { t } else { -127.0 }; // a NaN (of a call that will fail) too
    let t = if t < 127.0 { t } else { 127.0 };
    // SAFETY: the two lines above leave -127 to 127.
    (unsafe { (t + HALF.copysign(t)).to_int_unchecked::<i32>() }) as u8
}

/// As [`pack_int8`], of any length and format.
#[inline(always)]
fn pack(format: Format, values: &[f32], codes: &mut [u8]) -> (u32, f32) {
    let largest = nearest::largest_bits(values);
    if format == Format::Int8 {
        let scale = (f32::from_bits(largest) / 127.0).max(EPSILON);
        values.iter().zip(codes).for_each(|(v, code)| *code = int8(*v, scale));
        return (largest, scale);
    }
    // Added in order: the order decides the last bit of the scale.
    let mean = values.iter().fold(0.0f32, |sum, v| sum + v.abs()) / values.len() as f32;
    let scale = mean.max(EPSILON);
    let per_byte = format.per_byte();
    for (values, byte) in values.chunks(per_byte).zip(codes) {
        *byte = values.iter().rev().fold(0, |byte, v| match format {
            Format::Ternary => {
                // -1, 0 or 1, and 1 more; without branches, which these values would defeat.
                let large = (v.abs() >= scale) as u8;
                byte << 2 | (1 - large + 2 * (large & (*v > 0.0) as u8))
            }
            _ => byte << 1 | (*v >= 0.0) as u8,
        });
    }
    (largest.max(mean.to_bits()), scale)
}

#[inline(always)]
fn unpack(format: Format, codes: &[u8], scale: f32, values: &mut [f32]) {
    match format {
        Format::Int8 => {
            for (v, code) in values.iter_mut().zip(codes) {
                *v = *code as i8 as f32 * scale;
            }
        }
        Format::Ternary => {
            for (k, v) in values.iter_mut().enumerate() {
                *v = ((codes[k / 4] >> (2 * (k % 4)) & 3) as i32 - 1) as f32 * scale;
            }
        }
        Format::Binary => {
            for (k, v) in values.iter_mut().enumerate() {
                *v = (2 * (codes[k / 8] >> (k % 8) & 1) as i32 - 1) as f32 * scale;
            }
        }
    }
}

/// Differences are those of f32; squares and sums are f64.
#[inline(always)]
fn measure(original: &[f32], restored: &[f32], sums: &mut Sums) {
    let lanes = original.iter().zip(restored).zip(&mut sums.original).zip(&mut sums.restored);
    for ((((a, b), square), restored), (error, largest)) in
        lanes.zip(sums.error.iter_mut().zip(&mut sums.largest))
    {
        let difference = (a - b).abs();
        *square += *a as f64 * *a as f64;
        *restored += *b as f64 * *b as f64;
        *error += difference as f64;
        *largest = if difference > *largest { difference } else { *largest };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes are those of the definition, near halves and far from them, for scales of every size.
    #[test]
    fn codes_are_the_rounded_quotients() {
        let mut seed = 88_172_645_463_325_252u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 40) as f32 / 8_388_608.0 - 1.0
        };
        for round in 0..4000 {
            let size = 2f32.powi(round % 200 - 100);
            let mut values = [0.0f32; BLOCK];
            values.iter_mut().for_each(|v| *v = size * random());
            let scale = f32::from_bits(nearest::largest_bits(&values)) / 127.0;
            if round % 2 == 0 {
                // Halves, and what lies beside them.
                for (k, v) in values.iter_mut().enumerate().skip(1) {
                    let half = (k as f32 * 4.0 - 63.5) * scale;
                    *v = [half, half.next_up(), half.next_down(), -half][k % 4];
                }
            }
            let mut codes = [0; BLOCK];
            let (largest, scale) = pack_int8(&values, &mut codes);
            assert_eq!(largest, values.iter().fold(0, |m, v| m.max(v.abs().to_bits())));
            for (v, code) in values.iter().zip(codes) {
                let want = (v / scale).round().clamp(-127.0, 127.0) as i8;
                assert_eq!(code as i8, want, "{v:e} / {scale:e}");
            }
        }
    }
}
