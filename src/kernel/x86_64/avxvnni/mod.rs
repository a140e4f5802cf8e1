//! AVX-VNNI: AVX2 with `vpdpbusd` on 256 bits. Everything but the step is AVX2's; so are the kernels
//! for float activations, and `quantize_row`.

use super::ymm as vector;
use crate::activation::Kind;
use crate::cpu::Isa;
use crate::kernel::narrow::{self, coded_kernels, gemv_scratch};
use crate::kernel::{Kernel, LayoutKey, Scheme};

mod gemm {
    crate::kernel::narrow::gemm!("avx2,fma,f16c,avxvnni");
}
mod gemv {
    crate::kernel::narrow::gemv!("avx2,fma,f16c,avxvnni");
}
mod multiply {
    crate::kernel::narrow::multiply!("avx2,fma,f16c,avxvnni");
}

/// Unsigned codes times signed x, four columns at a time, added to 32 bits.
pub(super) mod step {
    use core::arch::x86_64::*;

    use super::vector::{Bytes, Int, flipped};

    /// The sums themselves.
    pub(in crate::kernel::x86_64) type Part = Int;

    /// Wide codes are made unsigned by adding this. Of 8-bit ones the compiler then drops both flips.
    pub(in crate::kernel::x86_64) const BIAS: i32 = 128;

    /// Whether `full` matters.
    pub(in crate::kernel::x86_64) const OTHER_WAY: bool = false;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(in crate::kernel::x86_64) fn begin(acc: Int) -> Part {
        acc
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(in crate::kernel::x86_64) fn step(
        part: Part,
        codes: Bytes,
        x: Bytes,
        wide: bool,
        _full: bool,
    ) -> Part {
        _mm256_dpbusd_avx_epi32(part, if wide { flipped(codes) } else { codes }, x)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    pub(in crate::kernel::x86_64) fn end(_acc: Int, part: Part, _full: bool) -> Int {
        part
    }
}

static GEMV: [[Kernel; 6]; 8] =
    coded_kernels!(AvxVnni, "_i8_avxvnni_1x64\0", Integer, (1, 1), gemv_scratch, gemv::run);
static GEMM: [[Kernel; 6]; 8] = coded_kernels!(
    AvxVnni,
    "_i8_avxvnni_mx16\0",
    Integer,
    (multiply::ROWS, multiply::ROWS),
    narrow::gemm::scratch,
    gemm::run
);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] = &[GEMV.as_flattened(), GEMM.as_flattened()];

#[cfg(test)]
mod tests;
