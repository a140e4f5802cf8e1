//! Storage formats: bytes of a file <-> codes and scales of one row at a time.
//!
//! A codec knows one format and nothing of instruction sets or panels. It says which compute
//! [`Layout`] its weights decode into, and fills a [`Row`]. Untrusted bytes end here: a codec checks
//! every length before it reads, refuses byte patterns its format does not define, and whatever it
//! lets through is valid for the packer.
//!
//! A format whose rows are contiguous bytes is a [`Codec`] and one word in the registry below. One
//! that spreads a row over the tensor, or over several tensors, implements [`Matrix`] itself: what the packer
//! reads.

use crate::error::{Result, fail};
use crate::layout::{Layout, Row};
use crate::types::Type;

pub mod bitnet_hf;
mod bits;
mod blocks;
pub mod burn_dragon;
pub mod cortex;
mod ggml_k;
mod ggml_legacy;
pub mod ggml_tables;
mod ggml_ternary;
pub mod gptq;
pub mod i2_s;
pub mod int4_rows;
mod iq1_s;
mod iq1_s_grid;
mod plain;
pub mod ruvllm;
mod stored;
pub mod transposed;

pub use crate::layout::Matrix; // what codecs make
pub use bitnet_hf::BitnetHf;
pub(crate) use blocks::beyond_f16;
pub use ggml_tables as tables;
pub use int4_rows::CompressedTensors;
pub use stored::Floats;

/// A storage format whose rows are contiguous bytes.
pub trait Codec: Sync {
    /// The format.
    fn ty(&self) -> Type;
    /// The compute layout of a matrix with that many columns; an error where the format cannot hold
    /// such rows (columns that are no multiple of its block).
    fn layout(&self, in_features: usize) -> Result<Layout>;
    /// Bytes of one row. Call it after `layout` succeeded.
    fn row_bytes(&self, in_features: usize) -> usize;
    /// Decodes one row. `bytes` is exactly [`Codec::row_bytes`] long and `row` was made for
    /// [`Codec::layout`]; every field of it is overwritten.
    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()>;
    /// Whether rows are stored as the little-endian floats of their dense layout.
    fn is_verbatim(&self) -> bool {
        false
    }
    /// Encodes one row by the format's own rounding rule, byte for byte what its own tools write.
    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        let _ = (weights, bytes);
        Err(fail!(Unsupported, "{} cannot be written", self.ty().name()))
    }
    /// Writes codes and scales as [`Codec::decode_row`] reads them. `row` was made for this codec's
    /// layout, its codes are the layout's, and every scale is one that the format can hold.
    fn store_row(&self, row: &Row, bytes: &mut [u8]) -> Result<()> {
        let _ = (row, bytes);
        Err(fail!(Unsupported, "{} cannot be written", self.ty().name()))
    }
}

/// Refuses a row that a matrix does not have.
fn check_index(index: usize, out_features: usize) -> Result<()> {
    if index < out_features {
        return Ok(());
    }
    Err(fail!(InvalidArgument, "row {index} of a matrix of {out_features} rows"))
}

/// A matrix of contiguous rows in one format.
pub struct Rows<'a> {
    codec: &'static dyn Codec,
    layout: Layout,
    out_features: usize,
    in_features: usize,
    row_bytes: usize,
    /// Bytes from row to row.
    stride: usize,
    bytes: &'a [u8],
}

impl<'a> Rows<'a> {
    /// The matrix of `out_features` rows at the start of `bytes`; refused where they do not hold it.
    pub fn new(
        codec: &'static dyn Codec,
        out_features: usize,
        in_features: usize,
        bytes: &'a [u8],
    ) -> Result<Rows<'a>> {
        stored::check_shape(out_features, in_features)?;
        let layout = codec.layout(in_features)?;
        let row_bytes = codec.row_bytes(in_features);
        let need = row_bytes.checked_mul(out_features);
        if need.is_none_or(|need| need > bytes.len()) {
            return Err(fail!(
                BadFile,
                "{} rows of {row_bytes} bytes expected, found {} bytes",
                out_features,
                bytes.len()
            ));
        }
        Ok(Rows { codec, layout, out_features, in_features, row_bytes, stride: row_bytes, bytes })
    }

    /// The same with `stride` bytes from row to row, at least those of a row.
    pub fn strided(
        codec: &'static dyn Codec,
        out_features: usize,
        in_features: usize,
        stride: usize,
        bytes: &'a [u8],
    ) -> Result<Rows<'a>> {
        let rows = Rows::new(codec, 1, in_features, bytes)?;
        stored::check_shape(out_features, in_features)?;
        let need = stride.checked_mul(out_features - 1).and_then(|n| n.checked_add(rows.row_bytes));
        if stride < rows.row_bytes || need.is_none_or(|need| need > bytes.len()) {
            return Err(fail!(
                InvalidArgument,
                "{out_features} rows of {} bytes, {stride} apart, expected, found {} bytes",
                rows.row_bytes,
                bytes.len()
            ));
        }
        Ok(Rows { out_features, stride, ..rows })
    }

    /// The bytes of a row that is there: the constructors checked the last one against the length.
    fn bytes_of(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.stride..][..self.row_bytes]
    }
}

impl Matrix for Rows<'_> {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn stored_row(&self, index: usize) -> Option<&[u8]> {
        (index < self.out_features && self.codec.is_verbatim()).then(|| self.bytes_of(index))
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        let bytes = self.bytes_of(index);
        self.codec.decode_row(bytes, row).map_err(|e| e.within(format_args!("row {index}")))
    }
}

/// Every codec; a new format adds its word here.
static CODECS: &[&dyn Codec] = &[
    &plain::F32,
    &plain::F16,
    &plain::BF16,
    &ggml_legacy::Q4_0,
    &ggml_legacy::Q4_1,
    &ggml_legacy::Q5_0,
    &ggml_legacy::Q5_1,
    &ggml_legacy::Q8_0,
    &ggml_k::Q2_K,
    &ggml_k::Q3_K,
    &ggml_k::Q4_K,
    &ggml_k::Q5_K,
    &ggml_k::Q6_K,
    &ggml_tables::IQ4_NL,
    &ggml_tables::IQ4_XS,
    &ggml_tables::MXFP4,
    &ggml_ternary::TQ1_0,
    &ggml_ternary::TQ2_0,
    &ggml_ternary::Q1_0,
    &ggml_ternary::Q2_0,
    &ggml_ternary::Q2_0_LEGACY,
    &ggml_ternary::PQ2_0,
    &ggml_ternary::PTQ1_0,
    &iq1_s::IQ1_S,
];

/// The codec of a format with contiguous rows.
pub fn find(ty: Type) -> Result<&'static dyn Codec> {
    if let Some(codec) = CODECS.iter().find(|codec| codec.ty() == ty) {
        return Ok(*codec);
    }
    let name = ty.name();
    Err(match ty {
        Type::Tl1 | Type::Tl2 => fail!(
            Unsupported,
            "{name} depends on a tiling that its file does not hold; convert the model again, to i2_s or tq2_0"
        ),
        Type::Iq2Xxs | Type::Iq2Xs | Type::Iq2S | Type::Iq3Xxs | Type::Iq3S | Type::Iq1M | Type::Nvfp4 => {
            fail!(Unsupported, "{name} is not decoded; convert the model again, to q2_k, q3_k or q4_k")
        }
        Type::Other => fail!(Unsupported, "elements of an unknown type are no weights"),
        _ if ty.is_plain() => fail!(Unsupported, "{name} elements are no weights by themselves"),
        _ => fail!(Unsupported, "{name} does not keep a row of weights together in one tensor"),
    })
}

/// The matrix that one tensor holds by itself: any format of GGUF, and plain floats. Formats of several
/// tensors have constructors of their own in the modules of this one.
pub fn open<'a>(
    ty: Type,
    out_features: usize,
    in_features: usize,
    bytes: &'a [u8],
) -> Result<Box<dyn Matrix + 'a>> {
    Ok(match ty {
        Type::I2S | Type::I2SArm | Type::I2SRows => {
            Box::new(i2_s::I2S::new(ty, out_features, in_features, bytes)?)
        }
        Type::T158 => Box::new(ruvllm::Ternary::t158(out_features, in_features, bytes)?),
        _ => Box::new(Rows::new(find(ty)?, out_features, in_features, bytes)?),
    })
}

/// How the bytes of one tensor hold a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Row after row, each of that many bytes.
    Rows(usize),
    /// Rows are packed together, in that many bytes.
    Whole(usize),
}

/// How [`open`] takes a matrix of that shape.
pub fn stored(ty: Type, out_features: usize, in_features: usize) -> Result<Stored> {
    stored::check_shape(out_features, in_features)?;
    let whole = |bytes: Option<usize>| match bytes {
        Some(bytes) => Ok(Stored::Whole(bytes)),
        None => Err(fail!(InvalidArgument, "{out_features} x {in_features} weights of {}", ty.name())),
    };
    match ty {
        Type::I2S | Type::I2SArm | Type::I2SRows => whole(i2_s::size(out_features, in_features)),
        Type::T158 => {
            let blocks = out_features.checked_mul(in_features).map(|n| n.div_ceil(256));
            whole(blocks.and_then(|n| n.checked_mul(66)))
        }
        _ => {
            let codec = find(ty)?;
            codec.layout(in_features)?;
            Ok(Stored::Rows(codec.row_bytes(in_features)))
        }
    }
}

/// All codecs with contiguous rows, for tests and tables.
pub fn all() -> &'static [&'static dyn Codec] {
    CODECS
}
