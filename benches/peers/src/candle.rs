//! candle's QMatMul. x is quantised inside; y is a new tensor each time. Its threads are those of the
//! environment of the process (CANDLE_NUM_THREADS, RAYON_NUM_THREADS).

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};
use llama_cpp_sys_2 as sys;

use crate::contestant::{Contestant, Windows};
use crate::weights::{Weights, repeat};

/// A ring of products.
pub struct Candle {
    name: String,
    products: Vec<QMatMul>,
    reference: Vec<f32>,
    windows: Windows,
    x: Option<Tensor>,
    y: Option<Tensor>,
}

/// ggml's number of a type that both have.
fn ggml_type(ty: GgmlDType) -> u32 {
    match ty {
        GgmlDType::Q4_0 => sys::GGML_TYPE_Q4_0,
        GgmlDType::Q4_1 => sys::GGML_TYPE_Q4_1,
        GgmlDType::Q8_0 => sys::GGML_TYPE_Q8_0,
        GgmlDType::Q2K => sys::GGML_TYPE_Q2_K,
        GgmlDType::Q3K => sys::GGML_TYPE_Q3_K,
        GgmlDType::Q4K => sys::GGML_TYPE_Q4_K,
        GgmlDType::Q5K => sys::GGML_TYPE_Q5_K,
        GgmlDType::Q6K => sys::GGML_TYPE_Q6_K,
        other => panic!("candle: {other:?} is not measured"),
    }
}

impl Candle {
    pub fn new(weights: &Weights, ty: GgmlDType, copies: usize) -> Candle {
        let (n, k) = (weights.out_features, weights.in_features);
        let (pattern, reference) = weights.ggml(ggml_type(ty));
        let bytes = repeat(&pattern, n);
        let products = (0..copies)
            .map(|_| {
                let storage = QStorage::from_data(Cow::Borrowed(&bytes), &Device::Cpu, ty).expect("candle");
                let tensor = QTensor::new(storage, (n, k)).expect("candle");
                QMatMul::from_qtensor(tensor).expect("candle")
            })
            .collect();
        let name = format!("candle {}", format!("{ty:?}").to_lowercase());
        Candle { name, products, reference, windows: Windows::default(), x: None, y: None }
    }
}

impl Contestant for Candle {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows) {
        self.x = Some(Tensor::from_slice(x, (m, x.len() / m), &Device::Cpu).expect("candle"));
        self.windows = windows.clone();
    }

    fn run(&mut self, window: usize) {
        let x = self.x.as_ref().expect("prepared");
        for &matrix in &self.windows[window] {
            self.y = Some(self.products[matrix].forward(x).expect("candle"));
        }
    }

    fn output(&mut self) -> Vec<f32> {
        self.y.as_ref().expect("run").flatten_all().and_then(|t| t.to_vec1()).expect("candle")
    }

    fn reference(&self) -> &[f32] {
        &self.reference
    }
}
