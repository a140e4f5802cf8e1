//! Block Walsh-Hadamard rotation of a row of x: the text of `docs/numerics.md`, section 6.
//!
//! ```text
//! R x     each block of n columns: x[i] = -x[i] where the sign of column i is -1; then for the strides
//!         s = 1, 2, 4, .. n / 2, for every i whose bit s is 0:  (x[i], x[i+s]) = (x[i] + x[i+s],
//!         x[i] - x[i+s]), each one f32 rounding; then x[i] * f32(1 / sqrt(n))
//! R^-1 z  the same with the signs last
//! ```
//! That is `H (s x)` with `H[r][c] = (-1)^popcount(r & c) / sqrt(n)` (Sylvester's order), the transform
//! of Hadamard-folded weights (`docs/formats.md`) and of QuaRot and BitNet v2 checkpoints.
//!
//! Strides below 16 stay inside a register of 16, where the partner comes by a shuffle and the sign by
//! an exclusive or; larger ones are taken two at a time. Both keep the pairs and the order of strides,
//! so the bits are those of the text above.

use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel::{self, Portable};
use crate::memory::filled;

/// Smallest and largest block.
pub const BLOCKS: (usize, usize) = (2, 16384);

/// A rotation as a caller gives it.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Columns of a block: a power of two from 2 to 16384 that divides the columns.
    pub block: usize,
    /// +1 or -1 for each column; none: all +1.
    pub signs: Option<&'a [f32]>,
}

/// A rotation of rows of so many columns.
#[derive(PartialEq)]
pub struct Rotation {
    block: usize,
    columns: usize,
    /// The sign bit of each column, or empty.
    flips: Vec<u32>,
}

const SIGN: u32 = 0x8000_0000;

impl Rotation {
    /// Checks and copies.
    pub fn new(spec: &Spec<'_>, columns: usize) -> Result<Rotation> {
        let Spec { block, signs } = *spec;
        if !block.is_power_of_two() || block < BLOCKS.0 || block > BLOCKS.1 || !columns.is_multiple_of(block)
        {
            return Err(fail!(
                InvalidArgument,
                "rotation block {block}: a power of two from {} to {} that divides the {columns} columns expected",
                BLOCKS.0,
                BLOCKS.1
            ));
        }
        let Some(signs) = signs else {
            return Ok(Rotation { block, columns, flips: Vec::new() });
        };
        if signs.len() != columns {
            return Err(fail!(
                InvalidArgument,
                "the rotation has {} signs for {columns} columns",
                signs.len()
            ));
        }
        if let Some(at) = signs.iter().position(|s| s.abs() != 1.0) {
            return Err(fail!(InvalidArgument, "rotation sign {at} is {}: +1 or -1 expected", signs[at]));
        }
        let mut flips = filled(columns, 0, "rotation signs")?;
        for (flip, sign) in flips.iter_mut().zip(signs) {
            *flip = sign.to_bits() & SIGN;
        }
        Ok(Rotation { block, columns, flips })
    }

    /// Columns of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Columns of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The sign of a column: 1 or -1.
    pub fn sign(&self, column: usize) -> f32 {
        self.flips.get(column).map_or(1.0, |&flip| f32::from_bits(1f32.to_bits() | flip))
    }

    /// Whether any sign vector was given.
    pub fn has_signs(&self) -> bool {
        !self.flips.is_empty()
    }

    /// Bytes of the signs.
    pub fn bytes(&self) -> usize {
        self.flips.len() * 4
    }

    /// Rotates a row of `columns` values in place.
    pub fn apply(&self, isa: Isa, row: &mut [f32]) {
        self.part(isa, 0, row, false);
    }

    /// Undoes [`Rotation::apply`], but for rounding.
    pub fn invert(&self, isa: Isa, row: &mut [f32]) {
        self.part(isa, 0, row, true);
    }

    /// Rotates whole blocks of a row, of which `first` is the first column.
    pub fn part(&self, isa: Isa, first: usize, row: &mut [f32], inverse: bool) {
        assert!(first + row.len() <= self.columns && row.len().is_multiple_of(self.block));
        let flips = if self.has_signs() { &self.flips[first..][..row.len()] } else { &[] };
        kernel::compiled(isa, Apply { block: self.block, flips, row, inverse });
    }
}

struct Apply<'a> {
    block: usize,
    /// One for each value of the row, or none.
    flips: &'a [u32],
    row: &'a mut [f32],
    inverse: bool,
}

impl Portable for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Apply { block, flips, row, inverse } = self;
        if !inverse {
            flip(row, flips);
        }
        // The strides below 16, 16 values at a time; what is left has blocks below 16.
        let (sixteens, rest) = row.as_chunks_mut::<16>();
        match block {
            2 => sixteens.iter_mut().for_each(|v| *v = stride::<1>(v)),
            4 => sixteens.iter_mut().for_each(|v| *v = stride::<2>(&stride::<1>(v))),
            8 => sixteens.iter_mut().for_each(|v| *v = stride::<4>(&stride::<2>(&stride::<1>(v)))),
            _ => sixteens
                .iter_mut()
                .for_each(|v| *v = stride::<8>(&stride::<4>(&stride::<2>(&stride::<1>(v))))),
        }
        let mut s = 1;
        while s < block && !rest.is_empty() {
            butterflies(rest, s);
            s *= 2;
        }
        for block in row.chunks_exact_mut(block) {
            let mut s = 16;
            while s * 2 < block.len() {
                double_butterflies(block, s);
                s *= 4;
            }
            if s < block.len() {
                butterflies(block, s);
            }
        }
        let scale = (1.0 / (block as f64).sqrt()) as f32;
        row.iter_mut().for_each(|v| *v *= scale);
        if inverse {
            flip(row, flips);
        }
    }
}

#[inline(always)]
fn flip(row: &mut [f32], flips: &[u32]) {
    for (v, flip) in row.iter_mut().zip(flips) {
        *v = f32::from_bits(v.to_bits() ^ flip);
    }
}

/// The butterflies of stride `S` among 16 values: where bit `S` of the index is 0 the sum with the
/// partner, else the partner minus the value.
#[inline(always)]
fn stride<const S: usize>(v: &[f32; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    for i in 0..16 {
        let own = f32::from_bits(v[i].to_bits() ^ if i & S == 0 { 0 } else { SIGN });
        out[i] = v[i ^ S] + own;
    }
    out
}

/// The butterflies of one stride.
#[inline(always)]
fn butterflies(values: &mut [f32], s: usize) {
    for pair in values.chunks_exact_mut(2 * s) {
        let (a, b) = pair.split_at_mut(s);
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

/// The butterflies of strides `s` and `2 s`.
#[inline(always)]
fn double_butterflies(values: &mut [f32], s: usize) {
    for four in values.chunks_exact_mut(4 * s) {
        let (ab, cd) = four.split_at_mut(2 * s);
        let ((a, b), (c, d)) = (ab.split_at_mut(s), cd.split_at_mut(s));
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            let (sum_ab, difference_ab) = (*a + *b, *a - *b);
            let (sum_cd, difference_cd) = (*c + *d, *c - *d);
            (*a, *c) = (sum_ab + sum_cd, sum_ab - sum_cd);
            (*b, *d) = (difference_ab + difference_cd, difference_ab - difference_cd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|k| ((k * 7919 + 13) % 1009) as f32 / 300.0 - 1.4).collect()
    }

    /// The text of the head, word by word.
    fn text(x: &mut [f32], block: usize, signs: &[f32], inverse: bool) {
        if !inverse {
            x.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
        }
        for x in x.chunks_mut(block) {
            let mut s = 1;
            while s < block {
                for i in (0..block).filter(|i| i & s == 0) {
                    (x[i], x[i + s]) = (x[i] + x[i + s], x[i] - x[i + s]);
                }
                s *= 2;
            }
            x.iter_mut().for_each(|v| *v *= (1.0 / (block as f64).sqrt()) as f32);
        }
        if inverse {
            x.iter_mut().zip(signs).for_each(|(x, s)| *x *= s);
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn every_block_on_every_instruction_set_gives_the_bits_of_the_text() -> Result<()> {
        let mut block = 2;
        while block <= 16384 {
            for columns in [block, block * 3, block * 5] {
                let x = row(columns);
                let signs: Vec<f32> = (0..columns).map(|k| if k * k % 7 == 2 { -1.0 } else { 1.0 }).collect();
                for signs in [None, Some(&signs[..])] {
                    let rotation = Rotation::new(&Spec { block, signs }, columns)?;
                    for inverse in [false, true] {
                        let mut want = x.clone();
                        text(&mut want, block, signs.unwrap_or(&[]), inverse);
                        for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                            let mut got = x.clone();
                            rotation.part(isa, 0, &mut got, inverse);
                            assert_eq!(bits(&got), bits(&want), "{} block {block} of {columns}", isa.name());
                        }
                    }
                    let mut back = x.clone();
                    rotation.apply(Isa::best(), &mut back);
                    rotation.invert(Isa::best(), &mut back);
                    assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5));
                }
            }
            block *= 2;
        }
        Ok(())
    }

    #[test]
    fn wrong_parameters_are_named() {
        let refused = |block, signs: Option<&[f32]>, columns, part: &str| {
            Rotation::new(&Spec { block, signs }, columns).is_err_and(|e| e.text().contains(part))
        };
        for block in [0, 1, 3, 12, 32768] {
            assert!(refused(block, None, 98304, "power of two"), "{block}");
        }
        assert!(refused(16, None, 40, "divides the 40 columns"));
        assert!(refused(8, Some(&[1.0; 7]), 8, "7 signs for 8 columns"));
        let mut signs = [1.0; 8];
        signs[5] = 0.5;
        assert!(refused(8, Some(&signs), 8, "sign 5 is 0.5"));
        signs[5] = f32::NAN;
        assert!(refused(8, Some(&signs), 8, "sign 5"));
    }
}
