//! Weights on their way to be rounded: dequantised where they are packed, rotated where that is asked.

use crate::cpu::Isa;
use crate::error::Result;
use crate::layout::{Float, Layout, Matrix, Row};
use crate::memory::reserve;
use crate::rotation::Rotation;
use std::sync::Mutex;

/// A matrix as plain f32, its columns in the order of x.
pub struct Plain<'a> {
    matrix: &'a dyn Matrix,
    rotation: Option<&'a Rotation>,
    inverse: bool,
    isa: Isa,
    resting: Mutex<Vec<Row<'static>>>,
}

impl<'a> Plain<'a> {
    /// A matrix, rotated where a rotation is given.
    pub fn new(matrix: &'a dyn Matrix, rotation: Option<&'a Rotation>, isa: Isa) -> Plain<'a> {
        Plain { matrix, rotation, inverse: false, isa, resting: Mutex::default() }
    }

    /// Of weights that are rotated: as they were before.
    pub fn back(matrix: &'a dyn Matrix, rotation: Option<&'a Rotation>, isa: Isa) -> Plain<'a> {
        Plain { inverse: true, ..Plain::new(matrix, rotation, isa) }
    }
}

impl Matrix for Plain<'_> {
    fn layout(&self) -> Layout {
        Layout::Dense(Float::F32)
    }
    fn out_features(&self) -> usize {
        self.matrix.out_features()
    }
    fn in_features(&self) -> usize {
        self.matrix.in_features()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let layout = self.matrix.layout();
        let dense = matches!(layout, Layout::Dense(_)) && self.matrix.permutation().is_none();
        if dense {
            self.matrix.read_row(index, row)?;
        } else {
            let resting = self.resting.lock().unwrap_or_else(|e| e.into_inner()).pop();
            let mut stored = match resting {
                Some(row) => row,
                None => Row::new(layout, self.in_features())?,
            };
            self.matrix.read_row(index, &mut stored)?;
            match self.matrix.permutation() {
                None => {
                    row.floats.iter_mut().enumerate().for_each(|(k, w)| *w = stored.weight(&layout, k));
                }
                Some(columns) => {
                    for (k, &column) in columns.iter().enumerate() {
                        row.floats[column as usize] = stored.weight(&layout, k);
                    }
                }
            }
            let mut resting = self.resting.lock().unwrap_or_else(|e| e.into_inner());
            if reserve(&mut resting, 1, "rows").is_ok() {
                resting.push(stored);
            }
        }
        // y = W x = (W R^T) (R x): the rows of W are rotated as x is.
        match self.rotation {
            Some(rotation) if self.inverse => rotation.invert(self.isa, &mut row.floats),
            Some(rotation) => rotation.apply(self.isa, &mut row.floats),
            None => {}
        }
        Ok(())
    }
}

/// The sign of each column that a seed gives: bit 63 of a splitmix64 sequence; 0 is no sign vector.
pub fn signs(seed: u64, columns: usize) -> Result<Option<Vec<f32>>> {
    if seed == 0 {
        return Ok(None);
    }
    let mut signs = Vec::new();
    reserve(&mut signs, columns, "signs of a rotation")?;
    signs.extend((1..=columns as u64).map(|k| {
        let z = seed.wrapping_add(k.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ z >> 31) >> 63 == 0 { 1.0 } else { -1.0 }
    }));
    Ok(Some(signs))
}
