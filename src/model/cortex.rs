//! cortex: ternary with one or several bases, and 4-bit groups.
//!
//! ```text
//! weight_packed U8 [O, I/4] or [O, I/4, N] (some exporters: I8, or F32 values)   scales [N], N = 1..8
//! weight_4bit   U8 [O, G ceil(g/2)]                                             scales_4bit [O, G]
//! ```
//! The 4-bit file holds neither I nor g: I is twice the packed columns and g is I / G, unless the options
//! say otherwise (a group length that is odd, rows that end inside a group).

use super::Role;
use super::parts::{Parts, expect, matrix, shape, size};
use super::plan::{Plan, Recipe, Request, Used, same};
use crate::codec::{Floats, cortex};
use crate::container::Tensor;
use crate::error::{Result, fail};
use crate::types::Type;

/// The scales: the caller's, else the file's.
fn scales<'a>(parts: &Parts<'a, '_>, request: &Request<'a>, name: &str, weights: &str) -> Result<Floats<'a>> {
    match request.scales {
        Some(scales) => Ok(scales),
        None => parts.floats(parts.need(Role::Scales, name, weights)?, name),
    }
}

/// Ternary weights.
pub(super) fn ternary<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    same(Type::Ternary, request)?;
    let weight = parts.weight()?;
    let scales = scales(parts, request, "scales", "weight_packed")?;
    ternary_of(weight, parts.bytes(weight), scales)
}

/// Ternary weights of a tensor and their scales.
pub(super) fn ternary_of<'a>(weight: &Tensor, packed: &'a [u8], scales: Floats<'a>) -> Result<Plan<'a>> {
    let (rows, bytes, bases) = match *shape(weight) {
        [rows, bytes] => (rows, bytes, 1),
        [rows, bytes, bases] => (rows, bytes, bases),
        _ => {
            return Err(fail!(
                BadFile,
                "weight_packed: [out, in / 4] or [out, in / 4, bases] expected, found {:?}",
                shape(weight)
            ));
        }
    };
    if size(bases)? != scales.count() {
        return Err(fail!(
            BadFile,
            "weight_packed has {bases} bases of ternary weights, but there are {} scales",
            scales.count()
        ));
    }
    let columns = size(bytes)?.saturating_mul(4);
    let mut plan = Plan::new(Type::Ternary, size(rows)?, columns, Recipe::Ternary(weight.ty, packed, scales));
    plan.used.scales = true;
    Ok(plan)
}

/// 4-bit groups.
pub(super) fn int4<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    same(Type::Int4, request)?;
    let weight = parts.weight()?;
    let scales = scales(parts, request, "scales_4bit", "weight_4bit")?;
    let plan = int4_of(weight, parts.bytes(weight), scales, request)?;
    if let Some(tensor) = parts.get(Role::Scales).filter(|_| request.scales.is_none()) {
        expect(tensor, "scales_4bit", &[plan.out_features, scales.count() / plan.out_features.max(1)])?;
    }
    Ok(plan)
}

/// 4-bit groups of a tensor and their scales.
pub(super) fn int4_of<'a>(
    weight: &Tensor,
    packed: &'a [u8],
    scales: Floats<'a>,
    request: &Request<'_>,
) -> Result<Plan<'a>> {
    if !matches!(weight.ty, Type::U8 | Type::I8) {
        return Err(fail!(Unsupported, "weight_4bit: u8 expected, found {}", weight.ty.name()));
    }
    let [rows, bytes] = matrix(weight, "weight_4bit")?;
    let groups = scales.count() / rows.max(1);
    let (columns, group) = match request.group_size {
        0 => cortex::int4_shape(bytes, groups)?,
        group => (groups.saturating_mul(group), group),
    };
    let columns = match request.in_features {
        0 => columns,
        given => given,
    };
    // The stride of a row must be the tensor's, or rows would be read from the wrong places.
    let whole = columns.div_ceil(group.max(1)).checked_mul(group.div_ceil(2));
    if whole != Some(bytes) || columns.div_ceil(group.max(1)) != groups {
        return Err(fail!(
            BadFile,
            "{bytes} packed columns and {groups} groups do not hold {columns} columns in groups of {group}"
        ));
    }
    if request.out_features != 0 && request.out_features != rows {
        return Err(fail!(InvalidArgument, "out_features is {}, the file's {rows}", request.out_features));
    }
    let mut plan = Plan::new(Type::Int4, rows, columns, Recipe::Int4(group, packed, scales));
    plan.used = Used { group_size: true, features: true, scales: true, ..Used::default() };
    Ok(plan)
}
