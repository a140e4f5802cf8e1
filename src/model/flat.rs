//! Flat arrays of codes with scales apart: burn_dragon's artifacts, and packed tensors whose scales the
//! caller gives.
//!
//! ```text
//! artifact [heads, embd, latent]   heads matrices [latent, embd]: the sum runs over the second axis
//!          [total, dim]            one matrix [dim, total]: the sum runs over the first axis
//!
//! a tensor of bytes, its type and scales in the options:
//! TERNARY, INT4, BITNET_HF         shaped as in their own files
//! BINARY, TERNARY2, INT8           rows [out, in] flattened; 1 scale; in_features and out_features given
//! TERNARY_BLOCK                    the same; one scale for each group_size (256) elements
//! ```
//! Source of the first: burn_dragon_core 0.5.0 (`decoder_x`, `decoder_y`, `encoder`).

use super::Role;
use super::parts::{Parts, matrix, shape, size};
use super::plan::{Plan, Recipe, Request, Used, same};
use crate::codec::Floats;
use crate::codec::burn_dragon::View;
use crate::container::{Files, Tensor};
use crate::error::{Result, fail};
use crate::types::Type;

/// Elements of a block of ruvllm's, unless said otherwise.
const BLOCK: usize = 256;

/// Formats whose scales are apart from the bytes of their weights.
pub(super) fn is_apart(ty: Type) -> bool {
    matches!(
        ty,
        Type::Ternary
            | Type::Int4
            | Type::BitnetHf
            | Type::Binary
            | Type::Ternary2
            | Type::Int8
            | Type::TernaryBlock
    )
}

fn one(scales: Floats<'_>) -> Result<f32> {
    match scales.count() {
        1 => Ok(scales.get(0)),
        count => Err(fail!(InvalidArgument, "one scale expected, found {count}")),
    }
}

/// An artifact.
pub(super) fn artifact<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    let weight = parts.weight()?;
    same(weight.ty, request)?;
    let scales = match request.scales {
        Some(scales) => scales,
        None => parts.floats(parts.need(Role::Scales, "scale", "the artifact")?, "scale")?,
    };
    let (packed, scale) = (parts.bytes(weight), one(scales)?);
    let make =
        |view, rows, columns| Plan::new(weight.ty, rows, columns, Recipe::Artifact(view, packed, scale));
    let mut plan = match *shape(weight) {
        [total, dim] => {
            let (total, dim) = (size(total)?, size(dim)?);
            make(View::tail(1, [total, dim], total)?, dim, total)
        }
        [heads, embd, latent] => {
            let (heads, embd, latent) = (size(heads)?, size(embd)?, size(latent)?);
            let (first, count) = if request.all_slices { (0, heads) } else { (request.slice, 1) };
            if request.slice >= heads {
                return Err(fail!(InvalidArgument, "slice {} of {heads} matrices", request.slice));
            }
            let view = View::heads([heads, embd, latent], first, count, latent)?;
            let mut plan = make(view, count * latent, embd);
            plan.sliced(heads, request)?;
            plan
        }
        _ => return Err(fail!(Unsupported, "an artifact of {} dimensions", weight.dims)),
    };
    plan.used.scales = true;
    Ok(plan)
}

/// A tensor of packed bytes under the type and the scales that the caller gives.
pub(super) fn tensor<'a>(
    files: &'a Files,
    tensor: &Tensor,
    ty: Type,
    request: &Request<'a>,
) -> Result<Plan<'a>> {
    if !matches!(tensor.ty, Type::U8 | Type::I8) && (tensor.ty, ty) != (Type::F32, Type::Ternary) {
        same(tensor.ty, request)?;
    }
    let Some(scales) = request.scales else {
        return Err(fail!(
            InvalidArgument,
            "the scales of {} weights are apart: give bl_layer_options.scales, or open the layer by its own name",
            ty.name()
        ));
    };
    let packed = files.bytes(tensor);
    let features = || match (request.out_features, request.in_features) {
        (0, _) | (_, 0) if ty == Type::Int8 => matrix(tensor, "weights"),
        (0, _) | (_, 0) => Err(fail!(
            InvalidArgument,
            "{} weights have no shape of their own: give bl_layer_options.out_features and in_features",
            ty.name()
        )),
        (rows, columns) => Ok([rows, columns]),
    };
    let all = Used { features: true, scales: true, ..Used::default() };
    match ty {
        Type::Ternary => super::cortex::ternary_of(tensor, packed, scales),
        Type::Int4 => super::cortex::int4_of(tensor, packed, scales, request),
        Type::BitnetHf => {
            let meaning = request.weight_scale.ok_or_else(|| {
                fail!(
                    InvalidArgument,
                    "the scale multiplies or divides: set BL_LAYER_SCALE_MULTIPLIES or BL_LAYER_SCALE_DIVIDES"
                )
            })?;
            let [quarter, columns] = matrix(tensor, "packed weights")?;
            let rows = if request.out_features == 0 { quarter * 4 } else { request.out_features };
            if rows.div_ceil(4) != quarter || request.in_features != 0 && request.in_features != columns {
                return Err(fail!(
                    InvalidArgument,
                    "{rows} x {} weights are not packed in {quarter} x {columns} bytes: 4 rows a byte",
                    if request.in_features == 0 { columns } else { request.in_features }
                ));
            }
            let mut plan = Plan::new(ty, rows, columns, Recipe::BitnetHf(packed, scales, meaning));
            plan.used = all;
            Ok(plan)
        }
        Type::TernaryBlock => {
            let [rows, columns] = features()?;
            let block = if request.group_size == 0 { BLOCK } else { request.group_size };
            let mut plan = Plan::new(ty, rows, columns, Recipe::TernaryBlock(block, packed, scales));
            plan.used = Used { group_size: true, ..all };
            Ok(plan)
        }
        _ => {
            let [rows, columns] = features()?;
            let view = View::rows(rows, columns)?;
            let mut plan = Plan::new(ty, rows, columns, Recipe::Artifact(view, packed, one(scales)?));
            plan.used = all;
            Ok(plan)
        }
    }
}
