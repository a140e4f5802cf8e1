//! What every matrix promises, whatever bytes it reads: rows that the packer can take, the same weights
//! from the panels as from the rows, and no other rows than it says.

#![allow(dead_code)] // every target uses some of it

use bitlinear::error::Result;
use bitlinear::layout::packed::Packed;
use bitlinear::layout::{Layout, Matrix, Row, Scales};

/// Weights of a matrix that is worth reading: more only slow the fuzzer down.
const WEIGHTS_MAX: usize = 1 << 16;

/// Reads all rows of what a constructor gave.
pub fn check<M: Matrix>(matrix: Result<M>) {
    let Ok(matrix) = matrix else { return };
    let (rows, columns) = (matrix.out_features(), matrix.in_features());
    if rows.checked_mul(columns).is_none_or(|n| n > WEIGHTS_MAX) {
        return;
    }
    let layout = matrix.layout();
    let mut row = Row::new(layout, columns).unwrap();
    let mut weights = Vec::new();
    let mut whole = true;
    for r in 0..rows {
        if matrix.read_row(r, &mut row).is_err() {
            whole = false; // codes that the format does not define
            continue;
        }
        if let Layout::Coded(coded) = layout {
            assert!(row.codes.iter().all(|c| (*c as u32) < 1 << coded.bits));
            if let Scales::TwoLevel { .. } = coded.scales {
                assert!(row.sub_scales.len() >= row.scales.len());
            }
        }
        weights.extend((0..columns).map(|k| row.weight(&layout, k)));
    }
    assert!(matrix.read_row(rows, &mut row).is_err());
    assert!(matrix.read_row(usize::MAX, &mut row).is_err());
    if let Some(columns_of) = matrix.permutation() {
        let mut seen = vec![false; columns];
        columns_of.iter().for_each(|k| assert!(!std::mem::replace(&mut seen[*k as usize], true)));
        assert_eq!(columns_of.len(), columns);
    }
    let packed = Packed::new(&matrix);
    assert_eq!(packed.is_ok(), whole);
    let Ok(packed) = packed else { return };
    for (r, weights) in weights.chunks_exact(columns).enumerate() {
        packed.read_row(r, &mut row);
        for (k, w) in weights.iter().enumerate() {
            let again = row.weight(&layout, k);
            assert!(again.to_bits() == w.to_bits() || again.is_nan() && w.is_nan(), "{r} {k}: {w} {again}");
        }
    }
}

/// Numbers from the front of the input; the rest are the tensors.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// One byte; 0 at the end.
    pub fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first as usize
    }

    /// A size: mostly small, at times absurd.
    pub fn size(&mut self) -> usize {
        match self.byte() {
            255 => usize::MAX,
            254 => usize::MAX / 4 + 1,
            253 => 1 << 31,
            n @ 200..=252 => (n - 199) * 32,
            n => n,
        }
    }

    /// A tensor: at most that many bytes from the front.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
