//! The bytes of a panel, written and read: how 16 decoded rows become lines and heads (`packed` draws
//! them), and the scalar reader of one row beside it.
//!
//! ```text
//! codes   8 codes of one row in a 64-bit word, two quads; words shifted over each other; the upper half over
//!         the lower one: a lane of a line
//! floats  [value][16] f32: 16 rows side by side, then all to the stored type at once
//! ```
//! Rows take turns after 64 units, so that their lines stay in L1. Loops over floats are what compilers
//! vectorise for each instruction set (`kernel::compiled`): so all of it is inline.

use std::ops::Range;

use super::head::{e8m0_of, read_head};
use super::packed::{Geometry, LINE, Tile, planes, unit_columns};
use super::{Coded, Float, Layout, Offset, PANEL, QUAD, Row, SUPER_BLOCK, ScaleType, Scales};
use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// Floats of a row that are turned at a time: 4 KiB of 16 rows.
const FLOATS: usize = 64;

/// The rows of one panel, to be written into their tile.
pub struct Panel<'a> {
    pub(super) layout: &'a Layout,
    pub(super) geometry: &'a Geometry,
    /// The bytes of the tile.
    pub(super) bytes: &'a mut [u8],
    /// How many panels it has, and which this one is.
    pub(super) panels: usize,
    pub(super) panel: usize,
    /// At most 16; lanes past them become zero.
    pub(super) rows: &'a [Row<'a>],
}

impl Panel<'_> {
    /// Writes heads and lines.
    #[inline(always)]
    pub fn write(self) {
        let Panel { layout, geometry, bytes, panels, panel, rows } = self;
        match layout {
            Layout::Dense(float) => write_dense(*float, bytes, (panels, panel), rows),
            Layout::Coded(coded) => {
                let place = Place { geometry, panels, panel };
                write_heads(coded, &place, bytes, rows);
                match coded.bits {
                    1 => write_codes::<1, 0, 32>(coded, &place, bytes, rows),
                    2 => write_codes::<2, 0, 16>(coded, &place, bytes, rows),
                    3 => write_codes::<2, 1, 32>(coded, &place, bytes, rows),
                    4 => write_codes::<4, 0, 8>(coded, &place, bytes, rows),
                    5 => write_codes::<4, 1, 32>(coded, &place, bytes, rows),
                    6 => write_codes::<4, 2, 16>(coded, &place, bytes, rows),
                    _ => write_codes::<8, 0, 4>(coded, &place, bytes, rows),
                }
            }
        }
    }
}

/// Reads one row of a tile back.
pub(super) fn read(layout: &Layout, geometry: &Geometry, tile: Tile<'_>, lane: usize, row: &mut Row<'_>) {
    match layout {
        Layout::Dense(float) => read_dense(*float, tile, lane, row),
        Layout::Coded(coded) => read_coded(coded, geometry, tile, lane, row),
    }
}

/// Which panel of which tile.
struct Place<'a> {
    geometry: &'a Geometry,
    panels: usize,
    panel: usize,
}

// ---- dense ------------------------------------------------------------------------------------

#[inline(always)]
fn write_dense(float: Float, bytes: &mut [u8], (panels, panel): (usize, usize), rows: &[Row<'_>]) {
    let size = PANEL * float.bytes();
    let columns = rows.first().map_or(0, |row| row.floats.len());
    let at = |column: usize| (column * panels + panel) * size;
    let ty = match float {
        Float::F32 => ScaleType::F32,
        Float::F16 => ScaleType::F16,
        Float::Bf16 => ScaleType::Bf16,
    };
    put_floats(ty, rows, columns, |row| &row.floats, bytes, at);
}

/// Writes values `0 .. count` of every row, 16 side by side at `at(value)`. A lane past the last row gets
/// zero bytes.
#[inline(always)]
fn put_floats<'r>(
    ty: ScaleType,
    rows: &'r [Row<'_>],
    count: usize,
    values: impl Fn(&'r Row<'_>) -> &'r [f32],
    bytes: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    // Lanes past the last row are never written: they stay zero.
    let (mut turned, mut words) = ([0; FLOATS * PANEL], [0; FLOATS * PANEL]);
    for first in (0..count).step_by(FLOATS) {
        let len = FLOATS.min(count - first);
        for (lane, row) in rows.iter().enumerate().take(PANEL) {
            let places = turned[lane..].iter_mut().step_by(PANEL);
            for (place, value) in places.zip(&values(row)[first..first + len]) {
                *place = value.to_bits();
            }
        }
        let words = &mut words[..len * PANEL];
        words.copy_from_slice(&turned[..len * PANEL]);
        // One loop over all of them, its length no constant: such loops are what compilers vectorise.
        match ty {
            ScaleType::F32 => {}
            ScaleType::F16 => words.iter_mut().for_each(|w| *w = f32_to_f16(f32::from_bits(*w)) as u32),
            ScaleType::Bf16 => words.iter_mut().for_each(|w| *w = f32_to_bf16(f32::from_bits(*w)) as u32),
            ScaleType::E8m0 => words.iter_mut().for_each(|w| *w = e8m0_of(f32::from_bits(*w)) as u32),
        }
        for (i, words) in words.as_chunks::<PANEL>().0.iter().enumerate() {
            let place = &mut bytes[at(first + i)..][..PANEL * ty.bytes()];
            match ty {
                ScaleType::F32 => put_words(place, words),
                ScaleType::F16 | ScaleType::Bf16 => {
                    for (bytes, word) in place.as_chunks_mut().0.iter_mut().zip(words) {
                        *bytes = (*word as u16).to_le_bytes();
                    }
                }
                ScaleType::E8m0 => place.iter_mut().zip(words).for_each(|(byte, word)| *byte = *word as u8),
            }
        }
    }
}

fn read_dense(float: Float, tile: Tile<'_>, lane: usize, row: &mut Row<'_>) {
    let size = float.bytes();
    let stride = tile.panels * PANEL * size;
    for (w, column) in row.floats.iter_mut().zip(tile.bytes.chunks_exact(stride)) {
        let b = &column[lane * size..];
        *w = match float {
            Float::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Float::F16 => f16_to_f32(u16::from_le_bytes([b[0], b[1]])),
            Float::Bf16 => bf16_to_f32(u16::from_le_bytes([b[0], b[1]])),
        };
    }
}

#[inline(always)]
fn put_words(place: &mut [u8], words: &[u32; PANEL]) {
    for (bytes, word) in place.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
}

// ---- scales -----------------------------------------------------------------------------------

/// Writes the heads of all records of a panel.
#[inline(always)]
fn write_heads(coded: &Coded, place: &Place<'_>, bytes: &mut [u8], rows: &[Row<'_>]) {
    let &Place { geometry, panels, panel } = place;
    let (lanes, lane, ty) = (panels * PANEL, panel * PANEL, coded.scale_type);
    let (size, record, records) = (ty.bytes(), geometry.record_bytes(panels), geometry.records);
    match coded.scales {
        Scales::Row => {
            let at = |base: usize| (base * lanes + lane) * 4;
            put_floats(ScaleType::F32, rows, coded.bases as usize, |row| &row.scales, bytes, at);
        }
        Scales::Group { offset, .. } => {
            put_floats(ty, rows, records, |row| &row.scales, bytes, |r| r * record + lane * size);
            let at = |r: usize| r * record + lanes * size + lane * size;
            match offset {
                Offset::None => {}
                Offset::Minimum => put_floats(ty, rows, records, |row| &row.minimums, bytes, at),
                Offset::Zero => {
                    let at = |r: usize| r * record + lanes * size + lane;
                    put_bytes(rows, |row| row.zeros.iter().copied(), bytes, at);
                }
            }
        }
        Scales::TwoLevel { len, minimum } => {
            let groups = SUPER_BLOCK / len;
            put_floats(ty, rows, records, |row| &row.scales, bytes, |r| r * record + lane * size);
            if minimum {
                let at = |r: usize| r * record + lanes * size + lane * size;
                put_floats(ty, rows, records, |row| &row.minimums, bytes, at);
            }
            let subs = lanes * size * (1 + minimum as usize) + lane;
            let at = |j: usize| j / groups * record + subs + j % groups * lanes;
            put_bytes(rows, |row| row.sub_scales.iter().map(|sub| *sub as u8), bytes, at);
            if minimum {
                let at = |j: usize| at(j) + groups * lanes;
                put_bytes(rows, |row| row.sub_minimums.iter().map(|sub| *sub as u8), bytes, at);
            }
        }
    }
}

/// Writes bytes of every row, 16 side by side at `at(byte)`.
#[inline(always)]
fn put_bytes<'r, I: Iterator<Item = u8>>(
    rows: &'r [Row<'_>],
    values: impl Fn(&'r Row<'_>) -> I,
    bytes: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    for (lane, row) in rows.iter().enumerate().take(PANEL) {
        for (i, value) in values(row).enumerate() {
            bytes[at(i) + lane] = value;
        }
    }
}

// ---- codes ------------------------------------------------------------------------------------

/// Units of a panel that all rows write before the next ones: their lines stay in L1.
const BLOCK: usize = 64;

/// Replicates a mask of at most 8 bits to the four bytes of a lane.
const fn each(mask: u32) -> u32 {
    mask * 0x0101_0101
}

/// Writes the codes of a panel in units of `UNIT` columns: a lower plane of `LOW` bits and an upper one of
/// `HIGH`, where that is not 0.
#[inline(always)]
fn write_codes<const LOW: usize, const HIGH: usize, const UNIT: usize>(
    coded: &Coded,
    place: &Place<'_>,
    bytes: &mut [u8],
    rows: &[Row<'_>],
) {
    let (geometry, bases) = (place.geometry, coded.bases as usize);
    for base in 0..bases {
        let start = base * geometry.in_features;
        // Records without padding follow one another in a row as they do in packed order.
        if geometry.record == geometry.record_padded() {
            let all = start..start + geometry.in_features;
            write_run::<LOW, HIGH, UNIT>(place, (base, bases), bytes, rows, all, 0);
            continue;
        }
        let per_record = geometry.record_padded() / UNIT;
        for r in 0..geometry.records {
            let at = start + r * geometry.record;
            let codes = at..at + geometry.record_len(r);
            write_run::<LOW, HIGH, UNIT>(place, (base, bases), bytes, rows, codes, r * per_record);
        }
    }
}

/// Writes one run of codes of each row, from unit `first` of the panel on. The last unit may be ragged: codes
/// past the end of the run are 0.
#[inline(always)]
fn write_run<const LOW: usize, const HIGH: usize, const UNIT: usize>(
    place: &Place<'_>,
    (base, bases): (usize, usize),
    bytes: &mut [u8],
    rows: &[Row<'_>],
    codes: Range<usize>,
    first: usize,
) {
    let &Place { geometry, panels, panel } = place;
    let per_record = geometry.record_padded() / UNIT;
    let (record_bytes, head) = (geometry.record_bytes(panels), panels * PANEL * geometry.head);
    let (stride, unit_bytes) = (panels * LINE, panels * geometry.unit_bytes);
    let of_base = unit_bytes / bases;
    let blocks = codes.clone().step_by(BLOCK * UNIT).zip((first..).step_by(BLOCK));
    for (start, first) in blocks {
        let (record, unit) = (first / per_record, first % per_record);
        let at = record * record_bytes + head + unit * unit_bytes + base * of_base + panel * LINE;
        for (lane, row) in rows.iter().enumerate().take(PANEL) {
            let run = &row.codes[start..codes.end.min(start + BLOCK * UNIT)];
            let (mut at, mut left) = (at + lane * QUAD, per_record - unit);
            let mut put = |codes: &[u8; UNIT]| {
                put_unit::<LOW, HIGH, UNIT>(codes, &mut bytes[at..], stride);
                (at, left) = (at + unit_bytes, left - 1);
                if left == 0 {
                    (at, left) = (at + head, per_record);
                }
            };
            let (units, rest) = run.as_chunks::<UNIT>();
            units.iter().for_each(&mut put);
            if !rest.is_empty() {
                let mut last = [0; UNIT];
                last[..rest.len()].copy_from_slice(rest);
                put(&last);
            }
        }
    }
}

/// Writes one unit of one row: a lane of each of its lines, which are `stride` bytes apart.
#[inline(always)]
fn put_unit<const LOW: usize, const HIGH: usize, const UNIT: usize>(
    codes: &[u8; UNIT],
    out: &mut [u8],
    stride: usize,
) {
    let mut put = |line: usize, word: [u8; QUAD]| out[line * stride..][..QUAD].copy_from_slice(&word);
    if LOW == 8 {
        return put(0, std::array::from_fn(|j| codes[j]));
    }
    let (words, _) = codes.as_chunks::<8>();
    let mut low_lines = 0;
    for words in words.chunks_exact(4 / LOW.min(4)) {
        put(low_lines, join::<LOW>(words, |w| if HIGH != 0 { w & bytes_of(LOW) } else { w }));
        low_lines += 1;
    }
    if HIGH != 0 {
        put(low_lines, join::<HIGH>(words, |w| w >> LOW & bytes_of(HIGH)));
    }
}

/// The lowest bits of each byte of a word.
const fn bytes_of(bits: usize) -> u64 {
    ((1 << bits) - 1) * 0x0101_0101_0101_0101
}

/// A lane of a line of codes of `BITS` bits: `plane` takes them out of words of two quads. Quads are shifted
/// over each other; codes fit their bits (`codec`), so that nothing leaves its byte.
#[inline(always)]
fn join<const BITS: usize>(words: &[[u8; 8]], plane: impl Fn(u64) -> u64) -> [u8; QUAD] {
    let mut quads = 0;
    for (i, word) in words.iter().enumerate() {
        quads |= plane(u64::from_le_bytes(*word)) << (2 * BITS * i);
    }
    // The second quad of each word goes above the first. The top bits of the first half are free.
    ((quads | quads >> (32 - BITS)) as u32).to_le_bytes()
}

/// The inverse of [`write_codes`] for one row of one record and base.
fn read_units(bits: u8, codes: &mut [u8], bytes: &[u8], panels: usize, lane: usize, base: (usize, usize)) {
    let (low, high) = planes(bits);
    let low_columns = 32 / low;
    let unit = unit_columns(bits);
    let low_lines = unit / low_columns;
    let lines = low_lines + (high != 0) as usize;
    let word = |line: usize| {
        let at = line * panels * LINE + lane / PANEL * LINE + lane % PANEL * QUAD;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    for (u, codes) in codes.chunks_mut(unit).enumerate() {
        let first = (u * base.1 + base.0) * lines;
        for (line, codes) in codes.chunks_mut(low_columns).enumerate() {
            let word = word(first + line);
            for (i, codes) in codes.chunks_mut(QUAD).enumerate() {
                let q = (word >> (low * i)) & each(((1u64 << low) - 1) as u32);
                codes.copy_from_slice(&q.to_le_bytes()[..codes.len()]);
            }
        }
        if high != 0 {
            let word = word(first + low_lines);
            for (i, codes) in codes.chunks_mut(QUAD).enumerate() {
                let q = (word >> (high * i)) & each((1 << high) - 1);
                for (code, q) in codes.iter_mut().zip(q.to_le_bytes()) {
                    *code |= q << low;
                }
            }
        }
    }
}

fn read_coded(coded: &Coded, geometry: &Geometry, tile: Tile<'_>, lane: usize, row: &mut Row<'_>) {
    let panels = tile.panels;
    let lanes = panels * PANEL;
    let bases = coded.bases as usize;
    for (r, record) in tile.bytes.chunks(geometry.record_bytes(panels)).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        read_head(coded, head, lanes, lane, r, row);
        for base in 0..bases {
            let at = base * geometry.in_features + r * geometry.record;
            let codes = &mut row.codes[at..at + geometry.record_len(r)];
            read_units(coded.bits, codes, units, panels, lane, (base, bases));
        }
    }
}
