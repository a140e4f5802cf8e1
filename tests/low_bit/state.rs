//! Compressed state.

use std::ptr::{null, null_mut};

use bitlinear::capi::context::bl_free;
use bitlinear::capi::state::*;
use serde_json::Value;

use crate::data::{floats, hex};
use crate::{bl_status, call, near, oracles, sized};

struct State(*mut bl_state);

impl Drop for State {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

fn create(format: bl_state_format, shape: [i64; 4], flags: u32) -> State {
    let mut state = null_mut();
    let format = StateFormatArg(format as u32);
    let options = bl_state_options { format, shape, flags, ..sized!(bl_state_options) };
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_state_create(null(), &options, &mut state, e) }).unwrap();
    State(state)
}

impl State {
    fn update(&self, factor: f32, values: &[f32]) {
        // SAFETY: a slice of that length.
        call(|e| unsafe { bl_state_update(self.0, factor, values.as_ptr(), values.len() as i64, e) })
            .unwrap();
    }
    fn info(&self, reset: u32) -> bl_state_info {
        let mut info = sized!(bl_state_info);
        // SAFETY: valid pointers.
        call(|e| unsafe { bl_state_describe(self.0, &mut info, reset, e) }).unwrap();
        info
    }
    fn values(&self) -> Vec<f32> {
        let mut values = vec![f32::NAN; self.info(0).count as usize];
        // SAFETY: a slice of that length.
        call(|e| unsafe { bl_state_unpack(self.0, values.as_mut_ptr(), values.len() as i64, e) }).unwrap();
        values
    }
    fn parts(&self) -> (Vec<u8>, Vec<f32>) {
        let info = self.info(0);
        let (mut codes, mut scales) =
            (vec![0; info.code_bytes as usize], vec![0.0; info.scale_count as usize]);
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_state_read(self.0, codes.as_mut_ptr(), codes.len(), scales.as_mut_ptr(), scales.len(), e)
        })
        .unwrap();
        (codes, scales)
    }
    fn passes(&self, gate: *const bl_gate_options) -> u32 {
        let mut passes = 9;
        // SAFETY: valid pointers.
        call(|e| unsafe { bl_state_gate(self.0, gate, &mut passes, e) }).unwrap();
        passes
    }
}

fn case(name: &str) -> (bl_state_format, Value) {
    let format = match name.rsplit('_').next().unwrap() {
        "int8" => bl_state_format::BL_STATE_INT8,
        "ternary" => bl_state_format::BL_STATE_TERNARY,
        _ => bl_state_format::BL_STATE_BINARY,
    };
    (format, oracles()[name].clone())
}

const CASES: [&str; 6] = [
    "rho_seed_int8",
    "rho_seed_ternary",
    "rho_seed_binary",
    "rho_partial_block45_int8",
    "rho_partial_block45_ternary",
    "rho_partial_block45_binary",
];

fn shape(case: &Value) -> [i64; 4] {
    std::array::from_fn(|i| case["shape"][i].as_i64().unwrap())
}

#[test]
fn bytes_scales_values_and_statistics_are_the_reference() {
    for name in CASES {
        let (format, case) = case(name);
        let state = create(format, shape(&case), BL_STATE_MEASURED);
        assert_eq!(state.passes(null()), 0, "{name}: nothing is known yet");
        assert!(state.values().iter().all(|v| v.to_bits() == 0), "{name}: not zeros");
        state.update(0.0, &floats(&case["values"]));
        let (codes, scales) = state.parts();
        assert_eq!(codes, hex(&case["packed_hex"]), "{name}");
        assert_eq!(scales, floats(&case["scales"]), "{name}");
        if !case["reconstructed"].is_null() {
            let want = floats(&case["reconstructed"]);
            assert_eq!(state.values(), want, "{name}");
        }
        let (info, want) = (state.info(0), &case["stats"]);
        assert_eq!(info.calls, 1);
        near(info.mean_error, &want["mean_abs_error"], 1e-6);
        near(info.max_error, &want["max_abs_error"], 1e-6);
        near(info.rms_ratio, &want["rms_ratio"], 1e-6);
        near(info.compression_ratio, &want["ratio"], 1e-6);
        assert_eq!(info.total_original_bytes, want["original_bytes"].as_u64().unwrap());
        assert_eq!(info.total_packed_bytes, want["compressed_bytes"].as_u64().unwrap());
        assert_eq!(state.passes(null()) == 1, want["passes_default_gate"].as_bool().unwrap(), "{name}");
        // Bounds of the caller's own.
        let wide = bl_gate_options {
            max_mean_error: 10.0,
            max_error: 10.0,
            min_rms_ratio: 0.1,
            max_rms_ratio: 10.0,
            max_compression_ratio: 1.0,
            ..sized!(bl_gate_options)
        };
        assert_eq!(state.passes(&wide), 1, "{name}");
        for narrow in [
            bl_gate_options { max_mean_error: 1e-9, ..wide },
            bl_gate_options { max_error: 1e-9, ..wide },
            bl_gate_options { min_rms_ratio: 5.0, ..wide },
            bl_gate_options { max_rms_ratio: 0.2, ..wide },
            bl_gate_options { max_compression_ratio: 0.01, ..wide },
        ] {
            assert_eq!(state.passes(&narrow), 0, "{name}");
        }
        // Another state takes the bytes.
        let other = create(format, shape(&case), 0);
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_state_write(other.0, codes.as_ptr(), codes.len(), scales.as_ptr(), scales.len(), e)
        })
        .unwrap();
        assert_eq!(other.values(), state.values());
        assert_eq!(other.info(0).calls, 0);
    }
}

#[test]
fn coarser_formats_lose_more() {
    let errors: Vec<(f64, f64)> = CASES[..3]
        .iter()
        .map(|name| {
            let (format, case) = case(name);
            let state = create(format, shape(&case), BL_STATE_MEASURED);
            state.update(0.0, &floats(&case["values"]));
            let info = state.info(1);
            assert_eq!(state.info(0).calls, 0, "reset");
            (info.mean_error, info.compression_ratio)
        })
        .collect();
    assert!(errors[0].0 < errors[1].0 && errors[0].0 < errors[2].0);
    assert!(errors[0].1 > errors[1].1 && errors[1].1 > errors[2].1);
}

/// A recurrent state that decays: what is measured adds up over calls, whoever makes them.
#[test]
fn threads_share_a_state() {
    let (format, case) = case("rho_seed_int8");
    let values = floats(&case["values"]);
    let state = create(format, shape(&case), BL_STATE_MEASURED);
    let at = state.0 as usize;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (state, count) = (at as *const bl_state, values.len() as i64);
                    // SAFETY: a living handle; a slice of that length.
                    call(|e| unsafe { bl_state_update(state, 0.5, values.as_ptr(), count, e) }).unwrap();
                }
            });
        }
    });
    let info = state.info(0);
    assert_eq!((info.calls, info.total_original_bytes), (200, 200 * 768));
    // s = s / 2 + v ends at 2 v, but for the rounding of its codes.
    for (s, v) in state.values().iter().zip(&values) {
        assert!((s - 2.0 * v).abs() < 0.08, "{s} {v}");
    }
}

/// What a state took can be read, and be updated again.
#[test]
fn the_largest_floats_come_back() {
    for count in [64, 320] {
        let state = create(bl_state_format::BL_STATE_INT8, [1, 1, 1, count as i64], 0);
        state.update(0.0, &vec![f32::MAX; count]);
        assert!(state.values().iter().all(|v| v.is_finite() && *v > 3.4e38), "{:?}", &state.values()[..2]);
        state.update(0.5, &vec![0.0; count]);
        assert!(state.values().iter().all(|v| (v / f32::MAX - 0.5).abs() < 0.01));
    }
}

#[test]
fn what_is_not_finite_is_refused() {
    let state = create(bl_state_format::BL_STATE_INT8, [1, 1, 1, 64], BL_STATE_MEASURED);
    state.update(0.0, &[1.5; 64]);
    let mut values = [2.0; 64];
    values[40] = f32::NAN;
    // SAFETY: a slice of that length.
    call(|e| unsafe { bl_state_update(state.0, 0.0, values.as_ptr(), 64, e) })
        .unwrap_err()
        .says(bl_status::BL_ERROR_INVALID_ARGUMENT, "value 40");
    assert_eq!(state.values(), [1.5; 64]);
    assert_eq!(state.info(0).calls, 1);
}

/// A host whose thread takes up other work of the program while it waits for its tasks: here, other calls on the
/// state that the tasks belong to.
mod stealing {
    use std::cell::Cell;
    use std::ffi::c_void;

    use bitlinear::capi::context::bl_context_create;
    use bitlinear::capi::types::{bl_context, bl_context_options};

    use super::*;

    const COUNT: usize = 1 << 17; // several pieces

    thread_local! {
        static STATE: Cell<*mut bl_state> = const { Cell::new(null_mut()) };
        static STOLEN: Cell<u32> = const { Cell::new(0) };
    }

    type Task = unsafe extern "C" fn(*mut c_void, usize);

    unsafe extern "C" fn parallel_for(_: *mut c_void, count: usize, run: Option<Task>, task: *mut c_void) {
        let state = STATE.replace(null_mut()); // once: what is stolen does not steal
        if !state.is_null() {
            STOLEN.set(STOLEN.get() + 1);
            let state = std::mem::ManuallyDrop::new(State(state));
            assert_eq!(state.info(0).count, COUNT as i64);
            state.values();
            let (codes, scales) = state.parts();
            // SAFETY: slices of those lengths.
            call(|e| unsafe {
                bl_state_write(state.0, codes.as_ptr(), codes.len(), scales.as_ptr(), scales.len(), e)
            })
            .unwrap();
            state.passes(null());
            state.update(1.0, &[2.0; COUNT]);
        }
        for i in 0..count {
            // SAFETY: the task is alive until this returns.
            unsafe { run.unwrap()(task, i) };
        }
    }

    #[test]
    fn any_call_may_be_made_inside_another_ones_parallel_for() {
        let (done, is_done) = std::sync::mpsc::channel();
        let work = move || {
            let mut context: *mut bl_context = null_mut();
            let options = bl_context_options {
                threads: 2,
                parallel_for: Some(parallel_for),
                ..sized!(bl_context_options)
            };
            // SAFETY: valid pointers.
            call(|e| unsafe { bl_context_create(&options, &mut context, e) }).unwrap();
            let mut made = null_mut();
            let options = bl_state_options {
                format: StateFormatArg(bl_state_format::BL_STATE_INT8 as u32),
                shape: [1, 1, 1, COUNT as i64],
                flags: BL_STATE_MEASURED,
                ..sized!(bl_state_options)
            };
            // SAFETY: valid pointers.
            call(|e| unsafe { bl_state_create(context, &options, &mut made, e) }).unwrap();
            let state = State(made);
            let near = |want: f32| state.values().iter().all(|v| (v - want).abs() < 0.02 * want);

            // The update that was stolen is done first, and the one around it on top of it.
            STATE.set(state.0);
            state.update(1.0, &[1.0; COUNT]);
            assert!(near(3.0));
            assert_eq!(state.info(0).calls, 2);
            // What does not depend on the old values takes their place.
            STATE.set(state.0);
            state.update(0.0, &[5.0; COUNT]);
            assert!(near(5.0));
            // Values are those of one moment.
            STATE.set(state.0);
            assert!(near(5.0));
            assert!(near(7.0));
            // A failure changes nothing but what the stolen calls did.
            STATE.set(state.0);
            let mut values = vec![1.0; COUNT];
            values[COUNT - 1] = f32::INFINITY;
            // SAFETY: a slice of that length.
            call(|e| unsafe { bl_state_update(state.0, 1.0, values.as_ptr(), COUNT as i64, e) })
                .unwrap_err()
                .says(bl_status::BL_ERROR_INVALID_ARGUMENT, "value 131071");
            assert!(near(9.0));
            assert_eq!((STOLEN.get(), state.info(0).calls), (4, 6));
            drop(state);
            // SAFETY: a handle.
            unsafe { bl_free(context.cast()) };
            done.send(()).unwrap();
        };
        let thread = std::thread::spawn(work);
        let came_back = is_done.recv_timeout(std::time::Duration::from_secs(30));
        if matches!(came_back, Err(std::sync::mpsc::RecvTimeoutError::Timeout)) {
            panic!("a call on the state waits for the call that it is made in");
        }
        thread.join().unwrap();
    }
}
