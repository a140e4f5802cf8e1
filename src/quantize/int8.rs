//! Bytes: `s = max |w| / 127` of the row, `q = clamp(round_half_even(w / s), -127, 127)`. burn_dragon
//! takes `s = max(max(2 mean |w|, 1e-8) / 127, 1e-8)` of the tensor and rounds halves away from zero:
//! every weight above twice the mean is cut.

use super::rounding::Kind;
use super::{Rule, flat_mean};
use crate::error::Result;
use crate::layout::{Layout, Matrix, Row, Values};
use crate::types::Type;

pub(super) struct Int8 {
    /// The tensor's; none: each row has its own.
    scale: Option<[f32; 1]>,
}

impl Int8 {
    pub(super) fn of(source: &dyn Matrix, kind: Kind) -> Result<Int8> {
        let scale = match kind {
            Kind::MeanRange => {
                let range = (2.0 * flat_mean(source, Type::Int8)?).max(1e-8);
                Some([(range / 127.0).max(1e-8)])
            }
            _ => None,
        };
        Ok(Int8 { scale })
    }
}

impl Rule for Int8 {
    fn layout(&self) -> Layout {
        Layout::rows(8, Values::Offset(128))
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        if let Some([scale]) = self.scale {
            row.scales.fill(scale);
            for (w, code) in weights.iter().zip(&mut row.codes) {
                *code = ((w / scale).round().clamp(-127.0, 127.0) + 128.0) as u8;
            }
            return Ok(());
        }
        // Weights are finite: their magnitudes are in the order of their bits.
        let largest = weights.iter().fold(0, |max, w| max.max(w.to_bits() & 0x7fff_ffff));
        let scale = f32::from_bits(largest) / 127.0;
        row.scales.fill(scale);
        if scale == 0.0 {
            row.codes.fill(128); // a row of zeros, or of so little that the scale is 0
            return Ok(());
        }
        // Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits; the bounds are
        // integers, so that rounding after them is rounding before.
        const ROUND: f32 = 12_582_912.0;
        for (w, code) in weights.iter().zip(&mut row.codes) {
            let t = (w / scale).clamp(-127.0, 127.0) + ROUND;
            *code = t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(128) as u8;
        }
        Ok(())
    }
    fn tensor_scales(&self) -> Option<&[f32]> {
        self.scale.as_ref().map(|scale| &scale[..])
    }
}
