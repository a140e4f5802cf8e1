//! Layers whose weights one tensor holds by itself: every type of GGUF, and plain floats.
//!
//! ```text
//! [O, I]     a matrix                  [I]  one row
//! [E, O, I]  E matrices: experts; slice e begins after e * O rows
//! ```
//! `p.scale` of GGUF is one f32 (or one for each matrix) that multiplies the product: llama.cpp's graphs
//! for BitNet and for scaled formats do `y = (x Wᵀ) * scale + bias`. It is kept apart from the weights'
//! own scales and applied in that order, so that no scale is rounded.
//!
//! The three variants of I2_S have one type id; `Request::ty` says which one it is.

use super::Role;
use super::parts::{Parts, expect_type, shape, size};
use super::plan::{Plan, Recipe, Request, same};
use crate::codec;
use crate::container::{Files, Tensor};
use crate::error::{Result, fail};
use crate::types::Type;

/// A layer of a GGUF file.
pub(super) fn gguf<'a>(parts: &Parts<'a, '_>, request: &Request<'_>) -> Result<Plan<'a>> {
    let mut plan = tensor(parts.files, parts.weight()?, request)?;
    if let Some(scale) = parts.get(Role::ProductScale) {
        expect_type(scale, "scale", Type::F32)?;
        let values = parts.floats(scale, "scale")?;
        plan.product_scale = Some(match values.count() {
            1 => values.get(0),
            count if count == plan.slices && !plan.all_slices => values.get(plan.slice),
            count if count == plan.slices => {
                return Err(fail!(
                    Unsupported,
                    "{count} scales of the product: open its matrices one by one"
                ));
            }
            _ => return Err(fail!(BadFile, "scale: one value expected, found {:?}", shape(scale))),
        });
    }
    Ok(plan)
}

/// One tensor as it is stored.
pub(super) fn tensor<'a>(files: &'a Files, tensor: &'a Tensor, request: &Request<'_>) -> Result<Plan<'a>> {
    let ty = match (tensor.ty, request.ty) {
        (Type::I2S, Some(variant @ (Type::I2SArm | Type::I2SRows))) => variant,
        (stored, _) => same(stored, request).map(|()| stored)?,
    };
    let (slices, mut rows, columns) = match *shape(tensor) {
        [columns] => (1, 1, size(columns)?),
        [rows, columns] => (1, size(rows)?, size(columns)?),
        [slices, rows, columns] => (size(slices)?, size(rows)?, size(columns)?),
        _ => {
            return Err(fail!(
                Unsupported,
                "{} dimensions; a layer is a matrix [out_features, in_features], or several",
                tensor.dims
            ));
        }
    };
    let bytes = files.bytes(tensor);
    if request.transposed {
        return transposed(tensor, [slices, rows, columns], bytes, request);
    }
    let mut plan = Plan::new(ty, rows, columns, Recipe::Whole(bytes));
    plan.sliced(slices, request)?;
    if matches!(ty, Type::I2S | Type::I2SArm | Type::I2SRows | Type::T158) {
        if slices > 1 {
            return Err(fail!(Unsupported, "{} of three dimensions", ty.name()));
        }
        plan.rows = Some((tensor, 0, bytes.len() / rows.max(1)));
        return Ok(plan);
    }
    let codec = codec::find(ty)?;
    codec.layout(columns)?;
    let row_bytes = codec.row_bytes(columns);
    let first = if plan.all_slices { 0 } else { plan.slice };
    if plan.all_slices {
        let all = rows.checked_mul(slices);
        rows = all.ok_or_else(|| fail!(BadFile, "{slices} matrices of {rows} rows"))?;
        plan.out_features = rows;
    }
    // In range where the container checked the shape; where not, the codec finds too few bytes.
    let start = first.saturating_mul(rows).saturating_mul(row_bytes);
    let len = rows.saturating_mul(row_bytes);
    let rest = bytes.get(start..).unwrap_or(&[]);
    plan.recipe = Recipe::Whole(&rest[..len.min(rest.len())]);
    plan.rows = Some((tensor, start, row_bytes));
    Ok(plan)
}

/// One tensor of floats whose rows are the columns of x.
fn transposed<'a>(
    tensor: &Tensor,
    [slices, rows, columns]: [usize; 3],
    bytes: &'a [u8],
    request: &Request<'_>,
) -> Result<Plan<'a>> {
    if tensor.dims < 2 {
        return Err(fail!(Unsupported, "one dimension; [in_features, out_features] expected"));
    }
    let row_bytes = match tensor.ty {
        Type::F32 | Type::F16 | Type::Bf16 => codec::find(tensor.ty)?.row_bytes(columns),
        ty => {
            let name = ty.name();
            return Err(fail!(
                Unsupported,
                "{name} weights stored [in_features, out_features]: f32, f16 or bf16 expected"
            ));
        }
    };
    if request.all_slices && slices > 1 {
        return Err(fail!(Unsupported, "{slices} transposed matrices: open them one by one"));
    }
    let len = rows.saturating_mul(row_bytes);
    let rest = bytes.get(request.slice.saturating_mul(len)..).unwrap_or(&[]);
    let recipe = Recipe::Transposed(&rest[..len.min(rest.len())]);
    let mut plan = Plan::new(tensor.ty, columns, rows, recipe);
    plan.sliced(slices, request)?;
    plan.used.transposed = true;
    Ok(plan)
}
