//! What the container tests share: golden files, checks, and an allocator that counts and fails.
#![allow(dead_code, unreachable_pub)] // every test binary uses some of it

pub mod gguf_writer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

use bitlinear::container::Directory;
use bitlinear::error::{Error, Status};

pub fn golden_path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "data", "golden", name].iter().collect()
}

pub fn golden(name: &str) -> Vec<u8> {
    std::fs::read(golden_path(name)).unwrap()
}

/// The malformed golden files of one ending, by name.
pub fn bad(ending: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(golden_path("bad"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == ending))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The text of a refusal, which blames the file.
#[track_caller]
pub fn refused<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => {
            assert!(matches!(error.status(), Status::BadFile | Status::Unsupported), "{error:?}");
            assert!(!error.text().is_empty());
            error.text().to_string()
        }
    }
}

/// All texts differ.
pub fn distinct<'a>(texts: impl Iterator<Item = (&'a str, String)>) {
    let mut seen = std::collections::HashMap::new();
    for (name, text) in texts {
        println!("{name}: {text}");
        if let Some(other) = seen.insert(text.clone(), name) {
            panic!("{name} and {other} are refused in the same words: {text}");
        }
    }
}

/// What every directory promises, whatever it was read from. `lens`: the lengths of the sources.
#[track_caller]
pub fn check(directory: &Directory, lens: &[usize]) {
    for tensor in &directory.tensors {
        let end = tensor.offset.checked_add(tensor.bytes).unwrap();
        assert!(end <= lens[tensor.source as usize] as u64);
        assert!(tensor.dims <= 4);
        assert!(tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).is_some());
        assert!(tensor.shape[tensor.dims as usize..].iter().all(|&d| d == 1));
        let name = directory.name(tensor);
        assert!(std::ptr::eq(directory.tensor(name).unwrap(), tensor), "{name:?} is not unique");
    }
    for meta in &directory.metadata {
        let key = directory.texts.get(meta.key);
        assert!(std::ptr::eq(directory.meta(key).unwrap(), meta), "{key:?} is not unique");
    }
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    /// Allocations left until all fail; negative: none fails.
    static LEFT: Cell<isize> = const { Cell::new(-1) };
}

/// The system's allocator, counting per thread: tests run side by side.
pub struct Counting;

impl Counting {
    fn grow(by: isize) {
        let live = LIVE.get() + by;
        LIVE.set(live);
        PEAK.set(PEAK.get().max(live));
    }

    fn refuses() -> bool {
        let left = LEFT.get();
        if left > 0 {
            LEFT.set(left - 1);
        }
        left == 0
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments; a refusal is a
// null pointer, which the contract allows. The counters are thread-local cells that never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Counting::refuses() {
            return std::ptr::null_mut();
        }
        Counting::grow(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Counting::refuses() {
            return std::ptr::null_mut();
        }
        Counting::grow(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Counting::grow(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Counting::refuses() {
            return std::ptr::null_mut();
        }
        // While it moves, both places are live.
        Counting::grow(size as isize);
        Counting::grow(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What `work` returns and how many more bytes were live at its peak than before it.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

/// Runs `work` with every allocation failing from the given one on.
pub fn fail_after<T>(allocations: usize, work: impl FnOnce() -> T) -> T {
    LEFT.set(allocations as isize);
    let result = work();
    LEFT.set(-1);
    result
}
