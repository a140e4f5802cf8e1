//! Activations and weights as codes in a caller's memory.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::c_void;

use super::boundary::guard;
use super::context;
use super::enums::*;
use super::heads::span;
use super::layer::{addressable, float_type, row_stride};
use super::low_bit::{LowBitArg, floats, floats_mut};
use super::options::{self, Sized32};
use super::types::*;
use crate::codec::burn_dragon;
use crate::codes::{Coder, Format, Tensor, check_finite};
use crate::error::{Result, fail};
use crate::heads::rounded_weights;
use crate::layout::Float;
use crate::limits::{BATCH_MAX, FEATURES_MAX};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::filled;
use crate::plan::LowBit;
use crate::types::Type;

/// Which value the largest code stands for, and how values are rounded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_range {
    /// The largest magnitude; halves to even.
    BL_RANGE_LARGEST = 0,
    /// Twice the mean magnitude, at least 1e-8: what is larger is clipped; halves away from zero.
    BL_RANGE_MEAN = 1,
}

args! { RangeArg }

/// Rows of codes in a caller's memory; x is about code * scale. The scales are the caller's too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_codes {
    pub struct_size: u32,
    /// fp16 (2 bytes a value, no scales), int8 (1), int4 (two to a byte, a row begins a byte) or uint8_pos
    /// (1). Unset: fp16.
    pub format: LowBitArg,
    pub range: RangeArg,
    /// BL_CODES_PER_TENSOR, BL_CODES_FIXED_SCALES.
    pub flags: u32,
    pub codes: *mut c_void,
    /// Bytes from row to row; 0: rows touch.
    pub stride: i64,
    /// One for each row; BL_CODES_PER_TENSOR: one.
    pub scales: *mut f32,
    /// How many: 0 with fp16.
    pub scale_count: i64,
}

/// How two arrays differ: means and largest values, in f64.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_difference_info {
    pub struct_size: u32,
    pub reserved: u32,
    pub mean_error: f64,
    pub mean_square_error: f64,
    pub max_error: f64,
    /// Root mean squares.
    pub rms_a: f64,
    pub rms_b: f64,
    /// Parts of the values that are not 0.
    pub nonzero_a: f64,
    pub nonzero_b: f64,
}

/// `bl_codes.flags`: all rows share a scale.
pub const BL_CODES_PER_TENSOR: u32 = 1;
/// bl_quantize: the scales are given, not found.
pub const BL_CODES_FIXED_SCALES: u32 = 2;
/// `bl_pack_weights`: the values are code * scale already: the largest magnitude (int8: twice the mean,
/// as from f32 weights) gives the scale.
pub const BL_PACK_DEQUANTIZED: u32 = 1;

// SAFETY: repr(C), first field `struct_size: u32`, no padding (tests/abi.rs), integers, floats, pointers.
unsafe impl Sized32 for bl_codes {
    const NAME: &'static str = "bl_codes";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_difference_info {
    const NAME: &'static str = "bl_difference_info";
}

/// A format of activations.
pub(super) fn read_format(format: LowBitArg, range: RangeArg, per_tensor: bool) -> Result<Format> {
    let format = match LowBit::from_number(format.0)? {
        LowBit::Unset => LowBit::Fp16,
        format => format,
    };
    Format::new(format, span(range)?, per_tensor)
}

/// A caller's codes, checked.
pub(super) struct CodeRows {
    pub(super) format: Format,
    address: *mut u8,
    stride: usize,
    row_bytes: usize,
    scales: *mut f32,
    fixed: bool,
}

impl CodeRows {
    /// # Safety
    /// As `options::read`.
    pub(super) unsafe fn read(codes: *const bl_codes, rows: usize, columns: usize) -> Result<CodeRows> {
        if codes.is_null() {
            return Err(fail!(InvalidArgument, "the bl_codes are NULL"));
        }
        // SAFETY: the caller's contract.
        let c = unsafe { options::read(codes)? };
        if c.flags & !(BL_CODES_PER_TENSOR | BL_CODES_FIXED_SCALES) != 0 {
            return Err(fail!(InvalidArgument, "flags {:#x} of codes are unknown", c.flags));
        }
        let format = read_format(c.format, c.range, c.flags & BL_CODES_PER_TENSOR != 0)?;
        let row_bytes = format.row_bytes(columns);
        let stride = match usize::try_from(c.stride) {
            Ok(0) => row_bytes,
            Ok(stride) if stride >= row_bytes => stride,
            _ => {
                return Err(fail!(
                    InvalidArgument,
                    "row stride of codes is {} bytes, but a row has {row_bytes}",
                    c.stride
                ));
            }
        };
        addressable(rows, stride, "codes")?;
        let count = format.scales(rows);
        if c.scale_count != count as i64 {
            return Err(fail!(InvalidArgument, "{} scales of codes, {count} expected", c.scale_count));
        }
        if rows > 0 && c.codes.is_null() {
            return Err(fail!(InvalidArgument, "bl_codes.codes is NULL"));
        }
        if count > 0 && (c.scales.is_null() || !c.scales.is_aligned()) {
            return Err(fail!(
                InvalidArgument,
                "bl_codes.scales: {:p} is NULL or not aligned to 4 bytes",
                c.scales
            ));
        }
        let fixed = c.flags & BL_CODES_FIXED_SCALES != 0;
        Ok(CodeRows { format, address: c.codes.cast(), stride, row_bytes, scales: c.scales, fixed })
    }

    /// # Safety
    /// `row` is one of the rows that `read` was told; the caller's memory is valid.
    pub(super) unsafe fn row<'a>(&self, row: usize) -> &'a [u8] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts(self.address.add(row * self.stride), self.row_bytes) }
    }

    /// # Safety
    /// As `row`, and no one else uses it meanwhile.
    unsafe fn row_mut<'a>(&self, row: usize) -> &'a mut [u8] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.address.add(row * self.stride), self.row_bytes) }
    }

    /// # Safety
    /// As `row`.
    pub(super) unsafe fn scale(&self, row: usize) -> f32 {
        match self.format.width {
            None => 1.0,
            // SAFETY: the caller's contract; `read` checked how many there are.
            Some(_) => unsafe { self.scales.add(if self.format.per_tensor { 0 } else { row }).read() },
        }
    }
}

/// A matrix of a caller's to read.
///
/// # Safety
/// It is as the arguments say.
unsafe fn source<'a>(
    rows: i64,
    columns: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
) -> Result<(usize, usize, MatrixRef<'a>)> {
    let (rows, columns) = shape(rows, columns)?;
    let (float, stride) = layout(rows, columns, x_type, x_stride, x.is_null(), "x")?;
    // SAFETY: the caller's contract.
    Ok((rows, columns, unsafe { MatrixRef::new(x.cast(), float, stride, columns) }))
}

fn shape(rows: i64, columns: i64) -> Result<(usize, usize)> {
    match (u64::try_from(rows), u64::try_from(columns)) {
        (Ok(r), Ok(c)) if r <= BATCH_MAX && (1..=FEATURES_MAX).contains(&c) => Ok((r as usize, c as usize)),
        _ => Err(fail!(
            InvalidArgument,
            "{rows} rows of {columns} columns: 0 to {BATCH_MAX}, and 1 to {FEATURES_MAX}"
        )),
    }
}

fn layout(
    rows: usize,
    columns: usize,
    ty: TypeArg,
    stride: i64,
    is_null: bool,
    what: &str,
) -> Result<(Float, usize)> {
    let float = float_type(ty, what)?;
    let stride = row_stride(stride, columns, float, what)?;
    addressable(rows, stride, what)?;
    match is_null && rows > 0 {
        true => Err(fail!(InvalidArgument, "{what} is NULL")),
        false => Ok((float, stride)),
    }
}

/// Checks all rows before anything is written, and finds the scale they share.
fn survey(x: MatrixRef<'_>, rows: usize, format: &Format, row: &mut [f32]) -> Result<Option<f32>> {
    let shared = format.width.filter(|_| format.per_tensor);
    let mut tensor = shared.map(|width| Tensor::new(width, format.span));
    for r in 0..rows {
        x.read_row(r, row);
        check_finite(row, r * row.len(), "x")?;
        if format.width.is_none()
            && let Some(k) = row.iter().position(|v| v.abs() >= 65520.0)
        {
            return Err(fail!(InvalidArgument, "x[{r}, {k}] is {}: beyond the range of f16", row[k]));
        }
        if let Some(tensor) = &mut tensor {
            tensor.add(row);
        }
    }
    Ok(tensor.map(|tensor| tensor.scale()))
}

/// Writes rows of x (f32, f16 or bf16) as codes, with their scales; with BL_CODES_FIXED_SCALES the scales
/// are taken as they are. What layers compute with the same format and range (and one scale a row) has
/// the same codes; under a mean range a layer with sorted columns (GPTQ with act-order) sums them in its order. A value that is not finite, or beyond f16 with fp16, is BL_ERROR_INVALID_ARGUMENT, and
/// nothing is written. Runs on the calling thread.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_quantize(
    context: *const bl_context,
    rows: i64,
    columns: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    codes: *const bl_codes,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let context = context::of(context)?;
            let (rows, columns, x) = source(rows, columns, x, x_type, x_stride)?;
            let out = CodeRows::read(codes, rows, columns)?;
            let mut row = filled(columns, 0.0f32, "a row")?;
            let mut coder = Coder::new(out.format, columns, context.isa)?;
            let shared = survey(x, rows, &out.format, &mut row)?;
            if out.fixed {
                for r in 0..out.format.scales(rows) {
                    let s = out.scale(r);
                    if !(s >= 0.0 && s.is_finite() && (s == 0.0 || (1.0 / s).is_finite())) {
                        return Err(fail!(InvalidArgument, "scale {r} is {s}"));
                    }
                }
            }
            for r in 0..rows {
                x.read_row(r, &mut row);
                let fixed = if out.fixed { Some(out.scale(r)) } else { shared };
                let scale = coder.encode(&row, fixed, out.row_mut(r))?;
                if out.format.width.is_some() && !out.fixed {
                    out.scales.add(if out.format.per_tensor { 0 } else { r }).write(scale);
                }
            }
            Ok(())
        })
    }
}

/// Writes what codes stand for, code * scale, into y (f32, f16 or bf16).
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_dequantize(
    context: *const bl_context,
    rows: i64,
    columns: i64,
    codes: *const bl_codes,
    y: *mut c_void,
    y_type: TypeArg,
    y_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let context = context::of(context)?;
            let (rows, columns) = shape(rows, columns)?;
            let from = CodeRows::read(codes, rows, columns)?;
            let (float, stride) = layout(rows, columns, y_type, y_stride, y.is_null(), "y")?;
            let y = MatrixMut::new(y.cast(), float, stride, columns);
            let coder = Coder::new(from.format, columns, context.isa)?;
            let mut row = filled(columns, 0.0f32, "a row")?;
            for r in 0..rows {
                coder.decode(from.row(r), from.scale(r), &mut row);
                y.write(r, 0, &row);
            }
            Ok(())
        })
    }
}

/// y = what x becomes when it is quantised and taken back: activations (fp16, int8, int4, uint8_pos; one
/// scale a row, or with BL_CODES_PER_TENSOR one), or weights (sign1, ternary158, packed2: always one,
/// max(mean magnitude, 1e-8); range is BL_RANGE_MEAN). int8 weights are int8 with BL_RANGE_MEAN and
/// BL_CODES_PER_TENSOR. y may be x. Its gradient is that of a copy: nothing is masked (a straight-through
/// estimator), which bl_fake_quantize_backward does.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_fake_quantize(
    context: *const bl_context,
    format: LowBitArg,
    range: RangeArg,
    flags: u32,
    count: i64,
    columns: i64,
    x: *const f32,
    y: *mut f32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let context = context::of(context)?;
            if flags & !BL_CODES_PER_TENSOR != 0 {
                return Err(fail!(InvalidArgument, "flags {flags:#x} are unknown"));
            }
            let from = floats(x, count, "x")?;
            if columns < 1 || count % columns != 0 {
                return Err(fail!(InvalidArgument, "{count} values in rows of {columns}"));
            }
            check_finite(from, 0, "x")?;
            let low_bit = LowBit::from_number(format.0)?;
            let weights = matches!(low_bit, LowBit::Sign1 | LowBit::Ternary158 | LowBit::Packed2);
            if weights && range.0 != bl_range::BL_RANGE_MEAN as u32 {
                return Err(fail!(InvalidArgument, "weights of this format have the range BL_RANGE_MEAN"));
            }
            let mut out = filled(from.len(), 0.0f32, "rounded values")?;
            if weights {
                rounded_weights(low_bit, from, &mut out)?;
            } else {
                let format = read_format(format, range, flags & BL_CODES_PER_TENSOR != 0)?;
                out.copy_from_slice(from);
                crate::heads::round_rows(format, &mut out, columns as usize, context.isa)?;
            }
            floats_mut(y, count, "y")?.copy_from_slice(&out);
            Ok(())
        })
    }
}

/// The gradient of bl_fake_quantize: dx += dy, unmasked. `count` values each.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_fake_quantize_backward(
    count: i64,
    dy: *const f32,
    dx: *mut f32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let (dy, dx) = (floats(dy, count, "dy")?, floats_mut(dx, count, "dx")?);
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
            Ok(())
        })
    }
}

fn artifact_type(ty: TypeArg) -> Result<Type> {
    match ty.known()? {
        ty @ (Type::Binary | Type::Ternary2 | Type::Int8) => Ok(ty),
        other => {
            Err(fail!(Unsupported, "{} is no encoding of an artifact: binary, ternary2, int8", other.name()))
        }
    }
}

/// Rounds f32 weights to a burn_dragon artifact of BL_TYPE_BINARY, BL_TYPE_TERNARY2 or BL_TYPE_INT8: its
/// bytes (1/8, 1/4 and 1 a weight, rounded up) and its one scale. flags: BL_PACK_DEQUANTIZED.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_pack_weights(
    r#type: TypeArg,
    flags: u32,
    count: i64,
    weights: *const f32,
    packed: *mut u8,
    packed_bytes: usize,
    scale: *mut f32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let ty = artifact_type(r#type)?;
            let weights = floats(weights, count, "weights")?;
            check_artifact(ty, weights.len(), packed, packed_bytes)?;
            let packed = match packed_bytes {
                0 => &mut [],
                _ => std::slice::from_raw_parts_mut(packed, packed_bytes),
            };
            if scale.is_null() {
                return Err(fail!(InvalidArgument, "scale is NULL"));
            }
            let unknown = flags & !BL_PACK_DEQUANTIZED;
            if unknown != 0 {
                return Err(fail!(
                    InvalidArgument,
                    "flags {unknown:#x} are unknown: BL_PACK_DEQUANTIZED or 0"
                ));
            }
            check_finite(weights, 0, "weights")?;
            let found = match flags & BL_PACK_DEQUANTIZED != 0 && ty != Type::Int8 {
                true => burn_dragon::encode_dequantized(ty, weights, packed)?,
                false => burn_dragon::encode(ty, weights, packed)?,
            };
            scale.write_unaligned(found);
            Ok(())
        })
    }
}

/// As many bytes as those weights take, or NULL and none.
fn check_artifact(ty: Type, count: usize, packed: *const u8, bytes: usize) -> Result<()> {
    let expected = burn_dragon::packed_bytes(ty, count)?;
    match bytes == expected && (bytes == 0 || !packed.is_null()) {
        true => Ok(()),
        false => {
            Err(fail!(InvalidArgument, "packed weights: {bytes} bytes at {packed:p}, {expected} expected"))
        }
    }
}

/// Writes the weights of an artifact's bytes, code * scale. The ternary code 3 is
/// BL_ERROR_INVALID_ARGUMENT, and nothing is written.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_unpack_weights(
    r#type: TypeArg,
    packed: *const u8,
    packed_bytes: usize,
    scale: f32,
    count: i64,
    weights: *mut f32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let ty = artifact_type(r#type)?;
            let weights = floats_mut(weights, count, "weights")?;
            check_artifact(ty, weights.len(), packed, packed_bytes)?;
            let packed = match packed_bytes {
                0 => &[],
                _ => std::slice::from_raw_parts(packed, packed_bytes),
            };
            crate::heads::artifact_weights(ty, packed, scale, weights)
        })
    }
}

/// How two arrays of `count` f32 values differ; all 0 for none (a and b may be NULL then). A NaN makes its
/// figures NaN.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_compare(
    count: i64,
    a: *const f32,
    b: *const f32,
    info: *mut bl_difference_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_quantize`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let (a, b) = (floats(a, count, "a")?, floats(b, count, "b")?);
            let n = (a.len() as f64).max(1.0);
            let mut sums = [0.0f64; 6];
            let mut largest = 0.0f64;
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (*a as f64, *b as f64);
                let error = (a - b).abs();
                largest = if error > largest || error.is_nan() { error } else { largest };
                let each =
                    [error, error * error, a * a, b * b, (a != 0.0) as u8 as f64, (b != 0.0) as u8 as f64];
                sums.iter_mut().zip(each).for_each(|(sum, v)| *sum += v);
            }
            let [error, square, a, b, nonzero_a, nonzero_b] = sums.map(|sum| sum / n);
            out.fill(&bl_difference_info {
                struct_size: 0,
                reserved: 0,
                mean_error: error,
                mean_square_error: square,
                max_error: largest,
                rms_a: a.sqrt(),
                rms_b: b.sqrt(),
                nonzero_a,
                nonzero_b,
            });
            Ok(())
        })
    }
}
