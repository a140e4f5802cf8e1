//! safetensors: any bytes are refused or give a directory that keeps its promises.
#![no_main]

#[path = "../check.rs"]
mod check;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(directory) = bitlinear::container::safetensors::read(bytes) {
        check::directory(&directory, &[bytes]);
        // They tile the data: nothing is in the file but header and tensors.
        let data: u64 = directory.tensors.iter().map(|t| t.bytes).sum();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(header + data, bytes.len() as u64);
    }
});
