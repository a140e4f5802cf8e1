//! Several rows of x: a block of one panel is decoded to bytes once and reused by every row.
//!
//! ```text
//! block   [quad] lines of 64 bytes     codes of a k-block, in L1
//! heads   [record][vector][16] f32     scale, minimum or zero points; two-level: d, dmin, sub-scales, sub-minima
//! ```
//! A k-block is taken panel of W by panel of W, so that a tile is read as one stream; meanwhile the next one is asked
//! for ([`Ahead`]). `ROWS` rows of x x one panel are multiplied at a time: first the sums of several groups, which
//! are integers, then what they come to with their scales. Float sums rest in the output between k-blocks, so
//! that their order does not depend on the size of a block.

/// `run`, `scratch` and `ROWS` for one instruction set, beside its `multiply`.
macro_rules! gemm {
    ($features:literal) => {
        use super::multiply::{ROWS, multiply};
        use super::step::BIAS;
        use super::vector::*;
        use crate::activation::{Activations, Codes};
        use crate::error::Result;
        use crate::kernel::Job;
        use crate::kernel::narrow::gemm::{Ahead, GROUPS, block_columns, block_records, head_floats, split};
        use crate::kernel::narrow::{Units, for_rows, long_run, unit_lines, wide, zero_point};
        use std::slice::Chunks;
        use crate::layout::packed::{LINE, unit_columns};
        use crate::layout::{Coded, Layout, Offset, PANEL, SUPER_BLOCK, ScaleType, Scales, TILE, Values};

        const _: () = assert!(ROWS == 4, "for_rows! below lists as many");

        /// A panel of W times the batch.
        struct Work<'a, 'o> {
            coded: &'a Coded,
            wide: bool,
            /// Steps that may go into a part.
            run: usize,
            /// What `multiply` leaves to be taken off for each unit of the sum of x.
            zero: i32,
            /// The panel's first row in the tile.
            lane: usize,
            /// What comes after the k-block, a part of it for each panel.
            ahead: Ahead<'a>,
            x: Codes<'a>,
            out: &'o mut [f32],
        }

        /// Sums of products of groups: `[group][row of x]`.
        type Dots = [[Int; PARTS]; GROUPS * ROWS];

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
            let run = long_run(coded.bits, wide);
            let panels = job.rows.div_ceil(x.mr);
            let (block, heads) = split(job.scratch, block_columns(job.packed) * PANEL);
            let mut dots = [[ints(0); PARTS]; GROUPS * ROWS];
            let mut work = Work { coded, wide, run, zero, lane: 0, ahead: Ahead::none(), x, out: job.out };
            let units = |bytes, record, head, p| Units { bytes, record, head, unit: unit_bytes, at: p * LINE, stride };
            if coded.scales == Scales::Row {
                let (head, bytes) = tile.bytes.split_at(lanes * 4);
                let size = block_columns(job.packed);
                for at in (0..geometry.padded()).step_by(size) {
                    let len = size.min(geometry.padded() - at);
                    let codes = &mut block[..len * PANEL];
                    let bytes = &bytes[at / columns * unit_bytes..][..len / columns * unit_bytes];
                    let last = at + len == geometry.padded();
                    for p in 0..tile.panels {
                        decode(coded, &units(bytes, bytes.len(), 0, p), codes);
                        work.lane = p * PANEL;
                        work.ahead = Ahead::new(bytes, p, tile.panels, len);
                        let k = Block { at, columns: len, first_record: 0, codes, heads: &[] };
                        for panel in 0..panels {
                            for_rows!([1 2 3 4] x.mr, MR => work.row::<MR>(panel, &k, last.then_some(head), &mut dots));
                            work.ahead = Ahead::none();
                        }
                    }
                }
                return Ok(());
            }
            let per_block = block_records(job.packed);
            let record = geometry.record_bytes(tile.panels);
            for (b, records) in tile.bytes.chunks(per_block * record).enumerate() {
                let at = b * per_block * geometry.record_padded();
                for p in 0..tile.panels {
                    decode(coded, &units(records, record, lanes * geometry.head, p), block);
                    decode_heads(coded, records.chunks(record), lanes, p * PANEL, heads);
                    let columns = (per_block * geometry.record_padded()).min(geometry.padded() - at);
                    work.lane = p * PANEL;
                    work.ahead = Ahead::new(records, p, tile.panels, columns);
                    let k = Block {
                        at,
                        columns,
                        first_record: b * per_block,
                        codes: block,
                        heads,
                    };
                    for panel in 0..panels {
                        for_rows!([1 2 3 4] x.mr, MR => match coded.scales {
                            Scales::TwoLevel { len, minimum } => work.two_level::<MR>(panel, &k, (len, minimum), &mut dots),
                            Scales::Group { offset, .. } => work.group::<MR>(panel, &k, offset, &mut dots),
                            Scales::Row => {}
                        });
                        work.ahead = Ahead::none();
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
            let records = records.zip(heads.chunks_exact_mut(head_floats(coded)));
            let second = lanes * ty.bytes();
            match coded.scales {
                Scales::Group { offset, .. } => {
                    for (stored, head) in records {
                        let Some(head) = head.first_chunk_mut::<{ 2 * PANEL }>() else { return };
                        for h in (0..PANEL).step_by(LANES) {
                            put_floats(head, h, scales(ty, stored, lane + h));
                            match offset {
                                Offset::None => {}
                                Offset::Minimum => {
                                    put_floats(head, PANEL + h, scales(ty, &stored[second..], lane + h));
                                }
                                Offset::Zero => {
                                    let zeros = unsigned_bytes(stored, second + lane + h);
                                    put_floats(head, PANEL + h, as_floats(zeros));
                                }
                            }
                        }
                    }
                }
                Scales::TwoLevel { len, minimum } => {
                    let (levels, groups) = (1 + minimum as usize, SUPER_BLOCK / len);
                    records.for_each(|(stored, head)| {
                        let (head, _) = head.as_chunks_mut::<PANEL>();
                        let (ds, heads) = head.split_at_mut(2);
                        let subs = stored[levels * second..].chunks_exact(lanes).take(levels * groups);
                        for h in (0..PANEL).step_by(LANES) {
                            for (d, stored) in ds.iter_mut().zip(stored.chunks_exact(second)).take(levels) {
                                put_floats(d, h, scales(ty, stored, lane + h));
                            }
                            for (head, subs) in heads.iter_mut().zip(subs.clone()) {
                                put_floats(head, h, as_floats(signed_bytes(subs, lane + h)));
                            }
                        }
                    });
                }
                Scales::Row => {}
            }
        }

        impl Work<'_, '_> {
            /// `dots[g][i][h] = codes . x`, without what is to be taken off, of groups from `first` on of so many
            /// columns; the last one may be short. As many groups as there are `sums`, at most `GROUPS`.
            #[inline]
            #[target_feature(enable = $features)]
            fn dots<'d, const MR: usize>(
                &mut self,
                w: &[u8],
                x: (&Codes<'_>, &[i8]),
                columns: usize,
                (first, sums): (usize, &[[i32; MR]]),
                dots: &'d mut Dots,
            ) -> &'d mut [[[Int; PARTS]; MR]] {
                let (dots, _) = dots.as_chunks_mut::<MR>();
                let dots = &mut dots[..sums.len()];
                let mut begins = [[0; MR]; GROUPS];
                for (begins, sums) in begins.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                    *begins = -self.zero * sums;
                }
                let (full, ahead) = (x.0.bias != 0, self.ahead.take(w.len() / LINE));
                if self.wide {
                    multiply::<MR, true>(w, x.1, columns, self.run, full, &begins, ahead, dots);
                } else {
                    multiply::<MR, false>(w, x.1, columns, self.run, full, &begins, ahead, dots);
                }
                if x.0.bias != 0 {
                    self.add_weights(x.0, first, dots);
                }
                dots
            }

            /// Where codes of x are unsigned, the weights' own sums (`activation::WeightSums`).
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn add_weights<const MR: usize>(
                &self,
                x: &Codes<'_>,
                first: usize,
                dots: &mut [[[Int; PARTS]; MR]],
            ) {
                for (g, dot) in dots.iter_mut().enumerate() {
                    let Some(weights) = x.weight_sums(first + g) else { return };
                    for h in 0..PARTS {
                        let sum = integers(weights, self.lane + h * LANES);
                        for i in 0..MR {
                            dot[i][h] = add_ints(dot[i][h], sum);
                        }
                    }
                }
            }

            /// What the records before this k-block have come to.
            #[inline]
            #[target_feature(enable = $features)]
            fn sums_before<const MR: usize>(&self, panel: usize, k: &Block<'_>) -> [[Float; PARTS]; MR] {
                let mut sums = [[all(0.0); PARTS]; MR];
                if k.first_record > 0 {
                    for i in 0..MR {
                        for h in 0..PARTS {
                            sums[i][h] = floats(self.out, self.place::<MR>(panel, i) + h * LANES);
                        }
                    }
                }
                sums
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn put_sums<const MR: usize>(&mut self, panel: usize, sums: &[[Float; PARTS]; MR]) {
                for i in 0..MR {
                    for h in 0..PARTS {
                        put_floats(self.out, self.place::<MR>(panel, i) + h * LANES, sums[i][h]);
                    }
                }
            }

            /// Where the results of row `i` of a panel of x begin.
            fn place<const MR: usize>(&self, panel: usize, i: usize) -> usize {
                (panel * MR + i) * TILE + self.lane
            }

            /// One scale for each row of W. Partial integer sums rest in the output, as bits; with the
            /// last block comes the head.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn row<const MR: usize>(&mut self, panel: usize, k: &Block<'_>, head: Option<&[u8]>, dots: &mut Dots) {
                let x = self.x.panel(panel);
                let (sums, _) = x.sums.as_chunks::<MR>();
                let codes = &x.codes[k.at * MR..][..k.columns * MR];
                // What is to be taken off is so once: there is no group past the last.
                let begin = if k.at == 0 { (0, &sums[..1]) } else { (usize::MAX, &[[0; MR]][..]) };
                for acc in self.dots(k.codes, (&x, codes), k.columns, begin, dots) {
                    if k.at > 0 {
                        for i in 0..MR {
                            for h in 0..PARTS {
                                let before = floats(self.out, self.place::<MR>(panel, i) + h * LANES);
                                acc[i][h] = add_ints(acc[i][h], as_ints(before));
                            }
                        }
                    }
                    let mut y = [[all(0.0); PARTS]; MR];
                    for h in 0..PARTS {
                        let s_w = head.map(|head| scales(ScaleType::F32, head, self.lane + h * LANES));
                        for i in 0..MR {
                            y[i][h] = match s_w {
                                None => as_floats(acc[i][h]),
                                Some(s_w) => mul(to_floats(acc[i][h]), mul(s_w, all(x.scales[i]))),
                            };
                        }
                    }
                    self.put_sums(panel, &y);
                }
            }

            /// Groups: integers inside a record, floats across records.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn group<const MR: usize>(&mut self, panel: usize, k: &Block<'_>, offset: Offset, dots: &mut Dots) {
                let x = self.x.panel(panel);
                let padded = x.shape.geometry.record_padded();
                let codes = &x.codes[k.at * MR..][..k.columns * MR];
                let several = GROUPS * padded;
                let parts = k.codes[..k.columns * PANEL].chunks(several * PANEL).zip(codes.chunks(several * MR));
                let first = k.first_record * MR;
                let (sums, _) = x.sums[first..].as_chunks::<MR>();
                let (totals, _) = x.totals[first..].as_chunks::<MR>();
                let (scales, _) = x.scales[first..].as_chunks::<MR>();
                let (heads, _) = k.heads.as_chunks::<{ 2 * PANEL }>();
                let mut numbers = heads.iter().zip(totals).zip(scales);
                let mut acc = self.sums_before::<MR>(panel, k);
                for ((w, q), (p, sums)) in parts.zip(sums.chunks(GROUPS).enumerate()) {
                    let sums = &sums[..q.len().div_ceil(padded * MR)];
                    let at = k.first_record + p * GROUPS;
                    let dots = self.dots(w, (&x, q), padded, (at, sums), dots);
                    for (dot, ((head, totals), s_x)) in dots.iter_mut().zip(&mut numbers) {
                        if offset == Offset::Zero {
                            for h in 0..PARTS {
                                let zeros = as_ints(floats(head, PANEL + h * LANES));
                                for i in 0..MR {
                                    dot[i][h] = sub_ints(dot[i][h], mul_ints(zeros, ints(totals[i])));
                                }
                            }
                        }
                        for h in 0..PARTS {
                            let s_w = floats(head, h * LANES);
                            for i in 0..MR {
                                acc[i][h] = fma(to_floats(dot[i][h]), mul(s_w, all(s_x[i])), acc[i][h]);
                            }
                        }
                        if offset == Offset::Minimum {
                            for h in 0..PARTS {
                                let minimum = floats(head, PANEL + h * LANES);
                                for i in 0..MR {
                                    acc[i][h] = fma(all(totals[i] as f32 * s_x[i]), minimum, acc[i][h]);
                                }
                            }
                        }
                    }
                }
                self.put_sums(panel, &acc);
            }

            /// Super-blocks: integers inside one, floats across them.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn two_level<const MR: usize>(
                &mut self,
                panel: usize,
                k: &Block<'_>,
                (len, minimum): (usize, bool),
                dots: &mut Dots,
            ) {
                let x = self.x.panel(panel);
                let groups = SUPER_BLOCK / len;
                let codes = &x.codes[k.at * MR..][..k.columns * MR];
                let records = k.codes[..k.columns * PANEL]
                    .chunks_exact(SUPER_BLOCK * PANEL)
                    .zip(codes.chunks_exact(SUPER_BLOCK * MR));
                let first = k.first_record;
                let (sums, _) = x.sums[first * groups * MR..].as_chunks::<MR>();
                let (totals, _) = x.totals[first * groups * MR..].as_chunks::<MR>();
                let (scales, _) = x.scales[first * MR..].as_chunks::<MR>();
                let mut acc = self.sums_before::<MR>(panel, k);
                for (r, (((((w, q), head), sums), totals), s_x)) in records
                    .zip(k.heads.chunks_exact(head_floats(self.coded)))
                    .zip(sums.chunks_exact(groups))
                    .zip(totals.chunks_exact(groups))
                    .zip(scales)
                    .enumerate()
                {
                    let (head, _) = head.as_chunks::<PANEL>();
                    let (ds, subs) = head.split_at(2);
                    let dots = self.dots(w, (&x, q), len, ((first + r) * groups, sums), dots);
                    let mut isum = [[ints(0); PARTS]; MR];
                    for (dot, sub) in dots.iter().zip(subs) {
                        for h in 0..PARTS {
                            let sc = as_ints(floats(sub, h * LANES));
                            for i in 0..MR {
                                isum[i][h] = add_ints(isum[i][h], mul_ints(sc, dot[i][h]));
                            }
                        }
                    }
                    for h in 0..PARTS {
                        let d = floats(&ds[0], h * LANES);
                        for i in 0..MR {
                            acc[i][h] = fma(to_floats(isum[i][h]), mul(d, all(s_x[i])), acc[i][h]);
                        }
                    }
                    if minimum {
                        let mut msum = [[ints(0); PARTS]; MR];
                        let pairs = subs[groups..].as_chunks::<2>().0.iter().zip(totals.as_chunks::<2>().0);
                        for (mn, totals) in pairs {
                            let mut x = [of_two(0, 0); MR];
                            for i in 0..MR {
                                x[i] = of_two(totals[0][i], totals[1][i]);
                            }
                            for h in 0..PARTS {
                                let [a, b] = mn.map(|mn| as_ints(floats(&mn, h * LANES)));
                                let mn = two(a, b);
                                for i in 0..MR {
                                    msum[i][h] = add_two(msum[i][h], mn, x[i]);
                                }
                            }
                        }
                        for h in 0..PARTS {
                            let dmin = floats(&ds[1], h * LANES);
                            for i in 0..MR {
                                acc[i][h] = fnma(to_floats(msum[i][h]), mul(dmin, all(s_x[i])), acc[i][h]);
                            }
                        }
                    }
                }
                self.put_sums(panel, &acc);
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
        fn multiply_group<const MR: usize, const WIDE: bool>(
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

        $crate::kernel::narrow::multiply_groups!($features);
    };
}

/// Group after group through `multiply_group`.
macro_rules! multiply_groups {
    ($features:literal) => {
        /// `dots[g][i][h] = begins[g][i] + codes . x` over groups of so many columns; the last one may be short.
        #[inline(never)] // one copy for all schemes of scales
        #[target_feature(enable = $features)]
        pub(super) fn multiply<const MR: usize, const WIDE: bool>(
            codes: &[u8],
            x: &[i8],
            columns: usize,
            _run: usize,
            full: bool,
            begins: &[[i32; MR]],
            _ahead: $crate::kernel::narrow::gemm::Ahead<'_>,
            dots: &mut [[[Int; PARTS]; MR]],
        ) {
            let groups = codes.chunks(columns * $crate::layout::PANEL).zip(x.chunks(columns * MR));
            for (((codes, x), begins), dot) in groups.zip(begins).zip(dots) {
                let mut acc = [[ints(0); PARTS]; MR];
                for i in 0..MR {
                    acc[i] = [ints(begins[i]); PARTS];
                }
                multiply_group::<MR, WIDE>(codes, x, full, &mut acc);
                *dot = acc;
            }
        }
    };
}

pub(in crate::kernel) use {gemm, multiply, multiply_groups};

use crate::layout::{Coded, Layout, PANEL, Packed, QUAD, SUPER_BLOCK, Scales};

/// Columns of a k-block: a panel is then 16 KiB of bytes.
const BLOCK: usize = 1024;

/// Groups whose sums of products are found before they meet their scales: those of a super-block.
pub(in crate::kernel) const GROUPS: usize = 16;

/// Bytes that will be read next, to be asked for while others are multiplied: what a k-block is decoded from
/// then comes from memory in the meantime.
#[derive(Clone, Copy)]
pub(in crate::kernel) struct Ahead<'a> {
    /// Offsets are from here, and mostly past its end.
    pub(in crate::kernel) bytes: &'a [u8],
    /// The next offset.
    pub(in crate::kernel) at: usize,
    /// Bytes for each step: a quad that is multiplied, or a group.
    pub(in crate::kernel) step: usize,
}

impl<'a> Ahead<'a> {
    /// Nothing is asked for.
    pub(in crate::kernel) const fn none() -> Ahead<'a> {
        Ahead { bytes: &[], at: 0, step: 0 }
    }

    /// Panel `p`'s part of as many bytes after `block` as that has, with each quad of so many columns.
    pub(in crate::kernel) fn new(block: &'a [u8], p: usize, panels: usize, columns: usize) -> Ahead<'a> {
        Ahead::in_steps(block, p, panels, columns / QUAD)
    }

    /// The same in so many steps.
    pub(in crate::kernel) fn in_steps(block: &'a [u8], p: usize, panels: usize, steps: usize) -> Ahead<'a> {
        let part = block.len() / panels;
        Ahead { bytes: block, at: block.len() + p * part, step: part.div_ceil(steps) }
    }

    /// The part for so many steps.
    pub(in crate::kernel) fn take(&mut self, steps: usize) -> Ahead<'a> {
        let now = *self;
        self.at += steps * self.step;
        now
    }
}

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
