//! Compressed state.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::boundary::guard;
use super::context::{self, Context, out_handle};
use super::enums::*;
use super::handle::{self, Kind};
use super::low_bit::{floats, floats_mut};
use super::options::{self, Sized32};
use super::types::*;
use crate::error::{Result, fail};
use crate::state::{Format, Gate, State as Compressed, Statistics, Update};

/// How a compressed state is stored: blocks of 32 values with one f32 scale each, codes from the lowest
/// bits of a byte on, each block from a byte's beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_state_format {
    /// s = max(max |v| / 127, 1e-8), round(v / s) in a byte, halves away from zero.
    BL_STATE_INT8 = 0,
    /// s = max(mean |v|, 1e-8); 0 where |v| < s, else the sign: code q + 1 in 2 bits.
    BL_STATE_TERNARY = 1,
    /// s = max(mean |v|, 1e-8); +1 (bit 1) where v >= 0, else -1.
    BL_STATE_BINARY = 2,
}

/// An array of four dimensions, compressed. Any thread may make any call at any time but bl_free, a thread too
/// that waits inside a host's parallel-for of another call on the same state. Updates at one time take effect
/// one after another.
pub struct bl_state {
    _opaque: [u8; 0],
}

args! { StateFormatArg }

/// How a state is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_state_options {
    pub struct_size: u32,
    pub format: StateFormatArg,
    /// BL_STATE_MEASURED.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Outermost first; taken flat. Each at least 1.
    pub shape: [i64; 4],
}

/// What a state is, and what packing has lost since it was made or last reset (BL_STATE_MEASURED; all 0
/// without). Averages are over calls of bl_state_update.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_state_info {
    pub struct_size: u32,
    pub format: StateFormatArg,
    pub shape: [i64; 4],
    pub count: i64,
    /// Bytes of the codes, and how many scales: what bl_state_read copies.
    pub code_bytes: u64,
    pub scale_count: u64,
    /// Bytes that it holds: twice codes and scales, so that an update that fails changes nothing. Calls at one
    /// time may need these once more each, until they return.
    pub bytes_held: u64,
    /// Updates that were measured.
    pub calls: u64,
    /// Sums over calls of the root mean square before and after.
    pub total_original_rms: f64,
    pub total_restored_rms: f64,
    /// Sum over calls of the mean |before - after|.
    pub total_mean_error: f64,
    pub max_error: f64,
    pub total_original_bytes: u64,
    pub total_packed_bytes: u64,
    /// total_mean_error / calls; 0 where calls is 0.
    pub mean_error: f64,
    /// total_restored_rms / total_original_rms; 0 where the latter is 0.
    pub rms_ratio: f64,
    /// total_packed_bytes / total_original_bytes; 0 where the latter is 0.
    pub compression_ratio: f64,
}

/// Bounds on what compression may lose. 0: the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_gate_options {
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Of mean_error: 0.02.
    pub max_mean_error: f64,
    /// Of max_error: 0.05.
    pub max_error: f64,
    /// Of rms_ratio: 0.95 to 1.05.
    pub min_rms_ratio: f64,
    pub max_rms_ratio: f64,
    /// Of compression_ratio: 0.5.
    pub max_compression_ratio: f64,
}

/// `bl_state_options.flags`: updates measure what they lose.
pub const BL_STATE_MEASURED: u32 = 1;

// SAFETY: repr(C), first field `struct_size: u32`, no padding (tests/abi.rs), integers and floats only.
unsafe impl Sized32 for bl_state_options {
    const NAME: &'static str = "bl_state_options";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_state_info {
    const NAME: &'static str = "bl_state_info";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_gate_options {
    const NAME: &'static str = "bl_gate_options";
}

/// The body of a `bl_state`.
pub struct State {
    context: Arc<Context>,
    state: Compressed,
}

impl Kind for State {
    const TAG: u32 = 0x424c_7374;
    const NAME: &'static str = "state";
}

impl Drop for State {
    fn drop(&mut self) {
        self.context.usage.handles.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes a state of zeros: a recurrent state of, say, [batch, heads, latent, embd], kept in a quarter of
/// its memory or less. Free it with bl_free.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_create(
    context: *const bl_context,
    options: *const bl_state_options,
    out: *mut *mut bl_state,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let options = options::read(options)?;
            let format = Format::ALL.into_iter().find(|f| *f as u32 == options.format.0);
            let format = format.ok_or_else(|| {
                fail!(Unsupported, "state format {} is unknown to this library", options.format.0)
            })?;
            if options.flags & !BL_STATE_MEASURED != 0 || options.reserved != 0 {
                return Err(fail!(InvalidArgument, "state flags {:#x} are unknown", options.flags));
            }
            let shape = options.shape;
            if shape.iter().any(|d| usize::try_from(*d).is_err()) {
                return Err(fail!(InvalidArgument, "a state of shape {shape:?}"));
            }
            let measured = options.flags & BL_STATE_MEASURED != 0;
            let state = Compressed::new(format, shape.map(|d| d as usize), measured, context.isa)?;
            context.usage.handles.fetch_add(1, Ordering::Relaxed);
            *out = handle::make::<bl_state, _>(Arc::new(State { context, state }))?;
            Ok(())
        })
    }
}

/// state = factor * state + values, packed again in place; factor 0: state = values. `count` is the
/// state's. Every operation is one f32 rounding. A value, or a sum, that is not finite is refused, and
/// nothing changes.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_update(
    state: *const bl_state,
    factor: f32,
    values: *const f32,
    count: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_create`; `values` has `count` floats by the header's rules.
    unsafe {
        guard(error, || {
            let State { context, state } = handle::get(state)?;
            let values = floats(values, count, "values")?;
            let update = if factor == 0.0 { Update::Replace } else { Update::Add { factor } };
            state.pack(values, update, &context.executor)
        })
    }
}

/// Writes the state's values, code * scale. `count` is the state's.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_unpack(
    state: *const bl_state,
    values: *mut f32,
    count: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_update`.
    unsafe {
        guard(error, || {
            let State { context, state } = handle::get(state)?;
            state.unpack(floats_mut(values, count, "values")?, &context.executor)
        })
    }
}

/// Copies codes and scales out: what bl_state_write takes back. Sizes are those of bl_state_describe.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_read(
    state: *const bl_state,
    codes: *mut u8,
    code_bytes: usize,
    scales: *mut f32,
    scale_count: usize,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_update`.
    unsafe {
        guard(error, || {
            let State { state, .. } = handle::get(state)?;
            check_parts(codes, code_bytes, scales, scale_count)?;
            // SAFETY: not NULL and aligned (the line above), writable by the header's rules.
            let (codes, scales) = (
                std::slice::from_raw_parts_mut(codes, code_bytes),
                std::slice::from_raw_parts_mut(scales, scale_count),
            );
            state.read(codes, scales)
        })
    }
}

/// Takes codes and scales of a state of the same format and shape. Scales that are not finite and the
/// ternary code 3 are refused; nothing changes then.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_write(
    state: *const bl_state,
    codes: *const u8,
    code_bytes: usize,
    scales: *const f32,
    scale_count: usize,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_update`.
    unsafe {
        guard(error, || {
            let State { state, .. } = handle::get(state)?;
            check_parts(codes, code_bytes, scales, scale_count)?;
            // SAFETY: not NULL and aligned (the line above), readable by the header's rules.
            let (codes, scales) = (
                std::slice::from_raw_parts(codes, code_bytes),
                std::slice::from_raw_parts(scales, scale_count),
            );
            state.write(codes, scales)
        })
    }
}

fn check_parts(codes: *const u8, code_bytes: usize, scales: *const f32, scale_count: usize) -> Result<()> {
    if codes.is_null() || scales.is_null() {
        return Err(fail!(InvalidArgument, "{} are NULL", if codes.is_null() { "codes" } else { "scales" }));
    }
    if !scales.is_aligned() {
        return Err(fail!(InvalidArgument, "scales: {scales:p} is not aligned to 4 bytes, as floats are"));
    }
    if code_bytes > isize::MAX as usize || scale_count > isize::MAX as usize / 4 {
        return Err(fail!(
            InvalidArgument,
            "{code_bytes} bytes of codes, {scale_count} scales: more than an address space"
        ));
    }
    Ok(())
}

/// Shape, size and losses of a state. reset != 0 begins to measure anew.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_describe(
    state: *const bl_state,
    info: *mut bl_state_info,
    reset: u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_create`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let State { state, .. } = handle::get(state)?;
            let statistics = state.statistics(reset != 0);
            let Statistics { calls, original_rms, restored_rms, mean_error, max_error, .. } = statistics;
            out.fill(&bl_state_info {
                struct_size: 0,
                format: StateFormatArg(state.format() as u32),
                shape: state.shape().map(|d| d as i64),
                count: state.count() as i64,
                code_bytes: state.format().code_bytes(state.count()) as u64,
                scale_count: state.count().div_ceil(crate::state::BLOCK) as u64,
                bytes_held: state.bytes_held() as u64,
                calls,
                total_original_rms: original_rms,
                total_restored_rms: restored_rms,
                total_mean_error: mean_error,
                max_error: max_error as f64,
                total_original_bytes: statistics.original_bytes,
                total_packed_bytes: statistics.packed_bytes,
                mean_error: statistics.mean_abs_error().unwrap_or(0.0),
                rms_ratio: statistics.rms_ratio().unwrap_or(0.0),
                compression_ratio: statistics.compression_ratio().unwrap_or(0.0),
            });
            Ok(())
        })
    }
}

/// *passes = 1 where every figure of the state's losses is known and within its bounds, else 0. `options`
/// may be NULL.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_state_gate(
    state: *const bl_state,
    options: *const bl_gate_options,
    passes: *mut u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_state_create`.
    unsafe {
        guard(error, || {
            if passes.is_null() {
                return Err(fail!(InvalidArgument, "passes is NULL"));
            }
            passes.write(0);
            let State { state, .. } = handle::get(state)?;
            let options = options::read(options)?;
            let given = [
                options.max_mean_error,
                options.max_error,
                options.min_rms_ratio,
                options.max_rms_ratio,
                options.max_compression_ratio,
            ];
            if given.iter().any(|v| !(v.is_finite() && *v >= 0.0)) || options.reserved != 0 {
                return Err(fail!(InvalidArgument, "bounds {given:?}: finite, not negative expected"));
            }
            let default = Gate::default();
            let or = |given: f64, default: f64| if given == 0.0 { default } else { given };
            let gate = Gate {
                max_mean_error: or(options.max_mean_error, default.max_mean_error),
                max_error: or(options.max_error, default.max_error),
                min_rms_ratio: or(options.min_rms_ratio, default.min_rms_ratio),
                max_rms_ratio: or(options.max_rms_ratio, default.max_rms_ratio),
                max_compression_ratio: or(options.max_compression_ratio, default.max_compression_ratio),
            };
            passes.write(gate.passes(&state.statistics(false)) as u32);
            Ok(())
        })
    }
}
