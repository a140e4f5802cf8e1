//! What stands around the product: norm, rotation, epilogue, accumulation, at the Rust interface and
//! at the C one.

#[path = "container_common/mod.rs"]
mod common;

use std::ffi::{CStr, CString, c_void};
use std::ptr::{null, null_mut};

use bitlinear::capi::context::*;
use bitlinear::capi::forward::*;
use bitlinear::capi::layer::*;
use bitlinear::capi::model::*;
use bitlinear::capi::rotate::*;
use bitlinear::capi::types::*;
use bitlinear::codec;
use bitlinear::cpu::Isa;
use bitlinear::epilogue::Epilogue;
use bitlinear::exec::Executor;
use bitlinear::layer::{Activation, Linear, Options};
use bitlinear::layout::packed::RowMatrix;
use bitlinear::layout::{Float, Layout, Offset, Row, Values};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::norm::{self, Kind};
use bitlinear::rotation::{self, Rotation};
use bitlinear::types::Type;
use common::gguf_writer::{File, Kv};
use half::{bf16, f16};
use serde_json::Value;

#[global_allocator]
static COUNTING: common::Counting = common::Counting;

/// A small generator of our own.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn float(&mut self) -> f32 {
        ((self.next() >> 40) as f32 - 8_388_608.0) / 8_388_608.0
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
    fn signs(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| if self.next() >> 63 == 1 { -1.0 } else { 1.0 }).collect()
    }
}

const FLOATS: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

const EPILOGUES: [Epilogue; 7] = [
    Epilogue::None,
    Epilogue::Relu { threshold: 0.0 },
    Epilogue::Relu { threshold: 0.375 },
    Epilogue::Relu2,
    Epilogue::Silu,
    Epilogue::GeluErf,
    Epilogue::GeluTanh,
];

/// Values as bytes of that type.
fn encode(values: &[f32], float: Float) -> Vec<u8> {
    match float {
        Float::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Float::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], float: Float) -> Vec<f32> {
    match float {
        Float::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Float::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Float::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// `m` rows of x, as bytes, through a layer whose rows of y hold `old` before.
fn forward(layer: &Linear, m: usize, x: (&[u8], Float), old: (&[u8], Float), accumulate: bool) -> Vec<u8> {
    let (k, n) = (layer.in_features(), layer.out_features());
    assert!(x.0.len() == m * k * x.1.bytes() && old.0.len() == m * n * old.1.bytes());
    let mut y = old.0.to_vec();
    // SAFETY: the vectors hold the rows (asserted above).
    let (x, out) = unsafe {
        (
            MatrixRef::new(x.0.as_ptr(), x.1, k * x.1.bytes(), k),
            MatrixMut::new(y.as_mut_ptr(), old.1, n * old.1.bytes(), n).accumulating(accumulate),
        )
    };
    layer.forward(m, x, out, None, &Heap::default(), &Executor::Serial).unwrap();
    y
}

/// A matrix of random codes or floats.
fn matrix(layout: Layout, n: usize, k: usize, random: &mut Random) -> RowMatrix {
    let one = |_| {
        let mut row = Row::new(layout, k).unwrap();
        row.floats.iter_mut().for_each(|w| *w = random.float());
        row.scales.iter_mut().for_each(|s| *s = f16::from_f32(random.float() * 0.1).to_f32());
        if let Layout::Coded(coded) = layout {
            let most = if coded.bits == 2 { 3 } else { 1 << coded.bits };
            row.codes.iter_mut().for_each(|c| *c = (random.next() >> 11) as u8 % most as u8);
        }
        row
    };
    RowMatrix { layout, in_features: k, rows: (0..n).map(one).collect() }
}

fn ternary() -> Layout {
    Layout::rows(2, Values::Offset(1))
}

/// Norm and rotation in f64.
fn front(x: &[f32], options: &Options<'_>) -> Vec<f64> {
    let mut x: Vec<f64> = x.iter().map(|&v| v as f64).collect();
    let n = x.len() as f64;
    if let Some(norm) = options.norm {
        let mean = if norm.kind == Kind::Layer { x.iter().sum::<f64>() / n } else { 0.0 };
        let square = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (square + norm.epsilon as f64).sqrt();
        for (k, v) in x.iter_mut().enumerate() {
            let w = norm.weight.map_or(1.0, |w| w[k] as f64);
            *v = (*v - mean) * r * w + norm.bias.map_or(0.0, |b| b[k] as f64);
        }
    }
    if let Some(rotation) = options.rotation {
        let n = rotation.block;
        for (b, block) in x.chunks_mut(n).enumerate() {
            let signed: Vec<f64> = block
                .iter()
                .enumerate()
                .map(|(c, v)| v * rotation.signs.map_or(1.0, |s| s[b * n + c] as f64))
                .collect();
            for (r, v) in block.iter_mut().enumerate() {
                let one = |(c, v): (usize, &f64)| if (r & c).count_ones() % 2 == 0 { *v } else { -v };
                *v = signed.iter().enumerate().map(one).sum::<f64>() / (n as f64).sqrt();
            }
        }
    }
    x
}

/// tanh and erf to far more than f32 needs.
fn erf(x: f64) -> f64 {
    let a = x.abs().min(6.0);
    let (mut term, mut sum, mut n) = (a, a, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= -a * a / n;
        sum += term / (2.0 * n + 1.0);
    }
    (if a > 5.0 { 1.0 } else { sum * std::f64::consts::FRAC_2_SQRT_PI }).copysign(x)
}

/// The epilogue in f64, and by how much it may stretch an error of its input at `v`.
fn back(epilogue: Epilogue, v: f64) -> (f64, f64) {
    match epilogue {
        Epilogue::None => (v, 1.0),
        Epilogue::Relu { threshold } => ((v - threshold as f64).max(0.0), 1.0),
        Epilogue::Relu2 => (v.max(0.0).powi(2), 2.0 * v.abs() + 1e-3),
        Epilogue::Silu => (v / (1.0 + (-v).exp()), 1.1),
        Epilogue::GeluErf => (0.5 * v * (1.0 + erf(v / 2f64.sqrt())), 1.13),
        Epilogue::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
            (0.5 * v * (1.0 + inner.tanh()), 1.13)
        }
    }
}

#[test]
fn every_combination_equals_scalar_and_agrees_with_f64() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (n, m) = (70, 5);
    let mut cases = 0;
    for (layout, k, block) in [
        (Layout::Dense(Float::F32), 96, 32),
        (Layout::Dense(Float::F16), 41, 0),
        (ternary(), 192, 64),
        (Layout::groups(4, 8, 32, Offset::None), 128, 128),
    ] {
        let weights = matrix(layout, n, k, &mut random);
        let (weight, shift) = (random.floats(k), random.floats(k));
        let (bias, signs) = (random.floats(n), random.signs(k));
        let x: Vec<f32> = random.floats(m * k).iter().map(|v| v * 3.0 + 0.5).collect();
        let before: Vec<f32> = random.floats(m * n);
        let norms = [
            None,
            Some(norm::Spec { kind: Kind::Layer, epsilon: 1e-5, weight: Some(&weight), bias: Some(&shift) }),
            Some(norm::Spec { kind: Kind::Rms, epsilon: 1e-6, weight: Some(&weight), bias: None }),
        ];
        for (c, norm) in norms.into_iter().enumerate() {
            let rotation = (block > 0)
                .then(|| rotation::Spec { block, signs: (c != 1).then_some(&signs[..]) })
                .filter(|_| c > 0 || layout == ternary());
            for activation in [Activation::Auto, Activation::F32] {
                for epilogue in EPILOGUES {
                    let options = Options {
                        activation,
                        bias: Some(&bias),
                        norm,
                        rotation,
                        epilogue,
                        ..Options::default()
                    };
                    let make =
                        |isa| Linear::new(&weights, &options, isa, &Heap::default(), &mut |_| {}).unwrap();
                    let oracle = make(Isa::Scalar);
                    let layers: Vec<(Isa, Linear)> =
                        Isa::ALL.iter().filter(|isa| isa.detected()).map(|&isa| (isa, make(isa))).collect();
                    for (x_type, y_type, accumulate) in FLOATS
                        .iter()
                        .flat_map(|&a| FLOATS.iter().flat_map(move |&b| [(a, b, false), (a, b, true)]))
                    {
                        let x = encode(&x, x_type);
                        let old = encode(&before, y_type);
                        let want = forward(&oracle, m, (&x, x_type), (&old, y_type), accumulate);
                        let what =
                            format!("{layout:?} {norm:?} {epilogue:?} {x_type:?} {y_type:?} {accumulate}");
                        for (isa, layer) in &layers {
                            let got = forward(layer, m, (&x, x_type), (&old, y_type), accumulate);
                            assert!(got == want, "{}: {what}", isa.name());
                            // One row alone gives what it gives among the others.
                            let (xs, ys) = (k * x_type.bytes(), n * y_type.bytes());
                            let (x, old) = (&x[2 * xs..3 * xs], &old[2 * ys..3 * ys]);
                            let alone = forward(layer, 1, (x, x_type), (old, y_type), accumulate);
                            assert!(alone == want[2 * ys..3 * ys], "{} alone: {what}", isa.name());
                            cases += 1;
                        }
                        if oracle.activation() == Activation::F32 {
                            let (x, old) = (decode(&x, x_type), decode(&old, y_type));
                            let y = decode(&want, y_type);
                            compare(&oracle, &options, &x, accumulate.then_some(&old[..]), &y, y_type);
                        }
                    }
                }
            }
        }
    }
    println!("{cases} combinations");
}

/// y against f64: within 1e-5 * sum |x w| before the epilogue, carried through it, and the roundings
/// of the type of y.
fn compare(layer: &Linear, options: &Options<'_>, x: &[f32], old: Option<&[f32]>, y: &[f32], float: Float) {
    let (k, n) = (layer.in_features(), layer.out_features());
    let mut row = layer.packed().row().unwrap();
    let mut weights = vec![0.0; k];
    for o in 0..n {
        layer.packed().read_weights(o, &mut row, &mut weights);
        for (i, x) in x.chunks(k).enumerate() {
            let x = front(x, options);
            let dot: f64 = x.iter().zip(&weights).map(|(x, w)| x * *w as f64).sum();
            let bound: f64 = x.iter().zip(&weights).map(|(x, w)| (x * *w as f64).abs()).sum::<f64>() * 1e-5;
            let bias = options.bias.map_or(0.0, |b| b[o] as f64);
            let (mut real, stretch) = back(options.epilogue, dot + bias);
            let mut near = stretch * bound + 1e-6 * (1.0 + (dot + bias).abs());
            if let Some(old) = old {
                real += old[i * n + o] as f64;
            }
            near += real.abs()
                * match float {
                    Float::F32 => 1e-7,
                    Float::F16 => 5e-4,
                    Float::Bf16 => 4e-3,
                };
            let got = y[i * n + o] as f64;
            assert!((got - real).abs() <= near, "row {i} output {o}: {got}, {real} +- {near} expected");
        }
    }
}

#[test]
fn a_row_with_a_nan_is_nan_whatever_follows_and_no_other_changes() {
    let mut random = Random(7);
    let (n, k, m) = (33, 64, 4);
    for (layout, activation) in [
        (ternary(), Activation::Auto),
        (ternary(), Activation::F32),
        (Layout::Dense(Float::F32), Activation::Auto),
    ] {
        let weights = matrix(layout, n, k, &mut random);
        let clean = random.floats(m * k);
        for norm in [None, Some(Kind::Layer), Some(Kind::Rms)] {
            for epilogue in EPILOGUES {
                let options = Options {
                    activation,
                    norm: norm.map(|kind| norm::Spec { kind, epsilon: 1e-5, weight: None, bias: None }),
                    rotation: Some(rotation::Spec { block: 16, signs: None }),
                    epilogue,
                    ..Options::default()
                };
                let layer =
                    Linear::new(&weights, &options, Isa::best(), &Heap::default(), &mut |_| {}).unwrap();
                for (bad, float) in
                    [(f32::NAN, Float::F32), (f32::INFINITY, Float::F16), (-f32::NAN, Float::Bf16)]
                {
                    let mut x = clean.clone();
                    x[2 * k + 5] = bad;
                    let old = encode(&vec![1.0; m * n], float);
                    for accumulate in [false, true] {
                        let run = |x: &[f32]| {
                            forward(&layer, m, (&encode(x, float), float), (&old, float), accumulate)
                        };
                        let (got, want) = (run(&x), run(&clean));
                        let canonical: &[u8] = match float {
                            Float::F32 => &[0, 0, 0xc0, 0x7f],
                            Float::F16 => &[0, 0x7e],
                            Float::Bf16 => &[0xc0, 0x7f],
                        };
                        let size = n * float.bytes();
                        for (i, (got, want)) in got.chunks(size).zip(want.chunks(size)).enumerate() {
                            if i == 2 {
                                assert!(got.chunks(float.bytes()).all(|v| v == canonical), "{epilogue:?}");
                            } else {
                                assert_eq!(got, want);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_fixed_scale_is_used_for_every_segment() {
    let mut random = Random(3);
    let weights = matrix(ternary(), 20, 40, &mut random);
    let x: Vec<f32> = random.floats(80).iter().map(|v| v * 20.0).collect();
    let options = Options { activation_scale: Some(0.125), ..Options::default() };
    let layer = Linear::new(&weights, &options, Isa::best(), &Heap::default(), &mut |_| {}).unwrap();
    let y = forward(&layer, 2, (&encode(&x, Float::F32), Float::F32), (&[0; 160], Float::F32), false);
    let y = decode(&y, Float::F32);
    for (i, x) in x.chunks(40).enumerate() {
        for o in 0..20 {
            let q = x.iter().map(|v| (v * 8.0).round_ties_even().clamp(-127.0, 127.0) as i32);
            let dot: i32 = q.zip(&weights.rows[o].codes).map(|(q, c)| q * (*c as i32 - 1)).sum();
            assert_eq!(y[i * 20 + o], dot as f32 * (weights.rows[o].scales[0] * 0.125));
        }
    }
    for (scale, activation) in [
        (0.0, Activation::Auto),
        (f32::NAN, Activation::Auto),
        (1e-39, Activation::Auto),
        (1.0, Activation::F32),
    ] {
        let options = Options { activation, activation_scale: Some(scale), ..Options::default() };
        assert!(Linear::new(&weights, &options, Isa::best(), &Heap::default(), &mut |_| {}).is_err());
    }
}

/// A matrix whose rows hold their columns in another order than x does (as GPTQ's desc_act).
struct Permuted(RowMatrix, Vec<u32>);

impl bitlinear::layout::Matrix for Permuted {
    fn layout(&self) -> Layout {
        self.0.layout
    }
    fn out_features(&self) -> usize {
        self.0.rows.len()
    }
    fn in_features(&self) -> usize {
        self.0.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> bitlinear::error::Result<()> {
        self.0.read_row(index, row)
    }
    fn permutation(&self) -> Option<&[u32]> {
        Some(&self.1)
    }
}

#[test]
fn norm_and_rotation_come_before_the_order_of_packed_columns() {
    let mut random = Random(21);
    let (n, k, m) = (19, 128, 3);
    let layout = Layout::groups(4, 8, 32, Offset::None);
    let plain = matrix(layout, n, k, &mut random);
    let order: Vec<u32> = (0..k as u32).map(|j| j * 37 % k as u32).collect();
    let (weight, signs) = (random.floats(k), random.signs(k));
    let x = random.floats(m * k);
    for norm in
        [None, Some(norm::Spec { kind: Kind::Layer, epsilon: 1e-5, weight: Some(&weight), bias: None })]
    {
        for rotation in [None, Some(rotation::Spec { block: 32, signs: Some(&signs) })] {
            for activation in [Activation::Auto, Activation::F32] {
                for isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                    let options = Options { activation, norm, rotation, ..Options::default() };
                    let permuted = Permuted(
                        RowMatrix { layout, in_features: k, rows: plain.rows.clone() },
                        order.clone(),
                    );
                    let layer =
                        Linear::new(&permuted, &options, *isa, &Heap::default(), &mut |_| {}).unwrap();
                    // The same by hand: x normed, rotated and put in order, through the plain matrix.
                    let mut by_hand = vec![];
                    for x in x.chunks(k) {
                        let mut x = x.to_vec();
                        if let Some(spec) = norm {
                            norm::Norm::new(&spec, k).unwrap().apply(Isa::Scalar, &mut x);
                        }
                        if let Some(spec) = rotation {
                            Rotation::new(&spec, k).unwrap().apply(Isa::Scalar, &mut x);
                        }
                        by_hand.extend(order.iter().map(|&column| x[column as usize]));
                    }
                    let options = Options { activation, ..Options::default() };
                    let same = Linear::new(&plain, &options, *isa, &Heap::default(), &mut |_| {}).unwrap();
                    let run = |layer, x: &[f32]| {
                        let x = encode(x, Float::F32);
                        forward(layer, m, (&x, Float::F32), (&vec![0; m * n * 4], Float::F32), false)
                    };
                    assert!(run(&layer, &x) == run(&same, &by_hand), "{}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_planned_workspace_is_all_the_memory_a_call_takes() {
    let mut random = Random(22);
    let (n, k) = (130, 256);
    let (weight, signs, bias) = (random.floats(k), random.signs(k), random.floats(n));
    let x = random.floats(9 * k);
    let mut y = vec![0.0; 9 * n];
    for layout in [ternary(), Layout::Dense(Float::F32)] {
        let plain = matrix(layout, n, k, &mut random);
        let order = (0..k as u32).rev().collect();
        let permuted = Permuted(plain, order);
        for isa in Isa::ALL.iter().filter(|isa| isa.detected() && **isa != Isa::Scalar) {
            let options = Options {
                bias: Some(&bias),
                norm: Some(norm::Spec { kind: Kind::Rms, epsilon: 1e-5, weight: Some(&weight), bias: None }),
                rotation: Some(rotation::Spec { block: 64, signs: Some(&signs) }),
                epilogue: Epilogue::GeluTanh,
                ..Options::default()
            };
            let heap = Heap::default();
            let layer = Linear::new(&permuted, &options, *isa, &heap, &mut |_| {}).unwrap();
            for m in [1, 9] {
                let need = layer.plan(m, &Executor::Serial).workspace + 64;
                let mut workspace = vec![0xa5; need];
                let out = MatrixMut::of(&mut y, n).accumulating(true);
                let run = || {
                    layer.forward(
                        m,
                        MatrixRef::of(&x, k),
                        out,
                        Some(&mut workspace),
                        &heap,
                        &Executor::Serial,
                    )
                };
                let (result, bytes) = common::measure(|| common::fail_after(0, run));
                assert!(result.is_ok() && bytes == 0, "{} bytes on {}", bytes, isa.name());
            }
        }
    }
}

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(floats).collect(),
        _ => vec![value.as_f64().unwrap() as f32],
    }
}

#[test]
fn rotations_and_a_folded_layer_of_the_vectors() {
    let prism = vectors("prism.json");
    for case in prism["hadamard"].as_array().unwrap() {
        let (block, signs) = (case["block_size"].as_u64().unwrap() as usize, floats(&case["signs"]));
        let (mut x, want) = (floats(&case["x"]), floats(&case["rotated"]));
        let rotation = Rotation::new(&rotation::Spec { block, signs: Some(&signs) }, signs.len()).unwrap();
        let largest = want.iter().fold(0f32, |a, v| a.max(v.abs()));
        for row in x.chunks_mut(signs.len()) {
            rotation.apply(Isa::best(), row);
        }
        for (got, want) in x.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-6 * largest, "block {block}: {got}, {want} expected");
        }
    }

    let case = &prism["folded_layer"];
    let (signs, folded, plain) = (floats(&case["signs"]), floats(&case["folded"]), floats(&case["weight"]));
    let (x, y) = (floats(&case["x"]), floats(&case["y"]));
    let (k, block) = (signs.len(), case["block_size"].as_u64().unwrap() as usize);
    let n = folded.len() / k;
    let layer = |weights: &[f32], rotation| {
        let bytes = encode(weights, Float::F32);
        let matrix = codec::open(Type::F32, n, k, &bytes).unwrap();
        let options = Options { rotation, ..Options::default() };
        Linear::new(&*matrix, &options, Isa::best(), &Heap::default(), &mut |_| {}).unwrap()
    };
    let run = |layer: &Linear| {
        let m = x.len() / k;
        let old = vec![0; m * n * 4];
        decode(
            &forward(layer, m, (&encode(&x, Float::F32), Float::F32), (&old, Float::F32), false),
            Float::F32,
        )
    };
    let rotated = run(&layer(&folded, Some(rotation::Spec { block, signs: Some(&signs) })));
    let unfolded = run(&layer(&plain, None));
    for (i, ((a, b), y)) in rotated.iter().zip(&unfolded).zip(&y).enumerate() {
        let (x, w) = (&x[i / n * k..][..k], &plain[i % n * k..][..k]);
        let bound = 1e-5 * x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum::<f32>();
        assert!((a - y).abs() <= bound && (b - y).abs() <= bound, "{i}: {a} {b} {y}");
    }
}

// The C interface.

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
