//! exp, tanh and erf in f32, at most 2 ulp from the real value, the same bits on every machine; sums and means.
//!
//! Each function is straight-line arithmetic: fused multiply-adds, one division, selections by
//! comparison. Nothing depends on the vector width, so that a loop over one of them gives the same
//! bits however a compiler vectorises it; each instruction set compiles this text
//! (`kernel::compiled`). A NaN gives a NaN.
//!
//! ```text
//! exp   x = n ln 2 + r, |r| <= ln 2 / 2;  e^r = 1 + (r + r^2 Q(r));  times 2^n in two factors, so that
//!       subnormal results round once
//! tanh  |x| < 0.625: x + x z T(z), z = x^2;  else 1 - 2 / (1 + e^(2|x|)) with the sign of x
//! erf   |x| < 1:     x + x E(x^2);           else 1 - e^(-P(|x|)) with the sign of x, |x| cut at 4
//! ```
//! The polynomials are weighted minimax fits made for this file (Lawson's iteration, coefficients
//! rounded to f32 one after another, lowest degree first). Relative errors of the fits alone: Q 2^-28,
//! T 2^-27.7, E 2^-29, P 2^-29. Largest errors measured over all f32 are in the tests below.

/// 1.5 * 2^23: adding it rounds to an integer, half to even, and leaves it in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 as a sum of two f32.
const LN2: (f32, f32) = (std::f32::consts::LN_2, -1.904_654_3e-9);

/// `c[0] + z (c[1] + z (...))`.
#[inline(always)]
fn polynomial<const N: usize>(z: f32, c: &[f32; N]) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(z, c[i]);
    }
    sum
}

/// 2^n, -126 <= n <= 127; some number for any other n.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const Q: [f32; 5] = [0.499_999_94, 0.166_665_21, 0.041_668_277, 0.008_368_687, 0.001_381_982_6];
    // Past these the result is an infinity, or 0, of itself. A NaN passes both.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2.1, n.mul_add(-LN2.0, x));
    let p = (r * r).mul_add(polynomial(r, &Q), r) + 1.0;
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    const T: [f32; 5] = [-0.333_332_8, 0.133_314_06, -0.053_736_515, 0.020_628_167, -0.005_692_296];
    let a = x.abs();
    let z = x * x;
    let small = (x * z).mul_add(polynomial(z, &T), x);
    let large = 1.0 - 2.0 / (1.0 + exp(a + a));
    (if a < 0.625 { small } else { large }).copysign(x)
}

/// The error function.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const E: [f32; 7] = [
        0.128_379_17,
        -0.376_126_26,
        0.112_835_79,
        -0.026_853_347,
        0.005_187_162,
        -0.000_799_785_3,
        0.000_078_069_03,
    ];
    const P: [f32; 7] = [
        0.000_227_656_65,
        1.127_544_3,
        0.637_402_2,
        0.103_739_575,
        -0.022_134_79,
        0.003_020_200_9,
        -0.000_193_599_22,
    ];
    let a = x.abs();
    let small = x.mul_add(polynomial(x * x, &E), x);
    let cut = if a > 4.0 { 4.0 } else { a };
    let large = 1.0 - exp(-polynomial(cut, &P));
    (if a < 1.0 { small } else { large }).copysign(x)
}

/// 16 interleaved partial sums and a pairwise tree: `docs/numerics.md`, section 7. `add(p, v)` is p with v.
#[inline(always)]
pub fn sum(row: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut p = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            p[i] = add(p[i], chunk[i]);
        }
    }
    for (p, v) in p.iter_mut().zip(rest) {
        *p = add(*p, *v);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            p[i] += p[i + width];
        }
    }
    p[0]
}

/// The mean of magnitudes, taken in one after the other, however they are cut.
///
/// Up to [`Mean::RUN`] values it is the tools' own, to the last bit: a sum in f32, in order, over the count. A sum of more would
/// stop growing long before the end of a tensor (of 2^24 weights it is short by percents), so runs of so many are added in
/// f64; and so is a run that is beyond f32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    runs: f64,
    run: f32,
    exact: f64,
    count: u64,
}

impl Mean {
    /// Values that are added in f32.
    pub const RUN: u64 = 4096;

    /// Takes what `of` says of values in.
    #[inline]
    pub fn add(&mut self, values: &[f32], of: impl Fn(f32) -> f32) {
        let mut rest = values;
        while !rest.is_empty() {
            let room = Self::RUN - self.count % Self::RUN;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            for v in now {
                self.run += of(*v);
                self.exact += of(*v) as f64;
            }
            (self.count, rest) = (self.count + now.len() as u64, later);
            if self.count.is_multiple_of(Self::RUN) {
                self.runs += self.of_run();
                (self.run, self.exact) = (0.0, 0.0);
            }
        }
    }

    /// Takes the magnitudes of values in.
    pub fn add_magnitudes(&mut self, values: &[f32]) {
        self.add(values, f32::abs);
    }

    fn of_run(&self) -> f64 {
        if self.run.is_finite() { self.run as f64 } else { self.exact }
    }

    /// The mean; 0 of nothing.
    pub fn value(&self) -> f32 {
        let count = self.count.max(1);
        match self.count < Self::RUN && self.run.is_finite() {
            true => self.run / count as f32,
            false => ((self.runs + self.of_run()) / count as f64) as f32,
        }
    }

    /// The mean magnitude of some values.
    pub fn of(values: &[f32]) -> f32 {
        let mut mean = Mean::default();
        mean.add_magnitudes(values);
        mean.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_sixteen_partials_and_a_tree() {
        // Values that round differently in every other order.
        let x: Vec<f32> = (0..40).map(|k| if k % 3 == 0 { 1e8 } else { -(k as f32) * 1.7 }).collect();
        let mut p = [0.0f32; 16];
        for (k, v) in x.iter().enumerate() {
            p[k % 16] += v;
        }
        let q: Vec<f32> = (0..8).map(|i| p[i] + p[i + 8]).collect();
        let want = ((q[0] + q[4]) + (q[2] + q[6])) + ((q[1] + q[5]) + (q[3] + q[7]));
        assert_eq!(sum(&x, |p, v| p + v).to_bits(), want.to_bits());
    }
    use crate::cpu::Isa;
    use crate::kernel;

    /// erf in f64: its Taylor series, or the continued fraction of erfc.
    fn erf_f64(x: f64) -> f64 {
        let a = x.abs();
        if a < 2.5 {
            let (mut term, mut sum, mut n) = (a, a, 0.0);
            while term.abs() > 1e-18 * sum {
                n += 1.0;
                term *= -a * a / n;
                sum += term / (2.0 * n + 1.0);
            }
            return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
        }
        let fraction = (1..=60).rev().fold(a, |f, k| a + k as f64 / 2.0 / f);
        (1.0 - (-a * a).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    /// Units in the last place of the f32 nearest to `real` by which `got` misses it.
    fn ulps(got: f32, real: f64) -> f64 {
        let near = real as f32;
        if got.is_infinite() || near.is_infinite() {
            return if got == near { 0.0 } else { f64::INFINITY };
        }
        let a = near.abs().max(f32::MIN_POSITIVE);
        let unit = f32::from_bits(a.to_bits() & 0x7f80_0000) as f64 / 8_388_608.0;
        (got as f64 - real).abs() / unit
    }

    fn worst(step: usize, f: fn(f32) -> f32, real: fn(f64) -> f64) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for bits in (0..=u32::MAX).step_by(step) {
            let x = f32::from_bits(bits);
            let got = f(x);
            if x.is_nan() {
                assert!(got.is_nan());
                continue;
            }
            let error = ulps(got, real(x as f64));
            assert!(!error.is_nan(), "{x}: {got}");
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    fn check(step: usize) {
        let exp = worst(step, exp, f64::exp);
        let tanh = worst(step, tanh, f64::tanh);
        let erf = worst(step, erf, erf_f64);
        println!("largest errors in ulp, at: exp {exp:?}, tanh {tanh:?}, erf {erf:?}");
        assert!(exp.0 <= 2.0 && tanh.0 <= 2.0 && erf.0 <= 2.0);
    }

    #[test]
    fn errors_are_at_most_two_ulp() {
        check(1009); // a prime: every exponent, mantissas everywhere
    }

    #[test]
    #[ignore = "all of f32: minutes"]
    fn errors_are_at_most_two_ulp_everywhere() {
        check(1);
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!([exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY), exp(-110.0)], [1.0, 1.0, 0.0, 0.0]);
        assert_eq!([exp(f32::INFINITY), exp(89.0)], [f32::INFINITY; 2]);
        assert_eq!(
            [tanh(f32::INFINITY), tanh(-20.0), erf(f32::NEG_INFINITY), erf(5.0)],
            [1.0, -1.0, -1.0, 1.0]
        );
        for f in [tanh, erf] {
            assert_eq!(f(0.0).to_bits(), 0);
            assert_eq!(f(-0.0).to_bits(), 0x8000_0000);
        }
    }

    /// All three over a slice.
    struct All<'a>(&'a [f32], &'a mut [[f32; 3]]);

    impl kernel::Portable for All<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            for (x, y) in self.0.iter().zip(self.1) {
                *y = [exp(*x), tanh(*x), erf(*x)];
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> =
            (0..=u32::MAX).step_by(40_009).map(f32::from_bits).filter(|x| !x.is_nan()).collect();
        let bits = |isa| {
            let mut y = vec![[0.0; 3]; x.len()];
            kernel::compiled(isa, All(&x, &mut y));
            y.into_iter().map(|y| y.map(f32::to_bits)).collect::<Vec<_>>()
        };
        let want = bits(Isa::Scalar);
        for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
            assert!(bits(isa) == want, "{}", isa.name());
        }
    }
}
