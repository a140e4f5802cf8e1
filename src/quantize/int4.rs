//! 4-bit groups by cortex' rule: `s = max(max |w| / 7, 1e-5)` of the group,
//! `q = clamp(round_half_away(w / s), -8, 7)`.

use super::Rule;
use crate::codec::cortex::{int4_code, int4_scale};
use crate::error::Result;
use crate::layout::{Coded, Layout, Offset, Row, ScaleType, Scales, Values};

/// Columns of a group where nobody says.
const GROUP: usize = 128;

pub(super) struct Int4 {
    len: usize,
}

impl Int4 {
    pub(super) fn new(columns: usize, group: usize) -> Int4 {
        Int4 { len: if group == 0 { GROUP } else { group }.min(columns) }
    }
}

/// The layout of groups of so many columns, 0 for the default.
pub(super) fn layout(columns: usize, group: usize) -> Layout {
    Layout::Coded(Coded {
        bits: 4,
        values: Values::Offset(8),
        scales: Scales::Group { len: Int4::new(columns, group).len, offset: Offset::None },
        scale_type: ScaleType::F32,
        bases: 1,
    })
}

impl Rule for Int4 {
    fn layout(&self) -> Layout {
        layout(self.len, self.len)
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        let groups = weights.chunks(self.len).zip(row.codes.chunks_mut(self.len));
        for ((weights, codes), scale) in groups.zip(&mut row.scales) {
            *scale = int4_scale(weights);
            for (w, code) in weights.iter().zip(codes) {
                *code = int4_code(*w, *scale);
            }
        }
        Ok(())
    }
}
