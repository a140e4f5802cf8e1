//! Float activations, few rows, and the codes of a whole tile: weights are evaluated in registers and multiplied at once,
//! never stored as floats.
//!
//! ```text
//! codes    [panel][quad][64 bytes]   128 columns of a tile, or the short records that fit, decoded to bytes
//! scales   [group][64 rows] f32      of the groups in it; and what belongs to them: minima, or zero points
//! ```
//! A code becomes the last bits of 2^23, of which 2^23 and its zero point are taken: that is exact. The product with the
//! scale is rounded, as `Row::weight` has it, and an fma for each row of x follows. As many panels are on their way together
//! as hide the latency of fma. Limit: for one row six operations a weight, decoding among them.

/// `run` for one kind of vector. `$sums`: how many vectors of sums registers have room for.
macro_rules! float_few {
    ($features:literal, $sums:literal) => {
        use std::sync::atomic::{Ordering, compiler_fence};

        use super::vector::*;
        use crate::activation::Floats;
        use crate::kernel::narrow::float_few::{BLOCK, GROUPS, Mode};
        use crate::kernel::narrow::{Units, wide, zero_point};
        use crate::layout::packed::{LINE, Tile};
        use crate::layout::{
            Coded, Offset, PANEL, Packed, QUAD, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS, Values,
        };

        const PRODUCT: u8 = Mode::Product as u8;
        const MINIMUM: u8 = Mode::Minimum as u8;
        const ZERO: u8 = Mode::Zero as u8;

        /// Panels that so many rows meet at a time.
        const fn together(rows: usize) -> usize {
            match $sums / (rows * PARTS) {
                0 | 1 => 1,
                2 | 3 => 2,
                _ => TILE_PANELS,
            }
        }

        /// One panel of x, of at most [`ROWS`](crate::kernel::narrow::float_few::ROWS) rows, times a whole tile.
        #[target_feature(enable = $features)]
        pub(super) fn run(
            coded: &Coded,
            packed: &Packed,
            tile: Tile<'_>,
            x: &Floats<'_>,
            (codes, floats): (&mut [u8], &mut [f32]),
            out: &mut [f32],
        ) {
            let geometry = packed.geometry();
            let (record, padded) = (geometry.record_bytes(TILE_PANELS), geometry.record_padded());
            let (head, unit) = (geometry.head * TILE, geometry.unit_bytes * TILE_PANELS);
            let group = coded.group_len(geometry.in_features);
            let (scales, more) = floats[..2 * GROUPS * TILE].split_at_mut(GROUPS * TILE);
            let mut work = Work { coded, codes, scales, more, x, out };
            work.out[..x.mr * TILE].fill(0.0);
            // Short records, of a group each, are taken together, long ones in parts.
            let together = (BLOCK / padded).max(1);
            for (first, bytes) in (0..).step_by(together).zip(tile.bytes.chunks(together * record)) {
                let at = first * geometry.record;
                if padded <= BLOCK {
                    work.decode(bytes, (record, head, unit));
                    for (i, bytes) in bytes.chunks(record).enumerate() {
                        work.group(&bytes[..head], 0, i);
                    }
                    let end = geometry.in_features.min(at + together * geometry.record);
                    work.multiply(at, end - at, (geometry.record, padded));
                    continue;
                }
                let ((head, units), len) = (bytes.split_at(head), geometry.record_len(first));
                for (k, bytes) in (0..len).step_by(BLOCK).zip(units.chunks(BLOCK / geometry.unit * unit)) {
                    work.decode(bytes, (bytes.len(), 0, unit));
                    let count = BLOCK.min(len - k);
                    for i in 0..count.div_ceil(group) {
                        work.group(head, k / group + i, i);
                    }
                    work.multiply(at + k, count, (group.min(BLOCK), group.min(BLOCK)));
                }
            }
        }

        /// A block, the batch, and what comes of it.
        struct Work<'a> {
            coded: &'a Coded,
            codes: &'a mut [u8],
            scales: &'a mut [f32],
            more: &'a mut [f32],
            x: &'a Floats<'a>,
            out: &'a mut [f32],
        }

        impl Work<'_> {
            /// Decodes records of all panels.
            #[target_feature(enable = $features)]
            fn decode(&mut self, bytes: &[u8], (record, head, unit): (usize, usize, usize)) {
                for (p, codes) in self.codes.chunks_exact_mut(BLOCK * PANEL).enumerate().take(TILE_PANELS) {
                    let stride = TILE_PANELS * LINE;
                    decode(self.coded, &Units { bytes, record, head, unit, at: p * LINE, stride }, codes);
                }
            }

            /// Group `j` of the record with that head becomes number `i` of the block.
            #[inline(never)]
            #[target_feature(enable = $features)]
            fn group(&mut self, head: &[u8], j: usize, i: usize) {
                let (ty, size, point) = (self.coded.scale_type, self.coded.scale_type.bytes(), self.zero());
                let out = &mut self.scales[i * TILE..][..TILE];
                let more = &mut self.more[i * TILE..][..TILE];
                for lane in (0..TILE).step_by(LANES) {
                    match self.coded.scales {
                        Scales::Row => put_floats(out, lane, scales(ScaleType::F32, head, lane)),
                        Scales::Group { offset, .. } => {
                            put_floats(out, lane, scales(ty, head, lane));
                            match offset {
                                Offset::None => (),
                                Offset::Minimum => {
                                    put_floats(more, lane, scales(ty, &head[TILE * size..], lane));
                                }
                                Offset::Zero => {
                                    let zero = unsigned_bytes(head, TILE * size + lane);
                                    put_floats(more, lane, to_floats(add_ints(ints(point), zero)));
                                }
                            }
                        }
                        Scales::TwoLevel { len, minimum } => {
                            let subs = &head[TILE * size * (1 + minimum as usize)..];
                            let sub = |j: usize| to_floats(signed_bytes(subs, j * TILE + lane));
                            put_floats(out, lane, mul(scales(ty, head, lane), sub(j)));
                            if minimum {
                                // Taking a product off is adding it with its sign turned.
                                let dmin = mul(scales(ty, &head[TILE * size..], lane), all(-1.0));
                                put_floats(more, lane, mul(dmin, sub(SUPER_BLOCK / len + j)));
                            }
                        }
                    }
                }
            }

            /// The zero point, with 2^23 added. Wide codes are unsigned here.
            fn zero(&self) -> i32 {
                zero_point(self.coded) + 128 * self.wide() as i32 + (1 << 23)
            }

            fn wide(&self) -> bool {
                wide(self.coded.bits, matches!(self.coded.values, Values::Table(_)))
            }

            /// The block times columns `at .. at + len` of x. `sizes`: columns of a group, without padding and with it.
            #[target_feature(enable = $features)]
            fn multiply(&mut self, at: usize, len: usize, sizes: (usize, usize)) {
                let mr = self.x.mr;
                let x = &self.x.values[at * mr..][..len * mr];
                match mr {
                    1 => self.panels::<1, { together(1) }>(x, sizes),
                    2 => self.panels::<2, { together(2) }>(x, sizes),
                    3 => self.panels::<3, { together(3) }>(x, sizes),
                    _ => self.panels::<4, { together(4) }>(x, sizes),
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn panels<const R: usize, const NP: usize>(&mut self, x: &[f32], (len, padded): (usize, usize)) {
                let magic = (1 << 23) as f32;
                let block = Block {
                    codes: self.codes.as_chunks::<LINE>().0.as_chunks().0,
                    len,
                    quads: padded / QUAD,
                    scales: self.scales.as_chunks::<PANEL>().0.as_chunks().0,
                    more: self.more.as_chunks::<PANEL>().0.as_chunks().0,
                    zero: self.zero() as f32,
                    magic: if self.wide() { magic.to_bits() as i32 ^ 0x80 } else { magic.to_bits() as i32 },
                };
                for first in (0..TILE_PANELS).step_by(NP) {
                    match Mode::of(self.coded) {
                        Mode::Product => multiply::<R, NP, PRODUCT>(&block, first, x, self.out),
                        Mode::Minimum => multiply::<R, NP, MINIMUM>(&block, first, x, self.out),
                        Mode::Zero => multiply::<R, NP, ZERO>(&block, first, x, self.out),
                    }
                }
            }
        }

        /// What columns of x are multiplied with.
        struct Block<'a> {
            codes: &'a [[[u8; LINE]; BLOCK / QUAD]],
            /// Columns of a group, and its quads, padding included.
            len: usize,
            quads: usize,
            scales: &'a [[[f32; PANEL]; TILE_PANELS]],
            more: &'a [[[f32; PANEL]; TILE_PANELS]],
            zero: f32,
            /// What a code's bits are turned over in to make a float of it: 2^23; where codes are signed also the
            /// sign, so that they are 128 more.
            magic: i32,
        }

        /// `out += weights . x`, column by column, for the panels from `first` on.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn multiply<const R: usize, const NP: usize, const MODE: u8>(
            block: &Block<'_>,
            first: usize,
            x: &[f32],
            out: &mut [f32],
        ) {
            let place = |i: usize, p: usize, h: usize| i * TILE + (first + p) * PANEL + h * LANES;
            let mut acc = [[[all(0.0); PARTS]; NP]; R];
            for i in 0..R {
                for p in 0..NP {
                    for h in 0..PARTS {
                        acc[i][p][h] = floats(out, place(i, p, h));
                    }
                }
            }
            let (magic, zero) = (ints(block.magic), all(block.zero));
            let places = [byte_of_rows(0), byte_of_rows(1), byte_of_rows(2), byte_of_rows(3)];
            // All offsets are constants from here on.
            let codes = &block.codes.as_chunks::<NP>().0[first / NP];
            let groups = block.scales.iter().zip(block.more).zip(0..);
            for (((scales, more), g), x) in groups.zip(x.as_chunks::<R>().0.chunks(block.len)) {
                let scales = &scales.as_chunks::<NP>().0[first / NP];
                let more = &more.as_chunks::<NP>().0[first / NP];
                for (x, q) in x.chunks(QUAD).zip(g * block.quads..) {
                    let lines: [&[u8; LINE]; NP] = core::array::from_fn(|p| &codes[p][q]);
                    for (x, &place) in x.iter().zip(&places) {
                        for p in 0..NP {
                            for h in 0..PARTS {
                                let byte = pick(load(lines[p], h), place);
                                let scale = floats(&scales[p], h * LANES);
                                let more = || floats(&more[p], h * LANES);
                                let code = as_floats(xor(byte, magic));
                                let weight = match MODE {
                                    PRODUCT => mul(sub(code, zero), scale),
                                    ZERO => mul(sub(code, more()), scale),
                                    _ => add(mul(to_floats(byte), scale), more()),
                                };
                                for i in 0..R {
                                    acc[i][p][h] = fma(all(x[i]), weight, acc[i][p][h]);
                                }
                            }
                        }
                        // What is read once is read again: the compiler would keep it in registers, and spill sums.
                        compiler_fence(Ordering::SeqCst);
                    }
                }
            }
            for i in 0..R {
                for p in 0..NP {
                    for h in 0..PARTS {
                        put_floats(out, place(i, p, h), acc[i][p][h]);
                    }
                }
            }
        }
    };
}

pub(in crate::kernel) use float_few;

use super::{wide, zero_point};
use crate::layout::{Coded, Offset, Scales, TILE, Values};

/// Most rows of x: for more, floats that are stored once are faster.
pub(in crate::kernel) const ROWS: usize = 4;
/// Columns that are decoded at a time: whole units of every width.
pub(in crate::kernel) const BLOCK: usize = 128;
/// The shortest groups, and how many of them a block may have.
const GROUP: usize = 16;
pub(in crate::kernel) const GROUPS: usize = BLOCK / GROUP;
/// Bytes of the codes of a block, and of its scales.
pub(in crate::kernel) const CODE_BYTES: usize = BLOCK * TILE;
pub(in crate::kernel) const SCALE_BYTES: usize = 2 * GROUPS * TILE * 4;

/// How a weight follows from its code.
#[derive(Clone, Copy, PartialEq)]
pub(in crate::kernel) enum Mode {
    /// `(code - zero) scale`, one zero point for all.
    Product,
    /// `code scale + minimum`.
    Minimum,
    /// `(code - zero) scale`, a zero point for each group.
    Zero,
}

impl Mode {
    pub(in crate::kernel) fn of(coded: &Coded) -> Self {
        match coded.scales {
            Scales::Group { offset: Offset::Minimum, .. } | Scales::TwoLevel { minimum: true, .. } => {
                Mode::Minimum
            }
            Scales::Group { offset: Offset::Zero, .. } => Mode::Zero,
            _ => Mode::Product,
        }
    }
}

/// Whether weights are such: one code each, in groups that are not too short. Others are made in a block of floats.
pub(in crate::kernel) fn takes(coded: &Coded) -> bool {
    let groups = match coded.scales {
        Scales::Row => true,
        Scales::Group { len, .. } | Scales::TwoLevel { len, .. } => len >= GROUP,
    };
    let plain = !wide(coded.bits, matches!(coded.values, Values::Table(_))) && zero_point(coded) == 0;
    coded.bases == 1 && groups && (plain || Mode::of(coded) != Mode::Minimum)
}
