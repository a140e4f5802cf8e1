//! ggml's formats: vectors made by its C reference, and every tensor of a GGUF file it wrote.

use bitlinear::codec::{self, Codec, Rows};
use bitlinear::error::Status;
use bitlinear::layout::{Matrix, Row};
use bitlinear::types::Type;

use crate::support::*;

/// Decodes and, where the format fixes the bytes, encodes every case of `vectors/ggml_<name>.json`.
fn check_vectors(ty: Type, encodes: bool) {
    let name = ty.name();
    let codec = codec::find(ty).unwrap();
    for case in cases(&format!("ggml_{name}")) {
        let what = format!("{name} {}", case["case"]);
        let (rows, columns) = (size(&case["shape"][0]), size(&case["shape"][1]));
        let packed = hex(&case["packed_hex"]);
        assert_eq!(codec.row_bytes(columns), size(&case["row_bytes"]), "{what}");
        let matrix = Rows::new(codec, rows, columns, &packed).unwrap();
        compare(ty, &dequantize(&matrix), &floats(&case["dequantized"]), &what);
        if ty != Type::Iq1S {
            assert_eq!(stored(codec, &matrix), packed, "{what}: stored");
        }
        if encodes {
            assert_eq!(encode(codec, columns, &floats(&case["input"])), packed, "{what}: encoded");
        }
    }
}

/// Bit for bit; but the zeros of an IQ1_S block without a scale have other signs (see its header).
#[track_caller]
fn compare(ty: Type, got: &[f32], want: &[f32], what: &str) {
    match ty {
        Type::Iq1S => assert_values(got, want, what),
        _ => assert_bits(got, want, what),
    }
}

fn encode(codec: &dyn Codec, columns: usize, weights: &[f32]) -> Vec<u8> {
    let row_bytes = codec.row_bytes(columns);
    let mut bytes = vec![0xa5; weights.len() / columns * row_bytes];
    for (w, b) in weights.chunks_exact(columns).zip(bytes.chunks_exact_mut(row_bytes)) {
        codec.encode_row(w, b).unwrap();
    }
    bytes
}

/// The bytes of a matrix's codes and scales.
fn stored(codec: &dyn Codec, matrix: &Rows<'_>) -> Vec<u8> {
    let columns = matrix.in_features();
    let mut row = Row::new(matrix.layout(), columns).unwrap();
    let mut bytes = vec![0xa5; matrix.out_features() * codec.row_bytes(columns)];
    for (index, bytes) in bytes.chunks_exact_mut(codec.row_bytes(columns)).enumerate() {
        matrix.read_row(index, &mut row).unwrap();
        codec.store_row(&row, bytes).unwrap();
    }
    bytes
}

/// Formats whose bytes follow from the weights.
const ENCODED: &[Type] = &[
    Type::F32,
    Type::F16,
    Type::Bf16,
    Type::Q4_0,
    Type::Q4_1,
    Type::Q5_0,
    Type::Q5_1,
    Type::Q8_0,
    Type::Tq1_0,
    Type::Tq2_0,
    Type::Q1_0,
    Type::Q2_0,
];

/// Formats that are read only.
const DECODED: &[Type] = &[Type::Q2K, Type::Q3K, Type::Q4K, Type::Q5K, Type::Q6K, Type::Iq1S];

#[test]
fn vectors_of_the_c_reference() {
    ENCODED.iter().for_each(|&ty| check_vectors(ty, true));
    DECODED.iter().for_each(|&ty| check_vectors(ty, false));
}

#[test]
fn every_tensor_of_the_golden_file() {
    let tensors = gguf("golden/ggml_all_64x512.gguf");
    let mut truth = npz("golden/ggml_all_64x512_truth_hi.npz");
    truth.extend(npz("golden/ggml_all_64x512_truth_lo.npz"));
    let (weights, ternary) = (truth["W"].f32(), truth["W_ternary"].f32());
    for (i, &ty) in ENCODED.iter().chain(DECODED).enumerate() {
        let name = ty.name();
        let Some(tensor) = tensors.get(&format!("blk.0.{name}.weight")) else {
            assert_eq!(ty, Type::Q2_0, "{name} is not in the file");
            continue;
        };
        let id = match ty {
            Type::F32 => 0,
            Type::F16 => 1,
            Type::Bf16 => 30,
            other => other as u32 - 100,
        };
        assert_eq!(tensor.ty, id, "{name}");
        let (columns, rows) = (tensor.dims[0], tensor.dims[1]);
        let codec = codec::find(ty).unwrap();
        let matrix = Rows::new(codec, rows, columns, &tensor.bytes).unwrap();
        let want = match ty {
            Type::F32 => weights.clone(),
            _ => truth[&format!("d_{}", name.to_uppercase())].f32(),
        };
        compare(ty, &dequantize(&matrix), &want, name);
        if i < ENCODED.len() {
            let source = if matches!(ty, Type::Tq1_0 | Type::Tq2_0) { &ternary } else { &weights };
            let bytes = encode(codec, columns, source);
            assert!(bytes == tensor.bytes[..bytes.len()], "{name}: encoded");
        }
    }
}

#[test]
fn random_blocks_as_gguf_py_reads_them() {
    let formats = vectors("random_blocks")["formats"].clone();
    let mut seen = 0;
    for codec in codec::all() {
        let (ty, name) = (codec.ty(), codec.ty().name());
        let Some(format) = formats.get(name) else { continue };
        let bytes = hex(&format["packed_hex"]);
        let truth = hex(&format["dequantized_f32_hex"]);
        let want: Vec<f32> = truth.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let matrix = Rows::new(*codec, 1, size(&format["columns"]), &bytes).unwrap();
        compare(ty, &dequantize(&matrix), &want, name);
        match ty {
            Type::Iq1S => {} // not written
            // Bytes that no tool writes stand for digits, too; they come back as others.
            Type::Tq1_0 => {
                let again = stored(*codec, &matrix);
                let again = Rows::new(*codec, 1, size(&format["columns"]), &again).unwrap();
                assert_eq!(dequantize(&again), want);
            }
            _ => assert_eq!(stored(*codec, &matrix), bytes, "{name}: stored"),
        }
        seen += 1;
    }
    assert_eq!(seen, formats.as_object().unwrap().len());
}

#[test]
fn prism_blocks() {
    for case in vectors("prism")["blocks"].as_array().unwrap() {
        let weights = floats(&case["input"]);
        for (ty, name) in [(Type::Pq2_0, "pq2_0"), (Type::Ptq1_0, "ptq1_0"), (Type::Q2_0Legacy, "pq2_0")] {
            let what = format!("{} {}", ty.name(), case["case"]);
            let codec = codec::find(ty).unwrap();
            let bytes = hex(&case[format!("{name}_hex")]);
            assert_eq!(encode(codec, weights.len(), &weights), bytes, "{what}: encoded");
            let matrix = Rows::new(codec, 1, weights.len(), &bytes).unwrap();
            assert_bits(&dequantize(&matrix), &floats(&case[name]), &what);
        }
    }
}

/// The claim of `iq1_s.rs`: scale, code and minimum give the very number of the format's formula, for
/// every scale, sub-scale, shift and code there is.
#[test]
fn iq1_s_as_scale_and_minimum_is_exact() {
    for bits in 0..0x7c00u16 {
        let d = half::f16::from_bits(bits).to_f32();
        for s in 0..8 {
            let scale = (2 * s + 1) as f32;
            for v in [-1.0f32, 0.0, 1.0] {
                for delta in [0.125f32, -0.125] {
                    let formula = (d * scale) * (v + delta);
                    let minimum = if delta > 0.0 { -scale } else { scale };
                    let ours = (d * scale) * v - (d * 0.125) * minimum;
                    assert_eq!(ours, formula);
                    assert_eq!(formula as f64, d as f64 * scale as f64 * (v as f64 + delta as f64));
                }
            }
        }
    }
}

#[test]
fn mxfp4_as_gguf_py_writes_it() {
    let vectors = vectors("mxfp4_encode");
    let input = hex(&vectors["input_f32_hex"]);
    let input: Vec<f32> = input.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let codec = codec::find(Type::Mxfp4).unwrap();
    assert_eq!(encode(codec, size(&vectors["columns"]), &input), hex(&vectors["packed_hex"]));
}

#[test]
fn mxfp4_has_every_power_of_two() {
    // Code 1 is 0.5, stored doubled: 1 times half the scale.
    let blocks: Vec<u8> = (0..=255u8).flat_map(|e| [vec![e], vec![0x11; 16]].concat()).collect();
    let weights = dequantize(&Rows::new(codec::find(Type::Mxfp4).unwrap(), 256, 32, &blocks).unwrap());
    for (e, weights) in weights.chunks_exact(32).enumerate() {
        assert!(weights.iter().all(|&w| w as f64 == 2f64.powi(e as i32 - 128)), "{e}");
    }
}

#[test]
fn every_code_of_two_bits_is_legal() {
    // Code 3 is +2 d: ggml does not mask it.
    let mut block = [0xff; 66];
    block[64..].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
    let matrix = Rows::new(codec::find(Type::Tq2_0).unwrap(), 1, 256, &block).unwrap();
    assert!(dequantize(&matrix).iter().all(|&w| w == 1.0));
}

#[test]
fn random_bytes_decode_and_short_ones_are_refused() {
    let mut random = Random::new(1);
    for codec in codec::all() {
        let name = codec.ty().name();
        let block = codec.ty().info().block as usize;
        let columns = 3 * block;
        let row_bytes = codec.row_bytes(columns);
        for _ in 0..50 {
            let bytes = random.bytes(2 * row_bytes);
            dequantize(&Rows::new(*codec, 2, columns, &bytes).unwrap());
        }
        for len in 0..2 * row_bytes {
            assert!(Rows::new(*codec, 2, columns, &vec![0; len]).is_err(), "{name}: {len} bytes");
        }
        assert!(Rows::new(*codec, usize::MAX, columns, &[0; 64]).is_err(), "{name}");
        if block > 1 {
            for columns in [0, 1, block - 1, block + 1] {
                assert!(codec.layout(columns).is_err(), "{name}: {columns} columns");
            }
            let weights = [vec![0.0; block - 1], vec![f32::NAN]].concat();
            assert!(codec.encode_row(&weights, &mut vec![0; codec.row_bytes(block)]).is_err());
        }
        let short = codec.row_bytes(block) - 1;
        assert!(codec.encode_row(&vec![0.0; block], &mut vec![0; short]).is_err(), "{name}");
    }
}

/// Weights that a format can hold come back as the same bytes: decode, then encode.
#[test]
fn ternary_blocks_survive_a_round_trip() {
    let mut random = Random::new(2);
    let types = [Type::Tq1_0, Type::Tq2_0, Type::Q2_0, Type::Q2_0Legacy, Type::Pq2_0, Type::Ptq1_0];
    for ty in types {
        let codec = codec::find(ty).unwrap();
        let weights: Vec<f32> = (0..1024).map(|_| (random.below(3) as f32 - 1.0) * 0.375).collect();
        let bytes = encode(codec, 512, &weights);
        let matrix = Rows::new(codec, 2, 512, &bytes).unwrap();
        assert_values(&dequantize(&matrix), &weights, ty.name());
    }
}

#[test]
fn what_is_not_decoded_says_why() {
    let text = |ty| codec::find(ty).err().unwrap().text().to_owned();
    assert!(text(Type::Tl1).contains("tl1") && text(Type::Tl2).contains("i2_s or tq2_0"));
    for ty in [Type::Iq2Xxs, Type::Iq2Xs, Type::Iq2S, Type::Iq3Xxs, Type::Iq3S, Type::Iq1M, Type::Nvfp4] {
        assert!(text(ty).starts_with(ty.name()) && text(ty).contains("convert"));
    }
    for ty in [Type::I8, Type::U64, Type::Other, Type::Gptq, Type::I2S] {
        assert_eq!(codec::find(ty).err().unwrap().status(), Status::Unsupported);
    }
}

/// Weights at the ends of f32: their scales are no f16, or have an infinite inverse. Codes stay
/// within their bits and blocks decode to finite weights; what cannot be stored is refused.
#[test]
fn tiny_and_huge_weights_are_stored_or_refused() {
    for codec in codec::all().iter().filter(|codec| !codec.ty().is_plain()) {
        let (ty, columns) = (codec.ty(), codec.ty().info().block as usize);
        let mut bytes = vec![0; codec.row_bytes(columns)];
        if codec.encode_row(&vec![0.0; columns], &mut bytes).is_err() {
            assert!(!ENCODED.contains(&ty), "{}", ty.name());
            continue;
        }
        for size in [1e-45, 1e-41, 1e-38, 1e-20, 1e-7, 1.0] {
            let weights: Vec<f32> = (0..columns).map(|k| size * (k as f32 - 9.0)).collect();
            codec.encode_row(&weights, &mut bytes).unwrap();
            let largest = weights.iter().fold(0f32, |a, w| a.max(w.abs()));
            for w in dequantize(&Rows::new(*codec, 1, columns, &bytes).unwrap()) {
                // f16 has steps of 2^-24; a code is 127 at most.
                assert!(w.abs() <= largest * 1.1 + 1e-5, "{} at {size}: {w}", ty.name());
            }
        }
        let huge: Vec<f32> = (0..columns).map(|k| if k % 2 == 0 { 3e38 } else { -3e38 }).collect();
        let encoded = codec.encode_row(&huge, &mut bytes);
        if ty == Type::Mxfp4 {
            assert!(encoded.is_ok()); // its scale is an exponent
            continue;
        }
        let error = encoded.unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{}", ty.name());
    }
}
