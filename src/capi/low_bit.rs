//! The low-bit runtime: formats and their words.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::c_char;

use super::enums::args;
use crate::error::{Result, fail};
use crate::plan::LowBit;

/// What weights or activations are kept as in the low-bit runtime.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_low_bit {
    /// What a field's text says.
    BL_LOW_BIT_UNSET = 0,
    /// Not quantised: two bytes a value.
    BL_LOW_BIT_FP16 = 1,
    /// Bytes.
    BL_LOW_BIT_INT8 = 2,
    /// Activations: -7 .. 7, two to a byte, the earlier one in the low bits.
    BL_LOW_BIT_INT4 = 3,
    /// Activations: 0 .. 255; what is negative becomes 0.
    BL_LOW_BIT_UINT8_POS = 4,
    /// Weights: signs.
    BL_LOW_BIT_SIGN1 = 5,
    /// Weights: -1, 0 and 1.
    BL_LOW_BIT_TERNARY158 = 6,
    /// Weights: the same as BL_LOW_BIT_TERNARY158.
    BL_LOW_BIT_PACKED2 = 7,
}

args! { LowBitArg }

/// "fp16", "int8", "int4_exp", "uint8_pos_exp", "sign1", "ternary158", "packed2", "unset"; "unknown" for
/// values that are none. Static.
#[unsafe(no_mangle)]
pub extern "C" fn bl_low_bit_name(format: LowBitArg) -> *const c_char {
    LowBit::from_number(format.0).map_or(c"unknown", LowBit::name).as_ptr()
}

/// A caller's f32 values; NULL will do for none.
///
/// # Safety
/// `values` is NULL or valid for reading `count` of them, while the slice is used.
pub unsafe fn floats<'a>(values: *const f32, count: i64, what: &str) -> Result<&'a [f32]> {
    let most = isize::MAX as usize / 4;
    let Some(count) = usize::try_from(count).ok().filter(|n| *n <= most) else {
        return Err(fail!(InvalidArgument, "{what}: {count} floats: 0 to {most}"));
    };
    if values.is_null() {
        return match count {
            0 => Ok(&[]),
            _ => Err(fail!(InvalidArgument, "{what}: NULL, not {count} floats")),
        };
    }
    if !values.is_aligned() {
        return Err(fail!(InvalidArgument, "{what}: {values:p} is not aligned to 4 bytes, as floats are"));
    }
    // SAFETY: not NULL, aligned, and the caller's contract.
    Ok(unsafe { std::slice::from_raw_parts(values, count) })
}

/// The same to write.
///
/// # Safety
/// `values` is NULL or valid for reading and writing `count` of them, and no one else uses them
/// meanwhile.
pub unsafe fn floats_mut<'a>(values: *mut f32, count: i64, what: &str) -> Result<&'a mut [f32]> {
    // SAFETY: the caller's contract; NULL and alignment are checked.
    let count = unsafe { floats(values, count, what)? }.len();
    if values.is_null() {
        return Ok(&mut []);
    }
    // SAFETY: as above, and not NULL.
    Ok(unsafe { std::slice::from_raw_parts_mut(values, count) })
}
