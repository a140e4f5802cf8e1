//! What the codec tests share: vectors, `.npz` truth, a minimal GGUF reader, decoding, comparing.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use bitlinear::layout::packed::Packed;
use bitlinear::layout::{Coded, Layout, Matrix, Offset, Row, Scales};
use serde_json::Value;

/// A file of `tests/data`.
pub(crate) fn data(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The vectors of one format.
pub(crate) fn vectors(name: &str) -> Value {
    serde_json::from_slice(&data(&format!("vectors/{name}.json"))).unwrap()
}

/// The cases of one format's vectors.
pub(crate) fn cases(name: &str) -> Vec<Value> {
    vectors(name)["cases"].as_array().unwrap().clone()
}

/// Bytes written as hexadecimal digits.
pub(crate) fn hex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Numbers as f32; those of the vectors are exact.
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Small integers.
pub(crate) fn integers(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap() as i32).collect()
}

/// A size.
pub(crate) fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

/// Values as little-endian bytes.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Values as little-endian f16; they must be exact.
pub(crate) fn f16_bytes(values: &[f32]) -> Vec<u8> {
    let exact = |v: &f32| {
        let half = half::f16::from_f32(*v);
        assert_eq!(half.to_f32(), *v, "not an f16");
        half.to_le_bytes()
    };
    values.iter().flat_map(exact).collect()
}

/// One array of a truth file.
pub(crate) struct Array {
    pub(crate) descr: String,
    pub(crate) bytes: Vec<u8>,
}

impl Array {
    pub(crate) fn f32(&self) -> Vec<f32> {
        assert_eq!(self.descr, "<f4");
        self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub(crate) fn i8(&self) -> Vec<i8> {
        assert_eq!(self.descr, "|i1");
        self.bytes.iter().map(|&b| b as i8).collect()
    }
}

/// The arrays of an `.npz` file: a zip of `.npy` files.
pub(crate) fn npz(path: &str) -> HashMap<String, Array> {
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(data(path))).unwrap();
    let mut arrays = HashMap::new();
    for i in 0..archive.len() {
        let mut file = archive.by_index(i).unwrap();
        let name = file.name().strip_suffix(".npy").unwrap().to_owned();
        let mut npy = Vec::new();
        file.read_to_end(&mut npy).unwrap();
        // "\x93NUMPY", two version bytes, header length, a Python dictionary, the data.
        assert_eq!(&npy[..8], b"\x93NUMPY\x01\x00");
        let header_len = u16::from_le_bytes([npy[8], npy[9]]) as usize;
        let header = std::str::from_utf8(&npy[10..10 + header_len]).unwrap();
        assert!(header.contains("'fortran_order': False"));
        let descr = header.split("'descr': '").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        arrays.insert(name, Array { descr, bytes: npy[10 + header_len..].to_vec() });
    }
    arrays
}

/// A tensor of a GGUF file.
pub(crate) struct Tensor {
    pub(crate) dims: Vec<usize>,
    pub(crate) ty: u32,
    /// From the tensor's first byte to the end of the file.
    pub(crate) bytes: Vec<u8>,
}

/// The tensors of a well-formed GGUF file. The product's reader is `container`; this one stays
/// independent of it, so that an error there cannot hide one here.
pub(crate) fn gguf(path: &str) -> HashMap<String, Tensor> {
    struct Cursor(Vec<u8>, usize);
    impl Cursor {
        fn take(&mut self, n: usize) -> &[u8] {
            self.1 += n;
            &self.0[self.1 - n..self.1]
        }
        fn u32(&mut self) -> u32 {
            u32::from_le_bytes(self.take(4).try_into().unwrap())
        }
        fn u64(&mut self) -> usize {
            u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
        }
        fn string(&mut self) -> String {
            let len = self.u64();
            String::from_utf8(self.take(len).to_vec()).unwrap()
        }
        fn skip(&mut self, ty: u32) {
            match ty {
                0 | 1 | 7 => drop(self.take(1)),
                2 | 3 => drop(self.take(2)),
                4..=6 => drop(self.take(4)),
                10..=12 => drop(self.take(8)),
                8 => drop(self.string()),
                9 => {
                    let (of, count) = (self.u32(), self.u64());
                    (0..count).for_each(|_| self.skip(of));
                }
                other => panic!("metadata type {other}"),
            }
        }
    }
    let mut c = Cursor(data(path), 0);
    assert_eq!(c.take(4), b"GGUF");
    c.u32();
    let (tensors, entries) = (c.u64(), c.u64());
    let mut alignment = 32;
    for _ in 0..entries {
        let (key, ty) = (c.string(), c.u32());
        if key == "general.alignment" {
            alignment = c.u32() as usize;
        } else {
            c.skip(ty);
        }
    }
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let name = c.string();
            let n = c.u32();
            let dims: Vec<_> = (0..n).map(|_| c.u64()).collect();
            (name, dims, c.u32(), c.u64())
        })
        .collect();
    let start = c.1.next_multiple_of(alignment);
    infos
        .into_iter()
        .map(|(name, dims, ty, offset)| (name, Tensor { dims, ty, bytes: c.0[start + offset..].to_vec() }))
        .collect()
}

/// A tensor of a safetensors file: its bytes.
pub(crate) fn safetensors(path: &str) -> HashMap<String, Vec<u8>> {
    let file = data(path);
    let header_len = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (header, bytes) = file[8..].split_at(header_len);
    let header: Value = serde_json::from_slice(header).unwrap();
    let entry = |(name, entry): (&String, &Value)| {
        let range = &entry["data_offsets"];
        (name.clone(), bytes[size(&range[0])..size(&range[1])].to_vec())
    };
    header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__").map(entry).collect()
}

/// A row full of rubbish: decoding must overwrite every field.
pub(crate) fn dirty_row(matrix: &dyn Matrix) -> Row<'static> {
    let mut row = Row::new(matrix.layout(), matrix.in_features()).unwrap();
    row.codes.fill(0xa5);
    row.floats.fill(f32::NAN);
    row.scales.fill(f32::NAN);
    row.minimums.fill(f32::NAN);
    row.zeros.fill(0xa5);
    row.sub_scales.fill(0x55);
    row.sub_minimums.fill(0x55);
    row
}

/// The whole matrix dequantised, its columns in the order of x. Rows are read last to first into one
/// reused row; each must be valid for the packer, and the panels must hold the same weights.
pub(crate) fn dequantize(matrix: &dyn Matrix) -> Vec<f32> {
    let (rows, columns) = (matrix.out_features(), matrix.in_features());
    let layout = matrix.layout();
    let mut weights = vec![f32::NAN; rows * columns];
    let mut row = dirty_row(matrix);
    for r in (0..rows).rev() {
        matrix.read_row(r, &mut row).unwrap_or_else(|e| panic!("row {r}: {e}"));
        check_row(&layout, &row);
        for k in 0..columns {
            let column = matrix.permutation().map_or(k, |p| p[k] as usize);
            weights[r * columns + column] = row.weight(&layout, k);
        }
    }
    assert!(matrix.read_row(rows, &mut row).is_err(), "a row past the end");

    let packed = Packed::new(matrix).unwrap();
    let mut again = vec![f32::NAN; columns];
    for (r, weights) in weights.chunks_exact(columns).enumerate() {
        packed.read_weights(r, &mut row, &mut again);
        // A NaN of a file's scale may change its payload on the way.
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(again.iter().zip(weights).all(same), "row {r} differs when packed");
    }
    weights
}

/// What the packer relies on: codes fit their bits, sub-scales are really there, scales fit their type.
pub(crate) fn check_row(layout: &Layout, row: &Row) {
    let Layout::Coded(Coded { bits, scales, .. }) = *layout else { return };
    assert!(row.codes.iter().all(|&c| (c as u32) < 1 << bits), "a code has more than {bits} bits");
    if let Scales::TwoLevel { minimum, .. } = scales {
        assert!(row.sub_scales.len() >= row.scales.len());
        assert_eq!(minimum, !row.sub_minimums.is_empty());
    }
    if let Scales::Group { offset, .. } = scales {
        assert_eq!(offset == Offset::Minimum, !row.minimums.is_empty());
        assert_eq!(offset == Offset::Zero, !row.zeros.is_empty());
    }
}

/// Equal bit for bit.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i} is {g:?}, not {w:?}");
    }
}

/// Equal as numbers: bit for bit, but 0 and -0 are one.
#[track_caller]
pub(crate) fn assert_values(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g == w, "{what}: element {i} is {g:?}, not {w:?}");
    }
}

/// A small generator (xorshift64*) for bytes nobody chose.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Weights between -1 and 1.
    pub(crate) fn weights(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}
