//! Gradients of projections of heads, straight through the rounding.
//!
//! ```text
//! g = dy, and with a threshold 0 where y - threshold is not above 0
//! dx = g times the rounded weights (code * scale)     summed over heads that share x
//! dw += rounded x (code * scale), transposed, times g
//! ```
//! Rounding passes gradients as they are: nothing is masked where it clips, and none goes through a
//! scale. Source: burn_dragon's training projections, rows B41 to B44 of its features; the input's
//! gradient always takes the rounded weights.

use super::{Around, Batch, Coder, Kind, Projection, Shape};
use crate::codes::{Format, check_finite};
use crate::error::{Result, fail};
use crate::gemm::{Floats, product};
use crate::layout::Row;
use crate::matrix::MatrixMut;
use crate::memory::filled;
use crate::train::Machine;

/// The x of the forward call.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// As it was.
    Floats(&'a [f32]),
    /// The codes that [`Projection::save`] gave.
    Saved(&'a [u8], &'a [f32]),
}

/// A backward call.
pub struct Backward<'a> {
    /// The shape of the forward call.
    pub batch: Batch,
    /// Its x.
    pub x: Input<'a>,
    /// The gradient of y.
    pub dy: &'a [f32],
    /// The threshold of the forward call (low-rank only).
    pub threshold: Option<f32>,
    /// The y that it gave; without it, y is computed again.
    pub y: Option<&'a [f32]>,
    /// The gradient of x, written.
    pub dx: Option<&'a mut [f32]>,
    /// That of the weights, in the order of the masters, added to.
    pub dw: Option<&'a mut [f32]>,
}

impl Projection {
    /// Bytes of codes and number of scales that [`Projection::save`] writes.
    pub fn saved_sizes(&self, batch: &Batch, format: Format) -> Result<(usize, usize)> {
        self.sizes(batch)?;
        let rows = self.rows(batch);
        let bytes = format.row_bytes(self.row_columns(batch)).checked_mul(rows);
        match bytes.filter(|n| *n <= isize::MAX as usize) {
            Some(bytes) => Ok((bytes, format.scales(rows).max(1))),
            None => Err(fail!(InvalidArgument, "saved activations are more than an address space")),
        }
    }

    /// Keeps x for a backward call: the codes that the forward call multiplies, token by token (a tail's
    /// in runs of 32, filled with 0), and their scales.
    pub fn save(&self, batch: &Batch, x: &[f32], codes: &mut [u8], scales: &mut [f32]) -> Result<()> {
        let (x_count, _) = self.sizes(batch)?;
        if x.len() != x_count {
            return Err(fail!(InvalidArgument, "{} values of x, {x_count} expected", x.len()));
        }
        self.check_saved(batch, codes.len(), scales.len())?;
        check_finite(x, 0, "x")?;
        if x.is_empty() {
            return Ok(());
        }
        if self.input.width.is_none()
            && let Some(k) = x.iter().position(|v| v.abs() >= 65520.0)
        {
            return Err(fail!(InvalidArgument, "value {k} of x is {}: beyond the range of f16", x[k]));
        }
        let found = self.scales(batch, x)?;
        let columns = self.row_columns(batch);
        let mut row = filled(columns, 0.0f32, "a row")?;
        let mut coder = Coder::new(self.input, columns, self.isa)?;
        let one = self.shares_scale();
        for (r, bytes) in codes.chunks_exact_mut(self.input.row_bytes(columns)).enumerate() {
            self.read_row(batch, x, r, &mut row);
            let fixed = found.get(if found.len() == 1 { 0 } else { r }).copied();
            scales[if one { 0 } else { r }] = coder.encode(&row, fixed, bytes)?;
        }
        Ok(())
    }

    /// Whether saved rows have one scale.
    fn shares_scale(&self) -> bool {
        self.input.per_tensor || self.input.width.is_none()
    }

    fn check_saved(&self, batch: &Batch, codes: usize, scales: usize) -> Result<()> {
        let expected = self.saved_sizes(batch, self.input)?;
        if (codes, scales) == expected {
            return Ok(());
        }
        Err(fail!(
            InvalidArgument,
            "{codes} bytes of codes and {scales} scales, {} and {} expected",
            expected.0,
            expected.1
        ))
    }

    /// The rows of x as the kernels took them, code * scale: [rows, columns].
    fn taken(&self, batch: &Batch, x: Input<'_>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (columns, rows) = (self.row_columns(batch), self.rows(batch));
        let mut taken = filled(rows.saturating_mul(columns), 0.0f32, "rounded activations")?;
        let mut coder = Coder::new(self.input, columns, self.isa)?;
        let row_bytes = self.input.row_bytes(columns);
        match x {
            Input::Saved(codes, scales) => {
                let rows = taken.chunks_exact_mut(columns).zip(codes.chunks_exact(row_bytes));
                for (r, (row, bytes)) in rows.enumerate() {
                    coder.decode(bytes, scales[if self.shares_scale() { 0 } else { r }], row);
                }
                let mut copy = filled(scales.len(), 0.0f32, "scales")?;
                copy.copy_from_slice(scales);
                Ok((taken, copy))
            }
            Input::Floats(x) => {
                let found = self.scales(batch, x)?;
                let mut scales = filled(rows, 0.0f32, "scales")?;
                let mut bytes = filled(row_bytes, 0u8, "a row of codes")?;
                for (r, row) in taken.chunks_exact_mut(columns).enumerate() {
                    self.read_row(batch, x, r, row);
                    if self.input.width.is_some() {
                        let fixed = found.get(if found.len() == 1 { 0 } else { r }).copied();
                        scales[r] = coder.encode(row, fixed, &mut bytes)?;
                        coder.decode(&bytes, scales[r], row);
                    }
                }
                Ok((taken, scales))
            }
        }
    }

    /// Gradients. Everything is checked before anything is written.
    pub fn backward(&self, call: Backward<'_>, machine: &Machine<'_>) -> Result<()> {
        let Backward { batch, x, dy, threshold, y, dx, dw } = call;
        let (x_count, y_count) = self.sizes(&batch)?;
        let check = |what: &str, len: usize, expected: usize| match len == expected {
            true => Ok(()),
            false => Err(fail!(InvalidArgument, "{len} values of {what}, {expected} expected")),
        };
        match x {
            Input::Floats(x) => {
                check("x", x.len(), x_count)?;
                check_finite(x, 0, "x")?;
            }
            Input::Saved(codes, scales) => {
                self.check_saved(&batch, codes.len(), scales.len())?;
                check_finite(scales, 0, "scales")?;
            }
        }
        check("dy", dy.len(), y_count)?;
        check_finite(dy, 0, "dy")?;
        if let Some(y) = y {
            check("y", y.len(), y_count)?;
            check_finite(y, 0, "y")?;
        }
        if let Some(dx) = &dx {
            check("dx", dx.len(), x_count)?;
        }
        if let Some(dw) = &dw {
            check("dw", dw.len(), self.shape.count()?)?;
        }
        if threshold.is_some() && self.shape.kind == Kind::Tail {
            return Err(fail!(InvalidArgument, "a decoder tail has no threshold"));
        }
        if threshold.is_some_and(|t| !t.is_finite()) {
            return Err(fail!(InvalidArgument, "the threshold is {threshold:?}"));
        }
        if y_count == 0 {
            return Ok(());
        }
        let (taken, scales) = self.taken(&batch, x)?;
        match self.shape.kind {
            Kind::Lowrank => {
                let g = match threshold {
                    None => None,
                    Some(threshold) => Some(self.masked(&batch, &taken, &scales, dy, y, threshold, machine)?),
                };
                self.lowrank(&batch, &taken, g.as_deref().unwrap_or(dy), dx, dw, machine)
            }
            Kind::Tail => self.back_from_tail(&batch, &taken, dy, dx, dw, machine),
        }
    }

    /// dy where y is above 0, else 0. Where y is not given it is computed from the same codes again, and
    /// so is the same to the bit.
    fn masked(
        &self,
        batch: &Batch,
        taken: &[f32],
        scales: &[f32],
        dy: &[f32],
        y: Option<&[f32]>,
        threshold: f32,
        machine: &Machine<'_>,
    ) -> Result<Vec<f32>> {
        let mut g = filled(dy.len(), 0.0f32, "a masked gradient")?;
        let y = match y {
            Some(y) => y,
            None => {
                // Codes times their scale give the codes again under that scale.
                let scales = if self.input.width.is_none() { &[] } else { scales };
                let around = Around { threshold: Some(threshold), quantize_output: false };
                self.run(batch, taken, scales, &mut g, &around, None, machine)?;
                g.iter_mut().zip(dy).for_each(|(g, dy)| *g = if *g > 0.0 { *dy } else { 0.0 });
                return Ok(g);
            }
        };
        for ((g, y), dy) in g.iter_mut().zip(y).zip(dy) {
            *g = if *y > 0.0 { *dy } else { 0.0 };
        }
        Ok(g)
    }

    fn lowrank(
        &self,
        batch: &Batch,
        taken: &[f32],
        g: &[f32],
        mut dx: Option<&mut [f32]>,
        mut dw: Option<&mut [f32]>,
        machine: &Machine<'_>,
    ) -> Result<()> {
        let Shape { heads, latent, features, .. } = self.shape;
        let Batch { batch: sequences, input_heads, time, latent: l } = *batch;
        let shared = input_heads == 1;
        for (head, linear) in self.linears.iter().enumerate() {
            let part = |s: usize| &g[(s * heads + head) * time * l..][..time * l];
            if let Some(dx) = dx.as_deref_mut() {
                // Row i of the matrix is latent feature i.
                let weights = linear.weights(l)?;
                let weights = Floats::new(&weights, [l, features]);
                for s in 0..sequences {
                    let at = if shared { s } else { s * heads + head } * time * features;
                    let dx = MatrixMut::of(&mut dx[at..][..time * features], features);
                    let dx = dx.accumulating(shared && head > 0);
                    let g = Floats::new(part(s), [time, l]);
                    product(1.0, g, weights, dx, machine.heap, machine.executor)?;
                }
            }
            if let Some(dw) = dw.as_deref_mut() {
                let input_head = if shared { 0 } else { head };
                let dw = &mut dw[head * features * latent..][..features * latent];
                for s in 0..sequences {
                    let at = (s * input_heads + input_head) * time * features;
                    let x = Floats::new(&taken[at..][..time * features], [time, features]).transposed();
                    let g = Floats::new(part(s), [time, l]);
                    let dw = MatrixMut::strided(dw, latent, l).accumulating(true);
                    product(1.0, x, g, dw, machine.heap, machine.executor)?;
                }
            }
        }
        Ok(())
    }

    fn back_from_tail(
        &self,
        batch: &Batch,
        taken: &[f32],
        g: &[f32],
        mut dx: Option<&mut [f32]>,
        mut dw: Option<&mut [f32]>,
        machine: &Machine<'_>,
    ) -> Result<()> {
        let Shape { heads, latent, features, .. } = self.shape;
        let Batch { batch: sequences, time, latent: l, .. } = *batch;
        let columns = self.row_columns(batch);
        let place =
            |head: usize, i: usize| i / super::RUN * super::RUN * heads + head * super::RUN + i % super::RUN;
        let linear = self.tail(l)?;
        for head in 0..heads {
            if let Some(dx) = dx.as_deref_mut() {
                // Row d of the matrix has, among its columns, those of this head.
                let mut row: Row = linear.packed().row()?;
                let mut all = filled(columns, 0.0f32, "a row of weights")?;
                let mut weights = filled(features * l, 0.0f32, "rounded weights")?;
                for (d, w) in weights.chunks_exact_mut(l).enumerate() {
                    linear.read_weights(d, &mut row, &mut all);
                    w.iter_mut().enumerate().for_each(|(i, w)| *w = all[place(head, i)]);
                }
                let weights = Floats::new(&weights, [features, l]);
                for s in 0..sequences {
                    let g = Floats::new(&g[s * time * features..][..time * features], [time, features]);
                    let dx = MatrixMut::of(&mut dx[(s * heads + head) * time * l..][..time * l], l);
                    product(1.0, g, weights, dx, machine.heap, machine.executor)?;
                }
            }
            if let Some(dw) = dw.as_deref_mut() {
                let rows = sequences * time;
                let mut x = filled(rows * l, 0.0f32, "activations of a head")?;
                for (x, row) in x.chunks_exact_mut(l).zip(taken.chunks_exact(columns)) {
                    x.iter_mut().enumerate().for_each(|(i, v)| *v = row[place(head, i)]);
                }
                let x = Floats::new(&x, [rows, l]).transposed();
                let g = Floats::new(g, [rows, features]);
                let dw = MatrixMut::of(&mut dw[head * latent * features..][..l * features], features);
                product(1.0, x, g, dw.accumulating(true), machine.heap, machine.executor)?;
            }
        }
        Ok(())
    }
}
