//! What one set of weights loses against another.

use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::layout::{Matrix, Row};
use std::sync::Mutex;

/// Rows that a thread compares at a time.
const ROWS: usize = 16;

/// Sums over all weights: `a` of the reference, `b` of the other.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: f64,
    error: f64,
    error_square: f64,
    error_max: f64,
    aa: f64,
    bb: f64,
    ab: f64,
    zeros: f64,
}

/// How two matrices differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Weights.
    pub weights: u64,
    /// Mean of |b - a|.
    pub mean_error: f64,
    /// Largest |b - a|.
    pub max_error: f64,
    /// Mean of (b - a)^2.
    pub mean_square_error: f64,
    /// Root mean square of b - a over that of a; 0 where both are 0.
    pub relative_error: f64,
    /// Root mean square of b over that of a; 1 where both are 0.
    pub rms_ratio: f64,
    /// Cosine of the angle between a and b; 1 where both are 0.
    pub cosine: f64,
    /// Part of b that is 0.
    pub sparsity: f64,
}

/// Compares two matrices of one shape, row by row. Every weight counts once; a weight that is not finite
/// makes the figures so.
pub fn compare(executor: &Executor, a: &dyn Matrix, b: &dyn Matrix) -> Result<Comparison> {
    let (rows, columns) = (a.out_features(), a.in_features());
    if (rows, columns) != (b.out_features(), b.in_features()) {
        return Err(fail!(
            InvalidArgument,
            "{rows} x {columns} weights and {} x {}",
            b.out_features(),
            b.in_features()
        ));
    }
    let pieces = rows.div_ceil(ROWS);
    let mut parts = Vec::new();
    crate::memory::reserve(&mut parts, pieces, "sums of rows")?;
    parts.resize_with(pieces, || Mutex::new(Sums::default()));
    let (layout_a, layout_b) = (a.layout(), b.layout());
    executor.run(pieces, &|_, piece| {
        let mut row_a = Row::new(layout_a, columns)?;
        let mut row_b = Row::new(layout_b, columns)?;
        let mut sums = Sums::default();
        for index in piece * ROWS..((piece + 1) * ROWS).min(rows) {
            a.read_row(index, &mut row_a)?;
            b.read_row(index, &mut row_b)?;
            for k in 0..columns {
                let (a, b) = (row_a.weight(&layout_a, k) as f64, row_b.weight(&layout_b, k) as f64);
                let error = (b - a).abs();
                sums.error += error;
                sums.error_square += error * error;
                sums.error_max =
                    if error > sums.error_max || error.is_nan() { error } else { sums.error_max };
                sums.aa += a * a;
                sums.bb += b * b;
                sums.ab += a * b;
                sums.zeros += (b == 0.0) as u8 as f64;
            }
            sums.count += columns as f64;
        }
        *parts[piece].lock().unwrap_or_else(|e| e.into_inner()) = sums;
        Ok(())
    })?;
    // In the order of rows, so that the figures do not depend on the threads.
    let mut all = Sums::default();
    for part in &parts {
        let part = part.lock().unwrap_or_else(|e| e.into_inner());
        all.count += part.count;
        all.error += part.error;
        all.error_square += part.error_square;
        all.error_max = if part.error_max > all.error_max || part.error_max.is_nan() {
            part.error_max
        } else {
            all.error_max
        };
        all.aa += part.aa;
        all.bb += part.bb;
        all.ab += part.ab;
        all.zeros += part.zeros;
    }
    let ratio = |a: f64, b: f64, none: f64| if a == 0.0 && b == 0.0 { none } else { a / b };
    Ok(Comparison {
        weights: all.count as u64,
        mean_error: all.error / all.count,
        max_error: all.error_max,
        mean_square_error: all.error_square / all.count,
        relative_error: ratio(all.error_square, all.aa, 0.0).sqrt(),
        rms_ratio: ratio(all.bb, all.aa, 1.0).sqrt(),
        cosine: ratio(all.ab, (all.aa * all.bb).sqrt(), 1.0),
        sparsity: all.zeros / all.count,
    })
}
