//! burn_dragon's packed artifacts: signs, ternary codes or bytes of a flattened array, one f32 scale.
//!
//! ```text
//! binary1   element e: bit e % 8 of byte e / 8, 1 = +1, 0 = -1
//! ternary2  element e: bits 2 (e % 4) of byte e / 4, code q + 1; 3 is invalid
//! int8      element e: byte e, two's complement
//! w = q scale
//! ```
//! Arrays are `[heads, embd, latent]` (decoder_x, decoder_y) or `[heads * latent, dim]` (encoder) and
//! the sums run over the axis before the last: as y = x Wᵀ they lie transposed. A [`View`] says which
//! element is which weight; rows are gathered with its strides.
//!
//! Source: burn_dragon, `pack_i8`, `pack_ternary`, `pack_sign` and the static artifact.

use super::bits::{has_code_three, pack_signs};
use super::blocks::check_finite;
use super::check_index;
use super::stored::{check_bytes, check_len, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Layout, Matrix, Row, Values};
use crate::math::Mean;
use crate::types::Type;

/// The least scale.
const EPSILON: f32 = 1e-8;

/// An axis of the matrix as two axes of the array: index `i` is the element offset
/// `i / inner * outer_stride + i % inner * inner_stride`.
#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    inner: usize,
    outer_stride: usize,
    inner_stride: usize,
}

impl Axis {
    fn plain(len: usize, stride: usize) -> Axis {
        Axis { len, inner: len.max(1), outer_stride: 0, inner_stride: stride }
    }

    fn offset(&self, i: usize) -> usize {
        i / self.inner * self.outer_stride + i % self.inner * self.inner_stride
    }
}

/// Which elements of a flattened array are the weights of a matrix [out, in].
#[derive(Clone, Copy, Debug)]
pub struct View {
    rows: Axis,
    columns: Axis,
    start: usize,
    /// Elements that the array has.
    elements: usize,
}

impl View {
    /// An array [out, in]: rows in order.
    pub fn rows(out_features: usize, in_features: usize) -> Result<View> {
        check_shape(out_features, in_features)?;
        let elements = elements(&[out_features, in_features])?;
        let rows = Axis::plain(out_features, in_features);
        Ok(View { rows, columns: Axis::plain(in_features, 1), start: 0, elements })
    }

    /// Heads `first..first + count` of an array [heads, embd, latent]: embd columns; the first
    /// `active` of every head's latent rows, head after head.
    pub fn heads(
        [heads, embd, latent]: [usize; 3],
        first: usize,
        count: usize,
        active: usize,
    ) -> Result<View> {
        let elements = elements(&[heads, embd, latent])?;
        if count == 0 || first.checked_add(count).is_none_or(|end| end > heads) {
            return Err(fail!(InvalidArgument, "{count} heads from {first} on, of {heads}"));
        }
        if active == 0 || active > latent {
            return Err(fail!(InvalidArgument, "{active} active latent rows of {latent}"));
        }
        let head = embd * latent; // fits: `elements` did
        let rows = Axis { len: count * active, inner: active, outer_stride: head, inner_stride: 1 };
        check_shape(rows.len, embd)?;
        Ok(View { rows, columns: Axis::plain(embd, latent), start: first * head, elements })
    }

    /// An array [heads * latent, dim]: dim rows; as columns the first `active` of every head's latent
    /// ones, head after head.
    pub fn tail(heads: usize, [total, dim]: [usize; 2], active: usize) -> Result<View> {
        let elements = elements(&[total, dim])?;
        if heads == 0 || !total.is_multiple_of(heads) {
            return Err(fail!(InvalidArgument, "{total} rows of {heads} heads"));
        }
        let latent = total / heads;
        if active == 0 || active > latent {
            return Err(fail!(InvalidArgument, "{active} active latent columns of {latent}"));
        }
        let columns =
            Axis { len: heads * active, inner: active, outer_stride: latent * dim, inner_stride: dim };
        check_shape(dim, columns.len)?;
        Ok(View { rows: Axis::plain(dim, 1), columns, start: 0, elements })
    }
}

fn elements(shape: &[usize]) -> Result<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n > 0).ok_or_else(|| {
        fail!(BadFile, "an artifact whose shape has no weights, or more than an address space")
    })
}

/// Bytes of `count` elements.
pub fn packed_bytes(ty: Type, count: usize) -> Result<usize> {
    match ty {
        Type::Binary => Ok(count.div_ceil(8)),
        Type::Ternary2 => Ok(count.div_ceil(4)),
        Type::Int8 => Ok(count),
        other => Err(fail!(InvalidArgument, "{} is no encoding of an artifact", other.name())),
    }
}

/// A matrix in an artifact.
pub struct Artifact<'a> {
    ty: Type,
    view: View,
    scale: f32,
    packed: &'a [u8],
}

impl<'a> Artifact<'a> {
    /// The matrix that `view` takes out of an array; `ty` is `Binary`, `Ternary2` or `Int8`.
    pub fn new(ty: Type, view: View, packed: &'a [u8], scale: f32) -> Result<Artifact<'a>> {
        check_bytes("packed weights", &[packed_bytes(ty, view.elements)?], packed.len())?;
        Ok(Artifact { ty, view, scale, packed })
    }
}

impl Matrix for Artifact<'_> {
    fn layout(&self) -> Layout {
        match self.ty {
            Type::Binary => Layout::rows(1, Values::Sign),
            Type::Ternary2 => Layout::rows(2, Values::Offset(1)),
            _ => Layout::rows(8, Values::Offset(128)),
        }
    }
    fn out_features(&self) -> usize {
        self.view.rows.len
    }
    fn in_features(&self) -> usize {
        self.view.columns.len
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.view.rows.len)?;
        row.scales.fill(self.scale);
        let start = self.view.start + self.view.rows.offset(index);
        let Axis { inner, outer_stride, inner_stride, .. } = self.view.columns;
        for (outer, codes) in row.codes.chunks_mut(inner).enumerate() {
            let start = start + outer * outer_stride;
            let elements = codes.iter_mut().enumerate().map(|(j, code)| (start + j * inner_stride, code));
            match self.ty {
                Type::Binary => elements.for_each(|(e, c)| *c = self.packed[e / 8] >> (e % 8) & 1),
                Type::Ternary2 => {
                    elements.for_each(|(e, c)| *c = self.packed[e / 4] >> (2 * (e % 4)) & 3);
                    if has_code_three(codes) {
                        return Err(fail!(BadFile, "row {index} holds the invalid ternary code 3"));
                    }
                }
                _ => elements.for_each(|(e, c)| *c = self.packed[e] ^ 0x80),
            }
        }
        Ok(())
    }
}

/// Encodes a flattened array by the format's own rules and gives its scale.
pub fn encode(ty: Type, weights: &[f32], packed: &mut [u8]) -> Result<f32> {
    check_len("packed bytes", &[packed_bytes(ty, weights.len())?], packed.len())?;
    check_finite(weights)?;
    let mean = Mean::of(weights);
    packed.fill(0);
    match ty {
        Type::Binary => {
            pack_signs(weights, packed);
            Ok(mean.max(EPSILON))
        }
        Type::Ternary2 => {
            let scale = mean.max(EPSILON);
            for (e, w) in weights.iter().enumerate() {
                let code = if w.abs() < scale { 1 } else { 2 * (*w > 0.0) as u8 };
                packed[e / 4] |= code << (2 * (e % 4));
            }
            Ok(scale)
        }
        _ => {
            // 2 mean / 127, to the last bit, where twice the mean may be beyond f32.
            let scale = (mean / 63.5).max(EPSILON);
            for (w, byte) in weights.iter().zip(packed) {
                *byte = (w / scale).round().clamp(-127.0, 127.0) as i8 as u8;
            }
            Ok(scale)
        }
    }
}

/// Encodes what is code * scale already, as signs or ternary codes, and gives the scale, the largest
/// magnitude.
pub fn encode_dequantized(ty: Type, weights: &[f32], packed: &mut [u8]) -> Result<f32> {
    check_len("packed bytes", &[packed_bytes(ty, weights.len())?], packed.len())?;
    check_finite(weights)?;
    let scale = weights.iter().fold(0.0f32, |max, w| max.max(w.abs())).max(EPSILON);
    packed.fill(0);
    match ty {
        Type::Binary => pack_signs(weights, packed),
        Type::Ternary2 => {
            for (e, w) in weights.iter().enumerate() {
                let code = if w.abs() <= 0.5 * scale { 1 } else { 2 * (*w > 0.0) as u8 };
                packed[e / 4] |= code << (2 * (e % 4));
            }
        }
        other => return Err(fail!(InvalidArgument, "{} has one encoding", other.name())),
    }
    Ok(scale)
}
