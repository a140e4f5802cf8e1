//! What stands around the product: norm, rotation, epilogue, accumulation. Here at the Rust interface,
//! in `c.rs` at the C one.

mod c;
#[path = "../container_common/mod.rs"]
mod common;

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
                    let make = |isa| Linear::new(&weights, &options, isa, &Heap::default()).unwrap();
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
                let layer = Linear::new(&weights, &options, Isa::best(), &Heap::default()).unwrap();
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
    let layer = Linear::new(&weights, &options, Isa::best(), &Heap::default()).unwrap();
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
        assert!(Linear::new(&weights, &options, Isa::best(), &Heap::default()).is_err());
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
                    let layer = Linear::new(&permuted, &options, *isa, &Heap::default()).unwrap();
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
                    let same = Linear::new(&plain, &options, *isa, &Heap::default()).unwrap();
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
            let layer = Linear::new(&permuted, &options, *isa, &heap).unwrap();
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
        Linear::new(&*matrix, &options, Isa::best(), &Heap::default()).unwrap()
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
