//! Packed panels: the bytes that kernels read.
//!
//! ```text
//! matrix  = tile, tile, ..., last tile              64 rows each, the last 16, 32, 48 or 64
//! tile    = record, record, ...                     P panels of 16 rows side by side (P = 4, last 1..4)
//! record  = head, unit, unit, ...                   the columns that share a scale
//! head    = [P*16 scales] [P*16 minima or zeros]    Scales::Group, as stored (f16, bf16, f32, E8M0)
//!         | [P*16 d] [P*16 dmin] [P*16 sub-scales i8] x groups [P*16 sub-minima i8] x groups   TwoLevel
//!         | [P*16 scales f32] x bases               Scales::Row: one record holds the whole row
//! unit    = line x P, line x P, ...                 for each base; a line is 64 bytes:
//! line    = 16 lanes of 4 bytes                     lane = row of the panel
//! ```
//! A line of `b`-bit codes holds `32 / b` columns of 16 rows. The bits `b i ..` of byte `j` of a lane
//! are the code of column `4 i + j`, so that one shift and mask gives the codes of four columns in
//! the order VNNI and sdot want them:
//! ```text
//! 8 bits: column j                     4 bits: low nibble column j, high nibble column 4 + j
//! 2 bits: columns j, 4+j, 8+j, 12+j    1 bit:  columns j, 4+j, ..., 28+j
//! ```
//! Widths 3, 5 and 6 are two planes (2+1, 4+1, 4+2); a unit is then as many columns as fill one line
//! of the upper plane: first the lines of the lower plane, then the one of the upper.
//! Columns of a record are padded to whole units with codes that meet activations of 0.
//!
//! Dense layouts have no units: column after column, P*16 floats.
//!
//! A tile is one sequential stream of memory: four panels read as four streams reach 57 % of the
//! DRAM bandwidth, as one stream 92 %.

use std::sync::Arc;

use half::{bf16, f16};

use super::{
    Coded, Float, Layout, Matrix, Offset, PANEL, QUAD, Row, SUPER_BLOCK, ScaleType, Scales, TILE, TILE_PANELS,
};
use crate::error::{Result, fail};
use crate::limits::FEATURES_MAX;
use crate::memory::{Block, Heap, filled, reserve};

/// Bytes of a line: 16 lanes of 4 bytes.
pub const LINE: usize = PANEL * QUAD;

/// Where everything lies, derived from a layout and the number of columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Columns of the matrix.
    pub in_features: usize,
    /// Columns of a full record, without padding.
    pub record: usize,
    /// Records of a row; the last may be short.
    pub records: usize,
    /// Columns of a unit; dense: 1.
    pub unit: usize,
    /// Bytes of a unit for one panel: its lines, for all bases. Dense: one column.
    pub unit_bytes: usize,
    /// Bytes of a record's head for one row.
    pub head: usize,
}

impl Geometry {
    /// The geometry of a matrix of that many columns.
    pub fn new(layout: &Layout, in_features: usize) -> Geometry {
        match layout {
            Layout::Dense(float) => Geometry {
                in_features,
                record: in_features,
                records: 1,
                unit: 1,
                unit_bytes: PANEL * float.bytes(),
                head: 0,
            },
            Layout::Coded(coded) => {
                let (record, head) = match coded.scales {
                    Scales::Row => (in_features, 4 * coded.bases as usize),
                    Scales::Group { len, offset } => {
                        let scale = coded.scale_type.bytes();
                        let offset = match offset {
                            Offset::None => 0,
                            Offset::Minimum => scale,
                            Offset::Zero => 1,
                        };
                        (len, scale + offset)
                    }
                    Scales::TwoLevel { len, minimum } => {
                        let level = coded.scale_type.bytes() + SUPER_BLOCK / len;
                        (SUPER_BLOCK, level * (1 + minimum as usize))
                    }
                };
                let (low, high) = planes(coded.bits);
                let unit = unit_columns(coded.bits);
                let lines = unit * low / 32 + (high != 0) as usize;
                Geometry {
                    in_features,
                    record,
                    records: in_features.div_ceil(record),
                    unit,
                    unit_bytes: lines * LINE * coded.bases as usize,
                    head,
                }
            }
        }
    }

    /// Columns of record `r`, without padding.
    pub fn record_len(&self, r: usize) -> usize {
        (self.in_features - r * self.record).min(self.record)
    }

    /// Columns of a full record, padded to units.
    pub fn record_padded(&self) -> usize {
        self.record.next_multiple_of(self.unit)
    }

    /// Bytes of a full record in a tile of `panels`.
    pub fn record_bytes(&self, panels: usize) -> usize {
        panels * (PANEL * self.head + self.record_padded() / self.unit * self.unit_bytes)
    }

    /// Columns of a row in packed order, padding included: the length of a row of activation codes.
    pub fn padded(&self) -> usize {
        let last = self.record_len(self.records - 1).next_multiple_of(self.unit);
        (self.records - 1) * self.record_padded() + last
    }

    /// Packed position of column `k`.
    pub fn position(&self, k: usize) -> usize {
        k / self.record * self.record_padded() + k % self.record
    }

    /// Bytes of a tile of `panels`.
    pub fn tile_bytes(&self, panels: usize) -> usize {
        panels * (self.records * PANEL * self.head + self.padded() / self.unit * self.unit_bytes)
    }
}

/// The widths of the lower and the upper plane (0: none) of codes of that many bits.
pub const fn planes(bits: u8) -> (usize, usize) {
    match bits {
        3 => (2, 1),
        5 => (4, 1),
        6 => (4, 2),
        bits => (bits as usize, 0),
    }
}

/// Columns of a unit: as many as fill one line of the narrowest plane.
pub const fn unit_columns(bits: u8) -> usize {
    match planes(bits) {
        (low, 0) => 32 / low,
        (_, high) => 32 / high,
    }
}

/// A matrix of weights in panels.
pub struct Packed {
    layout: Layout,
    geometry: Geometry,
    /// Bytes from tile to tile.
    stride: usize,
    /// Bytes of a full tile, and of the last one, which has `last_panels`.
    tile_bytes: usize,
    last_bytes: usize,
    last_panels: usize,
    out_features: usize,
    buffer: Block,
    permutation: Option<Vec<u32>>,
}

/// One tile: its bytes and how many panels it has.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    /// Exactly `geometry.tile_bytes(panels)` bytes.
    pub bytes: &'a [u8],
    /// 1 to 4.
    pub panels: usize,
}

impl Packed {
    /// Packs a matrix: rows stream through one decoded row, so that the peak is the packed size.
    pub fn new(matrix: &dyn Matrix) -> Result<Packed> {
        let mut packed = Packed::room_for(matrix, &Heap::default())?;
        let mut row = Row::new(packed.layout, packed.geometry.in_features)?;
        for tile in 0..packed.tiles() {
            packed.fill_tile(tile, matrix, &mut row, &mut |_| {})?;
        }
        Ok(packed)
    }

    /// Zeroed panels for a matrix, to be filled tile by tile.
    pub fn room_for(matrix: &dyn Matrix, heap: &Heap) -> Result<Packed> {
        let (layout, out_features, in_features) =
            (matrix.layout(), matrix.out_features(), matrix.in_features());
        let bytes = Packed::size(&layout, out_features, in_features)?;
        let buffer = heap.block(bytes, "packed weights")?;
        let permutation = match matrix.permutation() {
            None => None,
            Some(columns) => {
                let mut copy = Vec::new();
                reserve(&mut copy, columns.len(), "a column permutation")?;
                copy.extend_from_slice(columns);
                Some(copy)
            }
        };
        Packed::of(layout, out_features, in_features, buffer, permutation)
    }

    /// Bytes of the panels of a matrix.
    pub fn size(layout: &Layout, out_features: usize, in_features: usize) -> Result<usize> {
        if out_features == 0 || in_features == 0 {
            return Err(fail!(
                InvalidArgument,
                "a layer of {out_features} x {in_features} has no weights: both must be at least 1"
            ));
        }
        if out_features as u64 > FEATURES_MAX || in_features as u64 > FEATURES_MAX {
            return Err(fail!(
                Unsupported,
                "{out_features} x {in_features}: at most {FEATURES_MAX} features"
            ));
        }
        let geometry = Geometry::new(layout, in_features);
        let panels = out_features.div_ceil(PANEL);
        let (full, rest) = (panels / TILE_PANELS, panels % TILE_PANELS);
        geometry
            .tile_bytes(TILE_PANELS)
            .checked_mul(full)
            .and_then(|b| b.checked_add(geometry.tile_bytes(rest)))
            .ok_or_else(|| fail!(OutOfMemory, "{out_features} x {in_features} packed weights"))
    }

    /// Panels that are there already, of any content: exactly [`Packed::size`] bytes. `layout` is
    /// valid for that many columns ([`Layout::check`]).
    pub fn of(
        layout: Layout,
        out_features: usize,
        in_features: usize,
        panels: Block,
        permutation: Option<Vec<u32>>,
    ) -> Result<Packed> {
        let (size, found) = (Packed::size(&layout, out_features, in_features)?, panels.bytes().len());
        if size != found {
            return Err(fail!(BadFile, "packed weights: {size} bytes expected, found {found}"));
        }
        let geometry = Geometry::new(&layout, in_features);
        let count = out_features.div_ceil(PANEL);
        let last_panels = count - (count - 1) / TILE_PANELS * TILE_PANELS;
        Ok(Packed {
            layout,
            geometry,
            stride: geometry.tile_bytes(TILE_PANELS),
            tile_bytes: geometry.tile_bytes(TILE_PANELS),
            last_bytes: geometry.tile_bytes(last_panels),
            last_panels,
            out_features,
            buffer: panels,
            permutation,
        })
    }

    /// The first columns of the panels of a layer, read in place: with one scale a row they are the
    /// beginning of every tile. Columns past them that share their last unit meet activations of 0.
    pub fn prefix<T: Send + Sync + 'static>(
        owner: &Arc<T>,
        of: impl Fn(&T) -> &Packed,
        columns: usize,
    ) -> Result<Packed> {
        let whole = of(owner);
        let Layout::Coded(Coded { scales: Scales::Row, .. }) = whole.layout else {
            return Err(fail!(Unsupported, "a prefix of columns needs weights with one scale a row"));
        };
        if columns == 0 || columns > whole.in_features() || whole.permutation.is_some() {
            return Err(fail!(InvalidArgument, "{columns} of {} columns", whole.in_features()));
        }
        let geometry = Geometry::new(&whole.layout, columns);
        Ok(Packed {
            layout: whole.layout,
            geometry,
            stride: whole.stride,
            tile_bytes: geometry.tile_bytes(TILE_PANELS),
            last_bytes: geometry.tile_bytes(whole.last_panels),
            last_panels: whole.last_panels,
            out_features: whole.out_features,
            buffer: Block::kept(owner, |owner| of(owner).panels()),
            permutation: None,
        })
    }

    /// f32 panels of the transpose of a matrix [rows, columns] that `read` gives row by row: as
    /// x Wᵀ is computed, this computes x times the matrix itself.
    pub fn transposed(
        rows: usize,
        columns: usize,
        heap: &Heap,
        read: &mut dyn FnMut(usize, &mut [f32]),
    ) -> Result<Packed> {
        let layout = Layout::Dense(Float::F32);
        let size = Packed::size(&layout, columns, rows)?;
        let buffer = Block::from(heap.buffer(size, "transposed weights")?);
        let mut packed = Packed::of(layout, columns, rows, buffer, None)?;
        let mut row = filled(columns, 0.0f32, "a row")?;
        for r in 0..rows {
            read(r, &mut row);
            for (tile, values) in row.chunks(TILE).enumerate() {
                let width = packed.tile(tile).panels * PANEL * 4;
                let at = tile * packed.stride + r * width;
                let place = &mut packed.buffer.bytes_mut()[at..][..width];
                for (v, bytes) in values.iter().zip(place.as_chunks_mut().0) {
                    *bytes = v.to_le_bytes();
                }
            }
        }
        Ok(packed)
    }

    /// Writes the rows of one tile. `row` was made for this layout; `seen` is told each row that has
    /// been read, so that a loader can let go of the source behind the reader.
    pub fn fill_tile(
        &mut self,
        tile: usize,
        matrix: &dyn Matrix,
        row: &mut Row,
        seen: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let (layout, geometry, out_features) = (self.layout, self.geometry, self.out_features);
        let panels = self.tile(tile).panels;
        let at = tile * geometry.tile_bytes(TILE_PANELS);
        let bytes = &mut self.buffer.bytes_mut()[at..][..geometry.tile_bytes(panels)];
        for lane in 0..(panels * PANEL).min(out_features - tile * TILE) {
            let index = tile * TILE + lane;
            matrix.read_row(index, row)?;
            seen(index);
            match layout {
                Layout::Dense(float) => write_dense(float, bytes, panels, lane, row),
                Layout::Coded(coded) => write_coded(&coded, &geometry, bytes, panels, lane, row),
            }
        }
        Ok(())
    }

    /// How the weights lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the weights lie.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Rows of W.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of W.
    pub fn in_features(&self) -> usize {
        self.geometry.in_features
    }

    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        self.buffer.bytes().len()
    }

    /// The bytes of all panels, tile after tile.
    pub fn panels(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Whether the panels are read in place from something else's bytes.
    pub fn is_kept(&self) -> bool {
        self.buffer.is_kept()
    }

    /// Which column of W stands at each packed column; `None` where they stand in order.
    pub fn permutation(&self) -> Option<&[u32]> {
        self.permutation.as_deref()
    }

    /// How many tiles there are.
    pub fn tiles(&self) -> usize {
        self.out_features.div_ceil(TILE)
    }

    /// Tile `index`.
    pub fn tile(&self, index: usize) -> Tile<'_> {
        let at = index * self.stride;
        let (len, panels) = match (index + 1) * TILE < self.out_features {
            true => (self.tile_bytes, TILE_PANELS),
            false => (self.last_bytes, self.last_panels),
        };
        Tile { bytes: &self.buffer.bytes()[at..][..len], panels }
    }

    /// Reads one row back: the scalar reader beside the writer. `row` was made for this layout. With a
    /// permutation the columns come in packed order.
    pub fn read_row(&self, index: usize, row: &mut Row) {
        let tile = self.tile(index / TILE);
        let lane = index % TILE;
        match self.layout {
            Layout::Dense(float) => read_dense(float, tile, lane, row),
            Layout::Coded(coded) => read_coded(&coded, &self.geometry, tile, lane, row),
        }
    }

    /// Dequantises one row into `weights`, columns in the order of W.
    pub fn read_weights(&self, index: usize, row: &mut Row, weights: &mut [f32]) {
        self.read_row(index, row);
        match &self.permutation {
            None => (0..weights.len()).for_each(|k| weights[k] = row.weight(&self.layout, k)),
            Some(columns) => {
                for (packed, &k) in columns.iter().enumerate() {
                    weights[k as usize] = row.weight(&self.layout, packed);
                }
            }
        }
    }

    /// A row buffer for [`Packed::read_row`].
    pub fn row(&self) -> Result<Row<'static>> {
        Row::new(self.layout, self.geometry.in_features)
    }
}

// ---- dense ------------------------------------------------------------------------------------

fn write_dense(float: Float, bytes: &mut [u8], panels: usize, lane: usize, row: &Row) {
    let size = float.bytes();
    let stride = panels * PANEL * size;
    for (w, column) in row.floats.iter().zip(bytes.chunks_exact_mut(stride)) {
        let place = &mut column[lane * size..][..size];
        match float {
            Float::F32 => place.copy_from_slice(&w.to_le_bytes()),
            Float::F16 => place.copy_from_slice(&f16::from_f32(*w).to_le_bytes()),
            Float::Bf16 => place.copy_from_slice(&bf16::from_f32(*w).to_le_bytes()),
        }
    }
}

fn read_dense(float: Float, tile: Tile<'_>, lane: usize, row: &mut Row) {
    let size = float.bytes();
    let stride = tile.panels * PANEL * size;
    for (w, column) in row.floats.iter_mut().zip(tile.bytes.chunks_exact(stride)) {
        let b = &column[lane * size..];
        *w = match float {
            Float::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Float::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Float::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        };
    }
}

// ---- scales -----------------------------------------------------------------------------------

/// Writes a scale as stored. Exact: the value came from this type.
fn put_scale(ty: ScaleType, bytes: &mut [u8], lane: usize, value: f32) {
    let place = &mut bytes[lane * ty.bytes()..][..ty.bytes()];
    match ty {
        ScaleType::F32 => place.copy_from_slice(&value.to_le_bytes()),
        ScaleType::F16 => place.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        ScaleType::Bf16 => place.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        ScaleType::E8m0 => place[0] = e8m0_of(value),
    }
}

/// Reads a scale.
pub(crate) fn scale_at(ty: ScaleType, bytes: &[u8], lane: usize) -> f32 {
    let b = &bytes[lane * ty.bytes()..];
    match ty {
        ScaleType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        ScaleType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        ScaleType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        ScaleType::E8m0 => e8m0(b[0]),
    }
}

/// The power of two of an E8M0 byte, halved: tables of MXFP4 hold doubled values. Byte `e` is
/// `2^(e - 128)`: a normal f32 from 2 on, below it the two largest subnormal powers.
pub fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0020_0000),
        1 => f32::from_bits(0x0040_0000),
        e => f32::from_bits((e as u32 - 1) << 23),
    }
}

/// The inverse of [`e8m0`].
pub(crate) fn e8m0_of(value: f32) -> u8 {
    match value.to_bits() {
        0x0020_0000 => 0,
        0x0040_0000 => 1,
        bits => ((bits >> 23) + 1) as u8,
    }
}

// ---- codes ------------------------------------------------------------------------------------

/// Four codes side by side, as one lane of one quad; columns past the end are `pad`.
fn quad(codes: &[u8], at: usize, pad: u8) -> u32 {
    match codes.get(at..at + QUAD) {
        Some(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => u32::from_le_bytes(std::array::from_fn(|j| codes.get(at + j).copied().unwrap_or(pad))),
    }
}

/// Replicates a mask of at most 8 bits to the four bytes of a lane.
const fn each(mask: u32) -> u32 {
    mask * 0x0101_0101
}

/// Writes the units of `codes` (one record of one row of one base) into lane `lane`.
fn write_units(
    bits: u8,
    codes: &[u8],
    pad: u8,
    out: &mut [u8],
    panels: usize,
    lane: usize,
    base: (usize, usize),
) {
    let (low, high) = planes(bits);
    let low_columns = 32 / low;
    let unit = unit_columns(bits);
    let low_lines = unit / low_columns;
    let lines = low_lines + (high != 0) as usize;
    let mut put = |line: usize, word: u32| {
        let at = line * panels * LINE + lane / PANEL * LINE + lane % PANEL * QUAD;
        out[at..at + QUAD].copy_from_slice(&word.to_le_bytes());
    };
    for u in 0..codes.len().div_ceil(unit) {
        let first = (u * base.1 + base.0) * lines;
        for line in 0..low_lines {
            let mut word = 0;
            for i in 0..low_columns / QUAD {
                let q = quad(codes, u * unit + line * low_columns + i * QUAD, pad);
                word |= (q & each((1 << low) - 1)) << (low * i);
            }
            put(first + line, word);
        }
        if high != 0 {
            let mut word = 0;
            for i in 0..unit / QUAD {
                let q = quad(codes, u * unit + i * QUAD, pad);
                word |= (q >> low & each((1 << high) - 1)) << (high * i);
            }
            put(first + low_lines, word);
        }
    }
}

/// The inverse of [`write_units`].
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

fn write_coded(coded: &Coded, geometry: &Geometry, bytes: &mut [u8], panels: usize, lane: usize, row: &Row) {
    let lanes = panels * PANEL;
    let bases = coded.bases as usize;
    let record_bytes = geometry.record_bytes(panels);
    for (r, record) in bytes.chunks_mut(record_bytes).enumerate() {
        let (head, units) = record.split_at_mut(lanes * geometry.head);
        match coded.scales {
            Scales::Row => {
                for (scale, head) in row.scales.iter().zip(head.chunks_exact_mut(lanes * 4)) {
                    put_scale(ScaleType::F32, head, lane, *scale);
                }
            }
            Scales::Group { offset, .. } => {
                let (scales, rest) = head.split_at_mut(lanes * coded.scale_type.bytes());
                put_scale(coded.scale_type, scales, lane, row.scales[r]);
                match offset {
                    Offset::None => {}
                    Offset::Minimum => put_scale(coded.scale_type, rest, lane, row.minimums[r]),
                    Offset::Zero => rest[lane] = row.zeros[r],
                }
            }
            Scales::TwoLevel { len, minimum } => {
                let groups = SUPER_BLOCK / len;
                let size = lanes * coded.scale_type.bytes();
                let (scales, rest) = head.split_at_mut(size);
                put_scale(coded.scale_type, scales, lane, row.scales[r]);
                let rest = if minimum {
                    let (minimums, rest) = rest.split_at_mut(size);
                    put_scale(coded.scale_type, minimums, lane, row.minimums[r]);
                    rest
                } else {
                    rest
                };
                let (subs, sub_minimums) = rest.split_at_mut(groups * lanes);
                for j in 0..groups {
                    subs[j * lanes + lane] = row.sub_scales[r * groups + j] as u8;
                    if minimum {
                        sub_minimums[j * lanes + lane] = row.sub_minimums[r * groups + j] as u8;
                    }
                }
            }
        }
        for base in 0..bases {
            let at = base * geometry.in_features + r * geometry.record;
            let codes = &row.codes[at..at + geometry.record_len(r)];
            write_units(coded.bits, codes, 0, units, panels, lane, (base, bases));
        }
    }
}

fn read_coded(coded: &Coded, geometry: &Geometry, tile: Tile<'_>, lane: usize, row: &mut Row) {
    let panels = tile.panels;
    let lanes = panels * PANEL;
    let bases = coded.bases as usize;
    for (r, record) in tile.bytes.chunks(geometry.record_bytes(panels)).enumerate() {
        let (head, units) = record.split_at(lanes * geometry.head);
        match coded.scales {
            Scales::Row => {
                for (scale, head) in row.scales.iter_mut().zip(head.chunks_exact(lanes * 4)) {
                    *scale = scale_at(ScaleType::F32, head, lane);
                }
            }
            Scales::Group { offset, .. } => {
                let (scales, rest) = head.split_at(lanes * coded.scale_type.bytes());
                row.scales[r] = scale_at(coded.scale_type, scales, lane);
                match offset {
                    Offset::None => {}
                    Offset::Minimum => row.minimums[r] = scale_at(coded.scale_type, rest, lane),
                    Offset::Zero => row.zeros[r] = rest[lane],
                }
            }
            Scales::TwoLevel { len, minimum } => {
                let groups = SUPER_BLOCK / len;
                let size = lanes * coded.scale_type.bytes();
                row.scales[r] = scale_at(coded.scale_type, head, lane);
                let mut rest = &head[size..];
                if minimum {
                    row.minimums[r] = scale_at(coded.scale_type, rest, lane);
                    rest = &rest[size..];
                }
                for j in 0..groups {
                    row.sub_scales[r * groups + j] = rest[j * lanes + lane] as i8;
                    if minimum {
                        row.sub_minimums[r * groups + j] = rest[(groups + j) * lanes + lane] as i8;
                    }
                }
            }
        }
        for base in 0..bases {
            let at = base * geometry.in_features + r * geometry.record;
            let codes = &mut row.codes[at..at + geometry.record_len(r)];
            read_units(coded.bits, codes, units, panels, lane, (base, bases));
        }
    }
}

impl Matrix for Packed {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.geometry.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        Packed::read_row(self, index, row);
        Ok(())
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.permutation.as_deref()
    }
}

/// A matrix of rows that are in memory already: for tests, and for weights made by a quantiser.
pub struct RowMatrix {
    /// Their layout.
    pub layout: Layout,
    /// Their columns.
    pub in_features: usize,
    /// The rows.
    pub rows: Vec<Row<'static>>,
}

impl Matrix for RowMatrix {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.rows.len()
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        row.clone_from(&self.rows[index]);
        Ok(())
    }
}
