//! Packed files: any header under a right sum is refused, or gives layers that compute.
#![no_main]

use std::ops::Deref;
use std::sync::Arc;

use bitlinear::container::{Files, Source, packed};
use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::layer::Linear;
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::model;
use libfuzzer_sys::fuzz_target;

struct Held(Files);

impl Deref for Held {
    type Target = Files;
    fn deref(&self) -> &Files {
        &self.0
    }
}

/// Puts the right sum into the header, so that what comes behind it is reached.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let key = b"\"bitlinear.header\":\"";
    let Some(at) = bytes.windows(key.len()).position(|w| w == key).map(|at| at + key.len()) else {
        return bytes;
    };
    let length = bytes.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
    let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(8);
    if at + 16 <= bytes.len() && end <= bytes.len() {
        let sum = format!("{:016x}", packed::header_sum(&bytes[..end]));
        bytes[at..at + 16].copy_from_slice(sum.as_bytes());
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(files) = Files::of(Source::copy(&mended(bytes)).unwrap()) else { return };
    let files = Arc::new(Held(files));
    let _ = packed::verify(&files.directory, files.sources[0].bytes());
    for tensor in &files.directory.tensors {
        let Ok(Some(saved)) = model::saved(&files, tensor, &Heap::default()) else { continue };
        let Ok(linear) = Linear::of(saved.packed, &saved.settings.options(), Isa::best()) else { continue };
        let (rows, columns) = (linear.out_features(), linear.in_features());
        if rows > 4096 || columns > 4096 {
            continue;
        }
        let (x, mut y) = (vec![1.0; 2 * columns], vec![0.0; 2 * rows]);
        let (x, y) = (MatrixRef::of(&x, columns), MatrixMut::of(&mut y, rows));
        linear.forward(2, x, y, None, &Heap::default(), &Executor::Serial).unwrap();
    }
});
