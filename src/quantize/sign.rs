//! Signs: `s = mean |w|` of the row, +1 where `w >= 0`, else -1. burn_dragon has one scale,
//! `max(mean |w|, 1e-8)` of the tensor.

use super::rounding::Kind;
use super::{Rule, flat_mean};
use crate::error::Result;
use crate::layout::{Layout, Matrix, Row, Values};
use crate::types::Type;

pub(super) struct Sign {
    /// The tensor's; none: each row has its own.
    scale: Option<[f32; 1]>,
}

impl Sign {
    pub(super) fn of(source: &dyn Matrix, kind: Kind) -> Result<Sign> {
        let scale = match kind {
            Kind::Tensor => Some([flat_mean(source, Type::Binary)?.max(1e-8)]),
            _ => None,
        };
        Ok(Sign { scale })
    }
}

impl Rule for Sign {
    fn layout(&self) -> Layout {
        Layout::rows(1, Values::Sign)
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        row.scales.fill(match self.scale {
            Some([scale]) => scale,
            None => {
                let sum: f64 = weights.iter().map(|w| w.abs() as f64).sum();
                (sum / weights.len() as f64) as f32
            }
        });
        for (w, code) in weights.iter().zip(&mut row.codes) {
            *code = (*w >= 0.0) as u8;
        }
        Ok(())
    }
    fn tensor_scales(&self) -> Option<&[f32]> {
        self.scale.as_ref().map(|scale| &scale[..])
    }
}
