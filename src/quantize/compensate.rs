//! Rounding of sixteen rows, column by column: each column's error is made up for by the columns after
//! it, as far as the moments of the inputs say that they can.
//!
//! ```text
//! without calibration   w_k becomes the nearest value
//! with it               t_k = w_k + (sum over i < k of e_i R[i][k]) / R[k][k],  M + damping = R R^T
//!                       t_k becomes the nearest value v_k,  e_k = w_k - v_k
//! ```
//! `e M e^T` is the sum over k of `(sum over i <= k of e_i R[i][k])^2`: each term is made as small as
//! its column can. That is the rounding of GPTQ (Frantar et al., 2022) in the form of Babai's nearest
//! plane (Chen et al., 2025), which needs no inverse. The scales of a segment are found where it begins,
//! for the values that its columns would take if they were free.
//!
//! After that [`Panel::refine`] takes the codes as given and sets one scale after another (and one
//! minimum) to where `e M e^T` is least; what does not make it less is dropped.

use super::compiled;
use super::fit::{Fit, Steps};
use super::moments::{Factor, Moments};
use super::search::{LANES, Lane};
use crate::cpu::Isa;
use crate::error::Result;
use crate::kernel::Portable;
use crate::layout::{Offset, Row, Scales};
use crate::memory::filled;

/// What sixteen rows are rounded with.
pub(super) struct Panel<'a> {
    pub(super) isa: Isa,
    pub(super) coder: Coder<'a>,
    /// One for each column.
    pub(super) importance: &'a [f32],
    pub(super) factor: Option<&'a Factor>,
}

/// How a weight becomes a code.
pub(super) enum Coder<'a> {
    /// By scales that are found segment by segment.
    Fit(&'a Fit),
    /// By levels that are the same for all weights.
    Levels(&'a Levels),
}

/// All values that sums of bases take, in their order.
pub(super) struct Levels {
    /// Scales of the bases.
    pub(super) scales: Vec<f32>,
    /// The values, from the least up.
    pub(super) values: Vec<f32>,
    /// Half-way between neighbours.
    thresholds: Vec<f32>,
    /// Codes `v + 1` of each value, base after base.
    pub(super) codes: Vec<u8>,
}

impl Levels {
    /// The `3^bases` sums.
    pub(super) fn new(scales: &[f32]) -> Result<Levels> {
        let count = 3usize.pow(scales.len() as u32);
        let mut order = filled(count, (0.0f32, 0usize), "levels")?;
        for (number, level) in order.iter_mut().enumerate() {
            let mut rest = number;
            let mut value = 0.0;
            for s in scales {
                value += (rest % 3) as f32 * s - s;
                rest /= 3;
            }
            *level = (value, number);
        }
        // At most 3^4: the standard library's sort would be more code than all of this.
        for n in 1..count {
            let mut at = n;
            while at > 0 && order[at].0 < order[at - 1].0 {
                order.swap(at, at - 1);
                at -= 1;
            }
        }
        let mut values = filled(count, 0.0, "levels")?;
        let mut thresholds = filled(count - 1, 0.0, "levels")?;
        let mut codes = filled(count * scales.len(), 0u8, "levels")?;
        for (n, (value, number)) in order.iter().enumerate() {
            values[n] = *value;
            if n > 0 {
                thresholds[n - 1] = (order[n - 1].0 + value) / 2.0;
            }
            let mut rest = *number;
            for code in &mut codes[n * scales.len()..][..scales.len()] {
                *code = (rest % 3) as u8;
                rest /= 3;
            }
        }
        let mut kept = filled(scales.len(), 0.0, "scales")?;
        kept.copy_from_slice(scales);
        Ok(Levels { scales: kept, values, thresholds, codes })
    }

    /// Which level is nearest.
    #[inline(always)]
    pub(super) fn nearest(&self, w: f32) -> usize {
        self.thresholds.iter().map(|t| (w > *t) as usize).sum()
    }
}

/// Room for one panel.
pub(super) struct Scratch {
    /// What is left of each weight: the weight less its value.
    pub(super) errors: Vec<Lane>,
    target: Vec<Lane>,
    base: Vec<Lane>,
    products: Vec<Lane>,
}

impl Scratch {
    pub(super) fn new(columns: usize) -> Result<Scratch> {
        let lanes = |what| filled(columns, [0.0; LANES], what);
        Ok(Scratch {
            errors: lanes("errors")?,
            target: lanes("targets")?,
            base: lanes("errors before")?,
            products: lanes("products of errors")?,
        })
    }
}

impl Panel<'_> {
    /// Rounds; `x[k][lane]` are the weights, a row in each lane. Lanes without a row hold zeros.
    pub(super) fn round(&self, x: &[Lane], rows: &mut [Row], scratch: &mut Scratch) -> Result<()> {
        let columns = x.len();
        let segment = match self.coder {
            Coder::Fit(fit) => fit.segment(),
            Coder::Levels(_) => columns.min(256),
        };
        if let Coder::Levels(levels) = self.coder {
            rows.iter_mut().for_each(|row| row.scales.copy_from_slice(&levels.scales));
        }
        for first in (0..columns).step_by(segment) {
            let end = (first + segment).min(columns);
            if let Some(factor) = self.factor {
                let Scratch { errors, target, base, .. } = scratch;
                compiled(self.isa, Before { factor, first, errors, base: &mut base[first..end] });
                if let Coder::Fit(_) = self.coder {
                    // The errors that free columns would have.
                    for k in first..end {
                        let made_up = self.wanted(factor, first, k, errors, &base[k]);
                        for i in 0..LANES {
                            target[k][i] = x[k][i] + made_up[i];
                            errors[k][i] = -made_up[i];
                        }
                    }
                }
            } else {
                scratch.target[first..end].copy_from_slice(&x[first..end]);
            }
            match self.coder {
                Coder::Fit(fit) => {
                    let (target, importance) = (&scratch.target[first..end], &self.importance[first..end]);
                    fit.scales(first, target, importance, rows)?;
                    self.by_steps(fit, first, end, x, rows, scratch);
                }
                Coder::Levels(levels) => self.by_levels(levels, first, end, x, rows, scratch),
            }
        }
        Ok(())
    }

    fn by_steps(
        &self,
        fit: &Fit,
        first: usize,
        end: usize,
        x: &[Lane],
        rows: &mut [Row],
        scratch: &mut Scratch,
    ) {
        let group = fit.group();
        let mut steps = Steps { scale: [0.0; LANES], minimum: [0.0; LANES] };
        let mut inverse = [0.0; LANES];
        for (k, x) in x.iter().enumerate().take(end).skip(first) {
            if (k - first).is_multiple_of(group) {
                steps = fit.steps(k, rows);
                inverse = steps.scale.map(|s| if s == 0.0 { 0.0 } else { 1.0 / s });
            }
            let made_up = self.made_up(first, k, scratch);
            let nearest = Nearest { fit, steps: &steps, inverse: &inverse, x, made_up: &made_up };
            let (values, errors) = compiled(self.isa, nearest);
            scratch.errors[k] = errors;
            for (row, v) in rows.iter_mut().zip(values) {
                row.codes[k] = fit.code(v);
            }
        }
    }

    fn by_levels(
        &self,
        levels: &Levels,
        first: usize,
        end: usize,
        x: &[Lane],
        rows: &mut [Row],
        scratch: &mut Scratch,
    ) {
        let (columns, bases) = (x.len(), levels.scales.len());
        for (k, x) in x.iter().enumerate().take(end).skip(first) {
            let made_up = self.made_up(first, k, scratch);
            for i in 0..LANES {
                let level = levels.nearest(x[i] + made_up[i]);
                scratch.errors[k][i] = x[i] - levels.values[level];
                if let Some(row) = rows.get_mut(i) {
                    for base in 0..bases {
                        row.codes[base * columns + k] = levels.codes[level * bases + base];
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn made_up(&self, first: usize, k: usize, scratch: &Scratch) -> Lane {
        match self.factor {
            Some(factor) => self.wanted(factor, first, k, &scratch.errors, &scratch.base[k]),
            None => [0.0; LANES],
        }
    }

    /// What column `k` has to make up for: `base`, for the columns before `first`, and those from there
    /// on.
    fn wanted(&self, factor: &Factor, first: usize, k: usize, errors: &[Lane], base: &Lane) -> Lane {
        let (start, column) = factor.column(k);
        let from = first.max(start);
        let (entries, errors) = (&column[from - start..k - start], &errors[from..k]);
        compiled(self.isa, Wanted { entries, errors, base, diagonal: column[k - start] })
    }

    /// Refines scales (and minima) of groups or rows under these codes; `errors` are up to date before
    /// and after. Two-level scales are left as they are.
    pub(super) fn refine(&self, fit: &Fit, moments: &Moments, rows: &mut [Row], scratch: &mut Scratch) {
        if matches!(fit.coded().scales, Scales::TwoLevel { .. }) || moments.block() == 1 {
            return;
        }
        let columns = scratch.errors.len();
        let len = fit.group();
        for start in (0..columns).step_by(moments.block()) {
            let (_, block, sums) = moments.block_of(start);
            let all = start..start + block;
            // v = M e
            let errors = &scratch.errors[all.clone()];
            compiled(
                self.isa,
                Product { sums, block, first: 0, factors: errors, out: &mut scratch.products[all.clone()] },
            );
            for group in (start..start + block).step_by(len) {
                // A group that a block of moments ends in keeps its scale.
                if !group.is_multiple_of(len) || (group + len).min(columns) > start + block {
                    continue;
                }
                let end = (group + len).min(columns);
                let kinds = if fit.has_minimum() { 2 } else { 1 };
                for kind in 0..kinds {
                    // What one unit of the scale (of the minimum) changes each weight by.
                    let (values, changes) = (&mut scratch.target[..end - group], &mut scratch.base[..block]);
                    for (k, value) in (group..end).zip(values.iter_mut()) {
                        for (lane, v) in value.iter_mut().enumerate() {
                            let code = rows.get(lane).map(|row| fit.coded().values.of(row.codes[k]) as f32);
                            *v = if kind == 1 { 1.0 } else { code.unwrap_or(0.0) };
                        }
                    }
                    let product =
                        Product { sums, block, first: group - start, factors: values, out: changes };
                    compiled(self.isa, product);
                    let (mut slope, mut curve) = ([0.0f32; LANES], [0.0f32; LANES]);
                    for (j, value) in values.iter().enumerate() {
                        for i in 0..LANES {
                            slope[i] += value[i] * scratch.products[group + j][i];
                            curve[i] += value[i] * changes[group - start + j][i];
                        }
                    }
                    let mut moved = [0.0f32; LANES];
                    for (lane, row) in rows.iter_mut().enumerate() {
                        let g = if matches!(fit.coded().scales, Scales::Row) { 0 } else { group / len };
                        let old = if kind == 1 { &mut row.minimums[g] } else { &mut row.scales[g] };
                        if curve[lane] > 0.0 {
                            let new = fit.stored(*old + slope[lane] / curve[lane]);
                            let step = new - *old;
                            // The change of e M e^T.
                            if step * (step * curve[lane] - 2.0 * slope[lane]) < 0.0 {
                                moved[lane] = step;
                                *old = new;
                            }
                        }
                    }
                    for (j, value) in values.iter().enumerate() {
                        for i in 0..LANES {
                            scratch.errors[group + j][i] -= moved[i] * value[i];
                        }
                    }
                    for (product, change) in scratch.products[all.clone()].iter_mut().zip(&*changes) {
                        for i in 0..LANES {
                            product[i] -= moved[i] * change[i];
                        }
                    }
                }
            }
        }
    }
}

/// Whether scales of that layout can be refined one by one.
pub(super) fn refines(scales: &Scales) -> bool {
    matches!(scales, Scales::Row | Scales::Group { offset: Offset::None | Offset::Minimum, .. })
}

/// `(base + sum of entries times errors) / diagonal`.
struct Wanted<'a> {
    entries: &'a [f32],
    errors: &'a [Lane],
    base: &'a Lane,
    diagonal: f32,
}

impl Portable for Wanted<'_> {
    type Output = Lane;
    #[inline(always)]
    fn run(self) -> Lane {
        let mut sum = *self.base;
        for (r, error) in self.entries.iter().zip(self.errors) {
            for i in 0..LANES {
                sum[i] += r * error[i];
            }
        }
        sum.map(|s| s / self.diagonal)
    }
}

/// The nearest integers of `x + made_up`, and what they leave of x.
struct Nearest<'a> {
    fit: &'a Fit,
    steps: &'a Steps,
    inverse: &'a Lane,
    x: &'a Lane,
    made_up: &'a Lane,
}

impl Portable for Nearest<'_> {
    type Output = (Lane, Lane);
    #[inline(always)]
    fn run(self) -> (Lane, Lane) {
        let Nearest { fit, steps, inverse, x, made_up } = self;
        let (mut values, mut errors) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            let v = (x[i] + made_up[i] - steps.minimum[i]) * inverse[i];
            let v = if fit.signs { 1f32.copysign(v) } else { fit.range.nearest(v) };
            values[i] = v;
            errors[i] = x[i] - (steps.scale[i] * v + steps.minimum[i]);
        }
        (values, errors)
    }
}

/// For each column of a segment the sum over the columns before the segment.
struct Before<'a> {
    factor: &'a Factor,
    first: usize,
    errors: &'a [Lane],
    base: &'a mut [Lane],
}

impl Portable for Before<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Before { factor, first, errors, base } = self;
        for (n, base) in base.chunks_mut(4).enumerate() {
            let columns: [(usize, &[f32]); 4] =
                std::array::from_fn(|j| factor.column(first + 4 * n + j.min(base.len() - 1)));
            let mut sums = [[0.0f32; LANES]; 4];
            let start = columns[0].0;
            if columns.iter().all(|c| c.0 == start) && start < first {
                let len = first - start;
                let [a, b, c, d] = columns.map(|c| &c.1[..len]);
                for (k, error) in errors[start..first].iter().enumerate() {
                    for i in 0..LANES {
                        sums[0][i] += a[k] * error[i];
                        sums[1][i] += b[k] * error[i];
                        sums[2][i] += c[k] * error[i];
                        sums[3][i] += d[k] * error[i];
                    }
                }
            } else {
                for (sum, (start, column)) in sums.iter_mut().zip(columns) {
                    for k in start..first.max(start) {
                        for i in 0..LANES {
                            sum[i] += column[k - start] * errors[k][i];
                        }
                    }
                }
            }
            base.copy_from_slice(&sums[..base.len()]);
        }
    }
}

/// `out[k] = sum over j of M[k][first + j] factors[j]`, for every column k of a block.
struct Product<'a> {
    sums: &'a [f32],
    block: usize,
    first: usize,
    factors: &'a [Lane],
    out: &'a mut [Lane],
}

impl Portable for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Product { sums, block, first, factors, out } = self;
        for (row, out) in sums.chunks_exact(block).zip(out) {
            let mut sum = [0.0f32; LANES];
            for (m, factor) in row[first..].iter().zip(factors) {
                for i in 0..LANES {
                    sum[i] += m * factor[i];
                }
            }
            *out = sum;
        }
    }
}
