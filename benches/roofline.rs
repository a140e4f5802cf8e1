//! How close the kernels come to the limits of the machine, measured in one run.
//!
//! `cargo bench --bench roofline [-- FILTER...]`: prints a table; a filter keeps the layouts whose name
//! contains it. `BITLINEAR_BENCH_SECONDS` is the time for a cell (default 0.15), `BITLINEAR_ISA` narrows
//! the instruction set, `BITLINEAR_BENCH_SHAPES=2560x2560,...` chooses shapes (out x in).
//!
//! Limits come first: sequential reading of 512 MiB, the CPU's best exact int8 multiply-add (`vpdpbusd`, else
//! `vpmaddubsw` with `vpmaddwd`) and `vfmadd` in registers. Cells of few
//! rows of x (m <= 32) take their weights from DRAM, a ring of more than 4 times the last-level cache;
//! larger m use one matrix. Every figure is the minimum of many repeats, on one thread; machines are
//! noisy, so only ratios inside one run mean something.

use std::time::Instant;

use bitlinear::cpu::{self, Isa};
use bitlinear::error::Result;
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::layout::{Coded, Float, Layout, Matrix, Offset, Row, ScaleType, Scales, Values};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};

/// A matrix of pseudo-random codes, made row by row.
struct Synthetic {
    layout: Layout,
    out_features: usize,
    in_features: usize,
    seed: u64,
}

impl Matrix for Synthetic {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let mut state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64 + 1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        if let Layout::Coded(coded) = self.layout {
            let mask = ((1u16 << coded.bits) - 1) as u8;
            for codes in row.codes.chunks_mut(8) {
                for (c, b) in codes.iter_mut().zip(next().to_le_bytes()) {
                    *c = b & mask;
                }
            }
            // Ternary codes are 0..2.
            if coded.bits == 2 && coded.scales == Scales::Row {
                row.codes.iter_mut().for_each(|c| *c = (*c).min(2));
            }
        }
        row.floats.iter_mut().for_each(|w| *w = (next() >> 48) as i16 as f32 / 65_536.0);
        row.scales.fill(0.007_812_5);
        row.minimums.fill(0.031_25);
        row.zeros.fill(8);
        row.sub_scales.fill(23);
        row.sub_minimums.fill(11);
        Ok(())
    }
}

/// A layout, and the bytes of its stored format for a weight.
struct Case {
    name: &'static str,
    layout: Layout,
    stored: f64,
}

fn cases() -> Vec<Case> {
    let row = |bits, zero| {
        let values = if bits == 1 { Values::Sign } else { Values::Offset(zero) };
        Layout::Coded(Coded { bits, values, scales: Scales::Row, scale_type: ScaleType::F32, bases: 1 })
    };
    let groups = |bits, zero, len, offset| Layout::groups(bits, zero, len, offset);
    let two_level = |bits, zero, len, minimum| {
        Layout::Coded(Coded {
            bits,
            values: Values::Offset(zero),
            scales: Scales::TwoLevel { len, minimum },
            scale_type: ScaleType::F16,
            bases: 1,
        })
    };
    let case = |name, layout, bits: f64| Case { name, layout, stored: bits / 8.0 };
    let q1_0 = Layout::Coded(Coded {
        bits: 1,
        values: Values::Sign,
        scales: Scales::Group { len: 128, offset: Offset::None },
        scale_type: ScaleType::F16,
        bases: 1,
    });
    vec![
        case("ternary", row(2, 1), 2.0),
        case("q2_0", groups(2, 1, 64, Offset::None), 2.25),
        case("pq2_0", groups(2, 1, 128, Offset::None), 2.125),
        case("sign", row(1, 0), 1.0),
        case("q1_0", q1_0, 1.125),
        case("q4_0", groups(4, 8, 32, Offset::None), 4.5),
        case("q4_1", groups(4, 0, 32, Offset::Minimum), 5.0),
        case("q4_k", two_level(4, 0, 32, true), 4.5),
        case("q5_k", two_level(5, 0, 32, true), 5.5),
        case("q6_k", two_level(6, 32, 16, false), 6.5625),
        case("q3_k", two_level(3, 4, 16, false), 3.4375),
        case("q2_k", two_level(2, 0, 16, true), 2.625),
        case("int8", row(8, 128), 8.0),
        case("q8_0", groups(8, 128, 32, Offset::None), 8.5),
        case("f16", Layout::Dense(Float::F16), 16.0),
    ]
}

/// The shortest of many runs of `work`, in seconds.
fn shortest(budget: f64, mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let (mut best, mut runs) = (f64::MAX, 0);
    while runs < 3 || begin.elapsed().as_secs_f64() < budget {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// What the machine can do, on one thread.
struct Limits {
    /// Bytes a second from DRAM.
    read: f64,
    /// int8 multiply-adds a second.
    integer: f64,
    /// By which instructions.
    by: &'static str,
    /// f32 multiply-adds a second.
    float: f64,
}

#[cfg(target_arch = "x86_64")]
#[path = "common/peak.rs"]
mod peak;

#[cfg(target_arch = "x86_64")]
fn limits(budget: f64) -> Option<Limits> {
    const STEPS: usize = 100_000;
    let (read, integer, float) = (peak::read()?, peak::integer()?, peak::float()?);
    let mut memory = Buffer::zeroed(512 << 20, "bench").ok()?;
    memory.bytes_mut().fill(1);
    let rate = |l: peak::Loop| (STEPS * l.macs) as f64 / shortest(budget, || (l.run)(STEPS));
    Some(Limits {
        read: (512 << 20) as f64 / shortest(budget * 10.0, || read(memory.bytes())),
        by: integer.by,
        integer: rate(integer),
        float: rate(float),
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn limits(_: f64) -> Option<Limits> {
    None
}

/// Bytes of a ring of weights: more than 4 times the last-level caches of most machines.
const RING: usize = 192 << 20;

fn main() {
    let variable = |name: &str| std::env::var(name).ok();
    let budget = variable("BITLINEAR_BENCH_SECONDS").and_then(|s| s.parse().ok()).unwrap_or(0.15);
    let shapes = variable("BITLINEAR_BENCH_SHAPES").unwrap_or_else(|| "2560x2560,14336x4096".into());
    let shapes: Vec<(usize, usize)> = shapes
        .split(',')
        .filter_map(|s| s.split_once('x').and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?))))
        .collect();
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let isa = Isa::from_environment().expect("BITLINEAR_ISA");
    println!("machine: {}, {}", cpu::name(), isa.name());
    let limits = limits(budget);
    match &limits {
        Some(l) => println!(
            "limits, one thread: read {:.1} GB/s, int8 {:.0} GMAC/s ({}), f32 {:.0} GMAC/s",
            l.read / 1e9,
            l.integer / 1e9,
            l.by,
            l.float / 1e9
        ),
        None => println!("limits: not measured (this bench knows no loops for this CPU)"),
    }
    println!(
        "m <= 32: weights from DRAM; of read: stored bytes over read bandwidth; of peak: of the multiply-add peak"
    );
    println!(
        "{:8} {:>11} {:>4} {:>10} {:>8} {:>8} {:>8}  kernel",
        "layout", "out x in", "m", "us", "GMAC/s", "of read", "of peak"
    );
    for case in cases() {
        if !filters.is_empty() && !filters.iter().any(|f| case.name.contains(f.as_str())) {
            continue;
        }
        for &(n, k) in &shapes {
            let heap = Heap::default();
            let make = |seed| {
                let matrix = Synthetic { layout: case.layout, out_features: n, in_features: k, seed };
                Linear::new(&matrix, &Options::default(), isa, &heap).expect("a layer")
            };
            let first = make(1);
            let copies = (RING / first.bytes()).max(1);
            let ring: Vec<Linear> =
                std::iter::once(first).chain((1..copies as u64).map(|i| make(i + 1))).collect();
            for m in [1, 2, 4, 8, 16, 32, 128, 512] {
                let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                let mut y = vec![0f32; m * n];
                let used = if m <= 32 { &ring[..] } else { &ring[..1] };
                let workspace = ring[0].plan(m, &Executor::Serial).workspace + 64;
                let mut workspace = Buffer::zeroed(workspace, "bench").expect("memory");
                let seconds = shortest(budget, || {
                    for layer in used {
                        let (x, y) = (MatrixRef::of(&x, k), MatrixMut::of(&mut y, n));
                        layer
                            .forward(m, x, y, Some(workspace.bytes_mut()), &heap, &Executor::Serial)
                            .expect("forward");
                    }
                }) / used.len() as f64;
                let macs = (n * k * m) as f64 / seconds;
                let peak = limits.as_ref().map(|l| match case.layout {
                    Layout::Dense(_) => l.float,
                    _ => l.integer,
                });
                let share = |v: Option<f64>| v.map_or("-".into(), |v| format!("{v:.2}"));
                println!(
                    "{:8} {:>11} {m:>4} {:>10.1} {:>8.1} {:>8} {:>8}  {}",
                    case.name,
                    format!("{n}x{k}"),
                    seconds * 1e6,
                    macs / 1e9,
                    share(limits.as_ref().map(|l| (n * k) as f64 * case.stored / seconds / l.read)),
                    share(peak.map(|p| macs / p)),
                    ring[0].plan(m, &Executor::Serial).kernel.name(),
                );
            }
        }
    }
}
