//! The Rust half of the CUDA kernels (`kernels/`): how weights lie on a device, what the kernels are told,
//! and which of them run for a call. All of it is arithmetic: no driver is called here, nothing is allocated
//! on a device, so that it is built and tested on machines without one. See `docs/cuda-kernels.md`.

mod choice;
pub mod launch;
mod module;
pub mod params;
mod space;
pub mod weights;
