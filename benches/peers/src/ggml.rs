//! ggml's mul_mat, as llama.cpp runs it: plain tensors, and those of its repacking buffer.
//!
//! A window is one graph, as a model is one graph: what starting a graph costs is shared. x is quantised
//! inside each mul_mat; all products are written to the same place.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;

use crate::contestant::{Contestant, Windows};
use crate::weights::{Weights, repeat};

/// A ring of tensors.
pub struct Ggml {
    name: String,
    backend: sys::ggml_backend_t,
    context: *mut sys::ggml_context,
    buffer: sys::ggml_backend_buffer_t,
    tensors: Vec<*mut sys::ggml_tensor>,
    reference: Vec<f32>,
    call: Option<Call>,
}

/// The graphs for one m.
struct Call {
    context: *mut sys::ggml_context,
    buffer: sys::ggml_backend_buffer_t,
    graphs: Vec<*mut sys::ggml_cgraph>,
    y: *mut sys::ggml_tensor,
}

fn context(tensors: usize, graphs: usize, nodes: usize) -> *mut sys::ggml_context {
    // SAFETY: parameters by value; the memory is ggml's.
    unsafe {
        let graphs = graphs * (sys::ggml_graph_overhead_custom(2 * nodes + 8, false) + 256);
        let mem_size = (tensors + 8) * sys::ggml_tensor_overhead() + graphs + 4096;
        sys::ggml_init(sys::ggml_init_params { mem_size, mem_buffer: null_mut(), no_alloc: true })
    }
}

/// The buffer type that rearranges weights for the kernels of this CPU.
fn repack() -> Option<sys::ggml_backend_buffer_type_t> {
    type Extra = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
    // SAFETY: ggml's own way to its extra buffer types; the list ends with NULL.
    unsafe {
        let device = sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU);
        let registry = sys::ggml_backend_dev_backend_reg(device);
        let name = c"ggml_backend_dev_get_extra_bufts";
        let address = sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr());
        if address.is_null() {
            return None;
        }
        let extra = std::mem::transmute::<*mut c_void, Extra>(address);
        let mut list = extra(device);
        while !list.is_null() && !(*list).is_null() {
            let name = CStr::from_ptr(sys::ggml_backend_buft_name(*list));
            if name == c"CPU_REPACK" {
                return Some(*list);
            }
            list = list.add(1);
        }
        None
    }
}

/// ggml says what it does with every tensor; nobody wants to know.
pub fn be_silent() {
    unsafe extern "C" fn nothing(_: sys::ggml_log_level, _: *const c_char, _: *mut c_void) {}
    // SAFETY: a function that does nothing.
    unsafe { sys::ggml_log_set(Some(nothing), null_mut()) };
}

/// The version of ggml.
pub fn version() -> String {
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(sys::ggml_version()) }.to_string_lossy().into_owned()
}

impl Ggml {
    /// None where ggml has no rearranged form of the type on this CPU.
    pub fn new(weights: &Weights, ty: u32, copies: usize, threads: usize, repacked: bool) -> Option<Ggml> {
        let (n, k) = (weights.out_features, weights.in_features);
        let kind = if repacked { Some(repack()?) } else { None };
        // SAFETY: tensors of the sizes that ggml was told; data of as many bytes.
        unsafe {
            let backend = sys::ggml_backend_cpu_init();
            sys::ggml_backend_cpu_set_n_threads(backend, threads as i32);
            let kind = kind.unwrap_or_else(|| sys::ggml_backend_cpu_buffer_type());
            let ctx = context(copies, 0, 0);
            let tensors: Vec<_> =
                (0..copies).map(|_| sys::ggml_new_tensor_2d(ctx, ty, k as i64, n as i64)).collect();
            let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, kind);
            assert!(!buffer.is_null(), "ggml: no memory");
            let type_name = CStr::from_ptr(sys::ggml_type_name(ty)).to_string_lossy().to_lowercase();
            let name = format!("ggml {type_name}{}", if repacked { " repack" } else { "" });
            let mut ggml =
                Ggml { name, backend, context: ctx, buffer, tensors, reference: Vec::new(), call: None };
            if repacked && (*ggml.tensors[0]).extra.is_null() {
                return None;
            }
            let (pattern, reference) = weights.ggml(ty);
            let bytes = repeat(&pattern, n);
            for &tensor in &ggml.tensors {
                assert_eq!(bytes.len(), sys::ggml_nbytes(tensor));
                sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
            }
            ggml.reference = reference;
            Some(ggml)
        }
    }
}

impl Contestant for Ggml {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows) {
        self.call = None;
        let all: usize = windows.iter().map(Vec::len).sum();
        let nodes = windows.iter().map(Vec::len).max().unwrap_or(0);
        // SAFETY: as in `new`; every product has the shape of y and lies where y lies.
        unsafe {
            let ctx = context(all + 2, windows.len(), nodes);
            let (k, n) = ((*self.tensors[0]).ne[0], (*self.tensors[0]).ne[1]);
            let input = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, k, m as i64);
            let y = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, n, m as i64);
            let buffer =
                sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, sys::ggml_backend_cpu_buffer_type());
            sys::ggml_backend_tensor_set(input, x.as_ptr().cast(), 0, size_of_val(x));
            let mut graphs = Vec::new();
            for window in windows {
                let graph = sys::ggml_new_graph_custom(ctx, 2 * nodes + 8, false);
                for &matrix in window {
                    let product = sys::ggml_mul_mat(ctx, self.tensors[matrix], input);
                    sys::ggml_backend_tensor_alloc(buffer, product, (*y).data);
                    assert!(sys::ggml_backend_supports_op(self.backend, product), "ggml: not supported");
                    sys::ggml_build_forward_expand(graph, product);
                }
                graphs.push(graph);
            }
            self.call = Some(Call { context: ctx, buffer, graphs, y });
        }
    }

    fn run(&mut self, window: usize) {
        let call = self.call.as_ref().expect("prepared");
        // SAFETY: a graph of live tensors.
        let status = unsafe { sys::ggml_backend_graph_compute(self.backend, call.graphs[window]) };
        assert_eq!(status, sys::GGML_STATUS_SUCCESS);
    }

    fn output(&mut self) -> Vec<f32> {
        let call = self.call.as_ref().expect("prepared");
        // SAFETY: as many bytes as y has.
        unsafe {
            let mut y = vec![0f32; sys::ggml_nelements(call.y) as usize];
            sys::ggml_backend_tensor_get(call.y, y.as_mut_ptr().cast(), 0, y.len() * 4);
            y
        }
    }

    fn reference(&self) -> &[f32] {
        &self.reference
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // SAFETY: live, freed once.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer);
            sys::ggml_free(self.context);
        }
    }
}

impl Drop for Ggml {
    fn drop(&mut self) {
        self.call = None;
        // SAFETY: live, freed once.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer);
            sys::ggml_free(self.context);
            sys::ggml_backend_free(self.backend);
        }
    }
}
