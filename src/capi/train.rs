//! Training of layers.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::c_void;

use super::boundary::guard;
use super::codes::{CodeRows, bl_codes};
use super::enums::*;
use super::handle;
use super::layer::{Layer, addressable, float_type, row_stride};
use super::low_bit::floats_mut;
use super::options::{self, Sized32};
use super::types::*;
use crate::codes::{Coder, Tensor, check_finite};
use crate::error::{Result, fail};
use crate::layout::Float;
use crate::limits::BATCH_MAX;
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::filled;
use crate::train::{Backward, Input};

/// A backward call of a layer. Matrices are f32; strides in bytes, 0: rows touch.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_layer_gradients {
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The x of the forward call [m, in_features]; or NULL, and the codes of it that bl_quantize gave.
    pub x: *const f32,
    pub x_stride: i64,
    pub codes: *const bl_codes,
    /// The gradient of y [m, out_features].
    pub dy: *const f32,
    pub dy_stride: i64,
    /// Of a layer with BL_EPILOGUE_RELU: the y that the forward call gave. NULL: it is computed again.
    pub y: *const f32,
    pub y_stride: i64,
    /// Written: the gradient of x. NULL: not wanted.
    pub dx: *mut f32,
    pub dx_stride: i64,
    /// Added to: the gradient of the weights [out_features, in_features]. NULL: not wanted.
    pub dw: *mut f32,
    pub dw_stride: i64,
    /// Added to: the gradient of the bias, out_features values. NULL: not wanted.
    pub db: *mut f32,
}

// SAFETY: repr(C), first field `struct_size: u32`, no padding (tests/abi.rs), integers and pointers only.
unsafe impl Sized32 for bl_layer_gradients {
    const NAME: &'static str = "bl_layer_gradients";
}

fn batch(m: i64) -> Result<usize> {
    match u64::try_from(m) {
        Ok(m) if m <= BATCH_MAX => Ok(m as usize),
        _ => Err(fail!(InvalidArgument, "m = {m} rows: 0 to {BATCH_MAX}")),
    }
}

/// The stride of a f32 matrix that is not NULL.
fn stride(m: usize, columns: usize, address: *const f32, stride: i64, what: &str) -> Result<usize> {
    if address.is_null() {
        return Err(fail!(InvalidArgument, "{what} is NULL"));
    }
    let stride = row_stride(stride, columns, Float::F32, what)?;
    addressable(m, stride, what)?;
    Ok(stride)
}

/// Gradients of bl_forward on m rows, straight through the rounding of weights and activations:
///   g = dy, but of a layer with BL_EPILOGUE_RELU 0 where y is 0;
///   dx = g W, with the rounded weights;   dw += g^T x, with the rounded x;   db += the rows of g.
/// Values that were clipped pass gradients too, and scales have none. For layers without norm, rotation
/// and other epilogues. Codes in place of x are of the layer's own activations: the same format and range,
/// and one scale a row (or fixed scales). The same bits for any number of threads; another CPU may
/// differ in the last ones. Everything is checked before anything is written; a value that is not finite is
/// BL_ERROR_INVALID_ARGUMENT.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_backward(
    layer: *const bl_layer,
    m: i64,
    gradients: *const bl_layer_gradients,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let layer: &Layer = handle::get(layer)?;
            let linear = layer.cpu("gradients")?;
            let m = batch(m)?;
            if gradients.is_null() {
                return Err(fail!(InvalidArgument, "gradients is NULL"));
            }
            let g = options::read(gradients)?;
            if g.reserved != 0 {
                return Err(fail!(
                    InvalidArgument,
                    "bl_layer_gradients.reserved is {}: it must be 0",
                    g.reserved
                ));
            }
            let (n, k) = (linear.out_features(), linear.in_features());
            let saved;
            let coder;
            let decode;
            let x = match (g.x.is_null(), g.codes.is_null()) {
                (false, true) => {
                    let stride = stride(m, k, g.x, g.x_stride, "x")?;
                    // SAFETY: not NULL, and the header's rules.
                    Input::Floats(MatrixRef::new(g.x.cast(), Float::F32, stride, k))
                }
                (true, false) => {
                    saved = CodeRows::read(g.codes, m, k)?;
                    check_format(layer, &saved)?;
                    coder = Coder::new(saved.format, k, layer.context.isa)?;
                    decode = |r: usize, row: &mut [f32]| {
                        // SAFETY: row r of the m that `saved` was read for.
                        let (codes, scale) = (saved.row(r), saved.scale(r));
                        coder.decode(codes, scale, row);
                        scale
                    };
                    Input::Codes(&decode)
                }
                _ => return Err(fail!(InvalidArgument, "x or codes: one of them, and the other NULL")),
            };
            let dy_stride = stride(m, n, g.dy, g.dy_stride, "dy")?;
            // SAFETY: not NULL (`stride`), and the header's rules; so below.
            let dy = MatrixRef::new(g.dy.cast(), Float::F32, dy_stride, n);
            let y = match g.y.is_null() {
                true => None,
                false => {
                    let stride = stride(m, n, g.y, g.y_stride, "y")?;
                    Some(MatrixRef::new(g.y.cast(), Float::F32, stride, n))
                }
            };
            let out = |rows: usize, columns: usize, address: *mut f32, bytes: i64, what: &str| {
                if address.is_null() {
                    return Ok(None);
                }
                let stride = stride(rows, columns, address, bytes, what)?;
                Ok(Some(MatrixMut::new(address.cast(), Float::F32, stride, columns)))
            };
            let dx = out(m, k, g.dx, g.dx_stride, "dx")?;
            let dw = out(n, k, g.dw, g.dw_stride, "dw")?;
            let db = if g.db.is_null() { None } else { Some(floats_mut(g.db, n as i64, "db")?) };
            let call = Backward { m, x, dy, y, dx, dw, db };
            crate::train::backward(linear, call, &layer.context.machine())
        })
    }
}

/// Codes of a layer's own activations.
fn check_format(layer: &Layer, codes: &CodeRows) -> Result<()> {
    let same = match (layer.around().rule, codes.format.width) {
        (None, None) => true,
        (Some(rule), Some(width)) => {
            let one = rule.segment == crate::activation::Segment::Row || rule.fixed_scale.is_some();
            one && rule.width == width && rule.span == codes.format.span
        }
        _ => false,
    };
    match same {
        true => Ok(()),
        false => Err(fail!(
            InvalidArgument,
            "the codes are of another format or range than the layer's activations, or these have scales of groups"
        )),
    }
}

/// Fixes the scale of the inputs: finds one for all of x [m, in_features] and uses it in the calls that
/// follow, in place of the scales that the layer's rule finds; x NULL: no longer. It changes no weight, and
/// has nothing to do with bl_calibrate, which gathers what bl_model_quantize rounds weights by. bl_save
/// writes the scale with the layer. For integer activations of layers without norm and rotation. Must be
/// the only call on the layer.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_calibrate(
    layer: *mut bl_layer,
    m: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_backward`; the header's rules make this the only call on the layer.
    unsafe {
        guard(error, || {
            let layer: &mut Layer = handle::get_mut(layer)?;
            let Some(rule) = layer.around().rule else {
                return Err(fail!(Unsupported, "x is taken as floats: there is no scale to calibrate"));
            };
            if layer.around().has_front() {
                return Err(fail!(Unsupported, "a scale of what a norm or a rotation gives"));
            }
            if x.is_null() {
                layer.fix_scale(None);
                return Ok(());
            }
            let (m, k) = (batch(m)?, layer.in_features());
            let float = float_type(x_type, "x")?;
            let stride = row_stride(x_stride, k, float, "x")?;
            addressable(m, stride, "x")?;
            let x = MatrixRef::new(x.cast(), float, stride, k);
            let mut row = filled(k, 0.0f32, "a row")?;
            let mut tensor = Tensor::new(rule.width, rule.span);
            for r in 0..m {
                x.read_row(r, &mut row);
                check_finite(&row, r * k, "x")?;
                tensor.add(&row);
            }
            layer.fix_scale(Some(tensor.calibrated()?));
            Ok(())
        })
    }
}
