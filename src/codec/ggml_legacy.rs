//! ggml's blocks of 32 with one f16 scale: Q4_0, Q4_1, Q8_0.
//!
//! ```text
//! Q4_0, 18 bytes   d f16 | qs[16]          w = d (q - 8)
//! Q4_1, 20 bytes   d f16 | m f16 | qs[16]  w = d q + m
//! Q8_0, 34 bytes   d f16 | q i8[32]        w = d q
//!                  qs[j]: low nibble = element j, high nibble = element j + 16
//! ```
//! Source: the GGUF format's reference, ggml `ggml-quants.c` (commit d99724f2): `dequantize_row_*`
//! for the meaning, `quantize_row_*_ref` for the rounding. Encoding is byte for byte theirs.

use half::f16;

use super::Codec;
use crate::error::{Result, fail};
use crate::layout::{Layout, Offset, Row};
use crate::types::Type;

const BLOCK: usize = 32;

fn blocks_of(ty: Type, in_features: usize) -> Result<usize> {
    if in_features == 0 || !in_features.is_multiple_of(BLOCK) {
        return Err(fail!(
            BadFile,
            "{} has blocks of {BLOCK}, and {in_features} columns are no multiple of it",
            ty.name()
        ));
    }
    Ok(in_features / BLOCK)
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn put_half(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// Splits 16 bytes into 32 nibbles: the low ones first.
fn decode_nibbles(qs: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(BLOCK / 2);
    for ((q, l), h) in qs.iter().zip(low).zip(high) {
        *l = q & 15;
        *h = q >> 4;
    }
}

fn encode_nibbles(codes: [u8; BLOCK], qs: &mut [u8]) {
    for (j, q) in qs.iter_mut().enumerate() {
        *q = codes[j] | codes[j + BLOCK / 2] << 4;
    }
}

/// The inverse that ggml's quantisers multiply with: of the scale before it is rounded to f16.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Symmetric 4-bit blocks.
pub(super) struct Q4Symmetric;
pub(super) static Q4_0: Q4Symmetric = Q4Symmetric;

impl Codec for Q4Symmetric {
    fn ty(&self) -> Type {
        Type::Q4_0
    }

    fn layout(&self, in_features: usize) -> Result<Layout> {
        blocks_of(self.ty(), in_features)?;
        Ok(Layout::groups(4, 8, BLOCK, Offset::None))
    }

    fn row_bytes(&self, in_features: usize) -> usize {
        in_features / BLOCK * 18
    }

    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()> {
        for ((block, codes), scale) in
            bytes.chunks_exact(18).zip(row.codes.chunks_exact_mut(BLOCK)).zip(&mut row.scales)
        {
            *scale = half_at(block, 0);
            decode_nibbles(&block[2..], codes);
        }
        Ok(())
    }

    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        for (w, block) in weights.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(18)) {
            // The signed value of largest magnitude becomes code 0: it uses the range -8..7 best.
            let mut extreme = 0.0f32;
            for &v in w {
                if v.abs() > extreme.abs() {
                    extreme = v;
                }
            }
            let d = extreme / -8.0;
            let id = inverse(d);
            put_half(block, 0, d);
            let codes = std::array::from_fn(|j| ((w[j] * id + 8.5) as i8).min(15) as u8);
            encode_nibbles(codes, &mut block[2..]);
        }
        Ok(())
    }
}

/// 4-bit blocks with a minimum.
pub(super) struct Q4Affine;
pub(super) static Q4_1: Q4Affine = Q4Affine;

impl Codec for Q4Affine {
    fn ty(&self) -> Type {
        Type::Q4_1
    }

    fn layout(&self, in_features: usize) -> Result<Layout> {
        blocks_of(self.ty(), in_features)?;
        Ok(Layout::groups(4, 0, BLOCK, Offset::Minimum))
    }

    fn row_bytes(&self, in_features: usize) -> usize {
        in_features / BLOCK * 20
    }

    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()> {
        for (((block, codes), scale), minimum) in bytes
            .chunks_exact(20)
            .zip(row.codes.chunks_exact_mut(BLOCK))
            .zip(&mut row.scales)
            .zip(&mut row.minimums)
        {
            *scale = half_at(block, 0);
            *minimum = half_at(block, 2);
            decode_nibbles(&block[4..], codes);
        }
        Ok(())
    }

    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        for (w, block) in weights.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(20)) {
            let min = w.iter().copied().fold(f32::MAX, |a, v| if v < a { v } else { a });
            let max = w.iter().copied().fold(-f32::MAX, |a, v| if v > a { v } else { a });
            let d = (max - min) / 15.0;
            let id = inverse(d);
            put_half(block, 0, d);
            put_half(block, 2, min);
            let codes = std::array::from_fn(|j| (((w[j] - min) * id + 0.5) as i8).min(15) as u8);
            encode_nibbles(codes, &mut block[4..]);
        }
        Ok(())
    }
}

/// 8-bit blocks.
pub(super) struct Q8Symmetric;
pub(super) static Q8_0: Q8Symmetric = Q8Symmetric;

impl Codec for Q8Symmetric {
    fn ty(&self) -> Type {
        Type::Q8_0
    }

    fn layout(&self, in_features: usize) -> Result<Layout> {
        blocks_of(self.ty(), in_features)?;
        Ok(Layout::groups(8, 128, BLOCK, Offset::None))
    }

    fn row_bytes(&self, in_features: usize) -> usize {
        in_features / BLOCK * 34
    }

    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()> {
        for ((block, codes), scale) in
            bytes.chunks_exact(34).zip(row.codes.chunks_exact_mut(BLOCK)).zip(&mut row.scales)
        {
            *scale = half_at(block, 0);
            for (code, q) in codes.iter_mut().zip(&block[2..]) {
                *code = q ^ 0x80; // signed q to unsigned q + 128
            }
        }
        Ok(())
    }

    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        for (w, block) in weights.chunks_exact(BLOCK).zip(bytes.chunks_exact_mut(34)) {
            let amax = w.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let d = amax / 127.0;
            let id = inverse(d);
            put_half(block, 0, d);
            for (v, q) in w.iter().zip(&mut block[2..]) {
                *q = (v * id).round() as i8 as u8;
            }
        }
        Ok(())
    }
}
