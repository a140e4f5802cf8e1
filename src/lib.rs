//! Low-bit linear layers: `y = x Wᵀ + b` for weights of 1 to 8 bits, behind a C ABI.
//!
//! ```text
//! file --container--> tensor bytes --codec--> codes + scales --layout--> packed panels --kernel--> y
//!         untrusted bytes end here ^            one row at a time           aligned, owned
//! ```
//!
//! The modules below stand in the order in which the data flows. Programs in other languages use
//! `include/bitlinear.h`; what every function promises is written there. The numbers a kernel must
//! produce, bit for bit, are in `docs/numerics.md`.

pub mod error;
pub mod fault;
pub mod float16;
pub mod fpmode;
pub mod limits;
pub mod memory;
pub mod order;
pub mod types;

pub mod container;

pub mod codec;

pub mod layout;

pub mod activation;
pub mod codes;
pub mod epilogue;
pub mod math;
pub mod nearest;
pub mod norm;
pub mod rotation;

pub mod cpu;
pub mod exec;
pub mod kernel;

pub mod cuda;
pub mod gemm;
pub mod heads;
pub mod layer;
pub mod matrix;
pub mod model;
pub mod plan;
pub mod quantize;
pub mod save;
pub mod state;
pub mod train;

pub mod compare;
pub mod export;

pub mod reserve;

#[cfg(any(feature = "reserve", test))]
#[global_allocator]
static ALLOCATOR: reserve::Reserve = reserve::Reserve;

pub mod capi;
