//! Layers.

use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::boundary::guard;
use super::context::{self, Context, out_handle};
use super::device::onto;
use super::enums::*;
use super::handle::{self, Kind};
use super::layer_options::{part, request, scale_bytes};
use super::model::{Model, string};
use super::options;
use super::types::*;
use super::weights::{self, Weights, features, mistake};
use crate::container::{self, Quoted};
use crate::cuda::{DeviceLayer, Room};
use crate::error::{Error, Result, fail};
use crate::layer::{Around, Linear, Seen, Settings};
use crate::layout::{Float, Layout, Matrix, Part, Row, Shard};
use crate::matrix::MatrixMut;
use crate::memory::{copied, filled, reserve};
use crate::model::{Plan, Request};
use crate::types::Type;
use crate::{norm, quantize};

/// The body of a `bl_layer`.
pub struct Layer {
    /// The context that calls run in.
    pub context: Arc<Context>,
    /// Its weights, and what stands around them.
    pub body: Body,
    /// The format its weights were stored in.
    pub ty: Type,
    /// The row and the column of the whole weights that it begins with.
    pub first: (usize, usize),
    /// How it was made, where it can be made again.
    made: Option<Made>,
}

/// A layer where it is.
#[cfg_attr(not(feature = "cuda"), expect(clippy::large_enum_variant, reason = "the other cannot exist then"))]
pub enum Body {
    /// On the CPU.
    Cpu(Linear),
    /// On a GPU.
    Device(DeviceLayer),
}

impl Body {
    /// Bytes of memory of the host's that count as packed weights; a device's are counted where they are
    /// allocated.
    fn packed(&self) -> u64 {
        match self {
            Body::Cpu(linear) => linear.bytes() as u64,
            Body::Device(_) => 0,
        }
    }
}

impl Layer {
    /// A layer of that context, counted in its memory.
    pub fn new(context: Arc<Context>, body: Body, ty: Type) -> Layer {
        context.usage.handles.fetch_add(1, Ordering::Relaxed);
        context.usage.packed.fetch_add(body.packed(), Ordering::Relaxed);
        Layer { context, body, ty, first: (0, 0), made: None }
    }

    /// A copy of it with another body.
    pub(super) fn copy(&self, body: Body) -> Layer {
        let mut copy = Layer::new(self.context.clone(), body, self.ty);
        (copy.first, copy.made) = (self.first, self.made);
        copy
    }

    /// The layer on the CPU, for what there is only there.
    pub fn cpu(&self, what: &str) -> Result<&Linear> {
        match &self.body {
            Body::Cpu(linear) => Ok(linear),
            Body::Device(layer) => Err(fail!(
                Unsupported,
                "{what} of a layer on device {}: bl_layer_copy brings it to the CPU",
                layer.device()
            )),
        }
    }

    /// Values of a row of x.
    pub fn in_features(&self) -> usize {
        match &self.body {
            Body::Cpu(linear) => linear.in_features(),
            Body::Device(layer) => layer.in_features(),
        }
    }

    /// Values of a row of y.
    pub fn out_features(&self) -> usize {
        match &self.body {
            Body::Cpu(linear) => linear.out_features(),
            Body::Device(layer) => layer.out_features(),
        }
    }

    /// How its weights are coded.
    pub fn layout(&self) -> &Layout {
        match &self.body {
            Body::Cpu(linear) => linear.packed().layout(),
            Body::Device(layer) => layer.layout(),
        }
    }

    /// What stands around the product.
    pub fn around(&self) -> &Around {
        match &self.body {
            Body::Cpu(linear) => linear.around(),
            Body::Device(layer) => layer.around(),
        }
    }

    /// Makes integer activations use that scale for all of x, or again what they find in it.
    pub fn fix_scale(&mut self, scale: Option<f32>) {
        match &mut self.body {
            Body::Cpu(linear) => linear.fix_scale(scale),
            Body::Device(layer) => layer.fix_scale(scale),
        }
    }

    /// Its weights as they were packed, wherever they are.
    pub fn matrix<T>(&self, work: impl FnOnce(&dyn Matrix) -> Result<T>) -> Result<T> {
        match &self.body {
            Body::Cpu(linear) => work(linear.packed()),
            Body::Device(layer) => work(&layer.rows()?),
        }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.context.usage.handles.fetch_sub(1, Ordering::Relaxed);
        self.context.usage.packed.fetch_sub(self.body.packed(), Ordering::Relaxed);
    }
}

impl Kind for Layer {
    const TAG: u32 = 0x424c_6c61;
    const NAME: &'static str = "layer";
}

/// A float type of a caller's matrix.
pub fn float_type(ty: TypeArg, what: &str) -> Result<Float> {
    if ty.0 == 0 {
        return Err(fail!(Unsupported, "{what} of type BL_TYPE_AUTO: name it, f32, f16 or bf16"));
    }
    match ty.known()? {
        Type::F32 => Ok(Float::F32),
        Type::F16 => Ok(Float::F16),
        Type::Bf16 => Ok(Float::Bf16),
        other => Err(fail!(Unsupported, "{what} of type {}: f32, f16 or bf16", other.name())),
    }
}

/// The row stride of a caller's matrix in bytes: 0 says that rows touch.
pub fn row_stride(stride: i64, columns: usize, float: Float, what: &str) -> Result<usize> {
    let touching = columns * float.bytes();
    match usize::try_from(stride) {
        Ok(0) => Ok(touching),
        Ok(stride) if stride >= touching => Ok(stride),
        _ => Err(fail!(
            InvalidArgument,
            "row stride of {what} is {stride} bytes, but a row has {touching} (0 says that rows touch)"
        )),
    }
}

/// Refuses rows that end beyond what an address space has: their addresses would wrap.
pub fn addressable(rows: usize, stride: usize, what: &str) -> Result<()> {
    match stride.checked_mul(rows) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(fail!(
            InvalidArgument,
            "{rows} rows of {what} at a stride of {stride} bytes are more than an address space"
        )),
    }
}

/// Makes a layer of a model. `name` is a layer's, "blk.0.attn_q", as bl_model_layer lists them: its weights
/// with scales, bias and what else its format has beside them. Or it is a tensor's, "blk.0.attn_q.weight":
/// that matrix alone, [out_features, in_features], as it is stored, WITHOUT the bias and the scale beside
/// it; a tensor of one dimension is a layer of one row. Where both have the name, the tensor is meant. So
/// open layers by layers' names, tensors where only the matrix is wanted. The weights are packed, exactly:
/// nothing is quantised again, save plain floats where options.type asks for it. A layer of a file that
/// bl_save wrote is used in place. A layer of which a part is missing is BL_ERROR_BAD_FILE, and what neither
/// tensors nor config.json tell is BL_ERROR_INVALID_ARGUMENT that names the option which decides. The layer
/// keeps what it needs of the model alive; the model may be freed. Runs on the model's context.
///
/// A weight that the file names as Hadamard-folded (prism.hadamard.* metadata) gets the rotation of its
/// input by itself; where that metadata is not understood, no layer of the file is opened.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_open(
    model: *const bl_model,
    name: *const c_char,
    options: *const bl_layer_options,
    out: *mut *mut bl_layer,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let model: &Model = handle::get(model)?;
            let name = string(name, "the layer's name")?;
            let options = options::read(options)?;
            let layer = match model.files.directory.kind {
                container::Kind::Packed => open_saved(model, name, &options)?,
                _ => open_stored(model, name, &options)?,
            };
            let kernel = match &layer.body {
                Body::Cpu(linear) => linear.plan(1, &model.context.executor).kernel.c_name(),
                Body::Device(layer) => layer.plan(1)?.kernel,
            };
            let kernel = kernel.to_string_lossy();
            let (shown, ty) = (Quoted(name.to_bytes()), layer.ty.name());
            let line = format_args!("layer {shown}: {ty} for {kernel}");
            model.context.log(bl_log_level::BL_LOG_DEBUG, line);
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            Ok(())
        })
    }
}

/// A layer of a file of other tools.
///
/// # Safety
/// The pointers in the options are as the header says.
unsafe fn open_stored(model: &Model, name: &CStr, options: &bl_layer_options) -> Result<Layer> {
    // SAFETY: the caller's contract.
    let scales = unsafe { scale_bytes(options)? };
    let request = request(options, scales.as_deref())?;
    // Floats that are to be rounded are floats first. Any other wish is about what is stored.
    let floats = |ty: &Type| {
        let stored = Request { ty: None, group_size: 0, ..request };
        model
            .layers()
            .ok()?
            .plan_named(&model.files, name.to_bytes(), &stored)
            .ok()
            .filter(|plan| weights::float_of(plan.ty).is_some() && plan.ty != *ty)
    };
    let target = request.ty.filter(|ty| request.scales.is_none() && quantize::is_target(*ty));
    let (plan, target) = match target.as_ref().and_then(floats) {
        Some(plan) => (plan, target),
        None => (model.layers()?.plan_named(&model.files, name.to_bytes(), &request)?, None),
    };
    let within = |e: Error| e.within(format_args!("{}", Quoted(name.to_bytes())));
    // First: it checks what the file says of its size, before a bias of that size is read.
    let matrix = plan.matrix().map_err(within)?;
    let file = Settings {
        product_scale: plan.product_scale,
        bias: plan.bias()?,
        norm: plan.norm_epsilon().map(|epsilon| (norm::Kind::Rms, epsilon)),
        norm_weight: plan.norm()?,
        rotation: plan.rotation.as_ref().map(|declared| declared.spec().block),
        rotation_signs: match plan.rotation.as_ref().and_then(|declared| declared.spec().signs) {
            None => None,
            Some(signs) => Some(copied(signs, "signs")?),
        },
        ..Settings::default()
    };
    // SAFETY: the caller's contract.
    let settings = unsafe { file.with(options, plan.out_features, plan.in_features) }.map_err(within)?;
    let recipe = Recipe { target, group: request.group_size, part: part(options)?, device: options.device };
    reading(model, &plan, |seen| {
        Layer::pack(&model.context, &*matrix, plan.ty, &recipe, &settings, seen).map_err(within)
    })
}

/// A layer of a packed file: in place, where all of it is wanted.
///
/// # Safety
/// The pointers in the options are as the header says.
unsafe fn open_saved(model: &Model, name: &CStr, options: &bl_layer_options) -> Result<Layer> {
    let tensor = model.tensor(name)?;
    let context = &model.context;
    let Some(saved) = crate::model::saved(&model.files, tensor, &context.heap)? else {
        return Err(fail!(Internal, "a tensor of a packed file that is no layer"));
    };
    // SAFETY: the caller's contract.
    let scales = unsafe { scale_bytes(options)? };
    let request = request(options, scales.as_deref())?;
    let said = [request.slice, request.in_features, request.out_features, options.flags as usize];
    if said != [0; 4] || request.scales.is_some() {
        return Err(fail!(
            InvalidArgument,
            "flags, scales, slice, in_features and out_features say nothing about a layer that bl_save wrote"
        ));
    }
    let within = |e: Error| e.within(format_args!("{}", Quoted(name.to_bytes())));
    let (rows, columns) = (saved.packed.out_features(), saved.packed.in_features());
    // SAFETY: the caller's contract.
    let settings = unsafe { saved.settings.with(options, rows, columns) }.map_err(within)?;
    let target = request.ty.filter(|ty| *ty != saved.ty);
    let recipe = Recipe { target, group: request.group_size, part: part(options)?, device: options.device };
    if recipe.group != 0 && target.is_none() {
        return Err(fail!(InvalidArgument, "group_size has no meaning for weights that are not rounded"));
    }
    if recipe.part != Part::Whole || target.is_some() || recipe.device != 0 {
        return Layer::pack(context, &saved.packed, saved.ty, &recipe, &settings, &|_| {}).map_err(within);
    }
    let linear = Linear::of(saved.packed, &settings.options(), context.isa).map_err(within)?;
    Ok(Layer::new(context.clone(), Body::Cpu(linear), saved.ty))
}

/// How weights become a layer's.
#[derive(Clone, Copy)]
struct Recipe {
    /// What floats are rounded to; `None`: what is stored.
    target: Option<Type>,
    /// Columns of a group where the target leaves it open.
    group: usize,
    part: Part,
    /// Where they go; 0: the CPU.
    device: u32,
}

/// How a layer of `bl_layer_create` was made, so that it can be made again of other weights.
#[derive(Clone, Copy)]
struct Made {
    recipe: Recipe,
    transposed: bool,
    rows: usize,
    columns: usize,
}

/// Weights on their way into a layer: a matrix, rounded and cut as the recipe says.
fn with_matrix<T>(
    matrix: &dyn Matrix,
    ty: Type,
    recipe: &Recipe,
    work: impl FnOnce(&Shard<'_>, Type) -> Result<T>,
) -> Result<T> {
    match recipe.target {
        Some(target) if target != ty => {
            if !matches!(matrix.layout(), Layout::Dense(_)) || weights::float_of(ty).is_none() {
                return Err(fail!(
                    Unsupported,
                    "{} weights to {}: packed weights are not rounded again",
                    ty.name(),
                    target.name()
                ));
            }
            let rounded = quantize::round(matrix, target, recipe.group)?;
            work(&Shard::new(&*rounded, recipe.part)?, target)
        }
        _ if recipe.group != 0 && weights::float_of(ty).is_some() => {
            Err(fail!(InvalidArgument, "group_size has no meaning for weights of {}", ty.name()))
        }
        _ => work(&Shard::new(matrix, recipe.part)?, ty),
    }
}

impl Layer {
    /// Packs a matrix. `settings` are the whole matrix's; `seen` is told which rows have been read,
    /// counted in the whole matrix.
    fn pack(
        context: &Arc<Context>,
        matrix: &dyn Matrix,
        ty: Type,
        recipe: &Recipe,
        settings: &Settings,
        seen: Seen<'_>,
    ) -> Result<Layer> {
        with_matrix(matrix, ty, recipe, |shard, ty| {
            let options = settings.options_of(recipe.part, shard.rows(), shard.columns())?;
            let first = shard.rows().start;
            let seen = |rows: Range<usize>| seen(first + rows.start..first + rows.end);
            let body = match recipe.device {
                0 => Body::Cpu(Linear::load(shard, &options, &context.packer(), &seen)?),
                // SAFETY: the memory is our own.
                device => Body::Device(unsafe { onto(context, device, shard, &options, Room::Own, &seen)? }),
            };
            let mut layer = Layer::new(context.clone(), body, ty);
            layer.first = (first, shard.columns().start);
            Ok(layer)
        })
    }
}

/// Reads the matrix of a plan in `work`, which tells what rows it has read. Pages of the file behind the
/// readers are given back, so that it does not count as resident beside its packed weights.
fn reading<T>(model: &Model, plan: &Plan<'_>, work: impl FnOnce(Seen<'_>) -> Result<T>) -> Result<T> {
    let Some((tensor, start, row_bytes)) = plan.rows else {
        return work(&|_| {}); // rows are spread over their tensors: what one reads, the next needs
    };
    let Some(source) = model.files.source(tensor) else {
        return Err(fail!(Internal, "a tensor of no file"));
    };
    let first = tensor.offset as usize + start;
    source.soon(first..first + plan.out_features * row_bytes);
    // Threads finish out of order: pages go stretch by stretch, with the last row of each.
    let stretch = (DROP_BEHIND / row_bytes.max(1)).max(1);
    let mut left: Vec<AtomicUsize> = Vec::new();
    reserve(&mut left, plan.out_features.div_ceil(stretch), "stretches of rows")?;
    let ends = (0..plan.out_features).step_by(stretch).map(|row| stretch.min(plan.out_features - row));
    left.extend(ends.map(AtomicUsize::new));
    let seen = |rows: Range<usize>| {
        for (i, left) in left.iter().enumerate().take(rows.end.div_ceil(stretch)).skip(rows.start / stretch) {
            let stretch = i * stretch..plan.out_features.min((i + 1) * stretch);
            let count = rows.end.min(stretch.end) - rows.start.max(stretch.start);
            if left.fetch_sub(count, Ordering::Relaxed) == count {
                source.done_around(first + stretch.start * row_bytes..first + stretch.end * row_bytes);
            }
        }
    };
    let result = work(&seen)?;
    source.done(first..first + plan.out_features * row_bytes);
    Ok(result)
}

/// Makes a layer from weights [out_features, in_features] in memory, which are copied: floats (f32, f16,
/// bf16), which are rounded to options.type (BL_TYPE_AUTO: ternary), or a packed format, which is kept
/// exactly. Those with their scales: q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq1_s,
/// iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4, q1_0, q2_0, q2_0-legacy, pq2_0, ptq1_0, i2_s, i2_s-arm, i2_s-rows,
/// t158. Those whose scales stand apart, in options.scales: ternary, binary, int4, int8, bitnet-hf,
/// ternary-block, ternary2, compressed-tensors. Any other type is BL_ERROR_UNSUPPORTED; columns that are no
/// multiple of the type's block are BL_ERROR_INVALID_ARGUMENT.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_create(
    context: *const bl_context,
    out_features: i64,
    in_features: i64,
    weights: *const c_void,
    r#type: TypeArg,
    stride: i64,
    options: *const bl_layer_options,
    out: *mut *mut bl_layer,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_open`; the weights are as the arguments say.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let rows = features(out_features, "out_features")?;
            let columns = features(in_features, "in_features")?;
            let ty = r#type.known()?;
            let options = options::read(options)?;
            let target = match options.r#type {
                TypeArg(0) if weights::float_of(ty).is_some() => Some(Type::Ternary),
                TypeArg(0) => None,
                target => Some(target.known()?),
            };
            let request = request(&options, None)?;
            let said = [request.slice, request.in_features, request.out_features];
            if options.flags & !BL_LAYER_TRANSPOSED != 0 || said != [0; 3] {
                return Err(fail!(
                    InvalidArgument,
                    "slice, in_features, out_features and flags but BL_LAYER_TRANSPOSED are for layers of files"
                ));
            }
            let (transposed, group) = (request.transposed, request.group_size);
            let recipe = Recipe { target, group, part: part(&options)?, device: options.device };
            let scales = scale_bytes(&options)?;
            let scales = scales.as_deref().unwrap_or(&[]);
            let given = Weights { address: weights, ty, stride, rows, columns, transposed, scales, group };
            let settings = Settings::default().with(&options, rows, columns)?;
            let matrix = given.matrix()?;
            let layer = Layer::pack(&context, &*matrix, ty, &recipe, &settings, &|_| {});
            let mut layer = layer.map_err(mistake)?;
            layer.made = Some(Made { recipe, transposed, rows, columns });
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            Ok(())
        })
    }
}

/// Packs new weights of the same shape into a layer that bl_layer_create made, by the same rule and into
/// the same format; bias and the rest stay. They are floats, or of the layer's own format where that has its
/// scales in it. Must be the only call on the layer. After a failure the layer is as it was.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_update(
    layer: *mut bl_layer,
    weights: *const c_void,
    r#type: TypeArg,
    stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_create`; the header's rules make this the only call on the layer.
    unsafe {
        guard(error, || {
            let layer: &mut Layer = handle::get_mut(layer)?;
            let Some(made) = &layer.made else {
                return Err(fail!(InvalidArgument, "only layers of bl_layer_create are updated"));
            };
            let Made { recipe, transposed, rows, columns } = *made;
            let (ty, old) = (r#type.known()?, layer.ty);
            let (scales, group) = (&[][..], recipe.group);
            let given = Weights { address: weights, ty, stride, rows, columns, transposed, scales, group };
            let matrix = given.matrix()?;
            let recipe = Recipe { target: Some(old), ..recipe };
            let (packer, heap, body) = (layer.context.packer(), &layer.context.heap, &mut layer.body);
            with_matrix(&*matrix, ty, &recipe, |shard, _| match body {
                Body::Cpu(linear) => linear.replace(packer.pack(shard, &|_| {})?),
                Body::Device(layer) => layer.replace(shard, heap),
            })
            .map_err(mistake)
        })
    }
}

/// Bytes that a loader leaves mapped behind it before it gives pages back.
const DROP_BEHIND: usize = 1 << 20;

/// Shape, format and size of a layer.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_describe(
    layer: *const bl_layer,
    info: *mut bl_layer_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_open`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let layer: &Layer = handle::get(layer)?;
            let around = layer.around();
            let (packed, mapped, device) = match &layer.body {
                Body::Cpu(linear) => (linear.bytes(), linear.bytes_mapped(), 0),
                Body::Device(layer) => (layer.bytes().0, 0, layer.device()),
            };
            out.fill(&bl_layer_info {
                struct_size: 0,
                r#type: TypeArg(layer.ty as u32),
                in_features: layer.in_features() as i64,
                out_features: layer.out_features() as i64,
                bytes_packed: packed as u64,
                bytes_mapped: mapped as u64,
                device,
                activation: ActivationArg(around.activation(layer.layout()) as u32),
                norm: NormArg(around.norm.as_ref().map_or(0, |norm| norm.spec().kind as u32)),
                epilogue: EpilogueArg(around.epilogue.number()),
                rotation_block: around.rotation.as_ref().map_or(0, |rotation| rotation.block() as u32),
                reserved: 0,
                first_row: layer.first.0 as i64,
                first_column: layer.first.1 as i64,
            });
            Ok(())
        })
    }
}

/// Writes `rows` rows of the dequantised weights, from first_row on, into dst (f32, f16 or bf16): what
/// float activations are multiplied with, times the factor of the product where the layer has one,
/// after norm and rotation.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_read(
    layer: *const bl_layer,
    first_row: i64,
    rows: i64,
    dst: *mut c_void,
    dst_type: TypeArg,
    dst_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_layer_open`; dst has the rows by the header's rules.
    unsafe {
        guard(error, || {
            let layer: &Layer = handle::get(layer)?;
            let (out_features, columns) = (layer.out_features() as i64, layer.in_features());
            if first_row < 0 || rows < 0 || first_row > out_features || rows > out_features - first_row {
                return Err(fail!(
                    InvalidArgument,
                    "rows {first_row} to {first_row} + {rows} of a layer of {out_features}"
                ));
            }
            let float = float_type(dst_type, "dst")?;
            let stride = row_stride(dst_stride, columns, float, "dst")?;
            if rows == 0 {
                return Ok(());
            }
            if dst.is_null() {
                return Err(fail!(InvalidArgument, "dst is NULL"));
            }
            addressable(rows as usize, stride, "dst")?;
            let dst = MatrixMut::new(dst.cast(), float, stride, columns);
            let layout = layer.layout();
            let mut row = Row::new(*layout, columns)?;
            let mut weights = filled(columns, 0.0, "a row of weights")?;
            layer.matrix(|matrix| {
                for r in 0..rows as usize {
                    matrix.read_row(first_row as usize + r, &mut row)?;
                    row.weights(layout, matrix.permutation(), &mut weights);
                    if let Some(scale) = layer.around().product_scale {
                        weights.iter_mut().for_each(|w| *w *= scale);
                    }
                    dst.write(r, 0, &weights);
                }
                Ok(())
            })
        })
    }
}
