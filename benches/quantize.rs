//! How fast weights are rounded, on one thread: MB of float32 a second. With BITLINEAR_GGML=libggml.so (see
//! tools/ggml_figures.py) ggml's quantisers beside them, in the same run.
//!
//! ```text
//! cargo bench --bench quantize
//! ```

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Instant;

use bitlinear::cpu::Isa;
use bitlinear::error::Result;
use bitlinear::exec::Executor;
use bitlinear::layout::{Float, Layout, Matrix, Row};
use bitlinear::quantize::{Method, PANEL_ROWS, Rounding};
use bitlinear::types::Type;

const ROWS: usize = 1024;
const COLUMNS: usize = 4096;

struct Weights(Vec<f32>);

impl Matrix for Weights {
    fn layout(&self) -> Layout {
        Layout::Dense(Float::F32)
    }
    fn out_features(&self) -> usize {
        ROWS
    }
    fn in_features(&self) -> usize {
        COLUMNS
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        row.floats.copy_from_slice(&self.0[index * COLUMNS..][..COLUMNS]);
        Ok(())
    }
}

type Quantize = unsafe extern "C" fn(c_int, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;

fn ggml() -> Option<Quantize> {
    let path = CString::new(std::env::var("BITLINEAR_GGML").ok()?).ok()?;
    // SAFETY: loads a library and looks up a function of that signature; the caller named it.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "BITLINEAR_GGML cannot be loaded");
        let found = libc::dlsym(library, c"ggml_quantize_chunk".as_ptr().cast::<c_char>());
        assert!(!found.is_null(), "BITLINEAR_GGML has no ggml_quantize_chunk");
        Some(std::mem::transmute::<*mut c_void, Quantize>(found))
    }
}

/// MB of float32 a second: the best of several runs.
fn speed(mut run: impl FnMut()) -> f64 {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    (ROWS * COLUMNS * 4) as f64 / 1e6 / best.fold(f64::INFINITY, f64::min)
}

fn main() {
    let mut state = 1u64;
    let uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let raw: Vec<f32> = std::iter::repeat_with(uniform).take(ROWS * COLUMNS * 4).collect();
    let weights = Weights(raw.as_chunks::<4>().0.iter().map(|u| 0.1 * (u[0] + u[1] + u[2] + u[3])).collect());
    let theirs = ggml();
    println!("{:10} {:>12} {:>12} {:>12} {:>8}", "type", "fixed MB/s", "search MB/s", "ggml MB/s", "ratio");
    for ty in [
        Type::Int4,
        Type::Ternary,
        Type::Int8,
        Type::Q8_0,
        Type::Q4_0,
        Type::Q4_1,
        Type::Q5_0,
        Type::Tq2_0,
        Type::Q2_0,
        Type::Q1_0,
        Type::Q2K,
        Type::Q3K,
        Type::Q4K,
        Type::Q5K,
        Type::Q6K,
    ] {
        let is_k = matches!(ty, Type::Q2K | Type::Q3K | Type::Q4K | Type::Q5K | Type::Q6K);
        let codec = bitlinear::codec::find(ty).ok();
        let run = |search: bool| {
            let method = Method { search, ..Method::plain(ty) };
            let mut bytes = vec![0u8; codec.map_or(0, |c| c.row_bytes(COLUMNS))];
            let mut sum = 0usize;
            let rounding = Rounding::new(Isa::best(), &Executor::Serial, &weights, &method).unwrap();
            for first in (0..ROWS).step_by(PANEL_ROWS) {
                let mut take = |_: usize, row: &Row| {
                    sum += row.codes[0] as usize;
                    codec.map_or(Ok(()), |codec| codec.store_row(row, &mut bytes))
                };
                rounding.panel(first, PANEL_ROWS, &mut take).unwrap();
            }
            std::hint::black_box((sum, bytes));
        };
        let fixed = if is_k { None } else { Some(speed(|| run(false))) };
        let search = speed(|| run(true));
        let ggml = theirs.filter(|_| ty as u32 > 100).map(|quantize| {
            let mut out = vec![0u8; ROWS * codec.map_or(0, |c| c.row_bytes(COLUMNS))];
            let id = ty as u32 as c_int - 100;
            speed(|| {
                // SAFETY: `out` has room for all rows, `weights` holds them; no importance.
                let written = unsafe {
                    let (from, to) = (weights.0.as_ptr(), out.as_mut_ptr().cast());
                    quantize(id, from, to, 0, ROWS as i64, COLUMNS as i64, std::ptr::null())
                };
                assert_eq!(written, out.len());
            })
        });
        let shown = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.0}"));
        let ratio = ggml.map(|g| fixed.unwrap_or(search) / g);
        let ratio = ratio.map_or("-".to_string(), |r| format!("{r:.2}"));
        println!("{:10} {:>12} {:>12.0} {:>12} {ratio:>8}", ty.name(), shown(fixed), search, shown(ggml));
    }
}
