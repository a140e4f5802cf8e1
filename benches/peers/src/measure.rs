//! The cells: everybody in turn, round by round, the shortest of all calls.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::contestant::{Contestant, Windows};
use crate::store::{self, Cell, Run, Store};
use crate::weights::{Format, PATTERN, Random, Weights, formats};
use crate::{candle, ggml, limits, onednn, onnx, ours};

#[derive(Args, Clone)]
pub struct Arguments {
    /// The JSON file. Cells that it has are not measured again: an interrupted run goes on where it was.
    #[arg(long, default_value = "target/peers.json")]
    pub out: PathBuf,
    /// Measure cells that the file has, and put the new figures in their place.
    #[arg(long)]
    pub again: bool,
    /// Two shapes; 1, 8, 32 and 128 rows; no cached weights where DRAM is measured.
    #[arg(long)]
    pub quick: bool,
    /// Only these formats ("ternary,q4_k").
    #[arg(long, value_delimiter = ',')]
    pub formats: Vec<String>,
    /// Only these shapes, out x in ("2560x2560").
    #[arg(long, value_delimiter = ',')]
    pub shapes: Vec<String>,
    /// Only so many rows of x.
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<usize>,
    /// Only these numbers of threads. (One process measures one; this one starts the others.)
    #[arg(long, value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Only peers whose name holds one of these texts; "none": bitlinear alone.
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// "dram" (a ring of weights, up to 32 rows), "cache" (one matrix), or both.
    #[arg(long, value_delimiter = ',')]
    pub memory: Vec<String>,
    /// Seconds for each contestant in each cell.
    #[arg(long, default_value_t = 0.15)]
    pub seconds: f64,
    /// End after so many seconds: what is left is measured by the next run.
    #[arg(long)]
    pub limit: Option<f64>,
    /// MiB of the ring; without it 5 times the last-level cache.
    #[arg(long)]
    pub ring: Option<usize>,
}

const SHAPES: [(usize, usize); 5] = [(2560, 2560), (6912, 2560), (2560, 6912), (4096, 4096), (14336, 4096)];
const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, 128, 512];
/// Weights come from DRAM up to so many rows of x.
const MOST_ROWS_FROM_DRAM: usize = 32;

/// Rows of x, and where the weights come from.
type Call = (usize, bool);

impl Arguments {
    fn shapes(&self) -> Vec<(usize, usize)> {
        if !self.shapes.is_empty() {
            let parse = |s: &String| {
                let (n, k) = s.split_once('x').unwrap_or_else(|| panic!("{s}: out x in, as 2560x2560"));
                (n.parse().expect("a number"), k.parse().expect("a number"))
            };
            return self.shapes.iter().map(parse).collect();
        }
        if self.quick { vec![SHAPES[0], SHAPES[4]] } else { SHAPES.to_vec() }
    }

    fn calls(&self) -> Vec<Call> {
        let rows = match (self.rows.is_empty(), self.quick) {
            (false, _) => self.rows.clone(),
            (true, true) => vec![1, 8, 32, 128],
            (true, false) => ROWS.to_vec(),
        };
        let wants = |what: &str| self.memory.is_empty() || self.memory.iter().any(|m| m == what);
        let mut calls = Vec::new();
        for m in rows {
            if m <= MOST_ROWS_FROM_DRAM && wants("dram") {
                calls.push((m, true));
            }
            if wants("cache") && (m > MOST_ROWS_FROM_DRAM || !self.quick || !self.memory.is_empty()) {
                calls.push((m, false));
            }
        }
        calls
    }

    fn formats(&self) -> Vec<Format> {
        let all = formats();
        for name in &self.formats {
            assert!(all.iter().any(|f| f.name == name), "no format is called {name}");
        }
        let wanted = |f: &Format| self.formats.is_empty() || self.formats.iter().any(|n| n == f.name);
        all.into_iter().filter(wanted).collect()
    }

    fn wants(&self, name: &str) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|p| name.contains(p.as_str()))
    }
}

/// Everybody who has the format.
fn contestants(a: &Arguments, weights: &Weights, copies: usize, threads: usize) -> Vec<Box<dyn Contestant>> {
    let format = &weights.format;
    let mut all: Vec<Box<dyn Contestant>> = vec![Box::new(ours::Ours::new(weights, copies, threads))];
    for &ty in format.ggml {
        for repacked in [false, true] {
            if a.wants("ggml")
                && let Some(ggml) = ggml::Ggml::new(weights, ty, copies, threads, repacked)
            {
                all.push(Box::new(ggml));
            }
        }
    }
    if let Some(ty) = format.candle
        && a.wants("candle")
    {
        all.push(Box::new(candle::Candle::new(weights, ty, copies)));
    }
    if let Some(operator) = format.onnx
        && a.wants("onnxruntime")
        && let Some(onnx) = onnx::Onnx::new(weights, operator, copies, threads)
    {
        all.push(Box::new(onnx));
    }
    for &kind in format.onednn {
        if a.wants("onednn")
            && let Some(one) = onednn::open(weights, kind, copies, threads)
        {
            all.push(one);
        }
    }
    all
}

/// Windows of neighbouring matrices, long enough that a clock can tell them.
fn windows(copies: usize, macs: usize, dram: bool) -> Windows {
    let length = (60_000_000 / macs.max(1)).clamp(1, 8).min(if dram { copies } else { 8 });
    if !dram {
        return vec![vec![0; length]];
    }
    (0..copies / length).map(|w| (w * length..(w + 1) * length).collect()).collect()
}

/// Root mean square of the errors over that of y, on a sample of y.
fn error(contestant: &mut dyn Contestant, x: &[f32], m: usize, n: usize) -> f64 {
    let k = x.len() / m;
    let y = contestant.output();
    assert_eq!(y.len(), m * n, "{}", contestant.name());
    let reference = contestant.reference();
    let (mut errors, mut squares) = (0.0, 0.0);
    for i in [0, m / 2, m - 1] {
        for j in (0..n).step_by((n / 50).max(1)).chain([n - 1]) {
            let w = &reference[j % PATTERN * k..][..k];
            let exact: f64 = x[i * k..][..k].iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            errors += (exact - f64::from(y[i * n + j])).powi(2);
            squares += exact * exact;
        }
    }
    (errors / squares).sqrt()
}

/// How long everybody is quiet before a turn, with more than one thread.
const SETTLE: Duration = Duration::from_millis(30);

/// Measures one cell. The figures are seconds for one matrix.
fn cell(
    contestants: &mut [Box<dyn Contestant>],
    windows: &Windows,
    seconds: f64,
    threads: usize,
) -> Vec<(f64, f64, usize)> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); contestants.len()];
    let mut spent = vec![0.0; contestants.len()];
    let mut next = vec![0; contestants.len()];
    // One uncounted call: pages are touched, buffers are made.
    contestants.iter_mut().for_each(|c| c.run(0));
    while let Some(round) = (0..contestants.len()).map(|i| times[i].len()).min()
        && (round < 3 || spent.iter().any(|&s| s < seconds))
    {
        for (i, contestant) in contestants.iter_mut().enumerate() {
            if times[i].len() >= 3 && spent[i] >= seconds {
                continue;
            }
            if threads > 1 {
                // The threads of the one before (OpenMP's, onnxruntime's) spin for milliseconds after their last call.
                std::thread::sleep(SETTLE);
            }
            let turn = Instant::now();
            while turn.elapsed().as_secs_f64() < seconds / 5.0 {
                let window = next[i] % windows.len();
                next[i] += 1;
                let start = Instant::now();
                contestant.run(window);
                let time = start.elapsed().as_secs_f64();
                times[i].push(time / windows[window].len() as f64);
                spent[i] += time;
            }
        }
    }
    times
        .iter_mut()
        .map(|t| {
            t.sort_by(f64::total_cmp);
            (t[0], t[t.len() / 2], t.len())
        })
        .collect()
}

/// What was typed, without an option and its value.
fn typed_without(option: &str) -> Vec<String> {
    let mut words = std::env::args().skip(1);
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == option {
            words.next();
        } else if !word.strip_prefix(option).is_some_and(|rest| rest.starts_with('=')) {
            kept.push(word);
        }
    }
    kept
}

/// All cells for one number of threads.
fn one_process(a: &Arguments, threads: usize) {
    ggml::be_silent();
    let begin = Instant::now();
    let over = || a.limit.is_some_and(|limit| begin.elapsed().as_secs_f64() > limit);
    let mut store = Store::open(&a.out);
    let machine = store::machine();
    if store.cells.is_empty() {
        store.machine = machine;
    } else {
        assert!(store.machine == machine, "{} is of another machine", a.out.display());
    }
    let Some(limits) = limits::measure(threads) else {
        eprintln!("peers: the limits of this CPU cannot be measured");
        return;
    };
    println!(
        "{threads} thread(s): read {:.1} GB/s, int8 {:.0} GMAC/s ({}; {:.0} with 16-bit sums), f32 {:.0} GMAC/s",
        limits.read / 1e9,
        limits.integer / 1e9,
        limits.integer_by,
        limits.integer_16 / 1e9,
        limits.float / 1e9
    );
    let mut versions = vec![
        ("bitlinear".to_string(), ours::version()),
        ("llama-cpp-sys-2 (ggml)".to_string(), format!("0.1.161 (ggml {})", ggml::version())),
        ("candle-core".to_string(), "0.11.1".to_string()),
    ];
    versions.extend(onnx::version().map(|v| ("onnxruntime".to_string(), v)));
    versions.extend(onednn::version().map(|v| ("oneDNN".to_string(), v)));
    // The name of the file is the measurer's own affair.
    let command = typed_without("--out").join(" ");
    let run = Run { at: store::now(), command, versions, limits };
    store.runs.push(run);
    let run = store.runs.len() - 1;

    let ring = a.ring.map_or(5 * store.machine.last_level_cache as usize, |m| m << 20).max(64 << 20);
    let (formats, shapes, calls) = (a.formats(), a.shapes(), a.calls());
    let bar = ProgressBar::new((formats.len() * shapes.len() * calls.len()) as u64);
    let style = "{bar:30} {pos}/{len} {elapsed} (left: {eta}) {msg}";
    bar.set_style(ProgressStyle::with_template(style).expect("a template"));
    for format in &formats {
        for &(n, k) in &shapes {
            let key = |c: &Cell, m: usize, dram: bool| {
                c.format == format.name
                    && (c.out_features, c.in_features, c.m, c.threads, c.dram) == (n, k, m, threads, dram)
            };
            let wanted: Vec<Call> = calls
                .iter()
                .copied()
                .filter(|&(m, dram)| a.again || !store.cells.iter().any(|c| key(c, m, dram)))
                .collect();
            bar.inc((calls.len() - wanted.len()) as u64);
            if wanted.is_empty() || over() {
                continue;
            }
            bar.set_message(format!("{} {n}x{k}: loading", format.name));
            let weights = Weights::new(*format, n, k);
            let copies = if wanted.iter().any(|c| c.1) { weights.copies(ring) } else { 1 };
            let mut contestants = contestants(a, &weights, copies, threads);
            for (m, dram) in wanted {
                if over() {
                    break;
                }
                bar.set_message(format!("{} {n}x{k} m {m}", format.name));
                let mut random = Random::new(m as u64);
                let x: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
                let windows = windows(copies, n * k * m, dram);
                contestants.iter_mut().for_each(|c| c.prepare(m, &x, &windows));
                let figures = cell(&mut contestants, &windows, a.seconds, threads);
                store.cells.retain(|c| !key(c, m, dram));
                let errors: Vec<f64> = contestants.iter_mut().map(|c| error(c.as_mut(), &x, m, n)).collect();
                // `<`: a NaN is wrong too.
                if !contestants.iter().zip(&errors).all(|(c, &e)| e < c.tolerance()) {
                    let names: Vec<_> = contestants.iter().map(|c| c.name()).zip(&errors).collect();
                    panic!("{} {n}x{k} m {m}: errors {names:?}", format.name);
                }
                for ((contestant, figures), error) in contestants.iter().zip(figures).zip(errors) {
                    let (seconds, median, calls) = figures;
                    store.cells.push(Cell {
                        format: format.name.into(),
                        out_features: n,
                        in_features: k,
                        m,
                        threads,
                        dram,
                        contestant: contestant.name().to_string(),
                        seconds,
                        median,
                        calls,
                        error,
                        kernel: contestant.kernel(),
                        run,
                    });
                }
                bar.inc(1);
            }
            if let Some(read) = limits::read(threads, 4) {
                let limit = &mut store.runs[run].limits.read;
                *limit = limit.max(read);
            }
            store.save(&a.out);
        }
    }
    if over() {
        bar.abandon_with_message("the limit of time is reached; the next run goes on here");
    } else {
        bar.finish_with_message("done");
    }
}

/// Measures. Some peers fix their number of threads once for a process, so that each number has its own.
pub fn run(a: &Arguments) {
    let all = store::processors();
    let threads = match (a.threads.is_empty(), all) {
        (false, _) => a.threads.clone(),
        (true, 1) => vec![1],
        (true, _) => vec![1, all],
    };
    const CHILD: &str = "PEERS_THREADS";
    if let [threads] = threads[..]
        && std::env::var(CHILD).is_ok()
    {
        return one_process(a, threads);
    }
    for threads in threads {
        let me = std::env::current_exe().expect("a path");
        // clap takes the last one where an option stands twice only if told so: this one is set apart.
        let status = std::process::Command::new(me)
            .args(typed_without("--threads"))
            .arg(format!("--threads={threads}"))
            .env(CHILD, threads.to_string())
            .env("CANDLE_NUM_THREADS", threads.to_string())
            .env("RAYON_NUM_THREADS", threads.to_string())
            .env("OMP_NUM_THREADS", threads.to_string())
            .status()
            .expect("a process");
        if !status.success() {
            std::process::exit(1);
        }
    }
}
