//! The handles, callbacks, structs and flags of the C header that several of its parts share. Names and layouts are the
//! ABI: fields are only added at the end of structs that begin with `struct_size`.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // fields whose name says it all stand without a text

use std::ffi::{c_char, c_void};

use super::enums::*;
use super::options::Sized32;

/// Threads, devices, log, allocator. NULL is the default context: serial, silent.
pub struct bl_context {
    _opaque: [u8; 0],
}
/// An opened file; its tensors are mapped, not read.
pub struct bl_model {
    _opaque: [u8; 0],
}
/// One packed linear layer, y = x W^T + b.
pub struct bl_layer {
    _opaque: [u8; 0],
}

/// What failed, for a person. The caller's own; on the stack is fine. Frozen: 256 bytes.
#[repr(C)]
pub struct bl_error {
    /// The same value as the call returned.
    pub status: bl_status,
    /// UTF-8, English, NUL-terminated; empty on success.
    pub message: [c_char; 252],
}

/// One task of a host's parallel-for. Never unwinds.
pub type bl_task_fn = Option<unsafe extern "C" fn(task: *mut c_void, index: usize)>;
/// A host's parallel-for: call run(task, i) once for each i in 0..count, on any threads, the calling one
/// among them or not, and come back after the last has returned. Tasks left out are made up for by the
/// calling thread.
pub type bl_parallel_for_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, count: usize, run: bl_task_fn, task: *mut c_void)>;
/// Gets a line of text for a person. May be called from any thread; must not call the library.
pub type bl_log_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, level: bl_log_level, message: *const c_char)>;
/// Gives `size` bytes aligned to `alignment` (a power of two), or NULL. Called from any thread. Weights
/// below 4 MiB are cut from chunks of 16 MiB with an alignment of 2 MiB, which the layers of a context
/// share: even the first small layer asks for one. Larger weights, and workspaces of 4 MiB and more, are
/// asked for by themselves with the same alignment, smaller workspaces with one of 64. The library writes
/// zeros to all of it. A chunk is given back after its last layer, the latest one also not before the
/// context is freed.
pub type bl_alloc_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, size: usize, alignment: usize) -> *mut c_void>;
/// Takes back what bl_alloc_fn gave, with the same size and alignment. Called from any thread.
pub type bl_dealloc_fn =
    Option<unsafe extern "C" fn(user: *mut c_void, pointer: *mut c_void, size: usize, alignment: usize)>;

/// How a context is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_context_options {
    pub struct_size: u32,
    /// 0 or 1: the calling thread only. N: a pool of N threads, the caller counted, which are joined
    /// when the context goes; at most 1024. BL_THREADS_ALL: as many as affinity and cgroup allow. With
    /// parallel_for: most tasks to hand over at a time (0: as many as affinity and cgroup allow).
    pub threads: u32,
    /// The host's threads, instead of a pool; BORROWED until the context and its layers are gone.
    pub parallel_for: bl_parallel_for_fn,
    pub parallel_for_user: *mut c_void,
    /// NULL: silent.
    pub log: bl_log_fn,
    pub log_user: *mut c_void,
    /// Lines less important than this are not sent. 0: BL_LOG_WARN.
    pub log_level: LogLevelArg,
    /// BL_CONTEXT_PROFILE.
    pub flags: u32,
    /// For weights and workspaces only; both or neither. BORROWED until the context and its layers
    /// are gone.
    pub alloc: bl_alloc_fn,
    pub dealloc: bl_dealloc_fn,
    pub alloc_user: *mut c_void,
}

/// A device that layers run on.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_device_info {
    pub struct_size: u32,
    /// BL_DEVICE_CPU, BL_DEVICE_CUDA.
    pub kind: DeviceKindArg,
    pub memory_total: u64,
    /// 0 on a GPU that this process has not used yet: asking would take memory there.
    pub memory_free: u64,
    /// Processors that this process may use; streaming multiprocessors.
    pub compute_units: u32,
    /// CUDA: 10 * major + minor of the compute capability; layers need 75 or more.
    pub arch: u32,
    /// Static.
    pub name: *const c_char,
    /// The instruction sets found, best first: "avx512vnni avx2 scalar"; of a GPU "cuda". Static.
    pub features: *const c_char,
}

/// What a context holds.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_memory_info {
    pub struct_size: u32,
    /// Models, layers, states and projections of the context.
    pub handles: u32,
    /// Bytes of packed weights: what layers use of the chunks that bl_alloc_fn gives, not the chunks.
    pub packed: u64,
    /// Bytes of mapped files.
    pub mapped: u64,
    /// Bytes of workspaces in use by calls under way.
    pub workspace: u64,
    /// Bytes on devices.
    pub device: u64,
}

/// What one kernel, one stage around the kernels, or all calls have done. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_profile_entry {
    /// A kernel, named as bl_plan does: the products alone. Or a stage: "norm", "rotation", "quantize" (x
    /// into codes and scales, or into floats in packed order), "epilogue" (scale, bias, epilogue and the
    /// way into y). Or "scale_misses" and "scale_hits": integer activations that found scales in x, and those
    /// with the one of bl_layer_options.activation_scale or bl_layer_calibrate; only counted. Or "call":
    /// bl_forward and bl_forward_many from beginning to end. Static.
    pub kernel: *const c_char,
    /// Layers that ran in it, or had such scales; of stages and "call" the calls.
    pub calls: u64,
    /// Of kernels and stages summed over the threads; of "call" what passed on the clock.
    pub nanoseconds: u64,
    /// Of weights and scales read; of stages 4 for each number of x or y.
    pub bytes: u64,
    /// Multiplications and additions of products; 0 for stages.
    pub operations: u64,
}

/// How a file is opened.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_load_options {
    pub struct_size: u32,
    /// BL_LOAD_COPY, BL_LOAD_BORROW, BL_LOAD_VERIFY.
    pub flags: u32,
}

/// What a model file is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_model_info {
    pub struct_size: u32,
    /// BL_CONTAINER_*: the kind of file.
    pub container: u32,
    pub tensors: i64,
    pub metadata: i64,
    /// Bytes of all files of the model.
    pub bytes: u64,
    /// See bl_model_layer.
    pub layers: i64,
}

/// One stored tensor.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_tensor_info {
    pub struct_size: u32,
    pub r#type: TypeArg,
    /// Lives as long as the model handle, as does `data`.
    pub name: *const c_char,
    /// How many entries of `shape` count.
    pub dims: u32,
    pub reserved: u32,
    /// Outermost first: a weight is [out_features, in_features].
    pub shape: [i64; 4],
    /// The stored bytes, of any alignment.
    pub data: *const c_void,
    pub bytes: u64,
}

/// One layer, as the naming rules of its format make it (docs/formats.md). The names of its tensors are
/// NULL where it has none in that role; all live as long as the model handle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_model_layer_info {
    pub struct_size: u32,
    /// The format of its weights.
    pub r#type: TypeArg,
    /// What its tensors have in common: `blk.0.attn_q` of `blk.0.attn_q.weight`.
    pub name: *const c_char,
    /// 0 where they are not known, which `status` tells. Of one matrix, where there are several.
    pub in_features: i64,
    pub out_features: i64,
    /// Matrices: more than 1 in tensors of three dimensions (experts).
    pub slices: i64,
    /// BL_OK, or what bl_layer_open without options will answer, as far as that shows without reading the
    /// weights: a part is missing, an option must decide, the format is not read. bl_layer_open says it
    /// in words.
    pub status: StatusArg,
    pub reserved: u32,
    /// NULL only where the weights are missing.
    pub weight: *const c_char,
    pub scales: *const c_char,
    /// Zero points or minima of groups.
    pub zeros: *const c_char,
    /// The group of each column.
    pub group_index: *const c_char,
    pub shape: *const c_char,
    /// What x W^T is multiplied with, before the bias.
    pub product_scale: *const c_char,
    pub bias: *const c_char,
    /// The gain of an RMS norm of x before the layer.
    pub norm: *const c_char,
}

/// One metadata value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_meta_info {
    pub struct_size: u32,
    pub kind: MetaKindArg,
    /// NULL for items of arrays. Lives as long as the model handle, as does `string`.
    pub key: *const c_char,
    /// Integers and bools; a u64 keeps its bits.
    pub integer: i64,
    /// Any number, as a double.
    pub number: f64,
    /// BL_META_STRING: NUL-terminated; `items` is its length in bytes (it may hold NULs).
    pub string: *const c_char,
    /// BL_META_ARRAY: the kind of its items.
    pub item_kind: MetaKindArg,
    pub reserved: u32,
    /// BL_META_ARRAY: how many items.
    pub items: i64,
}

/// How a layer is made: y = epilogue(rotation(norm(x)) W^T + bias). An option that has no meaning for a
/// format is refused with it, flags excepted; a value out of its range is BL_ERROR_INVALID_ARGUMENT. The float
/// arrays need no alignment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_layer_options {
    pub struct_size: u32,
    /// BL_TYPE_AUTO: as stored; bl_layer_create from floats: ternary. Else which format it is, where the
    /// file does not tell: BL_TYPE_I2_S_ARM or _ROWS of an I2_S tensor; one of several that a layer is
    /// stored in; that of packed bytes whose scales are given below; BL_TYPE_BITNET_HF of floats that are
    /// to be ternarised as transformers does.
    ///
    /// Or what plain floats are rounded to, by fixed rules (docs/quantize.md): f32, f16, bf16; ternary
    /// (one scale, mean |w| of the matrix; with group_size one for each group of a row), binary
    /// (mean |w| of the row), int8 (max |w| / 127 of the row), int4 (max |w| / 7 of the group); q4_0,
    /// q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4, q1_0, q2_0, q2_0-legacy, pq2_0 and ptq1_0 as their
    /// own tools do. bl_layer_create also: bitnet-hf, ternary2, ternary-block, i2_s. Other types are
    /// BL_ERROR_UNSUPPORTED: for q2_k, q3_k, q4_k, q5_k and q6_k there is a search, bl_model_quantize,
    /// but no rule. Columns that are no multiple of the type's block are BL_ERROR_INVALID_ARGUMENT.
    /// Packed weights are not rounded again: BL_ERROR_UNSUPPORTED.
    pub r#type: TypeArg,
    /// How the layer takes x.
    pub activation: ActivationArg,
    /// BL_LAYER_*.
    pub flags: u32,
    /// out_features values that are added to y, in place of the file's; copied. NULL: the file's (opened
    /// by a tensor's name, there is none). With shards it is the whole layer's: of rows each takes its own
    /// part, of columns the one of rank 0 takes it.
    pub bias: *const f32,
    /// Scales in place of the file's, for formats that keep them apart (docs/formats.md): read once.
    /// bl_layer_create needs them there. Ternary: one for each base; binary, ternary2, int8: one, or one
    /// for each row; int4, compressed-tensors: one for each group of each row; bitnet-hf: one, which
    /// multiplies; ternary-block: one for each block.
    pub scales: *const f32,
    pub scale_count: i64,
    /// Columns of a group; 0: what the file or the number of scales says; from floats: int4 128,
    /// ternary-block 256, ternary one scale for all.
    pub group_size: i64,
    /// Which matrix of a tensor of three dimensions, from 0.
    pub slice: i64,
    /// Where packed bytes do not tell them (rows or columns of padding, flat arrays); 0: they do.
    pub in_features: i64,
    pub out_features: i64,
    /// Done to each row of x first, once per row. Where the file has a norm before the layer it is done
    /// without being asked for, and must not be asked for (but see BL_LAYER_WITHOUT_NORM).
    pub norm: NormArg,
    /// Finite and not negative. 0: 1e-5.
    pub norm_epsilon: f32,
    /// in_features factors; copied. NULL: none. Only with a norm.
    pub norm_weight: *const f32,
    /// in_features values to add; copied. NULL: none. Only with a norm.
    pub norm_bias: *const f32,
    /// Each block of so many columns of the (normed) row goes through the Walsh-Hadamard transform, as
    /// bl_rotate says: a power of two from 2 to 16384 that divides in_features. 0: no rotation, but
    /// where the file itself says that this weight wants one (prism.hadamard.* metadata) it is done
    /// without being asked for, and must not be asked for.
    pub rotation_block: u32,
    /// Done to each output after the bias.
    pub epilogue: EpilogueArg,
    /// in_features signs, +1 or -1, that the row is multiplied with before the transform; copied.
    /// NULL: all +1. Only with rotation_block.
    pub rotation_signs: *const f32,
    /// BL_EPILOGUE_RELU only: finite.
    pub epilogue_threshold: f32,
    /// Integer activations only: one scale for all of x, q = clamp(round(x * (1 / scale)), -127, 127)
    /// (or the codes' own range), instead of one that follows from each segment's largest value. It and
    /// its inverse finite and above 0. 0: none.
    pub activation_scale: f32,
    /// Make the layer of a part of the weights: part shard_rank (from 0) of shard_count. Parts are as
    /// even as rows, or whole groups of columns, allow; bl_layer_describe tells where a part begins.
    /// Of columns there is no norm, which needs all of x, and no epilogue, which needs the whole sum.
    pub shard: ShardArg,
    pub shard_rank: u32,
    pub shard_count: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Where the layer is and runs, a number of bl_device_describe: 0, the CPU, or a GPU. It never runs
    /// elsewhere: what a GPU cannot do is an error.
    pub device: u32,
    /// Must be 0.
    pub device_flags: u32,
}

/// A layer and its name in a file. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_named_layer {
    /// What bl_layer_open will know it by.
    pub name: *const c_char,
    pub layer: *const bl_layer,
}

/// A text and its key in a file. Frozen.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_named_text {
    /// Must not begin with "bitlinear.".
    pub key: *const c_char,
    pub value: *const c_char,
}

/// What a layer is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_layer_info {
    pub struct_size: u32,
    /// The format that the weights were stored in.
    pub r#type: TypeArg,
    pub in_features: i64,
    pub out_features: i64,
    /// Owned by the layer; on a device, its bytes there.
    pub bytes_packed: u64,
    /// Read in place from the model's file.
    pub bytes_mapped: u64,
    /// Where it is, as bl_device_describe counts; 0: the CPU.
    pub device: u32,
    /// How the layer takes x; BL_ACTIVATION_AUTO has been resolved.
    pub activation: ActivationArg,
    pub norm: NormArg,
    pub epilogue: EpilogueArg,
    /// Columns of a block of the rotation, asked for or declared by the file; 0: none.
    pub rotation_block: u32,
    pub reserved: u32,
    /// Of the whole weights, the row and the column that the layer begins with: 0 where it is no shard.
    pub first_row: i64,
    pub first_column: i64,
}

/// How a call runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_run_options {
    pub struct_size: u32,
    /// BL_RUN_ACCUMULATE; bl_forward_device also BL_RUN_CHECK.
    pub flags: u32,
    /// NULL: the library allocates. Else at least bl_plan's workspace_size bytes; not shared by calls
    /// that run at the same time. bl_forward_device: memory of the device, which must be given; bl_forward
    /// and bl_forward_many of layers on a device take none.
    pub workspace: *mut c_void,
    pub workspace_size: usize,
}

/// What a call will do.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_plan_info {
    pub struct_size: u32,
    /// How many at most compute at a time: those of the context's pool, the caller counted, or the
    /// tasks that its parallel_for is given. A small product takes fewer. 0 on a device.
    pub threads: u32,
    /// "w4g_i8_avx512vnni_1x64": layout, activation, instruction set, rows of x by rows of W. Of a layer on
    /// a device the product's kernel: "bl_w4_few8". Static.
    pub kernel: *const c_char,
    /// Of a layer on a device it is memory there, for bl_forward_device.
    pub workspace_size: u64,
    /// The alignment that the workspace is used at. Any other will do: the size has room for it.
    pub workspace_alignment: u64,
    /// Weights and scales read by one call.
    pub bytes_read: u64,
    /// Multiplications and additions; 2^64 - 1: as many, or more.
    pub operations: u64,
}

/// Name and blocks of a type.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct bl_type_info {
    pub struct_size: u32,
    /// Weights in a block; 0 where the whole tensor is one.
    pub block: u32,
    /// Bytes of a block; 0 where there are no blocks of fixed size.
    pub block_bytes: u32,
    /// 1 for formats with scales, 0 for plain elements.
    pub is_packed: u32,
    /// Static.
    pub name: *const c_char,
}

/// `bl_context_options.threads`: as many as affinity and cgroup allow.
pub const BL_THREADS_ALL: u32 = 0xffff_ffff;
/// `bl_context_options.flags`: count calls and time them, for bl_profile.
pub const BL_CONTEXT_PROFILE: u32 = 1;
/// `bl_load`: read into memory instead of mapping; the file may then change.
pub const BL_LOAD_COPY: u32 = 1;
/// `bl_load_memory` only: the bytes are BORROWED and outlive the model and its layers.
pub const BL_LOAD_BORROW: u32 = 2;
/// `bl_load`, `bl_load_memory`: compare what bl_save wrote with the sums in it. Files of other tools
/// have none.
pub const BL_LOAD_VERIFY: u32 = 4;

/// `bl_model_info.container`, `bl_quantize_options.container`: safetensors, one file or shards.
pub const BL_CONTAINER_SAFETENSORS: u32 = 1;
/// GGUF, one file or parts.
pub const BL_CONTAINER_GGUF: u32 = 2;
/// The packed file of layers that bl_save writes.
pub const BL_CONTAINER_PACKED: u32 = 3;
/// A JSON artifact of burn_dragon.
pub const BL_CONTAINER_BURN_DRAGON: u32 = 4;

/// `bl_layer_options.flags`: BitNet's weight_scale multiplies the weights, whatever config.json says.
pub const BL_LAYER_SCALE_MULTIPLIES: u32 = 1;
/// BitNet's weight_scale divides the weights, whatever config.json says.
pub const BL_LAYER_SCALE_DIVIDES: u32 = 2;
/// GPTQ's zero points are stored less 1 ("gptq"), whatever config.json says.
pub const BL_LAYER_GPTQ_V1: u32 = 4;
/// GPTQ's zero points are stored as they are ("gptq_v2"), whatever config.json says.
pub const BL_LAYER_GPTQ_V2: u32 = 8;
/// All matrices of a tensor of three dimensions, one below the other, as one layer.
pub const BL_LAYER_ALL_SLICES: u32 = 16;
/// The norm that the file has before the layer is left out: the caller applies it, or gives another.
pub const BL_LAYER_WITHOUT_NORM: u32 = 32;
/// `bl_layer_options.flags`: the tensor (f32, f16 or bf16) is stored [in_features, out_features].
pub const BL_LAYER_TRANSPOSED: u32 = 64;
/// `bl_run_options.flags`: adds to what is in y instead of replacing it, after everything else.
pub const BL_RUN_ACCUMULATE: u32 = 1;
/// bl_forward_device: asks the driver whether x, the y's and the workspace are memory of the layers'
/// device. Costs about a microsecond; for tests of a host.
pub const BL_RUN_CHECK: u32 = 2;
/// `bl_rotate`: from rotated rows back to plain ones.
pub const BL_ROTATE_INVERSE: u32 = 1;

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
    bl_context_options,
    bl_device_info,
    bl_memory_info,
    bl_load_options,
    bl_model_info,
    bl_tensor_info,
    bl_model_layer_info,
    bl_meta_info,
    bl_layer_options,
    bl_layer_info,
    bl_run_options,
    bl_plan_info,
    bl_type_info,
);
