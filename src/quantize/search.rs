//! Scales by search: for groups of weights, the scale (and minimum) under which the nearest codes leave
//! the least weighted square error.
//!
//! ```text
//! symmetric   w ~ s q        candidates 1/s near the one that maps the largest magnitude to the end of
//!                            the codes; for each, codes q = round(w / s), then s = (w . q) / (q . q)
//! affine      w ~ s q + m    the same with codes of (w - m) / s, then s and m of least squares
//! two-level   w ~ (d sc_j) q - (dmin mn_j): every sub-block alone, then its integers sc_j and mn_j
//!             under the shared d and dmin, each tried one up and one down; then d and dmin of least
//!             squares; what does not make the error less is dropped
//! ```
//! The weighted square error is `sum_k importance_k (w_k - its value)^2`. Sixteen groups are searched
//! side by side, one in each lane, so that nothing is added up across lanes; every instruction set
//! compiles the same text (`kernel::compiled`). Sums may be fused or not: a search's result is what
//! its codes say, not how it was found.

use half::f16;

use crate::cpu::Isa;
use crate::kernel::{self, Portable};
use crate::layout::SUPER_BLOCK;

/// Groups that are searched side by side.
pub(super) const LANES: usize = 16;
/// One number of each group.
pub(super) type Lane = [f32; LANES];

/// 1.5 * 2^23: adding it rounds to an integer.
const ROUND: f32 = 12_582_912.0;

/// Integers that codes stand for, from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Range {
    pub(super) low: f32,
    pub(super) high: f32,
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lane {
    std::array::from_fn(f)
}

/// The nearest integer in the range.
#[inline(always)]
fn nearest(v: f32, range: Range) -> f32 {
    let v = if v > range.low { v } else { range.low };
    let v = if v < range.high { v } else { range.high };
    (v + ROUND) - ROUND
}

/// `a / b`, 0 where b is not above 0.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[inline(always)]
fn inverse(a: f32) -> f32 {
    if a == 0.0 { 0.0 } else { 1.0 / a }
}

/// The scales of symmetric groups: `x[k][lane]`, `importance[k][lane]`.
pub(super) fn symmetric(isa: Isa, x: &[Lane], importance: &[Lane], range: Range) -> Lane {
    kernel::compiled(isa, Symmetric { x, importance, range })
}

struct Symmetric<'a> {
    x: &'a [Lane],
    importance: &'a [Lane],
    range: Range,
}

impl Portable for Symmetric<'_> {
    type Output = Lane;
    #[inline(always)]
    fn run(self) -> Lane {
        scales(self.x, self.importance, self.range)
    }
}

/// `w . q` and `q . q` of the codes under `1 / scale`.
#[inline(always)]
fn products(x: &[Lane], importance: &[Lane], inverse: &Lane, range: Range) -> (Lane, Lane) {
    let (mut xq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    for (x, importance) in x.iter().zip(importance) {
        for i in 0..LANES {
            let q = nearest(x[i] * inverse[i], range);
            let wq = importance[i] * q;
            xq[i] += wq * x[i];
            qq[i] += wq * q;
        }
    }
    (xq, qq)
}

#[inline(always)]
fn scales(x: &[Lane], importance: &[Lane], range: Range) -> Lane {
    let (mut extreme, mut sum) = ([0.0f32; LANES], [0.0f32; LANES]);
    for x in x {
        for i in 0..LANES {
            extreme[i] = if x[i].abs() > extreme[i].abs() { x[i] } else { extreme[i] };
            sum[i] += x[i].abs();
        }
    }
    let ternary = range.high == 1.0;
    // Where the codes reach one further below zero, the largest magnitude lies there.
    let reach = if range.low < -range.high { range.low } else { range.high };
    let start = match ternary {
        true => each(|i| inverse(sum[i]) * x.len() as f32),
        false => each(|i| inverse(extreme[i])),
    };
    let (mut best, mut found) = ([0.0f32; LANES], [0.0f32; LANES]);
    for step in 0..19 {
        // Ternary: thresholds 1 / 2 s of 0.3 to 1.2 times the mean. Else the end of the codes, and
        // up to 0.9 below and above.
        let factor = match ternary {
            true => 0.5 / (0.3 + 0.05 * step as f32),
            false => reach + reach.signum() * 0.1 * (step as f32 - 9.0),
        };
        let (xq, qq) = products(x, importance, &each(|i| start[i] * factor), range);
        for i in 0..LANES {
            let gain = ratio(xq[i] * xq[i], qq[i]);
            let better = gain > best[i];
            best[i] = if better { gain } else { best[i] };
            found[i] = if better { xq[i] / qq[i] } else { found[i] };
        }
    }
    // Codes of the scale found, and the scale of these codes: never worse.
    for _ in 0..2 {
        let (xq, qq) = products(x, importance, &each(|i| inverse(found[i])), range);
        for i in 0..LANES {
            let gain = ratio(xq[i] * xq[i], qq[i]);
            found[i] = if gain > best[i] { xq[i] / qq[i] } else { found[i] };
            best[i] = if gain > best[i] { gain } else { best[i] };
        }
    }
    found
}

/// Scales and minima of affine groups with the codes 0..=levels; `below`: minima are not above 0.
pub(super) fn affine(isa: Isa, x: &[Lane], importance: &[Lane], levels: f32, below: bool) -> (Lane, Lane) {
    kernel::compiled(isa, Affine { x, importance, levels, below })
}

struct Affine<'a> {
    x: &'a [Lane],
    importance: &'a [Lane],
    levels: f32,
    below: bool,
}

impl Portable for Affine<'_> {
    type Output = (Lane, Lane);
    #[inline(always)]
    fn run(self) -> (Lane, Lane) {
        affines(self.x, self.importance, self.levels, self.below)
    }
}

#[inline(always)]
fn affines(x: &[Lane], importance: &[Lane], levels: f32, below: bool) -> (Lane, Lane) {
    let range = Range { low: 0.0, high: levels };
    let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (mut sw, mut sx) = ([0.0f32; LANES], [0.0f32; LANES]);
    for (x, w) in x.iter().zip(importance) {
        for i in 0..LANES {
            min[i] = if x[i] < min[i] { x[i] } else { min[i] };
            max[i] = if x[i] > max[i] { x[i] } else { max[i] };
            sw[i] += w[i];
            sx[i] += w[i] * x[i];
        }
    }
    if below {
        min = each(|i| if min[i] < 0.0 { min[i] } else { 0.0 });
    }
    let span = each(|i| inverse(if max[i] > min[i] { max[i] - min[i] } else { 0.0 }));
    let mut scale = each(|i| (max[i] - min[i]).max(0.0) / levels);
    let mut minimum = min;
    // What is left of the error without the constant sum of w x^2: less is better.
    let mut best = [f32::INFINITY; LANES];
    for step in 0..23 {
        // The whole span over levels - 1 .. levels + 1, then twice over what was found.
        let (inverse, offset) = if step < 21 {
            (each(|i| span[i] * (levels - 1.0 + 0.1 * step as f32)), min)
        } else {
            (each(|i| inverse(scale[i])), minimum)
        };
        let (mut sq, mut sqq, mut sxq) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for (x, w) in x.iter().zip(importance) {
            for i in 0..LANES {
                let q = nearest((x[i] - offset[i]) * inverse[i], range);
                let wq = w[i] * q;
                sq[i] += wq;
                sqq[i] += wq * q;
                sxq[i] += wq * x[i];
            }
        }
        for i in 0..LANES {
            let determinant = sw[i] * sqq[i] - sq[i] * sq[i];
            let sure = determinant > 1e-6 * sw[i] * sqq[i];
            let (s, m) = (
                (sw[i] * sxq[i] - sx[i] * sq[i]) / determinant,
                (sqq[i] * sx[i] - sq[i] * sxq[i]) / determinant,
            );
            let free = sure && !(below && m > 0.0);
            let s = if free { s } else { ratio(sxq[i], sqq[i]) };
            let m = if free { m } else { 0.0 };
            let error = s * (s * sqq[i] + 2.0 * (m * sq[i] - sxq[i])) + m * (m * sw[i] - 2.0 * sx[i]);
            let better = error < best[i] && s > 0.0;
            best[i] = if better { error } else { best[i] };
            scale[i] = if better { s } else { scale[i] };
            minimum[i] = if better { m } else { minimum[i] };
        }
    }
    (scale, minimum)
}

/// A two-level format.
#[derive(Clone, Copy, Debug)]
pub(super) struct TwoLevel {
    /// What codes stand for.
    pub(super) range: Range,
    /// The integer scales; where they have a sign, the largest becomes `low`.
    pub(super) scales: Range,
    /// Largest integer minimum; 0: the format has none.
    pub(super) minima: f32,
}

/// The scales of one or two super-blocks: each has `LANES / blocks` sub-blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Super {
    /// `d` of each super-block, an f16.
    pub(super) scale: [f32; 2],
    /// `dmin` of each super-block, an f16.
    pub(super) minimum: [f32; 2],
    /// `sc` of each sub-block.
    pub(super) scales: Lane,
    /// `mn` of each sub-block.
    pub(super) minima: Lane,
}

/// The scales of super-blocks; a sub-block in each lane, `x[k][lane]`.
pub(super) fn two_level(isa: Isa, x: &[Lane], importance: &[Lane], format: TwoLevel) -> Super {
    kernel::compiled(isa, Supers { x, importance, format })
}

struct Supers<'a> {
    x: &'a [Lane],
    importance: &'a [Lane],
    format: TwoLevel,
}

/// Errors and sums of one choice of integers, for each lane.
struct Sums {
    /// Of `(w - value)^2`.
    error: Lane,
    /// With `a = sc q` and `b = mn`, of: a a, a b, b b, a w, b w.
    products: [Lane; 5],
}

impl Supers<'_> {
    /// Under the scales `s` and minima `m` of the lanes, which are `d sc` and `dmin mn`.
    #[inline(always)]
    fn error(&self, s: &Lane, m: &Lane) -> Lane {
        let inverse = each(|i| inverse(s[i]));
        let mut error = [0.0f32; LANES];
        for (x, w) in self.x.iter().zip(self.importance) {
            for i in 0..LANES {
                let q = nearest((x[i] + m[i]) * inverse[i], self.format.range);
                let left = s[i] * q - m[i] - x[i];
                error[i] += w[i] * left * left;
            }
        }
        error
    }

    #[inline(always)]
    fn sums(&self, s: &Lane, m: &Lane, sc: &Lane, mn: &Lane) -> Sums {
        let inverse = each(|i| inverse(s[i]));
        let mut error = [0.0f32; LANES];
        let mut products = [[0.0f32; LANES]; 5];
        for (x, w) in self.x.iter().zip(self.importance) {
            for i in 0..LANES {
                let q = nearest((x[i] + m[i]) * inverse[i], self.format.range);
                let left = s[i] * q - m[i] - x[i];
                error[i] += w[i] * left * left;
                let a = sc[i] * q;
                let (wa, wb) = (w[i] * a, w[i] * mn[i]);
                products[0][i] += wa * a;
                products[1][i] += wa * mn[i];
                products[2][i] += wb * mn[i];
                products[3][i] += wa * x[i];
                products[4][i] += wb * x[i];
            }
        }
        Sums { error, products }
    }
}

/// f32 rounded to f16; what is beyond it becomes its largest.
fn half(v: f32) -> f32 {
    let half = f16::from_f32(v);
    if half.is_infinite() { f16::MAX.to_f32().copysign(v) } else { half.to_f32() }
}

impl Portable for Supers<'_> {
    type Output = Super;
    #[inline(always)]
    fn run(self) -> Super {
        let TwoLevel { range, scales: limits, minima: most } = self.format;
        // Sub-blocks of 16 fill the lanes with one super-block, sub-blocks of 32 with two.
        let width = SUPER_BLOCK / self.x.len();
        let (scale, minimum) = if most > 0.0 {
            let (scale, minimum) = affines(self.x, self.importance, range.high, true);
            (scale, each(|i| -minimum[i]))
        } else {
            (scales(self.x, self.importance, range), [0.0; LANES])
        };
        let mut found = Super::default();
        let (mut d, mut dmin) = ([0.0f32; LANES], [0.0f32; LANES]);
        for b in 0..LANES / width {
            let lanes = b * width..(b + 1) * width;
            let largest = |values: &Lane| {
                values[lanes.clone()].iter().fold(0.0f32, |a, v| if v.abs() > a.abs() { *v } else { a })
            };
            let reach = if limits.low < 0.0 { limits.low } else { limits.high };
            d[lanes.clone()].fill(half(largest(&scale) / reach));
            dmin[lanes.clone()].fill(if most > 0.0 { half(largest(&minimum) / most) } else { 0.0 });
        }
        let minima = Range { low: 0.0, high: most };
        let mut sc = each(|i| nearest(scale[i] * inverse(d[i]), limits));
        let mut mn = each(|i| nearest(minimum[i] * inverse(dmin[i]), minima));
        for round in 0..2 {
            // Each integer one down and one up. The error is a smooth valley in both, so that the
            // two are tried together.
            let mut best = self.error(&each(|i| d[i] * sc[i]), &each(|i| dmin[i] * mn[i]));
            let (sc_was, mn_was) = (sc, mn);
            for (a, b) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, 1.0), (-1.0, -1.0)] {
                if b != 0.0 && most == 0.0 {
                    continue;
                }
                let clamp = |v: f32, range: Range| v.max(range.low).min(range.high);
                let (sc_new, mn_new) =
                    (each(|i| clamp(sc_was[i] + a, limits)), each(|i| clamp(mn_was[i] + b, minima)));
                let error = self.error(&each(|i| d[i] * sc_new[i]), &each(|i| dmin[i] * mn_new[i]));
                for i in 0..LANES {
                    let better = error[i] < best[i];
                    best[i] = if better { error[i] } else { best[i] };
                    sc[i] = if better { sc_new[i] } else { sc[i] };
                    mn[i] = if better { mn_new[i] } else { mn[i] };
                }
            }
            // Least squares for d and dmin; kept where the error, with codes anew, is less.
            let now = self.sums(&each(|i| d[i] * sc[i]), &each(|i| dmin[i] * mn[i]), &sc, &mn);
            let (mut d_new, mut dmin_new) = (d, dmin);
            let total = |lane: &Lane, b: usize| lane[b * width..(b + 1) * width].iter().sum::<f32>();
            for b in 0..LANES / width {
                let [aa, ab, bb, ax, bx] = std::array::from_fn(|n| total(&now.products[n], b));
                let determinant = aa * bb - ab * ab;
                let mut fit = (ratio(ax, aa), 0.0);
                if determinant > 1e-6 * aa * bb {
                    let both = ((ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant);
                    if both.1 > 0.0 {
                        fit = both;
                    }
                }
                d_new[b * width..(b + 1) * width].fill(half(fit.0));
                dmin_new[b * width..(b + 1) * width].fill(half(fit.1));
            }
            let then = self.error(&each(|i| d_new[i] * sc[i]), &each(|i| dmin_new[i] * mn[i]));
            let mut moved = false;
            for b in 0..LANES / width {
                if total(&then, b) < total(&now.error, b) {
                    let lanes = b * width..(b + 1) * width;
                    d[lanes.clone()].copy_from_slice(&d_new[lanes.clone()]);
                    dmin[lanes.clone()].copy_from_slice(&dmin_new[lanes]);
                    moved = true;
                }
            }
            if !moved || round == 1 {
                break;
            }
        }
        for b in 0..LANES / width {
            found.scale[b] = d[b * width];
            found.minimum[b] = dmin[b * width];
        }
        found.scales = sc;
        found.minima = mn;
        found
    }
}
