//! Float activations, few rows, and the codes of a whole tile: weights are evaluated in registers and multiplied at once,
//! never stored as floats.
//!
//! ```text
//! line    16 lanes of 4 bytes: packed codes of 1, 2, 4 or 8 bits as they lie, rotated for each column;
//!         others as bytes, 128 columns of them (or the records that fit) as [quad][4 panels][64 bytes]
//! ```
//! A code becomes the last bits of 2^23, of which 2^23 and its zero point are taken: that is exact. The product with the
//! scale is rounded, as `Row::weight` has it, and an fma for each row of x follows. All four panels are on their way
//! together, for the latency of fma. Limit: for one row five operations a weight, of which a Zen 4 does two a cycle.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::gemm::decode;
use super::vector::*;
use crate::activation::Floats;
use crate::kernel::narrow::{Units, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{
    Coded, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS, Values,
};

/// Most rows of x: for more, floats that are stored once are faster.
pub(super) const ROWS: usize = 4;
/// Columns that are decoded at a time: whole units of every width.
const BLOCK: usize = 128;
/// Bytes that `run` needs.
pub(super) const SCRATCH: usize = BLOCK * TILE;
/// Panels of a tile.
const NP: usize = TILE_PANELS;
/// How far ahead of the reader packed codes are asked for.
const AHEAD: usize = 8192;

/// Whether weights are one code each: sums of several are made in a block of floats.
pub(super) fn takes(coded: &Coded) -> bool {
    coded.bases == 1
}

/// One panel of x, of at most [`ROWS`] rows, times a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(
    coded: &Coded,
    packed: &Packed,
    tile: Tile<'_>,
    x: &Floats<'_>,
    scratch: &mut [u8],
    out: &mut [f32],
) {
    // Codes are multiplied as they lie where groups are whole lines of them.
    let lines = match coded.scales {
        Scales::TwoLevel { len, .. } => len.is_multiple_of(packed.geometry().unit),
        _ => true,
    };
    let direct = lines && matches!(coded.bits, 1 | 2 | 4 | 8) && !matches!(coded.values, Values::Table(_));
    Work { coded, packed, tile, x, direct }.tile(scratch, out);
}

/// A tile and the batch.
struct Work<'a> {
    coded: &'a Coded,
    packed: &'a Packed,
    tile: Tile<'a>,
    x: &'a Floats<'a>,
    /// Codes are not decoded to bytes.
    direct: bool,
}

/// Lines of codes.
#[derive(Clone, Copy)]
struct Lines<'a> {
    /// `[line][4 panels][64 bytes]`.
    bytes: &'a [u8],
    bits: u8,
    /// How far ahead of the reader a cache line is asked for: decoded ones are in the first cache.
    ahead: usize,
}

impl Lines<'_> {
    /// From that column on, the first of a line.
    fn from(self, column: usize) -> Self {
        Lines { bytes: &self.bytes[column * self.bits as usize / 8 * TILE..], ..self }
    }

    /// By how much the lanes of a line are rotated for each of its columns, so that its code comes last.
    fn turns(&self) -> &'static [i32] {
        const fn turns<const COLUMNS: usize>() -> [i32; COLUMNS] {
            let (mut turns, mut c) = ([0; COLUMNS], 0);
            while c < COLUMNS {
                turns[c] = (8 * (c % QUAD) + c / QUAD * 32 / COLUMNS) as i32;
                if COLUMNS == 32 {
                    // Signs are 0 or 2 (`zero_point`).
                    turns[c] = (turns[c] + 31) % 32;
                }
                c += 1;
            }
            turns
        }
        match self.bits {
            1 => const { &turns::<32>() },
            2 => const { &turns::<16>() },
            4 => const { &turns::<8>() },
            _ => const { &turns::<4>() },
        }
    }

    /// The bits of a code that came last.
    fn mask(&self) -> i32 {
        if self.bits == 1 { 2 } else { (1 << self.bits) - 1 }
    }
}

/// What makes weights of the codes of a group: `(code - zero) scale + plus`, rounded after each operation.
struct Group {
    scale: [__m512; NP],
    plus: [__m512; NP],
    /// With 2^23 added.
    zero: [__m512; NP],
}

impl Work<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn tile(&self, codes: &mut [u8], out: &mut [f32]) {
        let geometry = self.packed.geometry();
        let (record, padded) = (geometry.record_bytes(NP), geometry.record_padded());
        let (head, unit) = (geometry.head * TILE, geometry.unit_bytes * NP);
        out[..self.x.mr * TILE].fill(0.0);
        // What is decoded: short records together, long ones in parts.
        let together = if self.direct { 1 } else { (BLOCK / padded).max(1) };
        for (first, bytes) in (0..).step_by(together).zip(self.tile.bytes.chunks(together * record)) {
            let parts = !self.direct && padded > BLOCK;
            if !self.direct && !parts {
                decode::<NP>(
                    self.coded,
                    &Units { bytes, record, head, unit, at: 0, stride: NP * LINE },
                    codes,
                );
            }
            for (r, bytes) in (first..).zip(bytes.chunks(record)) {
                let (head, units) = bytes.split_at(head);
                let len = geometry.record_len(r);
                if self.direct {
                    let lines = Lines { bytes: units, bits: self.coded.bits, ahead: AHEAD };
                    self.groups(head, (r, 0), len, lines, out);
                } else if !parts {
                    let lines = Lines { bytes: codes, bits: 8, ahead: 0 }.from((r - first) * padded);
                    self.groups(head, (r, 0), len, lines, out);
                } else {
                    let parts = units.chunks(BLOCK / geometry.unit * unit);
                    for (at, bytes) in (0..len).step_by(BLOCK).zip(parts) {
                        let units =
                            Units { bytes, record: bytes.len(), head: 0, unit, at: 0, stride: NP * LINE };
                        decode::<NP>(self.coded, &units, codes);
                        let lines = Lines { bytes: codes, bits: 8, ahead: 0 };
                        self.groups(head, (r, at), BLOCK.min(len - at), lines, out);
                    }
                }
            }
        }
    }

    /// The groups of `len` columns from column `at` of record `r` on.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn groups(&self, head: &[u8], (r, at): (usize, usize), len: usize, lines: Lines<'_>, out: &mut [f32]) {
        let geometry = self.packed.geometry();
        let mr = self.x.mr;
        let x = &self.x.values[(r * geometry.record + at) * mr..][..len * mr];
        let columns = self.coded.group_len(geometry.in_features).min(len);
        let plus = self.plus();
        for (i, x) in x.chunks(columns * mr).enumerate() {
            let (group, lines) = (self.group(head, at / columns + i), lines.from(i * columns));
            match (mr, plus) {
                (1, false) => multiply::<1, false>(lines, x, &group, out),
                (2, false) => multiply::<2, false>(lines, x, &group, out),
                (3, false) => multiply::<3, false>(lines, x, &group, out),
                (_, false) => multiply::<4, false>(lines, x, &group, out),
                (1, true) => multiply::<1, true>(lines, x, &group, out),
                (2, true) => multiply::<2, true>(lines, x, &group, out),
                (3, true) => multiply::<3, true>(lines, x, &group, out),
                (_, true) => multiply::<4, true>(lines, x, &group, out),
            }
        }
    }

    /// Whether groups have something to add to their weights.
    fn plus(&self) -> bool {
        match self.coded.scales {
            Scales::Row => false,
            Scales::Group { offset, .. } => offset == Offset::Minimum,
            Scales::TwoLevel { minimum, .. } => minimum,
        }
    }

    /// Group `j` of the record with that head.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn group(&self, head: &[u8], j: usize) -> Group {
        let (ty, size) = (self.coded.scale_type, self.coded.scale_type.bytes());
        let none = [_mm512_setzero_ps(); NP];
        let zero = |more: __m512i| {
            let zero = _mm512_add_epi32(_mm512_set1_epi32(zero_point(self.coded)), more);
            _mm512_cvtepi32_ps(_mm512_add_epi32(zero, _mm512_set1_epi32(1 << 23)))
        };
        let mut group = Group { scale: none, plus: none, zero: [zero(_mm512_setzero_si512()); NP] };
        for p in 0..NP {
            let lane = p * PANEL;
            match self.coded.scales {
                Scales::Row => group.scale[p] = scales(ScaleType::F32, head, lane),
                Scales::Group { offset, .. } => {
                    group.scale[p] = scales(ty, head, lane);
                    match offset {
                        Offset::None => (),
                        Offset::Minimum => group.plus[p] = scales(ty, &head[TILE * size..], lane),
                        Offset::Zero => group.zero[p] = zero(unsigned_bytes(head, TILE * size + lane)),
                    }
                }
                Scales::TwoLevel { len, minimum } => {
                    let subs = &head[TILE * size * (1 + minimum as usize)..];
                    let sub = |j: usize| _mm512_cvtepi32_ps(signed_bytes(subs, j * TILE + lane));
                    group.scale[p] = _mm512_mul_ps(scales(ty, head, lane), sub(j));
                    if minimum {
                        let dmin = scales(ty, &head[TILE * size..], lane);
                        let minus = _mm512_mul_ps(dmin, sub(SUPER_BLOCK / len + j));
                        // `a - b` is `a + -b`.
                        group.plus[p] = _mm512_xor_ps(minus, _mm512_set1_ps(-0.0));
                    }
                }
            }
        }
        group
    }
}

/// `out += weights . x`, column by column. `PLUS`: the group has something to add to its weights.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const R: usize, const PLUS: bool>(lines: Lines<'_>, x: &[f32], group: &Group, out: &mut [f32]) {
    let out = &mut out[..R * TILE];
    let mut acc = [[_mm512_setzero_ps(); NP]; R];
    unrolled!(R, I => unrolled!([0 1 2 3], P => acc[I][P] = floats(out, I * TILE + P * PANEL)));
    let Group { scale, plus, zero } = *group;
    let mask = _mm512_set1_epi32(lines.mask());
    let magic = _mm512_castps_si512(_mm512_set1_ps((1 << 23) as f32));
    let (turns, ahead) = (lines.turns(), lines.ahead);
    let all = lines.bytes.as_chunks::<LINE>().0.as_chunks::<NP>().0;
    for (x, codes) in x.as_chunks::<R>().0.chunks(turns.len()).zip(all) {
        let mut lines = [_mm512_setzero_si512(); NP];
        unrolled!([0 1 2 3], P => {
            prefetch(&codes[P], ahead);
            lines[P] = line(&codes[P], 0);
        });
        for (x, &turn) in x.iter().zip(turns) {
            let by = _mm512_set1_epi32(turn);
            let mut weights = [_mm512_setzero_ps(); NP];
            unrolled!([0 1 2 3], P => {
                // magic | codes & mask
                let codes = _mm512_rorv_epi32(lines[P], by);
                let code = _mm512_ternarylogic_epi32::<0xf8>(magic, codes, mask);
                let value = _mm512_sub_ps(_mm512_castsi512_ps(code), zero[P]);
                weights[P] = _mm512_mul_ps(value, scale[P]);
                if PLUS {
                    weights[P] = _mm512_add_ps(weights[P], plus[P]);
                }
            });
            unrolled!(R, I => {
                let x = _mm512_set1_ps(x[I]);
                unrolled!([0 1 2 3], P => acc[I][P] = _mm512_fmadd_ps(x, weights[P], acc[I][P]));
            });
        }
    }
    unrolled!(R, I => unrolled!([0 1 2 3], P => put_floats(out, I * TILE + P * PANEL, acc[I][P])));
}
