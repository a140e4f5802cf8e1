//! Dense weights that are stored `[in_features, out_features]`: element (o, i) at `i * out + o`.
//!
//! Source: row-major float matrices of programs that write `y = x W`. Decoding to f32 is exact.

use super::{check_index, stored};
use crate::error::{Result, fail};
use crate::float16::{bf16_to_f32, f16_to_f32};
use crate::layout::{Float, Layout, Matrix, Row};
use crate::types::Type;

/// A float matrix whose columns are the rows of W.
pub struct Transposed<'a> {
    float: Float,
    out_features: usize,
    in_features: usize,
    bytes: &'a [u8],
}

impl<'a> Transposed<'a> {
    /// The matrix at the start of `bytes`; refused where they do not hold it or are no floats.
    pub fn new(ty: Type, out_features: usize, in_features: usize, bytes: &'a [u8]) -> Result<Transposed<'a>> {
        let float = match ty {
            Type::F32 => Float::F32,
            Type::F16 => Float::F16,
            Type::Bf16 => Float::Bf16,
            _ => {
                return Err(fail!(
                    Unsupported,
                    "{} weights stored [in_features, out_features]: f32, f16 or bf16 expected",
                    ty.name()
                ));
            }
        };
        stored::check_shape(out_features, in_features)?;
        let need = out_features.checked_mul(in_features).and_then(|n| n.checked_mul(float.bytes()));
        if need.is_none_or(|need| need > bytes.len()) {
            return Err(fail!(
                BadFile,
                "{in_features} x {out_features} {} expected, found {} bytes",
                ty.name(),
                bytes.len()
            ));
        }
        Ok(Transposed { float, out_features, in_features, bytes })
    }
}

impl Matrix for Transposed<'_> {
    fn layout(&self) -> Layout {
        Layout::Dense(self.float)
    }

    fn out_features(&self) -> usize {
        self.out_features
    }

    fn in_features(&self) -> usize {
        self.in_features
    }

    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        check_index(index, self.out_features)?;
        let size = self.float.bytes();
        // `new` checked that this many rows are there.
        let rows = self.bytes.chunks_exact(self.out_features * size);
        for (w, stored) in row.floats.iter_mut().zip(rows) {
            let bytes = &stored[index * size..][..size];
            *w = match (self.float, bytes) {
                (Float::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (Float::F16, &[a, b]) => f16_to_f32(u16::from_le_bytes([a, b])),
                (_, bytes) => bf16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows() -> Result<()> {
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let matrix = Transposed::new(Type::F32, 3, 2, &bytes)?;
        let mut row = Row::new(matrix.layout(), 2)?;
        matrix.read_row(1, &mut row)?;
        assert_eq!(*row.floats, [2.0, 5.0]);
        assert!(matrix.read_row(3, &mut row).is_err());
        assert!(Transposed::new(Type::F32, 3, 3, &bytes).is_err());
        assert!(Transposed::new(Type::Q4_0, 3, 2, &bytes).is_err());
        Ok(())
    }
}
