//! What calls cost beside their products: handing over to threads (first, without any layer), taking x once for
//! several layers, adding to y.
//!
//! `cargo bench --bench threads [-- FILTER...]`: layers as the demo model has them (width 576, 30 blocks, 4-bit groups
//! of 32 with minima), used one block after the other, so that weights come from the cache that they
//! come from in a model. Figures are microseconds for each block. What is compared is measured in turn,
//! round by round; the minimum over all rounds counts, and the median stands behind it in brackets: it
//! tells what a busy machine makes of it. `BITLINEAR_BENCH_SECONDS` is the time for a
//! comparison (default 2), a filter keeps those whose name contains it. Only ratios inside one line mean something on a machine that is shared.

#[path = "common/synthetic.rs"]
mod synthetic;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitlinear::cpu::Isa;
use bitlinear::exec::{self, Executor};
use bitlinear::layer::{self, Linear, Options, Target};
use bitlinear::layout::{Layout, Offset};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};

use synthetic::synthetic;

const WIDTH: usize = 576;
const INNER: usize = 1536;
const BLOCKS: usize = 30;

fn linear(out_features: usize, in_features: usize, seed: usize) -> Linear {
    let layout = Layout::groups(4, 0, 32, Offset::Minimum);
    let matrix = synthetic(layout, out_features, in_features, seed as u64 + 1);
    let isa = Isa::from_environment().expect("BITLINEAR_ISA");
    Linear::new(&matrix, &Options::default(), isa, &Heap::default()).expect("a layer")
}

/// A way to run the blocks, and the times that it took, in microseconds for a block.
struct Way<'a> {
    name: String,
    run: Box<dyn FnMut() + 'a>,
    times: Vec<f64>,
}

impl<'a> Way<'a> {
    fn new(name: impl Into<String>, run: impl FnMut() + 'a) -> Way<'a> {
        Way { name: name.into(), run: Box::new(run), times: Vec::new() }
    }
}

/// Measures the ways in turn; the others are so many times as fast as the first one.
fn compare(what: &str, mut ways: Vec<Way<'_>>) {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-')).peekable();
    if filters.peek().is_some() && !filters.any(|f| what.contains(&f)) {
        return;
    }
    let seconds = std::env::var("BITLINEAR_BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(2.0);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        for way in &mut ways {
            let start = Instant::now();
            (way.run)();
            way.times.push(start.elapsed().as_secs_f64() * 1e6 / BLOCKS as f64);
        }
    }
    ways.iter_mut().for_each(|way| way.times.sort_by(f64::total_cmp));
    let figures = |way: &Way<'_>| (way.times[0], way.times[way.times.len() / 2]);
    let first = figures(&ways[0]);
    print!("{what:32}");
    for (i, way) in ways.iter().enumerate() {
        let (best, median) = figures(way);
        print!("  {}: {best:.2} ({median:.2})", way.name);
        if i > 0 {
            print!(" = {:.2}x ({:.2}x)", first.0 / best, first.1 / median);
        }
    }
    println!();
}

/// How long a call of two pieces takes that wait for each other: handing over to the second thread, and back.
fn hand_over(executor: &Executor, pause: Duration) {
    let once = || {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let met = AtomicUsize::new(0);
        let start = Instant::now();
        let work = |_, _| {
            met.fetch_add(1, Ordering::SeqCst);
            while met.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
            Ok(())
        };
        executor.run(2, &work).expect("a call");
        start.elapsed().as_secs_f64() * 1e6
    };
    let mut times: Vec<f64> = (0..if pause.is_zero() { 20_000 } else { 500 }).map(|_| once()).collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{:32}  {:.2} ({:.2})",
        if pause.is_zero() { "handing over, threads awake" } else { "handing over, threads asleep" },
        times[0],
        times[times.len() / 2]
    );
}

/// Blocks of layers on one x.
struct Blocks {
    layers: Vec<Vec<Linear>>,
    heap: Heap,
}

impl Blocks {
    fn new(shapes: &[(usize, usize)]) -> Blocks {
        let block = |i| shapes.iter().enumerate().map(|(j, &(n, k))| linear(n, k, 16 * i + j)).collect();
        Blocks { layers: (0..BLOCKS).map(block).collect(), heap: Heap::default() }
    }

    /// Calls `work` with each block, x, rows of y for each layer, and a workspace.
    fn each<'a>(
        &'a self,
        m: usize,
        executor: &'a Executor,
        work: impl Fn(&'a [Linear], MatrixRef<'_>, &mut [Vec<f32>], &mut [u8]) + 'a,
    ) -> impl FnMut() + 'a {
        let first = &self.layers[0];
        let k = first[0].in_features();
        let x: Vec<f32> = (0..m * k).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let mut ys: Vec<Vec<f32>> = first.iter().map(|l| vec![0.0; m * l.out_features()]).collect();
        let bytes = first.iter().map(|l| l.plan(m, executor).workspace + 64).sum();
        let mut space = Buffer::zeroed(bytes, "bench").expect("memory");
        move || {
            for block in &self.layers {
                work(block, MatrixRef::of(&x, k), &mut ys, space.bytes_mut());
            }
        }
    }

    /// One call for each layer.
    fn singly<'a>(&'a self, m: usize, executor: &'a Executor) -> impl FnMut() + 'a {
        self.each(m, executor, move |block, x, ys, space| {
            for (layer, y) in block.iter().zip(ys) {
                let y = MatrixMut::of(y, layer.out_features());
                layer.forward(m, x, y, Some(&mut *space), &self.heap, executor).expect("forward");
            }
        })
    }

    /// One call for all layers of a block.
    fn together<'a>(&'a self, m: usize, executor: &'a Executor) -> impl FnMut() + 'a {
        self.each(m, executor, move |block, x, ys, space| {
            let mut ys = ys.iter_mut();
            let targets: Vec<Target<'_>> = block
                .iter()
                .map(|layer| {
                    let y = MatrixMut::of(ys.next().expect("a y"), layer.out_features());
                    Target::new(layer, y)
                })
                .collect();
            layer::forward(&targets, m, x, Some(space), &self.heap, executor).expect("forward");
        })
    }

    /// One call for each layer, which adds to y.
    fn adding<'a>(&'a self, m: usize, executor: &'a Executor) -> impl FnMut() + 'a {
        self.each(m, executor, move |block, x, ys, space| {
            for (layer, y) in block.iter().zip(ys) {
                let y = MatrixMut::of(y, layer.out_features()).accumulating(true);
                layer.forward(m, x, y, Some(&mut *space), &self.heap, executor).expect("forward");
            }
        })
    }
}

fn main() {
    let cores = exec::available();
    let pool = |threads| Executor::with_threads(threads).expect("threads");
    let executors: Vec<(usize, Executor)> = [1, 2].into_iter().map(|n| (n, pool(n))).collect();
    println!("machine: {}, {cores} processors for this process", bitlinear::cpu::name());
    if std::env::args().skip(1).all(|a| a.starts_with('-')) {
        hand_over(&executors[1].1, Duration::ZERO);
        hand_over(&executors[1].1, Duration::from_millis(1));
    }

    let qkv = Blocks::new(&[(WIDTH, WIDTH), (WIDTH / 3, WIDTH), (WIDTH / 3, WIDTH)]);
    let gate_up = Blocks::new(&[(INNER, WIDTH), (INNER, WIDTH)]);
    for (name, blocks) in [("Q, K, V", &qkv), ("gate, up", &gate_up)] {
        for m in [1, 4, 64] {
            for (threads, executor) in &executors {
                compare(
                    &format!("{name}: m {m}, threads {threads}"),
                    vec![
                        Way::new("singly", blocks.singly(m, executor)),
                        Way::new("together", blocks.together(m, executor)),
                    ],
                );
            }
        }
    }

    let down = Blocks::new(&[(WIDTH, INNER)]);
    for m in [1, 64] {
        for (threads, executor) in &executors {
            compare(
                &format!("y = and y +=: m {m}, threads {threads}"),
                vec![Way::new("y =", down.singly(m, executor)), Way::new("y +=", down.adding(m, executor))],
            );
        }
    }

    // From which size on a second thread, which is awake, is worth its hand-over (`Executor::for_product`).
    for (m, n) in [1, 8, 64].into_iter().flat_map(|m| [64, 128, 192, 256, 384, 512, 1024].map(|n| (m, n))) {
        let layers = Blocks::new(&[(n, WIDTH)]);
        let ways = executors.iter().map(|(n, pool)| Way::new(format!("{n} threads"), layers.singly(m, pool)));
        compare(&format!("crossover: m {m}, {} kmacs", m * n * WIDTH / 1000), ways.collect());
    }

    let sizes = [1, cores, 2 * cores, 4 * cores];
    let pools: Vec<(usize, Executor)> = sizes.into_iter().map(|n| (n, pool(n))).collect();
    for (name, blocks) in [("Q, K, V", &qkv), ("gate, up", &gate_up)] {
        for m in [1, 64] {
            let ways =
                pools.iter().map(|(n, pool)| Way::new(format!("{n} threads"), blocks.together(m, pool)));
            compare(&format!("pools: {name}, m {m}"), ways.collect());
        }
    }
}
