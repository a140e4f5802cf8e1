//! Whether a configuration is consistent.

use super::{
    Config, Grouping, LowBit, Protocol, RhoCompression, RhoInterval, RhoPrecision, Role, Saved, Training,
};
use crate::error::{Result, fail};

/// Refuses what is not, with the key of the configuration that is wrong.
pub fn check(config: &Config) -> Result<()> {
    use LowBit::{Fp16, Int4, Int8, Packed2, Sign1, Ternary158, Uint8, Unset};
    let roles = Role::ALL.iter().fold(0, |bits, role| bits | role.bit());
    if config.targets & !roles != 0 {
        return Err(fail!(
            InvalidArgument,
            "model.quant.target_modules has the unknown bits {:#x}",
            config.targets & !roles
        ));
    }
    for (key, format) in [
        ("weight_format", config.weights),
        ("decoder_x_mode", config.decoder_x),
        ("encoder_mode", config.encoder),
    ] {
        if !matches!(format, Unset | Fp16 | Int8 | Sign1 | Ternary158 | Packed2) {
            return Err(fail!(
                InvalidArgument,
                "model.quant.{key} = \"{}\" is no format of weights",
                format.name().to_str().unwrap_or("")
            ));
        }
    }
    for (key, format) in
        [("act_format", config.activations), ("saved_activations.format", config.saved_format)]
    {
        if !matches!(format, Unset | Fp16 | Int8 | Int4 | Uint8) {
            return Err(fail!(
                InvalidArgument,
                "model.quant.{key} = \"{}\" is no format of activations",
                format.name().to_str().unwrap_or("")
            ));
        }
    }
    check_rho(config)?;
    if !config.enable {
        if config.saved != Saved::Disabled {
            return Err(fail!(
                InvalidArgument,
                "model.quant.saved_activations.mode needs model.quant.enable"
            ));
        }
        return Ok(());
    }
    if config.protocol == Protocol::None {
        return Err(fail!(
            InvalidArgument,
            "model.quant.protocol is \"none\", but model.quant.enable is set"
        ));
    }
    if config.strict && config.targets == 0 {
        return Err(fail!(
            InvalidArgument,
            "model.quant.target_modules is empty, but model.quant.strict_bitnet_reference is set"
        ));
    }
    if config.activation_grouping != Grouping::Usual {
        return Err(fail!(InvalidArgument, "model.quant.act_grouping: \"per_token\" is the only one"));
    }
    if config.weight_grouping != Grouping::Usual {
        return Err(fail!(InvalidArgument, "model.quant.weight_grouping: \"per_tensor\" is the only one"));
    }
    if config.saved_format == Uint8 {
        return Err(fail!(
            InvalidArgument,
            "model.quant.saved_activations.format: \"fp16\", \"int8\" or \"int4_exp\""
        ));
    }
    if config.saved != Saved::Disabled && config.training != Training::TrainKernel {
        return Err(fail!(
            InvalidArgument,
            "model.quant.saved_activations.mode needs model.quant.training_mode = \"train_kernel_exp\""
        ));
    }
    if config.activations == Uint8 && config.targets & !Role::Residual.bit() != 0 {
        return Err(fail!(
            InvalidArgument,
            "model.quant.act_format = \"uint8_pos_exp\" is for model.quant.target_modules = [\"encoder\"] alone"
        ));
    }
    Ok(())
}

fn check_rho(config: &Config) -> Result<()> {
    let rho = &config.rho;
    if !matches!(rho.precision, RhoPrecision::Bf16 | RhoPrecision::Fp32) {
        return Err(fail!(InvalidArgument, "model.rho.precision: \"fp32\" or \"bf16\""));
    }
    let blocks = match rho.compression {
        RhoCompression::None => false,
        RhoCompression::Int8Block | RhoCompression::TernaryBlock | RhoCompression::BinaryBlock => true,
        _ => {
            return Err(fail!(
                InvalidArgument,
                "model.rho.compression: \"none\", \"int8_block_exp\", \"ternary_block_exp\" or \"binary_block_exp\""
            ));
        }
    };
    if blocks && rho.interval != RhoInterval::Chunk {
        return Err(fail!(
            InvalidArgument,
            "model.rho.compression_interval: blocks are compressed after a \"chunk\" only"
        ));
    }
    Ok(())
}
