//! Plain floats: the nearest of the type, ties to even. What is not finite stays what it is; a finite
//! weight that the type cannot hold is refused.

use half::{bf16, f16};

use super::Rule;
use crate::error::{Result, fail};
use crate::layout::{Float, Layout, Row};
use crate::types::Type;

pub(super) struct Dense {
    float: Float,
}

impl Dense {
    pub(super) fn new(target: Type) -> Dense {
        let float = match target {
            Type::F16 => Float::F16,
            Type::Bf16 => Float::Bf16,
            _ => Float::F32,
        };
        Dense { float }
    }
}

impl Rule for Dense {
    fn layout(&self) -> Layout {
        Layout::Dense(self.float)
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        for (k, (w, out)) in weights.iter().zip(&mut row.floats).enumerate() {
            *out = match self.float {
                Float::F32 => *w,
                Float::F16 => f16::from_f32(*w).to_f32(),
                Float::Bf16 => bf16::from_f32(*w).to_f32(),
            };
            if out.is_infinite() && w.is_finite() {
                return Err(fail!(InvalidArgument, "weight {k} is {w}: too large for {:?}", self.float));
            }
        }
        Ok(())
    }
    fn takes_all(&self) -> bool {
        true
    }
}
