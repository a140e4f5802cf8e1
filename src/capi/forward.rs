//! The work.

use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::boundary::guard;
use super::handle;
use super::layer::{Layer, float_type, row_stride};
use super::options;
use super::types::*;
use crate::error::{Result, fail};
use crate::limits::BATCH_MAX;
use crate::matrix::{MatrixMut, MatrixRef};
use crate::memory::ALIGNMENT;

fn batch(m: i64) -> Result<usize> {
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
            let executor = &layer.context.executor;
            let plan = layer.linear.plan(batch(m)?, executor);
            out.fill(&bl_plan_info {
                struct_size: 0,
                threads: executor.width() as u32,
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
/// layer was made with. x and y are f32, f16 or bf16, of any alignment,
/// and do not overlap. m = 0 writes nothing. A row of y does not depend, in any bit, on the other rows,
/// on the number of threads, on alignment or on the CPU (docs/numerics.md). A row of x with a NaN or
/// an infinity gives, with integer activations, a row of NaN.
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
            let linear = &layer.linear;
            let m = batch(m)?;
            let (x_float, y_float) = (float_type(x_type, "x")?, float_type(y_type, "y")?);
            let x_stride = row_stride(x_stride, linear.in_features(), x_float, "x")?;
            let y_stride = row_stride(y_stride, linear.out_features(), y_float, "y")?;
            let run = options::read(options)?;
            if run.flags & !BL_RUN_ACCUMULATE != 0 {
                return Err(fail!(InvalidArgument, "run flags {:#x} are unknown", run.flags));
            }
            if m == 0 {
                return Ok(());
            }
            if x.is_null() || y.is_null() {
                return Err(fail!(InvalidArgument, "{} is NULL", if x.is_null() { "x" } else { "y" }));
            }
            let fits = |stride: usize| stride.checked_mul(m).is_some_and(|n| n <= isize::MAX as usize);
            if !fits(x_stride) || !fits(y_stride) {
                return Err(fail!(
                    InvalidArgument,
                    "{m} rows of such strides are more than an address space"
                ));
            }
            let workspace = match run.workspace.is_null() {
                true if run.workspace_size > 0 => {
                    return Err(fail!(InvalidArgument, "workspace is NULL, workspace_size is not 0"));
                }
                true => None,
                false => Some(std::slice::from_raw_parts_mut(run.workspace.cast::<u8>(), run.workspace_size)),
            };
            let x = MatrixRef::new(x.cast(), x_float, x_stride, linear.in_features());
            let y = MatrixMut::new(y.cast(), y_float, y_stride, linear.out_features())
                .accumulating(run.flags & BL_RUN_ACCUMULATE != 0);
            let context = &layer.context;
            let own = workspace.is_none() as u64;
            let begin = context.profile.as_ref().map(|profile| (profile, Instant::now()));
            if own == 0 && begin.is_none() {
                return linear.forward(m, x, y, workspace, &context.heap, &context.executor);
            }
            let plan = linear.plan(m, &context.executor);
            let bytes = own * plan.workspace as u64;
            context.usage.workspace.fetch_add(bytes, Ordering::Relaxed);
            let result = linear.forward(m, x, y, workspace, &context.heap, &context.executor);
            context.usage.workspace.fetch_sub(bytes, Ordering::Relaxed);
            if let Some((profile, begin)) = begin {
                profile.add(plan.kernel, begin, plan.bytes_read, plan.operations);
            }
            result
        })
    }
}
