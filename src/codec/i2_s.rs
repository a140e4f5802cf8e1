//! bitnet.cpp's I2_S: ternary, 2 bits, one f32 scale behind the codes of the whole tensor.
//!
//! ```text
//! codes, n / 4 bytes | scale f32 | 28 zero bytes
//!
//! I2S      flat blocks of 128: element j in byte j % 32, bits 6 - 2 (j / 32): the first 32 on top
//! I2SArm   flat blocks of  64: element j in byte j % 16, bits 6 - 2 (j / 16)
//! I2SRows  four rows a byte:   row 4 g + t, column i in byte g I + i, bits 6 - 2 t
//!
//! w = scale (code - 1); code 3 is read as 0
//! ```
//! The three share one type id in files and nothing tells them apart: every published file has the
//! first. Files quantised on ARM have the second, those of x86 builds without ACT_PARALLEL the third.
//!
//! Source: BitNet's fork of llama.cpp, `ggml-bitnet-mad.cpp`, `quantize_i2_s`: scale = max |w|, and the
//! sign of all weights that are not below 1e-6: it expects weights that are ternary already.

use super::bits::{map, three_is_zero, threes_to_ones, unpack_shifted, unpack_ternary};
use super::blocks::{abs_max, check_finite};
use super::check_index;
use super::stored::{check_bytes, check_len, check_multiple, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Layout, Matrix, Row, Values};
use crate::memory::filled;
use crate::types::Type;

/// Bytes behind the codes: the scale and its padding.
const TAIL: usize = 32;
/// Smaller magnitudes are zeros to the format's own quantiser.
const ZERO_BELOW: f32 = 1e-6;

/// How codes lie in bytes.
#[derive(Clone, Copy)]
enum Order {
    /// Flat blocks of 128 elements.
    Blocks128,
    /// Flat blocks of 64 elements.
    Blocks64,
    /// Four rows a byte.
    Rows,
}

impl Order {
    fn new(ty: Type, out_features: usize, in_features: usize) -> Result<Order> {
        check_shape(out_features, in_features)?;
        match ty {
            Type::I2S => check_multiple("columns of I2_S", 128, in_features).map(|()| Order::Blocks128),
            Type::I2SArm => check_multiple("columns of I2_S", 64, in_features).map(|()| Order::Blocks64),
            Type::I2SRows => check_multiple("rows of I2_S", 4, out_features).map(|()| Order::Rows),
            other => Err(fail!(InvalidArgument, "{} is no order of I2_S", other.name())),
        }
    }
}

/// A matrix in I2_S.
pub struct I2S<'a> {
    order: Order,
    out_features: usize,
    in_features: usize,
    scale: f32,
    codes: &'a [u8],
}

impl<'a> I2S<'a> {
    /// The matrix in `bytes`; `ty` is `I2S`, `I2SArm` or `I2SRows`.
    pub fn new(ty: Type, out_features: usize, in_features: usize, bytes: &'a [u8]) -> Result<I2S<'a>> {
        let order = Order::new(ty, out_features, in_features)?;
        let room = bytes.len().saturating_sub(TAIL);
        let (rows, columns) = match order {
            Order::Blocks128 | Order::Blocks64 => (out_features, in_features / 4),
            Order::Rows => (out_features / 4, in_features),
        };
        check_bytes("codes of I2_S (without the 32 bytes behind them)", &[rows, columns], room)?;
        let (codes, tail) = bytes.split_at(rows * columns);
        let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        Ok(I2S { order, out_features, in_features, scale, codes })
    }
}

impl Matrix for I2S<'_> {
    fn layout(&self) -> Layout {
        Layout::rows(2, Values::Offset(1))
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        row.scales.fill(self.scale);
        let in_features = self.in_features;
        match self.order {
            Order::Blocks128 => {
                decode_blocks::<32>(&self.codes[index * (in_features / 4)..], &mut row.codes);
            }
            Order::Blocks64 => {
                decode_blocks::<16>(&self.codes[index * (in_features / 4)..], &mut row.codes);
            }
            Order::Rows => {
                let shift = 6 - 2 * (index as u32 % 4);
                if !unpack_ternary(&self.codes[index / 4 * in_features..], shift, &mut row.codes) {
                    three_is_zero(&mut row.codes);
                }
            }
        }
        Ok(())
    }
}

/// Blocks of `BYTES` bytes, four runs of columns each. Threes become ones before codes are taken apart: four in one go.
fn decode_blocks<const BYTES: usize>(qs: &[u8], codes: &mut [u8]) {
    for (qs, codes) in qs.as_chunks::<BYTES>().0.iter().zip(codes.chunks_exact_mut(4 * BYTES)) {
        let mut ternary = [0; BYTES];
        map(qs, &mut ternary, threes_to_ones);
        for (run, codes) in codes.as_chunks_mut::<BYTES>().0.iter_mut().enumerate() {
            unpack_shifted(&ternary, 6 - 2 * run as u32, codes);
        }
    }
}

/// Bytes of a matrix in I2_S.
pub fn size(out_features: usize, in_features: usize) -> Option<usize> {
    Some(out_features.checked_mul(in_features)? / 4 + TAIL)
}

/// Writes a matrix of codes 0..=2 (row after row) and its scale; `bytes` is [`size`] long.
pub fn pack(
    ty: Type,
    out_features: usize,
    in_features: usize,
    codes: &[u8],
    scale: f32,
    bytes: &mut [u8],
) -> Result<()> {
    let order = Order::new(ty, out_features, in_features)?;
    check_len("codes", &[out_features, in_features], codes.len())?;
    let count = codes.len() / 4;
    check_len("bytes of I2_S", &[count + TAIL], bytes.len())?;
    bytes.fill(0);
    let (qs, tail) = bytes.split_at_mut(count);
    tail[..4].copy_from_slice(&scale.to_le_bytes());
    for (e, code) in codes.iter().enumerate() {
        let (byte, part) = match order {
            Order::Blocks128 => (e / 128 * 32 + e % 32, e / 32 % 4),
            Order::Blocks64 => (e / 64 * 16 + e % 16, e / 16 % 4),
            Order::Rows => (e / in_features / 4 * in_features + e % in_features, e / in_features % 4),
        };
        qs[byte] |= code << (6 - 2 * part);
    }
    Ok(())
}

/// Writes the codes 0..=2 of one row of blocks of 128; `bytes` is a quarter as long.
pub fn pack_row(codes: &[u8], bytes: &mut [u8]) -> Result<()> {
    check_multiple("columns of I2_S", 128, codes.len())?;
    check_len("bytes of a row of I2_S, times 4", &[codes.len()], bytes.len() * 4)?;
    for (codes, qs) in codes.as_chunks::<128>().0.iter().zip(bytes.as_chunks_mut::<32>().0) {
        for (m, q) in qs.iter_mut().enumerate() {
            *q = codes[m] << 6 | codes[m + 32] << 4 | codes[m + 64] << 2 | codes[m + 96];
        }
    }
    Ok(())
}

/// Writes ternary weights as the format's own quantiser does: their largest magnitude as the scale,
/// and signs.
pub fn encode(
    ty: Type,
    out_features: usize,
    in_features: usize,
    weights: &[f32],
    bytes: &mut [u8],
) -> Result<()> {
    check_finite(weights)?;
    let mut codes = filled(weights.len(), 1u8, "codes")?;
    for (code, w) in codes.iter_mut().zip(weights) {
        if w.abs() >= ZERO_BELOW {
            *code = if *w > 0.0 { 2 } else { 0 };
        }
    }
    pack(ty, out_features, in_features, &codes, abs_max(weights), bytes)
}
