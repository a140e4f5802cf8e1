//! Kernels for x86-64, one folder for each instruction set.

pub(super) mod avx2;
pub(super) mod avx512vnni;
pub(super) mod avxvnni;
mod ymm;

/// The integer to take from a decoded code, as the decoders here make them: signs come out as 0 or 2,
/// table values plus 128.
pub(super) fn zero_point(coded: &crate::layout::Coded) -> i32 {
    match coded.values {
        crate::layout::Values::Offset(zero) => zero as i32,
        crate::layout::Values::Sign => 1,
        crate::layout::Values::Table(_) => 128,
    }
}
