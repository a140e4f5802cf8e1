//! One decoded row of weights: the hand-over between codecs and the packer.

use super::{Coded, Layout, Offset, SUPER_BLOCK, Scales, Values};
use crate::error::Result;
use crate::memory::filled;

/// One row of W as codes and scales (or as floats, where the layout is dense). Reused from row to
/// row: `Row::new` sizes every field for the layout, decoding overwrites all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Coded layouts: one code for each column; with several bases base-major, `[base][column]`.
    pub codes: Vec<u8>,
    /// Dense layouts: the weights.
    pub floats: Vec<f32>,
    /// Scales: one for each base, group or super-block. Exact in the layout's scale type.
    pub scales: Vec<f32>,
    /// Minima of groups, or `dmin` of super-blocks; empty where the layout has none.
    pub minimums: Vec<f32>,
    /// Integer zero points of groups; empty where the layout has none.
    pub zeros: Vec<u8>,
    /// Two-level: the integer scale of each group.
    pub sub_scales: Vec<i8>,
    /// Two-level: the integer minimum of each group; empty where the layout has none.
    pub sub_minimums: Vec<i8>,
}

impl Row {
    /// A row of zeros with every field sized for `layout` and `in_features` columns.
    pub fn new(layout: Layout, in_features: usize) -> Result<Row> {
        let mut row = Row::default();
        let coded = match layout {
            Layout::Dense(_) => {
                row.floats = filled(in_features, 0.0, "a row of weights")?;
                return Ok(row);
            }
            Layout::Coded(coded) => coded,
        };
        let bases = coded.bases as usize;
        row.codes = filled(in_features.saturating_mul(bases), 0, "a row of codes")?;
        match coded.scales {
            Scales::Row => row.scales = filled(bases, 0.0, "scales")?,
            Scales::Group { len, offset } => {
                let groups = in_features.div_ceil(len);
                row.scales = filled(groups, 0.0, "scales")?;
                match offset {
                    Offset::None => {}
                    Offset::Minimum => row.minimums = filled(groups, 0.0, "minima")?,
                    Offset::Zero => row.zeros = filled(groups, 0, "zero points")?,
                }
            }
            Scales::TwoLevel { len, minimum } => {
                let blocks = in_features.div_ceil(SUPER_BLOCK);
                let groups = in_features.div_ceil(len);
                row.scales = filled(blocks, 0.0, "scales")?;
                row.sub_scales = filled(groups, 0, "scales")?;
                if minimum {
                    row.minimums = filled(blocks, 0.0, "minima")?;
                    row.sub_minimums = filled(groups, 0, "minima")?;
                }
            }
        }
        Ok(row)
    }

    /// The weight of column `k`, evaluated as `docs/numerics.md` writes it: the dequantised value
    /// that `bl_layer_read` returns and that float activations are multiplied with.
    pub fn weight(&self, layout: &Layout, k: usize) -> f32 {
        let coded = match layout {
            Layout::Dense(_) => return self.floats[k],
            Layout::Coded(coded) => coded,
        };
        match coded.scales {
            Scales::Row => {
                let columns = self.codes.len() / coded.bases as usize;
                // Bases ascending, each product rounded, then added: the order of the file format.
                let mut sum = coded.values.of(self.codes[k]) as f32 * self.scales[0];
                for base in 1..coded.bases as usize {
                    sum += coded.values.of(self.codes[base * columns + k]) as f32 * self.scales[base];
                }
                sum
            }
            Scales::Group { len, offset } => {
                let g = k / len;
                match offset {
                    Offset::None => self.scales[g] * coded.values.of(self.codes[k]) as f32,
                    Offset::Minimum => {
                        self.scales[g] * coded.values.of(self.codes[k]) as f32 + self.minimums[g]
                    }
                    Offset::Zero => self.scales[g] * (self.codes[k] as i32 - self.zeros[g] as i32) as f32,
                }
            }
            Scales::TwoLevel { len, minimum } => {
                let (block, g) = (k / SUPER_BLOCK, k / len);
                let scale = self.scales[block] * self.sub_scales[g] as f32;
                let product = scale * coded.values.of(self.codes[k]) as f32;
                if minimum { product - self.minimums[block] * self.sub_minimums[g] as f32 } else { product }
            }
        }
    }
}

impl Values {
    /// The integer that `code` stands for.
    pub fn of(self, code: u8) -> i32 {
        match self {
            Values::Offset(zero) => code as i32 - zero as i32,
            Values::Sign => 2 * code as i32 - 1,
            Values::Table(table) => table[(code & 15) as usize] as i32,
        }
    }
}

impl Coded {
    /// What to add to the sum of `code * q` for each unit of the sum of `q`, so that it becomes the
    /// sum of `value * q` (after doubling, where values are signs). 0 with tables and integer zeros.
    pub fn correction(&self) -> i32 {
        match self.values {
            Values::Offset(zero) => -(zero as i32),
            Values::Sign => -1,
            Values::Table(_) => 0,
        }
    }
}
