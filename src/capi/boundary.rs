//! What every exported function passes through: panic guard, floating-point mode, error text.
//! cbindgen:ignore

use std::ffi::c_char;

use super::enums::bl_status;
use super::types::bl_error;
use crate::error::{Error, Result, Status};
use crate::fault;
use crate::fpmode::FpMode;

/// The shape of every export.
///
/// # Safety
/// `error` is NULL or valid for one write.
pub unsafe fn guard(error: *mut bl_error, work: impl FnOnce() -> Result<()>) -> bl_status {
    fault::install_hook();
    let mode = FpMode::enter();
    let result = fault::caught(work);
    drop(mode);
    let status = match &result {
        Ok(()) => bl_status::BL_OK,
        Err(e) => status_of(e.status()),
    };
    if !error.is_null() {
        // SAFETY: not NULL, and the caller's contract.
        unsafe { write_error(error, status, result.as_ref().err()) }
    }
    status
}

/// # Safety
/// `error` is valid for one write.
unsafe fn write_error(error: *mut bl_error, status: bl_status, failure: Option<&Error>) {
    // SAFETY: the caller's contract. Field by field, because the memory may be uninitialised.
    unsafe {
        (&raw mut (*error).status).write(status);
        let message = (&raw mut (*error).message).cast::<c_char>();
        let text = failure.map_or(&[][..], |e| e.text().as_bytes());
        // A text has at most 251 bytes (`error::TEXT_MAX`), so that the NUL fits.
        for (i, byte) in text.iter().enumerate() {
            message.add(i).write(*byte as c_char);
        }
        message.add(text.len()).write(0);
    }
}

/// The C name of a status.
pub fn status_of(status: Status) -> bl_status {
    match status {
        Status::InvalidArgument => bl_status::BL_ERROR_INVALID_ARGUMENT,
        Status::InvalidHandle => bl_status::BL_ERROR_INVALID_HANDLE,
        Status::Unsupported => bl_status::BL_ERROR_UNSUPPORTED,
        Status::OutOfMemory => bl_status::BL_ERROR_OUT_OF_MEMORY,
        Status::BufferTooSmall => bl_status::BL_ERROR_BUFFER_TOO_SMALL,
        Status::NotFound => bl_status::BL_ERROR_NOT_FOUND,
        Status::Io => bl_status::BL_ERROR_IO,
        Status::BadFile => bl_status::BL_ERROR_BAD_FILE,
        Status::Device => bl_status::BL_ERROR_DEVICE,
        Status::Forked => bl_status::BL_ERROR_FORKED,
        Status::Cancelled => bl_status::BL_ERROR_CANCELLED,
        Status::NoDriver => bl_status::BL_ERROR_NO_DRIVER,
        Status::DriverTooOld => bl_status::BL_ERROR_DRIVER_TOO_OLD,
        Status::NoDevice => bl_status::BL_ERROR_NO_DEVICE,
        Status::UnsupportedDevice => bl_status::BL_ERROR_UNSUPPORTED_DEVICE,
        Status::DeviceLost => bl_status::BL_ERROR_DEVICE_LOST,
        Status::Internal => bl_status::BL_ERROR_INTERNAL,
    }
}
