//! Which tensors make a layer, and what config.json decides.

use crate::c::*;
use crate::data::{Random, assert_bits, assert_values, f16_bytes, f32_bytes};
use crate::files::{Folder, Tensor, model, tensor};
use crate::gguf_writer::{File, Kv};

const INVALID: bl_status = bl_status::BL_ERROR_INVALID_ARGUMENT;
const BAD: bl_status = bl_status::BL_ERROR_BAD_FILE;
const UNSUPPORTED: bl_status = bl_status::BL_ERROR_UNSUPPORTED;

#[track_caller]
fn refused(model: &Model, name: &str, status: bl_status, says: &str) {
    let failure = model.refused(name, &options());
    assert_eq!(failure.0, status, "{failure:?}");
    assert!(failure.1.contains(says), "{failure:?} does not say {says}");
    let listed = model.named(name).map(|l| l.info.status.0);
    assert!(listed.is_err() || listed == Ok(status as u32), "{name}: {listed:?}");
}

#[test]
fn several_formats_under_one_name() {
    let tensors = [
        tensor("p.weight", "F32", &[1, 8], f32_bytes(&[3.0; 8])),
        tensor("p.weight_packed", "U8", &[1, 2], vec![0x55; 2]),
        tensor("p.weight_4bit", "U8", &[1, 4], vec![0x99; 4]),
        tensor("p.scales_4bit", "F32", &[1, 1], f32_bytes(&[2.0])),
        tensor("x.scales", "F32", &[1], f32_bytes(&[1.0])),
        tensor("norm.weight", "F32", &[8], f32_bytes(&[1.0; 8])),
        tensor("conv.weight", "F32", &[2, 1, 2, 2], f32_bytes(&[1.0; 8])),
    ];
    let model = model(&tensors);
    let listed: Vec<_> =
        model.layers().iter().map(|l| (l.name.clone(), l.info.r#type.0, l.info.status.0)).collect();
    let status = |s: bl_status| s as u32;
    assert_eq!(
        listed,
        [
            ("p".to_owned(), bl_type::BL_TYPE_F32 as u32, 0),
            ("p".to_owned(), bl_type::BL_TYPE_TERNARY as u32, status(BAD)), // its scales are missing
            ("p".to_owned(), bl_type::BL_TYPE_INT4 as u32, 0),
            ("x".to_owned(), bl_type::BL_TYPE_TERNARY as u32, status(BAD)), // its weights are missing
        ]
    );
    refused(&model, "p", INVALID, "bl_layer_options.type");
    assert_eq!(model.named("p").err().unwrap().0, INVALID);
    let read = |ty| model.open("p", &of_type(ty)).unwrap().read();
    assert_values(&read(bl_type::BL_TYPE_F32), &[3.0; 8], "f32");
    assert_values(&read(bl_type::BL_TYPE_INT4), &[2.0; 8], "int4");
    // The ternary one lacks its scales; nothing else stands in for it.
    assert_eq!(model.refused("p", &of_type(bl_type::BL_TYPE_TERNARY)).0, BAD);
    assert_eq!(model.refused("p", &of_type(bl_type::BL_TYPE_MLX)).0, INVALID);
    refused(&model, "conv.weight", UNSUPPORTED, "dimensions");
    model.open("norm.weight", &options()).unwrap(); // a tensor all the same: one row
}

#[test]
fn formats_that_are_not_read_are_refused_by_name() {
    let model = model(&[
        tensor("bnb.weight", "U8", &[4, 1], vec![0; 4]),
        tensor("bnb.weight.absmax", "F32", &[1], f32_bytes(&[1.0])),
        tensor("scaled.weight", "BF16", &[2, 2], vec![0; 8]),
        tensor("scaled.weight_scale", "F32", &[1], f32_bytes(&[1.0])),
        tensor("bytes.weight", "I8", &[2, 2], vec![0; 4]),
    ]);
    refused(&model, "bnb", UNSUPPORTED, "bitsandbytes");
    refused(&model, "scaled", UNSUPPORTED, "weight_scale");
    refused(&model, "bytes", UNSUPPORTED, "i8");
    model.open("scaled.weight", &options()).unwrap(); // as it is stored
    assert_eq!(model.layer_count(), 3);
}

fn bitnet(rows: usize, bias: Option<usize>) -> Vec<Tensor> {
    let mut tensors = vec![
        tensor("p.weight", "U8", &[rows, 8], vec![0b10_00_01_10; rows * 8]),
        tensor("p.weight_scale", "F32", &[1], f32_bytes(&[4.0])),
    ];
    if let Some(bias) = bias {
        tensors.push(tensor("p.bias", "F32", &[bias], f32_bytes(&vec![1.0; bias])));
    }
    tensors
}

#[test]
fn rows_of_padding_are_told_by_the_bias_or_the_options() {
    let by = flags(BL_LAYER_SCALE_MULTIPLIES);
    assert_eq!(model(&bitnet(2, None)).open("p", &by).unwrap().shape(), [8, 8]);
    assert_eq!(model(&bitnet(2, Some(7))).open("p", &by).unwrap().shape(), [7, 8]);
    assert_eq!(model(&bitnet(2, Some(4))).refused("p", &by).0, BAD);
    let bias = [0.5f32; 8];
    for rows in 5..=8 {
        let options = bl_layer_options { out_features: rows, bias: bias.as_ptr(), ..by };
        let layer = model(&bitnet(2, None)).open("p", &options).unwrap();
        assert_eq!(layer.shape(), [rows as usize, 8]);
        // Row blocks of two: 10, 01, 00, 10 from the low bits up are +1, 0, -1, +1.
        let want: Vec<f32> = (0..8).flat_map(|o| [[4.0, 0.0, -4.0, 4.0][o / 2]; 8]).collect();
        assert_values(&layer.read(), &want[..rows as usize * 8], "rows");
        assert_eq!(layer.forward(&[0.0; 8]), vec![0.5; rows as usize]);
    }
    let nine = bl_layer_options { out_features: 9, ..by };
    assert_eq!(model(&bitnet(2, None)).refused("p", &nine).0, BAD);
}

#[test]
fn config_decides_bitnet() {
    let folder = Folder::new("bitnet");
    let config =
        |fields: &str| format!("{{\"quantization_config\": {{\"quant_method\": \"bitnet\"{fields}}}}}");
    let first = |model: &Model| model.open("p", &options()).unwrap().read()[0];
    let packed = bitnet(1, None);
    assert_eq!(first(&folder.model(&packed, &config(""))), 0.25);
    assert_eq!(first(&folder.model(&packed, &config(", \"linear_class\": \"bitlinear\""))), 0.25);
    assert_eq!(first(&folder.model(&packed, &config(", \"linear_class\": \"autobitlinear\""))), 4.0);
    let online = config(", \"linear_class\": \"autobitlinear\", \"quantization_mode\": \"online\"");
    refused(&folder.model(&packed, &online), "p", BAD, "online");
    refused(
        &folder.model(&packed, &config(", \"linear_class\": \"other\"")),
        "p",
        UNSUPPORTED,
        "linear_class",
    );
    let mode = config(", \"linear_class\": \"autobitlinear\", \"quantization_mode\": \"other\"");
    refused(&folder.model(&packed, &mode), "p", UNSUPPORTED, "quantization_mode");
    for other in ["{}", "{\"quantization_config\": {\"quant_method\": \"gptq\"}}"] {
        refused(&folder.model(&packed, other), "p", INVALID, "BL_LAYER_SCALE_DIVIDES");
    }

    // A norm before the layer is not silently left out.
    let norm = tensor("p.rms_norm.weight", "F32", &[8], f32_bytes(&[1.0; 8]));
    let with_norm: Vec<Tensor> = packed.iter().cloned().chain([norm]).collect();
    let uses_norm = config(", \"use_rms_norm\": true");
    refused(&folder.model(&packed, &uses_norm), "p", BAD, "rms_norm.weight is missing");
    for config in [&uses_norm, &config("")] {
        let model = folder.model(&with_norm, config);
        let norm = |options| model.open("p", &options).unwrap().info().norm.0;
        assert_eq!(norm(options()), bl_norm::BL_NORM_RMS as u32);
        assert_eq!(norm(flags(BL_LAYER_WITHOUT_NORM)), bl_norm::BL_NORM_NONE as u32);
        assert_eq!(text(model.named("p").unwrap().info.norm), "p.rms_norm.weight");
    }
}

#[test]
fn config_decides_which_floats_are_ternarised() {
    let folder = Folder::new("online");
    let names = ["lm_head", "model.embed_tokens", "model.layers.0.gate", "model.layers.1.down_proj"];
    let tensors: Vec<Tensor> = names
        .iter()
        .map(|n| tensor(&format!("{n}.weight"), "F32", &[2, 2], f32_bytes(&[0.5, -2.0, 0.1, 1.0])))
        .collect();
    let online = |skipped: &str| {
        format!(
            "{{\"quantization_config\": {{\"quant_method\": \"bitnet\", \"linear_class\": \"autobitlinear\", \
             \"quantization_mode\": \"online\"{skipped}}}}}"
        )
    };
    let ternarised = |skipped: &str| -> Vec<&str> {
        let model = folder.model(&tensors, &online(skipped));
        let is = |n: &&str| {
            let ty = model.named(n).unwrap().info.r#type.0;
            assert_eq!(model.open(n, &options()).unwrap().info().r#type.0, ty);
            ty == bl_type::BL_TYPE_BITNET_HF as u32
        };
        names.into_iter().filter(is).collect()
    };
    let null = ", \"modules_to_not_convert\": null";
    assert_eq!(ternarised(""), names[2..]);
    assert_eq!(ternarised(null), names[2..]);
    let gate = ", \"modules_to_not_convert\": [7, \"gate\", \"\", \"model.layers.1.down_proj.and_more\"]";
    assert_eq!(ternarised(gate), [names[0], names[3]]);
    let layer = folder.model(&tensors, &online("")).open(names[2], &options()).unwrap();
    let s = 1.0 / (1.0 / 0.9f32);
    assert_values(&layer.read(), &[s, -s, 0.0, s], "ternarised");
}

/// GPTQ's tensors for codes, zero points and scales by group and output, and the group of each column.
fn gptq(codes: &[u8], zeros: &[u8], scales: &[f32], g_idx: Option<&[i32]>, shape: [usize; 3]) -> Vec<Tensor> {
    let [rows, columns, groups] = shape;
    let words = |count: usize, nibble: &dyn Fn(usize, usize) -> u8| -> Vec<u8> {
        (0..count)
            .flat_map(|w| (0..8).fold(0u32, |v, n| v | (nibble(w, n) as u32) << (4 * n)).to_le_bytes())
            .collect()
    };
    let qweight = words(columns / 8 * rows, &|w, n| codes[w % rows * columns + w / rows * 8 + n]);
    let qzeros = words(groups * rows / 8, &|w, n| zeros[w * 8 + n]);
    let mut tensors = vec![
        tensor("p.qweight", "I32", &[columns / 8, rows], qweight),
        tensor("p.qzeros", "I32", &[groups, rows / 8], qzeros),
        tensor("p.scales", "F16", &[groups, rows], f16_bytes(scales)),
    ];
    if let Some(g_idx) = g_idx {
        let bytes = g_idx.iter().flat_map(|g| g.to_le_bytes()).collect();
        tensors.push(tensor("p.g_idx", "I32", &[columns], bytes));
    }
    tensors
}

/// Columns ordered by group (desc_act): weights, products and configurations.
#[test]
fn gptq_with_scattered_columns() {
    let folder = Folder::new("gptq");
    let mut random = Random::new(21);
    let [rows, columns, groups] = [24, 96, 3];
    let codes: Vec<u8> = (0..rows * columns).map(|_| random.below(16) as u8).collect();
    let zeros: Vec<u8> = (0..groups * rows).map(|_| random.below(16) as u8).collect();
    let scales: Vec<f32> = (0..groups * rows).map(|_| (1 + random.below(64)) as f32 / 64.0).collect();
    let mut g_idx: Vec<i32> = (0..columns).map(|i| (i / 32) as i32).collect();
    for i in (1..columns).rev() {
        g_idx.swap(i, random.below(i + 1));
    }
    let weights = |g_idx: &dyn Fn(usize) -> usize, less: f32| -> Vec<f32> {
        (0..rows * columns)
            .map(|e| {
                let (o, i) = (e / columns, e % columns);
                let g = g_idx(i) * rows + o;
                scales[g] * (codes[e] as f32 - (zeros[g] as f32 + less))
            })
            .collect()
    };
    let scattered = weights(&|i| g_idx[i] as usize, 1.0);
    let tensors = gptq(&codes, &zeros, &scales, Some(&g_idx), [rows, columns, groups]);
    let config = |rest: &str| {
        format!("{{\"quantization_config\": {{\"quant_method\": \"gptq\", \"bits\": 4{rest}}}}}")
    };
    let model = folder.model(&tensors, &config(", \"group_size\": 32, \"desc_act\": true"));
    assert_eq!(text(model.named("p").unwrap().info.group_index), "p.g_idx");
    let x: Vec<f32> = random.weights(5 * columns);
    let layer = model.open("p", &activation(bl_activation::BL_ACTIVATION_F32)).unwrap();
    assert_values(&layer.read(), &scattered, "scattered");
    check_float(&layer.forward(&x), &x, &scattered, None, "scattered");
    let layer = model.open("p", &options()).unwrap();
    check_int8(&layer.forward(&x), &x, &scattered, None, "scattered");
    // Each row as if it were alone.
    let y = layer.forward(&x);
    for (m, x) in x.chunks_exact(columns).enumerate() {
        assert_bits(&layer.forward(x), &y[m * rows..][..rows], "alone");
    }

    // What config.json says of groups and zero points.
    let ordered = gptq(&codes, &zeros, &scales, None, [rows, columns, groups]);
    for (fields, less) in [
        (", \"group_size\": 32", 1.0),
        (", \"checkpoint_format\": \"gptq\"", 1.0),
        (", \"checkpoint_format\": \"gptq_v2\", \"group_size\": 32", 0.0),
    ] {
        let model = folder.model(&ordered, &config(fields));
        assert_values(&model.open("p", &options()).unwrap().read(), &weights(&|i| i / 32, less), fields);
        let v1 = model.open("p", &flags(BL_LAYER_GPTQ_V1)).unwrap().read();
        assert_values(&v1, &weights(&|i| i / 32, 1.0), "the option wins");
    }
    let other = config(", \"checkpoint_format\": \"marlin\"");
    refused(&folder.model(&ordered, &other), "p", UNSUPPORTED, "checkpoint_format");
    refused(&folder.model(&ordered, &config(", \"group_size\": 64")), "p", BAD, "groups of 64");
    refused(&folder.model(&ordered, &config(", \"group_size\": -1")), "p", BAD, "groups of 96");
    let eight = "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 8}}";
    refused(&folder.model(&ordered, eight), "p", UNSUPPORTED, "8 bits");
    refused(
        &folder.model(&ordered, "{\"quantization_config\": {\"quant_method\": \"awq\"}}"),
        "p",
        BAD,
        "AWQ",
    );
    let older = "{\"quantization_config\": {\"bits\": 4, \"group_size\": 32}}";
    folder.model(&ordered, older).open("p", &options()).unwrap();

    // Groups whose length no shape tells.
    let uneven = gptq(&codes[..24 * 72], &zeros, &scales, None, [rows, 72, groups]);
    let alone = crate::files::model(&uneven);
    let failure = alone.refused("p", &flags(BL_LAYER_GPTQ_V1));
    assert!(failure.0 == INVALID && failure.1.contains("group_size"), "{failure:?}");
    let by = bl_layer_options { group_size: 24, ..flags(BL_LAYER_GPTQ_V1) };
    alone.open("p", &by).unwrap();
}

#[test]
fn mlx_and_its_config() {
    let folder = Folder::new("mlx");
    let layer = |p: &str| {
        vec![
            tensor(&format!("{p}.weight"), "U32", &[2, 16], vec![0x21; 128]),
            tensor(&format!("{p}.scales"), "F16", &[2, 2], f16_bytes(&[1.0; 4])),
            tensor(&format!("{p}.biases"), "F16", &[2, 2], f16_bytes(&[-2.0; 4])),
        ]
    };
    let tensors: Vec<Tensor> = layer("a").into_iter().chain(layer("b")).collect();
    let config =
        "{\"quantization\": {\"group_size\": 64, \"bits\": 4, \"b\": {\"group_size\": 32, \"bits\": 8}}}";
    let model = folder.model(&tensors, config);
    let read = model.open("a", &options()).unwrap().read();
    assert_eq!((read.len(), read[0], read[1]), (256, -1.0, 0.0));
    refused(&model, "b", UNSUPPORTED, "8 bits");
    let other = "{\"quantization\": {\"group_size\": 64, \"bits\": 4, \"mode\": \"mxfp4\"}}";
    refused(&folder.model(&tensors, other), "a", UNSUPPORTED, "mode");
    refused(
        &folder.model(&tensors, "{\"quantization\": {\"group_size\": 32, \"bits\": 4}}"),
        "a",
        UNSUPPORTED,
        "8 bits",
    );
    refused(&folder.model(&tensors, "{}"), "a", INVALID, "group_size");
}

#[test]
fn other_packings_are_refused() {
    let folder = Folder::new("versions");
    let tensors = crate::files::golden_tensors("int4_layouts.safetensors");
    let config = |method: &str, rest: &str| {
        format!("{{\"quantization_config\": {{\"quant_method\": \"{method}\", {rest}}}}}")
    };
    let awq = |rest: &str| folder.model(&tensors, &config("awq", rest));
    awq("\"version\": \"gemm\", \"bits\": 4, \"group_size\": 32").open("awq", &options()).unwrap();
    refused(&awq("\"version\": \"gemv\", \"bits\": 4"), "awq", UNSUPPORTED, "gemm");
    refused(&awq("\"bits\": 8"), "awq", UNSUPPORTED, "8 bits");
    refused(&folder.model(&tensors, &config("gptq", "\"bits\": 4")), "awq", BAD, "GPTQ");
    let ct = |rest: &str| folder.model(&tensors, &config("compressed-tensors", rest));
    ct("\"format\": \"pack-quantized\"").open("ct", &options()).unwrap();
    refused(&ct("\"format\": \"marlin-24\""), "ct", UNSUPPORTED, "pack-quantized");
}

#[test]
fn gguf_bias_and_product_scale() {
    let q8 = |rows: usize, seed: u64| -> Vec<u8> {
        let mut random = Random::new(seed);
        (0..rows * 2)
            .flat_map(|_| {
                let scale = half::f16::from_f32((1 + random.below(100)) as f32 / 512.0).to_le_bytes();
                scale.into_iter().chain(random.bytes(32)).collect::<Vec<u8>>()
            })
            .collect()
    };
    let bias: Vec<f32> = (0..20).map(|o| o as f32 * 0.3 - 2.0).collect();
    let scale = 0.123_456_79f32;
    let file = File::new()
        .kv("general.architecture", Kv::Bytes(b"bitnet".to_vec()))
        .tensor_of("a.weight", &[64, 20], 8, &q8(20, 5))
        .tensor_of("b.weight", &[64, 20], 8, &q8(20, 5))
        .tensor_of("b.scale", &[1], 0, &f32_bytes(&[scale]))
        .tensor_of("b.bias", &[20], 0, &f32_bytes(&bias))
        .tensor_of("c.weight", &[64, 20], 8, &q8(20, 5))
        .tensor_of("c.scale", &[2], 0, &f32_bytes(&[1.0, 2.0]))
        .tensor_of("d.weight", &[64, 20], 8, &q8(20, 5))
        .tensor_of("d.bias", &[19], 0, &f32_bytes(&bias[..19]))
        .tensor_of("e.weight", &[64, 20], 8, &q8(20, 5))
        .tensor_of("e.scale", &[1], 1, &f16_bytes(&[1.0]));
    let model = Model::memory(&file.build(), 0).unwrap();
    let listed = model.named("b").unwrap().info;
    assert_eq!((text(listed.product_scale), text(listed.bias)), ("b.scale".to_owned(), "b.bias".to_owned()));
    let x = Random::new(8).weights(3 * 64);
    for by in [bl_activation::BL_ACTIVATION_AUTO, bl_activation::BL_ACTIVATION_F32] {
        let (a, b) = (model.open("a", &activation(by)).unwrap(), model.open("b", &activation(by)).unwrap());
        // One product and one sum after the whole of x Wᵀ, each rounded once.
        let want: Vec<f32> =
            a.forward(&x).iter().enumerate().map(|(i, y)| y * scale + bias[i % 20]).collect();
        assert_bits(&b.forward(&x), &want, "scale, then bias");
        let read: Vec<f32> = a.read().iter().map(|w| w * scale).collect();
        assert_bits(&b.read(), &read, "weights times the factor");
        if by == bl_activation::BL_ACTIVATION_F32 {
            check_float(&b.forward(&x), &x, &read, Some(&bias), "product scale");
        }
        let bare = model.open("b.weight", &activation(by)).unwrap();
        assert_bits(&bare.forward(&x), &a.forward(&x), "the tensor alone");
    }
    // A row of x that is not finite stays NaN.
    let mut x = x;
    x[70] = f32::INFINITY;
    let y = model.open("b", &options()).unwrap().forward(&x);
    assert!(y[20..40].iter().all(|y| y.to_bits() == 0x7fc0_0000) && y[..20].iter().all(|y| y.is_finite()));
    refused(&model, "c", BAD, "one value");
    refused(&model, "d", BAD, "bias");
    refused(&model, "e", UNSUPPORTED, "f32 expected");
}

#[test]
fn experts_are_slices() {
    let mut random = Random::new(31);
    let (experts, rows, columns) = (3, 20, 64);
    let blocks: Vec<u8> = (0..experts * rows * columns / 32)
        .flat_map(|_| {
            let scale = half::f16::from_f32((1 + random.below(100)) as f32 / 512.0).to_le_bytes();
            scale.into_iter().chain(random.bytes(16)).collect::<Vec<u8>>()
        })
        .collect();
    let weights: Vec<f32> = blocks
        .chunks_exact(18)
        .flat_map(|b| {
            let d = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            (0..32).map(move |j| d * ((b[2 + j % 16] >> (j / 16 * 4) & 15) as f32 - 8.0)).collect::<Vec<_>>()
        })
        .collect();
    let bias: Vec<f32> = (0..experts * rows).map(|o| o as f32).collect();
    let scales = [0.5f32, 1.0, 2.0];
    let dims = [columns as u64, rows as u64, experts as u64];
    let file = File::new()
        .tensor_of("e.weight", &dims, 2, &blocks)
        .tensor_of("e.bias", &[rows as u64, 3], 0, &f32_bytes(&bias))
        .tensor_of("s.weight", &dims, 2, &blocks)
        .tensor_of("s.scale", &[3], 0, &f32_bytes(&scales))
        .tensor_of("i.weight", &[128, 4, 2], 36, &[0; 256 + 32]);
    let model = Model::memory(&file.build(), 0).unwrap();
    let listed = model.named("e").unwrap().info;
    assert_eq!((listed.slices, listed.out_features, listed.in_features), (3, 20, 64));
    let zeros = vec![0.0; columns];
    let expert = rows * columns;
    for slice in 0..experts {
        let options = bl_layer_options { slice: slice as i64, ..options() };
        let want = &weights[slice * expert..][..expert];
        for name in ["e", "e.weight"] {
            let layer = model.open(name, &options).unwrap();
            assert_eq!(layer.shape(), [rows, columns]);
            assert_values(&layer.read(), want, "an expert");
        }
        let layer = model.open("e", &options).unwrap();
        assert_eq!(layer.forward(&zeros), bias[slice * rows..][..rows]);
        let scaled: Vec<f32> = want.iter().map(|w| w * scales[slice]).collect();
        assert_values(&model.open("s", &options).unwrap().read(), &scaled, "a scaled expert");
    }
    let all = model.open("e", &flags(BL_LAYER_ALL_SLICES)).unwrap();
    assert_eq!(all.shape(), [experts * rows, columns]);
    assert_values(&all.read(), &weights, "all experts");
    assert_eq!(all.forward(&zeros), bias);
    let past = bl_layer_options { slice: 3, ..options() };
    assert_eq!(model.refused("e", &past).0, INVALID);
    assert_eq!(model.refused("s", &flags(BL_LAYER_ALL_SLICES)).0, UNSUPPORTED);
    refused(&model, "i", UNSUPPORTED, "three dimensions");
}
