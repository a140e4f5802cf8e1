//! Quantising model files, calibration, comparing: unstable until version 1.0.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};

use super::boundary::guard;
use super::context::{self, Context, out_handle};
use super::handle::{self, Kind};
use super::layer::{float_type, row_stride};
use super::model::{Model, path_of, string};
use super::options::{self, Sized32};
use super::save::{items, text};
use super::types::*;
use crate::compare::compare;
use crate::container;
use crate::error::{Result, fail};
use crate::export::{self, Layers, Target, export};
use crate::layout::Matrix;
use crate::limits::{BATCH_MAX, FEATURES_MAX};
use crate::matrix::MatrixRef;
use crate::memory::reserve;
use crate::model::{Request, Role};
use crate::quantize::{Calibration, Kind as Rule, MOMENTS_BLOCK};
use crate::rotation::{Rotation, Spec};
use crate::types::Type;

/// Which layers of a model are quantised.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_layers {
    /// All but routers, embeddings, the head and norms.
    BL_LAYERS_ALL = 0,
    /// The feed-forward weights, shared or of experts.
    BL_LAYERS_EXPERTS = 1,
    /// Those whose name holds one of the patterns; nothing is protected.
    BL_LAYERS_PATTERNS = 2,
}

/// Which fixed rule rounds, where a type has several.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_rule {
    /// The type's own: ternary by the mean magnitude (BitNet), int8 by the largest of the row, ...
    BL_RULE_USUAL = 0,
    /// Ternary: the largest magnitude of the tensor + 1e-6 (cortex).
    BL_RULE_ABSMAX = 1,
    /// Ternary: the mean magnitude of the tensor, and 0 below it (burn_dragon).
    BL_RULE_THRESHOLD = 2,
    /// Int8: twice the mean magnitude of the tensor; what is larger is cut (burn_dragon).
    BL_RULE_MEAN_RANGE = 3,
    /// Signs: the mean magnitude of the tensor, not of the row (burn_dragon).
    BL_RULE_TENSOR = 4,
}

/// As [`TypeArg`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayersArg(pub u32);
/// As [`TypeArg`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleArg(pub u32);

/// What is known of the inputs of layers; see bl_calibrate.
pub struct bl_calibration {
    _opaque: [u8; 0],
}

/// Layers and what they become. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_quantize_target {
    /// A text that the names of the layers hold.
    pub pattern: *const c_char,
    pub r#type: TypeArg,
    pub rule: RuleArg,
    /// As in bl_quantize_options.
    pub group_size: i64,
    pub bases: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// How far bl_model_quantize is. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_quantize_progress {
    /// The layer or tensor that comes next; "" at the end.
    pub name: *const c_char,
    /// Layers and tensors that are done, and all.
    pub done: u64,
    pub total: u64,
    /// Weights of those that are done, and of all.
    pub weights_done: u64,
    pub weights_total: u64,
}

/// Called on the calling thread before each layer or tensor, and once at the end; not 0: stop. It must
/// not call the library.
pub type bl_progress_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, progress: *const bl_quantize_progress) -> i32>;

/// How a model is quantised.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_quantize_options {
    pub struct_size: u32,
    /// The kind of file to write, as bl_model_info.container numbers them: 1 safetensors, 2 GGUF,
    /// 3 bitlinear's packed file. 0: that of the source.
    pub container: u32,
    /// What the chosen layers become. BL_TYPE_AUTO: ternary.
    pub r#type: TypeArg,
    /// What those become whose rows are no multiple of the type's blocks. BL_TYPE_AUTO: that is
    /// BL_ERROR_UNSUPPORTED.
    pub fallback: TypeArg,
    /// What floats of two dimensions and more become that are not quantised: f32, f16 or bf16.
    /// BL_TYPE_AUTO: they stay.
    pub rest: TypeArg,
    /// Which layers.
    pub layers: LayersArg,
    /// Which fixed rule; another than BL_RULE_USUAL only with BL_QUANTIZE_FIXED.
    pub rule: RuleArg,
    /// BL_QUANTIZE_*.
    pub flags: u32,
    /// Columns of a group of int4 (0: 128) and ternary (0: the whole tensor has one scale).
    pub group_size: i64,
    /// Ternary: how many code matrices are summed, 1 to 8 (0: 1); more than 4 only with
    /// BL_QUANTIZE_FIXED.
    pub bases: u32,
    /// Columns of a block of the Walsh-Hadamard rotation that chosen layers are folded with, as
    /// bl_rotate has it; 0: none. GGUF declares it as prism.hadamard.*.
    pub rotation_block: u32,
    /// Seed of the rotation's signs; 0: all +1.
    pub rotation_seed: u64,
    /// With BL_LAYERS_PATTERNS: texts that names of layers hold.
    pub patterns: *const *const c_char,
    pub pattern_count: usize,
    /// Layers that become something else; the first whose pattern fits counts. They are quantised
    /// whether they are chosen or not.
    pub targets: *const bl_quantize_target,
    pub target_count: usize,
    /// For the metadata of the new file.
    pub texts: *const bl_named_text,
    pub text_count: usize,
    /// What is known of the inputs; layers it does not know are rounded without. NULL: nothing.
    pub calibration: *const bl_calibration,
    /// With BL_QUANTIZE_COMPENSATE: part of the mean square of the inputs that is added to each
    /// column's. 0: 0.1.
    pub damping: f32,
    /// Must be 0.
    pub reserved: u32,
    /// Most bytes beside what is mapped; 0: twice the largest tensor of the source and 64 MiB. A layer
    /// that needs more is BL_ERROR_OUT_OF_MEMORY before anything is written. A packed file (container
    /// 3) is held whole besides until it is written.
    pub memory: u64,
    pub progress: bl_progress_fn,
    pub progress_user: *mut c_void,
}

/// What bl_model_quantize has done.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_quantize_report {
    pub struct_size: u32,
    pub reserved: u32,
    /// Layers that were quantised; of these, those that became the fallback, and those whose input
    /// calibration knew.
    pub quantized: u64,
    pub fallback: u64,
    pub calibrated: u64,
    /// Tensors that were kept or converted.
    pub kept: u64,
    /// Weights that were quantised.
    pub weights: u64,
    /// Bytes of the source's tensors, and of the new file.
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// What calibration gathers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_calibration_options {
    pub struct_size: u32,
    /// Products of columns are gathered in blocks of so many columns: a layer of n columns takes
    /// 4 n block bytes. 1: squares alone, which weight a search but cannot make up for errors.
    /// 0: 2048.
    pub block: u32,
    /// Most rows of x for a layer; more are not counted. 0: no bound.
    pub samples: u64,
    /// Most bytes of all sums. 0: 1 GiB.
    pub memory: u64,
}

/// What calibration knows of a layer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_calibration_info {
    pub struct_size: u32,
    /// Columns of a block of sums.
    pub block: u32,
    pub in_features: i64,
    /// Rows of x that were counted.
    pub samples: u64,
    /// Layers that the calibration knows.
    pub layers: u64,
}

/// What a layer's weights lose against a reference.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_model_difference_info {
    pub struct_size: u32,
    pub reserved: u32,
    pub weights: u64,
    /// Stored bytes of the weights and their scales: of the reference and of the other.
    pub bytes_reference: u64,
    pub bytes_other: u64,
    /// Mean and largest magnitude, and mean square, of the difference.
    pub mean_error: f64,
    pub max_error: f64,
    pub mean_square_error: f64,
    /// Root mean square of the difference over that of the reference.
    pub relative_error: f64,
    /// Root mean square of the other over that of the reference.
    pub rms_ratio: f64,
    /// Of the angle between the two.
    pub cosine: f64,
    /// bytes_reference / bytes_other.
    pub compression: f64,
    /// Part of the other's weights that is 0.
    pub sparsity: f64,
}

/// `bl_quantize_options.flags`: scales by the types' fixed rules, byte for byte as their own tools,
/// instead of scales of least error. Q2_K to Q6_K have no fixed rule.
pub const BL_QUANTIZE_FIXED: u32 = 1;
/// Each column's error is made up for by the columns after it, as far as the calibration of the layer's
/// input says that they can; every chosen layer needs it.
pub const BL_QUANTIZE_COMPENSATE: u32 = 2;
/// Chosen layers that are packed already are dequantised and quantised again.
pub const BL_QUANTIZE_AGAIN: u32 = 4;

macro_rules! sized {
    ($($t:ident),* $(,)?) => {$(
        // SAFETY: repr(C), first field `struct_size: u32`, fields ordered so that there is no padding
        // (tests/abi.rs compares the sum of the fields with the size), all fields integers, floats
        // or pointers.
        unsafe impl Sized32 for $t {
            const NAME: &'static str = stringify!($t);
        }
    )*};
}
sized!(
    bl_quantize_options,
    bl_quantize_report,
    bl_calibration_options,
    bl_calibration_info,
    bl_model_difference_info,
);

/// The body of a `bl_calibration`.
pub struct Gathered {
    context: Arc<Context>,
    sums: Mutex<Calibration>,
}

impl Kind for Gathered {
    const TAG: u32 = 0x424c_6361;
    const NAME: &'static str = "calibration";
}

/// Sums take at most that many bytes, unless the options say otherwise.
const CALIBRATION_MEMORY: usize = 1 << 30;

impl RuleArg {
    fn known(self) -> Result<Rule> {
        Ok(match self.0 {
            0 => Rule::Usual,
            1 => Rule::Absmax,
            2 => Rule::Threshold,
            3 => Rule::MeanRange,
            4 => Rule::Tensor,
            n => return Err(fail!(Unsupported, "rule {n} is unknown to this library")),
        })
    }
}

impl LayersArg {
    fn known(self) -> Result<Layers> {
        Ok(match self.0 {
            0 => Layers::All,
            1 => Layers::Experts,
            2 => Layers::Patterns,
            n => return Err(fail!(Unsupported, "layers {n} are unknown to this library")),
        })
    }
}

fn target(ty: TypeArg, rule: RuleArg, group: i64, bases: u32) -> Result<Target> {
    let ty = if ty.0 == 0 { Type::Ternary } else { ty.known()? };
    let group = usize::try_from(group).ok().filter(|n| *n as u64 <= FEATURES_MAX);
    let group = group.ok_or_else(|| fail!(InvalidArgument, "group_size is out of range"))?;
    Ok(Target { ty, group, bases: bases as usize, rule: rule.known()? })
}

fn float(ty: TypeArg, what: &str) -> Result<Option<Type>> {
    match ty.0 {
        0 => Ok(None),
        _ => match ty.known()? {
            ty @ (Type::F32 | Type::F16 | Type::Bf16) => Ok(Some(ty)),
            ty => Err(fail!(InvalidArgument, "{what}: f32, f16 or bf16, not {}", ty.name())),
        },
    }
}

/// Writes a model with some of its layers quantised: GGUF (metadata kept), safetensors (cortex ternary
/// and int4, Hugging Face BitNet, floats) or a packed file of its layers. Layers go through one after
/// another on the context's threads. Only floats are quantised, unless BL_QUANTIZE_AGAIN says otherwise.
/// A weight that is not finite is an error that names it. A file of that name stays whole until the new
/// one is; a failure leaves it, and nothing else. report may be NULL. docs/quantize.md says which type
/// and method is best when.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_quantize(
    model: *const bl_model,
    path: *const c_char,
    options: *const bl_quantize_options,
    report: *mut bl_quantize_report,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = if report.is_null() { None } else { Some(options::prepare(report)?) };
            let model: &Model = handle::get(model)?;
            let path = path_of(string(path, "the path")?)?;
            let o = options::read(options)?;
            if o.reserved != 0 {
                return Err(fail!(InvalidArgument, "bl_quantize_options.reserved is {}", o.reserved));
            }
            let unknown = o.flags & !(BL_QUANTIZE_FIXED | BL_QUANTIZE_COMPENSATE | BL_QUANTIZE_AGAIN);
            if unknown != 0 {
                return Err(fail!(InvalidArgument, "quantize flags {unknown:#x} are unknown"));
            }
            let mut patterns = Vec::new();
            for pattern in items(o.patterns, o.pattern_count, "patterns")? {
                reserve(&mut patterns, 1, "patterns")?;
                patterns.push(text(*pattern, "a pattern")?);
            }
            let mut types = Vec::new();
            for item in items(o.targets, o.target_count, "targets")? {
                if item.reserved != 0 {
                    return Err(fail!(InvalidArgument, "bl_quantize_target.reserved is {}", item.reserved));
                }
                reserve(&mut types, 1, "targets")?;
                types.push((
                    text(item.pattern, "a target's pattern")?,
                    target(item.r#type, item.rule, item.group_size, item.bases)?,
                ));
            }
            let mut texts = Vec::new();
            for item in items(o.texts, o.text_count, "texts")? {
                reserve(&mut texts, 1, "texts")?;
                texts.push((text(item.key, "a text's key")?, text(item.value, "a text")?));
            }
            let kind = match o.container {
                0 => model.files.directory.kind,
                1 => container::Kind::Safetensors,
                2 => container::Kind::Gguf,
                3 => container::Kind::Packed,
                n => return Err(fail!(Unsupported, "files of kind {n} are not written")),
            };
            let rotation = match (o.rotation_block, o.rotation_seed) {
                (0, 0) => None,
                (0, seed) => {
                    return Err(fail!(InvalidArgument, "rotation_seed {seed} without rotation_block"));
                }
                (block, seed) => Some((block as usize, seed)),
            };
            let gathered: Option<&Gathered> =
                if o.calibration.is_null() { None } else { Some(handle::get(o.calibration)?) };
            let mut sums = gathered.map(|g| g.sums.lock().unwrap_or_else(|e| e.into_inner()));
            if let Some(sums) = &mut sums {
                sums.settle(model.context.isa);
            }
            if o.damping != 0.0 && o.flags & BL_QUANTIZE_COMPENSATE == 0 {
                return Err(fail!(InvalidArgument, "damping without BL_QUANTIZE_COMPENSATE"));
            }
            let what = export::Options {
                kind,
                target: target(o.r#type, o.rule, o.group_size, o.bases)?,
                fallback: if o.fallback.0 == 0 { None } else { Some(o.fallback.known()?) },
                layers: o.layers.known()?,
                patterns: &patterns,
                types: &types,
                rest: float(o.rest, "rest")?,
                search: o.flags & BL_QUANTIZE_FIXED == 0,
                calibration: sums.as_deref(),
                compensate: o.flags & BL_QUANTIZE_COMPENSATE != 0,
                damping: if o.damping == 0.0 { 0.1 } else { o.damping },
                rotation,
                requantize: o.flags & BL_QUANTIZE_AGAIN != 0,
                texts: &texts,
                memory: o.memory,
            };
            let mut progress = |now: &export::Progress<'_>| {
                let Some(call) = o.progress else { return true };
                let mut name = Vec::new();
                if reserve(&mut name, now.name.len() + 1, "a name").is_err() {
                    return false;
                }
                name.extend_from_slice(now.name.as_bytes());
                name.push(0);
                let told = bl_quantize_progress {
                    name: name.as_ptr().cast(),
                    done: now.done,
                    total: now.total,
                    weights_done: now.weights_done,
                    weights_total: now.weights_total,
                };
                // SAFETY: the caller's function, called as the header says; `told` outlives the call.
                call(o.progress_user, &told) == 0
            };
            let (layers, context) = (model.layers()?, &model.context);
            let done =
                export(&model.files, layers, path, &what, context.isa, &context.executor, &mut progress)?;
            if let Some(out) = out {
                out.fill(&bl_quantize_report {
                    struct_size: 0,
                    reserved: 0,
                    quantized: done.quantized,
                    fallback: done.fallback,
                    calibrated: done.calibrated,
                    kept: done.kept,
                    weights: done.weights,
                    bytes_read: done.bytes_read,
                    bytes_written: done.bytes_written,
                });
            }
            Ok(())
        })
    }
}

/// Makes a calibration, which knows nothing yet.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_create(
    context: *const bl_context,
    options: *const bl_calibration_options,
    out: *mut *mut bl_calibration,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let o = options::read(options)?;
            let block = if o.block == 0 { MOMENTS_BLOCK } else { o.block as usize };
            let samples = if o.samples == 0 { u64::MAX } else { o.samples };
            let memory = if o.memory == 0 { CALIBRATION_MEMORY as u64 } else { o.memory };
            let sums = Calibration::new(block, samples, usize::try_from(memory).unwrap_or(usize::MAX));
            *out = handle::make::<bl_calibration, _>(Arc::new(Gathered { context, sums: Mutex::new(sums) }))?;
            Ok(())
        })
    }
}

/// Reads a calibration that bl_calibration_save wrote. Rows may be added to it.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_open(
    context: *const bl_context,
    path: *const c_char,
    out: *mut *mut bl_calibration,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let context = context::of(context)?;
            let sums = Calibration::open(path_of(string(path, "the path")?)?)?;
            *out = handle::make::<bl_calibration, _>(Arc::new(Gathered { context, sums: Mutex::new(sums) }))?;
            Ok(())
        })
    }
}

/// Writes what a calibration knows to a safetensors file.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_save(
    calibration: *const bl_calibration,
    path: *const c_char,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let gathered: &Gathered = handle::get(calibration)?;
            let path = path_of(string(path, "the path")?)?;
            let mut sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            sums.save(gathered.context.isa, path)
        })
    }
}

/// Adds rows of x (f32, f16 or bf16), the input of the layer of that name (with or without ".weight"
/// behind it), to what a calibration knows of it: the sums of products of its columns. x is what
/// bl_forward takes after the norm and before any rotation. In a row that is not finite nothing is
/// added, of no row. Costs rows * columns * block multiplications on the calling thread; calls from
/// several threads wait for one another.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibrate(
    calibration: *const bl_calibration,
    layer: *const c_char,
    rows: i64,
    columns: i64,
    x: *const c_void,
    x_type: TypeArg,
    x_stride: i64,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let gathered: &Gathered = handle::get(calibration)?;
            let layer = text(layer, "the layer's name")?;
            let size = |n: i64, least: u64, most: u64, what: &str| match u64::try_from(n) {
                Ok(n) if (least..=most).contains(&n) => Ok(n as usize),
                _ => Err(fail!(InvalidArgument, "{n} {what}: {least} to {most}")),
            };
            let (rows, columns) =
                (size(rows, 0, BATCH_MAX, "rows")?, size(columns, 1, FEATURES_MAX, "columns")?);
            let float = float_type(x_type, "x")?;
            let stride = row_stride(x_stride, columns, float, "x")?;
            if stride.checked_mul(rows).is_none_or(|n| n > isize::MAX as usize) {
                return Err(fail!(
                    InvalidArgument,
                    "{rows} rows of {stride} bytes are more than an address space"
                ));
            }
            if rows == 0 {
                return Ok(());
            }
            if x.is_null() {
                return Err(fail!(InvalidArgument, "x is NULL"));
            }
            let view = MatrixRef::new(x.cast(), float, stride, columns);
            let mut sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            let read = |row: usize, out: &mut [f32]| view.read_row(row, out);
            sums.add(gathered.context.isa, layer, columns, rows, &read)
        })
    }
}

/// What a calibration knows of the layer of that name; layer NULL: how many layers it knows.
/// BL_ERROR_NOT_FOUND for a layer it does not know.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_calibration_describe(
    calibration: *const bl_calibration,
    layer: *const c_char,
    info: *mut bl_calibration_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let gathered: &Gathered = handle::get(calibration)?;
            let sums = gathered.sums.lock().unwrap_or_else(|e| e.into_inner());
            let layers = sums.names().count() as u64;
            let mut info =
                bl_calibration_info { struct_size: 0, block: 0, in_features: 0, samples: 0, layers };
            if !layer.is_null() {
                let name = text(layer, "the layer's name")?;
                let found =
                    sums.find(name).ok_or_else(|| fail!(NotFound, "calibration knows no layer `{name}`"))?;
                info.block = found.block() as u32;
                info.in_features = found.columns() as i64;
                info.samples = found.count();
            }
            out.fill(&info);
            Ok(())
        })
    }
}

/// Compares the weights of a layer of two models, as bl_layer_read gives them; all matrices of a tensor
/// of three dimensions together. A rotation that a file declares is taken back first. Runs on the
/// reference's context.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_model_compare(
    reference: *const bl_model,
    other: *const bl_model,
    layer: *const c_char,
    info: *mut bl_model_difference_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let (a, b): (&Model, &Model) = (handle::get(reference)?, handle::get(other)?);
            let name = string(layer, "the layer's name")?.to_bytes();
            let found = with_weights(a, name, &mut |one| {
                with_weights(b, name, &mut |two| compare(&a.context.executor, one, two))
            })?;
            let (bytes_reference, bytes_other) = (stored_bytes(a, name)?, stored_bytes(b, name)?);
            out.fill(&bl_model_difference_info {
                struct_size: 0,
                reserved: 0,
                weights: found.weights,
                bytes_reference,
                bytes_other,
                mean_error: found.mean_error,
                max_error: found.max_error,
                mean_square_error: found.mean_square_error,
                relative_error: found.relative_error,
                rms_ratio: found.rms_ratio,
                cosine: found.cosine,
                compression: bytes_reference as f64 / bytes_other as f64,
                sparsity: found.sparsity,
            });
            Ok(())
        })
    }
}

type Work<'a> = &'a mut dyn FnMut(&dyn Matrix) -> Result<crate::compare::Comparison>;

/// The weights of a layer, as they were before a rotation that its file declares.
fn with_weights(model: &Model, name: &[u8], work: Work<'_>) -> Result<crate::compare::Comparison> {
    let isa = model.context.isa;
    let back = |matrix: &dyn Matrix, spec: Option<Spec<'_>>, work: Work<'_>| match spec {
        None => work(matrix),
        Some(spec) => {
            let rotation = Rotation::new(&spec, matrix.in_features())?;
            work(&export::Plain::back(matrix, Some(&rotation), isa))
        }
    };
    if model.files.directory.kind == container::Kind::Packed {
        let tensor = model.files.directory.tensor(name);
        let tensor =
            tensor.ok_or_else(|| fail!(NotFound, "no layer is named {}", container::Quoted(name)))?;
        let saved = crate::model::saved(&model.files, tensor, &model.context.heap)?;
        let Some(saved) = saved else {
            return Err(fail!(Internal, "a tensor of a packed file that is no layer"));
        };
        let signs = saved.settings.rotation_signs.as_deref();
        let spec = saved.settings.rotation.map(|block| Spec { block, signs });
        return back(&saved.packed, spec, work);
    }
    let request = Request { all_slices: true, without_norm: true, has_bias: true, ..Request::default() };
    let layers = model.layers()?;
    let plan = match layers.find(name, None)? {
        Some(layer) => layers.plan(&model.files, layer, &request)?,
        None => layers.plan_named(&model.files, name, &request)?,
    };
    let matrix = plan.matrix()?;
    let declared = plan.rotation.as_ref().map(|declared| declared.spec());
    match matrix.permutation() {
        None => back(&*matrix, declared, work),
        // Columns in the order of x.
        Some(_) => back(&export::Plain::new(&*matrix, None, isa), declared, work),
    }
}

/// Bytes of a layer's weights, scales, zero points and group indices.
fn stored_bytes(model: &Model, name: &[u8]) -> Result<u64> {
    let files = &model.files;
    let layer = match files.directory.kind {
        container::Kind::Packed => None,
        _ => model.layers()?.find(name, None)?,
    };
    let Some(layer) = layer else {
        return Ok(files.directory.tensor(name).map_or(0, |tensor| tensor.bytes));
    };
    let roles = [Role::Weight, Role::Scales, Role::Zeros, Role::GroupIndex];
    Ok(roles.into_iter().filter_map(|role| layer.tensor(files, role)).map(|tensor| tensor.bytes).sum())
}
