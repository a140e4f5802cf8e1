//! The element and storage formats of matrices, as the C header's `bl_type` numbers them.

use std::ffi::CStr;

/// One row of the table behind `bl_type_describe`.
#[derive(Clone, Copy, Debug)]
pub struct TypeInfo {
    /// The format.
    pub ty: Type,
    /// The name its users know, with the NUL that C wants.
    name: &'static str,
    /// Weights in a block (1 where there are no blocks; the tensor is the block where it is 0).
    pub block: u32,
    /// Bytes of a block; 0 where the bytes of a matrix are no multiple of a block's.
    pub block_bytes: u32,
}

macro_rules! types {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// Element or storage format of a matrix. Numbers below 16 are plain elements; 100 + id are
        /// ggml's block formats under ggml's own ids; the others are formats of other tools.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Type { $($(#[$doc])* $variant = $number,)* }

        /// All types, in the order of their numbers.
        pub const TYPES: &[TypeInfo] = &[
            $(TypeInfo { ty: Type::$variant, name: concat!($name, "\0"), block: $block, block_bytes: $bytes },)*
        ];
    };
}

types! {
    /// 32-bit IEEE float.
    F32 = 1, "f32", 1, 4;
    /// 16-bit IEEE float.
    F16 = 2, "f16", 1, 2;
    /// bfloat16: the upper half of an f32.
    Bf16 = 3, "bf16", 1, 2;
    /// Signed byte.
    I8 = 4, "i8", 1, 1;
    /// Unsigned byte.
    U8 = 5, "u8", 1, 1;
    /// 32-bit signed integer.
    I32 = 6, "i32", 1, 4;
    /// 16-bit signed integer.
    I16 = 7, "i16", 1, 2;
    /// 64-bit signed integer.
    I64 = 8, "i64", 1, 8;
    /// 64-bit IEEE float.
    F64 = 9, "f64", 1, 8;
    /// 32-bit unsigned integer.
    U32 = 10, "u32", 1, 4;
    /// 16-bit unsigned integer (listed, not computed).
    U16 = 11, "u16", 1, 2;
    /// 64-bit unsigned integer (listed, not computed).
    U64 = 12, "u64", 1, 8;
    /// Truth value in a byte (listed, not computed).
    Bool = 13, "bool", 1, 1;
    /// 8-bit float, 4 bits of exponent (listed, not computed).
    F8E4M3 = 14, "f8_e4m3", 1, 1;
    /// 8-bit float, 5 bits of exponent (listed, not computed).
    F8E5M2 = 15, "f8_e5m2", 1, 1;
    /// Ternary, 2 bits, one f32 scale for the tensor (or one for each base): cortex.
    Ternary = 16, "ternary", 0, 0;
    /// Signs, 1 bit, one f32 scale: burn_dragon Sign1.
    Binary = 17, "binary", 0, 0;
    /// Symmetric 4-bit groups of any length: cortex.
    Int4 = 18, "int4", 0, 0;
    /// Signed bytes, one f32 scale: burn_dragon Int8.
    Int8 = 19, "int8", 0, 0;
    /// Hugging Face BitNet b1.58, four row blocks a byte.
    BitnetHf = 20, "bitnet-hf", 0, 0;
    /// Ternary in flat blocks of 256: ruvllm.
    TernaryBlock = 21, "ternary-block", 256, 0;
    /// Ternary, codes q + 1 packed flat, one f32 scale: burn_dragon Ternary2.
    Ternary2 = 22, "ternary2", 0, 0;
    /// GPTQ, 4 bits.
    Gptq = 23, "gptq", 0, 0;
    /// AWQ (gemm order), 4 bits.
    Awq = 24, "awq", 0, 0;
    /// compressed-tensors pack-quantized, 4 bits.
    CompressedTensors = 25, "compressed-tensors", 0, 0;
    /// MLX affine, 4 bits.
    Mlx = 26, "mlx", 0, 0;
    /// ruvllm's GGUF ternary blocks of 256 weights in 66 bytes (type id 30 under its own architecture).
    T158 = 27, "t158", 256, 66;
    /// I2_S as written on ARM: blocks of 64.
    I2SArm = 28, "i2_s-arm", 0, 0;
    /// I2_S as written by x86 builds without ACT_PARALLEL: four rows interleaved.
    I2SRows = 29, "i2_s-rows", 0, 0;
    /// Q2_0 as older files have it: blocks of 128 in 34 bytes under the id of Q2_0.
    Q2_0Legacy = 30, "q2_0-legacy", 128, 34;
    /// An element type of a file that has a size but no name here (listed, not computed).
    Other = 31, "other", 0, 0;
    /// A layer of bitlinear's own file: panels, as kernels read them.
    Panels = 32, "panels", 0, 0;
    /// ggml Q4_0.
    Q4_0 = 102, "q4_0", 32, 18;
    /// ggml Q4_1.
    Q4_1 = 103, "q4_1", 32, 20;
    /// ggml Q5_0.
    Q5_0 = 106, "q5_0", 32, 22;
    /// ggml Q5_1.
    Q5_1 = 107, "q5_1", 32, 24;
    /// ggml Q8_0.
    Q8_0 = 108, "q8_0", 32, 34;
    /// ggml Q2_K.
    Q2K = 110, "q2_k", 256, 84;
    /// ggml Q3_K.
    Q3K = 111, "q3_k", 256, 110;
    /// ggml Q4_K.
    Q4K = 112, "q4_k", 256, 144;
    /// ggml Q5_K.
    Q5K = 113, "q5_k", 256, 176;
    /// ggml Q6_K.
    Q6K = 114, "q6_k", 256, 210;
    /// ggml IQ2_XXS (recognised, not decoded).
    Iq2Xxs = 116, "iq2_xxs", 256, 66;
    /// ggml IQ2_XS (recognised, not decoded).
    Iq2Xs = 117, "iq2_xs", 256, 74;
    /// ggml IQ3_XXS (recognised, not decoded).
    Iq3Xxs = 118, "iq3_xxs", 256, 98;
    /// ggml IQ1_S.
    Iq1S = 119, "iq1_s", 256, 50;
    /// ggml IQ4_NL.
    Iq4Nl = 120, "iq4_nl", 32, 18;
    /// ggml IQ3_S (recognised, not decoded).
    Iq3S = 121, "iq3_s", 256, 110;
    /// ggml IQ2_S (recognised, not decoded).
    Iq2S = 122, "iq2_s", 256, 82;
    /// ggml IQ4_XS.
    Iq4Xs = 123, "iq4_xs", 256, 136;
    /// ggml IQ1_M (recognised, not decoded).
    Iq1M = 129, "iq1_m", 256, 56;
    /// ggml TQ1_0.
    Tq1_0 = 134, "tq1_0", 256, 54;
    /// ggml TQ2_0.
    Tq2_0 = 135, "tq2_0", 256, 66;
    /// bitnet.cpp I2_S, blocks of 128 (the x86 default and every published file).
    I2S = 136, "i2_s", 0, 0;
    /// bitnet.cpp TL1 (recognised, not decoded: the file does not hold its tiling).
    Tl1 = 138, "tl1", 0, 0;
    /// ggml MXFP4.
    Mxfp4 = 139, "mxfp4", 32, 17;
    /// ggml NVFP4 (recognised, not decoded).
    Nvfp4 = 140, "nvfp4", 64, 36;
    /// ggml Q1_0.
    Q1_0 = 141, "q1_0", 128, 18;
    /// ggml Q2_0, blocks of 64.
    Q2_0 = 142, "q2_0", 64, 18;
    /// bitnet.cpp TL2 (recognised, not decoded: the file does not hold its tiling).
    Tl2 = 150, "tl2", 0, 0;
    /// PrismML PQ2_0.
    Pq2_0 = 242, "pq2_0", 128, 34;
    /// PrismML PTQ1_0.
    Ptq1_0 = 243, "ptq1_0", 128, 28;
}

impl TypeInfo {
    /// The name its users know.
    pub fn name(&self) -> &'static str {
        &self.name[..self.name.len() - 1]
    }

    /// The same for C.
    pub fn c_name(&self) -> &'static CStr {
        CStr::from_bytes_until_nul(self.name.as_bytes()).unwrap_or(c"")
    }
}

impl Type {
    /// The type of that number, if there is one.
    pub fn from_number(number: u32) -> Option<Type> {
        TYPES.iter().find(|t| t.ty as u32 == number).map(|t| t.ty)
    }

    /// The row of the table for this type.
    pub fn info(self) -> &'static TypeInfo {
        // Every variant has a row: both come from the same macro lines.
        TYPES.iter().find(|t| t.ty == self).unwrap_or(&TYPES[0])
    }

    /// The name its users know.
    pub fn name(self) -> &'static str {
        self.info().name()
    }

    /// Whether it is a plain element type (no blocks, no scales).
    pub fn is_plain(self) -> bool {
        (self as u32) < 16
    }
}
