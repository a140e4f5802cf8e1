//! Aligned, fallible allocation: every size that comes from a file or an argument goes through here.

use std::alloc::Layout;
use std::any::Any;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Result, fail};

/// Alignment of weights and workspaces in bytes: a cache line, and an AVX-512 vector.
pub const ALIGNMENT: usize = 64;
/// From this size on weights ask for huge pages: below, a huge page would mostly be padding.
const HUGE_PAGES_FROM: usize = 4 << 20;
/// Bytes of a chunk that smaller weights share: several huge pages, of which the last may be wasted.
const CHUNK: usize = 16 << 20;
/// The huge page of x86-64 and of arm64 with 4 KiB base pages.
const HUGE_PAGE: usize = 2 << 20;

/// A caller's allocator: both functions or none. It is called from any thread.
#[derive(Clone, Copy)]
pub struct Callbacks {
    /// `alloc(user, size, alignment)`: memory of any content, or NULL.
    pub alloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    /// `dealloc(user, pointer, size, alignment)`, with what `alloc` was called with.
    pub dealloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize),
    /// Passed back.
    pub user: *mut c_void,
}

// SAFETY: the caller promised that its functions and `user` may be used from any thread.
unsafe impl Send for Callbacks {}
// SAFETY: as above.
unsafe impl Sync for Callbacks {}

/// Where weights and workspaces come from: the process's allocator or a caller's. Small layers share
/// chunks, so that their weights lie on huge pages too.
#[derive(Default)]
pub struct Heap {
    callbacks: Option<Callbacks>,
    chunk: Mutex<Option<Arc<Chunk>>>,
}

/// Memory that small blocks are cut from, one after another. It is freed with its last block.
struct Chunk {
    memory: Buffer,
    used: AtomicUsize,
}

impl Heap {
    /// A heap on a caller's allocator.
    pub fn with(callbacks: Option<Callbacks>) -> Heap {
        Heap { callbacks, chunk: Mutex::default() }
    }

    /// `len` zero bytes of their own.
    pub fn buffer(&self, len: usize, what: &str) -> Result<Buffer> {
        Buffer::from(self.callbacks, len, what)
    }

    /// `len` zero bytes for weights: of their own where they fill huge pages, else of a shared chunk.
    pub fn block(&self, len: usize, what: &str) -> Result<Block> {
        if len >= HUGE_PAGES_FROM {
            return Ok(Block { memory: Memory::Own(self.buffer(len, what)?) });
        }
        let size = len.next_multiple_of(ALIGNMENT);
        let mut current = self.chunk.lock().unwrap_or_else(|e| e.into_inner());
        let fits = |chunk: &Arc<Chunk>| {
            let at = chunk.used.load(Ordering::Relaxed);
            (at + size <= CHUNK).then(|| {
                chunk.used.store(at + size, Ordering::Relaxed); // under the lock of `current`
                Block { memory: Memory::Shared { chunk: chunk.clone(), at, len } }
            })
        };
        if let Some(block) = current.as_ref().and_then(fits) {
            return Ok(block);
        }
        let memory = self.buffer(CHUNK, what)?;
        let chunk = Arc::new(Chunk { memory, used: AtomicUsize::new(size) });
        *current = Some(chunk.clone());
        Ok(Block { memory: Memory::Shared { chunk, at: 0, len } })
    }
}

/// Bytes of weights: a buffer, a part of a chunk that is nobody else's, or bytes that something else
/// owns (a mapped file).
pub struct Block {
    memory: Memory,
}

enum Memory {
    Own(Buffer),
    Shared { chunk: Arc<Chunk>, at: usize, len: usize },
    Kept { start: *const u8, len: usize, _owner: Arc<dyn Any + Send + Sync> },
}

// SAFETY: buffers and chunks may go to any thread; kept bytes are only ever read, and belong to an
// owner that may be used from any thread.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Bytes of `owner`, read in place; the block keeps it alive.
    pub fn kept<T: Send + Sync + 'static>(owner: &Arc<T>, bytes: impl FnOnce(&T) -> &[u8]) -> Block {
        // The borrow that `bytes` makes stays good while this count of the owner lives: nobody can
        // get an exclusive reference to it meanwhile.
        let bytes = bytes(owner);
        let (start, len) = (bytes.as_ptr(), bytes.len());
        Block { memory: Memory::Kept { start, len, _owner: owner.clone() } }
    }

    /// Whether the bytes are another's: they cannot be written.
    pub fn is_kept(&self) -> bool {
        matches!(self.memory, Memory::Kept { .. })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Own(buffer) => buffer.bytes(),
            Memory::Shared { chunk, at, len } => {
                // SAFETY: inside the chunk (`Heap::block` checked `at + len <= CHUNK`), and no other
                // block overlaps it, so that nobody writes it while `&self` is shared.
                unsafe { std::slice::from_raw_parts(chunk.memory.start.as_ptr().add(*at), *len) }
            }
            // SAFETY: a slice of the owner's, which is alive (see `kept`).
            Memory::Kept { start, len, .. } => unsafe { std::slice::from_raw_parts(*start, *len) },
        }
    }

    /// The bytes, to be written; none where they are another's.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Own(buffer) => buffer.bytes_mut(),
            Memory::Shared { chunk, at, len } => {
                // SAFETY: as in `bytes`; `&mut self` makes the access to this part exclusive.
                unsafe { std::slice::from_raw_parts_mut(chunk.memory.start.as_ptr().add(*at), *len) }
            }
            Memory::Kept { .. } => &mut [],
        }
    }
}

impl From<Buffer> for Block {
    fn from(buffer: Buffer) -> Block {
        Block { memory: Memory::Own(buffer) }
    }
}

/// Owned bytes, zeroed, aligned to [`ALIGNMENT`] (to a huge page where they fill several).
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
    callbacks: Option<Callbacks>,
}

// SAFETY: the buffer owns its bytes alone; sharing it hands out `&[u8]` only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes, or `OutOfMemory` naming `what`.
    pub fn zeroed(len: usize, what: &str) -> Result<Buffer> {
        Buffer::from(None, len, what)
    }

    fn from(callbacks: Option<Callbacks>, len: usize, what: &str) -> Result<Buffer> {
        let align = if len >= HUGE_PAGES_FROM { HUGE_PAGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|_| fail!(OutOfMemory, "{what}: {len} bytes are more than an address space"))?;
        let start = match callbacks {
            #[cfg(target_os = "linux")]
            None if len >= HUGE_PAGES_FROM => pages::map(layout),
            // SAFETY: the size is at least 1 by the lines above.
            None => unsafe { std::alloc::alloc_zeroed(layout) },
            // SAFETY: the caller's functions, called as their contract says.
            Some(c) => unsafe { (c.alloc)(c.user, layout.size(), align) }.cast::<u8>(),
        };
        let start = NonNull::new(start).ok_or_else(|| fail!(OutOfMemory, "{what}: {len} bytes"))?;
        if callbacks.is_some() {
            if !(start.as_ptr() as usize).is_multiple_of(align) {
                drop(Buffer { start, layout, callbacks });
                return Err(fail!(
                    InvalidArgument,
                    "{what}: the context's alloc ignored the alignment {align}"
                ));
            }
            // SAFETY: `layout.size()` bytes that the caller's allocator has just given.
            unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        }
        Ok(Buffer { start, layout, callbacks })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `layout.size()` initialised bytes (zeroed in `from`).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.callbacks {
            #[cfg(target_os = "linux")]
            None if self.layout.align() == HUGE_PAGE => pages::unmap(self.start, self.layout),
            // SAFETY: allocated in `from` with this layout.
            None => unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) },
            Some(c) => {
                let (size, align) = (self.layout.size(), self.layout.align());
                // SAFETY: came from the same caller's `alloc`, with this size and alignment.
                unsafe { (c.dealloc)(c.user, self.start.as_ptr().cast(), size, align) }
            }
        }
    }
}

/// Zero pages straight from the kernel. The process's allocator would zero aligned memory by writing
/// it, before huge pages could be asked for, and so get small ones.
#[cfg(target_os = "linux")]
mod pages {
    use super::{HUGE_PAGE, Layout, NonNull};

    /// `layout.size()` bytes aligned to a huge page; NULL where they cannot be had.
    pub(super) fn map(layout: Layout) -> *mut u8 {
        let Some(room) =
            layout.size().checked_next_multiple_of(HUGE_PAGE).and_then(|n| n.checked_add(HUGE_PAGE))
        else {
            return std::ptr::null_mut();
        };
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let base = unsafe {
            let (protection, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), room, protection, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let before = base.align_offset(HUGE_PAGE);
        let len = room - HUGE_PAGE;
        let start = base.wrapping_byte_add(before);
        // SAFETY: what is unmapped, and advised, lies inside the mapping of `room` bytes made above:
        // `before + len + (HUGE_PAGE - before) == room`. The advice may be refused without harm.
        unsafe {
            if before > 0 {
                libc::munmap(base, before);
            }
            if before < HUGE_PAGE {
                libc::munmap(start.byte_add(len), HUGE_PAGE - before);
            }
            libc::madvise(start, len, libc::MADV_HUGEPAGE);
        }
        start.cast()
    }

    /// Gives back what [`map`] gave.
    pub(super) fn unmap(start: NonNull<u8>, layout: Layout) {
        // SAFETY: `map` left exactly these pages mapped.
        unsafe { libc::munmap(start.as_ptr().cast(), layout.size().next_multiple_of(HUGE_PAGE)) };
    }
}

/// A vector of `len` copies of `value`, or `OutOfMemory` naming `what`. Not copied into its hundreds of
/// callers: that would cost the library tens of kilobytes.
#[inline(never)]
pub fn filled<T: Clone>(len: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(&mut vec, len, what)?;
    vec.resize(len, value);
    Ok(vec)
}

/// Numbers of which any bytes are valid.
pub trait Plain: Copy {}
impl Plain for i8 {}
impl Plain for i16 {}
impl Plain for i32 {}
impl Plain for f32 {}

/// The first `len` values of scratch memory that is aligned for them, and the rest.
pub fn part<T: Plain>(scratch: &mut [u8], len: usize) -> (&mut [T], &mut [u8]) {
    let (start, rest) = scratch.split_at_mut(len * size_of::<T>());
    // SAFETY: any bytes are valid values (`Plain`); `align_to_mut` itself keeps to the aligned middle.
    let (before, values, _) = unsafe { start.align_to_mut::<T>() };
    assert!(before.is_empty(), "scratch is aligned");
    (values, rest)
}

/// A copy of `values`, or `OutOfMemory` naming `what`.
pub fn copied<T: Copy>(values: &[T], what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(&mut vec, values.len(), what)?;
    vec.extend_from_slice(values);
    Ok(vec)
}

/// Room for `additional` more items, or `OutOfMemory` naming `what`.
#[inline(never)]
pub fn reserve<T>(vec: &mut Vec<T>, additional: usize, what: &str) -> Result<()> {
    vec.try_reserve(additional)
        .map_err(|_| fail!(OutOfMemory, "{what}: {additional} items of {} bytes", size_of::<T>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_is_an_error_not_an_abort() {
        assert!(Buffer::zeroed(usize::MAX / 2, "test").is_err());
        assert!(Buffer::zeroed(1 << 60, "test").is_err());
        assert!(filled(1usize << 60, 0u64, "test").is_err());
    }

    #[test]
    fn blocks_share_chunks_and_do_not_overlap() -> Result<()> {
        let heap = Heap::default();
        let mut blocks = Vec::new();
        for i in 0..100u8 {
            let mut block = heap.block(300_001 + i as usize, "test")?;
            assert_eq!(block.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert!(block.bytes().iter().all(|&b| b == 0));
            block.bytes_mut().fill(i);
            blocks.push(block);
        }
        drop(heap); // blocks keep their chunk
        for (i, block) in blocks.iter().enumerate() {
            assert!(block.bytes().len() == 300_001 + i && block.bytes().iter().all(|&b| b == i as u8));
        }
        Ok(())
    }

    #[test]
    fn a_kept_block_keeps_its_owner() {
        let owner = Arc::new(vec![1u8, 2, 3]);
        let mut block = Block::kept(&owner, |bytes| &bytes[1..]);
        drop(owner);
        assert!(block.is_kept() && block.bytes() == [2, 3] && block.bytes_mut().is_empty());
    }

    #[test]
    fn buffers_are_zero_and_aligned() -> Result<()> {
        for len in [0, 1, 64, 5 << 20] {
            let buffer = Buffer::zeroed(len, "test")?;
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.bytes().iter().all(|&b| b == 0));
        }
        Ok(())
    }
}
