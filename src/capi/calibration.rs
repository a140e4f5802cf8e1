//! What is known of the inputs of layers: unstable until version 1.0.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};

use super::boundary::guard;
use super::context::{self, Context, out_handle};
use super::enums::*;
use super::handle::{self, Kind};
use super::layer::{float_type, row_stride};
use super::model::{path_of, string};
use super::options::{self, Sized32};
use super::save::text;
use super::types::*;
use crate::container::Quoted;
use crate::error::fail;
use crate::limits::{BATCH_MAX, FEATURES_MAX};
use crate::matrix::MatrixRef;
use crate::quantize::{Calibration, MOMENTS_BLOCK};

/// What is known of the inputs of layers; see bl_calibrate.
pub struct bl_calibration {
    _opaque: [u8; 0],
}

/// What calibration gathers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_calibration_options {
    pub struct_size: u32,
    /// Products of columns are gathered in blocks of so many columns: a layer of n columns takes
    /// 4 n block bytes. 1: squares alone, which weight a search but cannot make up for errors.
    /// 0: 2048.
    pub block: u32,
    /// Most rows of x for a layer; more are not counted. 0: no bound.
    pub samples: u64,
    /// Most bytes of all sums. 0: 1 GiB. Sums of layers that get rows while bl_model_quantize uses the
    /// calibration are copied, and count once.
    pub memory: u64,
}

/// What calibration knows of a layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_calibration_info {
    pub struct_size: u32,
    /// Columns of a block of sums.
    pub block: u32,
    pub in_features: i64,
    /// Rows of x that were counted.
    pub samples: u64,
    /// Layers that the calibration knows.
    pub layers: u64,
}

macro_rules! sized {
    ($($t:ident),* $(,)?) => {$(
        // SAFETY: repr(C), first field `struct_size: u32`, fields ordered so that there is no padding
        // (tests/abi.rs compares the sum of the fields with the size), all fields integers, floats
        // or pointers.
        unsafe impl Sized32 for $t {
            const NAME: &'static str = stringify!($t);
        }
    )*};
}
sized!(bl_calibration_options, bl_calibration_info);

/// The body of a `bl_calibration`.
pub struct Gathered {
    context: Arc<Context>,
    pub(super) sums: Mutex<Calibration>,
}

impl Kind for Gathered {
    const TAG: u32 = 0x424c_6361;
    const NAME: &'static str = "calibration";
}

/// Sums take at most that many bytes, unless the options say otherwise.
const CALIBRATION_MEMORY: usize = 1 << 30;

/// Makes a calibration, which knows nothing yet.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_create(
    context: *const bl_context,
    options: *const bl_calibration_options,
    out: *mut *mut bl_calibration,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let o = options::read(options)?;
            let block = if o.block == 0 { MOMENTS_BLOCK } else { o.block as usize };
            let samples = if o.samples == 0 { u64::MAX } else { o.samples };
            let memory = if o.memory == 0 { CALIBRATION_MEMORY as u64 } else { o.memory };
            let sums = Calibration::new(block, samples, usize::try_from(memory).unwrap_or(usize::MAX));
            *out = handle::make::<bl_calibration, _>(Arc::new(Gathered { context, sums: Mutex::new(sums) }))?;
            Ok(())
        })
    }
}

/// Reads a calibration that bl_calibration_save wrote. Rows may be added to it.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_open(
    context: *const bl_context,
    path: *const c_char,
    out: *mut *mut bl_calibration,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let sums = Calibration::open(path_of(string(path, "the path")?)?)?;
            *out = handle::make::<bl_calibration, _>(Arc::new(Gathered { context, sums: Mutex::new(sums) }))?;
            Ok(())
        })
    }
}

/// Writes what a calibration knows to a safetensors file.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_save(
    calibration: *const bl_calibration,
    path: *const c_char,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let gathered: &Gathered = handle::get(calibration)?;
            let path = path_of(string(path, "the path")?)?;
            let mut sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            sums.save(gathered.context.isa, path)
        })
    }
}

/// Adds rows of x (f32, f16 or bf16), the input of the layer of that name (with or without ".weight"
/// behind it), to what a calibration knows of it: the sums of products of its columns, by which
/// bl_model_quantize rounds weights. (bl_layer_calibrate and bl_heads_calibrate are another thing: they fix
/// the scale of a layer's integer activations.) x is what
/// bl_forward takes after the norm and before any rotation. Where a row is not finite, or so large that
/// the sums would not be (values from about 1e19 on), nothing is added, of no row. Costs rows * columns *
/// block multiplications on the calling thread; calls from several threads wait for one another.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibrate(
    calibration: *const bl_calibration,
    layer: *const c_char,
    rows: i64,
    columns: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let gathered: &Gathered = handle::get(calibration)?;
            let layer = text(layer, "the layer's name")?;
            let size = |n: i64, least: u64, most: u64, what: &str| match u64::try_from(n) {
                Ok(n) if (least..=most).contains(&n) => Ok(n as usize),
                _ => Err(fail!(InvalidArgument, "{n} {what}: {least} to {most}")),
            };
            let (rows, columns) =
                (size(rows, 0, BATCH_MAX, "rows")?, size(columns, 1, FEATURES_MAX, "columns")?);
            let float = float_type(x_type, "x")?;
            let stride = row_stride(x_stride, columns, float, "x")?;
            if stride.checked_mul(rows).is_none_or(|n| n > isize::MAX as usize) {
                return Err(fail!(
                    InvalidArgument,
                    "{rows} rows of {stride} bytes are more than an address space"
                ));
            }
            if rows == 0 {
                return Ok(());
            }
            if x.is_null() {
                return Err(fail!(InvalidArgument, "x is NULL"));
            }
            let view = MatrixRef::new(x.cast(), float, stride, columns);
            let mut sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            let read = |row: usize, out: &mut [f32]| view.read_row(row, out);
            sums.add(gathered.context.isa, layer, columns, rows, &read)
        })
    }
}

/// What a calibration knows of the layer of that name; layer NULL: how many layers it knows.
/// BL_ERROR_NOT_FOUND for a layer it does not know.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_describe(
    calibration: *const bl_calibration,
    layer: *const c_char,
    info: *mut bl_calibration_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let gathered: &Gathered = handle::get(calibration)?;
            let sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            let layers = sums.names().count() as u64;
            let mut info =
                bl_calibration_info { struct_size: 0, block: 0, in_features: 0, samples: 0, layers };
            if !layer.is_null() {
                let name = text(layer, "the layer's name")?;
                let found = sums.find(name).ok_or_else(|| {
                    fail!(NotFound, "calibration knows no layer {}", Quoted(name.as_bytes()))
                })?;
                info.block = found.block() as u32;
                info.in_features = found.columns() as i64;
                info.samples = found.count();
            }
            out.fill(&info);
            Ok(())
        })
    }
}
