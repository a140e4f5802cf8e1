//! Hugging Face BitNet b1.58 (`quant_method` "bitnet"): packed ternary, or float masters that are
//! ternarised when they are loaded.
//!
//! ```text
//! weight U8 [R, I], R = ceil(O / 4): bits 2 k, 2 k + 1 of byte [r, i] = code of row k R + r, column i
//! weight_scale: one float
//!
//! linear_class "autobitlinear":  w = weight_scale (code - 1)
//! linear_class "bitlinear":      w = (code - 1) / weight_scale
//! quantization_mode "online":    weight float [O, I]; s = 1 / max(mean |w|, 1e-5),
//!                                w = clamp(round_half_even(w s), -1, 1) / s
//! ```
//! The two meanings of `weight_scale` are opposite and the tensors do not tell them apart; the caller
//! must know them from `config.json`. Where O is no multiple of 4 the file holds more rows than the
//! matrix has: they are not read. Code 3 is refused: nothing writes it.
//!
//! `(code - 1) / weight_scale` is 0 or the one f32 quotient `1 / weight_scale` with a sign, so the
//! divisor becomes the scale `1 / weight_scale` without changing a bit of any weight; `online` likewise.
//!
//! Source: transformers, `integrations/bitnet.py` (`pack_weights`, `unpack_weights`, `BitLinear`,
//! `AutoBitLinear`).

use super::bits::unpack_ternary;
use super::check_index;
use super::stored::{Floats, check_bytes, check_len, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Layout, Matrix, Row, Values};

/// What `weight_scale` means: `linear_class` of `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightScale {
    /// "autobitlinear": weights are multiplied with it.
    Multiplies,
    /// "bitlinear" (also where `config.json` names no class): weights are divided by it.
    Divides,
}

/// A packed matrix.
pub struct BitnetHf<'a> {
    out_features: usize,
    in_features: usize,
    scale: f32,
    packed: &'a [u8],
}

impl<'a> BitnetHf<'a> {
    /// The first `out_features` rows of `packed`.
    pub fn new(
        out_features: usize,
        in_features: usize,
        packed: &'a [u8],
        weight_scale: Floats<'_>,
        meaning: WeightScale,
    ) -> Result<BitnetHf<'a>> {
        check_shape(out_features, in_features)?;
        check_bytes("packed weight", &[out_features.div_ceil(4), in_features], packed.len())?;
        weight_scale.check_count("weight_scale", &[1])?;
        let scale = match meaning {
            WeightScale::Multiplies => weight_scale.get(0),
            WeightScale::Divides => 1.0 / weight_scale.get(0),
        };
        Ok(BitnetHf { out_features, in_features, scale, packed })
    }
}

impl Matrix for BitnetHf<'_> {
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
        let quarter = self.out_features.div_ceil(4);
        let bytes = &self.packed[index % quarter * self.in_features..];
        row.scales.fill(self.scale);
        if !unpack_ternary(bytes, 2 * (index / quarter) as u32, &mut row.codes) {
            return Err(fail!(BadFile, "row {index} holds the code 3, which BitNet does not define"));
        }
        Ok(())
    }
}

/// Packs a matrix of codes 0..=2, row after row; `packed` has `ceil(O / 4) * I` bytes. Rows that fill
/// up the last quarter get the code 0, as `pack_weights` leaves them.
pub fn pack(out_features: usize, in_features: usize, codes: &[u8], packed: &mut [u8]) -> Result<()> {
    check_shape(out_features, in_features)?;
    check_len("codes", &[out_features, in_features], codes.len())?;
    let quarter = out_features.div_ceil(4);
    check_len("packed bytes", &[quarter, in_features], packed.len())?;
    packed.fill(0);
    for (index, codes) in codes.chunks_exact(in_features).enumerate() {
        let bytes = &mut packed[index % quarter * in_features..];
        for (byte, code) in bytes.iter_mut().zip(codes) {
            *byte |= code << (2 * (index / quarter));
        }
    }
    Ok(())
}

/// Float masters of `quantization_mode` "online", ternarised row by row.
pub struct BitnetOnline<'a> {
    out_features: usize,
    in_features: usize,
    /// `1 / max(mean |w|, 1e-5)`
    inverse: f32,
    masters: Floats<'a>,
}

impl<'a> BitnetOnline<'a> {
    /// The matrix whose masters these are. Reads all of them once for their mean magnitude: in f64,
    /// where the sum of so many f32 does not depend on the order the last f32 bit of the mean.
    pub fn new(out_features: usize, in_features: usize, masters: Floats<'a>) -> Result<BitnetOnline<'a>> {
        check_shape(out_features, in_features)?;
        masters.check_count("weights", &[out_features, in_features])?;
        let sum: f64 = (0..masters.count()).map(|k| masters.get(k).abs() as f64).sum();
        let mean = (sum / masters.count() as f64) as f32;
        if !mean.is_finite() {
            return Err(fail!(BadFile, "weights to be ternarised have the mean magnitude {mean}"));
        }
        Ok(BitnetOnline { out_features, in_features, inverse: 1.0 / mean.max(1e-5), masters })
    }
}

impl Matrix for BitnetOnline<'_> {
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
        row.scales.fill(1.0 / self.inverse);
        for (k, code) in row.codes.iter_mut().enumerate() {
            let w = self.masters.get(index * self.in_features + k);
            *code = ((w * self.inverse).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8;
        }
        Ok(())
    }
}
