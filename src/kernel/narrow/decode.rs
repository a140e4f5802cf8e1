//! Codes out of packed lines. Expanded inside a `vector` module.

/// `quad` and `decode` for one kind of vector.
macro_rules! decode {
    ($features:literal) => {
        /// Vectors of a panel.
        pub(super) const PARTS: usize = $crate::layout::PANEL / LANES;

        /// The lines of one panel in a unit: the first at `at`, then every `stride` bytes. Only as many
        /// as codes of that many bits have; the others repeat the first.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn lines<const BITS: u8>(unit: &[u8], at: usize, stride: usize) -> [&[u8; LINE]; 5] {
            let count = $crate::kernel::narrow::unit_lines(BITS);
            let unit = &unit[at..][..(count - 1) * stride + LINE];
            let mut lines = [&unit.as_chunks::<LINE>().0[0]; 5];
            for l in 1..count {
                lines[l] = &unit[l * stride..][..LINE].as_chunks::<LINE>().0[0];
            }
            lines
        }

        /// Quad `i` of a unit: the codes of 4 columns, for the rows of part `h`.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn quad<const BITS: u8, const TABLE: bool>(
            lines: &[&[u8; LINE]; 5],
            h: usize,
            i: usize,
            table: Bytes,
        ) -> Bytes {
            let n = i as i32;
            match BITS {
                8 => flipped(load(lines[0], h)),
                4 => {
                    let codes = masked(load(lines[0], h), 4 * n, 15);
                    if TABLE { look_up(table, codes) } else { codes }
                }
                2 => masked(load(lines[0], h), 2 * n, 3),
                1 => masked(load(lines[0], h), n - 1, 2),
                3 => {
                    let low = masked(load(lines[i / 4], h), 2 * (n % 4), 3);
                    or(low, masked(load(lines[2], h), n - 2, 4))
                }
                5 => {
                    let low = masked(load(lines[i / 2], h), 4 * (n % 2), 15);
                    or(low, masked(load(lines[4], h), n - 4, 16))
                }
                _ => {
                    let low = masked(load(lines[i / 2], h), 4 * (n % 2), 15);
                    or(low, masked(load(lines[2], h), 2 * n - 4, 48))
                }
            }
        }

        /// Decodes units of one panel into quads of a line each.
        #[inline(never)]
        #[target_feature(enable = $features)]
        pub(super) fn decode(coded: &Coded, units: &$crate::kernel::narrow::Units<'_>, block: &mut [u8]) {
            let table = table(coded);
            $crate::kernel::narrow::for_width!(coded, decode_width(units, table, block))
        }

        #[inline(never)]
        #[target_feature(enable = $features)]
        fn decode_width<const BITS: u8, const TABLE: bool>(
            units: &$crate::kernel::narrow::Units<'_>,
            table: Bytes,
            block: &mut [u8],
        ) {
            use $crate::kernel::narrow::{unit_lines, unit_quads, unrolled};
            let (block, _) = block.as_chunks_mut::<LINE>();
            let (at, stride) = (units.at, units.stride);
            let mut blocks = block.chunks_exact_mut(unit_quads(BITS));
            for record in units.bytes.chunks(units.record) {
                for (unit, block) in record[units.head..].chunks_exact(units.unit).zip(&mut blocks) {
                    for line in 0..unit_lines(BITS) {
                        prefetch(unit, 2048 + at + line * stride);
                    }
                    let lines = lines::<BITS>(unit, at, stride);
                    unrolled!(unit_quads(BITS), I => {
                        for h in 0..PARTS {
                            store(&mut block[I], h, quad::<BITS, TABLE>(&lines, h, I, table));
                        }
                    });
                }
            }
        }
    };
}

pub(in crate::kernel) use decode;
