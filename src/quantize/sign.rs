//! Signs: `s = mean |w|` of the row, +1 where `w >= 0`, else -1.

use super::Rule;
use crate::error::Result;
use crate::layout::{Layout, Row, Values};

pub(super) struct Sign;

impl Rule for Sign {
    fn layout(&self) -> Layout {
        Layout::rows(1, Values::Sign)
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        let sum: f64 = weights.iter().map(|w| w.abs() as f64).sum();
        row.scales.fill((sum / weights.len() as f64) as f32);
        for (w, code) in weights.iter().zip(&mut row.codes) {
            *code = (*w >= 0.0) as u8;
        }
        Ok(())
    }
}
