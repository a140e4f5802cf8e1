//! 4-bit groups of safetensors files: cortex, GPTQ, AWQ, compressed-tensors and MLX.

use bitlinear::codec::gptq::{Awq, Gptq, GptqVersion};
use bitlinear::codec::int4_rows::{CompressedTensors, Mlx};
use bitlinear::codec::{Floats, cortex};
use bitlinear::error::Status;
use bitlinear::layout::{Coded, Layout, Matrix, Scales};
use bitlinear::types::Type;

use crate::support::*;

#[test]
fn cortex_vectors() {
    for case in cases("cortex_4bit") {
        let name = case["case"].as_str().unwrap();
        let (rows, columns) = (size(&case["shape"][0]), size(&case["shape"][1]));
        let group = size(&case["group_size"]);
        let (packed, scales) = (hex(&case["packed_hex"]), floats(&case["scales"]));
        let bytes = f32_bytes(&scales);
        let stored = Floats::new(Type::F32, &bytes).unwrap();
        let matrix = cortex::Int4::new(rows, columns, group, &packed, stored).unwrap();
        assert_values(&dequantize(&matrix), &floats(&case["dequantized"]), name);

        let (mut encoded, mut found) = (vec![0xa5; packed.len()], vec![f32::NAN; scales.len()]);
        let row_bytes = packed.len() / rows;
        let places = encoded.chunks_exact_mut(row_bytes).zip(found.chunks_exact_mut(scales.len() / rows));
        for (w, (bytes, scales)) in floats(&case["input"]).chunks_exact(columns).zip(places) {
            cortex::encode_int4_row(group, w, bytes, scales).unwrap();
        }
        assert_eq!(encoded, packed, "{name}: encoded");
        assert_bits(&found, &scales, name);
    }
}

#[test]
fn cortex_shapes_are_told_or_refused() {
    assert_eq!(cortex::int4_shape(32, 2).unwrap(), (64, 32));
    assert_eq!(cortex::int4_shape(3, 1).unwrap(), (6, 6));
    for (packed, groups) in [(0, 1), (4, 0), (5, 2), (4, 8), (usize::MAX, 1)] {
        assert!(cortex::int4_shape(packed, groups).is_err(), "{packed} {groups}");
    }
    let bytes = [0; 64];
    let scales = |n: usize| Floats::new(Type::F32, &bytes[..4 * n]).unwrap();
    assert!(cortex::Int4::new(2, 8, 0, &bytes, scales(2)).is_err());
    assert!(cortex::Int4::new(2, 8, 8, &bytes[..7], scales(2)).is_err());
    assert!(cortex::Int4::new(2, 8, 8, &bytes[..8], scales(2)).is_ok());
    assert!(cortex::Int4::new(2, 8, 8, &bytes[..8], scales(1)).is_err());
    assert!(cortex::Int4::new(2, 8, usize::MAX, &bytes, scales(2)).is_err());
    assert!(cortex::encode_int4_row(0, &[1.0], &mut [], &mut [0.0]).is_err());
    assert!(cortex::encode_int4_row(2, &[f32::NAN, 1.0], &mut [0], &mut [0.0]).is_err());
}

const ROWS: usize = 16;
const COLUMNS: usize = 64;
const GROUP: usize = 32;

fn f16(values: &serde_json::Value) -> Vec<u8> {
    f16_bytes(&floats(values))
}

/// [O, G] to [G, O].
fn transposed(values: Vec<f32>) -> Vec<f32> {
    let groups = values.len() / ROWS;
    (0..values.len()).map(|i| values[i % ROWS * groups + i / ROWS]).collect()
}

#[test]
fn gptq_and_awq_vectors() {
    let all = vectors("later_int4_layouts");
    let want = floats(&all["dequantized"]);
    let scales = f16_bytes(&transposed(floats(&all["scales_f16"])));
    let scales = Floats::new(Type::F16, &scales).unwrap();
    let gptq = &all["gptq"];
    let qweight = hex(&gptq["qweight_hex"]);
    let g_idx: Vec<u8> = integers(&gptq["g_idx"]).iter().flat_map(|g| g.to_le_bytes()).collect();
    for (version, zeros) in [(GptqVersion::V1, "qzeros_v1_hex"), (GptqVersion::V2, "qzeros_v2_hex")] {
        let zeros = hex(&gptq[zeros]);
        for g_idx in [None, Some(&g_idx[..])] {
            let matrix = Gptq::new(version, ROWS, COLUMNS, GROUP, &qweight, &zeros, scales, g_idx).unwrap();
            assert!(matrix.permutation().is_none());
            assert_values(&dequantize(&matrix), &want, "gptq");
        }
    }
    let (qweight, zeros) = (hex(&all["awq"]["qweight_hex"]), hex(&all["awq"]["qzeros_hex"]));
    let matrix = Awq::new(ROWS, COLUMNS, GROUP, &qweight, &zeros, scales).unwrap();
    assert_values(&dequantize(&matrix), &want, "awq");
}

#[test]
fn compressed_tensors_and_mlx_vectors() {
    let all = vectors("later_int4_layouts");
    let ct = &all["compressed_tensors"];
    let (packed, scales) = (hex(&ct["weight_packed_hex"]), f16(&ct["weight_scale"]));
    let scales = Floats::new(Type::F16, &scales).unwrap();
    let matrix = CompressedTensors::new(ROWS, COLUMNS, GROUP, &packed, scales, None, None).unwrap();
    assert_values(&dequantize(&matrix), &floats(&ct["dequantized"]), "compressed-tensors");

    let mlx = &all["mlx"];
    let (packed, biases) = (hex(&mlx["weight_hex"]), f16(&mlx["biases"]));
    let scales = f16(&all["scales_f16"]);
    let scales = Floats::new(Type::F16, &scales).unwrap();
    let biases = Floats::new(Type::F16, &biases).unwrap();
    let matrix = Mlx::new(ROWS, COLUMNS, GROUP, &packed, scales, biases).unwrap();
    assert_values(&dequantize(&matrix), &floats(&mlx["dequantized"]), "mlx");
}

#[test]
fn the_file_of_four_layouts() {
    let tensors = safetensors("golden/int4_layouts.safetensors");
    let all = vectors("later_int4_layouts");
    let halves = |name: &str| Floats::new(Type::F16, &tensors[name]).unwrap();
    let want = floats(&all["dequantized"]);
    let (q, z) = (&tensors["gptq.qweight"], &tensors["gptq.qzeros"]);
    let g_idx = Some(&tensors["gptq.g_idx"][..]);
    let matrix =
        Gptq::new(GptqVersion::V1, ROWS, COLUMNS, GROUP, q, z, halves("gptq.scales"), g_idx).unwrap();
    assert_values(&dequantize(&matrix), &want, "gptq");
    let (q, z) = (&tensors["awq.qweight"], &tensors["awq.qzeros"]);
    let matrix = Awq::new(ROWS, COLUMNS, GROUP, q, z, halves("awq.scales")).unwrap();
    assert_values(&dequantize(&matrix), &want, "awq");
    let (packed, scales) = (&tensors["ct.weight_packed"], halves("ct.weight_scale"));
    let matrix = CompressedTensors::new(ROWS, COLUMNS, GROUP, packed, scales, None, None).unwrap();
    assert_values(&dequantize(&matrix), &floats(&all["compressed_tensors"]["dequantized"]), "ct");
    let (scales, biases) = (halves("mlx.scales"), halves("mlx.biases"));
    let matrix = Mlx::new(ROWS, COLUMNS, GROUP, &tensors["mlx.weight"], scales, biases).unwrap();
    assert_values(&dequantize(&matrix), &floats(&all["mlx"]["dequantized"]), "mlx");
}

/// Random shapes, groups in any order: GPTQ and compressed-tensors against the formula, element by
/// element in the order of the file.
#[test]
fn scattered_groups_are_brought_together() {
    let mut random = Random::new(6);
    for _ in 0..100 {
        let (rows, columns) = (8 * (1 + random.below(3)), 8 * (1 + random.below(12)));
        let group = [4, 32, columns, 1 + random.below(columns)][random.below(4)];
        let groups = columns.div_ceil(group);
        let mut g_idx: Vec<i32> = (0..columns).map(|i| (i / group) as i32).collect();
        for i in (1..columns).rev() {
            g_idx.swap(i, random.below(i + 1));
        }
        let g_bytes: Vec<u8> = g_idx.iter().flat_map(|g| g.to_le_bytes()).collect();
        let scales = random.weights(groups * rows);
        let scale_bytes = f32_bytes(&scales);
        let scales_of = Floats::new(Type::F32, &scale_bytes).unwrap();
        let nibble =
            |bytes: &[u8], word: usize, n: usize| (bytes[word * 4 + n / 2] >> (4 * (n % 2)) & 15) as i32;

        let qweight = random.bytes(columns / 8 * rows * 4);
        let qzeros = random.bytes(groups * rows / 8 * 4);
        let matrix =
            Gptq::new(GptqVersion::V1, rows, columns, group, &qweight, &qzeros, scales_of, Some(&g_bytes))
                .unwrap();
        let mut want = Vec::new();
        for o in 0..rows {
            for (i, &g) in g_idx.iter().enumerate() {
                let g = g as usize;
                let q = nibble(&qweight, i / 8 * rows + o, i % 8);
                let z = nibble(&qzeros, g * (rows / 8) + o / 8, o % 8) + 1;
                want.push(scales[g * rows + o] * (q - z) as f32);
            }
        }
        assert_values(&dequantize(&matrix), &want, "gptq");
        let sorted = g_idx.is_sorted();
        assert_eq!(matrix.permutation().is_none(), sorted);
        if let Some(permutation) = matrix.permutation() {
            let mut seen = vec![false; columns];
            permutation.iter().for_each(|&c| assert!(!std::mem::replace(&mut seen[c as usize], true)));
            let order: Vec<i32> = permutation.iter().map(|&c| g_idx[c as usize]).collect();
            assert!(order.is_sorted() && seen.iter().all(|s| *s));
        }

        let packed = random.bytes(rows * columns / 2);
        let zeros = random.bytes(rows.div_ceil(8) * groups * 4);
        for zeros in [None, Some(&zeros[..])] {
            let matrix =
                CompressedTensors::new(rows, columns, group, &packed, scales_of, zeros, Some(&g_bytes))
                    .unwrap();
            let mut want = Vec::new();
            for o in 0..rows {
                for (i, &g) in g_idx.iter().enumerate() {
                    let g = g as usize;
                    let q = nibble(&packed, o * columns / 8 + i / 8, i % 8) - 8;
                    let z = zeros.map_or(0, |z| nibble(z, o / 8 * groups + g, o % 8) - 8);
                    want.push(scales[o * groups + g] * (q - z) as f32);
                }
            }
            assert_values(&dequantize(&matrix), &want, "compressed-tensors");
        }
    }
}

#[test]
fn ragged_rows_of_compressed_tensors() {
    // 13 columns in two words a row; 3 rows of zero points in one word a group.
    let mut random = Random::new(7);
    let (packed, zeros, scales) = (random.bytes(3 * 8), random.bytes(8), random.weights(6));
    let bytes = f32_bytes(&scales);
    let scales_of = Floats::new(Type::F32, &bytes).unwrap();
    let matrix = CompressedTensors::new(3, 13, 8, &packed, scales_of, Some(&zeros), None).unwrap();
    let mut want = Vec::new();
    for o in 0..3 {
        for i in 0..13 {
            let q = packed[o * 8 + i / 2] >> (4 * (i % 2)) & 15;
            let z = zeros[i / 8 * 4 + o / 2] >> (4 * (o % 2)) & 15;
            want.push(scales[o * 2 + i / 8] * (q as i32 - z as i32) as f32);
        }
    }
    assert_values(&dequantize(&matrix), &want, "ragged");

    // An index that nobody filled is none.
    let unset = [0xff; 4 * 13];
    let matrix = CompressedTensors::new(3, 13, 8, &packed, scales_of, Some(&zeros), Some(&unset)).unwrap();
    assert_values(&dequantize(&matrix), &want, "unset g_idx");
}

#[test]
fn wrong_sizes_and_groups_are_refused() {
    let bytes = [0u8; 512];
    let scales = |n: usize| Floats::new(Type::F16, &bytes[..2 * n]).unwrap();
    let gptq = |rows, columns, group, q: usize, z: usize, s, g_idx: Option<&[u8]>| {
        Gptq::new(GptqVersion::V1, rows, columns, group, &bytes[..q], &bytes[..z], scales(s), g_idx)
            .map(|_| ())
    };
    assert!(gptq(16, 16, 8, 128, 16, 32, None).is_ok());
    assert!(gptq(16, 16, 8, 127, 16, 32, None).is_err());
    assert!(gptq(16, 16, 8, 128, 15, 32, None).is_err());
    assert!(gptq(16, 16, 8, 128, 16, 31, None).is_err());
    assert!(gptq(16, 16, 0, 128, 16, 32, None).is_err());
    assert!(gptq(12, 16, 8, 512, 16, 24, None).is_err());
    assert!(gptq(16, 12, 8, 512, 16, 32, None).is_err());
    let index = |groups: [i32; 16]| groups.iter().flat_map(|g| g.to_le_bytes()).collect::<Vec<u8>>();
    let two = |g: i32| index(std::array::from_fn(|i| if i < 8 { 0 } else { g }));
    assert!(gptq(16, 16, 8, 128, 16, 32, Some(&two(1))).is_ok());
    for bad in [two(0), two(2), two(-1), two(i32::MAX), two(i32::MIN)] {
        let error = gptq(16, 16, 8, 128, 16, 32, Some(&bad)).unwrap_err();
        assert_eq!(error.status(), Status::Unsupported);
    }
    assert!(gptq(16, 16, 8, 128, 16, 32, Some(&two(1)[1..])).is_err());

    let awq = |rows, columns, group, q: usize, z: usize, s| {
        Awq::new(rows, columns, group, &bytes[..q], &bytes[..z], scales(s)).map(|_| ())
    };
    assert!(awq(16, 16, 8, 128, 16, 32).is_ok());
    assert!(awq(16, 16, 8, 127, 16, 32).is_err());
    assert!(awq(16, 16, 8, 128, 15, 32).is_err());
    assert!(awq(16, 16, 8, 128, 16, 33).is_err());
    assert!(awq(15, 16, 8, 128, 16, 30).is_err());

    let mlx =
        |columns, q: usize, s, b: Floats<'_>| Mlx::new(4, columns, 8, &bytes[..q], scales(s), b).map(|_| ());
    assert!(mlx(16, 32, 8, scales(8)).is_ok());
    assert!(mlx(16, 31, 8, scales(8)).is_err());
    assert!(mlx(12, 32, 8, scales(8)).is_err());
    assert!(mlx(16, 32, 7, scales(8)).is_err());
    assert!(mlx(16, 32, 8, scales(7)).is_err());
    assert!(mlx(16, 32, 8, Floats::new(Type::F32, &bytes[..32]).unwrap()).is_err());

    assert!(Floats::new(Type::I8, &bytes).is_err());
    assert!(Floats::new(Type::F32, &bytes[..5]).is_err());
    assert!(Floats::new(Type::F32, &bytes[..4]).unwrap().get(1).is_nan());
    assert!(Floats::new(Type::F32, &bytes[..4]).unwrap().get(usize::MAX).is_nan());
}

#[test]
fn a_group_longer_than_the_row_is_the_row() {
    let bytes = [0x19u8; 512];
    let scales = Floats::new(Type::F16, &bytes[..32]).unwrap();
    let one_group = |matrix: &dyn Matrix| match matrix.layout() {
        Layout::Coded(Coded { scales: Scales::Group { len, .. }, .. }) => {
            dequantize(matrix);
            len == 16
        }
        _ => false,
    };
    let (v2, long) = (GptqVersion::V2, usize::MAX);
    assert!(one_group(&Gptq::new(v2, 16, 16, long, &bytes, &bytes, scales, None).unwrap()));
    assert!(one_group(&Awq::new(16, 16, long, &bytes, &bytes, scales).unwrap()));
    assert!(one_group(&CompressedTensors::new(16, 16, long, &bytes, scales, None, None).unwrap()));
    assert!(one_group(&Mlx::new(16, 16, long, &bytes, scales, scales).unwrap()));
    assert!(one_group(&cortex::Int4::new(16, 16, 40, &bytes, scales).unwrap()));
}

#[test]
fn rows_are_read_by_several_threads() {
    let mut random = Random::new(9);
    let (packed, scales) = (random.bytes(64 * 32), random.bytes(64 * 4));
    let scales = Floats::new(Type::F16, &scales).unwrap();
    let matrix = CompressedTensors::new(64, 64, 32, &packed, scales, None, None).unwrap();
    let want = dequantize(&matrix);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(format!("{:?}", dequantize(&matrix)), format!("{want:?}")));
        }
    });
}
