//! A layer on a device: its weights in one piece of device memory, put there strip by strip, and its calls.
//!
//! ```text
//! memory = strips, bias, norm weight, norm bias, signs, permutation      each from a multiple of 256 bytes on
//! ```
//! Everything slow happens when the layer is made: the device's context, its kernels, memory, the upload.
//! A call with device pointers only computes launches and puts them on the caller's stream.

use std::ffi::{CStr, c_uint};
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::CUstream;
use xxhash_rust::xxh3::Xxh3Default;

use super::call::{HostTarget, Room, StreamCall, StreamTarget};
use super::device::{Entered, Slow};
use super::lanes::Lanes;
use super::memory::{ALIGNMENT, DeviceMemory, Pinned, Stream};
use crate::activation::Width;
use crate::error::{Result, fail};
use crate::kernel::cuda::launch::{
    self, Gpu, Input, Launch, Module, Norm, Placed, Rotation, RowScales, Target,
};
use crate::kernel::cuda::weights::{Form, STRIP};
use crate::layer::{Activation, Around, Options, Seen, operations};
use crate::layout::{Float, Layout, Matrix, Row};
use crate::limits::LAYERS_MAX;
use crate::matrix::MatrixRef;
use crate::memory::{Heap, filled};

/// Bytes that are packed before they are copied to the device: one strip, where that is more.
const STAGING: usize = 4 << 20;
/// Bytes of x and y that a call with host pointers takes at a time: one row, where that is more.
const BATCH_BYTES: usize = 16 << 20;

/// One linear layer on a device.
pub struct DeviceLayer {
    lanes: Arc<Lanes>,
    around: Around,
    permutation: Option<Vec<u32>>,
    gpu: Gpu,
    placed: Placed,
    /// Of norm, rotation and permutation: layers with the same take x alike.
    front: u128,
    memory: DeviceMemory,
}

/// Where everything lies in a layer's memory; `None`: it is not there.
struct Map {
    bias: Option<usize>,
    norm_weight: Option<usize>,
    norm_bias: Option<usize>,
    signs: Option<usize>,
    permutation: Option<usize>,
    bytes: usize,
}

impl Map {
    fn new(form: &Form, around: &Around, permuted: bool) -> Result<Map> {
        let (rows, columns) = (form.out_features, form.in_features);
        let mut at = form.bytes();
        let mut take = |there: bool, count: usize| {
            let start = at.checked_next_multiple_of(ALIGNMENT)?;
            if there {
                at = start.checked_add(count.checked_mul(4)?)?;
            }
            Some(there.then_some(start))
        };
        let norm = around.norm.as_ref().map(|norm| norm.spec());
        let signs = around.rotation.as_ref().is_some_and(|rotation| rotation.has_signs());
        let mut all = || {
            let map = Map {
                bias: take(around.bias.is_some(), rows)?,
                norm_weight: take(norm.is_some_and(|norm| norm.weight.is_some()), columns)?,
                norm_bias: take(norm.is_some_and(|norm| norm.bias.is_some()), columns)?,
                signs: take(signs, columns)?,
                permutation: take(permuted, columns)?,
                bytes: 0,
            };
            Some(map)
        };
        let map = all().ok_or_else(|| fail!(OutOfMemory, "{rows} x {columns} weights on a device"))?;
        Ok(Map { bytes: at, ..map })
    }
}

/// What a call will do and need.
pub struct DevicePlan {
    /// The product's kernel.
    pub kernel: &'static CStr,
    /// Bytes of workspace on the device, from a multiple of 256 on.
    pub workspace: usize,
    /// Bytes of weights and scales that it reads.
    pub bytes_read: u64,
    /// Multiplications and additions.
    pub operations: u64,
}

/// Called after each launch of a call that is counted: its kernel, and the nanoseconds that it took.
pub type Counted<'a> = &'a dyn Fn(&'static CStr, u64);

/// The names of all kernels, in a fixed order.
pub fn kernels() -> impl Iterator<Item = &'static CStr> {
    Module::ALL.into_iter().flat_map(|module| module.functions().iter().copied())
}

impl DeviceLayer {
    /// Bytes of device memory that a layer of a matrix needs.
    pub fn size(matrix: &dyn Matrix, options: &Options<'_>) -> Result<usize> {
        let (layout, rows, columns) = (matrix.layout(), matrix.out_features(), matrix.in_features());
        let around = Around::new(options, &layout, rows, columns)?;
        let form = form(&layout, rows, columns, &around)?;
        Ok(Map::new(&form, &around, matrix.permutation().is_some())?.bytes)
    }

    /// Packs a matrix onto a device. `seen` is told which rows of it have been read.
    ///
    /// # Safety
    /// Memory of the host's is as [`Room::Host`] says, on that device, for as long as the layer lives.
    pub unsafe fn new(
        matrix: &dyn Matrix,
        options: &Options<'_>,
        lanes: &Arc<Lanes>,
        room: Room,
        seen: Seen<'_>,
    ) -> Result<DeviceLayer> {
        let (layout, rows, columns) = (matrix.layout(), matrix.out_features(), matrix.in_features());
        // Before the weights are packed: a wrong parameter should not take seconds to find.
        let around = Around::new(options, &layout, rows, columns)?;
        let form = form(&layout, rows, columns, &around)?;
        let permutation =
            matrix.permutation().map(|p| crate::memory::copied(p, "permutation")).transpose()?;
        let map = Map::new(&form, &around, permutation.is_some())?;
        let device = &lanes.device;
        let description = device.description();
        let gpu = Gpu {
            capability: (description.arch / 10, description.arch % 10),
            multiprocessors: description.processors,
            shared_block: description.shared_memory as usize,
        };
        let slow = device.enter_slowly()?;
        let hopper = Module::hopper(&layout, around.rule).filter(|_| gpu.capability == (9, 0));
        for module in [Module::Prepare, Module::of(&layout, around.rule)].into_iter().chain(hopper) {
            device.modules.load(&slow, module, &gpu)?;
        }
        let memory = match room {
            Room::Own => DeviceMemory::new(&slow, device, map.bytes, &lanes.count)?,
            Room::Host(_, len) if len < map.bytes => {
                return Err(fail!(BufferTooSmall, "{len} bytes of device memory, {} needed", map.bytes));
            }
            // SAFETY: the caller's contract.
            Room::Host(address, _) => unsafe { DeviceMemory::of_host(device, address, map.bytes)? },
        };
        let at = |offset: Option<usize>| offset.map_or(0, |offset| memory.address() + offset as u64);
        let placed = Placed {
            form,
            weights: memory.address(),
            bias: at(map.bias),
            rule: around.rule,
            norm: around.norm.as_ref().map(|norm| {
                let spec = norm.spec();
                let (weight, bias) = (at(map.norm_weight), at(map.norm_bias));
                Norm { kind: spec.kind, epsilon: spec.epsilon, weight, bias }
            }),
            rotation: around.rotation.as_ref().map(|r| Rotation { block: r.block(), signs: at(map.signs) }),
            permutation: at(map.permutation),
            product_scale: around.product_scale,
        };
        let front = front(&around, permutation.as_deref());
        let layer = DeviceLayer { lanes: lanes.clone(), around, permutation, gpu, placed, front, memory };
        // What cannot run should not take an upload to find: a plan of few rows, and one of many.
        layer.plan(1)?;
        layer.plan(4096)?;
        layer.upload(&slow, matrix, &map, seen)?;
        Ok(layer)
    }

    /// Weights and parameters to the device; they are there when this comes back.
    fn upload(&self, slow: &Slow<'_>, matrix: &dyn Matrix, map: &Map, seen: Seen<'_>) -> Result<()> {
        let form = &self.placed.form;
        let strips = (STAGING / form.strip_bytes).clamp(1, form.strips());
        let mut pinned = Pinned::new(slow, &self.lanes.device, strips * form.strip_bytes)?;
        // Goes before what it copies from.
        let stream = Stream::new(slow, &self.lanes.device)?;
        let mut work = || {
            let mut row = Row::new(form.layout, form.in_features)?;
            for first in (0..form.strips()).step_by(strips) {
                let count = strips.min(form.strips() - first);
                let bytes = &mut pinned.bytes()[..count * form.strip_bytes];
                pack(form, matrix, first, bytes, &mut row, seen)?;
                self.memory.write(slow, first * form.strip_bytes, bytes, &stream)?;
                stream.wait(slow)?;
            }
            let mut put = |offset: Option<usize>, count: usize, word: &dyn Fn(usize) -> [u8; 4]| {
                let Some(offset) = offset else { return Ok(()) };
                let mut done = 0;
                while done < count {
                    let words = pinned.bytes().as_chunks_mut::<4>().0;
                    let n = words.len().min(count - done);
                    words[..n].iter_mut().enumerate().for_each(|(i, place)| *place = word(done + i));
                    let bytes = &pinned.bytes()[..4 * n];
                    self.memory.write(slow, offset + 4 * done, bytes, &stream)?;
                    stream.wait(slow)?;
                    done += n;
                }
                Ok(())
            };
            let Around { bias, norm, rotation, .. } = &self.around;
            let norm = norm.as_ref().map(|norm| norm.spec());
            if let Some(bias) = bias {
                put(map.bias, bias.len(), &|i| bias[i].to_le_bytes())?;
            }
            if let Some(weight) = norm.and_then(|norm| norm.weight) {
                put(map.norm_weight, weight.len(), &|i| weight[i].to_le_bytes())?;
            }
            if let Some(bias) = norm.and_then(|norm| norm.bias) {
                put(map.norm_bias, bias.len(), &|i| bias[i].to_le_bytes())?;
            }
            if let Some(rotation) = rotation {
                let sign = |i: usize| (rotation.sign(i).to_bits() & 0x8000_0000).to_le_bytes();
                put(map.signs, rotation.columns(), &sign)?;
            }
            if let Some(columns) = &self.permutation {
                put(map.permutation, columns.len(), &|i| columns[i].to_le_bytes())?;
            }
            Ok(())
        };
        let result = work();
        // A failed copy may still be under way.
        let waited = stream.wait(slow);
        result.and(waited)
    }

    /// Takes other weights of the same shape and layout, in place: addresses stay. After a failure to read
    /// them the layer is as it was. Nothing may use it meanwhile.
    pub fn replace(&mut self, matrix: &dyn Matrix, heap: &Heap) -> Result<()> {
        let form = &self.placed.form;
        let new = (matrix.layout(), matrix.out_features(), matrix.in_features());
        if new != (form.layout, form.out_features, form.in_features)
            || matrix.permutation() != self.permutation.as_deref()
        {
            return Err(fail!(InvalidArgument, "weights of another shape or layout than the layer's"));
        }
        let mut packed = heap.buffer(form.bytes(), "packed weights")?;
        let mut row = Row::new(form.layout, form.in_features)?;
        let bytes = &mut packed.bytes_mut()[..form.bytes()];
        pack(form, matrix, 0, bytes, &mut row, &|_| {})?;
        let slow = self.lanes.device.enter_slowly()?;
        let stream = Stream::new(&slow, &self.lanes.device)?;
        let written = self.memory.write(&slow, 0, bytes, &stream);
        let waited = stream.wait(&slow);
        written.and(waited)
    }

    /// Makes integer activations use that scale for all of x, or again what they find in it.
    pub fn fix_scale(&mut self, scale: Option<f32>) {
        self.around.fix_scale(scale);
        self.placed.rule = self.around.rule;
    }

    /// Rows of W.
    pub fn out_features(&self) -> usize {
        self.placed.form.out_features
    }

    /// Columns of W.
    pub fn in_features(&self) -> usize {
        self.placed.form.in_features
    }

    /// How the weights are coded.
    pub fn layout(&self) -> &Layout {
        &self.placed.form.layout
    }

    /// What stands around the product.
    pub fn around(&self) -> &Around {
        &self.around
    }

    /// How x is taken, resolved: never `Auto`.
    pub fn activation(&self) -> Activation {
        self.around.activation(self.layout())
    }

    /// The device's number in `bl_device_describe`.
    pub fn device(&self) -> u32 {
        self.lanes.device.index()
    }

    /// Bytes on the device, and whether they are the host's.
    pub fn bytes(&self) -> (usize, bool) {
        (self.memory.size(), self.memory.is_hosts())
    }

    /// What a call on `m` rows will do and need.
    pub fn plan(&self, m: usize) -> Result<DevicePlan> {
        let target = [self.target(None, 0, Float::F32, 0, false)];
        let mut kernel = c"";
        let input = Input {
            m: m.max(1),
            x: 0,
            x_type: Float::F32,
            x_stride: 0,
            gather: None,
            scales: RowScales::Own,
        };
        launch::plan(&target, &input, &self.gpu, 0, &mut |launch| {
            kernel = launch.function;
            Ok(())
        })?;
        Ok(DevicePlan {
            kernel,
            workspace: launch::workspace(&target, m.max(1), &self.gpu)?,
            bytes_read: self.memory.size() as u64,
            operations: operations(m, self.in_features(), self.out_features()),
        })
    }

    /// This layer in a call, after `before`.
    fn target(
        &self,
        before: Option<&DeviceLayer>,
        y: u64,
        y_type: Float,
        y_stride: usize,
        accumulate: bool,
    ) -> Target<'_> {
        Target {
            layer: &self.placed,
            same_front: before.is_some_and(|before| before.front == self.front),
            columns: self.in_features(),
            outputs: self.out_features(),
            epilogue: self.around.epilogue,
            y,
            y_type,
            y_stride,
            accumulate,
        }
    }

    /// `y = epilogue((R norm(x) Wᵀ) s + b)` for several layers of one device, from and to host memory.
    /// Comes back when y is there. `scales`: for integer activations of one scale a row, in place of those
    /// that the rule finds; none, one for all rows, or one for each; 0 for rows of zeros. `counted` waits
    /// after every launch.
    pub fn forward(
        targets: &[HostTarget<'_>],
        m: usize,
        x: MatrixRef<'_>,
        scales: &[f32],
        counted: Option<Counted<'_>>,
    ) -> Result<()> {
        let first = targets[0].layer;
        let (lanes, in_features) = (&first.lanes, targets[0].columns);
        let outputs: usize = targets.iter().map(|t| t.outputs).sum();
        let rows = (BATCH_BYTES / (4 * (in_features + outputs))).clamp(1, m.max(1));
        // Everything in f32: what comes from and goes to other types is exact, or rounded as on the CPU.
        let slow = lanes.device.enter_slowly()?;
        let up = |bytes: usize| bytes.next_multiple_of(ALIGNMENT);
        // x, and behind it the scales.
        let x_only = up(4 * rows * in_features);
        let x_bytes = x_only + up(4 * scales.len().min(rows));
        let y_bytes: usize = targets.iter().map(|t| up(4 * rows * t.outputs)).sum();
        let plain = |i: usize, y: u64| {
            let HostTarget { layer, columns, outputs, epilogue, .. } = &targets[i];
            let (columns, outputs, epilogue) = (*columns, *outputs, *epilogue);
            let before = i.checked_sub(1).map(|i| targets[i].layer);
            let whole = layer.target(before, y, Float::F32, 4 * outputs, false);
            Target { columns, outputs, epilogue, ..whole }
        };
        let mut planned = [plain(0, 0); LAYERS_MAX];
        for (i, target) in planned.iter_mut().enumerate().take(targets.len()) {
            *target = plain(i, 0);
        }
        let workspace = launch::workspace(&planned[..targets.len()], rows, &first.gpu)?;
        let device_bytes = x_bytes + y_bytes + workspace;
        lanes.call(&slow, x_bytes.max(y_bytes), device_bytes, |stream, host, device| {
            for at in (0..m).step_by(rows) {
                let rows = rows.min(m - at);
                let staged = &mut host[..4 * rows * in_features];
                // SAFETY: pinned memory is aligned to pages; any bytes are valid f32.
                let floats = unsafe { staged.align_to_mut::<f32>().1 };
                for (i, row) in floats.chunks_exact_mut(in_features).enumerate() {
                    x.read_row(at + i, row);
                }
                device.write(&slow, 0, staged, stream)?;
                let scales = if scales.len() > 1 { &scales[at..at + rows] } else { scales };
                let staged = &mut host[x_only..][..4 * scales.len()];
                for (place, scale) in staged.as_chunks_mut().0.iter_mut().zip(scales) {
                    *place = scale.to_le_bytes();
                }
                device.write(&slow, x_only, staged, stream)?;
                let scales_there = device.address() + x_only as u64;
                let mut y = device.address() + x_bytes as u64;
                for (i, target) in planned.iter_mut().enumerate().take(targets.len()) {
                    *target = plain(i, y);
                    y += up(4 * rows * target.outputs) as u64;
                }
                let input = Input {
                    m: rows,
                    x: device.address(),
                    x_type: Float::F32,
                    x_stride: 4 * in_features,
                    gather: None,
                    scales: match scales.len() {
                        0 => RowScales::Own,
                        1 => RowScales::One(scales_there),
                        _ => RowScales::Each(scales_there),
                    },
                };
                let space = device.address() + (x_bytes + y_bytes) as u64;
                if counted.is_some() {
                    stream.wait(&slow)?;
                }
                let planned = &planned[..targets.len()];
                launch::plan(planned, &input, &first.gpu, space, &mut |launch| {
                    let begin = counted.map(|_| std::time::Instant::now());
                    start(&slow, launch, stream.handle())?;
                    if let (Some(counted), Some(begin)) = (counted, begin) {
                        stream.wait(&slow)?;
                        counted(launch.function, begin.elapsed().as_nanos() as u64);
                    }
                    Ok(())
                })?;
                // x has been copied before the first kernel runs: its place is free for y.
                let back = (y - device.address()) as usize - x_bytes;
                device.read(&slow, x_bytes, &mut host[..back], stream)?;
                stream.wait(&slow)?;
                let mut from = 0;
                for target in targets {
                    let outputs = target.outputs;
                    // SAFETY: as above.
                    let values = unsafe { host[from..][..4 * rows * outputs].align_to::<f32>().1 };
                    for (i, row) in values.chunks_exact(outputs).enumerate() {
                        target.y.write(at + i, 0, row);
                    }
                    from += up(4 * rows * outputs);
                }
            }
            Ok(())
        })
    }

    /// A row reader for what is on the device.
    pub fn rows(&self) -> Result<DeviceRows<'_>> {
        let bytes = filled(self.placed.form.strip_bytes, 0u8, "a strip of weights")?;
        Ok(DeviceRows { layer: self, strip: Mutex::new((usize::MAX, bytes)) })
    }
}

/// The form of a layer's weights.
fn form(layout: &Layout, rows: usize, columns: usize, around: &Around) -> Result<Form> {
    let unsigned = around.rule.is_some_and(|rule| rule.width == Width::Uint8);
    Form::new(layout, rows, columns, unsigned)
}

/// Writes whole strips from strip `first` on.
fn pack(
    form: &Form,
    matrix: &dyn Matrix,
    first: usize,
    bytes: &mut [u8],
    row: &mut Row<'_>,
    seen: Seen<'_>,
) -> Result<()> {
    bytes.fill(0);
    for (i, strip) in bytes.chunks_exact_mut(form.strip_bytes).enumerate() {
        let begin = (first + i) * STRIP;
        let lanes = STRIP.min(form.out_features - begin);
        for lane in 0..lanes {
            matrix.read_row(begin + lane, row)?;
            form.write_row(lane, row, strip);
        }
        seen(begin..begin + lanes);
    }
    Ok(())
}

/// A number for what is done to x before it is quantised. 128 bits: that two fronts share one by chance does
/// not happen.
fn front(around: &Around, permutation: Option<&[u32]>) -> u128 {
    let mut hash = Xxh3Default::new();
    let mut floats = |values: Option<&[f32]>| {
        hash.update(&[values.is_some() as u8]);
        values.into_iter().flatten().for_each(|v| hash.update(&v.to_bits().to_le_bytes()));
    };
    if let Some(norm) = &around.norm {
        let spec = norm.spec();
        floats(Some(&[spec.kind as u32 as f32, spec.epsilon]));
        floats(spec.weight);
        floats(spec.bias);
    }
    if let Some(rotation) = &around.rotation {
        floats(Some(&[rotation.block() as f32]));
        if rotation.has_signs() {
            (0..rotation.columns()).for_each(|k| floats(Some(&[rotation.sign(k)])));
        }
    }
    for column in permutation.into_iter().flatten() {
        hash.update(&column.to_le_bytes());
    }
    hash.digest128()
}

/// Puts a launch on a stream.
fn start(entered: &Entered<'_>, launch: &Launch<'_>, stream: CUstream) -> Result<()> {
    let device = entered.device();
    let Some(function) = device.modules.function(launch.module, launch.function) else {
        let name = launch.function.to_string_lossy();
        return Err(fail!(Internal, "kernel {name} was not made ready"));
    };
    let (parameters, _) = launch.params.address();
    let mut pointers = [parameters.cast_mut()];
    let ([x, y, z], threads): ([c_uint; 3], c_uint) = (launch.grid, launch.block);
    // SAFETY: a function of this context with one parameter, a struct that lives until the driver has copied
    // it, which it does before the call comes back.
    let result = unsafe {
        let parameters = pointers.as_mut_ptr();
        (entered.driver().functions.launch)(
            function,
            x,
            y,
            z,
            threads,
            1,
            1,
            launch.shared,
            stream,
            parameters,
            std::ptr::null_mut(),
        )
    };
    entered.check_stream(result, "cuLaunchKernel")
}

// ---- device pointers --------------------------------------------------------------------------

/// Puts a call on the caller's stream: nothing is allocated, loaded or waited for.
///
/// # Safety
/// The addresses are memory of the layers' device, for as long as the work on the stream takes, and hold
/// the rows that the call says. The stream is one of that device's primary context.
pub unsafe fn enqueue(targets: &[StreamTarget<'_>], call: &StreamCall) -> Result<()> {
    let Some(first) = targets.first().map(|t| t.layer) else { return Ok(()) };
    let device = &first.lanes.device;
    let entered = device.enter()?;
    let target = |i: usize| {
        let StreamTarget { layer, y, y_stride } = targets[i];
        let before = i.checked_sub(1).map(|i| targets[i].layer);
        layer.target(before, y, call.y_type, y_stride, call.accumulate)
    };
    let mut all = [target(0); LAYERS_MAX];
    for (i, place) in all.iter_mut().enumerate().take(targets.len()) {
        *place = target(i);
    }
    let all = &all[..targets.len()];
    let (address, len) = call.workspace;
    let need = launch::workspace(all, call.m, &first.gpu)?;
    let begin = address.next_multiple_of(launch::ALIGNMENT as u64);
    if need > 0 && (address == 0 || (len as u64) < (begin - address) + need as u64) {
        return Err(fail!(
            BufferTooSmall,
            "workspace of {len} bytes on the device, {} needed (see bl_plan)",
            need + launch::ALIGNMENT
        ));
    }
    if call.check {
        let own = device.index();
        let check = |what: &str, address: u64| match entered.owner(address) {
            Some(index) if index == own => Ok(()),
            Some(index) => Err(fail!(InvalidArgument, "{what} is on device {index}, the layer on {own}")),
            None => Err(fail!(InvalidArgument, "{what} ({address:#x}) is no memory of a device")),
        };
        check("x", call.x)?;
        targets.iter().try_for_each(|target| check("a y", target.y))?;
        if need > 0 {
            check("the workspace", address)?;
        }
    }
    let input = Input {
        m: call.m,
        x: call.x,
        x_type: call.x_type,
        x_stride: call.x_stride,
        gather: None,
        scales: RowScales::Own,
    };
    let stream = call.stream.cast();
    launch::plan(all, &input, &first.gpu, begin, &mut |launch| start(&entered, launch, stream))
}

// ---- back to the host -------------------------------------------------------------------------

/// The rows of a layer on a device, as a matrix: what was packed comes back exactly.
pub struct DeviceRows<'a> {
    layer: &'a DeviceLayer,
    /// The strip that was read last.
    strip: Mutex<(usize, Vec<u8>)>,
}

impl Matrix for DeviceRows<'_> {
    fn layout(&self) -> Layout {
        *self.layer.layout()
    }
    fn out_features(&self) -> usize {
        self.layer.out_features()
    }
    fn in_features(&self) -> usize {
        self.layer.in_features()
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.layer.permutation.as_deref()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let form = &self.layer.placed.form;
        let mut strip = self.strip.lock().unwrap_or_else(|e| e.into_inner());
        let (at, bytes) = &mut *strip;
        if *at != index / STRIP {
            *at = usize::MAX;
            let slow = self.layer.lanes.device.enter_slowly()?;
            let first = index / STRIP * form.strip_bytes;
            self.layer.lanes.call(&slow, form.strip_bytes, 0, |stream, host, _| {
                let host = &mut host[..form.strip_bytes];
                self.layer.memory.read(&slow, first, host, stream)?;
                stream.wait(&slow)?;
                bytes.copy_from_slice(host);
                Ok(())
            })?;
            *at = index / STRIP;
        }
        form.read_row(bytes, index % STRIP, row);
        Ok(())
    }
}
