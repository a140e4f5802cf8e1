//! Activations: rows of x as kernels read them, either floats or integer codes with scales.
//!
//! The scalar functions here are the text of `docs/numerics.md`, section 1. They are written so that
//! a compiler vectorises them: every operation is exact or elementwise, so the result does not
//! depend on the vector width, and each instruction set compiles this same text (see
//! `kernel::quantize_row`).
//!
//! ```text
//! codes   [panel][quad][row of the panel][4]    mr rows interleaved by quads, so that a kernel
//! scales  [panel][record][row of the panel]     for mr rows walks one stream; mr = 1: row by row
//! sums    [panel][group][row of the panel]
//! totals  [panel][group][row of the panel]      unsigned codes only, see below
//! floats  [panel][column][row of the panel]
//! ```
//! Kernels multiply with int8. A code q of 0..255 is stored as q - 128, so that
//! `sum v q = sum v (q - 128) + 128 sum v`: the kernels begin each group's sum with its
//! `128 sum v` ([`WeightSums`]), take zero points off with the sums of the stored codes, and minimums
//! with their totals, the sums of q.
//!
//! Columns are in packed order (see `layout::packed`); pads hold code 0. The last panel may have
//! rows past the batch: their codes are 0 and their results are not stored.

use crate::error::{Result, fail};
use crate::layout::packed::Geometry;
use crate::layout::{Coded, Layout, Packed, QUAD, Scales, TILE};
use crate::limits::INT32_COLUMNS;
use crate::math;
use crate::memory::filled;

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

/// The codes of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// -127 .. 127.
    Int8,
    /// -7 .. 7.
    Int4,
    /// 0 .. 255: what is negative becomes 0.
    Uint8,
}

impl Width {
    /// The largest code.
    #[inline(always)]
    pub fn limit(self) -> f32 {
        match self {
            Width::Int8 => 127.0,
            Width::Int4 => 7.0,
            Width::Uint8 => 255.0,
        }
    }

    /// The smallest code.
    #[inline(always)]
    fn lowest(self) -> f32 {
        if self == Width::Uint8 { 0.0 } else { -self.limit() }
    }

    /// What is taken from a code so that it fits an int8.
    #[inline(always)]
    pub fn bias(self) -> i32 {
        if self == Width::Uint8 { 128 } else { 0 }
    }
}

/// Which value of a segment the largest code stands for, and how codes are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The largest magnitude; `x * (limit / a)`, half to even.
    Largest,
    /// Twice the mean magnitude, so that larger values are clipped; `x / s`, half away from zero. The
    /// rule of burn_dragon, for models trained with it.
    TwiceMean,
}

/// A scale of [`Span::TwiceMean`] is at least this.
const EPSILON: f32 = 1e-8;

/// How x becomes integers: one of the choices of `bl_activation`, with its parameters resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The codes.
    pub width: Width,
    /// What they span.
    pub span: Span,
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

    /// The columns of each group, without pads.
    fn group_lens(&self) -> impl Iterator<Item = usize> {
        let (geometry, group) = (self.geometry, self.group);
        (0..geometry.records).flat_map(move |r| {
            let len = geometry.record_len(r);
            (0..len.div_ceil(group)).map(move |g| group.min(len - g * group))
        })
    }
}

/// One row of x as integers, row by row (not interleaved).
pub struct RowCodes<'a> {
    /// `shape.quads * 4` codes in packed order; pads are 0.
    pub codes: &'a mut [i8],
    /// One scale for each record.
    pub scales: &'a mut [f32],
    /// The sum of the stored codes of each group.
    pub sums: &'a mut [i32],
    /// The same of the codes themselves where they are unsigned; otherwise empty.
    pub totals: &'a mut [i32],
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
    /// `[panel][group][mr]`: sums of the stored codes.
    pub sums: &'a [i32],
    /// `[panel][group][mr]`: sums of the codes; `sums` themselves where nothing is taken from a code.
    pub totals: &'a [i32],
    /// What is taken from a code to store it: 0 or 128.
    pub bias: i32,
    /// What that costs in the tile of weights at hand, `[base][group][TILE]`; empty where bias is 0.
    pub weight_sums: &'a [i32],
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
            totals: &self.totals[panel * groups * mr..][..groups * mr],
            ..*self
        }
    }

    /// What group `group` of each row of the tile begins with; `None`: 0. Several bases: `group` counts
    /// on over the groups of each.
    #[inline(always)]
    pub fn weight_sums(&self, group: usize) -> Option<&'a [i32; TILE]> {
        self.weight_sums.as_chunks::<TILE>().0.get(group)
    }
}

/// `128 sum v` for each group of a layer's weights, v the integer a code stands for without its group's
/// zero point: what unsigned activations need.
///
/// ```text
/// [tile][base][group][64 rows] i32
/// ```
pub struct WeightSums {
    sums: Vec<i32>,
    tile: usize,
}

impl WeightSums {
    /// Reads all of the weights once.
    pub fn of(packed: &Packed, coded: &Coded, shape: &Shape) -> Result<WeightSums> {
        let tile = coded.bases as usize * shape.groups * TILE;
        let sums = filled(packed.tiles().saturating_mul(tile), 0, "sums of weights")?;
        let mut all = WeightSums { sums, tile };
        let mut row = packed.row()?;
        let columns = packed.in_features();
        for r in 0..packed.out_features() {
            packed.read_row(r, &mut row);
            let sums = &mut all.sums[r / TILE * tile..][..tile];
            let bases = row.codes.chunks(columns).zip(sums.chunks_mut(shape.groups * TILE));
            for (codes, sums) in bases {
                let records = codes.chunks(shape.geometry.record);
                for (codes, sums) in records.zip(sums.chunks_mut(shape.record_groups * TILE)) {
                    for (codes, sums) in codes.chunks(shape.group).zip(sums.chunks_mut(TILE)) {
                        sums[r % TILE] = 128 * codes.iter().map(|&c| coded.values.of(c)).sum::<i32>();
                    }
                }
            }
        }
        Ok(all)
    }

    /// Those of a tile.
    pub fn tile(&self, tile: usize) -> &[i32] {
        &self.sums[tile * self.tile..][..self.tile]
    }

    /// Bytes of them.
    pub fn bytes(&self) -> usize {
        self.sums.len() * 4
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

/// The largest value above 0 in `x`, as bits of an f32; 0 where there is none.
#[inline(always)]
fn positive_bits(x: &[f32]) -> u32 {
    // As signed integers the bits of negative floats are below 0.
    x.iter().fold(0, |max, v| max.max(v.to_bits() as i32)) as u32
}

/// How the values of a segment become codes.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    /// `1 / scale` as far as the rule has one.
    inverse: f32,
}

/// `clamp(round_half_even(x * inverse), low, high) - bias`, and the sum of what is stored.
#[inline(always)]
fn even_codes(x: &[f32], inverse: f32, width: Width, codes: &mut [i8]) -> i32 {
    // Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits: the same
    // in every vector width, and exact because the clamped product is far below 2^22.
    const ROUND: f32 = 12_582_912.0;
    let (low, high, base) = (width.lowest(), width.limit(), ROUND.to_bits() as i32 + width.bias());
    let mut sum = 0;
    for (v, code) in x.iter().zip(codes) {
        let t = v * inverse;
        let t = if t > low { t } else { low };
        let t = if t < high { t } else { high };
        let q = ((t + ROUND).to_bits() as i32).wrapping_sub(base);
        *code = q as i8;
        sum += q;
    }
    sum
}

/// `clamp(round_half_away(x / scale), low, high) - bias`, and the sum of what is stored.
#[inline(always)]
fn away_codes(x: &[f32], scale: f32, width: Width, codes: &mut [i8]) -> i32 {
    // The largest f32 below a half: with a half itself 0.49999997 would become 1.
    const HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    let (low, high) = (width.lowest(), width.limit());
    let mut sum = 0;
    for (v, code) in x.iter().zip(codes) {
        let t = v / scale;
        let t = if t > low { t } else { low };
        let t = if t < high { t } else { high };
        let q = (t + HALF.copysign(t)) as i32 - width.bias();
        *code = q as i8;
        sum += q;
    }
    sum
}

#[inline(always)]
fn codes_of(x: &[f32], step: Step, rule: &Rule, codes: &mut [i8]) -> i32 {
    match rule.span {
        Span::Largest => even_codes(x, step.inverse, rule.width, codes),
        Span::TwiceMean => away_codes(x, step.scale, rule.width, codes),
    }
}

/// Groups of `N` columns; the last may be shorter.
#[inline(always)]
fn codes_of_groups<const N: usize>(x: &[f32], step: Step, rule: &Rule, codes: &mut [i8], sums: &mut [i32]) {
    let ((groups, rest), (codes, other_codes)) = (x.as_chunks::<N>(), codes.as_chunks_mut::<N>());
    let (sums, last) = sums.split_at_mut(groups.len());
    for ((x, codes), sum) in groups.iter().zip(codes).zip(sums) {
        *sum = codes_of(x, step, rule, codes);
    }
    if !rest.is_empty() {
        last[0] = codes_of(rest, step, rule, other_codes);
    }
}

/// The scale of the segment `x`, whose `magnitude_bits` are known.
#[inline(always)]
fn step_of(x: &[f32], magnitude: u32, rule: &Rule) -> Step {
    let limit = rule.width.limit();
    match (rule.fixed_scale, rule.span) {
        (Some(scale), _) => Step { scale, inverse: 1.0 / scale },
        (None, Span::Largest) => {
            let bits = if rule.width == Width::Uint8 { positive_bits(x) } else { magnitude };
            let a = f32::from_bits(bits);
            if a < ZERO_BELOW {
                Step { scale: 0.0, inverse: 0.0 }
            } else {
                Step { scale: a / limit, inverse: limit / a }
            }
        }
        (None, Span::TwiceMean) => {
            let sum = match rule.width {
                Width::Uint8 => math::sum(x, |p, v| p + if v > 0.0 { v } else { 0.0 }),
                _ => math::sum(x, |p, v| p + v.abs()),
            };
            let range = (2.0 * (sum / x.len() as f32)).max(EPSILON);
            Step { scale: (range / limit).max(EPSILON), inverse: 0.0 }
        }
    }
}

/// Quantises one row of x, whose columns are in packed order without pads. Returns whether every
/// value was finite; where not, all codes and scales are 0 and the caller writes a row of NaN.
#[inline(always)]
pub fn quantize_row(x: &[f32], shape: &Shape, rule: &Rule, out: &mut RowCodes<'_>) -> bool {
    let geometry = &shape.geometry;
    const FINITE_BELOW: u32 = 0x7f80_0000;
    let by_row = rule.segment == Segment::Row;
    let mut largest = if by_row { magnitude_bits(x) } else { 0 };
    let mut step = if by_row { step_of(x, largest, rule) } else { Step { scale: 0.0, inverse: 0.0 } };
    let padded = geometry.record_padded();
    for (r, x) in x.chunks(geometry.record).enumerate() {
        let end = out.codes.len().min((r + 1) * padded);
        let (codes, pads) = out.codes[r * padded..end].split_at_mut(x.len());
        if !pads.is_empty() {
            pads.fill(0);
        }
        if !by_row {
            // The commonest group as a constant, as below: its loop unrolls into a few vectors.
            let magnitude =
                <&[f32; 32]>::try_from(x).map_or_else(|_| magnitude_bits(x), |x| magnitude_bits(x));
            largest = largest.max(magnitude);
            step = step_of(x, magnitude, rule);
        }
        out.scales[r] = step.scale;
        let sums = &mut out.sums[r * shape.record_groups..];
        match shape.group {
            16 => codes_of_groups::<16>(x, step, rule, codes, sums),
            32 => codes_of_groups::<32>(x, step, rule, codes, sums),
            group => {
                for ((x, codes), sum) in x.chunks(group).zip(codes.chunks_mut(group)).zip(sums) {
                    *sum = codes_of(x, step, rule, codes);
                }
            }
        }
    }
    if largest >= FINITE_BELOW {
        out.codes.fill(0);
        out.scales.fill(0.0);
        out.sums.fill(0);
    }
    let lens = shape.group_lens();
    for ((total, sum), len) in out.totals.iter_mut().zip(&*out.sums).zip(lens) {
        *total = sum + rule.width.bias() * len as i32;
    }
    largest < FINITE_BELOW
}

/// The largest codes of the largest floats come back as these: their scale, rounded up, times the code is beyond f32.
pub(crate) fn finite(v: f32) -> f32 {
    v.clamp(-f32::MAX, f32::MAX)
}

/// Refuses the scale of a row of finite values that has none.
pub(crate) fn check_scale(scale: f32) -> Result<()> {
    match scale.is_finite() {
        true => Ok(()),
        false => {
            Err(fail!(InvalidArgument, "a row whose values add up to more than f32 holds has no mean range"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Offset;

    fn quantize(x: &[f32], segment: Segment) -> (Vec<i8>, Vec<f32>, Vec<i32>, bool) {
        let (codes, scales, sums, _, finite) =
            with(x, Rule { width: Width::Int8, span: Span::Largest, segment, fixed_scale: None });
        (codes, scales, sums, finite)
    }

    #[allow(clippy::type_complexity)]
    fn with(x: &[f32], rule: Rule) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<i32>, bool) {
        let layout = Layout::groups(4, 8, 32, Offset::None);
        let shape = Shape::new(&layout, Geometry::new(&layout, x.len()));
        let mut codes = vec![1; shape.quads * QUAD];
        let mut scales = vec![1.0; shape.geometry.records];
        let mut sums = vec![1; shape.groups];
        let mut totals = vec![1; if rule.width == Width::Uint8 { shape.groups } else { 0 }];
        let mut out =
            RowCodes { codes: &mut codes, scales: &mut scales, sums: &mut sums, totals: &mut totals };
        let finite = quantize_row(x, &shape, &rule, &mut out);
        (codes, scales, sums, totals, finite)
    }

    #[test]
    fn four_bits_end_at_seven() {
        let mut x = vec![0.0f32; 32];
        x[..4].copy_from_slice(&[14.0, -14.0, 1.0, 3.0]);
        let rule =
            Rule { width: Width::Int4, span: Span::Largest, segment: Segment::Record, fixed_scale: None };
        let (codes, scales, sums, _, finite) = with(&x, rule);
        assert!(finite && scales == [2.0] && sums == [2]);
        assert_eq!(&codes[..4], &[7, -7, 0, 2]); // 0.5 and 1.5, to even
    }

    #[test]
    fn unsigned_codes_are_stored_less_128() {
        let mut x = vec![-9.0f32; 40];
        x[..4].copy_from_slice(&[255.0, 0.5, 1.5, 127.0]);
        let rule =
            Rule { width: Width::Uint8, span: Span::Largest, segment: Segment::Record, fixed_scale: None };
        let (codes, scales, sums, totals, finite) = with(&x, rule);
        assert!(finite);
        assert_eq!(&codes[..5], &[127, -128, -126, -1, -128]);
        assert_eq!(scales, [1.0, 0.0]); // nothing above 0 in the second group
        assert_eq!(totals, [255 + 2 + 127, 0]);
        assert_eq!(sums, [384 - 32 * 128, -8 * 128]);
        assert!(codes[40..].iter().all(|&c| c == 0), "pads");
    }

    /// A wider range of x than a code can hold, and both ways of rounding a half.
    #[test]
    fn the_mean_range_clips_and_rounds_away() {
        let mut x = vec![0.0f32; 32];
        // Mean magnitude 1.984375 = 127 / 64, so that a code is 1/32.
        x[..6].copy_from_slice(&[58.0, -3.0, 1.0 / 64.0, -1.0 / 64.0, 1.5 / 32.0, 0.49 / 32.0]);
        let rest: f32 = 63.5 - x.iter().map(|v| v.abs()).sum::<f32>();
        x[6] = rest;
        let rule =
            Rule { width: Width::Int8, span: Span::TwiceMean, segment: Segment::Row, fixed_scale: None };
        let (codes, scales, _, _, finite) = with(&x, rule);
        assert!(finite && scales == [1.0 / 32.0], "{scales:?}");
        assert_eq!(&codes[..6], &[127, -96, 1, -1, 2, 0]);
        let rule = Rule { width: Width::Uint8, ..rule };
        let (codes, ..) = with(&[0.0; 32], rule);
        assert!(codes.iter().all(|&c| c == -128));
        // The float below a half is not a half.
        let rule = Rule { width: Width::Int8, fixed_scale: Some(1.0), ..rule };
        let (codes, ..) = with(&[0.499_999_97, 0.5, -0.5, -0.499_999_97, 126.5, -300.0], rule);
        assert_eq!(&codes[..6], &[0, 1, -1, 0, 127, -127]);
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
