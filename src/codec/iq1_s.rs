//! ggml's IQ1_S: eight weights at a time from a book of 2048 ternary vectors, all shifted by 1/8.
//!
//! ```text
//! 50 bytes for 256 columns   d f16 | qs[32] | qh u16[8]
//! group g of 32 columns:     s = bits 12..15 of qh[g], delta = -1/8 where bit 15 is set, else 1/8
//!   eight columns l (0..4):  vector qs[4 g + l] + 256 * bits 3 l..3 l + 3 of qh[g]
//! w = d (2 s + 1) (vector + delta)
//! ```
//! The vector's elements -1, 0, 1 become 2-bit codes 0, 1, 2; the shift becomes a minimum:
//! `w = (d sc) v - (dmin mn)` with `sc = 2 s + 1`, `dmin = d / 8` and `mn = -sc` for a shift of +1/8,
//! `sc` for -1/8. That is the same number, not merely near it. `d` has at most 11 significant bits and
//! lies above 2^-24; `d sc` has at most 15, `dmin mn` the same number of bits three places lower, so
//! their sum `d sc (8 v +- 1) / 8` has at most 11 + 4 + 4 = 19: neither form ever rounds an f32
//! (24 bits, down to 2^-126). `dmin` of a subnormal `d` is no f16; so the layout's scales are f32.
//! One difference is left: in a block with `d = 0` all weights are zeros, but not of the same sign.
//!
//! Source: ggml `ggml-quants.c` (commit d99724f2), `dequantize_row_iq1_s`. Every bit pattern is legal.
//! Writing it needs an importance matrix and a search; it is not offered.

use super::blocks::{Blocks, half_at, super_blocks_with_minima};
use super::iq1_s_grid::GRID;
use crate::layout::{Coded, Layout, ScaleType, Scales, Values};
use crate::types::Type;

pub(super) static IQ1_S: Blocks = Blocks {
    ty: Type::Iq1S,
    layout: Layout::Coded(Coded {
        bits: 2,
        values: Values::Offset(1),
        scales: Scales::TwoLevel { len: 32, minimum: true },
        scale_type: ScaleType::F32,
        bases: 1,
    }),
    decode: |bytes, row| {
        for (block, minimum, sub_minimums) in super_blocks_with_minima::<50, 8>(bytes, row) {
            *block.scale = half_at(block.bytes, 0);
            *minimum = *block.scale * 0.125;
            let (qs, qh) = block.bytes[2..].split_at(32);
            let groups = block.codes.as_chunks_mut::<32>().0.iter_mut();
            for (g, ((codes, qs), qh)) in
                groups.zip(qs.as_chunks::<4>().0).zip(qh.as_chunks::<2>().0).enumerate()
            {
                let qh = u16::from_le_bytes(*qh);
                let scale = 2 * (qh >> 12 & 7) as i8 + 1;
                block.sub_scales[g] = scale;
                sub_minimums[g] = if qh >> 15 == 0 { -scale } else { scale };
                for (l, (codes, q)) in codes.as_chunks_mut::<8>().0.iter_mut().zip(qs).enumerate() {
                    let vector = GRID[*q as usize | ((qh >> (3 * l) & 7) as usize) << 8];
                    *codes = std::array::from_fn(|j| (vector >> (2 * j) & 3) as u8);
                }
            }
        }
    },
    encode: None,
    store: None,
};
