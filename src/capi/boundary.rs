//! What every exported function passes through: panic guard, floating-point mode, error text.
//! cbindgen:ignore

use std::any::Any;
use std::cell::Cell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::types::{bl_error, bl_status};
use crate::error::{Error, Result, Status, Text, fail};

thread_local! {
    // `const` and without Drop: no thread-exit destructor is registered, which would keep a
    // dlclosed library mapped for as long as the thread lives.
    static PANIC_TEXT: Cell<Text> = const { Cell::new(Text::EMPTY) };
}

/// Replaces the default hook, which would print to the host's stderr. This copy of std belongs to the
/// shared library alone: a Rust host has its own hook in its own copy.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let what = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("a panic without a text");
            let text = match info.location() {
                Some(at) => Text::format(format_args!("{}:{}: {what}", at.file(), at.line())),
                None => Text::format(format_args!("{what}")),
            };
            PANIC_TEXT.set(text);
        }));
    });
}

/// Runs `work`. Nothing unwinds out of this: a panic becomes `Internal` with its place and text.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // AssertUnwindSafe: shared state of this crate is immutable after construction; what a panic
    // leaves half-made is dropped with the stack.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => {
            swallow(payload);
            Err(fail!(Internal, "a bug in bitlinear: {}", PANIC_TEXT.get().as_str()))
        }
    }
}

#[cold]
fn swallow(payload: Box<dyn Any + Send>) {
    // A payload's Drop may panic in turn; that second payload is leaked, not let out.
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}

/// The shape of every export.
///
/// # Safety
/// `error` is NULL or valid for one write.
pub unsafe fn guard(error: *mut bl_error, work: impl FnOnce() -> Result<()>) -> bl_status {
    install_hook();
    let mode = FpMode::enter();
    let result = caught(work);
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
        Status::Internal => bl_status::BL_ERROR_INTERNAL,
    }
}

/// The floating-point mode that the numerics contract assumes (round to nearest, no flushing of
/// subnormals), set while this lives. Audio hosts and -ffast-math programs run with another one.
pub struct FpMode(Control);

#[cfg(target_arch = "x86_64")]
type Control = u32;
#[cfg(not(target_arch = "x86_64"))]
type Control = u64;

#[cfg(target_arch = "x86_64")]
mod control {
    /// All of MXCSR but the sticky exception flags.
    pub(super) const MASK: u32 = 0xffc0;
    /// All exceptions masked, round to nearest, no FTZ, no DAZ.
    pub(super) const DEFAULT: u32 = 0x1f80;

    pub(super) fn get() -> u32 {
        let mut value = 0u32;
        // SAFETY: stores MXCSR to a local of four bytes.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) }
        value
    }

    pub(super) fn set(value: u32) {
        // SAFETY: `value` is the default mode, or what `get` read before; neither has reserved bits.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, preserves_flags)) }
    }
}

#[cfg(target_arch = "aarch64")]
mod control {
    pub(super) const MASK: u64 = !0;
    pub(super) const DEFAULT: u64 = 0;

    pub(super) fn get() -> u64 {
        let value;
        // SAFETY: reads FPCR, which user code may.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) }
        value
    }

    pub(super) fn set(value: u64) {
        // SAFETY: writes the default mode, or what `get` read before.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nostack, preserves_flags)) }
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod control {
    pub(super) const MASK: u64 = 0;
    pub(super) const DEFAULT: u64 = 0;
    pub(super) fn get() -> u64 {
        0
    }
    pub(super) fn set(_: u64) {}
}

impl FpMode {
    /// Sets the mode, where it is not set already.
    #[inline]
    pub fn enter() -> FpMode {
        let before = control::get();
        if before & control::MASK != control::DEFAULT {
            control::set(control::DEFAULT);
        }
        FpMode(before)
    }
}

impl Drop for FpMode {
    #[inline]
    fn drop(&mut self) {
        if self.0 & control::MASK != control::DEFAULT {
            control::set(self.0);
        }
    }
}
