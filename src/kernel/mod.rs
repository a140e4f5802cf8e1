//! Compute: kernels for one layout, one kind of activation and one instruction set each.
//!
//! Kernels are plain data in `const` tables, one table for each instruction set; a layer stores the
//! three it will use (one row of x, few, several), chosen once. The scalar kernels are the text of the
//! numerics contract; every other kernel gives the same bits (`tests/kernels.rs`).
//!
//! This module is the only place where a kernel is called, and with it the only place that has to
//! prove that its instruction set is there and that its slices are as long as it reads.
//!
//! Names: `<layout>_<activation>_<isa>_<mr>x<nr>`. The layout is the code width (`w4`; `t4` through a
//! table) and the scale scheme: `r` row, `g` group, `gm` group with minimum, `gz` group with zero
//! point, `k` two-level, `km` two-level with minima; dense layouts are `f32`, `f16`, `bf16`.

use std::ffi::CStr;

use crate::activation::{Activations, Kind, RowCodes, Rule, Shape, Width};
use crate::cpu::Isa;
use crate::error::Result;
use crate::layout::{Coded, Float, Layout, Offset, Packed, Scales, TILE, Values};
use crate::limits::INT32_COLUMNS;

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod cuda;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod narrow;
pub mod scalar;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

/// One kernel.
pub struct Kernel {
    /// `<layout>_<activation>_<isa>_<mr>x<nr>`, with the NUL that C wants.
    name: &'static str,
    /// The instruction set it needs.
    pub isa: Isa,
    /// The layouts it reads.
    pub layout: LayoutKey,
    /// The activations it reads.
    pub activation: Kind,
    /// Most rows of x in a panel of activations; 1: it takes one row of x.
    pub mr: usize,
    /// Bytes of scratch it needs, 64-byte aligned, for weights of that many columns and a batch.
    pub scratch: fn(&Packed, usize) -> usize,
    /// Computes one tile for a batch of rows.
    pub run: unsafe fn(&mut Job<'_>) -> Result<()>,
}

impl Kernel {
    /// `<layout>_<activation>_<isa>_<mr>x<nr>`.
    pub fn name(&self) -> &'static str {
        &self.name[..self.name.len() - 1]
    }

    /// Whether panels of x have an even number of rows: integers with AVX-512, where a row more is computed and not
    /// stored, for half the code.
    fn pairs(&self) -> bool {
        self.isa == Isa::Avx512Vnni && self.activation == Kind::Integer && self.mr > 1
    }

    /// The same for C.
    pub fn c_name(&self) -> &'static CStr {
        CStr::from_bytes_until_nul(self.name.as_bytes()).unwrap_or(c"")
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a kernel is chosen by: the parts of a layout that its code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutKey {
    /// Plain floats.
    Dense(Float),
    /// Codes of `bits` bits, whether through a table, under a scheme of scales.
    Coded {
        /// Bits of a code.
        bits: u8,
        /// Whether codes go through a table of 16.
        table: bool,
        /// The scheme.
        scheme: Scheme,
    },
    /// Every layout (the scalar kernels).
    Any,
}

/// A scheme of scales without its lengths and types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// One scale a row and base.
    Row,
    /// Groups.
    Group,
    /// Groups with a minimum.
    GroupMinimum,
    /// Groups with an integer zero point.
    GroupZero,
    /// Two levels.
    TwoLevel,
    /// Two levels with minima.
    TwoLevelMinimum,
}

impl LayoutKey {
    /// The key of a layout.
    pub fn of(layout: &Layout) -> LayoutKey {
        match layout {
            Layout::Dense(float) => LayoutKey::Dense(*float),
            Layout::Coded(Coded { bits, values, scales, .. }) => LayoutKey::Coded {
                bits: *bits,
                table: matches!(values, Values::Table(_)),
                scheme: match scales {
                    Scales::Row => Scheme::Row,
                    Scales::Group { offset: Offset::None, .. } => Scheme::Group,
                    Scales::Group { offset: Offset::Minimum, .. } => Scheme::GroupMinimum,
                    Scales::Group { offset: Offset::Zero, .. } => Scheme::GroupZero,
                    Scales::TwoLevel { minimum: false, .. } => Scheme::TwoLevel,
                    Scales::TwoLevel { minimum: true, .. } => Scheme::TwoLevelMinimum,
                },
            },
        }
    }
}

/// One call of a kernel: a tile of weights times a batch of rows.
pub struct Job<'a> {
    /// The weights.
    pub packed: &'a Packed,
    /// Which tile of them.
    pub tile: usize,
    /// The batch, in panels of `mr` rows.
    pub x: Activations<'a>,
    /// Rows of the batch: whole panels except the last.
    pub rows: usize,
    /// Rows x 64 results, row by row, with room for whole panels. Lanes past the last panel of W hold anything.
    pub out: &'a mut [f32],
    /// At least `Kernel::scratch` bytes.
    pub scratch: &'a mut [u8],
}

/// The tables, best first. A new instruction set is one folder and one line here.
static TABLES: &[&[&[Kernel]]] = &[
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vnni::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_64::avxvnni::KERNELS,
    #[cfg(target_arch = "x86_64")]
    x86_64::avx2::KERNELS,
    #[cfg(target_arch = "aarch64")]
    aarch64::i8mm::KERNELS,
    #[cfg(target_arch = "aarch64")]
    aarch64::dotprod::KERNELS,
    #[cfg(target_arch = "aarch64")]
    aarch64::neon::KERNELS,
    scalar::KERNELS,
];

/// Kernels for batches of few rows, best first.
static FEW_TABLES: &[&[&[Kernel]]] = &[
    #[cfg(target_arch = "x86_64")]
    x86_64::avx512vnni::FEW_KERNELS,
];

/// Whether a kernel of [`FEW_TABLES`] was written for such layouts.
#[cfg(target_arch = "x86_64")]
fn few_take(coded: &Coded) -> bool {
    x86_64::avx512vnni::few::takes(coded)
}

/// There are none.
#[cfg(not(target_arch = "x86_64"))]
fn few_take(_: &Coded) -> bool {
    false
}

/// All kernels of this build, whether this CPU runs them or not.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    TABLES.iter().chain(FEW_TABLES).copied().flatten().copied().flatten()
}

/// Batches of so many rows are few: decoding weights once for every eight of them costs less than keeping what was decoded.
///
/// On Intel what takes codes apart is taken from products: 32 rows (an Ice Lake). Wide codes are so up to half as many: there is
/// less to take apart, or more than a register at a time. Where it is not, any number is, but for groups whose ends cost less
/// with three rows and four panels, and for super-blocks (a Zen 4; docs/performance/kernels.md).
fn few_rows(coded: &Coded) -> usize {
    match (coded.bits, coded.scales) {
        (bits, scales) if crate::cpu::decodes_beside_products() => match (bits, scales) {
            (_, Scales::Row) | (_, Scales::Group { offset: Offset::Minimum, .. }) => usize::MAX,
            (1 | 2, Scales::Group { .. }) | (4, Scales::TwoLevel { .. }) => usize::MAX,
            (_, Scales::Group { .. }) => 64,
            (6, Scales::TwoLevel { .. }) => 16,
            (_, Scales::TwoLevel { .. }) => 32,
        },
        (1 | 2, Scales::Row | Scales::Group { .. }) | (4, Scales::TwoLevel { .. }) => 32,
        _ => 16,
    }
}

/// The kernels that a layer uses for one kind of activation.
#[derive(Clone, Copy)]
pub struct Choice {
    /// For one row of x.
    pub gemv: &'static Kernel,
    /// For 2 to `few_rows` rows.
    pub few: &'static Kernel,
    /// 0 where no kernel is made for that.
    pub few_rows: usize,
    /// For several rows; the same one where the instruction set has no own.
    pub gemm: &'static Kernel,
}

/// Chooses the best kernels of `isa` or below for weights of that many columns. `isa` is one that was
/// detected.
pub fn select(layout: &Layout, in_features: usize, activation: Kind, isa: Isa) -> Choice {
    let key = LayoutKey::of(layout);
    // Vector kernels sum a group in int32, and those for several rows a whole row of one base.
    let (long_group, several_sums) = match layout {
        Layout::Dense(_) => (false, false),
        Layout::Coded(coded) => {
            let long = coded.group_len(in_features) > INT32_COLUMNS;
            let row = coded.scales == Scales::Row;
            (long && !row, row && (coded.bases > 1 || in_features > INT32_COLUMNS - 32))
        }
    };
    let fits = |k: &&Kernel| {
        k.isa <= isa
            && k.isa.detected()
            && k.activation == activation
            && (k.layout == key || k.layout == LayoutKey::Any)
            && (k.isa == Isa::Scalar
                || activation == Kind::Float
                || !(long_group || several_sums && k.mr > 1))
    };
    let first = |several: bool| {
        let all = || TABLES.iter().copied().flatten().copied().flatten();
        let best = all().filter(fits).find(|k| (k.mr > 1) == several);
        let other = all().filter(fits).find(|k| (k.mr > 1) != several);
        // A better instruction set beats a kernel made for so many rows; but for one row, a vector
        // kernel that decodes in registers is best (i8mm has none).
        match (best, other) {
            (Some(best), Some(other)) if best.isa >= other.isa || !several && best.isa != Isa::Scalar => best,
            (_, Some(other)) => other,
            (Some(best), None) => best,
            // The scalar table has `Any` for both kinds.
            (None, None) => &scalar::KERNELS[0][(activation == Kind::Integer) as usize],
        }
    };
    let gemm = first(true);
    let few = || FEW_TABLES.iter().copied().flatten().copied().flatten().find(fits);
    let few = match layout {
        Layout::Coded(coded) if few_take(coded) => few().filter(|few| few.isa >= gemm.isa),
        _ => None,
    };
    let few_rows = match (few, layout) {
        (Some(_), Layout::Coded(coded)) => few_rows(coded),
        _ => 0,
    };
    let gemv = first(false);
    if few.is_none() && gemv.isa == Isa::Avx2 && gemv.mr == 1 {
        return Choice { gemv, few: gemv, few_rows: one_by_one(layout), gemm };
    }
    Choice { gemv, few: few.unwrap_or(gemm), few_rows, gemm }
}

/// So many rows are computed one by one where AVX2 is the best there is: weights of one plane are taken apart in
/// registers in less time than several rows take to store and load them. Measured on a Zen 3: 1.05 to 1.35 times
/// as fast; wide codes gain nothing from more rows, because each product costs as much with one of them.
fn one_by_one(layout: &Layout) -> usize {
    match layout {
        Layout::Coded(Coded { bits: 8, scales: Scales::Group { .. } | Scales::TwoLevel { .. }, .. }) => 3,
        Layout::Coded(Coded { bits: 1 | 2 | 4 | 8, .. }) => 2,
        _ => 1,
    }
}

/// Runs a kernel. The only call of a kernel in the crate. Kernels have a row of x at least.
pub(crate) fn run(kernel: &Kernel, job: &mut Job<'_>) -> Result<()> {
    if job.rows == 0 {
        return Ok(());
    }
    assert!(kernel.layout == LayoutKey::Any || kernel.layout == LayoutKey::of(job.packed.layout()));
    assert!(job.scratch.len() >= (kernel.scratch)(job.packed, job.rows));
    let geometry = job.packed.geometry();
    let (mr, panels) = match job.x {
        Activations::Float(x) => {
            let panels = job.rows.div_ceil(x.mr);
            assert!(
                kernel.activation == Kind::Float && x.values.len() >= panels * geometry.in_features * x.mr
            );
            (x.mr, panels)
        }
        Activations::Integer(x) => {
            let panels = job.rows.div_ceil(x.mr);
            assert!(kernel.activation == Kind::Integer && x.shape.geometry == *geometry);
            assert!(x.codes.len() >= panels * x.shape.quads * 4 * x.mr);
            assert!(x.scales.len() >= panels * geometry.records * x.mr);
            assert!(x.sums.len() >= panels * x.shape.groups * x.mr && x.totals.len() >= x.sums.len());
            assert!(x.bias == 0 || x.weight_sums.len() >= x.shape.groups * TILE);
            (x.mr, panels)
        }
    };
    assert!(mr <= kernel.mr && job.out.len() >= panels * mr * TILE);
    // SAFETY: the instruction set was detected when the kernel was chosen (`select`, the only place that
    // hands out kernels for use). Kernels read weights through checked
    // slices of `packed.tile`, and x, out and scratch within the lengths asserted above.
    unsafe { (kernel.run)(job) }
}

/// Rows of a panel for a batch of `m` rows that each of these kernels takes: as even as panels of at most
/// their `mr` allow, so that a batch of 7 is 4 + 3 and not 6 + 1.
pub fn panel_rows(kernels: impl Iterator<Item = &'static Kernel>, m: usize) -> usize {
    let mut pairs = false;
    let rows = |kernel: &'static Kernel| {
        pairs |= kernel.pairs();
        let rows = m.div_ceil(m.div_ceil(kernel.mr).max(1)).max(1);
        if kernel.pairs() { rows.next_multiple_of(2) } else { rows }
    };
    let rows = kernels.map(rows).min().unwrap_or(1);
    // Fewer than a kernel of pairs wants, because another one takes fewer.
    if pairs && rows > 1 { rows & !1 } else { rows }
}

/// Plain Rust that is worth compiling for each instruction set, because compilers vectorise it. Its
/// operations are exact or elementwise (or in an order that the text fixes), so that every compilation
/// gives the same bits.
pub trait Portable {
    /// What it gives.
    type Output;
    /// Does it. Write `#[inline(always)]` here and on what it calls: only code that is inlined gets
    /// the instructions.
    fn run(self) -> Self::Output;
}

/// Runs that instruction set's compilation.
pub fn compiled<P: Portable>(isa: Isa, work: P) -> P::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a layer's instruction set was detected when it was chosen (`Isa::detected`).
        Isa::Avx512Vnni => unsafe { x86_64::avx512vnni::compiled(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe { x86_64::avx2::compiled(work) },
        _ => work.run(),
    }
}

/// Quantises one row of x with the instruction set's compilation of `activation::quantize_row`.
pub fn quantize_row(isa: Isa, x: &[f32], shape: &Shape, rule: &Rule, out: &mut RowCodes<'_>) -> bool {
    assert!(x.len() == shape.geometry.in_features);
    assert!(out.codes.len() == shape.quads * 4 && out.scales.len() == shape.geometry.records);
    assert!(out.sums.len() == shape.groups);
    assert!(out.totals.len() == if rule.width == Width::Uint8 { shape.groups } else { 0 });
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a layer's instruction set was detected when it was chosen (`Isa::detected`).
        Isa::Avx512Vnni => unsafe { x86_64::avx512vnni::quantize_row(x, shape, rule, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 | Isa::AvxVnni => unsafe { x86_64::avx2::quantize_row(x, shape, rule, out) },
        // NEON is in every compilation for AArch64.
        _ => crate::activation::quantize_row(x, shape, rule, out),
    }
}
