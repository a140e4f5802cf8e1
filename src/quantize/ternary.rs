//! Ternary weights by fixed rules.
//!
//! ```text
//! BitNet      s = max(mean |w|, 1e-5) of the matrix,  q = clamp(round_half_even(w / s), -1, 1)
//! groups      s = mean |w| + 1e-8 of each group of a row, q = round_half_away(clamp(w / s, -1, 1)):
//!             PT-BitNet's blocks, aligned to rows
//! bases       the rule of BitNet on the weights, then on what each base leaves of them (residual):
//!             w ~ s_0 q_0 + s_1 q_1 + ...
//! cortex      s = max |w| + 1e-6 of the matrix, q = clamp(round_half_away(w / s), -1, 1)
//! threshold   s = max(mean |w|, 1e-8) of the matrix, q = 0 where |w| < s, else the sign: burn_dragon
//! ```
//! Sources: Ma et al. 2024 (BitNet b1.58); ruvllm `bitnet/quantizer.rs`; cortex_rust
//! `adaptive_linear.rs`; burn_dragon_core `bitnet.rs`.

use super::rounding::Kind;
use super::{Rule, check_finite};
use crate::error::{Result, fail};
use crate::layout::{Coded, Layout, Matrix, Offset, Row, ScaleType, Scales, Values};
use crate::math::Mean;
use crate::memory::filled;
use crate::nearest;
use crate::types::Type;

/// The least scale of BitNet's rule.
pub(super) const SCALE_MIN: f32 = 1e-5;

/// One or several scales of the whole matrix.
pub(super) struct Ternary {
    kind: Kind,
    scales: Vec<f32>,
}

/// The value -1, 0 or 1 of a weight by BitNet's rule.
#[inline(always)]
fn value(w: f32, scale: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, half to even.
    ((w / scale).clamp(-1.0, 1.0) + 12_582_912.0) - 12_582_912.0
}

/// Reads the matrix once for each base, for the mean magnitude of what the bases before leave: in f64,
/// where the sum of so many f32 does not lose the last bit of the mean.
pub(super) fn residual_scales(source: &dyn Matrix, bases: usize, least: f32) -> Result<Vec<f32>> {
    let mut row = Row::new(source.layout(), source.in_features())?;
    let mut scales = filled(bases, 0.0f32, "scales")?;
    for base in 0..bases {
        let mut sum = 0.0f64;
        for index in 0..source.out_features() {
            source.read_row(index, &mut row)?;
            check_finite(index, &row.floats, Type::Ternary)?;
            if base > 0 {
                row.floats.iter_mut().for_each(|w| *w = residual(*w, &scales[..base]));
            }
            sum += sum_of_magnitudes(&row.floats);
        }
        let mean = sum / (source.out_features() as f64 * source.in_features() as f64);
        scales[base] = (mean as f32).max(least);
    }
    Ok(scales)
}

/// What bases of these scales leave of a weight.
fn residual(w: f32, scales: &[f32]) -> f32 {
    scales.iter().fold(w, |w, scale| w - scale * value(w, *scale))
}

/// In f64, in the order of the row.
fn sum_of_magnitudes(weights: &[f32]) -> f64 {
    // Sixteen sums at a time: a single chain of additions would take most of the rule's time.
    let mut sums = [0.0f64; 16];
    let (chunks, rest) = weights.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            sums[i] += chunk[i].abs() as f64;
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|w| w.abs() as f64).sum::<f64>()
}

impl Ternary {
    pub(super) fn of(source: &dyn Matrix, kind: Kind, bases: usize) -> Result<Ternary> {
        let scales = match kind {
            Kind::Usual => residual_scales(source, bases, SCALE_MIN)?,
            _ if bases > 1 => return Err(fail!(InvalidArgument, "{bases} bases by that rule")),
            Kind::Absmax => {
                let mut row = Row::new(source.layout(), source.in_features())?;
                let mut largest = 0.0f32;
                for index in 0..source.out_features() {
                    source.read_row(index, &mut row)?;
                    check_finite(index, &row.floats, Type::Ternary)?;
                    largest = row.floats.iter().fold(largest, |a, w| a.max(w.abs()));
                }
                one(largest + 1e-6)?
            }
            Kind::Threshold => one(super::flat_mean(source, Type::Ternary)?.max(1e-8))?,
            Kind::MeanRange | Kind::Tensor => {
                return Err(fail!(InvalidArgument, "that rule is for another type than ternary"));
            }
        };
        Ok(Ternary { kind, scales })
    }
}

fn one(scale: f32) -> Result<Vec<f32>> {
    let mut scales = filled(1, 0.0, "scales")?;
    scales[0] = scale;
    Ok(scales)
}

impl Rule for Ternary {
    fn layout(&self) -> Layout {
        Layout::Coded(Coded {
            bits: 2,
            values: Values::Offset(1),
            scales: Scales::Row,
            scale_type: ScaleType::F32,
            bases: self.scales.len() as u8,
        })
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        row.scales.copy_from_slice(&self.scales);
        let scale = self.scales[0];
        if self.kind != Kind::Usual {
            for (w, code) in weights.iter().zip(&mut row.codes) {
                let q = match self.kind {
                    Kind::Absmax => (w / scale).round().clamp(-1.0, 1.0),
                    _ if w.abs() < scale => 0.0,
                    _ => w.signum(),
                };
                *code = (q + 1.0) as u8;
            }
            return Ok(());
        }
        for (base, codes) in row.codes.chunks_exact_mut(weights.len()).enumerate() {
            let (before, scale) = (&self.scales[..base], self.scales[base]);
            let code = |w: f32| nearest::byte(value(w, scale) + 1.0);
            // Without bases before it a loop that becomes a few vectors.
            match before {
                [] => weights.iter().zip(codes).for_each(|(w, to)| *to = code(*w)),
                _ => weights.iter().zip(codes).for_each(|(w, to)| *to = code(residual(*w, before))),
            }
        }
        Ok(())
    }
    fn tensor_scales(&self) -> Option<&[f32]> {
        Some(&self.scales)
    }
}

/// A scale for each group of each row.
pub(super) struct Groups {
    len: usize,
}

/// The layout of ternary groups.
pub(super) fn group_layout(columns: usize, group: usize) -> Layout {
    Layout::Coded(Coded {
        bits: 2,
        values: Values::Offset(1),
        scales: Scales::Group { len: group.min(columns), offset: Offset::None },
        scale_type: ScaleType::F32,
        bases: 1,
    })
}

impl Groups {
    pub(super) fn new(columns: usize, group: usize) -> Groups {
        Groups { len: group.min(columns) }
    }
}

impl Rule for Groups {
    fn layout(&self) -> Layout {
        group_layout(self.len, self.len)
    }
    fn round(&self, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        let groups = weights.chunks(self.len).zip(row.codes.chunks_mut(self.len));
        for ((weights, codes), scale) in groups.zip(&mut row.scales) {
            *scale = Mean::of(weights) + 1e-8;
            for (w, code) in weights.iter().zip(codes) {
                *code = ((w / *scale).clamp(-1.0, 1.0).round() + 1.0) as u8;
            }
        }
        Ok(())
    }
}

/// ruvllm's rule of groups on the flattened matrix: blocks run across the ends of rows.
pub(super) struct FlatBlocks {
    block: usize,
    columns: usize,
    /// Columns of a row that are sure to lie in one block.
    group: usize,
    /// One for each block.
    scales: Vec<f32>,
}

impl FlatBlocks {
    pub(super) fn of(source: &dyn Matrix, block: usize) -> Result<FlatBlocks> {
        let (rows, columns) = (source.out_features(), source.in_features());
        let block = if block == 0 { 256 } else { block };
        let mut group = (columns, block);
        while group.1 != 0 {
            group = (group.1, group.0 % group.1);
        }
        if group.0 < 4 {
            return Err(fail!(
                Unsupported,
                "flat blocks of {block} in rows of {columns}: fewer than 4 columns share a block"
            ));
        }
        let count = rows.checked_mul(columns).map(|n| n.div_ceil(block));
        let count = count.ok_or_else(|| fail!(InvalidArgument, "{rows} x {columns} weights"))?;
        let mut scales = filled(count, 0.0f32, "scales of blocks")?;
        let mut row = Row::new(source.layout(), columns)?;
        let (mut mean, mut held, mut next) = (Mean::default(), 0, 0);
        for index in 0..rows {
            source.read_row(index, &mut row)?;
            check_finite(index, &row.floats, Type::TernaryBlock)?;
            let mut rest = &row.floats[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(block - held));
                mean.add_magnitudes(now);
                (held, rest) = (held + now.len(), later);
                if held == block {
                    scales[next] = mean.value() + 1e-8;
                    (mean, held, next) = (Mean::default(), 0, next + 1);
                }
            }
        }
        if held > 0 {
            scales[next] = mean.value() + 1e-8;
        }
        Ok(FlatBlocks { block, columns, group: group.0, scales })
    }
}

impl Rule for FlatBlocks {
    fn layout(&self) -> Layout {
        group_layout(self.columns, self.group)
    }
    fn round(&self, _: &[f32], _: &mut [u8], _: &mut Row) -> Result<()> {
        Err(fail!(Internal, "a row of flat blocks without its place"))
    }
    fn round_at(&self, index: usize, weights: &[f32], _: &mut [u8], row: &mut Row) -> Result<()> {
        let groups = weights.chunks(self.group).zip(row.codes.chunks_mut(self.group));
        for (g, ((weights, codes), scale)) in groups.zip(&mut row.scales).enumerate() {
            *scale = self.scales[(index * self.columns + g * self.group) / self.block];
            for (w, code) in weights.iter().zip(codes) {
                *code = ((w / *scale).clamp(-1.0, 1.0).round() + 1.0) as u8;
            }
        }
        Ok(())
    }
}
