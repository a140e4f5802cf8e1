//! Float weights -> codes and scales: the rules by which weights are rounded, row by row as they are
//! read.
//!
//! ```text
//! target              rule                                                       file
//! ternary             BitNet: one scale, mean |w| of the matrix                  ternary
//! binary              sign; mean |w| of the row                                  sign
//! int8                max |w| / 127 of the row, halves to even                   int8
//! int4                max |w| / 7 of a group, halves away from zero (cortex)     int4
//! q8_0, tq2_0, ...    what the format's own tool writes, byte for byte           exact
//! f32, f16, bf16      the nearest, ties to even                                  dense
//! ```
//! A weight that is not finite is refused: no scale can stand for it.

mod dense;
mod exact;
mod int4;
mod int8;
mod sign;
mod ternary;

use std::sync::Mutex;

use crate::codec::Matrix;
use crate::error::{Result, fail};
use crate::layout::{Layout, Row};
use crate::memory::filled;
use crate::types::Type;

/// A rule by which rows are rounded.
trait Rule: Sync {
    /// What the rows become.
    fn layout(&self) -> Layout;
    /// Rounds the weights of one row into `row`, which was made for [`Rule::layout`]; `bytes` is room of
    /// [`Rule::bytes`]. The weights are finite, unless the rule is `dense`.
    fn round(&self, weights: &[f32], bytes: &mut [u8], row: &mut Row) -> Result<()>;
    /// Bytes of room that a row takes.
    fn bytes(&self) -> usize {
        0
    }
    /// Whether weights that are not finite are passed on.
    fn takes_all(&self) -> bool {
        false
    }
}

/// What rounding needs for one row.
struct Scratch {
    row: Row,
    bytes: Vec<u8>,
}

/// A matrix of floats, rounded as it is read.
struct Rounded<'a> {
    source: &'a dyn Matrix,
    rule: Box<dyn Rule + 'a>,
    target: Type,
    scratch: Mutex<Vec<Scratch>>,
}

/// Whether floats may be rounded to that type; some of those that may be asked for cannot be written.
pub fn is_target(ty: Type) -> bool {
    matches!(ty, Type::Ternary | Type::Binary | Type::Int8 | Type::Int4) || crate::codec::find(ty).is_ok()
}

/// A matrix of plain floats as one of `target`. `group` is the length of groups where the target leaves
/// it open (0: 128, or the row where it is shorter).
pub fn round<'a>(source: &'a dyn Matrix, target: Type, group: usize) -> Result<Box<dyn Matrix + 'a>> {
    let Layout::Dense(float) = source.layout() else {
        return Err(fail!(Unsupported, "only plain floats are rounded to {}", target.name()));
    };
    let from = match float {
        crate::layout::Float::F32 => "f32",
        crate::layout::Float::F16 => "f16",
        crate::layout::Float::Bf16 => "bf16",
    };
    if group != 0 && target != Type::Int4 {
        return Err(fail!(InvalidArgument, "group_size {group}: the groups of {} are fixed", target.name()));
    }
    let columns = source.in_features();
    let rule: Box<dyn Rule> = match target {
        Type::F32 | Type::F16 | Type::Bf16 => Box::new(dense::Dense::new(target)),
        Type::Ternary => Box::new(ternary::Ternary::of(source)?),
        Type::Binary => Box::new(sign::Sign),
        Type::Int8 => Box::new(int8::Int8),
        Type::Int4 => Box::new(int4::Int4::new(columns, group)),
        _ => Box::new(
            exact::Exact::new(target, columns)
                .map_err(|e| e.within(format_args!("rounding {from} weights to {}", target.name())))?,
        ),
    };
    Ok(Box::new(Rounded { source, rule, target, scratch: Mutex::default() }))
}

/// The first weight that is not finite, as an error.
fn check_finite(index: usize, weights: &[f32], target: Type) -> Result<()> {
    match weights.iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(k) => Err(fail!(
            InvalidArgument,
            "weight [{index}, {k}] is {}: it cannot be rounded to {}",
            weights[k],
            target.name()
        )),
    }
}

impl Matrix for Rounded<'_> {
    fn layout(&self) -> Layout {
        self.rule.layout()
    }
    fn out_features(&self) -> usize {
        self.source.out_features()
    }
    fn in_features(&self) -> usize {
        self.source.in_features()
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.source.permutation()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let resting = self.scratch.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut scratch = match resting {
            Some(scratch) => scratch,
            None => Scratch {
                row: Row::new(self.source.layout(), self.source.in_features())?,
                bytes: filled(self.rule.bytes(), 0, "a packed row")?,
            },
        };
        self.source.read_row(index, &mut scratch.row)?;
        let weights = &scratch.row.floats;
        if !self.rule.takes_all() {
            check_finite(index, weights, self.target)?;
        }
        self.rule
            .round(weights, &mut scratch.bytes, row)
            .map_err(|e| e.within(format_args!("row {index}")))?;
        let mut resting = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        if resting.try_reserve(1).is_ok() {
            resting.push(scratch);
        }
        Ok(())
    }
}
