//! The library itself: version, names, types.

use std::ffi::{CStr, c_char};

use super::boundary::guard;
use super::enums::*;
use super::options;
use super::types::*;

/// `major * 1000000 + minor * 1000 + patch` of this crate.
const VERSION: u32 = 1_000_000 * number(env!("CARGO_PKG_VERSION_MAJOR"))
    + 1_000 * number(env!("CARGO_PKG_VERSION_MINOR"))
    + number(env!("CARGO_PKG_VERSION_PATCH"));

const fn number(text: &str) -> u32 {
    let (bytes, mut i, mut n) = (text.as_bytes(), 0, 0);
    while i < bytes.len() {
        n = n * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    n
}

/// BL_VERSION of the loaded library. Same major (and, while it is 0, same minor): usable.
#[unsafe(no_mangle)]
pub extern "C" fn bl_version() -> u32 {
    VERSION
}

/// Version, commit, compiler, target and features in one line. Static.
#[unsafe(no_mangle)]
pub extern "C" fn bl_build_info() -> *const c_char {
    concat!(
        "bitlinear ",
        env!("CARGO_PKG_VERSION"),
        " (",
        env!("BITLINEAR_COMMIT"),
        ") ",
        env!("BITLINEAR_RUSTC"),
        " ",
        env!("BITLINEAR_TARGET"),
        env!("BITLINEAR_FEATURES"),
        "\0"
    )
    .as_ptr()
    .cast()
}

/// "BL_OK" and so on; "BL_UNKNOWN" for values that are none. Static.
#[unsafe(no_mangle)]
pub extern "C" fn bl_status_name(status: StatusArg) -> *const c_char {
    let name: &CStr = match status.0 {
        0 => c"BL_OK",
        1 => c"BL_ERROR_INVALID_ARGUMENT",
        2 => c"BL_ERROR_INVALID_HANDLE",
        3 => c"BL_ERROR_UNSUPPORTED",
        4 => c"BL_ERROR_OUT_OF_MEMORY",
        5 => c"BL_ERROR_BUFFER_TOO_SMALL",
        6 => c"BL_ERROR_NOT_FOUND",
        7 => c"BL_ERROR_IO",
        8 => c"BL_ERROR_BAD_FILE",
        9 => c"BL_ERROR_DEVICE",
        10 => c"BL_ERROR_FORKED",
        11 => c"BL_ERROR_CANCELLED",
        12 => c"BL_ERROR_NO_DRIVER",
        13 => c"BL_ERROR_DRIVER_TOO_OLD",
        14 => c"BL_ERROR_NO_DEVICE",
        15 => c"BL_ERROR_UNSUPPORTED_DEVICE",
        16 => c"BL_ERROR_DEVICE_LOST",
        99 => c"BL_ERROR_INTERNAL",
        _ => c"BL_UNKNOWN",
    };
    name.as_ptr()
}

/// Name and blocks of a type; BL_ERROR_UNSUPPORTED for a number that is none.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_type_describe(
    r#type: TypeArg,
    info: *mut bl_type_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; `info` is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let known = r#type.known()?.info();
            out.fill(&bl_type_info {
                struct_size: 0,
                block: known.block,
                block_bytes: known.block_bytes,
                is_packed: !known.ty.is_plain() as u32,
                name: known.c_name().as_ptr(),
            });
            Ok(())
        })
    }
}
