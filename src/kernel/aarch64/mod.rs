//! Kernels for AArch64, one folder for each instruction set; their text is `kernel::narrow`.

pub(super) mod dotprod;
pub(super) mod i8mm;
pub(super) mod neon;
mod q;
