//! Memory of a GPU, and memory of the host that a GPU reads and writes directly. Every allocation can
//! fail, is counted, and is given back when its owner goes, also where the device is lost by then.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::CUstream;

use super::device::{Device, Slow};
use crate::error::{Result, fail};

/// Alignment of everything on a device: what cuMemAlloc gives.
pub const ALIGNMENT: usize = 256;

/// What is allocated of the device's memory, where somebody counts.
pub type Count = Arc<AtomicU64>;

/// Bytes on a device: allocated here, or the host's own.
pub struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
    len: usize,
    /// What it is counted in; `None`: the host's.
    count: Option<Count>,
}

impl DeviceMemory {
    /// `len` bytes of any content.
    pub fn new(slow: &Slow<'_>, device: &Arc<Device>, len: usize, count: &Count) -> Result<DeviceMemory> {
        let mut address = 0;
        // SAFETY: the device's context is current (`slow`); a place for the address.
        let result = unsafe { (slow.driver().functions.alloc)(&mut address, len.max(1)) };
        slow.check(result, "cuMemAlloc").map_err(|e| e.within(format_args!("{len} bytes")))?;
        count.fetch_add(len as u64, Ordering::Relaxed);
        Ok(DeviceMemory { device: device.clone(), address, len, count: Some(count.clone()) })
    }

    /// The host's own bytes.
    ///
    /// # Safety
    /// They are memory of that device, and nobody else uses them while this lives.
    pub unsafe fn of_host(device: &Arc<Device>, address: u64, len: usize) -> Result<DeviceMemory> {
        if !address.is_multiple_of(ALIGNMENT as u64) {
            return Err(fail!(
                InvalidArgument,
                "device memory at {address:#x}: a multiple of {ALIGNMENT} expected"
            ));
        }
        Ok(DeviceMemory { device: device.clone(), address, len, count: None })
    }

    /// Where they begin.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Whether they are the host's.
    pub fn is_hosts(&self) -> bool {
        self.count.is_none()
    }

    /// Writes bytes at `at`, once what is before it on the stream is done. The bytes may be changed once
    /// the stream has been waited for.
    pub fn write(&self, slow: &Slow<'_>, at: usize, bytes: &[u8], stream: &Stream) -> Result<()> {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        if bytes.is_empty() {
            return Ok(());
        }
        let (to, from) = (self.address + at as u64, bytes.as_ptr().cast());
        // SAFETY: inside the allocation (line above); the source is read before the stream has been waited
        // for, or, where it is not pinned, before the call comes back.
        let result = unsafe { (slow.driver().functions.to_device)(to, from, bytes.len(), stream.handle()) };
        slow.check(result, "cuMemcpyHtoDAsync")
    }

    /// Reads bytes from `at` on; they are there once the stream has been waited for.
    pub fn read(&self, slow: &Slow<'_>, at: usize, bytes: &mut [u8], stream: &Stream) -> Result<()> {
        assert!(at <= self.len && bytes.len() <= self.len - at);
        if bytes.is_empty() {
            return Ok(());
        }
        let (to, from) = (bytes.as_mut_ptr().cast(), self.address + at as u64);
        // SAFETY: inside the allocation (line above); the callers wait for the stream while `bytes` lives.
        let result = unsafe { (slow.driver().functions.to_host)(to, from, bytes.len(), stream.handle()) };
        slow.check(result, "cuMemcpyDtoHAsync")
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        let Some(count) = &self.count else { return };
        count.fetch_sub(self.len as u64, Ordering::Relaxed);
        let address = self.address;
        // SAFETY: allocated in `new`. cuMemFree waits for what still uses it.
        self.device.give_back(|driver| unsafe {
            (driver.functions.free)(address);
        });
    }
}

/// Host memory that copies to and from a device need not go through the driver's own for.
pub struct Pinned {
    device: Arc<Device>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: as above; shared, it is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `len` zero bytes.
    pub fn new(slow: &Slow<'_>, device: &Arc<Device>, len: usize) -> Result<Pinned> {
        let mut start: *mut c_void = std::ptr::null_mut();
        // SAFETY: the device's context is current (`slow`); a place for the address.
        let result = unsafe { (slow.driver().functions.host_alloc)(&mut start, len.max(1), 0) };
        slow.check(result, "cuMemHostAlloc").map_err(|e| e.within(format_args!("{len} bytes")))?;
        let start =
            NonNull::new(start.cast::<u8>()).ok_or_else(|| fail!(OutOfMemory, "cuMemHostAlloc gave NULL"))?;
        // SAFETY: `len` bytes that the driver has just given.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Ok(Pinned { device: device.clone(), start, len })
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialised bytes of this owner's; what a device copies into or out of them is
        // waited for before they are looked at again (`lane`, `upload`).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let start = self.start;
        // SAFETY: allocated in `new`.
        self.device.give_back(|driver| unsafe {
            (driver.functions.host_free)(start.as_ptr().cast());
        });
    }
}

/// A stream of our own, which does not wait for the default one.
pub struct Stream {
    device: Arc<Device>,
    handle: CUstream,
}

// SAFETY: the driver's functions may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream.
    pub fn new(slow: &Slow<'_>, device: &Arc<Device>) -> Result<Stream> {
        /// `CU_STREAM_NON_BLOCKING`.
        const NON_BLOCKING: u32 = 1;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the device's context is current (`slow`); a place for the handle.
        let result = unsafe { (slow.driver().functions.stream_create)(&mut handle, NON_BLOCKING) };
        slow.check(result, "cuStreamCreate")?;
        Ok(Stream { device: device.clone(), handle })
    }

    /// The driver's handle.
    pub fn handle(&self) -> CUstream {
        self.handle
    }

    /// Waits for what was put on it.
    pub fn wait(&self, slow: &Slow<'_>) -> Result<()> {
        // SAFETY: a stream of this context (`new`).
        slow.check(unsafe { (slow.driver().functions.stream_wait)(self.handle) }, "cuStreamSynchronize")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let handle = self.handle;
        // SAFETY: made in `new`.
        self.device.give_back(|driver| unsafe {
            (driver.functions.stream_destroy)(handle);
        });
    }
}
