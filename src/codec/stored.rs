//! What formats that spread a matrix over several tensors share: float tensors and checked sizes.

use crate::error::{Result, fail};
use crate::float16::{bf16_to_f32, f16_to_f32};
use crate::layout::ScaleType;
use crate::limits::FEATURES_MAX;
use crate::types::Type;

/// A tensor of floats in storage: little endian, at any alignment.
#[derive(Clone, Copy)]
pub struct Floats<'a> {
    ty: ScaleType,
    bytes: &'a [u8],
}

impl<'a> Floats<'a> {
    /// The floats of a tensor of type F32, F16 or BF16.
    pub fn new(ty: Type, bytes: &'a [u8]) -> Result<Floats<'a>> {
        let ty = match ty {
            Type::F32 => ScaleType::F32,
            Type::F16 => ScaleType::F16,
            Type::Bf16 => ScaleType::Bf16,
            other => return Err(fail!(Unsupported, "scales are f32, f16 or bf16, not {}", other.name())),
        };
        if !bytes.len().is_multiple_of(ty.bytes()) {
            return Err(fail!(BadFile, "{} bytes are no whole number of floats", bytes.len()));
        }
        Ok(Floats { ty, bytes })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.bytes.len() / self.ty.bytes()
    }

    /// Their type, as a layout's.
    pub fn scale_type(&self) -> ScaleType {
        self.ty
    }

    /// Number `index`; NaN past the end.
    pub fn get(&self, index: usize) -> f32 {
        let at = index.saturating_mul(self.ty.bytes());
        match (self.ty, self.bytes.get(at..)) {
            (ScaleType::F32, Some([a, b, c, d, ..])) => f32::from_le_bytes([*a, *b, *c, *d]),
            (ScaleType::F16, Some([a, b, ..])) => f16_to_f32(u16::from_le_bytes([*a, *b])),
            (ScaleType::Bf16, Some([a, b, ..])) => bf16_to_f32(u16::from_le_bytes([*a, *b])),
            _ => f32::NAN,
        }
    }

    /// Refuses another number of floats than the product of `factors`.
    pub(super) fn check_count(&self, what: &str, factors: &[usize]) -> Result<()> {
        let want = product(factors);
        if want == Some(self.count()) {
            return Ok(());
        }
        Err(fail!(BadFile, "{what}: {} expected, found {}", Shown(factors), self.count()))
    }
}

/// Refuses matrices without weights and dimensions above the bound.
pub(super) fn check_shape(out_features: usize, in_features: usize) -> Result<()> {
    let fits = |n: usize| n >= 1 && n as u64 <= FEATURES_MAX;
    if fits(out_features) && fits(in_features) {
        return Ok(());
    }
    Err(fail!(BadFile, "a matrix of {out_features} x {in_features} weights"))
}

/// Refuses columns that are no multiple of what the format packs together.
pub(super) fn check_multiple(what: &str, of: usize, found: usize) -> Result<()> {
    if found.is_multiple_of(of) {
        return Ok(());
    }
    Err(fail!(BadFile, "{found} {what} are no multiple of {of}"))
}

/// Refuses another number of things than the product of `factors`: a caller's buffer, not a file's.
pub(super) fn check_len(what: &str, factors: &[usize], found: usize) -> Result<()> {
    if product(factors) == Some(found) {
        return Ok(());
    }
    Err(fail!(InvalidArgument, "{what}: {} expected, found {found}", Shown(factors)))
}

/// Refuses fewer bytes than the product of `factors`; more are padding.
pub(super) fn check_bytes(what: &str, factors: &[usize], found: usize) -> Result<()> {
    match product(factors) {
        Some(want) if want <= found => Ok(()),
        _ => Err(fail!(BadFile, "{what}: {} bytes expected, found {found}", Shown(factors))),
    }
}

fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1usize, |p, f| p.checked_mul(*f))
}

/// `16 x 512` in a message: the product itself may be more than a number holds.
struct Shown<'a>(&'a [usize]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, factor) in self.0.iter().enumerate() {
            write!(f, "{}{factor}", if i == 0 { "" } else { " x " })?;
        }
        Ok(())
    }
}
