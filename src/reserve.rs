//! The allocator of the shared and the static library (feature `reserve`): small allocations that Rust
//! cannot fail gracefully never abort the host.
//!
//! Every size that comes from a file or an argument is reserved fallibly (`memory`). What is left are
//! small allocations of fixed kinds inside std and dependencies: an `Arc`, a path, a list of threads. Where
//! the system has no memory for one of them Rust would abort the process; here it comes from 64 slots of
//! 4 KiB that the library has in its zero-initialised data (untouched, they cost no memory). A call
//! that would give out a handle while its thread still holds a slot is refused with `OutOfMemory`
//! (`capi::handle::make`), which gives the slots back; what a call held and gave back did no harm.
//!
//! No thread-local storage: glibc allocates that of a dlopened library at its first use in a thread and
//! aborts where it cannot.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SLOT: usize = 4096;
const SLOTS: usize = 64;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[[u8; SLOT]; SLOTS]>);

// SAFETY: a slot is used by who set its bit in `TAKEN`, alone.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([[0; SLOT]; SLOTS]));
/// A bit for each slot in use.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// The thread that took each slot.
static OWNERS: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
/// The thread whose allocations the reserve does not serve now; 0: none.
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a reserve.
pub struct Reserve;

fn thread() -> usize {
    // SAFETY: always callable; takes no memory.
    unsafe { libc::pthread_self() as usize }
}

/// Whether the calling thread holds memory of the reserve: the system had none.
pub fn in_use() -> bool {
    let mut taken = TAKEN.load(Ordering::Acquire);
    if taken == 0 {
        return false;
    }
    let me = thread();
    while taken != 0 {
        let slot = taken.trailing_zeros() as usize;
        if OWNERS[slot].load(Ordering::Relaxed) == me {
            return true;
        }
        taken &= taken - 1;
    }
    false
}

/// Runs `work`, whose allocations are fallible and shall fail where the system's do: what they make
/// outlives the call. One thread at a time (the caller holds a lock).
pub fn closed<T>(work: impl FnOnce() -> T) -> T {
    CLOSED.store(thread(), Ordering::Relaxed);
    let result = work();
    CLOSED.store(0, Ordering::Relaxed);
    result
}

#[cold]
fn take(layout: Layout) -> *mut u8 {
    let me = thread();
    if layout.size() > SLOT || layout.align() > SLOT || CLOSED.load(Ordering::Relaxed) == me {
        return std::ptr::null_mut();
    }
    let mut taken = TAKEN.load(Ordering::Relaxed);
    loop {
        let slot = (!taken).trailing_zeros() as usize;
        if slot >= SLOTS {
            return std::ptr::null_mut();
        }
        match TAKEN.compare_exchange_weak(taken, taken | 1 << slot, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                OWNERS[slot].store(me, Ordering::Relaxed);
                return ARENA.0.get().cast::<u8>().wrapping_add(slot * SLOT);
            }
            Err(now) => taken = now,
        }
    }
}

/// The slot that `pointer` is the start of.
#[inline]
fn slot_of(pointer: *mut u8) -> Option<usize> {
    let at = (pointer as usize).wrapping_sub(ARENA.0.get() as usize);
    (at < SLOT * SLOTS).then_some(at / SLOT)
}

// SAFETY: memory is the system's, or a slot that is large and aligned enough and nobody else's (`take`);
// each goes back where it came from (`slot_of`).
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() { take(layout) } else { pointer }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if !pointer.is_null() {
            return pointer;
        }
        let slot = take(layout);
        if !slot.is_null() {
            // SAFETY: a slot has at least the layout's bytes.
            unsafe { slot.write_bytes(0, layout.size()) }
        }
        slot
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match slot_of(pointer) {
            Some(slot) => {
                TAKEN.fetch_and(!(1 << slot), Ordering::Release);
            }
            // SAFETY: the caller's contract; it is the system's.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if slot_of(pointer).is_none() {
            // SAFETY: the caller's contract; it is the system's.
            let grown = unsafe { System.realloc(pointer, layout, size) };
            if !grown.is_null() {
                return grown;
            }
        } else if size <= SLOT {
            return pointer;
        }
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        // SAFETY: `size` is not 0 (the caller's contract). The old memory stays where this fails.
        unsafe {
            let grown = self.alloc(wanted);
            if !grown.is_null() {
                grown.copy_from_nonoverlapping(pointer, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            grown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_distinct_owned_and_come_back() {
        let layout = Layout::from_size_align(100, 64).unwrap();
        let slots: Vec<*mut u8> = (0..SLOTS).map(|_| take(layout)).collect();
        assert!(in_use() && take(layout).is_null(), "no more than there are");
        for (i, a) in slots.iter().enumerate() {
            assert!(!a.is_null() && (*a as usize).is_multiple_of(64));
            assert!(slots[..i].iter().all(|b| (*a as usize).abs_diff(*b as usize) >= SLOT));
        }
        std::thread::scope(|s| {
            s.spawn(|| assert!(!in_use(), "another thread's"));
        });
        // SAFETY: slots taken above, with their layout.
        slots.iter().for_each(|&slot| unsafe { Reserve.dealloc(slot, layout) });
        assert!(!in_use());
        assert!(closed(|| take(layout)).is_null(), "closed");
        assert!(take(Layout::from_size_align(SLOT + 1, 1).unwrap()).is_null(), "too large");
        // A slot grows in place, then moves to the system with what it holds.
        let slot = take(layout);
        // SAFETY: a slot of at least 100 bytes; layouts as they are grown.
        unsafe {
            slot.write_bytes(7, 100);
            assert_eq!(Reserve.realloc(slot, layout, SLOT), slot);
            let moved = Reserve.realloc(slot, Layout::from_size_align(SLOT, 64).unwrap(), 3 * SLOT);
            assert!(slot_of(moved).is_none() && std::slice::from_raw_parts(moved, 100) == [7; 100]);
            Reserve.dealloc(moved, Layout::from_size_align(3 * SLOT, 64).unwrap());
        }
        assert!(!in_use());
    }
}
