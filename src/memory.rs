//! Aligned, fallible allocation: every size that comes from a file or an argument goes through here.

use std::alloc::Layout;
use std::ptr::NonNull;

use crate::error::{Result, fail};

/// Alignment of weights and workspaces in bytes: a cache line, and an AVX-512 vector.
pub const ALIGNMENT: usize = 64;
/// From this size on weights ask for huge pages: below, a huge page would mostly be padding.
const HUGE_PAGES_FROM: usize = 4 << 20;
/// The huge page of x86-64 and of arm64 with 4 KiB base pages.
const HUGE_PAGE: usize = 2 << 20;

/// Owned bytes, zeroed, aligned to [`ALIGNMENT`] (to a huge page where they fill several).
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its bytes alone; sharing it hands out `&[u8]` only.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes, or `OutOfMemory` naming `what`.
    pub fn zeroed(len: usize, what: &str) -> Result<Buffer> {
        let align = if len >= HUGE_PAGES_FROM { HUGE_PAGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(len.max(1), align)
            .map_err(|_| fail!(OutOfMemory, "{what}: {len} bytes are more than an address space"))?;
        // SAFETY: the size is at least 1 by the line above.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or_else(|| fail!(OutOfMemory, "{what}: {len} bytes"))?;
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGES_FROM {
            // Advice only: where it is refused the pages stay small and nothing else changes.
            // SAFETY: `start` is this allocation's, at least `len` bytes long.
            unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Buffer { start, layout })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is valid for `layout.size()` initialised bytes (zeroed in `zeroed`).
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
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A vector of `len` copies of `value`, or `OutOfMemory` naming `what`.
pub fn filled<T: Clone>(len: usize, value: T, what: &str) -> Result<Vec<T>> {
    let mut vec = Vec::new();
    reserve(&mut vec, len, what)?;
    vec.resize(len, value);
    Ok(vec)
}

/// Room for `additional` more items, or `OutOfMemory` naming `what`.
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
    fn buffers_are_zero_and_aligned() -> Result<()> {
        for len in [0, 1, 64, 5 << 20] {
            let buffer = Buffer::zeroed(len, "test")?;
            assert_eq!(buffer.bytes().as_ptr() as usize % ALIGNMENT, 0);
            assert!(buffer.bytes().iter().all(|&b| b == 0));
        }
        Ok(())
    }
}
