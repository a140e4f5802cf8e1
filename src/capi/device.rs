//! Layers on GPUs: copies from device to device, and calls on a CUDA stream.

use std::ffi::c_void;
use std::sync::Arc;

use super::boundary::guard;
use super::context::{Context, out_handle};
use super::enums::*;
use super::forward::Several;
use super::handle;
use super::layer::{Body, Layer};
use super::types::*;
use crate::cuda::{self, DeviceLayer, Room, StreamCall, StreamTarget};
use crate::error::{Result, fail};
use crate::layer::{Linear, Options, Seen};
use crate::layout::{Float, Matrix};
use crate::limits::LAYERS_MAX;

/// A matrix onto a device, for a context.
///
/// # Safety
/// As `DeviceLayer::new`.
pub(super) unsafe fn onto(
    context: &Context,
    device: u32,
    matrix: &dyn Matrix,
    options: &Options<'_>,
    room: Room,
    seen: Seen<'_>,
) -> Result<DeviceLayer> {
    let lanes = context.lanes(device)?;
    // SAFETY: the caller's contract.
    unsafe { DeviceLayer::new(matrix, options, &lanes, room, seen) }
}

impl Layer {
    /// The same layer on the CPU; its weights are packed anew, exactly.
    pub(super) fn to_cpu(&self) -> Result<Linear> {
        let settings = self.around().settings(self.layout())?;
        let packer = self.context.packer();
        self.matrix(|matrix| Linear::load(matrix, &settings.options(), &packer, &|_| {}))
    }
}

/// Copies a layer to a device, or back (0: the CPU): the same weights and settings, to the bit, in the same
/// context. The layer stays. memory_size NULL: the library allocates. Else the copy lies in the host's own
/// device memory: *memory_size bytes at `memory`, a multiple of 256, BORROWED until the copy is freed and
/// work that uses it is done; *memory_size becomes the bytes that are needed, with memory NULL that alone is
/// told and *out is NULL. For the CPU memory and memory_size are NULL.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_copy(
    layer: *const bl_layer,
    device: u32,
    memory: *mut c_void,
    memory_size: *mut usize,
    out: *mut *mut bl_layer,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let layer: &Layer = handle::get(layer)?;
            if device == 0 {
                if !memory.is_null() || !memory_size.is_null() {
                    return Err(fail!(InvalidArgument, "memory and memory_size are for copies to a device"));
                }
                let copy = layer.copy(Body::Cpu(layer.to_cpu()?));
                *out = handle::make::<bl_layer, _>(Arc::new(copy))?;
                return Ok(());
            }
            if memory_size.is_null() && !memory.is_null() {
                return Err(fail!(InvalidArgument, "memory_size is NULL, memory is not"));
            }
            let settings = layer.around().settings(layer.layout())?;
            let options = settings.options();
            let room = if memory_size.is_null() {
                Room::Own
            } else {
                let (given, need) = (memory_size.read(), layer.matrix(|m| DeviceLayer::size(m, &options))?);
                memory_size.write(need);
                if memory.is_null() {
                    return Ok(());
                }
                Room::Host(memory.addr() as u64, given)
            };
            let body = layer.matrix(|m| onto(&layer.context, device, m, &options, room, &|_| {}))?;
            *out = handle::make::<bl_layer, _>(Arc::new(layer.copy(Body::Device(body))))?;
            Ok(())
        })
    }
}

/// bl_forward_many (1 to 16 layers) on the caller's CUDA stream, for layers on one GPU: x, the y's and the workspace are
/// memory of that GPU, aligned to their elements, and strides are multiples of an element. `layers`, `ys`
/// and `y_strides` are arrays of the host's. The work is put on the stream, and the call comes back:
/// nothing is allocated, loaded or waited for, so that it may be captured in a graph. What is captured holds
/// for its m, its addresses and these layers as they are: freeing or calibrating one makes it wrong.
/// bl_layer_update keeps a layer's addresses: a graph then works with the new weights.
///
/// The workspace must be given, as large as the layers' planned ones together; a workspace for m rows does
/// for fewer. No call on another stream uses it before this one's work is done. `stream` is a CUstream
/// (cudaStream_t) of the GPU's primary context, the one of the CUDA runtime; NULL is the default stream,
/// which cannot be captured. The thread's current context stays what it is.
///
/// A failure of the kernels appears later: at a call of the host's that waits, or as
/// BL_ERROR_DEVICE_LOST of this library's next call on the device.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_forward_device(
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
    stream: *mut c_void,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_copy`; the arrays have `count` items by the header's rules.
    unsafe {
        guard(error, || {
            let (x, ys) = ((x, x_type, x_stride), (ys, y_type, y_strides));
            let flags = BL_RUN_ACCUMULATE | BL_RUN_CHECK;
            let call = Several::read((layers, count), m, x, ys, options, flags)?;
            let Several { first, m, run, x, .. } = call;
            device_layer(first)?;
            aligned(x.addr(), call.x_stride, call.x_type, "x")?;
            // A fixed array: the call allocates nothing.
            let mut targets = [None; LAYERS_MAX];
            for (i, target) in targets[..count].iter_mut().enumerate() {
                let (layer, y, y_stride) = call.place(i)?;
                aligned(y.addr(), y_stride, call.y_type, "a y")?;
                *target = Some(StreamTarget { layer: device_layer(layer)?, y: y.addr() as u64, y_stride });
            }
            if m == 0 {
                return Ok(());
            }
            let Some(StreamTarget { layer, .. }) = targets[0] else {
                return Err(fail!(Internal, "a call without layers"));
            };
            let filler = StreamTarget { layer, y: 0, y_stride: 0 };
            let targets = targets.map(|target| target.unwrap_or(filler));
            let call = StreamCall {
                m,
                x: x.addr() as u64,
                x_type: call.x_type,
                x_stride: call.x_stride,
                y_type: call.y_type,
                accumulate: call.accumulates(),
                workspace: (run.workspace.addr() as u64, run.workspace_size),
                check: run.flags & BL_RUN_CHECK != 0,
                stream,
            };
            first.context.count_enqueued(&targets[..count], m, || cuda::enqueue(&targets[..count], &call))
        })
    }
}

/// A layer of a call on a device.
pub(super) fn device_layer(layer: &Layer) -> Result<&DeviceLayer> {
    match &layer.body {
        Body::Device(layer) => Ok(layer),
        Body::Cpu(_) => Err(fail!(InvalidArgument, "the layer is on the CPU: bl_forward_device is for GPUs")),
    }
}

/// Whether a layer of a call goes with its first one: the same x, context and device.
pub(super) fn alike(layer: &Layer, first: &Layer, number: usize) -> Result<()> {
    if layer.in_features() != first.in_features() {
        return Err(fail!(
            InvalidArgument,
            "layer {number} takes {} features, layer 0 {}",
            layer.in_features(),
            first.in_features()
        ));
    }
    if !Arc::ptr_eq(&layer.context, &first.context) {
        return Err(fail!(InvalidArgument, "layer {number} is of another context than layer 0"));
    }
    let device = |layer: &Layer| match &layer.body {
        Body::Cpu(_) => 0,
        Body::Device(layer) => layer.device(),
    };
    if device(layer) != device(first) {
        return Err(fail!(
            InvalidArgument,
            "layer {number} is on device {}, layer 0 on {}",
            device(layer),
            device(first)
        ));
    }
    Ok(())
}

/// Refuses what a kernel could not read element by element.
fn aligned(address: usize, stride: usize, float: Float, what: &str) -> Result<()> {
    if address.is_multiple_of(float.bytes()) && stride.is_multiple_of(float.bytes()) {
        return Ok(());
    }
    Err(fail!(
        InvalidArgument,
        "{what} at {address:#x} with rows {stride} bytes apart: on a device both are multiples of {} bytes",
        float.bytes()
    ))
}
