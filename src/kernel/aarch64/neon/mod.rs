//! NEON, the base of AArch64: 4 rows of W in a vector; the text of the kernels is `kernel::narrow`.

use super::q as vector;
use crate::activation::Kind;
use crate::cpu::Isa;
use crate::kernel::narrow::{self, coded_kernels, dense_kernels, gemv_scratch};
use crate::kernel::{Kernel, LayoutKey, Scheme};
use crate::layout::Float;

mod float {
    crate::kernel::narrow::float!("neon");
}
mod float_few {
    crate::kernel::narrow::float_few!("neon", 16);
}
mod gemm {
    crate::kernel::narrow::gemm!("neon");
}
mod gemv {
    crate::kernel::narrow::gemv!("neon");
}
mod multiply {
    crate::kernel::narrow::multiply!("neon");
}

/// Products of bytes in 16 bits.
mod step {
    use core::arch::aarch64::*;

    use super::vector::{Bytes, Int};

    /// The products of the lower and of the upper two rows, each summed over the steps. `end` sums
    /// pairs of them in 16 bits too, so that `narrow::run` bounds both.
    pub(super) type Part = (int16x8_t, int16x8_t);

    /// What `step` adds to each wide code.
    pub(super) const BIAS: i32 = 0;

    /// Whether `full` matters.
    pub(super) const OTHER_WAY: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn begin(_acc: Int) -> Part {
        (vdupq_n_s16(0), vdupq_n_s16(0))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn step(part: Part, codes: Bytes, x: Bytes, _wide: bool, _full: bool) -> Part {
        let low = vmlal_s8(part.0, vget_low_s8(codes), vget_low_s8(x));
        (low, vmlal_high_s8(part.1, codes, x))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn end(acc: Int, part: Part, full: bool) -> Int {
        if full {
            // A pair of -128 * -128 is 2^15.
            let sums = vpaddq_s32(vpaddlq_s16(part.0), vpaddlq_s16(part.1));
            return vaddq_s32(acc, sums);
        }
        vpadalq_s16(acc, vpaddq_s16(part.0, part.1))
    }
}

static GEMV: [[Kernel; 6]; 8] =
    coded_kernels!(Neon, "_i8_neon_1x64\0", Integer, (1, 1), gemv_scratch, gemv::run);
static GEMM: [[Kernel; 6]; 8] = coded_kernels!(
    Neon,
    "_i8_neon_mx16\0",
    Integer,
    (multiply::ROWS, multiply::ROWS),
    narrow::gemm::scratch,
    gemm::run
);
static FLOAT: [[Kernel; 6]; 8] = coded_kernels!(
    Neon,
    "_f32_neon_mx16\0",
    Float,
    (narrow::float::ROWS, narrow::float::ROWS),
    narrow::float::scratch,
    float::run
);
static DENSE: [Kernel; 3] =
    dense_kernels!(Neon, "_f32_neon_mx16\0", narrow::float::ROWS, narrow::float::scratch, float::run);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] =
    &[GEMV.as_flattened(), GEMM.as_flattened(), FLOAT.as_flattened(), &DENSE];
