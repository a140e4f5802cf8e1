//! bitlinear through its C interface, in the shared library as it is shipped.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};

use crate::contestant::{Contestant, Windows};
use crate::report::is_float;
use crate::weights::{PATTERN, Values, Weights, repeat};

/// include/bitlinear.h.
#[allow(non_camel_case_types, non_upper_case_globals, non_snake_case, dead_code, unreachable_pub)]
#[allow(clippy::all)]
pub mod ffi {
    include!(concat!(env!("OUT_DIR"), "/bitlinear.rs"));
}
use ffi::*;

/// A failure is a mistake in this program: it ends it with the library's words.
fn check(call: impl FnOnce(*mut bl_error) -> bl_status) {
    // SAFETY: a struct of a number and characters.
    let mut error: bl_error = unsafe { std::mem::zeroed() };
    let status = call(&mut error);
    if status != BL_OK {
        // SAFETY: the library ends its message with a NUL.
        panic!("bitlinear: {}", unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy());
    }
}

/// A struct of zeros that knows its size.
macro_rules! sized {
    ($ty:ty) => {{
        // SAFETY: the header: zero means the default.
        let mut value: $ty = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$ty>() as u32;
        value
    }};
}

/// The library's own line about itself.
pub fn version() -> String {
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(bl_build_info()) }.to_string_lossy().into_owned()
}

/// The instruction sets that it found, best first.
pub fn instruction_sets() -> String {
    let mut info = sized!(bl_device_info);
    // SAFETY: the default context's first device is the CPU.
    check(|e| unsafe { bl_device_describe(null(), 0, &mut info, e) });
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(info.features) }.to_string_lossy().into_owned()
}

/// A ring of layers.
pub struct Ours {
    context: *mut bl_context,
    layers: Vec<*mut bl_layer>,
    reference: Vec<f32>,
    windows: Windows,
    m: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    workspace: Vec<u8>,
    n: usize,
}

impl Ours {
    pub fn new(weights: &Weights, copies: usize, threads: usize) -> Ours {
        let (n, k) = (weights.out_features, weights.in_features);
        let mut options = sized!(bl_context_options);
        options.threads = threads as u32;
        let mut context = null_mut();
        // SAFETY (all calls): handles and buffers of the sizes that are given.
        check(|e| unsafe { bl_context_create(&options, &mut context, e) });
        let format = &weights.format;
        let mut options = sized!(bl_layer_options);
        let (data, ty, mut reference): (Vec<u8>, u32, Option<Vec<f32>>) = if format.same_bytes {
            let (bytes, reference) = weights.ggml(format.ggml[0]);
            if is_float(format.name) {
                options.type_ = format.ours; // else floats become ternary
            }
            (repeat(&bytes, n), format.ours, Some(reference))
        } else {
            options.type_ = format.ours;
            options.group_size = if format.ours == BL_TYPE_INT4 { 32 } else { 0 };
            let floats = weights.all_floats();
            let bytes = floats.iter().flat_map(|v| v.to_ne_bytes()).collect();
            (bytes, BL_TYPE_F32, None)
        };
        let layers: Vec<_> = (0..copies)
            .map(|_| {
                let mut layer = null_mut();
                check(|e| unsafe {
                    let data = data.as_ptr().cast();
                    bl_layer_create(context, n as i64, k as i64, data, ty, 0, &options, &mut layer, e)
                });
                layer
            })
            .collect();
        // Where the rule is simple it is applied here; else what the library says it keeps counts.
        if reference.is_none() && format.values != Values::Normal {
            let mut floats = weights.floats.clone();
            if format.ours == BL_TYPE_TERNARY {
                // BitNet's: the mean magnitude stands for 1.
                let mean = floats.iter().map(|v| f64::from(v.abs())).sum::<f64>() / floats.len() as f64;
                floats.iter_mut().for_each(|v| *v = if *v == 0.0 { 0.0 } else { (mean as f32).copysign(*v) });
            }
            reference = Some(floats);
        }
        let reference = reference.unwrap_or_else(|| {
            let mut floats = vec![0f32; PATTERN * k];
            check(|e| unsafe {
                let to = floats.as_mut_ptr().cast();
                bl_layer_read(layers[0], 0, PATTERN as i64, to, BL_TYPE_F32, 0, e)
            });
            floats
        });
        let (x, y, workspace) = (Vec::new(), Vec::new(), Vec::new());
        Ours { context, layers, reference, windows: Windows::default(), m: 0, x, y, workspace, n }
    }

    fn plan(&self) -> bl_plan_info {
        let mut info = sized!(bl_plan_info);
        // SAFETY: a live layer.
        check(|e| unsafe {
            bl_plan(self.layers[0], BL_OP_FORWARD, self.m as i64, BL_TYPE_F32, &mut info, e)
        });
        info
    }
}

impl Contestant for Ours {
    fn name(&self) -> &str {
        "bitlinear"
    }

    fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows) {
        self.m = m;
        self.x = x.to_vec();
        self.y = vec![0.0; m * self.n];
        self.windows = windows.clone();
        self.workspace = vec![0; self.plan().workspace_size as usize];
    }

    fn run(&mut self, window: usize) {
        let mut options = sized!(bl_run_options);
        options.workspace = self.workspace.as_mut_ptr().cast::<c_void>();
        options.workspace_size = self.workspace.len();
        for &matrix in &self.windows[window] {
            // SAFETY: x and y have m rows of the layer's sizes.
            check(|e| unsafe {
                bl_forward(
                    self.layers[matrix],
                    self.m as i64,
                    self.x.as_ptr().cast(),
                    BL_TYPE_F32,
                    0,
                    self.y.as_mut_ptr().cast(),
                    BL_TYPE_F32,
                    0,
                    &options,
                    e,
                )
            });
        }
    }

    fn output(&mut self) -> Vec<f32> {
        self.y.clone()
    }

    fn reference(&self) -> &[f32] {
        &self.reference
    }

    fn kernel(&self) -> Option<String> {
        // SAFETY: a static string.
        Some(unsafe { CStr::from_ptr(self.plan().kernel) }.to_string_lossy().into_owned())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        for layer in self.layers.drain(..) {
            // SAFETY: a live handle, freed once.
            unsafe { bl_free(layer.cast()) };
        }
        // SAFETY: as above.
        unsafe { bl_free(self.context.cast()) };
    }
}
