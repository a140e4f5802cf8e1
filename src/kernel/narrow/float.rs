//! Float activations: weights are dequantised into a block of floats, then one fma for each product.
//!
//! ```text
//! block   [panel][column][16] f32    a k-block of dequantised weights: a panel at a time, in L1; for one row
//!                                    of x all panels of a tile
//! codes   lines of 64 bytes          of one panel, on their way there
//! ```
//! Each output is one chain of fma, k ascending, as the contract wants it: lanes are rows of W, so the
//! order of the sum is the same in every instruction set. One row of x takes all panels at a time and
//! several take one, so that there are chains enough to hide the latency. Plain floats that meet few rows of
//! x ([`DIRECT`]) are multiplied without a block.

/// `run` for one kind of vector: float activations on every layout, any number of rows of x.
macro_rules! float {
    ($features:literal) => {
        use std::sync::atomic::{Ordering, compiler_fence};

        use super::vector::*;
        use crate::activation::{Activations, Floats};
        use crate::error::Result;
        use crate::kernel::Job;
        use crate::kernel::narrow::float::{BLOCK, DIRECT, Mode, ROWS, block_columns, code_bytes, direct_block};
        use crate::kernel::narrow::gemm::{Ahead, split};
        use crate::kernel::narrow::{Units, float_few, for_rows, unit_lines, unrolled, zero_point};
        use crate::layout::packed::{Geometry, LINE, Tile, unit_columns};
        use crate::layout::{
            self, Coded, Layout, Offset, PANEL, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS,
        };

        #[target_feature(enable = $features)]
        pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
            let Activations::Float(x) = job.x else { return Ok(()) };
            let (tile, geometry) = (job.packed.tile(job.tile), *job.packed.geometry());
            let in_features = geometry.in_features;
            if let Layout::Dense(float) = job.packed.layout()
                && job.rows <= DIRECT
            {
                direct(*float, tile, &x, (job.rows, in_features), job.out);
                return Ok(());
            }
            let (codes, floats) = split(job.scratch, code_bytes(job.packed));
            if let Layout::Coded(coded) = job.packed.layout()
                && tile.panels == TILE_PANELS
                && job.rows <= x.mr
                && x.mr <= float_few::ROWS
                && float_few::takes(coded)
            {
                super::float_few::run(coded, job.packed, tile, &x, (codes, floats), job.out);
                return Ok(());
            }
            let size = block_columns(job.packed) * PANEL;
            let panels = job.rows.div_ceil(x.mr);
            let mut decode = |p, at, len, block: &mut [f32]| match job.packed.layout() {
                Layout::Dense(float) => dense(*float, tile, p, at, block, len),
                Layout::Coded(coded) => dequantize(coded, &geometry, tile, p, at, block, len, codes),
            };
            for at in (0..in_features).step_by(BLOCK) {
                let len = BLOCK.min(in_features - at);
                if x.mr == 1 && tile.panels == TILE_PANELS {
                    for (p, block) in floats.chunks_exact_mut(size).enumerate().take(TILE_PANELS) {
                        decode(p, at, len, block);
                    }
                    for panel in 0..panels {
                        let out = &mut job.out[panel * TILE..][..TILE];
                        let (x, block) = (x.panel(panel, in_features), &floats[..TILE_PANELS * size]);
                        multiply::<1, TILE_PANELS>(&x, at, len, block, out, 0, Ahead::none());
                    }
                    continue;
                }
                // A panel of the block stays in the first cache while all of x meets it. Meanwhile what the next
                // block is made from is asked for, a part with each panel of x.
                let (begin, end) = [at, at + len].map(|k| tile.bytes.len() * k / in_features).into();
                let part = (end - begin) / (tile.panels * panels);
                let step = part.div_ceil(len.div_ceil(QUAD));
                for p in 0..tile.panels {
                    let block = &mut floats[..size];
                    decode(p, at, len, block);
                    for panel in 0..panels {
                        let ahead = Ahead { bytes: tile.bytes, at: end + (p * panels + panel) * part, step };
                        let x = x.panel(panel, in_features);
                        let out = &mut job.out[panel * x.mr * TILE..][..x.mr * TILE];
                        for_rows!([1 2 3 4 5 6] x.mr, MR => multiply::<MR, 1>(&x, at, len, block, out, p, ahead));
                    }
                }
            }
            Ok(())
        }

        /// A panel of x times `NP` panels of a block, of which `first` is the first one.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn multiply<const MR: usize, const NP: usize>(
            x: &Floats<'_>,
            at: usize,
            len: usize,
            block: &[f32],
            out: &mut [f32],
            first: usize,
            mut ahead: Ahead<'_>,
        ) {
            let place = |i: usize, p: usize, h: usize| i * TILE + (first + p) * PANEL + h * LANES;
            let mut acc = [[[all(0.0); PARTS]; NP]; MR];
            if at > 0 {
                for i in 0..MR {
                    for p in 0..NP {
                        for h in 0..PARTS {
                            acc[i][p][h] = floats(out, place(i, p, h));
                        }
                    }
                }
            }
            let mut weights = [&block.as_chunks::<PANEL>().0[..len]; NP];
            for (weights, block) in weights.iter_mut().zip(block.chunks_exact(block.len() / NP)) {
                *weights = &block.as_chunks::<PANEL>().0[..len];
            }
            let (turns, last) = x.values[at * MR..].as_chunks::<MR>().0[..len].as_chunks::<QUAD>();
            let columns = weights.map(|w| &w.as_chunks::<QUAD>().0[..turns.len()]);
            // The same columns of the next panel of x: they are far from these.
            let mut next = (x.values.len() + at * MR) * size_of::<f32>();
            // Four columns a turn: with one, fetching the instructions is nearly the limit.
            for (turn, row) in turns.iter().enumerate() {
                let columns = columns.map(|w| &w[turn]);
                prefetch(x.values, next);
                prefetch(x.values, next + LINE);
                next += size_of_val(row);
                prefetch_far(ahead.bytes, ahead.at);
                ahead.at += ahead.step;
                unrolled!([0 1 2 3], C => {
                    add_column(&mut acc, &row[C], |p, h| floats(&columns[p][C], h * LANES));
                    // The next column is not read before: the compiler would mix the four, and spill sums.
                    compiler_fence(Ordering::SeqCst);
                });
            }
            for (x, k) in last.iter().zip(QUAD * turns.len()..) {
                add_column(&mut acc, x, |p, h| floats(&weights[p][k], h * LANES));
            }
            for i in 0..MR {
                for p in 0..NP {
                    for h in 0..PARTS {
                        put_floats(out, place(i, p, h), acc[i][p][h]);
                    }
                }
            }
        }

        /// One column of x times that of W, added to a sum for each of the first `MR` rows of x and panel of W.
        #[inline]
        #[target_feature(enable = $features)]
        fn add_column<const MR: usize, const XR: usize, const NP: usize>(
            acc: &mut [[[Float; PARTS]; NP]; MR],
            x: &[f32; XR],
            weights: impl Fn(usize, usize) -> Float,
        ) {
            for p in 0..NP {
                let mut w = [all(0.0); PARTS];
                for h in 0..PARTS {
                    w[h] = weights(p, h);
                }
                for i in 0..MR {
                    let x = all(x[i]);
                    for h in 0..PARTS {
                        acc[i][p][h] = fma(x, w[h], acc[i][p][h]);
                    }
                }
            }
        }

        /// A few rows of x times a tile of plain floats, which are converted for every panel of x anew.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn direct(float: layout::Float, tile: Tile<'_>, x: &Floats<'_>, size: (usize, usize), out: &mut [f32]) {
            match float {
                layout::Float::F32 => direct_rows::<{ 4 * PANEL }>(ScaleType::F32, tile, x, size, out),
                layout::Float::F16 => direct_rows::<{ 2 * PANEL }>(ScaleType::F16, tile, x, size, out),
                layout::Float::Bf16 => direct_rows::<{ 2 * PANEL }>(ScaleType::Bf16, tile, x, size, out),
            }
        }

        /// `SIZE`: bytes of a column of a panel.
        #[inline]
        #[target_feature(enable = $features)]
        fn direct_rows<const SIZE: usize>(
            ty: ScaleType,
            tile: Tile<'_>,
            x: &Floats<'_>,
            (rows, columns): (usize, usize),
            out: &mut [f32],
        ) {
            let mr = x.mr;
            let panels = x.values.chunks_exact(columns * mr).zip(out.chunks_exact_mut(TILE * mr));
            if mr == 1 && tile.panels == TILE_PANELS {
                for (x, out) in panels {
                    direct_row::<SIZE>(ty, tile, x, out);
                }
                return;
            }
            // A block of columns stays in the first caches while all panels take it.
            let len = direct_block(SIZE);
            for at in (0..columns).step_by(len) {
                // Two rows have sums for two panels, which hide more of what each fma waits for.
                let together = if mr == 2 { 2 } else { 1 };
                for p in (0..tile.panels).step_by(together) {
                    let panels = x.values.chunks_exact(columns * mr).zip(out.chunks_exact_mut(TILE * mr));
                    // The first panel of x asks for the next block, a part with each panel of W.
                    let mut ahead = ((at + len) * tile.panels + p * len) * SIZE;
                    for (panel, (x, out)) in panels.enumerate() {
                        let (x, pair) = (&x[at * mr..], p + 1 < tile.panels);
                        // The rest of the last panel is 0, and nobody reads what comes of it. (F32 gains as much, but
                        // the library has a bound.)
                        let two_left = SIZE < LINE && mr == ROWS && rows - panel * mr <= 2;
                        if two_left && p % 2 == 1 {
                            // Done with the panel before.
                        } else if two_left && pair {
                            direct_columns::<2, ROWS, 2, SIZE>(ty, tile, x, out, p, at, ahead);
                        } else if mr == 2 && pair {
                            direct_columns::<2, 2, 2, SIZE>(ty, tile, x, out, p, at, ahead);
                        } else {
                            for_rows!([1 2 3 4 5 6] mr, MR => direct_columns::<MR, MR, 1, SIZE>(ty, tile, x, out, p, at, ahead));
                        }
                        ahead = 0;
                    }
                }
            }
        }

        /// One row of x times all panels of a tile.
        #[inline]
        #[target_feature(enable = $features)]
        fn direct_row<const SIZE: usize>(ty: ScaleType, tile: Tile<'_>, x: &[f32], out: &mut [f32]) {
            let mut acc = [[[all(0.0); PARTS]; TILE_PANELS]];
            let columns = tile.bytes.chunks_exact(TILE_PANELS * SIZE);
            for (column, x) in columns.zip(x.as_chunks::<1>().0) {
                let (column, _) = column.as_chunks::<SIZE>();
                add_column(&mut acc, x, |p, h| {
                    if SIZE < 64 && h == 0 {
                        // Near, and to the second cache: lines far ahead for the first one take its few places for
                        // lines under way from the loads (0.85 of the speed). A column of f32 is four lines, which
                        // the CPU's own prefetcher follows better (1.25 of the speed).
                        prefetch_far(&column[p], 1024);
                    }
                    scales(ty, &column[p], h * LANES)
                });
            }
            for p in 0..TILE_PANELS {
                for h in 0..PARTS {
                    put_floats(out, p * PANEL + h * LANES, acc[0][p][h]);
                }
            }
        }

        /// `MR` of a panel's `XR` rows of x times a block of columns from `at` on, of `NP` panels from `first` on. `ahead`:
        /// what is fetched meanwhile.
        #[inline]
        #[target_feature(enable = $features)]
        fn direct_columns<const MR: usize, const XR: usize, const NP: usize, const SIZE: usize>(
            ty: ScaleType,
            tile: Tile<'_>,
            x: &[f32],
            out: &mut [f32],
            first: usize,
            at: usize,
            mut ahead: usize,
        ) {
            let place = |i: usize, p: usize, h: usize| i * TILE + (first + p) * PANEL + h * LANES;
            let mut acc = [[[all(0.0); PARTS]; NP]; MR];
            if at > 0 {
                for i in 0..MR {
                    for p in 0..NP {
                        for h in 0..PARTS {
                            acc[i][p][h] = floats(out, place(i, p, h));
                        }
                    }
                }
            }
            let stride = tile.panels * SIZE;
            let weights = &tile.bytes[at * stride..];
            let len = direct_block(SIZE).min(weights.len() / stride);
            let (turns, last) = x.as_chunks::<XR>().0[..len].as_chunks::<QUAD>();
            let columns = weights.chunks_exact(QUAD * stride);
            for (x, columns) in turns.iter().zip(columns) {
                for (x, column) in x.iter().zip(columns.chunks_exact(stride)) {
                    let column = &column[first * SIZE..][..NP * SIZE];
                    for _ in 0..NP {
                        prefetch_far(tile.bytes, ahead);
                        ahead += SIZE;
                    }
                    add_column(&mut acc, x, |p, h| scales(ty, column, p * PANEL + h * LANES));
                    // The next column is not read before: the compiler would mix the four, and spill sums.
                    compiler_fence(Ordering::SeqCst);
                }
            }
            let columns = weights[QUAD * stride * turns.len()..].chunks_exact(stride);
            for (x, column) in last.iter().zip(columns) {
                let column = &column[first * SIZE..][..NP * SIZE];
                add_column(&mut acc, x, |p, h| scales(ty, column, p * PANEL + h * LANES));
            }
            for i in 0..MR {
                for p in 0..NP {
                    for h in 0..PARTS {
                        put_floats(out, place(i, p, h), acc[i][p][h]);
                    }
                }
            }
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn dense(float: layout::Float, tile: Tile<'_>, p: usize, at: usize, block: &mut [f32], len: usize) {
            match float {
                layout::Float::F32 => columns(ScaleType::F32, tile, p, at, block, len),
                layout::Float::F16 => columns(ScaleType::F16, tile, p, at, block, len),
                layout::Float::Bf16 => columns(ScaleType::Bf16, tile, p, at, block, len),
            }
        }

        /// Columns of floats of a type, which is a constant where this is inlined.
        #[inline]
        #[target_feature(enable = $features)]
        fn columns(ty: ScaleType, tile: Tile<'_>, p: usize, at: usize, block: &mut [f32], len: usize) {
            let size = tile.panels * PANEL * ty.bytes();
            let columns = tile.bytes[at * size..][..len * size].chunks_exact(size);
            for (column, block) in columns.zip(block.chunks_exact_mut(PANEL)) {
                for h in (0..PANEL).step_by(LANES) {
                    put_floats(block, h, scales(ty, column, p * PANEL + h));
                }
            }
        }

        /// The weights of columns `at .. at + len` of panel `p`, each evaluated as `Row::weight` does.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn dequantize(
            coded: &Coded,
            geometry: &Geometry,
            tile: Tile<'_>,
            p: usize,
            at: usize,
            block: &mut [f32],
            len: usize,
            codes: &mut [u8],
        ) {
            let (ty, lanes, stride) = (coded.scale_type, tile.panels * PANEL, tile.panels * LINE);
            let bases = coded.bases as usize;
            let columns = unit_columns(coded.bits);
            let base_bytes = unit_lines(coded.bits) * stride;
            let group = coded.group_len(geometry.in_features);
            let zero = zero_point(coded);
            let mut k = at;
            while k < at + len {
                let (r, inside) = (k / geometry.record, k % geometry.record);
                let record = &tile.bytes[r * geometry.record_bytes(tile.panels)..];
                let (head, units) = record.split_at(lanes * geometry.head);
                // The columns of this step are in one group: one set of scales.
                let count = (at + len - k).min(group - inside % group).min(geometry.record_len(r) - inside);
                let (first, end) = (inside / columns, (inside + count).div_ceil(columns));
                let bytes = &units[first * base_bytes * bases..end * base_bytes * bases];
                let block = &mut block[(k - at) * PANEL..][..count * PANEL];
                for base in 0..bases {
                    let at = base * base_bytes + p * LINE;
                    let unit = base_bytes * bases;
                    decode(coded, &Units { bytes, record: bytes.len(), head: 0, unit, at, stride }, codes);
                    for h in (0..PANEL).step_by(LANES) {
                        let lane = p * PANEL + h;
                        let (mut scale, mut plus, mut zero) =
                            (scales(ty, head, lane), all(0.0), ints(zero));
                        let mut mode = Mode::Product;
                        match coded.scales {
                            Scales::Row => {
                                scale = scales(ScaleType::F32, &head[base * lanes * 4..], lane);
                                mode = if base == 0 { Mode::Product } else { Mode::Onto };
                            }
                            Scales::Group { offset: Offset::None, .. } => {}
                            Scales::Group { offset: Offset::Minimum, .. } => {
                                plus = scales(ty, &head[lanes * ty.bytes()..], lane);
                                mode = Mode::Plus;
                            }
                            Scales::Group { offset: Offset::Zero, .. } => {
                                zero = add_ints(zero, unsigned_bytes(head, lanes * ty.bytes() + lane));
                            }
                            Scales::TwoLevel { minimum, .. } => {
                                let subs = &head[lanes * ty.bytes() * (1 + minimum as usize)..];
                                let j = inside / group;
                                scale = mul(scale, to_floats(signed_bytes(subs, j * lanes + lane)));
                                if minimum {
                                    let mn = signed_bytes(subs, (SUPER_BLOCK / group + j) * lanes + lane);
                                    let dmin = scales(ty, &head[lanes * ty.bytes()..], lane);
                                    // Taking a product off is adding it with its sign turned.
                                    plus = mul(mul(dmin, all(-1.0)), to_floats(mn));
                                    mode = Mode::Plus;
                                }
                            }
                        }
                        let skip = inside - first * columns;
                        match mode {
                            Mode::Product => weights(codes, skip, zero, block, h, |v, _| mul(scale, v)),
                            Mode::Plus => {
                                weights(codes, skip, zero, block, h, |v, _| add(mul(scale, v), plus))
                            }
                            Mode::Onto => {
                                weights(codes, skip, zero, block, h, |v, before| add(floats(before, 0), mul(scale, v)))
                            }
                        }
                    }
                }
                k += count;
            }
        }

        /// `block[c] = f(value of column skip + c, block[c])` for the rows from `h` on of a panel.
        #[inline]
        #[target_feature(enable = $features)]
        fn weights(
            codes: &[u8],
            skip: usize,
            zero: Int,
            block: &mut [f32],
            h: usize,
            f: impl Fn(Float, &[f32]) -> Float,
        ) {
            let (lines, _) = codes.as_chunks::<LINE>();
            let lines = &lines[skip / QUAD..];
            if skip.is_multiple_of(QUAD) && block.len().is_multiple_of(QUAD * PANEL) {
                for (line, block) in lines.iter().zip(block.as_chunks_mut::<{ QUAD * PANEL }>().0) {
                    let codes = load(line, h / LANES);
                    unrolled!(QUAD, C => {
                        let block = &mut block[C * PANEL + h..][..LANES];
                        let v = to_floats(sub_ints(column(codes, C), zero));
                        put_floats(block, 0, f(v, block));
                    });
                }
                return;
            }
            // A group begins or ends inside a quad.
            let columns = block.len() / PANEL;
            for (q, line) in lines.iter().enumerate() {
                let codes = load(line, h / LANES);
                for c in 0..QUAD {
                    let k = (q * QUAD + c).wrapping_sub(skip % QUAD);
                    if k < columns {
                        let block = &mut block[k * PANEL + h..][..LANES];
                        let v = to_floats(sub_ints(column(codes, c), zero));
                        put_floats(block, 0, f(v, block));
                    }
                }
            }
        }
    };
}

pub(in crate::kernel) use float;

use super::float_few;
use crate::layout::{Layout, PANEL, Packed, TILE_PANELS};

/// Most rows of a panel of x.
pub(in crate::kernel) const ROWS: usize = 6;
/// Columns of a k-block: a panel is 16 KiB of floats, half of the first cache.
pub(in crate::kernel) const BLOCK: usize = 256;
/// Up to so many rows of x plain floats are not converted into a block: that costs as much as six rows do, and
/// its gain is a twentieth of each.
pub(in crate::kernel) const DIRECT: usize = 36;
/// How a weight follows from a product.
pub(in crate::kernel) enum Mode {
    /// It is the product.
    Product,
    /// A minimum is added.
    Plus,
    /// It is added to what the bases before have made.
    Onto,
}

/// Columns of a tile that few rows of x meet at a time, given the bytes of one of a panel: half of the first cache.
pub(in crate::kernel) const fn direct_block(bytes: usize) -> usize {
    (16 << 10) / (TILE_PANELS * bytes)
}

/// Columns of the largest k-block.
pub(in crate::kernel) fn block_columns(packed: &Packed) -> usize {
    BLOCK.min(packed.in_features())
}

/// Bytes of the decoded codes of a k-block: a group may begin and end inside a unit of 32 columns.
pub(in crate::kernel) fn code_bytes(packed: &Packed) -> usize {
    match packed.layout() {
        Layout::Coded(_) => {
            ((block_columns(packed) + 2 * 32).next_multiple_of(4) * PANEL).max(float_few::CODE_BYTES)
        }
        Layout::Dense(_) => 0,
    }
}

/// Bytes of scratch.
pub(in crate::kernel) fn scratch(packed: &Packed, _rows: usize) -> usize {
    let panels = packed.out_features().div_ceil(PANEL).min(TILE_PANELS);
    code_bytes(packed) + (block_columns(packed) * PANEL * panels * 4).max(float_few::SCALE_BYTES) + 64
}
