//! Kernels for vectors narrower than a panel: the same text for AVX2, AVX-VNNI, NEON, dotprod and (in parts) i8mm.
//!
//! A function that uses an instruction set must name it in an attribute, so that this text is a set of
//! macros, which each instruction set's folder expands once with its features. What they leave to it:
//! ```text
//! vector   types Int, Float, Bytes of LANES rows of W, loads, stores, arithmetic   (x86_64/ymm, aarch64/q)
//! step     part = begin(acc); part = step(part, codes, x, wide, full), ...; acc = end(acc, part, wide && full)
//! ```
//! `step` multiplies the codes of 4 columns with one quad of x and adds. A [`run`] of steps may go into
//! one part, which is 16 bits wide where the instruction set has no int8 dot product.
//!
//! Codes are signed bytes here: those of up to 6 bits as they are (signs as 0 or 2), table entries as
//! they are, 8-bit codes with their top bit flipped. x is `full` where it may hold -128. [`zero_point`] is what then has to be taken off.
//!
//! Code widths are constants only where codes are taken apart (`units`, `decode`); schemes of scales are
//! looked at where a record begins.

mod decode;
pub(super) mod float;
pub(super) mod float_few;
pub(super) mod gemm;
mod gemv;

pub(super) use decode::decode;
pub(super) use float::float;
pub(super) use float_few::float_few;
pub(super) use gemm::{gemm, multiply, multiply_groups};
pub(super) use gemv::gemv;

use crate::kernel::scalar;
use crate::layout::packed::{planes, unit_columns};
use crate::layout::{Coded, Layout, Packed, QUAD, Scales, Values};

/// Quads of a unit of codes of that many bits.
pub(super) const fn unit_quads(bits: u8) -> usize {
    unit_columns(bits) / QUAD
}

/// Lines of a unit for one panel.
pub(super) const fn unit_lines(bits: u8) -> usize {
    let (low, high) = planes(bits);
    unit_columns(bits) * low / 32 + (high != 0) as usize
}

/// Whether codes fill their byte, so that only one step may go into a part.
pub(super) const fn wide(bits: u8, table: bool) -> bool {
    bits == 8 || table
}

/// Steps that may go into a part: a pair of products is in 16 bits at most `2 * 128 * code`, and
/// `4 * 2 * 128 * 31`, `2 * 2 * 128 * 63` and, for wide ones, `2 * 127 * 128` are below 2^15. (With wide
/// codes and x of -128, `full`, steps take another way.) Divides a unit and 4.
pub(super) const fn run(bits: u8, table: bool) -> usize {
    match bits {
        _ if wide(bits, table) => 1,
        4 | 6 => 2, // a unit of 4-bit codes has two quads
        _ => 4,
    }
}

const _: () = {
    let mut bits = 1;
    while bits <= 6 {
        let code = if bits == 1 { 2 } else { (1 << bits) - 1 };
        assert!(run(bits, false) as i32 * 2 * 128 * code < 1 << 15);
        assert!(long_run(bits, false) as i32 * 2 * 128 * code < 1 << 15);
        assert!(unit_quads(bits).is_multiple_of(run(bits, false)) && 4 % run(bits, false) == 0);
        bits += 1;
    }
};

/// The most steps that may go into a part, at most 32, and 1 for wide codes: a power of two, so that it divides groups of
/// 16 and 32 columns or they divide it.
pub(super) const fn long_run(bits: u8, wide: bool) -> usize {
    match bits {
        _ if wide => 1,
        1 | 2 => 32,
        3 => 16,
        4 => 8,
        5 => 4,
        _ => 2,
    }
}

/// The integer to take from a code as the kernels here see it.
pub(super) fn zero_point(coded: &Coded) -> i32 {
    match coded.values {
        Values::Offset(zero) if coded.bits == 8 => zero as i32 - 128,
        Values::Offset(zero) => zero as i32,
        Values::Sign => 1,
        Values::Table(_) => 0,
    }
}

/// Whether a format has such weights. Super-blocks of codes that none has are not worth copies of the kernels for one row:
/// the scalar kernel computes them.
pub(super) fn formats_have(coded: &Coded) -> bool {
    let Scales::TwoLevel { len, .. } = coded.scales else { return true };
    match coded.values {
        // K-quants, IQ1_S (2 bits, 32), IQ4_XS (a table).
        Values::Offset(_) => matches!((coded.bits, len), (2 | 3 | 6, 16) | (2 | 4 | 5, 32)),
        Values::Table(_) => len == 32,
        Values::Sign => false,
    }
}

/// What a kernel for one row needs: where it leaves the work to the scalar kernel, what that does.
pub(super) fn gemv_scratch(packed: &Packed, rows: usize) -> usize {
    match packed.layout() {
        Layout::Coded(coded) if !formats_have(coded) => scalar::scratch(packed, rows),
        _ => 0,
    }
}

/// Where the codes of a panel lie: what `decode` reads.
pub(super) struct Units<'a> {
    /// Records, one after another; the last may be short.
    pub(super) bytes: &'a [u8],
    /// Bytes of a record, and those of its head.
    pub(super) record: usize,
    pub(super) head: usize,
    /// Bytes of a unit: all panels and bases.
    pub(super) unit: usize,
    /// The panel's first line in a unit, and the way from each to its next one.
    pub(super) at: usize,
    pub(super) stride: usize,
}

/// Evaluates an expression with the constant `$rows` equal to the panel's number of rows.
macro_rules! for_rows {
    ([$($n:literal)*] $mr:expr, $rows:ident => $body:expr) => {
        match $mr {
            $($n => { const $rows: usize = $n; $body })*
            _ => unreachable!("a panel has at most the kernel's rows (kernel::run)"),
        }
    };
}

/// Evaluates an expression with the constant `$i` equal to 0, 1, ... below `$count`, at most 12 times: shifts by
/// constants do not depend on what a compiler unrolls.
macro_rules! unrolled {
    // The numbers themselves.
    ([$($n:literal)*], $i:ident => $body:expr) => {{
        $({
            const $i: usize = $n;
            $body;
        })*
    }};
    ($count:expr, $i:ident => $body:expr) => {
        $crate::kernel::narrow::unrolled!(@ $count, $i => $body; 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $count:expr, $i:ident => $body:expr; $($n:literal)*) => {{
        $(if $n < $count {
            const $i: usize = $n;
            $body;
        })*
    }};
}

/// Calls `$f::<BITS, TABLE>` for the width of `$coded`; more constants may stand in brackets.
macro_rules! for_width {
    ($coded:expr, $f:ident $args:tt) => {
        $crate::kernel::narrow::for_width!($coded, $f [] $args)
    };
    ($coded:expr, $f:ident $more:tt $args:tt) => {
        match ($coded.bits, matches!($coded.values, $crate::layout::Values::Table(_))) {
            (1, _) => $crate::kernel::narrow::for_width!(@ 1, false, $f $more $args),
            (2, _) => $crate::kernel::narrow::for_width!(@ 2, false, $f $more $args),
            (3, _) => $crate::kernel::narrow::for_width!(@ 3, false, $f $more $args),
            (4, false) => $crate::kernel::narrow::for_width!(@ 4, false, $f $more $args),
            (4, true) => $crate::kernel::narrow::for_width!(@ 4, true, $f $more $args),
            (5, _) => $crate::kernel::narrow::for_width!(@ 5, false, $f $more $args),
            (6, _) => $crate::kernel::narrow::for_width!(@ 6, false, $f $more $args),
            _ => $crate::kernel::narrow::for_width!(@ 8, false, $f $more $args),
        }
    };
    (@ $bits:literal, $table:literal, $f:ident [$($more:tt),*] $args:tt) => {
        $f::<$bits, $table $(, $more)*> $args
    };
}

/// Calls `$f::<BITS, TABLE, FULL>` for the width of `$coded`; FULL: codes are wide, those of `$x` may be -128, and
/// steps take another way then.
macro_rules! for_width_full {
    ($coded:expr, $x:expr, $f:ident $args:tt) => {
        match (OTHER_WAY && $x.bias != 0, $coded.bits, matches!($coded.values, $crate::layout::Values::Table(_))) {
            (true, 4, true) => $f::<4, true, true> $args,
            (true, 8, _) => $f::<8, false, true> $args,
            _ => $crate::kernel::narrow::for_width!($coded, $f [false] $args),
        }
    };
}

/// An array of kernels that take codes, one for each width and scheme of scales. `$mr` is a pair: most
/// rows where weights have one scale, and where they have groups.
macro_rules! coded_kernels {
    ($isa:ident, $suffix:literal, $kind:ident, $mr:expr, $scratch:expr, $run:expr) => {
        coded_kernels!(@ $isa, $suffix, $kind, $mr, $scratch, $run,
            1 false "w1", 2 false "w2", 3 false "w3", 4 false "w4", 4 true "t4", 5 false "w5",
            6 false "w6", 8 false "w8")
    };
    (@ $isa:ident, $suffix:literal, $kind:ident, $mr:expr, $scratch:expr, $run:expr,
        $($bits:literal $table:literal $w:literal),*) => {
        [$(
            [
                coded_kernels!(@ ($w, "r", $suffix) $isa, $bits, $table, Row, $kind, $mr, $scratch, $run),
                coded_kernels!(@ ($w, "g", $suffix) $isa, $bits, $table, Group, $kind, $mr, $scratch, $run),
                coded_kernels!(@ ($w, "gm", $suffix) $isa, $bits, $table, GroupMinimum, $kind, $mr, $scratch, $run),
                coded_kernels!(@ ($w, "gz", $suffix) $isa, $bits, $table, GroupZero, $kind, $mr, $scratch, $run),
                coded_kernels!(@ ($w, "k", $suffix) $isa, $bits, $table, TwoLevel, $kind, $mr, $scratch, $run),
                coded_kernels!(@ ($w, "km", $suffix) $isa, $bits, $table, TwoLevelMinimum, $kind, $mr, $scratch, $run),
            ]
        ),*]
    };
    (@ ($($name:literal),*) $isa:ident, $bits:literal, $table:literal, $scheme:ident, $kind:ident,
        $mr:expr, $scratch:expr, $run:expr) => {
        Kernel {
            name: concat!($($name),*),
            isa: Isa::$isa,
            layout: LayoutKey::Coded { bits: $bits, table: $table, scheme: Scheme::$scheme },
            activation: Kind::$kind,
            mr: if matches!(Scheme::$scheme, Scheme::Row) { $mr.0 } else { $mr.1 },
            scratch: $scratch,
            run: $run,
        }
    };
}

/// An array of kernels that take plain floats.
macro_rules! dense_kernels {
    ($isa:ident, $suffix:literal, $mr:expr, $scratch:expr, $run:expr) => {
        dense_kernels!(@ $isa, $suffix, $mr, $scratch, $run, F32 "f32", F16 "f16", Bf16 "bf16")
    };
    (@ $isa:ident, $suffix:literal, $mr:expr, $scratch:expr, $run:expr, $($float:ident $w:literal),*) => {
        [$(
            Kernel {
                name: concat!($w, $suffix),
                isa: Isa::$isa,
                layout: LayoutKey::Dense(Float::$float),
                activation: Kind::Float,
                mr: $mr,
                scratch: $scratch,
                run: $run,
            }
        ),*]
    };
}

pub(super) use {coded_kernels, dense_kernels, for_rows, for_width, for_width_full, unrolled};
