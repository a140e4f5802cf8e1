//! Planning of a low-bit model.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::{CStr, c_char};

use super::boundary::guard;
use super::context;
use super::enums::*;
use super::low_bit::LowBitArg;
use super::options::{self, Sized32};
use super::types::*;
use crate::error::{Result, fail};
use crate::limits::FEATURES_MAX;
use crate::plan::memory::{self, Shape};
use crate::plan::resolve::{Capabilities, Fallback, Runtime, resolve};
use crate::plan::{
    Config, Grouping, Inference, LowBit, Protocol, Rho, RhoCompression, RhoInterval, RhoPrecision, Role,
    Saved, Training, check,
};

/// Which paper's rules a model follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_protocol {
    BL_PROTOCOL_NONE = 0,
    BL_PROTOCOL_BITNET_B1 = 1,
    BL_PROTOCOL_BITNET_B158 = 2,
    BL_PROTOCOL_BITNET_A48 = 3,
    BL_PROTOCOL_BITNET_V2 = 4,
}

/// How a model is trained.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_training_mode {
    /// Float products of fake-quantised values.
    BL_TRAINING_QAT_STE = 0,
    /// Forward on packed kernels.
    BL_TRAINING_KERNEL = 1,
}

/// How a model is run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_inference_mode {
    BL_INFERENCE_OFFLINE_PACK = 0,
    BL_INFERENCE_FAKE_QUANT = 1,
}

/// What the forward pass keeps for the backward one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_saved_mode {
    BL_SAVED_DISABLED = 0,
    /// Quantised inputs.
    BL_SAVED_CACHE = 1,
    /// Quantised inputs; outputs are computed again from them.
    BL_SAVED_RECOMPUTE = 2,
}

/// What shares a scale.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_grouping {
    /// A token of activations, a tensor of weights: the only ones that bl_runtime_check admits.
    BL_GROUPING_USUAL = 0,
    BL_GROUPING_GROUP = 1,
    BL_GROUPING_HEAD_GROUP = 2,
}

/// What recurrent state is computed in; bl_runtime_check admits the first two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_rho_precision {
    BL_RHO_BF16 = 0,
    BL_RHO_FP32 = 1,
    BL_RHO_FP8 = 2,
    BL_RHO_INT8 = 3,
    BL_RHO_BLOCK_FP8 = 4,
    BL_RHO_SPARSE_TILE = 5,
}

/// What recurrent state is kept as; bl_runtime_check admits none and the blocks of int8, ternary and
/// binary, which bl_state computes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_rho_compression {
    BL_RHO_UNCOMPRESSED = 0,
    BL_RHO_FP8_BLOCK = 1,
    BL_RHO_INT8_BLOCK = 2,
    BL_RHO_TERNARY_BLOCK = 3,
    BL_RHO_BINARY_BLOCK = 4,
    BL_RHO_BLOCK_FP = 5,
    BL_RHO_SPARSE_POSITIVE = 6,
    BL_RHO_LOWRANK_DELTA = 7,
}

/// When recurrent state is compressed; blocks go with chunks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_rho_interval {
    BL_RHO_CHUNK = 0,
    BL_RHO_STEP = 1,
    BL_RHO_EVAL_ONLY = 2,
}

/// Which way a model runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_runtime {
    /// "fake_quant_reference": float products of fake-quantised values.
    BL_RUNTIME_FAKE_QUANT_REFERENCE = 0,
    /// "packed_reference": packed weights, scalar kernels.
    BL_RUNTIME_PACKED_REFERENCE = 1,
    /// "packed_native_inference": packed weights, vector kernels.
    BL_RUNTIME_PACKED_NATIVE_INFERENCE = 2,
    /// "packed_native_training_forward": the same, packed anew from f32 weights.
    BL_RUNTIME_PACKED_NATIVE_TRAINING_FORWARD = 3,
}

/// Why a model runs as the reference.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_fallback {
    /// No reason: it does not, or was asked to.
    BL_FALLBACK_NONE = 0,
    /// "quant_disabled"
    BL_FALLBACK_QUANT_DISABLED = 1,
    /// "missing_packed_artifacts"
    BL_FALLBACK_MISSING_PACKED_ARTIFACTS = 2,
    /// "native_low_bit_unavailable"
    BL_FALLBACK_NATIVE_LOW_BIT_UNAVAILABLE = 3,
}

args! {
    ProtocolArg TrainingModeArg InferenceModeArg SavedModeArg GroupingArg RhoPrecisionArg RhoCompressionArg
    RhoIntervalArg RuntimeArg FallbackArg
}

/// How a model with projections x, y ([heads, embd, latent] each) and residual ([heads * latent, embd])
/// is quantised. The keys in messages are those of burn_dragon's configuration files (docs/formats.md,
/// "Names").
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_runtime_config {
    pub struct_size: u32,
    /// BL_CONFIG_*.
    pub flags: u32,
    /// BL_ROLE_* of the projections that are quantised.
    pub targets: u32,
    pub protocol: ProtocolArg,
    pub training_mode: TrainingModeArg,
    pub inference_mode: InferenceModeArg,
    /// Of y, and of residual where encoder_format does not say. Unset: fp16.
    pub weight_format: LowBitArg,
    /// Of every projection that is quantised. Unset: fp16.
    pub activation_format: LowBitArg,
    pub saved_mode: SavedModeArg,
    /// Unset: int8.
    pub saved_format: LowBitArg,
    /// Weights of x. Unset: fp16.
    pub decoder_x_format: LowBitArg,
    /// Weights of residual. Unset: weight_format.
    pub encoder_format: LowBitArg,
    pub activation_grouping: GroupingArg,
    pub weight_grouping: GroupingArg,
    pub rho_precision: RhoPrecisionArg,
    pub rho_compression: RhoCompressionArg,
    pub rho_interval: RhoIntervalArg,
    /// Must be 0.
    pub reserved: u32,
}

/// Which way a model runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_runtime_info {
    pub struct_size: u32,
    pub runtime: RuntimeArg,
    pub fallback: FallbackArg,
    /// BL_CAN_*: what this CPU has, asked of the kernel tables.
    pub capabilities: u32,
    /// 1 where any packed weights are there.
    pub packed_static_ready: u32,
    /// Formats of the projections; unset where they are not quantised.
    pub x_weights: LowBitArg,
    pub x_activations: LowBitArg,
    pub y_weights: LowBitArg,
    pub y_activations: LowBitArg,
    pub residual_weights: LowBitArg,
    pub residual_activations: LowBitArg,
    /// 1 where BL_CONFIG_STRICT is set.
    pub strict: u32,
    /// The words of `runtime` and `fallback`, the latter "" where there is none; and the words for
    /// what the backward pass does: "disabled", "quantized_cache_only",
    /// "recompute_safe_within_window". Static.
    pub runtime_name: *const c_char,
    pub fallback_name: *const c_char,
    pub recompute_policy: *const c_char,
    /// "disabled", "quantized_cache_exp", "quantized_cache_recompute_exp". Static.
    pub saved_mode_name: *const c_char,
}

/// The size of a model and of what it is given.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_runtime_shape {
    pub struct_size: u32,
    /// Must be 0.
    pub reserved: u32,
    pub batch: u64,
    pub time: u64,
    pub layers: u64,
    pub heads: u64,
    pub embd: u64,
    /// Of all heads together.
    pub latent: u64,
}

/// How much memory a model takes, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_runtime_memory_info {
    pub struct_size: u32,
    /// 1: what is saved is computed again within a window of the recurrent state.
    pub requires_rho_window_anchor: u32,
    /// burn_dragon's estimates, which saturate: f32 weights, packed weights, activations between
    /// projections, those kept for the backward pass, recurrent state, workspaces; and their sum.
    pub master_weights: u64,
    pub execution_weights: u64,
    pub activation_shell: u64,
    pub saved_activations: u64,
    pub rho_state: u64,
    pub workspace: u64,
    pub total: u64,
    /// The weights of one layer's quantised projections exactly as bl_heads_create packs them.
    pub exact_weights: u64,
}

/// An activation that is kept for the backward pass. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_saved_tensor {
    /// "x_projection_input", "y_projection_input", "residual_tail_input". Static.
    pub name: *const c_char,
    /// Batch, heads, time, features.
    pub shape: [u64; 4],
    pub elements: u64,
    /// Estimated.
    pub bytes: u64,
}

/// `bl_runtime_config.targets`: decoder_x.
pub const BL_ROLE_X: u32 = 1;
/// decoder_y.
pub const BL_ROLE_Y: u32 = 2;
/// encoder.
pub const BL_ROLE_RESIDUAL: u32 = 4;
/// `bl_runtime_config.flags`: quantise; without it nothing else counts.
pub const BL_CONFIG_ENABLE: u32 = 1;
/// Follow the papers to the letter.
pub const BL_CONFIG_STRICT: u32 = 2;
/// `bl_runtime_plan`: the model is being trained.
pub const BL_PLAN_TRAINING: u32 = 1;
/// `bl_runtime_info.capabilities`: kernels for packed weights, of any speed.
pub const BL_CAN_PACKED_REFERENCE: u32 = 1;
/// Vector kernels for every format of weights.
pub const BL_CAN_NATIVE_LOW_BIT: u32 = 2;
/// Vector kernels for projections of heads.
pub const BL_CAN_NATIVE_PROJECTION: u32 = 4;
/// Vector kernels for the decoder tail.
pub const BL_CAN_NATIVE_DECODER_TAIL: u32 = 8;
/// Vector code for int8 blocks of state.
pub const BL_CAN_NATIVE_RHO_INT8: u32 = 16;

// SAFETY: repr(C), first field `struct_size: u32`, no padding (tests/abi.rs), integers and pointers only.
unsafe impl Sized32 for bl_runtime_config {
    const NAME: &'static str = "bl_runtime_config";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_runtime_info {
    const NAME: &'static str = "bl_runtime_info";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_runtime_shape {
    const NAME: &'static str = "bl_runtime_shape";
}
// SAFETY: as above.
unsafe impl Sized32 for bl_runtime_memory_info {
    const NAME: &'static str = "bl_runtime_memory_info";
}

/// # Safety
/// As `options::read`.
unsafe fn read_config(config: *const bl_runtime_config) -> Result<Config> {
    // SAFETY: the caller's contract.
    let c = unsafe { options::read(config)? };
    if c.flags & !(BL_CONFIG_ENABLE | BL_CONFIG_STRICT) != 0 || c.reserved != 0 {
        return Err(fail!(InvalidArgument, "config flags {:#x} are unknown", c.flags));
    }
    Ok(Config {
        enable: c.flags & BL_CONFIG_ENABLE != 0,
        protocol: Protocol::from_number(c.protocol.0)?,
        training: Training::from_number(c.training_mode.0)?,
        inference: Inference::from_number(c.inference_mode.0)?,
        weights: LowBit::from_number(c.weight_format.0)?,
        activations: LowBit::from_number(c.activation_format.0)?,
        saved: Saved::from_number(c.saved_mode.0)?,
        saved_format: LowBit::from_number(c.saved_format.0)?,
        targets: c.targets,
        decoder_x: LowBit::from_number(c.decoder_x_format.0)?,
        encoder: LowBit::from_number(c.encoder_format.0)?,
        activation_grouping: Grouping::from_number(c.activation_grouping.0)?,
        weight_grouping: Grouping::from_number(c.weight_grouping.0)?,
        strict: c.flags & BL_CONFIG_STRICT != 0,
        rho: Rho {
            precision: RhoPrecision::from_number(c.rho_precision.0)?,
            compression: RhoCompression::from_number(c.rho_compression.0)?,
            interval: RhoInterval::from_number(c.rho_interval.0)?,
        },
    })
}

/// # Safety
/// As `options::read`.
unsafe fn read_shape(shape: *const bl_runtime_shape) -> Result<Shape> {
    if shape.is_null() {
        return Err(fail!(InvalidArgument, "shape is NULL"));
    }
    // SAFETY: the caller's contract.
    let bl_runtime_shape { reserved, batch, time, layers, heads, embd, latent, .. } =
        unsafe { options::read(shape)? };
    if reserved != 0 {
        return Err(fail!(InvalidArgument, "bl_runtime_shape.reserved is {reserved}: it must be 0"));
    }
    Ok(Shape { batch, time, layers, heads, embd, latent })
}

/// Whether a configuration is consistent: else BL_ERROR_INVALID_ARGUMENT, and the message names the key
/// that is wrong (model.quant.protocol, model.rho.compression and so on).
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_runtime_check(
    config: *const bl_runtime_config,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe { guard(error, || check::check(&read_config(config)?)) }
}

/// Which way a model of that configuration runs on this CPU, and why not a better one. `artifacts`:
/// BL_ROLE_* of the projections whose packed weights are there; flags: BL_PLAN_TRAINING. A
/// configuration that bl_runtime_check refuses is refused.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_runtime_plan(
    context: *const bl_context,
    config: *const bl_runtime_config,
    artifacts: u32,
    flags: u32,
    info: *mut bl_runtime_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_runtime_check`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let context = context::of(context)?;
            let config = read_config(config)?;
            check::check(&config)?;
            if flags & !BL_PLAN_TRAINING != 0 || artifacts & !(BL_ROLE_X | BL_ROLE_Y | BL_ROLE_RESIDUAL) != 0
            {
                return Err(fail!(
                    InvalidArgument,
                    "plan flags {flags:#x} or artifacts {artifacts:#x} are unknown"
                ));
            }
            let capabilities = Capabilities::of(context.isa);
            let (runtime, fallback) =
                resolve(&config, artifacts != 0, flags & BL_PLAN_TRAINING != 0, &capabilities);
            let formats = |role| {
                config.formats(role).map_or((LowBitArg(0), LowBitArg(0)), |(weights, activations)| {
                    (LowBitArg(weights as u32), LowBitArg(activations as u32))
                })
            };
            let [x, y, residual] = Role::ALL.map(formats);
            out.fill(&bl_runtime_info {
                struct_size: 0,
                runtime: RuntimeArg(runtime as u32),
                fallback: FallbackArg(fallback.map_or(0, |f| f as u32)),
                capabilities: capabilities.bits(),
                packed_static_ready: (artifacts != 0) as u32,
                x_weights: x.0,
                x_activations: x.1,
                y_weights: y.0,
                y_activations: y.1,
                residual_weights: residual.0,
                residual_activations: residual.1,
                strict: config.strict as u32,
                runtime_name: Runtime::name(runtime).as_ptr(),
                fallback_name: fallback.map_or(c"", Fallback::name).as_ptr(),
                recompute_policy: policy(config.saved).as_ptr(),
                saved_mode_name: config.saved.name().as_ptr(),
            });
            Ok(())
        })
    }
}

fn policy(saved: Saved) -> &'static CStr {
    match saved {
        Saved::Disabled => c"disabled",
        Saved::Cache => c"quantized_cache_only",
        Saved::Recompute => c"recompute_safe_within_window",
    }
}

/// The memory that a model of that configuration and shape takes: burn_dragon's estimates, and beside
/// them the exact bytes of the weights. All zero where the configuration quantises nothing.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_runtime_memory(
    config: *const bl_runtime_config,
    shape: *const bl_runtime_shape,
    info: *mut bl_runtime_memory_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_runtime_check`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let (config, shape) = (read_config(config)?, read_shape(shape)?);
            check::check(&config)?;
            let buckets = memory::estimate(&config, &shape);
            let exact = match [shape.heads, shape.embd, shape.latent] {
                // Sizes that no layer can have are estimated, but never made.
                sizes if sizes.iter().any(|n| *n == 0 || *n > FEATURES_MAX) => 0,
                _ => memory::exact_weights(&config, &shape)?,
            };
            out.fill(&bl_runtime_memory_info {
                struct_size: 0,
                requires_rho_window_anchor: (config.enable && config.saved == Saved::Recompute) as u32,
                master_weights: buckets.master,
                execution_weights: buckets.execution,
                activation_shell: buckets.shell,
                saved_activations: buckets.saved,
                rho_state: buckets.rho,
                workspace: buckets.workspace,
                total: buckets.total(),
                exact_weights: exact,
            });
            Ok(())
        })
    }
}

/// What is kept for the backward pass: *count tensors, in the order x, y, residual; none where saving is
/// disabled. With tensors NULL and capacity 0 only the count is told; a capacity that is too small is
/// BL_ERROR_BUFFER_TOO_SMALL.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_runtime_saved(
    config: *const bl_runtime_config,
    shape: *const bl_runtime_shape,
    tensors: *mut bl_saved_tensor,
    capacity: usize,
    count: *mut usize,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_runtime_check`; `tensors` has room for `capacity` by the header's rules.
    unsafe {
        guard(error, || {
            if count.is_null() {
                return Err(fail!(InvalidArgument, "count is NULL"));
            }
            count.write(0);
            let (config, shape) = (read_config(config)?, read_shape(shape)?);
            check::check(&config)?;
            let n = memory::saved(&config, &shape).count();
            if tensors.is_null() && capacity > 0 {
                return Err(fail!(InvalidArgument, "tensors is NULL, capacity is not 0"));
            }
            count.write(n);
            if tensors.is_null() {
                return Ok(());
            }
            if capacity < n {
                return Err(fail!(BufferTooSmall, "room for {capacity} tensors, {n} needed"));
            }
            for (i, saved) in memory::saved(&config, &shape).enumerate() {
                let name = match saved.role {
                    Role::X => c"x_projection_input",
                    Role::Y => c"y_projection_input",
                    Role::Residual => c"residual_tail_input",
                };
                tensors.add(i).write(bl_saved_tensor {
                    name: name.as_ptr(),
                    shape: saved.shape,
                    elements: saved.elements,
                    bytes: saved.bytes,
                });
            }
            Ok(())
        })
    }
}
