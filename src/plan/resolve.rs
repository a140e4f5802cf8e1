//! Which way a model runs, and why not a better one.

use std::ffi::CStr;

use super::{Config, Inference, LowBit, Role, Training};
use crate::activation::Kind;
use crate::cpu::Isa;
use crate::kernel;
use crate::layout::{Layout, Values};

/// How projections are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Runtime {
    /// Float products of fake-quantised values.
    #[default]
    FakeQuantReference = 0,
    /// Packed weights, scalar kernels.
    PackedReference = 1,
    /// Packed weights, vector kernels.
    PackedNativeInference = 2,
    /// The same with weights packed anew from their masters.
    PackedNativeTrainingForward = 3,
}

impl Runtime {
    /// Its word.
    pub const fn name(self) -> &'static CStr {
        match self {
            Runtime::FakeQuantReference => c"fake_quant_reference",
            Runtime::PackedReference => c"packed_reference",
            Runtime::PackedNativeInference => c"packed_native_inference",
            Runtime::PackedNativeTrainingForward => c"packed_native_training_forward",
        }
    }
}

/// Why a model runs as the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fallback {
    /// The configuration says so.
    QuantDisabled = 1,
    /// No weights were packed.
    MissingPackedArtifacts = 2,
    /// They were, but nothing here computes with them.
    NativeLowBitUnavailable = 3,
}

impl Fallback {
    /// Its word.
    pub const fn name(self) -> &'static CStr {
        match self {
            Fallback::QuantDisabled => c"quant_disabled",
            Fallback::MissingPackedArtifacts => c"missing_packed_artifacts",
            Fallback::NativeLowBitUnavailable => c"native_low_bit_unavailable",
        }
    }
}

/// What a machine can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Kernels for packed weights, of any speed.
    pub packed_reference: bool,
    /// Vector kernels for every format of weights.
    pub native_low_bit: bool,
    /// Vector kernels for projections of heads.
    pub native_projection: bool,
    /// The same for their way back.
    pub native_decoder_tail: bool,
    /// Vector code for int8 blocks of state.
    pub native_rho_int8_block: bool,
}

impl Capabilities {
    /// Asks the kernel tables what that instruction set has. Projections and their way back are one
    /// computation here, so that they have one answer.
    pub fn of(isa: Isa) -> Capabilities {
        let layouts = [
            Layout::rows(1, Values::Sign),
            Layout::rows(2, Values::Offset(1)),
            Layout::rows(8, Values::Offset(128)),
        ];
        let kernels = |layout| kernel::select(&layout, 256, Kind::Integer, isa);
        let native = layouts.iter().all(|layout| kernels(*layout).gemm.isa != Isa::Scalar);
        Capabilities {
            packed_reference: true, // the scalar kernels read every layout
            native_low_bit: native,
            native_projection: native,
            native_decoder_tail: native,
            native_rho_int8_block: isa != Isa::Scalar,
        }
    }

    /// Whether anything is faster than the reference.
    pub fn any_native(&self) -> bool {
        self.native_low_bit
            || self.native_projection
            || self.native_decoder_tail
            || self.native_rho_int8_block
    }

    /// As bits, in the order of the fields.
    pub fn bits(&self) -> u32 {
        let fields = [
            self.packed_reference,
            self.native_low_bit,
            self.native_projection,
            self.native_decoder_tail,
            self.native_rho_int8_block,
        ];
        fields.iter().enumerate().fold(0, |bits, (i, set)| bits | (*set as u32) << i)
    }
}

/// Which way, and why not a better one; no reason where the configuration asks for the reference.
pub fn resolve(
    config: &Config,
    has_artifacts: bool,
    training: bool,
    capabilities: &Capabilities,
) -> (Runtime, Option<Fallback>) {
    let reference = Runtime::FakeQuantReference;
    if !config.enable {
        return (reference, Some(Fallback::QuantDisabled));
    }
    let trains = config.training == Training::TrainKernel
        && capabilities.native_projection
        && Role::ALL.iter().all(|role| is_trainable(config, *role));
    if trains && (training || config.inference != Inference::OfflinePack) {
        return (Runtime::PackedNativeTrainingForward, None);
    }
    if config.inference != Inference::OfflinePack {
        return (reference, None);
    }
    match (has_artifacts, capabilities.native_projection, capabilities.packed_reference) {
        (false, _, _) => (reference, Some(Fallback::MissingPackedArtifacts)),
        (true, true, _) => (Runtime::PackedNativeInference, None),
        (true, false, true) => (Runtime::PackedReference, None),
        (true, false, false) => (reference, Some(Fallback::NativeLowBitUnavailable)),
    }
}

/// Whether the projection, where it is a target, may be trained on packed kernels.
fn is_trainable(config: &Config, role: Role) -> bool {
    match (role, config.formats(role)) {
        (_, None) => true,
        (Role::X, Some((weights, _))) => matches!(weights, LowBit::Int8 | LowBit::Sign1),
        (_, Some((weights, _))) => weights != LowBit::Fp16,
    }
}
