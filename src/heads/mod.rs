//! Projections of heads, on the packed kernels.
//!
//! ```text
//! lowrank   x [batch, heads | 1, time, features] . [heads, features, latent] -> [batch, heads, time, l]
//! tail      x [batch, heads, time, l] . [heads * latent, features]           -> [batch, 1, time, features]
//! ```
//! A call takes the first l of each head's latent features and packs nothing anew: in a low-rank
//! projection they are the first rows of each head's matrix. In a tail they are columns of every head;
//! they are packed in runs of 32, the first run of every head, then the second, so that a prefix of every
//! head is a prefix of the matrix.
//!
//! Weights are rounded by burn_dragon's rules (`codec::burn_dragon`) with one scale for the tensor.

mod backward;
mod weights;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::activation::{Span, Width};
use crate::codes::{Coder, Format, Tensor, check_finite};
use crate::cuda::{DeviceLayer, HostTarget, Lanes, Room};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layer::{self, Activation, Extra, Linear, Options, Packer, Stage, Stages, Target};
use crate::layout::Packed;
use crate::limits::{BATCH_MAX, FEATURES_MAX, LAYERS_MAX};
use crate::math;
use crate::matrix::{Gather, MatrixMut, MatrixRef};
use crate::memory::{filled, reserve};
use crate::plan::LowBit;
use crate::train::Machine;

pub use backward::{Backward, Input};
use weights::{Codes, View, encoding};

/// Features of a run.
const RUN: usize = 32;

/// Columns of the matrix of a decoder tail whose heads have `latent` features together.
pub fn tail_columns(heads: usize, latent: usize) -> Result<usize> {
    if heads == 0 || latent == 0 || !latent.is_multiple_of(heads) {
        return Err(fail!(InvalidArgument, "{latent} latent features of {heads} heads"));
    }
    Ok((latent / heads).next_multiple_of(RUN) * heads)
}

/// Which way a projection goes; the numbers are those of `bl_heads_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// To latent features.
    Lowrank = 0,
    /// Back from them.
    Tail = 1,
}

/// The weights' shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Which way.
    pub kind: Kind,
    /// Heads.
    pub heads: usize,
    /// Latent features of each.
    pub latent: usize,
    /// Features of a token: embd or dim.
    pub features: usize,
}

impl Shape {
    /// How many weights there are; refused where a number is none that a layer may have.
    pub fn count(&self) -> Result<usize> {
        let Shape { heads, latent, features, .. } = *self;
        let good = [heads, latent, features].iter().all(|n| (1..=FEATURES_MAX).contains(&(*n as u64)));
        let count = heads.checked_mul(latent).and_then(|n| n.checked_mul(features));
        count
            .filter(|n| good && *n <= isize::MAX as usize / 4)
            .ok_or_else(|| fail!(InvalidArgument, "{heads} heads of {latent} latent and {features} features"))
    }

    /// How rows of `l` latent features of every head are read.
    fn gather(&self, l: usize, time: usize) -> Gather {
        Gather { heads: self.heads, head_stride: time * l * 4, features: l, run: RUN }
    }
}

/// The shape of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Sequences.
    pub batch: usize,
    /// Heads of a low-rank projection's x: all, or 1 that all share.
    pub input_heads: usize,
    /// Tokens of a sequence.
    pub time: usize,
    /// Latent features of each head that are computed, or that x has.
    pub latent: usize,
}

/// What a call does beside the product.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Around {
    /// y = max(y - threshold, 0).
    pub threshold: Option<f32>,
    /// y is quantised in the format of the projection's input, and taken back.
    pub quantize_output: bool,
}

/// What a projection has done. Times are taken only where the machine is timed.
#[derive(Default)]
pub struct Profile {
    /// Forward calls.
    pub calls: AtomicU64,
    /// Nanoseconds of all of them.
    pub total: AtomicU64,
    /// Nanoseconds of their parts, summed over threads: x into codes; products and what follows them.
    pub quantize: AtomicU64,
    /// As above.
    pub multiply: AtomicU64,
    /// Nanoseconds of rounding and packing weights.
    pub pack: AtomicU64,
    /// Calls that found scales in x.
    pub dynamic_scales: AtomicU64,
    /// Calls that used a calibrated scale.
    pub calibrated_scales: AtomicU64,
    /// Most bytes of codes of x of a call.
    pub code_bytes: AtomicU64,
    /// Most bytes of y of a call.
    pub output_bytes: AtomicU64,
}

fn add_time(counter: &AtomicU64, begin: Option<Instant>) {
    if let Some(begin) = begin {
        counter.fetch_add(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// A projection of heads.
pub struct Projection {
    shape: Shape,
    weights: LowBit,
    input: Format,
    scale: f32,
    isa: crate::cpu::Isa,
    /// Of a low-rank projection, one for each head; of a tail, one.
    linears: Vec<Arc<Linear>>,
    /// Copies of them on a device, where forward calls run there.
    device: Option<OnDevice>,
    /// The prefix of a tail that was used last.
    prefix: Mutex<Option<(usize, Arc<Linear>)>>,
    /// Bits of a scale that calls use in place of x's own; 0: none.
    calibrated: AtomicU32,
    /// What it has done.
    pub profile: Profile,
}

/// The weights of a projection on a device, beside those on the CPU, which gradients need.
struct OnDevice {
    lanes: Arc<Lanes>,
    layers: Vec<DeviceLayer>,
}

/// Where the weights of a projection come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// f32, rounded here.
    Masters(&'a [f32]),
    /// Codes that were rounded before, and their scale.
    Packed(&'a [u8], f32),
}

impl Projection {
    /// Packs weights. `weights` is int8, sign1, ternary158 or packed2; `input` says how x is taken.
    pub fn new(
        shape: Shape,
        weights: LowBit,
        input: Format,
        source: Weights<'_>,
        machine: &Machine<'_>,
    ) -> Result<Projection> {
        shape.count()?;
        let mut projection = Projection {
            shape,
            weights,
            input,
            scale: 0.0,
            isa: machine.isa,
            linears: Vec::new(),
            device: None,
            prefix: Mutex::new(None),
            calibrated: AtomicU32::new(0),
            profile: Profile::default(),
        };
        projection.update(source, machine)?;
        Ok(projection)
    }

    /// Takes other weights of the same shape; after a failure it is as it was.
    pub fn update(&mut self, source: Weights<'_>, machine: &Machine<'_>) -> Result<()> {
        let begin = machine.timed.then(Instant::now);
        let (ty, count) = (encoding(self.weights)?, self.shape.count()?);
        let codes = match source {
            Weights::Masters(weights) if weights.len() != count => {
                return Err(fail!(InvalidArgument, "{} weights, {count} expected", weights.len()));
            }
            Weights::Masters(weights) => Codes::of(ty, weights)?,
            Weights::Packed(bytes, scale) => Codes::unpack(ty, bytes, count, scale)?,
        };
        let options = Options { activation: self.activation(), ..Options::default() };
        let matrices = if self.shape.kind == Kind::Lowrank { self.shape.heads } else { 1 };
        let packer = Packer { isa: self.isa, heap: machine.heap, executor: machine.executor };
        let mut linears = Vec::new();
        reserve(&mut linears, matrices, "heads")?;
        for head in 0..matrices {
            let view = View { codes: &codes, shape: &self.shape, head };
            let linear = Linear::load(&view, &options, &packer, &|_| {})?;
            linears.push(Arc::new(linear));
        }
        if let Some(OnDevice { lanes, .. }) = &self.device {
            self.device = Some(self.copies(&linears, lanes)?);
        }
        self.linears = linears;
        self.scale = codes.scale;
        *self.prefix.get_mut().unwrap_or_else(|e| e.into_inner()) = None;
        add_time(&self.profile.pack, begin);
        Ok(())
    }

    /// Makes forward calls run on a device from now on.
    pub fn put_on(&mut self, lanes: &Arc<Lanes>) -> Result<()> {
        self.device = Some(self.copies(&self.linears, lanes)?);
        Ok(())
    }

    fn copies(&self, linears: &[Arc<Linear>], lanes: &Arc<Lanes>) -> Result<OnDevice> {
        let options = Options { activation: self.activation(), ..Options::default() };
        let mut layers = Vec::new();
        reserve(&mut layers, linears.len(), "heads")?;
        for linear in linears {
            let (packed, seen) = (linear.packed(), &mut |_| {});
            // SAFETY: the memory is our own.
            layers.push(unsafe { DeviceLayer::new(packed, &options, lanes, Room::Own, seen)? });
        }
        Ok(OnDevice { lanes: lanes.clone(), layers })
    }

    /// The device that forward calls run on; 0: the CPU.
    pub fn device(&self) -> u32 {
        self.device.as_ref().map_or(0, |on| on.lanes.device.index())
    }

    fn activation(&self) -> Activation {
        match (self.input.width, self.input.span) {
            (None, _) => Activation::F32,
            (Some(Width::Int8), Span::Largest) => Activation::Int8Row,
            (Some(Width::Int4), Span::Largest) => Activation::Int4,
            (Some(Width::Uint8), Span::Largest) => Activation::Uint8Positive,
            (Some(Width::Int8), Span::TwiceMean) => Activation::Int8MeanRange,
            (Some(Width::Int4), Span::TwiceMean) => Activation::Int4MeanRange,
            (Some(Width::Uint8), Span::TwiceMean) => Activation::Uint8PositiveMeanRange,
        }
    }

    /// The weights' shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The weights' format.
    pub fn weights(&self) -> LowBit {
        self.weights
    }

    /// How x is taken.
    pub fn input(&self) -> Format {
        self.input
    }

    /// The weights' scale.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Bytes of packed weights.
    pub fn bytes(&self) -> usize {
        self.linears.iter().map(|linear| linear.bytes()).sum()
    }

    /// The calibrated scale of x.
    pub fn calibrated(&self) -> Option<f32> {
        match self.calibrated.load(Ordering::Relaxed) {
            0 => None,
            bits => Some(f32::from_bits(bits)),
        }
    }

    /// The first matrix: what a plan is told of.
    pub fn linear(&self) -> &Linear {
        &self.linears[0]
    }

    /// Finds the scale of all of x and keeps it for the calls that follow; without x it is forgotten.
    pub fn calibrate(&self, x: Option<&[f32]>) -> Result<()> {
        let Some(x) = x else {
            self.calibrated.store(0, Ordering::Relaxed);
            return Ok(());
        };
        let Some(width) = self.input.width else {
            return Err(fail!(InvalidArgument, "x is taken as floats: there is no scale to calibrate"));
        };
        check_finite(x, 0, "x")?;
        let mut tensor = Tensor::new(width, self.input.span);
        tensor.add(x);
        let scale = tensor.calibrated()?;
        self.calibrated.store(scale.to_bits(), Ordering::Relaxed);
        Ok(())
    }

    /// Values of x and of y; refused where the call does not fit the weights.
    pub fn sizes(&self, batch: &Batch) -> Result<(usize, usize)> {
        let Shape { kind, heads, latent, features } = self.shape;
        let Batch { batch: b, input_heads, time, latent: l } = *batch;
        let good = match kind {
            Kind::Lowrank => input_heads == heads || input_heads == 1,
            Kind::Tail => input_heads == heads,
        };
        if !good {
            return Err(fail!(InvalidArgument, "x has {input_heads} heads, the weights have {heads}"));
        }
        if l == 0 || l > latent {
            return Err(fail!(InvalidArgument, "{l} latent features, the weights have {latent}"));
        }
        let product = |factors: [usize; 4]| {
            let count = factors.iter().try_fold(1usize, |n, f| n.checked_mul(*f));
            count.filter(|n| *n <= isize::MAX as usize / 4)
        };
        let (x, y) = match kind {
            Kind::Lowrank => (product([b, input_heads, time, features]), product([b, heads, time, l])),
            Kind::Tail => (product([b, heads, time, l]), product([b, 1, time, features])),
        };
        let tokens = b.checked_mul(time).filter(|n| *n as u64 <= BATCH_MAX);
        match (x, y, tokens) {
            (Some(x), Some(y), Some(_)) => Ok((x, y)),
            _ => Err(fail!(InvalidArgument, "{b} sequences of {time} tokens are more than an address space")),
        }
    }

    /// The rows of x that have scales of their own: tokens, of every head of a low-rank x.
    fn rows(&self, batch: &Batch) -> usize {
        match self.shape.kind {
            Kind::Lowrank => batch.batch * batch.input_heads * batch.time,
            Kind::Tail => batch.batch * batch.time,
        }
    }

    /// Columns of a row of x as it is quantised.
    fn row_columns(&self, batch: &Batch) -> usize {
        match self.shape.kind {
            Kind::Lowrank => self.shape.features,
            Kind::Tail => self.shape.gather(batch.latent, 0).columns(),
        }
    }

    /// Reads the row `r` of x ([`Projection::rows`]); a tail's in runs.
    fn read_row(&self, batch: &Batch, x: &[f32], r: usize, row: &mut [f32]) {
        match self.shape.kind {
            Kind::Lowrank => row.copy_from_slice(&x[r * row.len()..][..row.len()]),
            Kind::Tail => self.tokens(batch, x, r / batch.time).read_row(r % batch.time, row),
        }
    }

    /// The tokens of a tail's sequence.
    fn tokens<'x>(&self, batch: &Batch, x: &'x [f32], sequence: usize) -> MatrixRef<'x> {
        let Batch { time, latent, .. } = *batch;
        let per_sequence = self.shape.heads * time * latent;
        let x = &x[sequence * per_sequence..][..per_sequence];
        // SAFETY: `x` has `heads * time * latent` floats (the line above): token t of head h begins at
        // float (h * time + t) * latent, which is what stride and head_stride say.
        unsafe { MatrixRef::gathered(x.as_ptr().cast(), latent * 4, self.shape.gather(latent, time)) }
    }

    /// Scales in place of those that the kernels find row by row: none, one, or one a row.
    fn scales(&self, batch: &Batch, x: &[f32]) -> Result<Vec<f32>> {
        let Some(width) = self.input.width else { return Ok(Vec::new()) };
        if let Some(scale) = self.calibrated() {
            self.profile.calibrated_scales.fetch_add(1, Ordering::Relaxed);
            return filled(1, scale, "a scale");
        }
        self.profile.dynamic_scales.fetch_add(1, Ordering::Relaxed);
        if self.input.per_tensor {
            let mut tensor = Tensor::new(width, self.input.span);
            tensor.add(x);
            return filled(1, tensor.scale(), "a scale");
        }
        let padded = self.shape.kind == Kind::Tail && !batch.latent.is_multiple_of(RUN);
        if self.input.span == Span::Largest || !padded {
            return Ok(Vec::new());
        }
        // The mean is that of the features, without the zeros that fill a run.
        let mut row = filled(self.row_columns(batch), 0.0f32, "a row")?;
        let mut scales = filled(self.rows(batch), 0.0f32, "scales")?;
        let count = (self.shape.heads * batch.latent) as f32;
        for (r, scale) in scales.iter_mut().enumerate() {
            self.read_row(batch, x, r, &mut row);
            let sum = match width {
                Width::Uint8 => math::sum(&row, |p, v| p + if v > 0.0 { v } else { 0.0 }),
                _ => math::sum(&row, |p, v| p + v.abs()),
            };
            *scale = ((2.0 * (sum / count)).max(1e-8) / width.limit()).max(1e-8);
        }
        Ok(scales)
    }

    /// The matrix of a tail for so many latent features.
    fn tail(&self, l: usize) -> Result<Arc<Linear>> {
        let whole = &self.linears[0];
        let columns = self.shape.gather(l, 0).columns();
        if columns == whole.in_features() {
            return Ok(whole.clone());
        }
        let mut prefix = self.prefix.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((_, linear)) = prefix.as_ref().filter(|(kept, _)| *kept == columns) {
            return Ok(linear.clone());
        }
        let packed = Packed::prefix(whole, Linear::packed, columns)?;
        let options = Options { activation: self.activation(), ..Options::default() };
        let linear = Arc::new(Linear::of(packed, &options, self.isa)?);
        *prefix = Some((columns, linear.clone()));
        Ok(linear)
    }

    /// y of x. Where a value of x is not finite nothing is written.
    pub fn forward(
        &self,
        batch: &Batch,
        x: &[f32],
        y: &mut [f32],
        around: &Around,
        machine: &Machine<'_>,
    ) -> Result<()> {
        let (x_count, y_count) = self.sizes(batch)?;
        if (x.len(), y.len()) != (x_count, y_count) {
            return Err(fail!(
                InvalidArgument,
                "{} values of x and {} of y, {x_count} and {y_count} expected",
                x.len(),
                y.len()
            ));
        }
        if around.threshold.is_some_and(|t| !t.is_finite()) {
            return Err(fail!(InvalidArgument, "the threshold is {:?}", around.threshold));
        }
        check_finite(x, 0, "x")?;
        if x.is_empty() {
            return Ok(());
        }
        let begin = machine.timed.then(Instant::now);
        let scales = self.scales(batch, x)?;
        let stages = machine.timed.then(Stages::default);
        self.run(batch, x, &scales, y, around, stages.as_ref(), machine)?;
        if let Some(stages) = stages {
            let products: u64 = (0..LAYERS_MAX).map(|i| stages.of_product(i)).sum();
            self.profile.quantize.fetch_add(stages.of(Stage::Quantize).0, Ordering::Relaxed);
            self.profile.multiply.fetch_add(products + stages.of(Stage::Epilogue).0, Ordering::Relaxed);
        }
        if around.quantize_output {
            self.round_output(batch, y)?;
        }
        let code_bytes = self.input.row_bytes(self.row_columns(batch)) * self.rows(batch);
        self.profile.calls.fetch_add(1, Ordering::Relaxed);
        self.profile.code_bytes.fetch_max(code_bytes as u64, Ordering::Relaxed);
        self.profile.output_bytes.fetch_max(4 * y.len() as u64, Ordering::Relaxed);
        add_time(&self.profile.total, begin);
        Ok(())
    }

    /// The products, with scales that were found before.
    fn run(
        &self,
        batch: &Batch,
        x: &[f32],
        scales: &[f32],
        y: &mut [f32],
        around: &Around,
        stages: Option<&Stages>,
        machine: &Machine<'_>,
    ) -> Result<()> {
        let Shape { kind, heads, features, .. } = self.shape;
        let Batch { batch: sequences, input_heads, time, latent: l } = *batch;
        let epilogue = match around.threshold {
            None => Epilogue::None,
            Some(threshold) => Epilogue::Relu { threshold },
        };
        let of_rows = |first: usize| match scales.len() {
            0 | 1 => scales,
            _ => &scales[first..first + time],
        };
        let call = |targets: &[Target<'_>], x: MatrixRef<'_>, first: usize| {
            let extra = Extra { scales: of_rows(first), stages };
            layer::forward_with(targets, time, x, extra, None, machine.heap, machine.executor)
        };
        let call_there = |targets: &[HostTarget<'_>], x: MatrixRef<'_>, first: usize| {
            DeviceLayer::forward(targets, time, x, of_rows(first), None)
        };
        match (kind, &self.device) {
            (Kind::Tail, Some(OnDevice { layers, .. })) => {
                let columns = self.shape.gather(l, 0).columns();
                for (sequence, y) in y.chunks_exact_mut(time * features).enumerate() {
                    let whole = HostTarget::new(&layers[0], MatrixMut::of(y, features));
                    let target = HostTarget { columns, epilogue, ..whole };
                    call_there(&[target], self.tokens(batch, x, sequence), sequence * time)?;
                }
            }
            (Kind::Tail, None) => {
                let linear = self.tail(l)?;
                for (sequence, y) in y.chunks_exact_mut(time * features).enumerate() {
                    let y = MatrixMut::of(y, features);
                    let target = Target { epilogue, ..Target::new(&linear, y) };
                    call(&[target], self.tokens(batch, x, sequence), sequence * time)?;
                }
            }
            (Kind::Lowrank, on) => {
                // Heads that share x share its codes too.
                let together = (heads / input_heads).min(LAYERS_MAX);
                let of_head = |sequence: usize, i: usize| {
                    let head = if input_heads == 1 { 0 } else { i };
                    let first = (sequence * input_heads + head) * time;
                    (MatrixRef::of(&x[first * features..][..time * features], features), first)
                };
                for sequence in 0..sequences {
                    let y = &mut y[sequence * heads * time * l..][..heads * time * l];
                    let ys = y.chunks_exact_mut(time * l).map(|y| MatrixMut::of(y, l));
                    if let Some(OnDevice { layers, .. }) = on {
                        let mut targets = Vec::new();
                        reserve(&mut targets, heads, "heads")?;
                        targets.extend(layers.iter().zip(ys).map(|(layer, y)| HostTarget {
                            outputs: l,
                            epilogue,
                            ..HostTarget::new(layer, y)
                        }));
                        for (i, targets) in targets.chunks(together).enumerate() {
                            let (x, first) = of_head(sequence, i);
                            call_there(targets, x, first)?;
                        }
                        continue;
                    }
                    let mut targets = Vec::new();
                    reserve(&mut targets, heads, "heads")?;
                    targets.extend(self.linears.iter().zip(ys).map(|(linear, y)| Target {
                        outputs: l,
                        epilogue,
                        ..Target::new(linear, y)
                    }));
                    for (i, targets) in targets.chunks(together).enumerate() {
                        let (x, first) = of_head(sequence, i);
                        call(targets, x, first)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Quantises y as x is, and takes it back: each row of y for itself, or all together.
    fn round_output(&self, batch: &Batch, y: &mut [f32]) -> Result<()> {
        let columns = match self.shape.kind {
            Kind::Lowrank => batch.latent,
            Kind::Tail => self.shape.features,
        };
        round_rows(self.input, y, columns, self.isa)
    }
}

/// Quantises rows and takes them back. f16: rounds to it.
pub fn round_rows(format: Format, y: &mut [f32], columns: usize, isa: crate::cpu::Isa) -> Result<()> {
    let mut coder = Coder::new(format, columns, isa)?;
    let mut bytes = filled(format.row_bytes(columns), 0u8, "a row of codes")?;
    let fixed = match format.width {
        Some(width) if format.per_tensor => {
            let mut tensor = Tensor::new(width, format.span);
            tensor.add(y);
            Some(tensor.scale())
        }
        _ => None,
    };
    y.chunks_exact_mut(columns).try_for_each(|row| coder.round(row, fixed, &mut bytes))
}

/// What f32 weights become when they are rounded and taken back.
pub fn rounded_weights(format: LowBit, weights: &[f32], out: &mut [f32]) -> Result<()> {
    Codes::of(encoding(format)?, weights)?.values(out);
    Ok(())
}

/// The weights of an artifact's bytes; `ty` is `Binary`, `Ternary2` or `Int8`.
pub fn artifact_weights(ty: crate::types::Type, packed: &[u8], scale: f32, out: &mut [f32]) -> Result<()> {
    Codes::unpack(ty, packed, out.len(), scale)?.values(out);
    Ok(())
}
