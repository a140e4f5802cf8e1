//! Gradients of layers, straight through the rounding of weights and activations: products of plain f32
//! (`gemm`) with what codes and scales stand for.

use crate::codes::check_finite;
use crate::cpu::Isa;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::gemm::{Floats, product};
use crate::layer::{self, Extra, Linear, Target};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::{Heap, filled, reserve};

/// Who computes, and where memory comes from.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The kernels of forward calls.
    pub isa: Isa,
    /// Memory.
    pub heap: &'a Heap,
    /// Threads.
    pub executor: &'a Executor,
    /// Whether times are taken.
    pub timed: bool,
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
                layer.round_input(row, &mut room)?;
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
    let gradient = Floats::new(&g, [m, n]);
    // dx first: where memory is short for dw, nothing has been added to it.
    if let Some(dx) = dx {
        let weights = layer.weights(n)?;
        let weights = Floats::new(&weights, [n, k]);
        product(1.0, gradient, weights, dx, machine.heap, machine.executor)?;
    }
    if let Some(dw) = dw {
        let factor = layer.product_scale().unwrap_or(1.0);
        let (g, x) = (gradient.transposed(), Floats::new(&taken, [m, k]));
        product(factor, g, x, dw.accumulating(true), machine.heap, machine.executor)?;
    }
    if let Some(db) = db {
        g.chunks_exact(n).for_each(|g| db.iter_mut().zip(g).for_each(|(db, g)| *db += g));
    }
    Ok(())
}
