//! AVX-512 with VNNI: 16 rows of W in a vector, `vpdpbusd` of 4 columns at a time.

mod float;
mod gemm;
mod gemv;
mod vector;

use crate::activation::{self, Kind, RowCodes, Rule, Shape};
use crate::cpu::Isa;
use crate::kernel::{Kernel, LayoutKey, Portable, Scheme};
use crate::layout::Float;

use super::scheme;

/// The kernels of one code width under every scheme of scales.
macro_rules! coded {
    ($bits:literal, $table:literal, $w:literal) => {
        [
            coded!(@ $bits, $table, $w, "r", scheme::ROW, Row, gemm::ROWS_SINGLE),
            coded!(@ $bits, $table, $w, "g", scheme::GROUP, Group, gemm::ROWS),
            coded!(@ $bits, $table, $w, "gm", scheme::GROUP_MINIMUM, GroupMinimum, gemm::ROWS),
            coded!(@ $bits, $table, $w, "gz", scheme::GROUP_ZERO, GroupZero, gemm::ROWS),
            coded!(@ $bits, $table, $w, "k", scheme::TWO_LEVEL, TwoLevel, gemm::ROWS),
            coded!(@ $bits, $table, $w, "km", scheme::TWO_LEVEL_MINIMUM, TwoLevelMinimum, gemm::ROWS),
        ]
    };
    (@ $bits:literal, $table:literal, $w:literal, $s:literal, $scheme:expr, $variant:ident, $mr:expr) => {
        [
            Kernel {
                name: concat!($w, $s, "_i8_avx512vnni_1x64\0"),
                isa: Isa::Avx512Vnni,
                layout: LayoutKey::Coded { bits: $bits, table: $table, scheme: Scheme::$variant },
                activation: Kind::Integer,
                mr: 1,
                scratch: |_, _| 0,
                run: |job| {
                    // SAFETY: `kernel::run` checked that the CPU has this instruction set.
                    Ok(unsafe { gemv::run::<$bits, $table, { $scheme }>(job) })
                },
            },
            Kernel {
                name: concat!($w, $s, "_i8_avx512vnni_mx32\0"),
                isa: Isa::Avx512Vnni,
                layout: LayoutKey::Coded { bits: $bits, table: $table, scheme: Scheme::$variant },
                activation: Kind::Integer,
                mr: $mr,
                scratch: gemm::scratch,
                run: |job| {
                    // SAFETY: as above.
                    Ok(unsafe { gemm::run::<$bits, $table, { $scheme }>(job) })
                },
            },
            Kernel {
                name: concat!($w, $s, "_f32_avx512vnni_mx32\0"),
                isa: Isa::Avx512Vnni,
                layout: LayoutKey::Coded { bits: $bits, table: $table, scheme: Scheme::$variant },
                activation: Kind::Float,
                mr: float::ROWS,
                scratch: float::scratch,
                run: |job| {
                    // SAFETY: as above.
                    Ok(unsafe { float::run_coded::<$bits, $table, { $scheme }>(job) })
                },
            },
        ]
    };
}

macro_rules! dense {
    ($float:ident, $name:literal) => {
        Kernel {
            name: concat!($name, "_f32_avx512vnni_mx32\0"),
            isa: Isa::Avx512Vnni,
            layout: LayoutKey::Dense(Float::$float),
            activation: Kind::Float,
            mr: float::ROWS,
            scratch: float::scratch,
            run: |job| {
                // SAFETY: `kernel::run` checked that the CPU has this instruction set.
                Ok(unsafe { float::run_dense(job, Float::$float) })
            },
        }
    };
}

static CODED: [[[Kernel; 3]; 6]; 8] = [
    coded!(1, false, "w1"),
    coded!(2, false, "w2"),
    coded!(3, false, "w3"),
    coded!(4, false, "w4"),
    coded!(4, true, "t4"),
    coded!(5, false, "w5"),
    coded!(6, false, "w6"),
    coded!(8, false, "w8"),
];
static DENSE: [Kernel; 3] = [dense!(F32, "f32"), dense!(F16, "f16"), dense!(Bf16, "bf16")];

pub(in crate::kernel) static KERNELS: &[&[Kernel]] = &[CODED.as_flattened().as_flattened(), &DENSE];

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
