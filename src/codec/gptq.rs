//! GPTQ and AWQ: 4-bit groups with integer zero points, packed along columns of 32-bit words.
//!
//! ```text
//! GPTQ  qweight I32 [I/8, O]: bits 4 (i % 8) of word [i/8, o]
//!       qzeros  I32 [G, O/8]: bits 4 (o % 8) of word [g, o/8]; z - 1 ("gptq") or z ("gptq_v2")
//!       scales  F16 [G, O];   g_idx I32 [I]: the group of column i
//! AWQ   qweight I32 [I, O/8], qzeros I32 [G, O/8]: nibble p of a word is row 8 w + 0 2 4 6 1 3 5 7 [p]
//!       scales  F16 [G, O]
//! w = s (q - z);   z up to 16
//! ```
//! With `desc_act` a group's columns are scattered. They are brought together: a stable sort of the
//! columns by group gives the order in which codes stand in a row, and [`Matrix::permutation`] tells it.
//!
//! Source: AutoGPTQ and AutoAWQ, the layouts that transformers loads under `quant_method` "gptq" and
//! "awq" (version "gemm"); 4 bits only.

use super::check_index;
use super::stored::{Floats, check_bytes, check_multiple, check_shape};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Matrix, Offset, Row, Scales, Values};
use crate::memory::filled;

/// Codes in a 32-bit word.
const WORD: usize = 8;

/// How zero points are stored: `checkpoint_format` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptqVersion {
    /// "gptq": less 1.
    V1,
    /// "gptq_v2": plain.
    V2,
}

/// The layout of 4-bit groups with zero points.
pub(super) fn zero_point_layout(group_len: usize, scales: &Floats<'_>) -> Layout {
    Layout::Coded(Coded {
        bits: 4,
        values: Values::Offset(0),
        scales: Scales::Group { len: group_len, offset: Offset::Zero },
        scale_type: scales.scale_type(),
        bases: 1,
    })
}

/// A matrix as GPTQ stores it.
pub struct Gptq<'a> {
    out_features: usize,
    in_features: usize,
    group_len: usize,
    version: GptqVersion,
    qweight: &'a [u8],
    qzeros: &'a [u8],
    scales: Floats<'a>,
    permutation: Option<Vec<u32>>,
}

impl<'a> Gptq<'a> {
    /// The matrix with groups of `group_len` columns (all of them where the configuration says -1);
    /// `g_idx` where the file has one.
    pub fn new(
        version: GptqVersion,
        out_features: usize,
        in_features: usize,
        group_len: usize,
        qweight: &'a [u8],
        qzeros: &'a [u8],
        scales: Floats<'a>,
        g_idx: Option<&[u8]>,
    ) -> Result<Gptq<'a>> {
        let group_len = group_len.min(in_features);
        let groups = check(out_features, in_features, group_len, qzeros, &scales)?;
        check_multiple("columns of GPTQ", WORD, in_features)?;
        check_bytes("qweight", &[in_features / WORD, out_features, 4], qweight.len())?;
        let permutation = match g_idx {
            None => None,
            Some(bytes) => sorted_columns(bytes, in_features, group_len, groups)?,
        };
        Ok(Gptq { version, out_features, in_features, group_len, qweight, qzeros, scales, permutation })
    }

    fn code(&self, row: usize, column: usize) -> u8 {
        let word = column / WORD * self.out_features + row;
        nibble(self.qweight[word * 4 + column % WORD / 2], column)
    }
}

/// Checks what GPTQ and AWQ have in common, and gives the number of groups.
fn check(
    out_features: usize,
    in_features: usize,
    group_len: usize,
    qzeros: &[u8],
    scales: &Floats<'_>,
) -> Result<usize> {
    check_shape(out_features, in_features)?;
    if group_len == 0 {
        return Err(fail!(InvalidArgument, "groups of no columns"));
    }
    let groups = in_features.div_ceil(group_len);
    check_multiple("rows of 4-bit zero points", WORD, out_features)?;
    check_bytes("qzeros", &[groups, out_features / WORD, 4], qzeros.len())?;
    scales.check_count("scales", &[groups, out_features])?;
    Ok(groups)
}

/// Half of a byte: the high one where `index` is odd.
fn nibble(byte: u8, index: usize) -> u8 {
    byte >> (4 * (index % 2)) & 15
}

/// The columns, stably sorted by the group that `g_idx` (I32) gives them; none where they are sorted
/// already. Refused where groups do not have `group_len` columns each: then a group's end in the
/// sorted order is not where the scales change.
pub(super) fn sorted_columns(
    g_idx: &[u8],
    in_features: usize,
    group_len: usize,
    groups: usize,
) -> Result<Option<Vec<u32>>> {
    check_bytes("g_idx", &[in_features, 4], g_idx.len())?;
    let group = |column: usize| {
        let b = &g_idx[column * 4..];
        i32::from_le_bytes([b[0], b[1], b[2], b[3]])
    };
    // A counting sort: `ends[g]` is where the next column of group g goes.
    let mut ends = filled(groups, 0usize, "groups")?;
    for (g, end) in ends.iter_mut().enumerate() {
        *end = g * group_len;
    }
    let mut columns = filled(in_features, 0u32, "a permutation")?;
    let mut sorted = true;
    for column in 0..in_features {
        let g = usize::try_from(group(column)).unwrap_or(usize::MAX);
        let place = ends.get_mut(g).filter(|end| **end < ((g + 1) * group_len).min(in_features));
        let Some(place) = place else {
            return Err(fail!(
                Unsupported,
                "g_idx puts column {column} into group {}: not {groups} groups of {group_len} columns each",
                group(column)
            ));
        };
        columns[*place] = column as u32; // columns are at most FEATURES_MAX, 2^31
        sorted &= *place == column;
        *place += 1;
    }
    Ok(if sorted { None } else { Some(columns) })
}

impl Matrix for Gptq<'_> {
    fn layout(&self) -> Layout {
        zero_point_layout(self.group_len, &self.scales)
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
        match &self.permutation {
            Some(columns) => {
                for (code, column) in row.codes.iter_mut().zip(columns) {
                    *code = self.code(index, *column as usize);
                }
            }
            None => {
                for (w, codes) in row.codes.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
                    let at = (w * self.out_features + index) * 4;
                    for (pair, byte) in codes.as_chunks_mut().0.iter_mut().zip(&self.qweight[at..]) {
                        *pair = [byte & 15, byte >> 4];
                    }
                }
            }
        }
        let offset = (self.version == GptqVersion::V1) as u8;
        for (g, (scale, zero)) in row.scales.iter_mut().zip(&mut row.zeros).enumerate() {
            *scale = self.scales.get(g * self.out_features + index);
            let word = g * (self.out_features / WORD) + index / WORD;
            *zero = nibble(self.qzeros[word * 4 + index % WORD / 2], index) + offset;
        }
        Ok(())
    }
}

/// A matrix as AWQ ("gemm") stores it.
pub struct Awq<'a> {
    out_features: usize,
    in_features: usize,
    group_len: usize,
    qweight: &'a [u8],
    qzeros: &'a [u8],
    scales: Floats<'a>,
}

/// Which nibble of a word holds row `o % 8`: the inverse of 0 2 4 6 1 3 5 7.
const AWQ_NIBBLE: [usize; WORD] = [0, 4, 1, 5, 2, 6, 3, 7];

impl<'a> Awq<'a> {
    /// The matrix with groups of `group_len` columns.
    pub fn new(
        out_features: usize,
        in_features: usize,
        group_len: usize,
        qweight: &'a [u8],
        qzeros: &'a [u8],
        scales: Floats<'a>,
    ) -> Result<Awq<'a>> {
        let group_len = group_len.min(in_features);
        check(out_features, in_features, group_len, qzeros, &scales)?;
        check_bytes("qweight", &[in_features, out_features / WORD, 4], qweight.len())?;
        Ok(Awq { out_features, in_features, group_len, qweight, qzeros, scales })
    }
}

impl Matrix for Awq<'_> {
    fn layout(&self) -> Layout {
        zero_point_layout(self.group_len, &self.scales)
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        // The same byte of each line of words, [I or G, O/8].
        let (line, place) = (self.out_features / WORD * 4, AWQ_NIBBLE[index % WORD]);
        let at = index / WORD * 4 + place / 2;
        for (code, words) in row.codes.iter_mut().zip(self.qweight.chunks_exact(line)) {
            *code = nibble(words[at], place);
        }
        for (zero, words) in row.zeros.iter_mut().zip(self.qzeros.chunks_exact(line)) {
            *zero = nibble(words[at], place);
        }
        for (g, scale) in row.scales.iter_mut().enumerate() {
            *scale = self.scales.get(g * self.out_features + index);
        }
        Ok(())
    }
}
