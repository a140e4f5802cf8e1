//! The rotation as a call of its own.

use std::ffi::c_void;

use super::boundary::guard;
use super::context;
use super::enums::*;
use super::layer::{float_type, row_stride};
use super::types::*;
use crate::error::fail;
use crate::limits::{BATCH_MAX, FEATURES_MAX};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::filled;
use crate::rotation::{Rotation, Spec};

/// Rotates rows of x (f32, f16 or bf16) in place: each block of `block` columns, a power of two from 2
/// to 16384 that divides `columns`, becomes H (s * x), where s are `columns` signs, +1 or -1 (NULL: all
/// +1), and H[r][c] = (-1)^popcount(r & c) / sqrt(block). With BL_ROTATE_INVERSE it becomes s * (H x):
/// plain rows from the rotated ones that some files have in their embedding tables
/// (prism.hadamard.inverse_weight_names). Runs on the calling thread; rows = 0 does nothing.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_rotate(
    rows: i64,
    columns: i64,
    x: *mut c_void,
    x_type: TypeArg,
    x_stride: i64,
    block: u32,
    signs: *const f32,
    flags: u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let size = |n: i64, most: u64, what: &str| match u64::try_from(n) {
                Ok(n) if n <= most => Ok(n as usize),
                _ => Err(fail!(InvalidArgument, "{n} {what}: 0 to {most}")),
            };
            let (rows, columns) = (size(rows, BATCH_MAX, "rows")?, size(columns, FEATURES_MAX, "columns")?);
            let float = float_type(x_type, "x")?;
            let stride = row_stride(x_stride, columns, float, "x")?;
            if flags & !BL_ROTATE_INVERSE != 0 {
                return Err(fail!(InvalidArgument, "rotation flags {flags:#x} are unknown"));
            }
            let read = super::layer_options::read_some(signs, columns, "rotation signs")?;
            let rotation = Rotation::new(&Spec { block: block as usize, signs: read.as_deref() }, columns)?;
            if rows == 0 || columns == 0 {
                return Ok(());
            }
            if x.is_null() {
                return Err(fail!(InvalidArgument, "x is NULL"));
            }
            if stride.checked_mul(rows).is_none_or(|n| n > isize::MAX as usize) {
                return Err(fail!(
                    InvalidArgument,
                    "{rows} rows of such strides are more than an address space"
                ));
            }
            let isa = context::of(std::ptr::null())?.isa;
            let mut row = filled(columns, 0.0, "a row")?;
            let (from, to) = (
                MatrixRef::new(x.cast_const().cast(), float, stride, columns),
                MatrixMut::new(x.cast(), float, stride, columns),
            );
            for r in 0..rows {
                from.read_row(r, &mut row);
                match flags & BL_ROTATE_INVERSE {
                    0 => rotation.apply(isa, &mut row),
                    _ => rotation.invert(isa, &mut row),
                }
                to.write(r, 0, &row);
            }
            Ok(())
        })
    }
}
