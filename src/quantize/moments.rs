//! What calibration knows of a layer's input: sums of products of its columns over the rows of x seen.
//!
//! ```text
//! full       M[i][j] = sum over rows of x_i x_j, for i and j in the same block of columns
//! diagonal   M[i][i] alone
//! ```
//! With M the output's error of a row of weights with the error e is `e M e^T`, summed over those rows
//! of x. Blocks bound the memory: columns of different blocks count as uncorrelated.
//!
//! [`Factor`] is M as a product, for rounding that passes a column's error on to the columns after it.

use super::compiled;
use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel::Portable;
use crate::memory::{filled, reserve};
use crate::rotation::Rotation;

/// Columns of a block where nobody says: its sums take 16 MiB, its factor 32 MiB more.
pub const BLOCK: usize = 2048;
/// Rows of x that are added up at a time.
const ROWS: usize = 32;
/// What the squares of rows may sum up to: sums of products, which are no larger, stay finite with the errors of
/// their additions.
const SQUARES_MAX: f64 = f32::MAX as f64 / 2.0;

/// Sums of products of columns.
#[derive(Clone, Debug)]
pub struct Moments {
    columns: usize,
    /// Columns of a block; 1: the diagonal.
    block: usize,
    /// Rows of x that were added.
    count: u64,
    /// The blocks one after another, row by row; the last may be smaller.
    sums: Vec<f32>,
    /// Rows that wait to be added together.
    waiting: Vec<f32>,
    /// Of each row the largest square, summed: no sum is larger.
    squares: f64,
}

impl Moments {
    /// No rows yet; blocks of at most `block` columns, 1 for the diagonal.
    pub fn new(columns: usize, block: usize) -> Result<Moments> {
        let block = block.clamp(1, columns.max(1));
        let (whole, rest) = (columns / block, columns % block);
        let sums = filled(whole * block * block + rest * rest, 0.0, "sums of calibration")?;
        let mut waiting = Vec::new();
        reserve(&mut waiting, ROWS * columns, "rows of calibration")?;
        Ok(Moments { columns, block, count: 0, sums, waiting, squares: 0.0 })
    }

    /// Sums that were kept elsewhere, as [`Moments::sums`] gives them.
    pub fn of(columns: usize, block: usize, count: u64, sums: &[f32]) -> Result<Moments> {
        let mut moments = Moments::new(columns, block)?;
        if sums.len() != moments.sums.len() || moments.block != block {
            return Err(fail!(BadFile, "{} sums for {columns} columns in blocks of {block}", sums.len()));
        }
        if let Some(bad) = sums.iter().find(|v| !v.is_finite()) {
            return Err(fail!(BadFile, "a sum of calibration is {bad}"));
        }
        moments.sums.copy_from_slice(sums);
        moments.count = count;
        moments.squares = sums.iter().fold(0.0f32, |m, v| m.max(v.abs())) as f64;
        Ok(moments)
    }

    /// Bytes that sums for so many columns take.
    pub fn bytes(columns: usize, block: usize) -> Option<usize> {
        let block = block.clamp(1, columns.max(1));
        let sums = columns.checked_mul(block)?.checked_add(ROWS.checked_mul(columns)?)?;
        sums.checked_mul(4)
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns of a block; 1: there is only the diagonal.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Rows of x that were added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All sums, block after block; call [`Moments::settle`] first.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Adds a row of x. Refused where a value is not finite, or sums would not be.
    pub fn add(&mut self, isa: Isa, x: &[f32]) -> Result<()> {
        if let Some(k) = x.iter().position(|v| !v.is_finite()) {
            return Err(fail!(InvalidArgument, "column {k} of x is {}", x[k]));
        }
        self.squares = with_square(self.squares, x)?;
        // Room was reserved for ROWS rows.
        self.waiting.extend_from_slice(x);
        self.count += 1;
        if self.waiting.len() == ROWS * self.columns {
            self.settle(isa);
        }
        Ok(())
    }

    /// The sum of rows' largest squares.
    pub(super) fn squares(&self) -> f64 {
        self.squares
    }

    /// Adds the rows that wait.
    pub fn settle(&mut self, isa: Isa) {
        let mut start = 0;
        let mut sums = &mut self.sums[..];
        while start < self.columns && !self.waiting.is_empty() {
            let len = self.block.min(self.columns - start);
            let (block, rest) = sums.split_at_mut(len * len);
            compiled(isa, Add { rows: &self.waiting, columns: self.columns, start, len, block });
            sums = rest;
            start += len;
        }
        self.waiting.clear();
    }

    /// Where the block of column `k` begins, how many columns it has, and its sums.
    pub fn block_of(&self, k: usize) -> (usize, usize, &[f32]) {
        let number = k / self.block;
        let start = number * self.block;
        let len = self.block.min(self.columns - start);
        (start, len, &self.sums[number * self.block * self.block..][..len * len])
    }

    /// `M[k][k]`.
    pub fn diagonal(&self, k: usize) -> f32 {
        let (start, len, sums) = self.block_of(k);
        sums[(k - start) * len + (k - start)]
    }

    /// The same sums once more.
    pub fn copy(&self) -> Result<Moments> {
        Moments::of(self.columns, self.block, self.count, &self.sums)
    }

    /// Refuses a rotation whose blocks those of the sums do not hold.
    pub fn rotates(&self, rotation: &Rotation) -> Result<()> {
        if rotation.columns() != self.columns || !self.block.is_multiple_of(rotation.block()) {
            return Err(fail!(
                Unsupported,
                "sums of calibration in blocks of {} of {} columns cannot be rotated in blocks of {}",
                self.block,
                self.columns,
                rotation.block()
            ));
        }
        Ok(())
    }

    /// The sums for rows that are rotated first: `R M R^T`.
    pub fn rotated(&self, isa: Isa, rotation: &Rotation) -> Result<Moments> {
        self.rotates(rotation)?;
        let mut moments = Moments::of(self.columns, self.block, self.count, &self.sums)?;
        let mut at = 0;
        for start in (0..self.columns).step_by(self.block) {
            let len = self.block.min(self.columns - start);
            let sums = &mut moments.sums[at..][..len * len];
            // Rows, then (M is symmetric) the columns as rows of the transpose.
            for _ in 0..2 {
                sums.chunks_exact_mut(len).for_each(|row| rotation.part(isa, start, row, false));
                for i in 0..len {
                    for j in 0..i {
                        sums.swap(i * len + j, j * len + i);
                    }
                }
            }
            at += len * len;
        }
        Ok(moments)
    }
}

/// The sum of rows' largest squares with one row more; refused where sums of products may leave the range of f32.
pub(super) fn with_square(squares: f64, x: &[f32]) -> Result<f64> {
    let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let sum = squares + (largest as f64).powi(2);
    if sum > SQUARES_MAX {
        return Err(fail!(
            InvalidArgument,
            "with the value {largest:e} sums of products are beyond f32: scale x down, all rows alike"
        ));
    }
    Ok(sum)
}

struct Add<'a> {
    rows: &'a [f32],
    columns: usize,
    start: usize,
    len: usize,
    block: &'a mut [f32],
}

/// Columns whose sums stay in registers while the rows go by: 64 floats are eight AVX2 registers.
const TILE: usize = 64;

impl Portable for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        // A tile of all waiting rows is 8 KiB, which stays close; the sums are read and written once
        // for all rows. Each sum still adds its rows in order.
        let Add { rows, columns, start, len, block } = self;
        let mut column = [0.0f32; ROWS];
        for tile in (0..len).step_by(TILE) {
            let width = TILE.min(len - tile);
            for (i, sums) in block.chunks_exact_mut(len).enumerate() {
                for (a, row) in column.iter_mut().zip(rows.chunks_exact(columns)) {
                    *a = row[start + i];
                }
                let pairs = column.iter().zip(rows.chunks_exact(columns));
                let pairs = pairs.map(|(a, row)| (*a, &row[start + tile..][..width]));
                let sums = &mut sums[tile..tile + width];
                if let Some(sums) = sums.as_mut_array::<TILE>() {
                    let mut own = *sums;
                    for (a, x) in pairs {
                        if let Some(x) = x.as_array::<TILE>() {
                            (0..TILE).for_each(|j| own[j] += a * x[j]);
                        }
                    }
                    *sums = own;
                } else {
                    for (a, x) in pairs {
                        sums.iter_mut().zip(x).for_each(|(sum, b)| *sum += a * b);
                    }
                }
            }
        }
    }
}

/// `M + damping = R R^T` with R upper triangular, one for each block. R^T is kept, row by row: with the
/// errors e of the columns before k, the error of column k that costs nothing more is
/// `-(sum over i < k of e_i R[i][k]) / R[k][k]`.
pub(super) struct Factor {
    columns: usize,
    block: usize,
    /// Row k of R^T: the block's entries up to and with the diagonal count.
    rows: Vec<f32>,
}

impl Factor {
    /// The factor. `damping` times the mean of a block's diagonal is added to it; a block whose
    /// diagonal is all 0 counts as uncorrelated.
    pub(super) fn new(isa: Isa, moments: &Moments, damping: f32) -> Result<Factor> {
        let mut rows = filled(moments.sums.len(), 0.0f32, "the factor of calibration")?;
        let largest = moments.block.min(moments.columns);
        let mut work = filled(largest * largest, 0.0f64, "the factor of calibration")?;
        let mut at = 0;
        for start in (0..moments.columns).step_by(moments.block) {
            let (_, len, sums) = moments.block_of(start);
            let diagonal = |i: usize| sums[i * len + i] as f64;
            let mean = (0..len).map(diagonal).sum::<f64>() / len as f64;
            let damp = if mean > 0.0 { damping as f64 * mean } else { 1.0 };
            // Cholesky's factor from the last column to the first: of the matrix in reverse order.
            let work = &mut work[..len * len];
            for i in 0..len {
                for j in 0..=i {
                    work[i * len + j] = sums[(len - 1 - i) * len + (len - 1 - j)] as f64;
                }
                work[i * len + i] += damp;
            }
            if !compiled(isa, Cholesky { matrix: work, len }) {
                return Err(fail!(
                    InvalidArgument,
                    "the sums of calibration are not positive definite with a damping of {damping}: use more"
                ));
            }
            // R = J L J, so R^T[k][i] = L[len - 1 - i][len - 1 - k] for i <= k.
            for k in 0..len {
                for i in 0..=k {
                    rows[at + k * len + i] = work[(len - 1 - i) * len + (len - 1 - k)] as f32;
                }
            }
            at += len * len;
        }
        Ok(Factor { columns: moments.columns, block: moments.block, rows })
    }

    /// Of column `k`: where its block begins, and the entries `R[i][k]` for i from there to k.
    #[inline(always)]
    pub(super) fn column(&self, k: usize) -> (usize, &[f32]) {
        let number = k / self.block;
        let start = number * self.block;
        let len = self.block.min(self.columns - start);
        let row = &self.rows[number * self.block * self.block + (k - start) * len..];
        (start, &row[..=k - start])
    }
}

/// The lower factor in place; false where the matrix is not positive definite.
struct Cholesky<'a> {
    matrix: &'a mut [f64],
    len: usize,
}

impl Portable for Cholesky<'_> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        let Cholesky { matrix, len } = self;
        for i in 0..len {
            let (above, row) = matrix.split_at_mut(i * len);
            let row = &mut row[..len];
            for j in 0..i {
                let other = &above[j * len..][..len];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let left = row[i] - dot(&row[..i], &row[..i]);
            if left.is_nan() || left <= 0.0 {
                return false;
            }
            row[i] = left.sqrt();
        }
        true
    }
}

#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0f64; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::Spec;

    fn rows(count: usize, columns: usize) -> Vec<f32> {
        (0..count * columns).map(|k| ((k * 7919 + k / 7 * 31) % 1009) as f32 / 500.0 - 1.0).collect()
    }

    fn moments(x: &[f32], columns: usize, block: usize) -> Moments {
        let mut moments = Moments::new(columns, block).unwrap();
        x.chunks(columns).for_each(|row| moments.add(Isa::best(), row).unwrap());
        moments.settle(Isa::best());
        moments
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes there, and nothing but arithmetic")]
    fn sums_are_those_of_the_formula() {
        // Blocks below, of and beyond the 64 columns of a tile.
        for (columns, block) in
            [(24, 1), (24, 8), (24, 10), (24, 24), (24, 100), (150, 64), (150, 100), (150, 150)]
        {
            let count = 70;
            let x = rows(count, columns);
            let got = moments(&x, columns, block);
            assert_eq!(got.count(), count as u64);
            for k in 0..columns {
                let (start, len, sums) = got.block_of(k);
                for j in 0..len {
                    let want: f64 =
                        (0..count).map(|r| (x[r * columns + k] * x[r * columns + start + j]) as f64).sum();
                    assert!((sums[(k - start) * len + j] as f64 - want).abs() < 1e-4, "{k} {j}");
                }
                assert_eq!(got.diagonal(k), sums[(k - start) * len + k - start]);
            }
        }
        let bad = Moments::new(2, 2).unwrap().add(Isa::best(), &[1.0, f32::NAN]);
        assert!(bad.is_err_and(|e| e.text().contains("column 1 of x is NaN")));
    }

    #[test]
    fn the_factor_multiplies_back() {
        let columns = 20;
        let got = moments(&rows(60, columns), columns, 12);
        let factor = Factor::new(Isa::best(), &got, 0.01).unwrap();
        for k in 0..columns {
            let (start, len, sums) = got.block_of(k);
            let mean = (0..len).map(|i| sums[i * len + i]).sum::<f32>() / len as f32;
            for j in start..start + len {
                // (R R^T)[j][k] = sum over c >= max(j, k) of R[j][c] R[k][c]
                let product: f32 = (j.max(k)..start + len)
                    .map(|c| factor.column(c).1[j - start] * factor.column(c).1[k - start])
                    .sum();
                let want = sums[(k - start) * len + j - start] + if j == k { 0.01 * mean } else { 0.0 };
                assert!((product - want).abs() < 1e-3 * mean, "{j} {k}: {product} {want}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes there, and nothing but arithmetic")]
    fn rotated_sums_are_those_of_rotated_rows() {
        let columns = 32;
        let x = rows(50, columns);
        let signs: Vec<f32> = (0..columns).map(|k| if k % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let rotation = Rotation::new(&Spec { block: 8, signs: Some(&signs) }, columns).unwrap();
        let mut turned = x.clone();
        turned.chunks_mut(columns).for_each(|row| rotation.apply(Isa::best(), row));
        for block in [8, 16, 32] {
            let got = moments(&x, columns, block).rotated(Isa::best(), &rotation).unwrap();
            let want = moments(&turned, columns, block);
            for (a, b) in got.sums().iter().zip(want.sums()) {
                assert!((a - b).abs() < 1e-4, "{a} {b}");
            }
        }
        assert!(moments(&x, columns, 1).rotated(Isa::best(), &rotation).is_err());
    }
}
