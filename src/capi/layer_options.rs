//! What `bl_layer_options` ask for, checked: the part of the weights, what the model is to do, what stands around the
//! product.
//! cbindgen:ignore

use super::enums::*;
use super::types::*;
use crate::codec::Floats;
use crate::codec::bitnet_hf::WeightScale;
use crate::codec::gptq::GptqVersion;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::layer::{Activation, Settings};
use crate::layout::Part;
use crate::limits::FEATURES_MAX;
use crate::memory::filled;
use crate::model::Request;
use crate::norm;
use crate::types::Type;

/// Which part of the weights the options ask for.
pub(super) fn part(options: &bl_layer_options) -> Result<Part> {
    let (rank, count) = (options.shard_rank, options.shard_count);
    if options.reserved != 0 {
        return Err(fail!(
            InvalidArgument,
            "bl_layer_options.reserved is {}: it must be 0",
            options.reserved
        ));
    }
    if options.device_flags != 0 {
        return Err(fail!(
            InvalidArgument,
            "bl_layer_options.device_flags is {}: it must be 0",
            options.device_flags
        ));
    }
    match options.shard.0 {
        0 if rank == 0 && count == 0 => Ok(Part::Whole),
        0 => Err(fail!(InvalidArgument, "shard {rank} of {count}, but bl_layer_options.shard is 0: none")),
        1 => Ok(Part::Rows { rank, count }),
        2 => Ok(Part::Columns { rank, count }),
        n => Err(fail!(Unsupported, "shard {n} is unknown to this library")),
    }
}

fn activation(number: ActivationArg) -> Result<Activation> {
    Activation::ALL
        .into_iter()
        .find(|a| *a as u32 == number.0)
        .ok_or_else(|| fail!(Unsupported, "activation {} is unknown to this library", number.0))
}

/// The scales of the options as a tensor's bytes.
///
/// # Safety
/// `options.scales` is NULL or valid for reading `options.scale_count` floats.
pub(super) unsafe fn scale_bytes(options: &bl_layer_options) -> Result<Option<Vec<u8>>> {
    let count = option_size(options.scale_count, "scale_count")?;
    match (options.scales.is_null(), count) {
        (true, 0) => Ok(None),
        (true, _) | (false, 0) => Err(fail!(
            InvalidArgument,
            "{count} scales at {:p}: bl_layer_options.scales and scale_count go together",
            options.scales
        )),
        (false, _) => {
            let bytes = count.checked_mul(4).filter(|n| *n <= isize::MAX as usize);
            bytes.ok_or_else(|| fail!(InvalidArgument, "{count} scales are more than an address space"))?;
            // SAFETY: the caller's contract.
            let floats = unsafe { read_floats(options.scales, count, "scales")? };
            let mut bytes = filled(count * 4, 0u8, "scales")?;
            for (float, bytes) in floats.iter().zip(bytes.as_chunks_mut().0) {
                *bytes = float.to_le_bytes();
            }
            Ok(Some(bytes))
        }
    }
}

fn option_size(n: i64, what: &str) -> Result<usize> {
    let size = usize::try_from(n).ok().filter(|n| *n as u64 <= FEATURES_MAX * FEATURES_MAX);
    size.ok_or_else(|| fail!(InvalidArgument, "bl_layer_options.{what} is {n}: 0 (not said) or more"))
}

/// What the options ask of the model.
pub(super) fn request<'a>(options: &bl_layer_options, scales: Option<&'a [u8]>) -> Result<Request<'a>> {
    const ALL: u32 = BL_LAYER_SCALE_MULTIPLIES
        | BL_LAYER_SCALE_DIVIDES
        | BL_LAYER_GPTQ_V1
        | BL_LAYER_GPTQ_V2
        | BL_LAYER_ALL_SLICES
        | BL_LAYER_WITHOUT_NORM
        | BL_LAYER_TRANSPOSED;
    let flags = options.flags;
    if flags & !ALL != 0 {
        return Err(fail!(InvalidArgument, "layer flags {:#x} are unknown", flags & !ALL));
    }
    let has = |flag: u32| flags & flag != 0;
    let weight_scale = match (has(BL_LAYER_SCALE_MULTIPLIES), has(BL_LAYER_SCALE_DIVIDES)) {
        (false, false) => None,
        (true, false) => Some(WeightScale::Multiplies),
        (false, true) => Some(WeightScale::Divides),
        (true, true) => return Err(fail!(InvalidArgument, "a scale that multiplies and divides")),
    };
    let gptq = match (has(BL_LAYER_GPTQ_V1), has(BL_LAYER_GPTQ_V2)) {
        (false, false) => None,
        (true, false) => Some(GptqVersion::V1),
        (false, true) => Some(GptqVersion::V2),
        (true, true) => return Err(fail!(InvalidArgument, "GPTQ of both versions")),
    };
    let slice = option_size(options.slice, "slice")?;
    if has(BL_LAYER_ALL_SLICES) && slice != 0 {
        return Err(fail!(InvalidArgument, "slice {slice} and BL_LAYER_ALL_SLICES"));
    }
    Ok(Request {
        ty: if options.r#type.0 == 0 { None } else { Some(options.r#type.known()?) },
        weight_scale,
        gptq,
        group_size: option_size(options.group_size, "group_size")?,
        slice,
        all_slices: has(BL_LAYER_ALL_SLICES),
        without_norm: has(BL_LAYER_WITHOUT_NORM),
        transposed: has(BL_LAYER_TRANSPOSED),
        in_features: option_size(options.in_features, "in_features")?,
        out_features: option_size(options.out_features, "out_features")?,
        scales: scales.map(|bytes| Floats::new(Type::F32, bytes)).transpose()?,
        has_bias: !options.bias.is_null(),
    })
}

impl Settings {
    /// What a file says of a layer, with what a caller adds.
    ///
    /// # Safety
    /// The options' pointers are NULL or valid for as many floats as the header says.
    pub(super) unsafe fn with(self, raw: &bl_layer_options, rows: usize, columns: usize) -> Result<Settings> {
        let no_norm = raw.norm.0 == bl_norm::BL_NORM_NONE as u32;
        if no_norm && !(raw.norm_weight.is_null() && raw.norm_bias.is_null() && raw.norm_epsilon == 0.0) {
            return Err(fail!(InvalidArgument, "a weight, bias or epsilon of a norm is set, but no norm"));
        }
        if raw.rotation_block == 0 && !raw.rotation_signs.is_null() {
            return Err(fail!(InvalidArgument, "rotation_signs is set, but no rotation_block"));
        }
        if !no_norm && self.norm.is_some() {
            return Err(fail!(
                InvalidArgument,
                "a norm is set, but the file has one: BL_LAYER_WITHOUT_NORM leaves that out"
            ));
        }
        if raw.rotation_block != 0 && self.rotation.is_some() {
            return Err(fail!(InvalidArgument, "rotation_block is set, but the file declares a rotation"));
        }
        let epilogue = Epilogue::from_number(raw.epilogue.0, raw.epilogue_threshold)?;
        if epilogue != Epilogue::None && self.epilogue != Epilogue::None {
            return Err(fail!(InvalidArgument, "an epilogue is set, but the file has one"));
        }
        let given = activation(raw.activation)?;
        // A scale that was found for codes of another activation is none for these.
        let found_scale =
            self.activation_scale.filter(|_| matches!(given, Activation::Auto) || given == self.activation);
        if raw.activation_scale != 0.0 && found_scale.is_some() {
            return Err(fail!(InvalidArgument, "activation_scale is set, but the file has one"));
        }
        let norm = match raw.norm.0 {
            0 => self.norm,
            number => {
                let kind = norm::Kind::ALL.into_iter().find(|kind| *kind as u32 == number);
                let kind =
                    kind.ok_or_else(|| fail!(Unsupported, "norm {number} is unknown to this library"))?;
                let epsilon = if raw.norm_epsilon == 0.0 { EPSILON } else { raw.norm_epsilon };
                Some((kind, epsilon))
            }
        };
        // SAFETY: the caller's contract.
        unsafe {
            Ok(Settings {
                activation: match given {
                    Activation::Auto => self.activation,
                    activation => activation,
                },
                product_scale: self.product_scale,
                bias: read_some(raw.bias, rows, "bias")?.or(self.bias),
                norm,
                norm_weight: read_some(raw.norm_weight, columns, "norm_weight")?.or(self.norm_weight),
                norm_bias: read_some(raw.norm_bias, columns, "norm_bias")?.or(self.norm_bias),
                rotation: if raw.rotation_block == 0 {
                    self.rotation
                } else {
                    Some(raw.rotation_block as usize)
                },
                rotation_signs: read_some(raw.rotation_signs, columns, "rotation_signs")?
                    .or(self.rotation_signs),
                epilogue: if self.epilogue == Epilogue::None { epilogue } else { self.epilogue },
                activation_scale: match raw.activation_scale {
                    0.0 => found_scale,
                    scale => Some(scale),
                },
            })
        }
    }
}

/// What is added to the mean square where a caller does not say.
const EPSILON: f32 = 1e-5;

/// `None` for NULL.
///
/// # Safety
/// `from` is NULL or valid for reading `count` floats of any alignment.
pub(super) unsafe fn read_some(from: *const f32, count: usize, what: &str) -> Result<Option<Vec<f32>>> {
    // SAFETY: the caller's contract.
    if from.is_null() { Ok(None) } else { unsafe { read_floats(from, count, what).map(Some) } }
}

/// # Safety
/// `from` is valid for reading `count` floats of any alignment.
unsafe fn read_floats(from: *const f32, count: usize, what: &str) -> Result<Vec<f32>> {
    let mut values = filled(count, 0.0f32, what)?;
    // SAFETY: the caller's contract; a byte copy asks for no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), values.as_mut_ptr().cast(), count * 4) };
    Ok(values)
}
