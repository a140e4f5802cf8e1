//! One row of x: weights are decoded in registers and read once, as one stream.
//!
//! Limit: the read bandwidth. A tile's cache lines are visited in the order of their addresses; four
//! panels give four independent chains of `vpdpbusd`, enough to stay ahead of DRAM.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::{for_width, unit_lines, unit_quads};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{Coded, Layout, Offset, PANEL, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS};
use crate::limits::INT32_COLUMNS;

/// Panels of a tile.
const NP: usize = TILE_PANELS;

/// How far ahead of the reader a cache line is asked for.
const AHEAD: usize = 8192;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (&job.x, job.packed.layout()) else {
        return Ok(());
    };
    let tile = job.packed.tile(job.tile);
    // The last, partial tile of a matrix is not worth a second copy of every function here.
    if tile.panels < NP {
        return super::super::avx2::gemv::run(job);
    }
    // Several rows come where no kernel takes them together (several bases, very long rows).
    for (i, out) in job.out.chunks_exact_mut(TILE).take(job.rows).enumerate() {
        for_width!(coded, row_of_x(coded, tile, &x.panel(i), out));
    }
    Ok(())
}

/// One row of x. A whole tile, so that every offset is a constant.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn row_of_x<const BITS: u8, const TABLE: bool>(
    coded: &Coded,
    tile: Tile<'_>,
    x: &Codes<'_>,
    out: &mut [f32],
) {
    let mut acc = [_mm512_setzero_ps(); NP];
    match coded.scales {
        Scales::Row => row::<BITS, TABLE>(coded, tile, x, &mut acc),
        Scales::Group { offset, .. } => group::<BITS, TABLE>(coded, offset, tile, x, &mut acc),
        Scales::TwoLevel { len: 16, minimum } => {
            two_level::<BITS, TABLE, 4>(coded, minimum, tile, x, &mut acc)
        }
        Scales::TwoLevel { minimum, .. } => two_level::<BITS, TABLE, 8>(coded, minimum, tile, x, &mut acc),
    }
    for p in 0..NP {
        put_floats(out, p * PANEL, acc[p]);
    }
}

/// Adds the products of one unit to `NP` chains.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn unit<const BITS: u8, const TABLE: bool>(unit: &[u8], x: &[i8], table: __m512i, acc: &mut [__m512i; NP]) {
    for i in 0..unit_quads(BITS) {
        let q = quad_of(x, i);
        for p in 0..NP {
            let codes = quad::<BITS, TABLE>(unit, p * LINE, NP * LINE, i, table);
            acc[p] = _mm512_dpbusd_epi32(acc[p], codes, q);
        }
    }
}

/// What the sums of a group begin with: `start`, and where codes of x are unsigned the weights' own
/// (`activation::WeightSums`).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn begin(x: &Codes<'_>, group: usize, start: i32) -> [__m512i; NP] {
    let mut sums = [_mm512_set1_epi32(start); NP];
    if let Some(weights) = x.weight_sums(group) {
        for p in 0..NP {
            sums[p] = _mm512_add_epi32(sums[p], integers(weights, p * PANEL));
        }
    }
    sums
}

/// Quad `i` of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quad_of(x: &[i8], i: usize) -> __m512i {
    let q = &x[i * QUAD..][..QUAD];
    _mm512_set1_epi32(i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn row<const BITS: u8, const TABLE: bool>(
    coded: &Coded,
    tile: Tile<'_>,
    x: &Codes<'_>,
    acc: &mut [__m512; NP],
) {
    let (bases, table, zero) = (coded.bases as usize, table(coded), zero_point(coded));
    let lanes = NP * PANEL;
    let (head, units) = tile.bytes.split_at(lanes * 4 * bases);
    let base_bytes = unit_lines(BITS) * NP * LINE;
    let columns = unit_quads(BITS) * QUAD;
    let chunk_units = INT32_COLUMNS / columns;
    let chunks = (x.codes.len() / columns).div_ceil(chunk_units);
    let s_x = _mm512_set1_ps(x.scales[0]);
    for base in 0..bases {
        let mut total = [[0i64; PANEL]; NP];
        let mut sums = [_mm512_setzero_si512(); NP];
        for (c, (units, codes)) in
            units.chunks(chunk_units * base_bytes * bases).zip(x.codes.chunks(INT32_COLUMNS)).enumerate()
        {
            sums = begin(x, base * x.shape.groups + c, -zero * x.sums[c]);
            for (u, q) in units.chunks_exact(base_bytes * bases).zip(codes.chunks_exact(columns)) {
                for line in 0..unit_lines(BITS) * NP {
                    prefetch(u, AHEAD + line * LINE);
                }
                let u = &u[base * base_bytes..][..base_bytes];
                unit::<BITS, TABLE>(u, q, table, &mut sums);
            }
            if chunks > 1 {
                for p in 0..NP {
                    add_to(&mut total[p], sums[p]);
                }
            }
        }
        for p in 0..NP {
            let dot = if chunks > 1 { from_i64(&total[p]) } else { _mm512_cvtepi32_ps(sums[p]) };
            let s_w = scales(ScaleType::F32, &head[base * lanes * 4..], p * PANEL);
            let s = _mm512_mul_ps(s_w, s_x);
            acc[p] = if bases == 1 { _mm512_mul_ps(dot, s) } else { _mm512_fmadd_ps(dot, s, acc[p]) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_to(total: &mut [i64; PANEL], sums: __m512i) {
    let mut part = [0u8; 64];
    put_line(&mut part, 0, sums);
    for (t, p) in total.iter_mut().zip(part.as_chunks().0) {
        *t += i32::from_le_bytes(*p) as i64;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn from_i64(total: &[i64; PANEL]) -> __m512 {
    floats(&total.map(|t| t as f32), 0)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn group<const BITS: u8, const TABLE: bool>(
    coded: &Coded,
    offset: Offset,
    tile: Tile<'_>,
    x: &Codes<'_>,
    acc: &mut [__m512; NP],
) {
    let (ty, table, zero) = (coded.scale_type, table(coded), zero_point(coded));
    let geometry = &x.shape.geometry;
    let lanes = NP * PANEL;
    let unit_bytes = unit_lines(BITS) * NP * LINE;
    let columns = unit_quads(BITS) * QUAD;
    let records = tile.bytes.chunks(geometry.record_bytes(NP));
    for (g, (record, codes)) in records.zip(x.codes.chunks(geometry.record_padded())).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        let (xsum, s_x) = (x.totals[g], _mm512_set1_ps(x.scales[g]));
        let mut sums: [_; NP] = begin(x, g, -zero * x.sums[g]);
        if offset == Offset::Zero {
            for p in 0..NP {
                let zeros = unsigned_bytes(head, lanes * ty.bytes() + p * PANEL);
                let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(xsum));
                sums[p] = _mm512_sub_epi32(sums[p], product);
            }
        }
        for line in 0..NP.div_ceil(2) {
            prefetch(head, AHEAD + line * LINE);
        }
        for (u, q) in units.chunks_exact(unit_bytes).zip(codes.chunks_exact(columns)) {
            for line in 0..unit_lines(BITS) * NP {
                prefetch(u, AHEAD + line * LINE);
            }
            unit::<BITS, TABLE>(u, q, table, &mut sums);
        }
        for p in 0..NP {
            let s_w = scales(ty, head, p * PANEL);
            acc[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[p]), _mm512_mul_ps(s_w, s_x), acc[p]);
            if offset == Offset::Minimum {
                let minimum = scales(ty, &head[lanes * ty.bytes()..], p * PANEL);
                let weighted = _mm512_mul_ps(_mm512_set1_ps(xsum as f32), s_x);
                acc[p] = _mm512_fmadd_ps(weighted, minimum, acc[p]);
            }
        }
    }
}

/// `GQ`: quads of a group, 4 or 8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn two_level<const BITS: u8, const TABLE: bool, const GQ: usize>(
    coded: &Coded,
    minimum: bool,
    tile: Tile<'_>,
    x: &Codes<'_>,
    acc: &mut [__m512; NP],
) {
    let (ty, table, zero) = (coded.scale_type, table(coded), zero_point(coded));
    let geometry = &x.shape.geometry;
    let groups = SUPER_BLOCK / QUAD / GQ;
    let lanes = NP * PANEL;
    let unit_bytes = unit_lines(BITS) * NP * LINE;
    let uq = unit_quads(BITS);
    // Quads of a step: whole units and whole groups.
    let step = if uq > GQ { uq } else { GQ };
    let records = tile.bytes.chunks_exact(geometry.record_bytes(NP));
    for (b, (record, codes)) in records.zip(x.codes.chunks_exact(SUPER_BLOCK)).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        for line in 0..head.len().div_ceil(LINE) {
            prefetch(head, AHEAD + line * LINE);
        }
        let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
        let sums_x = &x.sums[b * groups..][..groups];
        let totals = &x.totals[b * groups..][..groups];
        let mut isum = [_mm512_setzero_si512(); NP];
        let mut msum = [_mm512_setzero_si512(); NP];
        let mut j = 0;
        for (units, q) in units.chunks_exact(step / uq * unit_bytes).zip(codes.chunks_exact(step * QUAD)) {
            let mut dot: [_; NP] = begin(x, b * groups + j, -zero * sums_x[j]);
            for (u, unit) in units.chunks_exact(unit_bytes).enumerate() {
                for line in 0..unit_lines(BITS) * NP {
                    prefetch(unit, AHEAD + line * LINE);
                }
                for i in 0..uq {
                    let x4 = quad_of(q, u * uq + i);
                    for p in 0..NP {
                        let c = quad::<BITS, TABLE>(unit, p * LINE, NP * LINE, i, table);
                        dot[p] = _mm512_dpbusd_epi32(dot[p], c, x4);
                    }
                    if !(u * uq + i + 1).is_multiple_of(GQ) {
                        continue;
                    }
                    for p in 0..NP {
                        let sc = signed_bytes(subs, j * lanes + p * PANEL);
                        isum[p] = _mm512_add_epi32(isum[p], _mm512_mullo_epi32(sc, dot[p]));
                        if minimum {
                            let mn = signed_bytes(subs, (groups + j) * lanes + p * PANEL);
                            // Totals of a group fit 16 bits; the high half of a lane is multiplied with 0.
                            let total = _mm512_set1_epi32(totals[j] & 0xffff);
                            msum[p] = _mm512_dpwssd_epi32(msum[p], mn, total);
                        }
                    }
                    j += 1;
                    if j < groups {
                        dot = begin(x, b * groups + j, -zero * sums_x[j]);
                    }
                }
            }
        }
        let s_x = _mm512_set1_ps(x.scales[b]);
        for p in 0..NP {
            let d = _mm512_mul_ps(scales(ty, head, p * PANEL), s_x);
            acc[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[p]), d, acc[p]);
            if minimum {
                let dmin = _mm512_mul_ps(scales(ty, &head[lanes * ty.bytes()..], p * PANEL), s_x);
                // fnmadd negates the product, which is the same number as a negated factor.
                acc[p] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[p]), dmin, acc[p]);
            }
        }
    }
}
