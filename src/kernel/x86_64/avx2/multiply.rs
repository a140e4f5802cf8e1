//! The inner loop of the kernels for several rows of x (`narrow::gemm`).
//!
//! Limit: two multiplications and four operations in all in a cycle. Narrow codes take one `vpmaddubsw` and one
//! addition in 16 bits for each row of x and 32 products; the way to 32 bits comes once in a long run. Wide ones
//! take a `vpsignb`, two multiplications and an addition. Two vectors of codes and one of x feed eight sums, so
//! that three loads serve four multiplications.

// A register tile is indexed by row and part; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::step;
use super::vector::*;
use crate::kernel::narrow::gemm::Ahead;
use crate::layout::QUAD;
use crate::layout::packed::LINE;

/// Most rows of a panel of x.
pub(super) const ROWS: usize = 4;

/// `dots[g][i][h] = begins[g][i] + codes . x` over groups of so many columns, the last one of which may be short; narrow codes
/// come in an even number of quads. `run`: steps that may be summed in 16 bits, an even number.
#[inline(never)] // one copy for all schemes of scales
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply<const MR: usize, const WIDE: bool>(
    codes: &[u8],
    x: &[i8],
    columns: usize,
    run: usize,
    full: bool,
    begins: &[[i32; MR]],
    mut ahead: Ahead<'_>,
    dots: &mut [[[Int; PARTS]; MR]],
) {
    let (lines, _) = codes.as_chunks::<LINE>();
    let (quads, _) = x.as_chunks::<QUAD>();
    let size = columns / QUAD;
    if !WIDE && run > 2 {
        return long_runs(lines, quads, (size, run), begins, ahead, dots);
    }
    let groups = lines.chunks(size).zip(quads.chunks(size * MR));
    for (((lines, quads), begins), dot) in groups.zip(begins).zip(dots) {
        let mut acc = beginning(begins);
        if WIDE && full {
            full_group(lines, quads, &mut acc);
        } else if WIDE {
            wide_group(lines, quads, &mut ahead, &mut acc);
        } else {
            pairs_group(lines, quads, &mut ahead, &mut acc);
        }
        *dot = acc;
    }
}

/// Run after run. Sums stay in memory meanwhile: a run needs all registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn long_runs<const MR: usize>(
    mut lines: &[[u8; LINE]],
    mut quads: &[[i8; QUAD]],
    (size, run): (usize, usize),
    begins: &[[i32; MR]],
    mut ahead: Ahead<'_>,
    dots: &mut [[[Int; PARTS]; MR]],
) {
    let (mut group, mut left) = (0, size);
    while let (Some(dot), Some(begins)) = (dots.get_mut(group), begins.get(group))
        && let Some((now, later)) = lines.split_at_checked(run.min(left).min(lines.len()))
        && let Some((x, x_later)) = quads.split_at_checked(now.len() * MR)
        && !now.is_empty()
    {
        (lines, quads) = (later, x_later);
        let mut part = [[_mm256_setzero_si256(); PARTS]; MR];
        for (w, x) in now.as_chunks::<2>().0.iter().zip(x.chunks_exact(2 * MR)) {
            fetch(&mut ahead);
            for r in 0..2 {
                let w = [load(&w[r], 0), load(&w[r], 1)];
                for i in 0..MR {
                    let x = everywhere(&x[r * MR + i]);
                    for h in 0..PARTS {
                        part[i][h] = _mm256_add_epi16(part[i][h], _mm256_maddubs_epi16(w[h], x));
                    }
                }
            }
        }
        if left == size {
            *dot = beginning(begins);
        }
        for i in 0..MR {
            for h in 0..PARTS {
                dot[i][h] = step::end(dot[i][h], part[i][h], false);
            }
        }
        left -= now.len();
        if left == 0 {
            (group, left) = (group + 1, size);
        }
    }
}

/// A group whose runs are two steps long.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pairs_group<const MR: usize>(
    lines: &[[u8; LINE]],
    quads: &[[i8; QUAD]],
    ahead: &mut Ahead<'_>,
    acc: &mut [[Int; PARTS]; MR],
) {
    for (w, x) in lines.as_chunks::<2>().0.iter().zip(quads.chunks_exact(2 * MR)) {
        fetch(ahead);
        for h in 0..PARTS {
            let (w0, w1) = (load(&w[0], h), load(&w[1], h));
            for i in 0..MR {
                let a = _mm256_maddubs_epi16(w0, everywhere(&x[i]));
                let b = _mm256_maddubs_epi16(w1, everywhere(&x[MR + i]));
                acc[i][h] = step::end(acc[i][h], _mm256_add_epi16(a, b), false);
            }
        }
    }
}

/// A group of wide codes, x never -128.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn wide_group<const MR: usize>(
    lines: &[[u8; LINE]],
    quads: &[[i8; QUAD]],
    ahead: &mut Ahead<'_>,
    acc: &mut [[Int; PARTS]; MR],
) {
    for (line, x) in lines.iter().zip(quads.chunks_exact(MR)) {
        prefetch_far(ahead.bytes, ahead.at);
        ahead.at += ahead.step;
        for h in 0..PARTS {
            let w = load(line, h);
            let magnitude = _mm256_abs_epi8(w);
            for i in 0..MR {
                let x = _mm256_sign_epi8(everywhere(&x[i]), w);
                acc[i][h] = step::end(acc[i][h], _mm256_maddubs_epi16(magnitude, x), false);
            }
        }
    }
}

/// A group of wide codes and any x.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn full_group<const MR: usize>(lines: &[[u8; LINE]], quads: &[[i8; QUAD]], acc: &mut [[Int; PARTS]; MR]) {
    for (line, x) in lines.iter().zip(quads.chunks_exact(MR)) {
        for i in 0..MR {
            for h in 0..PARTS {
                acc[i][h] = step::step(acc[i][h], load(line, h), everywhere(&x[i]), true, true);
            }
        }
    }
}

/// Asks for what two quads are worth: at most two lines.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fetch(ahead: &mut Ahead<'_>) {
    prefetch_far(ahead.bytes, ahead.at);
    if ahead.step > LINE / 2 {
        prefetch_far(ahead.bytes, ahead.at + LINE);
    }
    ahead.at += 2 * ahead.step;
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn beginning<const MR: usize>(begins: &[i32; MR]) -> [[Int; PARTS]; MR] {
    let mut acc = [[ints(0); PARTS]; MR];
    for i in 0..MR {
        acc[i] = [ints(begins[i]); PARTS];
    }
    acc
}

/// A quad of x in every lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn everywhere(x: &[i8; QUAD]) -> Bytes {
    _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)))
}
