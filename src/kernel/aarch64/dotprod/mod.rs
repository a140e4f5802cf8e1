//! The dot products of Armv8.2: NEON with `sdot`. Everything but the step is NEON's; so are the kernels
//! for float activations.

use super::q as vector;
use crate::activation::Kind;
use crate::cpu::Isa;
use crate::kernel::narrow::{self, coded_kernels, gemv_scratch};
use crate::kernel::{Kernel, LayoutKey, Scheme};

mod gemm {
    crate::kernel::narrow::gemm!("neon,dotprod");
}
mod gemv {
    crate::kernel::narrow::gemv!("neon,dotprod");
}
mod multiply {
    crate::kernel::narrow::multiply!("neon,dotprod");
}

/// Signed bytes times signed bytes, four columns at a time, added to 32 bits.
pub(super) mod step {
    use super::vector::{Bytes, Int};

    /// The sums themselves.
    pub(in crate::kernel::aarch64) type Part = Int;

    /// What `step` adds to each wide code.
    pub(in crate::kernel::aarch64) const BIAS: i32 = 0;

    /// Whether `full` matters.
    pub(in crate::kernel::aarch64) const OTHER_WAY: bool = false;

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    pub(in crate::kernel::aarch64) fn begin(acc: Int) -> Part {
        acc
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    pub(in crate::kernel::aarch64) fn step(
        mut part: Part,
        codes: Bytes,
        x: Bytes,
        _wide: bool,
        _full: bool,
    ) -> Part {
        // SAFETY: an instruction of this set on registers. (The intrinsic is unstable.)
        unsafe {
            core::arch::asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) part, in(vreg) codes, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        part
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    pub(in crate::kernel::aarch64) fn end(_acc: Int, part: Part, _full: bool) -> Int {
        part
    }
}

static GEMV: [[Kernel; 6]; 8] =
    coded_kernels!(DotProd, "_i8_dotprod_1x64\0", Integer, (1, 1), gemv_scratch, gemv::run);
static GEMM: [[Kernel; 6]; 8] = coded_kernels!(
    DotProd,
    "_i8_dotprod_mx16\0",
    Integer,
    (multiply::ROWS, multiply::ROWS),
    narrow::gemm::scratch,
    gemm::run
);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] = &[GEMV.as_flattened(), GEMM.as_flattened()];
