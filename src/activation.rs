//! Activations: rows of x as kernels read them, either floats or integer codes with scales.
//!
//! The scalar functions here are the text of `docs/numerics.md`, section 1. They are written so that
//! a compiler vectorises them: every operation is exact or elementwise, so the result does not
//! depend on the vector width, and each instruction set compiles this same text (see
//! `kernel::Isa::quantize_row`).
//!
//! ```text
//! codes   [panel][quad][row of the panel][4]    mr rows interleaved by quads, so that a kernel
//! scales  [panel][record][row of the panel]     for mr rows walks one stream; mr = 1: row by row
//! sums    [panel][group][row of the panel]
//! floats  [panel][column][row of the panel]
//! ```
//! Columns are in packed order (see `layout::packed`); pads hold code 0. The last panel may have
//! rows past the batch: their codes are 0 and their results are not stored.

use crate::layout::packed::Geometry;
use crate::layout::{Coded, Layout, QUAD, Scales};
use crate::limits::INT32_COLUMNS;

/// Below this magnitude a segment counts as zero: `127 / a` stays finite, products stay normal.
pub const ZERO_BELOW: f32 = f32::from_bits((127 - 100) << 23);

/// What kernels multiply the weights with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows of f32.
    Float,
    /// Rows of int8 codes with scales.
    Integer,
}

/// How x becomes integers: one of the choices of `bl_activation`, with its parameters resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Largest magnitude of a code: 127 or 7.
    pub limit: f32,
    /// Which columns share a scale.
    pub segment: Segment,
    /// A scale fixed by the caller instead of each segment's own.
    pub fixed_scale: Option<f32>,
}

/// Columns of x that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// All of a row.
    Row,
    /// The columns of a record: the weights' group or super-block.
    Record,
}

/// How a row of codes is cut into records and groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Where the columns lie.
    pub geometry: Geometry,
    /// Columns whose codes are summed up: the weights' group, or what an int32 can hold.
    pub group: usize,
    /// Groups in a full record.
    pub record_groups: usize,
    /// Groups of a row.
    pub groups: usize,
    /// Quads of a row of codes.
    pub quads: usize,
}

impl Shape {
    /// The shape for weights of that layout and geometry.
    pub fn new(layout: &Layout, geometry: Geometry) -> Shape {
        let group = match layout {
            Layout::Coded(Coded { scales: Scales::TwoLevel { len, .. }, .. }) => *len,
            _ => geometry.record.min(INT32_COLUMNS),
        };
        let record_groups = geometry.record.div_ceil(group);
        let last = geometry.record_len(geometry.records - 1).div_ceil(group);
        Shape {
            geometry,
            group,
            record_groups,
            groups: (geometry.records - 1) * record_groups + last,
            quads: geometry.padded().div_ceil(QUAD),
        }
    }
}

/// One row of x as integers, row by row (not interleaved).
pub struct RowCodes<'a> {
    /// `shape.quads * 4` codes in packed order; pads are 0.
    pub codes: &'a mut [i8],
    /// One scale for each record.
    pub scales: &'a mut [f32],
    /// The sum of the codes of each group.
    pub sums: &'a mut [i32],
}

/// A batch of rows ready for kernels.
#[derive(Clone, Copy)]
pub enum Activations<'a> {
    /// Floats.
    Float(Floats<'a>),
    /// Integer codes.
    Integer(Codes<'a>),
}

/// A batch of float rows.
#[derive(Clone, Copy)]
pub struct Floats<'a> {
    /// Rows of a panel.
    pub mr: usize,
    /// `[panel][column][mr]`.
    pub values: &'a [f32],
}

/// A batch of integer rows.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    /// Rows of a panel.
    pub mr: usize,
    /// How a row is cut.
    pub shape: &'a Shape,
    /// `[panel][quad][mr][4]`.
    pub codes: &'a [i8],
    /// `[panel][record][mr]`.
    pub scales: &'a [f32],
    /// `[panel][group][mr]`.
    pub sums: &'a [i32],
}

impl<'a> Codes<'a> {
    /// One panel of rows.
    pub fn panel(&self, panel: usize) -> Codes<'a> {
        let (quads, records, groups) = (self.shape.quads, self.shape.geometry.records, self.shape.groups);
        let mr = self.mr;
        Codes {
            codes: &self.codes[panel * quads * QUAD * mr..][..quads * QUAD * mr],
            scales: &self.scales[panel * records * mr..][..records * mr],
            sums: &self.sums[panel * groups * mr..][..groups * mr],
            ..*self
        }
    }
}

impl<'a> Floats<'a> {
    /// One panel of rows of `columns`.
    pub fn panel(&self, panel: usize, columns: usize) -> Floats<'a> {
        let size = columns * self.mr;
        Floats { values: &self.values[panel * size..][..size], ..*self }
    }
}

/// The largest magnitude in `x`, as bits of an f32: not finite from 0x7f80_0000 on.
#[inline(always)]
fn magnitude_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff))
}

/// `clamp(round_half_even(x * inverse), -limit, limit)`, and the sum of the codes.
#[inline(always)]
fn codes_of(x: &[f32], inverse: f32, limit: f32, codes: &mut [i8]) -> i32 {
    // Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits: the same
    // in every vector width, and exact because the clamped product is far below 2^22.
    const ROUND: f32 = 12_582_912.0;
    let mut sum = 0;
    for (v, code) in x.iter().zip(codes) {
        let t = v * inverse;
        let t = if t > -limit { t } else { -limit };
        let t = if t < limit { t } else { limit };
        let rounded = (t + ROUND).to_bits() as i32;
        let q = rounded.wrapping_sub(ROUND.to_bits() as i32);
        *code = q as i8;
        sum += q;
    }
    sum
}

/// The scale of a segment and the factor its values are multiplied with.
#[inline(always)]
fn scale_of(magnitude: u32, rule: &Rule) -> (f32, f32) {
    match rule.fixed_scale {
        Some(s) => (s, 1.0 / s),
        None => {
            let a = f32::from_bits(magnitude);
            if a < ZERO_BELOW { (0.0, 0.0) } else { (a / rule.limit, rule.limit / a) }
        }
    }
}

/// Quantises one row of x, whose columns are in packed order without pads. Returns whether every
/// value was finite; where not, all codes and scales are 0 and the caller writes a row of NaN.
#[inline(always)]
pub fn quantize_row(x: &[f32], shape: &Shape, rule: &Rule, out: &mut RowCodes<'_>) -> bool {
    let geometry = &shape.geometry;
    const FINITE_BELOW: u32 = 0x7f80_0000;
    let all = if rule.segment == Segment::Row { magnitude_bits(x) } else { 0 };
    let mut largest = all;
    let (mut scale, mut inverse) = scale_of(all, rule);
    let padded = geometry.record_padded();
    for (r, x) in x.chunks(geometry.record).enumerate() {
        if rule.segment == Segment::Record {
            let magnitude = magnitude_bits(x);
            largest = largest.max(magnitude);
            (scale, inverse) = scale_of(magnitude, rule);
        }
        out.scales[r] = scale;
        let end = out.codes.len().min((r + 1) * padded);
        let codes = &mut out.codes[r * padded..end];
        let (codes, pads) = codes.split_at_mut(x.len());
        pads.fill(0);
        if padded == 32 && x.len() == 32 && shape.group == 32 {
            // The commonest group, as a constant: the loops below unroll into a few vectors.
            out.sums[r] = codes_of(&x[..32], inverse, rule.limit, &mut codes[..32]);
            continue;
        }
        let sums = &mut out.sums[r * shape.record_groups..];
        for ((x, codes), sum) in x.chunks(shape.group).zip(codes.chunks_mut(shape.group)).zip(sums) {
            *sum = codes_of(x, inverse, rule.limit, codes);
        }
    }
    if largest < FINITE_BELOW {
        return true;
    }
    out.codes.fill(0);
    out.scales.fill(0.0);
    out.sums.fill(0);
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Offset;

    fn quantize(x: &[f32], segment: Segment) -> (Vec<i8>, Vec<f32>, Vec<i32>, bool) {
        let layout = Layout::groups(4, 8, 32, Offset::None);
        let shape = Shape::new(&layout, Geometry::new(&layout, x.len()));
        let mut codes = vec![1; shape.quads * QUAD];
        let mut scales = vec![1.0; shape.geometry.records];
        let mut sums = vec![1; shape.groups];
        let rule = Rule { limit: 127.0, segment, fixed_scale: None };
        let mut out = RowCodes { codes: &mut codes, scales: &mut scales, sums: &mut sums };
        let finite = quantize_row(x, &shape, &rule, &mut out);
        (codes, scales, sums, finite)
    }

    #[test]
    fn halves_round_to_even_and_the_extreme_is_127() {
        let mut x = vec![0.0f32; 40];
        x[..6].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, -126.5, 3.49]);
        x[32..34].copy_from_slice(&[-2.0, 1.0]);
        let (codes, scales, sums, finite) = quantize(&x, Segment::Record);
        assert!(finite);
        assert_eq!(&codes[..6], &[127, 0, 2, -2, -126, 3]);
        assert_eq!(&codes[32..34], &[-127, 64]); // 63.5 to even
        assert_eq!(scales, [1.0, 2.0 / 127.0]);
        assert_eq!(sums, [4, -63]);
    }

    #[test]
    fn tiny_segments_are_zero_and_subnormals_do_not_divide() {
        let (codes, scales, _, finite) = quantize(&[1e-38; 32], Segment::Row);
        assert!(finite && codes.iter().all(|&c| c == 0) && scales == [0.0]);
        let (codes, scales, _, _) = quantize(&[ZERO_BELOW; 32], Segment::Row);
        assert!(codes.iter().all(|&c| c == 127) && scales[0] > 0.0);
    }

    #[test]
    fn one_nan_or_infinity_marks_the_row() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for segment in [Segment::Row, Segment::Record] {
                let mut x = vec![1.0f32; 64];
                x[33] = bad;
                let (codes, scales, sums, finite) = quantize(&x, segment);
                assert!(!finite && codes.iter().all(|&c| c == 0));
                assert!(scales.iter().all(|&s| s == 0.0) && sums.iter().all(|&s| s == 0));
            }
        }
    }
}
