//! Float activations: weights are dequantised into a block of floats, then one fma for each product.
//!
//! ```text
//! block   [column][NP panels][16] f32    a k-block of dequantised weights, in L1
//! ```
//! Each output is one chain of fma, k ascending, as the contract wants it: lanes are rows of W, so the
//! order of the sum is the same in every instruction set. 12 x 2 accumulators hide the latency.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::vector::*;
use crate::activation::{Activations, Floats};
use crate::kernel::Job;
use crate::kernel::narrow::{unit_lines, unit_quads};
use crate::kernel::x86_64::{scheme, zero_point};
use crate::layout::packed::{Geometry, LINE, Tile};
use crate::layout::{Coded, Float, Layout, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE};

/// Most rows of a panel of x.
pub(super) const ROWS: usize = 12;
/// Panels of W that the inner kernel takes.
const PAIR: usize = 2;
/// Columns of a k-block: a pair of panels is 32 KiB of floats. A multiple of every unit.
const BLOCK: usize = 256;

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    BLOCK.min(packed.in_features()) * PAIR * PANEL * 4
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run_dense(job: &mut Job<'_>, float: Float) {
    let tile = job.packed.tile(job.tile);
    let size = tile.panels * PANEL * float.bytes();
    blocks(job, |first, np, at, len, block| {
        let columns = tile.bytes[at * size..][..len * size].chunks_exact(size);
        for (column, block) in columns.zip(block.chunks_exact_mut(np * PANEL)) {
            for p in 0..np {
                let w = &column[(first + p) * PANEL * float.bytes()..];
                let ty = match float {
                    Float::F32 => ScaleType::F32,
                    Float::F16 => ScaleType::F16,
                    Float::Bf16 => ScaleType::Bf16,
                };
                put_floats(block, p * PANEL, scales(ty, w, 0));
            }
        }
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run_coded<const BITS: u8, const TABLE: bool, const SCHEME: u8>(job: &mut Job<'_>) {
    let Layout::Coded(coded) = job.packed.layout() else { return };
    let tile = job.packed.tile(job.tile);
    let geometry = *job.packed.geometry();
    blocks(job, |first, np, at, len, block| {
        for p in 0..np {
            dequantize::<BITS, TABLE, SCHEME>(coded, &geometry, tile, first + p, at, len, block, p, np);
        }
    });
}

/// Walks the tile by pairs of panels and k-blocks: `decode(first, np, at, len, block)` fills a block,
/// then every panel of x is multiplied with it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn blocks(job: &mut Job<'_>, mut decode: impl FnMut(usize, usize, usize, usize, &mut [f32])) {
    let Activations::Float(x) = job.x else { return };
    let in_features = job.packed.in_features();
    let panels = job.packed.tile(job.tile).panels;
    // SAFETY: any bytes are valid floats; `align_to_mut` itself keeps to the aligned middle.
    let (_, floats, _) = unsafe { job.scratch.align_to_mut::<f32>() };
    let mut first = 0;
    while first < panels {
        let np = PAIR.min(panels - first);
        for at in (0..in_features).step_by(BLOCK) {
            let len = BLOCK.min(in_features - at);
            let block = &mut floats[..len * np * PANEL];
            decode(first, np, at, len, block);
            for panel in 0..job.rows.div_ceil(x.mr) {
                let x = x.panel(panel, in_features);
                let out = &mut job.out[panel * x.mr * TILE..][..x.mr * TILE];
                match np {
                    1 => multiply_rows::<1>(&x, at, block, out, first),
                    _ => multiply_rows::<PAIR>(&x, at, block, out, first),
                }
            }
        }
        first += np;
    }
}

#[inline(never)] // one copy for all layouts
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply_rows<const NP: usize>(x: &Floats<'_>, at: usize, block: &[f32], out: &mut [f32], first: usize) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match x.mr {
                $($n => multiply::<$n, NP>(x.values, at, block, out, first),)*
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
) {
    let mut acc = [[_mm512_setzero_ps(); NP]; MR];
    if at > 0 {
        for i in 0..MR {
            for p in 0..NP {
                acc[i][p] = floats(out, i * TILE + (first + p) * PANEL);
            }
        }
    }
    for (w, x) in block.chunks_exact(NP * PANEL).zip(x[at * MR..].chunks_exact(MR)) {
        let mut weights = [_mm512_setzero_ps(); NP];
        for p in 0..NP {
            weights[p] = floats(w, p * PANEL);
        }
        for i in 0..MR {
            let x = _mm512_set1_ps(x[i]);
            for p in 0..NP {
                acc[i][p] = _mm512_fmadd_ps(x, weights[p], acc[i][p]);
            }
        }
    }
    for i in 0..MR {
        for p in 0..NP {
            put_floats(out, i * TILE + (first + p) * PANEL, acc[i][p]);
        }
    }
}

/// The weights of columns `at .. at + len` of one panel, each evaluated as `Row::weight` does.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dequantize<const BITS: u8, const TABLE: bool, const SCHEME: u8>(
    coded: &Coded,
    geometry: &Geometry,
    tile: Tile<'_>,
    panel: usize,
    at: usize,
    len: usize,
    block: &mut [f32],
    p: usize,
    np: usize,
) {
    let ty = coded.scale_type;
    let bases = coded.bases as usize;
    let table = table(coded);
    let stride = tile.panels;
    let lanes = stride * PANEL;
    let lane = panel * PANEL;
    let base_bytes = unit_lines(BITS) * stride * LINE;
    let columns = unit_quads(BITS) * QUAD;
    let group_len = coded.group_len(geometry.in_features);
    let record_bytes = geometry.record_bytes(stride);
    let mut k = at;
    while k < at + len {
        let (r, inside) = (k / geometry.record, k % geometry.record);
        let record = &tile.bytes[r * record_bytes..];
        let (head, units) = record.split_at(lanes * geometry.head);
        // The columns of this step: one quad of one record, as far as the block and the record go.
        let q = inside / QUAD;
        let end = (inside / QUAD * QUAD + QUAD).min(geometry.record_len(r)) - inside;
        let count = end.min(at + len - k);
        let unit = &units[inside / columns * base_bytes * bases..];
        for base in 0..bases {
            let codes =
                quad_at::<BITS, TABLE>(&unit[base * base_bytes..][..base_bytes], panel, stride, q, table);
            for c in 0..count {
                let byte = (inside % QUAD + c) as u32;
                let code = _mm512_and_si512(
                    _mm512_srl_epi32(codes, _mm_cvtsi32_si128(8 * byte as i32)),
                    _mm512_set1_epi32(255),
                );
                let value = _mm512_sub_epi32(code, _mm512_set1_epi32(zero_point(coded)));
                let v = _mm512_cvtepi32_ps(value);
                let place = ((k - at + c) * np + p) * PANEL;
                let w = match SCHEME {
                    scheme::ROW => {
                        let w = _mm512_mul_ps(v, scales(ScaleType::F32, &head[base * lanes * 4..], lane));
                        if base == 0 { w } else { _mm512_add_ps(floats(block, place), w) }
                    }
                    scheme::GROUP => _mm512_mul_ps(scales(ty, head, lane), v),
                    scheme::GROUP_MINIMUM => {
                        let minimum = scales(ty, &head[lanes * ty.bytes()..], lane);
                        _mm512_add_ps(_mm512_mul_ps(scales(ty, head, lane), v), minimum)
                    }
                    scheme::GROUP_ZERO => {
                        let zeros = unsigned_bytes(head, lanes * ty.bytes() + lane);
                        let v = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zeros));
                        _mm512_mul_ps(scales(ty, head, lane), v)
                    }
                    _ => {
                        let Scales::TwoLevel { minimum, .. } = coded.scales else { return };
                        let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
                        let j = inside / group_len;
                        let sc = _mm512_cvtepi32_ps(signed_bytes(subs, j * lanes + lane));
                        let product = _mm512_mul_ps(_mm512_mul_ps(scales(ty, head, lane), sc), v);
                        if minimum {
                            let groups = SUPER_BLOCK / group_len;
                            let mn = _mm512_cvtepi32_ps(signed_bytes(subs, (groups + j) * lanes + lane));
                            let dmin = scales(ty, &head[lanes * ty.bytes()..], lane);
                            _mm512_sub_ps(product, _mm512_mul_ps(dmin, mn))
                        } else {
                            product
                        }
                    }
                };
                put_floats(block, place, w);
            }
        }
        k += count;
    }
}

/// `quad` with the quad's index inside the record, which is no constant here.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quad_at<const BITS: u8, const TABLE: bool>(
    unit: &[u8],
    panel: usize,
    stride: usize,
    q: usize,
    table: __m512i,
) -> __m512i {
    quad::<BITS, TABLE>(unit, panel * LINE, stride * LINE, q % unit_quads(BITS), table)
}
