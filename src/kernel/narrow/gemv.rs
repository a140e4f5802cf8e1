//! One row of x: weights are decoded in registers and read once.
//!
//! A tile's records are taken in the order of their addresses, each panel by panel; what the panels
//! share of a record is in L1 by then. Limit: the read bandwidth.

/// `run` for one instruction set: integer activations, rows of x one by one.
macro_rules! gemv {
    ($features:literal) => {
        use super::step::{BIAS, OTHER_WAY, begin, end, step};
        use super::vector::*;
        use crate::activation::{Activations, Codes};
        use crate::error::Result;
        use crate::kernel::{Job, scalar};
        use crate::kernel::narrow::{for_width_full, formats_have, run as run_of, unit_lines, unit_quads, unrolled, wide, zero_point};
        use crate::layout::packed::{LINE, Tile};
        use crate::layout::{Coded, Layout, Offset, PANEL, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, Values};
        use crate::limits::INT32_COLUMNS;

        /// How far ahead of the reader a cache line is asked for.
        const AHEAD: usize = 4096;
        /// Columns of a long record that one panel takes before the next one does.
        const SPAN: usize = 256;
        /// Who calls `units`.
        const ROW: u8 = 0;
        const GROUP: u8 = 1;

        #[target_feature(enable = $features)]
        pub(in crate::kernel) fn run(job: &mut Job<'_>) -> Result<()> {
            let (Activations::Integer(x), Layout::Coded(coded)) = (&job.x, job.packed.layout()) else {
                return Ok(());
            };
            if !formats_have(coded) {
                return scalar::run(job);
            }
            let tile = job.packed.tile(job.tile);
            for (i, out) in job.out.chunks_exact_mut(TILE).take(job.rows).enumerate() {
                let x = x.panel(i);
                match coded.scales {
                    Scales::Row => for_width_full!(coded, x, row(coded, tile, &x, out)),
                    Scales::Group { offset, .. } => {
                        for_width_full!(coded, x, group(coded, offset, tile, &x, out))
                    }
                    Scales::TwoLevel { len, minimum } => {
                        let (table, full) = (matches!(coded.values, Values::Table(_)), OTHER_WAY && x.bias != 0);
                        match (coded.bits, table, len) {
                            (2, _, 16) => two_level::<2, false, false, 4>(coded, minimum, tile, &x, out),
                            (2, ..) => two_level::<2, false, false, 8>(coded, minimum, tile, &x, out),
                            (3, ..) => two_level::<3, false, false, 4>(coded, minimum, tile, &x, out),
                            (4, false, _) => two_level::<4, false, false, 8>(coded, minimum, tile, &x, out),
                            (4, true, _) if full => two_level::<4, true, true, 8>(coded, minimum, tile, &x, out),
                            (4, true, _) => two_level::<4, true, false, 8>(coded, minimum, tile, &x, out),
                            (5, ..) => two_level::<5, false, false, 8>(coded, minimum, tile, &x, out),
                            _ => two_level::<6, false, false, 4>(coded, minimum, tile, &x, out),
                        }
                    }
                }
            }
            Ok(())
        }

        /// Adds the products of one panel's units to `acc`. `at` and `stride` as in `lines`. Each caller has its
        /// own copy: compilers inline what has one caller.
        #[inline]
        #[target_feature(enable = $features)]
        fn units<const BITS: u8, const TABLE: bool, const FULL: bool, const CALLER: u8>(
            units: &[u8],
            unit_bytes: usize,
            at: usize,
            stride: usize,
            x: &[i8],
            table: Bytes,
            acc: &mut [Int; PARTS],
        ) {
            // Long records: each panel asks for a part of what comes, line after line; a stream of addresses is
            // fetched sooner than every fourth line four times.
            let part = if CALLER == ROW || BITS == 8 {
                x.len() / (unit_quads(BITS) * QUAD) * unit_lines(BITS) * LINE
            } else {
                0
            };
            let mut ahead = 2 * AHEAD + at % stride / LINE * part;
            for (unit, x) in units.chunks_exact(unit_bytes).zip(x.chunks_exact(unit_quads(BITS) * QUAD)) {
                for line in 0..unit_lines(BITS) {
                    if part > 0 {
                        prefetch(units, ahead);
                        ahead += LINE;
                    } else {
                        prefetch(unit, AHEAD + at + line * stride);
                    }
                }
                let lines = lines::<BITS>(unit, at, stride);
                unrolled!(unit_quads(BITS) / run_of(BITS, TABLE), R => {
                    let i = R * run_of(BITS, TABLE);
                    steps::<BITS, TABLE, FULL>(&lines, i, x, i, table, acc);
                });
            }
        }

        /// One run of steps: quads `i ..` of a unit with quads `j ..` of x.
        #[inline]
        #[target_feature(enable = $features)]
        fn steps<const BITS: u8, const TABLE: bool, const FULL: bool>(
            lines: &[&[u8; LINE]; 5],
            i: usize,
            x: &[i8],
            j: usize,
            table: Bytes,
            acc: &mut [Int; PARTS],
        ) {
            for h in 0..PARTS {
                let mut part = begin(acc[h]);
                unrolled!(run_of(BITS, TABLE), R => {
                    let codes = quad::<BITS, TABLE>(lines, h, i + R, table);
                    part = step(part, codes, quad_of(x, j + R), wide(BITS, TABLE), FULL);
                });
                acc[h] = end(acc[h], part, FULL);
            }
        }

        /// What the sums of one panel's group begin with: `start`, and where codes of x are unsigned the
        /// weights' own (`activation::WeightSums`).
        #[inline]
        #[target_feature(enable = $features)]
        fn start(x: &Codes<'_>, group: usize, lane: usize, start: i32) -> [Int; PARTS] {
            let mut sums = [ints(start); PARTS];
            if let Some(weights) = x.weight_sums(group) {
                for h in 0..PARTS {
                    sums[h] = add_ints(sums[h], integers(weights, lane + h * LANES));
                }
            }
            sums
        }

        /// What `step` leaves to be taken off for each unit of the sum of x.
        fn zero_of<const BITS: u8, const TABLE: bool>(coded: &Coded) -> i32 {
            zero_point(coded) + if wide(BITS, TABLE) { BIAS } else { 0 }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn row<const BITS: u8, const TABLE: bool, const FULL: bool>(
            coded: &Coded,
            tile: Tile<'_>,
            x: &Codes<'_>,
            out: &mut [f32],
        ) {
            let (bases, table, zero) = (coded.bases as usize, table(coded), zero_of::<BITS, TABLE>(coded));
            let lanes = tile.panels * PANEL;
            let (head, bytes) = tile.bytes.split_at(lanes * 4 * bases);
            let base_bytes = unit_lines(BITS) * tile.panels * LINE;
            let unit_bytes = base_bytes * bases;
            let columns = unit_quads(BITS) * QUAD;
            let chunks = x.codes.len().div_ceil(INT32_COLUMNS);
            for base in 0..bases {
                let mut total = [0i64; TILE];
                let mut sums = [[ints(0); PARTS]; TILE / PANEL];
                for (c, (bytes, codes)) in bytes
                    .chunks(INT32_COLUMNS / columns * unit_bytes)
                    .zip(x.codes.chunks(INT32_COLUMNS))
                    .enumerate()
                {
                    for (p, sums) in sums.iter_mut().enumerate() {
                        *sums = start(x, base * x.shape.groups + c, p * PANEL, -zero * x.sums[c]);
                    }
                    for (bytes, codes) in bytes.chunks(SPAN / columns * unit_bytes).zip(codes.chunks(SPAN)) {
                        for (p, sums) in sums.iter_mut().enumerate().take(tile.panels) {
                            let at = base * base_bytes + p * LINE;
                            let stride = tile.panels * LINE;
                            units::<BITS, TABLE, FULL, ROW>(bytes, unit_bytes, at, stride, codes, table, sums);
                        }
                    }
                    if chunks > 1 {
                        add_to(&mut total, &sums);
                    }
                }
                let dots = if chunks > 1 { from_i64(&total) } else { to_f32(&sums) };
                let head = &head[base * lanes * 4..][..lanes * 4];
                add_base(&dots, head, x.scales[0], (base, bases), out);
            }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn to_f32(sums: &[[Int; PARTS]; TILE / PANEL]) -> [[Float; PARTS]; TILE / PANEL] {
            let mut dots = [[all(0.0); PARTS]; TILE / PANEL];
            for (dot, sum) in dots.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                *dot = to_floats(*sum);
            }
            dots
        }

        /// The end of a base: its sums times its scales.
        #[inline(never)] // one copy for all code widths
        #[target_feature(enable = $features)]
        fn add_base(
            dots: &[[Float; PARTS]; TILE / PANEL],
            head: &[u8],
            s_x: f32,
            base: (usize, usize),
            out: &mut [f32],
        ) {
            let lanes = (0..head.len() / 4).step_by(LANES);
            for ((lane, dot), out) in lanes.zip(dots.as_flattened()).zip(out.chunks_exact_mut(LANES)) {
                let s = mul(scales(ScaleType::F32, head, lane), all(s_x));
                let y = match base {
                    (_, 1) => mul(*dot, s),
                    (0, _) => fma(*dot, s, all(0.0)),
                    _ => fma(*dot, s, floats(out, 0)),
                };
                put_floats(out, 0, y);
            }
        }

        #[inline(never)] // rows of more than 65 536 columns
        #[target_feature(enable = $features)]
        fn add_to(total: &mut [i64; TILE], sums: &[[Int; PARTS]; TILE / PANEL]) {
            let mut part = [0f32; LANES];
            for (total, sums) in total.chunks_exact_mut(LANES).zip(sums.as_flattened()) {
                put_floats(&mut part, 0, as_floats(*sums));
                for (t, bits) in total.iter_mut().zip(part) {
                    *t += bits.to_bits() as i32 as i64;
                }
            }
        }

        #[inline(never)] // as above
        #[target_feature(enable = $features)]
        fn from_i64(total: &[i64; TILE]) -> [[Float; PARTS]; TILE / PANEL] {
            let total = total.map(|t| t as f32);
            let mut dots = [[all(0.0); PARTS]; TILE / PANEL];
            for (dot, total) in dots.as_flattened_mut().iter_mut().zip(total.chunks_exact(LANES)) {
                *dot = floats(total, 0);
            }
            dots
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn group<const BITS: u8, const TABLE: bool, const FULL: bool>(
            coded: &Coded,
            offset: Offset,
            tile: Tile<'_>,
            x: &Codes<'_>,
            out: &mut [f32],
        ) {
            let (ty, table, zero) = (coded.scale_type, table(coded), zero_of::<BITS, TABLE>(coded));
            let geometry = &x.shape.geometry;
            let lanes = tile.panels * PANEL;
            let unit_bytes = unit_lines(BITS) * tile.panels * LINE;
            out[..lanes].fill(0.0);
            let records = tile.bytes.chunks(geometry.record_bytes(tile.panels));
            for (g, (record, codes)) in records.zip(x.codes.chunks(geometry.record_padded())).enumerate() {
                let (head, bytes) = record.split_at(lanes * geometry.head);
                let (xsum, s_x) = (x.totals[g], all(x.scales[g]));
                for line in 0..head.len().div_ceil(LINE) {
                    prefetch(head, AHEAD + line * LINE);
                }
                for p in 0..tile.panels {
                    let lane = p * PANEL;
                    let mut sums = start(x, g, lane, -zero * x.sums[g]);
                    if offset == Offset::Zero {
                        for h in 0..PARTS {
                            let zeros = unsigned_bytes(head, lanes * ty.bytes() + lane + h * LANES);
                            sums[h] = sub_ints(sums[h], mul_ints(zeros, ints(xsum)));
                        }
                    }
                    let stride = tile.panels * LINE;
                    units::<BITS, TABLE, FULL, GROUP>(
                        bytes,
                        unit_bytes,
                        p * LINE,
                        stride,
                        codes,
                        table,
                        &mut sums,
                    );
                    for h in 0..PARTS {
                        let lane = lane + h * LANES;
                        let s = mul(scales(ty, head, lane), s_x);
                        let mut acc = fma(to_floats(sums[h]), s, floats(out, lane));
                        if offset == Offset::Minimum {
                            let minimum = scales(ty, &head[lanes * ty.bytes()..], lane);
                            acc = fma(mul(all(xsum as f32), s_x), minimum, acc);
                        }
                        put_floats(out, lane, acc);
                    }
                }
            }
        }

        /// `GQ`: quads of a group, 4 or 8.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn two_level<const BITS: u8, const TABLE: bool, const FULL: bool, const GQ: usize>(
            coded: &Coded,
            minimum: bool,
            tile: Tile<'_>,
            x: &Codes<'_>,
            out: &mut [f32],
        ) {
            let (ty, table, zero) = (coded.scale_type, table(coded), zero_of::<BITS, TABLE>(coded));
            let geometry = &x.shape.geometry;
            let groups = SUPER_BLOCK / QUAD / GQ;
            let lanes = tile.panels * PANEL;
            let stride = tile.panels * LINE;
            let unit_bytes = unit_lines(BITS) * stride;
            let (uq, run) = (unit_quads(BITS), run_of(BITS, TABLE));
            let quads = uq.max(GQ); // of a step: whole units and whole groups
            let step_bytes = quads / uq * unit_bytes;
            let part = SUPER_BLOCK / (uq * QUAD) * unit_lines(BITS) * LINE;
            out[..lanes].fill(0.0);
            let records = tile.bytes.chunks_exact(geometry.record_bytes(tile.panels));
            for (b, (record, codes)) in records.zip(x.codes.as_chunks::<SUPER_BLOCK>().0).enumerate() {
                let (head, bytes) = record.split_at(lanes * geometry.head);
                for line in 0..head.len().div_ceil(LINE) {
                    prefetch(head, 2 * AHEAD + line * LINE);
                }
                let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
                // Once for all panels; more than there are groups.
                let mut begins = [0; SUPER_BLOCK / QUAD / 4];
                for (begin, sum) in begins.iter_mut().zip(&x.sums[b * groups..][..groups]) {
                    *begin = -zero * sum;
                }
                for p in 0..tile.panels {
                    let mut isum = [ints(0); PARTS];
                    // As in `units`: each panel asks for a part of what comes, line after line.
                    let mut ahead = 2 * AHEAD + p * part;
                    // No `zip` of chunks: it divides by each of their lengths, as long as several groups.
                    let (mut subs, mut begins, mut units) = (subs[p * PANEL..].chunks(lanes), begins.iter(), bytes);
                    for codes in codes.chunks_exact(quads * QUAD) {
                        let Some((unit, later)) = units.split_at_checked(step_bytes) else { break };
                        units = later;
                        for _ in 0..quads / uq * unit_lines(BITS) {
                            prefetch(bytes, ahead);
                            ahead += LINE;
                        }
                        if uq < GQ {
                            let (Some(subs), Some(begin)) = (subs.next(), begins.next()) else { break };
                            let mut dot = [ints(*begin); PARTS];
                            unrolled!(GQ / uq, U => {
                                let lines = lines::<BITS>(&unit[U * unit_bytes..][..unit_bytes], p * LINE, stride);
                                unrolled!(uq / run, R => {
                                    let q = R * run;
                                    steps::<BITS, TABLE, FULL>(&lines, q, codes, U * uq + q, table, &mut dot);
                                });
                            });
                            add_group(&mut isum, subs, &dot);
                        } else {
                            let lines = lines::<BITS>(unit, p * LINE, stride);
                            unrolled!(uq / GQ, G => {
                                let (Some(subs), Some(begin)) = (subs.next(), begins.next()) else { break };
                                let mut dot = [ints(*begin); PARTS];
                                unrolled!(GQ / run, R => {
                                    let q = G * GQ + R * run;
                                    steps::<BITS, TABLE, FULL>(&lines, q, codes, q, table, &mut dot);
                                });
                                add_group(&mut isum, subs, &dot);
                            });
                        }
                    }
                    add_block(coded, minimum, head, (lanes, p * PANEL), isum, x, b, out);
                }
            }
        }

        /// A group's sums times its sub-scales.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_group(isum: &mut [Int; PARTS], subs: &[u8], dot: &[Int; PARTS]) {
            let subs = &subs[..PANEL];
            for h in 0..PARTS {
                isum[h] = add_ints(isum[h], mul_ints(signed_bytes(subs, h * LANES), dot[h]));
            }
        }

        /// The end of one panel's super-block: its sums times its scales, and the minima.
        #[inline(never)] // one copy for all code widths
        #[target_feature(enable = $features)]
        fn add_block(
            coded: &Coded,
            minimum: bool,
            head: &[u8],
            (lanes, lane): (usize, usize),
            mut isum: [Int; PARTS],
            x: &Codes<'_>,
            b: usize,
            out: &mut [f32],
        ) {
            let (ty, groups) = (coded.scale_type, x.shape.record_groups);
            let (xsums, s_x) = (&x.totals[b * groups..][..groups], x.scales[b]);
            let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
            let (subs, sub_minimums) = subs.split_at(groups * lanes);
            if x.bias != 0 {
                for (g, subs) in subs.chunks_exact(lanes).enumerate() {
                    let Some(weights) = x.weight_sums(b * groups + g) else { return };
                    for h in 0..PARTS {
                        let lane = lane + h * LANES;
                        let product = mul_ints(signed_bytes(subs, lane), integers(weights, lane));
                        isum[h] = add_ints(isum[h], product);
                    }
                }
            }
            for h in 0..PARTS {
                let lane = lane + h * LANES;
                let d = mul(scales(ty, head, lane), all(s_x));
                let mut acc = fma(to_floats(isum[h]), d, floats(out, lane));
                if minimum {
                    let mut msum = ints(0);
                    let pairs = sub_minimums.chunks_exact(2 * lanes).zip(xsums.as_chunks::<2>().0);
                    for (mn, xsums) in pairs {
                        let (a, b) = (signed_bytes(mn, lane), signed_bytes(mn, lanes + lane));
                        msum = add_two(msum, two(a, b), of_two(xsums[0], xsums[1]));
                    }
                    let dmin = mul(scales(ty, &head[lanes * ty.bytes()..], lane), all(s_x));
                    // A negated product is the same number as one with a negated factor.
                    acc = fnma(to_floats(msum), dmin, acc);
                }
                put_floats(out, lane, acc);
            }
        }
    };
}

pub(in crate::kernel) use gemv;
