//! One of several parts of a matrix: some of its rows or some of its columns.
//!
//! ```text
//! rows     part r of n: rows    r O / n .. (r + 1) O / n                 y = the parts' y, one after another
//! columns  part r of n: units   r U / n .. (r + 1) U / n, U units        y = the sum of the parts' y, each
//!          unit = 1 column, a group, or a super-block of 256                 on its own columns of x
//! ```
//! Divisions round down. Columns are cut where scales change, so that every part decodes exactly as
//! the whole does.

use std::ops::Range;
use std::sync::Mutex;

use super::{Coded, Layout, Matrix, Row, SUPER_BLOCK, Scales};
use crate::error::{Result, fail};

/// Which part of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// Rows: outputs.
    Rows {
        /// Which part.
        rank: u32,
        /// Of how many.
        count: u32,
    },
    /// Columns: inputs.
    Columns {
        /// Which part.
        rank: u32,
        /// Of how many.
        count: u32,
    },
}

/// A part of a matrix, as a matrix.
pub struct Shard<'a> {
    matrix: &'a dyn Matrix,
    layout: Layout,
    rows: Range<usize>,
    columns: Range<usize>,
    /// Rows of the whole matrix, to be read into.
    whole: Mutex<Vec<Row<'static>>>,
}

impl<'a> Shard<'a> {
    /// That part of the matrix.
    pub fn new(matrix: &'a dyn Matrix, part: Part) -> Result<Shard<'a>> {
        let mut layout = matrix.layout();
        let (mut rows, mut columns) = (0..matrix.out_features(), 0..matrix.in_features());
        match part {
            Part::Whole => {}
            Part::Rows { rank, count } => rows = cut(rows.end, 1, "rows", rank, count)?,
            Part::Columns { rank, count } => {
                if matrix.permutation().is_some() {
                    return Err(fail!(
                        Unsupported,
                        "columns in the order of their groups (desc_act) cannot be cut; rows can"
                    ));
                }
                columns = cut(columns.end, unit(&layout), "columns", rank, count)?;
                if let Layout::Coded(Coded { scales: Scales::Group { len, .. }, .. }) = &mut layout {
                    *len = columns.len().min(*len);
                }
            }
        }
        Ok(Shard { matrix, layout, rows, columns, whole: Mutex::default() })
    }

    /// The rows of the whole matrix that it has.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of the whole matrix that it has.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }
}

/// Columns that no cut separates.
fn unit(layout: &Layout) -> usize {
    match layout {
        Layout::Coded(Coded { scales: Scales::Group { len, .. }, .. }) => *len,
        Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }) => SUPER_BLOCK,
        _ => 1,
    }
}

/// Part `rank` of `len` things, in whole units.
fn cut(len: usize, unit: usize, what: &str, rank: u32, count: u32) -> Result<Range<usize>> {
    let units = len.div_ceil(unit);
    if count == 0 {
        return Err(fail!(
            InvalidArgument,
            "a shard of {what}, but shard_count is 0: set it to how many there are"
        ));
    }
    if rank >= count {
        return Err(fail!(InvalidArgument, "shard_rank {rank} of shard_count {count}: 0 to {}", count - 1));
    }
    if count as usize > units {
        return Err(fail!(
            Unsupported,
            "{len} {what} in {count} shards: they can be cut at multiples of {unit}, into {units} shards at most"
        ));
    }
    // Less than 2^31 units and 2^32 shards.
    let at = |rank: u64| ((rank * units as u64 / count as u64) as usize * unit).min(len);
    Ok(at(rank as u64)..at(rank as u64 + 1))
}

impl Matrix for Shard<'_> {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.rows.len()
    }
    fn in_features(&self) -> usize {
        self.columns.len()
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.matrix.permutation()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let in_features = self.matrix.in_features();
        let index = self.rows.start + index;
        if self.columns.len() == in_features {
            return self.matrix.read_row(index, row);
        }
        let resting = self.whole.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut whole = match resting {
            Some(whole) => whole,
            None => Row::new(self.matrix.layout(), in_features)?,
        };
        self.matrix.read_row(index, &mut whole)?;
        let copy = |from: &[f32], to: &mut [f32], at: usize| {
            to.iter_mut().zip(&from[at..]).for_each(|(to, from)| *to = *from);
        };
        let first = self.columns.start;
        match self.matrix.layout() {
            Layout::Dense(_) => copy(&whole.floats, &mut row.floats, first),
            Layout::Coded(coded) => {
                let parts = row.codes.chunks_exact_mut(self.columns.len());
                for (to, from) in parts.zip(whole.codes.chunks_exact(in_features)) {
                    to.copy_from_slice(&from[self.columns.clone()]);
                }
                match coded.scales {
                    Scales::Row => copy(&whole.scales, &mut row.scales, 0),
                    Scales::Group { len, .. } => {
                        let at = first / len;
                        copy(&whole.scales, &mut row.scales, at);
                        if !whole.minimums.is_empty() {
                            copy(&whole.minimums, &mut row.minimums, at);
                        }
                        let zeros = whole.zeros.get(at..).unwrap_or(&[]);
                        row.zeros.iter_mut().zip(zeros).for_each(|(to, from)| *to = *from);
                    }
                    Scales::TwoLevel { len, minimum } => {
                        let (block, group) = (first / SUPER_BLOCK, first / len);
                        copy(&whole.scales, &mut row.scales, block);
                        let subs = |from: &[i8], to: &mut [i8]| {
                            to.iter_mut().zip(&from[group..]).for_each(|(to, from)| *to = *from);
                        };
                        subs(&whole.sub_scales, &mut row.sub_scales);
                        if minimum {
                            copy(&whole.minimums, &mut row.minimums, block);
                            subs(&whole.sub_minimums, &mut row.sub_minimums);
                        }
                    }
                }
            }
        }
        let mut resting = self.whole.lock().unwrap_or_else(|e| e.into_inner());
        if resting.try_reserve(1).is_ok() {
            resting.push(whole);
        }
        Ok(())
    }
}
