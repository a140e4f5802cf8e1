//! Several rows of x: a block of weights is decoded to bytes once and reused by every row.
//!
//! ```text
//! block   [quad][NP panels][64 bytes]      codes of a k-block as unsigned bytes, in L1
//! ```
//! Weights with one scale for each row: a tile's four panels are taken together: 6 rows of x x 4 panels are 24 sums in
//! registers, 4 vectors of codes, one of x. Each quad costs 4 loads of weights and 6 broadcasts for 24 `vpdpbusd`. Limit: two
//! `vpdpbusd` a cycle. While a panel of x is multiplied, a part of the next block is asked for (`Ahead`). Groups and
//! super-blocks have a loop of their own (`records`).
//!
//! Sums rest in the output between k-blocks, so that their order does not depend on the size of a block.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::records;
use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::{Ahead, split};
use crate::kernel::narrow::{Units, for_rows, for_width, gemv_scratch, unit_lines, unit_quads, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{Coded, Layout, PANEL, Packed, QUAD, ScaleType, Scales, TILE, TILE_PANELS, Values};

/// Most rows of a panel of x.
pub(super) const ROWS: usize = 6;
/// Columns of a k-block where weights have one scale: 32 KiB of bytes.
const BLOCK: usize = 512;

pub(super) fn scratch(packed: &Packed, rows: usize) -> usize {
    let own = match packed.layout() {
        Layout::Coded(Coded { scales: Scales::Row, .. }) => BLOCK.min(packed.geometry().padded()) * TILE + 64,
        _ => records::scratch(packed),
    };
    own.max(gemv_scratch(packed, rows)) // `gemv::run` may come to do the work
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
        return Ok(());
    };
    if x.mr == 1 {
        return super::gemv::run(job); // another layer of the call takes its rows one by one
    }
    if coded.scales != Scales::Row {
        records::run(job, x, coded);
        return Ok(());
    }
    let tile = job.packed.tile(job.tile);
    let mut first = 0;
    while first < tile.panels {
        let mut work = Work { packed: job.packed, coded, tile, first, x, rows: job.rows, out: job.out };
        first += match tile.panels - first {
            TILE_PANELS.. => work.row::<TILE_PANELS>(job.scratch),
            _ => work.row::<2>(job.scratch),
        };
    }
    Ok(())
}

/// Some panels of W times the batch.
struct Work<'a, 'o> {
    packed: &'a Packed,
    coded: &'a Coded,
    tile: Tile<'a>,
    first: usize,
    x: Codes<'a>,
    rows: usize,
    out: &'o mut [f32],
}

/// The panels of a tile, `NP` at a time. What is missing in the last bundle is its last panel again: the results of that are
/// written to lanes of the output that nobody reads.
pub(super) fn bundles<const NP: usize>(panels: usize) -> impl Iterator<Item = [usize; NP]> {
    (0..panels).step_by(NP).map(move |first| std::array::from_fn(|p| (first + p).min(panels - 1)))
}

/// Sums of the products of a group that fit 16 bits: then `vpdpwssd` multiplies them with their sub-scales and
/// adds in one operation, where 32 bits take three.
///
/// Codes are centred: `sum (w - centre) x` fits where `sum (w - zero) x` does not for 4 bits of 0..15, and
/// `(centre - zero) sum x` is added, sub-scale by sub-scale, two groups at a time.
#[derive(Clone, Copy)]
pub(super) struct Short {
    pub(super) centre: i32,
}

impl Short {
    /// Where codes of x are at most 127 in magnitude, and those of W allow it.
    pub(super) fn of(coded: &Coded, bias: i32) -> Option<Short> {
        let Scales::TwoLevel { len, .. } = coded.scales else { return None };
        if bias != 0 || coded.bits > 6 || matches!(coded.values, Values::Table(_)) {
            return None;
        }
        let most = if coded.bits == 1 { 2 } else { (1 << coded.bits) - 1 };
        let fits = |centre: i32| {
            let largest = centre.max(most - centre).max(centre - zero_point(coded));
            largest * 127 * len as i32 <= i16::MAX as i32
        };
        [zero_point(coded), most / 2 + 1].into_iter().find(|&c| fits(c)).map(|centre| Short { centre })
    }
}

/// Decodes units into quads of `NP` panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn decode<const NP: usize>(coded: &Coded, units: &Units<'_>, block: &mut [u8]) {
    let table = table(coded);
    for_width!(coded, decode_width[NP](units, table, block))
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn decode_width<const BITS: u8, const TABLE: bool, const NP: usize>(
    units: &Units<'_>,
    table: __m512i,
    block: &mut [u8],
) {
    let (at, stride) = (units.at, units.stride);
    let mut blocks = block.chunks_exact_mut(unit_quads(BITS) * NP * LINE);
    for record in units.bytes.chunks(units.record) {
        for (u, block) in record[units.head..].chunks_exact(units.unit).zip(&mut blocks) {
            for k in 0..unit_lines(BITS) {
                for p in 0..NP {
                    prefetch(u, 2048 + at + k * stride + p * LINE);
                }
            }
            // All panels of a tile: every offset is a constant.
            if NP == TILE_PANELS {
                let lines = &u.as_chunks::<LINE>().0.as_chunks::<NP>().0[..unit_lines(BITS)];
                unrolled!(unit_quads(BITS), I => unrolled!(NP, P => {
                    let codes = quad_of::<BITS, TABLE>(|k| line(&lines[k][P], 0), I, table);
                    put_line(block, (I * NP + P) * LINE, codes);
                }));
                continue;
            }
            for i in 0..unit_quads(BITS) {
                for p in 0..NP {
                    // Past the last panel that one again, so that pairs do for odd numbers of them.
                    let at = if NP == 1 { at } else { (at + p * LINE).min(stride - LINE) };
                    let codes = quad::<BITS, TABLE>(u, at, stride, i, table);
                    put_line(block, (i * NP + p) * LINE, codes);
                }
            }
        }
    }
}

/// `acc[i][p] += block . x`. `FETCH`: each quad asks for its part of what comes; short groups do so once (`fetch`), as
/// instructions are nearly the limit there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const MR: usize, const NP: usize, const FETCH: bool>(
    block: &[u8],
    x: &[i8],
    ahead: &mut Ahead<'_>,
    acc: &mut [[__m512i; NP]; MR],
) {
    for (w, q) in block.chunks_exact(NP * LINE).zip(x.chunks_exact(MR * QUAD)) {
        if FETCH {
            prefetch_far(ahead.bytes, ahead.at);
            ahead.at += ahead.step;
        }
        let mut codes = [_mm512_setzero_si512(); NP];
        unrolled!(NP, P => codes[P] = line(w, P * LINE));
        unrolled!(MR, I => {
            let b = &q[I * QUAD..][..QUAD];
            let b = _mm512_set1_epi32(i32::from_le_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8]));
            unrolled!(NP, P => acc[I][P] = _mm512_dpbusd_epi32(acc[I][P], codes[P], b));
        });
    }
}

/// Adds what sums of products begin with where codes of x are unsigned, the weights' own sums
/// (`activation::WeightSums`), to `$dot[$mr][$np]`. Not a function: one that is called with a pointer to sums keeps
/// them in memory, whether there is anything to add or not.
macro_rules! add_weights {
    ($x:expr, $group:expr, $panels:expr, $dot:ident[$mr:tt][$np:tt]) => {
        if let Some(weights) = $x.weight_sums($group) {
            unrolled!($np, P => {
                let sum = integers(weights, $panels[P] * PANEL);
                unrolled!($mr, I => $dot[I][P] = _mm512_add_epi32($dot[I][P], sum));
            });
        }
    };
}
pub(super) use add_weights;

/// `factor` times `sums[group][mr]`, which then fit 16 bits, of two groups in each: the first in the low half.
#[inline(never)] // a kernel for few rows is compiled dozens of times, and this is not what takes its time
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn pairs(mr: usize, sums: &[i32], factor: i32, pairs: &mut [i32]) {
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let second = _mm512_add_epi32(lanes, _mm512_set1_epi32(mr as i32));
    for (sums, pairs) in sums.chunks_exact(2 * mr).zip(pairs.chunks_exact_mut(mr)) {
        let sums = _mm512_mullo_epi32(some_integers(sums), _mm512_set1_epi32(factor));
        let high = _mm512_slli_epi32::<16>(_mm512_permutexvar_epi32(second, sums));
        put_some_integers(pairs, _mm512_mask_mov_epi16(high, 0x5555_5555, sums));
    }
}

impl Work<'_, '_> {
    /// The panels of W that are taken together: past the last one that one again. The results of that are written to
    /// lanes of the output that nobody reads.
    fn panels<const NP: usize>(&self) -> [usize; NP] {
        std::array::from_fn(|p| (self.first + p).min(self.tile.panels - 1))
    }

    /// What comes after a k-block of so many columns, a part of it for panel `panel` of x.
    fn ahead<'b>(&self, block: &'b [u8], panel: usize, panels: usize, columns: usize) -> Ahead<'b> {
        if self.first > 0 { Ahead::none() } else { Ahead::new(block, panel, panels, columns) }
    }

    /// One scale for each row of W: integers over all of k, then one product. The number of panels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row<const NP: usize>(&mut self, scratch: &mut [u8]) -> usize {
        let bits = self.coded.bits;
        let stride = self.tile.panels;
        let (head, units) = self.tile.bytes.split_at(stride * PANEL * 4);
        let unit_bytes = unit_lines(bits) * stride * LINE;
        let columns = unit_quads(bits) * QUAD;
        let padded = self.packed.geometry().padded();
        let (block, _) = split(scratch, BLOCK.min(padded) * NP * PANEL);
        let panels = self.rows.div_ceil(self.x.mr);
        for at in (0..padded).step_by(BLOCK) {
            let len = BLOCK.min(padded - at);
            let block = &mut block[..len * NP * PANEL];
            let bytes = &units[at / columns * unit_bytes..][..len / columns * unit_bytes];
            let (unit, at_panel, stride) = (unit_bytes, self.first * LINE, stride * LINE);
            let units = Units { bytes, record: bytes.len(), head: 0, unit, at: at_panel, stride };
            decode::<NP>(self.coded, &units, block);
            for panel in 0..panels {
                let ahead = self.ahead(bytes, panel, panels, len);
                for_rows!([2 4 6] self.x.mr,
                    MR => self.row_panel::<MR, NP>(panel, at, block, head, ahead));
            }
        }
        NP
    }

    /// A k-block of one panel of x. Partial integer sums rest in the output, as bits.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row_panel<const MR: usize, const NP: usize>(
        &mut self,
        panel: usize,
        at: usize,
        block: &[u8],
        head: &[u8],
        mut ahead: Ahead<'_>,
    ) {
        let (x, panels) = (self.x.panel(panel), self.panels::<NP>());
        let len = block.len() / (NP * PANEL);
        let last = at + len == self.packed.geometry().padded();
        let out = &mut self.out[panel * MR * TILE + self.first * PANEL..][..(MR - 1) * TILE + NP * PANEL];
        let mut acc = [[_mm512_setzero_si512(); NP]; MR];
        if at > 0 {
            unrolled!(MR, I => unrolled!(NP, P => {
                acc[I][P] = _mm512_castps_si512(floats(out, I * TILE + P * PANEL));
            }));
        }
        multiply::<MR, NP, true>(block, &x.codes[at * MR..][..len * MR], &mut ahead, &mut acc);
        if !last {
            unrolled!(MR, I => unrolled!(NP, P => {
                put_floats(out, I * TILE + P * PANEL, _mm512_castsi512_ps(acc[I][P]));
            }));
            return;
        }
        add_weights!(x, 0, panels, acc[MR][NP]);
        let zero = zero_point(self.coded);
        let (sums, s_x) = (&x.sums[..MR], &x.scales[..MR]);
        unrolled!(NP, P => {
            let s_w = scales(ScaleType::F32, head, panels[P] * PANEL);
            unrolled!(MR, I => {
                let dot = _mm512_sub_epi32(acc[I][P], _mm512_set1_epi32(zero * sums[I]));
                let s = _mm512_mul_ps(s_w, _mm512_set1_ps(s_x[I]));
                put_floats(out, I * TILE + P * PANEL, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), s));
            });
        });
    }
}
