//! AVX2 with FMA and F16C: 8 rows of W in a vector; the text of the kernels is `kernel::narrow`.

use super::ymm as vector;
use crate::activation::{self, Kind, RowCodes, Rule, Shape};
use crate::cpu::Isa;
use crate::kernel::narrow::{self, coded_kernels, dense_kernels, gemv_scratch};
use crate::kernel::{Kernel, LayoutKey, Portable, Scheme};
use crate::layout::Float;

mod bytes;
mod float {
    crate::kernel::narrow::float!("avx2,fma,f16c");
}
mod float_few {
    crate::kernel::narrow::float_few!("avx2,fma,f16c", 8);
}
mod gemm {
    crate::kernel::narrow::gemm!("avx2,fma,f16c");
}
pub(super) mod gemv {
    crate::kernel::narrow::gemv!("avx2,fma,f16c");
}
mod multiply;

/// Products of bytes in pairs, summed in 16 bits.
pub(super) mod step {
    use core::arch::x86_64::*;

    use super::vector::{Bytes, Int};

    /// 16 x i16: sums of pairs; of wide codes with a full x 8 x i32.
    pub(in crate::kernel::x86_64) type Part = __m256i;

    /// What `step` adds to each wide code.
    pub(in crate::kernel::x86_64) const BIAS: i32 = 0;

    /// Whether `full` matters.
    pub(in crate::kernel::x86_64) const OTHER_WAY: bool = true;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::kernel::x86_64) fn begin(_acc: Int) -> Part {
        _mm256_setzero_si256()
    }

    /// `vpmaddubsw` takes unsigned bytes times signed ones and saturates at 2^15. Codes of up to 6 bits
    /// are unsigned and too small for that (`narrow::run`). Wide ones give their sign to x where that is
    /// never -128: 2 * 128 * 127 is below 2^15. Where it may be, bytes are widened to 16 bits first.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::kernel::x86_64) fn step(
        part: Part,
        codes: Bytes,
        x: Bytes,
        wide: bool,
        full: bool,
    ) -> Part {
        if wide && full {
            let (low, high) = (widened::<true>(codes, x), widened::<false>(codes, x));
            return _mm256_add_epi32(part, _mm256_add_epi32(low, high));
        }
        let products = if wide {
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            _mm256_maddubs_epi16(codes, x)
        };
        _mm256_add_epi16(part, products)
    }

    /// Sums of pairs of products in 32 bits: of the even or of the odd bytes.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn widened<const EVEN: bool>(a: Bytes, b: Bytes) -> Int {
        let words = |v| _mm256_srai_epi16::<8>(if EVEN { _mm256_slli_epi16::<8>(v) } else { v });
        _mm256_madd_epi16(words(a), words(b))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::kernel::x86_64) fn end(acc: Int, part: Part, full: bool) -> Int {
        if full {
            return _mm256_add_epi32(acc, part);
        }
        _mm256_add_epi32(acc, _mm256_madd_epi16(part, _mm256_set1_epi16(1)))
    }
}

static GEMV: [[Kernel; 6]; 8] = {
    let mut kernels = coded_kernels!(Avx2, "_i8_avx2_1x64\0", Integer, (1, 1), gemv_scratch, gemv::run);
    assert!(is_bytes(&kernels[7][0].layout));
    kernels[7][0].run = bytes::run_row;
    kernels
};
static GEMM: [[Kernel; 6]; 8] = {
    let mut kernels = coded_kernels!(
        Avx2,
        "_i8_avx2_mx16\0",
        Integer,
        (multiply::ROWS, multiply::ROWS),
        narrow::gemm::scratch,
        gemm::run
    );
    assert!(is_bytes(&kernels[7][0].layout));
    (kernels[7][0].scratch, kernels[7][0].run) = (bytes::scratch, bytes::run);
    kernels
};

/// Whether [`bytes`] has kernels for it.
const fn is_bytes(layout: &LayoutKey) -> bool {
    matches!(layout, LayoutKey::Coded { bits: 8, scheme: Scheme::Row, .. })
}

static FLOAT: [[Kernel; 6]; 8] = coded_kernels!(
    Avx2,
    "_f32_avx2_mx16\0",
    Float,
    (narrow::float::ROWS, narrow::float::ROWS),
    narrow::float::scratch,
    float::run
);
static DENSE: [Kernel; 3] =
    dense_kernels!(Avx2, "_f32_avx2_mx16\0", narrow::float::ROWS, narrow::float::scratch, float::run);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] =
    &[GEMV.as_flattened(), GEMM.as_flattened(), FLOAT.as_flattened(), &DENSE];

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
