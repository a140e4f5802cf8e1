//! F32, F16 and BF16: rows of little-endian floats, no scales.
//!
//! Source: IEEE 754 binary32 and binary16; bfloat16 is the upper half of a binary32. Decoding to f32
//! is exact. Encoding rounds to nearest, ties to even; a NaN stays a NaN.

use super::Codec;
use super::stored::check_len;
use crate::error::Result;
use crate::float16::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::layout::{Float, Layout, Row};
use crate::types::Type;

/// One plain float format.
pub(super) struct Plain {
    ty: Type,
    float: Float,
}

pub(super) static F32: Plain = Plain { ty: Type::F32, float: Float::F32 };
pub(super) static F16: Plain = Plain { ty: Type::F16, float: Float::F16 };
pub(super) static BF16: Plain = Plain { ty: Type::Bf16, float: Float::Bf16 };

impl Codec for Plain {
    fn ty(&self) -> Type {
        self.ty
    }

    fn layout(&self, _in_features: usize) -> Result<Layout> {
        Ok(Layout::Dense(self.float))
    }

    fn row_bytes(&self, in_features: usize) -> usize {
        in_features.saturating_mul(self.float.bytes())
    }

    fn decode_row(&self, bytes: &[u8], row: &mut Row) -> Result<()> {
        match self.float {
            Float::F32 => {
                for (w, b) in row.floats.iter_mut().zip(bytes.as_chunks().0) {
                    *w = f32::from_le_bytes(*b);
                }
            }
            Float::F16 => {
                for (w, b) in row.floats.iter_mut().zip(bytes.as_chunks().0) {
                    *w = f16_to_f32(u16::from_le_bytes(*b));
                }
            }
            Float::Bf16 => {
                for (w, b) in row.floats.iter_mut().zip(bytes.as_chunks().0) {
                    *w = bf16_to_f32(u16::from_le_bytes(*b));
                }
            }
        }
        Ok(())
    }

    fn is_verbatim(&self) -> bool {
        true
    }

    fn encode_row(&self, weights: &[f32], bytes: &mut [u8]) -> Result<()> {
        check_len("bytes of a row", &[weights.len(), self.float.bytes()], bytes.len())?;
        match self.float {
            Float::F32 => {
                for (w, b) in weights.iter().zip(bytes.as_chunks_mut().0) {
                    *b = w.to_le_bytes();
                }
            }
            Float::F16 => {
                for (w, b) in weights.iter().zip(bytes.as_chunks_mut().0) {
                    *b = f32_to_f16(*w).to_le_bytes();
                }
            }
            Float::Bf16 => {
                for (w, b) in weights.iter().zip(bytes.as_chunks_mut().0) {
                    *b = f32_to_bf16(*w).to_le_bytes();
                }
            }
        }
        Ok(())
    }

    fn store_row(&self, row: &Row, bytes: &mut [u8]) -> Result<()> {
        self.encode_row(&row.floats, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::open;
    use crate::layout::Packed;
    use crate::layout::packed::RowMatrix;

    #[test]
    #[cfg_attr(miri, ignore = "weights lie in a mapping of which a part was given back: tests/miri.sh")]
    fn stored_floats_are_packed_as_decoded_ones() -> Result<()> {
        let (rows, columns) = (66, 1001);
        // Every pattern of 16 bits in a few rows: NaNs of both kinds too.
        let bytes: Vec<u8> = (0..2 * rows * columns).flat_map(|i| (i as u16).to_le_bytes()).collect();
        for ty in [Type::F32, Type::F16, Type::Bf16] {
            let stored = open(ty, rows, columns, &bytes)?;
            assert!(stored.stored_row(rows - 1).is_some() && stored.stored_row(rows).is_none());
            let packed = Packed::new(&*stored)?;
            let mut decoded = RowMatrix { layout: stored.layout(), in_features: columns, rows: Vec::new() };
            for index in 0..rows {
                let mut row = Row::new(decoded.layout, columns)?;
                stored.read_row(index, &mut row)?;
                decoded.rows.push(row);
            }
            let decoded = Packed::new(&decoded)?;
            assert!(packed.panels() == decoded.panels(), "{ty:?}");
        }
        Ok(())
    }
}
