//! Groups and super-blocks with several rows of x, as `gemm` takes rows with one scale.
//!
//! ```text
//! block   [quad][NP panels][64 bytes]       codes of a k-block as unsigned bytes, in L1
//! heads   [record][vector][NP panels][16]   f32: scale, then minimum or zero points; two levels: d, dmin, then
//!                                           integers: sub-scales, and in pairs of groups sub-minima and
//!                                           sub-scales (`Short`)
//! ```
//! A panel of x is taken in parts of three rows: with four panels of W the sums of a group and what groups have come
//! to are both in registers, 12 each, beside 4 vectors of codes and one of x. Limit: two operations on vectors a
//! cycle, of which a group of 32 has 8 `vpdpbusd` and 3 others for each row and panel. What a group begins and ends with
//! is read from arrays of a known length, in step: instructions are nearly as scarce.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;
use std::slice::Chunks;

use super::fold::Fold;
use super::gemm::{ROWS, Short, add_weights, decode, pairs};
use super::vector::*;
use crate::activation::Codes;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::{Ahead, split};
use crate::kernel::narrow::{Units, for_rows, unit_lines, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{Coded, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, Scales, TILE, TILE_PANELS};

/// Columns of a k-block: 32 KiB of bytes, with the heads beside them.
const BLOCK: usize = 512;
/// Most records of a k-block; and most groups, as a super-block has no more than 16.
const RECORDS: usize = 32;

/// A vector of each panel.
pub(super) type Vectors<const NP: usize> = [[f32; PANEL]; NP];

/// How many records make a k-block.
fn block_records(packed: &Packed) -> usize {
    (BLOCK / packed.geometry().record_padded()).clamp(1, RECORDS)
}

fn block_columns(packed: &Packed) -> usize {
    let geometry = packed.geometry();
    (block_records(packed) * geometry.record_padded()).min(geometry.padded())
}

/// Vectors of a panel beside the codes of a record.
fn head_vectors(coded: &Coded) -> usize {
    match coded.scales {
        Scales::TwoLevel { len, .. } => 2 + 2 * (SUPER_BLOCK / len),
        _ => 2,
    }
}

pub(super) fn scratch(packed: &Packed) -> usize {
    let heads = match packed.layout() {
        Layout::Coded(coded) => block_records(packed) * head_vectors(coded),
        Layout::Dense(_) => 0,
    };
    block_columns(packed) * TILE + heads * size_of::<Vectors<TILE_PANELS>>() + 64
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>, x: Codes<'_>, coded: &Coded) {
    let (tile, short, fold) = (job.packed.tile(job.tile), Short::of(coded, x.bias), Fold::of(coded, x.bias));
    let mut work = Work { packed: job.packed, coded, tile, x, short, fold, rows: job.rows, out: job.out };
    work.tile(job.scratch);
}

/// A tile times the batch.
struct Work<'a, 'o> {
    packed: &'a Packed,
    coded: &'a Coded,
    tile: Tile<'a>,
    x: Codes<'a>,
    short: Option<Short>,
    fold: Option<Fold>,
    rows: usize,
    out: &'o mut [f32],
}

/// What a k-block needs to know of a panel of x, `[group][mr]`.
struct Sides {
    /// `-centre * sum`: what sums of products begin with.
    begins: [i32; RECORDS * ROWS],
    /// `(centre - zero) * sum` of two groups, 16 bits each, the first in the low half (`Short`).
    corrections: [i32; RECORDS / 2 * ROWS],
    /// Totals of two groups in the same way, for sub-minima.
    totals: [i32; RECORDS / 2 * ROWS],
    /// Totals times scales of x, for minima.
    weighted: [f32; RECORDS * ROWS],
}

/// Some panels of W, a k-block of them decoded, and a panel of x.
struct Block<'a, const NP: usize> {
    panels: [usize; NP],
    first_record: usize,
    columns: usize,
    codes: &'a [[u8; LINE]],
    heads: &'a [Vectors<NP>],
    panel: usize,
    x: Codes<'a>,
    /// How many rows of it there are: those that fill it up are left out where they are a part.
    rows: usize,
    /// What it asks for, group by group: a part of what the next k-block is decoded from.
    ahead: Ahead<'a>,
}

/// Asks for the lines of a step.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn ask(ahead: &mut Ahead<'_>) {
    for line in 0..ahead.step.div_ceil(LINE) {
        prefetch_far(ahead.bytes, ahead.at + line * LINE);
    }
    ahead.at += ahead.step;
}

/// A list as `[_][PARTS][R][N]`.
#[inline(always)]
fn parts<const N: usize, const R: usize, const PARTS: usize, T>(list: &[T]) -> &[[[[T; N]; R]; PARTS]] {
    list.as_chunks::<N>().0.as_chunks::<R>().0.as_chunks::<PARTS>().0
}

/// The first `len` of a list, which is left with the others.
#[inline(always)]
fn take<'a, T>(list: &mut &'a [T], len: usize) -> &'a [T] {
    let (first, rest) = list.split_at(len.min(list.len()));
    *list = rest;
    first
}

/// `$dot[$R][$NP] += codes of W . codes of x`, quad by quad: `[[u8; LINE]; $NP]` times the rows of part `$part` of
/// `[[[i8; QUAD]; $R]; _]`. Not a function that is given a pointer to sums.
macro_rules! multiply {
    ($weights:expr, $codes:expr, $part:expr, $dot:ident[$R:ident][$NP:ident]) => {
        for (w, q) in $weights.iter().zip($codes) {
            let mut codes = [_mm512_setzero_si512(); $NP];
            unrolled!($NP, P => codes[P] = line(&w[P], 0));
            let q = &q[$part];
            unrolled!($R, I => {
                let x = _mm512_set1_epi32(i32::from_le_bytes(q[I].map(|code| code as u8)));
                unrolled!($NP, P => $dot[I][P] = _mm512_dpbusd_epi32($dot[I][P], codes[P], x));
            });
        }
    };
}

/// `$sums[$R][$NP] +=` sub-scales or sub-minima of two groups at a time, `$pairs`, times what `gemm::pairs` made of sums of x.
macro_rules! add_pairs {
    ($pairs:expr, $of_x:expr, $part:expr, $sums:ident[$R:ident][$NP:ident]) => {
        for (pairs, of_x) in $pairs.iter().zip($of_x) {
            unrolled!($R, I => {
                let of_x = _mm512_set1_epi32(of_x[$part][I]);
                unrolled!($NP, P => {
                    let pair = _mm512_castps_si512(floats(&pairs[P], 0));
                    $sums[I][P] = _mm512_dpwssd_epi32($sums[I][P], pair, of_x);
                });
            });
        }
    };
}

impl Work<'_, '_> {
    /// All panels of W; past the last one that one again, where the number is odd. The results of that are written to lanes
    /// of the output that nobody reads.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn tile(&mut self, scratch: &mut [u8]) {
        let last = self.tile.panels - 1;
        if last + 1 == TILE_PANELS {
            return self.panels([0, 1, 2, 3], scratch);
        }
        for first in (0..=last).step_by(2) {
            self.panels([first, (first + 1).min(last)], scratch);
        }
    }

    /// Integers inside a record, floats across records.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn panels<const NP: usize>(&mut self, panels: [usize; NP], scratch: &mut [u8]) {
        let geometry = *self.packed.geometry();
        let (stride, mr) = (self.tile.panels, self.x.mr);
        let unit = unit_lines(self.coded.bits) * stride * LINE;
        let (record, head) = (geometry.record_bytes(stride), stride * PANEL * geometry.head);
        let per_block = block_records(self.packed);
        let per_record = head_vectors(self.coded);
        let groups = match self.coded.scales {
            Scales::TwoLevel { len, .. } => SUPER_BLOCK / len,
            _ => 1,
        };
        // Where sub-scales lie in a record.
        let subs = match self.coded.scales {
            Scales::TwoLevel { minimum, .. } => {
                let at = stride * PANEL * self.coded.scale_type.bytes() * (1 + minimum as usize);
                at..at + groups * stride * PANEL
            }
            _ => 0..0,
        };
        let (codes, heads) = split(scratch, block_columns(self.packed) * NP * PANEL);
        let heads = heads.as_chunks_mut().0.as_chunks_mut().0;
        let panels_of_x = self.rows.div_ceil(mr);
        let mut sides = Sides {
            begins: [0; RECORDS * ROWS],
            corrections: [0; RECORDS / 2 * ROWS],
            totals: [0; RECORDS / 2 * ROWS],
            weighted: [0.0; RECORDS * ROWS],
        };
        for (b, bytes) in self.tile.bytes.chunks(per_block * record).enumerate() {
            let at = b * per_block * geometry.record_padded();
            let columns = (per_block * geometry.record_padded()).min(geometry.padded() - at);
            let records = bytes.len().div_ceil(record);
            let units = Units { bytes, record, head, unit, at: panels[0] * LINE, stride: stride * LINE };
            decode::<NP>(self.coded, &units, codes);
            self.decode_heads(bytes.chunks(record), panels, heads);
            let fits = |fold: &Fold| bytes.chunks(record).all(|record| fold.fits(&record[subs.clone()]));
            let fold = self.fold.filter(fits);
            if let Some(fold) = fold {
                let codes = codes[..columns * NP * PANEL].as_chunks_mut().0;
                fold.apply(codes, &heads[..records * per_record], groups);
            }
            // Each part of a panel asks once for each group; folded ones are not taken in parts.
            let steps = records * groups * if fold.is_some() { 1 } else { mr.div_ceil(3) };
            for panel in 0..panels_of_x {
                let block = Block {
                    panels,
                    first_record: b * per_block,
                    columns,
                    codes: codes[..columns * NP * PANEL].as_chunks().0,
                    heads: &heads[..records * per_record],
                    panel,
                    x: self.x.panel(panel),
                    rows: self.rows - panel * mr,
                    ahead: Ahead::in_steps(bytes, panel, panels_of_x, steps),
                };
                self.sides(&block, groups, &mut sides, fold.is_none());
                if let Some(fold) = fold {
                    for_rows!([2 4 6] mr, MR => self.folded::<MR, NP>(&block, &sides, fold.base));
                    continue;
                }
                match mr {
                    6 => self.panel_of_x::<3, 2, NP>(&block, &sides),
                    4 => self.panel_of_x::<2, 2, NP>(&block, &sides),
                    _ => self.panel_of_x::<2, 1, NP>(&block, &sides),
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn panel_of_x<const R: usize, const PARTS: usize, const NP: usize>(
        &mut self,
        k: &Block<'_, NP>,
        sides: &Sides,
    ) {
        match self.coded.scales {
            Scales::TwoLevel { .. } if self.short.is_some() => {
                self.super_blocks::<R, PARTS, NP, true>(k, sides)
            }
            Scales::TwoLevel { .. } => self.super_blocks::<R, PARTS, NP, false>(k, sides),
            Scales::Group { offset: Offset::Minimum, .. } => self.groups::<R, PARTS, NP, true>(k, sides),
            _ => self.groups::<R, PARTS, NP, false>(k, sides),
        }
    }

    /// What a k-block needs to know of a panel of x; folded ones have no use for `begins`.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn sides<const NP: usize>(&self, k: &Block<'_, NP>, groups: usize, sides: &mut Sides, begins: bool) {
        let (x, zero) = (&k.x, zero_point(self.coded));
        let centre = self.short.map_or(zero, |short| short.centre);
        // Those of the block, and not of what comes after it.
        let first = k.first_record * groups * x.mr;
        let count = block_records(self.packed) * groups * x.mr;
        let here = first..(first + count).min(x.sums.len());
        let (sums, totals) = (&x.sums[here.clone()], &x.totals[here.clone()]);
        if begins {
            for (begin, sum) in sides.begins.iter_mut().zip(sums) {
                *begin = -centre * sum;
            }
        }
        match self.coded.scales {
            Scales::TwoLevel { minimum, .. } => {
                if centre != zero {
                    pairs(x.mr, sums, centre - zero, &mut sides.corrections);
                }
                if minimum {
                    pairs(x.mr, totals, 1, &mut sides.totals);
                }
            }
            Scales::Group { offset: Offset::Minimum, .. } => {
                for ((weighted, total), scale) in sides.weighted.iter_mut().zip(totals).zip(&x.scales[here]) {
                    *weighted = *total as f32 * scale;
                }
            }
            _ => {}
        }
    }

    /// The heads of records as vectors.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn decode_heads<const NP: usize>(
        &self,
        records: Chunks<'_, u8>,
        panels: [usize; NP],
        heads: &mut [Vectors<NP>],
    ) {
        for (record, head) in records.zip(heads.chunks_exact_mut(head_vectors(self.coded))) {
            self.decode_head(record, panels, head);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn decode_head<const NP: usize>(&self, stored: &[u8], panels: [usize; NP], head: &mut [Vectors<NP>]) {
        let (ty, lanes) = (self.coded.scale_type, self.tile.panels * PANEL);
        let rest = &stored[lanes * ty.bytes()..];
        for (p, panel) in panels.into_iter().enumerate() {
            let lane = panel * PANEL;
            put_floats(&mut head[0][p], 0, scales(ty, stored, lane));
            match self.coded.scales {
                Scales::Group { offset: Offset::Minimum, .. } => {
                    put_floats(&mut head[1][p], 0, scales(ty, rest, lane))
                }
                Scales::Group { offset: Offset::Zero, .. } => {
                    put_floats(&mut head[1][p], 0, _mm512_castsi512_ps(unsigned_bytes(rest, lane)));
                }
                Scales::TwoLevel { len, minimum } => {
                    let groups = SUPER_BLOCK / len;
                    let mut subs = rest;
                    if minimum {
                        put_floats(&mut head[1][p], 0, scales(ty, rest, lane));
                        subs = &rest[lanes * ty.bytes()..];
                    }
                    let mut put = |vector: usize, v: __m512i| {
                        put_floats(&mut head[2 + vector][p], 0, _mm512_castsi512_ps(v));
                    };
                    let low = _mm512_set1_epi32(0xffff);
                    let of_two = |j: usize| {
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
                            put(groups + j / 2, of_two(groups + j));
                        }
                        if self.short.is_some() {
                            put(groups + (groups + j) / 2, of_two(j));
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
    fn groups<const R: usize, const PARTS: usize, const NP: usize, const MINIMUM: bool>(
        &mut self,
        k: &Block<'_, NP>,
        sides: &Sides,
    ) {
        let (x, mr, mut ahead) = (&k.x, R * PARTS, k.ahead);
        let zeros = matches!(self.coded.scales, Scales::Group { offset: Offset::Zero, .. });
        let special = zeros || x.bias != 0;
        let padded = self.packed.geometry().record_padded();
        let all_codes =
            parts::<QUAD, R, PARTS, _>(&x.codes[k.first_record * padded * mr..][..k.columns * mr]);
        let first = k.first_record * mr;
        let scales = x.scales[first..].as_chunks::<R>().0.as_chunks::<PARTS>().0;
        let begins = sides.begins.as_chunks::<R>().0.as_chunks::<PARTS>().0;
        let weighted = sides.weighted.as_chunks::<R>().0.as_chunks::<PARTS>().0;
        for part in 0..k.rows.div_ceil(R).min(PARTS) {
            let out = &mut self.out[(k.panel * mr + part * R) * TILE + k.panels[0] * PANEL..];
            let out = &mut out[..(R - 1) * TILE + NP * PANEL];
            let mut acc = [[_mm512_setzero_ps(); NP]; R];
            if k.first_record > 0 {
                unrolled!(R, I => unrolled!(NP, P => acc[I][P] = floats(out, I * TILE + P * PANEL)));
            }
            let (mut weights, mut codes) = (k.codes.as_chunks::<NP>().0, all_codes);
            let records = k.heads.as_chunks::<2>().0.iter().zip(scales).zip(begins).zip(weighted);
            for (r, ((([s_w, minima], s_x), begin), weighted)) in records.enumerate() {
                let mut dot = [[_mm512_setzero_si512(); NP]; R];
                unrolled!(R, I => dot[I] = [_mm512_set1_epi32(begin[part][I]); NP]);
                if special {
                    add_weights!(x, k.first_record + r, k.panels, dot[R][NP]);
                    if zeros {
                        let totals = &x.totals[first + r * mr + part * R..][..R];
                        unrolled!(R, I => unrolled!(NP, P => {
                            let zeros = _mm512_castps_si512(floats(&minima[P], 0));
                            let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(totals[I]));
                            dot[I][P] = _mm512_sub_epi32(dot[I][P], product);
                        }));
                    }
                }
                ask(&mut ahead);
                multiply!(
                    take(&mut weights, padded / QUAD),
                    take(&mut codes, padded / QUAD),
                    part,
                    dot[R][NP]
                );
                unrolled!(R, I => {
                    let s = _mm512_set1_ps(s_x[part][I]);
                    unrolled!(NP, P => {
                        let scale = _mm512_mul_ps(floats(&s_w[P], 0), s);
                        acc[I][P] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[I][P]), scale, acc[I][P]);
                        if MINIMUM {
                            let weighted = _mm512_set1_ps(weighted[part][I]);
                            acc[I][P] = _mm512_fmadd_ps(weighted, floats(&minima[P], 0), acc[I][P]);
                        }
                    });
                });
            }
            unrolled!(R, I => unrolled!(NP, P => put_floats(out, I * TILE + P * PANEL, acc[I][P])));
        }
    }

    /// `SHORT`: sums of groups fit 16 bits.
    #[inline(never)] // one copy for all code widths
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn super_blocks<const R: usize, const PARTS: usize, const NP: usize, const SHORT: bool>(
        &mut self,
        k: &Block<'_, NP>,
        sides: &Sides,
    ) {
        let Scales::TwoLevel { len, minimum } = self.coded.scales else { return };
        let (x, mr, mut ahead) = (&k.x, R * PARTS, k.ahead);
        let groups = SUPER_BLOCK / len;
        let corrected = SHORT && self.short.is_some_and(|short| short.centre != zero_point(self.coded));
        let all_codes =
            parts::<QUAD, R, PARTS, _>(&x.codes[k.first_record * SUPER_BLOCK * mr..][..k.columns * mr]);
        let scales = x.scales[k.first_record * mr..].as_chunks::<R>().0.as_chunks::<PARTS>().0;
        for part in 0..k.rows.div_ceil(R).min(PARTS) {
            let out = &mut self.out[(k.panel * mr + part * R) * TILE + k.panels[0] * PANEL..];
            let out = &mut out[..(R - 1) * TILE + NP * PANEL];
            let (mut weights, mut codes) = (k.codes.as_chunks::<NP>().0, all_codes);
            let mut begins = sides.begins.as_chunks::<R>().0.as_chunks::<PARTS>().0;
            let mut corrections = sides.corrections.as_chunks::<R>().0.as_chunks::<PARTS>().0;
            let mut totals = sides.totals.as_chunks::<R>().0.as_chunks::<PARTS>().0;
            for (r, (head, s_x)) in k.heads.chunks_exact(2 + 2 * groups).zip(scales).enumerate() {
                let b = k.first_record + r;
                let Some(([d, dmin], integers)) = head.split_first_chunk() else { return };
                let (subs, integers) = integers.split_at(groups);
                let (minima, sub_pairs) = integers.split_at(groups / 2);
                let (corrections, totals) =
                    (take(&mut corrections, groups / 2), take(&mut totals, groups / 2));
                let mut isum = [[_mm512_setzero_si512(); NP]; R];
                if corrected {
                    add_pairs!(sub_pairs, corrections, part, isum[R][NP]);
                }
                for (j, (sc, begin)) in subs.iter().zip(take(&mut begins, groups)).enumerate() {
                    let mut dot = [[_mm512_setzero_si512(); NP]; R];
                    unrolled!(R, I => dot[I] = [_mm512_set1_epi32(begin[part][I]); NP]);
                    if !SHORT {
                        add_weights!(x, b * groups + j, k.panels, dot[R][NP]);
                    }
                    ask(&mut ahead);
                    multiply!(take(&mut weights, len / QUAD), take(&mut codes, len / QUAD), part, dot[R][NP]);
                    unrolled!(NP, P => {
                        let sc = _mm512_castps_si512(floats(&sc[P], 0));
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
                    add_pairs!(minima, totals, part, msum[R][NP]);
                }
                unrolled!(NP, P => {
                    let d = floats(&d[P], 0);
                    unrolled!(R, I => {
                        let place = I * TILE + P * PANEL;
                        let before = if b == 0 { _mm512_setzero_ps() } else { floats(out, place) };
                        let s = _mm512_set1_ps(s_x[part][I]);
                        let mut acc =
                            _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[I][P]), _mm512_mul_ps(d, s), before);
                        if minimum {
                            let dmin = _mm512_mul_ps(floats(&dmin[P], 0), s);
                            acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[I][P]), dmin, acc);
                        }
                        put_floats(out, place, acc);
                    });
                });
            }
        }
    }

    /// Super-blocks whose sub-scales are in the codes: one sum of products each.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn folded<const MR: usize, const NP: usize>(&mut self, k: &Block<'_, NP>, sides: &Sides, base: i32) {
        let Scales::TwoLevel { len, minimum } = self.coded.scales else { return };
        let (x, groups, mut ahead) = (&k.x, SUPER_BLOCK / len, k.ahead);
        let codes = &x.codes[k.first_record * SUPER_BLOCK * MR..][..k.columns * MR];
        let mut codes = parts::<QUAD, MR, 1, _>(codes);
        let mut weights = k.codes.as_chunks::<NP>().0;
        let mut totals = sides.totals.as_chunks::<MR>().0;
        let scales = x.scales[k.first_record * MR..].as_chunks::<MR>().0;
        let mut sums = x.sums[k.first_record * groups * MR..].as_chunks::<MR>().0;
        let out = &mut self.out[k.panel * MR * TILE + k.panels[0] * PANEL..][..(MR - 1) * TILE + NP * PANEL];
        let heads = k.heads.chunks_exact(2 + 2 * groups).zip(scales);
        for (r, (head, s_x)) in heads.enumerate() {
            let is_first = k.first_record + r == 0;
            let Some(([d, dmin], integers)) = head.split_first_chunk() else { return };
            let minima = &integers[groups..][..groups / 2];
            let totals = take(&mut totals, groups / 2);
            let mut sum = [0; MR];
            for of_group in take(&mut sums, groups) {
                unrolled!(MR, I => sum[I] += of_group[I]);
            }
            let mut dot = [[_mm512_setzero_si512(); NP]; MR];
            unrolled!(MR, I => dot[I] = [_mm512_set1_epi32(-base * sum[I]); NP]);
            for _ in 0..4 {
                (0..groups / 4).for_each(|_| ask(&mut ahead));
                const QUADS: usize = SUPER_BLOCK / QUAD / 4;
                multiply!(take(&mut weights, QUADS), take(&mut codes, QUADS), 0, dot[MR][NP]);
            }
            unrolled!(MR, I => {
                let s = _mm512_set1_ps(s_x[I]);
                let mut msum = [_mm512_setzero_si512(); NP];
                if minimum {
                    for (mn, total) in minima.iter().zip(totals) {
                        let total = _mm512_set1_epi32(total[I]);
                        unrolled!(NP, P => {
                            let mn = _mm512_castps_si512(floats(&mn[P], 0));
                            msum[P] = _mm512_dpwssd_epi32(msum[P], mn, total);
                        });
                    }
                }
                unrolled!(NP, P => {
                    let place = I * TILE + P * PANEL;
                    let before = if is_first { _mm512_setzero_ps() } else { floats(out, place) };
                    let d = _mm512_mul_ps(floats(&d[P], 0), s);
                    let mut acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[I][P]), d, before);
                    if minimum {
                        let dmin = _mm512_mul_ps(floats(&dmin[P], 0), s);
                        acc = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[P]), dmin, acc);
                    }
                    put_floats(out, place, acc);
                });
            });
        }
    }
}
