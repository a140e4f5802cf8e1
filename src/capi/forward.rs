//! The work.

use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::boundary::guard;
use super::context::Context;
use super::device::{alike, device_layer};
use super::enums::*;
use super::handle;
use super::layer::{Body, Layer, addressable, float_type, row_stride};
use super::options;
use super::types::*;
use crate::cuda::{self, DeviceLayer, HostTarget, StreamTarget};
use crate::error::{Result, fail};
use crate::layer::{self, Extra, Stage, Stages, Target};
use crate::layout::Float;
use crate::limits::{BATCH_MAX, LAYERS_MAX};
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::ALIGNMENT;

pub(super) fn batch(m: i64) -> Result<usize> {
    match u64::try_from(m) {
        Ok(m) if m <= BATCH_MAX => Ok(m as usize),
        _ => Err(fail!(InvalidArgument, "m = {m} rows of x: 0 to {BATCH_MAX}")),
    }
}

/// What bl_forward on m rows of x will run, and the workspace it needs so that it allocates nothing.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_plan(
    layer: *const bl_layer,
    op: OpArg,
    m: i64,
    x_type: TypeArg,
    info: *mut bl_plan_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let layer: &Layer = handle::get(layer)?;
            if op.0 != bl_op::BL_OP_FORWARD as u32 {
                return Err(fail!(Unsupported, "op {} is unknown to this library", op.0));
            }
            float_type(x_type, "x")?;
            let linear = match &layer.body {
                Body::Cpu(linear) => linear,
                Body::Device(layer) => {
                    let plan = layer.plan(batch(m)?)?;
                    let workspace = if plan.workspace == 0 { 0 } else { plan.workspace + cuda::ALIGNMENT };
                    out.fill(&bl_plan_info {
                        struct_size: 0,
                        threads: 0,
                        kernel: plan.kernel.as_ptr(),
                        workspace_size: workspace as u64,
                        workspace_alignment: cuda::ALIGNMENT as u64,
                        bytes_read: plan.bytes_read,
                        operations: plan.operations,
                    });
                    return Ok(());
                }
            };
            let executor = &layer.context.executor;
            let plan = linear.plan(batch(m)?, executor);
            out.fill(&bl_plan_info {
                struct_size: 0,
                threads: executor.threads() as u32,
                kernel: plan.kernel.c_name().as_ptr(),
                workspace_size: (plan.workspace + ALIGNMENT) as u64,
                workspace_alignment: ALIGNMENT as u64,
                bytes_read: plan.bytes_read,
                operations: plan.operations,
            });
            Ok(())
        })
    }
}

/// y[m x out_features] = x[m x in_features] W^T + b, with the norm, rotation and epilogue that the
/// layer was made with. x and y are f32, f16 or bf16, of any alignment, and do not overlap, which is not
/// checked. m is 0 to 2147483648; 0 writes nothing. A row of y does not depend, in any bit, on the other
/// rows, on the number of threads, on alignment or on the CPU (docs/numerics.md). A row of x with a NaN or
/// an infinity gives, with integer activations, a row of NaN.
///
/// A layer on a device gives the same bits. x and y are the host's memory all the same: they are copied, as
/// f32, and the call comes back when y is there. bl_forward_device leaves them on the device.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_forward(
    layer: *const bl_layer,
    m: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    y: *mut c_void,
    y_type: TypeArg,
    y_stride: i64,
    options: *const bl_run_options,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_plan`; x and y have m rows by the header's rules.
    unsafe {
        guard(error, || {
            let layer: &Layer = handle::get(layer)?;
            let (in_features, out_features) = (layer.in_features(), layer.out_features());
            let m = batch(m)?;
            let (x_float, y_float) = (float_type(x_type, "x")?, float_type(y_type, "y")?);
            let x_stride = row_stride(x_stride, in_features, x_float, "x")?;
            let y_stride = row_stride(y_stride, out_features, y_float, "y")?;
            let run = options::read(options)?;
            known_flags(&run, BL_RUN_ACCUMULATE)?;
            if m == 0 {
                return Ok(());
            }
            if x.is_null() || y.is_null() {
                return Err(fail!(InvalidArgument, "{} is NULL", if x.is_null() { "x" } else { "y" }));
            }
            addressable(m, x_stride, "x")?;
            addressable(m, y_stride, "y")?;
            let x = MatrixRef::new(x.cast(), x_float, x_stride, in_features);
            let y = MatrixMut::new(y.cast(), y_float, y_stride, out_features)
                .accumulating(run.flags & BL_RUN_ACCUMULATE != 0);
            match &layer.body {
                Body::Cpu(linear) => {
                    run_counted(&layer.context, &[Target::new(linear, y)], m, x, workspace(&run)?)
                }
                Body::Device(on_device) => {
                    no_workspace(&run)?;
                    run_on_device(&layer.context, &[HostTarget::new(on_device, y)], m, x)
                }
            }
        })
    }
}

/// Refuses flags that a call does not know.
fn known_flags(run: &bl_run_options, known: u32) -> Result<()> {
    match run.flags & !known {
        0 => Ok(()),
        BL_RUN_CHECK => Err(fail!(InvalidArgument, "run flags: BL_RUN_CHECK is for bl_forward_device only")),
        unknown => Err(fail!(InvalidArgument, "run flags {unknown:#x} are unknown")),
    }
}

/// The caller's workspace, if there is one.
///
/// # Safety
/// It is as long as it says, and no other call uses it meanwhile.
unsafe fn workspace<'a>(run: &bl_run_options) -> Result<Option<&'a mut [u8]>> {
    match run.workspace.is_null() {
        true if run.workspace_size > 0 => {
            Err(fail!(InvalidArgument, "workspace is NULL, workspace_size is not 0"))
        }
        true => Ok(None),
        false if run.workspace_size > isize::MAX as usize => {
            Err(fail!(InvalidArgument, "workspace_size is {}: no memory is that long", run.workspace_size))
        }
        // SAFETY: the caller's contract, and not longer than a slice may be.
        false => Ok(Some(unsafe {
            std::slice::from_raw_parts_mut(run.workspace.cast::<u8>(), run.workspace_size)
        })),
    }
}

/// Refuses a workspace where a call takes none.
fn no_workspace(run: &bl_run_options) -> Result<()> {
    match run.workspace.is_null() && run.workspace_size == 0 {
        true => Ok(()),
        false => Err(fail!(InvalidArgument, "layers on a device take a workspace in bl_forward_device only")),
    }
}

/// What the layers of a call read and compute, for a profile.
#[derive(Default)]
struct Total {
    bytes: u64,
    operations: u64,
}

impl Total {
    fn add(&mut self, bytes: u64, operations: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.operations = self.operations.saturating_add(operations);
    }
}

/// Runs a call on a device and counts it, where the context counts.
fn run_on_device(context: &Context, targets: &[HostTarget<'_>], m: usize, x: MatrixRef<'_>) -> Result<()> {
    let Some(profile) = &context.profile else {
        return DeviceLayer::forward(targets, m, x, &[], None);
    };
    let begin = Instant::now();
    let plans = |i: usize| targets[i].layer.plan(m);
    // A launch is of several layers where their kernel is the same: what they read is told with the call.
    let counted = |kernel, nanoseconds| profile.add_device_kernel(kernel, nanoseconds);
    DeviceLayer::forward(targets, m, x, &[], Some(&counted))?;
    let mut total = Total::default();
    for i in 0..targets.len() {
        let plan = plans(i)?;
        total.add(plan.bytes_read, plan.operations);
        profile.add_device_work(plan.kernel, plan.bytes_read, plan.operations);
    }
    profile.add_call(begin.elapsed().as_nanos() as u64, total.bytes, total.operations);
    Ok(())
}

impl Context {
    /// Puts a call on a stream and counts it, where the context counts: what it took to put it there.
    pub(super) fn count_enqueued(
        &self,
        targets: &[StreamTarget<'_>],
        m: usize,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(profile) = &self.profile else { return work() };
        let begin = Instant::now();
        work()?;
        let nanoseconds = begin.elapsed().as_nanos() as u64;
        let mut total = Total::default();
        for target in targets {
            let plan = target.layer.plan(m)?;
            total.add(plan.bytes_read, plan.operations);
            profile.add_device_kernel(plan.kernel, 0);
            profile.add_device_work(plan.kernel, plan.bytes_read, plan.operations);
        }
        profile.add_call(nanoseconds, total.bytes, total.operations);
        Ok(())
    }
}

/// Runs a call and counts it, where the context counts.
fn run_counted(
    context: &Context,
    targets: &[Target<'_>],
    m: usize,
    x: MatrixRef<'_>,
    workspace: Option<&mut [u8]>,
) -> Result<()> {
    let counted = context.profile.as_ref().map(|profile| (profile, Stages::default(), Instant::now()));
    let run = |workspace| {
        let extra = Extra { stages: counted.as_ref().map(|(_, stages, _)| stages), ..Extra::default() };
        layer::forward_with(targets, m, x, extra, workspace, &context.heap, &context.executor)
    };
    if workspace.is_some() && counted.is_none() {
        return run(workspace);
    }
    let plans = || targets.iter().map(|t| t.layer.plan(m, &context.executor));
    let bytes = if workspace.is_some() { 0 } else { plans().map(|p| p.workspace as u64).max().unwrap_or(0) };
    context.usage.workspace.fetch_add(bytes, Ordering::Relaxed);
    let result = run(workspace);
    context.usage.workspace.fetch_sub(bytes, Ordering::Relaxed);
    if let Some((profile, stages, begin)) = &counted {
        let mut total = Total::default();
        for (i, plan) in plans().enumerate() {
            profile.add_kernel(plan.kernel, stages.of_product(i), plan.bytes_read, plan.operations);
            if let Some(rule) = targets[i].layer.rule() {
                profile.add_scales(rule.fixed_scale.is_some());
            }
            total.add(plan.bytes_read, plan.operations);
        }
        for stage in Stage::ALL {
            let (nanoseconds, numbers) = stages.of(stage);
            if numbers > 0 {
                profile.add_stage(stage, nanoseconds, numbers * 4);
            }
        }
        profile.add_call(begin.elapsed().as_nanos() as u64, total.bytes, total.operations);
    }
    result
}

/// The arguments of a call on several layers, checked as far as the host's and a device's calls are alike.
pub(super) struct Several<'a> {
    pub(super) first: &'a Layer,
    pub(super) count: usize,
    pub(super) m: usize,
    pub(super) x: *const c_void,
    pub(super) x_type: Float,
    pub(super) x_stride: usize,
    pub(super) y_type: Float,
    pub(super) run: bl_run_options,
    layers: *const *const bl_layer,
    ys: *const *mut c_void,
    y_strides: *const i64,
}

impl<'a> Several<'a> {
    /// Reads them; `flags` are those of `bl_run_options` that the call knows.
    ///
    /// # Safety
    /// As the header says of each pointer; the arrays have `count` items for as long as the value lives.
    pub(super) unsafe fn read(
        (layers, count): (*const *const bl_layer, usize),
        m: i64,
        (x, x_type, x_stride): (*const c_void, TypeArg, i64),
        (ys, y_type, y_strides): (*const *mut c_void, TypeArg, *const i64),
        options: *const bl_run_options,
        flags: u32,
    ) -> Result<Several<'a>> {
        if count == 0 || count > LAYERS_MAX {
            return Err(fail!(InvalidArgument, "{count} layers: 1 to {LAYERS_MAX}"));
        }
        if layers.is_null() || ys.is_null() {
            let which = if layers.is_null() { "layers" } else { "ys" };
            return Err(fail!(InvalidArgument, "{which} is NULL"));
        }
        let m = batch(m)?;
        let (x_type, y_type) = (float_type(x_type, "x")?, float_type(y_type, "y")?);
        // SAFETY: the caller's contract; `layers` has an item, as `count` is not 0.
        let (run, first) = unsafe { (options::read(options)?, handle::get::<_, Layer>(layers.read())?) };
        known_flags(&run, flags)?;
        let x_stride = row_stride(x_stride, first.in_features(), x_type, "x")?;
        addressable(m, x_stride, "x")?;
        Ok(Several { first, count, m, x, x_type, x_stride, y_type, run, layers, ys, y_strides })
    }

    /// Whether results are added to the y's.
    pub(super) fn accumulates(&self) -> bool {
        self.run.flags & BL_RUN_ACCUMULATE != 0
    }

    /// Layer `i < count`, its y and the bytes from row to row of that.
    pub(super) fn place(&self, i: usize) -> Result<(&'a Layer, *mut c_void, usize)> {
        assert!(i < self.count);
        // SAFETY: the arrays have `count` items (contract of `read`), `y_strides` where it is there.
        let (layer, y, stride) = unsafe {
            let layer: &Layer = handle::get(self.layers.add(i).read())?;
            let stride = if self.y_strides.is_null() { 0 } else { self.y_strides.add(i).read() };
            (layer, self.ys.add(i).read(), stride)
        };
        alike(layer, self.first, i)?;
        let stride = row_stride(stride, layer.out_features(), self.y_type, "y")?;
        if self.m > 0 && (y.is_null() || self.x.is_null()) {
            return Err(fail!(InvalidArgument, "{} is NULL", if self.x.is_null() { "x" } else { "a y" }));
        }
        addressable(self.m, stride, "y")?;
        Ok((layer, y, stride))
    }
}

/// Several layers, 1 to 16, on the same x (Q, K and V; gate and up): ys[i] = x W_i^T + b_i, each bit for
/// bit what bl_forward gives. x is quantised once (and normed and rotated, where all layers do that alike)
/// and all layers are one parallel region. The layers have the same in_features, belong to one context
/// and are on one device; the y's are of one type and do not overlap. y_strides is
/// NULL (rows touch) or has one stride for each layer. A workspace as large as the layers' planned
/// ones together is always enough.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_forward_many(
    layers: *const *const bl_layer,
    count: usize,
    m: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    ys: *const *mut c_void,
    y_type: TypeArg,
    y_strides: *const i64,
    options: *const bl_run_options,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_forward`; the arrays have `count` items by the header's rules.
    unsafe {
        guard(error, || {
            let (x, ys) = ((x, x_type, x_stride), (ys, y_type, y_strides));
            let call = Several::read((layers, count), m, x, ys, options, BL_RUN_ACCUMULATE)?;
            let Several { first, m, run, .. } = call;
            // The layer of that number and its rows.
            let place = |i: usize| -> Result<(&Layer, MatrixMut<'_>)> {
                let (layer, y, stride) = call.place(i)?;
                let y = MatrixMut::new(y.cast(), call.y_type, stride, layer.out_features());
                Ok((layer, y.accumulating(call.accumulates())))
            };
            let x = MatrixRef::new(call.x.cast(), call.x_type, call.x_stride, first.in_features());
            // Fixed arrays: a call allocates nothing where it has a workspace.
            match &first.body {
                Body::Cpu(linear) => {
                    let mut targets: [_; LAYERS_MAX] =
                        std::array::from_fn(|_| Target::new(linear, MatrixMut::of(&mut [], 0)));
                    for (i, target) in targets[..count].iter_mut().enumerate() {
                        let (layer, y) = place(i)?;
                        *target = Target::new(layer.cpu("a call")?, y);
                    }
                    if m == 0 {
                        return Ok(());
                    }
                    run_counted(&first.context, &targets[..count], m, x, workspace(&run)?)
                }
                Body::Device(on_device) => {
                    let mut targets: [_; LAYERS_MAX] =
                        std::array::from_fn(|_| HostTarget::new(on_device, MatrixMut::of(&mut [], 0)));
                    for (i, target) in targets[..count].iter_mut().enumerate() {
                        let (layer, y) = place(i)?;
                        *target = HostTarget::new(device_layer(layer)?, y);
                    }
                    if m == 0 {
                        return Ok(());
                    }
                    no_workspace(&run)?;
                    run_on_device(&first.context, &targets[..count], m, x)
                }
            }
        })
    }
}
