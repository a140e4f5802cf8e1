//! Layers.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::boundary::guard;
use super::context::{self, Context, out_handle};
use super::handle::{self, Kind};
use super::model::{Model, string};
use super::options;
use super::types::*;
use super::weights::{self, Weights, features};
use crate::codec::Matrix;
use crate::error::{Result, fail};
use crate::layer::{Activation, Linear, Options};
use crate::layout::{Float, Layout, Part, Shard};
use crate::matrix::MatrixMut;
use crate::memory::filled;
use crate::quantize;
use crate::types::Type;

/// The body of a `bl_layer`.
pub struct Layer {
    /// The context that calls run in.
    pub context: Arc<Context>,
    /// The layer.
    pub linear: Linear,
    /// The format its weights were stored in.
    pub ty: Type,
    /// The row and the column of the whole weights that it begins with.
    pub first: (usize, usize),
    /// How it was made, where it can be made again.
    pub made: Option<Made>,
}

impl Layer {
    /// A layer of that context, counted in its memory.
    pub fn new(context: Arc<Context>, linear: Linear, ty: Type) -> Layer {
        context.usage.handles.fetch_add(1, Ordering::Relaxed);
        context.usage.packed.fetch_add(linear.bytes() as u64, Ordering::Relaxed);
        Layer { context, linear, ty, first: (0, 0), made: None }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.context.usage.handles.fetch_sub(1, Ordering::Relaxed);
        self.context.usage.packed.fetch_sub(self.linear.bytes() as u64, Ordering::Relaxed);
    }
}

impl Kind for Layer {
    const TAG: u32 = 0x424c_6c61;
    const NAME: &'static str = "layer";
}

/// A float type of a caller's matrix.
pub fn float_type(ty: TypeArg, what: &str) -> Result<Float> {
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

/// What a caller's options say, checked.
#[derive(Clone, Copy)]
struct Settings {
    /// `None`: what is stored.
    target: Option<Type>,
    /// `Auto` where the caller says nothing.
    activation: Activation,
    group: usize,
    part: Part,
}

impl Settings {
    fn new(options: &bl_layer_options) -> Result<Settings> {
        if options.flags != 0 {
            return Err(fail!(InvalidArgument, "layer flags {:#x} are unknown", options.flags));
        }
        let target = match options.r#type {
            TypeArg(0) => None,
            ty => Some(ty.known()?),
        };
        let (rank, count) = (options.shard_rank, options.shard_count);
        let part = match options.shard.0 {
            0 if rank == 0 && count == 0 => Part::Whole,
            0 => return Err(fail!(InvalidArgument, "shard {rank} of {count}, but `shard` is 0: none")),
            1 => Part::Rows { rank, count },
            2 => Part::Columns { rank, count },
            n => return Err(fail!(Unsupported, "shard {n} is unknown to this library")),
        };
        let activation = activation(options.activation.0)?;
        Ok(Settings { target, activation, group: options.group_size as usize, part })
    }
}

/// The activation of that number.
fn activation(number: u32) -> Result<Activation> {
    Activation::ALL
        .into_iter()
        .find(|a| *a as u32 == number)
        .ok_or_else(|| fail!(Unsupported, "activation {number} is unknown to this library"))
}

/// How a layer of `bl_layer_create` was made, so that it can be made again of other weights.
pub struct Made {
    settings: Settings,
    rows: usize,
    columns: usize,
}

/// Weights on their way into a layer: a matrix, rounded and cut as the settings say.
fn with_matrix<T>(
    matrix: &dyn Matrix,
    ty: Type,
    settings: &Settings,
    work: impl FnOnce(&Shard<'_>, Type) -> Result<T>,
) -> Result<T> {
    match settings.target {
        Some(target) if target != ty => {
            if !matches!(matrix.layout(), Layout::Dense(_)) || weights::float_of(ty).is_none() {
                return Err(fail!(
                    Unsupported,
                    "{} weights to {}: packed weights are not rounded again",
                    ty.name(),
                    target.name()
                ));
            }
            let rounded = quantize::round(matrix, target, settings.group)?;
            work(&Shard::new(&*rounded, settings.part)?, target)
        }
        _ => work(&Shard::new(matrix, settings.part)?, ty),
    }
}

impl Layer {
    /// Packs a matrix. `bias` is the whole matrix's; `seen` is told each row that has been read, counted in
    /// the whole matrix.
    fn pack(
        context: &Arc<Context>,
        matrix: &dyn Matrix,
        ty: Type,
        settings: &Settings,
        bias: Option<&[f32]>,
        seen: &mut dyn FnMut(usize),
    ) -> Result<Layer> {
        with_matrix(matrix, ty, settings, |shard, ty| {
            let bias = match (bias, settings.part) {
                (Some(bias), Part::Rows { .. }) => bias.get(shard.rows()),
                (_, Part::Columns { rank: 1.., .. }) => None,
                (bias, _) => bias,
            };
            let (first, activation) = (shard.rows().start, settings.activation);
            let mut seen = |row: usize| seen(first + row);
            let options = Options { activation, bias };
            let linear = Linear::new(shard, &options, context.isa, &context.heap, &mut seen)?;
            let mut layer = Layer::new(context.clone(), linear, ty);
            layer.first = (first, shard.columns().start);
            Ok(layer)
        })
    }
}

/// Makes a layer from a tensor of a model, [out_features, in_features] in any format that the library
/// reads. The weights are packed for the CPU, exactly: nothing is quantised again, save plain floats where
/// options.type asks for it. A layer of a file that bl_save wrote is used in place. The layer keeps
/// what it needs of the model alive; the model may be freed. Runs on the model's context.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_layer_open(
    model: *const bl_model,
    tensor: *const c_char,
    options: *const bl_layer_options,
    out: *mut *mut bl_layer,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let model: &Model = handle::get(model)?;
            let name = string(tensor, "the tensor's name")?;
            let tensor = model.tensor(name)?;
            let options = options::read(options)?;
            let mut settings = Settings::new(&options)?;
            if !options.scales.is_null() || options.scale_count != 0 {
                return Err(fail!(InvalidArgument, "scales come with the weights of bl_layer_create only"));
            }
            let context = &model.context;
            let given = |rows: usize| match options.bias.is_null() {
                true => Ok(None),
                false => read_floats(options.bias, rows, "bias").map(Some),
            };
            let layer = if let Some(saved) = crate::model::saved(&model.files, tensor, &context.heap)? {
                if settings.activation == Activation::Auto {
                    settings.activation = activation(saved.activation)?;
                }
                let bias = given(saved.packed.out_features())?.or(saved.bias);
                if settings.part == Part::Whole && settings.target.is_none_or(|ty| ty == saved.ty) {
                    let options = Options { activation: settings.activation, bias: bias.as_deref() };
                    let linear = Linear::of(saved.packed, &options, context.isa)?;
                    Layer::new(context.clone(), linear, saved.ty)
                } else {
                    Layer::pack(context, &saved.packed, saved.ty, &settings, bias.as_deref(), &mut |_| {})?
                }
            } else {
                let matrix = crate::model::matrix(&model.files, tensor)?;
                let bias = given(matrix.out_features())?;
                let source = model.files.source(tensor);
                let row_bytes = tensor.bytes as usize / matrix.out_features().max(1);
                let mut dropped = tensor.offset as usize;
                // Pages behind the reader are given back, so that the file does not count as resident
                // beside its packed weights.
                let mut seen = |row: usize| {
                    let read = tensor.offset as usize + (row + 1) * row_bytes;
                    if read - dropped >= DROP_BEHIND
                        && let Some(source) = source
                    {
                        source.done(dropped..read);
                        dropped = read;
                    }
                };
                let bias = bias.as_deref();
                let layer = Layer::pack(context, &*matrix, tensor.ty, &settings, bias, &mut seen)?;
                if let Some(source) = source {
                    source.done(dropped..(tensor.offset + tensor.bytes) as usize);
                }
                layer
            };
            let kernel = layer.linear.plan(1, &context.executor).kernel.name();
            context.log(
                bl_log_level::BL_LOG_DEBUG,
                format_args!("layer {}: {} for {kernel}", name.to_string_lossy(), layer.ty.name()),
            );
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            Ok(())
        })
    }
}

/// Makes a layer from weights [out_features, in_features] in memory: floats, which are rounded to
/// options.type (BL_TYPE_AUTO: ternary), or any packed format whose weights are one tensor, which is kept
/// exactly. Formats whose scales stand apart take them from the options. The weights are copied.
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
            let mut settings = Settings::new(&options)?;
            if settings.target.is_none() && weights::float_of(ty).is_some() {
                settings.target = Some(Type::Ternary);
            }
            let count = match usize::try_from(options.scale_count) {
                Ok(count) if count <= isize::MAX as usize / 4 => count,
                _ => return Err(fail!(InvalidArgument, "scale_count = {}", options.scale_count)),
            };
            if options.scales.is_null() != (count == 0) {
                return Err(fail!(InvalidArgument, "scales and scale_count: both or neither"));
            }
            let scales = match count {
                0 => &[][..],
                _ => std::slice::from_raw_parts(options.scales.cast::<u8>(), count * 4),
            };
            let group = settings.group;
            let given = Weights { address: weights, ty, stride, rows, columns, scales, group };
            let matrix = given.matrix()?;
            let bias = match options.bias.is_null() {
                true => None,
                false => Some(read_floats(options.bias, rows, "bias")?),
            };
            let mut layer = Layer::pack(&context, &*matrix, ty, &settings, bias.as_deref(), &mut |_| {})?;
            layer.made = Some(Made { settings, rows, columns });
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            Ok(())
        })
    }
}

/// Packs new weights of the same shape into a layer that bl_layer_create made, by the same rule and into
/// the same format; bias and the rest stay. Must be the only call on the layer. After a failure the
/// layer is as it was.
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
            let Made { settings, rows, columns } = *made;
            let (ty, old) = (r#type.known()?, layer.ty);
            let (scales, group) = (&[][..], settings.group);
            let given = Weights { address: weights, ty, stride, rows, columns, scales, group };
            let matrix = given.matrix()?;
            let settings = Settings { target: Some(old), ..settings };
            let packed = with_matrix(&*matrix, ty, &settings, |shard, _| {
                Linear::pack(shard, &layer.context.heap, &mut |_| {})
            })?;
            layer.linear.replace(packed)
        })
    }
}

/// Bytes that a loader leaves mapped behind it before it gives pages back.
const DROP_BEHIND: usize = 1 << 20;

/// # Safety
/// `from` is valid for reading `count` floats of any alignment.
unsafe fn read_floats(from: *const f32, count: usize, what: &str) -> Result<Vec<f32>> {
    let mut values = filled(count, 0.0f32, what)?;
    // SAFETY: the caller's contract; a byte copy asks for no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), values.as_mut_ptr().cast(), count * 4) };
    Ok(values)
}

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
            out.fill(&bl_layer_info {
                struct_size: 0,
                r#type: TypeArg(layer.ty as u32),
                in_features: layer.linear.in_features() as i64,
                out_features: layer.linear.out_features() as i64,
                bytes_packed: layer.linear.bytes() as u64,
                bytes_mapped: layer.linear.bytes_mapped() as u64,
                device: 0,
                activation: ActivationArg(layer.linear.activation() as u32),
                first_row: layer.first.0 as i64,
                first_column: layer.first.1 as i64,
            });
            Ok(())
        })
    }
}

/// Writes `rows` rows of the dequantised weights, from first_row on, into dst (f32, f16 or bf16): what
/// float activations are multiplied with.
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
            let packed = layer.linear.packed();
            let (out_features, columns) = (packed.out_features() as i64, packed.in_features());
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
            let dst = MatrixMut::new(dst.cast(), float, stride, columns);
            let mut row = packed.row()?;
            let mut weights = filled(columns, 0.0, "a row of weights")?;
            for r in 0..rows as usize {
                packed.read_weights(first_row as usize + r, &mut row, &mut weights);
                dst.write(r, 0, &weights);
            }
            Ok(())
        })
    }
}
