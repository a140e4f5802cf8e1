//! Weights of 8 bits with one scale for each row.
//!
//! `vpmaddubsw` takes the codes of W as they lie, unsigned, and those of x, and adds pairs of products in 16 bits, where
//! it saturates. It does not while the two codes of x come to at most 128 in magnitude, as 255 * 128 < 2^15; other
//! pairs are few (of numbers that are normally distributed one in a hundred, where 127 is 3.5 standard deviations).
//! They are marked once for each block of x, and what they lost is put back. Limit: two multiplications a cycle, two for
//! 32 products; giving x the sign of W instead (`multiply`) never saturates, and competes with them.
//!
//! ```text
//! W       [quad][panel of the tile][64]     a k-block; few panels of x take it where it lies,
//! copy    [quad][64]                        of several the first one copies what it reads of a panel, to L1
//! x       [quad][row of the panel][4]
//! marks   [panel of x][u16]                 how many quads of x have a pair that may saturate, and which
//! ```
//! Sums rest in the output between k-blocks, as bits. One row of x meets all panels of a tile at once, which is then read
//! as one stream.

// A register tile is indexed by row and part; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::multiply::{ROWS, everywhere};
use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::for_rows;
use crate::kernel::narrow::gemm::{self, Ahead};
use crate::layout::packed::LINE;
use crate::layout::{Coded, Layout, PANEL, Packed, QUAD, ScaleType, Scales, TILE, TILE_PANELS, Values};

/// Most quads of a k-block: 16 KiB of a panel.
const BLOCK: usize = 256;

/// The same where no copy is made: a panel's lines are 256 bytes apart then, and those of 128 quads fill their places in L1.
const SHORT_BLOCK: usize = 128;

/// Up to so many panels of x a copy costs more than it gives.
const WITHOUT_COPY: usize = 2;

/// Where more than one quad in so many is marked, no product is left to saturate.
const MARKED: usize = 8;

/// Most marks of a panel's block of x.
const MOST_MARKS: usize = BLOCK * ROWS / MARKED;

/// The number of quads that are marked, [`TOO_MANY`] of more than the most, then the index of each in a panel's block of x;
/// two bytes each, as scratch has no other alignment.
type Marks = [[u8; 2]; 1 + MOST_MARKS];

const TOO_MANY: usize = u16::MAX as usize;

pub(super) fn scratch(packed: &Packed, rows: usize) -> usize {
    // Panels have a row or more.
    gemm::scratch(packed, rows).max(BLOCK * LINE + rows * size_of::<Marks>())
}

/// What does not change from block to block.
struct Work<'a, 'o> {
    /// The code that stands for 0.
    zero: i32,
    x: Codes<'a>,
    out: &'o mut [f32],
}

/// A panel of W in a k-block.
struct Block<'a> {
    /// The panel of the tile.
    p: usize,
    /// The block's first quad, and how many it has.
    at: usize,
    quads: usize,
    /// The scales of this panel, with the last block.
    head: Option<&'a [u8]>,
}

/// The codes of a block: every so many lines.
#[derive(Clone, Copy)]
struct Lines<'a> {
    lines: &'a [[u8; LINE]],
    stride: usize,
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    // Otherwise x may be -128.
    let (Activations::Integer(x @ Codes { bias: 0, .. }), Some(zero)) = (job.x, zero(job.packed)) else {
        return super::gemm::run(job);
    };
    let tile = job.packed.tile(job.tile);
    let lanes = tile.panels * PANEL;
    let (head, bytes) = tile.bytes.split_at(lanes * 4);
    let (all_lines, _) = bytes.as_chunks::<LINE>();
    let (copy, marks) = job.scratch.split_at_mut(BLOCK * LINE);
    let ((copy, _), (marks, _)) = (copy.as_chunks_mut::<LINE>(), marks.as_chunks_mut::<2>());
    let (marks, _) = marks.as_chunks_mut::<{ 1 + MOST_MARKS }>();
    let panels = job.rows.div_ceil(x.mr);
    let mut work = Work { zero, x, out: job.out };
    let quads = all_lines.len() / tile.panels;
    // Blocks of about the same length, because each asks for as many bytes of what comes as it has.
    let copies = panels > WITHOUT_COPY;
    let size = quads.div_ceil(quads.div_ceil(if copies { BLOCK } else { SHORT_BLOCK })).next_multiple_of(8);
    for at in (0..quads).step_by(size) {
        let now = size.min(quads - at);
        let lines = &all_lines[at * tile.panels..][..now * tile.panels];
        for p in 0..tile.panels {
            let head = (at + now == quads).then(|| &head[p * PANEL * 4..][..PANEL * 4]);
            let k = Block { p, at, quads: now, head };
            let mut ahead = Ahead::new(lines.as_flattened(), p, tile.panels, now * QUAD);
            let here = Lines { lines: &lines[p..], stride: tile.panels };
            for (panel, marks) in marks.iter_mut().enumerate().take(panels) {
                if p == 0 {
                    mark(&x.panel(panel).codes[at * x.mr * QUAD..][..now * x.mr * QUAD], marks);
                }
                let (w, copy) = match panel {
                    _ if !copies => (here, None),
                    0 => (here, Some(&mut copy[..now])),
                    _ => (Lines { lines: &copy[..now], stride: 1 }, None),
                };
                for_rows!([1 2 3 4] x.mr, MR => work.panel::<MR>(panel, &k, w, copy, marks, ahead));
                ahead = Ahead::none();
            }
        }
    }
    Ok(())
}

/// The code that stands for 0, where there is one and all of a row of W is one sum.
fn zero(packed: &Packed) -> Option<i32> {
    match *packed.layout() {
        Layout::Coded(Coded {
            bits: 8, scales: Scales::Row, values: Values::Offset(zero), bases: 1, ..
        }) => Some(zero as i32),
        _ => None,
    }
}

/// Marks the quads of x that have a pair of more than 128 in magnitude.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn mark(x: &[i8], marks: &mut Marks) {
    let mut count = 0;
    let [number, places @ ..] = marks;
    let places = &mut places[..x.len() / QUAD / MARKED];
    for (v, x) in x.chunks(32).enumerate() {
        let mut marked = match x.first_chunk::<32>() {
            Some(x) => heavy(x),
            None => {
                let mut padded = [0; 32];
                padded[..x.len()].copy_from_slice(x);
                heavy(&padded)
            }
        };
        while marked != 0 {
            let Some(place) = places.get_mut(count) else {
                *number = (TOO_MANY as u16).to_le_bytes();
                return;
            };
            *place = ((v * 8) as u16 + marked.trailing_zeros() as u16).to_le_bytes();
            marked &= marked - 1;
            count += 1;
        }
    }
    *number = (count as u16).to_le_bytes();
}

/// A bit for each of 8 quads: whether one of its pairs is of more than 128 in magnitude.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn heavy(x: &[i8; 32]) -> u8 {
    let pairs = _mm256_abs_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), quads(x)));
    let light = _mm256_cmpeq_epi32(_mm256_cmpgt_epi16(pairs, _mm256_set1_epi16(128)), _mm256_setzero_si256());
    !(_mm256_movemask_ps(_mm256_castsi256_ps(light)) as u8)
}

impl Work<'_, '_> {
    /// A k-block of a panel of W times a panel of x. What is read of W goes to `copy`, too.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn panel<const MR: usize>(
        &mut self,
        panel: usize,
        k: &Block<'_>,
        w: Lines<'_>,
        copy: Option<&mut [[u8; LINE]]>,
        marks: &Marks,
        ahead: Ahead<'_>,
    ) {
        let x = self.x.panel(panel);
        let (quads, _) = x.codes[k.at * MR * QUAD..][..k.quads * MR * QUAD].as_chunks::<QUAD>();
        let mut acc = [[ints(0); PARTS]; MR];
        self.sums_before(panel, k, &mut acc);
        let [number, places @ ..] = marks;
        match (places.get(..u16::from_le_bytes(*number) as usize), copy) {
            (Some(places), copy) => {
                acc = match copy {
                    Some(copy) => multiply::<MR, true>(w, copy, quads, ahead, &acc),
                    None => multiply::<MR, false>(w, &mut [], quads, ahead, &acc),
                };
                put_back(w, quads, places, &mut acc);
            }
            (None, copy) => {
                for (copy, line) in copy.into_iter().flatten().zip(w.lines.iter().step_by(w.stride)) {
                    *copy = *line;
                }
                acc = multiply_signed(w, quads, &acc);
            }
        }
        self.put_sums(panel, k, &acc);
    }

    /// What the blocks before have come to.
    #[inline(never)] // one copy for any number of rows, here and below
    #[target_feature(enable = "avx2,fma,f16c")]
    fn sums_before(&self, panel: usize, k: &Block<'_>, acc: &mut [[Int; PARTS]]) {
        let (x, first) = (self.x.panel(panel), panel * acc.len());
        let rows = self.out[first * TILE + k.p * PANEL..].chunks(TILE);
        for ((acc, row), sum) in acc.iter_mut().zip(rows).zip(x.sums) {
            let begin = ints(-self.zero * sum);
            for h in 0..PARTS {
                acc[h] = if k.at == 0 { begin } else { as_ints(floats(row, h * LANES)) };
            }
        }
    }

    /// Puts them to the output; the last ones with their scales.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn put_sums(&mut self, panel: usize, k: &Block<'_>, acc: &[[Int; PARTS]]) {
        let (x, first) = (self.x.panel(panel), panel * acc.len());
        let rows = self.out[first * TILE + k.p * PANEL..].chunks_mut(TILE);
        for ((acc, row), s_x) in acc.iter().zip(rows).zip(x.scales) {
            for h in 0..PARTS {
                let y = match k.head {
                    None => as_floats(acc[h]),
                    Some(head) => {
                        mul(to_floats(acc[h]), mul(scales(ScaleType::F32, head, h * LANES), all(*s_x)))
                    }
                };
                put_floats(row, h * LANES, y);
            }
        }
    }
}

/// `acc + codes . x`, but for what saturates.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const MR: usize, const COPY: bool>(
    w: Lines<'_>,
    copy: &mut [[u8; LINE]],
    quads: &[[i8; QUAD]],
    mut ahead: Ahead<'_>,
    acc: &[[Int; PARTS]; MR],
) -> [[Int; PARTS]; MR] {
    // A copy of the sums stays in registers: a panic would show what a reference sees.
    let (mut acc, mut at) = (*acc, 0);
    for (q, x) in quads.chunks_exact(MR).enumerate() {
        prefetch_far(ahead.bytes, ahead.at);
        ahead.at += ahead.step;
        let codes = [load(&w.lines[at], 0), load(&w.lines[at], 1)];
        at += w.stride;
        if COPY {
            for h in 0..PARTS {
                store(&mut copy[q], h, codes[h]);
            }
        }
        for i in 0..MR {
            let x = everywhere(&x[i]);
            for h in 0..PARTS {
                acc[i][h] = in_pairs(acc[i][h], _mm256_maddubs_epi16(codes[h], x));
            }
        }
    }
    acc
}

/// `acc + codes . x` with the sign of `codes - 128` in x, so that nothing saturates; as `multiply` does.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_signed<const MR: usize>(
    w: Lines<'_>,
    quads: &[[i8; QUAD]],
    acc: &[[Int; PARTS]; MR],
) -> [[Int; PARTS]; MR] {
    let mut acc = *acc;
    for (q, x) in quads.chunks_exact(MR).enumerate() {
        let line = &w.lines[q * w.stride];
        for i in 0..MR {
            let x = everywhere(&x[i]);
            let sum = sum_128(x);
            for h in 0..PARTS {
                acc[i][h] = in_pairs(add_ints(acc[i][h], sum), signed(load(line, h), x));
            }
        }
    }
    acc
}

/// Pairs of products with the sign of `codes - 128` in x.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn signed(codes: Bytes, x: Bytes) -> __m256i {
    let w = flipped(codes);
    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
}

/// 128 times the sum of a quad of x: what `signed` takes off.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sum_128(x: Bytes) -> Int {
    _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(64), x), _mm256_set1_epi16(2))
}

/// Adds what marked quads lost.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn put_back<const MR: usize>(
    w: Lines<'_>,
    quads: &[[i8; QUAD]],
    places: &[[u8; 2]],
    acc: &mut [[Int; PARTS]; MR],
) {
    for place in places {
        let at = u16::from_le_bytes(*place) as usize;
        add_lost(&w.lines[at / MR * w.stride], &quads[at], &mut acc[at % MR]);
    }
}

/// Adds what a quad lost.
#[inline(never)] // seldom; one copy
#[target_feature(enable = "avx2,fma,f16c")]
fn add_lost(line: &[u8; LINE], quad: &[i8; QUAD], acc: &mut [Int; PARTS]) {
    let (x, even) = (everywhere(quad), _mm256_set1_epi16(255));
    let (first, second) = (_mm256_and_si256(x, even), _mm256_andnot_si256(even, x));
    for h in 0..PARTS {
        let w = load(line, h);
        // One product fits, and so does what the sum of two lost: 2 * 255 * 127 - 2^15 < 2^15.
        let exact = _mm256_add_epi16(_mm256_maddubs_epi16(w, first), _mm256_maddubs_epi16(w, second));
        acc[h] = in_pairs(acc[h], _mm256_sub_epi16(exact, _mm256_maddubs_epi16(w, x)));
    }
}

/// Adds pairs of numbers of 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn in_pairs(acc: Int, v: Int) -> Int {
    _mm256_add_epi32(acc, _mm256_madd_epi16(v, _mm256_set1_epi16(1)))
}

/// One row of x.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_row(job: &mut Job<'_>) -> Result<()> {
    let tile = job.packed.tile(job.tile);
    let (Activations::Integer(x @ Codes { bias: 0, .. }), Some(zero)) = (job.x, zero(job.packed)) else {
        return super::gemv::run(job);
    };
    // A row of several sums, a short tile.
    if x.shape.groups > 1 || tile.panels != TILE_PANELS {
        return super::gemv::run(job);
    }
    let (head, bytes) = tile.bytes.split_at(TILE * 4);
    let (columns, _) = bytes.as_chunks::<LINE>().0.as_chunks::<TILE_PANELS>();
    let mut marks = [[0; 2]; 1 + MOST_MARKS];
    for (row, out) in job.out.as_chunks_mut::<TILE>().0.iter_mut().enumerate().take(job.rows) {
        let x = x.panel(row);
        let mut acc = [[ints(-zero * x.sums[0]); PARTS]; TILE_PANELS];
        let quads = x.codes.as_chunks::<QUAD>().0.chunks(MOST_MARKS * MARKED);
        for (quads, lines) in quads.zip(columns.chunks(MOST_MARKS * MARKED)) {
            mark(quads.as_flattened(), &mut marks);
            let [number, places @ ..] = &marks;
            match places.get(..u16::from_le_bytes(*number) as usize) {
                Some(places) => {
                    acc = multiply_row(lines, quads, &acc);
                    for place in places {
                        let at = u16::from_le_bytes(*place) as usize;
                        for (acc, line) in acc.iter_mut().zip(&lines[at]) {
                            add_lost(line, &quads[at], acc);
                        }
                    }
                }
                None => acc = multiply_row_signed(lines, quads, &acc),
            }
        }
        for (h, (out, acc)) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(acc.as_flattened()).enumerate() {
            let s = mul(scales(ScaleType::F32, head, h * LANES), all(x.scales[0]));
            put_floats(out, 0, mul(to_floats(*acc), s));
        }
    }
    Ok(())
}

/// As `multiply`, for one row and all panels.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_row(
    lines: &[[[u8; LINE]; TILE_PANELS]],
    quads: &[[i8; QUAD]],
    acc: &[[Int; PARTS]; TILE_PANELS],
) -> [[Int; PARTS]; TILE_PANELS] {
    let mut acc = *acc;
    for (lines, x) in lines.iter().zip(quads) {
        let x = everywhere(x);
        for (p, line) in lines.iter().enumerate() {
            prefetch_far(line, 1024); // a little sooner than the CPU does; farther ahead it was 0.9 of the speed
            for h in 0..PARTS {
                acc[p][h] = in_pairs(acc[p][h], _mm256_maddubs_epi16(load(line, h), x));
            }
        }
    }
    acc
}

/// As `multiply_signed`, for one row and all panels.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply_row_signed(
    lines: &[[[u8; LINE]; TILE_PANELS]],
    quads: &[[i8; QUAD]],
    acc: &[[Int; PARTS]; TILE_PANELS],
) -> [[Int; PARTS]; TILE_PANELS] {
    let mut acc = *acc;
    let mut sum = ints(0);
    for (lines, x) in lines.iter().zip(quads) {
        let x = everywhere(x);
        sum = add_ints(sum, sum_128(x));
        for (p, line) in lines.iter().enumerate() {
            for h in 0..PARTS {
                acc[p][h] = in_pairs(acc[p][h], signed(load(line, h), x));
            }
        }
    }
    acc.map(|acc| acc.map(|acc| add_ints(acc, sum)))
}
