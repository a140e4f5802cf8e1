//! How weights lie in memory for compute: the closed set of shapes that kernels read.
//!
//! A [`Layout`] is one choice from each of a few small lists (code width, meaning of a code, scale
//! scheme, scale type). Codecs say which layout a stored format decodes into and fill [`Row`]s;
//! the packer writes rows into panels ([`packed`]); kernels read panels. Decoding is exact: what a
//! [`Row`] holds stands for the same real numbers as the stored bytes.

pub mod head;
pub mod packed;
pub mod panels;
pub mod row;
pub mod shard;

use crate::error::{Result, fail};

pub use packed::Packed;
pub use row::Row;
pub use shard::{Part, Shard};

/// A matrix of weights, readable row by row from several threads: what the packer takes. Codecs implement it.
pub trait Matrix: Sync {
    /// The compute layout it decodes into.
    fn layout(&self) -> Layout;
    /// Rows.
    fn out_features(&self) -> usize;
    /// Columns.
    fn in_features(&self) -> usize;
    /// Decodes row `index` into `row`, which was made for this layout and number of columns.
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()>;
    /// Row `index` as it is stored, where the layout is dense and these are its floats, little endian: the packer
    /// copies them, and nobody has to decode what would become the same bits again.
    fn stored_row(&self, index: usize) -> Option<&[u8]> {
        let _ = index;
        None
    }
    /// Where the stored format orders columns by group (GPTQ's `desc_act`): the column of x that each
    /// column of a [`Row`] belongs to. A permutation of `0..in_features`; `None` is the identity.
    fn permutation(&self) -> Option<&[u32]> {
        None
    }
}

/// Rows of W in a panel: one vector lane each.
pub const PANEL: usize = 16;
/// Panels of a full tile, whose cache lines follow one another.
pub const TILE_PANELS: usize = 4;
/// Rows of a full tile.
pub const TILE: usize = PANEL * TILE_PANELS;
/// Columns that lie side by side inside a lane: what one VNNI or sdot lane sums.
pub const QUAD: usize = 4;
/// Columns of a super-block of the two-level formats.
pub const SUPER_BLOCK: usize = 256;

/// Most code matrices that are summed.
pub const BASES_MAX: u8 = 8;

/// How the weights of one matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// Plain floats.
    Dense(Float),
    /// Small integers with scales.
    Coded(Coded),
}

/// Element type of a dense layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// bfloat16.
    Bf16,
}

/// Integer codes with scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coded {
    /// Bits of a code: 1, 2, 4, 8, or 3 = 2+1, 5 = 4+1, 6 = 4+2 in two planes.
    pub bits: u8,
    /// The integer that a code stands for.
    pub values: Values,
    /// Where the scales are.
    pub scales: Scales,
    /// Stored type of the scales (and minima).
    pub scale_type: ScaleType,
    /// How many code matrices are summed, each with its own row scale (more than 1: ternary only).
    pub bases: u8,
}

/// The integer `v` that a code `c` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// `v = c - zero`.
    Offset(u8),
    /// `v = 2c - 1` (1-bit codes).
    Sign,
    /// `v = table[c]` (4-bit codes).
    Table(&'static [i8; 16]),
}

/// Scale scheme: how a weight follows from its value `v`. Every product and sum is one f32 rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// `w = s v`, one `s` for each row (a tensor's single scale is repeated) and base.
    Row,
    /// `w = s_g v`, or `s_g v + m_g`, or `s_g (c - z_g)`, for groups of `len` columns; the last may be short.
    Group {
        /// Columns of a group.
        len: usize,
        /// What a group has beside its scale.
        offset: Offset,
    },
    /// `w = (d sc_j) v - (dmin mn_j)`, for groups of `len` columns inside super-blocks of 256.
    TwoLevel {
        /// Columns of a group: 16 or 32.
        len: usize,
        /// Whether there are minima.
        minimum: bool,
    },
}

/// What a group has beside its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// Nothing.
    None,
    /// A float minimum that is added.
    Minimum,
    /// An integer zero point in units of the code; `Values::Offset(0)` goes with it.
    Zero,
}

/// Stored type of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleType {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// bfloat16.
    Bf16,
    /// A power of two: byte `e` stands for `2^(e - 128)`, MXFP4's scale halved because its values
    /// are doubled. See [`head::e8m0`].
    E8m0,
}

impl Float {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }
}

impl ScaleType {
    /// Bytes of a scale.
    pub const fn bytes(self) -> usize {
        match self {
            ScaleType::F32 => 4,
            ScaleType::F16 | ScaleType::Bf16 => 2,
            ScaleType::E8m0 => 1,
        }
    }
}

impl Layout {
    /// The coded layout with groups of `len` and f16 scales that most block formats have.
    pub const fn groups(bits: u8, zero: u8, len: usize, offset: Offset) -> Layout {
        Layout::Coded(Coded {
            bits,
            values: Values::Offset(zero),
            scales: Scales::Group { len, offset },
            scale_type: ScaleType::F16,
            bases: 1,
        })
    }

    /// The layout of integer codes with one f32 scale for each row.
    pub const fn rows(bits: u8, values: Values) -> Layout {
        Layout::Coded(Coded { bits, values, scales: Scales::Row, scale_type: ScaleType::F32, bases: 1 })
    }

    /// The two-level layout with f16 scales of the K-quants.
    pub const fn two_level(bits: u8, zero: u8, len: usize, minimum: bool) -> Layout {
        Layout::Coded(Coded {
            bits,
            values: Values::Offset(zero),
            scales: Scales::TwoLevel { len, minimum },
            scale_type: ScaleType::F16,
            bases: 1,
        })
    }
}

impl Layout {
    /// Refuses what no codec makes: after this, a matrix of `in_features` columns in this layout may
    /// hold any bytes whatever.
    pub fn check(&self, in_features: usize) -> Result<()> {
        let Layout::Coded(coded) = self else { return Ok(()) };
        let values = match coded.values {
            Values::Sign => coded.bits == 1,
            Values::Table(_) => coded.bits == 4,
            Values::Offset(zero) => matches!(coded.bits, 2..=6 | 8) && zero as u32 >> coded.bits == 0,
        };
        let whole = coded.scale_type != ScaleType::E8m0;
        let scales = match coded.scales {
            Scales::Row => whole,
            Scales::Group { len, offset } => {
                (1..=in_features).contains(&len)
                    && match offset {
                        Offset::None => true,
                        Offset::Minimum => whole,
                        Offset::Zero => whole && coded.values == Values::Offset(0),
                    }
            }
            Scales::TwoLevel { len, .. } => {
                whole && matches!(len, 16 | 32) && in_features.is_multiple_of(SUPER_BLOCK)
            }
        };
        let several = coded.bits == 2 && coded.scales == Scales::Row;
        let bases = coded.bases == 1 || several && (2..=BASES_MAX).contains(&coded.bases);
        if values && scales && bases {
            return Ok(());
        }
        Err(fail!(BadFile, "{coded:?} is no layout of {in_features} columns"))
    }
}

impl Coded {
    /// Columns that share a scale, in a matrix of `in_features` columns.
    pub fn group_len(&self, in_features: usize) -> usize {
        match self.scales {
            Scales::Row => in_features,
            Scales::Group { len, .. } | Scales::TwoLevel { len, .. } => len,
        }
    }

    /// The largest magnitude of a value, whatever its group's zero point.
    pub fn values_reach(&self) -> u32 {
        let top = (1u32 << self.bits) - 1;
        if matches!(self.scales, Scales::Group { offset: Offset::Zero, .. }) {
            return 255; // zero points are bytes, and files hold what they like
        }
        match self.values {
            Values::Offset(zero) => (zero as u32).max(top.saturating_sub(zero as u32)),
            Values::Sign => 1,
            Values::Table(_) => 128,
        }
    }
}
