//! The order of a call: workspace, activations of a block of the batch, then tile by tile.

use std::mem::MaybeUninit;
use std::time::Instant;

use super::Linear;
use super::stages::{Stage, Stages};
use crate::activation::{Activations, Codes, Floats, RowCodes, Rule, Width};
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::exec::{Executor, SHARE_FROM};
use crate::kernel::{self, Job};
use crate::layout::{QUAD, TILE};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::{ALIGNMENT, Heap};

/// Rows of x that are taken at a time: more would only enlarge the workspace.
const BATCH: usize = 512;
/// A call whose workspace is no larger takes it from the stack: about what a tiny layer needs.
const STACK: usize = 6 << 10;

/// Where everything lies in a workspace.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Rows of a block of the batch, and of a panel.
    rows: usize,
    mr: usize,
    codes: usize,
    scales: usize,
    sums: usize,
    /// `sums` themselves where codes are signed.
    totals: usize,
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

/// Rows of a block of the batch and bytes of workspace for a call of one layer on `m` rows.
pub(super) fn planned(layer: &Linear, m: usize, executor: &Executor) -> (usize, usize) {
    let plan = lay_out(&[Target::new(layer, MatrixMut::of(&mut [], 0))], m, executor.width());
    (plan.rows, plan.bytes)
}

impl Linear {
    /// Stages, and where integers are asked for quantises, the rows of one panel of x.
    ///
    /// # Safety
    /// `space` holds the plan; no one else uses this panel's or this slot's parts meanwhile.
    unsafe fn activate(
        &self,
        panel: usize,
        rows: usize,
        x: MatrixRef<'_>,
        scales: &[f32],
        call: &Call<'_>,
        slot: usize,
    ) {
        let (plan, space) = (&call.plan, call.space);
        let (mr, in_features) = (plan.mr, self.in_features());
        let mut watch = call.watch();
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
                if let Some(watch) = &mut watch {
                    watch.end(Stage::Quantize, 0);
                }
                if let Some(norm) = &self.around.norm {
                    norm.apply(self.isa, staged);
                    if let Some(watch) = &mut watch {
                        watch.end(Stage::Norm, in_features);
                    }
                }
                if let Some(rotation) = &self.around.rotation {
                    rotation.apply(self.isa, staged);
                    if let Some(watch) = &mut watch {
                        watch.end(Stage::Rotation, in_features);
                    }
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
            let Some(own) = &self.around.rule else {
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
            let rule = match scales.get(if scales.len() == 1 { 0 } else { index }) {
                None => *own,
                // Any scale will do for a row of zeros, but 0.
                Some(&scale) => Rule { fixed_scale: Some(if scale == 0.0 { 1.0 } else { scale }), ..*own },
            };
            let (code_len, records, groups) =
                (self.shape.quads * QUAD, self.shape.geometry.records, self.shape.groups);
            let unsigned = rule.width == Width::Uint8;
            let total_groups = if unsigned { groups } else { 0 };
            // SAFETY: as above; without unsigned codes `totals` is empty.
            let (codes, scales, sums, totals) = unsafe {
                (
                    space.part_mut::<i8>(plan.codes + panel * mr * code_len, mr * code_len),
                    space.part_mut::<f32>(plan.scales + panel * mr * records * 4, mr * records),
                    space.part_mut::<i32>(plan.sums + panel * mr * groups * 4, mr * groups),
                    space.part_mut::<i32>(plan.totals + panel * mr * groups * 4, mr * total_groups),
                )
            };
            let finite = if mr == 1 {
                let mut out = RowCodes { codes, scales, sums, totals };
                kernel::quantize_row(self.isa, row, &self.shape, &rule, &mut out)
            } else {
                let at = at + plan.row_codes;
                // SAFETY: as above.
                let (row_codes, row_scales, row_sums, row_totals) = unsafe {
                    (
                        space.part_mut::<i8>(at, code_len),
                        space.part_mut::<f32>(at + code_len, records),
                        space.part_mut::<i32>(at + code_len + records * 4, groups),
                        space.part_mut::<i32>(at + code_len + records * 4 + groups * 4, total_groups),
                    )
                };
                let mut out =
                    RowCodes { codes: row_codes, scales: row_scales, sums: row_sums, totals: row_totals };
                let finite = kernel::quantize_row(self.isa, row, &self.shape, &rule, &mut out);
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
                for (s, out) in row_totals.iter().zip(totals.chunks_exact_mut(mr)) {
                    out[i] = *s;
                }
                finite
            };
            // SAFETY: as above; one byte of this panel's.
            unsafe { space.part_mut::<u8>(plan.finite + index, 1)[0] = finite as u8 };
        }
        if let Some(watch) = &mut watch {
            watch.end(Stage::Quantize, in_features * mr.min(rows - panel * mr));
        }
    }

    /// The product's scale, the bias, the epilogue, and the way into y.
    fn finish(
        &self,
        tile: usize,
        rows: usize,
        finite: &[u8],
        out: &mut [f32],
        target: &Target<'_>,
        first_row: usize,
    ) {
        let first = tile * TILE;
        let lanes = TILE.min(target.outputs - first);
        for (i, row) in out.chunks_exact_mut(TILE).take(rows).enumerate() {
            let row = &mut row[..lanes];
            if finite[i] == 0 {
                row.fill(f32::NAN);
            } else {
                if let Some(scale) = self.around.product_scale {
                    row.iter_mut().for_each(|v| *v *= scale);
                }
                if let Some(bias) = &self.around.bias {
                    row.iter_mut().zip(&bias[first..]).for_each(|(v, b)| *v += b);
                }
            }
            target.epilogue.apply(self.isa, row);
            target.y.write(first_row + i, first, row);
        }
    }
}

/// One layer of a call and where its rows go.
pub struct Target<'a> {
    /// The layer.
    pub layer: &'a Linear,
    /// `m` rows of `outputs`.
    pub y: MatrixMut<'a>,
    /// How many of its outputs are computed: the first ones.
    pub outputs: usize,
    /// What is done to them; the layer's own, or the call's.
    pub epilogue: Epilogue,
}

impl<'a> Target<'a> {
    /// All outputs of a layer, as it was made.
    pub fn new(layer: &'a Linear, y: MatrixMut<'a>) -> Target<'a> {
        Target { layer, y, outputs: layer.out_features(), epilogue: layer.around.epilogue }
    }

    fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }
}

/// What a call has beside its x.
#[derive(Clone, Copy, Default)]
pub struct Extra<'a> {
    /// Integer activations of one scale a row: scales in place of those that the layers' rule finds. None,
    /// one for all rows, or one for each; 0 for rows of zeros.
    pub scales: &'a [f32],
    /// Where what its stages took is added up.
    pub stages: Option<&'a Stages>,
}

/// `y_i = x W_iᵀ + b_i` for several layers on the same `m` rows of x. Neighbours that take x in the same
/// form share it: it is staged and quantised once, and their tiles are one parallel region. Every y is
/// bit for bit what a call of its own would give. A workspace as large as the layers' planned ones
/// together is always enough.
pub fn forward(
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef<'_>,
    workspace: Option<&mut [u8]>,
    heap: &Heap,
    executor: &Executor,
) -> Result<()> {
    forward_with(targets, m, x, Extra::default(), workspace, heap, executor)
}

/// The same with more than x.
pub fn forward_with(
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef<'_>,
    extra: Extra<'_>,
    mut workspace: Option<&mut [u8]>,
    heap: &Heap,
    executor: &Executor,
) -> Result<()> {
    if m == 0 {
        return Ok(());
    }
    let mut first = 0;
    for targets in targets.chunk_by(|a, b| a.layer.shares_activations(b.layer)) {
        let counts = Counts { stages: extra.stages, first };
        let space = workspace.as_deref_mut();
        forward_sharing(targets, m, x, extra.scales, space, heap, executor, counts)?;
        first += targets.len();
    }
    Ok(())
}

/// The same for layers that share their activations; at least one.
fn forward_sharing(
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef<'_>,
    scales: &[f32],
    workspace: Option<&mut [u8]>,
    heap: &Heap,
    executor: &Executor,
    counts: Counts<'_>,
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
    let call = Call { plan, space: Space { start: space[skip..].as_mut_ptr() }, counts };
    for at in (0..m).step_by(plan.rows) {
        let rows = plan.rows.min(m - at);
        let scales = if scales.len() > 1 { &scales[at..at + rows] } else { scales };
        block(targets, at, rows, x.skip(at), scales, &call, executor)?;
    }
    Ok(())
}

fn lay_out(targets: &[Target<'_>], m: usize, slots: usize) -> Plan {
    let rows = m.clamp(1, BATCH);
    let layer = targets[0].layer;
    // The panels of x suit every kernel: as many rows as the one that takes fewest.
    let mr = kernel::panel_rows(targets.iter().map(|t| t.layer.kernel(rows)), rows);
    let padded_rows = rows.next_multiple_of(mr);
    let in_features = layer.in_features();
    let mut at = 0;
    let mut take = |bytes: usize| {
        let start = at;
        at += bytes.next_multiple_of(ALIGNMENT);
        start
    };
    let (code_bytes, scales, sums, totals) = match layer.around.rule {
        None => (in_features * 4, 0, 0, 0),
        Some(rule) => {
            let shape = &layer.shape;
            let totals = if rule.width == Width::Uint8 { shape.groups * 4 } else { 0 };
            (shape.quads * QUAD, shape.geometry.records * 4, shape.groups * 4, totals)
        }
    };
    let codes = take(padded_rows * code_bytes);
    let (scales_at, sums_at) = (take(padded_rows * scales), take(padded_rows * sums));
    let totals_at = if totals > 0 { take(padded_rows * totals) } else { sums_at };
    let finite = take(padded_rows);
    let slots_at = take(0);
    let staged = take(in_features * 4) - slots_at;
    let both = layer.has_front() && layer.packed.permutation().is_some();
    let permuted = take(if both { in_features * 4 } else { 0 }) - slots_at;
    // A row of codes, its scales and its sums, before they are interleaved.
    let row_codes =
        take(if mr > 1 && layer.around.rule.is_some() { code_bytes + scales + sums + totals } else { 0 })
            - slots_at;
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
        totals: totals_at,
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
    x: MatrixRef<'_>,
    scales: &[f32],
    call: &Call<'_>,
    executor: &Executor,
) -> Result<()> {
    let (plan, space, layer) = (&call.plan, call.space, targets[0].layer);
    let panels = rows.div_ceil(plan.mr);
    // Waking threads costs microseconds: what one thread does sooner, one thread does.
    let outputs: usize = targets.iter().map(|t| t.outputs).sum();
    let operations = rows.saturating_mul(layer.in_features()).saturating_mul(outputs);
    let executor = if operations < SHARE_FROM { &Executor::Serial } else { executor };
    executor.run(panels, &|slot, panel| {
        // SAFETY: each piece writes the parts of its own panel and of its own slot.
        unsafe { layer.activate(panel, rows, x, scales, call, slot) };
        Ok(())
    })?;
    let count = panels * plan.mr;
    // SAFETY: within the plan's bytes, checked in `forward_sharing`; a byte is read after the region
    // above has written it.
    let finite = unsafe { space.part::<u8>(plan.finite, count) };
    let tiles: usize = targets.iter().map(Target::tiles).sum();
    executor.run(tiles, &|slot, piece| {
        let mut tile = piece;
        let mut targets = targets.iter().enumerate();
        let (number, target) = loop {
            match targets.next() {
                Some((number, target)) if tile < target.tiles() => break (number, target),
                Some((_, target)) => tile -= target.tiles(),
                None => return Ok(()), // no such piece
            }
        };
        let layer = target.layer;
        // SAFETY: within the plan's bytes; only read in this region.
        let batch = unsafe {
            match layer.around.rule {
                None => Activations::Float(Floats {
                    mr: plan.mr,
                    values: space.part(plan.codes, count * layer.in_features()),
                }),
                Some(rule) => Activations::Integer(Codes {
                    mr: plan.mr,
                    shape: &layer.shape,
                    codes: space.part(plan.codes, count * layer.shape.quads * QUAD),
                    scales: space.part(plan.scales, count * layer.shape.geometry.records),
                    sums: space.part(plan.sums, count * layer.shape.groups),
                    totals: space.part(plan.totals, count * layer.shape.groups),
                    bias: rule.width.bias(),
                    weight_sums: layer.weight_sums.as_ref().map_or(&[], |sums| sums.tile(tile)),
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
        let mut watch = call.watch();
        kernel::run(layer.kernel(plan.rows), &mut job)?;
        if let Some(watch) = &mut watch {
            watch.end_product(number);
        }
        layer.finish(tile, rows, finite, out, target, first);
        if let Some(watch) = &mut watch {
            watch.end(Stage::Epilogue, rows * TILE.min(target.outputs - tile * TILE));
        }
        Ok(())
    })
}

/// What all pieces of a call know.
struct Call<'a> {
    plan: Plan,
    space: Space,
    counts: Counts<'a>,
}

impl Call<'_> {
    /// Starts to measure, where the call is counted.
    #[inline]
    fn watch(&self) -> Option<Watch<'_>> {
        self.counts.stages.map(|stages| Watch::new(stages, self.counts.first))
    }
}

/// Where a call is counted, and its first layer's number there.
#[derive(Clone, Copy)]
struct Counts<'a> {
    stages: Option<&'a Stages>,
    first: usize,
}

/// Measures one stage after the other. Its code stands apart from that of calls that nobody counts.
struct Watch<'a> {
    stages: &'a Stages,
    first: usize,
    begin: Instant,
}

impl<'a> Watch<'a> {
    #[cold]
    fn new(stages: &'a Stages, first: usize) -> Watch<'a> {
        Watch { stages, first, begin: Instant::now() }
    }

    /// The stage that ends here worked on so many numbers.
    #[cold]
    fn end(&mut self, stage: Stage, numbers: usize) {
        let now = Instant::now();
        self.stages.add(stage, now - self.begin, numbers);
        self.begin = now;
    }

    /// The product with a tile of the call's layer of that number ends here.
    #[cold]
    fn end_product(&mut self, number: usize) {
        let now = Instant::now();
        self.stages.add_product(self.first + number, now - self.begin);
        self.begin = now;
    }
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
