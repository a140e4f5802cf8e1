//! Rows of activations as codes in a caller's memory: what a layer does inside a call, as a step of its
//! own, so that codes can be kept (for a backward pass) or used by several layers.
//!
//! ```text
//! int8    1 byte     -127 .. 127
//! int4    4 bits     -7 .. 7, two's complement, the earlier column in the low bits; a row begins a byte
//! uint8   1 byte     0 .. 255
//! fp16    2 bytes    not quantised: f16, ties to even
//! x ~ code * scale
//! ```
//! Scales and rounding are those of `activation`: the largest magnitude, halves to even; or twice the mean
//! magnitude, halves away from zero. One scale serves a row, or all rows.

use half::f16;

use crate::activation::{RowCodes, Rule, Segment, Shape, Span, Width, ZERO_BELOW, check_scale, finite};
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel;
use crate::layout::packed::Geometry;
use crate::layout::{Layout, QUAD, Values};
use crate::limits::FEATURES_MAX;
use crate::math::Mean;
use crate::memory::filled;
use crate::plan::LowBit;

/// The least scale of a mean range.
const EPSILON: f32 = 1e-8;

/// What rows become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Format {
    /// The codes; none for f16.
    pub width: Option<Width>,
    /// What they span.
    pub span: Span,
    /// Whether all rows share a scale.
    pub per_tensor: bool,
}

impl Format {
    /// The format of that name.
    pub fn new(format: LowBit, span: Span, per_tensor: bool) -> Result<Format> {
        let width = match format {
            LowBit::Fp16 => None,
            LowBit::Int8 => Some(Width::Int8),
            LowBit::Int4 => Some(Width::Int4),
            LowBit::Uint8 => Some(Width::Uint8),
            other => {
                return Err(fail!(
                    InvalidArgument,
                    "\"{}\" is no format of activations",
                    other.name().to_str().unwrap_or("")
                ));
            }
        };
        Ok(Format { width, span, per_tensor })
    }

    /// Bytes of a row.
    pub fn row_bytes(&self, columns: usize) -> usize {
        match self.width {
            None => 2 * columns,
            Some(Width::Int4) => columns.div_ceil(2),
            Some(_) => columns,
        }
    }

    /// Scales that `rows` have.
    pub fn scales(&self, rows: usize) -> usize {
        match self.width {
            None => 0,
            Some(_) if self.per_tensor => rows.min(1),
            Some(_) => rows,
        }
    }

    /// The rule by which a layer's kernels would quantise; none for f16.
    pub fn rule(&self, fixed_scale: Option<f32>) -> Option<Rule> {
        self.width.map(|width| Rule { width, span: self.span, segment: Segment::Row, fixed_scale })
    }
}

/// Finds the scale that all rows share.
pub struct Tensor {
    span: Span,
    width: Width,
    mean: Mean,
    largest: f32,
}

impl Tensor {
    /// Before the first value.
    pub fn new(width: Width, span: Span) -> Tensor {
        Tensor { span, width, mean: Mean::default(), largest: 0.0 }
    }

    /// Takes values in.
    pub fn add(&mut self, values: &[f32]) {
        match self.width {
            Width::Uint8 => self.add_by(values, |v| v.max(0.0)),
            _ => self.add_by(values, f32::abs),
        }
    }

    fn add_by(&mut self, values: &[f32], of: impl Fn(f32) -> f32 + Copy) {
        let largest = |most: f32, v: &f32| if of(*v) > most { of(*v) } else { most };
        self.largest = values.iter().fold(self.largest, largest);
        if self.span == Span::TwiceMean {
            self.mean.add(values, of);
        }
    }

    /// The scale: of a mean range at least 1e-8; else 0 where nothing is at least `ZERO_BELOW`, as for a row.
    pub fn scale(&self) -> f32 {
        let limit = self.width.limit();
        match self.span {
            Span::Largest if self.largest < ZERO_BELOW => 0.0,
            Span::Largest => self.largest / limit,
            Span::TwiceMean => {
                // 2 mean / limit, to the last bit, where twice the mean may be beyond f32.
                (self.mean.value() / (0.5 * limit)).max(EPSILON)
            }
        }
    }

    /// The scale to keep for values to come: refused where no value took part that is not rounded to 0.
    pub fn calibrated(&self) -> Result<f32> {
        match self.largest < ZERO_BELOW {
            true => Err(fail!(InvalidArgument, "x has no value to calibrate with")),
            false => Ok(self.scale()),
        }
    }
}

/// Refuses values that are not finite. `first` counts the values before.
pub fn check_finite(values: &[f32], first: usize, what: &str) -> Result<()> {
    // One pass without branches, then one that finds the value.
    let bits = values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff));
    if bits < 0x7f80_0000 {
        return Ok(());
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(k) => Err(fail!(InvalidArgument, "value {} of {what} is {}", first + k, values[k])),
        None => Ok(()),
    }
}

/// Turns rows into codes and back.
pub struct Coder {
    format: Format,
    isa: Isa,
    shape: Shape,
    codes: Vec<i8>,
    sums: Vec<i32>,
    totals: Vec<i32>,
}

impl Coder {
    /// For rows of that many columns.
    pub fn new(format: Format, columns: usize, isa: Isa) -> Result<Coder> {
        if columns == 0 || columns as u64 > FEATURES_MAX {
            return Err(fail!(InvalidArgument, "rows of {columns} columns: 1 to {FEATURES_MAX}"));
        }
        // As for a layer of bytes with one scale a row.
        let layout = Layout::rows(8, Values::Offset(128));
        let shape = Shape::new(&layout, Geometry::new(&layout, columns));
        let groups = if format.width == Some(Width::Uint8) { shape.groups } else { 0 };
        Ok(Coder {
            format,
            isa,
            codes: filled(shape.quads * QUAD, 0, "codes")?,
            sums: filled(shape.groups, 0, "sums of codes")?,
            totals: filled(groups, 0, "sums of codes")?,
            shape,
        })
    }

    /// Codes of a row of finite values into `bytes` ([`Format::row_bytes`]), and the scale: `fixed`, where
    /// it is given, or the row's own. f16: refused where a value is beyond its range.
    pub fn encode(&mut self, x: &[f32], fixed: Option<f32>, bytes: &mut [u8]) -> Result<f32> {
        // A row of zeros under a scale of 0 has codes of 0 under any other.
        let rule = self.format.rule(fixed.map(|s| if s == 0.0 { 1.0 } else { s }));
        let Some(rule) = rule else {
            for (v, bytes) in x.iter().zip(bytes.as_chunks_mut().0) {
                let half = f16::from_f32(*v);
                if !half.is_finite() {
                    return Err(fail!(InvalidArgument, "{v} is beyond the range of f16"));
                }
                *bytes = half.to_le_bytes();
            }
            return Ok(1.0);
        };
        let mut scale = [0.0];
        let mut out = RowCodes {
            codes: &mut self.codes,
            scales: &mut scale,
            sums: &mut self.sums,
            totals: &mut self.totals,
        };
        kernel::quantize_row(self.isa, x, &self.shape, &rule, &mut out);
        check_scale(scale[0])?;
        match rule.width {
            Width::Int4 => {
                for (pair, byte) in self.codes[..x.len().next_multiple_of(2)].chunks(2).zip(bytes) {
                    *byte = pair[0] as u8 & 15 | (pair[1] as u8) << 4;
                }
            }
            width => {
                let bias = width.bias() as u8;
                for (code, byte) in self.codes.iter().zip(bytes) {
                    *byte = (*code as u8).wrapping_add(bias);
                }
            }
        }
        Ok(fixed.unwrap_or(scale[0]))
    }

    /// What a row of codes stands for.
    pub fn decode(&self, bytes: &[u8], scale: f32, x: &mut [f32]) {
        match self.format.width {
            None => {
                for (v, bytes) in x.iter_mut().zip(bytes.as_chunks().0) {
                    *v = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Some(Width::Int8) => {
                x.iter_mut().zip(bytes).for_each(|(v, b)| *v = finite(*b as i8 as f32 * scale));
            }
            Some(Width::Uint8) => x.iter_mut().zip(bytes).for_each(|(v, b)| *v = finite(*b as f32 * scale)),
            Some(Width::Int4) => {
                for (k, v) in x.iter_mut().enumerate() {
                    let nibble = bytes[k / 2] >> (4 * (k % 2)) & 15;
                    *v = finite(((nibble << 4) as i8 >> 4) as f32 * scale);
                }
            }
        }
    }

    /// What a row of values becomes when it is quantised and taken back.
    pub fn round(&mut self, x: &mut [f32], fixed: Option<f32>, bytes: &mut [u8]) -> Result<()> {
        let scale = self.encode(x, fixed, bytes)?;
        self.decode(bytes, scale, x);
        Ok(())
    }
}
