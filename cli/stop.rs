//! Ctrl-C, and what else asks a program to end: once it is a request, which a command that writes a file heeds
//! between two steps, so that it leaves no part of one behind. Twice it ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::Failure;

/// Whether a signal came.
pub(crate) struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// From here on signals are requests.
    pub(crate) fn listen() -> Result<Stop, Failure> {
        let (again, number) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGINT, SIGTERM] {
            if is_ignored(signal) {
                continue;
            }
            // In this order: the first looks at what the second says of the signal before.
            flag::register_conditional_default(signal, again.clone())
                .and_then(|_| flag::register(signal, again.clone()))
                .and_then(|_| flag::register_usize(signal, number.clone(), signal as usize))
                .map_err(|e| Failure::Error(format!("signals cannot be waited for: {e}")))?;
        }
        Ok(Stop(number))
    }

    /// The failure that a signal is, where one came.
    pub(crate) fn asked(&self) -> Option<Failure> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(Failure::Stopped(signal as u8)),
        }
    }
}

/// Whether who started the program wants it to outlive the signal: a shell does, of what runs in the background.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros is a value of the struct, which is written to; no action is set.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn is_ignored(_signal: i32) -> bool {
    false
}
