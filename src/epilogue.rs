//! What happens to an output after product and bias: the text of `docs/numerics.md`, section 6.
//!
//! ```text
//! RELU       v = y - threshold;  v where v > 0, else 0
//! RELU2      v = y where y > 0, else 0;  v v
//! SILU       y / (1 + e^-y)
//! GELU_ERF   (0.5 y) (1 + erf(y c))                              c = f32(1 / sqrt(2))
//! GELU_TANH  (0.5 y) (1 + tanh(c fma(a y^2, y, y)))              c = f32(sqrt(2 / pi)), a = 0.044715
//! ```
//! Every operation is one f32 rounding; exp, tanh and erf are those of `math`. A NaN stays a NaN; minus
//! infinity gives a NaN where the formula does (SILU and both GELU: 0 times infinity).

use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel::{self, Portable};
use crate::math::{erf, exp, tanh};

/// An epilogue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// `max(y - threshold, 0)`.
    Relu {
        /// What is taken from y first.
        threshold: f32,
    },
    /// `max(y, 0)^2`.
    Relu2,
    /// `y / (1 + e^-y)`.
    Silu,
    /// GELU by the error function.
    GeluErf,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
}

impl Epilogue {
    /// The epilogue of that number of `bl_epilogue`.
    pub fn from_number(number: u32, threshold: f32) -> Result<Epilogue> {
        if !threshold.is_finite() || threshold != 0.0 && number != 1 {
            return Err(fail!(
                InvalidArgument,
                "epilogue_threshold is {threshold}: a finite number with BL_EPILOGUE_RELU, else 0 expected"
            ));
        }
        Ok(match number {
            0 => Epilogue::None,
            1 => Epilogue::Relu { threshold },
            2 => Epilogue::Relu2,
            3 => Epilogue::Silu,
            4 => Epilogue::GeluErf,
            5 => Epilogue::GeluTanh,
            _ => return Err(fail!(Unsupported, "epilogue {number} is unknown to this library")),
        })
    }

    /// Its number in `bl_epilogue`.
    pub fn number(self) -> u32 {
        match self {
            Epilogue::None => 0,
            Epilogue::Relu { .. } => 1,
            Epilogue::Relu2 => 2,
            Epilogue::Silu => 3,
            Epilogue::GeluErf => 4,
            Epilogue::GeluTanh => 5,
        }
    }

    /// Applies it to every value.
    pub fn apply(self, isa: Isa, values: &mut [f32]) {
        if self != Epilogue::None {
            kernel::compiled(isa, Apply { epilogue: self, values });
        }
    }
}

/// 0 for what is not above it; a NaN stays.
#[inline(always)]
fn positive(v: f32) -> f32 {
    if v <= 0.0 { 0.0 } else { v }
}

struct Apply<'a> {
    epilogue: Epilogue,
    values: &'a mut [f32],
}

impl Portable for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let values = self.values;
        match self.epilogue {
            Epilogue::None => {}
            Epilogue::Relu { threshold } => values.iter_mut().for_each(|y| *y = positive(*y - threshold)),
            Epilogue::Relu2 => values.iter_mut().for_each(|y| {
                let v = positive(*y);
                *y = v * v;
            }),
            Epilogue::Silu => values.iter_mut().for_each(|y| *y /= 1.0 + exp(-*y)),
            Epilogue::GeluErf => values.iter_mut().for_each(|y| {
                *y = (0.5 * *y) * (1.0 + erf(*y * std::f32::consts::FRAC_1_SQRT_2));
            }),
            Epilogue::GeluTanh => values.iter_mut().for_each(|y| {
                const C: f32 = 0.797_884_6;
                let inner = C * (0.044_715 * (*y * *y)).mul_add(*y, *y);
                *y = (0.5 * *y) * (1.0 + tanh(inner));
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Epilogue; 6] = [
        Epilogue::Relu { threshold: 0.0 },
        Epilogue::Relu { threshold: 0.25 },
        Epilogue::Relu2,
        Epilogue::Silu,
        Epilogue::GeluErf,
        Epilogue::GeluTanh,
    ];

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let y: Vec<f32> =
            (0..=u32::MAX).step_by(300_007).map(f32::from_bits).filter(|y| !y.is_nan()).collect();
        for epilogue in ALL {
            let bits = |isa| {
                let mut values = y.clone();
                epilogue.apply(isa, &mut values);
                // The sign of a NaN is not fixed here: `MatrixMut::write` makes it canonical.
                let one = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
                values.iter().map(one).collect::<Vec<_>>()
            };
            let want = bits(Isa::Scalar);
            for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                assert!(bits(isa) == want, "{epilogue:?} {}", isa.name());
            }
        }
    }

    #[test]
    fn values_and_nan() {
        for epilogue in ALL {
            let mut v = [f32::NAN, 0.0, 3.0, -40.0];
            epilogue.apply(Isa::best(), &mut v);
            assert!(v[0].is_nan() && v[1] == 0.0 && v[3].abs() < 1e-15, "{epilogue:?}: {v:?}");
            let at_three = match epilogue {
                Epilogue::Relu { threshold } => 3.0 - threshold,
                Epilogue::Relu2 => 9.0,
                Epilogue::Silu => 3.0 / (1.0 + (-3.0f32).exp()),
                Epilogue::GeluErf => 2.995_950_3,
                _ => 2.996_363,
            };
            assert!((v[2] - at_three).abs() < 1e-6, "{epilogue:?}: {v:?}");
        }
    }

    #[test]
    fn numbers_round_trip() {
        for number in 0..6 {
            assert_eq!(Epilogue::from_number(number, 0.0).map(Epilogue::number).ok(), Some(number));
        }
        assert!(Epilogue::from_number(6, 0.0).is_err());
        assert!(Epilogue::from_number(1, f32::NAN).is_err() && Epilogue::from_number(3, 1.0).is_err());
        assert!(Epilogue::from_number(1, -2.5).is_ok());
    }
}
