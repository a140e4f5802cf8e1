//! GGUF: any bytes are refused or give a directory that keeps its promises.
#![no_main]

#[path = "../check.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(directory) = bitlinear::container::gguf::read(bytes) {
        check::directory(&directory, &[bytes]);
    }
});
