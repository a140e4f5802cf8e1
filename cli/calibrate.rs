//! What is known of layers' inputs.

use std::path::PathBuf;

use bitlinear::codec::Floats;
use bitlinear::cpu::Isa;
use bitlinear::quantize::{Calibration, MOMENTS_BLOCK};
use bitlinear::types::Type;
use clap::Args;
use serde_json::json;

use super::stop::Stop;
use super::{Answer, Common, Failure, show};

const INPUTS: &str = "\
The inputs come from the program that runs the model: it writes, for each layer, the rows of x
that the layer gets (after its norm), as a tensor [rows, in_features] of the layer's name. Take
text like that which the model will see: docs/quantize.md has what other text costs. A program
that links the library calls bl_calibrate instead.

  bitlinear calibrate first.safetensors second.safetensors -o known.cal";

#[derive(Args)]
#[command(after_help = INPUTS)]
pub(crate) struct Arguments {
    /// safetensors or GGUF files of float tensors, named as the layers are.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The file to write.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Products of columns in blocks of so many; 1: squares alone.
    #[arg(long, default_value_t = MOMENTS_BLOCK)]
    block: usize,
    /// Most rows for a layer.
    #[arg(long, default_value_t = u64::MAX, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
    /// Most MiB of all sums.
    #[arg(long, default_value_t = 4096)]
    memory: usize,
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    let isa = Isa::from_environment()?;
    let stop = Stop::listen()?;
    let mut calibration = Calibration::new(a.block, a.samples, a.memory.saturating_mul(1 << 20));
    for path in &a.inputs {
        let files = show::open(path)?;
        for tensor in &files.directory.tensors {
            let name = show::name(files.directory.name(tensor));
            let [rows, columns] = match tensor.shape[..tensor.dims as usize] {
                [rows, columns] => [rows as usize, columns as usize],
                _ => {
                    return Err(Failure::Error(format!(
                        "{}: [rows, in_features] expected",
                        show::shown(&name)
                    )));
                }
            };
            if !matches!(tensor.ty, Type::F32 | Type::F16 | Type::Bf16) {
                let (name, ty) = (show::shown(&name), tensor.ty.name());
                return Err(Failure::Error(format!("{name}: rows of x are f32, f16 or bf16, not {ty}")));
            }
            let values = Floats::new(tensor.ty, files.bytes(tensor))?;
            let read = |r: usize, out: &mut [f32]| {
                out.iter_mut().enumerate().for_each(|(k, v)| *v = values.get(r * columns + k));
            };
            calibration.add(isa, &name, columns, rows, &read)?;
            if let Some(stopped) = stop.asked() {
                return Err(stopped);
            }
        }
    }
    calibration.save(isa, &a.output)?;
    let known: Vec<_> = calibration
        .entries()
        .map(|(name, m)| json!({"layer": name, "in_features": m.columns(), "samples": m.count(), "block": m.block()}))
        .collect();
    if common.json {
        show::json(&json!({"file": a.output.display().to_string(), "layers": known}))
    } else {
        show::line(format_args!("{}: {} layers", a.output.display(), known.len()))
    }
}
