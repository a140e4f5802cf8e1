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

use std::ops::Range;
use std::sync::Arc;

use super::panels::{self, Panel, Rows};
use super::{Coded, Layout, Matrix, Offset, PANEL, QUAD, Row, SUPER_BLOCK, Scales, TILE, TILE_PANELS};
use crate::error::{Result, fail};
use crate::limits::FEATURES_MAX;
use crate::memory::{Block, Heap, reserve};

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

/// Room for the rows of one panel.
pub fn panel_rows(layout: &Layout, in_features: usize) -> Result<Vec<Row<'static>>> {
    let mut rows = Vec::new();
    reserve(&mut rows, PANEL, "rows of a panel")?;
    for _ in 0..PANEL {
        rows.push(Row::new(*layout, in_features)?);
    }
    Ok(rows)
}

/// The rows from `first` on as they are stored, of `bytes` each; whether they are there so.
fn stored_rows<'a>(matrix: &'a dyn Matrix, first: usize, bytes: usize, rows: &mut [&'a [u8]]) -> bool {
    (first..).zip(rows).all(|(index, row)| {
        *row = matrix.stored_row(index).unwrap_or_default();
        row.len() == bytes
    })
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

/// One tile to be written.
pub struct TileMut<'a> {
    layout: &'a Layout,
    geometry: &'a Geometry,
    rows: Range<usize>,
    bytes: &'a mut [u8],
}

impl TileMut<'_> {
    /// Its rows of W.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Reads its rows into `room`, 16 rows made for this layout, and gives them to `write` panel by panel.
    pub fn fill(
        &mut self,
        matrix: &dyn Matrix,
        room: &mut [Row<'_>],
        write: &mut dyn FnMut(Panel<'_>),
    ) -> Result<()> {
        let panels = self.rows.len().div_ceil(PANEL);
        for panel in 0..panels {
            let first = self.rows.start + panel * PANEL;
            let count = PANEL.min(self.rows.end - first).min(room.len());
            let mut stored = [&[][..]; PANEL];
            let as_stored = match self.layout {
                Layout::Dense(float) => {
                    let bytes = self.geometry.in_features * float.bytes();
                    stored_rows(matrix, first, bytes, &mut stored[..count])
                }
                Layout::Coded(_) => false,
            };
            let rows = if as_stored {
                Rows::Stored(&stored[..count])
            } else {
                for (lane, row) in room.iter_mut().enumerate().take(count) {
                    matrix.read_row(first + lane, row)?;
                }
                Rows::Decoded(&room[..count])
            };
            let (layout, geometry) = (self.layout, self.geometry);
            write(Panel { layout, geometry, bytes: self.bytes, panels, panel, rows });
        }
        Ok(())
    }
}

impl Packed {
    /// Packs a matrix on the calling thread, with no instruction set but the one that all machines have.
    pub fn new(matrix: &dyn Matrix) -> Result<Packed> {
        let mut packed = Packed::room_for(matrix, &Heap::default())?;
        let mut room = panel_rows(&packed.layout, packed.in_features())?;
        for mut tile in packed.tiles_mut() {
            tile.fill(matrix, &mut room, &mut |panel| panel.write())?;
        }
        Ok(packed)
    }

    /// Zeroed panels for a matrix, to be filled tile by tile (`layer::pack` does that).
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

    /// All tiles, to be written in any order; none where the panels are another's.
    pub fn tiles_mut(&mut self) -> impl Iterator<Item = TileMut<'_>> + Send {
        let (layout, geometry, out_features) = (&self.layout, &self.geometry, self.out_features);
        let tiles = self.buffer.bytes_mut().chunks_mut(self.stride).enumerate();
        tiles.map(move |(tile, bytes)| {
            let rows = tile * TILE..out_features.min((tile + 1) * TILE);
            TileMut { layout, geometry, rows, bytes }
        })
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
        panels::read(&self.layout, &self.geometry, tile, lane, row);
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
