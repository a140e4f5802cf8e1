//! Quantising model files: unstable until version 1.0.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::{c_char, c_void};

use super::boundary::guard;
use super::calibration::{Gathered, bl_calibration};
use super::enums::*;
use super::handle;
use super::model::{Model, path_of, string};
use super::options::{self, Sized32};
use super::save::{items, text};
use super::types::*;
use crate::container;
use crate::error::{Result, fail};
use crate::export::{self, Layers, Target, export};
use crate::limits::FEATURES_MAX;
use crate::memory::reserve;
use crate::quantize::{DAMPING, Kind as Rule};
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
    /// The kind of file to write, BL_CONTAINER_*; 0: that of the source. BL_CONTAINER_BURN_DRAGON: the
    /// float arrays decoder_x, decoder_y and encoder of the source, by BL_QUANTIZE_FIXED rules, to
    /// binary, ternary2 or int8.
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
    /// For the metadata of the new file. Each key is there once, is not empty and does not begin with
    /// "bitlinear."; in safetensors and GGUF nor with "prism.hadamard."; nor is it GGUF's own:
    /// general.alignment, general.file_type, general.quantization_version,
    /// craftsman.bitnet.weight_encoding, and what begins with "split.".
    pub texts: *const bl_named_text,
    pub text_count: usize,
    /// What is known of the inputs when the call begins; layers it does not know are rounded without. NULL:
    /// nothing. Any call may be made on it meanwhile.
    pub calibration: *const bl_calibration,
    /// With BL_QUANTIZE_COMPENSATE: part of the mean square of the inputs that is added to each
    /// column's. 0: 0.03.
    pub damping: f32,
    /// Must be 0.
    pub reserved: u32,
    /// Most bytes beside what is mapped; 0: twice the largest tensor of the source and 64 MiB. A layer
    /// that needs more is BL_ERROR_OUT_OF_MEMORY before anything is written. A packed file is held whole
    /// besides until it is written.
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
sized!(bl_quantize_options, bl_quantize_report);

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
    let size = usize::try_from(group).ok().filter(|n| *n as u64 <= FEATURES_MAX);
    let group = size.ok_or_else(|| fail!(InvalidArgument, "group_size is {group}: 0 to {FEATURES_MAX}"))?;
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
/// and int4, Hugging Face BitNet, floats), a packed file of its layers or burn_dragon's artifact. Layers go
/// through one after another on the context's threads. Only floats are quantised, unless BL_QUANTIZE_AGAIN says otherwise.
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
                return Err(fail!(
                    InvalidArgument,
                    "bl_quantize_options.reserved is {}: it must be 0",
                    o.reserved
                ));
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
                    return Err(fail!(
                        InvalidArgument,
                        "bl_quantize_target.reserved is {}: it must be 0",
                        item.reserved
                    ));
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
                4 => container::Kind::Artifact,
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
            // A view, not the lock: `progress` and a host's parallel-for may call with the same calibration.
            let view =
                |g: &Gathered| g.sums.lock().unwrap_or_else(|e| e.into_inner()).view(model.context.isa);
            let calibration = gathered.map(view).transpose()?;
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
                calibration: calibration.as_ref(),
                compensate: o.flags & BL_QUANTIZE_COMPENSATE != 0,
                damping: if o.damping == 0.0 { DAMPING } else { o.damping },
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
