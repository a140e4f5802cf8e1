//! Few rows of x (`kernel::FEW_ROWS`): weights are decoded in registers, as for one row, and meet up to
//! eight rows there. A decoded block (`gemm`) would cost more to store and load again than so few rows
//! give back. More than eight take the tile once more, from the second cache.
//!
//! Limit: one `vpdpbusd` for each row and quad; beside it a quad costs its shift and mask. One panel at a
//! time: MR sums stay in registers over a group, or a span of columns where weights have one scale
//! (two panels at a time were half as fast: the compiler then keeps the sums in memory). What is between
//! rests in the output, which is small enough for the first cache.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::gemm::add_weights;
use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::narrow::{for_rows, unit_lines, unit_quads};
use crate::kernel::x86_64::zero_point;
use crate::kernel::{Job, LayoutKey, Scheme};
use crate::layout::packed::{LINE, Tile};
use crate::layout::{Coded, Layout, Offset, PANEL, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE};

/// Most rows of a panel of x. Panels have an even number (`kernel::panel_rows`): a row more is computed
/// and not stored, for half the code.
pub(super) const ROWS: usize = 8;
/// Columns of a row that a panel takes before the next one does: a tile of them stays in the first cache.
const SPAN: usize = 256;
/// How far ahead of the reader a cache line is asked for.
const AHEAD: usize = 8192;

/// Whether layouts of that key are worth the code: those of files that people run.
pub(in crate::kernel) fn takes(key: LayoutKey) -> bool {
    match key {
        LayoutKey::Coded { bits, table: false, scheme: Scheme::TwoLevel | Scheme::TwoLevelMinimum } => {
            matches!(bits, 2 | 4)
        }
        LayoutKey::Coded { bits, table: false, .. } => matches!(bits, 1 | 2 | 4 | 8),
        _ => false,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
        return Ok(());
    };
    let mr = x.mr;
    if mr == 1 {
        return super::gemv::run(job); // another layer of the call takes its rows one by one
    }
    let tile = job.packed.tile(job.tile);
    for (panel, out) in job.out.chunks_exact_mut(mr * TILE).take(job.rows.div_ceil(mr)).enumerate() {
        let mut work = Work { coded, tile, x: x.panel(panel), out };
        for_rows!([2 4 6 8] mr, MR => match coded.bits {
            1 => work.width::<1, MR>(),
            2 => work.width::<2, MR>(),
            4 => work.width::<4, MR>(),
            _ => work.width::<8, MR>(),
        });
    }
    Ok(())
}

/// One panel of x times a tile.
struct Work<'a, 'o> {
    coded: &'a Coded,
    tile: Tile<'a>,
    x: Codes<'a>,
    out: &'o mut [f32],
}

/// Adds the products of a panel to `acc`. `stride` is the way from a line of the panel to its next one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn units<const BITS: u8, const MR: usize>(
    units: &[u8],
    codes: &[i8],
    stride: usize,
    panel: usize,
    acc: &mut [[__m512i; 1]; MR],
) {
    let none = _mm512_setzero_si512();
    let quads = unit_quads(BITS);
    let unit_bytes = unit_lines(BITS) * stride;
    for (u, q) in units.chunks_exact(unit_bytes).zip(codes.chunks_exact(quads * QUAD * MR)) {
        for line in 0..unit_lines(BITS) {
            prefetch(u, AHEAD + line * stride + panel * LINE);
        }
        for i in 0..quads {
            let w = quad::<BITS, false>(u, panel * LINE, stride, i, none);
            for r in 0..MR {
                let b = &q[(i * MR + r) * QUAD..][..QUAD];
                let b = i32::from_le_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8]);
                acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], w, _mm512_set1_epi32(b));
            }
        }
    }
}

impl Work<'_, '_> {
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn width<const BITS: u8, const MR: usize>(&mut self) {
        match self.coded.scales {
            Scales::Row => self.row::<BITS, MR>(),
            Scales::Group { offset, .. } => self.group::<BITS, MR>(offset),
            Scales::TwoLevel { len, minimum } if BITS == 2 || BITS == 4 => {
                self.two_level::<BITS, MR>(len, minimum)
            }
            Scales::TwoLevel { .. } => unreachable!("not chosen (`takes`)"),
        }
    }

    /// One scale for each row of W: span after span, panel after panel. Partial integer sums rest in the
    /// output, as bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row<const BITS: u8, const MR: usize>(&mut self) {
        let (x, zero, panels) = (&self.x, zero_point(self.coded), self.tile.panels);
        let (head, bytes) = self.tile.bytes.split_at(panels * PANEL * 4);
        let span = SPAN / (unit_quads(BITS) * QUAD) * unit_lines(BITS) * panels * LINE;
        let last = bytes.len().div_ceil(span) - 1;
        for (s, (bytes, codes)) in bytes.chunks(span).zip(x.codes.chunks(SPAN * MR)).enumerate() {
            for p in 0..panels {
                let place = |i: usize| i * TILE + p * PANEL;
                let mut acc = [[_mm512_setzero_si512(); 1]; MR];
                if s == 0 {
                    for i in 0..MR {
                        acc[i] = [_mm512_set1_epi32(-zero * x.sums[i])];
                    }
                    add_weights(x, 0, p, &mut acc);
                } else {
                    for i in 0..MR {
                        acc[i] = [_mm512_castps_si512(floats(self.out, place(i)))];
                    }
                }
                units::<BITS, MR>(bytes, codes, panels * LINE, p, &mut acc);
                if s < last {
                    for i in 0..MR {
                        put_floats(self.out, place(i), _mm512_castsi512_ps(acc[i][0]));
                    }
                    continue;
                }
                let s_w = scales(ScaleType::F32, head, p * PANEL);
                for i in 0..MR {
                    let s = _mm512_mul_ps(s_w, _mm512_set1_ps(x.scales[i]));
                    put_floats(self.out, place(i), _mm512_mul_ps(_mm512_cvtepi32_ps(acc[i][0]), s));
                }
            }
        }
    }

    /// Groups: record after record, panel after panel.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn group<const BITS: u8, const MR: usize>(&mut self, offset: Offset) {
        let (x, ty, zero) = (&self.x, self.coded.scale_type, zero_point(self.coded));
        let geometry = &x.shape.geometry;
        let (panels, lanes) = (self.tile.panels, self.tile.panels * PANEL);
        let records = self.tile.bytes.chunks(geometry.record_bytes(panels));
        for (g, (record, codes)) in records.zip(x.codes.chunks(geometry.record_padded() * MR)).enumerate() {
            let (head, bytes) = record.split_at(lanes * geometry.head);
            let (sums, totals) = (&x.sums[g * MR..][..MR], &x.totals[g * MR..][..MR]);
            let s_x = &x.scales[g * MR..][..MR];
            for line in 0..head.len().div_ceil(LINE) {
                prefetch(head, AHEAD + line * LINE);
            }
            for p in 0..panels {
                let rest = &head[lanes * ty.bytes()..];
                let mut dot = [[_mm512_setzero_si512(); 1]; MR];
                for i in 0..MR {
                    dot[i] = [_mm512_set1_epi32(-zero * sums[i])];
                }
                add_weights(x, g, p, &mut dot);
                if offset == Offset::Zero {
                    let zeros = unsigned_bytes(rest, p * PANEL);
                    for i in 0..MR {
                        let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(totals[i]));
                        dot[i][0] = _mm512_sub_epi32(dot[i][0], product);
                    }
                }
                units::<BITS, MR>(bytes, codes, panels * LINE, p, &mut dot);
                let s_w = scales(ty, head, p * PANEL);
                for i in 0..MR {
                    let place = i * TILE + p * PANEL;
                    let before = if g == 0 { _mm512_setzero_ps() } else { floats(self.out, place) };
                    let s = _mm512_mul_ps(s_w, _mm512_set1_ps(s_x[i]));
                    let mut acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][0]), s, before);
                    if offset == Offset::Minimum {
                        let weighted = _mm512_set1_ps(totals[i] as f32 * s_x[i]);
                        acc = _mm512_fmadd_ps(weighted, scales(ty, rest, p * PANEL), acc);
                    }
                    put_floats(self.out, place, acc);
                }
            }
        }
    }

    /// Super-blocks: integers inside one, floats across them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn two_level<const BITS: u8, const MR: usize>(&mut self, len: usize, minimum: bool) {
        let (x, ty, zero) = (&self.x, self.coded.scale_type, zero_point(self.coded));
        let geometry = &x.shape.geometry;
        let (panels, lanes) = (self.tile.panels, self.tile.panels * PANEL);
        let (groups, group_bytes) =
            (SUPER_BLOCK / len, len / (unit_quads(BITS) * QUAD) * unit_lines(BITS) * panels * LINE);
        let records = self.tile.bytes.chunks_exact(geometry.record_bytes(panels));
        for (b, (record, codes)) in records.zip(x.codes.chunks_exact(SUPER_BLOCK * MR)).enumerate() {
            let (head, bytes) = record.split_at(lanes * geometry.head);
            let sums = &x.sums[b * groups * MR..][..groups * MR];
            let totals = &x.totals[b * groups * MR..][..groups * MR];
            let s_x = &x.scales[b * MR..][..MR];
            for line in 0..head.len().div_ceil(LINE) {
                prefetch(head, AHEAD + line * LINE);
            }
            let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
            for p in 0..panels {
                let mut isum = [_mm512_setzero_si512(); MR];
                let mut msum = [_mm512_setzero_si512(); MR];
                for j in 0..groups {
                    let mut dot = [[_mm512_setzero_si512(); 1]; MR];
                    for i in 0..MR {
                        dot[i] = [_mm512_set1_epi32(-zero * sums[j * MR + i])];
                    }
                    add_weights(x, b * groups + j, p, &mut dot);
                    let (bytes, codes) = (&bytes[j * group_bytes..][..group_bytes], &codes[j * len * MR..]);
                    units::<BITS, MR>(bytes, &codes[..len * MR], panels * LINE, p, &mut dot);
                    let sc = signed_bytes(subs, j * lanes + p * PANEL);
                    for i in 0..MR {
                        isum[i] = _mm512_add_epi32(isum[i], _mm512_mullo_epi32(sc, dot[i][0]));
                    }
                    if minimum {
                        let mn = signed_bytes(subs, (groups + j) * lanes + p * PANEL);
                        for i in 0..MR {
                            let total = _mm512_set1_epi32(totals[j * MR + i]);
                            msum[i] = _mm512_add_epi32(msum[i], _mm512_mullo_epi32(mn, total));
                        }
                    }
                }
                let d = scales(ty, head, p * PANEL);
                for i in 0..MR {
                    let place = i * TILE + p * PANEL;
                    let before = if b == 0 { _mm512_setzero_ps() } else { floats(self.out, place) };
                    let s = _mm512_set1_ps(s_x[i]);
                    let mut acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[i]), _mm512_mul_ps(d, s), before);
                    if minimum {
                        let dmin = _mm512_mul_ps(scales(ty, &head[lanes * ty.bytes()..], p * PANEL), s);
                        acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[i]), dmin, acc);
                    }
                    put_floats(self.out, place, acc);
                }
            }
        }
    }
}
