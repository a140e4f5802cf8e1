//! burn_dragon's artifacts: the arrays `decoder_x`, `decoder_y` and `encoder` of a source, whichever it has and the
//! mask chooses, as packed bytes with one scale each in a JSON text (`container::artifact` draws it). Other tensors
//! have no place there and are left out.
//!
//! The rules are fixed, and of a whole array: signs and the mean magnitude; ternary with 0 below the mean magnitude;
//! int8 of twice the mean magnitude, larger weights cut.

use std::io::{self, Write};
use std::path::Path;

use super::choose::{self, Target};
use super::{Job, MEMORY, Progress, Report, is_float, product, shape};
use crate::codec::{Floats, burn_dragon};
use crate::container::{Temporary, Tensor};
use crate::error::{Result, fail};
use crate::memory::filled;
use crate::quantize::Kind as Rule;
use crate::types::Type;

/// The arrays of an artifact, in the order of the text.
const NAMES: [&str; 3] = ["decoder_x", "decoder_y", "encoder"];

impl Job<'_> {
    /// Writes the text; each array is held whole, as floats and as bytes.
    pub(super) fn artifact(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<Report> {
        let arrays = self.arrays()?;
        let bytes_read = self.files.directory.tensors.iter().map(|t| t.bytes).sum();
        let mut report = Report { bytes_read, ..Report::default() };
        let chosen = || arrays.iter().flatten();
        let total = chosen().count() as u64;
        let weights_total = chosen().map(|(tensor, _)| product(shape(tensor))).sum();
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        let (file, mut temporary) = Temporary::create(path).map_err(io)?;
        let mut out = io::BufWriter::new(file);
        for (n, (name, array)) in NAMES.iter().zip(&arrays).enumerate() {
            let start = if n == 0 { "{" } else { "," };
            write!(out, "{start}\"{name}\":").map_err(io)?;
            let Some((tensor, ty)) = array else {
                write!(out, "null").map_err(io)?;
                continue;
            };
            let (done, weights_done) = (report.quantized, report.weights);
            if !progress(&Progress { name, done, total, weights_done, weights_total }) {
                return Err(fail!(Cancelled, "stopped before {name}"));
            }
            let (packed, scale) = self.encoded(tensor, *ty).map_err(|e| e.within(format_args!("{name}")))?;
            write_array(&mut out, shape(tensor), *ty, &packed, scale).map_err(io)?;
            report.quantized += 1;
            report.weights += product(shape(tensor));
        }
        writeln!(out, "}}").map_err(io)?;
        if !progress(&Progress { name: "", done: total, total, weights_done: report.weights, weights_total })
        {
            return Err(fail!(Cancelled, "stopped before the file had its name"));
        }
        let file = out.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        report.bytes_written = file.metadata().map_err(io)?.len();
        drop(file); // some systems rename only files that nobody has open
        temporary.rename().map_err(io)?;
        Ok(report)
    }

    /// Which arrays there are, and what they become.
    fn arrays(&self) -> Result<[Option<(&Tensor, Type)>; 3]> {
        let (options, directory) = (self.options, &self.files.directory);
        if options.rotation.is_some() {
            return Err(fail!(Unsupported, "artifacts have no place for a rotation"));
        }
        if options.search || options.calibration.is_some() {
            return Err(fail!(Unsupported, "artifacts have fixed rules and no others: ask for these"));
        }
        let largest = directory.tensors.iter().map(|t| t.bytes).max().unwrap_or(0);
        let bound = match options.memory {
            0 => largest.saturating_mul(2).saturating_add(MEMORY),
            bound => bound,
        };
        let mut arrays = [None; 3];
        for (name, array) in NAMES.iter().zip(&mut arrays) {
            let Some(tensor) = directory.tensor(name.as_bytes()) else { continue };
            let special = options.types.iter().find(|(pattern, _)| name.contains(pattern));
            let target = match special {
                Some((_, target)) => target,
                None if choose::chosen(options.layers, options.patterns, name) => &options.target,
                None => continue,
            };
            let ty = encoding(target).map_err(|e| e.within(format_args!("{name}")))?;
            if !is_float(tensor.ty) {
                return Err(fail!(InvalidArgument, "{name}: these weights are {} already", tensor.ty.name()));
            }
            let need = product(shape(tensor)).saturating_mul(5);
            if need > bound {
                return Err(fail!(OutOfMemory, "{name}: {need} bytes are needed and {bound} allowed"));
            }
            *array = Some((tensor, ty));
        }
        if arrays.iter().all(Option::is_none) {
            return Err(fail!(
                NotFound,
                "an artifact holds the arrays decoder_x, decoder_y and encoder: none of them is chosen here"
            ));
        }
        Ok(arrays)
    }

    fn encoded(&self, tensor: &Tensor, ty: Type) -> Result<(Vec<u8>, f32)> {
        let count = product(shape(tensor)) as usize;
        let values = Floats::new(tensor.ty, self.files.bytes(tensor))?;
        let mut weights = filled(count, 0.0f32, "weights of an artifact")?;
        weights.iter_mut().enumerate().for_each(|(e, w)| *w = values.get(e));
        let mut packed = filled(burn_dragon::packed_bytes(ty, count)?, 0u8, "bytes of an artifact")?;
        let scale = burn_dragon::encode(ty, &weights, &mut packed)?;
        Ok((packed, scale))
    }
}

/// The encoding of a target; refused where it is none, or by another rule than the format's.
fn encoding(target: &Target) -> Result<Type> {
    let own = match target.ty {
        Type::Binary => Rule::Tensor,
        Type::Ternary2 => Rule::Threshold,
        Type::Int8 => Rule::MeanRange,
        other => {
            return Err(fail!(
                Unsupported,
                "{} is no encoding of an artifact: binary, ternary2, int8",
                other.name()
            ));
        }
    };
    if target.rule != own && target.rule != Rule::Usual || target.group != 0 || target.bases > 1 {
        return Err(fail!(Unsupported, "artifacts have one rule for {}, of the array", target.ty.name()));
    }
    Ok(target.ty)
}

fn write_array(out: &mut impl Write, shape: &[u64], ty: Type, packed: &[u8], scale: f32) -> io::Result<()> {
    let encoding = match ty {
        Type::Binary => "binary1",
        Type::Ternary2 => "ternary2",
        _ => "int8",
    };
    write!(out, "{{\"encoding\":\"{encoding}\",\"logical_shape\":{shape:?},\"scale\":{scale},\"packed\":[")?;
    for (n, byte) in packed.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        write!(out, "{comma}{byte}")?;
    }
    write!(out, "],\"len\":{}}}", product(shape))
}
