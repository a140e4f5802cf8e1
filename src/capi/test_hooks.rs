//! `bl_test_fault`: fails on purpose, in each way that a bug could. Only with the feature `test-hooks`,
//! which releases do not have, and not in the header; `c_tests/faults.c` declares it for itself.
//! cbindgen:ignore

use super::boundary::guard;
use super::context;
use super::enums::*;
use super::types::*;
use crate::error::{Result, fail};

/// A panic payload that panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("the payload of a panic panicked");
    }
}

/// Fails in the way of that number: 0 a panic with a text, 1 with a formatted text that is far too long
/// for a `bl_error`, 2 without a text, 3 with a payload whose Drop panics, 4 in one piece of a call of
/// the context, 5 an error that is no panic.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_test_fault(
    context: *const bl_context,
    way: u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error` and `context`.
    unsafe { guard(error, || fault(&*context::of(context)?, way)) }
}

#[allow(clippy::panic)] // what it is for
fn fault(context: &context::Context, way: u32) -> Result<()> {
    match way {
        0 => panic!("asked for"),
        1 => panic!("asked for: {}", "ü".repeat(1000)),
        2 => std::panic::panic_any(7u8),
        3 => std::panic::panic_any(Bomb),
        4 => context.executor.run(64, &|_, piece| match piece {
            41 => panic!("piece 41"),
            _ => Ok(()),
        }),
        _ => Err(fail!(Io, "fault {way}")),
    }
}
