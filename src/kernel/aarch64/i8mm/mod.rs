//! The matrix products of Armv8.6, for several rows of x: `smmla` multiplies 2 x 8 bytes with 8 x 2.
//! One row of x is dotprod's.

// A register tile is indexed by row and part; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use super::dotprod::step;
use super::q as vector;
use crate::activation::Kind;
use crate::cpu::Isa;
use crate::kernel::narrow::{self, coded_kernels};
use crate::kernel::{Kernel, LayoutKey, Scheme};

mod gemm {
    crate::kernel::narrow::gemm!("neon,dotprod,i8mm");
}

mod multiply {
    use core::arch::aarch64::*;

    use super::step;
    use super::vector::*;
    use crate::kernel::narrow;
    use crate::layout::QUAD;
    use crate::layout::packed::LINE;

    /// Most rows of a panel of x.
    pub(super) const ROWS: usize = 4;

    /// `acc[i][h] += codes . x` over whole quads. Two quads of two rows make an operand: quads of the
    /// same four rows are zipped by lanes of 32 bits. What is left over, an odd row of x or an odd quad,
    /// goes through `sdot`.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn multiply_group<const MR: usize, const WIDE: bool>(
        codes: &[u8],
        x: &[i8],
        full: bool,
        acc: &mut [[Int; PARTS]; MR],
    ) {
        let (lines, _) = codes.as_chunks::<LINE>();
        let (pairs, last) = lines.as_chunks::<2>();
        let (x_pairs, x_last) = x.split_at(pairs.len() * 2 * MR * QUAD);
        // [pair of rows of x][rows of W 0-1, 2-3, ...]: two rows of W times two of x each.
        let mut sums = [[[ints(0); 2]; PARTS]; MR];
        for (w, x) in pairs.iter().zip(x_pairs.chunks_exact(2 * MR * QUAD)) {
            let (x, _) = x.as_chunks::<QUAD>();
            let mut rows = [ints(0); MR];
            for i in 0..MR / 2 {
                let first = two(x[2 * i], x[2 * i + 1]);
                rows[i] = zip(first, two(x[MR + 2 * i], x[MR + 2 * i + 1])).0;
            }
            for h in 0..PARTS {
                let (a, b) = (load(&w[0], h), load(&w[1], h));
                let (low, high) = zip(as_lanes(a), as_lanes(b));
                for i in 0..MR / 2 {
                    sums[i][h][0] = smmla(sums[i][h][0], low, rows[i]);
                    sums[i][h][1] = smmla(sums[i][h][1], high, rows[i]);
                }
                if MR % 2 == 1 {
                    let i = MR - 1;
                    acc[i][h] = step::step(acc[i][h], a, quad_of(x.as_flattened(), i), WIDE, full);
                    acc[i][h] = step::step(acc[i][h], b, quad_of(x.as_flattened(), MR + i), WIDE, full);
                }
            }
        }
        for i in 0..MR / 2 {
            for h in 0..PARTS {
                let [low, high] = sums[i][h];
                acc[2 * i][h] = add_ints(acc[2 * i][h], vuzp1q_s32(low, high));
                acc[2 * i + 1][h] = add_ints(acc[2 * i + 1][h], vuzp2q_s32(low, high));
            }
        }
        if let [line] = last {
            for i in 0..MR {
                for h in 0..PARTS {
                    acc[i][h] = step::step(acc[i][h], load(line, h), quad_of(x_last, i), WIDE, full);
                }
            }
        }
    }

    narrow::multiply_groups!("neon,dotprod,i8mm");

    /// A quad of each of two rows of x.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn two(a: [i8; QUAD], b: [i8; QUAD]) -> Int {
        let lane = |q: [i8; QUAD]| u32::from_le_bytes(q.map(|q| q as u8)) as u64;
        vreinterpretq_s32_u64(vdupq_n_u64(lane(a) | lane(b) << 32))
    }

    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn as_lanes(v: Bytes) -> Int {
        vreinterpretq_s32_s8(v)
    }

    /// Lanes of two vectors by turns: of their lower and of their upper halves.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn zip(a: Int, b: Int) -> (Int, Int) {
        (vzip1q_s32(a, b), vzip2q_s32(a, b))
    }

    /// `sums[r][c] += a[r] . b[c]` for two rows of 8 bytes each.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn smmla(mut sums: Int, a: Int, b: Int) -> Int {
        // SAFETY: an instruction of this set on registers. (The intrinsic is unstable.)
        unsafe {
            core::arch::asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
                inout(vreg) sums, in(vreg) a, in(vreg) b,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
}

static GEMM: [[Kernel; 6]; 8] = coded_kernels!(
    I8mm,
    "_i8_i8mm_mx16\0",
    Integer,
    (multiply::ROWS, multiply::ROWS),
    narrow::gemm::scratch,
    gemm::run
);

pub(in crate::kernel) static KERNELS: &[&[Kernel]] = &[GEMM.as_flattened()];
