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
//! A dependency that allocates a large buffer infallibly (`gemm`) gets memory lent that was reserved fallibly
//! (`lend`).
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

/// Whether this allocator is the program's: in the C library, and in this crate's own tests.
pub const ACTIVE: bool = cfg!(any(feature = "reserve", test));

/// Most loans at a time; who comes later waits for one to end.
const LOANS: usize = 64;

/// Memory that the next allocation of one thread takes.
struct Loan {
    /// The thread; 0: none.
    owner: AtomicUsize,
    start: AtomicUsize,
    /// Bytes; 0 while it is taken.
    len: AtomicUsize,
}

/// A bit for each loan there is.
static LENT: AtomicU64 = AtomicU64::new(0);
/// Each is read and written by its owner alone, but for `owner`.
static LEDGER: [Loan; LOANS] =
    [const { Loan { owner: AtomicUsize::new(0), start: AtomicUsize::new(0), len: AtomicUsize::new(0) } };
        LOANS];

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

/// Takes the lowest bit that is not set.
fn claim(bits: &AtomicU64) -> Option<usize> {
    let mut now = bits.load(Ordering::Relaxed);
    loop {
        let free = (!now).trailing_zeros() as usize;
        if free >= u64::BITS as usize {
            return None;
        }
        match bits.compare_exchange_weak(now, now | 1 << free, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(free),
            Err(other) => now = other,
        }
    }
}

/// Runs `work`, whose first allocation that fits takes `memory` in place of the system's. Whether one did.
///
/// # Safety
/// What `work` allocates it frees before it ends, in the calling thread.
pub unsafe fn lend(memory: &mut [u8], work: impl FnOnce()) -> bool {
    /// Ends the loan, even by a panic.
    struct Lent(usize);
    impl Drop for Lent {
        fn drop(&mut self) {
            LEDGER[self.0].owner.store(0, Ordering::Relaxed);
            LENT.fetch_and(!(1 << self.0), Ordering::Release);
        }
    }
    let loan = loop {
        match claim(&LENT) {
            Some(loan) => break loan,
            None => std::thread::yield_now(),
        }
    };
    let _lent = Lent(loan);
    LEDGER[loan].start.store(memory.as_mut_ptr() as usize, Ordering::Relaxed);
    LEDGER[loan].len.store(memory.len(), Ordering::Relaxed);
    LEDGER[loan].owner.store(thread(), Ordering::Relaxed);
    work();
    LEDGER[loan].len.load(Ordering::Relaxed) < memory.len()
}

/// The calling thread's loan that `fits`.
#[inline]
fn loan(fits: impl Fn(&Loan) -> bool) -> Option<&'static Loan> {
    match LENT.load(Ordering::Relaxed) {
        0 => None,
        lent => search(lent, fits),
    }
}

#[cold]
fn search(mut lent: u64, fits: impl Fn(&Loan) -> bool) -> Option<&'static Loan> {
    let me = thread();
    while lent != 0 {
        let loan = &LEDGER[lent.trailing_zeros() as usize];
        if loan.owner.load(Ordering::Relaxed) == me && fits(loan) {
            return Some(loan);
        }
        lent &= lent - 1;
    }
    None
}

/// The loan that has room for that and is not taken.
fn borrow(layout: Layout) -> Option<*mut u8> {
    let fits = |loan: &Loan| {
        let start = loan.start.load(Ordering::Relaxed);
        start.is_multiple_of(layout.align()) && layout.size() <= loan.len.load(Ordering::Relaxed)
    };
    let loan = loan(fits)?;
    loan.len.store(0, Ordering::Relaxed);
    Some(loan.start.load(Ordering::Relaxed) as *mut u8)
}

/// Whether the memory is a loan.
#[inline]
fn is_lent(pointer: *mut u8) -> bool {
    loan(|loan| loan.start.load(Ordering::Relaxed) == pointer as usize).is_some()
}

#[cold]
fn take(layout: Layout) -> *mut u8 {
    let me = thread();
    if layout.size() > SLOT || layout.align() > SLOT || CLOSED.load(Ordering::Relaxed) == me {
        return std::ptr::null_mut();
    }
    let Some(slot) = claim(&TAKEN) else { return std::ptr::null_mut() };
    OWNERS[slot].store(me, Ordering::Relaxed);
    ARENA.0.get().cast::<u8>().wrapping_add(slot * SLOT)
}

/// The slot that `pointer` is the start of.
#[inline]
fn slot_of(pointer: *mut u8) -> Option<usize> {
    let at = (pointer as usize).wrapping_sub(ARENA.0.get() as usize);
    (at < SLOT * SLOTS).then_some(at / SLOT)
}

// SAFETY: memory is the system's, or a loan or a slot that is large and aligned enough and nobody else's
// (`borrow`, `take`); each goes back where it came from (`is_lent`, `slot_of`).
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(lent) = borrow(layout) {
            return lent;
        }
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
            None if is_lent(pointer) => {} // its owner has it
            // SAFETY: the caller's contract; it is the system's.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if slot_of(pointer).is_some() {
            if size <= SLOT {
                return pointer;
            }
        } else if !is_lent(pointer) {
            // SAFETY: the caller's contract; it is the system's.
            let grown = unsafe { System.realloc(pointer, layout, size) };
            if !grown.is_null() {
                return grown;
            }
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

    #[test]
    fn a_loan_is_taken_once_by_its_thread() {
        let layout = Layout::from_size_align(1000, 32).unwrap();
        let mut memory = vec![0u8; 1100];
        let skip = memory.as_ptr().align_offset(64);
        let memory = &mut memory[skip..][..1000];
        let start = memory.as_mut_ptr() as usize;
        let take = || {
            // SAFETY: a size that is not 0; each is freed below with its layout.
            let pointer = unsafe { Reserve.alloc(layout) };
            (pointer as usize == start, pointer as usize)
        };
        // SAFETY: a pointer that `take` gave.
        let free = |(_, pointer): (bool, usize)| unsafe { Reserve.dealloc(pointer as *mut u8, layout) };
        // Started before: starting a thread allocates. 1: another thread's turn, 2: it had none of the loan, 3: it had.
        let turn = AtomicUsize::new(0);
        let wait = |until: fn(usize) -> bool| {
            while !until(turn.load(Ordering::Acquire)) {
                std::thread::yield_now();
            }
        };
        let work = || {
            turn.store(1, Ordering::Release);
            wait(|turn| turn > 1);
            // SAFETY: a size that is not 0, freed with its layout.
            unsafe {
                let larger = Layout::from_size_align(1001, 32).unwrap();
                let pointer = Reserve.alloc(larger);
                assert!(pointer as usize != start, "too small");
                Reserve.dealloc(pointer, larger);
            }
            let (first, second) = (take(), take());
            assert!(first.0 && !second.0);
            free(second);
            // What outgrows a loan moves to the system with what it holds.
            // SAFETY: 1000 bytes; layouts as they are grown.
            unsafe {
                (start as *mut u8).write_bytes(7, 1000);
                let moved = Reserve.realloc(start as *mut u8, layout, 5000);
                assert!(moved as usize != start && std::slice::from_raw_parts(moved, 1000) == [7; 1000]);
                Reserve.dealloc(moved, Layout::from_size_align(5000, 32).unwrap());
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| {
                wait(|turn| turn == 1);
                let other = take();
                free(other);
                turn.store(2 + other.0 as usize, Ordering::Release);
            });
            // SAFETY: all is freed.
            assert!(unsafe { lend(memory, work) });
        });
        assert_eq!(turn.into_inner(), 2, "another thread's");
        let after = take();
        assert!(!after.0, "the loan is over");
        free(after);
        assert!(loan(|_| true).is_none());
    }
}
