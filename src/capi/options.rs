//! Structs that begin with `struct_size`: read from and written to callers of any header version.
//! cbindgen:ignore

use crate::error::{Result, fail};
use crate::limits::STRUCT_SIZE_MAX;

/// A C struct whose first field is `uint32_t struct_size`, valid when all its bytes are zero.
///
/// # Safety
/// `repr(C)`, no padding, first field a `u32`, every bit pattern valid.
pub unsafe trait Sized32: Copy {
    /// For messages.
    const NAME: &'static str;
}

/// Copies an options struct. Fields that the caller's header does not know are zero; fields that this
/// library does not know must be.
///
/// # Safety
/// `from` is NULL (all defaults) or points to a struct as long as its `struct_size` says.
pub unsafe fn read<T: Sized32>(from: *const T) -> Result<T> {
    // SAFETY: all zeros is a value of `T` (trait contract).
    let mut options: T = unsafe { std::mem::zeroed() };
    if from.is_null() {
        return Ok(options);
    }
    // SAFETY: at least the first field is there (caller's contract).
    let size = unsafe { from.cast::<u32>().read_unaligned() };
    if !(8..=STRUCT_SIZE_MAX).contains(&size) {
        return Err(fail!(InvalidArgument, "{}.struct_size is {size}: set it to sizeof({0})", T::NAME));
    }
    let (size, known) = (size as usize, size_of::<T>());
    // SAFETY: both are at least `min(size, known)` bytes long (caller's contract; `T`'s own size).
    unsafe {
        std::ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut options).cast(), size.min(known));
    }
    for i in known..size {
        // SAFETY: inside the caller's struct, `i < struct_size`.
        if unsafe { from.cast::<u8>().add(i).read() } != 0 {
            return Err(fail!(
                InvalidArgument,
                "byte {i} of {} is set, a field of a newer header than this library's",
                T::NAME
            ));
        }
    }
    Ok(options)
}

/// How much of an info struct the caller has; checked before any work, so that a failure leaves zeros.
///
/// # Safety
/// `to` is NULL or points to a struct as long as its `struct_size` says.
pub unsafe fn prepare<T: Sized32>(to: *mut T) -> Result<Out<T>> {
    if to.is_null() {
        return Err(fail!(InvalidArgument, "the {} to fill is NULL", T::NAME));
    }
    // SAFETY: at least the first field is there (caller's contract).
    let size = unsafe { to.cast::<u32>().read_unaligned() };
    if !(8..=STRUCT_SIZE_MAX).contains(&size) {
        return Err(fail!(InvalidArgument, "{}.struct_size is {size}: set it to sizeof({0})", T::NAME));
    }
    // SAFETY: the caller's struct is `size` bytes long; its first four stay.
    unsafe { to.cast::<u8>().add(4).write_bytes(0, size as usize - 4) };
    Ok(Out { to, size: size as usize })
}

/// A prepared info struct.
pub struct Out<T> {
    to: *mut T,
    size: usize,
}

impl<T: Sized32> Out<T> {
    /// Writes what the caller's header knows of `info`; its `struct_size` stays.
    pub fn fill(self, info: &T) {
        let bytes = self.size.min(size_of::<T>());
        // SAFETY: `prepare`'s contract says that `size` bytes are the caller's; the first four stay.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const *info).cast::<u8>().add(4),
                self.to.cast::<u8>().add(4),
                bytes - 4,
            );
        }
    }
}
