//! A model file from another: some layers quantised, the rest as it was.
//!
//! Layers go through one after another: rows are read from the mapped source, rounded in bands of panels
//! by all threads, and written to their place in the new file. Beside what is mapped no more is held
//! than a band, the room of the threads, and what calibration needs for one layer; a layer that needs
//! more than the bound is refused by name before anything is written.
//!
//! The new file appears under its name when it is whole. What the source says in metadata is kept, but
//! for what the quantisation changes.

mod choose;
mod source;
mod store;

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

pub use choose::{Layers, Target, is_expert, is_protected};
pub use source::{Plain, signs};

use crate::container::{Files, Kind, Quoted, SafetensorsHeader, Temporary, Tensor, Value, gguf};
use crate::cpu::Isa;
use crate::error::{Error, Result, fail};
use crate::exec::Executor;
use crate::layer::{Linear, Options as LayerOptions};
use crate::layout::{Float, Layout, Matrix};
use crate::memory::{Heap, filled, reserve};
use crate::model::{self, Plan, Request, Role};
use crate::quantize::{Calibration, Method, Moments, PANEL_ROWS, RoundedRows, Rounding};
use crate::rotation::{Rotation, Spec};
use crate::save::{Named, save};
use crate::types::Type;
use store::{Part, Store};

/// Room beyond twice the largest tensor, where no bound is given.
const MEMORY: u64 = 64 << 20;
/// Bytes of rounded rows that wait to be written, at most; a panel for each thread at least.
const BAND: usize = 4 << 20;

/// What is to be done.
pub struct Options<'a> {
    /// The kind of file to write: GGUF, safetensors or packed.
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
    /// A layer.
    Round {
        plan: Plan<'a>,
        target: Target,
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
    if options.kind == Kind::Artifact {
        return Err(fail!(Unsupported, "burn_dragon's artifacts are not written"));
    }
    if options.compensate && options.calibration.is_none() {
        return Err(fail!(InvalidArgument, "making up for errors needs calibration"));
    }
    let (steps, mut report) = job.steps()?;
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

impl<'a> Job<'a> {
    /// What becomes of each layer and tensor.
    fn steps(&self) -> Result<(Vec<Step<'a>>, Report)> {
        let directory = &self.files.directory;
        let options = self.options;
        let mut report = Report::default();
        // Which layer takes each tensor; tensors of chosen layers but bias, norm and factor go with it.
        let mut owner = filled(directory.tensors.len(), u32::MAX, "tensors of layers")?;
        let mut targets = filled(self.layers.list().len(), None, "targets of layers")?;
        for (number, layer) in self.layers.list().iter().enumerate() {
            let name = text(self.layers.name(layer))?;
            let special = options.types.iter().find(|(pattern, _)| name.contains(pattern));
            let target = match special {
                Some((_, target)) => Some(*target),
                None => choose::chosen(options.layers, options.patterns, &name).then_some(options.target),
            };
            let Some(target) = target else { continue };
            targets[number] = Some(target);
            for role in [Role::Weight, Role::Scales, Role::Zeros, Role::GroupIndex, Role::Shape] {
                if let Some(index) = layer.index(role) {
                    owner[index as usize] = number as u32;
                }
            }
        }
        let mut steps = Vec::new();
        reserve(&mut steps, directory.tensors.len(), "steps")?;
        for (index, tensor) in directory.tensors.iter().enumerate() {
            report.bytes_read += tensor.bytes;
            let name = text(directory.name(tensor))?;
            let within = |e: Error| e.within(format_args!("{}", Quoted(directory.name(tensor))));
            if let Some(layer) = self.layers.list().get(owner[index] as usize) {
                if layer.index(Role::Weight) != Some(index as u32) {
                    continue;
                }
                let (Some(target), name) = (targets[owner[index] as usize], text(self.layers.name(layer))?)
                else {
                    continue;
                };
                let step = self.round_step(layer, target, name, tensor, &mut report).map_err(within)?;
                steps.push(step);
                continue;
            }
            if options.kind == Kind::Packed {
                if let Some(layer) =
                    self.layers.list().iter().find(|l| l.index(Role::Weight) == Some(index as u32))
                {
                    let request = Request { all_slices: true, ..Request::default() };
                    let plan = self.layers.plan(self.files, layer, &request).map_err(within)?;
                    let ty = options.rest.filter(|_| is_float(plan.ty)).unwrap_or(plan.ty);
                    let target = Target { ty, group: 0, bases: 0, rule: Default::default() };
                    let weights = plan.out_features as u64 * plan.in_features as u64;
                    let what = What::Round { plan, target, rotation: None, store: None, at: Vec::new() };
                    steps.push(Step { name: text(self.layers.name(layer))?, weights, what });
                    report.kept += 1;
                }
                continue;
            }
            let float = is_float(tensor.ty);
            let what = match options.rest.filter(|ty| float && tensor.dims >= 2 && *ty != tensor.ty) {
                Some(ty) => What::Convert { tensor, ty, at: 0 },
                None => What::Copy { tensor, at: 0 },
            };
            report.kept += 1;
            steps.push(Step { name, weights: product(shape(tensor)), what });
        }
        Ok((steps, report))
    }

    fn round_step(
        &self,
        layer: &model::Layer,
        mut target: Target,
        name: String,
        tensor: &'a Tensor,
        report: &mut Report,
    ) -> Result<Step<'a>> {
        let options = self.options;
        let request = Request { all_slices: true, ..Request::default() };
        let plan = self.layers.plan(self.files, layer, &request)?;
        if !is_float(plan.ty) && !options.requantize {
            return Err(fail!(
                InvalidArgument,
                "these weights are {} already: quantising them again loses more; ask for it, or leave the layer out",
                plan.ty.name()
            ));
        }
        let info = target.ty.info();
        if info.block > 1 && !plan.in_features.is_multiple_of(info.block as usize) {
            let fallback = options.fallback.ok_or_else(|| {
                fail!(
                    Unsupported,
                    "{} has blocks of {}, and {} columns are no multiple of it: name a fallback",
                    info.name(),
                    info.block,
                    plan.in_features
                )
            })?;
            target = Target { ty: fallback, group: 0, bases: 0, rule: Default::default() };
            report.fallback += 1;
        }
        let rotation = match options.rotation {
            None => None,
            Some(_) if plan.rotation.is_some() => {
                return Err(fail!(InvalidArgument, "these weights are rotated already"));
            }
            Some((block, seed)) => {
                let signs = signs(seed, plan.in_features)?;
                Some(Rotation::new(&Spec { block, signs: signs.as_deref() }, plan.in_features)?)
            }
        };
        if let Some(calibration) = options.calibration
            && calibration.find(&name).is_some()
        {
            report.calibrated += 1;
        }
        if options.compensate && options.calibration.is_some_and(|c| c.find(&name).is_none()) {
            return Err(fail!(NotFound, "calibration knows nothing of this layer's input"));
        }
        report.quantized += 1;
        let weights = product(shape(tensor)).max(plan.out_features as u64 * plan.in_features as u64);
        report.weights += weights;
        let store = match options.kind {
            Kind::Packed => None,
            _ => {
                let layout = self.layout(&plan, &target)?;
                Some(Store::new(options.kind, target.ty, &layout, plan.out_features, plan.in_features)?)
            }
        };
        Ok(Step { name, weights, what: What::Round { plan, target, rotation, store, at: Vec::new() } })
    }

    /// The layout that a target gives, as far as how it is stored depends on it.
    fn layout(&self, plan: &Plan<'_>, target: &Target) -> Result<Layout> {
        let bases = target.bases.max(1) as u8;
        Ok(match target.ty {
            Type::Ternary if target.group == 0 => match Layout::rows(2, crate::layout::Values::Offset(1)) {
                Layout::Coded(coded) => Layout::Coded(crate::layout::Coded { bases, ..coded }),
                dense => dense,
            },
            Type::Int4 | Type::Ternary => {
                crate::quantize::group_layout(target.ty, plan.in_features, target.group)
            }
            _ => Layout::Dense(Float::F32),
        })
    }

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

    // ---- GGUF and safetensors ---------------------------------------------------------------------

    fn stream(
        &self,
        path: &Path,
        mut steps: Vec<Step<'a>>,
        report: &mut Report,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<()> {
        let (header, data) = match self.options.kind {
            Kind::Gguf => self.gguf_header(&mut steps)?,
            _ => self.safetensors_header(&mut steps)?,
        };
        let largest = self.files.directory.tensors.iter().map(|t| t.bytes).max().unwrap_or(0);
        for step in &steps {
            if let What::Round { plan, rotation, store, .. } = &step.what {
                let moments = self.options.calibration.and_then(|c| c.find(&step.name));
                let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
                self.check_memory(plan, store.as_ref(), moments, largest).map_err(within)?;
                if let (Some(rotation), Some(moments)) = (rotation, moments) {
                    moments.rotates(rotation).map_err(within)?;
                }
            }
        }
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        let (file, mut temporary) = Temporary::create(path).map_err(io)?;
        file.set_len(header.len() as u64 + data).map_err(io)?;
        let mut out = Output { file, data: header.len() as u64, path };
        (&out.file).write_all(&header).map_err(io)?;
        let (total, weights_total) = (steps.len() as u64, steps.iter().map(|s| s.weights).sum());
        let mut weights_done = 0;
        for (done, step) in steps.iter().enumerate() {
            let done = done as u64;
            let now = Progress { name: &step.name, done, total, weights_done, weights_total };
            if !progress(&now) {
                return Err(fail!(Cancelled, "stopped before {}", Quoted(step.name.as_bytes())));
            }
            self.write_step(step, &mut out)
                .map_err(|e| e.within(format_args!("{}", Quoted(step.name.as_bytes()))))?;
            weights_done += step.weights;
        }
        if !progress(&Progress { name: "", done: total, total, weights_done, weights_total }) {
            return Err(fail!(Cancelled, "stopped before the file had its name"));
        }
        report.bytes_written = out.data + data;
        out.file.sync_all().map_err(io)?;
        drop(out); // some systems rename only files that nobody has open
        temporary.rename(path).map_err(io)
    }

    fn write_step(&self, step: &Step<'_>, out: &mut Output<'_>) -> Result<()> {
        match &step.what {
            What::Copy { tensor, at } => {
                let bytes = self.files.bytes(tensor);
                for (n, bytes) in bytes.chunks(BAND).enumerate() {
                    out.write(at + (n * BAND) as u64, bytes)?;
                    self.read(tensor, n * BAND + bytes.len());
                }
                Ok(())
            }
            What::Convert { tensor, ty, at } => {
                let columns = *shape(tensor).last().unwrap_or(&1) as usize;
                let rows = (product(shape(tensor)) / columns as u64) as usize;
                let matrix = crate::codec::open(tensor.ty, rows, columns, self.files.bytes(tensor))?;
                let rounding = Rounding::new(self.isa, self.executor, &*matrix, &Method::plain(*ty))?;
                let store = Store::Rows(crate::codec::find(*ty)?);
                self.write_rows(&rounding, &store, *at, None, out)
            }
            What::Round { plan, target, rotation, store: Some(store), at } => {
                let matrix = plan.matrix()?;
                let plain = Plain::new(&*matrix, rotation.as_ref(), self.isa);
                let moments = self.moments(&step.name, rotation.as_ref())?;
                let method = self.method(target, moments.as_ref());
                let rounding = Rounding::new(self.isa, self.executor, &plain, &method)?;
                let second = at.get(1).map(|(at, _)| *at);
                self.write_rows(&rounding, store, at[0].0, second, out)?;
                if let Some((tensor, ..)) = plan.rows {
                    self.read(tensor, tensor.bytes as usize);
                }
                Ok(())
            }
            What::Round { .. } => Err(fail!(Internal, "a layer without a place")),
        }
    }

    /// The first bytes of a tensor were read: its pages need not stay.
    fn read(&self, tensor: &Tensor, bytes: usize) {
        if let Some(source) = self.files.source(tensor) {
            let start = tensor.offset as usize;
            source.done(start..start + bytes);
        }
    }

    /// Rounds all rows and writes codes at `at` and scales, where they stand apart, at `second`.
    fn write_rows(
        &self,
        rounding: &Rounding<'_>,
        store: &Store,
        at: u64,
        second: Option<u64>,
        out: &mut Output<'_>,
    ) -> Result<()> {
        let (rows, columns) = (rounding.out_features(), rounding.in_features());
        if let (Some(second), Some(scales)) = (second, store.tensor_scales(rounding.tensor_scales())?) {
            out.write(second, &scales)?;
        }
        let Some(row_bytes) = store.row_bytes(columns) else {
            return self.write_quarters(rounding, at, out);
        };
        let panels = (BAND / (PANEL_ROWS * row_bytes).max(1)).max(self.executor.width()).max(1);
        let band = (panels * PANEL_ROWS).min(rows);
        let mut buffer = filled(band * row_bytes, 0u8, "rounded rows")?;
        let groups = if store.has_row_scales() { scales_of(&rounding.layout(), columns) } else { 0 };
        let mut scales = filled(band * groups * 4, 0u8, "scales of rows")?;
        for first in (0..rows).step_by(band) {
            let count = band.min(rows - first);
            let mut places = Vec::new();
            reserve(&mut places, count.div_ceil(PANEL_ROWS), "panels")?;
            // Panels without scales of their own get an empty place.
            let mut own_scales = scales.chunks_mut((PANEL_ROWS * groups * 4).max(1));
            for bytes in buffer[..count * row_bytes].chunks_mut(PANEL_ROWS * row_bytes) {
                places.push(Mutex::new((bytes, own_scales.next().unwrap_or(&mut []))));
            }
            self.executor.run(places.len(), &|_, piece| {
                let mut place = places[piece].lock().unwrap_or_else(|e| e.into_inner());
                let start = first + piece * PANEL_ROWS;
                let (bytes, scales) = &mut *place;
                rounding.panel(start, bytes.len() / row_bytes, &mut |index, row| {
                    let n = index - start;
                    store.row(row, &mut bytes[n * row_bytes..][..row_bytes])?;
                    if groups > 0 {
                        let place = scales[n * groups * 4..][..groups * 4].as_chunks_mut().0;
                        place.iter_mut().zip(&row.scales).for_each(|(p, s)| *p = s.to_le_bytes());
                    }
                    Ok(())
                })
            })?;
            drop(places);
            out.write(at + (first * row_bytes) as u64, &buffer[..count * row_bytes])?;
            if let Some(second) = second.filter(|_| groups > 0) {
                out.write(second + (first * groups * 4) as u64, &scales[..count * groups * 4])?;
            }
        }
        if let Some(tail) = store.tail(rounding.tensor_scales())? {
            out.write(at + (rows * row_bytes) as u64, &tail)?;
        }
        Ok(())
    }

    /// BitNet's bytes: four rows, a quarter of the matrix apart, in each.
    fn write_quarters(&self, rounding: &Rounding<'_>, at: u64, out: &mut Output<'_>) -> Result<()> {
        let (rows, columns) = (rounding.out_features(), rounding.in_features());
        let quarter = rows.div_ceil(4);
        let packed = Mutex::new(filled(quarter * columns, 0u8, "packed rows")?);
        self.executor.run(rows.div_ceil(PANEL_ROWS), &|_, piece| {
            let first = piece * PANEL_ROWS;
            rounding.panel(first, PANEL_ROWS.min(rows - first), &mut |index, row| {
                let mut packed = packed.lock().unwrap_or_else(|e| e.into_inner());
                let bytes = &mut packed[index % quarter * columns..][..columns];
                let shift = 2 * (index / quarter);
                bytes.iter_mut().zip(&row.codes).for_each(|(byte, code)| *byte |= code << shift);
                Ok(())
            })
        })?;
        out.write(at, &packed.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn gguf_header(&self, steps: &mut [Step<'a>]) -> Result<(Vec<u8>, u64)> {
        let directory = &self.files.directory;
        let mut header = gguf::Header::new()?;
        let replaced = |key: &[u8]| {
            let own = [
                &b"general.alignment"[..],
                b"general.file_type",
                b"general.quantization_version",
                b"split.no",
                b"split.count",
                b"split.tensors.count",
            ];
            own.contains(&key)
                || self.options.rotation.is_some() && key.starts_with(b"prism.hadamard.")
                || self.options.texts.iter().any(|(text, _)| text.as_bytes() == key)
        };
        if directory.kind == Kind::Gguf {
            let source = self.files.sources.first().map_or(&[][..], |s| s.bytes());
            for (key, value) in gguf::entries(source)? {
                if !replaced(key) {
                    header.entry(key, gguf::Entry::Raw(value))?;
                }
            }
        }
        for (key, value) in self.options.texts {
            header.entry(key.as_bytes(), gguf::Entry::String(value))?;
        }
        header.entry(b"general.quantization_version", gguf::Entry::U32(2))?;
        if let Some(number) = file_type(steps) {
            header.entry(b"general.file_type", gguf::Entry::U32(number))?;
        }
        if let Some((block, seed)) = self.options.rotation {
            declare_rotation(&mut header, steps, block, seed)?;
        }
        for step in steps {
            let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
            match &mut step.what {
                What::Copy { tensor, at } if tensor.ty == Type::T158 => {
                    let _ = at;
                    return Err(within(fail!(Unsupported, "t158 is read only: quantise this layer too")));
                }
                What::Copy { tensor, at } => {
                    let (start, bytes) =
                        header.tensor(step.name.as_bytes(), tensor.ty, shape(tensor)).map_err(within)?;
                    if bytes != tensor.bytes {
                        return Err(within(fail!(
                            Unsupported,
                            "{} bytes, where {bytes} belong",
                            tensor.bytes
                        )));
                    }
                    *at = start;
                }
                What::Convert { tensor, ty, at } => {
                    *at = header.tensor(step.name.as_bytes(), *ty, shape(tensor)).map_err(within)?.0;
                }
                What::Round { plan, store: Some(store), at, .. } => {
                    for part in parts(store, plan)? {
                        let name = format!("{}.{}", step.name, part.suffix);
                        reserve(at, 1, "places")?;
                        at.push(header.tensor(name.as_bytes(), part.ty, &part.shape).map_err(within)?);
                    }
                }
                What::Round { .. } => {}
            }
        }
        let data = header.data();
        Ok((header.finish()?, data))
    }

    fn safetensors_header(&self, steps: &mut [Step<'a>]) -> Result<(Vec<u8>, u64)> {
        let directory = &self.files.directory;
        let mut header = SafetensorsHeader::new()?;
        if self.options.rotation.is_some() {
            return Err(fail!(
                Unsupported,
                "safetensors files have no place for a rotation: write GGUF or packed"
            ));
        }
        for meta in &directory.metadata {
            // Texts are kept; other values (of GGUF) have no place in a safetensors header.
            let (Value::String(value), Ok(key)) = (meta.value, str::from_utf8(directory.texts.get(meta.key)))
            else {
                continue;
            };
            if let Ok(value) = str::from_utf8(directory.texts.get(value))
                && !self.options.texts.iter().any(|(text, _)| *text == key)
                && directory.kind == Kind::Safetensors
            {
                header.text(key, value)?;
            }
        }
        for (key, value) in self.options.texts {
            header.text(key, value)?;
        }
        for step in steps {
            let within = |e: Error| e.within(format_args!("{}", Quoted(step.name.as_bytes())));
            match &mut step.what {
                What::Copy { tensor, at } => {
                    let (start, bytes) =
                        header.tensor(&step.name, tensor.ty, shape(tensor)).map_err(within)?;
                    if bytes != tensor.bytes {
                        return Err(within(fail!(
                            Unsupported,
                            "{} bytes, where {bytes} belong",
                            tensor.bytes
                        )));
                    }
                    *at = start;
                }
                What::Convert { tensor, ty, at } => {
                    *at = header.tensor(&step.name, *ty, shape(tensor)).map_err(within)?.0;
                }
                What::Round { plan, store: Some(store), at, .. } => {
                    for part in parts(store, plan)? {
                        let name = format!("{}.{}", step.name, part.suffix);
                        reserve(at, 1, "places")?;
                        at.push(header.tensor(&name, part.ty, &part.shape).map_err(within)?);
                    }
                }
                What::Round { .. } => {}
            }
        }
        let data = header.data();
        Ok((header.finish()?, data))
    }

    // ---- packed -----------------------------------------------------------------------------------

    /// Makes all layers and saves them: they are held until the file is written.
    fn pack(
        &self,
        path: &Path,
        steps: Vec<Step<'a>>,
        report: &mut Report,
        progress: &mut dyn FnMut(&Progress<'_>) -> bool,
    ) -> Result<()> {
        let heap = Heap::default();
        let (total, weights_total) = (steps.len() as u64, steps.iter().map(|s| s.weights).sum());
        let mut weights_done = 0;
        let mut made: Vec<(String, Linear, Type)> = Vec::new();
        reserve(&mut made, steps.len(), "layers")?;
        let largest = self.files.directory.tensors.iter().map(|t| t.bytes).max().unwrap_or(0);
        for (done, step) in steps.into_iter().enumerate() {
            let now = Progress { name: &step.name, done: done as u64, total, weights_done, weights_total };
            if !progress(&now) {
                return Err(fail!(Cancelled, "stopped before {}", Quoted(step.name.as_bytes())));
            }
            let What::Round { plan, target, rotation, .. } = step.what else { continue };
            let linear = self
                .linear(&step.name, &plan, &target, rotation, &heap, largest)
                .map_err(|e| e.within(format_args!("{}", Quoted(step.name.as_bytes()))))?;
            if let Some((tensor, ..)) = plan.rows {
                self.read(tensor, tensor.bytes as usize);
            }
            weights_done += step.weights;
            made.push((step.name, linear, target.ty));
        }
        if !progress(&Progress { name: "", done: total, total, weights_done, weights_total }) {
            return Err(fail!(Cancelled, "stopped before the file was written"));
        }
        let mut named = Vec::new();
        reserve(&mut named, made.len(), "layers")?;
        named.extend(made.iter().map(|(name, linear, ty)| Named { name, linear, ty: *ty }));
        save(path, &named, self.options.texts)?;
        let io = |e: io::Error| fail!(Io, "{}: {e}", path.display());
        report.bytes_written = std::fs::metadata(path).map_err(io)?.len();
        Ok(())
    }

    fn linear(
        &self,
        name: &str,
        plan: &Plan<'_>,
        target: &Target,
        rotation: Option<Rotation>,
        heap: &Heap,
        largest: u64,
    ) -> Result<Linear> {
        let matrix = plan.matrix()?;
        let (bias, norm) = (plan.bias()?, plan.norm()?);
        let mut signs = filled(if rotation.is_some() { plan.in_features } else { 0 }, 0.0, "signs")?;
        if let Some(rotation) = &rotation {
            signs.iter_mut().enumerate().for_each(|(k, sign)| *sign = rotation.sign(k));
        }
        let declared = plan.rotation.as_ref().map(|declared| declared.spec());
        let own = rotation.as_ref().map(|r| Spec {
            block: r.block(),
            signs: Some(&signs).filter(|_| r.has_signs()).map(|s| &s[..]),
        });
        let options = LayerOptions {
            activation: Default::default(),
            product_scale: plan.product_scale,
            bias: bias.as_deref(),
            norm: plan.norm_epsilon().map(|epsilon| crate::norm::Spec {
                kind: crate::norm::Kind::Rms,
                epsilon,
                weight: norm.as_deref(),
                bias: None,
            }),
            rotation: own.or(declared),
            epilogue: Default::default(),
            activation_scale: None,
        };
        if target.ty == plan.ty {
            return Linear::new(&*matrix, &options, self.isa, heap, &mut |_| {});
        }
        let moments = self.moments(name, rotation.as_ref())?;
        self.check_memory(plan, None, moments.as_ref(), largest)?;
        let plain = Plain::new(&*matrix, rotation.as_ref(), self.isa);
        let method = self.method(target, moments.as_ref());
        let rounding = Rounding::new(self.isa, self.executor, &plain, &method)?;
        let rows = RoundedRows::all(&rounding, self.executor)?;
        Linear::new(&rows as &dyn Matrix, &options, self.isa, heap, &mut |_| {})
    }
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::F32 | Type::F16 | Type::Bf16)
}

/// Scales of a row.
fn scales_of(layout: &Layout, columns: usize) -> usize {
    match layout {
        Layout::Coded(coded) => columns.div_ceil(coded.group_len(columns)),
        Layout::Dense(_) => 0,
    }
}

/// The tensors of a layer, in the dimensions that it has in its file.
fn parts(store: &Store, plan: &Plan<'_>) -> Result<Vec<Part>> {
    let (rows, columns) = (plan.out_features as u64, plan.in_features as u64);
    match plan.slices {
        0 | 1 => store.parts(&[rows, columns]),
        slices => store.parts(&[slices as u64, rows / slices as u64, columns]),
    }
}

/// llama.cpp's number for files whose most weights are of one type.
fn file_type(steps: &[Step<'_>]) -> Option<u32> {
    let types = steps.iter().filter_map(|step| match &step.what {
        What::Round { target, .. } => Some((target.ty, step.weights)),
        _ => None,
    });
    let mut sums: Vec<(Type, u64)> = Vec::new();
    for (ty, weights) in types {
        match sums.iter_mut().find(|(found, _)| *found == ty) {
            Some((_, sum)) => *sum += weights,
            None => sums.push((ty, weights)),
        }
    }
    let (ty, _) = sums.into_iter().max_by_key(|(_, sum)| *sum)?;
    Some(match ty {
        Type::F32 => 0,
        Type::F16 => 1,
        Type::Q4_0 => 2,
        Type::Q4_1 => 3,
        Type::Q8_0 => 7,
        Type::Q5_0 => 8,
        Type::Q5_1 => 9,
        Type::Q2K => 10,
        Type::Q3K => 11,
        Type::Q4K => 14,
        Type::Q5K => 16,
        Type::Q6K => 18,
        Type::Bf16 => 32,
        Type::Tq1_0 => 36,
        Type::Tq2_0 => 37,
        Type::Mxfp4 => 38,
        // 40 is I2_S in bitnet.cpp's fork and Q1_0 in llama.cpp.
        Type::I2S | Type::Q1_0 => 40,
        Type::Q2_0 => 41,
        _ => return None,
    })
}

/// The contract of Hadamard-folded weights.
fn declare_rotation(header: &mut gguf::Header, steps: &[Step<'_>], block: usize, seed: u64) -> Result<()> {
    let (mut names, mut widths, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        let What::Round { plan, .. } = &step.what else { continue };
        reserve(&mut names, 1, "names of rotated tensors")?;
        names.push(format!("{}.weight", step.name));
        let width = plan.in_features as i32;
        if seed != 0 && !widths.contains(&width) {
            reserve(&mut widths, 1, "widths of rotated inputs")?;
            widths.push(width);
            let signs = signs(seed, plan.in_features)?.unwrap_or_default();
            reserve(&mut values, signs.len(), "signs of rotated inputs")?;
            values.extend(signs.iter().map(|sign| *sign as i32));
        }
    }
    let entries = [
        ("version", gguf::Entry::U32(1)),
        ("block_size", gguf::Entry::U32(block as u32)),
        ("transform", gguf::Entry::String("normalized-sylvester-walsh-hadamard")),
        ("axis", gguf::Entry::String("input-last-dimension")),
        ("sign_mode", gguf::Entry::String(if seed == 0 { "identity" } else { "explicit" })),
        ("weight_names", gguf::Entry::Strings(&names)),
    ];
    for (key, value) in entries {
        header.entry(format!("prism.hadamard.{key}").as_bytes(), value)?;
    }
    if seed != 0 {
        header.entry(b"prism.hadamard.sign_widths", gguf::Entry::I32s(&widths))?;
        header.entry(b"prism.hadamard.sign_values", gguf::Entry::I32s(&values))?;
    }
    Ok(())
}

/// A file whose places are written in any order.
struct Output<'a> {
    file: File,
    /// Where the data begins.
    data: u64,
    path: &'a Path,
}

impl Output<'_> {
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let place = SeekFrom::Start(self.data + at);
        let written = self.file.seek(place).and_then(|_| self.file.write_all(bytes));
        written.map_err(|e| fail!(Io, "{}: {e}", self.path.display()))
    }
}
