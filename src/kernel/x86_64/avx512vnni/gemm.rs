//! Several rows of x: a block of weights is decoded to bytes once and reused by every row.
//!
//! ```text
//! block   [quad][NP panels][64 bytes]      codes of a k-block as unsigned bytes, in L1 or L2
//! scales  [record][NP][16] f32             and minima behind them; two-level: see `Scales`
//! ```
//! The inner kernels keep MR x NP accumulators in registers: 12 x 2 integers where weights have one
//! scale, 6 x 2 integers and 6 x 2 floats where they have groups. Each quad costs NP weight loads and
//! MR broadcasts that fold into `vpdpbusd`. Limit: two `vpdpbusd` a cycle.
//!
//! Float accumulators rest in the output between k-blocks, so that the order of the sums does not
//! depend on the size of a block.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::split;
use crate::kernel::narrow::{Units, for_rows, for_width, unit_lines, unit_quads};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{Coded, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE};

/// Most rows of a panel of x where weights have one scale.
pub(super) const ROWS_SINGLE: usize = 12;
/// Most rows of a panel of x where weights have groups.
pub(super) const ROWS: usize = 6;
/// Panels of W that an inner kernel takes.
const PAIR: usize = 2;
/// Columns of a k-block: a pair of panels is then 64 KiB of bytes, an L2 resident.
const BLOCK: usize = 2048;

/// How many records, or columns where a record is the whole row, make a k-block.
fn block_records(packed: &Packed) -> usize {
    (BLOCK / packed.geometry().record_padded()).max(1)
}

fn block_columns(packed: &Packed) -> usize {
    let geometry = packed.geometry();
    match packed.layout() {
        Layout::Coded(Coded { scales: Scales::Row, .. }) => BLOCK.min(geometry.padded()),
        _ => (block_records(packed) * geometry.record_padded()).min(geometry.padded()),
    }
}

/// Floats beside the codes of a record: scale and minimum, or d, dmin and the integers of a super-block.
const HEAD: usize = PAIR * PANEL * (2 + 2 * SUPER_BLOCK / 16);

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    let heads = match packed.layout() {
        Layout::Coded(Coded { scales: Scales::Row, .. }) => 1,
        Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }) => block_records(packed),
        _ => block_records(packed).div_ceil(16), // two vectors a record where HEAD has 34
    };
    block_columns(packed) * PAIR * PANEL + heads * HEAD * 4 + 64
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
        return Ok(());
    };
    let tile = job.packed.tile(job.tile);
    let mut first = 0;
    while first < tile.panels {
        let np = PAIR.min(tile.panels - first);
        let mut work = Work { packed: job.packed, coded, tile, first, x, rows: job.rows, out: job.out };
        match (coded.scales, np) {
            (Scales::Row, 1) => work.row::<1>(job.scratch),
            (Scales::Row, _) => work.row::<PAIR>(job.scratch),
            (_, 1) => work.records::<1>(job.scratch),
            _ => work.records::<PAIR>(job.scratch),
        }
        first += np;
    }
    Ok(())
}

/// One or two panels of W times the batch.
struct Work<'a, 'o> {
    packed: &'a Packed,
    coded: &'a Coded,
    tile: Tile<'a>,
    first: usize,
    x: Codes<'a>,
    rows: usize,
    out: &'o mut [f32],
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
            for line in 0..unit_lines(BITS) * NP {
                prefetch(u, 2048 + line * LINE);
            }
            for i in 0..unit_quads(BITS) {
                for p in 0..NP {
                    let codes = quad::<BITS, TABLE>(u, at + p * LINE, stride, i, table);
                    put_line(block, (i * NP + p) * LINE, codes);
                }
            }
        }
    }
}

/// `acc[i][p] += block . x` over `quads` quads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const MR: usize, const NP: usize>(block: &[u8], x: &[i8], acc: &mut [[__m512i; NP]; MR]) {
    for (w, q) in block.chunks_exact(NP * LINE).zip(x.chunks_exact(MR * QUAD)) {
        let mut codes = [_mm512_setzero_si512(); NP];
        for p in 0..NP {
            codes[p] = line(w, p * LINE);
        }
        for i in 0..MR {
            let b = &q[i * QUAD..][..QUAD];
            let b = _mm512_set1_epi32(i32::from_le_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8]));
            for p in 0..NP {
                acc[i][p] = _mm512_dpbusd_epi32(acc[i][p], codes[p], b);
            }
        }
    }
}

/// What the sums of a group begin with where codes of x are unsigned (`activation::WeightSums`).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn add_weights<const MR: usize, const NP: usize>(
    x: &Codes<'_>,
    group: usize,
    first: usize,
    dot: &mut [[__m512i; NP]; MR],
) {
    let Some(weights) = x.weight_sums(group) else { return };
    for p in 0..NP {
        let sum = integers(weights, (first + p) * PANEL);
        for i in 0..MR {
            dot[i][p] = _mm512_add_epi32(dot[i][p], sum);
        }
    }
}

impl Work<'_, '_> {
    /// One scale for each row of W: integers over all of k, then one product.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row<const NP: usize>(&mut self, scratch: &mut [u8]) {
        let bits = self.coded.bits;
        let stride = self.tile.panels;
        let (head, units) = self.tile.bytes.split_at(stride * PANEL * 4);
        let unit_bytes = unit_lines(bits) * stride * LINE;
        let columns = unit_quads(bits) * QUAD;
        let padded = self.packed.geometry().padded();
        let (block, _) = split(scratch, block_columns(self.packed) * NP * PANEL);
        for at in (0..padded).step_by(BLOCK) {
            let len = BLOCK.min(padded - at);
            let block = &mut block[..len * NP * PANEL];
            let bytes = &units[at / columns * unit_bytes..][..len / columns * unit_bytes];
            let (unit, at_panel, stride) = (unit_bytes, self.first * LINE, stride * LINE);
            let units = Units { bytes, record: bytes.len(), head: 0, unit, at: at_panel, stride };
            decode::<NP>(self.coded, &units, block);
            for panel in 0..self.rows.div_ceil(self.x.mr) {
                for_rows!([1 2 3 4 5 6 7 8 9 10 11 12] self.x.mr,
                    MR => self.row_panel::<MR, NP>(panel, at, len, block, head));
            }
        }
    }

    /// A k-block of one panel of x. Partial integer sums rest in the output, as bits.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row_panel<const MR: usize, const NP: usize>(
        &mut self,
        panel: usize,
        at: usize,
        len: usize,
        block: &[u8],
        head: &[u8],
    ) {
        let x = self.x.panel(panel);
        let zero = zero_point(self.coded);
        let last = at + len == self.packed.geometry().padded();
        let out = &mut self.out[panel * MR * TILE..][..MR * TILE];
        let mut acc = [[_mm512_setzero_si512(); NP]; MR];
        if at > 0 {
            for i in 0..MR {
                for p in 0..NP {
                    acc[i][p] = _mm512_castps_si512(floats(out, i * TILE + (self.first + p) * PANEL));
                }
            }
        }
        multiply::<MR, NP>(block, &x.codes[at * MR..][..len * MR], &mut acc);
        if last {
            add_weights(&x, 0, self.first, &mut acc);
        }
        for i in 0..MR {
            for p in 0..NP {
                let place = i * TILE + (self.first + p) * PANEL;
                if !last {
                    put_floats(out, place, _mm512_castsi512_ps(acc[i][p]));
                    continue;
                }
                let dot = _mm512_sub_epi32(acc[i][p], _mm512_set1_epi32(zero * x.sums[i]));
                let s_w = scales(ScaleType::F32, head, (self.first + p) * PANEL);
                let s = _mm512_mul_ps(s_w, _mm512_set1_ps(x.scales[i]));
                put_floats(out, place, _mm512_mul_ps(_mm512_cvtepi32_ps(dot), s));
            }
        }
    }

    /// Groups and super-blocks: integers inside a record, floats across records.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn records<const NP: usize>(&mut self, scratch: &mut [u8]) {
        let geometry = *self.packed.geometry();
        let stride = self.tile.panels;
        let lanes = stride * PANEL;
        let unit_bytes = unit_lines(self.coded.bits) * stride * LINE;
        let per_block = block_records(self.packed);
        let two_level = matches!(self.coded.scales, Scales::TwoLevel { .. });
        let head_floats = NP * PANEL * if two_level { HEAD / (PAIR * PANEL) } else { 2 };
        let (block, heads) = split(scratch, block_columns(self.packed) * NP * PANEL);
        let blocks = self.tile.bytes.chunks(per_block * geometry.record_bytes(stride));
        let (record, head) = (geometry.record_bytes(stride), lanes * geometry.head);
        for (b, bytes) in blocks.enumerate() {
            let (unit, at) = (unit_bytes, self.first * LINE);
            let units = Units { bytes, record, head, unit, at, stride: stride * LINE };
            decode::<NP>(self.coded, &units, block);
            self.decode_heads::<NP>(&units, lanes, heads, head_floats);
            let at = b * per_block * geometry.record_padded();
            let columns = (per_block * geometry.record_padded()).min(geometry.padded() - at);
            let k = Block { first_record: b * per_block, columns, codes: block, heads, head_floats };
            for panel in 0..self.rows.div_ceil(self.x.mr) {
                for_rows!([1 2 3 4 5 6] self.x.mr, MR => match self.coded.scales {
                    Scales::TwoLevel { len, minimum } => self.super_blocks::<MR, NP>(panel, &k, len, minimum),
                    Scales::Group { offset, .. } => self.groups::<MR, NP>(panel, &k, offset),
                    Scales::Row => {}
                });
            }
        }
    }

    /// The heads of records as vectors: scale, minimum or zero points; or d, dmin, sub-scales, sub-minima.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn decode_heads<const NP: usize>(
        &self,
        units: &Units<'_>,
        lanes: usize,
        heads: &mut [f32],
        head_floats: usize,
    ) {
        let records = units.bytes.chunks(units.record);
        for (record, head) in records.zip(heads.chunks_exact_mut(head_floats)) {
            self.decode_head::<NP>(&record[..units.head], lanes, head);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn decode_head<const NP: usize>(&self, stored: &[u8], lanes: usize, head: &mut [f32]) {
        let ty = self.coded.scale_type;
        for p in 0..NP {
            let lane = (self.first + p) * PANEL;
            put_floats(head, p * PANEL, scales(ty, stored, lane));
            let rest = &stored[lanes * ty.bytes()..];
            match self.coded.scales {
                Scales::Group { offset: Offset::Minimum, .. } => {
                    put_floats(head, (NP + p) * PANEL, scales(ty, rest, lane))
                }
                Scales::Group { offset: Offset::Zero, .. } => {
                    let zeros = unsigned_bytes(rest, lane);
                    put_floats(head, (NP + p) * PANEL, _mm512_castsi512_ps(zeros));
                }
                Scales::TwoLevel { minimum, .. } => {
                    let subs = if minimum {
                        put_floats(head, (NP + p) * PANEL, scales(ty, rest, lane));
                        &rest[lanes * ty.bytes()..]
                    } else {
                        rest
                    };
                    for j in 0..subs.len() / lanes {
                        let v = _mm512_castsi512_ps(signed_bytes(subs, j * lanes + lane));
                        put_floats(head, ((2 + j) * NP + p) * PANEL, v);
                    }
                }
                _ => {}
            }
        }
    }

    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn groups<const MR: usize, const NP: usize>(&mut self, panel: usize, k: &Block<'_>, offset: Offset) {
        let x = self.x.panel(panel);
        let geometry = self.packed.geometry();
        let padded = geometry.record_padded();
        let zero = zero_point(self.coded);
        let at = k.first_record * padded;
        let out = &mut self.out[panel * MR * TILE..][..MR * TILE];
        let mut acc = [[_mm512_setzero_ps(); NP]; MR];
        if k.first_record > 0 {
            for i in 0..MR {
                for p in 0..NP {
                    acc[i][p] = floats(out, i * TILE + (self.first + p) * PANEL);
                }
            }
        }
        let codes = &x.codes[at * MR..][..k.columns * MR];
        let sums = x.sums[k.first_record * MR..].chunks_exact(MR);
        let s_x = x.scales[k.first_record * MR..].chunks_exact(MR);
        let records =
            k.codes[..k.columns * NP * PANEL].chunks(padded * NP * PANEL).zip(codes.chunks(padded * MR));
        for (r, ((((w, q), head), sums), s_x)) in
            records.zip(k.heads.chunks_exact(k.head_floats)).zip(sums).zip(s_x).enumerate()
        {
            let g = k.first_record + r;
            let mut dot = [[_mm512_setzero_si512(); NP]; MR];
            for i in 0..MR {
                dot[i] = [_mm512_set1_epi32(-zero * sums[i]); NP];
            }
            add_weights(&x, g, self.first, &mut dot);
            if offset == Offset::Zero {
                for i in 0..MR {
                    for p in 0..NP {
                        let zeros = _mm512_castps_si512(floats(head, (NP + p) * PANEL));
                        let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(x.totals[g * MR + i]));
                        dot[i][p] = _mm512_sub_epi32(dot[i][p], product);
                    }
                }
            }
            multiply::<MR, NP>(w, q, &mut dot);
            for i in 0..MR {
                let s = _mm512_set1_ps(s_x[i]);
                for p in 0..NP {
                    let scale = _mm512_mul_ps(floats(head, p * PANEL), s);
                    acc[i][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][p]), scale, acc[i][p]);
                }
            }
            if offset == Offset::Minimum {
                for i in 0..MR {
                    let weighted = _mm512_set1_ps(x.totals[g * MR + i] as f32 * s_x[i]);
                    for p in 0..NP {
                        acc[i][p] = _mm512_fmadd_ps(weighted, floats(head, (NP + p) * PANEL), acc[i][p]);
                    }
                }
            }
        }
        for i in 0..MR {
            for p in 0..NP {
                put_floats(out, i * TILE + (self.first + p) * PANEL, acc[i][p]);
            }
        }
    }

    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn super_blocks<const MR: usize, const NP: usize>(
        &mut self,
        panel: usize,
        k: &Block<'_>,
        len: usize,
        minimum: bool,
    ) {
        let x = self.x.panel(panel);
        let groups = SUPER_BLOCK / len;
        let zero = zero_point(self.coded);
        let out = &mut self.out[panel * MR * TILE..][..MR * TILE];
        let codes = &x.codes[k.first_record * SUPER_BLOCK * MR..][..k.columns * MR];
        let sums = x.sums[k.first_record * groups * MR..].chunks_exact(groups * MR);
        let s_x = x.scales[k.first_record * MR..].chunks_exact(MR);
        let records = k.codes[..k.columns * NP * PANEL]
            .chunks_exact(SUPER_BLOCK * NP * PANEL)
            .zip(codes.chunks_exact(SUPER_BLOCK * MR));
        for (b, ((((w, q), head), sums), s_x)) in
            records.zip(k.heads.chunks_exact(k.head_floats)).zip(sums).zip(s_x).enumerate()
        {
            let first_group = (k.first_record + b) * groups;
            let stored = |j: usize, p: usize| _mm512_castps_si512(floats(head, ((2 + j) * NP + p) * PANEL));
            let mut isum = [[_mm512_setzero_si512(); NP]; MR];
            for (j, (w, q)) in w.chunks_exact(len * NP * PANEL).zip(q.chunks_exact(len * MR)).enumerate() {
                let mut dot = [[_mm512_setzero_si512(); NP]; MR];
                for i in 0..MR {
                    dot[i] = [_mm512_set1_epi32(-zero * sums[j * MR + i]); NP];
                }
                add_weights(&x, first_group + j, self.first, &mut dot);
                multiply::<MR, NP>(w, q, &mut dot);
                for p in 0..NP {
                    let sc = stored(j, p);
                    for i in 0..MR {
                        isum[i][p] = _mm512_add_epi32(isum[i][p], _mm512_mullo_epi32(sc, dot[i][p]));
                    }
                }
            }
            for i in 0..MR {
                let s = _mm512_set1_ps(s_x[i]);
                for p in 0..NP {
                    let place = i * TILE + (self.first + p) * PANEL;
                    let before =
                        if k.first_record + b == 0 { _mm512_setzero_ps() } else { floats(out, place) };
                    let d = _mm512_mul_ps(floats(head, p * PANEL), s);
                    let mut acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[i][p]), d, before);
                    if minimum {
                        let mut msum = _mm512_setzero_si512();
                        for j in 0..groups {
                            let xsum = _mm512_set1_epi32(x.totals[(first_group + j) * MR + i]);
                            msum = _mm512_add_epi32(msum, _mm512_mullo_epi32(stored(groups + j, p), xsum));
                        }
                        let dmin = _mm512_mul_ps(floats(head, (NP + p) * PANEL), s);
                        acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), dmin, acc);
                    }
                    put_floats(out, place, acc);
                }
            }
        }
    }
}

/// A decoded k-block.
struct Block<'a> {
    first_record: usize,
    columns: usize,
    codes: &'a [u8],
    heads: &'a [f32],
    head_floats: usize,
}
