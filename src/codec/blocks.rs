//! What formats of fixed-size blocks share: a row is a whole number of blocks, one after another.

use super::Codec;
use super::stored::check_len;
use crate::error::{Error, Result, fail};
use crate::float16::{f16_to_f32, f32_to_f16};
use crate::layout::{Coded, Layout, Row, SUPER_BLOCK, Values};
use crate::nearest;
use crate::types::Type;

/// Encodes whole blocks of finite weights; fails where a scale does not fit the format.
type Encode = fn(&[f32], &mut [u8]) -> Result<()>;

/// Writes whole blocks of codes and scales; fails where a scale is none of the format's.
type Store = fn(&Row, &mut [u8]) -> Result<()>;

/// A format of fixed blocks, as data; block length and bytes stand in the table of types.
pub(super) struct Blocks {
    pub(super) ty: Type,
    pub(super) layout: Layout,
    /// Decodes whole blocks into a row of as many columns.
    pub(super) decode: fn(&[u8], &mut Row),
    /// Encodes whole blocks by the rule of the format's own tool.
    pub(super) encode: Option<Encode>,
    /// Writes whole blocks of a row as `decode` reads them.
    pub(super) store: Option<Store>,
}

impl Codec for Blocks {
    fn ty(&self) -> Type {
        self.ty
    }

    fn layout(&self, in_features: usize) -> Result<Layout> {
        let block = self.ty.info().block as usize;
        if in_features == 0 || !in_features.is_multiple_of(block) {
            return Err(fail!(
                BadFile,
                "{} has blocks of {block}, and {in_features} columns are no multiple of it",
                self.ty.name()
            ));
        }
        Ok(self.layout)
    }

    fn row_bytes(&self, in_features: usize) -> usize {
        let info = self.ty.info();
        // Saturating: more than an address space is refused like any size that is not there.
        (in_features / info.block as usize).saturating_mul(info.block_bytes as usize)
    }

    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()> {
        (self.decode)(bytes, row);
        Ok(())
    }

    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        let Some(encode) = self.encode else {
            let name = self.ty.name();
            // What codes of a table stand for is not searched either.
            let table = matches!(self.layout, Layout::Coded(Coded { values: Values::Table(_), .. }));
            return Err(match self.store.is_some() && !table {
                true => {
                    fail!(Unsupported, "{name} has no fixed rule here: bl_model_quantize writes it by search")
                }
                false => fail!(Unsupported, "{name} cannot be written, only read"),
            });
        };
        self.layout(weights.len())?;
        check_len("bytes of a row", &[self.row_bytes(weights.len())], bytes.len())?;
        check_finite(weights)?;
        encode(weights, bytes)
    }

    fn store_row(&self, row: &Row, bytes: &mut [u8]) -> Result<()> {
        let Some(store) = self.store else {
            return Err(fail!(Unsupported, "{} cannot be written", self.ty.name()));
        };
        let columns = row.codes.len();
        self.layout(columns)?;
        check_len("bytes of a row", &[self.row_bytes(columns)], bytes.len())?;
        store(row, bytes)
    }
}

/// Refuses weights that no scale can stand for: the tools of the formats write rubbish for them.
pub(super) fn check_finite(weights: &[f32]) -> Result<()> {
    if nearest::all_finite(weights) {
        return Ok(());
    }
    match weights.iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(k) => Err(fail!(InvalidArgument, "weight {k} is {}", weights[k])),
    }
}

/// The f16 at byte `at`.
pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The failure of weights whose scale f16 cannot hold.
#[cold]
pub(crate) fn beyond_f16(scale: f32) -> Error {
    fail!(InvalidArgument, "a scale of {scale} is beyond f16: the weights are too large")
}

/// Writes `value` as f16 (to nearest even) at byte `at`; refused where that would be an infinity.
pub(super) fn put_half(bytes: &mut [u8], at: usize, value: f32) -> Result<()> {
    let half = f32_to_f16(value);
    if half & 0x7c00 == 0x7c00 {
        return Err(beyond_f16(value));
    }
    bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
    Ok(())
}

/// The inverse that ggml's quantisers multiply with: of the scale before it is rounded to f16. It is
/// infinite for the least subnormal scales; so codes are clamped where the formats' tools do not.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Writes `value`, which must be an f16, at byte `at`.
pub(super) fn put_exact_half(bytes: &mut [u8], at: usize, value: f32) -> Result<()> {
    let half = f32_to_f16(value);
    if f16_to_f32(half) != value {
        return Err(fail!(InvalidArgument, "a scale of {value} is no f16"));
    }
    bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
    Ok(())
}

/// Largest magnitude of finite weights.
pub(super) fn abs_max(weights: &[f32]) -> f32 {
    f32::from_bits(nearest::largest_bits(weights))
}

/// The ternary code `q + 1` of `w` under the inverse scale `id`: halves are rounded away from zero.
pub(super) fn ternary_code(w: f32, id: f32) -> u8 {
    ((w * id).round().clamp(-1.0, 1.0) + 1.0) as u8
}

/// The super-blocks of a row beside the places they decode to.
pub(super) struct SuperBlock<'a, const BYTES: usize, const GROUPS: usize> {
    pub(super) bytes: &'a [u8; BYTES],
    pub(super) codes: &'a mut [u8; SUPER_BLOCK],
    pub(super) scale: &'a mut f32,
    pub(super) sub_scales: &'a mut [i8; GROUPS],
}

/// A row of super-blocks without minima.
pub(super) fn super_blocks<'a, const BYTES: usize, const GROUPS: usize>(
    bytes: &'a [u8],
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    sub_scales: &'a mut [i8],
) -> impl Iterator<Item = SuperBlock<'a, BYTES, GROUPS>> {
    let places = codes.as_chunks_mut().0.iter_mut().zip(scales).zip(sub_scales.as_chunks_mut().0);
    bytes.as_chunks().0.iter().zip(places).map(|(bytes, ((codes, scale), sub_scales))| SuperBlock {
        bytes,
        codes,
        scale,
        sub_scales,
    })
}

/// A row of super-blocks with minima: each with its `dmin` and its integer minima.
pub(super) fn super_blocks_with_minima<'a, const BYTES: usize, const GROUPS: usize>(
    bytes: &'a [u8],
    row: &'a mut Row,
) -> impl Iterator<Item = (SuperBlock<'a, BYTES, GROUPS>, &'a mut f32, &'a mut [i8; GROUPS])> {
    let minima = row.minimums.iter_mut().zip(row.sub_minimums.as_chunks_mut().0);
    super_blocks(bytes, &mut row.codes, &mut row.scales, &mut row.sub_scales)
        .zip(minima)
        .map(|(block, (minimum, sub_minimums))| (block, minimum, sub_minimums))
}
