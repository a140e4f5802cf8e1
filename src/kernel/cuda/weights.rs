//! Weights on a device: the bytes that the CUDA kernels read.
//!
//! ```text
//! matrix = strip, strip, ...                        16 rows of W each; rows past the last are 0
//! strip  = codes, heads, sums                       filled up to a multiple of 128 bytes
//! codes  = unit, unit, ...                          base after base; all records of a row, each of them
//!                                                   padded to a multiple of 16 columns
//! unit   = line, line, ... line of the upper plane  as many columns as make whole lines of both planes,
//!                                                   at least 64: 8 and 4 bits 64; 2 and 6 bits 128; 1, 3
//!                                                   and 5 bits 256
//! line   = 32 lanes of 16 bytes                     16 rows x 256 / bits columns of one plane
//! heads  = head of every record                     [16 scales] [16 minima or zeros], as the CPU's panels
//!                                                   have them (`layout::packed`), for 16 rows
//! sums   = [base][group][16 rows] i32               128 x the sum of the values: what unsigned codes of x
//!                                                   need, and only there
//! ```
//! A lane's 16 bytes are what a warp's lane feeds to `mma.sync` as the matrix A, without any exchange
//! between lanes. Lane l = 4 g + t holds the rows g and g + 8; of every step of 32 columns it holds the
//! columns 4 t .. 4 t + 3 of both halves:
//! ```text
//! word 2 half + hi, byte b, bits width * i ..    =  code of row g + 8 hi, column 32 i + 16 half + 4 t + b
//! ```
//! so that one shift and mask of a word gives a register of A: `a[2 half + hi]` of m16n8k32 for step i, and
//! `a[hi]` of m16n8k16 for one half of it. Codes of two planes (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2 bits) lie in
//! lines of the lower width, then in one of the upper. Codes of 8 bits are stored less 128, as signed bytes.
//!
//! Dense weights are k-major: `[strip][column][16 rows]`, in their own type.

use half::{bf16, f16};

use crate::error::{Result, fail};
use crate::layout::head::{read_head, write_head};
use crate::layout::packed::{Geometry, planes};
use crate::layout::{Coded, Float, Layout, Packed, QUAD, Row, Scales};
use crate::limits::{FEATURES_MAX, INT32_COLUMNS};

/// Rows of W in a strip.
pub const STRIP: usize = 16;
/// Columns of a half-step: what one mma of depth 16 takes. No half-step has columns of two groups.
pub const HALF: usize = 16;
/// Bytes of a line.
pub const LINE: usize = 512;
/// A strip begins at a multiple of so many bytes.
const ALIGNMENT: usize = 128;

/// Where everything lies in the weights of one matrix: a layout and two numbers say it all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// How the weights are coded.
    pub layout: Layout,
    /// Rows of W.
    pub out_features: usize,
    /// Columns of W.
    pub in_features: usize,
    /// Whether there are sums of weights, for unsigned codes of x.
    pub unsigned: bool,
    /// Columns of a full record (what shares a scale), without padding.
    pub record: usize,
    /// Records of a row; the last may be short.
    pub records: usize,
    /// Columns of a full record, padded to half-steps.
    pub record_padded: usize,
    /// Columns whose products are summed in an int32: a record, a group inside it, or what an int32 holds.
    pub group: usize,
    /// Groups of a full record.
    pub record_groups: usize,
    /// Groups of a row.
    pub groups: usize,
    /// Columns of a unit; dense: 1.
    pub unit: usize,
    /// Units of a row of one base.
    pub units: usize,
    /// Bytes of a unit for a strip.
    pub unit_bytes: usize,
    /// Bytes of a record's head for a strip.
    pub head_bytes: usize,
    /// Where in a strip the heads begin.
    pub heads: usize,
    /// Where in a strip the sums begin.
    pub sums: usize,
    /// Bytes of a strip.
    pub strip_bytes: usize,
}

/// Columns of a unit.
pub const fn unit_columns(bits: u8) -> usize {
    let (low, high) = planes(bits);
    let narrow = if high == 0 { low } else { high };
    if narrow == 8 { 64 } else { 256 / narrow }
}

impl Form {
    /// The form of a matrix. `layout` is valid for that many columns ([`Layout::check`]).
    pub fn new(layout: &Layout, out_features: usize, in_features: usize, unsigned: bool) -> Result<Form> {
        if out_features == 0 || in_features == 0 {
            return Err(fail!(InvalidArgument, "{out_features} x {in_features}: both must be at least 1"));
        }
        if out_features as u64 > FEATURES_MAX || in_features as u64 > FEATURES_MAX {
            return Err(fail!(
                Unsupported,
                "{out_features} x {in_features}: at most {FEATURES_MAX} features"
            ));
        }
        let geometry = Geometry::new(layout, in_features);
        let form = Form {
            layout: *layout,
            out_features,
            in_features,
            unsigned,
            record: geometry.record,
            records: geometry.records,
            record_padded: geometry.record,
            group: geometry.record,
            record_groups: 1,
            groups: 1,
            unit: 1,
            units: in_features,
            unit_bytes: 0,
            head_bytes: STRIP * geometry.head,
            heads: 0,
            sums: 0,
            strip_bytes: 0,
        };
        let form = match layout {
            Layout::Dense(float) => form.dense(*float),
            Layout::Coded(coded) => form.coded(coded),
        };
        form.and_then(|form| form.strip_bytes.checked_mul(form.strips()).map(|_| form))
            .ok_or_else(|| fail!(OutOfMemory, "{out_features} x {in_features} weights on a device"))
    }

    fn dense(self, float: Float) -> Option<Form> {
        let unit_bytes = STRIP * float.bytes();
        let codes = unit_bytes.checked_mul(self.in_features)?;
        Some(Form {
            unit_bytes,
            heads: codes,
            sums: codes,
            strip_bytes: codes.checked_next_multiple_of(ALIGNMENT)?,
            ..self
        })
    }

    fn coded(self, coded: &Coded) -> Option<Form> {
        let bases = coded.bases as usize;
        let group = match coded.scales {
            Scales::TwoLevel { len, .. } => len,
            _ => self.record.min(INT32_COLUMNS),
        };
        let record_groups = self.record.div_ceil(group);
        let last = self.in_features - (self.records - 1) * self.record;
        let groups = (self.records - 1) * record_groups + last.div_ceil(group);
        let record_padded = self.record.next_multiple_of(HALF);
        let padded = (self.records - 1).checked_mul(record_padded)? + last.next_multiple_of(HALF);
        let unit = unit_columns(coded.bits);
        let (units, unit_bytes) = (padded.div_ceil(unit), unit * coded.bits as usize * STRIP / 8);
        let heads = units.checked_mul(unit_bytes)?.checked_mul(bases)?;
        let sums = heads.checked_add(self.records.checked_mul(self.head_bytes)?)?;
        let sum_bytes = if self.unsigned { bases.checked_mul(groups)?.checked_mul(4 * STRIP)? } else { 0 };
        Some(Form {
            group,
            record_groups,
            groups,
            record_padded,
            unit,
            units,
            unit_bytes,
            heads,
            sums,
            strip_bytes: sums.checked_add(sum_bytes)?.checked_next_multiple_of(ALIGNMENT)?,
            ..self
        })
    }

    /// Strips of the matrix.
    pub fn strips(&self) -> usize {
        self.out_features.div_ceil(STRIP)
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.strips() * self.strip_bytes
    }

    /// Columns of record `r`, without padding.
    fn record_len(&self, r: usize) -> usize {
        (self.in_features - r * self.record).min(self.record)
    }

    /// Writes one strip of packed weights into its [`Form::strip_bytes`] bytes. `row` is of
    /// [`Packed::row`]. A whole matrix never needs to be in memory twice.
    pub fn write_strip(&self, packed: &Packed, strip: usize, row: &mut Row, out: &mut [u8]) {
        assert!(*packed.layout() == self.layout && packed.in_features() == self.in_features);
        assert!(packed.out_features() == self.out_features && out.len() == self.strip_bytes);
        out.fill(0);
        let first = strip * STRIP;
        for lane in 0..STRIP.min(self.out_features - first) {
            packed.read_row(first + lane, row);
            self.write_row(lane, row, out);
        }
    }

    /// Writes one row into its lane of a strip that holds zeros there.
    pub fn write_row(&self, lane: usize, row: &Row, out: &mut [u8]) {
        let coded = match &self.layout {
            Layout::Dense(float) => return write_dense(*float, lane, row, out),
            Layout::Coded(coded) => coded,
        };
        for r in 0..self.records {
            let head = &mut out[self.heads + r * self.head_bytes..][..self.head_bytes];
            write_head(coded, head, STRIP, lane, r, row);
        }
        for base in 0..coded.bases as usize {
            let at = base * self.units * self.unit_bytes;
            let plane = &mut out[at..at + self.units * self.unit_bytes];
            let codes = &row.codes[base * self.in_features..][..self.in_features];
            for (r, codes) in codes.chunks(self.record).enumerate() {
                let pad = if coded.bits == 8 { 128 } else { 0 };
                for (q, quad) in codes.chunks(QUAD).enumerate() {
                    let mut word = [pad; QUAD];
                    word[..quad.len()].copy_from_slice(quad);
                    let column = r * self.record_padded + q * QUAD;
                    self.put(coded.bits, plane, lane, column, u32::from_le_bytes(word));
                }
            }
        }
        if self.unsigned {
            for base in 0..coded.bases as usize {
                let codes = &row.codes[base * self.in_features..][..self.in_features];
                for (r, codes) in codes.chunks(self.record).enumerate() {
                    for (j, codes) in codes.chunks(self.group).enumerate() {
                        let group = base * self.groups + r * self.record_groups + j;
                        let sum = 128 * codes.iter().map(|&c| coded.values.of(c)).sum::<i32>();
                        let at = self.sums + (group * STRIP + lane) * 4;
                        out[at..at + 4].copy_from_slice(&sum.to_le_bytes());
                    }
                }
            }
        }
    }

    /// Where the quad of packed column `column` lies in a line of a plane of `width` bits: the byte of its
    /// word inside the unit, and the shift of its codes.
    fn place(&self, width: usize, lane: usize, column: usize) -> (usize, usize) {
        let columns = 256 / width;
        let (line, column) = (column % self.unit / columns, column % columns);
        let (step, half, t) = (column / 32, column / HALF % 2, column / QUAD % 4);
        let (g, hi) = (lane % 8, lane / 8);
        (line * LINE + (g * 4 + t) * 16 + (2 * half + hi) * 4, width * step)
    }

    /// Puts four codes, the bytes of `quad`, into a plane of zeros.
    fn put(&self, bits: u8, plane: &mut [u8], lane: usize, column: usize, quad: u32) {
        let (low, high) = planes(bits);
        let quad = if bits == 8 { quad ^ each(128) } else { quad };
        let unit = &mut plane[column / self.unit * self.unit_bytes..][..self.unit_bytes];
        let mut or = |at: usize, bits: u32| {
            let word = &mut unit[at..at + 4];
            let old = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            word.copy_from_slice(&(old | bits).to_le_bytes());
        };
        let (at, shift) = self.place(low, lane, column);
        or(at, (quad & mask(low)) << shift);
        if high != 0 {
            let (at, shift) = self.place(high, lane, column);
            or(self.upper(low) + at, (quad >> low & mask(high)) << shift);
        }
    }

    /// Where in a unit the line of the upper plane begins.
    fn upper(&self, low: usize) -> usize {
        self.unit * low / 256 * LINE
    }

    /// Reads a row back from its lane of a strip: the reader beside the writer. `row` was made for this
    /// layout; columns come in packed order.
    pub fn read_row(&self, strip: &[u8], lane: usize, row: &mut Row) {
        let coded = match &self.layout {
            Layout::Dense(float) => return read_dense(*float, lane, row, strip),
            Layout::Coded(coded) => coded,
        };
        for r in 0..self.records {
            let head = &strip[self.heads + r * self.head_bytes..][..self.head_bytes];
            read_head(coded, head, STRIP, lane, r, row);
        }
        let (low, high) = planes(coded.bits);
        for base in 0..coded.bases as usize {
            let plane = &strip[base * self.units * self.unit_bytes..][..self.units * self.unit_bytes];
            for r in 0..self.records {
                for q in 0..self.record_len(r).div_ceil(QUAD) {
                    let column = r * self.record_padded + q * QUAD;
                    let unit = &plane[column / self.unit * self.unit_bytes..][..self.unit_bytes];
                    let word =
                        |at: usize| u32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
                    let (at, shift) = self.place(low, lane, column);
                    let mut quad = word(at) >> shift & mask(low);
                    if high != 0 {
                        let (at, shift) = self.place(high, lane, column);
                        quad |= (word(self.upper(low) + at) >> shift & mask(high)) << low;
                    }
                    if coded.bits == 8 {
                        quad ^= each(128);
                    }
                    let first = r * self.record + q * QUAD;
                    let len = QUAD.min(self.record_len(r) - q * QUAD);
                    let codes = &mut row.codes[base * self.in_features + first..][..len];
                    codes.copy_from_slice(&quad.to_le_bytes()[..len]);
                }
            }
        }
    }

    /// `128 x` the sum of the values of a group, as a strip with sums has it.
    pub fn read_sum(&self, strip: &[u8], lane: usize, base: usize, group: usize) -> i32 {
        let at = self.sums + ((base * self.groups + group) * STRIP + lane) * 4;
        i32::from_le_bytes([strip[at], strip[at + 1], strip[at + 2], strip[at + 3]])
    }
}

/// A byte in all four bytes of a word.
const fn each(byte: u32) -> u32 {
    byte * 0x0101_0101
}

/// The bits of a plane's codes in a quad.
const fn mask(width: usize) -> u32 {
    each(((1u64 << width) - 1) as u32)
}

fn write_dense(float: Float, lane: usize, row: &Row, out: &mut [u8]) {
    let size = float.bytes();
    for (w, column) in row.floats.iter().zip(out.chunks_exact_mut(STRIP * size)) {
        let place = &mut column[lane * size..][..size];
        match float {
            Float::F32 => place.copy_from_slice(&w.to_le_bytes()),
            Float::F16 => place.copy_from_slice(&f16::from_f32(*w).to_le_bytes()),
            Float::Bf16 => place.copy_from_slice(&bf16::from_f32(*w).to_le_bytes()),
        }
    }
}

fn read_dense(float: Float, lane: usize, row: &mut Row, strip: &[u8]) {
    let size = float.bytes();
    for (w, column) in row.floats.iter_mut().zip(strip.chunks_exact(STRIP * size)) {
        let b = &column[lane * size..];
        *w = match float {
            Float::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Float::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Float::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::packed::RowMatrix;
    use crate::layout::{Offset, SUPER_BLOCK, ScaleType, Values};

    static TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

    /// Every width under every scheme.
    fn layouts() -> Vec<Layout> {
        let mut all: Vec<Layout> = [Float::F32, Float::F16, Float::Bf16].map(Layout::Dense).to_vec();
        let widths = [(2, 1), (3, 4), (4, 8), (5, 16), (6, 32), (8, 128)];
        let mut values: Vec<(u8, Values)> = widths.map(|(bits, zero)| (bits, Values::Offset(zero))).to_vec();
        values.extend([(1, Values::Sign), (4, Values::Table(&TABLE))]);
        for (bits, values) in values {
            let mut push = |scales, scale_type, bases| {
                all.push(Layout::Coded(Coded { bits, values, scales, scale_type, bases }));
            };
            push(Scales::Row, ScaleType::F32, 1);
            for len in [6, 16, 32, 48, 100] {
                push(Scales::Group { len, offset: Offset::None }, ScaleType::F16, 1);
            }
            push(Scales::Group { len: 32, offset: Offset::Minimum }, ScaleType::Bf16, 1);
            push(Scales::Group { len: 32, offset: Offset::None }, ScaleType::E8m0, 1);
            for len in [16, 32] {
                push(Scales::TwoLevel { len, minimum: len == 32 }, ScaleType::F16, 1);
            }
            if bits == 2 {
                push(Scales::Row, ScaleType::F32, 3);
            }
            if matches!(values, Values::Offset(_)) {
                all.push(Layout::groups(bits, 0, 32, Offset::Zero));
            }
        }
        all
    }

    fn matrix(layout: Layout, rows: usize, columns: usize) -> Result<RowMatrix> {
        let mut seed = 1u32;
        let mut next = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 16
        };
        let mut all = vec![];
        for _ in 0..rows {
            let mut row = Row::new(layout, columns)?;
            let bits = match layout {
                Layout::Coded(coded) => coded.bits,
                Layout::Dense(_) => 8,
            };
            row.codes.iter_mut().for_each(|c| *c = (next() & ((1 << bits) - 1)) as u8);
            row.floats.iter_mut().for_each(|w| *w = (next() % 64) as f32 - 32.0);
            row.scales.iter_mut().for_each(|s| *s = 2f32.powi(next() as i32 % 8 - 4));
            row.minimums.iter_mut().for_each(|s| *s = (next() % 64) as f32 - 32.0);
            row.zeros.iter_mut().for_each(|z| *z = (next() & ((1 << bits) - 1)) as u8);
            row.sub_scales.iter_mut().for_each(|s| *s = next() as i8);
            row.sub_minimums.iter_mut().for_each(|s| *s = next() as i8);
            all.push(row);
        }
        Ok(RowMatrix { layout, in_features: columns, rows: all })
    }

    #[test]
    fn rows_come_back_and_a_lane_has_its_fragments() -> Result<()> {
        for layout in layouts() {
            let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
            for (n, k) in [(1, 256), (17, 512), (33, 1024), (16, 100), (5, 333), (40, 130)] {
                if two_level && k % SUPER_BLOCK != 0 {
                    continue;
                }
                let source = matrix(layout, n, k)?;
                let packed = Packed::new(&source)?;
                let form = Form::new(&layout, n, k, !matches!(layout, Layout::Dense(_)))?;
                let (mut row, mut strip) = (packed.row()?, vec![0xa5; form.strip_bytes]);
                for s in 0..form.strips() {
                    form.write_strip(&packed, s, &mut row, &mut strip);
                    for lane in 0..STRIP {
                        let mut back = Row::new(layout, k)?;
                        form.read_row(&strip, lane, &mut back);
                        let Some(want) = source.rows.get(s * STRIP + lane) else { continue };
                        assert_eq!(&back, want, "{layout:?} {n} x {k}: row {}", s * STRIP + lane);
                        fragments(&form, &strip, lane, want);
                    }
                }
            }
        }
        Ok(())
    }

    /// The text of the head, word by word: where a code is looked for by a lane of a warp.
    fn fragments(form: &Form, strip: &[u8], row: usize, want: &Row) {
        let Layout::Coded(coded) = form.layout else { return };
        let (low, high) = planes(coded.bits);
        for k in 0..form.in_features {
            let column = k / form.record * form.record_padded + k % form.record;
            let unit = &strip[column / form.unit * form.unit_bytes..][..form.unit_bytes];
            let code = |lines: &[u8], width: usize| {
                let in_unit = column % form.unit;
                let line = &lines[in_unit / (256 / width) * 512..];
                let (i, half, t, b) =
                    (in_unit % (256 / width) / 32, in_unit / 16 % 2, in_unit / 4 % 4, in_unit % 4);
                let lane = row % 8 * 4 + t;
                let word = &line[lane * 16 + (2 * half + row / 8) * 4..];
                (word[b] >> (width * i)) as usize & ((1 << width) - 1)
            };
            let mut got = code(unit, low);
            if high != 0 {
                got |= code(&unit[form.unit / (256 / low) * 512..], high) << low;
            }
            let sign = if coded.bits == 8 { 128 } else { 0 };
            assert_eq!(got as u8, want.codes[k] ^ sign, "{coded:?}: row {row}, column {k}");
        }
        for g in 0..form.groups {
            let (r, j) = (g / form.record_groups, g % form.record_groups);
            let first = r * form.record + j * form.group;
            let end = (first + form.group).min((r + 1) * form.record).min(form.in_features);
            let sum: i32 = (first..end).map(|k| coded.values.of(want.codes[k])).sum();
            assert_eq!(form.read_sum(strip, row, 0, g), 128 * sum);
        }
    }

    #[test]
    fn memory_is_close_to_what_is_stored() -> Result<()> {
        let cases = [
            (Layout::rows(2, Values::Offset(1)), 2560, 2.0 / 8.0),
            (Layout::rows(1, Values::Sign), 2560, 1.0 / 8.0),
            (Layout::groups(4, 8, 32, Offset::None), 4096, 18.0 / 32.0),
            (Layout::groups(4, 8, 32, Offset::Minimum), 576, 20.0 / 32.0),
            (Layout::two_level(4, 0, 32, true), 4096, 148.0 / 256.0),
            (Layout::two_level(6, 32, 16, false), 4096, 210.0 / 256.0),
        ];
        for (layout, columns, stored) in cases {
            let form = Form::new(&layout, 64, columns, false)?;
            let ratio = form.bytes() as f64 / (64.0 * columns as f64 * stored);
            assert!((1.0..1.03).contains(&ratio), "{layout:?} x {columns}: {ratio}");
        }
        Ok(())
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let layout = Layout::Dense(Float::F32);
        let max = FEATURES_MAX as usize;
        assert!(Form::new(&layout, 0, 1, false).is_err() && Form::new(&layout, 1, max + 1, false).is_err());
        let huge = Form::new(&layout, max, max, false).is_err_and(|e| e.text().contains("on a device"));
        assert!(huge || usize::BITS > 64 || (max as u128 * max as u128 * 4) <= usize::MAX as u128);
    }
}
