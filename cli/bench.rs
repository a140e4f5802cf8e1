//! How fast layers are.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};
use bitlinear::model::{Layers, Request};
use clap::Args;
use serde_json::json;

use super::{Answer, Common, Failure, show};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The model (not a packed file: its layers are measured as a program opens them).
    file: PathBuf,
    /// Only layers whose name holds this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Rows of x in a call.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    rows: Vec<usize>,
    /// Milliseconds for each measurement.
    #[arg(long, default_value_t = 100)]
    time: u64,
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    let files = show::open(&a.file)?;
    let layers = Layers::of(&files)?;
    let (isa, executor, heap) =
        (Isa::from_environment()?, Executor::with_threads(common.threads)?, Heap::default());
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for layer in layers.list().iter().filter(|l| show::name(layers.name(l)).contains(&a.only)) {
        let plan = layers.plan(&files, layer, &Request::default())?;
        // Layers of one shape and type are as fast as one another.
        let same = (plan.ty, plan.out_features, plan.in_features);
        if seen.contains(&same) {
            continue;
        }
        seen.push(same);
        let options = Options::default();
        let linear = Linear::new(&*plan.matrix()?, &options, isa, &heap, &mut |_| {})?;
        for &m in &a.rows {
            if m == 0 {
                return Err(Failure::Error("--rows: at least 1".to_string()));
            }
            let x: Vec<f32> =
                (0..m * plan.in_features).map(|k| ((k * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
            let mut y = vec![0.0f32; m * plan.out_features];
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
            rows.push((
                show::name(layers.name(layer)),
                plan.ty.name(),
                plan.out_features,
                plan.in_features,
                m,
                best,
                macs,
            ));
        }
    }
    if rows.is_empty() {
        return Err(Failure::Error("no layer has such a name".to_string()));
    }
    if common.json {
        let all: Vec<_> = rows
            .iter()
            .map(|(name, ty, o, i, m, t, macs)| {
                json!({"layer": name, "type": ty, "out_features": o, "in_features": i, "rows": m,
                    "seconds": t, "gmacs": macs / t / 1e9})
            })
            .collect();
        show::json(&json!({"threads": common.threads, "layers": all}));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, ty, o, i, m, t, macs)| {
            vec![
                name.clone(),
                ty.to_string(),
                format!("{o} x {i}"),
                m.to_string(),
                format!("{:.1}", t * 1e6),
                format!("{:.1}", macs / t / 1e9),
            ]
        })
        .collect();
    show::table(&["layer", "type", "shape", "rows", "us", "GMAC/s"], &rows, 2);
    Ok(())
}
