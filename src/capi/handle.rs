//! Handles: what `bl_context *`, `bl_model *` and `bl_layer *` point to.
//!
//! A handle points to a *shell* of a tag and a body. Shells are recycled among themselves and never
//! given back to the allocator, so that a stale handle, a second free and a handle of another kind are
//! told by the tag without touching freed memory. A freed shell rests behind 256 others before it is
//! used again; what cannot be told is a stale handle whose shell has been reused since, and a free that
//! races with a call.
//! cbindgen:ignore

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::error::{Result, fail};
use crate::{exec, reserve};

struct Shell {
    tag: AtomicU32,
    body: AtomicPtr<()>,
}

const FREE: u32 = 0;
/// The upper half of every tag.
const TAGS: u32 = 0x424c;
/// Freed shells held back before the oldest is used again.
const REST: usize = 256;

/// Addresses of freed shells, oldest first. Its capacity always has room for every shell there is, so
/// that freeing never allocates.
static RESTING: Resting =
    Resting { taken: AtomicBool::new(false), addresses: UnsafeCell::new(VecDeque::new()) };
static SHELLS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// A lock that fork() takes, so that the child's is nobody's: one that another thread had at that moment would be taken
/// there for ever, and no child could make or free a handle. (A `Mutex` cannot be unlocked where its guard is not.)
struct Resting {
    taken: AtomicBool,
    addresses: UnsafeCell<VecDeque<usize>>,
}

// SAFETY: `addresses` is reached through a `Guard` alone, of which there is one at a time.
unsafe impl Sync for Resting {}

struct Guard<'a>(&'a Resting);

impl Resting {
    /// Spins: nobody has it for longer than an allocation takes.
    fn take(&self) {
        let mut tries = 0;
        while self.taken.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries % 64 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn give(&self) {
        self.taken.store(false, Ordering::Release);
    }

    fn lock(&self) -> Guard<'_> {
        watch_forks();
        self.take();
        Guard(self)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.give();
    }
}

impl std::ops::Deref for Guard<'_> {
    type Target = VecDeque<usize>;
    fn deref(&self) -> &VecDeque<usize> {
        // SAFETY: there is one guard at a time (`Resting::take`).
        unsafe { &*self.0.addresses.get() }
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut VecDeque<usize> {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.0.addresses.get() }
    }
}

/// From the first handle on fork() takes the lock, and parent and child give it back.
fn watch_forks() {
    #[cfg(unix)]
    {
        static WATCHED: AtomicBool = AtomicBool::new(false);
        unsafe extern "C" fn before() {
            RESTING.take();
        }
        unsafe extern "C" fn after() {
            RESTING.give();
        }
        // SAFETY: the handlers do no more than an atomic and, in the parent, a yield.
        unsafe { exec::at_fork(&WATCHED, Some(before), Some(after), Some(after)) };
    }
}

/// A type that handles can hold.
pub trait Kind: Send + Sync + Sized + 'static {
    /// Tells the kinds apart in a shell; its upper half is that of all.
    const TAG: u32;
    /// For messages.
    const NAME: &'static str;
}

/// How many handles are alive in this process.
pub fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// Makes a handle that owns one count of `body`.
pub fn make<H, T: Kind>(body: Arc<T>) -> Result<*mut H> {
    if reserve::in_use() {
        return Err(fail!(OutOfMemory, "a {}: the library's reserve had to help out", T::NAME));
    }
    let mut resting = RESTING.lock();
    let shell: *const Shell = match resting.len() {
        n if n > REST => resting.pop_front().map_or(std::ptr::null(), std::ptr::with_exposed_provenance),
        _ => {
            let shells = SHELLS.load(Ordering::Relaxed) + 1;
            let room = shells.saturating_sub(resting.len());
            let layout = std::alloc::Layout::new::<Shell>();
            // Both live on; they are no use of the reserve. (The lock keeps it to one thread.)
            let place = reserve::closed(|| {
                resting.try_reserve(room).map_err(|_| fail!(OutOfMemory, "a handle"))?;
                // SAFETY: `Shell` is not zero-sized; the result is checked below.
                Ok(unsafe { std::alloc::alloc(layout) }.cast::<Shell>())
            })?;
            if place.is_null() {
                return Err(fail!(OutOfMemory, "a handle"));
            }
            // SAFETY: a fresh allocation of `Shell`'s layout.
            unsafe {
                place.write(Shell { tag: AtomicU32::new(FREE), body: AtomicPtr::new(std::ptr::null_mut()) })
            };
            SHELLS.store(shells, Ordering::Relaxed);
            place
        }
    };
    drop(resting);
    // SAFETY: shells are never freed; one that was resting or is new is nobody else's.
    let found = unsafe { &*shell };
    found.body.store(Arc::into_raw(body) as *mut (), Ordering::Relaxed);
    found.tag.store(T::TAG, Ordering::Release);
    LIVE.fetch_add(1, Ordering::Relaxed);
    Ok(shell as *mut H)
}

/// The body of a handle from C, for the time of one call.
///
/// # Safety
/// `handle` is NULL or was made by [`make`], freed since or not; it is not freed during the call.
pub unsafe fn get<'a, H, T: Kind>(handle: *const H) -> Result<&'a T> {
    if handle.is_null() {
        return Err(fail!(InvalidHandle, "the {} is NULL", T::NAME));
    }
    if !handle.cast::<Shell>().is_aligned() {
        return Err(fail!(InvalidHandle, "{handle:p} is no {}", T::NAME));
    }
    // SAFETY: shells are never freed (caller's contract: it is one), so it can always be read.
    let shell = unsafe { &*handle.cast::<Shell>() };
    match shell.tag.load(Ordering::Acquire) {
        // SAFETY: the tag says that the body is a `T` that the shell owns a count of.
        tag if tag == T::TAG => Ok(unsafe { &*shell.body.load(Ordering::Relaxed).cast::<T>() }),
        FREE => Err(fail!(InvalidHandle, "the {} {handle:p} was freed", T::NAME)),
        tag if tag >> 16 == TAGS => {
            Err(fail!(InvalidHandle, "{handle:p} is a handle, but of no {}", T::NAME))
        }
        _ => Err(fail!(InvalidHandle, "{handle:p} is no {}, nor any other handle", T::NAME)),
    }
}

/// The body of a handle from C, alone, for the time of one call; refused where something else keeps the
/// body alive.
///
/// # Safety
/// As [`get`], and no other call uses the handle meanwhile.
pub unsafe fn get_mut<'a, H, T: Kind>(handle: *mut H) -> Result<&'a mut T> {
    // SAFETY: the caller's contract; `get` proves that the body is an `Arc`'s, whose count stays the
    // shell's (`ManuallyDrop`).
    unsafe {
        let body: &T = get(handle)?;
        let mut body = std::mem::ManuallyDrop::new(Arc::from_raw(body));
        match Arc::get_mut(&mut body) {
            Some(body) => Ok(&mut *std::ptr::from_mut(body)),
            None => Err(fail!(InvalidArgument, "the {} is in use", T::NAME)),
        }
    }
}

/// Another count of a handle's body, to keep it alive.
///
/// # Safety
/// As [`get`].
pub unsafe fn share<H, T: Kind>(handle: *const H) -> Result<Arc<T>> {
    // SAFETY: the caller's contract; `get` proves that the body is an `Arc`'s.
    unsafe {
        let body: &T = get(handle)?;
        Arc::increment_strong_count(body);
        Ok(Arc::from_raw(body))
    }
}

/// Takes a handle back and calls `release(tag, body)` once. NULL and stale handles do nothing.
///
/// # Safety
/// As [`get`]; `release` drops the count of the body.
pub unsafe fn free(handle: *mut c_void, release: impl FnOnce(u32, *const ())) {
    if handle.is_null() || !handle.cast::<Shell>().is_aligned() {
        return;
    }
    // SAFETY: shells are never freed.
    let shell = unsafe { &*handle.cast::<Shell>() };
    let tag = shell.tag.load(Ordering::Acquire);
    // An address that never was a handle's is left alone where what lies there tells. One of two calls at a time frees.
    let is_handle = tag >> 16 == TAGS;
    if !is_handle || shell.tag.compare_exchange(tag, FREE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return;
    }
    release(tag, shell.body.swap(std::ptr::null_mut(), Ordering::Relaxed));
    LIVE.fetch_sub(1, Ordering::Relaxed);
    // Room was reserved when the shell was made.
    RESTING.lock().push_back(handle.expose_provenance());
}
