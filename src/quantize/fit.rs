//! Scales and codes of sixteen rows at a time, for any layout of integer codes.
//!
//! Rows are lanes: `x[k][lane]`. The scales of a *segment* (a group, a super-block, or the row) are
//! decided together, from its weights alone; then a weight becomes the nearest code, column by column.
//! In between the caller may change the weights of the columns that are left (`compensate`).

use half::{bf16, f16};

use super::search::{Groups, LANES, Lane, Range, TwoLevel};
use crate::codec::beyond_f16;
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Offset, Row, SUPER_BLOCK, ScaleType, Scales, Values};
use crate::memory::filled;
use crate::nearest;

/// Largest magnitude of a weight whose scale is searched: sums of products of more may be beyond f32.
const LARGEST: f32 = 1e30;

/// What a code means in each lane: `scale v + minimum`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub(super) scale: Lane,
    pub(super) minimum: Lane,
}

/// How rows of a layout are rounded.
pub(super) struct Fit {
    isa: Isa,
    coded: Coded,
    columns: usize,
    /// What codes stand for.
    pub(super) range: Range,
    /// Whether there is no 0.
    pub(super) signs: bool,
    two_level: Option<TwoLevel>,
}

impl Fit {
    /// Refused for layouts whose codes go through a table or have integer zero points, or that sum
    /// several bases.
    pub(super) fn new(isa: Isa, layout: Layout, columns: usize) -> Result<Fit> {
        let coded = match layout {
            Layout::Coded(coded) if coded.bases == 1 => coded,
            _ => return Err(fail!(Unsupported, "a search for {layout:?}")),
        };
        let (range, signs) = match coded.values {
            Values::Sign => (Range { low: -1.0, high: 1.0 }, true),
            // Ternary has three codes; +2 is legal in some formats, and no tool writes it.
            Values::Offset(1) if coded.bits == 2 => (Range { low: -1.0, high: 1.0 }, false),
            // Bytes keep to -127..=127, as their formats' tools do.
            Values::Offset(128) => (Range { low: -127.0, high: 127.0 }, false),
            Values::Offset(zero) => {
                let high = (1u32 << coded.bits) as f32 - 1.0 - zero as f32;
                (Range { low: -(zero as f32), high }, false)
            }
            Values::Table(_) => {
                return Err(fail!(
                    Unsupported,
                    "codes of a table are not searched: mxfp4 takes BL_QUANTIZE_FIXED, iq4_nl and iq4_xs are not written"
                ));
            }
        };
        let two_level = match coded.scales {
            Scales::TwoLevel { len: 16, minimum: true } => Some((Range { low: 0.0, high: 15.0 }, 15.0)),
            Scales::TwoLevel { minimum: true, .. } => Some((Range { low: 0.0, high: 63.0 }, 63.0)),
            Scales::TwoLevel { minimum: false, .. } if coded.bits == 3 => {
                Some((Range { low: -32.0, high: 31.0 }, 0.0))
            }
            Scales::TwoLevel { minimum: false, .. } => Some((Range { low: -128.0, high: 127.0 }, 0.0)),
            Scales::Group { offset: Offset::Zero, .. } => {
                return Err(fail!(Unsupported, "a search for integer zero points"));
            }
            _ => None,
        };
        let two_level = two_level.map(|(scales, minima)| TwoLevel { scales, minima });
        Ok(Fit { isa, coded, columns, range, signs, two_level })
    }

    pub(super) fn coded(&self) -> &Coded {
        &self.coded
    }

    /// Columns whose scales are decided together.
    pub(super) fn segment(&self) -> usize {
        match self.coded.scales {
            Scales::Row => self.columns,
            Scales::Group { len, .. } => len,
            Scales::TwoLevel { .. } => SUPER_BLOCK,
        }
    }

    /// Columns that share a step.
    pub(super) fn group(&self) -> usize {
        self.coded.group_len(self.columns)
    }

    /// Whether groups have a minimum that is free.
    pub(super) fn has_minimum(&self) -> bool {
        matches!(self.coded.scales, Scales::Group { offset: Offset::Minimum, .. })
    }

    /// A scale as the layout stores it.
    pub(super) fn stored(&self, scale: f32) -> f32 {
        match self.coded.scale_type {
            ScaleType::F16 => {
                let half = f16::from_f32(scale);
                if half.is_infinite() { f16::MAX.to_f32().copysign(scale) } else { half.to_f32() }
            }
            ScaleType::Bf16 => bf16::from_f32(scale).to_f32(),
            _ => scale,
        }
    }

    /// Decides the scales of the segment from column `first` on; `x` and `importance` are of its columns.
    pub(super) fn scales(
        &self,
        first: usize,
        x: &[Lane],
        importance: &[f32],
        rows: &mut [Row],
    ) -> Result<()> {
        let largest = f32::from_bits(nearest::largest_bits(x.as_flattened()));
        if largest > LARGEST {
            return Err(fail!(
                InvalidArgument,
                "weights up to {largest}: scales are searched up to {LARGEST}"
            ));
        }
        if let Some(format) = self.two_level {
            return self.super_blocks(first, x, importance, rows, format);
        }
        let mut spread = filled(x.len(), [0.0; LANES], "weights of a search")?;
        spread.iter_mut().zip(importance).for_each(|(lane, w)| lane.fill(*w));
        let g = first / self.segment();
        let groups = Groups { isa: self.isa, x, importance: &spread, range: self.range };
        let (scale, minimum) = if self.has_minimum() {
            groups.affine(false)
        } else if self.signs {
            let (mut sum, mut total) = ([0.0f32; LANES], 0.0);
            for (x, w) in x.iter().zip(importance) {
                (0..LANES).for_each(|i| sum[i] += w * x[i].abs());
                total += w;
            }
            (sum.map(|s| if total > 0.0 { s / total } else { 0.0 }), [0.0; LANES])
        } else {
            (groups.symmetric(), [0.0; LANES])
        };
        for (lane, row) in rows.iter_mut().enumerate() {
            if self.coded.scale_type == ScaleType::F16
                && let Some(value) =
                    [scale[lane], minimum[lane]].into_iter().find(|s| f16::from_f32(*s).is_infinite())
            {
                return Err(beyond_f16(value));
            }
            row.scales[g] = self.stored(scale[lane]);
            if self.has_minimum() {
                row.minimums[g] = self.stored(minimum[lane]);
            }
        }
        Ok(())
    }

    /// The super-blocks of all rows: their sub-blocks are the lanes of a search of their own.
    fn super_blocks(
        &self,
        first: usize,
        x: &[Lane],
        importance: &[f32],
        rows: &mut [Row],
        format: TwoLevel,
    ) -> Result<()> {
        let len = self.group();
        let each = SUPER_BLOCK / len; // sub-blocks of a super-block: 8 or 16
        let at_once = LANES / each;
        let mut values = [[0.0f32; LANES]; 32];
        let mut spread = [[0.0f32; LANES]; 32];
        for k in 0..len {
            for lane in 0..LANES {
                spread[k][lane] = importance[lane % each * len + k];
            }
        }
        for (pair, rows) in rows.chunks_mut(at_once).enumerate() {
            for k in 0..len {
                for lane in 0..LANES {
                    let row = (pair * at_once + lane / each).min(LANES - 1);
                    values[k][lane] = x[lane % each * len + k][row];
                }
            }
            let (x, importance) = (&values[..len], &spread[..len]);
            let found = Groups { isa: self.isa, x, importance, range: self.range }.two_level(format);
            for (n, row) in rows.iter_mut().enumerate() {
                if let Some(value) = found.beyond[n] {
                    return Err(beyond_f16(value));
                }
                let b = first / SUPER_BLOCK;
                row.scales[b] = found.scale[n];
                for j in 0..each {
                    row.sub_scales[b * each + j] = found.scales[n * each + j] as i8;
                }
                if format.minima > 0.0 {
                    row.minimums[b] = found.minimum[n];
                    for j in 0..each {
                        row.sub_minimums[b * each + j] = found.minima[n * each + j] as i8;
                    }
                }
            }
        }
        Ok(())
    }

    /// What codes of column `k` mean in each row.
    pub(super) fn steps(&self, k: usize, rows: &[Row]) -> Steps {
        let mut steps = Steps { scale: [0.0; LANES], minimum: [0.0; LANES] };
        let g = k / self.group();
        for (lane, row) in rows.iter().enumerate() {
            (steps.scale[lane], steps.minimum[lane]) = match self.coded.scales {
                Scales::Row => (row.scales[0], 0.0),
                Scales::Group { .. } => (row.scales[g], row.minimums.get(g).copied().unwrap_or(0.0)),
                Scales::TwoLevel { minimum, .. } => {
                    let b = k / SUPER_BLOCK;
                    let m = if minimum { -(row.minimums[b] * row.sub_minimums[g] as f32) } else { 0.0 };
                    (row.scales[b] * row.sub_scales[g] as f32, m)
                }
            };
        }
        steps
    }

    /// The code of an integer.
    #[inline(always)]
    pub(super) fn code(&self, v: f32) -> u8 {
        match self.coded.values {
            Values::Offset(zero) => (v as i32 + zero as i32) as u8,
            _ => (v > 0.0) as u8,
        }
    }
}
