//! What a context holds and has done: bl_memory, bl_profile, bl_device_describe.

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::boundary::guard;
use super::context::{self, Context};
use super::options;
use super::types::*;
use crate::cpu::{self, Isa};
use crate::cuda;
use crate::error::{Result, Status, fail};
use crate::exec;
use crate::kernel::{self, Kernel};
use crate::layer::Stage;
use crate::memory::reserve;

/// Counters, one set for each kernel of the build, for each stage and for whole calls.
pub struct Profile {
    kernels: Vec<Counters>,
    /// Of kernels on devices.
    device_kernels: Vec<Counters>,
    stages: [Counters; Stage::ALL.len()],
    scale_misses: Counters,
    scale_hits: Counters,
    calls: Counters,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    operations: AtomicU64,
}

impl Counters {
    fn add(&self, nanoseconds: u64, bytes: u64, operations: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.operations.fetch_add(operations, Ordering::Relaxed);
    }

    fn entry(&self, name: &'static CStr) -> bl_profile_entry {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        bl_profile_entry {
            kernel: name.as_ptr(),
            calls: now(&self.calls),
            nanoseconds: now(&self.nanoseconds),
            bytes: now(&self.bytes),
            operations: now(&self.operations),
        }
    }

    fn reset(&self) {
        for counter in [&self.calls, &self.nanoseconds, &self.bytes, &self.operations] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// What bl_profile calls a stage.
const fn stage_name(stage: Stage) -> &'static CStr {
    match stage {
        Stage::Norm => c"norm",
        Stage::Rotation => c"rotation",
        Stage::Quantize => c"quantize",
        Stage::Epilogue => c"epilogue",
    }
}

impl Profile {
    /// All zero.
    pub fn new() -> Result<Profile> {
        let mut kernels = Vec::new();
        reserve(&mut kernels, kernel::all().count(), "profile")?;
        kernels.extend(kernel::all().map(|_| Counters::default()));
        let mut device_kernels = Vec::new();
        reserve(&mut device_kernels, cuda::kernels().count(), "profile")?;
        device_kernels.extend(cuda::kernels().map(|_| Counters::default()));
        let none = Counters::default;
        let (scale_misses, scale_hits, calls) = (none(), none(), none());
        let stages = Default::default();
        Ok(Profile { kernels, device_kernels, stages, scale_misses, scale_hits, calls })
    }

    fn device_kernel(&self, name: &'static CStr) -> Option<&Counters> {
        cuda::kernels().position(|f| f == name).map(|i| &self.device_kernels[i])
    }

    /// Adds a launch on a device; 0 nanoseconds where nobody waited for it.
    pub fn add_device_kernel(&self, name: &'static CStr, nanoseconds: u64) {
        if let Some(counters) = self.device_kernel(name) {
            counters.add(nanoseconds, 0, 0);
        }
    }

    /// Adds what the products of a call on a device read and computed.
    pub fn add_device_work(&self, name: &'static CStr, bytes: u64, operations: u64) {
        if let Some(counters) = self.device_kernel(name) {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
            counters.operations.fetch_add(operations, Ordering::Relaxed);
        }
    }

    /// Adds the products of one layer of a call.
    pub fn add_kernel(&self, kernel: &'static Kernel, nanoseconds: u64, bytes: u64, operations: u64) {
        if let Some(i) = kernel::all().position(|k| std::ptr::eq(k, kernel)) {
            self.kernels[i].add(nanoseconds, bytes, operations);
        }
    }

    /// Adds a stage of a call.
    pub fn add_stage(&self, stage: Stage, nanoseconds: u64, bytes: u64) {
        self.stages[stage as usize].add(nanoseconds, bytes, 0);
    }

    /// Counts a layer of a call whose integer activations had the scale of a caller (`fixed`), or scales that
    /// were found in x.
    pub fn add_scales(&self, fixed: bool) {
        (if fixed { &self.scale_hits } else { &self.scale_misses }).add(0, 0, 0);
    }

    /// Adds a whole call.
    pub fn add_call(&self, nanoseconds: u64, bytes: u64, operations: u64) {
        self.calls.add(nanoseconds, bytes, operations);
    }

    /// All counters and their names.
    fn all(&self) -> impl Iterator<Item = (&'static CStr, &Counters)> {
        let kernels = kernel::all().map(Kernel::c_name).zip(&self.kernels);
        let device_kernels = cuda::kernels().zip(&self.device_kernels);
        let stages = Stage::ALL.into_iter().map(stage_name).zip(&self.stages);
        let scales = [(c"scale_misses", &self.scale_misses), (c"scale_hits", &self.scale_hits)];
        kernels.chain(device_kernels).chain(stages).chain(scales).chain([(c"call", &self.calls)])
    }

    /// Those that counted something.
    fn used(&self) -> impl Iterator<Item = (&'static CStr, &Counters)> {
        self.all().filter(|(_, counters)| counters.calls.load(Ordering::Relaxed) > 0)
    }
}

/// Handles and bytes alive of a context. NULL: of the default one.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_memory(
    context: *const bl_context,
    info: *mut bl_memory_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: the header's rules for `error`; inside, each pointer is checked before its use.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            let context = context::of(context)?;
            let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            out.fill(&bl_memory_info {
                struct_size: 0,
                handles: now(&context.usage.handles) as u32,
                packed: now(&context.usage.packed),
                mapped: now(&context.usage.mapped),
                workspace: now(&context.usage.workspace),
                device: context.device_bytes(),
            });
            Ok(())
        })
    }
}

/// Copies the counters of a context made with BL_CONTEXT_PROFILE: one entry for each kernel that ran and
/// for each stage around the kernels, and last one for whole calls; between them, where layers made integers
/// of x, how many found scales in it and how many used a fixed one (see bl_profile_entry). Counting costs
/// two readings of the clock for each tile of 64 outputs.
/// *count is how many there are. With entries NULL and capacity 0 only the count is told; a capacity
/// that is too small is BL_ERROR_BUFFER_TOO_SMALL. reset != 0 zeroes them after the copy.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_profile(
    context: *const bl_context,
    entries: *mut bl_profile_entry,
    capacity: usize,
    count: *mut usize,
    reset: u32,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_memory`; `entries` has room for `capacity` by the header's rules.
    unsafe {
        guard(error, || {
            if count.is_null() {
                return Err(fail!(InvalidArgument, "count is NULL"));
            }
            count.write(0);
            let context: std::sync::Arc<Context> = context::of(context)?;
            let Some(profile) = &context.profile else {
                return Err(fail!(InvalidArgument, "the context was made without BL_CONTEXT_PROFILE"));
            };
            let n = profile.used().count();
            count.write(n);
            if entries.is_null() && capacity > 0 {
                return Err(fail!(InvalidArgument, "entries is NULL, capacity is not 0"));
            }
            if !entries.is_null() && capacity < n {
                return Err(fail!(BufferTooSmall, "room for {capacity} entries, {n} needed"));
            }
            if !entries.is_null() {
                for (i, (name, counters)) in profile.used().take(n).enumerate() {
                    entries.add(i).write(counters.entry(name));
                }
            }
            if reset != 0 {
                profile.all().for_each(|(_, counters)| counters.reset());
            }
            Ok(())
        })
    }
}

/// The devices of this build and machine: 0 is the CPU, then come the GPUs in the CUDA driver's order. Past
/// the last: BL_ERROR_NOT_FOUND, whose message says why there are no GPUs. Index 1 opens the CUDA driver, where
/// there is one, for the first time.
///
/// # Safety
/// As the rules at the top of bitlinear.h say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bl_device_describe(
    context: *const bl_context,
    index: u32,
    info: *mut bl_device_info,
    error: *mut bl_error,
) -> bl_status {
    // SAFETY: as in `bl_memory`.
    unsafe {
        guard(error, || {
            let out = options::prepare(info)?;
            context::of(context)?;
            if index > 0 {
                out.fill(&gpu(index)?);
                return Ok(());
            }
            let (memory_total, memory_free) = cpu::memory();
            out.fill(&bl_device_info {
                struct_size: 0,
                kind: DeviceKindArg(bl_device_kind::BL_DEVICE_CPU as u32),
                memory_total,
                memory_free,
                compute_units: exec::available() as u32,
                arch: 0,
                name: static_text(&NAME, cpu::name),
                features: static_text(&FEATURES, || {
                    let detected = Isa::ALL.iter().filter(|isa| isa.detected()).map(|isa| isa.name());
                    detected.collect::<Vec<_>>().join(" ")
                }),
            });
            Ok(())
        })
    }
}

/// A GPU; `NotFound` past the last one, also where there is no driver, with the reason.
fn gpu(index: u32) -> Result<bl_device_info> {
    let driver = cuda::driver().map_err(|e| match e.status() {
        Status::Forked => e,
        _ => fail!(NotFound, "device {index} of 1: {}", e.text()),
    })?;
    let devices = driver.devices();
    let Some(device) = devices.get(index as usize - 1) else {
        return Err(fail!(NotFound, "device {index} of {}", devices.len() + 1));
    };
    Ok(bl_device_info {
        struct_size: 0,
        kind: DeviceKindArg(bl_device_kind::BL_DEVICE_CUDA as u32),
        memory_total: device.memory,
        memory_free: driver.free_memory(device).unwrap_or(0),
        compute_units: device.processors,
        arch: device.arch,
        name: device.name.as_c().as_ptr(),
        features: c"cuda".as_ptr(),
    })
}

static NAME: OnceLock<CString> = OnceLock::new();
static FEATURES: OnceLock<CString> = OnceLock::new();

fn static_text(place: &'static OnceLock<CString>, text: impl FnOnce() -> String) -> *const c_char {
    place.get_or_init(|| CString::new(text()).unwrap_or_default()).as_ptr()
}
