//! The enums of the C header, and what Rust gets where C passes one. Values are the ABI: never renumbered.
#![allow(non_camel_case_types)]
#![allow(missing_docs)] // values whose name says it all stand without a text

/// Result of every fallible call. Failures are positive; treat an unknown value as a failure.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_status {
    /// Done.
    BL_OK = 0,
    /// NULL, out of range, shapes that do not fit.
    BL_ERROR_INVALID_ARGUMENT = 1,
    /// NULL, another kind's, or freed before.
    BL_ERROR_INVALID_HANDLE = 2,
    /// Known, but not by this build, device or type.
    BL_ERROR_UNSUPPORTED = 3,
    /// Memory could not be had.
    BL_ERROR_OUT_OF_MEMORY = 4,
    /// A caller's buffer is too small; the needed size was written, or is in the message.
    BL_ERROR_BUFFER_TOO_SMALL = 5,
    /// No tensor, key or index of that name.
    BL_ERROR_NOT_FOUND = 6,
    /// The file could not be read or written.
    BL_ERROR_IO = 7,
    /// The file's content is not what its format says.
    BL_ERROR_BAD_FILE = 8,
    /// The CUDA driver reported a failure; the message has its name, its number and the call.
    BL_ERROR_DEVICE = 9,
    /// What does not survive fork() was used in the child: a context's threads, a GPU.
    BL_ERROR_FORKED = 10,
    /// The caller's progress function said so; nothing was left behind.
    BL_ERROR_CANCELLED = 11,
    /// No CUDA driver was found, or this build has no CUDA.
    BL_ERROR_NO_DRIVER = 12,
    /// The CUDA driver is older than CUDA 12.0.
    BL_ERROR_DRIVER_TOO_OLD = 13,
    /// The CUDA driver sees no GPU.
    BL_ERROR_NO_DEVICE = 14,
    /// There are no kernels for that GPU: compute capability 7.5 is the oldest.
    BL_ERROR_UNSUPPORTED_DEVICE = 15,
    /// An earlier failure left the GPU unusable for this process: free all that is on it.
    BL_ERROR_DEVICE_LOST = 16,
    /// A bug here; the process is sound, free the handles used.
    BL_ERROR_INTERNAL = 99,
}

/// Element or storage format of a matrix. 1..15 are plain elements; 100 + n is ggml's block format
/// with ggml's id n; the others are formats of other tools (cortex, ruvllm, burn_dragon and so on: whose
/// they are is in docs/formats.md, "Names"). `bl_type_describe` tells names and blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_type {
    /// What is stored, in options that say so. As the type of a matrix it is BL_ERROR_UNSUPPORTED.
    BL_TYPE_AUTO = 0,
    BL_TYPE_F32 = 1,
    BL_TYPE_F16 = 2,
    BL_TYPE_BF16 = 3,
    BL_TYPE_I8 = 4,
    BL_TYPE_U8 = 5,
    BL_TYPE_I32 = 6,
    BL_TYPE_I16 = 7,
    BL_TYPE_I64 = 8,
    BL_TYPE_F64 = 9,
    BL_TYPE_U32 = 10,
    BL_TYPE_U16 = 11,
    BL_TYPE_U64 = 12,
    BL_TYPE_BOOL = 13,
    BL_TYPE_F8_E4M3 = 14,
    BL_TYPE_F8_E5M2 = 15,
    /// Ternary, 2 bits, f32 scale of the tensor or of each base (cortex).
    BL_TYPE_TERNARY = 16,
    /// Signs, 1 bit, one f32 scale (burn_dragon).
    BL_TYPE_BINARY = 17,
    /// Symmetric 4-bit groups (cortex).
    BL_TYPE_INT4 = 18,
    /// Signed bytes, one f32 scale (burn_dragon).
    BL_TYPE_INT8 = 19,
    /// Hugging Face BitNet b1.58.
    BL_TYPE_BITNET_HF = 20,
    /// Ternary in flat blocks of 256 (ruvllm).
    BL_TYPE_TERNARY_BLOCK = 21,
    /// Ternary packed flat, one f32 scale (burn_dragon).
    BL_TYPE_TERNARY2 = 22,
    BL_TYPE_GPTQ = 23,
    BL_TYPE_AWQ = 24,
    BL_TYPE_COMPRESSED_TENSORS = 25,
    BL_TYPE_MLX = 26,
    /// Ternary blocks of ruvllm's GGUF files.
    BL_TYPE_T158 = 27,
    /// I2_S as written on ARM.
    BL_TYPE_I2_S_ARM = 28,
    /// I2_S as written by x86 builds without ACT_PARALLEL.
    BL_TYPE_I2_S_ROWS = 29,
    /// Q2_0 of older files: blocks of 128.
    BL_TYPE_Q2_0_LEGACY = 30,
    /// An element type that has a size but no name here; listed, not read.
    BL_TYPE_OTHER = 31,
    /// A layer of a file that bl_save wrote; bl_layer_describe tells what its weights were stored in.
    BL_TYPE_PANELS = 32,
    BL_TYPE_Q4_0 = 102,
    BL_TYPE_Q4_1 = 103,
    BL_TYPE_Q5_0 = 106,
    BL_TYPE_Q5_1 = 107,
    BL_TYPE_Q8_0 = 108,
    BL_TYPE_Q2_K = 110,
    BL_TYPE_Q3_K = 111,
    BL_TYPE_Q4_K = 112,
    BL_TYPE_Q5_K = 113,
    BL_TYPE_Q6_K = 114,
    BL_TYPE_IQ2_XXS = 116,
    BL_TYPE_IQ2_XS = 117,
    BL_TYPE_IQ3_XXS = 118,
    BL_TYPE_IQ1_S = 119,
    BL_TYPE_IQ4_NL = 120,
    BL_TYPE_IQ3_S = 121,
    BL_TYPE_IQ2_S = 122,
    BL_TYPE_IQ4_XS = 123,
    BL_TYPE_IQ1_M = 129,
    BL_TYPE_TQ1_0 = 134,
    BL_TYPE_TQ2_0 = 135,
    /// bitnet.cpp's I2_S as in every published file.
    BL_TYPE_I2_S = 136,
    BL_TYPE_TL1 = 138,
    BL_TYPE_MXFP4 = 139,
    BL_TYPE_NVFP4 = 140,
    BL_TYPE_Q1_0 = 141,
    BL_TYPE_Q2_0 = 142,
    BL_TYPE_TL2 = 150,
    BL_TYPE_PQ2_0 = 242,
    BL_TYPE_PTQ1_0 = 243,
}

/// How a layer takes its input.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_activation {
    /// Int8 with one scale for each segment of the weights (row, group or super-block of 256);
    /// floats where the weights are plain floats.
    BL_ACTIVATION_AUTO = 0,
    /// Floats: each output is one chain of fused multiply-adds over the dequantised weights.
    BL_ACTIVATION_F32 = 1,
    /// Int8 with one scale for each row of x.
    BL_ACTIVATION_INT8_ROW = 2,
    /// Int8 with one scale for each group (or super-block) of the weights.
    BL_ACTIVATION_INT8_GROUP = 3,
    /// Codes -7 .. 7, scales as with AUTO.
    BL_ACTIVATION_INT4 = 4,
    /// Codes 0 .. 255, scales as with AUTO from the largest value above 0; values below 0 become 0. For
    /// inputs that have passed a ReLU. The layer keeps 4 bytes more for each group of each row.
    BL_ACTIVATION_UINT8_POS = 5,
    /// Int8 for models trained with burn_dragon's rule: one scale for each row of x, twice the mean
    /// magnitude over 127 (larger values are clipped), halves rounded away from zero.
    BL_ACTIVATION_INT8_MEAN_RANGE = 6,
    /// The same with codes -7 .. 7.
    BL_ACTIVATION_INT4_MEAN_RANGE = 7,
    /// The same with codes 0 .. 255 and the mean of what is above 0.
    BL_ACTIVATION_UINT8_POS_MEAN_RANGE = 8,
}

/// Which part of the weights a layer has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_shard {
    /// All of them.
    BL_SHARD_NONE = 0,
    /// Some rows: the parts' y, one after another, are the whole y, bit for bit.
    BL_SHARD_ROWS = 1,
    /// Some columns, on which x is given: the sum of the parts' y is the whole y.
    BL_SHARD_COLUMNS = 2,
}

/// What is done to each row of x before anything else, in f32.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_norm {
    BL_NORM_NONE = 0,
    /// (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) * weight + bias.
    BL_NORM_LAYER = 1,
    /// x / sqrt(mean of x^2 + epsilon) * weight + bias.
    BL_NORM_RMS = 2,
}

/// What is done to each output after the bias. A NaN stays a NaN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_epilogue {
    BL_EPILOGUE_NONE = 0,
    /// max(y - epilogue_threshold, 0).
    BL_EPILOGUE_RELU = 1,
    /// max(y, 0)^2.
    BL_EPILOGUE_RELU2 = 2,
    /// y / (1 + exp(-y)).
    BL_EPILOGUE_SILU = 3,
    /// y / 2 * (1 + erf(y / sqrt(2))).
    BL_EPILOGUE_GELU_ERF = 4,
    /// y / 2 * (1 + tanh(sqrt(2 / pi) * (y + 0.044715 y^3))).
    BL_EPILOGUE_GELU_TANH = 5,
}

/// Kind of a metadata value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_meta_kind {
    BL_META_U64 = 0,
    BL_META_I64 = 1,
    BL_META_F64 = 2,
    BL_META_BOOL = 3,
    BL_META_STRING = 4,
    BL_META_ARRAY = 5,
}

/// What a call computes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_op {
    BL_OP_FORWARD = 0,
}

/// How important a log line is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_log_level {
    BL_LOG_ERROR = 1,
    BL_LOG_WARN = 2,
    BL_LOG_INFO = 3,
    BL_LOG_DEBUG = 4,
}

/// What a device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum bl_device_kind {
    BL_DEVICE_CPU = 0,
    BL_DEVICE_CUDA = 1,
}

/// Declares the types of enum arguments and fields as C passes them: any bits, checked on entry.
macro_rules! args {
    ($($name:ident)*) => {$(
        /// An enum of C, of any bits.
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub u32);
    )*};
}
pub(crate) use args;

args! {
    StatusArg
    TypeArg
    ActivationArg
    ShardArg
    NormArg
    EpilogueArg
    MetaKindArg
    OpArg
    LogLevelArg
    DeviceKindArg
}

impl TypeArg {
    /// The type with this number.
    pub fn known(self) -> crate::error::Result<crate::types::Type> {
        crate::types::Type::from_number(self.0).ok_or_else(|| match self.0 {
            0 => crate::error::fail!(Unsupported, "BL_TYPE_AUTO where a type must be named"),
            n => crate::error::fail!(Unsupported, "type {n} is unknown to this library"),
        })
    }
}
