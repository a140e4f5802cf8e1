//! Formats of ternary weights, signs and bytes with one scale or flat blocks: I2_S, Hugging Face
//! BitNet, cortex, ruvllm and burn_dragon.

use bitlinear::codec::burn_dragon::{self, Artifact, View};
use bitlinear::codec::cortex::{self, TernaryScale};
use bitlinear::codec::i2_s::{self, I2S};
use bitlinear::codec::{self, Floats, bitnet_hf, ruvllm};
use bitlinear::error::Status;
use bitlinear::layout::{Layout, Matrix, Row};
use bitlinear::types::Type;

use crate::support::*;

/// `q * scale`, rounded once.
fn scaled(q: impl IntoIterator<Item = i32>, scale: f32) -> Vec<f32> {
    q.into_iter().map(|q| q as f32 * scale).collect()
}

fn offset_codes(q: &[i32]) -> Vec<u8> {
    q.iter().map(|q| (q + 1) as u8).collect()
}

#[test]
fn i2_s_vectors_in_three_orders() {
    for case in cases("i2_s") {
        let name = case["case"].as_str().unwrap();
        let ty = match name {
            "2x256_arm_qk64" => Type::I2SArm,
            "4x128_x86_non_act_parallel_1x4" => Type::I2SRows,
            _ => Type::I2S,
        };
        let (rows, columns) = (size(&case["shape"][0]), size(&case["shape"][1]));
        let (bytes, q) = (hex(&case["packed_hex"]), integers(&case["codes"]));
        let scale = case["scale"].as_f64().unwrap() as f32;
        let want = scaled(q.clone(), scale);
        assert_values(&dequantize(&I2S::new(ty, rows, columns, &bytes).unwrap()), &want, name);
        assert_values(&dequantize(&*codec::open(ty, rows, columns, &bytes).unwrap()), &want, name);

        let mut packed = vec![0xa5; i2_s::size(rows, columns).unwrap()];
        i2_s::pack(ty, rows, columns, &offset_codes(&q), scale, &mut packed).unwrap();
        assert_eq!(packed, bytes, "{name}: packed");
        packed.fill(0xa5);
        i2_s::encode(ty, rows, columns, &want, &mut packed).unwrap();
        assert_eq!(packed, bytes, "{name}: encoded");
    }
}

#[test]
fn i2_s_files() {
    let truth = npz("golden/bitnet_i2s_truth.npz");
    let q = |name: &str| truth[name].i8().into_iter().map(|q| q as i32).collect::<Vec<_>>();
    let mut seen = 0;
    for (file, ty) in
        [("golden/bitnet_i2s.gguf", Type::I2S), ("golden/bitnet_i2s_arm_qk64.gguf", Type::I2SArm)]
    {
        for (name, tensor) in gguf(file).iter().filter(|(_, tensor)| tensor.ty == 36) {
            let (columns, rows) = (tensor.dims[0], tensor.dims[1]);
            let (q, scale) = match rows {
                64 => (q("Q"), truth["scale"].f32()[0]),
                _ => (q("Q2"), truth["scale2"].f32()[0]),
            };
            let bytes = &tensor.bytes[..i2_s::size(rows, columns).unwrap()];
            let matrix = codec::open(ty, rows, columns, bytes).unwrap();
            assert_values(&dequantize(&*matrix), &scaled(q, scale), name);
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn i2_s_refuses_what_does_not_fit() {
    let bytes = [0xff; 64];
    // Code 3 is read as 0.
    assert!(
        dequantize(&I2S::new(Type::I2S, 1, 128, &bytes).unwrap()).iter().all(|w| w.is_nan() || *w == 0.0)
    );
    for len in 0..64 {
        assert!(I2S::new(Type::I2S, 1, 128, &bytes[..len]).is_err(), "{len} bytes");
    }
    assert!(I2S::new(Type::I2S, 2, 64, &bytes).is_err());
    assert!(I2S::new(Type::I2SArm, 2, 64, &bytes).is_ok());
    assert!(I2S::new(Type::I2SArm, 4, 32, &bytes).is_err());
    assert!(I2S::new(Type::I2SRows, 4, 32, &bytes).is_ok());
    assert!(I2S::new(Type::I2SRows, 2, 64, &bytes).is_err());
    assert!(I2S::new(Type::Tq2_0, 1, 128, &bytes).is_err());
    assert!(I2S::new(Type::I2S, 1 << 31, 1 << 31, &bytes).is_err());
    assert!(I2S::new(Type::I2S, 0, 128, &bytes).is_err());
}

#[test]
fn bitnet_hf_vectors() {
    for case in cases("hf_bitnet") {
        let name = case["case"].as_str().unwrap();
        let (rows, columns) = (size(&case["shape"][0]), size(&case["shape"][1]));
        let (packed, q) = (hex(&case["packed_hex"]), integers(&case["codes"]));
        for (scale, meaning, factor) in [
            (0.75f32, bitnet_hf::WeightScale::Multiplies, 0.75f32),
            (3.0, bitnet_hf::WeightScale::Divides, 1.0 / 3.0),
        ] {
            let bytes = scale.to_le_bytes();
            let scale = Floats::new(Type::F32, &bytes).unwrap();
            let matrix = bitnet_hf::BitnetHf::new(rows, columns, &packed, scale, meaning).unwrap();
            assert_values(&dequantize(&matrix), &scaled(q.clone(), factor), name);
        }
        let mut repacked = vec![0xa5; packed.len()];
        bitnet_hf::pack(rows, columns, &offset_codes(&q), &mut repacked).unwrap();
        assert_eq!(repacked, packed, "{name}: packed");
        if name == "forward" {
            // The float masters give the same weights "online", and the scale of the file.
            let bytes = f32_bytes(&floats(&case["input"]));
            let masters = Floats::new(Type::F32, &bytes).unwrap();
            let matrix = bitnet_hf::BitnetOnline::new(rows, columns, masters).unwrap();
            let inverse = case["bitlinear_weight_scale"].as_f64().unwrap() as f32;
            assert_values(&dequantize(&matrix), &scaled(q, 1.0 / inverse), name);
        }
    }
}

#[test]
fn bitnet_hf_files() {
    let (rows, columns) = (64, 512);
    for (folder, meaning) in [
        ("hf_autobitlinear", bitnet_hf::WeightScale::Multiplies),
        ("hf_bitlinear", bitnet_hf::WeightScale::Divides),
    ] {
        let tensors = safetensors(&format!("golden/{folder}/model.safetensors"));
        let truth = npz(&format!("golden/{folder}/truth.npz"));
        let tensor = |name: &str| &tensors[&format!("model.layers.0.self_attn.q_proj.{name}")];
        let scale = Floats::new(Type::Bf16, tensor("weight_scale")).unwrap();
        assert_eq!(scale.get(0), truth["weight_scale"].f32()[0]);
        let matrix = bitnet_hf::BitnetHf::new(rows, columns, tensor("weight"), scale, meaning).unwrap();
        // Element by element by the format's own formula: a product or a division.
        let q = truth["Q"].i8();
        let want: Vec<f32> = match meaning {
            bitnet_hf::WeightScale::Multiplies => q.iter().map(|q| *q as f32 * scale.get(0)).collect(),
            bitnet_hf::WeightScale::Divides => q.iter().map(|q| *q as f32 / scale.get(0)).collect(),
        };
        assert_values(&dequantize(&matrix), &want, folder);
    }
}

#[test]
fn bitnet_online_file() {
    let tensors = safetensors("golden/hf_online/model.safetensors");
    let truth = npz("golden/hf_online/truth.npz");
    let masters = Floats::new(Type::Bf16, &tensors["model.layers.0.self_attn.q_proj.weight"]).unwrap();
    let matrix = bitnet_hf::BitnetOnline::new(64, 512, masters).unwrap();
    // W_q = q / s with s = 1 / mean |W|
    let s = 1.0 / truth["absmean"].f32()[0];
    let want: Vec<f32> = truth["Q"].i8().iter().map(|q| *q as f32 / s).collect();
    assert_values(&dequantize(&matrix), &want, "online");
}

#[test]
fn bitnet_online_rounds_halves_to_even_and_bounds_its_scale() {
    let online = |masters: &[f32]| {
        let bytes = f32_bytes(masters);
        let masters = Floats::new(Type::F32, &bytes).unwrap();
        dequantize(&bitnet_hf::BitnetOnline::new(1, 4, masters).unwrap())
    };
    assert_values(&online(&[0.5, 1.5, -0.5, -1.5]), &[0.0, 1.0, 0.0, -1.0], "mean 1");
    assert_values(&online(&[0.0; 4]), &[0.0; 4], "zeros");
    let least = 1.0 / (1.0 / 1e-5f32);
    assert_values(&online(&[1e-5, 0.0, -1e-5, 0.0]), &[least, 0.0, -least, 0.0], "small");
}

#[test]
fn bitnet_hf_refuses_code_three_but_not_in_surplus_rows() {
    let one = 1f32.to_le_bytes();
    let scale = Floats::new(Type::F32, &one).unwrap();
    let open =
        |rows, packed| bitnet_hf::BitnetHf::new(rows, 1, packed, scale, bitnet_hf::WeightScale::Multiplies);
    let matrix = open(4, &[0b11_00_01_10]).unwrap();
    let mut row = dirty_row(&matrix);
    assert!(matrix.read_row(0, &mut row).is_ok());
    assert_eq!(matrix.read_row(3, &mut row).unwrap_err().status(), Status::BadFile);
    dequantize(&open(3, &[0b11_00_01_10]).unwrap());
    assert!(open(5, &[0]).is_err());
    assert!(open(0, &[0]).is_err());
    let two = [0; 8];
    let scales = Floats::new(Type::F32, &two).unwrap();
    let two = bitnet_hf::BitnetHf::new(1, 1, &[0], scales, bitnet_hf::WeightScale::Divides);
    assert!(two.is_err(), "two scales");
    for masters in [f32::NAN, f32::INFINITY] {
        let bytes = masters.to_le_bytes();
        let masters = Floats::new(Type::F32, &bytes).unwrap();
        assert!(bitnet_hf::BitnetOnline::new(1, 1, masters).is_err());
    }
}

#[test]
fn cortex_ternary_vectors() {
    for case in cases("cortex_ternary") {
        let name = case["case"].as_str().unwrap();
        if name == "multibase_3" {
            continue;
        }
        let want = floats(&case["dequantized"]);
        let columns = size(case["shape"].as_array().unwrap().last().unwrap());
        let bytes = hex(&case["packed_hex"]);
        let scale = (case["scale"].as_f64().unwrap() as f32).to_le_bytes();
        let scales = Floats::new(Type::F32, &scale).unwrap();
        // The 1-d vectors are padded to whole bytes; a file holds whole bytes a row.
        let padded = columns.next_multiple_of(4);
        let rows = bytes.len() * 4 / padded;
        let matrix = cortex::Ternary::new(rows, padded, Type::U8, &bytes, scales).unwrap();
        assert_values(&dequantize(&matrix)[..want.len()], &want, name);

        let as_floats = f32_bytes(&bytes.iter().map(|b| *b as f32).collect::<Vec<_>>());
        let matrix = cortex::Ternary::new(rows, padded, Type::F32, &as_floats, scales).unwrap();
        assert_values(&dequantize(&matrix)[..want.len()], &want, name);

        let Some(rule) = case.get("scale_rule") else { continue };
        let rule = match rule.as_str().unwrap().starts_with("max") {
            true => TernaryScale::Max,
            false => TernaryScale::Mean,
        };
        if padded == columns {
            let mut packed = vec![0xa5; bytes.len()];
            let scale = cortex::encode_ternary(rule, columns, &floats(&case["input"]), &mut packed);
            assert_eq!(scale.unwrap(), scales.get(0), "{name}");
            assert_eq!(packed, bytes, "{name}: encoded");
        }
    }
}

#[test]
fn cortex_bases() {
    let case = cases("cortex_ternary").into_iter().find(|c| c["case"] == "multibase_3").unwrap();
    let bytes = hex(&case["weight_packed_file_hex"]);
    let scales = f32_bytes(&floats(&case["scales"]));
    let scales = Floats::new(Type::F32, &scales).unwrap();
    let matrix = cortex::Ternary::new(3, 8, Type::I8, &bytes, scales).unwrap();
    let weights = dequantize(&matrix);
    assert_bits(&weights, &floats(&case["dequantized"]), "multibase_3");
    // What one of the format's three decoders makes of the same bytes; it is wrong.
    assert_ne!(weights, floats(&case["alt_matmul_4bit_cu_decode_minus1"]));

    let mut row = Row::new(matrix.layout(), 8).unwrap();
    for (index, bytes) in bytes.chunks_exact(6).enumerate() {
        matrix.read_row(index, &mut row).unwrap();
        let mut packed = [0xa5; 6];
        cortex::pack_ternary_row(3, &row.codes, &mut packed).unwrap();
        assert_eq!(packed, bytes, "row {index}: packed");
    }
}

#[test]
fn cortex_file() {
    let tensors = safetensors("golden/cortex.safetensors");
    let truth = npz("golden/cortex_truth.npz");
    for (name, rows, columns) in [("a", 2, 16), ("b", 3, 8)] {
        let scales = Floats::new(Type::F32, &tensors[&format!("{name}.scales")]).unwrap();
        let packed = &tensors[&format!("{name}.weight_packed")];
        let matrix = cortex::Ternary::new(rows, columns, Type::U8, packed, scales).unwrap();
        assert_values(&dequantize(&matrix), &truth[name].f32(), name);
    }
    let (columns, group) = cortex::int4_shape(4, 1).unwrap();
    assert_eq!((columns, group), (8, 8));
    let packed = &tensors["c.weight_4bit"];
    let scales = Floats::new(Type::F16, &tensors["c.scales_4bit"]).unwrap();
    let weights = dequantize(&cortex::Int4::new(4, columns, group, packed, scales).unwrap());
    // The truth has the scales before they were rounded to f16.
    let exact = f32_bytes(&floats(&cases("cortex_4bit")[4]["scales"]));
    let exact = Floats::new(Type::F32, &exact).unwrap();
    let with_f32 = dequantize(&cortex::Int4::new(4, columns, group, packed, exact).unwrap());
    assert_values(&with_f32, &truth["c"].f32(), "c");
    for (i, (a, b)) in weights.iter().zip(&with_f32).enumerate() {
        assert_eq!(*a, b / exact.get(i / 8) * scales.get(i / 8), "element {i}");
    }
}

#[test]
fn cortex_ternary_refuses_what_does_not_fit() {
    let bytes = [0u8; 64];
    let floats = |n: usize| Floats::new(Type::F32, &bytes[..4 * n]).unwrap();
    let open =
        |rows, columns, ty, bases| cortex::Ternary::new(rows, columns, ty, &bytes, floats(bases)).map(|_| ());
    assert!(open(4, 64, Type::U8, 1).is_ok());
    assert!(open(4, 62, Type::U8, 1).is_err());
    assert!(open(5, 64, Type::U8, 1).is_err());
    assert!(open(4, 64, Type::U8, 2).is_err());
    assert!(open(1, 4, Type::U8, 0).is_err());
    assert!(open(1, 4, Type::U8, 8).is_ok());
    assert!(open(1, 4, Type::U8, 9).is_err());
    assert!(open(1, 4, Type::F16, 1).is_err());
    assert!(open(4, 16, Type::F32, 1).is_ok());
    assert!(open(4, 20, Type::F32, 1).is_err());
    for bad in [256.0f32, -1.0, 0.5, f32::NAN, f32::INFINITY] {
        let stored = bad.to_le_bytes();
        let matrix = cortex::Ternary::new(1, 4, Type::F32, &stored, floats(1)).unwrap();
        assert!(matrix.read_row(0, &mut dirty_row(&matrix)).is_err(), "{bad}");
    }
}

#[test]
fn ruvllm_vectors() {
    for case in cases("ruvllm_ternary") {
        let name = case["case"].as_str().unwrap();
        let Some(shape) = case.get("shape") else { continue };
        let (rows, columns) = (size(&shape[0]), size(&shape[1]));
        let block = size(&case["block_size"]);
        let (packed, scales) = (hex(&case["packed_hex"]), floats(&case["scales"]));
        let bytes = f32_bytes(&scales);
        let stored = Floats::new(Type::F32, &bytes).unwrap();
        let matrix = ruvllm::Ternary::new(rows, columns, block, &packed, stored).unwrap();
        assert_values(&dequantize(&matrix), &floats(&case["dequantized"]), name);

        let weights = floats(&case["input"]);
        let mut codes = vec![0xa5; packed.len()];
        let mut found = vec![f32::NAN; scales.len()];
        ruvllm::encode(block, &weights, &mut codes, &mut found).unwrap();
        assert_eq!(codes, packed, "{name}: encoded");
        assert_bits(&found, &scales, name);
        if case["gguf_t158_block_hex"].is_string() {
            let blocks = hex(&case["gguf_t158_block_hex"]);
            let mut encoded = vec![0xa5; blocks.len()];
            ruvllm::encode_t158(&weights, &mut encoded).unwrap();
            assert_eq!(encoded, blocks, "{name}: T158");
            let matrix = codec::open(Type::T158, rows, columns, &blocks).unwrap();
            let round = |s: f32| half::f16::from_f32(s).to_f32();
            let q = integers(&case["codes"]);
            let want: Vec<f32> =
                q.iter().enumerate().map(|(e, q)| *q as f32 * round(scales[e / 256])).collect();
            assert_values(&dequantize(&*matrix), &want, name);
        }
    }
}

#[test]
fn ruvllm_file() {
    let tensors = gguf("golden/ruvllm_t158_id30.gguf");
    let truth = npz("golden/ruvllm_t158_truth.npz");
    let tensor = tensors.values().find(|tensor| tensor.ty == 30).unwrap();
    // This format's dimensions stand rows first.
    let (rows, columns) = (tensor.dims[0], tensor.dims[1]);
    let matrix = codec::open(Type::T158, rows, columns, &tensor.bytes).unwrap();
    assert_values(&dequantize(&*matrix), &truth["dequant"].f32(), "t158");
}

/// Any shape and block length gives the flat formula, whatever layout that takes.
#[test]
fn ruvllm_blocks_run_across_rows() {
    let mut random = Random::new(3);
    for _ in 0..300 {
        let (rows, columns) = (1 + random.below(9), 1 + random.below(90));
        let block = [256, 4, 6, 5, 32, 1 + random.below(40)][random.below(6)];
        let count = rows * columns;
        let codes = random.bytes(count.div_ceil(4));
        let scales = random.weights(count.div_ceil(block));
        let bytes = f32_bytes(&scales);
        let stored = Floats::new(Type::F32, &bytes).unwrap();
        let matrix = ruvllm::Ternary::new(rows, columns, block, &codes, stored).unwrap();
        let value = |e: usize| [-1.0, 0.0, 1.0, 0.0][(codes[e / 4] >> (2 * (e % 4)) & 3) as usize];
        let want: Vec<f32> = (0..count).map(|e| value(e) * scales[e / block]).collect();
        assert_values(&dequantize(&matrix), &want, &format!("{rows} x {columns}, blocks of {block}"));
        let dense = matches!(matrix.layout(), Layout::Dense(_));
        assert_eq!(dense, (1..4).any(|n| gcd(columns, block) == n));

        assert!(ruvllm::Ternary::new(rows, columns, block, &codes[1..], stored).is_err());
        assert!(ruvllm::Ternary::new(rows + 1, columns.max(block), block, &codes, stored).is_err());
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn artifact_type(encoding: &str) -> Type {
    match encoding {
        "binary1" => Type::Binary,
        "ternary2" => Type::Ternary2,
        "int8" => Type::Int8,
        other => panic!("{other}"),
    }
}

#[test]
fn burn_dragon_vectors() {
    for case in cases("burn_dragon_artifact") {
        let name = case["case"].as_str().unwrap();
        let ty = artifact_type(case["encoding"].as_str().unwrap());
        let (packed, count) = (hex(&case["packed_hex"]), size(&case["len"]));
        let scale = case["scale"].as_f64().unwrap() as f32;
        let want = floats(&case["dequantized"]);
        // As one row, and as one column: an array [1, 1, n], whose rows are the last axis.
        let view = View::rows(1, count).unwrap();
        assert_values(&dequantize(&Artifact::new(ty, view, &packed, scale).unwrap()), &want, name);
        let view = View::heads([1, 1, count], 0, 1, count).unwrap();
        assert_values(&dequantize(&Artifact::new(ty, view, &packed, scale).unwrap()), &want, name);

        let mut encoded = vec![0xa5; packed.len()];
        let found = burn_dragon::encode(ty, &floats(&case["input"]), &mut encoded).unwrap();
        assert_eq!(encoded, packed, "{name}: encoded");
        assert_bits(&[found], &[scale], name);
    }
}

#[test]
fn burn_dragon_scales_at_their_edges() {
    let encode = |ty, weights: &[f32]| {
        let mut packed = vec![0; burn_dragon::packed_bytes(ty, weights.len()).unwrap()];
        let scale = burn_dragon::encode(ty, weights, &mut packed).unwrap();
        (packed, scale)
    };
    // |w| = mean is not below it.
    assert_eq!(encode(Type::Ternary2, &[0.5, -0.5, 0.5, -0.5]), (vec![0b00_10_00_10], 0.5));
    // Outliers are clipped to 127, not to -128.
    let (packed, scale) = encode(Type::Int8, &[-127.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!((packed[0], scale), (-127i8 as u8, 31.75 / 127.0));
}

#[test]
fn burn_dragon_views_are_the_arrays_axes() {
    let mut random = Random::new(4);
    for ty in [Type::Binary, Type::Ternary2, Type::Int8] {
        let [heads, embd, latent] = [3, 7, 5];
        let array: Vec<f32> = random.weights(heads * embd * latent);
        let mut packed = vec![0; burn_dragon::packed_bytes(ty, array.len()).unwrap()];
        let scale = burn_dragon::encode(ty, &array, &mut packed).unwrap();
        let flat =
            dequantize(&Artifact::new(ty, View::rows(1, array.len()).unwrap(), &packed, scale).unwrap());
        for (first, count, active) in [(0, 3, 5), (0, 3, 2), (1, 2, 4), (2, 1, 5)] {
            let view = View::heads([heads, embd, latent], first, count, active).unwrap();
            let got = dequantize(&Artifact::new(ty, view, &packed, scale).unwrap());
            let mut want = Vec::new();
            for h in first..first + count {
                for l in 0..active {
                    want.extend((0..embd).map(|e| flat[(h * embd + e) * latent + l]));
                }
            }
            assert_bits(&got, &want, "heads");
        }
        for active in [5, 3] {
            // The same array as [heads * latent, dim] with 3 heads, 5 latent rows and 7 dimensions.
            let view = View::tail(heads, [heads * latent, embd], active).unwrap();
            let got = dequantize(&Artifact::new(ty, view, &packed, scale).unwrap());
            let mut want = Vec::new();
            for d in 0..embd {
                for h in 0..heads {
                    want.extend((0..active).map(|i| flat[(h * latent + i) * embd + d]));
                }
            }
            assert_bits(&got, &want, "tail");
        }
        let view = View::rows(1, array.len()).unwrap();
        assert!(Artifact::new(ty, view, &packed[1..], scale).is_err());
    }
    assert!(View::heads([3, 7, 5], 2, 2, 5).is_err());
    assert!(View::heads([3, 7, 5], 0, 3, 6).is_err());
    assert!(View::heads([3, 7, 5], 0, 0, 5).is_err());
    assert!(View::heads([usize::MAX, 7, 5], 0, 1, 5).is_err());
    assert!(View::heads([3, 0, 5], 0, 1, 5).is_err());
    assert!(View::tail(4, [15, 7], 3).is_err());
    assert!(View::tail(0, [15, 7], 3).is_err());
    assert!(View::tail(3, [15, 7], 6).is_err());
    assert!(View::rows(0, 7).is_err());
}

#[test]
fn burn_dragon_refuses_the_ternary_code_three() {
    let matrix = Artifact::new(Type::Ternary2, View::rows(2, 2).unwrap(), &[0b11_01_00_10], 1.0).unwrap();
    let mut row = dirty_row(&matrix);
    assert!(matrix.read_row(0, &mut row).is_ok());
    assert_eq!(matrix.read_row(1, &mut row).unwrap_err().status(), Status::BadFile);
}

/// Ternary weights go from format to format without a change.
#[test]
fn ternary_formats_hold_the_same_weights() {
    let mut random = Random::new(5);
    let (rows, columns, scale) = (8, 256, 0.4375f32);
    let q: Vec<i32> = (0..rows * columns).map(|_| random.below(3) as i32 - 1).collect();
    let codes = offset_codes(&q);
    let want = scaled(q, scale);
    let scale_bytes = scale.to_le_bytes();
    let one_scale = Floats::new(Type::F32, &scale_bytes).unwrap();

    let mut hf = vec![0; rows / 4 * columns];
    bitnet_hf::pack(rows, columns, &codes, &mut hf).unwrap();
    let meaning = bitnet_hf::WeightScale::Multiplies;
    let matrix = bitnet_hf::BitnetHf::new(rows, columns, &hf, one_scale, meaning).unwrap();
    assert_values(&dequantize(&matrix), &want, "Hugging Face");

    let mut packed = vec![0; rows * columns / 4];
    for (codes, bytes) in codes.chunks_exact(columns).zip(packed.chunks_exact_mut(columns / 4)) {
        cortex::pack_ternary_row(1, codes, bytes).unwrap();
    }
    let matrix = cortex::Ternary::new(rows, columns, Type::U8, &packed, one_scale).unwrap();
    assert_values(&dequantize(&matrix), &want, "cortex");

    for ty in [Type::I2S, Type::I2SArm, Type::I2SRows] {
        let mut bytes = vec![0; i2_s::size(rows, columns).unwrap()];
        i2_s::encode(ty, rows, columns, &want, &mut bytes).unwrap();
        assert_values(&dequantize(&*codec::open(ty, rows, columns, &bytes).unwrap()), &want, ty.name());
    }
    for ty in [Type::Tq1_0, Type::Tq2_0, Type::Q2_0, Type::Pq2_0, Type::Ptq1_0] {
        let codec = codec::find(ty).unwrap();
        let mut bytes = vec![0; rows * codec.row_bytes(columns)];
        for (w, b) in want.chunks_exact(columns).zip(bytes.chunks_exact_mut(codec.row_bytes(columns))) {
            codec.encode_row(w, b).unwrap();
        }
        assert_values(&dequantize(&*codec::open(ty, rows, columns, &bytes).unwrap()), &want, ty.name());
    }
}

/// Whatever the bytes and however many: a matrix is refused, or its rows are, or they are decoded.
#[test]
fn random_bytes_and_sizes_never_panic() {
    let mut random = Random::new(8);
    let mut decoded = 0;
    for _ in 0..4000 {
        let (rows, columns) = (1 + random.below(9), [1, 4, 16, 64, 128, 3][random.below(6)]);
        let len = random.below(400);
        let count = 1 + random.below(9);
        let (bytes, more) = (random.bytes(len), random.bytes(4 * count));
        let floats = Floats::new([Type::F32, Type::F16, Type::Bf16][random.below(3)], &more).unwrap();
        let ty = [Type::I2S, Type::I2SArm, Type::I2SRows, Type::T158][random.below(4)];
        let packed = [Type::U8, Type::I8, Type::F32][random.below(3)];
        let encoding = [Type::Binary, Type::Ternary2, Type::Int8][random.below(3)];
        let block = 1 + random.below(300);
        let meaning = bitnet_hf::WeightScale::Divides;
        let view = View::heads([rows, columns, 1 + random.below(5)], 0, rows, 1).unwrap();
        let one = Floats::new(Type::Bf16, &more[..2]).unwrap();
        let matrices: [Option<Box<dyn Matrix + '_>>; 6] = [
            codec::open(ty, rows, columns, &bytes).ok(),
            boxed(bitnet_hf::BitnetHf::new(rows, columns, &bytes, one, meaning)),
            boxed(cortex::Ternary::new(rows, columns, packed, &bytes, floats)),
            boxed(cortex::Int4::new(rows, columns, block, &bytes, floats)),
            boxed(ruvllm::Ternary::new(rows, columns, block, &bytes, floats)),
            boxed(Artifact::new(encoding, view, &bytes, 1.0)),
        ];
        for matrix in matrices.into_iter().flatten() {
            let mut row = dirty_row(&*matrix);
            for index in 0..matrix.out_features() + 2 {
                if matrix.read_row(index, &mut row).is_ok() {
                    check_row(&matrix.layout(), &row);
                    decoded += 1;
                }
            }
        }
    }
    assert!(decoded > 1000, "only {decoded} rows were decoded");
}

fn boxed<'a, M: Matrix + 'a>(matrix: bitlinear::error::Result<M>) -> Option<Box<dyn Matrix + 'a>> {
    matrix.ok().map(|matrix| Box::new(matrix) as Box<dyn Matrix>)
}
