//! Few rows of x (`kernel::few_rows`): weights are decoded in registers, as for one row, and meet up to
//! eight rows there. A decoded block (`gemm`) would cost more to store and load again than so few rows
//! give back. More than eight take the tile once more, from the second cache. Where products leave room for taking
//! codes apart (`cpu::decodes_beside_products`), no number of rows makes a block worth while for most layouts.
//!
//! Limit: one `vpdpbusd` for each row, panel and quad; beside it a quad costs its shift and mask. Two panels of W at
//! a time, or four for two rows, of bytes for four (`bundle_panels`): each broadcast of x serves all, and 8 to 16 sums hide what `vpdpbusd` waits
//! for. They stay in registers over a group, or a span of columns where weights have one scale; what is between rests in
//! the output.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::gemm::{Short, add_weights, bundles, pairs};
use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::cpu::follows_reads;
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::gemm::split;
use crate::kernel::narrow::{for_rows, gemv_scratch, unit_lines, unit_quads, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{
    Coded, Layout, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS, Values,
};

/// Most rows of a panel of x. Panels have an even number (`kernel::panel_rows`): a row more is computed
/// and not stored, for half the code.
pub(super) const ROWS: usize = 8;
/// Lines of the largest unit, for one panel.
const MOST_LINES: usize = 5;
/// Columns of a row that a bundle takes before the next one does: x stays in the first cache.
const SPAN: usize = 512;
/// How far ahead of the reader a cache line is asked for, into the first cache and into the second.
const NEAR: usize = 8192;
const FAR: usize = 16384;

/// Panels of W that are taken together, a bundle. Two rows of x leave registers for a whole tile, which is then read in the order
/// of its addresses; codes of 4 bits and those of several planes gain nothing by it, and lose where they come from memory. With
/// four rows bytes, which memory bounds, gain by it too.
const fn bundle_panels(bits: u8, mr: usize) -> usize {
    if mr == 2 && matches!(bits, 1 | 2 | 8) || mr == 4 && bits == 8 { TILE_PANELS } else { 2 }
}

/// Whether a CPU that `follows_reads` needs no prefetches: where whole tiles are read, and hardly computed with.
const fn in_order(bits: u8, panels: usize) -> bool {
    bits == 8 && panels == TILE_PANELS
}

/// Whether layouts like that are worth the code: those of files that people run. Signs have neither minima nor zero points, and
/// scales that are powers of two belong to codes of a table.
pub(in crate::kernel) fn takes(coded: &Coded) -> bool {
    let scheme = match coded.scales {
        Scales::TwoLevel { .. } => matches!(coded.bits, 2..=6),
        Scales::Row | Scales::Group { offset: Offset::None, .. } => matches!(coded.bits, 1 | 2 | 4 | 8),
        Scales::Group { .. } => matches!(coded.bits, 2 | 4 | 8),
    };
    scheme && !matches!(coded.values, Values::Table(_)) && coded.scale_type != ScaleType::E8m0
}

/// `vector::scales` of the types that are taken: each use has code for each type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn taken_scales(ty: ScaleType, bytes: &[u8], lane: usize) -> __m512 {
    match ty {
        ScaleType::F32 => scales(ScaleType::F32, bytes, lane),
        ScaleType::Bf16 => scales(ScaleType::Bf16, bytes, lane),
        _ => scales(ScaleType::F16, bytes, lane), // `run` refuses what is not taken
    }
}

/// Widest codes whose sums are taken as 16 bits where they fit. Of 5 bits those of groups of 16 would; no file has them,
/// and Q5_K's kernel, of groups of 32, would be a quarter slower for it.
const SHORT_BITS: u8 = 4;

fn short_of(coded: &Coded, bias: i32) -> Option<Short> {
    Short::of(coded, bias).filter(|_| coded.bits <= SHORT_BITS)
}

/// Room for what the sums of groups begin with.
pub(super) fn scratch(packed: &Packed, rows: usize) -> usize {
    let groups = match packed.layout() {
        Layout::Coded(Coded { scales: Scales::TwoLevel { len, .. }, .. }) => SUPER_BLOCK / len,
        _ => 1,
    };
    // `gemv::run` may come to do the work.
    (packed.geometry().records * groups * ROWS * 4 + 64).max(gemv_scratch(packed, rows))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
        return Ok(());
    };
    assert!(takes(coded)); // the kernel was chosen for that (`kernel::select`)
    let mr = x.mr;
    if mr == 1 {
        return super::gemv::run(job); // another layer of the call takes its rows one by one
    }
    let tile = job.packed.tile(job.tile);
    let (_, begins) = split(job.scratch, 0);
    let short = short_of(coded, x.bias);
    let centre = short.map_or(zero_point(coded), |short| short.centre);
    let panels = job.rows.div_ceil(mr);
    for (panel, out) in job.out.chunks_exact_mut(mr * TILE).take(panels).enumerate() {
        let (x, fetch) = (x.panel(panel), Fetch::new(tile.bytes, panel, panels));
        for (begin, sum) in begins.iter_mut().zip(x.sums) {
            *begin = f32::from_bits((-centre * sum) as u32);
        }
        let mut work = Work { coded, tile, x, out, short, begins, fetch };
        for_rows!([2 4 6 8] mr, MR => match coded.bits {
            1 => work.width::<1, MR, { bundle_panels(1, MR) }>(),
            2 => work.width::<2, MR, { bundle_panels(2, MR) }>(),
            3 => work.two_levels::<3, MR, { bundle_panels(3, MR) }>(),
            4 => work.width::<4, MR, { bundle_panels(4, MR) }>(),
            5 => work.two_levels::<5, MR, { bundle_panels(5, MR) }>(),
            6 => work.two_levels::<6, MR, { bundle_panels(6, MR) }>(),
            _ => work.width::<8, MR, { bundle_panels(8, MR) }>(),
        });
    }
    Ok(())
}

/// What is asked for while a tile is read. One panel of x alone asks for what it will read next. Of several, all but the
/// first read the tile from the second cache; each of them asks for a part of the next tile.
#[derive(Clone, Copy)]
struct Fetch<'a> {
    /// Whether there is one panel of x.
    alone: bool,
    /// Whether what that will read next goes to the second cache: 1.05 to 2.8 times as fast on a Zen 4 (2 to 8 rows, from
    /// memory), whose first cache waits for two dozen lines and no more. Not measured on others.
    far: bool,
    bytes: &'a [u8],
    /// Offset of the next line, and for each line that is read.
    at: usize,
    step: usize,
}

impl<'a> Fetch<'a> {
    fn new(bytes: &'a [u8], panel: usize, panels: usize) -> Fetch<'a> {
        let at = bytes.len() + panel * bytes.len() / panels;
        Fetch { alone: panels == 1, far: follows_reads(), bytes, at, step: LINE / panels }
    }

    /// The head of a record is read now. Several panels of x ask for lines of units alone: those are enough.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn head<const BITS: u8, const NP: usize>(&self, head: &[u8]) {
        if self.alone {
            for line in head.as_chunks::<LINE>().0 {
                match self.far {
                    true if in_order(BITS, NP) => touch(line),
                    true => prefetch_far(line, FAR),
                    false => prefetch(line, NEAR),
                }
            }
        }
    }
}

/// One panel of x times a tile.
struct Work<'a, 'o> {
    coded: &'a Coded,
    tile: Tile<'a>,
    x: Codes<'a>,
    out: &'o mut [f32],
    short: Option<Short>,
    /// `-centre * sum of x` for each group and row: integers, as bits.
    begins: &'o [f32],
    fetch: Fetch<'a>,
}

/// Takes the next unit off `$lines` (or breaks), and asks for what comes (`Fetch`): its lines, each of all panels.
macro_rules! next_unit {
    ($work:ident, $lines:ident, $panels:ident, $bundle:expr, $unit:ident) => {
        let mut $unit: [&[[u8; LINE]]; MOST_LINES] = [&[]; MOST_LINES];
        unrolled!([0 1 2 3 4], K => if K < unit_lines(BITS) {
            let Some((first, others)) = $lines.split_at_checked($panels) else { break };
            ($lines, $unit[K]) = (others, first);
            if $work.fetch.alone && $work.fetch.far {
                if !in_order(BITS, NP) {
                    unrolled!(NP, P => prefetch_far(&first[$bundle[P]], FAR));
                }
            } else if $work.fetch.alone {
                unrolled!(NP, P => prefetch(&first[$bundle[P]], NEAR));
            } else {
                unrolled!(NP, P => prefetch_far($work.fetch.bytes, $work.fetch.at + P * $work.fetch.step));
                $work.fetch.at += NP * $work.fetch.step;
            }
        });
    };
}

/// Adds the products of `$count` quads of a unit, from quad `$from` on, to `$acc[MR][NP]`; `$x` are their codes of x. Not a
/// function, which the compiler would not inline, and sums would be kept in memory (as in `gemm::add_weights`).
macro_rules! add_quads {
    ($unit:ident, $bundle:expr, $from:expr, $count:expr, $x:expr, $acc:ident) => {
        let (none, codes) = (_mm512_setzero_si512(), $x);
        unrolled!($count, N => {
            let mut w = [none; NP];
            unrolled!(NP, P => w[P] = quad_of::<BITS, false>(|k| line(&$unit[k][$bundle[P]], 0), $from + N, none));
            unrolled!(MR, I => {
                let x = &codes[(N * MR + I) * QUAD..][..QUAD];
                let x = i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]);
                let x = _mm512_set1_epi32(x);
                unrolled!(NP, P => $acc[I][P] = _mm512_dpbusd_epi32($acc[I][P], w[P], x));
            });
        });
    };
}

/// Adds the products of a bundle to `$acc[MR][NP]`.
macro_rules! add_units {
    ($work:ident, $bytes:expr, $codes:expr, $bundle:expr, $acc:ident) => {
        // Not `chunks_exact` of bytes: a zip of those divides by their length.
        let (mut lines, panels) = ($bytes.as_chunks::<LINE>().0, $work.tile.panels);
        // So that no line asks whether it has that panel.
        unrolled!(NP, P => assert!($bundle[P] < panels));
        for q in $codes.chunks_exact(unit_quads(BITS) * QUAD * MR) {
            next_unit!($work, lines, panels, $bundle, unit);
            add_quads!(unit, $bundle, 0, unit_quads(BITS), q, $acc);
        }
    };
}

impl Work<'_, '_> {
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn width<const BITS: u8, const MR: usize, const NP: usize>(&mut self) {
        match self.coded.scales {
            Scales::Row => self.row::<BITS, MR, NP>(),
            Scales::Group { offset: Offset::Minimum, .. } if BITS > 1 => {
                self.group::<BITS, MR, NP, true>(false);
            }
            Scales::Group { offset, .. } => self.group::<BITS, MR, NP, false>(offset == Offset::Zero),
            Scales::TwoLevel { .. } => self.two_levels::<BITS, MR, NP>(),
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn two_levels<const BITS: u8, const MR: usize, const NP: usize>(&mut self) {
        // Widths of other layouts are not chosen (`takes`), and not compiled.
        let Scales::TwoLevel { len, minimum } = self.coded.scales else { return };
        if !matches!(BITS, 2..=6) {
            return;
        }
        self.two_level::<BITS, MR, NP>(len, minimum);
    }

    /// One scale for each row of W: span after span, bundle after bundle.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row<const BITS: u8, const MR: usize, const NP: usize>(&mut self) {
        let panels = self.tile.panels;
        let (head, bytes) = self.tile.bytes.split_at(panels * PANEL * 4);
        let span = SPAN / (unit_quads(BITS) * QUAD) * unit_lines(BITS) * panels * LINE;
        let last = bytes.len().div_ceil(span) - 1;
        let codes = self.x.codes;
        for (s, (bytes, codes)) in bytes.chunks(span).zip(codes.chunks(SPAN * MR)).enumerate() {
            let head = (s == last).then_some(head);
            for bundle in bundles::<NP>(panels) {
                self.row_span::<BITS, MR, NP>(bundle, bytes, codes, s == 0, head);
            }
        }
    }

    /// A span of a bundle. Partial integer sums rest in the output, as bits.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn row_span<const BITS: u8, const MR: usize, const NP: usize>(
        &mut self,
        bundle: [usize; NP],
        bytes: &[u8],
        codes: &[i8],
        is_first: bool,
        head: Option<&[u8]>,
    ) {
        let x = self.x;
        let out = &mut self.out[bundle[0] * PANEL..][..(MR - 1) * TILE + NP * PANEL];
        let mut acc = [[_mm512_setzero_si512(); NP]; MR];
        if is_first {
            let begins = &self.begins[..MR];
            unrolled!(MR, I => acc[I] = [_mm512_castps_si512(_mm512_set1_ps(begins[I])); NP]);
            add_weights!(x, 0, bundle, acc[MR][NP]);
        } else {
            unrolled!(MR, I => unrolled!(NP, P => {
                acc[I][P] = _mm512_castps_si512(floats(out, I * TILE + P * PANEL));
            }));
        }
        add_units!(self, bytes, codes, bundle, acc);
        let Some(head) = head else {
            unrolled!(MR, I => unrolled!(NP, P => {
                put_floats(out, I * TILE + P * PANEL, _mm512_castsi512_ps(acc[I][P]));
            }));
            return;
        };
        let s_x = &x.scales[..MR];
        unrolled!(NP, P => {
            let s_w = scales(ScaleType::F32, head, bundle[P] * PANEL);
            unrolled!(MR, I => {
                let s = _mm512_mul_ps(s_w, _mm512_set1_ps(s_x[I]));
                put_floats(out, I * TILE + P * PANEL, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[I][P]), s));
            });
        });
    }

    /// Groups: record after record, bundle after bundle.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn group<const BITS: u8, const MR: usize, const NP: usize, const MINIMUM: bool>(&mut self, zeros: bool) {
        let (x, geometry) = (self.x, self.x.shape.geometry);
        let (panels, lanes) = (self.tile.panels, self.tile.panels * PANEL);
        self.out[..MR * TILE].fill(0.0);
        let (records, codes) = (self.tile.bytes.chunks(geometry.record_bytes(panels)), x.codes);
        let (scales, totals) = (x.scales.as_chunks::<MR>().0, x.totals.as_chunks::<MR>().0);
        let sides = self.begins.as_chunks::<MR>().0.iter().zip(scales).zip(totals);
        let records = records.zip(codes.chunks(geometry.record_padded() * MR)).zip(sides);
        for (g, ((record, codes), ((begins, scales), totals))) in records.enumerate() {
            let (head, bytes) = record.split_at(lanes * geometry.head);
            self.fetch.head::<BITS, NP>(head);
            let mut weighted = [0.0; MR];
            if MINIMUM {
                unrolled!(MR, I => weighted[I] = totals[I] as f32 * scales[I]);
            }
            let group = Group { g, head, bytes, codes, begins, scales, totals, weighted, zeros };
            for bundle in bundles::<NP>(panels) {
                self.group_bundle::<BITS, MR, NP, MINIMUM>(&group, bundle);
            }
        }
    }

    /// A record of a bundle. What groups have come to is in the output: in registers there is no room for it.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn group_bundle<const BITS: u8, const MR: usize, const NP: usize, const MINIMUM: bool>(
        &mut self,
        group: &Group<'_, MR>,
        bundle: [usize; NP],
    ) {
        let (x, ty, lanes) = (self.x, self.coded.scale_type, self.tile.panels * PANEL);
        let rest = &group.head[lanes * ty.bytes()..];
        let mut dot = [[_mm512_setzero_si512(); NP]; MR];
        unrolled!(MR, I => dot[I] = [_mm512_castps_si512(_mm512_set1_ps(group.begins[I])); NP]);
        if group.zeros || x.bias != 0 {
            add_weights!(x, group.g, bundle, dot[MR][NP]);
            if group.zeros {
                unrolled!(NP, P => {
                    let zeros = unsigned_bytes(rest, bundle[P] * PANEL);
                    unrolled!(MR, I => {
                        let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(group.totals[I]));
                        dot[I][P] = _mm512_sub_epi32(dot[I][P], product);
                    });
                });
            }
        }
        add_units!(self, group.bytes, group.codes, bundle, dot);
        let out = &mut self.out[bundle[0] * PANEL..][..(MR - 1) * TILE + NP * PANEL];
        unrolled!(NP, P => {
            let s_w = taken_scales(ty, group.head, bundle[P] * PANEL);
            let minimum = if MINIMUM { taken_scales(ty, rest, bundle[P] * PANEL) } else { s_w };
            unrolled!(MR, I => {
                let place = I * TILE + P * PANEL;
                let s = _mm512_mul_ps(s_w, _mm512_set1_ps(group.scales[I]));
                let mut acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[I][P]), s, floats(out, place));
                if MINIMUM {
                    acc = _mm512_fmadd_ps(_mm512_set1_ps(group.weighted[I]), minimum, acc);
                }
                put_floats(out, place, acc);
            });
        });
    }

    /// Super-blocks: integers inside one, floats across them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn two_level<const BITS: u8, const MR: usize, const NP: usize>(&mut self, len: usize, minimum: bool) {
        let (x, geometry) = (self.x, self.x.shape.geometry);
        let (panels, lanes) = (self.tile.panels, self.tile.panels * PANEL);
        let groups = SUPER_BLOCK / len;
        let off = self.short.map_or(0, |short| short.centre - zero_point(self.coded));
        let (mut corrections, mut totals) = ([0; _], [0; _]);
        let (records, codes) = (self.tile.bytes.chunks_exact(geometry.record_bytes(panels)), x.codes);
        for (b, (record, codes)) in records.zip(codes.chunks_exact(SUPER_BLOCK * MR)).enumerate() {
            let (head, bytes) = record.split_at(lanes * geometry.head);
            self.fetch.head::<BITS, NP>(head);
            let first = b * groups * MR;
            if off != 0 {
                pairs(MR, &x.sums[first..][..groups * MR], off, &mut corrections);
            }
            if minimum {
                pairs(MR, &x.totals[first..][..groups * MR], 1, &mut totals);
            }
            let block = SuperBlock {
                b,
                head,
                subs: &head[lanes * self.coded.scale_type.bytes() * (1 + minimum as usize)..],
                bytes,
                codes,
                groups,
                corrections: (off != 0).then_some(&corrections),
                totals: minimum.then_some(&totals),
            };
            for bundle in bundles::<NP>(panels) {
                self.super_block::<BITS, MR, NP>(&block, bundle);
            }
        }
    }

    /// A super-block of a bundle.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn super_block<const BITS: u8, const MR: usize, const NP: usize>(
        &mut self,
        block: &SuperBlock<'_>,
        bundle: [usize; NP],
    ) {
        let (x, SuperBlock { b, bytes, codes, subs, groups, .. }) = (self.x, *block);
        let (panels, lanes) = (self.tile.panels, self.tile.panels * PANEL);
        let len = SUPER_BLOCK / groups;
        let group_bytes = len / (unit_quads(BITS) * QUAD) * unit_lines(BITS) * panels * LINE;
        let begins = &self.begins.as_chunks::<MR>().0[b * groups..][..groups];
        let mut sums = Sums([[_mm512_setzero_si512(); NP]; MR]);
        // Wider codes are not (`short_of`); narrower ones fit without being centred (`Short::of`).
        let short = BITS <= SHORT_BITS && self.short.is_some();
        if BITS == SHORT_BITS
            && let Some(corrections) = block.corrections
        {
            add_pairs(&subs[..groups * lanes], lanes, bundle, corrections, &mut sums);
        }
        let mut isum = sums.0;
        let mut dot = [[_mm512_setzero_si512(); NP]; MR];
        macro_rules! begin {
            ($j:expr) => {
                let begin = &begins[$j];
                unrolled!(MR, I => dot[I] = [_mm512_castps_si512(_mm512_set1_ps(begin[I])); NP]);
                if !short {
                    add_weights!(x, b * groups + $j, bundle, dot[MR][NP]);
                }
            };
        }
        macro_rules! end {
            ($j:expr) => {
                unrolled!(NP, P => {
                    let sc = signed_bytes(subs, $j * lanes + bundle[P] * PANEL);
                    if short {
                        let sc = _mm512_maskz_mov_epi16(0x5555_5555, sc);
                        unrolled!(MR, I => isum[I][P] = _mm512_dpwssd_epi32(isum[I][P], dot[I][P], sc));
                    } else {
                        unrolled!(MR, I => {
                            isum[I][P] = _mm512_add_epi32(isum[I][P], _mm512_mullo_epi32(sc, dot[I][P]));
                        });
                    }
                });
            };
        }
        if unit_quads(BITS) < 8 {
            for j in 0..groups {
                let (bytes, codes) =
                    (&bytes[j * group_bytes..][..group_bytes], &codes[j * len * MR..][..len * MR]);
                begin!(j);
                add_units!(self, bytes, codes, bundle, dot);
                end!(j);
            }
        } else {
            // A unit is one group, or two.
            let (mut j, mut lines) = (0, bytes.as_chunks::<LINE>().0);
            unrolled!(NP, P => assert!(bundle[P] < panels));
            for q in codes.chunks_exact(8 * QUAD * MR) {
                next_unit!(self, lines, panels, bundle, unit);
                begin!(j);
                add_quads!(unit, bundle, 0, 4, q, dot);
                if len == 16 {
                    end!(j);
                    j += 1;
                    begin!(j);
                }
                add_quads!(unit, bundle, 4, 4, &q[4 * QUAD * MR..], dot);
                end!(j);
                j += 1;
            }
        }
        sums.0 = isum;
        self.finish(block, bundle, &sums);
    }

    /// The minima of a super-block of a bundle, and all of it into the output. Not compiled for every width.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn finish<const MR: usize, const NP: usize>(
        &mut self,
        block: &SuperBlock<'_>,
        bundle: [usize; NP],
        sums: &Sums<MR, NP>,
    ) {
        let (ty, SuperBlock { b, head, subs, groups, .. }) = (self.coded.scale_type, *block);
        let lanes = self.tile.panels * PANEL;
        let mut minima = Sums([[_mm512_setzero_si512(); NP]; MR]);
        if let Some(totals) = block.totals {
            add_pairs(&subs[groups * lanes..], lanes, bundle, totals, &mut minima);
        }
        let s_x = &self.x.scales[b * MR..][..MR];
        let out = &mut self.out[bundle[0] * PANEL..][..(MR - 1) * TILE + NP * PANEL];
        unrolled!(NP, P => {
            let d = taken_scales(ty, head, bundle[P] * PANEL);
            let dmin = match block.totals {
                Some(_) => taken_scales(ty, &head[lanes * ty.bytes()..], bundle[P] * PANEL),
                None => d,
            };
            unrolled!(MR, I => {
                let place = I * TILE + P * PANEL;
                let before = if b == 0 { _mm512_setzero_ps() } else { floats(out, place) };
                let (s, sum) = (_mm512_set1_ps(s_x[I]), _mm512_cvtepi32_ps(sums.0[I][P]));
                let mut acc = _mm512_fmadd_ps(sum, _mm512_mul_ps(d, s), before);
                if block.totals.is_some() {
                    let minimum = _mm512_cvtepi32_ps(minima.0[I][P]);
                    acc = _mm512_fnmadd_ps(minimum, _mm512_mul_ps(dmin, s), acc);
                }
                put_floats(out, place, acc);
            });
        });
    }
}

/// Adds the products of sub-scales or sub-minima of a bundle with `pairs` (`gemm::pairs`), two groups at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_pairs<const MR: usize, const NP: usize>(
    subs: &[u8],
    lanes: usize,
    bundle: [usize; NP],
    pairs: &Pairs,
    sums: &mut Sums<MR, NP>,
) {
    let mut acc = sums.0;
    let mut rest = subs;
    for pair_of_x in pairs.as_chunks::<MR>().0 {
        // Not `chunks_exact`: a zip of those divides by their length.
        let Some((subs, later)) = rest.split_at_checked(2 * lanes) else { break };
        let (first, second) = subs.split_at(lanes);
        rest = later;
        unrolled!(NP, P => {
            let (low, high) = (signed_bytes(first, bundle[P] * PANEL), signed_bytes(second, bundle[P] * PANEL));
            let of_two = _mm512_mask_mov_epi16(_mm512_slli_epi32::<16>(high), 0x5555_5555, low);
            unrolled!(MR, I => {
                acc[I][P] = _mm512_dpwssd_epi32(acc[I][P], of_two, _mm512_set1_epi32(pair_of_x[I]));
            });
        });
    }
    sums.0 = acc;
}

/// A record of groups, all panels.
struct Group<'a, const MR: usize> {
    g: usize,
    head: &'a [u8],
    bytes: &'a [u8],
    codes: &'a [i8],
    begins: &'a [f32; MR],
    scales: &'a [f32; MR],
    totals: &'a [i32; MR],
    /// Totals times scales of x, for minima.
    weighted: [f32; MR],
    /// Whether zero points come after the scales.
    zeros: bool,
}

/// Integer sums of a super-block. Aligned, because a function with such a value aligns its stack: sums that the registers
/// have no room for would lie across cache lines.
#[repr(align(64))]
struct Sums<const MR: usize, const NP: usize>([[__m512i; NP]; MR]);

/// What `gemm::pairs` makes of sums of x, `[pair of groups][MR]`.
type Pairs = [i32; SUPER_BLOCK / 32 * ROWS];

/// A super-block of all panels.
#[derive(Clone, Copy)]
struct SuperBlock<'a> {
    b: usize,
    head: &'a [u8],
    /// Sub-scales, then sub-minima.
    subs: &'a [u8],
    bytes: &'a [u8],
    codes: &'a [i8],
    groups: usize,
    /// What sums of groups lack where they are centred to fit 16 bits (`gemm::Short`).
    corrections: Option<&'a Pairs>,
    /// Totals of x for minima, where there are any.
    totals: Option<&'a Pairs>,
}
