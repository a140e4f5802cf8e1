//! 4-bit groups in 32-bit words: GPTQ, AWQ, compressed-tensors and MLX.
//!
//! ```text
//!                     weights                   scales  beside them
//! GPTQ                qweight I32 [I/8, O]      [G, O]  qzeros I32 [G, O/8], g_idx I32 [I]
//! AWQ                 qweight I32 [I, O/8]      [G, O]  qzeros I32 [G, O/8]
//! compressed-tensors  weight_packed I32         [O, G]  weight_shape I64 [2] = O, I; weight_zero_point
//!                     [O, ceil(I/8)]                    I32 [ceil(O/8), G], weight_g_idx I32 [I]
//! MLX                 weight U32 [O, I/8]       [O, G]  biases [O, G]
//! ```
//! The first two have the same names; the shapes of qweight and scales tell them apart, and contradict a
//! `config.json` that says otherwise. The number of bits follows from the shapes too: only 4 are read.
//!
//! The group length is the option's, else `config.json`'s, else I / G where that is a power of two or
//! the whole row. How GPTQ's zero points are stored only `config.json` (`checkpoint_format`, "gptq" where
//! there is none) or an option says; for MLX, whose bits and group length are one product, likewise.

use super::Role;
use super::parts::{Parts, expect, expect_type, matrix, shape};
use super::plan::{Plan, Recipe, Request, Used, Words, same};
use crate::codec::gptq::GptqVersion;
use crate::container::{Files, Tensor};
use crate::error::{Result, fail};
use crate::types::Type;

/// Bits of a word, and of a code.
const WORD: usize = 32;
const BITS: usize = 4;
/// Codes in a word.
const CODES: usize = WORD / BITS;

/// Whether a `qweight` is AWQ's, by the scales beside it: they have a column for each output.
pub(super) fn is_awq(files: &Files, qweight: &Tensor, scales: &[u8]) -> bool {
    files.directory.tensor(scales).is_some_and(|s| {
        s.dims == 2 && qweight.dims == 2 && qweight.shape[1].checked_mul(8) == Some(s.shape[1])
    })
}

/// Columns of a group.
fn group_len(
    parts: &Parts<'_, '_>,
    request: &Request<'_>,
    path: &[&str],
    columns: usize,
    groups: usize,
) -> Result<usize> {
    let configured = parts.config().and_then(|c| c.number(path));
    let len = match (request.group_size, configured) {
        (0, Some(n)) if n >= 1.0 => n as usize,
        (0, Some(_)) => columns, // -1: a whole row
        (0, None) if groups == 1 => columns,
        (0, None) if groups > 0 && columns.is_multiple_of(groups) => {
            let len = columns / groups;
            if !len.is_power_of_two() {
                return Err(undecided(columns, groups));
            }
            len
        }
        (0, None) => return Err(undecided(columns, groups)),
        (given, _) => given,
    };
    if columns.div_ceil(len.max(1)) != groups {
        return Err(fail!(BadFile, "{columns} columns in groups of {len}: found scales of {groups} groups"));
    }
    Ok(len)
}

fn undecided(columns: usize, groups: usize) -> crate::error::Error {
    fail!(
        InvalidArgument,
        "{columns} columns in {groups} groups: bl_layer_options.group_size says how long a group is"
    )
}

/// Refuses codes of other than 4 bits; `found` is what shapes or configuration say.
fn check_bits(found: usize) -> Result<()> {
    if found == BITS {
        return Ok(());
    }
    Err(fail!(Unsupported, "codes of {found} bits: only 4 are read"))
}

fn configured_bits(parts: &Parts<'_, '_>, path: &[&str]) -> Result<()> {
    match parts.config().and_then(|c| c.integer(path)) {
        Some(bits) => check_bits(bits as usize),
        None => Ok(()),
    }
}

const GROUP_SIZE: [&str; 2] = ["quantization_config", "group_size"];

/// What GPTQ and AWQ have in common: rows, groups and words.
fn zero_points<'a>(
    parts: &Parts<'a, '_>,
    request: &Request<'a>,
    columns: usize,
) -> Result<(usize, Words<'a>)> {
    let weight = parts.weight()?;
    let scales = parts.need(Role::Scales, "scales", "qweight")?;
    let zeros = parts.need(Role::Zeros, "qzeros", "qweight")?;
    expect_type(weight, "qweight", Type::I32)?;
    expect_type(zeros, "qzeros", Type::I32)?;
    let [groups, rows] = matrix(scales, "scales")?;
    let [_, zero_words] = matrix(zeros, "qzeros")?;
    if let (Some(bits), true) = (zero_words.checked_mul(WORD), rows > 0) {
        check_bits(bits / rows)?;
    }
    configured_bits(parts, &["quantization_config", "bits"])?;
    expect(zeros, "qzeros", &[groups, rows / CODES])?;
    let words = Words {
        group_len: group_len(parts, request, &GROUP_SIZE, columns, groups)?,
        packed: parts.bytes(weight),
        scales: parts.floats(scales, "scales")?,
        zeros: Some(parts.bytes(zeros)),
    };
    Ok((rows, words))
}

fn plan<'a>(ty: Type, rows: usize, columns: usize, recipe: Recipe<'a>) -> Plan<'a> {
    let mut plan = Plan::new(ty, rows, columns, recipe);
    plan.used = Used { group_size: true, ..Used::default() };
    plan
}

/// GPTQ.
pub(super) fn gptq<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    same(Type::Gptq, request)?;
    if parts.is_method("awq") {
        return Err(fail!(BadFile, "config.json says AWQ, but qweight has GPTQ's shape"));
    }
    let [words, rows] = matrix(parts.weight()?, "qweight")?;
    let columns = words.saturating_mul(CODES);
    let g_idx = match parts.get(Role::GroupIndex) {
        None => None,
        Some(g_idx) => {
            expect_type(g_idx, "g_idx", Type::I32)?;
            // Other widths than 4 bits show here first.
            if let [columns] = *shape(g_idx)
                && columns > 0
            {
                let bits = words.saturating_mul(WORD) as u64 / columns;
                check_bits(usize::try_from(bits).unwrap_or(usize::MAX))?;
            }
            expect(g_idx, "g_idx", &[columns])?;
            Some(parts.bytes(g_idx))
        }
    };
    let (scaled, words) = zero_points(parts, request, columns)?;
    if scaled != rows {
        return Err(fail!(BadFile, "qweight has {rows} outputs, scales {scaled}"));
    }
    let version = match request.gptq {
        Some(version) => version,
        None => version(parts)?,
    };
    Ok(plan(Type::Gptq, rows, columns, Recipe::Gptq { version, words, g_idx }))
}

/// What `config.json` says of the zero points.
fn version(parts: &Parts<'_, '_>) -> Result<GptqVersion> {
    const FORMAT: [&str; 2] = ["quantization_config", "checkpoint_format"];
    // Older models name no method beside their bits.
    let config = parts.config().filter(|c| {
        let method = ["quantization_config", "quant_method"];
        c.is(&method, "gptq") || !c.has(&method) && c.has(&["quantization_config", "bits"])
    });
    match config {
        None => Err(fail!(
            InvalidArgument,
            "zero points are stored less 1 (gptq) or plain (gptq_v2), and no config.json with quant_method \
             \"gptq\" says which: set BL_LAYER_GPTQ_V1 or BL_LAYER_GPTQ_V2"
        )),
        Some(c) if c.is(&FORMAT, "gptq") || !c.has(&FORMAT) => Ok(GptqVersion::V1),
        Some(c) if c.is(&FORMAT, "gptq_v2") => Ok(GptqVersion::V2),
        Some(_) => Err(fail!(
            Unsupported,
            "config.json: checkpoint_format is neither \"gptq\" nor \"gptq_v2\": convert the model to one of them"
        )),
    }
}

/// AWQ.
pub(super) fn awq<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    const VERSION: [&str; 2] = ["quantization_config", "version"];
    same(Type::Awq, request)?;
    if parts.is_method("gptq") {
        return Err(fail!(BadFile, "config.json says GPTQ, but qweight has AWQ's shape"));
    }
    if let Some(c) = parts.config().filter(|c| parts.is_method("awq") && c.has(&VERSION))
        && !c.is(&VERSION, "gemm")
        && !c.is(&VERSION, "GEMM")
    {
        return Err(fail!(Unsupported, "config.json: version of AWQ is not \"gemm\""));
    }
    let [columns, words] = matrix(parts.weight()?, "qweight")?;
    let rows = words.saturating_mul(CODES);
    let (_, words) = zero_points(parts, request, columns)?;
    Ok(plan(Type::Awq, rows, columns, Recipe::Awq(words)))
}

/// compressed-tensors.
pub(super) fn compressed_tensors<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    const FORMAT: [&str; 2] = ["quantization_config", "format"];
    const WEIGHTS: &str = "weight_packed";
    same(Type::CompressedTensors, request)?;
    if let Some(c) = parts.config().filter(|c| parts.is_method("compressed-tensors") && c.has(&FORMAT))
        && !c.is(&FORMAT, "pack-quantized")
    {
        return Err(fail!(Unsupported, "config.json: format is not \"pack-quantized\""));
    }
    let weight = parts.weight()?;
    let scales = parts.need(Role::Scales, "weight_scale", WEIGHTS)?;
    let [rows, columns] = stored_shape(parts, parts.need(Role::Shape, "weight_shape", WEIGHTS)?)?;
    let [packed_rows, words] = matrix(weight, WEIGHTS)?;
    if packed_rows != rows {
        return Err(fail!(BadFile, "weight_shape has {rows} rows, weight_packed {packed_rows}"));
    }
    if words != columns.div_ceil(CODES) {
        // Dense packing of b bits takes ceil(I b / 32) words.
        let bits = words.saturating_mul(WORD) / columns.max(1);
        return Err(fail!(
            Unsupported,
            "{words} words for a row of {columns} are codes of about {bits} bits: only 4 are read"
        ));
    }
    let [scaled, groups] = matrix(scales, "weight_scale")?;
    if scaled != rows {
        return Err(fail!(BadFile, "weight_packed has {rows} outputs, weight_scale {scaled}"));
    }
    let zeros = match parts.get(Role::Zeros) {
        None => None,
        Some(zeros) => {
            expect_type(zeros, "weight_zero_point", Type::I32)?;
            expect(zeros, "weight_zero_point", &[rows.div_ceil(CODES), groups])?;
            Some(parts.bytes(zeros))
        }
    };
    let g_idx = match parts.get(Role::GroupIndex) {
        None => None,
        Some(g_idx) => {
            expect_type(g_idx, "weight_g_idx", Type::I32)?;
            expect(g_idx, "weight_g_idx", &[columns])?;
            Some(parts.bytes(g_idx))
        }
    };
    let words = Words {
        // Groups may differ from layer to layer, by rules of names: the shapes are nearer.
        group_len: group_len(parts, request, &[], columns, groups)?,
        packed: parts.bytes(weight),
        scales: parts.floats(scales, "weight_scale")?,
        zeros,
    };
    Ok(plan(Type::CompressedTensors, rows, columns, Recipe::CompressedTensors { words, g_idx }))
}

/// The two numbers of weight_shape.
fn stored_shape(parts: &Parts<'_, '_>, tensor: &Tensor) -> Result<[usize; 2]> {
    expect(tensor, "weight_shape", &[2])?;
    let bytes = parts.bytes(tensor);
    let number = |index: usize| -> Option<usize> {
        match tensor.ty {
            Type::I64 => usize::try_from(i64::from_le_bytes(*bytes.as_chunks().0.get(index)?)).ok(),
            Type::I32 => usize::try_from(i32::from_le_bytes(*bytes.as_chunks().0.get(index)?)).ok(),
            _ => None,
        }
    };
    match (number(0), number(1)) {
        (Some(rows), Some(columns)) if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(fail!(BadFile, "weight_shape: two whole numbers of 32 or 64 bits expected")),
    }
}

/// MLX.
pub(super) fn mlx<'a>(parts: &Parts<'a, '_>, request: &Request<'a>) -> Result<Plan<'a>> {
    same(Type::Mlx, request)?;
    let weight = parts.weight()?;
    let scales = parts.need(Role::Scales, "scales", "weight (u32)")?;
    let biases = parts.need(Role::Zeros, "biases", "weight (u32)")?;
    let [rows, words] = matrix(weight, "weight")?;
    let [scaled, groups] = matrix(scales, "scales")?;
    expect(biases, "biases", &[rows, groups])?;
    if scaled != rows || groups == 0 {
        return Err(fail!(BadFile, "weight has {rows} outputs, scales [{scaled}, {groups}]"));
    }
    let name = str::from_utf8(parts.name).unwrap_or("");
    let value = |key: &str| -> Option<f64> {
        let config = parts.config()?;
        // A layer's own settings stand under its name.
        let paths: [&[&str]; 3] =
            [&["quantization", name, key], &["quantization", key], &["quantization_config", key]];
        paths.iter().find_map(|path| config.number(path))
    };
    if let Some(c) = parts.config()
        && c.has(&["quantization", "mode"])
        && !c.is(&["quantization", "mode"], "affine")
    {
        return Err(fail!(Unsupported, "config.json: mode of quantization is not \"affine\""));
    }
    // Shapes only tell bits times group length.
    let group_len = match (request.group_size, value("group_size")) {
        (0, Some(n)) if n >= 1.0 => n as usize,
        (0, _) => {
            return Err(fail!(
                InvalidArgument,
                "no config.json with quantization.group_size: bl_layer_options.group_size says how long a group is"
            ));
        }
        (given, _) => given,
    };
    if let Some(bits) = value("bits").filter(|_| request.group_size == 0) {
        check_bits(bits as usize)?;
    }
    let columns = group_len.saturating_mul(groups);
    check_bits(words.saturating_mul(WORD) / columns.max(1))?;
    if columns != words.saturating_mul(CODES) {
        return Err(fail!(BadFile, "{words} words of 8 codes are not {groups} groups of {group_len}"));
    }
    let words = Words {
        group_len,
        packed: parts.bytes(weight),
        scales: parts.floats(scales, "scales")?,
        zeros: None,
    };
    let biases = parts.floats(biases, "biases")?;
    Ok(plan(Type::Mlx, rows, columns, Recipe::Mlx { words, biases }))
}
