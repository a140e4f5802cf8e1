//! `Linear`: packed weights, the kernels chosen for them, and what stands around the product. The noun
//! of the ABI.
//!
//! ```text
//! row of x --f32--> norm --> rotation --> columns in packed order --> codes + scales   once a row
//! product * its scale + bias --> epilogue --> y, or y + it                             tile by tile
//! ```

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activation::{Activations, Codes, Floats, Kind, RowCodes, Rule, Segment, Shape};
use crate::codec::Matrix;
use crate::cpu::Isa;
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::exec::Executor;
use crate::kernel::{self, Choice, Job, Kernel};
use crate::layout::{Layout, Packed, Part, QUAD, Row, Scales, TILE};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::{ALIGNMENT, Heap, copied};
use crate::norm::{self, Norm};
use crate::rotation::{self, Rotation};

/// What the kernels multiply the weights with; the numbers are those of `bl_activation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// Integers with one scale for each segment of the weights (row, group or super-block); floats
    /// where the weights are floats.
    #[default]
    Auto = 0,
    /// Floats.
    F32 = 1,
    /// Int8 with one scale for each row of x.
    Int8Row = 2,
    /// Int8 with one scale for each group (or super-block) of the weights.
    Int8Group = 3,
}

impl Activation {
    /// All of them.
    pub const ALL: [Activation; 4] =
        [Activation::Auto, Activation::F32, Activation::Int8Row, Activation::Int8Group];

    /// What it means for weights of that layout: `None` is float.
    fn resolve(self, layout: &Layout, fixed_scale: Option<f32>) -> Result<Option<Rule>> {
        let int8 = |segment| Some(Rule { limit: 127.0, segment, fixed_scale });
        let Layout::Coded(coded) = layout else {
            return match self {
                Activation::Auto | Activation::F32 => Ok(None),
                _ => {
                    Err(fail!(Unsupported, "integer activations need packed weights; these are plain floats"))
                }
            };
        };
        let row = coded.scales == Scales::Row;
        match self {
            Activation::F32 => Ok(None),
            Activation::Int8Row => Ok(int8(Segment::Row)),
            Activation::Auto => Ok(int8(if row { Segment::Row } else { Segment::Record })),
            Activation::Int8Group if row => Err(fail!(
                Unsupported,
                "activations by group need weights with groups; these have one scale a row"
            )),
            Activation::Int8Group => Ok(int8(Segment::Record)),
        }
    }
}

/// What makes a layer beside its weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// How x is taken.
    pub activation: Activation,
    /// What the product is multiplied with before the bias is added: one f32 rounding.
    pub product_scale: Option<f32>,
    /// `out_features` values to add, copied.
    pub bias: Option<&'a [f32]>,
    /// Done to each row of x first.
    pub norm: Option<norm::Spec<'a>>,
    /// Done to each row of x after the norm.
    pub rotation: Option<rotation::Spec<'a>>,
    /// Done to each output after the bias.
    pub epilogue: Epilogue,
    /// Integer activations: a scale for every segment, instead of each segment's own. Finite and above
    /// 0, and so is 1 / it.
    pub activation_scale: Option<f32>,
}

/// The same with its own copies: what a file or a caller says of a layer.
#[derive(Default)]
pub struct Settings {
    /// See [`Options`].
    pub activation: Activation,
    /// See [`Options`].
    pub product_scale: Option<f32>,
    /// See [`Options`].
    pub bias: Option<Vec<f32>>,
    /// Kind and epsilon of the norm.
    pub norm: Option<(norm::Kind, f32)>,
    /// Its factors.
    pub norm_weight: Option<Vec<f32>>,
    /// What it adds.
    pub norm_bias: Option<Vec<f32>>,
    /// Block of the rotation.
    pub rotation: Option<usize>,
    /// Its signs.
    pub rotation_signs: Option<Vec<f32>>,
    /// See [`Options`].
    pub epilogue: Epilogue,
    /// See [`Options`].
    pub activation_scale: Option<f32>,
}

impl Settings {
    /// The options for the whole matrix.
    pub fn options(&self) -> Options<'_> {
        Options {
            activation: self.activation,
            product_scale: self.product_scale,
            bias: self.bias.as_deref(),
            norm: self.norm.map(|(kind, epsilon)| norm::Spec {
                kind,
                epsilon,
                weight: self.norm_weight.as_deref(),
                bias: self.norm_bias.as_deref(),
            }),
            rotation: self
                .rotation
                .map(|block| rotation::Spec { block, signs: self.rotation_signs.as_deref() }),
            epilogue: self.epilogue,
            activation_scale: self.activation_scale,
        }
    }

    /// The options for a part of the matrix: its rows and columns, and which part they are.
    pub fn options_of(&self, part: Part, rows: Range<usize>, columns: Range<usize>) -> Result<Options<'_>> {
        let mut options = self.options();
        match part {
            Part::Whole => {}
            Part::Rows { .. } => options.bias = options.bias.and_then(|bias| bias.get(rows)),
            Part::Columns { rank, .. } => {
                if options.norm.is_some() || options.epilogue != Epilogue::None {
                    return Err(fail!(
                        Unsupported,
                        "a shard of columns has not all of x, which a norm needs, nor the whole sum, which an epilogue needs"
                    ));
                }
                options.bias = options.bias.filter(|_| rank == 0);
                if let Some(rotation) = &mut options.rotation {
                    if !columns.start.is_multiple_of(rotation.block) {
                        return Err(fail!(
                            Unsupported,
                            "columns from {} on: a shard begins with a block of {} columns that are rotated",
                            columns.start,
                            rotation.block
                        ));
                    }
                    rotation.signs = rotation.signs.and_then(|signs| signs.get(columns));
                }
            }
        }
        Ok(options)
    }
}

/// One linear layer, `y = epilogue((R norm(x) Wᵀ) s + b)`, of which all but the product may be missing.
/// Immutable: any number of threads may use it at a time.
pub struct Linear {
    packed: Packed,
    rule: Option<Rule>,
    shape: Shape,
    isa: Isa,
    choice: Choice,
    product_scale: Option<f32>,
    bias: Option<Vec<f32>>,
    norm: Option<Norm>,
    rotation: Option<Rotation>,
    epilogue: Epilogue,
}

/// Rows of x that are taken at a time: more would only enlarge the workspace.
const BATCH: usize = 512;
/// A call whose workspace is no larger takes it from the stack: about what a tiny layer needs.
const STACK: usize = 6 << 10;

/// Multiply-adds from which on a call is shared among threads: about 4 us of one thread's work, what
/// handing over costs.
const SHARE_FROM: usize = 1 << 19;

/// Where everything lies in a workspace.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a block of the batch, and of a panel.
    rows: usize,
    mr: usize,
    codes: usize,
    scales: usize,
    sums: usize,
    finite: usize,
    /// The first slot, and its parts relative to it.
    slots: usize,
    staged: usize,
    permuted: usize,
    row_codes: usize,
    out: usize,
    scratch: usize,
    slot_bytes: usize,
    bytes: usize,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
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

/// What stands around a product: options, checked and copied.
struct Around {
    rule: Option<Rule>,
    product_scale: Option<f32>,
    bias: Option<Vec<f32>>,
    norm: Option<Norm>,
    rotation: Option<Rotation>,
    epilogue: Epilogue,
}

impl Around {
    fn new(options: &Options<'_>, layout: &Layout, rows: usize, columns: usize) -> Result<Around> {
        let rule = options.activation.resolve(layout, options.activation_scale)?;
        if let Some(s) = options.activation_scale {
            if rule.is_none() {
                return Err(fail!(InvalidArgument, "activation_scale is set, but x is taken as floats"));
            }
            if !(s > 0.0 && s.is_finite() && (1.0 / s).is_finite()) {
                return Err(fail!(
                    InvalidArgument,
                    "activation_scale is {s}: it and its inverse above 0 and finite expected"
                ));
            }
        }
        let norm = options.norm.map(|spec| Norm::new(&spec, columns)).transpose()?;
        let rotation = options.rotation.map(|spec| Rotation::new(&spec, columns)).transpose()?;
        let bias = match options.bias {
            Some(bias) if bias.len() != rows => {
                return Err(fail!(
                    InvalidArgument,
                    "bias has {} values, the layer {rows} outputs",
                    bias.len()
                ));
            }
            bias => bias.map(|bias| copied(bias, "bias")).transpose()?,
        };
        let (product_scale, epilogue) = (options.product_scale, options.epilogue);
        Ok(Around { rule, product_scale, bias, norm, rotation, epilogue })
    }
}

impl Linear {
    /// Packs a matrix. `seen` is told each row of it that has been read.
    pub fn new(
        matrix: &dyn Matrix,
        options: &Options<'_>,
        isa: Isa,
        heap: &Heap,
        seen: &mut dyn FnMut(usize),
    ) -> Result<Linear> {
        // Before the weights are packed: a wrong parameter should not take seconds to find.
        let (rows, columns) = (matrix.out_features(), matrix.in_features());
        let around = Around::new(options, &matrix.layout(), rows, columns)?;
        Ok(Linear::with(Linear::pack(matrix, heap, seen)?, around, isa))
    }

    /// The panels of a matrix. `seen` is told each row of it that has been read.
    pub fn pack(matrix: &dyn Matrix, heap: &Heap, seen: &mut dyn FnMut(usize)) -> Result<Packed> {
        let mut packed = Packed::room_for(matrix, heap)?;
        let mut row = Row::new(matrix.layout(), matrix.in_features())?;
        for tile in 0..packed.tiles() {
            packed.fill_tile(tile, matrix, &mut row, seen)?;
        }
        Ok(packed)
    }

    /// The layer of panels that are there already.
    pub fn of(packed: Packed, options: &Options<'_>, isa: Isa) -> Result<Linear> {
        let around = Around::new(options, packed.layout(), packed.out_features(), packed.in_features())?;
        Ok(Linear::with(packed, around, isa))
    }

    fn with(packed: Packed, around: Around, isa: Isa) -> Linear {
        let kind = if around.rule.is_some() { Kind::Integer } else { Kind::Float };
        let shape = Shape::new(packed.layout(), *packed.geometry());
        let choice = kernel::select(packed.layout(), packed.in_features(), kind, isa);
        let Around { rule, product_scale, bias, norm, rotation, epilogue } = around;
        Linear { packed, rule, shape, isa, choice, product_scale, bias, norm, rotation, epilogue }
    }

    /// Takes other weights of the same shape and layout.
    pub fn replace(&mut self, packed: Packed) -> Result<()> {
        let same = packed.layout() == self.packed.layout()
            && packed.geometry() == self.packed.geometry()
            && packed.out_features() == self.packed.out_features();
        if !same {
            return Err(fail!(InvalidArgument, "weights of another shape or layout than the layer's"));
        }
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

    /// Dequantises one row into `weights`, columns in the order of x: times the product's scale, if there
    /// is one. `row` is of [`Packed::row`].
    pub fn read_weights(&self, index: usize, row: &mut Row, weights: &mut [f32]) {
        self.packed.read_weights(index, row, weights);
        if let Some(scale) = self.product_scale {
            weights.iter_mut().for_each(|w| *w *= scale);
        }
    }

    /// How x is taken, resolved: never `Auto`.
    pub fn activation(&self) -> Activation {
        match self.rule {
            None => Activation::F32,
            Some(Rule { segment: Segment::Row, .. }) => Activation::Int8Row,
            Some(Rule { segment: Segment::Record, .. }) => Activation::Int8Group,
        }
    }

    /// What the product is multiplied with.
    pub fn product_scale(&self) -> Option<f32> {
        self.product_scale
    }

    /// The values added to an output.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The norm in front.
    pub fn norm(&self) -> Option<&Norm> {
        self.norm.as_ref()
    }

    /// The rotation in front.
    pub fn rotation(&self) -> Option<&Rotation> {
        self.rotation.as_ref()
    }

    /// What is done to outputs.
    pub fn epilogue(&self) -> Epilogue {
        self.epilogue
    }

    /// The scale that a caller fixed for the activations.
    pub fn activation_scale(&self) -> Option<f32> {
        self.rule.and_then(|rule| rule.fixed_scale)
    }

    /// Whether rows of x are changed before they are taken.
    fn has_front(&self) -> bool {
        self.norm.is_some() || self.rotation.is_some()
    }

    /// Bytes that the layer owns.
    pub fn bytes(&self) -> usize {
        let panels = if self.packed.is_kept() { 0 } else { self.packed.bytes() };
        panels
            + self.bias.as_ref().map_or(0, |b| b.len() * 4)
            + self.norm.as_ref().map_or(0, Norm::bytes)
            + self.rotation.as_ref().map_or(0, Rotation::bytes)
    }

    /// Bytes that it reads in place from a file.
    pub fn bytes_mapped(&self) -> usize {
        if self.packed.is_kept() { self.packed.bytes() } else { 0 }
    }

    /// What a forward call on `m` rows will do and need.
    pub fn plan(&self, m: usize, executor: &Executor) -> PlanInfo {
        let plan = lay_out(&[Target { layer: self, y: MatrixMut::of(&mut [], 0) }], m, executor.width());
        let blocks = m.div_ceil(plan.rows.max(1)).max(1) as u64;
        PlanInfo {
            kernel: self.kernel(plan.rows),
            workspace: plan.bytes,
            bytes_read: (self.bytes() + self.bytes_mapped()) as u64 * blocks,
            operations: 2 * m as u64 * self.in_features() as u64 * self.out_features() as u64,
        }
    }

    /// The kernel for that many rows of x.
    fn kernel(&self, rows: usize) -> &'static Kernel {
        if rows == 1 { self.choice.gemv } else { self.choice.gemm }
    }

    /// Whether both take the same x in the same form, so that it is staged and quantised once.
    fn shares_activations(&self, other: &Linear) -> bool {
        let (a, b) = (&self.shape, &other.shape);
        let cut = |s: &Shape| (s.group, s.groups, s.quads, s.geometry.record, s.geometry.record_padded());
        self.in_features() == other.in_features()
            && self.rule == other.rule
            && (self.rule.is_none() || cut(a) == cut(b))
            && self.packed.permutation() == other.packed.permutation()
            && self.norm == other.norm
            && self.rotation == other.rotation
    }

    /// `y = epilogue((R norm(x) Wᵀ) s + b)` for `m` rows, added to y where its view says so
    /// ([`MatrixMut::accumulating`]). `workspace`, where given, has at least the planned bytes from its
    /// first 64-byte boundary on; then nothing is allocated here.
    pub fn forward(
        &self,
        m: usize,
        x: MatrixRef,
        y: MatrixMut,
        workspace: Option<&mut [u8]>,
        heap: &Heap,
        executor: &Executor,
    ) -> Result<()> {
        forward(&[Target { layer: self, y }], m, x, workspace, heap, executor)
    }

    /// Stages, and where integers are asked for quantises, the rows of one panel of x.
    ///
    /// # Safety
    /// `space` holds the plan; no one else uses this panel's or this slot's parts meanwhile.
    unsafe fn activate(
        &self,
        panel: usize,
        rows: usize,
        x: MatrixRef,
        plan: &Plan,
        space: Space,
        slot: usize,
    ) {
        let (mr, in_features) = (plan.mr, self.in_features());
        let at = plan.slots + slot * plan.slot_bytes;
        // SAFETY: the caller's contract; the plan's parts do not overlap.
        let staged: &mut [f32] = unsafe { space.part_mut(at + plan.staged, in_features) };
        for i in 0..mr {
            let index = panel * mr + i;
            let row = if index >= rows {
                staged.fill(0.0); // past the batch: computed and not stored
                &*staged
            } else if self.has_front() {
                match x.row(index) {
                    Some(row) => staged.copy_from_slice(row),
                    None => x.read_row(index, staged),
                }
                if let Some(norm) = &self.norm {
                    norm.apply(self.isa, staged);
                }
                if let Some(rotation) = &self.rotation {
                    rotation.apply(self.isa, staged);
                }
                match self.packed.permutation() {
                    None => &*staged,
                    Some(columns) => {
                        // SAFETY: as above; the plan has this part where a layer has both.
                        let out: &mut [f32] = unsafe { space.part_mut(at + plan.permuted, in_features) };
                        for (out, &k) in out.iter_mut().zip(columns) {
                            *out = staged[k as usize];
                        }
                        &*out
                    }
                }
            } else {
                match (self.packed.permutation(), x.row(index)) {
                    (None, Some(row)) => row,
                    (None, None) => {
                        x.read_row(index, staged);
                        &*staged
                    }
                    (Some(columns), _) => {
                        x.read_permuted(index, columns, staged);
                        &*staged
                    }
                }
            };
            let Some(rule) = &self.rule else {
                // SAFETY: as above.
                let out: &mut [f32] =
                    unsafe { space.part_mut(plan.codes + panel * mr * in_features * 4, mr * in_features) };
                for (v, out) in row.iter().zip(out.chunks_exact_mut(mr)) {
                    out[i] = *v;
                }
                // SAFETY: as above; one byte of this panel's. Float rows carry their own NaN.
                unsafe { space.part_mut::<u8>(plan.finite + index, 1)[0] = 1 };
                continue;
            };
            let (code_len, records, groups) =
                (self.shape.quads * QUAD, self.shape.geometry.records, self.shape.groups);
            // SAFETY: as above.
            let (codes, scales, sums) = unsafe {
                (
                    space.part_mut::<i8>(plan.codes + panel * mr * code_len, mr * code_len),
                    space.part_mut::<f32>(plan.scales + panel * mr * records * 4, mr * records),
                    space.part_mut::<i32>(plan.sums + panel * mr * groups * 4, mr * groups),
                )
            };
            let finite = if mr == 1 {
                let mut out = RowCodes { codes, scales, sums };
                kernel::quantize_row(self.isa, row, &self.shape, rule, &mut out)
            } else {
                let at = at + plan.row_codes;
                // SAFETY: as above.
                let (row_codes, row_scales, row_sums) = unsafe {
                    (
                        space.part_mut::<i8>(at, code_len),
                        space.part_mut::<f32>(at + code_len, records),
                        space.part_mut::<i32>(at + code_len + records * 4, groups),
                    )
                };
                let mut out = RowCodes { codes: row_codes, scales: row_scales, sums: row_sums };
                let finite = kernel::quantize_row(self.isa, row, &self.shape, rule, &mut out);
                for (q, quad) in row_codes.as_chunks::<QUAD>().0.iter().zip(codes.chunks_exact_mut(mr * QUAD))
                {
                    quad[i * QUAD..][..QUAD].copy_from_slice(q);
                }
                for (s, out) in row_scales.iter().zip(scales.chunks_exact_mut(mr)) {
                    out[i] = *s;
                }
                for (s, out) in row_sums.iter().zip(sums.chunks_exact_mut(mr)) {
                    out[i] = *s;
                }
                finite
            };
            // SAFETY: as above; one byte of this panel's.
            unsafe { space.part_mut::<u8>(plan.finite + index, 1)[0] = finite as u8 };
        }
    }

    /// The product's scale, the bias, the epilogue, and the way into y.
    fn finish(&self, tile: usize, rows: usize, finite: &[u8], out: &mut [f32], y: MatrixMut) {
        let first = tile * TILE;
        let lanes = TILE.min(self.out_features() - first);
        for (i, row) in out.chunks_exact_mut(TILE).take(rows).enumerate() {
            let row = &mut row[..lanes];
            if finite[i] == 0 {
                row.fill(f32::NAN);
            } else {
                if let Some(scale) = self.product_scale {
                    row.iter_mut().for_each(|v| *v *= scale);
                }
                if let Some(bias) = &self.bias {
                    row.iter_mut().zip(&bias[first..]).for_each(|(v, b)| *v += b);
                }
            }
            self.epilogue.apply(self.isa, row);
            y.write(i, first, row);
        }
    }
}

/// One layer of a call and where its rows go.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The layer.
    pub layer: &'a Linear,
    /// `m` rows of its `out_features`.
    pub y: MatrixMut,
}

/// `y_i = x W_iᵀ + b_i` for several layers on the same `m` rows of x. Neighbours that take x in the same
/// form share it: it is staged and quantised once, and their tiles are one parallel region. Every y is
/// bit for bit what a call of its own would give. A workspace as large as the layers' planned ones
/// together is always enough.
pub fn forward(
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef,
    mut workspace: Option<&mut [u8]>,
    heap: &Heap,
    executor: &Executor,
) -> Result<()> {
    if m == 0 {
        return Ok(());
    }
    for targets in targets.chunk_by(|a, b| a.layer.shares_activations(b.layer)) {
        forward_sharing(targets, m, x, workspace.as_deref_mut(), heap, executor)?;
    }
    Ok(())
}

/// The same for layers that share their activations; at least one.
fn forward_sharing(
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef,
    workspace: Option<&mut [u8]>,
    heap: &Heap,
    executor: &Executor,
) -> Result<()> {
    let plan = lay_out(targets, m, executor.width());
    let need = plan.bytes + ALIGNMENT;
    let mut stack = MaybeUninit::<[u8; STACK]>::uninit();
    let mut own = None;
    let space: &mut [u8] = match workspace {
        Some(space) => space,
        None if need <= STACK => {
            // SAFETY: the slice is of exactly the array's bytes; they are initialised here.
            unsafe {
                let start = stack.as_mut_ptr().cast::<u8>();
                start.write_bytes(0, need);
                std::slice::from_raw_parts_mut(start, need)
            }
        }
        None => own.insert(heap.buffer(need, "workspace")?).bytes_mut(),
    };
    let skip = space.as_ptr().align_offset(ALIGNMENT);
    if space.len() < skip || space.len() - skip < plan.bytes {
        let have = space.len();
        return Err(fail!(BufferTooSmall, "workspace of {have} bytes, {need} needed (see bl_plan)"));
    }
    let space = Space { start: space[skip..].as_mut_ptr() };
    for at in (0..m).step_by(plan.rows) {
        let rows = plan.rows.min(m - at);
        block(targets, at, rows, x.skip(at), &plan, space, executor)?;
    }
    Ok(())
}

fn lay_out(targets: &[Target<'_>], m: usize, slots: usize) -> Plan {
    let rows = m.clamp(1, BATCH);
    let layer = targets[0].layer;
    // The panels of x suit every kernel: as many rows as the one that takes fewest.
    let mr = targets.iter().map(|t| kernel::panel_rows(t.layer.kernel(rows), rows)).min().unwrap_or(1);
    let padded_rows = rows.next_multiple_of(mr);
    let in_features = layer.in_features();
    let mut at = 0;
    let mut take = |bytes: usize| {
        let start = at;
        at += bytes.next_multiple_of(ALIGNMENT);
        start
    };
    let (code_bytes, scales, sums) = match layer.rule {
        None => (in_features * 4, 0, 0),
        Some(_) => {
            let shape = &layer.shape;
            (shape.quads * QUAD, shape.geometry.records * 4, shape.groups * 4)
        }
    };
    let codes = take(padded_rows * code_bytes);
    let (scales_at, sums_at) = (take(padded_rows * scales), take(padded_rows * sums));
    let finite = take(padded_rows);
    let slots_at = take(0);
    let staged = take(in_features * 4) - slots_at;
    let both = layer.has_front() && layer.packed.permutation().is_some();
    let permuted = take(if both { in_features * 4 } else { 0 }) - slots_at;
    // A row of codes, its scales and its sums, before they are interleaved.
    let row_codes =
        take(if mr > 1 && layer.rule.is_some() { code_bytes + scales + sums } else { 0 }) - slots_at;
    let out = take(padded_rows * TILE * 4) - slots_at;
    let scratch_bytes = |t: &Target<'_>| (t.layer.kernel(rows).scratch)(&t.layer.packed, rows);
    let scratch = take(targets.iter().map(scratch_bytes).max().unwrap_or(0)) - slots_at;
    let slot_bytes = take(0) - slots_at;
    Plan {
        rows,
        mr,
        codes,
        scales: scales_at,
        sums: sums_at,
        finite,
        slots: slots_at,
        staged,
        permuted,
        row_codes,
        out,
        scratch,
        slot_bytes,
        bytes: slots_at + slot_bytes * slots,
    }
}

/// One block of the batch, from row `first` on: the activations of all its rows, then tile by tile.
fn block(
    targets: &[Target<'_>],
    first: usize,
    rows: usize,
    x: MatrixRef,
    plan: &Plan,
    space: Space,
    executor: &Executor,
) -> Result<()> {
    let layer = targets[0].layer;
    let panels = rows.div_ceil(plan.mr);
    // Waking threads costs microseconds: what one thread does sooner, one thread does.
    let outputs: usize = targets.iter().map(|t| t.layer.out_features()).sum();
    let operations = rows.saturating_mul(layer.in_features()).saturating_mul(outputs);
    let executor = if operations < SHARE_FROM { &Executor::Serial } else { executor };
    executor.run(panels, &|slot, panel| {
        // SAFETY: each piece writes the parts of its own panel and of its own slot.
        unsafe { layer.activate(panel, rows, x, plan, space, slot) };
        Ok(())
    })?;
    let count = panels * plan.mr;
    // SAFETY: within the plan's bytes, checked in `forward_sharing`; a byte is read after the region
    // above has written it.
    let finite = unsafe { space.part::<u8>(plan.finite, count) };
    let tiles: usize = targets.iter().map(|t| t.layer.packed.tiles()).sum();
    executor.run(tiles, &|slot, piece| {
        let mut tile = piece;
        let mut targets = targets.iter();
        let target = loop {
            match targets.next() {
                Some(target) if tile < target.layer.packed.tiles() => break target,
                Some(target) => tile -= target.layer.packed.tiles(),
                None => return Ok(()), // no such piece
            }
        };
        let layer = target.layer;
        // SAFETY: within the plan's bytes; only read in this region.
        let batch = unsafe {
            match layer.rule {
                None => Activations::Float(Floats {
                    mr: plan.mr,
                    values: space.part(plan.codes, count * layer.in_features()),
                }),
                Some(_) => Activations::Integer(Codes {
                    mr: plan.mr,
                    shape: &layer.shape,
                    codes: space.part(plan.codes, count * layer.shape.quads * QUAD),
                    scales: space.part(plan.scales, count * layer.shape.geometry.records),
                    sums: space.part(plan.sums, count * layer.shape.groups),
                }),
            }
        };
        let at = plan.slots + slot * plan.slot_bytes;
        // SAFETY: within the plan's bytes; a slot is one piece's at a time (`Executor::run`).
        let (out, scratch) = unsafe {
            (
                space.part_mut::<f32>(at + plan.out, count * TILE),
                space.part_mut::<u8>(at + plan.scratch, plan.slot_bytes - plan.scratch),
            )
        };
        let mut job = Job { packed: &layer.packed, tile, x: batch, rows, out, scratch };
        kernel::run(layer.kernel(plan.rows), &mut job)?;
        layer.finish(tile, rows, finite, out, target.y.skip(first));
        Ok(())
    })
}

/// The start of a workspace, shared by the pieces of a call.
#[derive(Clone, Copy)]
struct Space {
    start: *mut u8,
}

// SAFETY: pieces use disjoint parts of it (see `block`).
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

impl Space {
    /// # Safety
    /// `at .. at + len * size_of::<T>()` is inside the workspace, `at` is a multiple of T's alignment,
    /// and no one writes it meanwhile. `T` is valid for any bytes.
    unsafe fn part<'a, T>(self, at: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts(self.start.add(at).cast(), len) }
    }

    /// # Safety
    /// As `part`, and no one else reads it meanwhile.
    unsafe fn part_mut<'a, T>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at).cast(), len) }
    }
}
