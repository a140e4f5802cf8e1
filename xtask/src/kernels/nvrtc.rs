//! NVIDIA's run-time compiler, opened from the folder of the unpacked wheel: it needs no GPU and no driver.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use super::Target;

type Program = *mut c_void;
type Text = *const c_char;
type Create = unsafe extern "C" fn(*mut Program, Text, Text, c_int, *const Text, *const Text) -> c_int;
type Run = unsafe extern "C" fn(Program, c_int, *const Text) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// The library.
pub struct Nvrtc {
    library: Library,
    /// Found by its name once it is open.
    _builtins: Library,
}

impl Nvrtc {
    /// From the folder that `tools/get-nvrtc.sh` made.
    pub fn open(tools: &Path) -> Result<Nvrtc, String> {
        let folder = tools.join("nvrtc-12.9/nvidia/cuda_nvrtc/lib");
        let open = |name: &str| {
            let path = folder.join(name);
            // SAFETY: the initialisers of a library that the developer asked for.
            unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|e| {
                format!("{}: {e}\nrun `sh tools/get-nvrtc.sh {}` first", path.display(), tools.display())
            })
        };
        Ok(Nvrtc { _builtins: open("libnvrtc-builtins.so.12.9")?, library: open("libnvrtc.so.12")? })
    }

    fn function<T>(&self, name: &str) -> Result<Symbol<T>, String> {
        // SAFETY: the callers name the types that nvrtc.h gives.
        unsafe { self.library.get(name.as_bytes()) }.map_err(|e| format!("{name}: {e}"))
    }

    /// `12.9`.
    pub fn version(&self) -> Result<String, String> {
        let version = self.function::<Version>("nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places for numbers.
        if unsafe { version(&mut major, &mut minor) } != 0 {
            return Err("nvrtcVersion failed".into());
        }
        Ok(format!("{major}.{minor}"))
    }

    /// PTX or machine code of one source, whose headers are the other sources.
    pub fn compile(
        &self,
        name: &str,
        sources: &BTreeMap<String, Vec<u8>>,
        target: Target,
    ) -> Result<Vec<u8>, String> {
        let text = |bytes: &[u8]| CString::new(bytes).map_err(|e| format!("{name}: {e}"));
        let headers: Vec<_> = sources.iter().filter(|(name, _)| name.ends_with(".cuh")).collect();
        let names = headers.iter().map(|(name, _)| text(name.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, bytes)| text(bytes)).collect::<Result<Vec<_>, _>>()?;
        let options = [
            format!("--gpu-architecture={}_{}", if target.binary { "sm" } else { "compute" }, target.name()),
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(), // lambdas cannot be annotated
            "--fmad=false".to_owned(),                        // kernels say where they fuse
        ];
        let options = options.iter().map(|o| text(o.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let pointers = |list: &[CString]| list.iter().map(|c| c.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));
        let source = text(sources.get(name).ok_or("no such source")?)?;
        let file = text(name.as_bytes())?;

        let create = self.function::<Create>("nvrtcCreateProgram")?;
        let run = self.function::<Run>("nvrtcCompileProgram")?;
        let destroy = self.function::<Destroy>("nvrtcDestroyProgram")?;
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: texts with their NULs, all alive until the program is destroyed; as many headers as names.
        unsafe {
            let headers = texts.len() as c_int;
            let made =
                create(&mut program, source.as_ptr(), file.as_ptr(), headers, texts.as_ptr(), names.as_ptr());
            if made != 0 {
                return Err(format!("nvrtcCreateProgram: {made}"));
            }
            let result = run(program, options.len() as c_int, options.as_ptr());
            let log = self.take(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
            let image = match (result, target.binary) {
                (0, true) => self.take(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
                (0, false) => self.take(program, "nvrtcGetPTXSize", "nvrtcGetPTX"),
                _ => Err(format!("{name} for {}: does not compile", target.name())),
            };
            destroy(&mut program);
            let log =
                CStr::from_bytes_until_nul(&log?).map_or(String::new(), |c| c.to_string_lossy().into_owned());
            match image {
                Ok(_) if !log.trim().is_empty() => {
                    Err(format!("{name} for {}: warnings\n{log}", target.name()))
                }
                Ok(image) => Ok(image),
                Err(text) => Err(format!("{text}\n{log}")),
            }
        }
    }

    /// # Safety
    /// A program, and the names of two functions that tell the size of something of it and write it.
    unsafe fn take(&self, program: Program, size: &str, get: &str) -> Result<Vec<u8>, String> {
        let (size, write) = (self.function::<Size>(size)?, self.function::<Get>(get)?);
        let mut bytes = 0;
        // SAFETY: the caller's; as many bytes as the library asked for.
        unsafe {
            if size(program, &mut bytes) != 0 {
                return Err(format!("{get}: no size"));
            }
            let mut out = vec![0u8; bytes];
            match write(program, out.as_mut_ptr().cast()) {
                0 => Ok(out),
                code => Err(format!("{get}: {code}")),
            }
        }
    }
}
