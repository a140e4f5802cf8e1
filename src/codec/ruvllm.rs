//! ruvllm's ternary blocks: codes and scales of the flattened matrix, without regard to rows.
//!
//! ```text
//! in memory   codes, ceil(n / 4) bytes: element e in byte e / 4, bits 2 (e % 4)
//!             scales f32: block e / B (B = 256 unless said otherwise); the last block may be short
//! T158        for each 256 elements: codes[64] as above | scale f16;   the last one is padded
//!
//! w = scale (code - 1); code 3 is read as 0; codes past the last element are padding (of zero bits)
//! ```
//! Blocks run across row ends. A row of the matrix decodes into groups of gcd(I, B) columns, each of
//! which lies in one block, with repeated scales; where that is fewer than 4 columns, into floats.
//!
//! In GGUF, T158 has the type id of BF16, dimensions in the order [O, I], and is told from it only by
//! `general.architecture` "craftsman" and its size; see the container.
//!
//! Source: ruvllm, `bitnet/ternary.rs` and `gguf_export.rs`. The file's own exporter truncates scales
//! to f16; ours rounds to nearest even.

use super::bits::{three_is_zero, unpack_pairs};
use super::blocks::{check_finite, half_at, put_half};
use super::check_index;
use super::stored::{Floats, check_bytes, check_len, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Coded, Float, Layout, Matrix, Offset, Row, ScaleType, Scales, Values};
use crate::math::Mean;

/// Elements of a block of the T158 file form.
const BLOCK: usize = 256;
/// Its bytes: 64 of codes and an f16.
const BLOCK_BYTES: usize = 66;
/// The least scale of a block of zeros.
const EPSILON: f32 = 1e-8;
/// Shorter groups cost more than plain floats.
const GROUP_MIN: usize = 4;

enum Storage<'a> {
    Memory { codes: &'a [u8], scales: Floats<'a> },
    T158(&'a [u8]),
}

/// A ternary matrix in flat blocks.
pub struct Ternary<'a> {
    out_features: usize,
    in_features: usize,
    block: usize,
    /// Columns that are sure to lie in one block.
    group: usize,
    storage: Storage<'a>,
}

impl<'a> Ternary<'a> {
    /// The memory form: codes and one scale for each `block` elements.
    pub fn new(
        out_features: usize,
        in_features: usize,
        block: usize,
        codes: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Ternary<'a>> {
        let count = elements(out_features, in_features)?;
        if block == 0 {
            return Err(fail!(InvalidArgument, "blocks of no weights"));
        }
        check_bytes("ternary codes", &[count.div_ceil(4)], codes.len())?;
        scales.check_count("scales", &[count.div_ceil(block)])?;
        let group = gcd(in_features, block);
        let storage = Storage::Memory { codes, scales };
        Ok(Ternary { out_features, in_features, block, group, storage })
    }

    /// The T158 form of GGUF files.
    pub fn t158(out_features: usize, in_features: usize, bytes: &'a [u8]) -> Result<Ternary<'a>> {
        let count = elements(out_features, in_features)?;
        check_bytes("ternary blocks", &[count.div_ceil(BLOCK), BLOCK_BYTES], bytes.len())?;
        let group = gcd(in_features, BLOCK);
        let storage = Storage::T158(bytes);
        Ok(Ternary { out_features, in_features, block: BLOCK, group, storage })
    }

    fn scale(&self, e: usize) -> f32 {
        match self.storage {
            Storage::Memory { scales, .. } => scales.get(e / self.block),
            Storage::T158(bytes) => half_at(bytes, e / BLOCK * BLOCK_BYTES + BLOCK_BYTES - 2),
        }
    }

    /// The code of element `e`, 3 among them.
    fn code(&self, e: usize) -> u8 {
        let byte = match self.storage {
            Storage::Memory { codes, .. } => codes[e / 4],
            Storage::T158(bytes) => bytes[e / BLOCK * BLOCK_BYTES + e % BLOCK / 4],
        };
        byte >> (2 * (e % 4)) & 3
    }

    /// The codes of elements `e..`, which lie in one block.
    fn group_codes(&self, e: usize, codes: &mut [u8]) {
        if !e.is_multiple_of(4) || !codes.len().is_multiple_of(4) {
            for (j, code) in codes.iter_mut().enumerate() {
                *code = self.code(e + j);
            }
        } else {
            let bytes = match self.storage {
                Storage::Memory { codes, .. } => &codes[e / 4..],
                Storage::T158(bytes) => &bytes[e / BLOCK * BLOCK_BYTES + e % BLOCK / 4..],
            };
            unpack_pairs(bytes, codes);
        }
        three_is_zero(codes);
    }
}

fn elements(out_features: usize, in_features: usize) -> Result<usize> {
    check_shape(out_features, in_features)?;
    let too_many = || fail!(BadFile, "a matrix of {out_features} x {in_features} weights");
    out_features.checked_mul(in_features).ok_or_else(too_many)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Matrix for Ternary<'_> {
    fn layout(&self) -> Layout {
        if self.group < GROUP_MIN {
            return Layout::Dense(Float::F32);
        }
        Layout::Coded(Coded {
            bits: 2,
            values: Values::Offset(1),
            scales: Scales::Group { len: self.group, offset: Offset::None },
            scale_type: match self.storage {
                Storage::Memory { scales, .. } => scales.scale_type(),
                Storage::T158(_) => ScaleType::F16,
            },
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
        let start = index * self.in_features;
        for (k, w) in row.floats.iter_mut().enumerate() {
            let mut code = [self.code(start + k)];
            three_is_zero(&mut code);
            *w = (code[0] as f32 - 1.0) * self.scale(start + k);
        }
        let groups = row.codes.chunks_exact_mut(self.group).zip(&mut row.scales);
        for (g, (codes, scale)) in groups.enumerate() {
            let e = start + g * self.group;
            *scale = self.scale(e);
            self.group_codes(e, codes);
        }
        Ok(())
    }
}

/// Ternarises blocks of a flattened matrix: `ceil(n / 4)` bytes of codes and `ceil(n / block)` scales.
/// Padding bits are zero, as the format's own tool leaves them.
pub fn encode(block: usize, weights: &[f32], codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
    check_finite(weights)?;
    if block == 0 {
        return Err(fail!(InvalidArgument, "blocks of no weights"));
    }
    check_len("bytes of codes", &[weights.len().div_ceil(4)], codes.len())?;
    check_len("scales", &[weights.len().div_ceil(block)], scales.len())?;
    codes.fill(0);
    for (b, (w, scale)) in weights.chunks(block).zip(scales).enumerate() {
        *scale = Mean::of(w) + EPSILON;
        for (j, w) in w.iter().enumerate() {
            let e = b * block + j;
            let code = ((w / *scale).clamp(-1.0, 1.0).round() + 1.0) as u8;
            codes[e / 4] |= code << (2 * (e % 4));
        }
    }
    Ok(())
}

/// Ternarises a flattened matrix into the T158 form: 66 bytes for each 256 weights begun.
pub fn encode_t158(weights: &[f32], bytes: &mut [u8]) -> Result<()> {
    check_len("bytes of blocks", &[weights.len().div_ceil(BLOCK), BLOCK_BYTES], bytes.len())?;
    bytes.fill(0);
    for (w, block) in weights.chunks(BLOCK).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        let mut scale = [0.0];
        encode(BLOCK, w, &mut block[..w.len().div_ceil(4)], &mut scale)?;
        put_half(block, BLOCK_BYTES - 2, scale[0])?;
    }
    Ok(())
}
