//! onnxruntime, from the shared library in its Python wheel (ONNXRUNTIME names it): MatMulNBits, and
//! DynamicQuantizeLinear with MatMulInteger. x is quantised inside both. Each matrix is a model of its own
//! (onnxruntime runs all of a graph, whatever outputs are asked for), and all use one pool of threads; what starting
//! a graph costs, a few microseconds, is in the time.

use std::sync::OnceLock;

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ort::value::{Tensor, TensorRef};

use crate::contestant::{Contestant, Windows};
use crate::weights::{PATTERN, Weights, repeat};

/// What multiplies.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Operator {
    /// MatMulNBits, 4 bits, blocks of 32, accuracy level 4 (int8 products).
    NBits4,
    /// DynamicQuantizeLinear, MatMulInteger, Cast, Mul, which onnxruntime fuses.
    DynamicInt8,
}

/// One for the process, with its number of threads.
fn environment(threads: usize) -> Option<&'static Environment> {
    static ENVIRONMENT: OnceLock<Option<Environment>> = OnceLock::new();
    let make = || {
        let path = std::env::var("ONNXRUNTIME").ok().filter(|p| !p.is_empty())?;
        let builder = ort::init_from(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let pool = GlobalThreadPoolOptions::default().with_intra_threads(threads).expect("onnxruntime");
        Some(builder.with_global_thread_pool(pool).with_telemetry(false).build().expect("onnxruntime"))
    };
    ENVIRONMENT.get_or_init(make).as_ref()
}

/// The version in the name of the library's file.
pub fn version() -> Option<String> {
    let path = std::env::var("ONNXRUNTIME").ok().filter(|p| !p.is_empty())?;
    Some(path.rsplit_once(".so.").map_or(path.clone(), |(_, version)| version.to_string()))
}

/// A ring of models.
pub struct Onnx {
    operator: Operator,
    sessions: Vec<Session>,
    reference: Vec<f32>,
    n: usize,
    m: usize,
    x: Vec<f32>,
    windows: Windows,
    options: Option<RunOptions<HasSelectedOutputs>>,
    y: Vec<f32>,
    keep: bool,
}

impl Onnx {
    /// None where no library was named.
    pub fn new(weights: &Weights, operator: Operator, copies: usize, threads: usize) -> Option<Onnx> {
        let environment = environment(threads)?;
        let (model, reference) = model(weights, operator);
        let session = |_| {
            Session::builder(environment)
                .and_then(|mut b| b.commit_from_memory(&model))
                .unwrap_or_else(|e| panic!("onnxruntime: {e}"))
        };
        Some(Onnx {
            operator,
            sessions: (0..copies).map(session).collect(),
            reference,
            n: weights.out_features,
            m: 0,
            x: Vec::new(),
            windows: Windows::default(),
            options: None,
            y: Vec::new(),
            keep: false,
        })
    }
}

impl Contestant for Onnx {
    fn name(&self) -> &str {
        match self.operator {
            Operator::NBits4 => "onnxruntime MatMulNBits",
            Operator::DynamicInt8 => "onnxruntime MatMulInteger",
        }
    }

    fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows) {
        (self.m, self.x, self.windows) = (m, x.to_vec(), windows.clone());
        let y = Tensor::<f32>::from_array(([m, self.n], vec![0f32; m * self.n])).expect("a tensor");
        let outputs = OutputSelector::no_default().with("y").preallocate("y", y);
        self.options = Some(RunOptions::new().expect("options").with_outputs(outputs));
    }

    fn run(&mut self, window: usize) {
        let (m, k) = (self.m, self.x.len() / self.m);
        let options = self.options.as_ref().expect("prepared");
        for &matrix in &self.windows[window] {
            let x = TensorRef::from_array_view(([m, k], &self.x[..])).expect("x");
            let outputs = self.sessions[matrix]
                .run_with_options(ort::inputs![x], options)
                .unwrap_or_else(|e| panic!("onnxruntime: {e}"));
            if self.keep {
                self.y = outputs["y"].try_extract_tensor::<f32>().expect("y").1.to_vec();
            }
        }
    }

    fn output(&mut self) -> Vec<f32> {
        self.keep = true;
        self.run(0);
        self.keep = false;
        std::mem::take(&mut self.y)
    }

    fn reference(&self) -> &[f32] {
        &self.reference
    }
}

/// Fields of the protocol buffers that ONNX files are.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
    fn number(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }
    fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
    fn text(self, field: u64, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }
    fn message(self, field: u64, value: Message) -> Message {
        self.bytes(field, &value.0)
    }
}

const FLOAT: u64 = 1;
const UINT8: u64 = 2;
const INT8: u64 = 3;

/// TensorProto.
fn tensor(name: &str, ty: u64, shape: &[usize], data: &[u8]) -> Message {
    let dims = shape.iter().fold(Message::default(), |message, &d| message.number(1, d as u64));
    dims.number(2, ty).text(8, name).bytes(9, data)
}

/// NodeProto with integer attributes.
fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, usize)]) -> Message {
    let mut message = inputs.iter().fold(Message::default(), |m, input| m.text(1, input));
    message = outputs.iter().fold(message, |m, output| m.text(2, output));
    message = message.text(4, op);
    for &(name, value) in attributes {
        let attribute = Message::default().text(1, name).number(3, value as u64).number(20, 2);
        message = message.message(5, attribute);
    }
    message.text(7, domain)
}

/// ValueInfoProto of a matrix of floats.
fn value(name: &str, columns: usize) -> Message {
    let rows = Message::default().text(2, "m");
    let shape = Message::default().message(1, rows).message(1, Message::default().number(1, columns as u64));
    let ty = Message::default().message(1, Message::default().number(1, FLOAT).message(2, shape));
    Message::default().text(1, name).message(2, ty)
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A model of one product, and what its weights stand for.
fn model(weights: &Weights, operator: Operator) -> (Vec<u8>, Vec<f32>) {
    let (n, k) = (weights.out_features, weights.in_features);
    let mut graph =
        Message::default().text(2, "product").message(11, value("x", k)).message(12, value("y", n));
    let reference;
    match operator {
        Operator::NBits4 => {
            let (bytes, floats) = weights.ggml(llama_cpp_sys_2::GGML_TYPE_Q4_0);
            reference = floats;
            // ggml's blocks of 32: an f16 scale, then 16 bytes with codes j and j + 16; here neighbours
            // share a byte. In both the zero point is 8.
            let (mut codes, mut scales) = (Vec::new(), Vec::new());
            for block in bytes.chunks_exact(18) {
                scales.push(half::f16::from_le_bytes([block[0], block[1]]).to_f32());
                let code = |j: usize| if j < 16 { block[2 + j] & 15 } else { block[2 + j - 16] >> 4 };
                codes.extend((0..16).map(|j| code(2 * j) | code(2 * j + 1) << 4));
            }
            let attributes = [("K", k), ("N", n), ("bits", 4), ("block_size", 32), ("accuracy_level", 4)];
            graph = graph
                .message(5, tensor("w", UINT8, &[n, k / 32, 16], &repeat(&codes, n)))
                .message(5, tensor("s", FLOAT, &[n * k / 32], &float_bytes(&repeat(&scales, n))))
                .message(1, node("MatMulNBits", "com.microsoft", &["x", "w", "s"], &["y"], &attributes));
        }
        Operator::DynamicInt8 => {
            let largest = weights.floats.iter().fold(0f32, |a, v| a.max(v.abs()));
            let scale = largest / 127.0;
            let codes: Vec<i8> = weights.floats.iter().map(|v| (v / scale).round_ties_even() as i8).collect();
            reference = codes.iter().map(|&c| f32::from(c) * scale).collect();
            let mut columns = vec![0u8; n * k];
            for i in 0..n {
                for (j, &code) in codes[i % PATTERN * k..][..k].iter().enumerate() {
                    columns[j * n + i] = code as u8;
                }
            }
            graph = graph
                .message(5, tensor("scale", FLOAT, &[], &scale.to_le_bytes()))
                .message(5, tensor("w", INT8, &[k, n], &columns))
                .message(1, node("DynamicQuantizeLinear", "", &["x"], &["q", "sx", "zx"], &[]))
                .message(1, node("MatMulInteger", "", &["q", "w", "zx"], &["sum"], &[]))
                .message(1, node("Cast", "", &["sum"], &["float"], &[("to", FLOAT as usize)]))
                .message(1, node("Mul", "", &["sx", "scale"], &["both"], &[]))
                .message(1, node("Mul", "", &["float", "both"], &["y"], &[]));
        }
    }
    let opset = |domain: &str, version| Message::default().text(1, domain).number(2, version);
    let model = Message::default()
        .number(1, 8)
        .message(8, opset("", 17))
        .message(8, opset("com.microsoft", 1))
        .message(7, graph);
    (model.0, reference)
}
