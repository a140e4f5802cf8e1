//! Layers.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::boundary::guard;
use super::context::{Context, out_handle};
use super::handle::{self, Kind};
use super::model::{Model, string};
use super::options;
use super::types::*;
use crate::codec::bitnet_hf::WeightScale;
use crate::codec::gptq::GptqVersion;
use crate::codec::{Floats, Matrix};
use crate::container::Quoted;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result, fail};
use crate::layer::{Activation, Linear, Options};
use crate::layout::Float;
use crate::limits::FEATURES_MAX;
use crate::matrix::MatrixMut;
use crate::memory::filled;
use crate::model::{Plan, Request};
use crate::types::Type;
use crate::{norm, rotation};

/// The body of a `bl_layer`.
pub struct Layer {
    /// The context that calls run in.
    pub context: Arc<Context>,
    /// The layer.
    pub linear: Linear,
    /// The format its weights were stored in.
    pub ty: Type,
}

impl Layer {
    /// A layer of that context, counted in its memory.
    pub fn new(context: Arc<Context>, linear: Linear, ty: Type) -> Layer {
        context.usage.handles.fetch_add(1, Ordering::Relaxed);
        context.usage.packed.fetch_add(linear.bytes() as u64, Ordering::Relaxed);
        Layer { context, linear, ty }
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

/// Makes a layer of a model. `name` is a layer's (bl_model_layer): its weights with scales, bias and what
/// else its format has beside them. Or it is a tensor's: that matrix alone, [out_features, in_features], as
/// it is stored; where both have the name, the tensor is meant. The weights are packed for the CPU, exactly:
/// nothing is quantised again. A layer of which a part is missing is BL_ERROR_BAD_FILE, and what neither
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
            let activation = activation(options.activation)?;
            let scales = scale_bytes(&options)?;
            let request = request(&options, scales.as_deref())?;
            let plan = model.layers()?.plan_named(&model.files, name.to_bytes(), &request)?;
            let within = |e: Error| e.within(format_args!("{}", Quoted(name.to_bytes())));
            // First: it checks what the file says of its size, before a bias of that size is read.
            let matrix = plan.matrix().map_err(within)?;
            let parameters = Parameters::read(&options, &plan).map_err(within)?;
            let options = parameters.options(activation, &plan).map_err(within)?;
            let linear = pack(model, &plan, &*matrix, &options).map_err(within)?;
            let kernel = linear.plan(1, &model.context.executor).kernel.name();
            let (shown, ty) = (Quoted(name.to_bytes()), plan.ty.name());
            let line = format_args!("layer {shown}: {ty} packed for {kernel}");
            model.context.log(bl_log_level::BL_LOG_DEBUG, line);
            let layer = Layer::new(model.context.clone(), linear, plan.ty);
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            Ok(())
        })
    }
}

fn activation(number: ActivationArg) -> Result<Activation> {
    Activation::ALL
        .into_iter()
        .find(|a| *a as u32 == number.0)
        .ok_or_else(|| fail!(Unsupported, "activation {} is unknown to this library", number.0))
}

/// The scales of the options as a tensor's bytes.
///
/// # Safety
/// `options.scales` is NULL or valid for reading `options.scale_count` floats.
unsafe fn scale_bytes(options: &bl_layer_options) -> Result<Option<Vec<u8>>> {
    let count = option_size(options.scale_count, "scale_count")?;
    match (options.scales.is_null(), count) {
        (true, 0) => Ok(None),
        (true, _) | (false, 0) => Err(fail!(
            InvalidArgument,
            "{count} scales at {:p}: bl_layer_options.scales and scale_count go together",
            options.scales
        )),
        (false, _) => {
            let bytes = count.checked_mul(4).filter(|n| *n <= isize::MAX as usize);
            bytes.ok_or_else(|| fail!(InvalidArgument, "{count} scales are more than an address space"))?;
            // SAFETY: the caller's contract.
            let floats = unsafe { read_floats(options.scales, count, "scales")? };
            let mut bytes = filled(count * 4, 0u8, "scales")?;
            for (float, bytes) in floats.iter().zip(bytes.as_chunks_mut().0) {
                *bytes = float.to_le_bytes();
            }
            Ok(Some(bytes))
        }
    }
}

fn option_size(n: i64, what: &str) -> Result<usize> {
    let size = usize::try_from(n).ok().filter(|n| *n as u64 <= FEATURES_MAX * FEATURES_MAX);
    size.ok_or_else(|| fail!(InvalidArgument, "bl_layer_options.{what} is {n}"))
}

/// What the options ask of the model.
fn request<'a>(options: &bl_layer_options, scales: Option<&'a [u8]>) -> Result<Request<'a>> {
    const ALL: u32 = BL_LAYER_SCALE_MULTIPLIES
        | BL_LAYER_SCALE_DIVIDES
        | BL_LAYER_GPTQ_V1
        | BL_LAYER_GPTQ_V2
        | BL_LAYER_ALL_SLICES
        | BL_LAYER_WITHOUT_NORM
        | BL_LAYER_TRANSPOSED;
    let flags = options.flags;
    if flags & !ALL != 0 {
        return Err(fail!(InvalidArgument, "layer flags {:#x} are unknown", flags & !ALL));
    }
    let has = |flag: u32| flags & flag != 0;
    let weight_scale = match (has(BL_LAYER_SCALE_MULTIPLIES), has(BL_LAYER_SCALE_DIVIDES)) {
        (false, false) => None,
        (true, false) => Some(WeightScale::Multiplies),
        (false, true) => Some(WeightScale::Divides),
        (true, true) => return Err(fail!(InvalidArgument, "a scale that multiplies and divides")),
    };
    let gptq = match (has(BL_LAYER_GPTQ_V1), has(BL_LAYER_GPTQ_V2)) {
        (false, false) => None,
        (true, false) => Some(GptqVersion::V1),
        (false, true) => Some(GptqVersion::V2),
        (true, true) => return Err(fail!(InvalidArgument, "GPTQ of both versions")),
    };
    let slice = option_size(options.slice, "slice")?;
    if has(BL_LAYER_ALL_SLICES) && slice != 0 {
        return Err(fail!(InvalidArgument, "slice {slice} and BL_LAYER_ALL_SLICES"));
    }
    Ok(Request {
        ty: if options.r#type.0 == 0 { None } else { Some(options.r#type.known()?) },
        weight_scale,
        gptq,
        group_size: option_size(options.group_size, "group_size")?,
        slice,
        all_slices: has(BL_LAYER_ALL_SLICES),
        without_norm: has(BL_LAYER_WITHOUT_NORM),
        transposed: has(BL_LAYER_TRANSPOSED),
        in_features: option_size(options.in_features, "in_features")?,
        out_features: option_size(options.out_features, "out_features")?,
        scales: scales.map(|bytes| Floats::new(Type::F32, bytes)).transpose()?,
        has_bias: !options.bias.is_null(),
    })
}

/// Packs the matrix of a plan. Pages of the file behind the reader are given back, so that it does not
/// count as resident beside its packed weights.
fn pack(model: &Model, plan: &Plan<'_>, matrix: &dyn Matrix, options: &Options<'_>) -> Result<Linear> {
    let Some((tensor, start, row_bytes)) = plan.rows else {
        // Rows are spread over their tensors: what one reads, the next needs.
        return Linear::new(matrix, options, model.context.isa, &model.context.heap, &mut |_| {});
    };
    let Some(source) = model.files.source(tensor) else {
        return Err(fail!(Internal, "a tensor of no file"));
    };
    let first = tensor.offset as usize + start;
    let mut dropped = first;
    let mut seen = |row: usize| {
        let read = first + (row + 1) * row_bytes;
        if read - dropped >= DROP_BEHIND {
            source.done(dropped..read);
            dropped = read;
        }
    };
    let linear = Linear::new(matrix, options, model.context.isa, &model.context.heap, &mut seen)?;
    source.done(dropped..first + plan.out_features * row_bytes);
    Ok(linear)
}

/// Bytes that a loader leaves mapped behind it before it gives pages back.
const DROP_BEHIND: usize = 1 << 20;

/// What stands around a product, copied from a caller's options.
struct Parameters {
    raw: bl_layer_options,
    bias: Option<Vec<f32>>,
    norm_weight: Option<Vec<f32>>,
    norm_bias: Option<Vec<f32>>,
    rotation_signs: Option<Vec<f32>>,
}

impl Parameters {
    /// Reads the vectors that the options point to, and the file's.
    ///
    /// # Safety
    /// The options' pointers are NULL or valid for as many floats as the header says.
    unsafe fn read(raw: &bl_layer_options, plan: &Plan<'_>) -> Result<Parameters> {
        let (in_features, out_features) = (plan.in_features, plan.out_features);
        let no_norm = raw.norm.0 == bl_norm::BL_NORM_NONE as u32;
        if no_norm && !(raw.norm_weight.is_null() && raw.norm_bias.is_null() && raw.norm_epsilon == 0.0) {
            return Err(fail!(InvalidArgument, "a weight, bias or epsilon of a norm is set, but no norm"));
        }
        if raw.rotation_block == 0 && !raw.rotation_signs.is_null() {
            return Err(fail!(InvalidArgument, "rotation_signs is set, but no rotation_block"));
        }
        let (file_norm, file_bias) = (plan.norm()?, plan.bias()?);
        if !no_norm && file_norm.is_some() {
            return Err(fail!(
                InvalidArgument,
                "a norm is set, but the file has one: BL_LAYER_WITHOUT_NORM leaves that out"
            ));
        }
        if raw.rotation_block != 0 && plan.rotation.is_some() {
            return Err(fail!(InvalidArgument, "rotation_block is set, but the file declares a rotation"));
        }
        // SAFETY: the caller's contract.
        unsafe {
            Ok(Parameters {
                raw: *raw,
                bias: read_some(raw.bias, out_features, "bias")?.or(file_bias),
                norm_weight: read_some(raw.norm_weight, in_features, "norm_weight")?.or(file_norm),
                norm_bias: read_some(raw.norm_bias, in_features, "norm_bias")?,
                rotation_signs: read_some(raw.rotation_signs, in_features, "rotation_signs")?,
            })
        }
    }

    /// The same for `Linear::new`, which checks the values.
    fn options<'a>(&'a self, activation: Activation, plan: &'a Plan<'_>) -> Result<Options<'a>> {
        let raw = &self.raw;
        let kind = match raw.norm.0 {
            0 => plan.norm_epsilon().map(|_| norm::Kind::Rms),
            number => Some(
                norm::Kind::ALL
                    .into_iter()
                    .find(|kind| *kind as u32 == number)
                    .ok_or_else(|| fail!(Unsupported, "norm {number} is unknown to this library"))?,
            ),
        };
        let norm = kind.map(|kind| norm::Spec {
            kind,
            epsilon: match plan.norm_epsilon() {
                Some(epsilon) => epsilon,
                None if raw.norm_epsilon == 0.0 => EPSILON,
                None => raw.norm_epsilon,
            },
            weight: self.norm_weight.as_deref(),
            bias: self.norm_bias.as_deref(),
        });
        let rotation = (raw.rotation_block != 0).then_some(rotation::Spec {
            block: raw.rotation_block as usize,
            signs: self.rotation_signs.as_deref(),
        });
        Ok(Options {
            activation,
            product_scale: plan.product_scale,
            bias: self.bias.as_deref(),
            norm,
            rotation: rotation.or(plan.rotation.as_ref().map(|declared| declared.spec())),
            epilogue: Epilogue::from_number(raw.epilogue.0, raw.epilogue_threshold)?,
            activation_scale: (raw.activation_scale != 0.0).then_some(raw.activation_scale),
        })
    }
}

/// What is added to the mean square where a caller does not say.
const EPSILON: f32 = 1e-5;

/// `None` for NULL.
///
/// # Safety
/// `from` is NULL or valid for reading `count` floats of any alignment.
pub unsafe fn read_some(from: *const f32, count: usize, what: &str) -> Result<Option<Vec<f32>>> {
    // SAFETY: the caller's contract.
    if from.is_null() { Ok(None) } else { unsafe { read_floats(from, count, what).map(Some) } }
}

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
                bytes_mapped: 0,
                device: 0,
                activation: ActivationArg(layer.linear.activation() as u32),
                norm: NormArg(layer.linear.norm().map_or(0, |norm| norm.spec().kind as u32)),
                epilogue: EpilogueArg(layer.linear.epilogue().number()),
                rotation_block: layer.linear.rotation().map_or(0, |rotation| rotation.block() as u32),
                reserved: 0,
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
            addressable(rows as usize, stride, "dst")?;
            let dst = MatrixMut::new(dst.cast(), float, stride, columns);
            let mut row = packed.row()?;
            let mut weights = filled(columns, 0.0, "a row of weights")?;
            for r in 0..rows as usize {
                layer.linear.read_weights(first_row as usize + r, &mut row, &mut weights);
                dst.write(r, 0, &weights);
            }
            Ok(())
        })
    }
}
