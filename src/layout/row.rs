//! One decoded row of weights: the hand-over between codecs and the packer.

use std::ops::{Deref, DerefMut};

use super::{Coded, Layout, Offset, SUPER_BLOCK, Scales, Values};
use crate::error::Result;
use crate::memory::{filled, part};

/// One kind of values of a row: its own, or lent from a workspace.
#[derive(Debug)]
pub enum Field<'a, T> {
    /// Its own.
    Own(Vec<T>),
    /// Lent.
    Lent(&'a mut [T]),
}

impl<T> Default for Field<'_, T> {
    fn default() -> Self {
        Field::Own(vec![])
    }
}

impl<T> Deref for Field<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Field::Own(values) => values,
            Field::Lent(values) => values,
        }
    }
}

impl<T> DerefMut for Field<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Field::Own(values) => values,
            Field::Lent(values) => values,
        }
    }
}

impl<'f, T> IntoIterator for &'f Field<'_, T> {
    type Item = &'f T;
    type IntoIter = std::slice::Iter<'f, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'f, T> IntoIterator for &'f mut Field<'_, T> {
    type Item = &'f mut T;
    type IntoIter = std::slice::IterMut<'f, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T: Clone> Clone for Field<'_, T> {
    fn clone(&self) -> Self {
        Field::Own(self.to_vec())
    }
}

impl<T: PartialEq> PartialEq for Field<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

/// One row of W as codes and scales (or as floats, where the layout is dense). Reused from row to
/// row: `Row::new` sizes every field for the layout, decoding overwrites all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row<'a> {
    /// Coded layouts: one code for each column; with several bases base-major, `[base][column]`.
    pub codes: Field<'a, u8>,
    /// Dense layouts: the weights.
    pub floats: Field<'a, f32>,
    /// Scales: one for each base, group or super-block. Exact in the layout's scale type.
    pub scales: Field<'a, f32>,
    /// Minima of groups, or `dmin` of super-blocks; empty where the layout has none.
    pub minimums: Field<'a, f32>,
    /// Integer zero points of groups; empty where the layout has none.
    pub zeros: Field<'a, u8>,
    /// Two-level: the integer scale of each group.
    pub sub_scales: Field<'a, i8>,
    /// Two-level: the integer minimum of each group; empty where the layout has none.
    pub sub_minimums: Field<'a, i8>,
}

/// How many values each field of a row has.
#[derive(Clone, Copy, Default)]
struct Lens {
    codes: usize,
    floats: usize,
    scales: usize,
    minimums: usize,
    zeros: usize,
    sub_scales: usize,
    sub_minimums: usize,
}

impl Lens {
    fn of(layout: &Layout, in_features: usize) -> Lens {
        let coded = match layout {
            Layout::Dense(_) => return Lens { floats: in_features, ..Lens::default() },
            Layout::Coded(coded) => coded,
        };
        let bases = coded.bases as usize;
        let lens = Lens { codes: in_features.saturating_mul(bases), ..Lens::default() };
        match coded.scales {
            Scales::Row => Lens { scales: bases, ..lens },
            Scales::Group { len, offset } => {
                let groups = in_features.div_ceil(len);
                let lens = Lens { scales: groups, ..lens };
                match offset {
                    Offset::None => lens,
                    Offset::Minimum => Lens { minimums: groups, ..lens },
                    Offset::Zero => Lens { zeros: groups, ..lens },
                }
            }
            Scales::TwoLevel { len, minimum } => {
                let (blocks, groups) = (in_features.div_ceil(SUPER_BLOCK), in_features.div_ceil(len));
                let lens = Lens { scales: blocks, sub_scales: groups, ..lens };
                if minimum { Lens { minimums: blocks, sub_minimums: groups, ..lens } } else { lens }
            }
        }
    }
}

impl Row<'static> {
    /// A row of zeros with every field sized for `layout` and `in_features` columns.
    pub fn new(layout: Layout, in_features: usize) -> Result<Row<'static>> {
        let lens = Lens::of(&layout, in_features);
        Ok(Row {
            codes: Field::Own(filled(lens.codes, 0, "a row of codes")?),
            floats: Field::Own(filled(lens.floats, 0.0, "a row of weights")?),
            scales: Field::Own(filled(lens.scales, 0.0, "scales")?),
            minimums: Field::Own(filled(lens.minimums, 0.0, "minima")?),
            zeros: Field::Own(filled(lens.zeros, 0, "zero points")?),
            sub_scales: Field::Own(filled(lens.sub_scales, 0, "scales")?),
            sub_minimums: Field::Own(filled(lens.sub_minimums, 0, "minima")?),
        })
    }
}

impl<'a> Row<'a> {
    /// Bytes of [`Row::lent`].
    pub fn scratch(layout: &Layout, in_features: usize) -> usize {
        let lens = Lens::of(layout, in_features);
        4 * (lens.floats + lens.scales + lens.minimums)
            + lens.codes
            + lens.zeros
            + lens.sub_scales
            + lens.sub_minimums
    }

    /// The same in lent memory, aligned for f32; its values are what is there. Gives the rest back.
    pub fn lent(layout: &Layout, in_features: usize, scratch: &'a mut [u8]) -> (Row<'a>, &'a mut [u8]) {
        let lens = Lens::of(layout, in_features);
        let (floats, rest) = part::<f32>(scratch, lens.floats);
        let (scales, rest) = part::<f32>(rest, lens.scales);
        let (minimums, rest) = part::<f32>(rest, lens.minimums);
        let (codes, rest) = rest.split_at_mut(lens.codes);
        let (zeros, rest) = rest.split_at_mut(lens.zeros);
        let (sub_scales, rest) = part::<i8>(rest, lens.sub_scales);
        let (sub_minimums, rest) = part::<i8>(rest, lens.sub_minimums);
        let row = Row {
            codes: Field::Lent(codes),
            floats: Field::Lent(floats),
            scales: Field::Lent(scales),
            minimums: Field::Lent(minimums),
            zeros: Field::Lent(zeros),
            sub_scales: Field::Lent(sub_scales),
            sub_minimums: Field::Lent(sub_minimums),
        };
        (row, rest)
    }

    /// Takes the values of another row of the same layout and columns.
    pub fn copy_from(&mut self, other: &Row<'_>) {
        self.codes.copy_from_slice(&other.codes);
        self.floats.copy_from_slice(&other.floats);
        self.scales.copy_from_slice(&other.scales);
        self.minimums.copy_from_slice(&other.minimums);
        self.zeros.copy_from_slice(&other.zeros);
        self.sub_scales.copy_from_slice(&other.sub_scales);
        self.sub_minimums.copy_from_slice(&other.sub_minimums);
    }

    /// All weights, columns in the order of W: `permutation` says which column of W stands at each of the row's.
    pub fn weights(&self, layout: &Layout, permutation: Option<&[u32]>, weights: &mut [f32]) {
        match permutation {
            None => (0..weights.len()).for_each(|k| weights[k] = self.weight(layout, k)),
            Some(columns) => {
                for (packed, &k) in columns.iter().enumerate() {
                    weights[k as usize] = self.weight(layout, packed);
                }
            }
        }
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
