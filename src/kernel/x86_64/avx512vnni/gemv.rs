//! One row of x: weights are decoded in registers and read once, as one stream.
//!
//! Limit: the read bandwidth. A tile's cache lines are visited in the order of their addresses, heads of records too
//! ([`Fetch`]): what is read later than what lies behind it loses a Zen 4 up to half of its bandwidth.
//!
//! Codes of 1 and 2 bits are masked where they lie in their byte and not shifted down: what they are multiplied with by
//! their place is taken off the sum of all products of that place ([`Places`]). A shift less for each quad.

// A register tile is indexed by row and panel; iterators would hide which.
#![allow(clippy::needless_range_loop)]

use core::arch::x86_64::*;

use super::vector::*;
use crate::activation::{Activations, Codes};
use crate::cpu::follows_reads;
use crate::error::Result;
use crate::kernel::Job;
use crate::kernel::narrow::{for_width, formats_have, unit_lines, unit_quads, unrolled};
use crate::kernel::x86_64::zero_point;
use crate::layout::packed::{LINE, Tile};
use crate::layout::{
    Coded, Layout, Offset, PANEL, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS, Values,
};
use crate::limits::INT32_COLUMNS;

/// Panels of a tile.
const NP: usize = TILE_PANELS;

/// How cache lines come in time.
#[derive(Clone, Copy)]
enum Fetch {
    /// What comes 8 KiB later is asked for, into the first cache.
    Near,
    /// What comes 16 KiB later, into the second.
    Far,
    /// The CPU does it, which sees lines that are read in the order of their addresses.
    InOrder,
}

impl Fetch {
    /// Measured (docs/performance/kernels.md): `Near` on an Ice Lake, the others on a Zen 4, which reads at half of its
    /// bandwidth the wrong way.
    fn of(coded: &Coded) -> Fetch {
        if !follows_reads() {
            return Fetch::Near;
        }
        match (coded.bits, coded.scales) {
            // Longer groups have few heads: the stream hardly stops. (Rows of 2 bits: `once`.)
            (2, Scales::Group { len: 128.., .. }) => Fetch::InOrder,
            (2, _) | (3 | 5, Scales::TwoLevel { .. }) => Fetch::Far,
            _ => Fetch::InOrder,
        }
    }

    /// These bytes are read next, and in order (`ordered`) or not.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn coming(self, bytes: &[u8], ordered: bool) {
        for line in bytes.as_chunks::<LINE>().0 {
            match self {
                Fetch::Near => prefetch(line, 8 << 10),
                Fetch::Far => prefetch_far(line, 16 << 10),
                Fetch::InOrder if !ordered => touch(line),
                Fetch::InOrder => (),
            }
        }
    }
}

/// Asks for what comes 10 KiB after these bytes, into the first cache and no other: a stream of nothing but codes of 2 bits
/// comes 1.15 times as fast so on a Zen 4. (Not a kind of [`Fetch`], which each kind makes slower for the others.)
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn once(bytes: &[u8]) {
    for line in bytes.as_chunks::<LINE>().0 {
        prefetch_once(line, 10 << 10);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let (Activations::Integer(x), Layout::Coded(coded)) = (&job.x, job.packed.layout()) else {
        return Ok(());
    };
    let tile = job.packed.tile(job.tile);
    // The last, partial tile of a matrix is not worth a second copy of every function here.
    if tile.panels < NP || !formats_have(coded) {
        return super::super::avx2::gemv::run(job);
    }
    // Several rows come where no kernel takes them together (several bases, very long rows).
    for (i, out) in job.out.chunks_exact_mut(TILE).take(job.rows).enumerate() {
        let x = &x.panel(i);
        match coded.scales {
            Scales::Row => for_width!(coded, row(coded, tile, x, out)),
            Scales::Group { offset, .. } => for_width!(coded, group(coded, offset, tile, x, out)),
            Scales::TwoLevel { len, minimum } => match (coded.bits, coded.values, len) {
                (2, _, 16) => two_level::<2, false, 4>(coded, minimum, tile, x, out),
                (2, ..) => two_level::<2, false, 8>(coded, minimum, tile, x, out),
                (3, ..) => two_level::<3, false, 4>(coded, minimum, tile, x, out),
                (4, Values::Table(_), _) => two_level::<4, true, 8>(coded, minimum, tile, x, out),
                (4, ..) => two_level::<4, false, 8>(coded, minimum, tile, x, out),
                (5, ..) => two_level::<5, false, 8>(coded, minimum, tile, x, out),
                _ => two_level::<6, false, 4>(coded, minimum, tile, x, out),
            },
        }
    }
    Ok(())
}

/// Whether lines of a unit are used in the order in which they lie: not where the upper bits of codes, which come last, are
/// needed for all of them.
const fn ordered(bits: u8) -> bool {
    !matches!(bits, 3 | 5 | 6)
}

/// The scales of a tile, one for each row. Looks at their type once; a macro, as functions like this are not inlined.
macro_rules! tile_scales {
    ($ty:expr, $bytes:expr) => {{
        let (ty, bytes) = ($ty, $bytes);
        let bytes = &bytes[..NP * PANEL * ty.bytes()];
        let mut all = [_mm512_setzero_ps(); NP];
        match ty {
            ScaleType::F32 => unrolled!([0 1 2 3], P => all[P] = scales(ScaleType::F32, bytes, P * PANEL)),
            ScaleType::F16 => unrolled!([0 1 2 3], P => all[P] = scales(ScaleType::F16, bytes, P * PANEL)),
            ScaleType::Bf16 => unrolled!([0 1 2 3], P => all[P] = scales(ScaleType::Bf16, bytes, P * PANEL)),
            ScaleType::E8m0 => unrolled!([0 1 2 3], P => all[P] = scales(ScaleType::E8m0, bytes, P * PANEL)),
        }
        all
    }};
}

/// Adds the products of one unit to `$places`. Not a function, which the compiler would not inline for some widths, and
/// sums would be kept in memory.
macro_rules! add_unit {
    ($places:ident, $unit:expr, $x:expr, $table:expr) => {
        let (unit, x) = ($unit, $x);
        unrolled!(unit_quads(BITS), I => {
            let q = quad_of(x, I);
            unrolled!([0 1 2 3], P => {
                let (place, codes) = match BITS {
                    1 => (I % 4, masked(line(unit, P * LINE), 4 * (I as i32 / 4), 1 << (I % 4))),
                    2 => (I % 4, masked(line(unit, P * LINE), 0, 3 << (2 * (I % 4)))),
                    _ => (0, quad::<BITS, TABLE>(unit, P * LINE, NP * LINE, I, $table)),
                };
                $places.0[place][P] = _mm512_dpbusd_epi32($places.0[place][P], codes, q);
            });
        });
    };
}

/// Sums of four panels, for each place of a code in its byte.
///
/// ```text
/// 2 bits, place 2:  ..cc....  the code times 16; so is every product, and their sum
/// ```
/// Four places of 2 bits. Of 1 bit, four: the upper half of a line is shifted down, so that eight places do not take all
/// registers. All other codes have one.
struct Places([[__m512i; NP]; 4]);

impl Places {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn new() -> Places {
        Places([[_mm512_setzero_si512(); NP]; 4])
    }

    /// Adds their sums to `sums`, where signs count as 0 or 2 (`zero_point`).
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn add_to<const BITS: u8, const TABLE: bool>(&self, sums: &mut [__m512i; NP]) {
        unrolled!([0 1 2 3], P => {
            let (a, b, c, d) = (self.0[0][P], self.0[1][P], self.0[2][P], self.0[3][P]);
            let sum = match BITS {
                1 => {
                    let high = _mm512_add_epi32(_mm512_srai_epi32::<1>(d), c);
                    let low = _mm512_add_epi32(_mm512_slli_epi32::<1>(a), b);
                    _mm512_add_epi32(_mm512_srai_epi32::<1>(high), low)
                }
                2 => {
                    let high = _mm512_add_epi32(_mm512_srai_epi32::<2>(d), c);
                    let high = _mm512_add_epi32(_mm512_srai_epi32::<2>(high), b);
                    _mm512_add_epi32(_mm512_srai_epi32::<2>(high), a)
                }
                _ => a,
            };
            sums[P] = _mm512_add_epi32(sums[P], sum);
        });
    }
}

/// What the sums of a group begin with: `start`, and where codes of x are unsigned the weights' own
/// (`activation::WeightSums`).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn begin(x: &Codes<'_>, group: usize, start: i32) -> [__m512i; NP] {
    let mut sums = [_mm512_set1_epi32(start); NP];
    if let Some(weights) = x.weight_sums(group) {
        unrolled!([0 1 2 3], P => sums[P] = _mm512_add_epi32(sums[P], integers(weights, P * PANEL)));
    }
    sums
}

/// Quad `i` of a row of activations in every lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quad_of(x: &[i8], i: usize) -> __m512i {
    let q = &x[i * QUAD..][..QUAD];
    _mm512_set1_epi32(i32::from_le_bytes([q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn row<const BITS: u8, const TABLE: bool>(coded: &Coded, tile: Tile<'_>, x: &Codes<'_>, out: &mut [f32]) {
    let (bases, table, zero) = (coded.bases as usize, table(coded), zero_point(coded));
    let lanes = NP * PANEL;
    let (head, units) = tile.bytes.split_at(lanes * 4 * bases);
    let (fetch, take_once) = (Fetch::of(coded), BITS == 2 && follows_reads());
    let base_bytes = unit_lines(BITS) * NP * LINE;
    let columns = unit_quads(BITS) * QUAD;
    let chunk_units = INT32_COLUMNS / columns;
    let chunks = (x.codes.len() / columns).div_ceil(chunk_units);
    let s_x = _mm512_set1_ps(x.scales[0]);
    let mut acc = [_mm512_setzero_ps(); NP];
    for base in 0..bases {
        let mut total = [[0i64; PANEL]; NP];
        let mut sums = [_mm512_setzero_si512(); NP];
        let s_w = tile_scales!(ScaleType::F32, &head[base * lanes * 4..]);
        for (c, (units, codes)) in
            units.chunks(chunk_units * base_bytes * bases).zip(x.codes.chunks(INT32_COLUMNS)).enumerate()
        {
            let mut places = Places::new();
            for (u, q) in units.chunks_exact(base_bytes * bases).zip(codes.chunks_exact(columns)) {
                let unit = &u[base * base_bytes..][..base_bytes];
                if take_once {
                    once(unit)
                } else {
                    fetch.coming(unit, ordered(BITS))
                }
                add_unit!(places, unit, q, table);
            }
            sums = begin(x, base * x.shape.groups + c, -zero * x.sums[c]);
            places.add_to::<BITS, TABLE>(&mut sums);
            if chunks > 1 {
                for p in 0..NP {
                    add_to(&mut total[p], sums[p]);
                }
            }
        }
        unrolled!([0 1 2 3], P => {
            let dot = if chunks > 1 { from_i64(&total[P]) } else { _mm512_cvtepi32_ps(sums[P]) };
            let s = _mm512_mul_ps(s_w[P], s_x);
            acc[P] = if bases == 1 { _mm512_mul_ps(dot, s) } else { _mm512_fmadd_ps(dot, s, acc[P]) };
        });
    }
    put(out, &acc);
}

/// Stores a row of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn put(out: &mut [f32], acc: &[__m512; NP]) {
    for p in 0..NP {
        put_floats(out, p * PANEL, acc[p]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_to(total: &mut [i64; PANEL], sums: __m512i) {
    let mut part = [0u8; 64];
    put_line(&mut part, 0, sums);
    for (t, p) in total.iter_mut().zip(part.as_chunks().0) {
        *t += i32::from_le_bytes(*p) as i64;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn from_i64(total: &[i64; PANEL]) -> __m512 {
    floats(&total.map(|t| t as f32), 0)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn group<const BITS: u8, const TABLE: bool>(
    coded: &Coded,
    offset: Offset,
    tile: Tile<'_>,
    x: &Codes<'_>,
    out: &mut [f32],
) {
    let mut acc = [_mm512_setzero_ps(); NP];
    let (ty, table, zero) = (coded.scale_type, table(coded), zero_point(coded));
    let geometry = &x.shape.geometry;
    let lanes = NP * PANEL;
    let unit_bytes = unit_lines(BITS) * NP * LINE;
    let columns = unit_quads(BITS) * QUAD;
    let fetch = Fetch::of(coded);
    let records = tile.bytes.chunks(geometry.record_bytes(NP));
    for (g, (record, codes)) in records.zip(x.codes.chunks(geometry.record_padded())).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        // Read first, where they are first in memory.
        let s_w = tile_scales!(ty, head);
        let offsets = &head[lanes * ty.bytes()..];
        let (xsum, s_x) = (x.totals[g], _mm512_set1_ps(x.scales[g]));
        let mut sums = begin(x, g, -zero * x.sums[g]);
        let mut minima = [_mm512_setzero_ps(); NP];
        match offset {
            Offset::None => (),
            Offset::Zero => unrolled!([0 1 2 3], P => {
                let zeros = unsigned_bytes(offsets, P * PANEL);
                let product = _mm512_mullo_epi32(zeros, _mm512_set1_epi32(xsum));
                sums[P] = _mm512_sub_epi32(sums[P], product);
            }),
            Offset::Minimum => {
                minima = tile_scales!(ty, offsets);
            }
        }
        fetch.coming(head, true);
        let mut places = Places::new();
        for (u, q) in units.chunks_exact(unit_bytes).zip(codes.chunks_exact(columns)) {
            fetch.coming(u, ordered(BITS));
            add_unit!(places, u, q, table);
        }
        places.add_to::<BITS, TABLE>(&mut sums);
        unrolled!([0 1 2 3], P => {
            let dot = _mm512_cvtepi32_ps(sums[P]);
            acc[P] = _mm512_fmadd_ps(dot, _mm512_mul_ps(s_w[P], s_x), acc[P]);
        });
        if offset == Offset::Minimum {
            let weighted = _mm512_mul_ps(_mm512_set1_ps(xsum as f32), s_x);
            unrolled!([0 1 2 3], P => acc[P] = _mm512_fmadd_ps(weighted, minima[P], acc[P]));
        }
    }
    put(out, &acc);
}

/// Super-blocks. `GQ`: quads of a group, 4 or 8.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn two_level<const BITS: u8, const TABLE: bool, const GQ: usize>(
    coded: &Coded,
    minimum: bool,
    tile: Tile<'_>,
    x: &Codes<'_>,
    out: &mut [f32],
) {
    let (ty, table, zero) = (coded.scale_type, table(coded), zero_point(coded));
    let geometry = &x.shape.geometry;
    let lanes = NP * PANEL;
    let (uq, unit_bytes) = (unit_quads(BITS), unit_lines(BITS) * NP * LINE);
    // Quads of a step: whole units and whole groups.
    let step = if uq > GQ { uq } else { GQ };
    let groups = SUPER_BLOCK / QUAD / GQ;
    let mut acc = [_mm512_setzero_ps(); NP];
    let fetch = Fetch::of(coded);
    let records = tile.bytes.chunks_exact(geometry.record_bytes(NP));
    for (b, (record, codes)) in records.zip(x.codes.chunks_exact(SUPER_BLOCK)).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        let d = tile_scales!(ty, head);
        let dmin = if minimum { tile_scales!(ty, &head[lanes * ty.bytes()..]) } else { d };
        fetch.coming(head, false);
        let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
        let sums_x = &x.sums[b * groups..][..groups];
        let totals = &x.totals[b * groups..][..groups];
        let mut isum = [_mm512_setzero_si512(); NP];
        let mut msum = [_mm512_setzero_si512(); NP];
        let mut j = 0;
        for (units, q) in units.chunks_exact(step / uq * unit_bytes).zip(codes.chunks_exact(step * QUAD)) {
            let mut dot = [_mm512_setzero_si512(); NP];
            unrolled!(step, I => {
                let (u, i) = (I / uq, I % uq);
                let unit = &units[u * unit_bytes..][..unit_bytes];
                if i == 0 {
                    fetch.coming(unit, ordered(BITS));
                }
                if I.is_multiple_of(GQ) {
                    dot = begin(x, b * groups + j, -zero * sums_x[j]);
                }
                let x4 = quad_of(q, I);
                unrolled!([0 1 2 3], P => {
                    let codes = quad::<BITS, TABLE>(unit, P * LINE, NP * LINE, i, table);
                    dot[P] = _mm512_dpbusd_epi32(dot[P], codes, x4);
                });
                if I % GQ == GQ - 1 {
                    // Totals of a group fit 16 bits; the high half of a lane is multiplied with 0.
                    let total = _mm512_set1_epi32(totals[j] & 0xffff);
                    unrolled!([0 1 2 3], P => {
                        let sc = signed_bytes(subs, j * lanes + P * PANEL);
                        isum[P] = _mm512_add_epi32(isum[P], _mm512_mullo_epi32(sc, dot[P]));
                        if minimum {
                            let mn = signed_bytes(subs, (groups + j) * lanes + P * PANEL);
                            msum[P] = _mm512_dpwssd_epi32(msum[P], mn, total);
                        }
                    });
                    j += 1;
                }
            });
        }
        let s_x = _mm512_set1_ps(x.scales[b]);
        unrolled!([0 1 2 3], P => {
            acc[P] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[P]), _mm512_mul_ps(d[P], s_x), acc[P]);
            if minimum {
                let dmin = _mm512_mul_ps(dmin[P], s_x);
                // fnmadd negates the product, which is the same number as a negated factor.
                acc[P] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum[P]), dmin, acc[P]);
            }
        });
    }
    put(out, &acc);
}
