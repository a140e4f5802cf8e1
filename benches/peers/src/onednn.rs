//! oneDNN's inner product (src/onednn.cpp). x is given in the primitive's own type: what it costs to
//! quantise it is not in its time, unlike everybody else's.

use crate::contestant::Contestant;
use crate::weights::Weights;

/// Types of x and of the weights.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    U8S8 = 0,
    S8S8 = 1,
    Bf16 = 2,
    F32 = 3,
}

/// The library's version, where it was installed when this program was built.
pub fn version() -> Option<String> {
    #[cfg(onednn)]
    {
        let mut v = [0i32; 3];
        // SAFETY: three numbers.
        unsafe { implementation::onednn_version(v.as_mut_ptr()) };
        return Some(format!("{}.{}.{}", v[0], v[1], v[2]));
    }
    #[cfg(not(onednn))]
    None
}

/// None where oneDNN is not installed or cannot do it on this CPU.
pub fn open(weights: &Weights, kind: Kind, copies: usize, threads: usize) -> Option<Box<dyn Contestant>> {
    #[cfg(onednn)]
    return implementation::OneDnn::new(weights, kind, copies, threads)
        .map(|c| Box::new(c) as Box<dyn Contestant>);
    #[cfg(not(onednn))]
    {
        let _ = (weights, kind, copies, threads);
        None
    }
}

#[cfg(onednn)]
mod implementation {
    use std::ffi::{CStr, c_char, c_int, c_long, c_void};

    use super::Kind;
    use crate::contestant::{Contestant, Windows};
    use crate::weights::{PATTERN, Weights, rounded};

    unsafe extern "C" {
        fn onednn_open(
            kind: c_int,
            n: c_long,
            k: c_long,
            copies: c_long,
            threads: c_int,
            weights: *const f32,
            rows: c_long,
        ) -> *mut c_void;
        fn onednn_prepare(ring: *mut c_void, m: c_long, x: *const f32, scale_of_x: *mut f32) -> c_int;
        fn onednn_run(ring: *mut c_void, matrix: c_long);
        fn onednn_output(ring: *mut c_void) -> *const f32;
        fn onednn_implementation(ring: *mut c_void) -> *const c_char;
        fn onednn_close(ring: *mut c_void);
        pub(super) fn onednn_version(v: *mut c_int);
    }

    pub(super) struct OneDnn {
        ring: *mut c_void,
        kind: Kind,
        name: String,
        n: usize,
        m: usize,
        reference: Vec<f32>,
        /// For the u8 codes' shift: sums of the rows of weights, times their scale.
        scale_of_weights: f32,
        scale_of_x: f32,
        windows: Windows,
    }

    impl OneDnn {
        pub(super) fn new(weights: &Weights, kind: Kind, copies: usize, threads: usize) -> Option<OneDnn> {
            let (n, k) = (weights.out_features, weights.in_features);
            // SAFETY: PATTERN rows of k weights.
            let ring = unsafe {
                let (w, rows) = (weights.floats.as_ptr(), PATTERN as c_long);
                onednn_open(
                    kind as c_int,
                    n as c_long,
                    k as c_long,
                    copies as c_long,
                    threads as c_int,
                    w,
                    rows,
                )
            };
            if ring.is_null() {
                return None;
            }
            let largest = weights.floats.iter().fold(0f32, |a, v| a.max(v.abs()));
            let scale = largest / 127.0;
            let factor = 127.0 / largest;
            let reference = match kind {
                Kind::F32 => weights.floats.clone(),
                Kind::Bf16 => rounded(&weights.floats),
                _ => weights.floats.iter().map(|v| (v * factor).round_ties_even() * scale).collect(),
            };
            let name = format!("onednn {}", format!("{kind:?}").to_lowercase());
            let windows = Windows::default();
            let mut one = OneDnn {
                ring,
                kind,
                name,
                n,
                m: 0,
                reference,
                scale_of_weights: scale,
                scale_of_x: 1.0,
                windows,
            };
            // A type that this CPU lacks shows here.
            one.try_prepare(1, &vec![1.0; k]).then_some(one)
        }

        fn try_prepare(&mut self, m: usize, x: &[f32]) -> bool {
            self.m = m;
            // SAFETY: m rows of x.
            unsafe { onednn_prepare(self.ring, m as c_long, x.as_ptr(), &mut self.scale_of_x) != 0 }
        }
    }

    impl Contestant for OneDnn {
        fn name(&self) -> &str {
            &self.name
        }

        fn prepare(&mut self, m: usize, x: &[f32], windows: &Windows) {
            assert!(self.try_prepare(m, x), "{}: no primitive for m = {m}", self.name);
            self.windows = windows.clone();
        }

        fn run(&mut self, window: usize) {
            for &matrix in &self.windows[window] {
                // SAFETY: a matrix of the ring.
                unsafe { onednn_run(self.ring, matrix as c_long) };
            }
        }

        fn output(&mut self) -> Vec<f32> {
            // SAFETY: y has m rows of n.
            let y = unsafe { std::slice::from_raw_parts(onednn_output(self.ring), self.m * self.n) };
            if matches!(self.kind, Kind::Bf16 | Kind::F32) {
                return y.to_vec();
            }
            let k = self.reference.len() / PATTERN;
            let shifted = |i: usize| -> f32 {
                let row = &self.reference[i % PATTERN * k..][..k];
                row.iter().map(|&w| f64::from(w)).sum::<f64>() as f32 * 128.0
            };
            let shifts: Vec<f32> = (0..PATTERN.min(self.n))
                .map(|i| if self.kind == Kind::U8S8 { shifted(i) } else { 0.0 })
                .collect();
            y.iter()
                .enumerate()
                .map(|(i, v)| self.scale_of_x * (v * self.scale_of_weights - shifts[i % self.n % PATTERN]))
                .collect()
        }

        fn reference(&self) -> &[f32] {
            &self.reference
        }

        fn kernel(&self) -> Option<String> {
            // SAFETY: ends with a NUL, lives as long as the ring.
            Some(unsafe { CStr::from_ptr(onednn_implementation(self.ring)) }.to_string_lossy().into_owned())
        }
    }

    impl Drop for OneDnn {
        fn drop(&mut self) {
            // SAFETY: open, closed once.
            unsafe { onednn_close(self.ring) };
        }
    }
}
