//! The library as it is shipped, end to end on a GPU that is emulated (tests/cuda/emulator): this program opens
//! libbitlinear.so and the emulated libcuda.so.1 itself and calls both through their C interfaces.
//!
//! `sh tests/cuda.sh` runs it in every schedule of the emulation and for several GPUs. Alone it runs on one.
//! What needs a process of its own (a driver that is missing, a fork) starts this program again (`alone`).
#![allow(unreachable_pub)] // modules of one program
#![allow(clippy::macro_metavars_in_unsafe)] // `attempt!` calls C: what its arguments promise, the caller writes

#[path = "../native/mod.rs"]
mod native;

mod emulated;
mod faults;
mod heads;
mod layers;
mod shipped;
mod streams;

use std::process::Command;

/// Runs an ignored test of this program in a process of its own, in that environment. An empty value takes a
/// variable away.
#[track_caller]
/// An empty folder for a test's own files. Two schedules run at a time (tests/cuda.sh): each has its own.
fn fresh(name: &str) -> std::path::PathBuf {
    native::fresh(&format!("{name}-{}", std::env::var("BL_EMU_ORDER").unwrap_or_default()))
}

fn alone(test: &str, environment: &[(&str, &str)]) {
    if emulated::folder().is_none() {
        return;
    }
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("BL_EMU_")) {
        program.env_remove(key);
    }
    for (key, value) in environment {
        match value.is_empty() {
            true => program.env_remove(key),
            false => program.env(key, value),
        };
    }
    let printed = native::good(&mut program);
    assert!(printed.contains("test result: ok. 1 passed"), "{test}: {printed}");
}
