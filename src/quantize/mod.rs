//! Float weights -> codes and scales: the rules by which weights are rounded, row by row as they are
//! read.
//!
//! ```text
//! target              fixed rule                                                 file
//! ternary             BitNet: one scale, mean |w| of the matrix; and others      ternary
//! binary              sign; mean |w| of the row                                  sign
//! int8                max |w| / 127 of the row, halves to even; and another      int8
//! int4                max |w| / 7 of a group, halves away from zero (cortex)     int4
//! q8_0, tq2_0, ...    what the format's own tool writes, byte for byte           exact
//! f32, f16, bf16      the nearest, ties to even                                  dense
//!
//! scales by search    least square error, weighted or not; all K-quants          search, fit
//! calibration         moments of the inputs; errors made up for                  moments, compensate
//! any of these        a matrix, panel by panel                                   rounding
//! ```
//! A weight that is not finite is refused: no scale can stand for it. `docs/quantize.md` has formulas
//! and figures.

mod calibration;
mod compensate;
mod dense;
mod exact;
mod fit;
mod int4;
mod int8;
mod moments;
mod rounding;
mod search;
mod sign;
mod ternary;

pub use calibration::Calibration;
pub use moments::{BLOCK as MOMENTS_BLOCK, Moments};
pub use rounding::{DAMPING, Kind, Method, PANEL_ROWS, Rounded as RoundedRows, Rounding};

use std::sync::Mutex;

use crate::cpu::Isa;
use crate::error::{Result, fail};
use crate::kernel::{self, Portable};
use crate::layout::{Layout, Matrix, Row};
use crate::math::Mean;
use crate::memory::filled;
use crate::types::Type;

/// A rule by which rows are rounded.
trait Rule: Sync {
    /// What the rows become.
    fn layout(&self) -> Layout;
    /// Rounds the weights of one row into `row`, which was made for [`Rule::layout`]; `bytes` is room of
    /// [`Rule::bytes`]. The weights are finite, unless the rule is `dense`.
    fn round(&self, weights: &[f32], bytes: &mut [u8], row: &mut Row) -> Result<()>;
    /// The same for row `index`, where it matters which one it is.
    fn round_at(&self, index: usize, weights: &[f32], bytes: &mut [u8], row: &mut Row) -> Result<()> {
        let _ = index;
        self.round(weights, bytes, row)
    }
    /// The scales that all rows have in common.
    fn tensor_scales(&self) -> Option<&[f32]> {
        None
    }
    /// Bytes of room that a row takes.
    fn bytes(&self) -> usize {
        0
    }
    /// Whether weights that are not finite are passed on.
    fn takes_all(&self) -> bool {
        false
    }
}

/// Runs a piece of rounding in the compilation for an instruction set. AVX2's serves AVX-512 too: a
/// third copy of every search would cost the library more bytes than it gains time.
fn compiled<P: Portable>(isa: Isa, work: P) -> P::Output {
    match isa {
        Isa::Avx512Vnni | Isa::AvxVnni => kernel::compiled(Isa::Avx2, work),
        isa => kernel::compiled(isa, work),
    }
}

/// What rounding needs for one row.
struct Scratch {
    row: Row<'static>,
    bytes: Vec<u8>,
}

/// A matrix of floats, rounded as it is read.
struct Rounded<'a> {
    source: &'a dyn Matrix,
    rule: Box<dyn Rule + 'a>,
    target: Type,
    scratch: Mutex<Vec<Scratch>>,
}

/// The layout of a type whose groups are open.
pub fn group_layout(ty: Type, columns: usize, group: usize) -> Layout {
    match ty {
        Type::Int4 => int4::layout(columns, group),
        _ => ternary::group_layout(columns, group),
    }
}

/// Whether floats may be rounded to that type; some of those that may be asked for cannot be written.
pub fn is_target(ty: Type) -> bool {
    matches!(ty, Type::Ternary | Type::Binary | Type::Int8 | Type::Int4) || crate::codec::find(ty).is_ok()
}

/// A matrix of plain floats as one of `target`, by its fixed rule. `group` is the length of groups where
/// the target leaves it open (0: 128, or the row where it is shorter).
pub fn round<'a>(source: &'a dyn Matrix, target: Type, group: usize) -> Result<Box<dyn Matrix + 'a>> {
    let method = Method { group, ..Method::plain(target) };
    let rule = rule_of(source, &method)?;
    Ok(Box::new(Rounded { source, rule, target, scratch: Mutex::default() }))
}

/// The fixed rule of a method.
fn rule_of<'a>(source: &'a dyn Matrix, method: &Method<'_>) -> Result<Box<dyn Rule + 'a>> {
    let Method { target, group, kind, .. } = *method;
    let Layout::Dense(float) = source.layout() else {
        return Err(fail!(Unsupported, "only plain floats are rounded to {}", target.name()));
    };
    let from = match float {
        crate::layout::Float::F32 => "f32",
        crate::layout::Float::F16 => "f16",
        crate::layout::Float::Bf16 => "bf16",
    };
    let grouped = matches!(target, Type::Int4 | Type::Ternary | Type::TernaryBlock);
    if group != 0 && !grouped {
        return Err(fail!(InvalidArgument, "group_size {group}: the groups of {} are fixed", target.name()));
    }
    let ternary = matches!(target, Type::Ternary | Type::BitnetHf | Type::I2S | Type::Ternary2);
    let bases = method.bases.max(1);
    if bases > 1 && (target != Type::Ternary || group != 0 || bases > crate::codec::cortex::BASES_MAX) {
        return Err(fail!(
            InvalidArgument,
            "{bases} bases of {}: 1, or 1 to 8 of ternary without groups",
            target.name()
        ));
    }
    let allowed = match kind {
        Kind::Usual => true,
        Kind::Absmax | Kind::Threshold => ternary && group == 0,
        Kind::MeanRange => target == Type::Int8,
        Kind::Tensor => target == Type::Binary,
    };
    if !allowed {
        return Err(fail!(InvalidArgument, "the rule {kind:?} is not one of {}", target.name()));
    }
    let columns = source.in_features();
    Ok(match target {
        Type::F32 | Type::F16 | Type::Bf16 => Box::new(dense::Dense::new(target)),
        Type::Ternary if group != 0 => Box::new(ternary::Groups::new(columns, group)),
        // burn_dragon's own rule where nothing else is asked for.
        Type::Ternary2 if kind == Kind::Usual => Box::new(ternary::Ternary::of(source, Kind::Threshold, 1)?),
        _ if ternary => Box::new(ternary::Ternary::of(source, kind, bases)?),
        Type::TernaryBlock => Box::new(ternary::FlatBlocks::of(source, group)?),
        Type::Binary => Box::new(sign::Sign::of(source, kind)?),
        Type::Int8 => Box::new(int8::Int8::of(source, kind)?),
        Type::Int4 => Box::new(int4::Int4::new(columns, group)),
        _ => Box::new(
            exact::Exact::new(target, columns)
                .map_err(|e| e.within(format_args!("rounding {from} weights to {}", target.name())))?,
        ),
    })
}

/// `mean |w|` of the whole matrix.
fn flat_mean(source: &dyn Matrix, target: Type) -> Result<f32> {
    let mut row = Row::new(source.layout(), source.in_features())?;
    let mut mean = Mean::default();
    for index in 0..source.out_features() {
        source.read_row(index, &mut row)?;
        check_finite(index, &row.floats, target)?;
        mean.add_magnitudes(&row.floats);
    }
    Ok(mean.value())
}

/// The first weight that is not finite, as an error.
fn check_finite(index: usize, weights: &[f32], target: Type) -> Result<()> {
    if crate::nearest::all_finite(weights) {
        return Ok(());
    }
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
            .round_at(index, weights, &mut scratch.bytes, row)
            .map_err(|e| e.within(format_args!("row {index}")))?;
        let mut resting = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        if resting.try_reserve(1).is_ok() {
            resting.push(scratch);
        }
        Ok(())
    }
}
