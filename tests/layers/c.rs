//! The C functions, called as a Rust test likes them.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use bitlinear::capi::context::bl_free;
pub(crate) use bitlinear::capi::enums::*;
use bitlinear::capi::forward::{bl_forward, bl_forward_many};
use bitlinear::capi::layer::{bl_layer_describe, bl_layer_open, bl_layer_read};
use bitlinear::capi::model::{bl_load, bl_load_memory, bl_model_describe, bl_model_layer};
pub(crate) use bitlinear::capi::types::*;

/// The path of a golden file.
pub(crate) fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", "golden", name].iter().collect()
}

/// Status and text of a failure.
#[derive(Debug, PartialEq)]
pub(crate) struct Failure(pub(crate) bl_status, pub(crate) String);

/// The library's panic hook is silent, and inside this program it is the tests' too: they want to be
/// heard. Installed at the first call, taken away again here.
fn speak() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: NULL is allowed.
        unsafe { bl_free(null_mut()) };
        drop(std::panic::take_hook());
    });
}

/// Runs one C function.
#[track_caller]
fn call(function: impl FnOnce(*mut bl_error) -> bl_status) -> Result<(), Failure> {
    speak();
    let mut error = bl_error { status: bl_status::BL_ERROR_INTERNAL, message: [0x55; 252] };
    let status = function(&mut error);
    assert_eq!(status, error.status);
    // SAFETY: the message ends with a NUL.
    let text = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().unwrap().to_owned();
    assert_eq!(status == bl_status::BL_OK, text.is_empty(), "{text}");
    assert_ne!(status, bl_status::BL_ERROR_INTERNAL, "{text}");
    if status == bl_status::BL_OK { Ok(()) } else { Err(Failure(status, text)) }
}

/// An options or info struct with its size.
macro_rules! sized {
    ($t:ident) => {{
        // SAFETY: all zeros are a value of it.
        let mut value: $t = unsafe { std::mem::zeroed() };
        value.struct_size = size_of::<$t>() as u32;
        value
    }};
}

/// Options of a layer: the defaults.
pub(crate) fn options() -> bl_layer_options {
    sized!(bl_layer_options)
}

/// Options with flags.
pub(crate) fn flags(flags: u32) -> bl_layer_options {
    bl_layer_options { flags, ..options() }
}

/// Options with a type.
pub(crate) fn of_type(ty: bl_type) -> bl_layer_options {
    bl_layer_options { r#type: TypeArg(ty as u32), ..options() }
}

/// Options with an activation.
pub(crate) fn activation(activation: bl_activation) -> bl_layer_options {
    bl_layer_options { activation: ActivationArg(activation as u32), ..options() }
}

pub(crate) struct Model(*mut bl_model);
#[derive(Debug)]
pub(crate) struct Layer(*mut bl_layer);

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

/// A layer's info with its texts as Rust has them.
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) info: bl_model_layer_info,
}

/// The text, or "" for NULL.
pub(crate) fn text(text: *const std::ffi::c_char) -> String {
    // SAFETY: NULL or a string of a living model.
    if text.is_null() { String::new() } else { unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned() }
}

impl Model {
    pub(crate) fn path(path: impl Into<PathBuf>) -> Result<Model, Failure> {
        let path = CString::new(path.into().to_str().unwrap()).unwrap();
        let mut model = null_mut();
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_load(null(), path.as_ptr(), null(), &mut model, error) })?;
        Ok(Model(model))
    }

    pub(crate) fn memory(bytes: &[u8], flags: u32) -> Result<Model, Failure> {
        let options = bl_load_options { flags, ..sized!(bl_load_options) };
        let (data, size) = (bytes.as_ptr().cast(), bytes.len());
        let mut model = null_mut();
        // SAFETY: valid pointers; a caller who borrows keeps the bytes.
        call(|error| unsafe { bl_load_memory(null(), data, size, &options, &mut model, error) })?;
        Ok(Model(model))
    }

    pub(crate) fn golden(name: &str) -> Model {
        Model::path(golden(name)).unwrap()
    }

    pub(crate) fn layer_count(&self) -> i64 {
        let mut info = sized!(bl_model_info);
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_model_describe(self.0, &mut info, error) }).unwrap();
        info.layers
    }

    fn listed(&self, name: *const std::ffi::c_char, index: i64) -> Result<Listed, Failure> {
        let mut info = sized!(bl_model_layer_info);
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_model_layer(self.0, name, index, &mut info, error) })?;
        Ok(Listed { name: text(info.name), info })
    }

    /// All layers, by index.
    pub(crate) fn layers(&self) -> Vec<Listed> {
        let all: Vec<Listed> =
            (0..).map(|i| self.listed(null(), i)).take_while(Result::is_ok).flatten().collect();
        assert_eq!(all.len() as i64, self.layer_count());
        let past = self.listed(null(), all.len() as i64).err().unwrap();
        assert_eq!(past.0, bl_status::BL_ERROR_NOT_FOUND);
        all
    }

    pub(crate) fn named(&self, name: &str) -> Result<Listed, Failure> {
        let name = CString::new(name).unwrap();
        self.listed(name.as_ptr(), -1)
    }

    pub(crate) fn open(&self, name: &str, options: &bl_layer_options) -> Result<Layer, Failure> {
        let name = CString::new(name).unwrap();
        let mut layer = null_mut();
        // SAFETY: valid pointers.
        let opened =
            call(|error| unsafe { bl_layer_open(self.0, name.as_ptr(), options, &mut layer, error) });
        assert_eq!(opened.is_err(), layer.is_null());
        opened.map(|()| Layer(layer))
    }

    /// The failure of opening a layer.
    #[track_caller]
    pub(crate) fn refused(&self, name: &str, options: &bl_layer_options) -> Failure {
        match self.open(name, options) {
            Ok(_) => panic!("{name} was opened"),
            Err(failure) => failure,
        }
    }
}

impl Layer {
    pub(crate) fn info(&self) -> bl_layer_info {
        let mut info = sized!(bl_layer_info);
        // SAFETY: valid pointers.
        call(|error| unsafe { bl_layer_describe(self.0, &mut info, error) }).unwrap();
        info
    }

    /// Outputs and inputs.
    pub(crate) fn shape(&self) -> [usize; 2] {
        let info = self.info();
        [info.out_features as usize, info.in_features as usize]
    }

    /// All weights, dequantised.
    pub(crate) fn read(&self) -> Vec<f32> {
        let [rows, columns] = self.shape();
        let mut weights = vec![f32::NAN; rows * columns];
        let (dst, ty) = (weights.as_mut_ptr().cast(), TypeArg(bl_type::BL_TYPE_F32 as u32));
        // SAFETY: the destination has the layer's rows.
        call(|error| unsafe { bl_layer_read(self.0, 0, rows as i64, dst, ty, 0, error) }).unwrap();
        weights
    }

    /// y of the rows of x.
    pub(crate) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let [rows, columns] = self.shape();
        let m = x.len() / columns;
        assert_eq!(m * columns, x.len());
        let mut y = vec![f32::NAN; m * rows];
        let (from, to) = (x.as_ptr().cast(), y.as_mut_ptr().cast());
        let ty = TypeArg(bl_type::BL_TYPE_F32 as u32);
        call(|error| {
            // SAFETY: x and y have m rows.
            unsafe { bl_forward(self.0, m as i64, from, ty, 0, to, ty, 0, null(), error) }
        })
        .unwrap();
        y
    }
}

/// y of several layers on the rows of x, in memory that held `old`.
pub(crate) fn forward_many(layers: &[Layer], x: &[f32], old: f32, flags: u32) -> Vec<Vec<f32>> {
    let m = x.len() / layers[0].shape()[1];
    let mut ys: Vec<Vec<f32>> = layers.iter().map(|layer| vec![old; m * layer.shape()[0]]).collect();
    let handles: Vec<*const bl_layer> = layers.iter().map(|layer| layer.0.cast_const()).collect();
    let to: Vec<_> = ys.iter_mut().map(|y| y.as_mut_ptr().cast()).collect();
    let mut run = sized!(bl_run_options);
    run.flags = flags;
    let (count, m, from) = (layers.len(), m as i64, x.as_ptr().cast());
    let ty = TypeArg(bl_type::BL_TYPE_F32 as u32);
    call(|error| {
        // SAFETY: x and every y have m rows.
        unsafe {
            bl_forward_many(handles.as_ptr(), count, m, from, ty, 0, to.as_ptr(), ty, null(), &run, error)
        }
    })
    .unwrap();
    ys
}

/// Checks y of float activations: within 1e-5 of the sum of magnitudes of the true product.
#[track_caller]
pub(crate) fn check_float(y: &[f32], x: &[f32], weights: &[f32], bias: Option<&[f32]>, what: &str) {
    check_product(y, x, weights, bias, what, |x, w| 1e-5 * (x as f64 * w as f64).abs());
}

/// Checks y of int8 activations loosely: each x is off by at most half a step of its row's scale.
#[track_caller]
pub(crate) fn check_int8(y: &[f32], x: &[f32], weights: &[f32], bias: Option<&[f32]>, what: &str) {
    let most = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) as f64;
    check_product(y, x, weights, bias, what, |_, w| w.abs() as f64 * most * (0.502 / 127.0));
}

#[track_caller]
fn check_product(
    y: &[f32],
    x: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    what: &str,
    bound: impl Fn(f32, f32) -> f64,
) {
    let m = (1..=x.len()).find(|m| y.len() * x.len() == weights.len() * m * m).expect("sizes");
    let (columns, rows) = (x.len() / m, y.len() / m);
    for (r, x) in x.chunks_exact(columns).enumerate() {
        for (o, w) in weights.chunks_exact(columns).enumerate() {
            let bias = bias.map_or(0.0, |b| b[o] as f64);
            let want: f64 = x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum::<f64>() + bias;
            let bound: f64 = x.iter().zip(w).map(|(x, w)| bound(*x, *w)).sum::<f64>() + 1e-6 * bias.abs();
            let got = y[r * rows + o] as f64;
            assert!((got - want).abs() <= bound + 1e-30, "{what}: y[{r}][{o}] is {got}, not {want}");
        }
    }
}
