//! f16 and bf16 <-> f32 without branches, so that compilers vectorise loops over them.
//!
//! The values are those of IEEE 754 (to nearest, ties to even), and those of the crate `half` bit for bit:
//! a NaN keeps the upper bits of its payload and becomes quiet. Rounding to a subnormal f16 is an addition
//! of f32: it needs the floating-point mode that every call of the library sets (`fpmode`).

/// 2^-14, the least normal f16, as f32.
const LEAST_NORMAL: u32 = 113 << 23;
/// 65 536, the first power of two past the finite f16.
const TOO_LARGE: u32 = 143 << 23;
/// The infinity of f32.
const INFINITY: u32 = 0x7f80_0000;

/// `yes` where `condition` holds, else `no`: both are there already.
#[inline(always)]
fn choose(condition: bool, yes: u32, no: u32) -> u32 {
    if condition { yes } else { no }
}

/// The f32 of the bits of an f16. Exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = (bits as u32 & 0x8000) << 16;
    let shifted = (bits as u32 & 0x7fff) << 13;
    let normal = shifted + (112 << 23);
    // A subnormal is that many steps above 2^-14, which the subtraction takes off again.
    let subnormal = (f32::from_bits(shifted + LEAST_NORMAL) - f32::from_bits(LEAST_NORMAL)).to_bits();
    let special = shifted | INFINITY | choose(shifted > 0x1f << 23, 0x0040_0000, 0);
    let finite = choose(shifted < 1 << 23, subnormal, normal);
    f32::from_bits(sign | choose(shifted >= 0x1f << 23, special, finite))
}

/// The bits of the f16 nearest to `value`.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // Half a step less one, and one more where the result would be odd: ties go to even.
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    // The ulp of 0.5 is the step of subnormal f16.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let payload = choose(magnitude > INFINITY, 0x0200 | (magnitude >> 13 & 0x3ff), 0);
    let finite = choose(magnitude < LEAST_NORMAL, subnormal, normal);
    (sign | choose(magnitude >= TOO_LARGE, 0x7c00 | payload, finite)) as u16
}

/// The bits of an f16 on its way through f32: a NaN becomes quiet, nothing else changes.
#[inline(always)]
pub fn quiet_f16(bits: u16) -> u16 {
    bits | if bits & 0x7fff > 0x7c00 { 0x0200 } else { 0 }
}

/// The same for a bf16.
#[inline(always)]
pub fn quiet_bf16(bits: u16) -> u16 {
    bits | if bits & 0x7fff > 0x7f80 { 0x0040 } else { 0 }
}

/// The f32 of the bits of a bf16. Exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    let quiet = choose(bits & 0x7fff > 0x7f80, 0x0040_0000, 0);
    f32::from_bits((bits as u32) << 16 | quiet)
}

/// The bits of the bf16 nearest to `value`.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    choose(bits & 0x7fff_ffff > INFINITY, bits >> 16 | 0x0040, rounded) as u16
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn sixteen_bits_become_what_half_makes_of_them() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            assert_eq!(f16_to_f32(bits).to_bits(), half.to_bits(), "{bits:#x}");
            assert_eq!(bf16_to_f32(bits).to_bits(), brain.to_bits(), "{bits:#x}");
            assert_eq!(quiet_f16(bits), f32_to_f16(f16_to_f32(bits)), "{bits:#x}");
            assert_eq!(quiet_bf16(bits), f32_to_bf16(bf16_to_f32(bits)), "{bits:#x}");
        }
    }

    #[test]
    fn f32_are_rounded_as_half_rounds_them() {
        let step = if cfg!(miri) { 0x10_0001 } else { 251 };
        // Every exponent, sign and kind of tie: bits around each representable value too.
        let around = (0..=u16::MAX).step_by(if cfg!(miri) { 257 } else { 1 }).flat_map(|bits| {
            let values = [f16::from_bits(bits).to_f32().to_bits(), (bits as u32) << 16];
            values
                .into_iter()
                .flat_map(|v| [0u32, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000].map(|d| v.wrapping_add(d)))
        });
        for bits in (0..=u32::MAX).step_by(step).chain(around) {
            let value = f32::from_bits(bits);
            assert_eq!(f32_to_f16(value), f16::from_f32(value).to_bits(), "{bits:#x}");
            assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits(), "{bits:#x}");
        }
    }
}
