//! Several rows of x: a block of weights is decoded to bytes once and reused by every row.
//!
//! ```text
//! block   [quad][NP panels][64 bytes]      codes of a k-block as unsigned bytes, in L1
//! heads   [record][vector][NP][16] f32     scale and minimum or zero points; two levels: d, dmin, then
//!                                          integers: sub-scales, and in pairs of groups sub-minima and
//!                                          sub-scales (`Short`)
//! ```
//! A tile's four panels are taken together: 6 rows of x x 4 panels are 24 sums in registers, 4 vectors of
//! codes, one of x. Each quad costs 4 loads of weights and 6 broadcasts for 24 `vpdpbusd`. Limit: two
//! `vpdpbusd` a cycle. Groups take 3 rows of the 6 at a time, so that the sums of groups and what they come to
//! are both in registers. While a panel of x is multiplied, a part of the next block is asked for (`Ahead`).
//!
//! Sums rest in the output between k-blocks, so that their order does not depend on the size of a block.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::{Ahead, split};
use crate::kernel::narrow::{Units, for_rows, for_width, unit_lines, unit_quads, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{
    Coded, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS, Values,
};

/// Most rows of a panel of x.
pub(super) const ROWS: usize = 6;
/// Columns of a k-block where weights have one scale: 32 KiB of bytes.
const BLOCK: usize = 512;
/// Columns of a k-block where they have groups: 16 KiB of bytes, with the heads beside them.
const BLOCK_OF_RECORDS: usize = 512;
/// Most records of a k-block; and most groups, as a super-block has no more than 16.
const RECORDS: usize = 32;

/// How many records make a k-block.
fn block_records(packed: &Packed) -> usize {
    (BLOCK_OF_RECORDS / packed.geometry().record_padded()).clamp(1, RECORDS)
}

fn block_columns(packed: &Packed) -> usize {
    let geometry = packed.geometry();
    match packed.layout() {
        Layout::Coded(Coded { scales: Scales::Row, .. }) => BLOCK.min(geometry.padded()),
        _ => (block_records(packed) * geometry.record_padded()).min(geometry.padded()),
    }
}

/// Vectors of a panel beside the codes of a record.
fn head_vectors(coded: &Coded) -> usize {
    match coded.scales {
        Scales::TwoLevel { len, .. } => 2 + 2 * (SUPER_BLOCK / len),
        _ => 2,
    }
}

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    let heads = match packed.layout() {
        Layout::Coded(coded) => block_records(packed) * head_vectors(coded),
        Layout::Dense(_) => 0,
    };
    (block_columns(packed) + heads * 4) * TILE + 64
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
        return Ok(());
    };
    if x.mr == 1 {
        return super::gemv::run(job); // another layer of the call takes its rows one by one
    }
    let tile = job.packed.tile(job.tile);
    let short = Short::of(coded, x.bias);
    let mut first = 0;
    while first < tile.panels {
        let mut work =
            Work { packed: job.packed, coded, tile, first, x, short, rows: job.rows, out: job.out };
        first += match (coded.scales, tile.panels - first) {
            (Scales::Row, TILE_PANELS..) => work.row::<TILE_PANELS>(job.scratch),
            (Scales::Row, _) => work.row::<2>(job.scratch),
            (_, TILE_PANELS..) => work.records::<TILE_PANELS>(job.scratch),
            _ => work.records::<2>(job.scratch),
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
    short: Option<Short>,
    rows: usize,
    out: &'o mut [f32],
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
            for line in 0..unit_lines(BITS) * NP {
                prefetch(u, 2048 + line * LINE);
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

/// `acc[i][p] += block . x` for the rows from `first` on of a panel of `mr`. `FETCH`: each quad asks for its part of what
/// comes; short groups do so once (`fetch`), as instructions are nearly the limit there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const R: usize, const NP: usize, const FETCH: bool>(
    block: &[u8],
    x: &[i8],
    (mr, first): (usize, usize),
    ahead: &mut Ahead<'_>,
    acc: &mut [[__m512i; NP]; R],
) {
    let mut at = first * QUAD;
    for w in block.chunks_exact(NP * LINE) {
        let Some(q) = x.get(at..at + R * QUAD) else { return };
        at += mr * QUAD;
        if FETCH {
            prefetch_far(ahead.bytes, ahead.at);
            ahead.at += ahead.step;
        }
        let mut codes = [_mm512_setzero_si512(); NP];
        unrolled!(NP, P => codes[P] = line(w, P * LINE));
        unrolled!(R, I => {
            let b = &q[I * QUAD..][..QUAD];
            let b = _mm512_set1_epi32(i32::from_le_bytes([b[0] as u8, b[1] as u8, b[2] as u8, b[3] as u8]));
            unrolled!(NP, P => acc[I][P] = _mm512_dpbusd_epi32(acc[I][P], codes[P], b));
        });
    }
}

/// Asks for what comes while so many quads are multiplied.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn fetch(ahead: &mut Ahead<'_>, quads: usize) {
    let part = ahead.take(quads);
    for at in (part.at..ahead.at).step_by(LINE) {
        prefetch_far(part.bytes, at);
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

/// What a k-block needs to know of a panel of x, `[group][mr]`.
struct Sides {
    /// `-centre * sum`: what sums of products begin with.
    begins: [i32; RECORDS * ROWS],
    /// `(centre - zero) * sum` of two groups, 16 bits each, the first in the low half (`Short`).
    corrections: [i32; RECORDS / 2 * ROWS],
    /// Totals of two groups in the same way, for sub-minima.
    totals: [i32; RECORDS / 2 * ROWS],
}

/// `factor` times `sums[group][mr]`, which then fit 16 bits, of two groups in each: the first in the low half.
#[inline]
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
        let (block, _) = split(scratch, block_columns(self.packed) * NP * PANEL);
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
        multiply::<MR, NP, true>(block, &x.codes[at * MR..][..len * MR], (MR, 0), &mut ahead, &mut acc);
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

    /// Groups and super-blocks: integers inside a record, floats across records. The number of panels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn records<const NP: usize>(&mut self, scratch: &mut [u8]) -> usize {
        let geometry = *self.packed.geometry();
        let stride = self.tile.panels;
        let lanes = stride * PANEL;
        let unit_bytes = unit_lines(self.coded.bits) * stride * LINE;
        let per_block = block_records(self.packed);
        let head_floats = NP * PANEL * head_vectors(self.coded);
        let (block, heads) = split(scratch, block_columns(self.packed) * NP * PANEL);
        let blocks = self.tile.bytes.chunks(per_block * geometry.record_bytes(stride));
        let (record, head) = (geometry.record_bytes(stride), lanes * geometry.head);
        let panels = self.rows.div_ceil(self.x.mr);
        let mut sides = Sides {
            begins: [0; RECORDS * ROWS],
            corrections: [0; RECORDS / 2 * ROWS],
            totals: [0; RECORDS / 2 * ROWS],
        };
        for (b, bytes) in blocks.enumerate() {
            let (unit, at) = (unit_bytes, self.first * LINE);
            let units = Units { bytes, record, head, unit, at, stride: stride * LINE };
            decode::<NP>(self.coded, &units, block);
            self.decode_heads::<NP>(&units, lanes, heads, head_floats);
            let at = b * per_block * geometry.record_padded();
            let columns = (per_block * geometry.record_padded()).min(geometry.padded() - at);
            let k = Block { first_record: b * per_block, columns, codes: block, heads, head_floats };
            for panel in 0..panels {
                self.sides(panel, &k, &mut sides);
                // Three rows, or two, with all that belongs to them in registers.
                let rows = if self.x.mr.is_multiple_of(3) { 3 } else { 2 };
                let parts = self.x.mr / rows;
                for first in (0..self.x.mr).step_by(rows) {
                    let mut ahead = self.ahead(bytes, panel * parts + first / rows, panels * parts, columns);
                    let part = Part { panel, first, k: &k, sides: &sides };
                    match (self.coded.scales, rows) {
                        (Scales::TwoLevel { .. }, 3) if self.short.is_some() => {
                            self.super_blocks::<3, NP, true>(&part, &mut ahead)
                        }
                        (Scales::TwoLevel { .. }, _) if self.short.is_some() => {
                            self.super_blocks::<2, NP, true>(&part, &mut ahead)
                        }
                        (Scales::TwoLevel { .. }, 3) => self.super_blocks::<3, NP, false>(&part, &mut ahead),
                        (Scales::TwoLevel { .. }, _) => self.super_blocks::<2, NP, false>(&part, &mut ahead),
                        (Scales::Group { offset: Offset::Minimum, .. }, 3) => {
                            self.groups::<3, NP, true>(&part, &mut ahead)
                        }
                        (Scales::Group { offset: Offset::Minimum, .. }, _) => {
                            self.groups::<2, NP, true>(&part, &mut ahead)
                        }
                        (_, 3) => self.groups::<3, NP, false>(&part, &mut ahead),
                        _ => self.groups::<2, NP, false>(&part, &mut ahead),
                    }
                }
            }
        }
        NP
    }

    /// What a k-block needs to know of a panel of x.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn sides(&self, panel: usize, k: &Block<'_>, sides: &mut Sides) {
        let (x, zero) = (self.x.panel(panel), zero_point(self.coded));
        let centre = self.short.map_or(zero, |short| short.centre);
        let groups = match self.coded.scales {
            Scales::TwoLevel { len, .. } => SUPER_BLOCK / len,
            _ => 1,
        };
        // Those of the block, and not of what comes after it.
        let first = k.first_record * groups * x.mr;
        let count = block_records(self.packed) * groups * x.mr;
        let here = first..(first + count).min(x.sums.len());
        let (sums, totals) = (&x.sums[here.clone()], &x.totals[here]);
        for (begin, sum) in sides.begins.iter_mut().zip(sums) {
            *begin = -centre * sum;
        }
        if groups > 1 {
            if centre != zero {
                pairs(x.mr, sums, centre - zero, &mut sides.corrections);
            }
            if matches!(self.coded.scales, Scales::TwoLevel { minimum: true, .. }) {
                pairs(x.mr, totals, 1, &mut sides.totals);
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
        for (p, panel) in self.panels::<NP>().into_iter().enumerate() {
            let lane = panel * PANEL;
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
                Scales::TwoLevel { len, minimum } => {
                    let groups = SUPER_BLOCK / len;
                    let subs = if minimum {
                        put_floats(head, (NP + p) * PANEL, scales(ty, rest, lane));
                        &rest[lanes * ty.bytes()..]
                    } else {
                        rest
                    };
                    let mut put = |vector: usize, v: __m512i| {
                        put_floats(head, ((2 + vector) * NP + p) * PANEL, _mm512_castsi512_ps(v));
                    };
                    let low = _mm512_set1_epi32(0xffff);
                    let pair = |j: usize| {
                        let (a, b) = (
                            signed_bytes(subs, j * lanes + lane),
                            signed_bytes(subs, (j + 1) * lanes + lane),
                        );
                        _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi32::<16>(b))
                    };
                    for j in 0..groups {
                        let v = signed_bytes(subs, j * lanes + lane);
                        put(j, if self.short.is_some() { _mm512_and_si512(v, low) } else { v });
                    }
                    for j in (0..groups).step_by(2) {
                        if minimum {
                            put(groups + j / 2, pair(groups + j));
                        }
                        if self.short.is_some() {
                            put(groups + (groups + j) / 2, pair(j));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// `MINIMUM`: groups have one.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn groups<const R: usize, const NP: usize, const MINIMUM: bool>(
        &mut self,
        part: &Part<'_>,
        ahead: &mut Ahead<'_>,
    ) {
        let (x, panels, k) = (self.x.panel(part.panel), self.panels::<NP>(), part.k);
        let zeros = matches!(self.coded.scales, Scales::Group { offset: Offset::Zero, .. });
        let (mr, padded) = (x.mr, self.packed.geometry().record_padded());
        let out = &mut self.out[(part.panel * mr + part.first) * TILE + self.first * PANEL..];
        let out = &mut out[..(R - 1) * TILE + NP * PANEL];
        let mut acc = [[_mm512_setzero_ps(); NP]; R];
        if k.first_record > 0 {
            unrolled!(R, I => unrolled!(NP, P => acc[I][P] = floats(out, I * TILE + P * PANEL)));
        }
        let codes = &x.codes[k.first_record * padded * mr..][..k.columns * mr];
        let blocks = k.codes[..k.columns * NP * PANEL].chunks(padded * NP * PANEL);
        // Not `chunks` of x: a zip of those divides by their lengths.
        let mut row = k.first_record * mr + part.first;
        for (r, w) in blocks.enumerate() {
            let head = &k.heads[r * k.head_floats..][..2 * NP * PANEL];
            let (s_x, totals) = (&x.scales[row..][..R], &x.totals[row..][..R]);
            row += mr;
            let begin = &part.sides.begins[r * mr + part.first..][..R];
            let mut dot = [[_mm512_setzero_si512(); NP]; R];
            unrolled!(R, I => {
                let begin = _mm512_set1_epi32(begin[I]);
                unrolled!(NP, P => dot[I][P] = begin);
            });
            add_weights!(x, k.first_record + r, panels, dot[R][NP]);
            if zeros {
                unrolled!(R, I => unrolled!(NP, P => {
                    let zeros = _mm512_castps_si512(floats(head, (NP + P) * PANEL));
                    let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(totals[I]));
                    dot[I][P] = _mm512_sub_epi32(dot[I][P], product);
                }));
            }
            let q = &codes[r * padded * mr..];
            fetch(ahead, w.len() / (NP * LINE));
            multiply::<R, NP, false>(w, q, (mr, part.first), ahead, &mut dot);
            unrolled!(R, I => {
                let s = _mm512_set1_ps(s_x[I]);
                let weighted = _mm512_set1_ps(totals[I] as f32 * s_x[I]);
                unrolled!(NP, P => {
                    let scale = _mm512_mul_ps(floats(head, P * PANEL), s);
                    acc[I][P] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[I][P]), scale, acc[I][P]);
                    if MINIMUM {
                        acc[I][P] = _mm512_fmadd_ps(weighted, floats(head, (NP + P) * PANEL), acc[I][P]);
                    }
                });
            });
        }
        unrolled!(R, I => unrolled!(NP, P => put_floats(out, I * TILE + P * PANEL, acc[I][P])));
    }

    /// `SHORT`: sums of groups fit 16 bits.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn super_blocks<const R: usize, const NP: usize, const SHORT: bool>(
        &mut self,
        part: &Part<'_>,
        ahead: &mut Ahead<'_>,
    ) {
        let Scales::TwoLevel { len, minimum } = self.coded.scales else { return };
        let (x, panels, k, sides) = (self.x.panel(part.panel), self.panels::<NP>(), part.k, part.sides);
        let (mr, groups) = (x.mr, SUPER_BLOCK / len);
        let corrected = SHORT && self.short.is_some_and(|short| short.centre != zero_point(self.coded));
        let out = &mut self.out[(part.panel * mr + part.first) * TILE + self.first * PANEL..];
        let out = &mut out[..(R - 1) * TILE + NP * PANEL];
        let codes = &x.codes[k.first_record * SUPER_BLOCK * mr..][..k.columns * mr];
        let blocks = k.codes[..k.columns * NP * PANEL].chunks_exact(SUPER_BLOCK * NP * PANEL);
        for (r, w) in blocks.enumerate() {
            let b = k.first_record + r;
            let head = &k.heads[r * k.head_floats..][..(2 + 2 * groups) * NP * PANEL];
            let (scales, integers) = head.split_at(2 * NP * PANEL);
            let (subs, integers) = integers.split_at(groups * NP * PANEL);
            let (minima, sub_pairs) = integers.split_at(groups / 2 * NP * PANEL);
            let first_pair = r * (groups / 2) * mr + part.first;
            let mut isum = [[_mm512_setzero_si512(); NP]; R];
            if corrected {
                let mut at = first_pair;
                for sc in sub_pairs.chunks_exact(NP * PANEL) {
                    let correction = &sides.corrections[at..][..R];
                    at += mr;
                    unrolled!(NP, P => {
                        let sc = _mm512_castps_si512(floats(sc, P * PANEL));
                        unrolled!(R, I => {
                            isum[I][P] = _mm512_dpwssd_epi32(isum[I][P], sc, _mm512_set1_epi32(correction[I]));
                        });
                    });
                }
            }
            let q = &codes[r * SUPER_BLOCK * mr..];
            let parts = w.chunks_exact(len * NP * PANEL).zip(subs.chunks_exact(NP * PANEL));
            for (j, (w, subs)) in parts.enumerate() {
                let begin = &sides.begins[(r * groups + j) * mr + part.first..][..R];
                let mut dot = [[_mm512_setzero_si512(); NP]; R];
                unrolled!(R, I => {
                    let begin = _mm512_set1_epi32(begin[I]);
                    unrolled!(NP, P => dot[I][P] = begin);
                });
                if !SHORT {
                    add_weights!(x, b * groups + j, panels, dot[R][NP]);
                }
                fetch(ahead, len / QUAD);
                multiply::<R, NP, false>(w, &q[j * len * mr..], (mr, part.first), ahead, &mut dot);
                unrolled!(NP, P => {
                    let sc = _mm512_castps_si512(floats(subs, P * PANEL));
                    unrolled!(R, I => {
                        isum[I][P] = if SHORT {
                            _mm512_dpwssd_epi32(isum[I][P], dot[I][P], sc)
                        } else {
                            _mm512_add_epi32(isum[I][P], _mm512_mullo_epi32(sc, dot[I][P]))
                        };
                    });
                });
            }
            let mut msum = [[_mm512_setzero_si512(); NP]; R];
            if minimum {
                let mut at = first_pair;
                for mn in minima.chunks_exact(NP * PANEL) {
                    let totals = &sides.totals[at..][..R];
                    at += mr;
                    unrolled!(NP, P => {
                        let mn = _mm512_castps_si512(floats(mn, P * PANEL));
                        unrolled!(R, I => {
                            msum[I][P] = _mm512_dpwssd_epi32(msum[I][P], mn, _mm512_set1_epi32(totals[I]));
                        });
                    });
                }
            }
            let s_x = &x.scales[b * mr + part.first..][..R];
            unrolled!(NP, P => {
                let d = floats(scales, P * PANEL);
                unrolled!(R, I => {
                    let place = I * TILE + P * PANEL;
                    let before = if b == 0 { _mm512_setzero_ps() } else { floats(out, place) };
                    let s = _mm512_set1_ps(s_x[I]);
                    let mut acc =
                        _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[I][P]), _mm512_mul_ps(d, s), before);
                    if minimum {
                        let dmin = _mm512_mul_ps(floats(scales, (NP + P) * PANEL), s);
                        acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[I][P]), dmin, acc);
                    }
                    put_floats(out, place, acc);
                });
            });
        }
    }
}

/// Some rows of a panel of x, and the block that they meet.
struct Part<'a> {
    panel: usize,
    /// The first row in the panel.
    first: usize,
    k: &'a Block<'a>,
    sides: &'a Sides,
}

/// A decoded k-block.
struct Block<'a> {
    first_record: usize,
    columns: usize,
    codes: &'a [u8],
    heads: &'a [f32],
    head_floats: usize,
}
