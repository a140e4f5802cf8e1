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

#[path = "common/synthetic.rs"]
mod synthetic;

use std::time::Instant;

use bitlinear::cpu::{self, Isa};
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::layout::Layout;
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};

use synthetic::{cases, synthetic};

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
                Linear::new(&synthetic(case.layout, n, k, seed), &Options::default(), isa, &heap)
                    .expect("a layer")
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
