//! The CUDA driver's library: found, checked and started when somebody first asks for a device.
//!
//! ```text
//! libcuda.so.1 | nvcuda.dll  is it there, has it all the functions below, cuInit, its version, its devices
//! ```
//! All of it happens once for the process; what went wrong is kept and said at every use.
//!
//! Declarations of types are cudarc's, which also knows the names that the library has on each system.
//! The functions are called through pointers of our own: cudarc's results are an `enum`, and a number that
//! a newer driver returns and the `enum` does not know would be undefined behaviour. They are numbers here.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUfunction, CUmodule, CUstream};

use crate::error::{Error, Result, Status, Text, fail};
use crate::exec;
use crate::memory::reserve;

/// The oldest driver that is used, as cuDriverGetVersion tells it: CUDA 12.0 (525).
const OLDEST: c_int = 12_000;

/// Results of the driver that are told apart.
mod code {
    pub(super) const OUT_OF_MEMORY: u32 = 2;
    pub(super) const DEINITIALIZED: u32 = 4;
    pub(super) const STUB_LIBRARY: u32 = 34;
    pub(super) const NO_DEVICE: u32 = 100;
    /// After these nothing works in the context any more: an uncorrectable memory error, a kernel that
    /// went wrong, a context or a server that is gone.
    pub(super) const STICKY: [u32; 15] =
        [214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810];
}

/// `cuDeviceGetAttribute`: what is asked for.
mod attribute {
    use std::ffi::c_uint;
    pub(super) const PROCESSORS: c_uint = 16;
    pub(super) const MAJOR: c_uint = 75;
    pub(super) const MINOR: c_uint = 76;
    pub(super) const SHARED_MEMORY_OPTIN: c_uint = 97;
}

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The driver's functions. Each gives its result as a number, 0 for success.
        pub(super) struct Functions {
            $($(#[$doc])* pub(super) $name: unsafe extern "system" fn($($argument),*) -> c_uint,)*
        }

        impl Functions {
            /// All of them, or the name of one that is not found.
            ///
            /// # Safety
            /// `find` gives addresses of the driver's functions, which stay where they are.
            unsafe fn of(find: impl Fn(&[u8]) -> Option<*const c_void>) -> Result<Functions, &'static str> {
                Ok(Functions { $($name: {
                    let address = find(concat!($symbol, "\0").as_bytes()).ok_or($symbol)?;
                    // SAFETY: the driver API's own signature of that name, with its enums as the
                    // numbers that they are in C.
                    unsafe {
                        std::mem::transmute::<*const c_void, unsafe extern "system" fn($($argument),*) -> c_uint>(
                            address,
                        )
                    }
                },)* })
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    version = "cuDriverGetVersion" (*mut c_int);
    error_name = "cuGetErrorName" (c_uint, *mut *const c_char);
    count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut CUdevice, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
    device_memory = "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_uint, CUdevice);
    primary_state = "cuDevicePrimaryCtxGetState" (CUdevice, *mut c_uint, *mut c_int);
    primary_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
    primary_release = "cuDevicePrimaryCtxRelease_v2" (CUdevice);
    current = "cuCtxGetCurrent" (*mut CUcontext);
    push = "cuCtxPushCurrent_v2" (CUcontext);
    pop = "cuCtxPopCurrent_v2" (*mut CUcontext);
    capture_mode = "cuThreadExchangeStreamCaptureMode" (*mut c_uint);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    alloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
    free = "cuMemFree_v2" (CUdeviceptr);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    to_device = "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
    to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
    pointer_attribute = "cuPointerGetAttribute" (*mut c_void, c_uint, CUdeviceptr);
    stream_create = "cuStreamCreate" (*mut CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (CUstream);
    stream_wait = "cuStreamSynchronize" (CUstream);
    module_load = "cuModuleLoadData" (*mut CUmodule, *const c_void);
    module_unload = "cuModuleUnload" (CUmodule);
    module_function = "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
    function_attribute = "cuFuncGetAttribute" (*mut c_int, c_uint, CUfunction);
    set_function_attribute = "cuFuncSetAttribute" (CUfunction, c_uint, c_int);
    launch = "cuLaunchKernel" (
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
        *mut *mut c_void);
}

/// What is known of a GPU without a context on it.
pub struct Description {
    /// Its name, as the driver tells it.
    pub name: Name,
    /// 10 * major + minor of its compute capability.
    pub arch: u32,
    /// Its streaming multiprocessors.
    pub processors: u32,
    /// Bytes of its memory.
    pub memory: u64,
    /// Most bytes of shared memory that a block may ask for.
    pub shared_memory: u32,
    pub(super) handle: CUdevice,
}

/// A text of C, of bounded length.
pub struct Name([c_char; 128]);

impl Name {
    /// NUL-terminated.
    pub fn as_c(&self) -> &CStr {
        // SAFETY: the last byte is 0: the array is all zeros first, and the driver is told one byte less.
        unsafe { CStr::from_ptr(self.0.as_ptr()) }
    }
}

/// The driver, started.
pub struct Driver {
    pub(super) functions: Functions,
    devices: Vec<Description>,
    /// BITLINEAR_CUDA_PTX=1: the driver compiles all kernels.
    ptx_only: bool,
    /// Forks before it was started: after another one it cannot be used.
    born: u32,
}

// SAFETY: function pointers of a library that stays loaded, and numbers.
unsafe impl Send for Driver {}
// SAFETY: the driver's functions may be called from any thread.
unsafe impl Sync for Driver {}

/// Why there is none, kept for ever.
struct Refusal {
    status: Status,
    text: Text,
}

/// The driver; the first call opens and starts it.
#[allow(clippy::result_large_err)] // there is one, in a static
pub fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver, Refusal>> = OnceLock::new();
    match DRIVER.get_or_init(|| {
        Driver::start()
            .map_err(|e| Refusal { status: e.status(), text: Text::format(format_args!("{}", e.text())) })
    }) {
        Ok(driver) if driver.forked() => {
            Err(fail!(Forked, "CUDA was started in the parent of fork(), and cannot be used in the child"))
        }
        Ok(driver) => Ok(driver),
        Err(refusal) => Err(Error::new(refusal.status, format_args!("{}", refusal.text.as_str()))),
    }
}

impl Driver {
    fn start() -> Result<Driver> {
        exec::watch_forks();
        let born = exec::forks();
        // Otherwise `culib` would panic.
        // SAFETY: running the initialisers of the system's own driver library.
        if !unsafe { sys::is_culib_present() } {
            return Err(fail!(NoDriver, "no CUDA driver: libcuda.so.1 (nvcuda.dll) was not found"));
        }
        // SAFETY: as above; the library is never closed. A symbol's address may be looked at.
        let functions = unsafe {
            let library = sys::culib();
            let find = |name: &[u8]| library.get::<*const c_void>(name).ok().map(|symbol| *symbol);
            Functions::of(|name| find(name).filter(|address| !address.is_null()))
        };
        let functions = functions.map_err(|name| {
            fail!(DriverTooOld, "the CUDA driver has no {name}: CUDA 12.0 or newer expected")
        })?;
        let ptx_only = std::env::var_os("BITLINEAR_CUDA_PTX").is_some_and(|v| v == "1");
        let mut driver = Driver { functions, devices: Vec::new(), ptx_only, born };
        // SAFETY: the driver's own functions, with places for what they write.
        unsafe {
            match (driver.functions.init)(0) {
                0 => {}
                code::NO_DEVICE => return Err(fail!(NoDevice, "the CUDA driver sees no GPU")),
                code::STUB_LIBRARY => {
                    return Err(fail!(
                        NoDriver,
                        "no CUDA driver: the libcuda that was found is the toolkit's stub, for linking only"
                    ));
                }
                n => return Err(driver.failure(n, "cuInit")),
            }
            let mut version = 0;
            driver.check((driver.functions.version)(&mut version), "cuDriverGetVersion")?;
            if version < OLDEST {
                let (major, minor) = (version / 1000, version % 1000 / 10);
                return Err(fail!(
                    DriverTooOld,
                    "the CUDA driver is for CUDA {major}.{minor}: 12.0 or newer expected"
                ));
            }
            let mut count = 0;
            driver.check((driver.functions.count)(&mut count), "cuDeviceGetCount")?;
            if count <= 0 {
                return Err(fail!(NoDevice, "the CUDA driver sees no GPU"));
            }
            reserve(&mut driver.devices, count as usize, "GPUs")?;
            for ordinal in 0..count {
                let description = driver.look_at(ordinal)?;
                driver.devices.push(description);
            }
        }
        Ok(driver)
    }

    fn look_at(&self, ordinal: c_int) -> Result<Description> {
        let f = &self.functions;
        // SAFETY: the driver's own functions, with places for what they write; a name is cut at the
        // length that is told.
        unsafe {
            let mut handle = 0;
            self.check((f.device)(&mut handle, ordinal), "cuDeviceGet")?;
            let mut name = Name([0; 128]);
            let room = name.0.len() as c_int - 1;
            self.check((f.device_name)(name.0.as_mut_ptr(), room, handle), "cuDeviceGetName")?;
            let mut memory = 0;
            self.check((f.device_memory)(&mut memory, handle), "cuDeviceTotalMem")?;
            let attribute = |which: c_uint| {
                let mut value = 0;
                let result = (f.device_attribute)(&mut value, which, handle);
                self.check(result, "cuDeviceGetAttribute").map(|()| value.max(0) as u32)
            };
            Ok(Description {
                name,
                arch: 10 * attribute(attribute::MAJOR)? + attribute(attribute::MINOR)?,
                processors: attribute(attribute::PROCESSORS)?,
                memory: memory as u64,
                shared_memory: attribute(attribute::SHARED_MEMORY_OPTIN)?,
                handle,
            })
        }
    }

    /// The GPUs, in the driver's order.
    pub fn devices(&self) -> &[Description] {
        &self.devices
    }

    /// Whether machine code is left aside.
    pub(super) fn ptx_only(&self) -> bool {
        self.ptx_only
    }

    /// Whether this process is a fork()'s child, in which the driver does not work.
    pub(super) fn forked(&self) -> bool {
        self.born != exec::forks()
    }

    /// Bytes of memory that are free on a GPU; `None` where this process has no context there: making one
    /// would take time and memory.
    pub fn free_memory(&self, device: &Description) -> Option<u64> {
        let f = &self.functions;
        let (mut flags, mut active) = (0, 0);
        // SAFETY: the driver's own functions, with places for what they write; the context is counted while
        // it is current, and what was current before is again.
        unsafe {
            if (f.primary_state)(device.handle, &mut flags, &mut active) != 0 || active == 0 {
                return None;
            }
            let mut context = std::ptr::null_mut();
            if (f.primary_retain)(&mut context, device.handle) != 0 {
                return None;
            }
            let (mut free, mut total) = (0, 0);
            let told = (f.push)(context) == 0 && {
                let told = (f.memory_info)(&mut free, &mut total) == 0;
                (f.pop)(&mut context);
                told
            };
            (f.primary_release)(device.handle);
            told.then_some(free as u64)
        }
    }

    /// An error for a result that is none.
    pub(super) fn check(&self, result: u32, call: &str) -> Result<()> {
        if result == 0 { Ok(()) } else { Err(self.failure(result, call)) }
    }

    /// The error of a failed call: the driver's name of it, its number, the call.
    #[cold]
    pub(super) fn failure(&self, result: u32, call: &str) -> Error {
        let status = if result == code::OUT_OF_MEMORY { Status::OutOfMemory } else { Status::Device };
        Error::new(status, format_args!("{} ({result}) in {call}", self.name_of(result)))
    }

    /// The driver's name of a result.
    pub(super) fn name_of(&self, result: u32) -> &'static str {
        let mut name = std::ptr::null();
        // SAFETY: with a place for the address of a static text, or NULL, where the number is none of its.
        unsafe {
            if (self.functions.error_name)(result, &mut name) != 0 || name.is_null() {
                return "an error that the driver has no name for";
            }
            CStr::from_ptr(name).to_str().unwrap_or("an error")
        }
    }
}

/// Whether nothing works in a context after that result.
pub(super) fn is_sticky(result: u32) -> bool {
    code::STICKY.contains(&result)
}

/// Whether that is what a driver answers at the end of the process, when it has ended before us.
pub(super) fn is_past_the_end(result: u32) -> bool {
    result == code::DEINITIALIZED
}
