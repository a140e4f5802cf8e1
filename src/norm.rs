//! Norms in front of a layer: the text of `docs/numerics.md`, section 7.
//!
//! ```text
//! sum(v)   16 partial sums, column k into p[k mod 16] in ascending order; then p[i] += p[i + 8] for
//!          i < 8, p[i] += p[i + 4] for i < 4, then 2, then 1; the sum is p[0]
//! RMS      r = 1 / sqrt(sum(x^2) / n + epsilon)                 squares by p = fma(x, x, p)
//!          y = (x r) w
//! LAYER    mean = sum(x) / n;  d = x - mean;  r = 1 / sqrt(sum(d^2) / n + epsilon)
//!          y = (d r) w + b                                      fma(d r, w, b)
//! ```
//! Every other operation is one f32 rounding; the root and the divisions are IEEE's. Without weight or
//! bias the step is left out. A NaN or an infinity in x makes at least one NaN in y. Rows whose sum of
//! squares overflows an f32 give zeros, as the formula does.
//!
//! The partial sums are what a vector register holds, so that one text serves every instruction set.

use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel::{self, Portable};
use crate::math::sum;
use crate::memory::copied;

/// Which norm; the numbers are those of `bl_norm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Mean and variance of the row.
    Layer = 1,
    /// Root of the mean square.
    Rms = 2,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 2] = [Kind::Layer, Kind::Rms];
}

/// A norm as a caller gives it.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// Which.
    pub kind: Kind,
    /// Added to the mean square: finite, not negative.
    pub epsilon: f32,
    /// `in_features` factors.
    pub weight: Option<&'a [f32]>,
    /// `in_features` values to add.
    pub bias: Option<&'a [f32]>,
}

/// A norm with its own copies of the parameters.
pub struct Norm {
    kind: Kind,
    epsilon: f32,
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl PartialEq for Norm {
    /// Whether both give the same bits.
    fn eq(&self, other: &Norm) -> bool {
        let same = |a: &Option<Vec<f32>>, b: &Option<Vec<f32>>| match (a, b) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.len() == b.len()
                    && a.iter().zip(b).fold(0, |d, (a, b)| d | (a.to_bits() ^ b.to_bits())) == 0
            }
            _ => false,
        };
        self.kind == other.kind
            && self.epsilon.to_bits() == other.epsilon.to_bits()
            && same(&self.weight, &other.weight)
            && same(&self.bias, &other.bias)
    }
}

impl Norm {
    /// Checks and copies.
    pub fn new(spec: &Spec<'_>, in_features: usize) -> Result<Norm> {
        if !(spec.epsilon >= 0.0 && spec.epsilon.is_finite()) {
            return Err(fail!(
                InvalidArgument,
                "norm_epsilon is {}: a finite number from 0 on expected",
                spec.epsilon
            ));
        }
        let copy = |values: Option<&[f32]>, what: &str| match values {
            None => Ok(None),
            Some(v) if v.len() == in_features => copied(v, what).map(Some),
            Some(v) => {
                Err(fail!(InvalidArgument, "{what} has {} values, the layer {in_features} inputs", v.len()))
            }
        };
        Ok(Norm {
            kind: spec.kind,
            epsilon: spec.epsilon,
            weight: copy(spec.weight, "norm_weight")?,
            bias: copy(spec.bias, "norm_bias")?,
        })
    }

    /// The parameters, as they were given.
    pub fn spec(&self) -> Spec<'_> {
        Spec {
            kind: self.kind,
            epsilon: self.epsilon,
            weight: self.weight.as_deref(),
            bias: self.bias.as_deref(),
        }
    }

    /// Bytes of the parameters.
    pub fn bytes(&self) -> usize {
        [&self.weight, &self.bias].into_iter().flatten().map(|v| v.len() * 4).sum()
    }

    /// Normalises a row in place.
    pub fn apply(&self, isa: Isa, row: &mut [f32]) {
        kernel::compiled(isa, Apply { spec: self.spec(), row });
    }
}

struct Apply<'a> {
    spec: Spec<'a>,
    row: &'a mut [f32],
}

impl Portable for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Apply { spec, row } = self;
        let n = row.len() as f32;
        if spec.kind == Kind::Layer {
            let mean = sum(row, |p, v| p + v) / n;
            row.iter_mut().for_each(|v| *v -= mean);
        }
        let squares = sum(row, |p, v| v.mul_add(v, p));
        let r = 1.0 / (squares / n + spec.epsilon).sqrt();
        match (spec.weight, spec.bias) {
            (None, None) => row.iter_mut().for_each(|v| *v *= r),
            (Some(w), None) => row.iter_mut().zip(w).for_each(|(v, w)| *v = *v * r * w),
            (None, Some(b)) => row.iter_mut().zip(b).for_each(|(v, b)| *v = *v * r + b),
            (Some(w), Some(b)) => {
                row.iter_mut().zip(w).zip(b).for_each(|((v, w), b)| *v = (*v * r).mul_add(*w, *b));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|k| ((k * 7919 + 13) % 1009) as f32 / 300.0 - 1.4).collect()
    }

    /// The formula in f64.
    fn real(spec: &Spec<'_>, x: &[f32]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = if spec.kind == Kind::Layer { x.iter().map(|&v| v as f64).sum::<f64>() / n } else { 0.0 };
        let square = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (square + spec.epsilon as f64).sqrt();
        let one = |k: usize, v: f32| {
            let w = spec.weight.map_or(1.0, |w| w[k] as f64);
            (v as f64 - mean) * r * w + spec.bias.map_or(0.0, |b| b[k] as f64)
        };
        x.iter().enumerate().map(|(k, &v)| one(k, v)).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits_and_f64_agrees() -> Result<()> {
        for n in [1, 2, 15, 16, 17, 31, 33, 64, 300, 4096] {
            let (x, w, b) = (row(n), row(n), row(n).into_iter().map(|v| v * 0.5).collect::<Vec<_>>());
            for kind in Kind::ALL {
                for (weight, bias) in
                    [(None, None), (Some(&w[..]), None), (None, Some(&b[..])), (Some(&w[..]), Some(&b[..]))]
                {
                    let spec = Spec { kind, epsilon: 1e-5, weight, bias };
                    let norm = Norm::new(&spec, n)?;
                    let mut want = x.clone();
                    norm.apply(Isa::Scalar, &mut want);
                    for (got, real) in want.iter().zip(real(&spec, &x)) {
                        assert!(
                            (*got as f64 - real).abs() <= 1e-5 * (1.0 + real.abs()),
                            "{kind:?} {n}: {got} {real}"
                        );
                    }
                    for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                        let mut got = x.clone();
                        norm.apply(isa, &mut got);
                        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits(&got), bits(&want), "{} {kind:?} {n}", isa.name());
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn one_nan_or_infinity_leaves_a_nan() -> Result<()> {
        for kind in Kind::ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let weight = vec![0.0; 20];
                let norm = Norm::new(&Spec { kind, epsilon: 1e-6, weight: Some(&weight), bias: None }, 20)?;
                let mut x = row(20);
                x[7] = bad;
                norm.apply(Isa::best(), &mut x);
                assert!(x.iter().any(|v| v.is_nan()), "{kind:?} {bad}");
            }
        }
        Ok(())
    }

    #[test]
    fn wrong_parameters_are_named() {
        let spec = Spec { kind: Kind::Rms, epsilon: f32::NAN, weight: None, bias: None };
        assert!(Norm::new(&spec, 4).is_err_and(|e| e.text().contains("norm_epsilon")));
        let spec = Spec { kind: Kind::Rms, epsilon: 0.0, weight: Some(&[1.0; 3]), bias: None };
        assert!(Norm::new(&spec, 4).is_err_and(|e| e.text().contains("norm_weight has 3 values")));
    }
}
