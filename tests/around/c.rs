//! The same through the C functions: dense layers, refused values, files that declare rotations, and
//! rotating rows alone.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

use bitlinear::capi::context::*;
use bitlinear::capi::enums::*;
use bitlinear::capi::forward::*;
use bitlinear::capi::layer::*;
use bitlinear::capi::model::*;
use bitlinear::capi::rotate::*;
use bitlinear::capi::types::*;
use bitlinear::codec;
use bitlinear::cpu::Isa;
use bitlinear::layout::Float;
use bitlinear::rotation::{self, Rotation};
use bitlinear::types::Type;

use super::common::gguf_writer::{File, Kv};
use super::{FLOATS, Options, Random, decode, encode, floats, front, vectors};

struct Handle<T>(*mut T);

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: a handle of the library, or NULL.
        unsafe { bl_free(self.0.cast()) };
    }
}

fn blank_error() -> bl_error {
    bl_error { status: bl_status::BL_OK, message: [0; 252] }
}

fn text(error: &bl_error) -> String {
    // SAFETY: the library wrote a text that ends in NUL.
    unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned()
}

/// Options with every field zero but the size.
fn sized<T: Copy>() -> T {
    // SAFETY: used for the C structs of this file, for which all zeros is a value.
    let mut options: T = unsafe { std::mem::zeroed() };
    // SAFETY: their first field is `struct_size: u32`.
    unsafe { (&raw mut options).cast::<u32>().write(size_of::<T>() as u32) };
    options
}

fn load(bytes: &[u8]) -> Handle<bl_model> {
    let (mut model, mut error) = (null_mut(), blank_error());
    // SAFETY: valid pointers; the bytes are copied.
    let status =
        unsafe { bl_load_memory(null(), bytes.as_ptr().cast(), bytes.len(), null(), &mut model, &mut error) };
    assert_eq!(status, bl_status::BL_OK, "{}", text(&error));
    Handle(model)
}

fn open(
    model: &Handle<bl_model>,
    name: &str,
    options: &bl_layer_options,
) -> Result<Handle<bl_layer>, (bl_status, String)> {
    let name = CString::new(name).unwrap();
    let (mut layer, mut error) = (null_mut(), blank_error());
    // SAFETY: valid pointers.
    let status = unsafe { bl_layer_open(model.0, name.as_ptr(), options, &mut layer, &mut error) };
    if status == bl_status::BL_OK { Ok(Handle(layer)) } else { Err((status, text(&error))) }
}

fn c_forward(layer: &Handle<bl_layer>, m: usize, x: &[f32], y: &mut [f32], flags: u32) {
    let mut run: bl_run_options = sized();
    run.flags = flags;
    let mut error = blank_error();
    // SAFETY: the slices hold m rows.
    let status = unsafe {
        bl_forward(
            layer.0,
            m as i64,
            x.as_ptr().cast(),
            TypeArg(1),
            0,
            y.as_mut_ptr().cast(),
            TypeArg(1),
            0,
            &run,
            &mut error,
        )
    };
    assert_eq!(status, bl_status::BL_OK, "{}", text(&error));
}

fn describe(layer: &Handle<bl_layer>) -> bl_layer_info {
    let mut info: bl_layer_info = sized();
    // SAFETY: valid pointers.
    assert_eq!(unsafe { bl_layer_describe(layer.0, &mut info, null_mut()) }, bl_status::BL_OK);
    info
}

fn near(got: &[f32], want: &[f32], relative: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= relative * (1.0 + want.abs()), "{i}: {got}, {want} expected");
    }
}

fn float_file(name: &str, shape: [usize; 2], values: &[f32]) -> Vec<u8> {
    let dims = [shape[1] as u64, shape[0] as u64];
    File::new().tensor_of(name, &dims, 0, &encode(values, Float::F32)).build()
}

#[test]
fn a_dense_layer_stored_in_out_with_and_without_layer_norm() {
    let case = vectors("realizar_linear.json");
    let (weights, bias, x) = (floats(&case["weight_in_out"]), floats(&case["bias"]), floats(&case["x"]));
    let (k, n, m) = (4, 3, 2);
    let model = load(&float_file("w", [k, n], &weights));
    let mut options: bl_layer_options = sized();
    options.flags = BL_LAYER_TRANSPOSED;
    options.bias = bias.as_ptr();
    let mut y = vec![0.0; m * n];
    let layer = open(&model, "w", &options).unwrap();
    assert_eq!((describe(&layer).in_features, describe(&layer).out_features), (4, 3));
    c_forward(&layer, m, &x, &mut y, 0);
    near(&y, &floats(&case["y"]), 1e-6);

    let norm = &case["layernorm"];
    let (gamma, beta) = (floats(&norm["gamma"]), floats(&norm["beta"]));
    options.norm = NormArg(bl_norm::BL_NORM_LAYER as u32);
    options.norm_epsilon = norm["eps"].as_f64().unwrap() as f32;
    options.norm_weight = gamma.as_ptr();
    options.norm_bias = beta.as_ptr();
    let layer = open(&model, "w", &options).unwrap();
    c_forward(&layer, m, &x, &mut y, 0);
    near(&y, &floats(&norm["y"]), 1e-5);
    options.norm_epsilon = 0.0; // means 1e-5, which is the file's
    let again = open(&model, "w", &options).unwrap();
    let mut same = vec![0.0; m * n];
    c_forward(&again, m, &x, &mut same, 0);
    assert_eq!(y, same);
    // Adding to what is there.
    c_forward(&layer, m, &x, &mut same, BL_RUN_ACCUMULATE);
    assert!(same.iter().zip(&y).all(|(s, y)| *s == y + y));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let model = load(&float_file("w", [3, 8], &[1.0; 24]));
    let eight = [1.0f32; 8];
    let halves = [0.5f32; 8];
    let mut cases: Vec<(&str, bl_status, bl_layer_options)> = vec![];
    let mut case = |part, unsupported, set: &dyn Fn(&mut bl_layer_options)| {
        let mut options = sized();
        set(&mut options);
        let status = match unsupported {
            true => bl_status::BL_ERROR_UNSUPPORTED,
            false => bl_status::BL_ERROR_INVALID_ARGUMENT,
        };
        cases.push((part, status, options));
    };
    case("layer flags 0x80000000", false, &|o| o.flags = 0x8000_0000);
    case("norm 9", true, &|o| o.norm = NormArg(9));
    case("epilogue 9", true, &|o| o.epilogue = EpilogueArg(9));
    case("no norm", false, &|o| o.norm_weight = eight.as_ptr());
    case("no norm", false, &|o| o.norm_bias = eight.as_ptr());
    case("no norm", false, &|o| o.norm_epsilon = 1e-5);
    case("norm_epsilon is -1", false, &|o| {
        o.norm = NormArg(2);
        o.norm_epsilon = -1.0;
    });
    case("norm_epsilon is NaN", false, &|o| {
        o.norm = NormArg(2);
        o.norm_epsilon = f32::NAN;
    });
    case("rotation block 3", false, &|o| o.rotation_block = 3);
    case("rotation block 16", false, &|o| o.rotation_block = 16);
    case("no rotation_block", false, &|o| o.rotation_signs = eight.as_ptr());
    case("rotation sign 0 is 0.5", false, &|o| {
        o.rotation_block = 8;
        o.rotation_signs = halves.as_ptr();
    });
    case("epilogue_threshold is 1", false, &|o| o.epilogue_threshold = 1.0);
    case("epilogue_threshold is inf", false, &|o| {
        o.epilogue = EpilogueArg(1);
        o.epilogue_threshold = f32::INFINITY;
    });
    case("activation_scale", false, &|o| o.activation_scale = 1.0); // floats
    for (part, status, options) in &cases {
        match open(&model, "w", options) {
            Ok(_) => panic!("{part}: not refused"),
            Err((got, text)) => assert!(got == *status && text.contains(part), "{part}: {got:?} {text}"),
        }
    }
    let ternary = File::new().tensor("t", &[256, 2], 35, 2 * 66).build();
    let mut options: bl_layer_options = sized();
    options.flags = BL_LAYER_TRANSPOSED;
    let refused = open(&load(&ternary), "t", &options).err().unwrap();
    assert!(refused.0 == bl_status::BL_ERROR_UNSUPPORTED && refused.1.contains("f32, f16 or bf16"));
    for scale in [-1.0, f32::NAN, f32::INFINITY, 1e-39] {
        let mut options: bl_layer_options = sized();
        options.activation_scale = scale;
        let refused = open(&load(&ternary), "t", &options).err().unwrap();
        assert!(refused.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && refused.1.contains("activation_scale"));
    }
}

/// A file of three PTQ1_0 weights of which the first two are folded, and the weights.
struct Folded {
    file: File,
    weights: Vec<f32>,
    signs: Vec<i8>,
}

const WIDTH: usize = 256;
const OUT: usize = 5;

impl Folded {
    fn new(random: &mut Random) -> Folded {
        let codec = codec::find(Type::Ptq1_0).unwrap();
        let weights: Vec<f32> =
            (0..OUT * WIDTH).map(|_| [-0.25, 0.0, 0.25][(random.next() >> 20) as usize % 3]).collect();
        let mut bytes = vec![0; OUT * codec.row_bytes(WIDTH)];
        for (w, b) in weights.chunks(WIDTH).zip(bytes.chunks_mut(codec.row_bytes(WIDTH))) {
            codec.encode_row(w, b).unwrap();
        }
        let dims = [WIDTH as u64, OUT as u64];
        let file = File::new()
            .tensor_of("folded.weight", &dims, 143, &bytes)
            .tensor_of("table.weight", &dims, 143, &bytes)
            .tensor_of("plain.weight", &dims, 143, &bytes);
        // Signs for another width come first.
        let signs = random.signs(64 + WIDTH).iter().map(|s| *s as i8).collect();
        Folded { file, weights, signs }
    }

    fn file(&self, change: &str) -> File {
        let pick = |key: &str, right: Kv, wrong: Kv| if change == key { wrong } else { right };
        let words = |text: &str| Kv::Bytes(text.as_bytes().to_vec());
        let key = |name: &str| format!("prism.hadamard.{name}");
        let mut file = self
            .file
            .clone()
            .kv(&key("version"), pick("version", Kv::U32(1), Kv::U32(2)))
            .kv(&key("block_size"), pick("block_size", Kv::U32(64), Kv::U32(96)))
            .kv(
                &key("transform"),
                pick("transform", words("normalized-sylvester-walsh-hadamard"), words("dct")),
            )
            .kv(&key("axis"), pick("axis", words("input-last-dimension"), words("output")))
            .kv(&key("sign_mode"), pick("sign_mode", words("explicit"), words("random")))
            .kv(&key("sign_widths"), pick("sign_widths", Kv::U32s(vec![64, 256]), Kv::U32s(vec![64, 128])))
            .kv(&key("sign_values"), pick("sign_values", Kv::I8s(self.signs.clone()), Kv::I8s(vec![0; 320])));
        if change != "names" {
            file = file
                .kv(&key("weight_names"), Kv::Strings(vec!["folded.weight"]))
                .kv(&key("inverse_weight_names"), Kv::Strings(vec!["table.weight"]));
        }
        file
    }
}

#[test]
fn a_file_that_declares_rotations_gets_them() {
    let mut random = Random(11);
    let folded = Folded::new(&mut random);
    let model = load(&folded.file("").build());
    let x = random.floats(3 * WIDTH);
    let signs: Vec<f32> = folded.signs[64..].iter().map(|s| *s as f32).collect();
    let mut options: bl_layer_options = sized();
    options.activation = ActivationArg(bl_activation::BL_ACTIVATION_F32 as u32);
    let spec = rotation::Spec { block: 64, signs: Some(&signs) };
    for (name, rotation) in
        [("folded.weight", Some(spec)), ("table.weight", Some(spec)), ("plain.weight", None)]
    {
        let layer = open(&model, name, &options).unwrap();
        assert_eq!(describe(&layer).rotation_block, if rotation.is_some() { 64 } else { 0 });
        let mut y = vec![0.0; 3 * OUT];
        c_forward(&layer, 3, &x, &mut y, 0);
        for (i, x) in x.chunks(WIDTH).enumerate() {
            let x = front(x, &Options { rotation, ..Options::default() });
            for (o, w) in folded.weights.chunks(WIDTH).enumerate() {
                let want: f64 = x.iter().zip(w).map(|(x, w)| x * *w as f64).sum();
                let bound: f64 = x.iter().zip(w).map(|(x, w)| (x * *w as f64).abs()).sum::<f64>() * 1e-5;
                assert!((y[i * OUT + o] as f64 - want).abs() <= bound, "{name}");
            }
        }
    }
    // A second rotation on top of the declared one would undo it.
    options.rotation_block = 64;
    let refused = open(&model, "folded.weight", &options).err().unwrap();
    assert!(
        refused.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && refused.1.contains("folded.weight"),
        "{refused:?}"
    );
    assert!(open(&model, "plain.weight", &options).is_ok());
}

#[test]
fn a_declaration_that_is_not_understood_is_refused() {
    let folded = Folded::new(&mut Random(12));
    let options: bl_layer_options = sized();
    for (change, status) in [
        ("version", bl_status::BL_ERROR_UNSUPPORTED),
        ("transform", bl_status::BL_ERROR_UNSUPPORTED),
        ("axis", bl_status::BL_ERROR_UNSUPPORTED),
        ("sign_mode", bl_status::BL_ERROR_UNSUPPORTED),
        ("block_size", bl_status::BL_ERROR_UNSUPPORTED),
        ("sign_widths", bl_status::BL_ERROR_BAD_FILE),
        ("sign_values", bl_status::BL_ERROR_BAD_FILE),
        ("names", bl_status::BL_ERROR_UNSUPPORTED),
    ] {
        let model = load(&folded.file(change).build());
        let (got, text) = open(&model, "folded.weight", &options).err().unwrap_or_else(|| panic!("{change}"));
        assert_eq!(got, status, "{change}: {text}");
        let named = match change {
            "sign_values" => "rotation sign 0",
            "names" => "weight_names",
            _ => change,
        };
        assert!(text.contains(named), "{change}: {text}");
        // What is wrong with the scheme is wrong for the whole file.
        let plain = open(&model, "plain.weight", &options);
        assert_eq!(
            plain.is_err(),
            status == bl_status::BL_ERROR_UNSUPPORTED || change == "names",
            "{change}"
        );
    }
    // "identity" needs no vectors.
    let file = folded
        .file
        .clone()
        .kv("prism.hadamard.version", Kv::U32(1))
        .kv("prism.hadamard.block_size", Kv::U32(128))
        .kv("prism.hadamard.transform", Kv::Bytes(b"normalized-sylvester-walsh-hadamard".to_vec()))
        .kv("prism.hadamard.axis", Kv::Bytes(b"input-last-dimension".to_vec()))
        .kv("prism.hadamard.sign_mode", Kv::Bytes(b"identity".to_vec()))
        .kv("prism.hadamard.weight_names", Kv::Strings(vec!["folded.weight"]));
    let layer = open(&load(&file.build()), "folded.weight", &options).unwrap();
    assert_eq!(describe(&layer).rotation_block, 128);
}

fn c_rotate(
    x: &mut [u8],
    float: Float,
    rows: i64,
    columns: i64,
    block: u32,
    signs: &[f32],
    flags: u32,
) -> (bl_status, String) {
    let mut error = blank_error();
    let number = match float {
        Float::F32 => 1,
        Float::F16 => 2,
        Float::Bf16 => 3,
    };
    let signs = if signs.is_empty() { null() } else { signs.as_ptr() };
    let x: *mut c_void = if x.is_empty() { null_mut() } else { x.as_mut_ptr().cast() };
    // SAFETY: `x` has the rows wherever the call is valid.
    let status = unsafe { bl_rotate(rows, columns, x, TypeArg(number), 0, block, signs, flags, &mut error) };
    (status, text(&error))
}

#[test]
fn rotating_rows_by_themselves_and_back() {
    let mut random = Random(5);
    let (rows, columns, block) = (3, 192, 64);
    let x = random.floats(rows * columns);
    let signs = random.signs(columns);
    for float in FLOATS {
        let bytes = encode(&x, float);
        let mut turned = bytes.clone();
        let call =
            |x: &mut [u8], flags| c_rotate(x, float, rows as i64, columns as i64, block, &signs, flags);
        assert_eq!(call(&mut turned, 0).0, bl_status::BL_OK);
        // As a layer does it, and as the formula says.
        let rotation = Rotation::new(&rotation::Spec { block: 64, signs: Some(&signs) }, columns).unwrap();
        let mut want = decode(&bytes, float);
        let real = Options {
            rotation: Some(rotation::Spec { block: 64, signs: Some(&signs) }),
            ..Options::default()
        };
        for row in want.chunks_mut(columns) {
            let real = front(row, &real);
            rotation.apply(Isa::Scalar, row);
            assert!(row.iter().zip(real).all(|(a, b)| (*a as f64 - b).abs() < 1e-5));
        }
        assert_eq!(turned, encode(&want, float));
        assert_eq!(call(&mut turned, BL_ROTATE_INVERSE).0, bl_status::BL_OK);
        let tolerance = [1e-6, 4e-3, 3e-2][FLOATS.iter().position(|f| *f == float).unwrap()];
        let back = decode(&turned, float);
        assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() <= tolerance), "{float:?}");
    }
    let mut one = [0u8; 32];
    for (part, rows, columns, block, signs, flags) in [
        ("-1 rows", -1, 8, 8, &[][..], 0),
        ("columns", 1, -8, 8, &[], 0),
        ("rotation block 6", 1, 8, 6, &[], 0),
        ("divides the 8 columns", 1, 8, 16, &[], 0),
        ("sign 1 is 2", 1, 8, 8, &[1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 0),
        ("flags 0x2", 1, 8, 8, &[], 2),
    ] {
        let (status, text) = c_rotate(&mut one, Float::F32, rows, columns, block, signs, flags);
        assert!(status == bl_status::BL_ERROR_INVALID_ARGUMENT && text.contains(part), "{part}: {text}");
    }
    assert!(c_rotate(&mut [], Float::F32, 1, 8, 8, &[], 0).1.contains("NULL"));
    assert_eq!(c_rotate(&mut [], Float::F32, 0, 8, 8, &[], 0).0, bl_status::BL_OK);
}
