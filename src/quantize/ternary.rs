//! Ternary by BitNet's rule: `s = max(mean |w|, 1e-5)` of the whole matrix,
//! `q = clamp(round_half_even(w / s), -1, 1)`, `w ~ s q`.

use super::{Rule, check_finite};
use crate::codec::Matrix;
use crate::error::Result;
use crate::layout::{Layout, Row, Values};
use crate::types::Type;

/// The least scale.
const SCALE_MIN: f32 = 1e-5;

pub(super) struct Ternary {
    scale: f32,
}

impl Ternary {
    /// Reads the whole matrix once for its mean magnitude: in f64, where the sum of so many f32 does
    /// not lose the last bit of the mean.
    pub(super) fn of(source: &dyn Matrix) -> Result<Ternary> {
        let mut row = Row::new(source.layout(), source.in_features())?;
        let mut sum = 0.0f64;
        for index in 0..source.out_features() {
            source.read_row(index, &mut row)?;
            check_finite(index, &row.floats, Type::Ternary)?;
            sum += row.floats.iter().map(|w| w.abs() as f64).sum::<f64>();
        }
        let mean = sum / (source.out_features() as f64 * source.in_features() as f64);
        Ok(Ternary { scale: (mean as f32).max(SCALE_MIN) })
    }
}

impl Rule for Ternary {
    fn layout(&self) -> Layout {
        Layout::rows(2, Values::Offset(1))
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        row.scales.fill(self.scale);
        for (w, code) in weights.iter().zip(&mut row.codes) {
            *code = ((w / self.scale).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8;
        }
        Ok(())
    }
}
