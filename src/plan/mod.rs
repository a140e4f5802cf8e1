//! What a low-bit model is going to do, before it does: which projections are quantised and how
//! ([`Config`]), whether that is consistent ([`check`]), which way it will run ([`resolve`]), and the
//! memory it will take ([`memory`]).
//!
//! A model has three kinds of projections (burn_dragon's names): *x* and *y*, `[heads, embd, latent]`
//! each, and *residual*, `[heads * latent, embd]`. The keys in messages are those of its configuration
//! files. Source: burn_dragon 0.5, `model/low_bit` and its memory estimate.

pub mod check;
pub mod memory;
pub mod resolve;

use std::ffi::CStr;

use crate::error::{Result, fail};

/// A closed set of choices: numbers of a C enum, and the words of configuration files.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident, $what:literal: $($(#[$each:meta])* $variant:ident = $number:literal $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$each])* $variant = $number,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The one of that number.
            pub fn from_number(number: u32) -> Result<$name> {
                $name::ALL.iter().copied().find(|v| *v as u32 == number)
                    .ok_or_else(|| fail!(Unsupported, "{} {number} is unknown to this library", $what))
            }

            /// Its word.
            pub fn name(self) -> &'static CStr {
                match self { $($name::$variant => $word,)* }
            }
        }
    };
}

choices! {
    /// What weights or activations are kept as.
    LowBit, "low-bit format":
    /// What the configuration leaves out.
    #[default]
    Unset = 0 c"unset",
    /// Not quantised; two bytes a value.
    Fp16 = 1 c"fp16",
    /// Bytes.
    Int8 = 2 c"int8",
    /// Activations: -7 to 7, two to a byte.
    Int4 = 3 c"int4_exp",
    /// Activations: 0 to 255; what is negative becomes 0.
    Uint8 = 4 c"uint8_pos_exp",
    /// Weights: signs.
    Sign1 = 5 c"sign1",
    /// Weights: -1, 0 and 1.
    Ternary158 = 6 c"ternary158",
    /// Weights: the same as ternary.
    Packed2 = 7 c"packed2",
}

choices! {
    /// Which paper's rules are followed; any but `None` goes with quantisation.
    Protocol, "protocol":
    /// None.
    #[default]
    None = 0 c"none",
    /// Signs.
    B1 = 1 c"bitnet_b1",
    /// Ternary.
    B158 = 2 c"bitnet_b158",
    /// 4-bit activations.
    A48 = 3 c"bitnet_a48_exp",
    /// Rotated 4-bit activations.
    V2 = 4 c"bitnet_v2_exp",
}

choices! {
    /// How it is trained.
    Training, "training mode":
    /// Float products of fake-quantised values.
    #[default]
    QatSte = 0 c"qat_ste",
    /// Forward on packed kernels.
    TrainKernel = 1 c"train_kernel_exp",
}

choices! {
    /// How it is run.
    Inference, "inference mode":
    /// Packed once.
    #[default]
    OfflinePack = 0 c"offline_pack",
    /// Quantised on the way.
    RuntimeFakeQuant = 1 c"runtime_fake_quant",
}

choices! {
    /// What the forward pass keeps for the backward one.
    Saved, "saved-activation mode":
    /// Nothing quantised.
    #[default]
    Disabled = 0 c"disabled",
    /// Quantised inputs.
    Cache = 1 c"quantized_cache_exp",
    /// Quantised inputs; outputs are computed again.
    Recompute = 2 c"quantized_cache_recompute_exp",
}

choices! {
    /// What shares a scale.
    Grouping, "grouping":
    /// A token of activations, a tensor of weights.
    #[default]
    Usual = 0 c"usual",
    /// Groups.
    Group = 1 c"per_group",
    /// Groups of a head.
    HeadGroup = 2 c"per_head_group",
}

choices! {
    /// What the recurrent state is computed in.
    RhoPrecision, "rho precision":
    /// Two bytes.
    #[default]
    Bf16 = 0 c"bf16",
    /// Four bytes.
    Fp32 = 1 c"fp32",
    /// Not admitted.
    Fp8 = 2 c"fp8_exp",
    /// Not admitted.
    Int8Block = 3 c"int8_block_exp",
    /// Not admitted.
    BlockFp8 = 4 c"blockfp8_exp",
    /// Not admitted.
    SparseTile = 5 c"sparse_tile_exp",
}

choices! {
    /// What the recurrent state is kept as.
    RhoCompression, "rho compression":
    /// As it is.
    #[default]
    None = 0 c"none",
    /// Not admitted.
    Fp8Block = 1 c"fp8_block_exp",
    /// Blocks of bytes.
    Int8Block = 2 c"int8_block_exp",
    /// Blocks of ternary codes.
    TernaryBlock = 3 c"ternary_block_exp",
    /// Blocks of signs.
    BinaryBlock = 4 c"binary_block_exp",
    /// Not admitted.
    BlockFp = 5 c"blockfp_exp",
    /// Not admitted.
    SparsePositive = 6 c"sparse_positive_exp",
    /// Not admitted.
    LowrankDelta = 7 c"lowrank_delta_exp",
}

choices! {
    /// When it is compressed.
    RhoInterval, "rho interval":
    /// After a chunk.
    #[default]
    Chunk = 0 c"chunk",
    /// After a step.
    Step = 1 c"step",
    /// In evaluation.
    EvalOnly = 2 c"eval_only",
}

/// A kind of projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// x: burn_dragon's decoder_x.
    X,
    /// y: its decoder_y.
    Y,
    /// The decoder tail: its encoder.
    Residual,
}

impl Role {
    /// All, in the order of inventories.
    pub const ALL: [Role; 3] = [Role::X, Role::Y, Role::Residual];

    /// Its bit in sets of targets and of artifacts.
    pub const fn bit(self) -> u32 {
        match self {
            Role::X => 1,
            Role::Y => 2,
            Role::Residual => 4,
        }
    }
}

/// How a model is quantised. `Unset` formats mean: weights and activations fp16, saved ones int8, x
/// fp16, residual as `weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Off: nothing below is looked at.
    pub enable: bool,
    /// Rules.
    pub protocol: Protocol,
    /// How it is trained.
    pub training: Training,
    /// How it is run.
    pub inference: Inference,
    /// Of y, and of residual where that is not said.
    pub weights: LowBit,
    /// Of every projection that is quantised.
    pub activations: LowBit,
    /// What is kept for the backward pass.
    pub saved: Saved,
    /// As what.
    pub saved_format: LowBit,
    /// Bits of [`Role`].
    pub targets: u32,
    /// Of x.
    pub decoder_x: LowBit,
    /// Of residual.
    pub encoder: LowBit,
    /// Scales of activations.
    pub activation_grouping: Grouping,
    /// Scales of weights.
    pub weight_grouping: Grouping,
    /// Follow the papers to the letter.
    pub strict: bool,
    /// The recurrent state.
    pub rho: Rho,
}

/// How the recurrent state is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rho {
    /// What it is computed in.
    pub precision: RhoPrecision,
    /// What it is kept as.
    pub compression: RhoCompression,
    /// When.
    pub interval: RhoInterval,
}

impl LowBit {
    fn or(self, default: LowBit) -> LowBit {
        if self == LowBit::Unset { default } else { self }
    }

    /// Bytes of a value as a fraction.
    fn bytes(self) -> (u64, u64) {
        match self {
            LowBit::Unset | LowBit::Fp16 => (2, 1),
            LowBit::Int8 | LowBit::Uint8 => (1, 1),
            LowBit::Int4 => (1, 2),
            LowBit::Sign1 => (1, 8),
            LowBit::Ternary158 | LowBit::Packed2 => (1, 4),
        }
    }
}

impl Config {
    /// The formats of weights and activations of a projection; none where it is not quantised.
    pub fn formats(&self, role: Role) -> Option<(LowBit, LowBit)> {
        let weights = match role {
            Role::X => self.decoder_x,
            Role::Y => self.weights,
            Role::Residual => self.encoder.or(self.weights),
        };
        let planned = self.enable && self.targets & role.bit() != 0;
        planned.then(|| (weights.or(LowBit::Fp16), self.activations.or(LowBit::Fp16)))
    }

    /// What saved activations are kept as.
    pub fn saved_format(&self) -> LowBit {
        self.saved_format.or(LowBit::Int8)
    }
}
