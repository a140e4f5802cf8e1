//! Modules of kernels on a device: loaded once, at the first layer that needs them, never in a call.

use std::ffi::{CStr, c_int, c_uint};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::{CUfunction, CUmodule};

use super::device::Slow;
use super::driver::Driver;
use super::image::{IMAGES, first, unpacked};
use crate::error::{Error, Result, Status, fail};
use crate::kernel::cuda::launch::{Gpu, Module};
use crate::memory::reserve;

/// `CU_FUNC_ATTRIBUTE_NUM_REGS`.
const REGISTERS: c_uint = 4;
/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const DYNAMIC_SHARED: c_uint = 8;
/// What a driver says of an image that is for another device or a newer driver: invalid image, no binary for
/// the GPU, invalid PTX, PTX version, no PTX compiler, target.
const NOT_FOR_HERE: [u32; 6] = [200, 209, 218, 221, 222, 223];

/// What is loaded on a device.
#[derive(Default)]
pub struct Modules {
    loaded: [OnceLock<Loaded>; Module::ALL.len()],
    loading: Mutex<()>,
}

struct Loaded {
    handle: CUmodule,
    /// In the order of [`Module::functions`].
    functions: Vec<CUfunction>,
}

// SAFETY: handles that the driver takes from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Modules {
    /// Loads a module where it is not, and makes its functions ready: a launch that had to load something
    /// would wait for the device, and would break a capture.
    pub fn load(&self, slow: &Slow<'_>, module: Module, gpu: &Gpu) -> Result<()> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(|e| e.into_inner());
        let place = &self.loaded[module as usize];
        if place.get().is_some() {
            return Ok(());
        }
        let handle = image(slow, module)?;
        let mut loaded = Loaded { handle, functions: Vec::new() };
        let ready = loaded.prepare(slow, module, gpu);
        if ready.is_err() || place.set(loaded).is_err() {
            // SAFETY: loaded above, and nothing of it is in use.
            unsafe { (slow.driver().functions.module_unload)(handle) };
        }
        ready
    }

    /// A function of a module that was loaded.
    pub fn function(&self, module: Module, name: &CStr) -> Option<CUfunction> {
        let at = module.functions().iter().position(|f| std::ptr::eq(*f, name) || *f == name)?;
        self.loaded[module as usize].get()?.functions.get(at).copied()
    }

    /// Gives everything back. The device's context is current.
    pub fn unload(self, driver: &Driver) {
        for loaded in self.loaded.iter().filter_map(OnceLock::get) {
            // SAFETY: loaded in `load`; the device has no layers any more that could launch.
            unsafe { (driver.functions.module_unload)(loaded.handle) };
        }
    }
}

impl Loaded {
    fn prepare(&mut self, slow: &Slow<'_>, module: Module, gpu: &Gpu) -> Result<()> {
        let f = &slow.driver().functions;
        reserve(&mut self.functions, module.functions().len(), "functions")?;
        for name in module.functions() {
            let mut function = std::ptr::null_mut();
            let mut registers = 0;
            // SAFETY: a module of this context, a name with its NUL, places for the results.
            unsafe {
                let result = (f.module_function)(&mut function, self.handle, name.as_ptr());
                let within = |e: Error| e.within(format_args!("{}", name.to_string_lossy()));
                slow.check(result, "cuModuleGetFunction").map_err(within)?;
                let room = gpu.dynamic_shared() as c_int;
                let result = (f.set_function_attribute)(function, DYNAMIC_SHARED, room);
                slow.check(result, "cuFuncSetAttribute").map_err(within)?;
                // Asking loads it, where the driver would wait for its first launch.
                let result = (f.function_attribute)(&mut registers, REGISTERS, function);
                slow.check(result, "cuFuncGetAttribute").map_err(within)?;
            }
            self.functions.push(function);
        }
        Ok(())
    }
}

/// The best image that the device and its driver take.
fn image(slow: &Slow<'_>, module: Module) -> Result<CUmodule> {
    let (driver, arch) = (slow.driver(), slow.device().description().arch);
    let mut refused = None;
    let loaded = first(IMAGES, module, arch, driver.ptx_only(), |image| {
        let bytes = match unpacked(image) {
            Ok(bytes) => bytes,
            Err(e) => return Some(Err(e)),
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: a cubin is an ELF file, which says itself how long it is; PTX ends with a NUL. The driver
        // keeps neither.
        let result = unsafe { (driver.functions.module_load)(&mut handle, bytes.as_ptr().cast()) };
        if NOT_FOR_HERE.contains(&result) {
            refused = Some(result);
            return None;
        }
        Some(slow.check(result, "cuModuleLoadData").map(|()| handle))
    });
    match (loaded, refused) {
        (Some(result), _) => result,
        (None, Some(result)) => Err(driver
            .failure(result, "cuModuleLoadData")
            .with(Status::UnsupportedDevice)
            .within(format_args!("no kernels for device {} in its driver", slow.device().index()))),
        (None, None) => Err(fail!(
            UnsupportedDevice,
            "this library has no kernels `{}` for compute capability {}.{}",
            module.name(),
            arch / 10,
            arch % 10
        )),
    }
}
