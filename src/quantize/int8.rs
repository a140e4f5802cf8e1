//! Bytes: `s = max |w| / 127` of the row, `q = clamp(round_half_even(w / s), -127, 127)`. burn_dragon
//! takes `s = max(2 mean |w| / 127, 1e-8)` of the tensor and rounds halves away from zero:
//! every weight above twice the mean is cut.

use super::rounding::Kind;
use super::{Rule, flat_mean};
use crate::error::Result;
use crate::layout::{Layout, Matrix, Row, Values};
use crate::nearest;
use crate::types::Type;

pub(super) struct Int8 {
    /// The tensor's; none: each row has its own.
    scale: Option<[f32; 1]>,
}

impl Int8 {
    pub(super) fn of(source: &dyn Matrix, kind: Kind) -> Result<Int8> {
        let scale = match kind {
            Kind::MeanRange => {
                // 2 mean / 127, to the last bit, where twice the mean may be beyond f32.
                Some([(flat_mean(source, Type::Int8)? / 63.5).max(1e-8)])
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
                *code = nearest::byte(nearest::half_away((w / scale).clamp(-127.0, 127.0))) ^ 128;
            }
            return Ok(());
        }
        let scale = f32::from_bits(nearest::largest_bits(weights)) / 127.0;
        row.scales.fill(scale);
        if scale == 0.0 {
            row.codes.fill(128); // a row of zeros, or of so little that the scale is 0
            return Ok(());
        }
        // The bounds are integers: rounding after them is rounding before. A byte keeps only the low bits, and
        // so rounds as it is taken.
        for (w, code) in weights.iter().zip(&mut row.codes) {
            *code = nearest::byte((w / scale).clamp(-127.0, 127.0)) ^ 128;
        }
        Ok(())
    }
    fn tensor_scales(&self) -> Option<&[f32]> {
        self.scale.as_ref().map(|scale| &scale[..])
    }
}
