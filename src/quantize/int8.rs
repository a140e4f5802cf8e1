//! Bytes: `s = max |w| / 127` of the row, `q = clamp(round_half_even(w / s), -127, 127)`.

use super::Rule;
use crate::error::Result;
use crate::layout::{Layout, Row, Values};

pub(super) struct Int8;

impl Rule for Int8 {
    fn layout(&self) -> Layout {
        Layout::rows(8, Values::Offset(128))
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        let scale = weights.iter().fold(0.0f32, |a, w| a.max(w.abs())) / 127.0;
        row.scales.fill(scale);
        for (w, code) in weights.iter().zip(&mut row.codes) {
            // A row of zeros, or of so little that the scale is 0.
            let q = if scale == 0.0 { 0.0 } else { (w / scale).round_ties_even().clamp(-127.0, 127.0) };
            *code = (q + 128.0) as u8;
        }
        Ok(())
    }
}
