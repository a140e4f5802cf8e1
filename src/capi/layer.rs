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
use crate::epilogue::Epilogue;
use crate::error::{Result, fail};
use crate::hadamard;
use crate::layer::{Activation, Linear, Options};
use crate::layout::Float;
use crate::matrix::MatrixMut;
use crate::memory::filled;
use crate::norm;
use crate::rotation;
use crate::types::Type;

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

/// Makes a layer from a tensor of a model, [out_features, in_features] in any format that the library
/// reads. The weights are packed for the CPU, exactly: nothing is quantised again. The layer keeps
/// what it needs of the model alive; the model may be freed. Runs on the model's context.
///
/// A weight that the file names as Hadamard-folded (prism.hadamard.* metadata) gets the rotation of its
/// input by itself; a version, transform, axis or sign mode of it that this library does not know is
/// BL_ERROR_UNSUPPORTED for every layer of that file.
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
            if options.flags & !BL_LAYER_TRANSPOSED != 0 {
                return Err(fail!(InvalidArgument, "layer flags {:#x} are unknown", options.flags));
            }
            if options.r#type.0 != 0 && options.r#type.known()? != tensor.ty {
                return Err(fail!(
                    Unsupported,
                    "packing {} weights to {} needs a conversion that this version lacks",
                    tensor.ty.name(),
                    options.r#type.known()?.name()
                ));
            }
            let number = options.activation.0;
            let activation = Activation::ALL
                .into_iter()
                .find(|a| *a as u32 == number)
                .ok_or_else(|| fail!(Unsupported, "activation {number} is unknown to this library"))?;
            let transposed = options.flags & BL_LAYER_TRANSPOSED != 0;
            let matrix = match transposed {
                false => crate::model::matrix(&model.files, tensor)?,
                true => crate::model::transposed(&model.files, tensor)?,
            };
            let parameters = Parameters::read(&options, matrix.in_features(), matrix.out_features())?;
            let declared = hadamard::of(&model.files, tensor, matrix.in_features())?;
            let mut options = parameters.options(activation)?;
            if let Some(declared) = &declared {
                if options.rotation.is_some() {
                    return Err(fail!(
                        InvalidArgument,
                        "rotation_block is set, but the file declares the rotation of tensor {} itself",
                        name.to_string_lossy()
                    ));
                }
                options.rotation = Some(declared.spec());
            }
            let source = model.files.source(tensor);
            // A row of a transposed matrix is all over the tensor, which then stays until the end.
            let row_bytes = if transposed { 0 } else { tensor.bytes as usize / matrix.out_features().max(1) };
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
            let linear = Linear::new(&*matrix, &options, model.context.isa, &model.context.heap, &mut seen)?;
            let kernel = linear.plan(1, &model.context.executor).kernel.name();
            model.context.log(
                bl_log_level::BL_LOG_DEBUG,
                format_args!("layer {}: {} packed for {kernel}", name.to_string_lossy(), tensor.ty.name()),
            );
            let layer = Layer::new(model.context.clone(), linear, tensor.ty);
            *out = handle::make::<bl_layer, _>(Arc::new(layer))?;
            if let Some(source) = source {
                source.done(dropped..(tensor.offset + tensor.bytes) as usize);
            }
            Ok(())
        })
    }
}

/// Bytes that a loader leaves mapped behind it before it gives pages back.
const DROP_BEHIND: usize = 1 << 20;

/// What stands around a product, copied from a caller's options.
pub struct Parameters {
    raw: bl_layer_options,
    bias: Option<Vec<f32>>,
    norm_weight: Option<Vec<f32>>,
    norm_bias: Option<Vec<f32>>,
    rotation_signs: Option<Vec<f32>>,
}

impl Parameters {
    /// Reads the vectors that the options point to.
    ///
    /// # Safety
    /// The options' pointers are NULL or valid for as many floats as the header says.
    pub unsafe fn read(
        raw: &bl_layer_options,
        in_features: usize,
        out_features: usize,
    ) -> Result<Parameters> {
        let no_norm = raw.norm.0 == bl_norm::BL_NORM_NONE as u32;
        if no_norm && !(raw.norm_weight.is_null() && raw.norm_bias.is_null() && raw.norm_epsilon == 0.0) {
            return Err(fail!(InvalidArgument, "a weight, bias or epsilon of a norm is set, but no norm"));
        }
        if raw.rotation_block == 0 && !raw.rotation_signs.is_null() {
            return Err(fail!(InvalidArgument, "rotation_signs is set, but no rotation_block"));
        }
        // SAFETY: the caller's contract.
        unsafe {
            Ok(Parameters {
                raw: *raw,
                bias: read_floats(raw.bias, out_features, "bias")?,
                norm_weight: read_floats(raw.norm_weight, in_features, "norm_weight")?,
                norm_bias: read_floats(raw.norm_bias, in_features, "norm_bias")?,
                rotation_signs: read_floats(raw.rotation_signs, in_features, "rotation_signs")?,
            })
        }
    }

    /// The same for `Linear::new`, which checks the values.
    pub fn options(&self, activation: Activation) -> Result<Options<'_>> {
        let raw = &self.raw;
        let kind = match raw.norm.0 {
            0 => None,
            number => Some(
                norm::Kind::ALL
                    .into_iter()
                    .find(|kind| *kind as u32 == number)
                    .ok_or_else(|| fail!(Unsupported, "norm {number} is unknown to this library"))?,
            ),
        };
        let norm = kind.map(|kind| norm::Spec {
            kind,
            epsilon: if raw.norm_epsilon == 0.0 { EPSILON } else { raw.norm_epsilon },
            weight: self.norm_weight.as_deref(),
            bias: self.norm_bias.as_deref(),
        });
        let rotation = (raw.rotation_block != 0).then_some(rotation::Spec {
            block: raw.rotation_block as usize,
            signs: self.rotation_signs.as_deref(),
        });
        Ok(Options {
            activation,
            bias: self.bias.as_deref(),
            norm,
            rotation,
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
pub unsafe fn read_floats(from: *const f32, count: usize, what: &str) -> Result<Option<Vec<f32>>> {
    if from.is_null() {
        return Ok(None);
    }
    let mut values = filled(count, 0.0f32, what)?;
    // SAFETY: the caller's contract; a byte copy asks for no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), values.as_mut_ptr().cast(), count * 4) };
    Ok(Some(values))
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
/// float activations are multiplied with, after norm and rotation where the layer has them.
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
