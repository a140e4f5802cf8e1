//! The scalar kernels: the text of the numerics contract, and the oracle of all the others.
//!
//! They read weights back with the packer's own reader, row by row, and then say the formulas of
//! `docs/numerics.md` with one accumulator for each output, groups ascending. They are written to be
//! read, not to be fast; every product-and-sum that the contract writes as fma is `mul_add`, which is
//! exact on machines without the instruction too.

use super::{Job, Kernel, LayoutKey};
use crate::activation::{Activations, Codes, Floats, Kind};
use crate::cpu::Isa;
use crate::error::Result;
use crate::layout::{Coded, Layout, Offset, PANEL, Packed, QUAD, Row, SUPER_BLOCK, Scales, TILE};
use crate::limits::INT32_COLUMNS;
use crate::memory::part;

static ALL: [Kernel; 2] = [
    Kernel {
        name: "any_f32_scalar_1x64\0",
        isa: Isa::Scalar,
        layout: LayoutKey::Any,
        activation: Kind::Float,
        mr: 1,
        scratch,
        run: |job| run(job),
    },
    Kernel {
        name: "any_i8_scalar_1x64\0",
        isa: Isa::Scalar,
        layout: LayoutKey::Any,
        activation: Kind::Integer,
        mr: 1,
        scratch,
        run: |job| run(job),
    },
];
pub(super) static KERNELS: &[&[Kernel]] = &[&ALL];

/// Codes of a row.
fn code_count(packed: &Packed) -> usize {
    match packed.layout() {
        Layout::Dense(_) => 0,
        Layout::Coded(coded) => packed.in_features() * coded.bases as usize,
    }
}

pub(super) fn scratch(packed: &Packed, _rows: usize) -> usize {
    let values = 2 * code_count(packed).next_multiple_of(2);
    4 * packed.in_features() + values + Row::scratch(packed.layout(), packed.in_features())
}

pub(super) fn run(job: &mut Job<'_>) -> Result<()> {
    let packed = job.packed;
    let first = job.tile * TILE;
    let lanes = (packed.out_features() - first).min(packed.tile(job.tile).panels * PANEL);
    let codes = code_count(packed);
    let (weights, rest) = part::<f32>(job.scratch, packed.in_features());
    let (values, rest) = part::<i16>(rest, codes.next_multiple_of(2)); // floats come behind it
    let (mut row, _) = Row::lent(packed.layout(), packed.in_features(), rest);
    let values = &mut values[..codes];
    for lane in 0..lanes {
        packed.read_row(first + lane, &mut row);
        match job.x {
            Activations::Float(x) => {
                for (k, w) in weights.iter_mut().enumerate() {
                    *w = row.weight(packed.layout(), k);
                }
                for m in 0..job.rows {
                    job.out[m * TILE + lane] = float_dot(weights, &x, m);
                }
            }
            Activations::Integer(x) => {
                let Layout::Coded(coded) = packed.layout() else { continue };
                for (v, &code) in values.iter_mut().zip(&*row.codes) {
                    *v = coded.values.of(code) as i16; // -255 .. 255
                }
                for m in 0..job.rows {
                    // The scalar kernels take rows one by one, so a panel is a row.
                    job.out[m * TILE + lane] = integer_dot(coded, &row, values, &x.panel(m));
                }
            }
        }
    }
    Ok(())
}

/// `acc = fma(x_k, w_k, acc)`, k ascending.
fn float_dot(weights: &[f32], x: &Floats<'_>, m: usize) -> f32 {
    let x = x.panel(m, weights.len()).values;
    weights.iter().zip(x).fold(0.0, |acc, (&w, &x)| x.mul_add(w, acc))
}

/// `sum v q`, exact: int32 inside at most 65 536 columns, chunks added in int64. `bias` is what was
/// taken from each q to store it.
fn dot(values: &[i16], q: &[i8], bias: i16) -> i64 {
    // wrapping: the chunk length rules overflow out, and checks would keep it from vectorising.
    let product = |(&v, &q): (&i16, &i8)| (v as i32).wrapping_mul((q as i16).wrapping_add(bias) as i32);
    let sum = |(v, q): (&[i16], &[i8])| v.iter().zip(q).map(product).fold(0i32, |sum, p| sum.wrapping_add(p));
    values.chunks(INT32_COLUMNS).zip(q.chunks(INT32_COLUMNS)).map(sum).map(i64::from).sum()
}

/// One output: the sums of a row of integers with a row of activations, under the scheme of its scales.
fn integer_dot(coded: &Coded, row: &Row, values: &[i16], x: &Codes<'_>) -> f32 {
    let (geometry, bias) = (&x.shape.geometry, x.bias as i16);
    match coded.scales {
        Scales::Row => {
            let s_x = x.scales[0];
            let mut bases =
                values.chunks(geometry.in_features).map(|v| dot(v, x.codes, bias) as f32).zip(&*row.scales);
            if coded.bases == 1 {
                return bases.next().map_or(0.0, |(dot, s_w)| dot * (s_w * s_x));
            }
            bases.fold(0.0, |acc, (dot, s_w)| dot.mul_add(s_w * s_x, acc))
        }
        Scales::Group { len, offset } => {
            let mut acc = 0.0f32;
            for (g, v) in values.chunks(len).enumerate() {
                let q = &x.codes[g * geometry.record_padded()..][..v.len()];
                let xsum = || -> i64 { q.iter().map(|&q| q as i64 + bias as i64).sum() };
                let mut dot = dot(v, q, bias);
                if offset == Offset::Zero {
                    dot -= row.zeros[g] as i64 * xsum();
                }
                acc = (dot as f32).mul_add(row.scales[g] * x.scales[g], acc);
                if offset == Offset::Minimum {
                    acc = (xsum() as f32 * x.scales[g]).mul_add(row.minimums[g], acc);
                }
            }
            acc
        }
        Scales::TwoLevel { len, minimum } => {
            let mut acc = 0.0f32;
            for (b, (v, q)) in values.chunks(SUPER_BLOCK).zip(x.codes.chunks(SUPER_BLOCK)).enumerate() {
                let (mut isum, mut msum) = (0, 0);
                for (j, (v, q)) in v.chunks(len).zip(q.chunks(len)).enumerate() {
                    let group = b * (SUPER_BLOCK / len) + j;
                    isum += row.sub_scales[group] as i32 * dot(v, q, bias) as i32;
                    if minimum {
                        msum += row.sub_minimums[group] as i32
                            * q.iter().map(|&q| q as i32 + bias as i32).sum::<i32>();
                    }
                }
                acc = (isum as f32).mul_add(row.scales[b] * x.scales[b], acc);
                if minimum {
                    acc = (msum as f32).mul_add(-(row.minimums[b] * x.scales[b]), acc);
                }
            }
            acc
        }
    }
}

const _: () = assert!(QUAD == 4); // the order of codes in a row of activations is that of columns
