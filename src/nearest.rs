//! Floats to small integers, without branches: loops over these become a few vectors on every machine.

/// 1.5 * 2^23: a float of less than 2^22 that is added to it is rounded to an integer, half to even, which
/// is then in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `t` rounded to an integer, half to even. `|t| < 2^22`, or a NaN, which stays one.
#[inline(always)]
pub fn half_even(t: f32) -> f32 {
    (t + ROUND) - ROUND
}

/// `t` rounded to an integer, half away from zero. `|t| < 2^22`, or a NaN, which stays one.
#[inline(always)]
pub fn half_away(t: f32) -> f32 {
    let even = half_even(t);
    let left = t - even; // exact
    // A half that went towards zero has the sign of t.
    let towards = (left.abs() == 0.5) & (left * t > 0.0);
    even + if towards { 2.0 * left } else { 0.0 }
}

/// The largest integer that is not above `t`. `|t| < 2^22`, or a NaN, which stays one.
#[inline(always)]
pub fn floor(t: f32) -> f32 {
    let even = half_even(t);
    even - if even > t { 1.0 } else { 0.0 }
}

/// The low byte of an integer of less than 2^22 (in two's complement, where it is negative); of a NaN that
/// arithmetic made, 0.
#[inline(always)]
pub fn byte(q: f32) -> u8 {
    (q + ROUND).to_bits() as u8
}

/// The bits of the largest magnitude: those of a NaN or an infinity, 0x7f80_0000 or more, where there is one.
#[inline(always)]
pub fn largest_bits(values: &[f32]) -> u32 {
    // Compared as signed integers, which vectors without a maximum of unsigned ones can do too.
    values.iter().fold(0i32, |max, v| max.max((v.to_bits() & 0x7fff_ffff) as i32)) as u32
}

/// Whether all values are finite.
#[inline(always)]
pub fn all_finite(values: &[f32]) -> bool {
    // In pieces, so that the first one that is not is found without reading all.
    values.chunks(1024).all(|values| largest_bits(values) < 0x7f80_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every half and its neighbours, and what lies between.
    fn values() -> impl Iterator<Item = f32> {
        (-600..=600i32).flat_map(|n| {
            let t = n as f32 * 0.5;
            let near = [t, t.next_up(), t.next_down(), t + 0.1, t + 0.249_999_99];
            near.into_iter().chain([f32::from_bits(n.unsigned_abs()), -f32::MIN_POSITIVE])
        })
    }

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        for t in values() {
            assert_eq!(half_even(t), t.round_ties_even(), "{t:e}");
            assert_eq!(half_away(t), t.round(), "{t:e}");
            assert_eq!(floor(t), t.floor(), "{t:e}");
            if t.round().abs() < 128.0 {
                assert_eq!(byte(t.round()), t.round() as i8 as u8, "{t:e}");
            }
        }
        assert_eq!((byte(255.0), byte(-1.0)), (255, 255));
        for nan in [half_even(f32::NAN), half_away(f32::NAN), floor(f32::NAN)] {
            assert!(nan.is_nan());
        }
    }

    #[test]
    fn magnitudes_and_what_is_not_finite() {
        let mut values = vec![0.5f32; 3000];
        values[2999] = -3.0;
        assert_eq!(f32::from_bits(largest_bits(&values)), 3.0);
        assert!(all_finite(&values) && all_finite(&[]));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1023, 1024, 2999] {
                let mut values = values.clone();
                values[at] = bad;
                assert!(!all_finite(&values), "{bad} at {at}");
            }
        }
    }
}
