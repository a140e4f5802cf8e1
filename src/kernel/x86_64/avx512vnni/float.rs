//! Float activations: weights are dequantised into a block of floats, then one fma for each product.
//!
//! ```text
//! block   [column][NP panels][16] f32    a k-block of dequantised weights, in L1
//! ```
//! Each output is one chain of fma, k ascending, as the contract wants it: lanes are rows of W, so the
//! order of the sum is the same in every instruction set. 12 x 2 accumulators hide the latency; meanwhile what the next
//! block is made from is asked for. Plain floats that meet one panel of x are multiplied where they lie, and read as one
//! stream: up to 6 rows take all four panels of a tile at once, more take two.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;
use std::ops::Range;

use super::gemm::decode;
use super::vector::*;
use crate::activation::{Activations, Floats};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::{Ahead, split};
use crate::kernel::narrow::{Units, unit_lines, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{Geometry, LINE, Tile, unit_columns};
use crate::layout::{
    Coded, Float, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS,
};

/// Most rows of a panel of x.
pub(super) const ROWS: usize = 12;
/// Panels of W that the inner kernel takes.
const PAIR: usize = 2;
/// Columns of a k-block: a pair of panels is 32 KiB of floats. A multiple of every unit.
const BLOCK: usize = 256;
/// Columns that one panel of x meets before the next pair of panels of W does.
const SPAN: usize = 128;
/// How far ahead of the reader a cache line is asked for.
const AHEAD: usize = 8192;

/// Bytes of the decoded codes of a k-block: a group may begin and end inside a unit of 32 columns.
fn code_bytes(packed: &Packed) -> usize {
    match packed.layout() {
        Layout::Dense(_) => 0,
        Layout::Coded(_) => (BLOCK + 2 * 32) * PANEL,
    }
}

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    code_bytes(packed) + BLOCK.min(packed.in_features()) * PAIR * PANEL * 4
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let Activations::Float(x) = job.x else { return Ok(()) };
    let (tile, geometry) = (job.packed.tile(job.tile), *job.packed.geometry());
    let in_features = geometry.in_features;
    if let Layout::Dense(float) = job.packed.layout()
        && (job.rows <= x.mr || x.mr == 1)
    {
        direct(*float, tile, &x, in_features, job.out);
        return Ok(());
    }
    let panels = job.rows.div_ceil(x.mr);
    let (codes, floats) = split(job.scratch, code_bytes(job.packed));
    let mut first = 0;
    while first < tile.panels {
        let np = PAIR.min(tile.panels - first);
        for at in (0..in_features).step_by(BLOCK) {
            let len = BLOCK.min(in_features - at);
            let block = &mut floats[..len * np * PANEL];
            match job.packed.layout() {
                Layout::Dense(float) => dense(*float, tile, first, np, at, block),
                Layout::Coded(coded) => {
                    for p in 0..np {
                        dequantize(coded, &geometry, tile, first + p, at, len, block, (p, np), codes);
                    }
                }
            }
            // What the next block is made from, a part with each panel of x: a pair reads half the lines of a tile, and
            // the first pair asks for all of them.
            let (begin, end) = [at, at + len].map(|k| tile.bytes.len() * k / in_features).into();
            let part = if first == 0 { (end - begin) / panels } else { 0 };
            for panel in 0..panels {
                let ahead = Ahead { bytes: tile.bytes, at: end + panel * part, step: part.div_ceil(len) };
                let x = x.panel(panel, in_features);
                let out = &mut job.out[panel * x.mr * TILE..][..x.mr * TILE];
                match np {
                    1 => multiply_rows::<1>(&x, at, block, out, first, ahead),
                    _ => multiply_rows::<PAIR>(&x, at, block, out, first, ahead),
                }
            }
        }
        first += np;
    }
    Ok(())
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dense(float: Float, tile: Tile<'_>, first: usize, np: usize, at: usize, block: &mut [f32]) {
    match float {
        Float::F32 => columns(ScaleType::F32, tile, first, np, at, block),
        Float::F16 => columns(ScaleType::F16, tile, first, np, at, block),
        Float::Bf16 => columns(ScaleType::Bf16, tile, first, np, at, block),
    }
}

/// Columns of floats of a type, which is a constant where this is inlined.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn columns(ty: ScaleType, tile: Tile<'_>, first: usize, np: usize, at: usize, block: &mut [f32]) {
    let size = tile.panels * PANEL * ty.bytes();
    let columns = tile.bytes[at * size..].chunks_exact(size);
    for (column, block) in columns.zip(block.chunks_exact_mut(np * PANEL)) {
        for p in 0..np {
            put_floats(block, p * PANEL, scales(ty, column, (first + p) * PANEL));
        }
    }
}

#[inline(never)] // one copy for all layouts
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_rows<const NP: usize>(
    x: &Floats<'_>,
    at: usize,
    block: &[f32],
    out: &mut [f32],
    first: usize,
    ahead: Ahead<'_>,
) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match x.mr {
                $($n => multiply::<$n, NP>(x.values, at, block, out, first, ahead),)*
                _ => unreachable!("a panel has at most the kernel's rows (kernel::run)"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const MR: usize, const NP: usize>(
    x: &[f32],
    at: usize,
    block: &[f32],
    out: &mut [f32],
    first: usize,
    mut ahead: Ahead<'_>,
) {
    let mut acc = [[_mm512_setzero_ps(); NP]; MR];
    if at > 0 {
        unrolled!(MR, I => unrolled!(NP, P => {
            acc[I][P] = floats(out, I * TILE + (first + P) * PANEL);
        }));
    }
    for (w, x) in block.chunks_exact(NP * PANEL).zip(x[at * MR..].chunks_exact(MR)) {
        prefetch_far(ahead.bytes, ahead.at);
        ahead.at += ahead.step;
        let mut weights = [_mm512_setzero_ps(); NP];
        unrolled!(NP, P => weights[P] = floats(w, P * PANEL));
        unrolled!(MR, I => {
            let x = _mm512_set1_ps(x[I]);
            unrolled!(NP, P => acc[I][P] = _mm512_fmadd_ps(x, weights[P], acc[I][P]));
        });
    }
    unrolled!(MR, I => unrolled!(NP, P => put_floats(out, I * TILE + (first + P) * PANEL, acc[I][P])));
}

/// One panel of x, or rows one by one, times a tile of plain floats.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct(float: Float, tile: Tile<'_>, x: &Floats<'_>, columns: usize, out: &mut [f32]) {
    let mr = x.mr;
    for (x, out) in x.values.chunks_exact(columns * mr).zip(out.chunks_exact_mut(TILE * mr)) {
        match float {
            Float::F32 => direct_rows::<{ 4 * PANEL }>(ScaleType::F32, tile, (x, mr), columns, out),
            Float::F16 => direct_rows::<{ 2 * PANEL }>(ScaleType::F16, tile, (x, mr), columns, out),
            Float::Bf16 => direct_rows::<{ 2 * PANEL }>(ScaleType::Bf16, tile, (x, mr), columns, out),
        }
    }
}

/// `SIZE`: bytes of a column of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct_rows<const SIZE: usize>(
    ty: ScaleType,
    tile: Tile<'_>,
    (x, mr): (&[f32], usize),
    columns: usize,
    out: &mut [f32],
) {
    macro_rules! rows {
        ($np:ident, [$($n:literal)*], $span:expr, $first:expr) => {
            match mr {
                $($n => direct_span::<$n, $np, SIZE>(ty, tile, x, $span, out, $first),)*
                _ => unreachable!("a panel has at most the kernel's rows (kernel::run)"),
            }
        };
    }
    const ALL: usize = TILE_PANELS;
    const ONE: usize = 1;
    if mr <= 6 && tile.panels == ALL {
        return rows!(ALL, [1 2 3 4 5 6], 0..columns, 0);
    }
    for at in (0..columns).step_by(SPAN) {
        let span = at..columns.min(at + SPAN);
        let mut first = 0;
        while first < tile.panels {
            if mr > 6 && first + PAIR <= tile.panels {
                rows!(PAIR, [7 8 9 10 11 12], span.clone(), first);
                first += PAIR;
            } else {
                rows!(ONE, [1 2 3 4 5 6 7 8 9 10 11 12], span.clone(), first);
                first += 1;
            }
        }
    }
}

/// A span of columns of `NP` panels, of which `first` is the first one.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct_span<const MR: usize, const NP: usize, const SIZE: usize>(
    ty: ScaleType,
    tile: Tile<'_>,
    x: &[f32],
    span: Range<usize>,
    out: &mut [f32],
    first: usize,
) {
    let mut acc = [[_mm512_setzero_ps(); NP]; MR];
    if span.start > 0 {
        unrolled!(MR, I => unrolled!(NP, P => {
            acc[I][P] = floats(out, I * TILE + (first + P) * PANEL);
        }));
    }
    let stride = tile.panels * SIZE;
    let mut columns = &tile.bytes[span.start * stride + first * SIZE..];
    for x in &x.as_chunks::<MR>().0[span] {
        let Some(column) = columns.get(..NP * SIZE) else { break };
        for line in 0..(NP * SIZE).div_ceil(LINE) {
            prefetch(column, AHEAD + line * LINE);
        }
        let mut weights = [_mm512_setzero_ps(); NP];
        unrolled!(NP, P => weights[P] = scales(ty, column, P * PANEL));
        unrolled!(MR, I => {
            let x = _mm512_set1_ps(x[I]);
            unrolled!(NP, P => acc[I][P] = _mm512_fmadd_ps(x, weights[P], acc[I][P]));
        });
        columns = columns.get(stride..).unwrap_or_default();
    }
    unrolled!(MR, I => unrolled!(NP, P => put_floats(out, I * TILE + (first + P) * PANEL, acc[I][P])));
}

/// The weights of columns `at .. at + len` of one panel, each evaluated as `Row::weight` does; they are
/// panel `p` of `np` in the block.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dequantize(
    coded: &Coded,
    geometry: &Geometry,
    tile: Tile<'_>,
    panel: usize,
    at: usize,
    len: usize,
    block: &mut [f32],
    (p, np): (usize, usize),
    codes: &mut [u8],
) {
    let (ty, lanes, stride) = (coded.scale_type, tile.panels * PANEL, tile.panels * LINE);
    let (bases, lane) = (coded.bases as usize, panel * PANEL);
    let columns = unit_columns(coded.bits);
    let base_bytes = unit_lines(coded.bits) * stride;
    let group = coded.group_len(geometry.in_features);
    let zero = _mm512_set1_epi32(zero_point(coded));
    let mut k = at;
    while k < at + len {
        let (r, inside) = (k / geometry.record, k % geometry.record);
        let record = &tile.bytes[r * geometry.record_bytes(tile.panels)..];
        let (head, units) = record.split_at(lanes * geometry.head);
        // The columns of this step are in one group: one set of scales.
        let count = (at + len - k).min(group - inside % group).min(geometry.record_len(r) - inside);
        let (first, end) = (inside / columns, (inside + count).div_ceil(columns));
        let bytes = &units[first * base_bytes * bases..end * base_bytes * bases];
        let block = &mut block[(k - at) * np * PANEL..][..count * np * PANEL];
        let skip = inside - first * columns;
        for base in 0..bases {
            let (unit, at) = (base_bytes * bases, base * base_bytes + panel * LINE);
            let units = Units { bytes, record: bytes.len(), head: 0, unit, at, stride };
            decode::<1>(coded, &units, codes);
            match coded.scales {
                Scales::Row => {
                    let s = scales(ScaleType::F32, &head[base * lanes * 4..], lane);
                    weights(codes, skip, zero, block, (p, np), |v, before| {
                        let w = _mm512_mul_ps(v, s);
                        if base == 0 { w } else { _mm512_add_ps(before, w) }
                    });
                }
                Scales::Group { offset: Offset::Minimum, .. } => {
                    let (s, minimum) =
                        (scales(ty, head, lane), scales(ty, &head[lanes * ty.bytes()..], lane));
                    let f = |v, _| _mm512_add_ps(_mm512_mul_ps(s, v), minimum);
                    weights(codes, skip, zero, block, (p, np), f);
                }
                Scales::Group { offset, .. } => {
                    let s = scales(ty, head, lane);
                    let zero = match offset {
                        Offset::Zero => {
                            _mm512_add_epi32(zero, unsigned_bytes(head, lanes * ty.bytes() + lane))
                        }
                        _ => zero,
                    };
                    weights(codes, skip, zero, block, (p, np), |v, _| _mm512_mul_ps(s, v));
                }
                Scales::TwoLevel { minimum, .. } => {
                    let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
                    let j = inside / group;
                    let sc = _mm512_cvtepi32_ps(signed_bytes(subs, j * lanes + lane));
                    let s = _mm512_mul_ps(scales(ty, head, lane), sc);
                    if !minimum {
                        weights(codes, skip, zero, block, (p, np), |v, _| _mm512_mul_ps(s, v));
                        continue;
                    }
                    let mn = signed_bytes(subs, (SUPER_BLOCK / group + j) * lanes + lane);
                    let dmin = scales(ty, &head[lanes * ty.bytes()..], lane);
                    let minus = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(mn));
                    let f = |v, _| _mm512_sub_ps(_mm512_mul_ps(s, v), minus);
                    weights(codes, skip, zero, block, (p, np), f);
                }
            }
        }
        k += count;
    }
}

/// `block[c] = f(value of column skip + c, block[c])` for panel `p` of `np`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn weights(
    codes: &[u8],
    skip: usize,
    zero: __m512i,
    block: &mut [f32],
    (p, np): (usize, usize),
    f: impl Fn(__m512, __m512) -> __m512,
) {
    let columns = block.len() / (np * PANEL);
    for q in skip / QUAD..(skip + columns).div_ceil(QUAD) {
        let codes = line(codes, q * LINE);
        for c in 0..QUAD {
            let k = (q * QUAD + c).wrapping_sub(skip);
            if k < columns {
                let code = match c {
                    0 => codes,
                    1 => _mm512_srli_epi32::<8>(codes),
                    2 => _mm512_srli_epi32::<16>(codes),
                    _ => _mm512_srli_epi32::<24>(codes),
                };
                let code = _mm512_and_si512(code, _mm512_set1_epi32(255));
                let v = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zero));
                let place = (k * np + p) * PANEL;
                let before = floats(block, place);
                put_floats(block, place, f(v, before));
            }
        }
    }
}
