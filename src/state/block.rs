//! One piece of a state, block by block.

use super::statistics::Sums;
use super::{BLOCK, Format};
use crate::cpu::Isa;
use crate::kernel::Portable;
use crate::nearest;

/// The least scale.
pub(super) const EPSILON: f32 = 1e-8;
/// With the inverse of the scale quotients of at most 127 are off by less than 127 * 3 * 2^-24 = 2.3e-5: codes
/// are right where none is nearer to a half than that.
pub(super) const NEAR: f32 = 0.499_96;

/// Blocks of bytes that are packed together.
pub(super) const GROUP: usize = 4;
/// A group: its values, and its codes.
pub(super) type Values = [[f32; BLOCK]; GROUP];
pub(super) type Codes = [[u8; BLOCK]; GROUP];

/// Values into codes and scales.
pub(super) struct Pack<'a> {
    pub(super) isa: Isa,
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
        let Pack { isa, format, values, old, codes, scales, measured } = self;
        let mut sums = Sums::default();
        let mut bits = 0;
        let mut updated = [0.0f32; GROUP * BLOCK];
        let bytes = format.code_bytes(BLOCK);
        // Old values are decoded group by group, new ones are there.
        let len = if old.is_some() { GROUP * BLOCK } else { values.len().max(1) };
        let parts = values.chunks(len).zip(codes.chunks_mut(format.code_bytes(len)));
        for (p, ((given, codes), scales)) in parts.zip(scales.chunks_mut(len.div_ceil(BLOCK))).enumerate() {
            let mut values = given;
            if let Some((factor, old_codes, old_scales)) = old {
                let first = p * GROUP;
                let updated = &mut updated[..given.len()];
                let old_codes = old_codes[first * bytes..].chunks(bytes);
                let blocks = updated.chunks_mut(BLOCK).zip(old_codes).zip(&old_scales[first..]);
                blocks.for_each(|((updated, codes), scale)| unpack(format, codes, *scale, updated));
                for (u, v) in updated.iter_mut().zip(given) {
                    *u = factor * *u + v;
                }
                values = updated;
            }
            let groups = if format == Format::Int8 { values.len() / (GROUP * BLOCK) } else { 0 };
            let (whole, rest) = values.split_at(groups * GROUP * BLOCK);
            let (whole_codes, rest_codes) = codes.split_at_mut(whole.len() / format.per_byte());
            let (whole_scales, rest_scales) = scales.split_at_mut(groups * GROUP);
            if groups > 0 {
                let whole = whole.as_chunks().0.as_chunks().0;
                let codes = whole_codes.as_chunks_mut().0.as_chunks_mut().0;
                let scales = whole_scales.as_chunks_mut().0;
                bits = bits.max(pack_groups(isa, whole, codes, scales, measured.then_some(&mut sums)));
            }
            let blocks = rest.chunks(BLOCK).zip(rest_codes.chunks_mut(bytes)).zip(rest_scales);
            for ((values, codes), scale) in blocks {
                let largest;
                (largest, *scale) = pack(format, values, codes);
                bits = bits.max(largest);
                if measured {
                    measure(format, values, codes, *scale, &mut sums);
                }
            }
        }
        (bits < 0x7f80_0000).then_some(sums)
    }
}

/// Packs whole groups of bytes and gives the bits of the largest magnitude; sums are what `measure_group` says.
fn pack_groups(
    isa: Isa,
    values: &[Values],
    codes: &mut [Codes],
    scales: &mut [[f32; GROUP]],
    sums: Option<&mut Sums>,
) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni) {
        // SAFETY: a state's instruction set was detected when it was chosen (`Isa::detected`), and each of
        // these has AVX2.
        return unsafe { super::avx2::pack_groups(values, codes, scales, sums) };
    }
    let (_, mut sums, mut bits) = (isa, sums, 0);
    for ((values, codes), scales) in values.iter().zip(codes).zip(scales) {
        bits = bits.max(pack_group(values, codes, scales, sums.as_deref_mut()));
    }
    bits
}

/// One group, on any machine: the text of `avx2`.
#[inline(never)]
pub(super) fn pack_group(
    values: &Values,
    codes: &mut Codes,
    scales: &mut [f32; GROUP],
    sums: Option<&mut Sums>,
) -> u32 {
    let mut largest = [0; GROUP];
    for (b, largest) in largest.iter_mut().enumerate() {
        (*largest, scales[b]) = pack_int8(&values[b], &mut codes[b]);
    }
    match sums {
        None => {}
        Some(sums) if largest.iter().all(|bits| *bits == 0 || SQUARED.contains(bits)) => {
            measure_group(values, codes, scales, sums);
        }
        Some(sums) => {
            for b in 0..GROUP {
                measure(Format::Int8, &values[b], &codes[b], scales[b], sums);
            }
        }
    }
    largest.into_iter().fold(0, u32::max)
}

/// Bits of the largest magnitudes (2^-40 to 2^40) of blocks whose squares f32 can add.
pub(super) const SQUARED: std::ops::RangeInclusive<u32> = 87 << 23..=167 << 23;

/// Sums of a block in f32, values 8 apart in one lane, then lanes: `(l0 + l2) + (l1 + l3)` of `l = lower + upper
/// four`. The square of what is restored is that of the code, an integer, times that of the scale. From
/// block to block sums are f64, with a lane for each block of a group.
fn measure_group(values: &Values, codes: &Codes, scales: &[f32; GROUP], sums: &mut Sums) {
    let across = |l: [f32; 8]| {
        let l: [f32; 4] = std::array::from_fn(|i| l[i] + l[i + 4]);
        ((l[0] + l[2]) + (l[1] + l[3])) as f64
    };
    for b in 0..GROUP {
        let (mut original, mut error, mut squares) = ([0.0f32; 8], [0.0f32; 8], 0);
        for (values, codes) in values[b].as_chunks::<8>().0.iter().zip(codes[b].as_chunks::<8>().0) {
            for i in 0..8 {
                let (v, code) = (values[i], codes[i] as i8 as i32);
                let difference = (v - code as f32 * scales[b]).abs();
                original[i] += v * v;
                squares += code * code;
                error[i] += difference;
                sums.largest[i] = if difference > sums.largest[i] { difference } else { sums.largest[i] };
            }
        }
        let scale = scales[b] as f64;
        sums.original[b] += across(original);
        sums.restored[b] += squares as f64 * (scale * scale);
        sums.error[b] += across(error);
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
    let scale = int8_scale(largest);
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

/// The largest scale of int8 codes: 127 times the rounded quotient of the largest floats would be beyond f32, and what a state
/// holds can always be read.
pub(super) const MOST: f32 = (f32::MAX / 127.0).next_down();

/// The scale of int8 codes of values up to that.
#[inline(always)]
fn int8_scale(largest: u32) -> f32 {
    (f32::from_bits(largest) / 127.0).clamp(EPSILON, MOST) // a NaN stays one: the call will fail
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
        let scale = int8_scale(largest);
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

/// Adds what a block loses. Differences are those of f32; squares and sums are f64.
#[inline(always)]
fn measure(format: Format, original: &[f32], codes: &[u8], scale: f32, sums: &mut Sums) {
    let mut restored = [0.0f32; BLOCK];
    let restored = &mut restored[..original.len()];
    unpack(format, codes, scale, restored);
    let lanes = original.iter().zip(restored).zip(&mut sums.original).zip(&mut sums.restored);
    for ((((a, b), square), restored), (error, largest)) in
        lanes.zip(sums.error.iter_mut().zip(&mut sums.largest))
    {
        let (a, b) = (*a, *b);
        let difference = (a - b).abs();
        *square += a as f64 * a as f64;
        *restored += b as f64 * b as f64;
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
