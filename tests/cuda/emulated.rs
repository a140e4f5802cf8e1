//! The emulated driver: built once, opened before the library looks for one, and used as a host's own code
//! would use it: contexts, memory, streams, graphs.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::native;

/// The folder of the emulated libcuda.so.1, built where it is not told; `None` where there is no compiler.
pub fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("BITLINEAR_EMULATOR") {
            return Some(folder.into());
        }
        native::tool("g++", "layers on an emulated GPU")?;
        let folder = native::target().join("emulator");
        let mut build = Command::new("sh");
        build.current_dir(native::root()).arg("tests/cuda/emulator/build.sh").arg(&folder);
        native::good(&mut build);
        Some(folder)
    });
    made.as_deref()
}

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($ty:ty),*);)*) => {
        /// The driver's functions.
        pub struct Driver {
            $(pub $name: unsafe extern "C" fn($($ty),*) -> c_int,)*
            set: unsafe extern "C" fn(*const c_char, *const c_char),
            get: unsafe extern "C" fn(*const c_char) -> i64,
        }

        impl Driver {
            fn of(library: *mut c_void) -> Driver {
                let find = |name: &str| {
                    let name = CString::new(name).unwrap();
                    // SAFETY: an open library and a name.
                    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
                    assert!(!address.is_null(), "{name:?} is missing");
                    address
                };
                // SAFETY: the signatures of tests/cuda/emulator.
                unsafe {
                    Driver {
                        $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> c_int>(find($symbol)),)*
                        set: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char, *const c_char)>(find("bl_emu_set")),
                        get: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> i64>(find("bl_emu_get")),
                    }
                }
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    retain = "cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int);
    release = "cuDevicePrimaryCtxRelease_v2" (c_int);
    current = "cuCtxGetCurrent" (*mut *mut c_void);
    set_current = "cuCtxSetCurrent" (*mut c_void);
    alloc = "cuMemAlloc_v2" (*mut u64, usize);
    free = "cuMemFree_v2" (u64);
    to_device = "cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    to_host = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    stream = "cuStreamCreate" (*mut *mut c_void, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (*mut c_void);
    stream_wait = "cuStreamSynchronize" (*mut c_void);
    capture = "cuStreamBeginCapture_v2" (*mut c_void, c_int);
    capture_end = "cuStreamEndCapture" (*mut c_void, *mut *mut c_void);
    instantiate = "cuGraphInstantiateWithFlags" (*mut *mut c_void, *mut c_void, u64);
    graph_launch = "cuGraphLaunch" (*mut c_void, *mut c_void);
    graph_destroy = "cuGraphDestroy" (*mut c_void);
    exec_destroy = "cuGraphExecDestroy" (*mut c_void);
}

impl Driver {
    /// Chooses what the emulation does.
    pub fn choose(&self, key: &str, value: &str) {
        let (key, value) = (CString::new(key).unwrap(), CString::new(value).unwrap());
        // SAFETY: two texts.
        unsafe { (self.set)(key.as_ptr(), value.as_ptr()) }
    }

    /// What it counted.
    pub fn count(&self, key: &str) -> i64 {
        let key = CString::new(key).unwrap();
        // SAFETY: a text.
        unsafe { (self.get)(key.as_ptr()) }
    }

    /// What is alive on the devices.
    pub fn alive(&self) -> [i64; 6] {
        ["live_allocations", "pinned", "live_modules", "live_streams", "live_events", "retained"]
            .map(|key| self.count(key))
    }

    /// A device as a host has it, its context current on this thread.
    pub fn host(&'static self, ordinal: i32) -> Host {
        let mut context = std::ptr::null_mut();
        // SAFETY: places for what the functions write.
        unsafe {
            assert_eq!((self.init)(0), 0);
            assert_eq!((self.retain)(&mut context, ordinal), 0);
            assert_eq!((self.set_current)(context), 0);
        }
        Host { driver: self, ordinal, context }
    }

    /// The context that is current on this thread.
    pub fn current(&self) -> *mut c_void {
        let mut context = std::ptr::null_mut();
        // SAFETY: a place for the address.
        assert_eq!(unsafe { (self.current)(&mut context) }, 0);
        context
    }
}

/// The emulated driver of this process; `None` where it cannot be built.
pub fn driver() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    let opened = DRIVER.get_or_init(|| {
        let path = CString::new(folder()?.join("libcuda.so.1").to_str().unwrap()).unwrap();
        // SAFETY: our own library. It stays, and is found by its name when bitlinear looks for libcuda.so.1.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!library.is_null(), "{path:?} cannot be opened");
        Some(Driver::of(library))
    });
    opened.as_ref()
}

/// A host's own use of a device.
pub struct Host {
    pub driver: &'static Driver,
    ordinal: i32,
    pub context: *mut c_void,
}

impl Host {
    /// Device memory with those bytes in it.
    pub fn memory<T: Copy>(&self, values: &[T]) -> Memory {
        let bytes = size_of_val(values);
        let memory = self.room(bytes);
        // SAFETY: as many bytes on both sides.
        assert_eq!(unsafe { (self.driver.to_device)(memory.address, values.as_ptr().cast(), bytes) }, 0);
        memory
    }

    /// Device memory of any content.
    pub fn room(&self, bytes: usize) -> Memory {
        let mut address = 0;
        // SAFETY: a place for the address.
        assert_eq!(unsafe { (self.driver.alloc)(&mut address, bytes.max(1)) }, 0);
        Memory { driver: self.driver, address }
    }

    /// What is in device memory.
    pub fn read<T: Copy + Default>(&self, memory: &Memory, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        let bytes = size_of_val(&values[..]);
        // SAFETY: as many bytes on both sides.
        assert_eq!(unsafe { (self.driver.to_host)(values.as_mut_ptr().cast(), memory.address, bytes) }, 0);
        values
    }

    /// A stream that does not wait for the default one.
    pub fn stream(&self) -> *mut c_void {
        let mut stream = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        assert_eq!(unsafe { (self.driver.stream)(&mut stream, 1) }, 0);
        stream
    }

    /// Waits for a stream.
    #[track_caller]
    pub fn wait(&self, stream: *mut c_void) {
        // SAFETY: a stream.
        assert_eq!(unsafe { (self.driver.stream_wait)(stream) }, 0);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the count that `host` took.
        unsafe {
            (self.driver.set_current)(std::ptr::null_mut());
            (self.driver.release)(self.ordinal);
        }
    }
}

/// Device memory of a host.
pub struct Memory {
    driver: &'static Driver,
    pub address: u64,
}

impl Memory {
    /// As C has it.
    pub fn pointer(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.address as usize)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `room`.
        unsafe { (self.driver.free)(self.address) };
    }
}
