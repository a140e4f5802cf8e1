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
//! compiles the same two loops, and the rest is here once.

use half::f16;

use super::compiled;
use crate::cpu::Isa;
use crate::kernel::Portable;
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

impl Range {
    /// The nearest integer in the range.
    #[inline(always)]
    pub(super) fn nearest(self, v: f32) -> f32 {
        let v = if v > self.low { v } else { self.low };
        let v = if v < self.high { v } else { self.high };
        (v + ROUND) - ROUND
    }
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lane {
    std::array::from_fn(f)
}

/// `a / b`, 0 where b is not above 0.
fn ratio(a: f32, b: f32) -> f32 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn inverse(a: f32) -> f32 {
    if a == 0.0 { 0.0 } else { 1.0 / a }
}

/// A power of two p, so that p |a| is 1 to 2 for all but the least floats: multiplying with it is exact.
fn inverse_power_of_two(a: f32) -> f32 {
    let exponent = (a.to_bits() >> 23 & 0xff).clamp(1, 253);
    f32::from_bits((254 - exponent) << 23)
}

/// Groups to search: `x[k][lane]` and what each weight counts, `importance[k][lane]`.
#[derive(Clone, Copy)]
pub(super) struct Groups<'a> {
    pub(super) isa: Isa,
    pub(super) x: &'a [Lane],
    pub(super) importance: &'a [Lane],
    /// What codes stand for.
    pub(super) range: Range,
}

/// The codes q of `(x - offset) inverse`, and the sums of w q, w q q and w x q.
struct Products<'a> {
    groups: Groups<'a>,
    offset: &'a Lane,
    inverse: &'a Lane,
}

impl Portable for Products<'_> {
    type Output = [Lane; 3];
    #[inline(always)]
    fn run(self) -> [Lane; 3] {
        let Products { groups: Groups { x, importance, range, .. }, offset, inverse } = self;
        let (mut sq, mut sqq, mut sxq) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        for (x, w) in x.iter().zip(importance) {
            for i in 0..LANES {
                let q = range.nearest((x[i] - offset[i]) * inverse[i]);
                let wq = w[i] * q;
                sq[i] += wq;
                sqq[i] += wq * q;
                sxq[i] += wq * x[i];
            }
        }
        [sq, sqq, sxq]
    }
}

/// The error that `scale q + minimum` leaves with the nearest codes.
struct Errors<'a> {
    groups: Groups<'a>,
    scale: &'a Lane,
    minimum: &'a Lane,
}

impl Portable for Errors<'_> {
    type Output = Lane;
    #[inline(always)]
    fn run(self) -> Lane {
        let Errors { groups: Groups { x, importance, range, .. }, scale, minimum } = self;
        let inverse = each(|i| if scale[i] == 0.0 { 0.0 } else { 1.0 / scale[i] });
        let mut error = [0.0f32; LANES];
        for (x, w) in x.iter().zip(importance) {
            for i in 0..LANES {
                let q = range.nearest((x[i] - minimum[i]) * inverse[i]);
                let left = scale[i] * q + minimum[i] - x[i];
                error[i] += w[i] * left * left;
            }
        }
        error
    }
}

impl Groups<'_> {
    fn products(&self, offset: &Lane, inverse: &Lane) -> [Lane; 3] {
        compiled(self.isa, Products { groups: *self, offset, inverse })
    }

    fn errors(&self, scale: &Lane, minimum: &Lane) -> Lane {
        compiled(self.isa, Errors { groups: *self, scale, minimum })
    }

    /// Scales of symmetric groups.
    pub(super) fn symmetric(&self) -> Lane {
        let Groups { x, range, .. } = *self;
        let (mut extreme, mut sum) = ([0.0f32; LANES], [0.0f32; LANES]);
        for x in x {
            for i in 0..LANES {
                extreme[i] = if x[i].abs() > extreme[i].abs() { x[i] } else { extreme[i] };
                sum[i] += x[i].abs();
            }
        }
        let unit = each(|i| inverse_power_of_two(extreme[i]));
        let ternary = range.high == 1.0;
        // Where the codes reach one further below zero, the largest magnitude lies there.
        let reach = if range.low < -range.high { range.low } else { range.high };
        let start = each(|i| if ternary { inverse(sum[i]) * x.len() as f32 } else { inverse(extreme[i]) });
        let (mut best, mut found) = ([0.0f32; LANES], [0.0f32; LANES]);
        for step in 0..21 {
            // Ternary: thresholds 1 / 2 s of 0.3 to 1.2 times the mean. Else the end of the codes,
            // and up to 0.9 below and above.
            let factor = match ternary {
                true => 0.5 / (0.3 + 0.05 * step as f32),
                false => reach + reach.signum() * 0.1 * (step as f32 - 9.0),
            };
            // Last, twice, the codes of the scale found, and the scale of these: never worse.
            let inverses = each(|i| if step < 19 { start[i] * factor } else { inverse(found[i]) });
            let [_, qq, xq] = self.products(&[0.0; LANES], &inverses);
            for i in 0..LANES {
                // In units near the largest magnitude: squares of very small and large weights are not floats.
                let xq_of_unit = xq[i] * unit[i];
                let gain = ratio(xq_of_unit * xq_of_unit, qq[i]);
                if gain > best[i] {
                    (best[i], found[i]) = (gain, xq[i] / qq[i]);
                }
            }
        }
        found
    }

    /// Scales and minima of affine groups, whose codes begin at 0; `below`: minima are not above 0.
    pub(super) fn affine(&self, below: bool) -> (Lane, Lane) {
        let Groups { x, importance, range: Range { high: levels, .. }, .. } = *self;
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
        for step in 0..13 {
            // The whole span over levels - 1 .. levels + 1, then twice over what was found.
            let (inverses, offset) = if step < 11 {
                (each(|i| span[i] * (levels - 1.0 + 0.2 * step as f32)), min)
            } else {
                (each(|i| inverse(scale[i])), minimum)
            };
            let [sq, sqq, sxq] = self.products(&offset, &inverses);
            for i in 0..LANES {
                let determinant = sw[i] * sqq[i] - sq[i] * sq[i];
                let sure = determinant > 1e-6 * sw[i] * sqq[i];
                let mut s = (sw[i] * sxq[i] - sx[i] * sq[i]) / determinant;
                let mut m = (sqq[i] * sx[i] - sq[i] * sxq[i]) / determinant;
                if !sure || below && m > 0.0 {
                    (s, m) = (ratio(sxq[i], sqq[i]), 0.0);
                }
                let error = s * (s * sqq[i] + 2.0 * (m * sq[i] - sxq[i])) + m * (m * sw[i] - 2.0 * sx[i]);
                if error < best[i] && s > 0.0 {
                    (best[i], scale[i], minimum[i]) = (error, s, m);
                }
            }
        }
        (scale, minimum)
    }
}

/// A two-level format.
#[derive(Clone, Copy, Debug)]
pub(super) struct TwoLevel {
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
    /// A scale beyond f16, where a super-block wants one.
    pub(super) beyond: [Option<f32>; 2],
}

/// f32 rounded to f16; what is beyond it becomes its largest.
fn half(v: f32) -> f32 {
    let half = f16::from_f32(v);
    if half.is_infinite() { f16::MAX.to_f32().copysign(v) } else { half.to_f32() }
}

/// The integers of a choice, and the scales that they are multiplied with.
#[derive(Clone, Copy)]
struct Choice {
    d: Lane,
    dmin: Lane,
    sc: Lane,
    mn: Lane,
}

impl Choice {
    fn scale(&self) -> Lane {
        each(|i| self.d[i] * self.sc[i])
    }
    fn minimum(&self) -> Lane {
        each(|i| -(self.dmin[i] * self.mn[i]))
    }
}

impl Groups<'_> {
    /// The scales of super-blocks; a sub-block in each lane.
    pub(super) fn two_level(&self, format: TwoLevel) -> Super {
        let TwoLevel { scales: limits, minima: most, .. } = format;
        // Sub-blocks of 16 fill the lanes with one super-block, sub-blocks of 32 with two.
        let width = SUPER_BLOCK / self.x.len();
        let (scale, minimum) = match most > 0.0 {
            true => self.affine(true),
            false => (self.symmetric(), [0.0; LANES]),
        };
        let lanes = |b: usize| b * width..(b + 1) * width;
        let (mut d, mut dmin, mut beyond) = ([0.0f32; LANES], [0.0f32; LANES], [None; 2]);
        for b in 0..LANES / width {
            let largest = |values: &Lane| {
                values[lanes(b)].iter().fold(0.0f32, |a, v| if v.abs() > a.abs() { *v } else { a })
            };
            let reach = if limits.low < 0.0 { limits.low } else { limits.high };
            let (scale, minimum) = (largest(&scale) / reach, -largest(&minimum) / most.max(1.0));
            beyond[b] = [scale, minimum].into_iter().find(|s| f16::from_f32(*s).is_infinite());
            d[lanes(b)].fill(half(scale));
            dmin[lanes(b)].fill(if most > 0.0 { half(minimum) } else { 0.0 });
        }
        let minima = Range { low: 0.0, high: most };
        let mut now = Choice {
            d,
            dmin,
            sc: each(|i| limits.nearest(scale[i] * inverse(d[i]))),
            mn: each(|i| minima.nearest(-minimum[i] * inverse(dmin[i]))),
        };
        let total = |lane: &Lane, b: usize| lane[lanes(b)].iter().sum::<f32>();
        let (mut sw, mut sx) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (x, w) in self.x.iter().zip(self.importance) {
            for i in 0..LANES {
                sw[i] += w[i];
                sx[i] += w[i] * x[i];
            }
        }
        let mut best = self.errors(&now.scale(), &now.minimum());
        for _ in 0..2 {
            // Each integer one down and one up. The error is a smooth valley in both, so that the two
            // also move together.
            let was = now;
            for (a, b) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, 1.0), (-1.0, -1.0)] {
                if b != 0.0 && most == 0.0 {
                    continue;
                }
                let clamp = |v: f32, range: Range| v.max(range.low).min(range.high);
                let (sc, mn) =
                    (each(|i| clamp(was.sc[i] + a, limits)), each(|i| clamp(was.mn[i] + b, minima)));
                let tried = Choice { sc, mn, ..was };
                let error = self.errors(&tried.scale(), &tried.minimum());
                for i in 0..LANES {
                    if error[i] < best[i] {
                        (best[i], now.sc[i], now.mn[i]) = (error[i], sc[i], mn[i]);
                    }
                }
            }
            // Least squares for d and dmin; kept where the error, with codes anew, is less.
            let [sq, sqq, sxq] = self.products(&now.minimum(), &now.scale().map(inverse));
            let mut tried = now;
            for b in 0..LANES / width {
                let sum = |f: &dyn Fn(usize) -> f32| lanes(b).map(f).sum::<f32>();
                let aa = sum(&|i| now.sc[i] * now.sc[i] * sqq[i]);
                let ab = sum(&|i| now.sc[i] * now.mn[i] * sq[i]);
                let bb = sum(&|i| now.mn[i] * now.mn[i] * sw[i]);
                let ax = sum(&|i| now.sc[i] * sxq[i]);
                let bx = sum(&|i| now.mn[i] * sx[i]);
                let determinant = aa * bb - ab * ab;
                let mut fit = (ratio(ax, aa), 0.0);
                if determinant > 1e-6 * aa * bb {
                    let both = ((ax * bb - ab * bx) / determinant, (ab * ax - aa * bx) / determinant);
                    if both.1 > 0.0 {
                        fit = both;
                    }
                }
                tried.d[lanes(b)].fill(half(fit.0));
                tried.dmin[lanes(b)].fill(half(fit.1));
            }
            let error = self.errors(&tried.scale(), &tried.minimum());
            let mut moved = false;
            for b in 0..LANES / width {
                if total(&error, b) < total(&best, b) {
                    for i in lanes(b) {
                        (now.d[i], now.dmin[i], best[i]) = (tried.d[i], tried.dmin[i], error[i]);
                    }
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
        let mut found = Super { scales: now.sc, minima: now.mn, beyond, ..Super::default() };
        for b in 0..LANES / width {
            (found.scale[b], found.minimum[b]) = (now.d[b * width], now.dmin[b * width]);
        }
        found
    }
}
