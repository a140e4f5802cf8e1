//! What compression loses, and whether that is little enough.

use super::BLOCK;

/// Sums over the values of one call. Lanes are values of a block, or blocks of a group (`block::measure_group`),
/// so that every instruction set adds in one order.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    pub(super) original: [f64; BLOCK],
    pub(super) restored: [f64; BLOCK],
    pub(super) error: [f64; BLOCK],
    pub(super) largest: [f32; BLOCK],
}

impl Sums {
    /// Adds the sums of later values.
    pub(super) fn add(&mut self, other: &Sums) {
        for i in 0..BLOCK {
            self.original[i] += other.original[i];
            self.restored[i] += other.restored[i];
            self.error[i] += other.error[i];
            self.largest[i] = self.largest[i].max(other.largest[i]);
        }
    }
}

/// Totals over the calls that packed a state. Averages are over calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// How often the state was packed.
    pub calls: u64,
    /// Sum of the root mean squares of what was packed.
    pub original_rms: f64,
    /// The same of what unpacking gives.
    pub restored_rms: f64,
    /// Sum of the mean magnitudes of the difference.
    pub mean_error: f64,
    /// Largest difference of one value.
    pub max_error: f32,
    /// Bytes of the f32 values.
    pub original_bytes: u64,
    /// Bytes of codes and scales.
    pub packed_bytes: u64,
}

impl Statistics {
    /// Counts a call on `count` values that became `bytes`.
    pub(super) fn add(&mut self, sums: &Sums, count: usize, bytes: usize) {
        let n = count as f64;
        self.calls += 1;
        self.original_rms += (sums.original.iter().sum::<f64>() / n).sqrt();
        self.restored_rms += (sums.restored.iter().sum::<f64>() / n).sqrt();
        self.mean_error += sums.error.iter().sum::<f64>() / n;
        self.max_error = sums.largest.iter().fold(self.max_error, |m, v| m.max(*v));
        self.original_bytes = self.original_bytes.saturating_add(4 * count as u64);
        self.packed_bytes = self.packed_bytes.saturating_add(bytes as u64);
    }

    /// The mean magnitude of the difference; none before the first call.
    pub fn mean_abs_error(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.mean_error / self.calls as f64)
    }

    /// Root mean square of the restored over that of the original; none where the original is 0.
    pub fn rms_ratio(&self) -> Option<f64> {
        (self.calls > 0 && self.original_rms > 0.0).then(|| self.restored_rms / self.original_rms)
    }

    /// Packed bytes over original ones; none before the first call.
    pub fn compression_ratio(&self) -> Option<f64> {
        (self.original_bytes > 0).then(|| self.packed_bytes as f64 / self.original_bytes as f64)
    }
}

/// Bounds on what compression may lose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// Of [`Statistics::mean_abs_error`].
    pub max_mean_error: f64,
    /// Of the largest error of one value.
    pub max_error: f64,
    /// Least [`Statistics::rms_ratio`].
    pub min_rms_ratio: f64,
    /// Largest one.
    pub max_rms_ratio: f64,
    /// Of [`Statistics::compression_ratio`].
    pub max_compression_ratio: f64,
}

impl Default for Gate {
    /// burn_dragon's bounds.
    fn default() -> Gate {
        Gate {
            max_mean_error: 0.02,
            max_error: 0.05,
            min_rms_ratio: 0.95,
            max_rms_ratio: 1.05,
            max_compression_ratio: 0.5,
        }
    }
}

impl Gate {
    /// Whether every figure is there and within its bounds.
    pub fn passes(&self, statistics: &Statistics) -> bool {
        let (Some(mean), Some(rms), Some(ratio)) =
            (statistics.mean_abs_error(), statistics.rms_ratio(), statistics.compression_ratio())
        else {
            return false;
        };
        mean <= self.max_mean_error
            && statistics.max_error as f64 <= self.max_error
            && (self.min_rms_ratio..=self.max_rms_ratio).contains(&rms)
            && ratio <= self.max_compression_ratio
    }
}
