//! A rounded matrix as tensors of a file.
//!
//! ```text
//! file           target                    tensors of the layer p
//! GGUF           ggml's types, floats      p.weight
//! GGUF           i2_s                      p.weight: codes of the tensor, then one scale
//! safetensors    ternary                   p.weight_packed U8 [O, I/4] or [O, I/4, N], p.scales F32 [N]
//! safetensors    bitnet-hf                 p.weight U8 [ceil(O/4), I], p.weight_scale F32 [1] (multiplies)
//! safetensors    int4                      p.weight_4bit U8 [O, bytes], p.scales_4bit F32 [O, groups]
//! safetensors    floats                    p.weight
//! ```
//! The bytes are those that `codec` describes. Rows of most are apart, and are written as they are
//! rounded; BitNet's bytes hold four rows each and are kept until the last.

use crate::codec::{self, Codec, cortex, i2_s};
use crate::container::Kind;
use crate::error::{Result, fail};
use crate::layout::{Layout, Row, Scales};
use crate::memory::{filled, reserve};
use crate::types::Type;

/// How a rounded matrix is stored.
pub(super) enum Store {
    Rows(&'static dyn Codec),
    I2S,
    Ternary { bases: usize },
    BitnetHf,
    Int4 { group: usize },
}

/// A tensor that a layer is stored in.
pub(super) struct Part {
    /// What follows the layer's name and a dot.
    pub(super) suffix: &'static str,
    pub(super) ty: Type,
    pub(super) shape: Vec<u64>,
}

impl Store {
    /// How `ty` is stored in a file of that kind.
    pub(super) fn new(kind: Kind, ty: Type, layout: &Layout, rows: usize, columns: usize) -> Result<Store> {
        let float = matches!(ty, Type::F32 | Type::F16 | Type::Bf16);
        let wrong = || {
            let file = if kind == Kind::Gguf { "GGUF" } else { "safetensors" };
            fail!(Unsupported, "{} is no format of {file} files that is written here", ty.name())
        };
        match (kind, ty) {
            (Kind::Gguf, Type::I2S) if !columns.is_multiple_of(128) => {
                Err(fail!(Unsupported, "i2_s has blocks of 128, and {columns} columns are no multiple of it"))
            }
            (Kind::Gguf, Type::I2S) => Ok(Store::I2S),
            (Kind::Gguf, _) => Ok(Store::Rows(codec::find(ty).map_err(|_| wrong())?)),
            (_, Type::Ternary) => match layout {
                Layout::Coded(coded) if coded.scales == Scales::Row && columns.is_multiple_of(4) => {
                    Ok(Store::Ternary { bases: coded.bases as usize })
                }
                Layout::Coded(coded) if coded.scales == Scales::Row => Err(fail!(
                    Unsupported,
                    "{columns} columns of packed ternary weights are no multiple of 4"
                )),
                _ => Err(fail!(Unsupported, "ternary weights in groups are in no file's format but ours")),
            },
            (_, Type::BitnetHf) if rows.is_multiple_of(4) => Ok(Store::BitnetHf),
            (_, Type::BitnetHf) => Err(fail!(
                Unsupported,
                "{rows} rows: BitNet files hold four rows a byte, and say no other number"
            )),
            (_, Type::Int4) => match layout {
                // The file says neither columns nor groups: they follow from whole bytes of whole groups.
                Layout::Coded(coded) => match coded.scales {
                    Scales::Group { len, .. } if columns.is_multiple_of(len) && len.is_multiple_of(2) => {
                        Ok(Store::Int4 { group: len })
                    }
                    _ => Err(fail!(
                        Unsupported,
                        "int4 files hold whole groups of an even number of columns, not {columns} columns in groups of {}",
                        coded.group_len(columns)
                    )),
                },
                Layout::Dense(_) => Err(wrong()),
            },
            _ if float => Ok(Store::Rows(codec::find(ty)?)),
            _ => Err(wrong()),
        }
    }

    /// The tensors of one layer, whose weights have that shape; the first holds the codes.
    pub(super) fn parts(&self, shape: &[u64]) -> Result<Vec<Part>> {
        let (mut parts, mut dims) = (Vec::new(), Vec::new());
        reserve(&mut parts, 2, "tensors")?;
        reserve(&mut dims, shape.len() + 1, "a shape")?;
        dims.extend_from_slice(shape);
        let [rows, columns] = match *shape {
            [rows, columns] => [rows, columns],
            _ if matches!(self, Store::Rows(_)) => [0, 0],
            _ => return Err(fail!(Unsupported, "several matrices in one tensor of this format")),
        };
        let vector = |n: u64| {
            let mut shape = Vec::new();
            reserve(&mut shape, 1, "a shape").map(|()| {
                shape.push(n);
                shape
            })
        };
        match self {
            Store::Rows(codec) => parts.push(Part { suffix: "weight", ty: codec.ty(), shape: dims }),
            Store::I2S => parts.push(Part { suffix: "weight", ty: Type::I2S, shape: dims }),
            Store::Ternary { bases } => {
                dims[1] = columns / 4;
                if *bases > 1 {
                    dims.push(*bases as u64);
                }
                parts.push(Part { suffix: "weight_packed", ty: Type::U8, shape: dims });
                parts.push(Part { suffix: "scales", ty: Type::F32, shape: vector(*bases as u64)? });
            }
            Store::BitnetHf => {
                dims[0] = rows.div_ceil(4);
                parts.push(Part { suffix: "weight", ty: Type::U8, shape: dims });
                parts.push(Part { suffix: "weight_scale", ty: Type::F32, shape: vector(1)? });
            }
            Store::Int4 { group } => {
                dims[1] = columns / 2;
                let mut scales = vector(rows)?;
                reserve(&mut scales, 1, "a shape")?;
                scales.push(columns / *group as u64);
                parts.push(Part { suffix: "weight_4bit", ty: Type::U8, shape: dims });
                parts.push(Part { suffix: "scales_4bit", ty: Type::F32, shape: scales });
            }
        }
        Ok(parts)
    }

    /// Bytes of a row of codes; none where rows share bytes.
    pub(super) fn row_bytes(&self, columns: usize) -> Option<usize> {
        Some(match self {
            Store::Rows(codec) => codec.row_bytes(columns),
            Store::I2S => columns / 4,
            Store::Ternary { bases } => columns / 4 * bases,
            Store::Int4 { .. } => columns / 2,
            Store::BitnetHf => return None,
        })
    }

    /// Writes one row's codes; `bytes` is [`Store::row_bytes`] long.
    pub(super) fn row(&self, row: &Row, bytes: &mut [u8]) -> Result<()> {
        match self {
            Store::Rows(codec) => codec.store_row(row, bytes),
            Store::I2S => i2_s::pack_row(&row.codes, bytes),
            Store::Ternary { bases } => cortex::pack_ternary_row(*bases, &row.codes, bytes),
            Store::Int4 { .. } => {
                for (pair, byte) in row.codes.as_chunks::<2>().0.iter().zip(bytes) {
                    *byte = pair[0] | pair[1] << 4;
                }
                Ok(())
            }
            Store::BitnetHf => Err(fail!(Internal, "a row of BitNet's that is apart")),
        }
    }

    /// What follows the codes of all rows in the first tensor: I2_S's scale.
    pub(super) fn tail(&self, scales: Option<&[f32]>) -> Result<Option<[u8; 32]>> {
        if !matches!(self, Store::I2S) {
            return Ok(None);
        }
        let Some(&[scale]) = scales else { return Err(fail!(Internal, "i2_s without one scale")) };
        let mut tail = [0; 32];
        tail[..4].copy_from_slice(&scale.to_le_bytes());
        Ok(Some(tail))
    }

    /// The scales of a row that stand in the second tensor.
    pub(super) fn has_row_scales(&self) -> bool {
        matches!(self, Store::Int4 { .. })
    }

    /// The scales of the tensor that stand in the second one.
    pub(super) fn tensor_scales(&self, scales: Option<&[f32]>) -> Result<Option<Vec<u8>>> {
        if !matches!(self, Store::Ternary { .. } | Store::BitnetHf) {
            return Ok(None);
        }
        let scales = scales.ok_or_else(|| fail!(Internal, "a tensor without scales of its own"))?;
        let mut bytes = filled(scales.len() * 4, 0, "scales")?;
        for (scale, bytes) in scales.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = scale.to_le_bytes();
        }
        Ok(Some(bytes))
    }
}
