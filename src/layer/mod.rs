//! `Linear`: packed weights, the kernels chosen for them, and what stands around the product. The noun
//! of the ABI.
//!
//! ```text
//! row of x --f32--> norm --> rotation --> columns in packed order --> codes + scales   once a row
//! product * its scale + bias --> epilogue --> y, or y + it                             tile by tile
//! ```

mod around;
mod forward;
mod options;
mod pack;
mod stages;

pub use around::Around;
pub use forward::{Extra, Target, forward, forward_with};
pub use options::{Activation, Options, Settings};
pub use pack::{Packer, Seen};
pub use stages::{Stage, Stages};

use crate::activation::{self, Kind, RowCodes, Rule, Shape, WeightSums, Width};
use crate::cpu::Isa;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::kernel::{self, Choice, Kernel};
use crate::layout::{Layout, Matrix, Packed, QUAD, Row};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::{Heap, filled};
use crate::norm::Norm;
use crate::rotation::Rotation;

/// One linear layer, `y = epilogue((R norm(x) Wᵀ) s + b)`, of which all but the product may be missing.
/// Immutable: any number of threads may use it at a time.
pub struct Linear {
    packed: Packed,
    around: Around,
    shape: Shape,
    /// Where the rule's codes are unsigned.
    weight_sums: Option<WeightSums>,
    isa: Isa,
    choice: Choice,
}

/// One row of x as integers.
pub struct InputRoom {
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
    totals: Vec<i32>,
}

/// What `bl_plan` reports.
#[derive(Clone, Copy, Debug)]
pub struct PlanInfo {
    /// The kernel that will run.
    pub kernel: &'static Kernel,
    /// Bytes of workspace, to be aligned to [`ALIGNMENT`].
    pub workspace: usize,
    /// Bytes of weights and scales that one call reads.
    pub bytes_read: u64,
    /// Multiply-adds times two.
    pub operations: u64,
}

impl Linear {
    /// Packs a matrix on the calling thread.
    pub fn new(matrix: &dyn Matrix, options: &Options<'_>, isa: Isa, heap: &Heap) -> Result<Linear> {
        Linear::load(matrix, options, &Packer { isa, heap, executor: &Executor::Serial }, &|_| {})
    }

    /// Packs a matrix. `seen` is told which rows of it have been read.
    pub fn load(
        matrix: &dyn Matrix,
        options: &Options<'_>,
        packer: &Packer<'_>,
        seen: Seen<'_>,
    ) -> Result<Linear> {
        // Before the weights are packed: a wrong parameter should not take seconds to find.
        let (rows, columns) = (matrix.out_features(), matrix.in_features());
        let around = Around::new(options, &matrix.layout(), rows, columns)?;
        Linear::with(packer.pack(matrix, seen)?, around, packer.isa)
    }

    /// The layer of panels that are there already.
    pub fn of(packed: Packed, options: &Options<'_>, isa: Isa) -> Result<Linear> {
        let around = Around::new(options, packed.layout(), packed.out_features(), packed.in_features())?;
        Linear::with(packed, around, isa)
    }

    fn with(packed: Packed, around: Around, isa: Isa) -> Result<Linear> {
        let kind = if around.rule.is_some() { Kind::Integer } else { Kind::Float };
        let shape = Shape::new(packed.layout(), *packed.geometry());
        let choice = kernel::select(packed.layout(), packed.in_features(), kind, isa);
        let weight_sums = weight_sums(&packed, around.rule, &shape)?;
        Ok(Linear { packed, around, shape, weight_sums, isa, choice })
    }

    /// Takes other weights of the same shape and layout.
    pub fn replace(&mut self, packed: Packed) -> Result<()> {
        let same = packed.layout() == self.packed.layout()
            && packed.geometry() == self.packed.geometry()
            && packed.out_features() == self.packed.out_features();
        if !same {
            return Err(fail!(InvalidArgument, "weights of another shape or layout than the layer's"));
        }
        self.weight_sums = weight_sums(&packed, self.around.rule, &self.shape)?;
        self.packed = packed;
        Ok(())
    }

    /// Rows of W: values of a row of y.
    pub fn out_features(&self) -> usize {
        self.packed.out_features()
    }

    /// Columns of W: values of a row of x.
    pub fn in_features(&self) -> usize {
        self.packed.in_features()
    }

    /// The packed weights.
    pub fn packed(&self) -> &Packed {
        &self.packed
    }

    /// What stands around the product.
    pub fn around(&self) -> &Around {
        &self.around
    }

    /// Dequantises one row into `weights`, columns in the order of x: times the product's scale, if there
    /// is one. `row` is of [`Packed::row`].
    pub fn read_weights(&self, index: usize, row: &mut Row, weights: &mut [f32]) {
        self.packed.read_weights(index, row, weights);
        if let Some(scale) = self.around.product_scale {
            weights.iter_mut().for_each(|w| *w *= scale);
        }
    }

    /// The first `rows` rows of [`Linear::read_weights`], one after another.
    pub fn weights(&self, rows: usize) -> Result<Vec<f32>> {
        let columns = self.in_features();
        let mut weights = filled(rows.saturating_mul(columns), 0.0f32, "rounded weights")?;
        let mut row = self.packed.row()?;
        for (index, weights) in weights.chunks_exact_mut(columns).enumerate() {
            self.read_weights(index, &mut row, weights);
        }
        Ok(weights)
    }

    /// How x is taken, resolved: never `Auto`.
    pub fn activation(&self) -> Activation {
        self.around.activation(self.packed.layout())
    }

    /// What the product is multiplied with.
    pub fn product_scale(&self) -> Option<f32> {
        self.around.product_scale
    }

    /// The values added to an output.
    pub fn bias(&self) -> Option<&[f32]> {
        self.around.bias.as_deref()
    }

    /// The norm in front.
    pub fn norm(&self) -> Option<&Norm> {
        self.around.norm.as_ref()
    }

    /// The rotation in front.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.around.rotation.as_ref()
    }

    /// What is done to outputs.
    pub fn epilogue(&self) -> Epilogue {
        self.around.epilogue
    }

    /// The scale that a caller fixed for the activations.
    pub fn activation_scale(&self) -> Option<f32> {
        self.around.rule.and_then(|rule| rule.fixed_scale)
    }

    /// Whether integers are made of x, and by which rule.
    pub fn rule(&self) -> Option<Rule> {
        self.around.rule
    }

    /// Makes integer activations use that scale for all of x, or again what they find in it.
    pub fn fix_scale(&mut self, scale: Option<f32>) {
        self.around.fix_scale(scale);
    }

    /// What the kernels multiply the weights with: a row of finite x in the columns' packed order, as its
    /// codes stand for it, which is finite too. A row without a scale (its mean range is beyond f32) is
    /// `InvalidArgument`.
    pub fn round_input(&self, x: &mut [f32], room: &mut InputRoom) -> Result<()> {
        let Some(rule) = &self.around.rule else { return Ok(()) };
        let InputRoom { codes, scales, sums, totals } = room;
        let mut out = RowCodes { codes, scales, sums, totals };
        kernel::quantize_row(self.isa, x, &self.shape, rule, &mut out);
        let geometry = &self.shape.geometry;
        let bias = rule.width.bias();
        let records = x.chunks_mut(geometry.record).zip(codes.chunks(geometry.record_padded()));
        for ((x, codes), scale) in records.zip(scales) {
            activation::check_scale(*scale)?;
            x.iter_mut()
                .zip(codes)
                .for_each(|(x, q)| *x = activation::finite((*q as i32 + bias) as f32 * *scale));
        }
        Ok(())
    }

    /// What [`Linear::round_input`] needs.
    pub fn input_room(&self) -> Result<InputRoom> {
        let shape = &self.shape;
        let unsigned = self.around.rule.is_some_and(|rule| rule.width == Width::Uint8);
        Ok(InputRoom {
            codes: filled(shape.quads * QUAD, 0, "codes")?,
            scales: filled(shape.geometry.records, 0.0, "scales")?,
            sums: filled(shape.groups, 0, "sums of codes")?,
            totals: filled(if unsigned { shape.groups } else { 0 }, 0, "sums of codes")?,
        })
    }

    /// Whether rows of x are changed before they are taken.
    pub fn has_front(&self) -> bool {
        self.around.has_front()
    }

    /// Bytes that the layer owns.
    pub fn bytes(&self) -> usize {
        let panels = if self.packed.is_kept() { 0 } else { self.packed.bytes() };
        panels + self.around.bytes() + self.weight_sums.as_ref().map_or(0, WeightSums::bytes)
    }

    /// Bytes that it reads in place from a file.
    pub fn bytes_mapped(&self) -> usize {
        if self.packed.is_kept() { self.packed.bytes() } else { 0 }
    }

    /// What a forward call on `m` rows will do and need.
    pub fn plan(&self, m: usize, executor: &Executor) -> PlanInfo {
        let (rows, workspace) = forward::planned(self, m, executor);
        let blocks = m.div_ceil(rows.max(1)) as u64;
        PlanInfo {
            kernel: self.kernel(rows),
            workspace,
            bytes_read: ((self.bytes() + self.bytes_mapped()) as u64).saturating_mul(blocks),
            operations: operations(m, self.in_features(), self.out_features()),
        }
    }

    /// The kernel for that many rows of x.
    fn kernel(&self, rows: usize) -> &'static Kernel {
        match rows {
            1 => self.choice.gemv,
            _ if rows <= self.choice.few_rows => self.choice.few,
            _ => self.choice.gemm,
        }
    }

    /// Whether both take the same x in the same form, so that it is staged and quantised once.
    fn shares_activations(&self, other: &Linear) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let cut = |s: &Shape| (s.group, s.groups, s.quads, s.geometry.record, s.geometry.record_padded());
        self.in_features() == other.in_features()
            && self.around.rule == other.around.rule
            && (self.around.rule.is_none() || cut(a) == cut(b))
            && self.packed.permutation() == other.packed.permutation()
            && self.around.norm == other.around.norm
            && self.around.rotation == other.around.rotation
    }

    /// `y = epilogue((R norm(x) Wᵀ) s + b)` for `m` rows, added to y where its view says so
    /// ([`MatrixMut::accumulating`]). `workspace`, where given, has at least the planned bytes from its
    /// first 64-byte boundary on; then nothing is allocated here.
    pub fn forward(
        &self,
        m: usize,
        x: MatrixRef<'_>,
        y: MatrixMut<'_>,
        workspace: Option<&mut [u8]>,
        heap: &Heap,
        executor: &Executor,
    ) -> Result<()> {
        forward(&[Target::new(self, y)], m, x, workspace, heap, executor)
    }
}

/// Additions and multiplications of a product; 2^64 - 1 where there are more.
pub fn operations(m: usize, columns: usize, rows: usize) -> u64 {
    (m as u64).saturating_mul(2).saturating_mul(columns as u64).saturating_mul(rows as u64)
}

/// What unsigned codes of x need of the weights.
fn weight_sums(packed: &Packed, rule: Option<Rule>, shape: &Shape) -> Result<Option<WeightSums>> {
    match (rule, packed.layout()) {
        (Some(Rule { width: Width::Uint8, .. }), Layout::Coded(coded)) => {
            WeightSums::of(packed, coded, shape).map(Some)
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::operations;

    #[test]
    fn more_operations_than_a_number_holds_are_the_largest() {
        assert_eq!(operations(3, 5, 7), 210);
        assert_eq!(operations(1 << 31, 1 << 16, 1 << 15), 1 << 63);
        for rows in [1 << 16, 65537, 1 << 31] {
            assert_eq!(operations(1 << 31, 1 << 16, rows), u64::MAX);
        }
    }
}
