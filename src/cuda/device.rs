//! One GPU: its primary context, which the process shares with the CUDA runtime, PyTorch and others, and
//! what this library has loaded there.
//!
//! A device is alive while a layer, or a context that had one, holds it; with its last count go its
//! modules and the count of the primary context. It is never reset.

use std::ffi::{c_uint, c_void};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cudarc::driver::sys::CUcontext;

use super::driver::{Description, Driver, driver, is_past_the_end, is_sticky};
use super::module::Modules;
use crate::error::{Error, Result, Status, fail};
use crate::memory::reserve;

/// The oldest compute capability that there are kernels for.
pub const OLDEST_ARCH: u32 = 75;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: allocating does not break a capture of the host's elsewhere.
const RELAXED: c_uint = 2;

/// A GPU in use.
pub struct Device {
    driver: &'static Driver,
    /// Its number in `bl_device_describe`: from 1 on.
    index: u32,
    context: CUcontext,
    /// The result after which nothing works any more; 0: it works.
    lost: AtomicU32,
    pub(super) modules: Modules,
}

// SAFETY: the context may be used from any thread, by making it current there (`enter`).
unsafe impl Send for Device {}
// SAFETY: as above; what changes is atomic or behind a mutex.
unsafe impl Sync for Device {}

impl Device {
    /// The device of that number; made where nobody has it.
    pub fn of(index: u32) -> Result<Arc<Device>> {
        /// Those that are alive, one place for each GPU.
        static ALIVE: Mutex<Vec<Weak<Device>>> = Mutex::new(Vec::new());
        let driver = driver()?;
        let ordinal = (index as usize).wrapping_sub(1);
        let Some(description) = driver.devices().get(ordinal) else {
            let count = driver.devices().len();
            return Err(fail!(NotFound, "device {index}: 0 is the CPU, 1 to {count} are GPUs"));
        };
        if description.arch < OLDEST_ARCH {
            return Err(fail!(
                UnsupportedDevice,
                "device {index} has compute capability {}.{}: 7.5 or newer expected",
                description.arch / 10,
                description.arch % 10
            ));
        }
        let mut alive = ALIVE.lock().unwrap_or_else(|e| e.into_inner());
        if alive.is_empty() {
            reserve(&mut alive, driver.devices().len(), "GPUs")?;
            alive.resize(driver.devices().len(), Weak::new());
        }
        if let Some(device) = alive[ordinal].upgrade() {
            return Ok(device);
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: a device of the driver's own, and a place for its context.
        let result = unsafe { (driver.functions.primary_retain)(&mut context, description.handle) };
        driver.check(result, "cuDevicePrimaryCtxRetain")?;
        let lost = AtomicU32::new(0);
        let device = Arc::new(Device { driver, index, context, lost, modules: Modules::default() });
        alive[ordinal] = Arc::downgrade(&device);
        Ok(device)
    }

    /// Its number in `bl_device_describe`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What it is.
    pub fn description(&self) -> &'static Description {
        &self.driver.devices()[self.index as usize - 1]
    }

    /// Makes its context current on this thread, where it is not; the guard puts back what was. Refused
    /// after a fork() and on a lost device.
    pub fn enter(&self) -> Result<Entered<'_>> {
        if self.driver.forked() {
            return Err(fail!(
                Forked,
                "device {} is the parent's: it cannot be used after fork()",
                self.index
            ));
        }
        match self.lost.load(Ordering::Relaxed) {
            0 => self.enter_anyhow(),
            result => Err(self.lost(result, "an earlier call")),
        }
    }

    /// The same for what may wait, allocate or load: a capture that the host has begun on another stream
    /// stays good.
    pub fn enter_slowly(&self) -> Result<Slow<'_>> {
        self.enter().map(Slow::new)
    }

    fn enter_anyhow(&self) -> Result<Entered<'_>> {
        let f = &self.driver.functions;
        let mut current = std::ptr::null_mut();
        // SAFETY: the driver's own functions; the context is ours for as long as the device is.
        unsafe {
            self.check((f.current)(&mut current), "cuCtxGetCurrent")?;
            let pushed = current != self.context;
            if pushed {
                self.check((f.push)(self.context), "cuCtxPushCurrent")?;
            }
            Ok(Entered { device: self, pushed, _thread: PhantomData })
        }
    }

    /// Works even where the device is lost, to give things back: in order of their failures none matters.
    /// Nothing is done after a fork(), where they are the parent's.
    pub(super) fn give_back(&self, work: impl FnOnce(&Driver)) {
        if !self.driver.forked()
            && let Ok(entered) = self.enter_anyhow()
        {
            let _slow = Slow::new(entered);
            work(self.driver);
        }
    }

    /// An error for a result that is none; remembers what makes the device unusable.
    pub(super) fn check(&self, result: u32, call: &str) -> Result<()> {
        if result == 0 { Ok(()) } else { Err(self.failure(result, call)) }
    }

    #[cold]
    fn failure(&self, result: u32, call: &str) -> Error {
        if is_sticky(result) {
            self.lost.store(result, Ordering::Relaxed);
            return self.lost(result, call);
        }
        self.driver.failure(result, call).within(format_args!("device {}", self.index))
    }

    #[cold]
    fn lost(&self, result: u32, call: &str) -> Error {
        let name = self.driver.name_of(result);
        let index = self.index;
        fail!(
            DeviceLost,
            "device {index} is lost: {name} ({result}) in {call}; free all that is on it, and contexts that had a layer there"
        )
    }

    /// Whether an earlier failure made it unusable.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) != 0
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let modules = std::mem::take(&mut self.modules);
        self.give_back(|driver| {
            modules.unload(driver);
        });
        if self.driver.forked() {
            return;
        }
        // SAFETY: the count that `of` took. A driver that has ended before us says so, without harm.
        let result = unsafe { (self.driver.functions.primary_release)(self.description().handle) };
        debug_assert!(result == 0 || is_past_the_end(result) || self.is_lost());
    }
}

/// A device whose context is current on this thread.
pub struct Entered<'a> {
    device: &'a Device,
    pushed: bool,
    /// The guard belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    /// The device.
    pub fn device(&self) -> &Device {
        self.device
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.device.driver
    }

    pub(super) fn check(&self, result: u32, call: &str) -> Result<()> {
        self.device.check(result, call)
    }

    /// The same for a call on a caller's stream, which may be another device's or none.
    pub(super) fn check_stream(&self, result: u32, call: &str) -> Result<()> {
        /// `CUDA_ERROR_INVALID_CONTEXT` and `CUDA_ERROR_INVALID_HANDLE`.
        const NOT_OURS: [u32; 2] = [201, 400];
        match self.check(result, call) {
            Err(e) if NOT_OURS.contains(&result) => Err(e
                .with(Status::InvalidArgument)
                .within(format_args!("the stream is none of the layer's device"))),
            other => other,
        }
    }

    /// The number of the device that has the memory at an address; `None` where no device has.
    pub(super) fn owner(&self, address: u64) -> Option<u32> {
        /// `CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`.
        const ORDINAL: c_uint = 9;
        let mut ordinal = -1i32;
        let f = &self.driver().functions;
        // SAFETY: any address may be asked about; the answer is an int.
        let result = unsafe { (f.pointer_attribute)((&raw mut ordinal).cast::<c_void>(), ORDINAL, address) };
        (result == 0 && ordinal >= 0).then_some(ordinal as u32 + 1)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = std::ptr::null_mut();
            // SAFETY: what `enter` pushed on this thread: the guard is not `Send`, and calls
            // in between leave the stack of contexts as it was.
            unsafe { (self.device.driver.functions.pop)(&mut popped) };
        }
    }
}

/// A device entered for what may wait, allocate or load.
pub struct Slow<'a> {
    entered: Entered<'a>,
    /// The thread's own mode, where it was exchanged.
    mode: Option<c_uint>,
}

impl<'a> Slow<'a> {
    fn new(entered: Entered<'a>) -> Slow<'a> {
        let mut mode = RELAXED;
        // SAFETY: the driver's own function; it exchanges the number.
        let result = unsafe { (entered.driver().functions.capture_mode)(&mut mode) };
        Slow { entered, mode: (result == 0).then_some(mode) }
    }
}

impl<'a> Deref for Slow<'a> {
    type Target = Entered<'a>;
    fn deref(&self) -> &Entered<'a> {
        &self.entered
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        if let Some(mode) = &mut self.mode {
            // SAFETY: as in `new`.
            unsafe { (self.entered.driver().functions.capture_mode)(mode) };
        }
    }
}
