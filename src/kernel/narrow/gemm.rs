//! Several rows of x: a block of one panel is decoded to bytes once and reused by every row.
//!
//! ```text
//! block   [quad] lines of 64 bytes     codes of a k-block, in L1
//! heads   [record][vector][16] f32     scale, minimum or zero points; two-level: d, dmin, sub-scales, sub-minima
//! ```
//! The inner kernels keep `ROWS` rows x one panel of integers in registers. Float accumulators rest in
//! the output between records, so that the order of the sums does not depend on the size of a block.

/// `run`, `scratch` and `ROWS` for one instruction set, beside its `multiply`.
macro_rules! gemm {
    ($features:literal) => {
        use super::multiply::{ROWS, multiply};
        use super::step::BIAS;
        use super::vector::*;
        use crate::activation::{Activations, Codes};
        use crate::error::Result;
        use crate::kernel::Job;
        use crate::kernel::narrow::gemm::{block_columns, block_records, head_floats, split};
        use crate::kernel::narrow::{Units, for_rows, unit_lines, wide, zero_point};
        use std::slice::Chunks;
        use crate::layout::packed::{LINE, unit_columns};
        use crate::layout::{Coded, Layout, Offset, PANEL, SUPER_BLOCK, ScaleType, Scales, TILE, Values};

        const _: () = assert!(ROWS == 4, "for_rows! below lists as many");

        /// One panel of W times the batch.
        struct Work<'a, 'o> {
            coded: &'a Coded,
            wide: bool,
            /// What `multiply` leaves to be taken off for each unit of the sum of x.
            zero: i32,
            /// The panel's first row in the tile.
            lane: usize,
            x: Codes<'a>,
            out: &'o mut [f32],
        }

        /// A decoded k-block: columns from packed column `at` on.
        struct Block<'a> {
            at: usize,
            columns: usize,
            first_record: usize,
            codes: &'a [u8],
            heads: &'a [f32],
        }

        #[target_feature(enable = $features)]
        pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
            let (Activations::Integer(x), Layout::Coded(coded)) = (job.x, job.packed.layout()) else {
                return Ok(());
            };
            let geometry = *job.packed.geometry();
            let tile = job.packed.tile(job.tile);
            let (lanes, stride) = (tile.panels * PANEL, tile.panels * LINE);
            let unit_bytes = unit_lines(coded.bits) * stride;
            let columns = unit_columns(coded.bits);
            let wide = wide(coded.bits, matches!(coded.values, Values::Table(_)));
            let zero = zero_point(coded) + if wide { BIAS } else { 0 };
            let panels = job.rows.div_ceil(x.mr);
            let (block, heads) = split(job.scratch, block_columns(job.packed) * PANEL);
            for p in 0..tile.panels {
                let units = |bytes, record, head| Units { bytes, record, head, unit: unit_bytes, at: p * LINE, stride };
                let mut work = Work { coded, wide, zero, lane: p * PANEL, x, out: job.out };
                if coded.scales == Scales::Row {
                    let (head, bytes) = tile.bytes.split_at(lanes * 4);
                    let size = block_columns(job.packed);
                    for at in (0..geometry.padded()).step_by(size) {
                        let len = size.min(geometry.padded() - at);
                        let codes = &mut block[..len * PANEL];
                        let bytes = &bytes[at / columns * unit_bytes..][..len / columns * unit_bytes];
                        decode(coded, &units(bytes, bytes.len(), 0), codes);
                        let last = at + len == geometry.padded();
                        let k = Block { at, columns: len, first_record: 0, codes, heads: &[] };
                        for panel in 0..panels {
                            for_rows!([1 2 3 4] x.mr, MR => work.row::<MR>(panel, &k, last.then_some(head)));
                        }
                    }
                    continue;
                }
                let per_block = block_records(job.packed);
                let blocks = tile.bytes.chunks(per_block * geometry.record_bytes(tile.panels));
                for (b, records) in blocks.enumerate() {
                    let record = geometry.record_bytes(tile.panels);
                    decode(coded, &units(records, record, lanes * geometry.head), block);
                    decode_heads(coded, records.chunks(record), lanes, p * PANEL, heads);
                    let at = b * per_block * geometry.record_padded();
                    let k = Block {
                        at,
                        columns: (per_block * geometry.record_padded()).min(geometry.padded() - at),
                        first_record: b * per_block,
                        codes: block,
                        heads,
                    };
                    for panel in 0..panels {
                        for_rows!([1 2 3 4] x.mr, MR => match coded.scales {
                            Scales::TwoLevel { len, minimum } => work.two_level::<MR>(panel, &k, len, minimum),
                            Scales::Group { offset, .. } => work.group::<MR>(panel, &k, offset),
                            Scales::Row => {}
                        });
                    }
                }
            }
            Ok(())
        }

        /// The heads of records as vectors of 16.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn decode_heads(
            coded: &Coded,
            records: Chunks<'_, u8>,
            lanes: usize,
            lane: usize,
            heads: &mut [f32],
        ) {
            let ty = coded.scale_type;
            for (stored, head) in records.zip(heads.chunks_exact_mut(head_floats(coded))) {
            for h in (0..PANEL).step_by(LANES) {
                put_floats(head, h, scales(ty, stored, lane + h));
                let rest = &stored[lanes * ty.bytes()..];
                match coded.scales {
                    Scales::Group { offset: Offset::Minimum, .. } => {
                        put_floats(head, PANEL + h, scales(ty, rest, lane + h));
                    }
                    Scales::Group { offset: Offset::Zero, .. } => {
                        put_floats(head, PANEL + h, as_floats(unsigned_bytes(rest, lane + h)));
                    }
                    Scales::TwoLevel { len, minimum } => {
                        let groups = SUPER_BLOCK / len * (1 + minimum as usize);
                        let subs = if minimum {
                            put_floats(head, PANEL + h, scales(ty, rest, lane + h));
                            &rest[lanes * ty.bytes()..]
                        } else {
                            rest
                        };
                        for (j, subs) in subs.chunks_exact(lanes).take(groups).enumerate() {
                            put_floats(head, (2 + j) * PANEL + h, as_floats(signed_bytes(subs, lane + h)));
                        }
                    }
                    _ => {}
                }
            }
            }
        }

        impl Work<'_, '_> {
            /// `acc[i][h] += codes . x` over whole quads.
            #[inline]
            #[target_feature(enable = $features)]
            fn multiply<const MR: usize>(&self, codes: &[u8], x: &[i8], acc: &mut [[Int; PARTS]; MR]) {
                if self.wide {
                    multiply::<MR, true>(codes, x, self.x.bias != 0, acc)
                } else {
                    multiply::<MR, false>(codes, x, self.x.bias != 0, acc)
                }
            }

            /// What the sums of a group begin with where codes of x are unsigned
            /// (`activation::WeightSums`).
            #[inline]
            #[target_feature(enable = $features)]
            fn add_weights<const MR: usize>(
                &self,
                x: &Codes<'_>,
                group: usize,
                dot: &mut [[Int; PARTS]; MR],
            ) {
                let Some(weights) = x.weight_sums(group) else { return };
                for h in 0..PARTS {
                    let sum = integers(weights, self.lane + h * LANES);
                    for i in 0..MR {
                        dot[i][h] = add_ints(dot[i][h], sum);
                    }
                }
            }

            /// One scale for each row of W. Partial integer sums rest in the output, as bits; with the
            /// last block comes the head.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn row<const MR: usize>(&mut self, panel: usize, k: &Block<'_>, head: Option<&[u8]>) {
                let x = self.x.panel(panel);
                let mut acc = [[ints(0); PARTS]; MR];
                let place = |i: usize, h: usize| (panel * MR + i) * TILE + self.lane + h * LANES;
                if k.at > 0 {
                    for i in 0..MR {
                        for h in 0..PARTS {
                            acc[i][h] = as_ints(floats(self.out, place(i, h)));
                        }
                    }
                }
                self.multiply::<MR>(k.codes, &x.codes[k.at * MR..][..k.columns * MR], &mut acc);
                for i in 0..MR {
                    for h in 0..PARTS {
                        let y = match head {
                            None => as_floats(acc[i][h]),
                            Some(head) => {
                                let dot = sub_ints(acc[i][h], ints(self.zero * x.sums[i]));
                                let dot = match x.weight_sums(0) {
                                    None => dot,
                                    Some(w) => add_ints(dot, integers(w, self.lane + h * LANES)),
                                };
                                let s_w = scales(ScaleType::F32, head, self.lane + h * LANES);
                                mul(to_floats(dot), mul(s_w, all(x.scales[i])))
                            }
                        };
                        put_floats(self.out, place(i, h), y);
                    }
                }
            }

            /// Groups: integers inside a record, floats across records.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn group<const MR: usize>(&mut self, panel: usize, k: &Block<'_>, offset: Offset) {
                let x = self.x.panel(panel);
                let padded = x.shape.geometry.record_padded();
                let codes = &x.codes[k.at * MR..][..k.columns * MR];
                let records = k.codes[..k.columns * PANEL].chunks(padded * PANEL).zip(codes.chunks(padded * MR));
                for (r, ((w, q), head)) in
                    records.zip(k.heads.chunks_exact(head_floats(self.coded))).enumerate()
                {
                    let g = k.first_record + r;
                    let (sums, s_x) = (&x.sums[g * MR..][..MR], &x.scales[g * MR..][..MR]);
                    let mut dot = [[ints(0); PARTS]; MR];
                    for i in 0..MR {
                        dot[i] = [ints(-self.zero * sums[i]); PARTS];
                        if offset == Offset::Zero {
                            for h in 0..PARTS {
                                let zeros = as_ints(floats(head, PANEL + h * LANES));
                                dot[i][h] = sub_ints(dot[i][h], mul_ints(zeros, ints(x.totals[g * MR + i])));
                            }
                        }
                    }
                    self.add_weights(&x, g, &mut dot);
                    self.multiply::<MR>(w, q, &mut dot);
                    for i in 0..MR {
                        let s = all(s_x[i]);
                        for h in 0..PARTS {
                            let place = (panel * MR + i) * TILE + self.lane + h * LANES;
                            let before = if g == 0 { all(0.0) } else { floats(self.out, place) };
                            let scale = mul(floats(head, h * LANES), s);
                            let mut acc = fma(to_floats(dot[i][h]), scale, before);
                            if offset == Offset::Minimum {
                                let weighted = all(x.totals[g * MR + i] as f32 * s_x[i]);
                                acc = fma(weighted, floats(head, PANEL + h * LANES), acc);
                            }
                            put_floats(self.out, place, acc);
                        }
                    }
                }
            }

            /// Super-blocks: integers inside one, floats across them.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn two_level<const MR: usize>(&mut self, panel: usize, k: &Block<'_>, len: usize, minimum: bool) {
                let x = self.x.panel(panel);
                let groups = SUPER_BLOCK / len;
                let codes = &x.codes[k.at * MR..][..k.columns * MR];
                let records = k.codes[..k.columns * PANEL]
                    .chunks_exact(SUPER_BLOCK * PANEL)
                    .zip(codes.chunks_exact(SUPER_BLOCK * MR));
                for (r, ((w, q), head)) in
                    records.zip(k.heads.chunks_exact(head_floats(self.coded))).enumerate()
                {
                    let b = k.first_record + r;
                    let (sums, s_x) = (&x.sums[b * groups * MR..][..groups * MR], &x.scales[b * MR..][..MR]);
                    let stored = |j: usize, h: usize| as_ints(floats(head, (2 + j) * PANEL + h * LANES));
                    let mut isum = [[ints(0); PARTS]; MR];
                    for (j, (w, q)) in w.chunks_exact(len * PANEL).zip(q.chunks_exact(len * MR)).enumerate() {
                        let mut dot = [[ints(0); PARTS]; MR];
                        for i in 0..MR {
                            dot[i] = [ints(-self.zero * sums[j * MR + i]); PARTS];
                        }
                        self.add_weights(&x, b * groups + j, &mut dot);
                        self.multiply::<MR>(w, q, &mut dot);
                        for h in 0..PARTS {
                            let sc = stored(j, h);
                            for i in 0..MR {
                                isum[i][h] = add_ints(isum[i][h], mul_ints(sc, dot[i][h]));
                            }
                        }
                    }
                    for i in 0..MR {
                        let s = all(s_x[i]);
                        for h in 0..PARTS {
                            let place = (panel * MR + i) * TILE + self.lane + h * LANES;
                            let before = if b == 0 { all(0.0) } else { floats(self.out, place) };
                            let d = mul(floats(head, h * LANES), s);
                            let mut acc = fma(to_floats(isum[i][h]), d, before);
                            if minimum {
                                let mut msum = ints(0);
                                for j in 0..groups {
                                    let xsum = ints(x.totals[(b * groups + j) * MR + i]);
                                    msum = add_ints(msum, mul_ints(stored(groups + j, h), xsum));
                                }
                                let dmin = mul(floats(head, PANEL + h * LANES), s);
                                acc = fnma(to_floats(msum), dmin, acc);
                            }
                            put_floats(self.out, place, acc);
                        }
                    }
                }
            }
        }
    };
}

/// The inner loop of `gemm`, in terms of `step`.
macro_rules! multiply {
    ($features:literal) => {
        use super::step::{begin, end, step};
        use super::vector::*;
        use crate::layout::QUAD;
        use crate::layout::packed::LINE;

        /// Most rows of a panel of x.
        pub(super) const ROWS: usize = 4;

        /// `acc[i][h] += codes . x` over whole quads.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn multiply<const MR: usize, const WIDE: bool>(
            codes: &[u8],
            x: &[i8],
            full: bool,
            acc: &mut [[Int; PARTS]; MR],
        ) {
            // Units of narrow codes have an even number of quads.
            let run = if WIDE { 1 } else { 2 };
            let (lines, _) = codes.as_chunks::<LINE>();
            for (w, q) in lines.chunks_exact(run).zip(x.chunks_exact(run * MR * QUAD)) {
                for i in 0..MR {
                    for h in 0..PARTS {
                        let mut part = begin(acc[i][h]);
                        for r in 0..run {
                            part = step(part, load(&w[r], h), quad_of(q, r * MR + i), WIDE, full);
                        }
                        acc[i][h] = end(acc[i][h], part, WIDE && full);
                    }
                }
            }
        }
    };
}

pub(in crate::kernel) use {gemm, multiply};

use crate::layout::{Coded, Layout, PANEL, Packed, SUPER_BLOCK, Scales};

/// Columns of a k-block: a panel is then 16 KiB of bytes.
const BLOCK: usize = 1024;

/// How many records make a k-block.
pub(in crate::kernel) fn block_records(packed: &Packed) -> usize {
    (BLOCK / packed.geometry().record_padded()).max(1)
}

/// Columns of the largest k-block, whole units.
pub(in crate::kernel) fn block_columns(packed: &Packed) -> usize {
    let geometry = packed.geometry();
    match packed.layout() {
        Layout::Coded(Coded { scales: Scales::Row, .. }) => BLOCK.min(geometry.padded()),
        _ => (block_records(packed) * geometry.record_padded()).min(geometry.padded()),
    }
}

/// Floats of a record's decoded head.
pub(in crate::kernel) fn head_floats(coded: &Coded) -> usize {
    match coded.scales {
        Scales::TwoLevel { len, .. } => (2 + 2 * SUPER_BLOCK / len) * PANEL,
        _ => 2 * PANEL,
    }
}

/// Bytes of scratch for a block and its heads.
pub(in crate::kernel) fn scratch(packed: &Packed, _rows: usize) -> usize {
    let heads = match packed.layout() {
        Layout::Coded(coded) => block_records(packed) * head_floats(coded) * 4,
        Layout::Dense(_) => 0,
    };
    block_columns(packed) * PANEL + heads + 64
}

/// Splits scratch into a block of codes and floats.
pub(in crate::kernel) fn split(scratch: &mut [u8], codes: usize) -> (&mut [u8], &mut [f32]) {
    // Scratch is 64-byte aligned and `codes` a multiple of 64.
    let (block, rest) = scratch.split_at_mut(codes);
    // SAFETY: any bytes are valid floats; `align_to_mut` itself keeps to the aligned middle.
    let (_, floats, _) = unsafe { rest.align_to_mut::<f32>() };
    (block, floats)
}
