//! A model file from another: some layers quantised, the rest as it was.
//!
//! Layers go through one after another: rows are read from the mapped source, rounded in bands of panels
//! by all threads, and written to their place in the new file. Beside what is mapped no more is held
//! than a band, the room of the threads, and what calibration needs for one layer; a layer that needs
//! more than the bound is refused by name before anything is written.
//!
//! The new file appears under its name when it is whole. What the source says in metadata is kept, but
//! for what the quantisation changes.

mod artifact;
mod choose;
mod header;
mod pack;
mod source;
mod steps;
mod store;
mod stream;

use std::path::Path;

pub use choose::{Layers, Target, is_expert, is_protected};
pub use source::{Plain, signs};

use crate::container::{Files, Kind, Quoted, Tensor};
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::model::{self, Plan};
use crate::quantize::{Calibration, Method, Moments, PANEL_ROWS};
use crate::rotation::Rotation;
use crate::save::check_texts;
use crate::types::Type;
use store::Store;

/// Room beyond twice the largest tensor, where no bound is given.
const MEMORY: u64 = 64 << 20;
/// Bytes of rounded rows that wait to be written, at most; a panel for each thread at least.
const BAND: usize = 4 << 20;

/// What is to be done.
pub struct Options<'a> {
    /// The kind of file to write.
    pub kind: Kind,
    /// What chosen layers become.
    pub target: Target,
    /// What they become where their rows do not fit the target's blocks; none: that is an error.
    pub fallback: Option<Type>,
    /// Which layers.
    pub layers: Layers,
    /// Texts that names of layers hold, for [`Layers::Patterns`].
    pub patterns: &'a [&'a str],
    /// Layers whose name holds a text and what they become, whether they are chosen or not; the first
    /// that fits counts.
    pub types: &'a [(&'a str, Target)],
    /// What floats of two dimensions and more become that are not quantised; none: they stay.
    pub rest: Option<Type>,
    /// Scales of least error instead of the fixed rules'.
    pub search: bool,
    /// What is known of the layers' inputs.
    pub calibration: Option<&'a Calibration>,
    /// Errors are made up for by later columns.
    pub compensate: bool,
    /// See [`Method`].
    pub damping: f32,
    /// Block and seed of a rotation that chosen layers are folded with.
    pub rotation: Option<(usize, u64)>,
    /// Layers that are packed are dequantised and quantised again.
    pub requantize: bool,
    /// Texts for the metadata.
    pub texts: &'a [(&'a str, &'a str)],
    /// Most bytes beside what is mapped; 0: twice the largest tensor and 64 MiB.
    pub memory: u64,
}

/// How far it is.
pub struct Progress<'a> {
    /// The tensor or layer that comes next; empty at the end.
    pub name: &'a str,
    /// How many were done, and how many there are.
    pub done: u64,
    /// See `done`.
    pub total: u64,
    /// Weights of the tensors that were done, and of all.
    pub weights_done: u64,
    /// See `weights_done`.
    pub weights_total: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Layers that were quantised.
    pub quantized: u64,
    /// Of these, those that became the fallback.
    pub fallback: u64,
    /// Of these, those whose input calibration knew.
    pub calibrated: u64,
    /// Tensors that were kept or converted.
    pub kept: u64,
    /// Weights that were quantised.
    pub weights: u64,
    /// Bytes of all tensors of the source.
    pub bytes_read: u64,
    /// Bytes of the new file.
    pub bytes_written: u64,
}

/// One thing to do, in the order of the source.
struct Step<'a> {
    name: String,
    weights: u64,
    what: What<'a>,
}

#[allow(clippy::large_enum_variant)] // a few hundred at most, and most of them are layers
enum What<'a> {
    /// The bytes of a tensor as they are.
    Copy { tensor: &'a Tensor, at: u64 },
    /// Floats of another precision.
    Convert { tensor: &'a Tensor, ty: Type, at: u64 },
    /// A layer. `kept`: in its own type, as it is.
    Round {
        plan: Plan<'a>,
        target: Target,
        kept: bool,
        rotation: Option<Rotation>,
        store: Option<Store>,
        at: Vec<(u64, u64)>,
    },
}

/// Writes the file. `progress` is asked before each step, and once at the end; `false` stops it, and
/// leaves no file.
pub fn export(
    files: &Files,
    layers: &model::Layers,
    path: &Path,
    options: &Options<'_>,
    isa: Isa,
    executor: &Executor,
    progress: &mut dyn FnMut(&Progress<'_>) -> bool,
) -> Result<Report> {
    let job = Job { files, layers, options, isa, executor };
    choose::check(options.layers, options.patterns)?;
    if files.directory.kind == Kind::Packed {
        return Err(fail!(Unsupported, "a file of packed panels: quantise what it was made of"));
    }
    if options.compensate && options.calibration.is_none() {
        return Err(fail!(InvalidArgument, "making up for errors needs calibration"));
    }
    if options.kind == Kind::Artifact {
        return job.artifact(path, progress);
    }
    check_texts(options.texts, header::own_keys(options.kind))?;
    let (steps, mut report) = job.steps()?;
    header::check_names(options.kind, &steps)?;
    match options.kind {
        Kind::Packed => job.pack(path, steps, &mut report, progress)?,
        _ => job.stream(path, steps, &mut report, progress)?,
    }
    Ok(report)
}

struct Job<'a> {
    files: &'a Files,
    layers: &'a model::Layers,
    options: &'a Options<'a>,
    isa: Isa,
    executor: &'a Executor,
}

fn shape(tensor: &Tensor) -> &[u64] {
    &tensor.shape[..tensor.dims as usize]
}

fn product(shape: &[u64]) -> u64 {
    shape.iter().product() // of a tensor inside a file
}

fn text(bytes: &[u8]) -> Result<String> {
    let name =
        str::from_utf8(bytes).map_err(|_| fail!(Unsupported, "the name {} is no UTF-8", Quoted(bytes)))?;
    let mut text = String::new();
    text.try_reserve(name.len() + 16).map_err(|_| fail!(OutOfMemory, "a name"))?;
    text.push_str(name);
    Ok(text)
}

impl Job<'_> {
    /// The moments of a layer's input, as its weights are stored.
    fn moments(&self, name: &str, rotation: Option<&Rotation>) -> Result<Option<Moments>> {
        let Some(found) = self.options.calibration.and_then(|c| c.find(name)) else { return Ok(None) };
        Ok(Some(match rotation {
            Some(rotation) => found.rotated(self.isa, rotation)?,
            None => found.copy()?,
        }))
    }

    fn method<'m>(&self, target: &Target, moments: Option<&'m Moments>) -> Method<'m> {
        // A type without scales, or whose only rule is fixed, is rounded by it whatever else is asked.
        let float = is_float(target.ty);
        Method {
            target: target.ty,
            group: target.group,
            bases: target.bases,
            kind: target.rule,
            search: self.options.search && !float,
            moments: moments.filter(|_| !float),
            compensate: self.options.compensate && !float,
            damping: self.options.damping,
        }
    }

    /// Refuses a layer that needs more memory than is allowed.
    fn check_memory(
        &self,
        plan: &Plan<'_>,
        store: Option<&Store>,
        moments: Option<&Moments>,
        largest: u64,
    ) -> Result<()> {
        let bound = match self.options.memory {
            0 => largest.saturating_mul(2).saturating_add(MEMORY),
            bound => bound,
        };
        let (rows, columns) = (plan.out_features as u64, plan.in_features as u64);
        let threads = self.executor.width() as u64;
        // Lanes of weights, errors, targets, bases and products; rows of codes and scales.
        let panel = columns * (5 * 64 + 16 * 3);
        let factor = moments.map_or(0, |m| {
            let block = m.block() as u64;
            columns * block * 8 + if m.block() > 1 { block * block * 8 } else { 0 }
        });
        let kept = match store.map(|s| s.row_bytes(plan.in_features)) {
            None => rows * columns, // packed: a byte for each code
            Some(None) => rows.div_ceil(4) * columns,
            Some(Some(row)) => (BAND as u64).max(threads * PANEL_ROWS as u64 * row as u64),
        };
        let need = panel * threads + factor + kept;
        if need > bound {
            return Err(fail!(
                OutOfMemory,
                "{need} bytes are needed and {bound} allowed: fewer threads, smaller blocks of calibration or a higher bound"
            ));
        }
        Ok(())
    }

    /// The first bytes of a tensor were read: its pages need not stay.
    fn read(&self, tensor: &Tensor, bytes: usize) {
        if let Some(source) = self.files.source(tensor) {
            let start = tensor.offset as usize;
            source.done(start..start + bytes);
        }
    }
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::F32 | Type::F16 | Type::Bf16)
}
