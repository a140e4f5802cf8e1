//! The bytes of a panel, written and read: how 16 decoded rows become lines and heads (`packed` draws
//! them), and the scalar reader of one row beside it.
//!
//! ```text
//! codes   8 codes of one row in a 64-bit word, two quads; words shifted over each other; the upper half over
//!         the lower one: a lane of a line
//! floats  the stored type, a word each
//! ```
//! First up to 64 words of each row side by side, then line after line. Both are loops that compilers
//! vectorise for each instruction set (`kernel::compiled`): so all of it is inline.

use std::ops::Range;

use super::head::{e8m0_of, read_head};
use super::packed::{Geometry, LINE, Tile, planes, unit_columns};
use super::{Coded, Float, Layout, Offset, PANEL, QUAD, Row, SUPER_BLOCK, ScaleType, Scales};
use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, quiet_bf16, quiet_f16};

/// Words of a row that are turned at a time: 4 KiB of 16 rows.
const WORDS: usize = 64;

/// The rows of one panel, to be written into their tile.
pub struct Panel<'a> {
    pub(super) layout: &'a Layout,
    pub(super) geometry: &'a Geometry,
    /// The bytes of the tile.
    pub(super) bytes: &'a mut [u8],
    /// How many panels it has, and which this one is.
    pub(super) panels: usize,
    pub(super) panel: usize,
    pub(super) rows: Rows<'a>,
}

/// The rows of a panel: at most 16, lanes past them become zero.
pub(super) enum Rows<'a> {
    /// Codes and scales, or floats.
    Decoded(&'a [Row<'a>]),
    /// The floats of a dense layout, little endian.
    Stored(&'a [&'a [u8]]),
}

impl Panel<'_> {
    /// Writes heads and lines.
    #[inline(always)]
    pub fn write(self) {
        let Panel { layout, geometry, bytes, panels, panel, rows } = self;
        if panel == 0 {
            fetch(bytes);
        }
        match (layout, rows) {
            (Layout::Dense(float), rows) => {
                write_dense(*float, geometry.in_features, bytes, (panels, panel), rows)
            }
            (Layout::Coded(_), Rows::Stored(_)) => {
                unreachable!("only floats are taken as they are stored (TileMut::fill)")
            }
            (Layout::Coded(coded), Rows::Decoded(rows)) => {
                let place = Place { geometry, panels, panel };
                write_heads(coded, &place, bytes, rows);
                write_codes(coded, &place, bytes, rows);
            }
        }
    }
}

/// Brings a tile into the caches, as zeros. Its memory is fresh, and a panel writes every fourth line of it:
/// processors fetch ahead of writes that are in order, and wait for the lines of others. (Reading would do for the
/// caches, but old kernels then give small pages where huge ones were asked for: the first touch would be no write.)
#[inline(always)]
fn fetch(tile: &mut [u8]) {
    tile.fill(0);
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
fn write_dense(
    float: Float,
    columns: usize,
    bytes: &mut [u8],
    (panels, panel): (usize, usize),
    rows: Rows<'_>,
) {
    let size = PANEL * float.bytes();
    let at = |column: usize| (column * panels + panel) * size;
    match (rows, float) {
        (Rows::Decoded(rows), float) => {
            let ty = match float {
                Float::F32 => ScaleType::F32,
                Float::F16 => ScaleType::F16,
                Float::Bf16 => ScaleType::Bf16,
            };
            put_floats(ty, rows, columns, |row| &row.floats, bytes, at);
        }
        (Rows::Stored(rows), Float::F32) => {
            let rows = rows.iter().map(|row| row.as_chunks().0);
            put_values::<4, _>(rows, columns, |b| u32::from_le_bytes(*b), bytes, at);
        }
        (Rows::Stored(rows), float) => {
            let rows = rows.iter().map(|row| row.as_chunks().0);
            let word = |b: &[u8; 2]| match float {
                Float::Bf16 => quiet_bf16(u16::from_le_bytes(*b)) as u32,
                _ => quiet_f16(u16::from_le_bytes(*b)) as u32,
            };
            put_values::<2, _>(rows, columns, word, bytes, at);
        }
    }
}

/// Writes values `0 .. count` of every row as stored.
#[inline(always)]
fn put_floats<'r>(
    ty: ScaleType,
    rows: &'r [Row<'_>],
    count: usize,
    values: impl Fn(&'r Row<'_>) -> &'r [f32] + Clone,
    bytes: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    let rows = rows.iter().map(values);
    match ty {
        ScaleType::F32 => put_values::<4, _>(rows, count, |v| v.to_bits(), bytes, at),
        ScaleType::F16 => put_values::<2, _>(rows, count, |v| f32_to_f16(*v) as u32, bytes, at),
        ScaleType::Bf16 => put_values::<2, _>(rows, count, |v| f32_to_bf16(*v) as u32, bytes, at),
        ScaleType::E8m0 => put_values::<1, _>(rows, count, |v| e8m0_of(*v) as u32, bytes, at),
    }
}

/// Writes values `0 .. count` of every row, `SIZE` bytes each, 16 side by side at `at(value)`. A lane past the
/// last row gets zero bytes.
#[inline(always)]
fn put_values<'r, const SIZE: usize, T: 'r>(
    rows: impl Iterator<Item = &'r [T]> + Clone,
    count: usize,
    word: impl Fn(&T) -> u32,
    bytes: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    // Lanes past the last row are never written: they stay zero.
    let mut words = [[0; WORDS]; PANEL];
    for first in (0..count).step_by(WORDS) {
        let len = WORDS.min(count - first);
        for (values, words) in rows.clone().zip(&mut words) {
            let values = values.get(first..first + len).unwrap_or(&[]);
            words.iter_mut().zip(values).for_each(|(to, value)| *to = word(value));
        }
        for i in 0..len {
            let place = &mut bytes[at(first + i)..][..PANEL * SIZE];
            put_lanes::<SIZE>(place, &words.each_ref().map(|words| words[i]));
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

/// Writes the lowest `SIZE` bytes of a word of each row side by side. They are joined to 64 bits first: each store may
/// wait for its line, and only so many can wait at a time.
#[inline(always)]
fn put_lanes<const SIZE: usize>(place: &mut [u8], words: &[u32; PANEL]) {
    for (bytes, words) in place.as_chunks_mut().0.iter_mut().zip(words.chunks_exact(8 / SIZE)) {
        let joined = words.iter().rev().fold(0, |joined, word| joined << (8 * SIZE) | *word as u64);
        *bytes = joined.to_le_bytes();
    }
}

// ---- scales -----------------------------------------------------------------------------------

/// Writes the heads of all records of a panel.
#[inline(always)]
fn write_heads<'r>(coded: &Coded, place: &Place<'_>, bytes: &mut [u8], rows: &'r [Row<'_>]) {
    let &Place { geometry, panels, panel } = place;
    let (lanes, lane, record) = (panels * PANEL, panel * PANEL, geometry.record_bytes(panels));
    // The only record of a row has a scale for each base; others have one.
    let (ty, count, step) = match coded.scales {
        Scales::Row => (ScaleType::F32, coded.bases as usize, lanes * 4),
        _ => (coded.scale_type, geometry.records, record),
    };
    let size = ty.bytes();
    let kinds = match coded.scales {
        Scales::Group { offset: Offset::Minimum, .. } | Scales::TwoLevel { minimum: true, .. } => 2,
        _ => 1,
    };
    // Loops, so that the code is there once.
    for kind in 0..kinds {
        let start = (kind * lanes + lane) * size;
        let values = |row: &'r Row<'_>| if kind == 0 { &*row.scales } else { &*row.minimums };
        put_floats(ty, rows, count, values, bytes, |i| i * step + start);
    }
    match coded.scales {
        Scales::Group { offset: Offset::Zero, .. } => {
            let at = |r: usize| r * record + lanes * size + lane;
            put_bytes(rows, |row| &row.zeros, |zero| zero, (1, 0), bytes, at);
        }
        Scales::TwoLevel { len, .. } => {
            let groups = SUPER_BLOCK / len;
            for kind in 0..kinds {
                let start = lanes * (kinds * size + kind * groups) + lane;
                let values = |row: &'r Row<'_>| if kind == 0 { &*row.sub_scales } else { &*row.sub_minimums };
                put_bytes(rows, values, |sub| sub as u8, (groups, lanes), bytes, |r| r * record + start);
            }
        }
        _ => {}
    }
}

/// Writes bytes of every row, 16 side by side: `count` of each record, `step` bytes apart, the first at
/// `at(record)`.
#[inline(always)]
fn put_bytes<'r, T: Copy + 'r>(
    rows: &'r [Row<'_>],
    values: impl Fn(&'r Row<'_>) -> &'r [T],
    byte: impl Fn(T) -> u8,
    (count, step): (usize, usize),
    bytes: &mut [u8],
    at: impl Fn(usize) -> usize,
) {
    let len = rows.first().map_or(0, |row| values(row).len());
    // Lanes past the last row stay zero.
    let mut turned = [[0; WORDS]; PANEL];
    // Four rows in a word: vectors of words, where 16 rows at once would be single bytes.
    let mut fours = [[0u32; WORDS]; PANEL / 4];
    // Counted: a division for each byte would take as long as all the codes.
    let (mut record, mut i) = (0, 0);
    for first in (0..len).step_by(WORDS) {
        let len = WORDS.min(len - first);
        for (row, turned) in rows.iter().zip(&mut turned) {
            turned.iter_mut().zip(&values(row)[first..first + len]).for_each(|(to, from)| *to = byte(*from));
        }
        for (rows, fours) in turned.as_chunks::<4>().0.iter().zip(&mut fours) {
            for (k, four) in fours.iter_mut().enumerate() {
                *four = u32::from_le_bytes([rows[0][k], rows[1][k], rows[2][k], rows[3][k]]);
            }
        }
        for k in 0..len {
            let place = bytes[at(record) + i * step..][..PANEL].as_chunks_mut().0;
            for (bytes, four) in place.iter_mut().zip(&fours) {
                *bytes = four[k].to_le_bytes();
            }
            i += 1;
            if i == count {
                (record, i) = (record + 1, 0);
            }
        }
    }
}

// ---- codes ------------------------------------------------------------------------------------

/// Replicates a mask of at most 8 bits to the four bytes of a lane.
const fn each(mask: u32) -> u32 {
    mask * 0x0101_0101
}

/// Writes the codes of a panel.
#[inline(always)]
fn write_codes(coded: &Coded, place: &Place<'_>, bytes: &mut [u8], rows: &[Row<'_>]) {
    let (geometry, bases, unit) = (place.geometry, coded.bases as usize, place.geometry.unit);
    // Records without padding follow one another in a row as they do in packed order.
    let runs = if geometry.record == geometry.record_padded() { 1 } else { geometry.records };
    for base in 0..bases {
        let start = base * geometry.in_features;
        for r in 0..runs {
            let at = start + r * geometry.record;
            let len = if runs == 1 { geometry.in_features } else { geometry.record_len(r) };
            let first = r * (geometry.record_padded() / unit);
            write_run(coded, place, base, bytes, rows, at..at + len, first);
        }
    }
}

/// Writes one run of codes of each row, from unit `first` of the panel on. The last unit may be ragged: codes
/// past the end of the run are 0.
#[inline(always)]
fn write_run(
    coded: &Coded,
    place: &Place<'_>,
    base: usize,
    bytes: &mut [u8],
    rows: &[Row<'_>],
    codes: Range<usize>,
    first: usize,
) {
    let &Place { geometry, panels, panel } = place;
    let per_record = geometry.record_padded() / geometry.unit;
    let (record_bytes, head) = (geometry.record_bytes(panels), panels * PANEL * geometry.head);
    let (stride, unit_bytes) = (panels * LINE, panels * geometry.unit_bytes);
    let of_base = unit_bytes / coded.bases as usize;
    let lines = of_base / stride;
    // Units of a row that are turned at a time.
    let units = WORDS / lines;
    let columns = units * geometry.unit;
    // Lanes past the last row stay zero.
    let mut words = [[0; WORDS]; PANEL];
    for (start, first) in codes.clone().step_by(columns).zip((first..).step_by(units)) {
        let end = codes.end.min(start + columns);
        for (row, words) in rows.iter().zip(&mut words) {
            put_row(coded.bits, &row.codes[start..end], words);
        }
        let (record, unit) = (first / per_record, first % per_record);
        let mut at = record * record_bytes + head + unit * unit_bytes + base * of_base + panel * LINE;
        let mut left = per_record - unit;
        for unit in 0..(end - start).div_ceil(geometry.unit) {
            for line in 0..lines {
                let words = words.each_ref().map(|words| words[(unit * lines + line) % WORDS]);
                put_lanes::<4>(&mut bytes[at + line * stride..][..LINE], &words);
            }
            (at, left) = (at + unit_bytes, left - 1);
            if left == 0 {
                (at, left) = (at + head, per_record);
            }
        }
    }
}

/// A lane of each line of some units of one row; a ragged last unit is filled up with zeros.
#[inline(always)]
fn put_row(bits: u8, codes: &[u8], words: &mut [u32; WORDS]) {
    let whole = codes.len() - codes.len() % unit_columns(bits);
    let mut last = [0; 32];
    let rest = &codes[whole..];
    last[..rest.len()].copy_from_slice(rest);
    let rest = &last[..if rest.is_empty() { 0 } else { unit_columns(bits) }];
    let mut words = &mut words[..];
    // A loop, so that the code is there once.
    for codes in [&codes[..whole], rest] {
        let put = match bits {
            1 => put_units::<1, 0, 32>(codes, words),
            2 => put_units::<2, 0, 16>(codes, words),
            3 => put_units::<2, 1, 32>(codes, words),
            4 => put_units::<4, 0, 8>(codes, words),
            5 => put_units::<4, 1, 32>(codes, words),
            6 => put_units::<4, 2, 16>(codes, words),
            _ => put_units::<8, 0, 4>(codes, words),
        };
        words = &mut words[put..];
    }
}

/// Words of whole units of `UNIT` codes: a lower plane of `LOW` bits and an upper one of `HIGH`, where that is not
/// 0. Gives how many.
#[inline(always)]
fn put_units<const LOW: usize, const HIGH: usize, const UNIT: usize>(
    codes: &[u8],
    words: &mut [u32],
) -> usize {
    let units = codes.as_chunks::<UNIT>().0;
    let lines = UNIT * LOW / 32 + (HIGH != 0) as usize;
    if HIGH == 0 {
        for (word, codes) in words.iter_mut().zip(units) {
            *word = match LOW {
                8 => u32::from_le_bytes(std::array::from_fn(|j| codes[j])),
                _ => join::<LOW>(codes.as_chunks().0, |w| w),
            };
        }
    } else {
        for (words, codes) in words.chunks_exact_mut(lines).zip(units) {
            let codes = codes.as_chunks::<8>().0;
            for (word, codes) in words.iter_mut().zip(codes.chunks_exact(4 / LOW.min(4))) {
                *word = join::<LOW>(codes, |w| w & bytes_of(LOW));
            }
            words[lines - 1] = join::<HIGH>(codes, |w| w >> LOW & bytes_of(HIGH));
        }
    }
    units.len() * lines
}

/// The lowest bits of each byte of a word.
const fn bytes_of(bits: usize) -> u64 {
    ((1 << bits) - 1) * 0x0101_0101_0101_0101
}

/// A lane of a line of codes of `BITS` bits: `plane` takes them out of words of two quads. Quads are shifted
/// over each other; codes fit their bits (`codec`), so that nothing leaves its byte.
#[inline(always)]
fn join<const BITS: usize>(words: &[[u8; 8]], plane: impl Fn(u64) -> u64) -> u32 {
    let mut quads = 0;
    for (i, word) in words.iter().enumerate() {
        quads |= plane(u64::from_le_bytes(*word)) << (2 * BITS * i);
    }
    // The second quad of each word goes above the first. The top bits of the first half are free.
    (quads | quads >> (32 - BITS)) as u32
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
