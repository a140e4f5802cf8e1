//! Contexts: what calls run with.

use std::ffi::{c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::boundary::guard;
use super::calibration::Gathered;
use super::enums::*;
use super::handle::{self, Kind};
use super::heads::Heads;
use super::layer::Layer;
use super::model::Model;
use super::options;
use super::profile::Profile;
use super::state::State;
use super::types::*;
use crate::cpu::Isa;
use crate::cuda::Lanes;
use crate::error::{Result, TEXT_MAX, Text, fail};
use crate::exec::{self, Executor};
use crate::layer::Packer;
use crate::limits::THREADS_MAX;
use crate::memory::{Callbacks, Heap, reserve};

/// The body of a `bl_context`.
pub struct Context {
    /// The instruction set that its layers use.
    pub isa: Isa,
    /// Where its weights and workspaces come from.
    pub heap: Heap,
    /// Who runs the pieces.
    pub executor: Executor,
    /// What it holds.
    pub usage: Usage,
    /// What its kernels have done, where that is counted.
    pub profile: Option<Profile>,
    /// The devices that it has had layers on.
    devices: Mutex<Vec<Arc<Lanes>>>,
    log: Option<Log>,
}

/// What the models and layers of a context hold.
#[derive(Default)]
pub struct Usage {
    /// Models, layers and other handles alive.
    pub handles: AtomicU64,
    /// Bytes of packed weights.
    pub packed: AtomicU64,
    /// Bytes of mapped files.
    pub mapped: AtomicU64,
    /// Bytes of workspaces that calls under way have allocated.
    pub workspace: AtomicU64,
}

/// A host's log function.
struct Log {
    write: unsafe extern "C" fn(*mut c_void, bl_log_level, *const c_char),
    user: *mut c_void,
    level: bl_log_level,
}

// SAFETY: the host promised that both may be used from any thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

impl Context {
    /// What packs weights for it.
    pub fn packer(&self) -> Packer<'_> {
        Packer { isa: self.isa, heap: &self.heap, executor: &self.executor }
    }

    /// A serial, silent context.
    fn serial(isa: Isa) -> Context {
        Context {
            isa,
            heap: Heap::default(),
            executor: Executor::Serial,
            usage: Usage::default(),
            profile: None,
            devices: Mutex::default(),
            log: None,
        }
    }

    /// What it has on a device; from the first time on the device stays ready for it.
    pub fn lanes(&self, device: u32) -> Result<Arc<Lanes>> {
        let there = |devices: &mut Vec<Arc<Lanes>>| {
            // A device that was lost comes back once nobody holds what was on it.
            devices.retain(|lanes| !lanes.device.is_lost());
            devices.iter().find(|lanes| lanes.device.index() == device).cloned()
        };
        let devices = || self.devices.lock().unwrap_or_else(|e| e.into_inner());
        let found = there(&mut devices());
        if let Some(lanes) = found {
            return Ok(lanes);
        }
        // Not under the lock: the driver may take a second, and the child of a fork() meanwhile would wait for ever in
        // `device_bytes`.
        let lanes = Arc::new(Lanes::new(device)?);
        let mut devices = devices();
        if let Some(lanes) = there(&mut devices) {
            return Ok(lanes); // another thread was first
        }
        reserve(&mut devices, 1, "devices")?;
        devices.push(lanes.clone());
        Ok(lanes)
    }

    /// Bytes that it has on devices.
    pub fn device_bytes(&self) -> u64 {
        let devices = self.devices.lock().unwrap_or_else(|e| e.into_inner());
        devices.iter().map(|lanes| lanes.count.load(Ordering::Relaxed)).sum()
    }

    /// Sends a line to the host's log, where it wants lines of that level.
    pub fn log(&self, level: bl_log_level, text: std::fmt::Arguments<'_>) {
        let Some(log) = self.log.as_ref().filter(|log| level as u32 <= log.level as u32) else { return };
        let text = Text::format(text);
        let mut line = [0u8; TEXT_MAX + 1]; // the last byte stays 0
        line[..text.as_str().len()].copy_from_slice(text.as_str().as_bytes());
        // SAFETY: the host's function, called as the header says; `line` is NUL-terminated.
        unsafe { (log.write)(log.user, level, line.as_ptr().cast()) };
    }
}

impl Kind for Context {
    const TAG: u32 = 0x424c_6374;
    const NAME: &'static str = "context";
}

/// The context of a handle; the default one for NULL.
///
/// # Safety
/// As `handle::get`.
pub unsafe fn of(context: *const bl_context) -> Result<Arc<Context>> {
    if !context.is_null() {
        // SAFETY: the caller's contract.
        return unsafe { handle::share(context) };
    }
    // The environment is read once, at the first use of the default context. What is wrong with it is
    // said at every use.
    static DEFAULT: OnceLock<Option<Arc<Context>>> = OnceLock::new();
    let made = match DEFAULT.get() {
        Some(made) => made,
        None => {
            let made = Isa::from_environment().ok().map(|isa| Arc::new(Context::serial(isa)));
            // It stays: a part of the reserve that it took would bar this thread from making handles (`handle::make`).
            if crate::reserve::in_use() {
                return Err(fail!(OutOfMemory, "the default context: the library's reserve had to help out"));
            }
            DEFAULT.get_or_init(|| made)
        }
    };
    match made {
        Some(context) => Ok(context.clone()),
        None => Err(Isa::from_environment().err().unwrap_or_else(|| {
            fail!(InvalidArgument, "BITLINEAR_ISA was wrong when the default context was made")
        })),
    }
}

/// Makes a context: threads and settings that layers and calls use. `options` may be NULL.
/// Reads the environment variable BITLINEAR_ISA (scalar, avx2, avxvnni, avx512vnni, or on ARM scalar,
/// neon, dotprod, i8mm), which narrows the instruction sets used; empty is as if it were not set, an unknown
/// name is BL_ERROR_INVALID_ARGUMENT, one that this CPU lacks BL_ERROR_UNSUPPORTED. The default context
/// reads it at its first use.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_context_create(
    options: *const bl_context_options,
    out: *mut *mut bl_context,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = out_handle(out)?;
            let options = options::read(options)?;
            if options.flags & !BL_CONTEXT_PROFILE != 0 {
                return Err(fail!(InvalidArgument, "context flags {:#x} are unknown", options.flags));
            }
            let threads = match options.threads {
                BL_THREADS_ALL => exec::available(),
                n if n as usize <= THREADS_MAX => n as usize,
                n => {
                    return Err(fail!(
                        InvalidArgument,
                        "threads = {n}: at most {THREADS_MAX}, or BL_THREADS_ALL"
                    ));
                }
            };
            let executor = match options.parallel_for {
                None => Executor::with_threads(threads)?,
                Some(f) => {
                    let tasks = if threads == 0 { exec::available() } else { threads };
                    Executor::with_host(f, options.parallel_for_user, tasks)
                }
            };
            let callbacks = match (options.alloc, options.dealloc) {
                (Some(alloc), Some(dealloc)) => Some(Callbacks { alloc, dealloc, user: options.alloc_user }),
                (None, None) => None,
                _ => return Err(fail!(InvalidArgument, "alloc and dealloc: both or neither")),
            };
            let level = match options.log_level.0 {
                0 | 2 => bl_log_level::BL_LOG_WARN,
                1 => bl_log_level::BL_LOG_ERROR,
                3 => bl_log_level::BL_LOG_INFO,
                4 => bl_log_level::BL_LOG_DEBUG,
                n => return Err(fail!(Unsupported, "log level {n} is unknown to this library")),
            };
            let context = Context {
                heap: Heap::with(callbacks),
                executor,
                profile: (options.flags & BL_CONTEXT_PROFILE != 0).then(Profile::new).transpose()?,
                log: options.log.map(|write| Log { write, user: options.log_user, level }),
                ..Context::serial(Isa::from_environment()?)
            };
            let (isa, threads) = (context.isa.name(), context.executor.threads());
            context.log(bl_log_level::BL_LOG_INFO, format_args!("context: {isa}, {threads} thread(s)"));
            *out = handle::make::<bl_context, _>(Arc::new(context))?;
            Ok(())
        })
    }
}

/// An out parameter for a handle, set to NULL.
///
/// # Safety
/// `out` is NULL or valid for writing.
pub unsafe fn out_handle<'a, H>(out: *mut *mut H) -> Result<&'a mut *mut H> {
    if out.is_null() {
        return Err(fail!(InvalidArgument, "`out`, where the handle goes, is NULL"));
    }
    // SAFETY: not NULL, and the caller's contract.
    unsafe {
        out.write(std::ptr::null_mut());
        Ok(&mut *out)
    }
}

/// Frees a context, model, layer or other handle. In any order: a handle keeps alive what it needs. NULL does
/// nothing, nor does a handle that was freed before. No other call on the handle may be under way.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_free(handle: *mut c_void) {
    // SAFETY: `error` is NULL; the header's rules for `handle`.
    unsafe {
        guard(std::ptr::null_mut(), || {
            handle::free(handle, |tag, body| match tag {
                // SAFETY: the tag says what the shell owned one count of.
                Context::TAG => drop(Arc::from_raw(body.cast::<Context>())),
                Model::TAG => drop(Arc::from_raw(body.cast::<Model>())),
                Gathered::TAG => drop(Arc::from_raw(body.cast::<Gathered>())),
                Layer::TAG => drop(Arc::from_raw(body.cast::<Layer>())),
                Heads::TAG => drop(Arc::from_raw(body.cast::<Heads>())),
                State::TAG => drop(Arc::from_raw(body.cast::<State>())),
                _ => {}
            });
            Ok(())
        });
    }
}
