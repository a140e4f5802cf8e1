//! AVX2 with FMA and F16C: 8 rows of W in a vector.

use crate::activation::{self, RowCodes, Rule, Shape};
use crate::kernel::Portable;

/// `activation::quantize_row`, compiled for this instruction set.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernel) fn quantize_row(x: &[f32], shape: &Shape, rule: &Rule, out: &mut RowCodes<'_>) -> bool {
    activation::quantize_row(x, shape, rule, out)
}

/// `kernel::Portable`, compiled for this instruction set.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::kernel) fn compiled<P: Portable>(work: P) -> P::Output {
    work.run()
}
