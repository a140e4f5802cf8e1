//! Layers made from memory, converted, cut into shards, saved and opened again: the C functions.

#[path = "codec/support.rs"]
#[allow(dead_code)]
mod data;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

use bitlinear::capi::context::{bl_context_create, bl_free};
use bitlinear::capi::convert::bl_convert;
use bitlinear::capi::enums::*;
use bitlinear::capi::forward::bl_forward;
use bitlinear::capi::layer::{
    bl_layer_create, bl_layer_describe, bl_layer_open, bl_layer_read, bl_layer_update,
};
use bitlinear::capi::model::{bl_load, bl_model_meta};
use bitlinear::capi::profile::bl_memory;
use bitlinear::capi::save::bl_save;
use bitlinear::capi::train::bl_layer_calibrate;
use bitlinear::capi::types::*;
use bitlinear::types::{TYPES, Type};
use bl_status::*;
use bl_type::*;
use data::{cases, floats, hex, size};

#[derive(Debug)]
struct Failure(bl_status, String);

impl Failure {
    #[track_caller]
    fn says(self, status: bl_status, texts: &[&str]) {
        assert_eq!(self.0, status, "{}", self.1);
        for text in texts {
            assert!(self.1.contains(text), "`{text}` is not in: {}", self.1);
        }
    }
}

#[track_caller]
fn call(function: impl FnOnce(*mut bl_error) -> bl_status) -> Result<(), Failure> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: NULL is allowed. The library's silent panic hook is installed here and taken away.
        unsafe { bl_free(null_mut()) };
        drop(std::panic::take_hook());
    });
    let mut error = bl_error { status: BL_ERROR_INTERNAL, message: [0x55; 252] };
    let status = function(&mut error);
    // SAFETY: the message ends with a NUL.
    let text = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap().to_owned();
    assert_ne!(status, BL_ERROR_INTERNAL, "{text}");
    if status == BL_OK { Ok(()) } else { Err(Failure(status, text)) }
}

macro_rules! sized {
    ($t:ident) => {{
        // SAFETY: all zeros are a value of it.
        let mut value: $t = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$t>() as u32;
        value
    }};
}

fn options() -> bl_layer_options {
    sized!(bl_layer_options)
}

fn to(ty: bl_type) -> bl_layer_options {
    bl_layer_options { r#type: TypeArg(ty as u32), ..options() }
}

#[derive(Debug)]
struct Layer(*mut bl_layer);
struct Model(*mut bl_model);
struct Context(*mut bl_context);

impl Drop for Layer {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}
impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}
impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

#[track_caller]
fn create_in(
    context: *const bl_context,
    [rows, columns]: [usize; 2],
    weights: &[u8],
    ty: bl_type,
    stride: usize,
    options: &bl_layer_options,
) -> Result<Layer, Failure> {
    let mut layer = null_mut();
    let (data, ty) = (weights.as_ptr().cast(), TypeArg(ty as u32));
    call(|error| {
        // SAFETY: valid pointers; the weights are as long as each test says.
        unsafe {
            bl_layer_create(
                context,
                rows as i64,
                columns as i64,
                data,
                ty,
                stride as i64,
                options,
                &mut layer,
                error,
            )
        }
    })?;
    Ok(Layer(layer))
}

#[track_caller]
fn create(
    shape: [usize; 2],
    weights: &[u8],
    ty: bl_type,
    options: &bl_layer_options,
) -> Result<Layer, Failure> {
    create_in(null(), shape, weights, ty, 0, options)
}

impl Layer {
    fn info(&self) -> bl_layer_info {
        let mut info = sized!(bl_layer_info);
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_layer_describe(self.0, &mut info, error) }).unwrap();
        info
    }
    fn weights(&self) -> Vec<f32> {
        let info = self.info();
        let mut w = vec![0f32; (info.in_features * info.out_features) as usize];
        let (to, f32) = (w.as_mut_ptr().cast(), TypeArg(BL_TYPE_F32 as u32));
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_layer_read(self.0, 0, info.out_features, to, f32, 0, error) }).unwrap();
        w
    }
    /// On x of the layer's own columns.
    fn forward(&self, m: usize, x: &[f32]) -> Vec<f32> {
        let info = self.info();
        let mut y = vec![0f32; m * info.out_features as usize];
        assert_eq!(x.len(), m * info.in_features as usize);
        let f32 = TypeArg(BL_TYPE_F32 as u32);
        let (x, to) = (x.as_ptr().cast(), y.as_mut_ptr().cast());
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_forward(self.0, m as i64, x, f32, 0, to, f32, 0, null(), error) }).unwrap();
        y
    }
    fn update(&self, weights: &[u8], ty: bl_type) -> Result<(), Failure> {
        let ty = TypeArg(ty as u32);
        // SAFETY: valid pointers; nobody else uses the layer.
        call(|error| unsafe { bl_layer_update(self.0, weights.as_ptr().cast(), ty, 0, error) })
    }
}

impl Model {
    fn load(context: *const bl_context, path: &CStr, flags: u32) -> Result<Model, Failure> {
        let options = bl_load_options { flags, ..sized!(bl_load_options) };
        let mut model = null_mut();
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_load(context, path.as_ptr(), &options, &mut model, error) })?;
        Ok(Model(model))
    }
    fn open(&self, name: &CStr, options: &bl_layer_options) -> Result<Layer, Failure> {
        let mut layer = null_mut();
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_layer_open(self.0, name.as_ptr(), options, &mut layer, error) })?;
        Ok(Layer(layer))
    }
}

fn path(name: &str) -> CString {
    let path = std::env::temp_dir().join(format!("bitlinear-made-{}-{name}", std::process::id()));
    CString::new(path.to_str().unwrap()).unwrap()
}

fn save(path: &CStr, layers: &[(&CStr, &Layer)], texts: &[(&CStr, &CStr)]) -> Result<(), Failure> {
    let layers: Vec<bl_named_layer> =
        layers.iter().map(|(name, layer)| bl_named_layer { name: name.as_ptr(), layer: layer.0 }).collect();
    let texts: Vec<bl_named_text> =
        texts.iter().map(|(key, value)| bl_named_text { key: key.as_ptr(), value: value.as_ptr() }).collect();
    // SAFETY: valid pointers.
    call(|error| unsafe {
        bl_save(path.as_ptr(), layers.as_ptr(), layers.len(), texts.as_ptr(), texts.len(), error)
    })
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Numbers between -1 and 1.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 - 8_388_608.0) / 8_388_608.0
    };
    (0..count).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[track_caller]
fn close(got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= bound * (1.0 + b.abs()), "value {i}: {a}, {b} expected");
    }
}

const EXACT: [(&str, bl_type); 9] = [
    ("ggml_q4_0", BL_TYPE_Q4_0),
    ("ggml_q4_1", BL_TYPE_Q4_1),
    ("ggml_q5_0", BL_TYPE_Q5_0),
    ("ggml_q5_1", BL_TYPE_Q5_1),
    ("ggml_q8_0", BL_TYPE_Q8_0),
    ("ggml_tq1_0", BL_TYPE_TQ1_0),
    ("ggml_tq2_0", BL_TYPE_TQ2_0),
    ("ggml_q1_0", BL_TYPE_Q1_0),
    ("ggml_q2_0", BL_TYPE_Q2_0),
];

fn convert(shape: [usize; 2], src: &[u8], from: bl_type, dst: &mut [u8], to: bl_type) -> Result<(), Failure> {
    convert_strided(shape, src, from, 0, dst, to, 0)
}

fn convert_strided(
    [rows, columns]: [usize; 2],
    src: &[u8],
    from: bl_type,
    src_stride: i64,
    dst: &mut [u8],
    to: bl_type,
    dst_stride: i64,
) -> Result<(), Failure> {
    let (from, to) = (TypeArg(from as u32), TypeArg(to as u32));
    let (src, dst) = (src.as_ptr().cast::<c_void>(), dst.as_mut_ptr().cast::<c_void>());
    call(|error| {
        // SAFETY: valid pointers; lengths as each test says.
        unsafe {
            bl_convert(null(), rows as i64, columns as i64, src, from, src_stride, dst, to, dst_stride, error)
        }
    })
}

#[test]
fn conversions_are_the_vectors_byte_for_byte() {
    for (name, ty) in EXACT {
        for case in cases(name) {
            let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
            let (input, packed) = (floats(&case["input"]), hex(&case["packed_hex"]));
            let mut bytes = vec![0u8; packed.len()];
            convert(shape, &bytes_of(&input), BL_TYPE_F32, &mut bytes, ty).unwrap();
            assert!(bytes == packed, "{name} {}", case["case"]);
            let mut back = vec![0u8; input.len() * 4];
            convert(shape, &packed, ty, &mut back, BL_TYPE_F32).unwrap();
            assert!(back == bytes_of(&floats(&case["dequantized"])), "{name} {}", case["case"]);
            // With gaps between the rows, which stay as they are.
            let (row, out) = (packed.len() / shape[0], packed.len() / shape[0] + 5);
            let mut gaps = vec![0xaau8; out * shape[0]];
            let (f32s, stride) = (bytes_of(&input), shape[1] as i64 * 4);
            convert_strided(shape, &f32s, BL_TYPE_F32, stride, &mut gaps, ty, out as i64).unwrap();
            for (r, gap) in gaps.chunks(out).enumerate() {
                assert!(gap[..row] == packed[r * row..][..row] && gap[row..] == [0xaa; 5]);
            }
            let mut back = vec![0u8; input.len() * 4];
            convert_strided(shape, &gaps, ty, out as i64, &mut back, BL_TYPE_F32, 0).unwrap();
            assert!(back == bytes_of(&floats(&case["dequantized"])));
        }
    }
    // Formats that are read only.
    for (name, ty) in
        [("ggml_q4_k", BL_TYPE_Q4_K), ("ggml_q6_k", BL_TYPE_Q6_K), ("ggml_iq1_s", BL_TYPE_IQ1_S)]
    {
        let case = &cases(name)[0];
        let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
        let (packed, want) = (hex(&case["packed_hex"]), floats(&case["dequantized"]));
        let mut back = vec![0u8; want.len() * 4];
        convert(shape, &packed, ty, &mut back, BL_TYPE_F32).unwrap();
        assert!(back == bytes_of(&want), "{name}");
        let mut bytes = vec![0u8; packed.len()];
        let refused = convert(shape, &back, BL_TYPE_F32, &mut bytes, ty).unwrap_err();
        refused.says(BL_ERROR_UNSUPPORTED, &[&name[5..]]);
    }
    // Floats, to nearest even.
    let values = [1.0f32, -0.0, 1.000_488_3, 65_504.0, 1e-8, f32::INFINITY];
    let mut halves = [0u8; 12];
    convert([2, 3], &bytes_of(&values), BL_TYPE_F32, &mut halves, BL_TYPE_F16).unwrap();
    let want: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    assert_eq!(halves, want[..]);
    convert([0, 3], &[], BL_TYPE_F32, &mut [], BL_TYPE_F16).unwrap();
    let mut one = [0u8; 18];
    let nan = bytes_of(&[&[0.0; 7][..], &[f32::NAN], &[0.0; 24]].concat());
    convert([1, 32], &nan, BL_TYPE_F32, &mut one, BL_TYPE_Q4_0)
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &["row 0", "weight 7", "NaN"]);
    convert([1, 33], &nan, BL_TYPE_F32, &mut one, BL_TYPE_Q4_0)
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &["32", "33"]);
    convert([1, 32], &nan, BL_TYPE_I32, &mut one, BL_TYPE_F32)
        .unwrap_err()
        .says(BL_ERROR_UNSUPPORTED, &["i32"]);
}

#[test]
fn floats_become_what_the_rules_say() {
    let (n, k) = (5, 300);
    let mut w = random(n * k, 17);
    w[k..2 * k].fill(0.0); // a row of zeros
    let bytes = bytes_of(&w);
    let mean = (w.iter().map(|w| w.abs() as f64).sum::<f64>() / w.len() as f64) as f32;
    let ternary: Vec<f32> = w.iter().map(|w| mean * (w / mean).round_ties_even().clamp(-1.0, 1.0)).collect();
    for options in [options(), to(BL_TYPE_TERNARY)] {
        let layer = create([n, k], &bytes, BL_TYPE_F32, &options).unwrap();
        assert_eq!(layer.info().r#type, TypeArg(BL_TYPE_TERNARY as u32));
        assert_eq!(bits(&layer.weights()), bits(&ternary.iter().map(|w| w + 0.0).collect::<Vec<_>>()));
        assert!(layer.info().bytes_packed < 4 * (n * k) as u64);
    }
    let by_row = |rule: &dyn Fn(&[f32]) -> Vec<f32>| w.chunks(k).flat_map(rule).collect::<Vec<f32>>();
    let signs = by_row(&|row| {
        let mean = (row.iter().map(|w| w.abs() as f64).sum::<f64>() / k as f64) as f32;
        row.iter().map(|w| if *w >= 0.0 { mean } else { -mean }).collect()
    });
    assert_eq!(create([n, k], &bytes, BL_TYPE_F32, &to(BL_TYPE_BINARY)).unwrap().weights(), signs);
    let int8 = by_row(&|row| {
        let s = row.iter().fold(0f32, |a, w| a.max(w.abs())) / 127.0;
        row.iter().map(|w| if s == 0.0 { 0.0 } else { s * (w / s).round_ties_even() }).collect()
    });
    assert_eq!(create([n, k], &bytes, BL_TYPE_F32, &to(BL_TYPE_INT8)).unwrap().weights(), int8);
    for group in [0, 7, 128, 1000] {
        let len = if group == 0 { 128 } else { group };
        let int4 = by_row(&|row| {
            row.chunks(len)
                .flat_map(|w| {
                    let s = (w.iter().fold(0f32, |a, w| a.max(w.abs())) / 7.0).max(1e-5);
                    w.iter().map(|w| s * (w / s).round().clamp(-8.0, 7.0)).collect::<Vec<_>>()
                })
                .collect()
        });
        let options = bl_layer_options { group_size: group as i64, ..to(BL_TYPE_INT4) };
        assert_eq!(create([n, k], &bytes, BL_TYPE_F32, &options).unwrap().weights(), int4, "{group}");
    }
    for ty in [BL_TYPE_F32, BL_TYPE_F16, BL_TYPE_BF16] {
        let mut stored = vec![0u8; n * k * if ty == BL_TYPE_F32 { 4 } else { 2 }];
        convert([n, k], &bytes, BL_TYPE_F32, &mut stored, ty).unwrap();
        let from_stored = create([n, k], &stored, ty, &to(ty)).unwrap();
        let from_floats = create([n, k], &bytes, BL_TYPE_F32, &to(ty)).unwrap();
        assert_eq!(bits(&from_stored.weights()), bits(&from_floats.weights()));
        assert_eq!(from_floats.info().r#type, TypeArg(ty as u32));
        // And f16 and bf16 are rounded like any floats.
        let a = create([n, k], &stored, ty, &to(BL_TYPE_INT8)).unwrap().weights();
        let mut floats = vec![0u8; n * k * 4];
        convert([n, k], &stored, ty, &mut floats, BL_TYPE_F32).unwrap();
        assert_eq!(a, create([n, k], &floats, BL_TYPE_F32, &to(BL_TYPE_INT8)).unwrap().weights());
    }
    // The cortex vectors of int4, decoded.
    for case in cases("cortex_4bit") {
        let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
        let options = bl_layer_options { group_size: size(&case["group_size"]) as i64, ..to(BL_TYPE_INT4) };
        let layer = create(shape, &bytes_of(&floats(&case["input"])), BL_TYPE_F32, &options).unwrap();
        assert_eq!(layer.weights(), floats(&case["dequantized"]), "{}", case["case"]);
    }
}

#[test]
fn what_cannot_be_rounded_is_refused_by_index() {
    let mut w = random(4 * 64, 3);
    w[2 * 64 + 5] = f32::NAN;
    w[3 * 64] = f32::INFINITY;
    for ty in [BL_TYPE_AUTO, BL_TYPE_BINARY, BL_TYPE_INT8, BL_TYPE_INT4, BL_TYPE_Q8_0] {
        let refused = create([4, 64], &bytes_of(&w), BL_TYPE_F32, &to(ty)).unwrap_err();
        refused.says(BL_ERROR_INVALID_ARGUMENT, &["[2, 5]", "NaN"]);
    }
    let ok = random(4 * 64, 3);
    let ok = bytes_of(&ok);
    create([1, 256], &ok, BL_TYPE_F32, &to(BL_TYPE_Q4_K))
        .unwrap_err()
        .says(BL_ERROR_UNSUPPORTED, &["f32", "q4_k", "bl_model_quantize"]);
    create([1, 256], &ok, BL_TYPE_F32, &to(BL_TYPE_IQ4_NL))
        .unwrap_err()
        .says(BL_ERROR_UNSUPPORTED, &["f32", "iq4_nl", "cannot be written"]);
    create([4, 64], &ok, BL_TYPE_F32, &to(BL_TYPE_GPTQ))
        .unwrap_err()
        .says(BL_ERROR_UNSUPPORTED, &["f32", "gptq"]);
    create([4, 64], &ok, BL_TYPE_Q8_0, &to(BL_TYPE_INT8))
        .unwrap_err()
        .says(BL_ERROR_UNSUPPORTED, &["q8_0", "int8"]);
    let grouped = bl_layer_options { group_size: 32, ..to(BL_TYPE_INT8) };
    create([4, 64], &ok, BL_TYPE_F32, &grouped).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, &["group_size"]);
    let big = bytes_of(&[1.0, 1e6]);
    create([1, 2], &big, BL_TYPE_F32, &to(BL_TYPE_F16))
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &["weight 1"]);
    for shape in [[0, 64], [4, 0], [1 << 40, 64]] {
        create(shape, &ok, BL_TYPE_F32, &options())
            .unwrap_err()
            .says(BL_ERROR_INVALID_ARGUMENT, &["_features"]);
    }
    create_in(null(), [4, 64], &ok, BL_TYPE_F32, 100, &options())
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &["stride"]);
    create([4, 64], &ok, BL_TYPE_INT8, &options())
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &["scales", "int8"]);
}

#[test]
fn packed_bytes_are_kept_exactly() {
    let names = EXACT.iter().copied().chain([
        ("ggml_q2_k", BL_TYPE_Q2_K),
        ("ggml_q3_k", BL_TYPE_Q3_K),
        ("ggml_q4_k", BL_TYPE_Q4_K),
        ("ggml_q5_k", BL_TYPE_Q5_K),
        ("ggml_q6_k", BL_TYPE_Q6_K),
        ("ggml_iq1_s", BL_TYPE_IQ1_S),
    ]);
    for (name, ty) in names {
        for case in cases(name) {
            let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
            let (packed, want) = (hex(&case["packed_hex"]), floats(&case["dequantized"]));
            let layer = create(shape, &packed, ty, &options()).unwrap();
            assert_eq!(layer.weights(), want, "{name}");
            assert_eq!(layer.info().r#type, TypeArg(ty as u32));
            let row = packed.len() / shape[0];
            let apart: Vec<u8> = packed.chunks(row).flat_map(|r| [r, &[0xff; 3]].concat()).collect();
            let layer = create_in(null(), shape, &apart, ty, row + 3, &options()).unwrap();
            assert_eq!(layer.weights(), want, "{name}");
            // From floats to the type: what the format's own tool would have written.
            if EXACT.contains(&(name, ty)) {
                let layer = create(shape, &bytes_of(&floats(&case["input"])), BL_TYPE_F32, &to(ty)).unwrap();
                assert_eq!(layer.weights(), want, "{name}");
            }
        }
    }
    // Scales apart.
    for case in cases("cortex_4bit") {
        let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
        let scales = floats(&case["scales"]);
        let options = bl_layer_options {
            scales: scales.as_ptr(),
            scale_count: scales.len() as i64,
            group_size: size(&case["group_size"]) as i64,
            ..options()
        };
        let layer = create(shape, &hex(&case["packed_hex"]), BL_TYPE_INT4, &options).unwrap();
        assert_eq!(layer.weights(), floats(&case["dequantized"]), "{}", case["case"]);
    }
    let codes: Vec<u8> = [3i8, -7, 127, 0, 5, -127].map(|c| c as u8).into();
    for (scales, want) in [
        (&[0.5f32][..], [1.5f32, -3.5, 63.5, 0.0, 2.5, -63.5]),
        (&[0.5, 2.0], [1.5, -3.5, 63.5, 0.0, 10.0, -254.0]),
    ] {
        let options =
            bl_layer_options { scales: scales.as_ptr(), scale_count: scales.len() as i64, ..options() };
        assert_eq!(create([2, 3], &codes, BL_TYPE_INT8, &options).unwrap().weights(), want);
    }
    // HF BitNet's own example, and cortex' bytes.
    let one = [2.0f32];
    let scaled = bl_layer_options { scales: one.as_ptr(), scale_count: 1, ..options() };
    let layer = create([8, 2], &[0xa1, 0x18, 0x90, 0x0a], BL_TYPE_BITNET_HF, &scaled).unwrap();
    let want = [0, -1, -1, 1, -1, 1, -1, 1, 1, 0, 0, -1, 1, -1, 1, -1].map(|q| 2.0 * q as f32);
    assert_eq!(layer.weights(), want);
    let layer = create([1, 4], &[0x49], BL_TYPE_TERNARY, &scaled).unwrap();
    assert_eq!(layer.weights(), [2.0, -2.0, 0.0, 2.0]);
    create([1, 4], &[0x49], BL_TYPE_Q4_0, &scaled).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, &["scales"]);
    // The other way round.
    let w = random(3 * 5, 8);
    let mut turned = vec![0f32; 15];
    (0..15).for_each(|i| turned[i % 5 * 3 + i / 5] = w[i]);
    let options = bl_layer_options { flags: BL_LAYER_TRANSPOSED, ..to(BL_TYPE_F32) };
    assert_eq!(create([3, 5], &bytes_of(&turned), BL_TYPE_F32, &options).unwrap().weights(), w);
}

#[test]
fn an_update_is_what_a_new_layer_would_be() {
    let (n, k) = (70, 96);
    let (first, second, x) = (random(n * k, 1), random(n * k, 2), random(2 * k, 3));
    let bias = random(n, 4);
    for ty in [BL_TYPE_AUTO, BL_TYPE_INT8, BL_TYPE_INT4, BL_TYPE_Q8_0, BL_TYPE_F16] {
        for shard in [0, 1, 2] {
            let (rank, count) = if shard == 0 { (0, 0) } else { (1, 3) };
            let options = bl_layer_options {
                bias: bias.as_ptr(),
                shard: ShardArg(shard),
                shard_rank: rank,
                shard_count: count,
                group_size: if ty == BL_TYPE_INT4 { 32 } else { 0 },
                ..to(ty)
            };
            let layer = create([n, k], &bytes_of(&first), BL_TYPE_F32, &options).unwrap();
            let fresh = create([n, k], &bytes_of(&second), BL_TYPE_F32, &options).unwrap();
            let x = &x[..2 * layer.info().in_features as usize];
            let before = layer.forward(2, x);
            assert_ne!(bits(&before), bits(&fresh.forward(2, x)));
            let mut bad = second.clone();
            bad[n * k - 1] = f32::NAN;
            if ty != BL_TYPE_F16 {
                layer.update(&bytes_of(&bad), BL_TYPE_F32).map_or_else(
                    |e| e.says(BL_ERROR_INVALID_ARGUMENT, &["NaN"]),
                    |()| assert_eq!((shard, ty == BL_TYPE_AUTO), (1, false)), // the last row is another's
                );
                layer.update(&bytes_of(&first), BL_TYPE_F32).unwrap();
            }
            assert_eq!(bits(&layer.forward(2, x)), bits(&before));
            layer.update(&bytes_of(&second), BL_TYPE_F32).unwrap();
            assert_eq!(bits(&layer.forward(2, x)), bits(&fresh.forward(2, x)));
        }
    }
    let packed = hex(&cases("ggml_q8_0")[0]["packed_hex"]);
    let case = &cases("ggml_q8_0")[0];
    let shape = [size(&case["shape"][0]), size(&case["shape"][1])];
    let layer =
        create(shape, &bytes_of(&random(shape[0] * shape[1], 5)), BL_TYPE_F32, &to(BL_TYPE_Q8_0)).unwrap();
    layer.update(&packed, BL_TYPE_Q8_0).unwrap();
    assert_eq!(layer.weights(), floats(&case["dequantized"]));
    layer.update(&packed, BL_TYPE_Q4_0).unwrap_err().says(BL_ERROR_UNSUPPORTED, &["q4_0", "q8_0"]);
}

#[test]
fn shards_add_up() {
    let (n, k, m) = (75, 768, 3);
    let (w, x, bias) = (random(n * k, 11), random(m * k, 12), random(n, 13));
    let bytes = bytes_of(&w);
    let types = [
        (BL_TYPE_F32, 1),
        (BL_TYPE_BF16, 1),
        (BL_TYPE_TERNARY, 1),
        (BL_TYPE_INT8, 1),
        (BL_TYPE_INT4, 100),
        (BL_TYPE_Q4_1, 32),
        (BL_TYPE_Q5_0, 32),
        (BL_TYPE_Q1_0, 128),
        (BL_TYPE_TQ2_0, 256),
    ];
    for (ty, unit) in types {
        for activation in [bl_activation::BL_ACTIVATION_F32, bl_activation::BL_ACTIVATION_AUTO] {
            let whole = bl_layer_options {
                bias: bias.as_ptr(),
                activation: ActivationArg(activation as u32),
                group_size: if ty == BL_TYPE_INT4 { 100 } else { 0 },
                ..to(ty)
            };
            let layer = create([n, k], &bytes, BL_TYPE_F32, &whole).unwrap();
            let y = layer.forward(m, &x);
            for count in [1, 2, 3] {
                let mut rows = vec![0f32; m * n];
                let mut sum = vec![0f32; m * n];
                let (mut row, mut column) = (0, 0);
                for rank in 0..count {
                    let part = |shard: bl_shard| {
                        let options = bl_layer_options {
                            shard: ShardArg(shard as u32),
                            shard_rank: rank,
                            shard_count: count,
                            ..whole
                        };
                        create([n, k], &bytes, BL_TYPE_F32, &options).unwrap()
                    };
                    let part_rows = part(bl_shard::BL_SHARD_ROWS);
                    let info = part_rows.info();
                    assert_eq!(
                        (info.first_row, info.first_column, info.in_features),
                        (row as i64, 0, k as i64)
                    );
                    let len = info.out_features as usize;
                    for (i, values) in part_rows.forward(m, &x).chunks(len).enumerate() {
                        rows[i * n + row..][..len].copy_from_slice(values);
                    }
                    row += len;
                    let part_columns = part(bl_shard::BL_SHARD_COLUMNS);
                    let info = part_columns.info();
                    assert_eq!(
                        (info.first_row, info.first_column, info.out_features),
                        (0, column as i64, n as i64)
                    );
                    assert_eq!(info.first_column % unit, 0);
                    let len = info.in_features as usize;
                    assert!(len.abs_diff(k / count as usize) <= unit as usize);
                    let own: Vec<f32> = x.chunks(k).flat_map(|x| &x[column..column + len]).copied().collect();
                    part_columns.forward(m, &own).iter().zip(&mut sum).for_each(|(v, s)| *s += v);
                    let want: Vec<f32> =
                        layer.weights().chunks(k).flat_map(|w| &w[column..column + len]).copied().collect();
                    assert_eq!(part_columns.weights(), want);
                    column += len;
                }
                assert_eq!((row, column), (n, k));
                assert_eq!(bits(&rows), bits(&y), "{}", ty as u32);
                // With one scale for each row of x every part has its own: within that rounding.
                let own = activation == bl_activation::BL_ACTIVATION_AUTO
                    && matches!(ty, BL_TYPE_TERNARY | BL_TYPE_INT8);
                close(&sum, &y, if own { 0.2 } else { 2e-5 });
            }
        }
    }
    let cut = |shard: bl_shard, rank, count| bl_layer_options {
        shard: ShardArg(shard as u32),
        shard_rank: rank,
        shard_count: count,
        ..to(BL_TYPE_TQ2_0)
    };
    let made = |options: &bl_layer_options| create([n, k], &bytes, BL_TYPE_F32, options).unwrap_err();
    made(&cut(bl_shard::BL_SHARD_COLUMNS, 0, 4))
        .says(BL_ERROR_UNSUPPORTED, &["multiples of 256", "3 shards"]);
    made(&cut(bl_shard::BL_SHARD_ROWS, 0, 76)).says(BL_ERROR_UNSUPPORTED, &["75"]);
    made(&cut(bl_shard::BL_SHARD_ROWS, 2, 2)).says(BL_ERROR_INVALID_ARGUMENT, &["shard_rank 2", "0 to 1"]);
    made(&cut(bl_shard::BL_SHARD_NONE, 0, 2)).says(BL_ERROR_INVALID_ARGUMENT, &["shard"]);
    let options = bl_layer_options { norm: NormArg(2), ..cut(bl_shard::BL_SHARD_COLUMNS, 0, 2) };
    made(&options).says(BL_ERROR_UNSUPPORTED, &["norm"]);
}

/// A scale that bl_layer_calibrate found goes with its activation: with another one x has its own again.
#[test]
fn a_saved_scale_is_for_its_activation() {
    let (weights, x) = (bytes_of(&random(64 * 8, 5)), random(64, 6));
    let loud: Vec<f32> = x.iter().map(|v| v * 8.0).collect(); // outside of what the scale reaches
    let with = |activation: bl_activation| bl_layer_options {
        activation: ActivationArg(activation as u32),
        ..options()
    };
    let made = |activation| {
        let options = bl_layer_options { r#type: TypeArg(BL_TYPE_INT8 as u32), ..with(activation) };
        create([8, 64], &weights, BL_TYPE_F32, &options).unwrap()
    };
    let (layer, f32) = (made(bl_activation::BL_ACTIVATION_INT8_ROW), TypeArg(BL_TYPE_F32 as u32));
    // SAFETY: valid pointers; nobody else uses the layer.
    call(|error| unsafe { bl_layer_calibrate(layer.0, 1, x.as_ptr().cast(), f32, 0, error) }).unwrap();
    let file = path("scale");
    save(&file, &[(c"a", &layer)], &[]).unwrap();
    let model = Model::load(null(), &file, 0).unwrap();
    let same = model.open(c"a", &with(bl_activation::BL_ACTIVATION_INT8_ROW)).unwrap();
    assert_eq!(same.forward(1, &loud), layer.forward(1, &loud));
    for activation in [bl_activation::BL_ACTIVATION_INT4, bl_activation::BL_ACTIVATION_F32] {
        let opened = model.open(c"a", &with(activation)).unwrap();
        assert_eq!(opened.forward(1, &loud), made(activation).forward(1, &loud));
    }
    let own = bl_layer_options { activation_scale: 0.5, ..with(bl_activation::BL_ACTIVATION_INT4) };
    model.open(c"a", &own).unwrap();
    std::fs::remove_file(file.to_str().unwrap()).unwrap();
}

#[test]
fn saved_layers_are_opened_in_place() {
    // Of a context of its own: other tests use the default one, whose memory is counted too.
    let (mut context, mut info) = (null_mut(), sized!(bl_memory_info));
    // SAFETY: valid pointers.
    call(|error| unsafe { bl_context_create(null(), &mut context, error) }).unwrap();
    let context = Context(context);
    let mut memory = || {
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_memory(context.0, &mut info, error) }).unwrap();
        (info.handles, info.packed, info.mapped)
    };
    let (n, k) = (130, 256);
    let (w, x, bias) = (bytes_of(&random(n * k, 21)), random(2 * k, 22), random(n, 23));
    let path = path("saved");
    let with_bias = bl_layer_options { bias: bias.as_ptr(), ..to(BL_TYPE_Q4_1) };
    let layer = create([n, k], &w, BL_TYPE_F32, &with_bias).unwrap();
    let dense = create([n, k], &w, BL_TYPE_F32, &to(BL_TYPE_F16)).unwrap();
    save(&path, &[(c"a.weight", &layer), (c"b", &dense)], &[(c"made by", c"a test")]).unwrap();
    for flags in [0, BL_LOAD_VERIFY, BL_LOAD_COPY, BL_LOAD_COPY | BL_LOAD_VERIFY] {
        let model = Model::load(context.0, &path, flags).unwrap();
        let mut meta = sized!(bl_meta_info);
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_model_meta(model.0, c"made by".as_ptr(), 0, &mut meta, error) }).unwrap();
        // SAFETY: a string of a living model.
        assert_eq!(unsafe { CStr::from_ptr(meta.string) }, c"a test");
        let opened = model.open(c"a.weight", &options()).unwrap();
        let info = opened.info();
        assert_eq!(info.r#type, TypeArg(BL_TYPE_Q4_1 as u32));
        assert_eq!(
            (info.bytes_packed, info.bytes_mapped),
            (4 * n as u64, layer.info().bytes_packed - 4 * n as u64)
        );
        let size = std::fs::metadata(path.to_str().unwrap()).unwrap().len();
        let mapped = if flags & BL_LOAD_COPY == 0 { size } else { 0 };
        assert_eq!(memory(), (2, 4 * n as u64, mapped));
        drop(model); // the layer keeps the file
        assert_eq!(memory(), (1, 4 * n as u64, mapped));
        assert_eq!(bits(&opened.forward(2, &x)), bits(&layer.forward(2, &x)));
        drop(opened);
        assert_eq!(memory(), (0, 0, 0));
    }
    let model = Model::load(context.0, &path, 0).unwrap();
    // Other settings, other types, parts.
    let float = bl_layer_options { activation: ActivationArg(1), ..options() };
    let again = model.open(c"a.weight", &float).unwrap();
    let want =
        create([n, k], &w, BL_TYPE_F32, &bl_layer_options { activation: ActivationArg(1), ..with_bias })
            .unwrap();
    assert_eq!(bits(&again.forward(2, &x)), bits(&want.forward(2, &x)));
    let mut halves = vec![0u8; 2 * n * k];
    convert([n, k], &w, BL_TYPE_F32, &mut halves, BL_TYPE_F16).unwrap();
    let rounded = model.open(c"b", &to(BL_TYPE_INT8)).unwrap();
    assert_eq!(rounded.weights(), create([n, k], &halves, BL_TYPE_F16, &to(BL_TYPE_INT8)).unwrap().weights());
    let part = bl_layer_options { shard: ShardArg(1), shard_rank: 1, shard_count: 2, ..options() };
    let second = model.open(c"a.weight", &part).unwrap();
    assert_eq!((second.info().first_row, second.info().bytes_mapped), (65, 0));
    let half: Vec<f32> = layer.forward(1, &x[..k]).split_off(65);
    assert_eq!(bits(&second.forward(1, &x[..k])), bits(&half));
    model.open(c"c", &options()).unwrap_err().says(BL_ERROR_NOT_FOUND, &["\"c\""]);
    model.open(c"a.weight", &to(BL_TYPE_INT8)).unwrap_err().says(BL_ERROR_UNSUPPORTED, &["q4_1", "int8"]);
    again.update(&w, BL_TYPE_F32).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, &["bl_layer_create"]);
    // Damage is found on request.
    let mut bytes = std::fs::read(path.to_str().unwrap()).unwrap();
    let end = bytes.len() - 1000;
    bytes[end] ^= 4;
    let damaged = CString::new(format!("{}-damaged", path.to_str().unwrap())).unwrap();
    std::fs::write(damaged.to_str().unwrap(), &bytes).unwrap();
    Model::load(null(), &damaged, 0).unwrap();
    Model::load(null(), &damaged, BL_LOAD_VERIFY)
        .err()
        .unwrap()
        .says(BL_ERROR_BAD_FILE, &["layer \"b\"", "sum"]);
    // Arguments.
    let null_layer = [bl_named_layer { name: c"a".as_ptr(), layer: null() }];
    let to_path = path.as_ptr();
    // SAFETY: NULLs are allowed, to be refused.
    unsafe {
        call(|e| bl_save(to_path, null_layer.as_ptr(), 1, null(), 0, e))
            .unwrap_err()
            .says(BL_ERROR_INVALID_HANDLE, &[]);
        call(|e| bl_save(to_path, null(), 1, null(), 0, e))
            .unwrap_err()
            .says(BL_ERROR_INVALID_ARGUMENT, &["NULL"]);
        call(|e| bl_save(null(), null(), 0, null(), 0, e))
            .unwrap_err()
            .says(BL_ERROR_INVALID_ARGUMENT, &["path"]);
        let latin = [bl_named_layer { name: c"\xe4".as_ptr(), layer: layer.0 }];
        call(|e| bl_save(to_path, latin.as_ptr(), 1, null(), 0, e))
            .unwrap_err()
            .says(BL_ERROR_INVALID_ARGUMENT, &["UTF-8"]);
    }
    Model::load(null(), &path, BL_LOAD_VERIFY).unwrap(); // still what it was
    for path in [path, damaged] {
        std::fs::remove_file(path.to_str().unwrap()).unwrap();
    }
}

/// The names of types in a sentence of the header, from `marker` to the end of the sentence.
fn listed(marker: &str) -> BTreeSet<&'static str> {
    let header =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/include/bitlinear.h")).unwrap();
    let text: String = header.split_whitespace().filter(|w| *w != "*").map(|w| format!("{w} ")).collect();
    let (_, text) = text.split_once(marker).unwrap_or_else(|| panic!("the header does not say `{marker}`"));
    let sentence = text.split(". ").next().unwrap();
    let words: Vec<&str> =
        sentence.split(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-')).collect();
    TYPES.iter().map(|t| t.ty.name()).filter(|name| words.contains(name)).collect()
}

/// Every type there is is tried: the header lists those that are taken, and no others.
#[test]
fn the_header_lists_the_types() {
    let shape = [64, 512];
    let [rows, columns] = shape;
    let (floats, packed) = (bytes_of(&random(rows * columns, 3)), vec![0u8; rows * columns * 8]);
    let number = |ty: Type| TypeArg(ty as u32);
    let taken = |takes: &dyn Fn(Type) -> Result<(), Failure>| -> BTreeSet<&'static str> {
        let taken = |ty: &Type| match takes(*ty) {
            Ok(()) => true,
            Err(Failure(BL_ERROR_UNSUPPORTED | BL_ERROR_INVALID_ARGUMENT, _)) => false,
            Err(failure) => panic!("{}: {failure:?}", ty.name()),
        };
        TYPES.iter().map(|t| t.ty).filter(taken).map(Type::name).collect()
    };
    let create = |weights: &[u8], ty: TypeArg, options: &bl_layer_options| {
        let mut layer = null_mut();
        // SAFETY: there are 8 bytes for each weight, which is more than any type takes.
        call(|error| unsafe {
            let weights = weights.as_ptr().cast();
            bl_layer_create(null(), rows as i64, columns as i64, weights, ty, 0, options, &mut layer, error)
        })
        .map(|()| drop(Layer(layer)))
    };

    let rounded = taken(&|ty| {
        create(&floats, number(Type::F32), &bl_layer_options { r#type: number(ty), ..options() })
    });
    let mut said = listed("Or what plain floats are rounded to, by fixed rules (docs/quantize.md):");
    said.extend(listed("bl_layer_create also:"));
    assert_eq!(rounded, said);

    let alone = taken(&|ty| create(&packed, number(ty), &options()));
    let mut said = listed("Those with their scales:");
    said.extend(["f32", "f16", "bf16"]);
    assert_eq!(alone, said);

    // One scale, one for each row, or one for each flat block of 256.
    let scales = [1.0f32; 64 * 512 / 256];
    let apart = taken(&|ty| {
        let with = |count: usize| bl_layer_options {
            scales: scales.as_ptr(),
            scale_count: count as i64,
            ..options()
        };
        let tries = [1, rows, scales.len()];
        tries.iter().map(|n| create(&packed, number(ty), &with(*n))).reduce(Result::or).unwrap()
    });
    assert_eq!(apart, listed("Those whose scales stand apart, in options.scales:"));

    let mut room = vec![0u8; rows * columns * 8];
    let room = std::cell::RefCell::new(&mut room);
    let convert = |src: &[u8], from: Type, to: Type| {
        let mut dst = room.borrow_mut();
        // SAFETY: as above.
        call(|error| unsafe {
            let (src, dst) = (src.as_ptr().cast(), dst.as_mut_ptr().cast());
            bl_convert(null(), rows as i64, columns as i64, src, number(from), 0, dst, number(to), 0, error)
        })
    };
    let both_ways = listed("Both ways, packed formats byte for byte as their own tools:");
    assert_eq!(taken(&|ty| convert(&floats, Type::F32, ty)), both_ways);
    let from = taken(&|ty| convert(&packed, ty, Type::F32));
    let only: BTreeSet<&str> = from.difference(&both_ways).copied().collect();
    assert!(from.is_superset(&both_ways));
    assert_eq!(only, listed("From them only:"));
}

/// A shape that a type cannot hold is the same status, whoever finds it.
#[test]
fn columns_that_no_block_divides_are_an_argument() {
    let texts = ["q4_0 has blocks of 32, and 5 columns are no multiple of it"];
    let (floats, packed) = (bytes_of(&random(10, 4)), [0u8; 64]);
    create([2, 5], &floats, BL_TYPE_F32, &to(BL_TYPE_Q4_0))
        .unwrap_err()
        .says(BL_ERROR_INVALID_ARGUMENT, &texts);
    create([2, 5], &packed, BL_TYPE_Q4_0, &options()).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, &texts);
    let mut room = [0u8; 64];
    let mut refused = |src: &[u8], from, to| {
        convert([2, 5], src, from, &mut room, to).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, &texts)
    };
    refused(&floats, BL_TYPE_F32, BL_TYPE_Q4_0);
    refused(&packed, BL_TYPE_Q4_0, BL_TYPE_F32);
}
