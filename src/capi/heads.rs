//! Projections of heads.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::boundary::guard;
use super::codes::{RangeArg, read_format};
use super::context::{self, Context, out_handle};
use super::enums::*;
use super::handle::{self, Kind as HandleKind};
use super::low_bit::{LowBitArg, floats, floats_mut};
use super::options::{self, Sized32};
use super::types::*;
use crate::activation::Span;
use crate::error::{Result, fail};
use crate::heads::{Around, Backward, Batch, Input, Kind, Projection, Shape, Weights};
use crate::plan::LowBit;
use crate::train::Machine;

/// Which way a projection goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_heads_kind {
    /// x [batch, heads | 1, time, features] times weights [heads, features, latent] gives
    /// y [batch, heads, time, latent]. With 1 head of x all share it.
    BL_HEADS_LOWRANK = 0,
    /// x [batch, heads, time, latent] times weights [heads * latent, features] gives
    /// y [batch, 1, time, features]: summed over heads and latent features.
    BL_HEADS_TAIL = 1,
}

args! { HeadsKindArg }

/// The weights of a projection of heads, packed. Calls that take it as `const` may run at the same time.
pub struct bl_heads {
    _opaque: [u8; 0],
}

/// How a projection is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_heads_options {
    pub struct_size: u32,
    pub kind: HeadsKindArg,
    /// At least 1, as are latent and features: these have no default.
    pub heads: i64,
    /// Of each head.
    pub latent: i64,
    /// Of a token: embd of a low-rank projection, dim of a tail.
    pub features: i64,
    /// int8, sign1, ternary158 or packed2. One scale for all weights, from the mean magnitude m: int8
    /// max(2 m, 1e-8) / 127; the others max(m, 1e-8), and ternary is 0 where |w| is below it.
    pub weight_format: LowBitArg,
    /// fp16 (x is taken as floats), int8, int4 or uint8_pos. Unset: fp16.
    pub input_format: LowBitArg,
    pub input_range: RangeArg,
    /// BL_HEADS_*.
    pub flags: u32,
    /// BL_HEADS_PACKED: the scale of the weights.
    pub scale: f32,
    /// Must be 0.
    pub reserved: u32,
    /// Where bl_heads_forward runs, a number of bl_device_describe: 0, the CPU, or a GPU, with x and y in host
    /// memory all the same. The weights are kept on the CPU too: gradients are computed there.
    pub device: u32,
    /// Must be 0.
    pub device_flags: u32,
}

/// The shape of a call, and what it does beside the product.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_heads_run {
    pub struct_size: u32,
    /// BL_HEADS_RELU, BL_HEADS_QUANTIZE_OUTPUT.
    pub flags: u32,
    /// batch * time may be 0: nothing is computed then.
    pub batch: i64,
    /// Heads of x: those of the weights, or 1 for a low-rank projection. There is no default.
    pub input_heads: i64,
    pub time: i64,
    /// How many of each head's latent features there are in y (low-rank) or x (tail): the first ones.
    /// 0: all. Nothing is packed for it.
    pub latent: i64,
    /// BL_HEADS_RELU: y = max(y - threshold, 0).
    pub threshold: f32,
    /// Must be 0.
    pub reserved: u32,
}

/// A backward call: arrays, and how many values they have.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_heads_gradients {
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// The x of the forward call; or NULL, and what bl_heads_save made of it.
    pub x: *const f32,
    pub x_count: i64,
    pub codes: *const u8,
    pub code_bytes: i64,
    pub scales: *const f32,
    pub scale_count: i64,
    /// The gradient of y.
    pub dy: *const f32,
    pub dy_count: i64,
    /// With BL_HEADS_RELU: the y that the forward call gave. NULL: it is computed again, from the same
    /// codes, and is the same to the bit (but for fp16, which the forward call does not round). A decoder tail with BL_HEADS_RELU has no gradient here: it is
    /// BL_ERROR_INVALID_ARGUMENT.
    pub y: *const f32,
    pub y_count: i64,
    /// Written: the gradient of x. NULL: not wanted.
    pub dx: *mut f32,
    pub dx_count: i64,
    /// Added to: the gradient of the weights, in their order. NULL: not wanted.
    pub dw: *mut f32,
    pub dw_count: i64,
}

/// What a projection is, and what it has done. Times are in nanoseconds, of a context made with
/// BL_CONTEXT_PROFILE only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_heads_info {
    pub struct_size: u32,
    pub kind: HeadsKindArg,
    pub heads: i64,
    pub latent: i64,
    pub features: i64,
    pub weight_format: LowBitArg,
    pub input_format: LowBitArg,
    /// Of the weights.
    pub scale: f32,
    /// Calibrated, of x; 0: none.
    pub input_scale: f32,
    pub bytes_packed: u64,
    /// Forward calls, and their time: all; and, summed over threads, staging and quantising x, products and
    /// what is done to them.
    pub calls: u64,
    pub total_time: u64,
    pub quantize_time: u64,
    pub multiply_time: u64,
    /// Rounding and packing weights.
    pub pack_time: u64,
    /// Calls (forward, save, backward) that found scales in x, and those that used a calibrated one.
    pub scale_misses: u64,
    pub scale_hits: u64,
    /// Most bytes of codes of x, and of y, of one call.
    pub peak_code_bytes: u64,
    pub peak_output_bytes: u64,
    /// Where bl_heads_forward runs.
    pub device: u32,
    pub reserved: u32,
}

/// `bl_heads_options.flags`: x has one scale, not one for each token.
pub const BL_HEADS_PER_TENSOR: u32 = 1;
/// The weights are codes that were rounded before, as bl_pack_weights packs them.
pub const BL_HEADS_PACKED: u32 = 2;
/// `bl_heads_run.flags`: y = max(y - threshold, 0).
pub const BL_HEADS_RELU: u32 = 1;
/// y is quantised as x is, and taken back: y = code * scale.
pub const BL_HEADS_QUANTIZE_OUTPUT: u32 = 2;

// SAFETY: repr(C), first field `struct_size: u32`, no padding (tests/abi.rs), integers, floats, pointers.
unsafe impl Sized32 for bl_heads_options {
    const NAME: &'static str = "bl_heads_options";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_heads_run {
    const NAME: &'static str = "bl_heads_run";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_heads_gradients {
    const NAME: &'static str = "bl_heads_gradients";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_heads_info {
    const NAME: &'static str = "bl_heads_info";
}

/// The body of a `bl_heads`.
pub struct Heads {
    context: Arc<Context>,
    projection: Projection,
    counted: u64,
}

impl HandleKind for Heads {
    const TAG: u32 = 0x424c_6864;
    const NAME: &'static str = "projection of heads";
}

impl Drop for Heads {
    fn drop(&mut self) {
        self.context.usage.handles.fetch_sub(1, Ordering::Relaxed);
        self.context.usage.packed.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Context {
    /// What products are computed with.
    pub fn machine(&self) -> Machine<'_> {
        Machine { isa: self.isa, heap: &self.heap, executor: &self.executor, timed: self.profile.is_some() }
    }
}

fn size(n: i64, what: &str) -> Result<usize> {
    usize::try_from(n).map_err(|_| fail!(InvalidArgument, "{what} is {n}"))
}

/// # Safety
/// As `options::read`.
unsafe fn read_run(run: *const bl_heads_run, projection: &Projection) -> Result<(Batch, Around)> {
    if run.is_null() {
        return Err(fail!(InvalidArgument, "run is NULL"));
    }
    // SAFETY: the caller's contract.
    let run = unsafe { options::read(run)? };
    let unknown = run.flags & !(BL_HEADS_RELU | BL_HEADS_QUANTIZE_OUTPUT);
    if unknown != 0 {
        return Err(fail!(InvalidArgument, "run flags {unknown:#x} are unknown"));
    }
    if run.reserved != 0 {
        return Err(fail!(InvalidArgument, "bl_heads_run.reserved is {}: it must be 0", run.reserved));
    }
    let relu = run.flags & BL_HEADS_RELU != 0;
    if run.threshold != 0.0 && !relu {
        return Err(fail!(InvalidArgument, "threshold is {}, but BL_HEADS_RELU is not set", run.threshold));
    }
    let latent = match size(run.latent, "latent")? {
        0 => projection.shape().latent,
        l => l,
    };
    let batch = Batch {
        batch: size(run.batch, "batch")?,
        input_heads: size(run.input_heads, "input_heads")?,
        time: size(run.time, "time")?,
        latent,
    };
    let around = Around {
        threshold: relu.then_some(run.threshold),
        quantize_output: run.flags & BL_HEADS_QUANTIZE_OUTPUT != 0,
    };
    Ok((batch, around))
}

/// Packs the weights of a projection: f32 in the order that bl_heads_kind says, rounded here; or, with
/// BL_HEADS_PACKED, codes that were rounded before. `weight_bytes` is their size. Free it with bl_free.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_create(
    context: *const bl_context,
    options: *const bl_heads_options,
    weights: *const std::ffi::c_void,
    weight_bytes: usize,
    out: *mut *mut bl_heads,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let options = options::read(options)?;
            let kind = match options.kind.0 {
                0 => Kind::Lowrank,
                1 => Kind::Tail,
                n => return Err(fail!(Unsupported, "kind of heads {n} is unknown to this library")),
            };
            if options.flags & !(BL_HEADS_PER_TENSOR | BL_HEADS_PACKED) != 0 || options.reserved != 0 {
                return Err(fail!(InvalidArgument, "heads flags {:#x} are unknown", options.flags));
            }
            if options.device_flags != 0 {
                return Err(fail!(
                    InvalidArgument,
                    "bl_heads_options.device_flags is {}",
                    options.device_flags
                ));
            }
            let shape = Shape {
                kind,
                heads: size(options.heads, "heads")?,
                latent: size(options.latent, "latent")?,
                features: size(options.features, "features")?,
            };
            let format = LowBit::from_number(options.weight_format.0)?;
            let per_tensor = options.flags & BL_HEADS_PER_TENSOR != 0;
            let input = read_format(options.input_format, options.input_range, per_tensor)?;
            shape.count()?;
            let source = if options.flags & BL_HEADS_PACKED != 0 {
                if weights.is_null() || weight_bytes > isize::MAX as usize {
                    return Err(fail!(InvalidArgument, "weights: {weight_bytes} bytes at {weights:p}"));
                }
                // SAFETY: not NULL, and the header's rules.
                let bytes = std::slice::from_raw_parts(weights.cast(), weight_bytes);
                Weights::Packed(bytes, options.scale)
            } else {
                if options.scale != 0.0 || !weight_bytes.is_multiple_of(4) {
                    return Err(fail!(
                        InvalidArgument,
                        "{weight_bytes} bytes of f32 weights with a scale of {}: whole floats and 0 expected",
                        options.scale
                    ));
                }
                Weights::Masters(floats(weights.cast(), (weight_bytes / 4) as i64, "weights")?)
            };
            let mut projection = Projection::new(shape, format, input, source, &context.machine())?;
            if options.device != 0 {
                projection.put_on(&context.lanes(options.device)?)?;
            }
            let counted = projection.bytes() as u64;
            context.usage.handles.fetch_add(1, Ordering::Relaxed);
            context.usage.packed.fetch_add(counted, Ordering::Relaxed);
            *out = handle::make::<bl_heads, _>(Arc::new(Heads { context, projection, counted }))?;
            Ok(())
        })
    }
}

/// Rounds and packs other f32 weights, for the next step of a training. Must be the only call on the
/// handle. After a failure it is as it was. A calibrated scale of x stays.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_update(
    heads: *mut bl_heads,
    weights: *const f32,
    count: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_create`; the header's rules make this the only call on the handle.
    unsafe {
        guard(error, || {
            let heads: &mut Heads = handle::get_mut(heads)?;
            let weights = floats(weights, count, "weights")?;
            heads.projection.update(Weights::Masters(weights), &heads.context.machine())
        })
    }
}

/// y of x, both f32 arrays that touch in the shapes that bl_heads_kind says. Integer inputs are
/// quantised once for all heads that share them. A value of x that is not finite is
/// BL_ERROR_INVALID_ARGUMENT, and nothing is written.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_forward(
    heads: *const bl_heads,
    run: *const bl_heads_run,
    x: *const f32,
    x_count: i64,
    y: *mut f32,
    y_count: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_create`; x and y have as many floats as said by the header's rules.
    unsafe {
        guard(error, || {
            let heads: &Heads = handle::get(heads)?;
            let (batch, around) = read_run(run, &heads.projection)?;
            let (x, y) = (floats(x, x_count, "x")?, floats_mut(y, y_count, "y")?);
            heads.projection.forward(&batch, x, y, &around, &heads.context.machine())
        })
    }
}

/// Keeps x for bl_heads_backward in the projection's own input format: for every token (and head of a
/// low-rank x) a row of codes, and its scale, or one scale with BL_HEADS_PER_TENSOR; fp16 has one scale
/// of 1. A tail's rows hold 32 features of every head in turn. *code_bytes and *scale_count are the sizes
/// of the arrays, and what is needed; with codes and scales NULL only that is told.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_save(
    heads: *const bl_heads,
    run: *const bl_heads_run,
    x: *const f32,
    x_count: i64,
    codes: *mut u8,
    code_bytes: *mut i64,
    scales: *mut f32,
    scale_count: *mut i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_forward`.
    unsafe {
        guard(error, || {
            let heads: &Heads = handle::get(heads)?;
            if code_bytes.is_null() || scale_count.is_null() {
                return Err(fail!(InvalidArgument, "code_bytes or scale_count is NULL"));
            }
            let projection = &heads.projection;
            let (batch, _) = read_run(run, projection)?;
            let (bytes, count) = projection.saved_sizes(&batch, projection.input())?;
            let room = (code_bytes.read(), scale_count.read());
            code_bytes.write(bytes as i64);
            scale_count.write(count as i64);
            if codes.is_null() && scales.is_null() {
                return Ok(());
            }
            if room.0 < bytes as i64 || room.1 < count as i64 {
                return Err(fail!(
                    BufferTooSmall,
                    "room for {} bytes and {} scales, {bytes} and {count} needed",
                    room.0,
                    room.1
                ));
            }
            if codes.is_null() {
                return Err(fail!(InvalidArgument, "codes is NULL, scales is not"));
            }
            let x = floats(x, x_count, "x")?;
            let scales = floats_mut(scales, count as i64, "scales")?;
            // SAFETY: not NULL; room for that many was checked above.
            let codes = std::slice::from_raw_parts_mut(codes, bytes);
            projection.save(&batch, x, codes, scales)
        })
    }
}

/// Gradients of a forward call, straight through the rounding:
///   g = dy, but with BL_HEADS_RELU 0 where y is 0;
///   dx = g times the rounded weights (code * scale), summed over heads that share x;
///   dw += the rounded x (code * scale), transposed, times g.
/// Values that were clipped pass gradients too, and scales have none. `run` is that of the forward call
/// (quantised outputs pass g as it is). The same bits for any number of threads; another CPU may
/// differ in the last ones. Everything is checked before anything is written; after BL_ERROR_OUT_OF_MEMORY
/// dx and dw may be written in part.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_backward(
    heads: *const bl_heads,
    run: *const bl_heads_run,
    gradients: *const bl_heads_gradients,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_forward`.
    unsafe {
        guard(error, || {
            let heads: &Heads = handle::get(heads)?;
            let (batch, around) = read_run(run, &heads.projection)?;
            if gradients.is_null() {
                return Err(fail!(InvalidArgument, "gradients is NULL"));
            }
            let g = options::read(gradients)?;
            if g.reserved != 0 {
                return Err(fail!(
                    InvalidArgument,
                    "bl_heads_gradients.reserved is {}: it must be 0",
                    g.reserved
                ));
            }
            let x = match (g.x.is_null(), g.codes.is_null()) {
                (false, true) => Input::Floats(floats(g.x, g.x_count, "x")?),
                (true, false) => {
                    let bytes = size(g.code_bytes, "code_bytes")?;
                    // SAFETY: not NULL, and the header's rules.
                    let codes = std::slice::from_raw_parts(g.codes, bytes);
                    Input::Saved(codes, floats(g.scales, g.scale_count, "scales")?)
                }
                _ => return Err(fail!(InvalidArgument, "x or codes: one of them, and the other NULL")),
            };
            let y = if g.y.is_null() { None } else { Some(floats(g.y, g.y_count, "y")?) };
            let dx = if g.dx.is_null() { None } else { Some(floats_mut(g.dx, g.dx_count, "dx")?) };
            let dw = if g.dw.is_null() { None } else { Some(floats_mut(g.dw, g.dw_count, "dw")?) };
            let dy = floats(g.dy, g.dy_count, "dy")?;
            let call = Backward { batch, x, dy, threshold: around.threshold, y, dx, dw };
            heads.projection.backward(call, &heads.context.machine())
        })
    }
}

/// Fixes the scale of the inputs: finds one for all of x (`count` f32 values) and uses it in the calls that
/// follow, in place of what they would find; x NULL: no longer. It is about activations in a running
/// projection, as is bl_layer_calibrate; bl_calibrate gathers what bl_model_quantize rounds weights by.
/// May run beside other calls, which use the old scale or the new one.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_calibrate(
    heads: *const bl_heads,
    x: *const f32,
    count: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_forward`.
    unsafe {
        guard(error, || {
            let heads: &Heads = handle::get(heads)?;
            let x = if x.is_null() { None } else { Some(floats(x, count, "x")?) };
            heads.projection.calibrate(x)
        })
    }
}

/// Shape, size and counters of a projection. reset != 0 zeroes the counters after the copy.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_heads_describe(
    heads: *const bl_heads,
    info: *mut bl_heads_info,
    reset: u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_heads_create`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let Heads { projection, .. } = handle::get(heads)?;
            let profile = &projection.profile;
            let take = |counter: &AtomicU64| match reset {
                0 => counter.load(Ordering::Relaxed),
                _ => counter.swap(0, Ordering::Relaxed),
            };
            let Shape { kind, heads, latent, features } = projection.shape();
            let input = match projection.input().width {
                None => LowBit::Fp16,
                Some(crate::activation::Width::Int8) => LowBit::Int8,
                Some(crate::activation::Width::Int4) => LowBit::Int4,
                Some(crate::activation::Width::Uint8) => LowBit::Uint8,
            };
            out.fill(&bl_heads_info {
                struct_size: 0,
                kind: HeadsKindArg(kind as u32),
                heads: heads as i64,
                latent: latent as i64,
                features: features as i64,
                weight_format: LowBitArg(projection.weights() as u32),
                input_format: LowBitArg(input as u32),
                scale: projection.scale(),
                input_scale: projection.calibrated().unwrap_or(0.0),
                bytes_packed: projection.bytes() as u64,
                calls: take(&profile.calls),
                total_time: take(&profile.total),
                quantize_time: take(&profile.quantize),
                multiply_time: take(&profile.multiply),
                pack_time: take(&profile.pack),
                scale_misses: take(&profile.dynamic_scales),
                scale_hits: take(&profile.calibrated_scales),
                peak_code_bytes: take(&profile.code_bytes),
                peak_output_bytes: take(&profile.output_bytes),
                device: projection.device(),
                reserved: 0,
            });
            Ok(())
        })
    }
}

/// The span of a range.
pub(super) fn span(range: RangeArg) -> Result<Span> {
    match range.0 {
        0 => Ok(Span::Largest),
        1 => Ok(Span::TwiceMean),
        n => Err(fail!(Unsupported, "range {n} is unknown to this library")),
    }
}
