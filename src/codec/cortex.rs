//! cortex (Bit-TTT): ternary with one or several bases, and symmetric 4-bit groups.
//!
//! ```text
//! ternary  weight_packed U8 [O, I/4] or [O, I/4, N]: byte (o I/4 + i/4) N + b, bits 2 (i % 4)
//!          scales F32 [N];   w = sum over b of scales[b] v;   v of code 0, 1, 2, 3 = 0, +1, -1, 0
//! int4     weight_4bit U8 [O, G ceil(g/2)], G = ceil(I / g): byte (o G + k) ceil(g/2) + j/2 for column
//!          k g + j, the low nibble for even j;   scales_4bit F32 or F16 [O, G];   w = s (nibble - 8)
//! ```
//! Ternary rows begin on bytes: I is a multiple of 4. Some exporters store the bytes as values of F32,
//! or as I8. Nothing tells these codes from the `q + 1` of other formats except where they come from.
//! The 4-bit file does not hold the group length; see [`int4_shape`].
//!
//! Source: Bit-TTT-Engine's cortex crate, `packing.rs` and `adaptive_linear.rs` (ternary: max |w| + 1e-6 as
//! the scale in the code, mean |w| + 1e-6 in its documentation), `quantize_4bit`.

use super::bits::unpack_nibble_stream;
use super::blocks::{abs_max, check_finite};
use super::check_index;
use super::stored::{Floats, check_bytes, check_len, check_multiple, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Matrix, Offset, Row, Scales, Values};
use crate::math::Mean;
use crate::nearest;
use crate::types::Type;

/// Most bases of a ternary matrix.
pub const BASES_MAX: usize = 8;

/// Ternary weights.
pub struct Ternary<'a> {
    out_features: usize,
    in_features: usize,
    bases: usize,
    /// Whether a byte is stored as an f32.
    as_floats: bool,
    packed: &'a [u8],
    scales: Floats<'a>,
}

impl<'a> Ternary<'a> {
    /// The matrix in `weight_packed` (of type U8, I8 or F32) and `scales`, one for each base.
    pub fn new(
        out_features: usize,
        in_features: usize,
        ty: Type,
        packed: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Ternary<'a>> {
        check_shape(out_features, in_features)?;
        check_multiple("columns of packed ternary weights", 4, in_features)?;
        let bases = scales.count();
        if !(1..=BASES_MAX).contains(&bases) {
            return Err(fail!(BadFile, "1 to {BASES_MAX} ternary bases expected, found {bases} scales"));
        }
        let bytes = match ty {
            Type::U8 | Type::I8 => 1,
            Type::F32 => 4,
            other => {
                return Err(fail!(BadFile, "packed bytes are u8, i8 or f32, not {}", other.name()));
            }
        };
        check_bytes("weight_packed", &[out_features, in_features / 4, bases, bytes], packed.len())?;
        Ok(Ternary { out_features, in_features, bases, as_floats: bytes == 4, packed, scales })
    }

    /// The codes of a row from its bytes, which stand `[I/4, N]`, base-major.
    fn decode(&self, bytes: impl Iterator<Item = u8>, codes: &mut [u8]) {
        for (n, byte) in bytes.enumerate() {
            let at = n % self.bases * self.in_features + n / self.bases * 4;
            if let Some(codes) = codes[at..].first_chunk_mut() {
                *codes = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6].map(offset_code);
            }
        }
    }
}

/// The code `v + 1` of the format's code.
fn offset_code(code: u8) -> u8 {
    1 + (code & 1) - (code >> 1)
}

/// The inverse of [`offset_code`].
fn stored_code(code: u8) -> u8 {
    [2, 0, 1, 0][code as usize & 3]
}

impl Matrix for Ternary<'_> {
    fn layout(&self) -> Layout {
        Layout::Coded(Coded {
            bits: 2,
            values: Values::Offset(1),
            scales: Scales::Row,
            scale_type: self.scales.scale_type(),
            bases: self.bases as u8,
        })
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        for (base, scale) in row.scales.iter_mut().enumerate() {
            *scale = self.scales.get(base);
        }
        let count = self.in_features / 4 * self.bases;
        if self.as_floats {
            let floats = self.packed[index * count * 4..][..count * 4].as_chunks().0;
            let floats = floats.iter().map(|b| f32::from_le_bytes(*b));
            if let Some(bad) = floats.clone().find(|f| *f != (*f as u8) as f32) {
                return Err(fail!(BadFile, "row {index}: {bad} is no byte"));
            }
            self.decode(floats.map(|f| f as u8), &mut row.codes);
        } else {
            self.decode(self.packed[index * count..][..count].iter().copied(), &mut row.codes);
        }
        Ok(())
    }
}

/// Packs a row of codes `v + 1`, base-major `[N][I]` as a [`Row`] holds them, into `I/4 * N` bytes.
pub fn pack_ternary_row(bases: usize, codes: &[u8], bytes: &mut [u8]) -> Result<()> {
    check_len("packed bytes of a row, times 4", &[codes.len()], bytes.len() * 4)?;
    let columns = codes.len() / bases.max(1);
    check_multiple("columns of packed ternary weights", 4, columns)?;
    for (n, byte) in bytes.iter_mut().enumerate() {
        let codes = &codes[n % bases * columns + n / bases * 4..][..4];
        *byte = (0..4).fold(0, |byte, j| byte | stored_code(codes[j]) << (2 * j));
    }
    Ok(())
}

/// Which scale the ternary encoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TernaryScale {
    /// `max |w| + 1e-6`: what the format's own code does.
    Max,
    /// `mean |w| + 1e-6`: what its documentation says.
    Mean,
}

/// Encodes a matrix with one base, whose rows are `in_features` long, and gives its scale.
pub fn encode_ternary(
    rule: TernaryScale,
    in_features: usize,
    weights: &[f32],
    bytes: &mut [u8],
) -> Result<f32> {
    check_multiple("columns of packed ternary weights", 4, in_features)?;
    check_multiple("weights", in_features.max(1), weights.len())?;
    check_len("packed bytes", &[weights.len() / 4], bytes.len())?;
    check_finite(weights)?;
    let size = match rule {
        TernaryScale::Max => abs_max(weights),
        TernaryScale::Mean => Mean::of(weights),
    };
    let scale = size + 1e-6;
    for (w, byte) in weights.as_chunks::<4>().0.iter().zip(bytes) {
        let codes = w.map(|w| ((w / scale).round().clamp(-1.0, 1.0) + 1.0) as u8);
        *byte = (0..4).fold(0, |byte, j| byte | stored_code(codes[j]) << (2 * j));
    }
    Ok(scale)
}

/// Symmetric 4-bit groups of any length.
pub struct Int4<'a> {
    out_features: usize,
    in_features: usize,
    group_len: usize,
    packed: &'a [u8],
    scales: Floats<'a>,
}

/// Columns and group length of a file's tensors `[O, packed_columns]` and `[O, groups]`: nothing else
/// in the file says them. Refused where they cannot be told.
pub fn int4_shape(packed_columns: usize, groups: usize) -> Result<(usize, usize)> {
    if groups == 0 || packed_columns == 0 || !packed_columns.is_multiple_of(groups) {
        return Err(fail!(
            BadFile,
            "{packed_columns} packed columns are no whole number of bytes for each of {groups} groups; say columns and group length"
        ));
    }
    match packed_columns.checked_mul(2) {
        Some(columns) => Ok((columns, columns / groups)),
        None => Err(fail!(BadFile, "{packed_columns} packed columns")),
    }
}

impl<'a> Int4<'a> {
    /// The matrix in `weight_4bit` and `scales_4bit`.
    pub fn new(
        out_features: usize,
        in_features: usize,
        group_len: usize,
        packed: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Int4<'a>> {
        check_shape(out_features, in_features)?;
        if group_len == 0 {
            return Err(fail!(InvalidArgument, "groups of no columns"));
        }
        let groups = in_features.div_ceil(group_len);
        check_bytes("weight_4bit", &[out_features, groups, group_len.div_ceil(2)], packed.len())?;
        scales.check_count("scales_4bit", &[out_features, groups])?;
        Ok(Int4 { out_features, in_features, group_len, packed, scales })
    }
}

impl Matrix for Int4<'_> {
    fn layout(&self) -> Layout {
        Layout::Coded(Coded {
            bits: 4,
            values: Values::Offset(8),
            scales: Scales::Group { len: self.group_len.min(self.in_features), offset: Offset::None },
            scale_type: self.scales.scale_type(),
            bases: 1,
        })
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        let group_bytes = self.group_len.div_ceil(2);
        let groups = row.scales.len();
        for (k, scale) in row.scales.iter_mut().enumerate() {
            *scale = self.scales.get(index * groups + k);
        }
        let bytes = self.packed[index * groups * group_bytes..].chunks_exact(group_bytes);
        for (codes, bytes) in row.codes.chunks_mut(self.group_len).zip(bytes) {
            unpack_nibble_stream(bytes, codes);
        }
        Ok(())
    }
}

/// The scale of a group.
pub fn int4_scale(weights: &[f32]) -> f32 {
    (abs_max(weights) / 7.0).max(1e-5)
}

/// The code of a weight.
#[inline]
pub fn int4_code(w: f32, scale: f32) -> u8 {
    // The bounds are integers: rounding after them is rounding before.
    nearest::byte(nearest::half_away((w / scale).clamp(-8.0, 7.0)) + 8.0)
}

/// Encodes a row: `ceil(I / g) * ceil(g / 2)` bytes and as many scales as groups.
pub fn encode_int4_row(
    group_len: usize,
    weights: &[f32],
    bytes: &mut [u8],
    scales: &mut [f32],
) -> Result<()> {
    check_finite(weights)?;
    if group_len == 0 {
        return Err(fail!(InvalidArgument, "groups of no columns"));
    }
    let group_bytes = group_len.div_ceil(2);
    let groups = weights.len().div_ceil(group_len);
    check_len("packed bytes", &[groups, group_bytes], bytes.len())?;
    check_len("scales", &[groups], scales.len())?;
    for ((w, bytes), scale) in weights.chunks(group_len).zip(bytes.chunks_exact_mut(group_bytes)).zip(scales)
    {
        *scale = int4_scale(w);
        let nibble = |j: usize| match w.get(j) {
            Some(w) => int4_code(*w, *scale),
            None => 8, // the row ends here, or the group has an odd length
        };
        for (j, byte) in bytes.iter_mut().enumerate() {
            *byte = nibble(2 * j) | nibble(2 * j + 1) << 4;
        }
    }
    Ok(())
}
