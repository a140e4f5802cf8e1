//! BitNet of transformers, and plain floats of safetensors: what `config.json` says decides.
//!
//! ```text
//! quantization_config.quant_method "bitnet", and
//!   linear_class        "bitlinear" or none: weight_scale divides;  "autobitlinear": it multiplies
//!   quantization_mode   "online" (of autobitlinear): float weights are ternarised when they are loaded,
//!                       but those of lm_head and of embeddings, and what modules_to_not_convert names
//!   use_rms_norm        every layer has rms_norm.weight
//! ```
//! Packed weights have ceil(O / 4) rows of bytes. O is what the options say, else the bias's length, else
//! all rows that there are.
//!
//! Source: transformers, `quantizers/quantizer_bitnet.py` and `integrations/bitnet.py`.

use super::Role;
use super::parts::{Parts, matrix, shape, size};
use super::plan::{Plan, Recipe, Request, Used, same};
use super::whole;
use crate::codec::Floats;
use crate::codec::bitnet_hf::WeightScale;
use crate::container::Config;
use crate::error::{Result, fail};
use crate::memory::reserve;
use crate::types::Type;

const CLASS: [&str; 2] = ["quantization_config", "linear_class"];
const MODE: [&str; 2] = ["quantization_config", "quantization_mode"];
const SKIPPED: [&str; 2] = ["quantization_config", "modules_to_not_convert"];
const NORM: [&str; 2] = ["quantization_config", "use_rms_norm"];

/// Packed weights.
pub(super) fn packed<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    same(Type::BitnetHf, request)?;
    let weight = parts.weight()?;
    let scale = match (request.scales, parts.get(Role::Scales)) {
        (Some(scale), _) => scale,
        (None, Some(tensor)) => parts.floats(tensor, "weight_scale")?,
        (None, None) if parts.beside("weight.absmax")?.is_some() => {
            return Err(fail!(Unsupported, "weights of bitsandbytes (weight.absmax) are not read"));
        }
        (None, None) => {
            return Err(fail!(
                BadFile,
                "weight (u8) is there, but weight_scale, which goes with it, is missing"
            ));
        }
    };
    let [quarter, columns] = matrix(weight, "weight")?;
    let most = quarter.saturating_mul(4);
    let rows = match (request.out_features, parts.get(Role::Bias)) {
        (0, Some(bias)) if !request.has_bias => size(shape(bias).iter().product())?,
        (0, _) => most,
        (rows, _) => rows,
    };
    if rows.div_ceil(4) != quarter {
        return Err(fail!(BadFile, "{rows} rows are not packed in {quarter}: 4 rows a byte"));
    }
    if request.in_features != 0 && request.in_features != columns {
        return Err(fail!(InvalidArgument, "in_features is {}, the file's {columns}", request.in_features));
    }
    let meaning = match request.weight_scale {
        Some(meaning) => meaning,
        None => meaning(parts)?,
    };
    need_norm(parts)?;
    let bytes = parts.bytes(weight);
    let mut plan = Plan::new(Type::BitnetHf, rows, columns, Recipe::BitnetHf(bytes, scale, meaning));
    plan.used = Used { features: true, scales: true, ..Used::default() };
    Ok(plan)
}

/// What `config.json` says of weight_scale.
fn meaning(parts: &Parts<'_, '_>) -> Result<WeightScale> {
    let Some(config) = parts.config().filter(|_| parts.is_method("bitnet")) else {
        return Err(fail!(
            InvalidArgument,
            "weight_scale multiplies or divides, and no config.json with quant_method \"bitnet\" says which: \
             set BL_LAYER_SCALE_MULTIPLIES or BL_LAYER_SCALE_DIVIDES"
        ));
    };
    if is_online(config)? {
        return Err(fail!(
            BadFile,
            "config.json says quantization_mode \"online\", but the weights are packed"
        ));
    }
    Ok(if is_auto(config)? { WeightScale::Multiplies } else { WeightScale::Divides })
}

/// Whether linear_class is "autobitlinear".
fn is_auto(config: &Config) -> Result<bool> {
    if config.is(&CLASS, "autobitlinear") {
        Ok(true)
    } else if config.is(&CLASS, "bitlinear") || !config.has(&CLASS) {
        Ok(false)
    } else {
        Err(fail!(Unsupported, "config.json: linear_class is neither \"bitlinear\" nor \"autobitlinear\""))
    }
}

/// Whether floats are ternarised when they are loaded.
fn is_online(config: &Config) -> Result<bool> {
    if !is_auto(config)? || config.is(&MODE, "offline") || !config.has(&MODE) {
        Ok(false)
    } else if config.is(&MODE, "online") {
        Ok(true)
    } else {
        Err(fail!(Unsupported, "config.json: quantization_mode is neither \"offline\" nor \"online\""))
    }
}

/// Refuses a BitNet layer whose norm is missing.
fn need_norm(parts: &Parts<'_, '_>) -> Result<()> {
    let wanted = parts.is_method("bitnet") && parts.config().and_then(|c| c.bool(&NORM)) == Some(true);
    if wanted && parts.get(Role::Norm).is_none() {
        return Err(fail!(BadFile, "config.json says use_rms_norm, but rms_norm.weight is missing"));
    }
    Ok(())
}

/// Floats: as they are, or ternarised.
pub(super) fn floats<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    let weight = parts.weight()?;
    for suffix in ["weight_scale", "weight_scale_inv", "scales"] {
        if parts.beside(suffix)?.is_some() {
            let ty = weight.ty.name();
            return Err(fail!(
                Unsupported,
                "weight is {ty} and has {suffix} beside it: no format known here"
            ));
        }
    }
    let online = match (request.ty, parts.config()) {
        (Some(ty), _) => ty == Type::BitnetHf,
        (None, Some(config)) if parts.is_method("bitnet") => {
            is_online(config)? && is_converted(parts, config)?
        }
        (None, _) => false,
    };
    if !online {
        return whole::tensor(parts.files, weight, request);
    }
    need_norm(parts)?;
    let [rows, columns] = matrix(weight, "weight to be ternarised")?;
    let masters = Floats::new(weight.ty, parts.bytes(weight))
        .map_err(|_| fail!(Unsupported, "{} weights cannot be ternarised", weight.ty.name()))?;
    Ok(Plan::new(Type::BitnetHf, rows, columns, Recipe::Online(masters)))
}

/// Whether transformers would make a BitNet layer of this one.
fn is_converted(parts: &Parts<'_, '_>, config: &Config) -> Result<bool> {
    let last = parts.name.rsplit(|b| *b == b'.').next().unwrap_or(parts.name);
    if last.starts_with(b"embed") || last == b"wte" || last == b"wpe" {
        return Ok(false); // not a linear layer
    }
    if !config.has(&SKIPPED) {
        return Ok(last != b"lm_head");
    }
    // One of the strings is a part of the name.
    let (mut room, mut failure) = (Vec::new(), None);
    let skipped = config.any(&SKIPPED, |text| {
        room.clear();
        for c in text {
            let mut utf8 = [0; 4];
            let utf8 = c.encode_utf8(&mut utf8).as_bytes();
            if room.len() > parts.name.len() {
                return false; // longer than the name
            }
            if let Err(e) = reserve(&mut room, utf8.len(), "a name") {
                failure = Some(e);
                return true;
            }
            room.extend_from_slice(utf8);
        }
        !room.is_empty() && parts.name.windows(room.len()).any(|part| part == room)
    });
    failure.map_or(Ok(!skipped), Err)
}
