//! What backward passes are made of: products of plain f32 on the kernels that forward passes use, so
//! that gradients have the same bits on every CPU and for any number of threads.

use crate::codes::check_finite;
use crate::cpu::Isa;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::layer::{self, Activation, Extra, Linear, Options, Target};
use crate::layout::Packed;
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::{Heap, filled, reserve};

/// Who computes, and where memory comes from.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The kernels.
    pub isa: Isa,
    /// Memory.
    pub heap: &'a Heap,
    /// Threads.
    pub executor: &'a Executor,
    /// Whether times are taken.
    pub timed: bool,
}

/// Weights that floats are multiplied with.
pub struct Weights(Linear);

impl Weights {
    /// Panels as weights.
    pub fn new(packed: Packed, machine: &Machine<'_>) -> Result<Weights> {
        let options = Options { activation: Activation::F32, ..Options::default() };
        Linear::of(packed, &options, machine.isa).map(Weights)
    }

    /// `y = x Wᵀ` (or `y += `, as its view says) for `m` rows of floats.
    pub fn multiply(
        &self,
        m: usize,
        x: MatrixRef<'_>,
        y: MatrixMut<'_>,
        machine: &Machine<'_>,
    ) -> Result<()> {
        self.0.forward(m, x, y, None, machine.heap, machine.executor)
    }
}

impl Machine<'_> {
    /// `dw[r, c] += sum over t of left[t, r] * right[t, c]` for `tokens` rows t: what a gradient of weights
    /// is. Each sum is one chain of fused multiply-adds in the order of t.
    pub fn accumulate(
        &self,
        tokens: usize,
        [rows, columns]: [usize; 2],
        left: &mut dyn FnMut(usize, &mut [f32]),
        right: &mut dyn FnMut(usize, &mut [f32]),
        dw: MatrixMut<'_>,
    ) -> Result<()> {
        let right = Packed::transposed(tokens, columns, self.heap, right)?;
        let left = transpose(tokens, rows, left)?;
        let left = MatrixRef::of(&left, tokens);
        Weights::new(right, self)?.multiply(rows, left, dw.accumulating(true), self)
    }
}

/// The transpose of a matrix [rows, columns] that `read` gives row by row, in blocks that stay in the
/// cache.
fn transpose(rows: usize, columns: usize, read: &mut dyn FnMut(usize, &mut [f32])) -> Result<Vec<f32>> {
    const BLOCK: usize = 16;
    let mut out = filled(rows.saturating_mul(columns), 0.0f32, "a transposed matrix")?;
    let mut block = filled(BLOCK * columns, 0.0f32, "rows of a matrix")?;
    for first in (0..rows).step_by(BLOCK) {
        let count = BLOCK.min(rows - first);
        for i in 0..count {
            read(first + i, &mut block[i * columns..][..columns]);
        }
        for (c, out) in out.chunks_exact_mut(rows).enumerate() {
            for (i, out) in out[first..first + count].iter_mut().enumerate() {
                *out = block[i * columns + c];
            }
        }
    }
    Ok(out)
}

/// The x of a forward call.
pub enum Input<'a> {
    /// As it was.
    Floats(MatrixRef<'a>),
    /// Writes what the codes of a row stand for, and tells their scale.
    Codes(&'a dyn Fn(usize, &mut [f32]) -> f32),
}

/// A backward call of a layer.
pub struct Backward<'a> {
    /// Rows.
    pub m: usize,
    /// The x of the forward call.
    pub x: Input<'a>,
    /// The gradient of y.
    pub dy: MatrixRef<'a>,
    /// The y that it gave; without it, y is computed again where it is needed.
    pub y: Option<MatrixRef<'a>>,
    /// The gradient of x, written.
    pub dx: Option<MatrixMut<'a>>,
    /// That of the weights, added to.
    pub dw: Option<MatrixMut<'a>>,
    /// That of the bias, added to.
    pub db: Option<&'a mut [f32]>,
}

/// Gradients of a layer, straight through the rounding of weights and activations:
///
/// ```text
/// g = dy, after a ReLU 0 where y is not above 0
/// dx = g W (code * scale)     dw += gᵀ x (code * scale)     db += the rows of g
/// ```
pub fn backward(layer: &Linear, call: Backward<'_>, machine: &Machine<'_>) -> Result<()> {
    let Backward { m, x, dy, y, dx, dw, db } = call;
    let (n, k) = (layer.out_features(), layer.in_features());
    let relu = match layer.epilogue() {
        Epilogue::None => false,
        Epilogue::Relu { .. } => true,
        other => return Err(fail!(Unsupported, "the gradient of epilogue {other:?}")),
    };
    if layer.has_front() || layer.packed().permutation().is_some() {
        return Err(fail!(Unsupported, "the gradient of a layer with a norm, a rotation or sorted columns"));
    }
    if m == 0 {
        return Ok(());
    }
    // The rows of x as the kernels took them, and their scales where the codes are given.
    let mut taken = filled(m.saturating_mul(k), 0.0f32, "rounded activations")?;
    let mut scales = Vec::new();
    match &x {
        Input::Floats(x) => {
            let mut room = layer.input_room()?;
            for (r, row) in taken.chunks_exact_mut(k).enumerate() {
                x.read_row(r, row);
                check_finite(row, r * k, "x")?;
                layer.round_input(row, &mut room);
            }
        }
        Input::Codes(read) => {
            reserve(&mut scales, m, "scales")?;
            for (r, row) in taken.chunks_exact_mut(k).enumerate() {
                scales.push(read(r, row));
                check_finite(row, r * k, "the codes' values")?;
            }
        }
    }
    let mut g = filled(m.saturating_mul(n), 0.0f32, "a gradient")?;
    if relu {
        match &y {
            Some(y) => g.chunks_exact_mut(n).enumerate().for_each(|(r, row)| y.read_row(r, row)),
            None => {
                // The forward call again: from x, or from its codes under their own scales.
                let scales = if layer.rule().is_some() { &scales[..] } else { &[] };
                let x = match x {
                    Input::Floats(x) => x,
                    Input::Codes(_) => MatrixRef::of(&taken, k),
                };
                let target = Target::new(layer, MatrixMut::of(&mut g, n));
                let extra = Extra { scales, stages: None };
                layer::forward_with(&[target], m, x, extra, None, machine.heap, machine.executor)?;
            }
        }
        check_finite(&g, 0, "y")?;
    }
    let mut row = filled(n, 0.0f32, "a row of dy")?;
    for (r, g) in g.chunks_exact_mut(n).enumerate() {
        dy.read_row(r, &mut row);
        check_finite(&row, r * n, "dy")?;
        for (g, dy) in g.iter_mut().zip(&row) {
            *g = if relu && *g <= 0.0 { 0.0 } else { *dy };
        }
    }
    let factor = layer.product_scale().unwrap_or(1.0);
    let weights = match dx {
        None => None,
        Some(dx) => {
            let mut row = layer.packed().row()?;
            let mut read = |i: usize, w: &mut [f32]| layer.read_weights(i, &mut row, w);
            Some((Weights::new(Packed::transposed(n, k, machine.heap, &mut read)?, machine)?, dx))
        }
    };
    if let Some(dw) = dw {
        let mut left = |r: usize, out: &mut [f32]| {
            out.iter_mut().zip(&g[r * n..]).for_each(|(out, g)| *out = g * factor);
        };
        let mut right = |r: usize, out: &mut [f32]| out.copy_from_slice(&taken[r * k..][..k]);
        machine.accumulate(m, [n, k], &mut left, &mut right, dw)?;
    }
    if let Some((weights, dx)) = weights {
        weights.multiply(m, MatrixRef::of(&g, n), dx, machine)?;
    }
    if let Some(db) = db {
        g.chunks_exact(n).for_each(|g| db.iter_mut().zip(g).for_each(|(db, g)| *db += g));
    }
    Ok(())
}
