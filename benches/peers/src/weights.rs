//! The weights that everybody multiplies with: formats, made-up matrices in them, and what they stand for.
//!
//! A matrix repeats `PATTERN` rows of made-up values, so that a large one is made quickly; how long a
//! product takes does not depend on the values. What the weights stand for (`reference`) comes from ggml
//! where the format is one of ggml's, so that bitlinear is judged by another implementation.

use half::bf16;
use llama_cpp_sys_2 as sys;

use crate::ours;

/// Rows that repeat.
pub const PATTERN: usize = 64;

/// What the made-up values look like.
#[derive(Clone, Copy, PartialEq)]
pub enum Values {
    /// Normal, deviation 0.02.
    Normal,
    /// -0.02, 0, 0.02.
    Ternary,
    /// -0.02, 0.02.
    Sign,
}

/// A storage format, and which of everybody's own formats goes with it.
#[derive(Clone, Copy)]
pub struct Format {
    pub name: &'static str,
    /// Bits for a weight as the file has it, scales counted.
    pub bits: f64,
    pub values: Values,
    /// bitlinear's type.
    pub ours: u32,
    /// ggml's types that it is compared with; the first is the same format where there is one.
    pub ggml: &'static [u32],
    /// The bytes of the first of them are also bitlinear's.
    pub same_bytes: bool,
    /// candle's type.
    pub candle: Option<candle_core::quantized::GgmlDType>,
    /// onnxruntime's operator.
    pub onnx: Option<crate::onnx::Operator>,
    /// oneDNN's data types: those of x and of the weights.
    pub onednn: &'static [crate::onednn::Kind],
}

/// All formats, in the order of the report.
pub fn formats() -> Vec<Format> {
    use crate::onednn::Kind::{Bf16, F32, S8S8, U8S8};
    use crate::onnx::Operator::{DynamicInt8, NBits4};
    use candle_core::quantized::GgmlDType as C;
    let f = |name, bits, values, ours, ggml: &'static [u32]| Format {
        name,
        bits,
        values,
        ours,
        ggml,
        same_bytes: true,
        candle: None,
        onnx: None,
        onednn: &[],
    };
    use Values::{Normal, Sign, Ternary};
    use ours::ffi::*;
    vec![
        Format {
            same_bytes: false,
            ..f("ternary", 2.0, Ternary, BL_TYPE_TERNARY, &[sys::GGML_TYPE_TQ2_0, sys::GGML_TYPE_TQ1_0])
        },
        f("tq2_0", 2.0625, Ternary, BL_TYPE_TQ2_0, &[sys::GGML_TYPE_TQ2_0]),
        f("tq1_0", 1.6875, Ternary, BL_TYPE_TQ1_0, &[sys::GGML_TYPE_TQ1_0]),
        f("q2_0", 2.25, Ternary, BL_TYPE_Q2_0, &[sys::GGML_TYPE_Q2_0]),
        Format {
            same_bytes: false,
            ..f("pq2_0", 2.125, Ternary, BL_TYPE_PQ2_0, &[sys::GGML_TYPE_TQ2_0, sys::GGML_TYPE_Q2_0])
        },
        Format { same_bytes: false, ..f("ptq1_0", 1.75, Ternary, BL_TYPE_PTQ1_0, &[sys::GGML_TYPE_TQ1_0]) },
        Format { same_bytes: false, ..f("sign", 1.0, Sign, BL_TYPE_BINARY, &[sys::GGML_TYPE_Q1_0]) },
        f("q1_0", 1.125, Sign, BL_TYPE_Q1_0, &[sys::GGML_TYPE_Q1_0]),
        Format {
            same_bytes: false,
            onnx: Some(NBits4),
            candle: Some(C::Q4_0),
            ..f("int4", 5.0, Normal, BL_TYPE_INT4, &[sys::GGML_TYPE_Q4_0])
        },
        Format {
            candle: Some(C::Q4_0),
            onnx: Some(NBits4),
            ..f("q4_0", 4.5, Normal, BL_TYPE_Q4_0, &[sys::GGML_TYPE_Q4_0])
        },
        Format { candle: Some(C::Q4_1), ..f("q4_1", 5.0, Normal, BL_TYPE_Q4_1, &[sys::GGML_TYPE_Q4_1]) },
        Format { candle: Some(C::Q2K), ..f("q2_k", 2.625, Normal, BL_TYPE_Q2_K, &[sys::GGML_TYPE_Q2_K]) },
        Format { candle: Some(C::Q3K), ..f("q3_k", 3.4375, Normal, BL_TYPE_Q3_K, &[sys::GGML_TYPE_Q3_K]) },
        Format { candle: Some(C::Q4K), ..f("q4_k", 4.5, Normal, BL_TYPE_Q4_K, &[sys::GGML_TYPE_Q4_K]) },
        Format { candle: Some(C::Q5K), ..f("q5_k", 5.5, Normal, BL_TYPE_Q5_K, &[sys::GGML_TYPE_Q5_K]) },
        Format { candle: Some(C::Q6K), ..f("q6_k", 6.5625, Normal, BL_TYPE_Q6_K, &[sys::GGML_TYPE_Q6_K]) },
        Format {
            onednn: &[U8S8, S8S8],
            onnx: Some(DynamicInt8),
            same_bytes: false,
            ..f("int8", 8.0, Normal, BL_TYPE_INT8, &[])
        },
        Format { candle: Some(C::Q8_0), ..f("q8_0", 8.5, Normal, BL_TYPE_Q8_0, &[sys::GGML_TYPE_Q8_0]) },
        f("f16", 16.0, Normal, BL_TYPE_F16, &[sys::GGML_TYPE_F16]),
        Format { onednn: &[Bf16], ..f("bf16", 16.0, Normal, BL_TYPE_BF16, &[sys::GGML_TYPE_BF16]) },
        Format { onednn: &[F32], ..f("f32", 32.0, Normal, BL_TYPE_F32, &[sys::GGML_TYPE_F32]) },
    ]
}

/// Pseudo-random numbers, the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in 0 .. 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normal, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let (a, b) = (self.next().max(1e-300), self.next());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}

/// A made-up matrix in a format.
pub struct Weights {
    pub format: Format,
    pub out_features: usize,
    pub in_features: usize,
    /// `PATTERN` rows of floats.
    pub floats: Vec<f32>,
}

impl Weights {
    pub fn new(format: Format, out_features: usize, in_features: usize) -> Weights {
        let mut random = Random::new(in_features as u64);
        let floats = (0..PATTERN * in_features)
            .map(|_| match format.values {
                Values::Normal => 0.02 * random.normal(),
                Values::Ternary => 0.02 * ((random.next() * 3.0).floor() as f32 - 1.0),
                Values::Sign => 0.02 * (2.0 * (random.next() * 2.0).floor() as f32 - 1.0),
            })
            .collect();
        Weights { format, out_features, in_features, floats }
    }

    /// The whole matrix in floats.
    pub fn all_floats(&self) -> Vec<f32> {
        repeat(&self.floats, self.out_features)
    }

    /// The pattern in one of ggml's types, and what it stands for.
    pub fn ggml(&self, ty: u32) -> (Vec<u8>, Vec<f32>) {
        // SAFETY: the sizes are those of PATTERN rows of whole blocks.
        unsafe {
            let row = sys::ggml_row_size(ty, self.in_features as i64);
            let mut bytes = vec![0u8; row * PATTERN];
            let written = sys::ggml_quantize_chunk(
                ty,
                self.floats.as_ptr(),
                bytes.as_mut_ptr().cast(),
                0,
                PATTERN as i64,
                self.in_features as i64,
                std::ptr::null(),
            );
            assert_eq!(written, bytes.len());
            let mut floats = vec![0f32; self.floats.len()];
            if ty == sys::GGML_TYPE_F32 {
                floats.copy_from_slice(&self.floats);
            } else {
                let traits = &*sys::ggml_get_type_traits(ty);
                let to_float = traits.to_float.expect("a type that can be read");
                to_float(bytes.as_ptr().cast(), floats.as_mut_ptr(), floats.len() as i64);
            }
            (bytes, floats)
        }
    }

    /// Matrices that a ring needs so that each comes from DRAM when its turn is there.
    pub fn copies(&self, ring_bytes: usize) -> usize {
        let bytes = self.out_features as f64 * self.in_features as f64 * self.format.bits / 8.0;
        ((ring_bytes as f64 / bytes).ceil() as usize).max(2)
    }
}

/// Rows of a pattern, repeated to a whole matrix.
pub fn repeat<T: Copy>(pattern: &[T], rows: usize) -> Vec<T> {
    let row = pattern.len() / PATTERN;
    let mut all = Vec::with_capacity(rows * row);
    while all.len() < rows * row {
        let left = rows * row - all.len();
        all.extend_from_slice(&pattern[..left.min(pattern.len())]);
    }
    all
}

/// What bf16 makes of floats.
pub fn rounded(floats: &[f32]) -> Vec<f32> {
    floats.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}
