//! The low-bit runtime against the numbers of its reference implementation (tests/data/vectors), through
//! the C functions.

#[path = "../codec/support.rs"]
#[allow(dead_code)]
mod data;

mod codes;
mod heads;
mod plan;
mod state;
mod train;

use std::ffi::CStr;

use bitlinear::capi::context::bl_free;
pub(crate) use bitlinear::capi::enums::*;
pub(crate) use bitlinear::capi::types::*;
use serde_json::Value;

/// Status and text of a failure.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) bl_status, pub(crate) String);

impl Failure {
    #[track_caller]
    pub(crate) fn says(self, status: bl_status, text: &str) {
        assert!(self.0 == status && self.1.contains(text), "`{text}` is not in: {:?} {}", self.0, self.1);
    }
}

/// Runs one C function.
#[track_caller]
pub(crate) fn call(function: impl FnOnce(*mut bl_error) -> bl_status) -> Result<(), Failure> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: NULL is allowed. The library's silent panic hook is installed here and taken away.
        unsafe { bl_free(std::ptr::null_mut()) };
        drop(std::panic::take_hook());
    });
    let mut error = bl_error { status: bl_status::BL_ERROR_INTERNAL, message: [0x55; 252] };
    let status = function(&mut error);
    // SAFETY: the message ends with a NUL.
    let text = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap().to_owned();
    assert_ne!(status, bl_status::BL_ERROR_INTERNAL, "{text}");
    if status == bl_status::BL_OK { Ok(()) } else { Err(Failure(status, text)) }
}

/// An options or info struct with its size.
macro_rules! sized {
    ($t:ident) => {{
        // SAFETY: all zeros are a value of it.
        let mut value: $t = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$t>() as u32;
        value
    }};
}
pub(crate) use sized;

/// The reference's numbers.
pub(crate) fn oracles() -> Value {
    data::vectors("seed003_oracles")
}

/// A text of the library.
pub(crate) fn text(text: *const std::ffi::c_char) -> &'static str {
    // SAFETY: static and NUL-terminated, as the header says.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap()
}

/// Equal within a relative error.
#[track_caller]
pub(crate) fn near(got: f64, want: &Value, tolerance: f64) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() <= tolerance * want.abs().max(1e-12), "{got} is not {want}");
}

/// All values near those wanted, relative to the largest of them.
#[track_caller]
pub(crate) fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * largest, "{what}: [{i}] is {g}, not {w}");
    }
}

/// The reference's generator: [count, seed, amplitude], exact in f32.
pub(crate) fn generated(of: &Value) -> Vec<f32> {
    let number = |i: usize| of[i].as_f64().unwrap();
    let (count, seed, amplitude) = (number(0) as u32, number(1) as u32, number(2) as f32);
    (0..count)
        .map(|i| {
            let mut h = i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40503 + 12345);
            h ^= h >> 16;
            h = h.wrapping_mul(2_246_822_519);
            h ^= h >> 13;
            ((h >> 8) as i32 - 8_388_608) as f32 / 8_388_608.0 * amplitude
        })
        .collect()
}
