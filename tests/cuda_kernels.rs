//! The CUDA kernels, thread by thread on the emulated GPU: every result equals the scalar kernels' with `==`.
//! Layouts x rows of x x ragged shapes x rules of activations; what stands around the product; several layers
//! of a call; schedules. `BITLINEAR_TEST_EVERY=N` takes one in N of the cases.

#[path = "cuda/device.rs"]
mod device;

use std::collections::BTreeMap;

use bitlinear::epilogue::Epilogue;
use bitlinear::error::Result;
use bitlinear::exec::Executor;
use bitlinear::kernel::cuda::launch::{Family, Gpu, Input, Module, RowScales, Target};
use bitlinear::layer::{self, Activation, Extra, Linear, Options};
use bitlinear::layout::Matrix;
use bitlinear::layout::packed::RowMatrix;
use bitlinear::layout::{Coded, Float, Layout, Offset, Packed, Row, ScaleType, Scales, Values};
use bitlinear::matrix::{Gather, MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::{norm, rotation};
use device::{Device, Layer, ORACLE, forward, forward_on};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn float(&mut self) -> f32 {
        (self.below(1 << 24) as f32 - 8_388_608.0) / 8_388_608.0
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

static TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

const WIDTHS: [(u8, Values); 8] = [
    (1, Values::Sign),
    (2, Values::Offset(1)),
    (3, Values::Offset(4)),
    (4, Values::Offset(8)),
    (4, Values::Table(&TABLE)),
    (5, Values::Offset(16)),
    (6, Values::Offset(32)),
    (8, Values::Offset(128)),
];

/// Every width under every scheme, group lengths of every kind, every type of scales.
fn layouts() -> Vec<Layout> {
    let mut all: Vec<Layout> = [Float::F32, Float::F16, Float::Bf16].map(Layout::Dense).to_vec();
    for (bits, values) in WIDTHS {
        let mut push = |scales, scale_type, values| {
            all.push(Layout::Coded(Coded { bits, values, scales, scale_type, bases: 1 }));
        };
        push(Scales::Row, ScaleType::F32, values);
        for (len, ty) in
            [(32, ScaleType::F16), (64, ScaleType::Bf16), (6, ScaleType::F16), (100, ScaleType::F32)]
        {
            push(Scales::Group { len, offset: Offset::None }, ty, values);
        }
        push(Scales::Group { len: 32, offset: Offset::None }, ScaleType::E8m0, values);
        push(Scales::Group { len: 16, offset: Offset::Minimum }, ScaleType::F32, values);
        push(Scales::Group { len: 32, offset: Offset::Minimum }, ScaleType::F16, values);
        if matches!(values, Values::Offset(_)) {
            let zero = Scales::Group { len: 48, offset: Offset::Zero };
            push(zero, ScaleType::F16, Values::Offset(0));
        }
        push(Scales::TwoLevel { len: 16, minimum: false }, ScaleType::F16, values);
        push(Scales::TwoLevel { len: 16, minimum: true }, ScaleType::F32, values);
        push(Scales::TwoLevel { len: 32, minimum: true }, ScaleType::F16, values);
    }
    for bases in [2, 5] {
        let values = Values::Offset(1);
        let coded = Coded { bits: 2, values, scales: Scales::Row, scale_type: ScaleType::F32, bases };
        all.push(Layout::Coded(coded));
    }
    all
}

/// Random rows; row 0 has the largest codes, row 1 the smallest, row 2 zero scales.
fn matrix(layout: Layout, n: usize, k: usize, random: &mut Random) -> RowMatrix {
    let f16 = |v: f32| half::f16::from_f32(v).to_f32();
    let bf16 = |v: f32| half::bf16::from_f32(v).to_f32();
    let mut rows = vec![];
    for r in 0..n {
        let mut row = Row::new(layout, k).unwrap();
        match layout {
            Layout::Dense(float) => {
                for w in &mut row.floats {
                    *w = match float {
                        Float::F32 => random.float(),
                        Float::F16 => f16(random.float()),
                        Float::Bf16 => bf16(random.float()),
                    };
                }
            }
            Layout::Coded(coded) => {
                let top = (1u64 << coded.bits) - 1;
                for c in &mut row.codes {
                    *c = match r {
                        0 => top as u8,
                        1 => 0,
                        _ => random.below(top + 1) as u8,
                    };
                }
                let mut scale = || match coded.scale_type {
                    ScaleType::F32 => random.float(),
                    ScaleType::F16 => f16(random.float() * 0.1),
                    ScaleType::Bf16 => bf16(random.float()),
                    // Bytes 0 and 1 stand for subnormal powers.
                    ScaleType::E8m0 => 2f32.powi([-128, -127, -9, -1, 0, 3, 7, 8][random.below(8) as usize]),
                };
                let zero = r == 2 && coded.scale_type != ScaleType::E8m0;
                row.scales.iter_mut().for_each(|s| *s = if zero { 0.0 } else { scale() });
                row.minimums.iter_mut().for_each(|s| *s = scale());
                row.zeros.iter_mut().for_each(|z| *z = random.below(top + 1) as u8);
                row.sub_scales.iter_mut().for_each(|s| *s = random.below(256) as u8 as i8);
                row.sub_minimums.iter_mut().for_each(|s| *s = random.below(64) as i8);
            }
        }
        rows.push(row);
    }
    RowMatrix { layout, in_features: k, rows }
}

/// Rows of x with what is hard: zeros, subnormals, a NaN, an infinity, huge and lone values.
fn batch(m: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = random.floats(m * k).into_iter().map(|v| v * 3.0).collect();
    for (i, row) in x.chunks_mut(k).enumerate() {
        match i % 11 {
            3 => row.fill(0.0),
            4 => row.fill(1e-40),
            5 => row[k / 2] = f32::NAN,
            6 => row[0] = f32::INFINITY,
            7 => row.fill(-2.5),
            8 => row.iter_mut().for_each(|v| *v *= 1e30),
            9 => row[k - 1] = 1e9,
            10 => row.iter_mut().for_each(|v| *v *= 1e-29), // just above what counts as zeros
            _ => {}
        }
    }
    x
}

fn oracle(layer: &Linear, m: usize, x: &[f32]) -> Vec<u32> {
    let mut y = vec![0f32; m * layer.out_features()];
    let out = MatrixMut::of(&mut y, layer.out_features());
    let x = MatrixRef::of(x, layer.in_features());
    layer.forward(m, x, out, None, &Heap::default(), &Executor::Serial).unwrap();
    y.iter().map(|v| v.to_bits()).collect()
}

fn target<'a>(layer: &'a Layer<'_>, linear: &Linear, y: u64) -> Target<'a> {
    Target {
        layer: &layer.placed,
        same_front: false,
        columns: linear.in_features(),
        outputs: linear.out_features(),
        epilogue: linear.epilogue(),
        y,
        y_type: Float::F32,
        y_stride: 4 * linear.out_features(),
        accumulate: false,
    }
}

fn input(m: usize, x: u64, k: usize) -> Input {
    Input { m, x, x_type: Float::F32, x_stride: 4 * k, gather: None, scales: RowScales::Own }
}

/// Runs a layer on the device and compares; the kernels that ran.
#[track_caller]
fn same(device: &Device, linear: &Linear, m: usize, x: &[f32], what: &str) -> Vec<&'static str> {
    same_on(device, Family::Auto, linear, m, x, what)
}

/// The same on kernels of one family.
#[track_caller]
fn same_on(
    device: &Device,
    family: Family,
    linear: &Linear,
    m: usize,
    x: &[f32],
    what: &str,
) -> Vec<&'static str> {
    let (n, k) = (linear.out_features(), linear.in_features());
    let want = oracle(linear, m, x);
    let layer = Layer::new(device, linear);
    let (x, y) = (device.copy(x), device.memory(4 * m * n));
    let targets = [target(&layer, linear, y.address)];
    let names = forward_on(device, family, &targets, &input(m, x.address, k));
    let got: Vec<u32> = y.read(m * n);
    if let Some(at) = (0..m * n).find(|i| got[*i] != want[*i]) {
        let wrong = (0..m * n).filter(|i| got[*i] != want[*i]).count();
        panic!(
            "{what}, {n} x {k}, m = {m}, {names:?}: {wrong} of {} differ, first row {} output {}: {:e} and not {:e}",
            m * n,
            at / n,
            at % n,
            f32::from_bits(got[at]),
            f32::from_bits(want[at])
        );
    }
    names.iter().map(|name| name.to_str().unwrap()).collect()
}

fn every() -> usize {
    std::env::var("BITLINEAR_TEST_EVERY").map_or(1, |n| n.parse().expect("a number"))
}

/// Every n-th case is taken, where BITLINEAR_TEST_EVERY says so; which ones, the seed of the schedule says, so that
/// schedules with other seeds take others.
fn taken(case: usize) -> bool {
    let seed = std::env::var("BL_EMU_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    (case + seed).is_multiple_of(every())
}

/// Rules that a layout takes, besides its own.
fn activations(layout: &Layout) -> Vec<Activation> {
    match layout {
        Layout::Dense(_) => vec![Activation::Auto],
        Layout::Coded(coded) => Activation::ALL
            .into_iter()
            .filter(|a| !(coded.scales == Scales::Row && *a == Activation::Int8Group))
            .collect(),
    }
}

#[test]
fn every_layout_equals_the_scalar_kernels() {
    let mut device = Device::lock();
    let multiprocessors = device.gpu.multiprocessors;
    let mut random = Random(7);
    let (mut case, mut seen) = (0, BTreeMap::<&str, usize>::new());
    // m: one row, a part of a tile, a tile, its neighbour, and the kernels for many rows.
    let batches = [1, 3, 8, 12, 17, 64, 65, 200];
    for layout in layouts() {
        let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
        for activation in activations(&layout) {
            for (i, m) in batches.into_iter().enumerate() {
                case += 1;
                // Each case another ragged shape; a third of the rules at a time.
                if !taken(case) || activation != Activation::Auto && (case + i) % 3 != 0 {
                    continue;
                }
                let n = [1, 16, 33, 70, 5, 130, 48, 17][(case + i) % 8];
                let k = match two_level {
                    true => [256, 512, 768][case % 3],
                    false => [100, 128, 333, 256, 37, 600][case % 6],
                };
                let linear = linear(layout, n, k, activation, &mut random);
                let x = batch(m, k, &mut random);
                // Small batches run as they are; larger ones on a family of kernels each.
                let families = [Family::Warpgroups, Family::Warps, Family::Few];
                let family = if m <= 64 { Family::Auto } else { families[case / 5 % 3] };
                // Few multiprocessors are filled by larger tiles.
                device.gpu.multiprocessors = if case % 3 == 0 { multiprocessors } else { 1 };
                for name in same_on(&device, family, &linear, m, &x, &format!("{layout:?} {activation:?}")) {
                    *seen.entry(name).or_default() += 1;
                }
            }
        }
    }
    // One scale a row and many rows of x have most kernels to choose among.
    for (i, (bits, values)) in WIDTHS.into_iter().enumerate() {
        // 257 columns are an odd number of units of 8 bits: the last stage of those is half a stage.
        for (m, k) in [(65, 600), (130, 100), (200, 333), (70, 257)] {
            for (j, family) in [Family::Warpgroups, Family::Warpgroups, Family::Warps].into_iter().enumerate()
            {
                let activation = [Activation::Auto, Activation::Uint8Positive][(i + j) % 2];
                device.gpu.multiprocessors = if j == 0 { multiprocessors } else { 1 };
                let layout = Layout::rows(bits, values);
                let linear = linear(layout, [130, 17, 256][(i + j) % 3], k, activation, &mut random);
                let x = batch(m, k, &mut random);
                for name in same_on(&device, family, &linear, m, &x, &format!("{layout:?} {activation:?}")) {
                    *seen.entry(name).or_default() += 1;
                }
            }
        }
    }
    device.gpu.multiprocessors = multiprocessors;
    println!("cases by kernel: {seen:#?}");
    // Those of warpgroups are for 9.0 alone.
    let all: usize = Module::ALL.iter().map(|m| m.functions().len()).sum();
    assert!(device.gpu.capability != (9, 0) || device.kernels.len() == all, "{all} kernels were compiled");
    let idle = device.kernels.iter().map(|k| k.0.to_str().unwrap()).filter(|name| !seen.contains_key(name));
    let idle: Vec<_> = idle.collect();
    assert!(every() > 1 || idle.is_empty(), "kernels that never ran: {idle:?}");
}

fn linear(layout: Layout, n: usize, k: usize, activation: Activation, random: &mut Random) -> Linear {
    let packed = Packed::new(&matrix(layout, n, k, random)).unwrap();
    let options = Options { activation, ..Options::default() };
    Linear::of(packed, &options, ORACLE).unwrap()
}

/// A matrix whose columns are in another order than those of x.
struct Permuted(RowMatrix, Vec<u32>);

impl Matrix for Permuted {
    fn layout(&self) -> Layout {
        self.0.layout
    }
    fn out_features(&self) -> usize {
        self.0.rows.len()
    }
    fn in_features(&self) -> usize {
        self.0.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        self.0.read_row(index, row)
    }
    fn permutation(&self) -> Option<&[u32]> {
        Some(&self.1)
    }
}

const EPILOGUES: [Epilogue; 6] = [
    Epilogue::None,
    Epilogue::Relu { threshold: 0.25 },
    Epilogue::Relu2,
    Epilogue::Silu,
    Epilogue::GeluErf,
    Epilogue::GeluTanh,
];

/// One of each kind of kernel.
fn kinds() -> [Layout; 5] {
    [
        Layout::rows(2, Values::Offset(1)),
        Layout::groups(4, 8, 32, Offset::None),
        Layout::two_level(4, 0, 32, true),
        Layout::Dense(Float::F16),
        Layout::rows(1, Values::Sign),
    ]
}

/// Rows of elements of a type, `stride` bytes apart, of values that the type has.
fn encode(values: &[f32], columns: usize, float: Float, stride: usize) -> Vec<u8> {
    let mut bytes = vec![0x55u8; values.len() / columns * stride];
    for (row, out) in values.chunks(columns).zip(bytes.chunks_mut(stride)) {
        for (v, out) in row.iter().zip(out.chunks_mut(float.bytes())) {
            match float {
                Float::F32 => out.copy_from_slice(&v.to_le_bytes()),
                Float::F16 => out.copy_from_slice(&half::f16::from_f32(*v).to_le_bytes()),
                Float::Bf16 => out.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes()),
            }
        }
    }
    bytes
}

#[test]
fn what_stands_around_a_product_equals_the_cpu() {
    let device = Device::lock();
    let mut random = Random(11);
    let floats = [Float::F32, Float::F16, Float::Bf16];
    for case in 0..60 {
        let layout = kinds()[case % 5];
        let (n, k, m) = ([33, 48, 7, 130][case % 4], [256, 512][case % 2], [1, 3, 9, 70][case / 3 % 4]);
        let (x_type, y_type) = (floats[case % 3], floats[case / 3 % 3]);
        let (weight, bias) = (random.floats(k), random.floats(k));
        let signs: Vec<f32> = (0..k).map(|_| if random.below(2) == 0 { 1.0 } else { -1.0 }).collect();
        let output_bias = random.floats(n);
        let norm = (case % 4 != 0).then(|| norm::Spec {
            kind: norm::Kind::ALL[case / 2 % 2],
            epsilon: 1e-5,
            weight: (case % 3 != 0).then_some(&weight[..]),
            bias: (case % 5 < 2).then_some(&bias[..]),
        });
        let rotation = (case % 3 != 1).then(|| rotation::Spec {
            block: [2, 16, 32, 256][case / 5 % 4],
            signs: (case % 2 == 0).then_some(&signs[..]),
        });
        let options = Options {
            activation: Activation::Auto,
            product_scale: (case % 4 < 2).then_some(0.37),
            bias: (case % 3 < 2).then_some(&output_bias[..]),
            norm,
            rotation,
            epilogue: EPILOGUES[case % 6],
            activation_scale: None,
        };
        let rows = matrix(layout, n, k, &mut random);
        let packed = if case % 2 == 0 {
            Packed::new(&rows)
        } else {
            let step = 5 + 2 * (case as u32 % 7); // odd, as k is a power of two
            Packed::new(&Permuted(rows, (0..k as u32).map(|i| (i * step + 3) % k as u32).collect()))
        };
        let linear = Linear::of(packed.unwrap(), &options, ORACLE).unwrap();
        let x_stride = x_type.bytes() * (k + case % 3);
        let y_stride = y_type.bytes() * (n + case % 4);
        let x = encode(&batch(m, k, &mut random), k, x_type, x_stride);
        let mut y = encode(&random.floats(m * n), n, y_type, y_stride);
        let accumulate = case % 7 < 3;

        let layer = Layer::new(&device, &linear);
        let (on_x, on_y) = (device.copy(&x), device.copy(&y));
        let target = Target { y_type, y_stride, accumulate, ..target(&layer, &linear, on_y.address) };
        let input = Input { x_type, x_stride, ..input(m, on_x.address, k) };
        let names = forward(&device, &[target], &input);
        // SAFETY: m rows of that type and stride each.
        let (from, to) = unsafe {
            let from = MatrixRef::new(x.as_ptr(), x_type, x_stride, k);
            (from, MatrixMut::new(y.as_mut_ptr(), y_type, y_stride, n).accumulating(accumulate))
        };
        linear.forward(m, from, to, None, &Heap::default(), &Executor::Serial).unwrap();
        let got: Vec<u8> = on_y.read(y.len());
        let differ = got.iter().zip(&y).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "case {case}: {layout:?} {n} x {k}, m = {m}, {names:?}, {options:?}");
    }
}

#[test]
fn several_layers_share_what_is_made_of_x() {
    let device = Device::lock();
    let mut random = Random(13);
    let (k, m) = (512, 5);
    let weight = random.floats(k);
    let norm = norm::Spec { kind: norm::Kind::Rms, epsilon: 1e-6, weight: Some(&weight), bias: None };
    let layouts = [
        (Layout::groups(4, 8, 32, Offset::None), true),
        (Layout::groups(4, 0, 32, Offset::Minimum), true),
        (Layout::groups(4, 8, 32, Offset::None), true),
        (Layout::groups(8, 128, 32, Offset::None), true),
        (Layout::groups(4, 8, 64, Offset::None), true),
        (Layout::rows(2, Values::Offset(1)), true),
        (Layout::rows(2, Values::Offset(1)), false),
        (Layout::Dense(Float::F32), false),
        (Layout::Dense(Float::F16), false),
    ];
    let linears: Vec<Linear> = layouts
        .iter()
        .enumerate()
        .map(|(i, (layout, normed))| {
            let packed = Packed::new(&matrix(*layout, 17 + 16 * i, k, &mut random)).unwrap();
            let options = Options { norm: normed.then_some(norm), ..Options::default() };
            Linear::of(packed, &options, ORACLE).unwrap()
        })
        .collect();
    let x = batch(m, k, &mut random);
    let on_x = device.copy(&x);
    let layers: Vec<Layer> = linears.iter().map(|linear| Layer::new(&device, linear)).collect();
    let ys: Vec<_> = linears.iter().map(|linear| device.memory(4 * m * linear.out_features())).collect();
    let targets: Vec<Target> = (0..linears.len())
        .map(|i| Target { same_front: true, ..target(&layers[i], &linears[i], ys[i].address) })
        .map(|t| Target { same_front: t.layer.norm.is_some(), ..t })
        .collect();
    let names = forward(&device, &targets, &input(m, on_x.address, k));
    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
    // Groups of 32 and of 64, rows with a norm, rows without, floats: five forms of x. 4 bits: one launch.
    let want = [
        "bl_prepare",
        "bl_w4_few8",
        "bl_w8_few8",
        "bl_prepare",
        "bl_w4_few8",
        "bl_prepare",
        "bl_w2_few8",
        "bl_prepare",
        "bl_w2_few8",
        "bl_prepare",
        "bl_float_few",
    ];
    assert_eq!(names, want);
    for (i, (linear, y)) in linears.iter().zip(&ys).enumerate() {
        let got: Vec<u32> = y.read(m * linear.out_features());
        assert!(got == oracle(linear, m, &x), "layer {i}");
    }
}

#[test]
fn scales_that_are_known() {
    let device = Device::lock();
    let mut random = Random(17);
    let (n, k, m) = (40, 300, 7);
    for activation in [Activation::Int8Row, Activation::Uint8Positive, Activation::Int4MeanRange] {
        for layout in [Layout::rows(2, Values::Offset(1)), Layout::groups(4, 8, 32, Offset::None)] {
            let packed = || Packed::new(&matrix(layout, n, k, &mut Random(3))).unwrap();
            let options = Options { activation, activation_scale: Some(0.013), ..Options::default() };
            let linear = Linear::of(packed(), &options, ORACLE).unwrap();
            let x = batch(m, k, &mut random);
            same(&device, &linear, m, &x, &format!("fixed scale, {layout:?} {activation:?}"));
        }
        let options = Options { activation, ..Options::default() };
        let packed = Packed::new(&matrix(Layout::rows(8, Values::Offset(128)), n, k, &mut random)).unwrap();
        let linear = Linear::of(packed, &options, ORACLE).unwrap();
        let x = random.floats(m * k);
        let mut scales: Vec<f32> = (0..m).map(|i| 0.004 + 0.001 * i as f32).collect();
        scales[2] = 0.0; // of a row of zeros, which this is not: any scale will do
        for scales in [&scales[..1], &scales[..]] {
            let mut y = vec![0f32; m * n];
            let extra = Extra { scales, stages: None };
            let to = layer::Target::new(&linear, MatrixMut::of(&mut y, n));
            let from = MatrixRef::of(&x, k);
            layer::forward_with(&[to], m, from, extra, None, &Heap::default(), &Executor::Serial).unwrap();
            let layer = Layer::new(&device, &linear);
            let (on_x, on_y, on_scales) = (device.copy(&x), device.memory(4 * m * n), device.copy(scales));
            let known = match scales.len() {
                1 => RowScales::One(on_scales.address),
                _ => RowScales::Each(on_scales.address),
            };
            let input = Input { scales: known, ..input(m, on_x.address, k) };
            forward(&device, &[target(&layer, &linear, on_y.address)], &input);
            assert!(on_y.read::<f32>(m * n) == y, "{activation:?}, {} scales", scales.len());
        }
    }
}

/// What heads' projections and tails need: a prefix of the outputs, a prefix of the columns, rows in parts.
#[test]
fn prefixes_and_gathered_rows() {
    let device = Device::lock();
    let mut random = Random(19);
    let (n, heads, latent, time) = (50, 3, 40, 4);
    let columns = 64 * heads;
    for bits in [2, 8] {
        let layout = Layout::rows(bits, Values::Offset(if bits == 2 { 1 } else { 128 }));
        let whole = Packed::new(&matrix(layout, n, columns, &mut random)).unwrap();
        let whole = std::sync::Arc::new(Linear::of(whole, &Options::default(), ORACLE).unwrap());
        let layer = Layer::new(&device, &whole);
        for features in [20, 32, latent] {
            let x = random.floats(heads * time * features);
            let gather = Gather { heads, head_stride: time * features * 4, features, run: 32 };
            let k = gather.columns();
            let prefix = Packed::prefix(&whole, Linear::packed, k).unwrap();
            let linear = Linear::of(prefix, &Options::default(), ORACLE).unwrap();
            let mut want = vec![0f32; time * n];
            // SAFETY: time tokens of every head, one after another.
            let from = unsafe { MatrixRef::gathered(x.as_ptr().cast(), 4 * features, gather) };
            let to = MatrixMut::of(&mut want, n);
            linear.forward(time, from, to, None, &Heap::default(), &Executor::Serial).unwrap();
            let (on_x, on_y) = (device.copy(&x), device.memory(4 * time * n));
            let target = Target { columns: k, ..target(&layer, &whole, on_y.address) };
            let input =
                Input { gather: Some(gather), x_stride: 4 * features, ..input(time, on_x.address, k) };
            forward(&device, &[target], &input);
            assert!(on_y.read::<f32>(time * n) == want, "{bits} bits, {features} features");
        }
        for outputs in [1, 17, 33] {
            let x = random.floats(time * columns);
            let want = oracle(&whole, time, &x);
            let (on_x, on_y) = (device.copy(&x), device.memory(4 * time * outputs));
            let target = Target { outputs, y_stride: 4 * outputs, ..target(&layer, &whole, on_y.address) };
            forward(&device, &[target], &input(time, on_x.address, columns));
            let got: Vec<u32> = on_y.read(time * outputs);
            let want: Vec<u32> = want.chunks(n).flat_map(|row| row[..outputs].to_vec()).collect();
            assert!(got == want, "{outputs} outputs");
        }
    }
}

/// Sums past an int32, rows that no shared memory holds, more records than a block keeps sums of.
#[test]
fn long_rows() {
    let device = Device::lock();
    let mut random = Random(23);
    let largest = |k: usize, m: usize| vec![1.0f32; m * k];
    for (layout, n, k, m) in [
        (Layout::rows(2, Values::Offset(1)), 3, 70_001, 2),
        (Layout::rows(8, Values::Offset(128)), 2, 140_000, 1),
        (Layout::rows(1, Values::Sign), 17, 65_537, 66),
        (Layout::groups(4, 8, 66_000, Offset::Minimum), 5, 132_500, 3),
        (Layout::groups(4, 8, 6, Offset::Minimum), 5, 5_000, 31),
        (Layout::two_level(2, 0, 16, true), 17, 8_192, 32),
        (Layout::Dense(Float::F32), 2, 60_000, 2),
    ] {
        for activation in [Activation::Auto, Activation::Uint8Positive] {
            if matches!(layout, Layout::Dense(_)) && activation != Activation::Auto {
                continue;
            }
            let linear = linear(layout, n, k, activation, &mut random);
            // Row 0 of W has the largest codes: with the largest codes of x its sum is the largest there is.
            same(&device, &linear, m, &largest(k, m), &format!("largest, {layout:?} {activation:?}"));
            let x = batch(m, k, &mut random);
            same(&device, &linear, m, &x, &format!("{layout:?} {activation:?}"));
        }
    }
}

#[test]
fn the_order_of_threads_does_not_matter() {
    let device = Device::lock();
    let mut random = Random(29);
    for order in 0..6 {
        device.order(Some(order));
        for layout in kinds() {
            for (m, family) in
                [(2, Family::Auto), (20, Family::Auto), (130, Family::Warps), (70, Family::Warpgroups)]
            {
                // On warpgroups more tiles of k than stages: each stage is filled again, many times.
                let k = if family == Family::Warpgroups { 4096 } else { 512 };
                let linear = linear(layout, 40, k, Activation::Auto, &mut random);
                let x = batch(m, k, &mut random);
                same_on(&device, family, &linear, m, &x, &format!("{layout:?} in order {order}"));
            }
        }
    }
    device.order(None);
}

/// Plans need no device: every kernel of every capability fits its limits.
#[test]
fn plans_fit_every_device() {
    let mut random = Random(31);
    for (capability, shared_block) in [((7, 5), 64), ((8, 0), 163), ((8, 6), 99), ((9, 0), 227)] {
        let gpu = Gpu { capability, multiprocessors: 60, shared_block: shared_block << 10 };
        for layout in layouts() {
            let linear = linear(layout, 300, 2048, Activation::Auto, &mut random);
            let form = bitlinear::kernel::cuda::weights::Form::new(&layout, 300, 2048, false).unwrap();
            let placed = bitlinear::kernel::cuda::launch::Placed {
                form,
                weights: 256,
                bias: 0,
                rule: linear.rule(),
                norm: None,
                rotation: None,
                permutation: 0,
                product_scale: None,
            };
            for m in [1, 16, 64, 65, 4096, 1 << 20] {
                let target = Target {
                    layer: &placed,
                    same_front: false,
                    columns: 2048,
                    outputs: 300,
                    epilogue: Epilogue::None,
                    y: 256,
                    y_type: Float::F32,
                    y_stride: 1200,
                    accumulate: false,
                };
                let mut launches = 0;
                bitlinear::kernel::cuda::launch::plan(&[target], &input(m, 256, 2048), &gpu, 512, &mut |l| {
                    assert!(l.shared as usize <= gpu.dynamic_shared() && l.block <= 1024);
                    assert!(l.grid[1] <= 65_535 && l.grid[0] < 1 << 31 && l.grid[0] > 0);
                    assert!(l.module.functions().contains(&l.function));
                    launches += 1;
                    Ok(())
                })
                .unwrap();
                assert_eq!(launches, 2, "{layout:?}, m = {m}, {capability:?}");
            }
        }
    }
}
