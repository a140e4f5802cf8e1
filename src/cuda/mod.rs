//! Layers on NVIDIA GPUs: the host's half. `kernel::cuda` says how weights lie there and what is launched;
//! here the driver is found and told to.
//!
//! ```text
//! driver   libcuda, its functions, its devices        opened at the first use, never before
//! device   a primary context, made current and back   Lost after what nothing survives
//! image    compiled kernels of this library           machine code before PTX
//! module   kernels on a device                        loaded with the first layer that needs them
//! memory   of the device, pinned, streams             counted, given back by their owners
//! lanes    what a context has on a device             for calls with host pointers
//! call     what calls on layers are made of           in builds without CUDA too
//! layer    weights there, and calls
//! ```
//! Nothing is printed, nothing panics where the driver, a function or a device is missing, and no layer ever
//! runs on another device than the one it was made for. After a fork() the child is refused; what goes at the
//! end of the process, or after a device is lost, goes without a word. `docs/cuda.md`.

#[cfg(not(feature = "cuda"))]
mod absent;
pub mod call;
#[cfg(feature = "cuda")]
pub mod device;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "cuda")]
pub mod image;
#[cfg(feature = "cuda")]
pub mod lanes;
#[cfg(feature = "cuda")]
pub mod layer;
#[cfg(feature = "cuda")]
pub mod memory;
#[cfg(feature = "cuda")]
pub mod module;

pub use call::{HostTarget, Room, StreamCall, StreamTarget};

#[cfg(not(feature = "cuda"))]
pub use absent::*;
#[cfg(feature = "cuda")]
pub use {
    driver::{Description, driver},
    lanes::Lanes,
    layer::{DeviceLayer, DevicePlan, DeviceRows, enqueue, kernels},
    memory::ALIGNMENT,
};
