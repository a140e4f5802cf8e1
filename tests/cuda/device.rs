//! A device for tests of the kernels alone: the emulated driver (tests/cuda/emulator), opened by its path, and a
//! layer on it. What the shipped library does with a driver is tested elsewhere; this runs the launches that
//! `kernel::cuda::launch` plans, one by one.
#![allow(dead_code, unreachable_pub)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};

use bitlinear::cpu::Isa;
use bitlinear::kernel::cuda::launch::{
    self, Family, Gpu, Input, Launch, Module, Norm, Placed, Rotation, Target,
};
use bitlinear::kernel::cuda::weights::Form;
use bitlinear::layer::Linear;

/// A function of the driver.
macro_rules! functions {
    ($($name:ident: fn($($ty:ty),*);)*) => {
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($ty),*) -> c_int,)* }
        impl Functions {
            fn load(library: *mut c_void) -> Functions {
                Functions { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the library is open; the emulated driver exports the driver's own signatures.
                    unsafe {
                        let symbol = libc::dlsym(library, name.as_ptr().cast());
                        assert!(!symbol.is_null(), "{name} is missing");
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> c_int>(symbol)
                    }
                },)* }
            }
        }
    };
}

functions! {
    cuInit: fn(c_uint);
    cuDevicePrimaryCtxRetain: fn(*mut *mut c_void, c_int);
    cuCtxSetCurrent: fn(*mut c_void);
    cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int);
    cuMemAlloc_v2: fn(*mut u64, usize);
    cuMemFree_v2: fn(u64);
    cuMemcpyHtoD_v2: fn(u64, *const c_void, usize);
    cuMemcpyDtoH_v2: fn(*mut c_void, u64, usize);
    cuModuleLoadData: fn(*mut *mut c_void, *const c_void);
    cuModuleGetFunction: fn(*mut *mut c_void, *mut c_void, *const c_char);
    cuFuncSetAttribute: fn(*mut c_void, c_int, c_int);
    cuLaunchKernel: fn(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void);
    cuCtxSynchronize: fn();
}

type Set = unsafe extern "C" fn(*const c_char, *const c_char);

/// The GPU of this process, emulated but for tests/gpu.
pub struct Device {
    functions: Functions,
    /// Of the emulated driver alone.
    set: Option<Set>,
    /// What it is.
    pub gpu: Gpu,
    pub kernels: Vec<(&'static CStr, usize)>,
}

// SAFETY: used behind a lock; contexts of the emulated driver are made current in `lock`.
unsafe impl Send for Device {}

/// Memory on the device.
pub struct Memory<'a> {
    device: &'a Device,
    /// Its address.
    pub address: u64,
    bytes: usize,
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: of `Device::memory`, freed once.
        unsafe { (self.device.functions.cuMemFree_v2)(self.address) };
    }
}

fn good(code: c_int, what: &str) {
    assert_eq!(code, 0, "{what}");
}

/// The folder of compiled kernels, where tests run on a real card (tests/gpu): BITLINEAR_TEST_CARD.
fn card() -> Option<PathBuf> {
    std::env::var_os("BITLINEAR_TEST_CARD").map(PathBuf::from)
}

/// The emulated driver: in the folder BITLINEAR_EMULATOR, or built from the kernels' sources. For a card the
/// machine's own.
fn library() -> PathBuf {
    if card().is_some() {
        return PathBuf::from("libcuda.so.1");
    }
    if let Some(folder) = std::env::var_os("BITLINEAR_EMULATOR") {
        return PathBuf::from(folder).join("libcuda.so.1");
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda/emulator/build.sh");
    let output = Command::new("sh").arg(build).arg(&folder).output().expect("sh runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("libcuda.so.1")
}

/// What a module's functions are loaded from; `None`: this device has no such module. The emulated driver runs the
/// sources that it was built of: the image only names them.
fn image(module: Module, gpu: &Gpu) -> Option<Vec<u8>> {
    let Some(folder) = card() else {
        let mut text = String::from(".version 6.5\n.target sm_75\n");
        module.functions().iter().for_each(|f| text += &format!(".entry {}(\n", f.to_str().unwrap()));
        return Some(CString::new(text).unwrap().into_bytes_with_nul());
    };
    let (major, minor) = gpu.capability;
    let own = 10 * major + minor;
    let mut names = vec![format!("{own}a.cubin")];
    names.extend((10 * major..=own).rev().map(|arch| format!("{arch}.cubin")));
    if std::env::var("BITLINEAR_CUDA_PTX").is_ok_and(|v| v == "1") {
        names.clear();
    }
    names.push(format!("{own}a.ptx"));
    names.extend((75..=own).rev().map(|arch| format!("{arch}.ptx")));
    names.iter().find_map(|name| std::fs::read(folder.join(format!("{}.{name}", module.name()))).ok())
}

impl Device {
    /// The only one; it has the capability that BL_EMU_CC says, or 9.0.
    pub fn lock() -> MutexGuard<'static, Device> {
        static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
        let device = DEVICE.get_or_init(|| Mutex::new(Device::open()));
        let device = device.lock().unwrap_or_else(|e| e.into_inner());
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver is initialised.
        unsafe {
            good((device.functions.cuDevicePrimaryCtxRetain)(&mut context, 0), "cuDevicePrimaryCtxRetain");
            good((device.functions.cuCtxSetCurrent)(context), "cuCtxSetCurrent");
        }
        device
    }

    fn open() -> Device {
        let path = CString::new(library().to_str().unwrap()).unwrap();
        // SAFETY: a library of this repository; its functions have the driver's signatures.
        let (functions, set) = unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!library.is_null(), "{path:?} does not open");
            let set = libc::dlsym(library, c"bl_emu_set".as_ptr());
            assert!(set.is_null() == card().is_some(), "{path:?} is not the driver that was asked for");
            (Functions::load(library), std::mem::transmute::<*mut c_void, Option<Set>>(set))
        };
        if let (Some(set), true) = (set, std::env::var_os("BL_EMU_CC").is_none()) {
            // SAFETY: two C strings.
            unsafe { set(c"cc".as_ptr(), c"90".as_ptr()) };
        }
        let gpu = Gpu { capability: (0, 0), multiprocessors: 0, shared_block: 0 };
        let mut device = Device { functions, set, gpu, kernels: vec![] };
        let attribute = |number| {
            let mut value = 0;
            // SAFETY: the driver is initialised below before this is called.
            good(unsafe { (device.functions.cuDeviceGetAttribute)(&mut value, number, 0) }, "an attribute");
            value as u32
        };
        let mut context = std::ptr::null_mut();
        // SAFETY: the calls' own contracts.
        unsafe {
            good((device.functions.cuInit)(0), "cuInit");
            good((device.functions.cuDevicePrimaryCtxRetain)(&mut context, 0), "cuDevicePrimaryCtxRetain");
            good((device.functions.cuCtxSetCurrent)(context), "cuCtxSetCurrent");
        }
        let gpu = Gpu {
            capability: (attribute(75), attribute(76)),
            multiprocessors: attribute(16),
            shared_block: attribute(97) as usize,
        };
        device.gpu = gpu;
        for module in Module::ALL {
            let Some(image) = image(module, &gpu) else { continue };
            let mut handle = std::ptr::null_mut();
            // SAFETY: an ELF file, or text that ends with NUL.
            good(
                unsafe { (device.functions.cuModuleLoadData)(&mut handle, image.as_ptr().cast()) },
                module.name(),
            );
            for name in module.functions() {
                let mut function = std::ptr::null_mut();
                // SAFETY: a module that was just loaded; attribute 8 is the most dynamic shared memory.
                unsafe {
                    let code = (device.functions.cuModuleGetFunction)(&mut function, handle, name.as_ptr());
                    good(code, name.to_str().unwrap());
                    let most = gpu.dynamic_shared() as c_int;
                    good((device.functions.cuFuncSetAttribute)(function, 8, most), "shared memory");
                }
                device.kernels.push((name, function as usize));
            }
        }
        device
    }

    /// In which order the threads of a block run: 0 to 5, see tests/cuda/emulator/engine.hpp; `None`: as
    /// BL_EMU_ORDER says.
    pub fn order(&self, order: Option<u32>) {
        let own = std::env::var("BL_EMU_ORDER").unwrap_or("0".into());
        let value = CString::new(order.map_or(own, |order| order.to_string())).unwrap();
        if let Some(set) = self.set {
            // SAFETY: two C strings.
            unsafe { set(c"order".as_ptr(), value.as_ptr()) };
        }
    }

    /// `bytes` bytes of whatever is there.
    pub fn memory(&self, bytes: usize) -> Memory<'_> {
        let mut address = 0;
        // SAFETY: a place for the address.
        good(unsafe { (self.functions.cuMemAlloc_v2)(&mut address, bytes.max(1)) }, "cuMemAlloc");
        Memory { device: self, address, bytes }
    }

    /// A copy of plain values.
    pub fn copy<T: Copy>(&self, values: &[T]) -> Memory<'_> {
        let memory = self.memory(size_of_val(values));
        memory.write(0, values);
        memory
    }

    /// Runs a launch and waits for it.
    pub fn run(&self, launch: &Launch<'_>) {
        let (_, function) = self.kernels.iter().find(|(name, _)| *name == launch.function).unwrap();
        let ([x, y, z], (parameter, _)) = (launch.grid, launch.params.address());
        let mut parameters = [parameter.cast_mut()];
        let none = std::ptr::null_mut();
        // SAFETY: the kernel takes one struct by value, of which this is the address.
        unsafe {
            let launched = (self.functions.cuLaunchKernel)(
                *function as *mut c_void,
                x,
                y,
                z,
                launch.block,
                1,
                1,
                launch.shared,
                none,
                parameters.as_mut_ptr(),
                none.cast(),
            );
            good(launched, "cuLaunchKernel");
            good((self.functions.cuCtxSynchronize)(), &format!("{:?}", launch.function));
        }
    }
}

impl Memory<'_> {
    /// Copies values to it from byte `at` on.
    pub fn write<T: Copy>(&self, at: usize, values: &[T]) {
        assert!(at + size_of_val(values) <= self.bytes);
        // SAFETY: within both.
        let code = unsafe {
            let (to, from) = (self.address + at as u64, values.as_ptr().cast());
            (self.device.functions.cuMemcpyHtoD_v2)(to, from, size_of_val(values))
        };
        good(code, "cuMemcpyHtoD");
    }

    /// Copies values from its start.
    pub fn read<T: Copy + Default>(&self, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        assert!(size_of_val(&values[..]) <= self.bytes);
        // SAFETY: within both; T is plain.
        let code = unsafe {
            let to = values.as_mut_ptr().cast();
            (self.device.functions.cuMemcpyDtoH_v2)(to, self.address, size_of_val(&values[..]))
        };
        good(code, "cuMemcpyDtoH");
        values
    }
}

/// A layer of the CPU on the device.
pub struct Layer<'a> {
    /// What launches are told of it.
    pub placed: Placed,
    _memory: Vec<Memory<'a>>,
}

impl<'a> Layer<'a> {
    /// Uploads it, strip by strip.
    pub fn new(device: &'a Device, linear: &Linear) -> Layer<'a> {
        let packed = linear.packed();
        let rule = linear.rule();
        let unsigned = rule.is_some_and(|rule| rule.width.bias() != 0);
        let form = Form::new(packed.layout(), linear.out_features(), linear.in_features(), unsigned).unwrap();
        let weights = device.memory(form.bytes());
        let (mut row, mut strip) = (packed.row().unwrap(), vec![0u8; form.strip_bytes]);
        for s in 0..form.strips() {
            form.write_strip(packed, s, &mut row, &mut strip);
            weights.write(s * form.strip_bytes, &strip);
        }
        let mut memory = vec![];
        let mut put = |values: Option<Vec<u32>>| {
            values.map_or(0, |values| {
                memory.push(device.copy(&values));
                memory.last().unwrap().address
            })
        };
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let placed = Placed {
            form,
            weights: weights.address,
            bias: put(linear.bias().map(bits)),
            rule,
            norm: linear.norm().map(|norm| norm.spec()).map(|spec| Norm {
                kind: spec.kind,
                epsilon: spec.epsilon,
                weight: put(spec.weight.map(bits)),
                bias: put(spec.bias.map(bits)),
            }),
            rotation: linear.rotation().map(|rotation| Rotation {
                block: rotation.block(),
                signs: put(rotation.has_signs().then(|| {
                    (0..rotation.columns()).map(|k| rotation.sign(k).to_bits() & 0x8000_0000).collect()
                })),
            }),
            permutation: put(packed.permutation().map(<[u32]>::to_vec)),
            product_scale: linear.product_scale(),
        };
        memory.push(weights);
        Layer { placed, _memory: memory }
    }
}

/// Runs a call; the names of its kernels.
pub fn forward(device: &Device, targets: &[Target<'_>], input: &Input) -> Vec<&'static CStr> {
    forward_on(device, Family::Auto, targets, input)
}

/// The same on kernels of one family.
pub fn forward_on(
    device: &Device,
    family: Family,
    targets: &[Target<'_>],
    input: &Input,
) -> Vec<&'static CStr> {
    let bytes = launch::workspace(targets, input.m, &device.gpu).unwrap();
    let workspace = device.memory(bytes);
    assert_eq!(workspace.address % launch::ALIGNMENT as u64, 0, "of the emulated cuMemAlloc");
    let mut names = vec![];
    launch::plan_of(targets, input, &device.gpu, family, workspace.address, &mut |launch| {
        device.run(launch);
        names.push(launch.function);
        Ok(())
    })
    .unwrap();
    names
}

/// The scalar kernels: what every result is compared with.
pub const ORACLE: Isa = Isa::Scalar;
