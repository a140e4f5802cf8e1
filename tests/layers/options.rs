//! What only a caller can say: types, scales, groups and shapes of packed tensors; and what is refused.

use crate::c::*;
use crate::data::{Random, assert_values, cases, f32_bytes, floats, hex, size};
use crate::files::{model, tensor};

fn scaled(ty: bl_type, scales: &[f32]) -> bl_layer_options {
    bl_layer_options { scales: scales.as_ptr(), scale_count: scales.len() as i64, ..of_type(ty) }
}

/// Packed tensors with scales of the caller's, by the tensor's name.
#[test]
fn packed_tensors_open_with_scales_apart() {
    let mut opened = 0;
    for case in cases("cortex_ternary") {
        let (scales, packed) = match &case["scales"] {
            serde_json::Value::Array(_) => (floats(&case["scales"]), hex(&case["weight_packed_file_hex"])),
            _ => (vec![case["scale"].as_f64().unwrap() as f32], hex(&case["packed_hex"])),
        };
        let weights = floats(&case["dequantized"]).len();
        let rows = match (&case["shape"], &case["dequantized_shape"]) {
            (serde_json::Value::Array(shape), _) if shape.len() == 1 => 1,
            (serde_json::Value::Array(shape), _) | (_, serde_json::Value::Array(shape)) => size(&shape[0]),
            _ => panic!("{case}"),
        };
        if !(weights / rows).is_multiple_of(4) {
            continue; // flat codes of a row that ends inside a byte: files cannot hold them
        }
        let shape = [rows, weights / rows / 4, scales.len()];
        let dims = if scales.len() == 1 { 2 } else { 3 };
        let model = model(&[tensor("raw", "U8", &shape[..dims], packed)]);
        assert_eq!(model.layer_count(), 0);
        let layer = model.open("raw", &scaled(bl_type::BL_TYPE_TERNARY, &scales)).unwrap();
        assert_values(&layer.read(), &floats(&case["dequantized"]), "ternary");
        opened += 1;
    }
    assert!(opened >= 9, "{opened} ternary tensors");

    for case in cases("cortex_4bit") {
        let (rows, columns) = (size(&case["shape"][0]), size(&case["shape"][1]));
        let group = size(&case["group_size"]);
        let (packed, scales) = (hex(&case["packed_hex"]), floats(&case["scales"]));
        let model = model(&[tensor("raw", "U8", &[rows, packed.len() / rows], packed)]);
        let mut options = scaled(bl_type::BL_TYPE_INT4, &scales);
        (options.group_size, options.in_features) = (group as i64, columns as i64);
        let layer = model.open("raw", &options).unwrap();
        assert_eq!(layer.shape(), [rows, columns]);
        assert_values(&layer.read(), &floats(&case["dequantized"]), "int4");
    }

    let mut random = Random::new(11);
    let codes: Vec<u8> = (0..6 * 10).map(|_| random.below(3) as u8).collect();
    let values = |scale: &dyn Fn(usize) -> f32| -> Vec<f32> {
        codes.iter().enumerate().map(|(i, c)| (*c as f32 - 1.0) * scale(i)).collect()
    };
    let flat: Vec<u8> =
        codes.chunks(4).map(|c| c.iter().enumerate().fold(0, |b, (j, c)| b | c << (2 * j))).collect();
    let model_of = |bytes: &[u8]| model(&[tensor("raw", "U8", &[bytes.len()], bytes.to_vec())]);
    let shaped = |ty, scales| bl_layer_options { out_features: 6, in_features: 10, ..scaled(ty, scales) };
    let one = [0.75f32];
    let layer = model_of(&flat).open("raw", &shaped(bl_type::BL_TYPE_TERNARY2, &one)).unwrap();
    assert_values(&layer.read(), &values(&|_| 0.75), "ternary2");
    let scales: Vec<f32> = (0..4).map(|i| 0.5 + i as f32).collect();
    let blocks = bl_layer_options { group_size: 16, ..shaped(bl_type::BL_TYPE_TERNARY_BLOCK, &scales) };
    let layer = model_of(&flat).open("raw", &blocks).unwrap();
    assert_values(&layer.read(), &values(&|i| 0.5 + (i / 16) as f32), "ternary blocks");
    let layer = model_of(&flat).open("raw", &shaped(bl_type::BL_TYPE_TERNARY_BLOCK, &one)).unwrap();
    assert_values(&layer.read(), &values(&|_| 0.75), "one ternary block");

    let bytes = random.bytes(60);
    let want: Vec<f32> = bytes.iter().map(|b| *b as i8 as f32 * 0.75).collect();
    let int8 = model(&[tensor("raw", "I8", &[6, 10], bytes)]);
    assert_values(&int8.open("raw", &scaled(bl_type::BL_TYPE_INT8, &one)).unwrap().read(), &want, "int8");

    let mut packed = vec![0u8; 2 * 10];
    for (i, c) in codes.iter().enumerate() {
        packed[i / 10 % 2 * 10 + i % 10] |= c << (i / 20 * 2);
    }
    let bitnet = model(&[tensor("raw", "U8", &[2, 10], packed)]);
    let mut options = scaled(bl_type::BL_TYPE_BITNET_HF, &one);
    options.out_features = 6;
    assert!(bitnet.refused("raw", &options).1.contains("BL_LAYER_SCALE"));
    options.flags = BL_LAYER_SCALE_DIVIDES;
    assert_values(&bitnet.open("raw", &options).unwrap().read(), &values(&|_| 1.0 / 0.75), "bitnet");
    options.out_features = 9;
    assert_eq!(bitnet.refused("raw", &options).0, bl_status::BL_ERROR_INVALID_ARGUMENT);
}

#[test]
fn what_is_missing_or_senseless_is_said() {
    let floats = tensor("p.weight", "F32", &[2, 8], f32_bytes(&[0.5; 16]));
    let packed = tensor("q.weight_packed", "U8", &[2, 2], vec![0x55; 4]);
    let scales = tensor("q.scales", "F32", &[1], f32_bytes(&[0.5]));
    let model = model(&[floats, packed, scales]);
    let one = [1.0f32];
    let invalid = bl_status::BL_ERROR_INVALID_ARGUMENT;
    let unsupported = bl_status::BL_ERROR_UNSUPPORTED;
    for (name, options, status, says) in [
        ("p", flags(128), invalid, "flags 0x80"),
        ("p", flags(BL_LAYER_GPTQ_V1 | BL_LAYER_GPTQ_V2), invalid, "both"),
        ("p", bl_layer_options { slice: 1, ..options() }, invalid, "slice 1 of 1"),
        ("p", bl_layer_options { slice: -1, ..options() }, invalid, "slice is -1"),
        ("p", bl_layer_options { slice: 1, ..flags(BL_LAYER_ALL_SLICES) }, invalid, "ALL_SLICES"),
        ("p", bl_layer_options { group_size: 4, ..options() }, invalid, "group_size says nothing"),
        ("p", bl_layer_options { group_size: i64::MIN, ..options() }, invalid, "group_size is"),
        ("p", bl_layer_options { in_features: 8, ..options() }, invalid, "in_features says nothing"),
        (
            "p",
            bl_layer_options { scales: one.as_ptr(), scale_count: 1, ..options() },
            invalid,
            "scales says nothing",
        ),
        ("p", bl_layer_options { scale_count: 1, ..options() }, invalid, "go together"),
        ("p", bl_layer_options { scales: one.as_ptr(), ..options() }, invalid, "go together"),
        (
            "p",
            bl_layer_options { scales: one.as_ptr(), scale_count: -1, ..options() },
            invalid,
            "scale_count is -1",
        ),
        ("p", of_type(bl_type::BL_TYPE_Q4_0), invalid, "blocks of 32"),
        ("p", bl_layer_options { r#type: TypeArg(99), ..options() }, unsupported, "type 99"),
        ("p", bl_layer_options { activation: ActivationArg(99), ..options() }, unsupported, "activation 99"),
        ("p.weight", of_type(bl_type::BL_TYPE_GPTQ), unsupported, "conversion"),
        ("q", of_type(bl_type::BL_TYPE_INT4), unsupported, "conversion"),
        ("q.weight_packed", options(), unsupported, "part of layer \"q\""),
        ("q.weight_packed", of_type(bl_type::BL_TYPE_TERNARY), invalid, "scales"),
        ("q.weight_packed", scaled(bl_type::BL_TYPE_TERNARY2, &one), invalid, "out_features"),
        ("nothing", options(), bl_status::BL_ERROR_NOT_FOUND, "no layer or tensor is named \"nothing\""),
    ] {
        let failure = model.refused(name, &options);
        assert_eq!(failure.0, status, "{name}: {failure:?}");
        assert!(failure.1.contains(says), "{name}: {failure:?} does not say {says}");
    }
    assert_eq!(model.named("nothing").err().unwrap().0, bl_status::BL_ERROR_NOT_FOUND);
    // Flags about another format say nothing here, so that one call does for all layers of a model.
    model.open("p", &flags(BL_LAYER_SCALE_DIVIDES | BL_LAYER_GPTQ_V2 | BL_LAYER_WITHOUT_NORM)).unwrap();
    // A scale of the caller's in place of the file's.
    let two = [2.0f32];
    let options = bl_layer_options { scales: two.as_ptr(), scale_count: 1, ..options() };
    assert_values(&model.open("q", &options).unwrap().read(), &[2.0; 16], "scale given");
}
