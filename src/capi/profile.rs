//! What a context holds and has done: bl_memory, bl_profile, bl_device_describe.

use std::ffi::{CStr, CString, c_char};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use super::boundary::guard;
use super::context::{self, Context};
use super::enums::*;
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
    /// Held by the one call that reads or zeroes counters: what another zeroes meanwhile would be told as entries
    /// of nothing.
    reading: Mutex<()>,
}

/// The counters of an entry. Each stays at the largest number instead of beginning anew.
#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
    operations: AtomicU64,
}

impl Counters {
    fn add(&self, nanoseconds: u64, bytes: u64, operations: u64) {
        add(&self.calls, 1);
        add(&self.nanoseconds, nanoseconds);
        add(&self.bytes, bytes);
        add(&self.operations, operations);
    }

    /// What was counted; where it is reset, what is counted from now on is in the next entry.
    fn entry(&self, name: &'static CStr, reset: bool) -> bl_profile_entry {
        let take = |counter: &AtomicU64| match reset {
            true => counter.swap(0, Ordering::Relaxed),
            false => counter.load(Ordering::Relaxed),
        };
        bl_profile_entry {
            kernel: name.as_ptr(),
            calls: take(&self.calls),
            nanoseconds: take(&self.nanoseconds),
            bytes: take(&self.bytes),
            operations: take(&self.operations),
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    if counter.fetch_add(more, Ordering::Relaxed).checked_add(more).is_none() {
        counter.store(u64::MAX, Ordering::Relaxed);
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
        let reading = Mutex::default();
        Ok(Profile { kernels, device_kernels, stages, scale_misses, scale_hits, calls, reading })
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
            add(&counters.bytes, bytes);
            add(&counters.operations, operations);
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

    /// Those that have counted something by now.
    fn used(&self) -> Result<Vec<(&'static CStr, &Counters)>> {
        let mut used = Vec::new();
        reserve(&mut used, self.all().count(), "entries of a profile")?;
        used.extend(self.all().filter(|(_, counters)| counters.calls.load(Ordering::Relaxed) > 0));
        Ok(used)
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
/// that is too small is BL_ERROR_BUFFER_TOO_SMALL, and nothing is copied or zeroed. reset != 0 zeroes them
/// after the copy: what calls count meanwhile is in the next one. Counters stay at 2^64 - 1 instead of wrapping.
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
            let _alone = profile.reading.lock().unwrap_or_else(|e| e.into_inner());
            // Calls count on meanwhile: which entries there are is settled once.
            let used = profile.used()?;
            let n = used.len();
            count.write(n);
            if entries.is_null() && capacity > 0 {
                return Err(fail!(InvalidArgument, "entries is NULL, capacity is not 0"));
            }
            if entries.is_null() {
                return Ok(()); // no copy, so that nothing is zeroed: two calls with the same `reset` lose nothing
            }
            if capacity < n {
                return Err(fail!(BufferTooSmall, "room for {capacity} entries, {n} needed"));
            }
            for (i, (name, counters)) in used.iter().enumerate() {
                entries.add(i).write(counters.entry(name, reset != 0));
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
                name: static_text(&NAME, cpu::name)?,
                features: static_text(&FEATURES, || {
                    let detected = Isa::ALL.iter().filter(|isa| isa.detected()).map(|isa| isa.name());
                    detected.collect::<Vec<_>>().join(" ")
                })?,
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

fn static_text(place: &'static OnceLock<CString>, text: impl FnOnce() -> String) -> Result<*const c_char> {
    if let Some(text) = place.get() {
        return Ok(text.as_ptr());
    }
    let text = CString::new(text()).unwrap_or_default();
    // It stays: a part of the reserve that it took would bar this thread from making handles (`handle::make`).
    if crate::reserve::in_use() {
        return Err(fail!(OutOfMemory, "the texts of the CPU: the library's reserve had to help out"));
    }
    Ok(place.get_or_init(|| text).as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stay_at_the_largest_number() {
        let counters = Counters::default();
        counters.add(1, u64::MAX - 5, u64::MAX);
        counters.add(2, 5, 0);
        let entry = counters.entry(c"x", false);
        assert_eq!((entry.calls, entry.nanoseconds), (2, 3));
        assert_eq!((entry.bytes, entry.operations), (u64::MAX, u64::MAX));
        counters.add(3, 6, 1);
        let entry = counters.entry(c"x", true);
        assert_eq!((entry.bytes, entry.operations), (u64::MAX, u64::MAX));
        let entry = counters.entry(c"x", false);
        assert_eq!((entry.calls, entry.nanoseconds, entry.bytes, entry.operations), (0, 0, 0, 0));
    }
}
