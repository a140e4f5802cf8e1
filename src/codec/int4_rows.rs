//! 4-bit formats of safetensors files whose rows are contiguous: compressed-tensors and MLX.
//!
//! ```text
//! compressed-tensors "pack-quantized"
//!   weight_packed I32 [O, ceil(I/8)]: bits 4 (i % 8) of word [o, i/8] = q + 8
//!   weight_scale F16, BF16 or F32 [O, G];   weight_zero_point I32 [ceil(O/8), G]: bits 4 (o % 8) = z + 8
//!   weight_g_idx I32 [I]: as GPTQ's (older files only);   w = s (q - z), z = 0 where there is none
//! MLX affine
//!   weight U32 [O, I/8]: bits 4 (i % 8);   scales, biases F16, BF16 or F32 [O, G];   w = s q + b
//! ```
//! In little-endian words that is one stream of nibbles along a row, the low one first.
//!
//! Source: compressed-tensors 0.20 (`pack_to_int32`: codes and zero points alike are offset by 8) and
//! 0.9 (g_idx); MLX `mx.quantize` with 4 bits.

use super::bits::unpack_nibble_stream;
use super::check_index;
use super::gptq::{sorted_columns, zero_point_layout};
use super::stored::{Floats, check_bytes, check_multiple, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Matrix, Offset, Row, Scales, Values};

/// Codes in a 32-bit word.
const WORD: usize = 8;

fn group_layout(zero: u8, len: usize, offset: Offset, scales: &Floats<'_>) -> Layout {
    Layout::Coded(Coded {
        bits: 4,
        values: Values::Offset(zero),
        scales: Scales::Group { len, offset },
        scale_type: scales.scale_type(),
        bases: 1,
    })
}

fn check(out_features: usize, in_features: usize, group_len: usize, packed: &[u8]) -> Result<usize> {
    check_shape(out_features, in_features)?;
    if group_len == 0 {
        return Err(fail!(InvalidArgument, "groups of no columns"));
    }
    check_bytes("packed weight", &[out_features, in_features.div_ceil(WORD), 4], packed.len())?;
    Ok(in_features.div_ceil(group_len))
}

/// A matrix as compressed-tensors stores it.
pub struct CompressedTensors<'a> {
    out_features: usize,
    in_features: usize,
    group_len: usize,
    packed: &'a [u8],
    scales: Floats<'a>,
    zeros: Option<&'a [u8]>,
    permutation: Option<Vec<u32>>,
}

impl<'a> CompressedTensors<'a> {
    /// The matrix with groups of `group_len` columns (all of them for the strategy "channel").
    pub fn new(
        out_features: usize,
        in_features: usize,
        group_len: usize,
        packed: &'a [u8],
        scales: Floats<'a>,
        zeros: Option<&'a [u8]>,
        g_idx: Option<&[u8]>,
    ) -> Result<CompressedTensors<'a>> {
        let group_len = group_len.min(in_features);
        let groups = check(out_features, in_features, group_len, packed)?;
        scales.check_count("weight_scale", &[out_features, groups])?;
        if let Some(zeros) = zeros {
            check_bytes("weight_zero_point", &[out_features.div_ceil(WORD), groups, 4], zeros.len())?;
        }
        // A -1 in it marks an index that was never filled: then groups follow the columns.
        let filled = |bytes: &&[u8]| !bytes.as_chunks::<4>().0.contains(&[0xff; 4]);
        let permutation = match g_idx.filter(filled) {
            None => None,
            Some(bytes) => sorted_columns(bytes, in_features, group_len, groups)?,
        };
        Ok(CompressedTensors { out_features, in_features, group_len, packed, scales, zeros, permutation })
    }
}

impl Matrix for CompressedTensors<'_> {
    fn layout(&self) -> Layout {
        match self.zeros {
            None => group_layout(8, self.group_len, Offset::None, &self.scales),
            // q - z = (q + 8) - (z + 8): both as stored.
            Some(_) => zero_point_layout(self.group_len, &self.scales),
        }
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.permutation.as_deref()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        let bytes = &self.packed[index * self.in_features.div_ceil(WORD) * 4..];
        match &self.permutation {
            None => unpack_nibble_stream(bytes, &mut row.codes),
            Some(columns) => {
                for (code, column) in row.codes.iter_mut().zip(columns) {
                    let column = *column as usize;
                    *code = bytes[column / 2] >> (4 * (column % 2)) & 15;
                }
            }
        }
        let groups = row.scales.len();
        for (g, scale) in row.scales.iter_mut().enumerate() {
            *scale = self.scales.get(index * groups + g);
        }
        if let Some(zeros) = self.zeros {
            for (g, zero) in row.zeros.iter_mut().enumerate() {
                let word = index / WORD * groups + g;
                *zero = zeros[word * 4 + index % WORD / 2] >> (4 * (index % 2)) & 15;
            }
        }
        Ok(())
    }
}

/// A matrix as MLX stores it.
pub struct Mlx<'a> {
    out_features: usize,
    in_features: usize,
    group_len: usize,
    packed: &'a [u8],
    scales: Floats<'a>,
    biases: Floats<'a>,
}

impl<'a> Mlx<'a> {
    /// The matrix with groups of `group_len` columns.
    pub fn new(
        out_features: usize,
        in_features: usize,
        group_len: usize,
        packed: &'a [u8],
        scales: Floats<'a>,
        biases: Floats<'a>,
    ) -> Result<Mlx<'a>> {
        let group_len = group_len.min(in_features);
        let groups = check(out_features, in_features, group_len, packed)?;
        check_multiple("columns of MLX", WORD, in_features)?;
        scales.check_count("scales", &[out_features, groups])?;
        biases.check_count("biases", &[out_features, groups])?;
        if scales.scale_type() != biases.scale_type() {
            return Err(fail!(BadFile, "scales and biases have different types"));
        }
        Ok(Mlx { out_features, in_features, group_len, packed, scales, biases })
    }
}

impl Matrix for Mlx<'_> {
    fn layout(&self) -> Layout {
        group_layout(0, self.group_len, Offset::Minimum, &self.scales)
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        unpack_nibble_stream(&self.packed[index * (self.in_features / 2)..], &mut row.codes);
        let groups = row.scales.len();
        for (g, (scale, minimum)) in row.scales.iter_mut().zip(&mut row.minimums).enumerate() {
            *scale = self.scales.get(index * groups + g);
            *minimum = self.biases.get(index * groups + g);
        }
        Ok(())
    }
}
