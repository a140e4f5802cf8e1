//! Weights in a caller's memory, as matrices.

use std::ffi::c_void;

use super::layer::row_stride;
use crate::codec::burn_dragon::{self, Artifact, View};
use crate::codec::cortex;
use crate::codec::transposed::Transposed;
use crate::codec::{self, BitnetHf, CompressedTensors, Floats, Rows, Stored};
use crate::error::{Error, Result, Status, fail};
use crate::layout::{Float, Layout, Matrix, Row};
use crate::limits::FEATURES_MAX;
use crate::matrix::MatrixRef;
use crate::types::Type;

/// The float type that `ty` is, if it is one.
pub fn float_of(ty: Type) -> Option<Float> {
    match ty {
        Type::F32 => Some(Float::F32),
        Type::F16 => Some(Float::F16),
        Type::Bf16 => Some(Float::Bf16),
        _ => None,
    }
}

/// A number of rows or columns.
pub fn features(n: i64, what: &str) -> Result<usize> {
    match u64::try_from(n) {
        Ok(n) if (1..=FEATURES_MAX).contains(&n) => Ok(n as usize),
        _ => Err(fail!(InvalidArgument, "{what} = {n}: 1 to {FEATURES_MAX}")),
    }
}

/// A failure on a caller's bytes: what they cannot be is the caller's mistake, not a file's. Codes are read after
/// [`Weights::matrix`], so that what reads them passes its failures through this too.
pub fn mistake(error: Error) -> Error {
    match error.status() {
        Status::BadFile => error.with(Status::InvalidArgument),
        _ => error,
    }
}

/// Weights with the scales that stand apart from them.
pub struct Weights<'a> {
    /// Their address.
    pub address: *const c_void,
    /// Their format.
    pub ty: Type,
    /// Bytes from row to row; 0: rows touch.
    pub stride: i64,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Whether it is the other way round: [columns, rows]; floats only.
    pub transposed: bool,
    /// Scales that stand apart, f32.
    pub scales: &'a [u8],
    /// Columns of a group; 0: not said.
    pub group: usize,
}

impl<'a> Weights<'a> {
    /// The matrix.
    ///
    /// # Safety
    /// While the matrix is used, the address is valid for reading the matrix that the fields describe.
    pub unsafe fn matrix(&self) -> Result<Box<dyn Matrix + 'a>> {
        let Weights { address, ty, rows, columns, scales, .. } = *self;
        if address.is_null() {
            return Err(fail!(InvalidArgument, "the weights are NULL"));
        }
        let apart = matches!(
            ty,
            Type::Ternary
                | Type::Binary
                | Type::Ternary2
                | Type::Int8
                | Type::Int4
                | Type::BitnetHf
                | Type::TernaryBlock
                | Type::CompressedTensors
        );
        if apart == scales.is_empty() {
            let what = match apart {
                true => "stand apart: bl_layer_create takes them in bl_layer_options.scales",
                false => "are in its bytes: bl_layer_options.scales must be NULL",
            };
            return Err(fail!(InvalidArgument, "the scales of {} {what}", ty.name()));
        }
        if self.transposed {
            let Some(float) = float_of(ty) else {
                return Err(fail!(Unsupported, "{} weights stored [in_features, out_features]", ty.name()));
            };
            let stride = row_stride(self.stride, rows, float, "the weights")?;
            if stride != rows * float.bytes() {
                return Err(fail!(Unsupported, "transposed weights whose rows do not touch"));
            }
            fits(stride, columns)?;
            // SAFETY: the caller's contract.
            let bytes = unsafe { std::slice::from_raw_parts(address.cast(), stride * columns) };
            return Ok(Box::new(Transposed::new(ty, rows, columns, bytes)?));
        }
        if self.group != 0 && !apart && float_of(ty).is_none() {
            return Err(fail!(InvalidArgument, "group_size says nothing about {} weights", ty.name()));
        }
        if let Some(float) = float_of(ty) {
            let stride = row_stride(self.stride, columns, float, "the weights")?;
            fits(stride, rows)?;
            // SAFETY: the caller's contract.
            let view = unsafe { MatrixRef::new(address.cast(), float, stride, columns) };
            return Ok(Box::new(FloatRows { view, float, rows, columns }));
        }
        // SAFETY: the caller's contract.
        if apart { unsafe { self.with_scales() } } else { unsafe { self.alone() } }.map_err(mistake)
    }

    /// Formats of one tensor.
    ///
    /// # Safety
    /// As `matrix`.
    unsafe fn alone(&self) -> Result<Box<dyn Matrix + 'a>> {
        let Weights { address, ty, rows, columns, .. } = *self;
        let bytes = match codec::stored(ty, rows, columns)? {
            Stored::Rows(row_bytes) => {
                let stride = match usize::try_from(self.stride) {
                    Ok(0) => row_bytes,
                    Ok(stride) if stride >= row_bytes => stride,
                    _ => {
                        return Err(fail!(
                            InvalidArgument,
                            "row stride of the weights is {} bytes, but a row has {row_bytes}",
                            self.stride
                        ));
                    }
                };
                fits(stride, rows)?;
                let bytes = stride * (rows - 1) + row_bytes;
                // SAFETY: the caller's contract.
                let bytes = unsafe { std::slice::from_raw_parts(address.cast(), bytes) };
                return Ok(Box::new(Rows::strided(codec::find(ty)?, rows, columns, stride, bytes)?));
            }
            Stored::Whole(bytes) => bytes,
        };
        // SAFETY: the caller's contract.
        let bytes = unsafe { self.whole(bytes) }?;
        codec::open(ty, rows, columns, bytes)
    }

    /// Formats whose scales are another tensor.
    ///
    /// # Safety
    /// As `matrix`.
    unsafe fn with_scales(&self) -> Result<Box<dyn Matrix + 'a>> {
        let Weights { ty, rows, columns, scales, .. } = *self;
        let scales = Floats::new(Type::F32, scales)?;
        let count = scales.count();
        let grouped = matches!(ty, Type::Int4 | Type::CompressedTensors);
        let groups = count / rows;
        if grouped && groups == 0 {
            return Err(fail!(InvalidArgument, "{count} scales for the groups of {rows} rows"));
        }
        if self.group != 0 && !grouped && ty != Type::TernaryBlock {
            return Err(fail!(InvalidArgument, "group_size says nothing about {} weights", ty.name()));
        }
        let len = if self.group == 0 { columns.div_ceil(groups.max(1)) } else { self.group.min(columns) };
        let product = |factors: [usize; 3]| {
            let bytes = factors.iter().try_fold(1usize, |n, f| n.checked_mul(*f));
            bytes.ok_or_else(|| fail!(InvalidArgument, "{rows} x {columns} weights"))
        };
        let bytes = match ty {
            Type::Ternary => product([rows, columns / 4, count])?,
            Type::Int4 => product([rows, columns.div_ceil(len), len.div_ceil(2)])?,
            Type::CompressedTensors => product([rows, columns.div_ceil(8), 4])?,
            Type::BitnetHf => product([rows.div_ceil(4), columns, 1])?,
            Type::TernaryBlock => product([rows, columns, 1])?.div_ceil(4),
            _ => burn_dragon::packed_bytes(ty, product([rows, columns, 1])?)?,
        };
        // SAFETY: the caller's contract.
        let bytes = unsafe { self.whole(bytes) }?;
        Ok(match ty {
            Type::Ternary => Box::new(cortex::Ternary::new(rows, columns, Type::U8, bytes, scales)?),
            Type::Int4 => Box::new(cortex::Int4::new(rows, columns, len, bytes, scales)?),
            Type::CompressedTensors => {
                Box::new(CompressedTensors::new(rows, columns, len, bytes, scales, None, None)?)
            }
            Type::BitnetHf => {
                let multiplies = codec::bitnet_hf::WeightScale::Multiplies;
                Box::new(BitnetHf::new(rows, columns, bytes, scales, multiplies)?)
            }
            Type::TernaryBlock => {
                let block = if self.group == 0 { 256 } else { self.group };
                Box::new(codec::ruvllm::Ternary::new(rows, columns, block, bytes, scales)?)
            }
            _ => {
                if count != 1 && count != rows {
                    return Err(fail!(InvalidArgument, "1 or {rows} scales expected, found {count}"));
                }
                let artifact = Artifact::new(ty, View::rows(rows, columns)?, bytes, scales.get(0))?;
                Box::new(RowScales { artifact, scales })
            }
        })
    }

    /// All bytes of weights whose rows cannot be told apart by a stride.
    ///
    /// # Safety
    /// As `matrix`.
    unsafe fn whole(&self, bytes: usize) -> Result<&'a [u8]> {
        fits(bytes, 1)?;
        if self.stride != 0 {
            let name = self.ty.name();
            return Err(fail!(InvalidArgument, "the rows of {name} are packed together: the stride is 0"));
        }
        // SAFETY: the caller's contract.
        Ok(unsafe { std::slice::from_raw_parts(self.address.cast(), bytes) })
    }
}

fn fits(stride: usize, rows: usize) -> Result<()> {
    match stride.checked_mul(rows) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(fail!(InvalidArgument, "{rows} rows of {stride} bytes are more than an address space")),
    }
}

/// Rows of floats.
struct FloatRows<'a> {
    view: MatrixRef<'a>,
    float: Float,
    rows: usize,
    columns: usize,
}

impl Matrix for FloatRows<'_> {
    fn layout(&self) -> Layout {
        Layout::Dense(self.float)
    }
    fn out_features(&self) -> usize {
        self.rows
    }
    fn in_features(&self) -> usize {
        self.columns
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        if index >= self.rows {
            return Err(fail!(InvalidArgument, "row {index} of {}", self.rows));
        }
        self.view.read_row(index, &mut row.floats);
        Ok(())
    }
}

/// Codes of one tensor, with one scale or one for each row.
struct RowScales<'a> {
    artifact: Artifact<'a>,
    scales: Floats<'a>,
}

impl Matrix for RowScales<'_> {
    fn layout(&self) -> Layout {
        self.artifact.layout()
    }
    fn out_features(&self) -> usize {
        self.artifact.out_features()
    }
    fn in_features(&self) -> usize {
        self.artifact.in_features()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        self.artifact.read_row(index, row)?;
        if self.scales.count() > 1 {
            row.scales.fill(self.scales.get(index));
        }
        Ok(())
    }
}
