//! The weights of a projection of heads: flat codes with one scale, and the matrices in them.

use super::{Kind, RUN, Shape};
use crate::codec::burn_dragon::{encode, packed_bytes};
use crate::error::{Result, fail};
use crate::layout::{Layout, Matrix, Row, Values};
use crate::memory::filled;
use crate::plan::LowBit;
use crate::types::Type;

/// How the weights of that format are encoded; fp16 and formats of activations are refused.
pub(super) fn encoding(format: LowBit) -> Result<Type> {
    match format {
        LowBit::Int8 => Ok(Type::Int8),
        LowBit::Sign1 => Ok(Type::Binary),
        LowBit::Ternary158 | LowBit::Packed2 => Ok(Type::Ternary2),
        other => Err(fail!(
            InvalidArgument,
            "weights of \"{}\": int8, sign1, ternary158 or packed2 expected",
            other.name().to_str().unwrap_or("")
        )),
    }
}

/// One code a byte, as the kernels' layouts count them, and the scale.
pub(super) struct Codes {
    pub(super) ty: Type,
    pub(super) codes: Vec<u8>,
    pub(super) scale: f32,
}

impl Codes {
    /// Rounds f32 weights by burn_dragon's rules.
    pub(super) fn of(ty: Type, weights: &[f32]) -> Result<Codes> {
        let mut packed = filled(packed_bytes(ty, weights.len())?, 0u8, "packed weights")?;
        let scale = encode(ty, weights, &mut packed)?;
        Codes::unpack(ty, &packed, weights.len(), scale)
    }

    /// Reads an artifact's bytes; the ternary code 3 and a scale that is not finite are refused.
    pub(super) fn unpack(ty: Type, packed: &[u8], count: usize, scale: f32) -> Result<Codes> {
        let expected = packed_bytes(ty, count)?;
        if packed.len() != expected {
            return Err(fail!(
                InvalidArgument,
                "{} bytes of packed weights, {expected} expected",
                packed.len()
            ));
        }
        if !(scale.is_finite() && scale >= 0.0) {
            return Err(fail!(InvalidArgument, "the scale of the weights is {scale}"));
        }
        let mut codes = filled(count, 0u8, "codes of weights")?;
        match ty {
            Type::Binary => codes.iter_mut().enumerate().for_each(|(e, c)| *c = packed[e / 8] >> (e % 8) & 1),
            Type::Ternary2 => {
                for (e, c) in codes.iter_mut().enumerate() {
                    *c = packed[e / 4] >> (2 * (e % 4)) & 3;
                    if *c == 3 {
                        return Err(fail!(InvalidArgument, "weight {e} has the invalid ternary code 3"));
                    }
                }
            }
            _ => codes.iter_mut().zip(packed).for_each(|(c, b)| *c = b ^ 0x80),
        }
        Ok(Codes { ty, codes, scale })
    }

    /// What the codes stand for.
    pub(super) fn values(&self, out: &mut [f32]) {
        let Layout::Coded(coded) = self.layout() else { return };
        out.iter_mut().zip(&self.codes).for_each(|(v, c)| *v = coded.values.of(*c) as f32 * self.scale);
    }

    fn layout(&self) -> Layout {
        match self.ty {
            Type::Binary => Layout::rows(1, Values::Sign),
            Type::Ternary2 => Layout::rows(2, Values::Offset(1)),
            _ => Layout::rows(8, Values::Offset(128)),
        }
    }

    /// The code of a weight of 0, as far as there is one.
    fn zero(&self) -> u8 {
        match self.ty {
            Type::Binary => 0,
            Type::Ternary2 => 1,
            _ => 128,
        }
    }
}

/// The matrix of one head, [latent, features]; or that of the tail, [features, runs of latent ones].
pub(super) struct View<'a> {
    pub(super) codes: &'a Codes,
    pub(super) shape: &'a Shape,
    pub(super) head: usize,
}

impl Matrix for View<'_> {
    fn layout(&self) -> Layout {
        self.codes.layout()
    }
    fn out_features(&self) -> usize {
        match self.shape.kind {
            Kind::Lowrank => self.shape.latent,
            Kind::Tail => self.shape.features,
        }
    }
    fn in_features(&self) -> usize {
        match self.shape.kind {
            Kind::Lowrank => self.shape.features,
            Kind::Tail => self.shape.gather(self.shape.latent, 0).columns(),
        }
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let Shape { kind, heads, latent, features } = *self.shape;
        let codes = &self.codes.codes;
        row.scales.fill(self.codes.scale);
        match kind {
            Kind::Lowrank => {
                let column = codes[self.head * features * latent + index..].iter().step_by(latent);
                row.codes.iter_mut().zip(column).for_each(|(code, c)| *code = *c);
            }
            Kind::Tail => {
                let zero = self.codes.zero();
                for (i, runs) in row.codes.chunks_exact_mut(RUN * heads).enumerate() {
                    for (h, run) in runs.chunks_exact_mut(RUN).enumerate() {
                        for (j, code) in run.iter_mut().enumerate() {
                            let k = i * RUN + j;
                            let place = (h * latent + k) * features + index;
                            *code = if k < latent { codes[place] } else { zero };
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
