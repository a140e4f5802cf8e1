//! The shared library as it is shipped, opened and called as a C program would.

use std::ffi::{CStr, CString, c_void};
use std::sync::OnceLock;

use bitlinear::capi::enums::*;
use bitlinear::capi::types::*;

use crate::native;

/// A function of the library, of the type that `like` has.
pub fn symbol<F: Copy>(name: &str, _like: F) -> F {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let library = *LIBRARY.get_or_init(|| {
        let path = CString::new(native::release().join("libbitlinear.so").to_str().unwrap()).unwrap();
        // SAFETY: our own library.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "{path:?} cannot be opened");
        library.expose_provenance()
    });
    let name = CString::new(name).unwrap();
    // SAFETY: an open library and a name; the address is one of a function of the type of `like`, which the
    // same source declares.
    unsafe {
        let address = libc::dlsym(std::ptr::with_exposed_provenance_mut(library), name.as_ptr());
        assert!(!address.is_null() && size_of::<F>() == size_of::<*mut c_void>(), "{name:?}");
        std::mem::transmute_copy(&address)
    }
}

/// The type of an argument is what the function says.
#[macro_export]
macro_rules! hole {
    ($_any:expr) => {
        _
    };
}

/// Calls a function of the shipped library; its `bl_error` comes last of itself.
#[macro_export]
macro_rules! attempt {
    ($module:ident :: $name:ident ( $($argument:expr),* $(,)? )) => {{
        // Coerced, not cast: a cast would wait for the arguments' types instead of giving them.
        let like: unsafe extern "C" fn($($crate::hole!($argument),)* _) -> _ =
            bitlinear::capi::$module::$name;
        let function = $crate::shipped::symbol(stringify!($name), like);
        // SAFETY: zeros are a `bl_error`; the arguments are as the header wants them.
        unsafe {
            let mut error: bitlinear::capi::types::bl_error = std::mem::zeroed();
            let status = function($($argument,)* &mut error);
            $crate::shipped::outcome(status, &error)
        }
    }};
}

/// Status and text of a call that failed.
pub type Outcome<T = ()> = Result<T, (bl_status, String)>;

pub fn outcome(status: bl_status, error: &bl_error) -> Outcome {
    assert_eq!(status, error.status);
    // SAFETY: NUL-terminated, as every message is.
    let text = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned();
    if status == bl_status::BL_OK { Ok(()) } else { Err((status, text)) }
}

/// Any handle, freed when it goes.
pub struct Handle(pub *mut c_void);

impl Handle {
    /// As a function wants it.
    pub fn get<T>(&self) -> *mut T {
        self.0.cast()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let like: unsafe extern "C" fn(_) = bitlinear::capi::context::bl_free;
        // SAFETY: a handle that is not freed yet.
        unsafe { symbol("bl_free", like)(self.0) }
    }
}

/// A struct of zeros that says its size.
macro_rules! zeroed {
    ($($name:ident: $ty:ty;)*) => {$(
        pub fn $name() -> $ty {
            // SAFETY: zeros are valid: the header says that they are the defaults.
            let mut value: $ty = unsafe { std::mem::zeroed() };
            value.struct_size = size_of::<$ty>() as u32;
            value
        }
    )*};
}
zeroed! {
    context_options: bl_context_options;
    layer_options: bl_layer_options;
    run_options: bl_run_options;
    layer_info: bl_layer_info;
    plan_info: bl_plan_info;
    device_info: bl_device_info;
    memory_info: bl_memory_info;
}

/// A context.
pub fn context(options: &bl_context_options) -> Handle {
    let mut out = std::ptr::null_mut();
    attempt!(context::bl_context_create(options, &mut out)).unwrap();
    Handle(out.cast())
}

/// What a context says of its memory.
pub fn memory(context: &Handle) -> bl_memory_info {
    let mut info = memory_info();
    attempt!(profile::bl_memory(context.get::<bl_context>().cast_const(), &mut info)).unwrap();
    info
}

/// A golden file.
pub fn model(context: Option<&Handle>, name: &str) -> Handle {
    let path = native::root().join("tests/data/golden").join(name);
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let context: *const bl_context = context.map_or(std::ptr::null(), |c| c.get::<bl_context>());
    let mut out = std::ptr::null_mut();
    attempt!(model::bl_load(context, path.as_ptr(), std::ptr::null(), &mut out)).unwrap();
    Handle(out.cast())
}

/// A layer of it.
pub fn open(model: &Handle, name: &str, options: &bl_layer_options) -> Outcome<Handle> {
    let name = CString::new(name).unwrap();
    let mut out = std::ptr::null_mut();
    attempt!(layer::bl_layer_open(model.get::<bl_model>().cast_const(), name.as_ptr(), options, &mut out))?;
    Ok(Handle(out.cast()))
}

/// A layer of floats.
pub fn create(
    context: Option<&Handle>,
    shape: (usize, usize),
    weights: &[f32],
    options: &bl_layer_options,
) -> Outcome<Handle> {
    assert_eq!(weights.len(), shape.0 * shape.1);
    let context: *const bl_context = context.map_or(std::ptr::null(), |c| c.get::<bl_context>());
    let mut out = std::ptr::null_mut();
    let f32s = TypeArg(bl_type::BL_TYPE_F32 as u32);
    let address = weights.as_ptr().cast();
    let (rows, columns) = (shape.0 as i64, shape.1 as i64);
    attempt!(layer::bl_layer_create(context, rows, columns, address, f32s, 0, options, &mut out))?;
    Ok(Handle(out.cast()))
}

/// A copy on a device.
pub fn copy(layer: &Handle, device: u32) -> Outcome<Handle> {
    let mut out = std::ptr::null_mut();
    let (memory, size) = (std::ptr::null_mut(), std::ptr::null_mut());
    attempt!(device::bl_layer_copy(layer.get::<bl_layer>().cast_const(), device, memory, size, &mut out))?;
    Ok(Handle(out.cast()))
}

/// What a layer is.
pub fn describe(layer: &Handle) -> bl_layer_info {
    let mut info = layer_info();
    attempt!(layer::bl_layer_describe(layer.get::<bl_layer>().cast_const(), &mut info)).unwrap();
    info
}

/// What a call will do.
pub fn plan(layer: &Handle, m: usize) -> bl_plan_info {
    let mut info = plan_info();
    let (op, f32s) = (OpArg(0), TypeArg(bl_type::BL_TYPE_F32 as u32));
    attempt!(forward::bl_plan(layer.get::<bl_layer>().cast_const(), op, m as i64, f32s, &mut info)).unwrap();
    info
}

/// y of f32 rows that touch; `y` is what is added to, where the flags say so.
pub fn forward(layer: &Handle, m: usize, x: &[f32], y: &mut [f32], flags: u32) -> Outcome {
    let mut options = run_options();
    options.flags = flags;
    let f32s = TypeArg(bl_type::BL_TYPE_F32 as u32);
    let (layer, x, y) = (layer.get::<bl_layer>().cast_const(), x.as_ptr().cast(), y.as_mut_ptr().cast());
    attempt!(forward::bl_forward(layer, m as i64, x, f32s, 0, y, f32s, 0, &options))
}

/// Values of both signs, among them zeros, large and small ones.
pub fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..count)
        .map(|_| {
            let (bits, kind) = (next(), next() % 64);
            let v = (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
            match kind {
                0 => 0.0,
                1 => v * 100.0,
                2 => v / 1000.0,
                _ => v,
            }
        })
        .collect()
}

/// Whether both have the same bits.
#[track_caller]
pub fn same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    let bad = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(at) = bad {
        let count = got.iter().zip(want).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        panic!("{what}: {count} of {} differ, first {at}: {} is not {}", got.len(), got[at], want[at]);
    }
}
