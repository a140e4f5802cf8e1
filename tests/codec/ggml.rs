//! ggml's formats: vectors made by its C reference, and every tensor of a GGUF file it wrote.

use bitlinear::codec::{self, Codec, Rows};
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
        assert_bits(&dequantize(&matrix), &floats(&case["dequantized"]), &what);
        if encodes {
            assert_eq!(encode(codec, columns, &floats(&case["input"])), packed, "{what}: encoded");
        }
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

const ENCODED: &[Type] = &[Type::F32, Type::F16, Type::Bf16, Type::Q4_0, Type::Q4_1, Type::Q8_0];
const DECODED: &[Type] = &[];

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
        assert_bits(&dequantize(&matrix), &want, name);
        if i < ENCODED.len() {
            let source = if matches!(ty, Type::Tq1_0 | Type::Tq2_0) { &ternary } else { &weights };
            let bytes = encode(codec, columns, source);
            assert!(bytes == tensor.bytes[..bytes.len()], "{name}: encoded");
        }
    }
}
