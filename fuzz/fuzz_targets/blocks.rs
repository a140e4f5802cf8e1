//! Formats of fixed blocks, and plain floats: any bytes give rows that the packer can take, and what is
//! written of their weights is read back.
#![no_main]

#[path = "../matrix.rs"]
mod matrix;

use bitlinear::codec::{self, Codec};
use libfuzzer_sys::fuzz_target;
use matrix::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let all = codec::all();
    let codec: &dyn Codec = all[input.byte() % all.len()];
    let (rows, columns) = (input.size(), input.size());
    matrix::check(codec::Rows::new(codec, rows, columns, input.0));
    // The same bytes as weights.
    let weights: Vec<f32> = input.0.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let columns = weights.len().min(1024);
    let Ok(_) = codec.layout(columns) else { return };
    let mut encoded = vec![0u8; codec.row_bytes(columns)];
    if codec.encode_row(&weights[..columns], &mut encoded).is_ok() {
        matrix::check(codec::Rows::new(codec, 1, columns, &encoded));
    }
});
