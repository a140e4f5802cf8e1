//! AVX-512 with VNNI: 16 rows of W in a vector, `vpdpbusd` of 4 columns at a time.

pub(in crate::kernel) mod few;
mod float;
mod float_few;
mod fold;
mod gemm;
mod gemv;
mod records;
mod vector;

use crate::activation::{self, Kind, RowCodes, Rule, Shape};
use crate::cpu::Isa;
use crate::kernel::narrow::{coded_kernels, dense_kernels, gemv_scratch};
use crate::kernel::{Kernel, LayoutKey, Portable, Scheme};
use crate::layout::Float;

static GEMV: [[Kernel; 6]; 8] =
    coded_kernels!(Avx512Vnni, "_i8_avx512vnni_1x64\0", Integer, (1, 1), gemv_scratch, gemv::run);
static GEMM: [[Kernel; 6]; 8] = coded_kernels!(
    Avx512Vnni,
    "_i8_avx512vnni_mx64\0",
    Integer,
    (gemm::ROWS, gemm::ROWS),
    gemm::scratch,
    gemm::run
);
static FEW: [[Kernel; 6]; 7] = coded_kernels!(@ Avx512Vnni, "_i8_avx512vnni_8x64\0", Integer,
    (few::ROWS, few::ROWS), few::scratch, few::run,
    1 false "w1", 2 false "w2", 3 false "w3", 4 false "w4", 5 false "w5", 6 false "w6", 8 false "w8");
static FLOAT: [[Kernel; 6]; 8] = coded_kernels!(
    Avx512Vnni,
    "_f32_avx512vnni_mx32\0",
    Float,
    (float::ROWS, float::ROWS),
    float::scratch,
    float::run
);
static DENSE: [Kernel; 3] =
    dense_kernels!(Avx512Vnni, "_f32_avx512vnni_mx32\0", float::ROWS, float::scratch, float::run);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] =
    &[GEMV.as_flattened(), GEMM.as_flattened(), FLOAT.as_flattened(), &DENSE];

/// Kernels for batches of few rows, where layouts are those of `few::takes`.
pub(in crate::kernel) static FEW_KERNELS: &[&[Kernel]] = &[FEW.as_flattened()];

/// `activation::quantize_row`, compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::kernel) fn quantize_row(x: &[f32], shape: &Shape, rule: &Rule, out: &mut RowCodes<'_>) -> bool {
    activation::quantize_row(x, shape, rule, out)
}

/// `kernel::Portable`, compiled for this instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
pub(in crate::kernel) fn compiled<P: Portable>(work: P) -> P::Output {
    work.run()
}
