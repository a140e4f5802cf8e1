//! The low-bit runtime against the limits of the machine, measured in one run, on one thread.
//!
//! `cargo bench --bench low_bit`: state compression against sequential reading, projections of heads
//! against a plain layer of as many multiply-adds, gradients against the same in forward calls, and the
//! rate at which weights are rounded and packed. Every figure is the minimum of repeats that go round all
//! cases, so that noise meets all of them; only ratios mean something.

use std::time::Instant;

use bitlinear::activation::Span;
use bitlinear::codes::Format;
use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::gemm::{Floats, product};
use bitlinear::heads::{Around, Backward, Batch, Input, Kind, Projection, Shape, Weights};
use bitlinear::kernel::{self, Portable};
use bitlinear::layer::{Activation, Linear, Options, Packer};
use bitlinear::layout::{Float, Layout, Row};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::plan::LowBit;
use bitlinear::state::{Format as StateFormat, State, Update};
use bitlinear::train::Machine;
use bitlinear::types::Type;

/// f32 rows in memory.
struct Rows<'a>(&'a [f32], usize);

impl bitlinear::layout::Matrix for Rows<'_> {
    fn layout(&self) -> Layout {
        Layout::Dense(Float::F32)
    }
    fn out_features(&self) -> usize {
        self.0.len() / self.1
    }
    fn in_features(&self) -> usize {
        self.1
    }
    fn read_row(&self, index: usize, row: &mut Row) -> bitlinear::error::Result<()> {
        row.floats.copy_from_slice(&self.0[index * self.1..][..self.1]);
        Ok(())
    }
}

fn random(count: usize, mut seed: u64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A name and what is timed.
type Case<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// The shortest times, in seconds, of all cases in turn.
fn race(cases: &mut [Case<'_>]) -> Vec<f64> {
    let rounds = std::env::var("BITLINEAR_BENCH_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(12);
    let mut best = vec![f64::INFINITY; cases.len()];
    for _ in 0..rounds {
        for ((_, work), best) in cases.iter_mut().zip(&mut best) {
            let begin = Instant::now();
            work();
            *best = best.min(begin.elapsed().as_secs_f64());
        }
    }
    best
}

fn main() {
    let isa = Isa::from_environment().expect("BITLINEAR_ISA");
    println!("low-bit runtime, one thread, {}\n", isa.name());
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    for (name, part) in [
        ("states", states as fn(Isa)),
        ("heads", heads),
        ("gemm", gemm),
        ("updates", updates),
        ("rows", rows),
    ] {
        if only.as_ref().is_none_or(|only| only == name) {
            part(isa);
        }
    }
}

fn rows(isa: Isa) {
    use bitlinear::norm::{Kind as NormKind, Norm, Spec};
    let x = random(4096, 3);
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (name, kind) in [("norm layer", NormKind::Layer), ("norm rms", NormKind::Rms)] {
        let norm = Norm::new(&Spec { kind, epsilon: 1e-5, weight: None, bias: None }, 4096).expect("a norm");
        let mut row = x.clone();
        cases.push((name, Box::new(move || (0..200).for_each(|_| norm.apply(isa, &mut row)))));
    }
    let rotation =
        bitlinear::rotation::Rotation::new(&bitlinear::rotation::Spec { block: 128, signs: None }, 4096)
            .expect("a rotation");
    let mut row = x.clone();
    cases.push(("rotation 128", Box::new(move || (0..200).for_each(|_| rotation.apply(isa, &mut row)))));
    for (name, span) in [("quantize largest", Span::Largest), ("quantize mean", Span::TwiceMean)] {
        let format = Format::new(LowBit::Int8, span, false).expect("a format");
        let mut coder = bitlinear::codes::Coder::new(format, 4096, isa).expect("a coder");
        let (row, mut bytes) = (x.clone(), vec![0u8; 4096]);
        cases.push((
            name,
            Box::new(move || (0..200).for_each(|_| drop(coder.encode(&row, None, &mut bytes)))),
        ));
    }
    use bitlinear::epilogue::Epilogue;
    for (name, epilogue) in [("silu", Epilogue::Silu), ("gelu", Epilogue::GeluErf)] {
        let mut row = x.clone();
        cases.push((name, Box::new(move || (0..200).for_each(|_| epilogue.apply(isa, &mut row)))));
    }
    let times = race(&mut cases);
    println!("\nrows of 4096");
    for ((name, _), time) in cases.iter().zip(times) {
        println!("  {name:18} {:6.2} us", time / 200.0 * 1e6);
    }
}

/// Reads all of memory once: sums of whole lines, as one chain of additions would not keep up.
struct Read<'a>(&'a [f32]);

impl Portable for Read<'_> {
    type Output = [u32; 64];
    #[inline(always)]
    fn run(self) -> [u32; 64] {
        self.0.as_chunks::<64>().0.iter().fold([0; 64], |mut sums, line| {
            sums.iter_mut().zip(line).for_each(|(sum, v)| *sum = sum.wrapping_add(v.to_bits()));
            sums
        })
    }
}

fn states(isa: Isa) {
    let count = 32 << 20;
    let (values, mut out) = (random(count, 1), vec![1.0f32; count]);
    let shape = [1, 1, 1, count];
    let serial = Executor::Serial;
    let state = |format, measured| State::new(format, shape, measured, isa).expect("a state");
    let states = [
        ("int8", state(StateFormat::Int8, false)),
        ("int8 measured", state(StateFormat::Int8, true)),
        ("ternary", state(StateFormat::Ternary, false)),
        ("binary", state(StateFormat::Binary, false)),
    ];
    let mut sum = 0u64;
    let mut cases: Vec<Case<'_>> = vec![(
        "read",
        Box::new(|| {
            let words = kernel::compiled(isa, Read(&values));
            sum = sum.wrapping_add(words[0] as u64);
        }),
    )];
    for (name, state) in &states {
        cases.push((name, Box::new(|| state.pack(&values, Update::Replace, &serial).expect("pack"))));
    }
    let times = race(&mut cases);
    drop(cases);
    let read = 4.0 * count as f64 / times[0];
    println!("state of {} MiB of f32; reading {:.1} GB/s ({sum:x})", (4 * count) >> 20, read / 1e9);
    let mut rows = Vec::new();
    for ((name, state), time) in states.iter().zip(&times[1..]) {
        rows.push((format!("{name} pack"), (4 * count + state.bytes()) as f64 / time));
    }
    let mut cases: Vec<Case<'_>> = Vec::new();
    let out = std::cell::RefCell::new(&mut out);
    for (name, state) in &states {
        let out = &out;
        cases.push((
            name,
            Box::new(move || state.unpack(&mut out.borrow_mut(), &serial_of()).expect("unpack")),
        ));
    }
    let times = race(&mut cases);
    drop(cases);
    for ((name, state), time) in states.iter().zip(&times) {
        rows.push((format!("{name} unpack"), (4 * count + state.bytes()) as f64 / time));
    }
    for (name, rate) in rows {
        println!("  {name:22} {:6.1} GB/s  {:.2} of reading", rate / 1e9, rate / read);
    }
}

fn serial_of() -> Executor {
    Executor::Serial
}

fn heads(isa: Isa) {
    let (heap, executor) = (Heap::default(), Executor::Serial);
    let machine = Machine { isa, heap: &heap, executor: &executor, timed: false };
    let [h, time, embd, latent] = [4usize, 128, 256, 8192];
    let w = random(h * embd * latent, 2);
    let x = random(time * embd, 3);
    let z = random(h * time * latent, 4);
    let macs = (h * time * embd * latent) as f64;
    println!("\nprojections of heads, [1, {h}, {time}, {embd}] x [{h}, {embd}, {latent}] and its tail");
    for (format, ty) in
        [(LowBit::Ternary158, Type::Ternary), (LowBit::Int8, Type::Int8), (LowBit::Sign1, Type::Binary)]
    {
        let input = Format::new(LowBit::Int8, Span::Largest, false).expect("a format");
        let projection = |kind| {
            let shape = Shape { kind, heads: h, latent, features: embd };
            Projection::new(shape, format, input, Weights::Masters(&w), &machine).expect("a projection")
        };
        let (lowrank, tail) = (projection(Kind::Lowrank), projection(Kind::Tail));
        // Plain layers of the same multiply-adds and the same shapes: all heads in one matrix.
        let plain = |columns: usize| {
            let rows = Rows(&w, columns);
            let rounded = bitlinear::quantize::round(&rows, ty, 0).expect("a rounded matrix");
            let options = Options { activation: Activation::Int8Row, ..Options::default() };
            Linear::new(&*rounded, &options, isa, &heap).expect("a layer")
        };
        let (wide, deep) = (plain(embd), plain(h * latent));
        let batch = |input_heads, latent| Batch { batch: 1, input_heads, time, latent };
        let xs = random(h * time * embd, 5);
        let (mut y1, mut y2, mut y3, mut y4, mut y5) = (
            vec![0.0f32; h * time * latent],
            vec![0.0f32; h * time * latent],
            vec![0.0f32; time * embd],
            vec![0.0f32; time * embd],
            vec![0.0f32; h * time * latent],
        );
        let none = Around::default();
        let half = &z[..h * time * latent / 2];
        let mut y6 = vec![0.0f32; time * embd];
        let times = race(&mut [
            (
                "plain wide",
                Box::new(|| {
                    let y = MatrixMut::of(&mut y1, h * latent);
                    wide.forward(time, MatrixRef::of(&x, embd), y, None, &heap, &executor).expect("forward");
                }),
            ),
            (
                "shared",
                Box::new(|| {
                    lowrank.forward(&batch(1, latent), &x, &mut y2, &none, &machine).expect("forward");
                }),
            ),
            (
                "per head",
                Box::new(|| {
                    lowrank.forward(&batch(h, latent), &xs, &mut y5, &none, &machine).expect("forward");
                }),
            ),
            (
                "plain deep",
                Box::new(|| {
                    let y = MatrixMut::of(&mut y3, embd);
                    deep.forward(time, MatrixRef::of(&z, h * latent), y, None, &heap, &executor)
                        .expect("forward");
                }),
            ),
            (
                "tail",
                Box::new(|| {
                    tail.forward(&batch(h, latent), &z, &mut y4, &none, &machine).expect("forward");
                }),
            ),
            (
                "tail, half",
                Box::new(|| {
                    tail.forward(&batch(h, latent / 2), half, &mut y6, &none, &machine).expect("forward");
                }),
            ),
        ]);
        let rate = |time: f64| macs / time / 1e9;
        let name = format.name().to_str().unwrap_or("");
        println!(
            "  {name:11} plain wide {:6.1} GMAC/s; x shared {:.2} of it, x of each head {:.2}",
            rate(times[0]),
            times[0] / times[1],
            times[0] / times[2]
        );
        println!(
            "  {:11} plain deep {:6.1} GMAC/s; tail {:.2} of it, half its latent features {:.2}",
            "",
            rate(times[3]),
            times[3] / times[4],
            times[3] / times[5] / 2.0
        );
        let dy = random(h * time * latent, 6);
        let (mut dx, mut dw) = (vec![0.0f32; time * embd], vec![0.0f32; w.len()]);
        let times = race(&mut [(
            "backward",
            Box::new(|| {
                let call = Backward {
                    batch: batch(1, latent),
                    x: Input::Floats(&x),
                    dy: &dy,
                    threshold: None,
                    y: None,
                    dx: Some(&mut dx),
                    dw: Some(&mut dw),
                };
                lowrank.backward(call, &machine).expect("backward");
            }),
        )]);
        println!("  {:11} gradients of x and w {:6.1} GMAC/s of f32", "", 2.0 * rate(times[0]));
    }
}

/// The products of a backward pass, of plain f32, against a forward call on packed f32 weights with as many
/// multiply-adds.
fn gemm(isa: Isa) {
    let (heap, executor) = (Heap::default(), Executor::Serial);
    println!("\nfloat products of a backward pass, against a forward call on f32 weights");
    for [m, n, k] in [[32, 1024, 1024], [128, 8192, 256], [128, 256, 8192], [512, 2560, 2560]] {
        let (g, x, w) = (random(m * n, 8), random(m * k, 9), random(n * k, 10));
        let (mut dw, mut dx, mut y) = (vec![0.0f32; n * k], vec![0.0f32; m * k], vec![0.0f32; m * n]);
        let options = Options { activation: Activation::F32, ..Options::default() };
        let layer = Linear::new(&Rows(&w, k), &options, isa, &heap).expect("a layer");
        let gradient = Floats::new(&g, [m, n]);
        let times = race(&mut [
            (
                "dw",
                Box::new(|| {
                    let dw = MatrixMut::of(&mut dw, k).accumulating(true);
                    let x = Floats::new(&x, [m, k]);
                    product(1.0, gradient.transposed(), x, dw, &heap, &executor).expect("dw");
                }),
            ),
            (
                "dx",
                Box::new(|| {
                    let (w, dx) = (Floats::new(&w, [n, k]), MatrixMut::of(&mut dx, k));
                    product(1.0, gradient, w, dx, &heap, &executor).expect("dx");
                }),
            ),
            (
                "y",
                Box::new(|| {
                    let (x, y) = (MatrixRef::of(&x, k), MatrixMut::of(&mut y, n));
                    layer.forward(m, x, y, None, &heap, &executor).expect("y");
                }),
            ),
        ]);
        let rates = [times[0], times[1], times[2]].map(|time| (m * n * k) as f64 / time / 1e9);
        println!(
            "  {m} rows, {n} x {k}: dw {:5.1} GMAC/s = {:.2} of y's {:5.1}, dx {:5.1} = {:.2}",
            rates[0],
            rates[0] / rates[2],
            rates[2],
            rates[1],
            rates[1] / rates[2]
        );
    }
}

fn updates(isa: Isa) {
    let heap = Heap::default();
    let packer = Packer { isa, heap: &heap, executor: &Executor::Serial };
    let (rows, columns) = (2560, 2560);
    let w = random(rows * columns, 7);
    let bytes = 4.0 * w.len() as f64;
    println!("\nrounding and packing {rows} x {columns} f32 weights (bl_layer_update)");
    for ty in [Type::Ternary, Type::Binary, Type::Int8, Type::Int4, Type::Q8_0, Type::Q4_0, Type::F32] {
        let source = Rows(&w, columns);
        let times = race(&mut [(
            "update",
            Box::new(|| {
                let rounded: Box<dyn bitlinear::layout::Matrix> = match ty {
                    Type::F32 => Box::new(Rows(&w, columns)),
                    ty => bitlinear::quantize::round(&source, ty, 0).expect("a rounded matrix"),
                };
                packer.pack(&*rounded, &|_| {}).expect("packed");
            }),
        )]);
        println!("  {:8} {:6.2} GB/s of f32", ty.name(), bytes / times[0] / 1e9);
    }
}
