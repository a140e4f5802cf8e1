//! What ragged shapes cost: layers with one output or one column less, or one more, than whole panels and groups, beside the
//! whole shape that holds them.
//!
//! `cargo bench --bench shapes [-- FILTER...]`: a filter keeps the layouts whose name contains it. For each layout, the
//! ragged shape that does worst among those of at least 33 x 64 (out x in): its multiply-adds a second over those of the whole
//! shape; and the one that does worst among smaller ones: its time over that of the whole shape. `--all` prints
//! every shape. One thread, weights in the cache; the two are measured in turn and the minimum of many calls counts.
//! `BITLINEAR_BENCH_SECONDS` is the time for a pair (default 0.05), `BITLINEAR_ISA` narrows the instruction set.

#[path = "common/synthetic.rs"]
mod synthetic;

use std::time::Instant;

use bitlinear::cpu::{self, Isa};
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::layout::{Coded, Layout, PANEL, SUPER_BLOCK, Scales};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};

use synthetic::{cases, synthetic};

/// A layer with an x and a y of `m` rows.
struct Call {
    layer: Linear,
    m: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    workspace: Buffer,
    heap: Heap,
}

impl Call {
    fn new(layout: Layout, (n, k): (usize, usize), m: usize, isa: Isa) -> Call {
        let heap = Heap::default();
        let layer =
            Linear::new(&synthetic(layout, n, k, 1), &Options::default(), isa, &heap).expect("a layer");
        let bytes = layer.plan(m, &Executor::Serial).workspace + 64;
        let x = (0..m * k).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let workspace = Buffer::zeroed(bytes, "bench").expect("memory");
        Call { layer, m, x, y: vec![0.0; m * n], workspace, heap }
    }

    /// Seconds of one call, by some calls in a row.
    fn seconds(&mut self, calls: usize) -> f64 {
        let start = Instant::now();
        for _ in 0..calls {
            let x = MatrixRef::of(&self.x, self.layer.in_features());
            let y = MatrixMut::of(&mut self.y, self.layer.out_features());
            let workspace = Some(self.workspace.bytes_mut());
            self.layer.forward(self.m, x, y, workspace, &self.heap, &Executor::Serial).expect("forward");
        }
        start.elapsed().as_secs_f64() / calls as f64
    }
}

/// The shortest times of both, measured in turn.
fn in_turn(budget: f64, a: &mut Call, b: &mut Call) -> (f64, f64) {
    // Enough calls that reading the clock does not count.
    let calls = (20e-6 / a.seconds(3)).ceil() as usize;
    let begin = Instant::now();
    let (mut best_a, mut best_b, mut rounds) = (f64::MAX, f64::MAX, 0);
    while rounds < 5 || begin.elapsed().as_secs_f64() < budget {
        best_a = best_a.min(a.seconds(calls));
        best_b = best_b.min(b.seconds(calls));
        rounds += 1;
    }
    (best_a, best_b)
}

/// What the worst ragged shape comes to, and which it is.
struct Worst {
    value: f64,
    cell: String,
}

fn main() {
    let budget = std::env::var("BITLINEAR_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0.05);
    let (options, filters): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|a| a.starts_with('-'));
    let all = options.iter().any(|o| o == "--all");
    let isa = Isa::from_environment().expect("BITLINEAR_ISA");
    println!("machine: {}, {}", cpu::name(), isa.name());
    println!(
        "{:8} {:44} smaller: time over the whole shape's",
        "layout", "from 33 x 64: efficiency over the whole shape's"
    );
    for case in cases() {
        if !filters.is_empty() && !filters.iter().any(|f| case.name.contains(f.as_str())) {
            continue;
        }
        // Columns that a row needs for whole groups. (Super-blocks are always whole.)
        let (group, ragged_k) = match case.layout {
            Layout::Coded(Coded { scales: Scales::Group { len, .. }, .. }) => (len, true),
            Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }) => (SUPER_BLOCK, false),
            _ => (32, true),
        };
        let mut large = Worst { value: f64::MAX, cell: String::new() };
        let mut small = Worst { value: 0.0, cell: String::new() };
        let mut shapes: Vec<(usize, usize)> = Vec::new();
        for (n, k) in [(1, 1), (15, 31), (31, 63), (47, 95), (63, 127), (127, 255), (511, 1023), (2559, 2559)]
        {
            shapes.extend([(n, k), (n + 2, k + 2)]);
        }
        for (n, k) in shapes {
            let k = if ragged_k { k } else { k.next_multiple_of(group) };
            let whole = (n.next_multiple_of(PANEL), k.next_multiple_of(group));
            for m in [1, 8, 32] {
                let mut ragged_call = Call::new(case.layout, (n, k), m, isa);
                let mut whole_call = Call::new(case.layout, whole, m, isa);
                let (a, b) = in_turn(budget, &mut ragged_call, &mut whole_call);
                let cell = format!("{n} x {k} of {} x {}, m = {m}", whole.0, whole.1);
                let efficiency = (n * k) as f64 / a / ((whole.0 * whole.1) as f64 / b);
                if all {
                    println!(
                        "  {:8} {cell:38} {:9.3} us {:9.3} us  {efficiency:.2}",
                        case.name,
                        a * 1e6,
                        b * 1e6
                    );
                }
                let is_small = n < 33 || k < 64;
                if is_small && a / b > small.value {
                    small = Worst { value: a / b, cell };
                } else if !is_small && efficiency < large.value {
                    large = Worst { value: efficiency, cell };
                }
            }
        }
        let figure = |worst: &Worst| format!("{:.2}  {}", worst.value, worst.cell);
        println!("{:8} {:44} {}", case.name, figure(&large), figure(&small));
    }
}
