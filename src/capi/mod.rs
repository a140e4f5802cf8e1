//! The C boundary: the only exports of the crate.
//!
//! Every exported function has the same shape: `guard(error, || { ... })`, which catches panics, sets
//! the floating-point mode and writes the caller's `bl_error`. Inside, pointers become references by
//! checked functions: handles in [`handle`], option and info structs in [`options`].
//!
//! The header `include/bitlinear.h` is generated from these files by `cargo xtask header`. Their
//! documentation is the manual of the C user, so it speaks C.

pub mod boundary;
pub mod calibration;
pub mod codes;
pub mod compare;
pub mod context;
pub mod convert;
pub mod device;
pub mod diagnostics;
pub mod enums;
pub mod forward;
pub mod handle;
pub mod heads;
pub mod layer;
mod layer_options;
pub mod low_bit;
pub mod model;
pub mod options;
pub mod profile;
pub mod quantize;
pub mod rotate;
pub mod runtime;
pub mod save;
pub mod state;
#[cfg(feature = "test-hooks")]
pub mod test_hooks;
pub mod train;
pub mod types;
pub mod weights;
