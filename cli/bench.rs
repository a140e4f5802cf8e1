//! How fast layers are.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitlinear::cpu::Isa;
use bitlinear::error::{Error, Status};
use bitlinear::exec::Executor;
use bitlinear::layer::{self, Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap, filled};
use bitlinear::model::{Layers, Request};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Answer, Common, Failure, Threads, show};

#[derive(Args)]
#[command(after_help = COLUMNS)]
pub(crate) struct Arguments {
    /// The model (not a packed file: its layers are measured as a program opens them).
    file: PathBuf,
    /// Only layers whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Rows of x in a call.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    rows: Vec<usize>,
    /// What x is multiplied as: `auto`, as a layer's weights suggest, mostly int8.
    #[arg(long, value_enum, default_value_t = Activation::Auto)]
    activation: Activation,
    /// Milliseconds for each measurement.
    #[arg(long, default_value_t = 100)]
    time: u64,
    #[command(flatten)]
    threads: Threads,
}

/// Activations that need nothing but the layer.
#[derive(Clone, Copy, ValueEnum)]
enum Activation {
    Auto,
    F32,
    Int8Row,
    Int8Group,
    Int4,
}

impl From<Activation> for layer::Activation {
    fn from(activation: Activation) -> layer::Activation {
        match activation {
            Activation::Auto => layer::Activation::Auto,
            Activation::F32 => layer::Activation::F32,
            Activation::Int8Row => layer::Activation::Int8Row,
            Activation::Int8Group => layer::Activation::Int8Group,
            Activation::Int4 => layer::Activation::Int4,
        }
    }
}

const COLUMNS: &str = "\
One layer of each shape and type; times are the least of many calls on weights that stay in the
caches they fit in. `rows` are rows of x in a call: 1 is a token, 32 a piece of a prompt. GMAC/s
counts multiply-adds, GB/s how fast the packed weights go by once a call.

  bitlinear bench model.gguf --only ffn_up --rows 1,8,128 --threads 1";

/// Most rows in a call: more would take memory, and tell nothing that these do not.
const ROWS_MAX: usize = 1 << 16;

/// How fast one layer is.
struct Speed {
    layer: String,
    ty: &'static str,
    out_features: usize,
    in_features: usize,
    rows: usize,
    seconds: f64,
    gmacs: f64,
    gigabytes: f64,
    kernel: String,
}

/// Zeros, or that they do not fit: `--rows` asks for as many as one likes.
fn floats(rows: usize, columns: usize, what: &str) -> Result<Vec<f32>, Failure> {
    let len = rows.checked_mul(columns).ok_or_else(|| {
        Failure::Error(format!("--rows {rows}: {what} of {columns} columns does not fit the address space"))
    })?;
    Ok(filled(len, 0.0, what)?)
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    if a.rows.contains(&0) {
        return Err(Failure::Error("--rows: at least 1".to_string()));
    }
    if let Some(rows) = a.rows.iter().find(|&&rows| rows > ROWS_MAX) {
        return Err(Failure::Error(format!("--rows: at most {ROWS_MAX}, not {rows}")));
    }
    let files = show::open(&a.file)?;
    let layers = Layers::of(&files)?;
    let (isa, executor, heap) =
        (Isa::from_environment()?, Executor::with_threads(a.threads.count())?, Heap::default());
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for layer in layers.list().iter().filter(|l| show::name(layers.name(l)).contains(&a.only)) {
        // A layer that cannot be measured does not keep the others from it.
        let left_out = |e: Error| {
            let name = show::shown(&show::name(layers.name(layer)));
            show::note(format_args!("{name}: left out: {}", e.text()));
        };
        let plan = match layers.plan(&files, layer, &Request::default()) {
            Ok(plan) => plan,
            Err(e) => {
                left_out(e);
                continue;
            }
        };
        // Layers of one shape and type are as fast as one another.
        let same = (plan.ty, plan.out_features, plan.in_features);
        if seen.contains(&same) {
            continue;
        }
        seen.push(same);
        let options = Options { activation: a.activation.into(), ..Options::default() };
        let linear = match Linear::new(&*plan.matrix()?, &options, isa, &heap) {
            Ok(linear) => linear,
            // Floats, for instance, meet no integers.
            Err(e) if e.status() == Status::Unsupported => {
                left_out(e);
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        for &m in &a.rows {
            let mut x = floats(m, plan.in_features, "x")?;
            x.iter_mut()
                .zip((0..1009).cycle())
                .for_each(|(x, k)| *x = ((k * 7919) % 1009) as f32 / 500.0 - 1.0);
            let mut y = floats(m, plan.out_features, "y")?;
            let call = linear.plan(m, &executor);
            let mut room = Buffer::zeroed(call.workspace, "workspace")?;
            let (mut best, start) = (f64::INFINITY, Instant::now());
            while start.elapsed() < Duration::from_millis(a.time) || best.is_infinite() {
                let now = Instant::now();
                linear.forward(
                    m,
                    MatrixRef::of(&x, plan.in_features),
                    MatrixMut::of(&mut y, plan.out_features),
                    Some(room.bytes_mut()),
                    &heap,
                    &executor,
                )?;
                best = best.min(now.elapsed().as_secs_f64());
            }
            let macs = m as f64 * plan.out_features as f64 * plan.in_features as f64;
            rows.push(Speed {
                layer: show::name(layers.name(layer)),
                ty: plan.ty.name(),
                out_features: plan.out_features,
                in_features: plan.in_features,
                rows: m,
                seconds: best,
                gmacs: macs / best / 1e9,
                gigabytes: (linear.bytes() + linear.bytes_mapped()) as f64 / best / 1e9,
                kernel: call.kernel.name().to_string(),
            });
        }
    }
    if rows.is_empty() {
        let named = if a.only.is_empty() { String::new() } else { format!(" with `{}` in its name", a.only) };
        return Err(Failure::Error(format!("there is no layer{named} to measure")));
    }
    if common.json {
        let all: Vec<_> = rows
            .iter()
            .map(|s| {
                json!({"layer": s.layer, "type": s.ty, "out_features": s.out_features,
                    "in_features": s.in_features, "rows": s.rows, "seconds": s.seconds, "gmacs": s.gmacs,
                    "weight_gigabytes_per_second": s.gigabytes, "kernel": s.kernel})
            })
            .collect();
        return show::json(&json!({"threads": a.threads.count(), "layers": all}));
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|s| {
            vec![
                s.layer.clone(),
                s.ty.to_string(),
                s.kernel.clone(),
                format!("{} x {}", s.out_features, s.in_features),
                s.rows.to_string(),
                format!("{:.1}", s.seconds * 1e6),
                format!("{:.1}", s.gmacs),
                format!("{:.1}", s.gigabytes),
            ]
        })
        .collect();
    show::table(&["layer", "type", "kernel", "shape", "rows", "us", "GMAC/s", "GB/s"], &rows, 3)
}
