//! The way of a host: bytes are loaded through the C functions, all layers and tensors listed, opened in
//! several readings, and run. Whatever the bytes are, each call gives a status, and none of them a bug.
#![no_main]

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use bitlinear::capi::context::bl_free;
use bitlinear::capi::enums::*;
use bitlinear::capi::forward::bl_forward;
use bitlinear::capi::layer::{bl_layer_describe, bl_layer_open, bl_layer_read};
use bitlinear::capi::model::{bl_load_memory, bl_model_describe, bl_model_layer, bl_model_tensor};
use bitlinear::capi::types::*;
use libfuzzer_sys::fuzz_target;

/// A struct with its size.
macro_rules! sized {
    ($t:ident) => {{
        // SAFETY: all zeros are a value of it.
        let mut value: $t = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$t>() as u32;
        value
    }};
}

/// Layers and tensors tried of one file.
const TRIED: i64 = 64;
/// Weights of a layer that is worth running.
const WEIGHTS_MAX: i64 = 1 << 18;

fn call(function: impl FnOnce(*mut bl_error) -> bl_status) -> bl_status {
    let mut error = bl_error { status: bl_status::BL_ERROR_INTERNAL, message: [0x55; 252] };
    let status = function(&mut error);
    // SAFETY: the message ends with a NUL.
    let text = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().expect("UTF-8");
    assert_eq!(status, error.status);
    assert_eq!(status == bl_status::BL_OK, text.is_empty());
    assert_ne!(status, bl_status::BL_ERROR_INTERNAL, "{text}");
    status
}

fuzz_target!(|bytes: &[u8]| {
    let flags = if bytes.len() % 2 == 0 { BL_LOAD_BORROW } else { 0 };
    let load = bl_load_options { flags, ..sized!(bl_load_options) };
    let mut model = null_mut();
    // SAFETY, here and below: pointers to locals; handles that are alive; rows that are there.
    let status =
        call(|e| unsafe { bl_load_memory(null(), bytes.as_ptr().cast(), bytes.len(), &load, &mut model, e) });
    if status != bl_status::BL_OK {
        assert!(model.is_null());
        return;
    }
    let mut about = sized!(bl_model_info);
    assert_eq!(call(|e| unsafe { bl_model_describe(model, &mut about, e) }), bl_status::BL_OK);
    for index in 0..about.layers.min(TRIED) {
        let mut listed = sized!(bl_model_layer_info);
        let found = call(|e| unsafe { bl_model_layer(model, null(), index, &mut listed, e) });
        assert_eq!(found, bl_status::BL_OK);
        let defaults = sized!(bl_layer_options);
        let by_default = open(model, listed.name, &defaults);
        if by_default == bl_status::BL_OK {
            assert_eq!(listed.status.0, 0, "what opens is listed so");
        }
        let guess = bl_layer_options {
            flags: BL_LAYER_SCALE_MULTIPLIES | BL_LAYER_GPTQ_V1 | BL_LAYER_WITHOUT_NORM,
            r#type: listed.r#type,
            group_size: if index % 2 == 0 { 0 } else { 32 },
            slice: listed.slices - 1,
            ..defaults
        };
        open(model, listed.name, &guess);
        let other = bl_layer_options {
            flags: BL_LAYER_SCALE_DIVIDES | BL_LAYER_GPTQ_V2 | BL_LAYER_ALL_SLICES,
            activation: ActivationArg(bl_activation::BL_ACTIVATION_F32 as u32),
            ..defaults
        };
        open(model, listed.name, &other);
    }
    let scales = [0.5f32; 64];
    for index in 0..about.tensors.min(TRIED) {
        let mut tensor = sized!(bl_tensor_info);
        let found = call(|e| unsafe { bl_model_tensor(model, null(), index, &mut tensor, e) });
        assert_eq!(found, bl_status::BL_OK);
        let defaults = sized!(bl_layer_options);
        open(model, tensor.name, &defaults);
        for number in [16, 17, 18, 19, 20, 21, 22, 28, 29] {
            let apart = bl_layer_options {
                r#type: TypeArg(number),
                flags: BL_LAYER_SCALE_DIVIDES,
                scales: scales.as_ptr(),
                scale_count: [1, 2, 16, 64][index as usize % 4],
                in_features: if number > 18 { 8 } else { 0 },
                out_features: if number > 18 { 8 } else { 0 },
                ..defaults
            };
            open(model, tensor.name, &apart);
        }
    }
    unsafe { bl_free(model.cast()) };
});

/// Opens a layer and, where it opens, reads and runs it.
fn open(model: *const bl_model, name: *const std::ffi::c_char, options: &bl_layer_options) -> bl_status {
    let mut layer = null_mut();
    let status = call(|e| unsafe { bl_layer_open(model, name, options, &mut layer, e) });
    assert_eq!(status == bl_status::BL_OK, !layer.is_null());
    if layer.is_null() {
        return status;
    }
    let mut info = sized!(bl_layer_info);
    assert_eq!(call(|e| unsafe { bl_layer_describe(layer, &mut info, e) }), bl_status::BL_OK);
    let (rows, columns) = (info.out_features, info.in_features);
    assert!(rows > 0 && columns > 0);
    if rows.checked_mul(columns).is_some_and(|n| n <= WEIGHTS_MAX) {
        let x = vec![0.25f32; columns as usize];
        let mut y = vec![0f32; rows as usize];
        let f32_type = TypeArg(bl_type::BL_TYPE_F32 as u32);
        let (from, to) = (x.as_ptr().cast(), y.as_mut_ptr().cast());
        let ran = call(|e| unsafe { bl_forward(layer, 1, from, f32_type, 0, to, f32_type, 0, null(), e) });
        assert_eq!(ran, bl_status::BL_OK);
        let mut row = vec![0f32; columns as usize];
        let dst = row.as_mut_ptr().cast();
        let read = call(|e| unsafe { bl_layer_read(layer, rows - 1, 1, dst, f32_type, 0, e) });
        assert_eq!(read, bl_status::BL_OK);
    }
    unsafe { bl_free(layer.cast()) };
    status
}
