//! Sub-scales multiplied into codes where both are small: 2 or 3 bits times what Q2_K (0 .. 15) and Q3_K (-32 .. 31)
//! have is a byte, and a super-block is then one sum of products, as a row with one scale is.
//!
//! ```text
//! table    one dword for each row of a panel: sub-scale * (code - zero) + base for the codes 0 .. 3; another for 4 .. 7
//! index    row of the dword's 128 bits * 4 + low two bits of the code
//! ```
//! The integers are those of sums that meet their sub-scales later: all of it is exact. Sub-scales of another
//! file may be larger: then a k-block stays as it is.

use core::arch::x86_64::*;

use super::records::Vectors;
use super::vector::*;
use crate::kernel::narrow::unrolled;
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::LINE;
use crate::layout::{Coded, PANEL, QUAD, SUPER_BLOCK, Scales, Values};

/// How products become bytes.
#[derive(Clone, Copy)]
pub(super) struct Fold {
    /// Sub-scales that do.
    low: i8,
    high: i8,
    /// What is added to each product, so that the least is 0.
    pub(super) base: i32,
    zero: i32,
    /// Whether there are codes above 3.
    wide: bool,
}

impl Fold {
    /// For codes of x that are signed.
    pub(super) fn of(coded: &Coded, bias: i32) -> Option<Fold> {
        if bias != 0
            || !matches!(coded.bits, 2 | 3)
            || !matches!(coded.scales, Scales::TwoLevel { .. })
            || !matches!(coded.values, Values::Offset(_))
        {
            return None;
        }
        let (zero, wide) = (zero_point(coded), coded.bits == 3);
        let most = (1 << coded.bits) - 1 - zero;
        if zero == 0 {
            return Some(Fold { low: 0, high: (255 / most).min(127) as i8, base: 0, zero, wide });
        }
        // Sub-scales of -s - 1 .. s: the least and the largest product with a code of -zero .. most.
        let ends = |s: i32| ((zero * s).max(most * (s + 1)), (most * s).max(zero * (s + 1)));
        let s = (0..127).rev().find(|&s| ends(s).0 + ends(s).1 <= 255)?;
        Some(Fold { low: (-s - 1) as i8, high: s as i8, base: ends(s).0, zero, wide })
    }

    /// Whether all these sub-scales, of whole panels, are small enough.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn fits(&self, subs: &[u8]) -> bool {
        let (mut low, mut high) = ([0i8; PANEL], [0i8; PANEL]);
        for subs in subs.as_chunks::<PANEL>().0 {
            for (i, &sc) in subs.iter().enumerate() {
                (low[i], high[i]) = (low[i].min(sc as i8), high[i].max(sc as i8));
            }
        }
        low.iter().all(|&sc| sc >= self.low) && high.iter().all(|&sc| sc <= self.high)
    }

    /// Multiplies the codes of a k-block by the sub-scales in its heads.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn apply<const NP: usize>(
        &self,
        codes: &mut [[u8; LINE]],
        heads: &[Vectors<NP>],
        groups: usize,
    ) {
        let quads = SUPER_BLOCK / QUAD / groups;
        let blocks = codes.as_chunks_mut::<NP>().0.chunks_exact_mut(quads * groups);
        for (codes, head) in blocks.zip(heads.chunks_exact(2 + 2 * groups)) {
            for (codes, subs) in codes.chunks_exact_mut(quads).zip(&head[2..]) {
                if self.wide {
                    self.group::<NP, true>(codes, subs);
                } else {
                    self.group::<NP, false>(codes, subs);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn group<const NP: usize, const WIDE: bool>(&self, codes: &mut [[[u8; LINE]; NP]], subs: &Vectors<NP>) {
        const ONES: i32 = 0x0101_0101;
        let base = _mm512_set1_epi32(self.base.wrapping_mul(ONES));
        let table = |codes: i32, sc: __m512i| {
            let products = _mm512_mullo_epi32(sc, _mm512_set1_epi32(codes - self.zero * ONES));
            _mm512_add_epi32(products, base)
        };
        let mut tables = [[_mm512_setzero_si512(); NP]; 2];
        unrolled!(NP, P => {
            // The low half has the sub-scale, whatever the high one has (`Short`).
            let sc = _mm512_castps_si512(floats(&subs[P], 0));
            let sc = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(sc));
            tables[0][P] = table(0x0302_0100, sc);
            if WIDE {
                tables[1][P] = table(0x0706_0504, sc);
            }
        });
        let rows = _mm512_broadcast_i32x4(_mm_set_epi32(3 * 4 * ONES, 2 * 4 * ONES, 4 * ONES, 0));
        for lines in codes {
            unrolled!(NP, P => {
                let code = line(&lines[P], 0);
                let index = _mm512_or_si512(_mm512_and_si512(code, _mm512_set1_epi8(3)), rows);
                let mut products = _mm512_shuffle_epi8(tables[0][P], index);
                if WIDE {
                    let above = _mm512_test_epi8_mask(code, _mm512_set1_epi8(4));
                    products = _mm512_mask_shuffle_epi8(products, above, tables[1][P], index);
                }
                put_line(&mut lines[P], 0, products);
            });
        }
    }
}
