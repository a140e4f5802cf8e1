//! Float activations: weights are dequantised into a block of floats, then one fma for each product.
//!
//! ```text
//! block   [column][NP panels][16] f32    a k-block of dequantised weights, in L1; plain floats of a whole tile lie so already
//! ```
//! Each output is one chain of fma, k ascending, as the contract wants it: lanes are rows of W, so the
//! order of the sum is the same in every instruction set. 6 rows of x x 4 panels are 24 sums, more than enough to hide the
//! latency, for 4 loads and 6 broadcasts; meanwhile what the next block is made from is asked for. Plain floats of a whole
//! tile are multiplied where they lie, unless they have 16 bits, more than 6 rows meet them, and the CPU converts at the cost
//! of products (`cpu::decodes_beside_products`).

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;
use std::ops::Range;

use super::float_few;
use super::gemm::decode;
use super::vector::*;
use crate::activation::{Activations, Floats};
use crate::cpu::decodes_beside_products;
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::{Ahead, split};
use crate::kernel::narrow::{Units, unit_lines, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{Geometry, LINE, Tile, unit_columns};
use crate::layout::{
    Coded, Float, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS,
};

/// Most rows of a panel of x, and of the part of it that meets a block.
pub(super) const ROWS: usize = 12;
const PART: usize = 6;
/// Columns of a k-block: a tile is 32 KiB of floats. A multiple of every unit.
const BLOCK: usize = 128;
/// Bytes of a column of a panel of f32, and of f16 or bf16.
const WIDE: usize = 4 * PANEL;
const HALF: usize = 2 * PANEL;
/// Columns that one panel of x meets before the next panel of W does.
const SPAN: usize = 128;
/// How far ahead of the reader a cache line is asked for.
const AHEAD: usize = 8192;

/// Bytes of the decoded codes of a k-block: a group may begin and end inside a unit of 32 columns.
fn code_bytes(packed: &Packed) -> usize {
    match packed.layout() {
        Layout::Dense(_) => 0,
        Layout::Coded(_) => float_few::SCRATCH.max((BLOCK + 2 * 32) * PANEL),
    }
}

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    code_bytes(packed) + BLOCK.min(packed.in_features()) * TILE * 4
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let Activations::Float(x) = job.x else { return Ok(()) };
    let (tile, geometry) = (job.packed.tile(job.tile), *job.packed.geometry());
    let in_features = geometry.in_features;
    if let Layout::Dense(float) = job.packed.layout()
        && (job.rows <= x.mr && x.mr <= PART || x.mr == 1)
    {
        direct(*float, tile, &x, in_features, job.out);
        return Ok(());
    }
    let (codes, floats) = split(job.scratch, code_bytes(job.packed));
    if let Layout::Coded(coded) = job.packed.layout()
        && (tile.panels == TILE_PANELS
            && job.rows <= x.mr
            && x.mr <= float_few::ROWS
            && float_few::takes(coded))
    {
        float_few::run(coded, job.packed, tile, &x, codes, job.out);
        return Ok(());
    }
    let mut work = Work { x, in_features, rows: job.rows, out: job.out };
    // A whole tile of plain floats is blocks as it is, where they need not be found converted.
    let whole = match job.packed.layout() {
        Layout::Dense(float) if tile.panels == TILE_PANELS => {
            (*float == Float::F32 || decodes_beside_products()).then_some(*float)
        }
        _ => None,
    };
    let mut first = 0;
    while first < tile.panels {
        let np = if tile.panels == TILE_PANELS { TILE_PANELS } else { 1 };
        for at in (0..in_features).step_by(BLOCK) {
            let len = BLOCK.min(in_features - at);
            // What the next block is made from: the first panel of a tile asks for all of them.
            let (begin, end) = [at, at + len].map(|k| tile.bytes.len() * k / in_features).into();
            let next = (tile.bytes, end, if first == 0 { end - begin } else { 0 });
            if let Some(float) = whole {
                let block = (&tile.bytes[begin..end], at);
                match float {
                    Float::F32 => work.block::<TILE_PANELS, WIDE>(ScaleType::F32, block, first, next),
                    Float::F16 => work.block::<TILE_PANELS, HALF>(ScaleType::F16, block, first, next),
                    Float::Bf16 => work.block::<TILE_PANELS, HALF>(ScaleType::Bf16, block, first, next),
                }
                continue;
            }
            let block = &mut floats[..len * np * PANEL];
            match job.packed.layout() {
                Layout::Dense(float) => dense(*float, tile, first, np, at, block),
                Layout::Coded(coded) => {
                    for p in 0..np {
                        dequantize(coded, &geometry, tile, first + p, at, len, block, (p, np), codes);
                    }
                }
            }
            let block = (as_bytes(block), at);
            match np {
                TILE_PANELS => work.block::<TILE_PANELS, WIDE>(ScaleType::F32, block, first, next),
                _ => work.block::<1, WIDE>(ScaleType::F32, block, first, next),
            }
        }
        first += np;
    }
    Ok(())
}

/// The batch, and what comes of it.
struct Work<'a, 'o> {
    x: Floats<'a>,
    in_features: usize,
    rows: usize,
    out: &'o mut [f32],
}

impl Work<'_, '_> {
    /// A block of floats of a type, `SIZE` bytes for a column of a panel, whose first column is `at` and whose first panel
    /// `first`, times the batch. `next`: bytes, from where on and how many to ask for meanwhile.
    #[inline(never)] // one copy for all layouts of a width
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const NP: usize, const SIZE: usize>(
        &mut self,
        ty: ScaleType,
        (block, at): (&[u8], usize),
        first: usize,
        (bytes, from, count): (&[u8], usize, usize),
    ) {
        let (mr, columns) = (self.x.mr, block.len() / (NP * SIZE));
        // Parts of a panel of x, as even as can be.
        let rows = mr.div_ceil(mr.div_ceil(PART));
        let step = count.div_ceil(self.rows.div_ceil(rows) * columns);
        let mut ahead = Ahead { bytes, at: from, step };
        for panel in 0..self.rows.div_ceil(mr) {
            let x = self.x.panel(panel, self.in_features).values;
            let x = &x[at * mr..][..columns * mr];
            // Parts that only fill up the panel are left out.
            for row in (0..mr.min(self.rows - panel * mr)).step_by(rows) {
                let part = Part { x, mr, first: row };
                let out = &mut self.out[(panel * mr + row) * TILE + first * PANEL..];
                let ahead = ahead.take(columns);
                macro_rules! rows {
                    ($($n:literal)*) => {
                        match rows.min(mr - row) {
                            $($n => multiply::<$n, NP, SIZE>(ty, &part, at > 0, block, out, ahead),)*
                            _ => unreachable!("a part has at most so many rows"),
                        }
                    };
                }
                rows!(1 2 3 4 5 6);
            }
        }
    }
}

/// Some rows of a panel of x of `mr`, from row `first` on.
struct Part<'a> {
    x: &'a [f32],
    mr: usize,
    first: usize,
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

/// `out += block . x`, where `go_on`; else from 0 on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const R: usize, const NP: usize, const SIZE: usize>(
    ty: ScaleType,
    part: &Part<'_>,
    go_on: bool,
    block: &[u8],
    out: &mut [f32],
    mut ahead: Ahead<'_>,
) {
    let out = &mut out[..(R - 1) * TILE + NP * PANEL];
    let mut acc = [[_mm512_setzero_ps(); NP]; R];
    if go_on {
        unrolled!(R, I => unrolled!(NP, P => acc[I][P] = floats(out, I * TILE + P * PANEL)));
    }
    let columns = block.as_chunks::<SIZE>().0.as_chunks::<NP>().0;
    for (column, x) in columns.iter().zip(part.x.chunks_exact(part.mr)) {
        let x = &x[part.first..][..R];
        // With two parts a column of f32 must ask for two lines.
        prefetch_far(ahead.bytes, ahead.at);
        prefetch_far(ahead.bytes, ahead.at + ahead.step / 2);
        ahead.at += ahead.step;
        let mut weights = [_mm512_setzero_ps(); NP];
        unrolled!(NP, P => weights[P] = scales(ty, &column[P], 0));
        unrolled!(R, I => {
            let x = _mm512_set1_ps(x[I]);
            unrolled!(NP, P => acc[I][P] = _mm512_fmadd_ps(x, weights[P], acc[I][P]));
        });
    }
    unrolled!(R, I => unrolled!(NP, P => put_floats(out, I * TILE + P * PANEL, acc[I][P])));
}

/// One panel of x, or rows one by one, times a tile of plain floats.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct(float: Float, tile: Tile<'_>, x: &Floats<'_>, columns: usize, out: &mut [f32]) {
    let mr = x.mr;
    for (x, out) in x.values.chunks_exact(columns * mr).zip(out.chunks_exact_mut(TILE * mr)) {
        match float {
            Float::F32 => direct_rows::<WIDE>(ScaleType::F32, tile, (x, mr), columns, out),
            Float::F16 => direct_rows::<HALF>(ScaleType::F16, tile, (x, mr), columns, out),
            Float::Bf16 => direct_rows::<HALF>(ScaleType::Bf16, tile, (x, mr), columns, out),
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
    if tile.panels == ALL {
        return rows!(ALL, [1 2 3 4 5 6], 0..columns, 0);
    }
    for at in (0..columns).step_by(SPAN) {
        let span = at..columns.min(at + SPAN);
        (0..tile.panels).for_each(|p| rows!(ONE, [1 2 3 4 5 6], span.clone(), p));
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
