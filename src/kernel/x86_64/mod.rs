//! Kernels for x86-64, one folder for each instruction set.

pub(super) mod avx2;
pub(super) mod avx512vnni;
pub(super) mod avxvnni;
mod ymm;

/// Schemes of scales as const generic arguments (enums cannot be ones yet).
pub(super) mod scheme {
    pub(in crate::kernel) const ROW: u8 = 0;
    pub(in crate::kernel) const GROUP: u8 = 1;
    pub(in crate::kernel) const GROUP_MINIMUM: u8 = 2;
    pub(in crate::kernel) const GROUP_ZERO: u8 = 3;
    pub(in crate::kernel) const TWO_LEVEL: u8 = 4;
    pub(in crate::kernel) const TWO_LEVEL_MINIMUM: u8 = 5;
}

/// The integer to take from a decoded code, as the decoders here make them: signs come out as 0 or 2,
/// table values plus 128.
pub(super) fn zero_point(coded: &crate::layout::Coded) -> i32 {
    match coded.values {
        crate::layout::Values::Offset(zero) => zero as i32,
        crate::layout::Values::Sign => 1,
        crate::layout::Values::Table(_) => 128,
    }
}
