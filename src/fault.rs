//! Panics become errors: nothing unwinds out of the library, and nothing is printed.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::error::{Result, Text, fail};

thread_local! {
    // `const` and without Drop: no thread-exit destructor is registered, which would keep a
    // dlclosed library mapped for as long as the thread lives.
    static PANIC_TEXT: Cell<Text> = const { Cell::new(Text::EMPTY) };
}

/// Replaces, once, the default hook, which would print to the host's stderr. This copy of std belongs to the
/// shared library alone: a Rust host has its own hook in its own copy.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let payload = info.payload();
            let what = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("a panic without a text");
            let text = match info.location() {
                Some(at) => Text::format(format_args!("{}:{}: {what}", at.file(), at.line())),
                None => Text::format(format_args!("{what}")),
            };
            PANIC_TEXT.set(text);
        }));
    });
}

/// Runs `work`. Nothing unwinds out of this: a panic becomes `Internal` with its place and text.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // AssertUnwindSafe: shared state of this crate is immutable after construction; what a panic
    // leaves half-made is dropped with the stack.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(payload) => {
            swallow(payload);
            Err(fail!(Internal, "a bug in bitlinear: {}", PANIC_TEXT.get().as_str()))
        }
    }
}

#[cold]
fn swallow(payload: Box<dyn Any + Send>) {
    // A payload's Drop may panic in turn; that second payload is leaked, not let out.
    if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(again);
    }
}
