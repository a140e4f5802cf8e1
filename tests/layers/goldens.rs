//! Every golden file, opened by its layers' names: weights bit for bit, products within their bounds.

use std::collections::HashMap;

use crate::c::*;
use crate::data::{Array, assert_bits, assert_values, floats, npz, vectors};

fn f64s(array: &Array) -> Vec<f64> {
    assert_eq!(array.descr, "<f8");
    array.bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn names(model: &Model) -> Vec<String> {
    model.layers().iter().map(|l| l.name.clone()).collect()
}

/// f32 values between two f32, counted.
fn ulps(a: f32, b: f32) -> u32 {
    let order = |f: f32| if f.is_sign_negative() { -(f.abs().to_bits() as i64) } else { f.to_bits() as i64 };
    (order(a) - order(b)).unsigned_abs() as u32
}

/// Both activations of a layer whose weights are `codes * scale`: the integer sums exactly, the outputs
/// within the bounds of the formats' tests.
#[track_caller]
fn check_ternary(
    model: &Model,
    name: &str,
    codes: &[i8],
    scale: f32,
    truth: &HashMap<String, Array>,
    ty: bl_type,
) {
    let x = truth["x"].f32();
    let columns = 512;
    let with = |activation: bl_activation| bl_layer_options {
        activation: ActivationArg(activation as u32),
        r#type: TypeArg(ty as u32),
        ..options()
    };
    let layer = model.open(name, &with(bl_activation::BL_ACTIVATION_F32)).unwrap();
    let weights: Vec<f32> = codes.iter().map(|q| *q as f32 * scale).collect();
    assert_values(&layer.read(), &weights, name);
    let y = layer.forward(&x);
    check_float(&y, &x, &weights, None, name);
    if let Some(want) = truth.get("y_f32").filter(|y| y.bytes.len() / 8 == codes.len() / columns * 5) {
        for (o, (got, want)) in y.iter().zip(f64s(want)).enumerate() {
            let row = o / (codes.len() / columns);
            let w = &weights[o % (codes.len() / columns) * columns..][..columns];
            let size: f64 = x[row * columns..].iter().zip(w).map(|(x, w)| (x * w).abs() as f64).sum();
            assert!((*got as f64 - want).abs() <= 1e-5 * size, "{name}: {got} is not {want}");
        }
    }

    // AUTO is int8 with one scale a row, the formats' own rule.
    let layer = model.open(name, &with(bl_activation::BL_ACTIVATION_AUTO)).unwrap();
    assert_eq!(layer.info().activation.0, bl_activation::BL_ACTIVATION_INT8_ROW as u32);
    let y = layer.forward(&x);
    let stored = truth.get("x_i8").map(Array::i8);
    let theirs = truth.get("y_i8").map(f64s);
    for (m, x) in x.chunks_exact(columns).enumerate() {
        let a = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let q: Vec<i32> = x.iter().map(|x| (x * (127.0 / a)).round_ties_even() as i32).collect();
        if let Some(stored) = &stored {
            let stored: Vec<i32> = stored[m * columns..][..columns].iter().map(|q| *q as i32).collect();
            assert_eq!(q, stored, "{name}: activation codes of row {m}");
        }
        for (o, w) in codes.chunks_exact(columns).enumerate() {
            let dot: i64 = q.iter().zip(w).map(|(q, w)| *q as i64 * *w as i64).sum();
            let want = dot as f32 * (scale * (a / 127.0));
            let got = y[m * (codes.len() / columns) + o];
            assert_eq!(got.to_bits(), want.to_bits(), "{name}: y[{m}][{o}] is {got}, not {want}");
            let theirs = theirs.as_ref().filter(|y| y.len() == codes.len() / columns * 5);
            if let Some(theirs) = theirs.map(|y| y[m * (codes.len() / columns) + o] as f32) {
                assert!(ulps(got, theirs) <= 4, "{name}: y[{m}][{o}] is {got}, theirs {theirs}");
            }
        }
    }
}

#[test]
fn ggml_blocks() {
    let model = Model::golden("ggml_all_64x512.gguf");
    let (hi, lo) = (npz("golden/ggml_all_64x512_truth_hi.npz"), npz("golden/ggml_all_64x512_truth_lo.npz"));
    let x = hi["x"].f32();
    let types = [
        "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "TQ1_0", "TQ2_0", "IQ1_S", "Q1_0",
    ];
    let expected: Vec<String> = types.iter().map(|ty| format!("blk.0.{}", ty.to_lowercase())).collect();
    assert_eq!(names(&model), expected);
    for (ty, name) in types.iter().zip(&expected) {
        let listed = model.named(name).unwrap();
        assert_eq!(listed.info.status.0, 0, "{name}");
        assert_eq!((listed.info.in_features, listed.info.out_features, listed.info.slices), (512, 64, 1));
        assert_eq!(text(listed.info.weight), format!("{name}.weight"));
        assert!(listed.info.bias.is_null() && listed.info.scales.is_null());
        let d = format!("d_{ty}");
        let want = match hi.get(&d).or(lo.get(&d)) {
            Some(d) => d.f32(),
            None => hi["W"].f32(), // F32 is its own truth
        };
        let layer = model.open(name, &activation(bl_activation::BL_ACTIVATION_F32)).unwrap();
        assert_values(&layer.read(), &want, ty);
        let y = layer.forward(&x);
        check_float(&y, &x, &want, None, ty);
        let theirs = f64s(&lo[&format!("y_{ty}")]);
        for (i, (got, theirs)) in y.iter().zip(theirs).enumerate() {
            let size: f64 = x[i / 64 * 512..]
                .iter()
                .zip(&want[i % 64 * 512..][..512])
                .map(|(x, w)| (x * w).abs() as f64)
                .sum();
            assert!((*got as f64 - theirs).abs() <= 1e-5 * size, "{ty}: {got} is not {theirs}");
        }
        // By the tensor's name it is the same matrix.
        let tensor = model.open(&format!("{name}.weight"), &options()).unwrap();
        assert_bits(&tensor.read(), &layer.read(), ty);
        check_int8(&tensor.forward(&x), &x, &want, None, ty);
        // A bias is added to it.
        let bias = hi["bias"].f32();
        let with_bias =
            bl_layer_options { bias: bias.as_ptr(), ..activation(bl_activation::BL_ACTIVATION_F32) };
        let biased = model.open(name, &with_bias).unwrap().forward(&x);
        let sums: Vec<f32> = y.iter().enumerate().map(|(i, y)| y + bias[i % 64]).collect();
        assert_bits(&biased, &sums, ty);
    }
}

#[test]
fn i2_s() {
    let truth = npz("golden/bitnet_i2s_truth.npz");
    let (scale, scale2) = (truth["scale"].f32()[0], truth["scale2"].f32()[0]);
    let model = Model::golden("bitnet_i2s.gguf");
    assert_eq!(names(&model), ["blk.0.attn_q", "blk.0.attn_k", "token_embd"]);
    check_ternary(&model, "blk.0.attn_q", &truth["Q"].i8(), scale, &truth, bl_type::BL_TYPE_AUTO);
    let mut other = truth;
    other.retain(|name, _| !name.starts_with("y_"));
    check_ternary(&model, "blk.0.attn_k", &other["Q2"].i8(), scale2, &other, bl_type::BL_TYPE_AUTO);
    assert_eq!(model.open("token_embd", &options()).unwrap().shape()[1], 512);
}

#[test]
fn i2_s_of_arm_is_a_choice_of_the_caller() {
    let truth = npz("golden/bitnet_i2s_truth.npz");
    let scale = truth["scale"].f32()[0];
    let model = Model::golden("bitnet_i2s_arm_qk64.gguf");
    let listed = model.named("blk.0.attn_q").unwrap();
    assert_eq!(listed.info.r#type.0, bl_type::BL_TYPE_I2_S as u32); // what the id says
    check_ternary(&model, "blk.0.attn_q", &truth["Q"].i8(), scale, &truth, bl_type::BL_TYPE_I2_S_ARM);
    let layer = model.open("blk.0.attn_q", &of_type(bl_type::BL_TYPE_I2_S_ARM)).unwrap();
    assert_eq!(layer.info().r#type.0, bl_type::BL_TYPE_I2_S_ARM as u32);
    let tensor = model.open("blk.0.attn_q.weight", &of_type(bl_type::BL_TYPE_I2_S_ARM)).unwrap();
    assert_bits(&tensor.read(), &layer.read(), "by the tensor's name");
    let by_default = model.open("blk.0.attn_q", &options()).unwrap().read();
    assert_ne!(by_default, layer.read());
    let rows = model.open("blk.0.attn_q", &of_type(bl_type::BL_TYPE_I2_S_ROWS)).unwrap().read();
    assert_ne!(by_default, rows);
}

#[test]
fn hugging_face_bitnet() {
    const NAME: &str = "model.layers.0.self_attn.q_proj";
    for (folder, divides) in [("hf_autobitlinear", false), ("hf_bitlinear", true)] {
        let truth = npz(&format!("golden/{folder}/truth.npz"));
        let model = Model::golden(folder);
        assert_eq!(names(&model), [NAME]);
        let listed = model.named(NAME).unwrap().info;
        assert_eq!((listed.status.0, listed.out_features, listed.in_features), (0, 64, 512));
        assert_eq!(text(listed.scales), format!("{NAME}.weight_scale"));
        let stored = truth["weight_scale"].f32()[0];
        let scale = if divides { 1.0 / stored } else { stored };
        check_ternary(&model, NAME, &truth["Q"].i8(), scale, &truth, bl_type::BL_TYPE_AUTO);

        // Without config.json the option decides, and with it it does too.
        let alone =
            Model::memory(&std::fs::read(golden(folder).join("model.safetensors")).unwrap(), 0).unwrap();
        assert_eq!(alone.named(NAME).unwrap().info.status.0, bl_status::BL_ERROR_INVALID_ARGUMENT as u32);
        let failure = alone.refused(NAME, &options());
        assert_eq!(failure.0, bl_status::BL_ERROR_INVALID_ARGUMENT);
        assert!(failure.1.contains("BL_LAYER_SCALE_MULTIPLIES"), "{failure:?}");
        let read = |model: &Model, by: u32| model.open(NAME, &flags(by)).unwrap().read();
        let q: Vec<f32> = truth["Q"].i8().iter().map(|q| *q as f32).collect();
        for model in [&model, &alone] {
            let times: Vec<f32> = q.iter().map(|q| q * stored).collect();
            assert_values(&read(model, BL_LAYER_SCALE_MULTIPLIES), &times, folder);
            let by: Vec<f32> = q.iter().map(|q| q / stored).collect();
            assert_values(&read(model, BL_LAYER_SCALE_DIVIDES), &by, folder);
        }
        let both = alone.refused(NAME, &flags(BL_LAYER_SCALE_MULTIPLIES | BL_LAYER_SCALE_DIVIDES));
        assert_eq!(both.0, bl_status::BL_ERROR_INVALID_ARGUMENT);
    }
}

#[test]
fn hugging_face_bitnet_online() {
    const NAME: &str = "model.layers.0.self_attn.q_proj";
    let truth = npz("golden/hf_online/truth.npz");
    let model = Model::golden("hf_online");
    let listed = model.named(NAME).unwrap().info;
    assert_eq!(listed.r#type.0, bl_type::BL_TYPE_BITNET_HF as u32);
    let layer = model.open(NAME, &activation(bl_activation::BL_ACTIVATION_F32)).unwrap();
    let scale = 1.0 / (1.0 / truth["absmean"].f32()[0]);
    let weights: Vec<f32> = truth["Q"].i8().iter().map(|q| *q as f32 * scale).collect();
    assert_values(&layer.read(), &weights, "online");
    let x = truth["x"].f32();
    check_float(&layer.forward(&x), &x, &weights, None, "online");
    check_ternary(&model, NAME, &truth["Q"].i8(), scale, &truth, bl_type::BL_TYPE_AUTO);
    // Their y is of int8 activations, with one product less rounded.
    let y = model.open(NAME, &options()).unwrap().forward(&x);
    for (got, want) in y.iter().zip(f64s(&truth["y"])) {
        assert!(ulps(*got, want as f32) <= 4 || (*got as f64 - want).abs() < 1e-6, "{got} is not {want}");
    }
    // As stored: the masters.
    let plain = model.open(NAME, &of_type(bl_type::BL_TYPE_BF16)).unwrap();
    assert_eq!(plain.info().r#type.0, bl_type::BL_TYPE_BF16 as u32);
    let tensor = model.open(&format!("{NAME}.weight"), &options()).unwrap();
    assert_bits(&tensor.read(), &plain.read(), "masters");
    // Alone they are floats, and ternarised when asked.
    let alone = Model::memory(&std::fs::read(golden("hf_online/model.safetensors")).unwrap(), 0).unwrap();
    assert_bits(&alone.open(NAME, &options()).unwrap().read(), &plain.read(), "alone");
    let asked = alone.open(NAME, &of_type(bl_type::BL_TYPE_BITNET_HF)).unwrap();
    assert_bits(&asked.read(), &layer.read(), "asked for");
}

#[test]
fn cortex() {
    let truth = npz("golden/cortex_truth.npz");
    let model = Model::golden("cortex.safetensors");
    assert_eq!(names(&model), ["a", "b", "c"]);
    // The truth of c was made with scales in f32; the file's are f16.
    let tensors = crate::files::golden_tensors("cortex.safetensors");
    let find = |name: &str| &tensors.iter().find(|t| t.name == name).unwrap().bytes;
    let scales: Vec<f32> =
        find("c.scales_4bit").as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect();
    let nibble = |i: usize| (find("c.weight_4bit")[i / 2] >> (i % 2 * 4) & 15) as f32 - 8.0;
    let c: Vec<f32> = (0..32).map(|i| nibble(i) * scales[i / 8]).collect();
    let scales: Vec<f32> =
        truth["c"].f32().chunks(8).map(|row| row.iter().fold(0.0f32, |a, w| a.max(w.abs()))).collect();
    let largest = |o: usize| (0..8).map(|i| nibble(o * 8 + i).abs()).fold(0.0, f32::max);
    let scales: Vec<f32> = (0..4).map(|o| scales[o] / largest(o)).collect();
    let given = bl_layer_options { scales: scales.as_ptr(), scale_count: 4, ..options() };
    assert_values(&model.open("c", &given).unwrap().read(), &truth["c"].f32(), "c, f32 scales");
    for (name, ty, shape) in [
        ("a", bl_type::BL_TYPE_TERNARY, [2, 16]),
        ("b", bl_type::BL_TYPE_TERNARY, [3, 8]),
        ("c", bl_type::BL_TYPE_INT4, [4, 8]),
    ] {
        let listed = model.named(name).unwrap().info;
        assert_eq!((listed.r#type.0, listed.status.0), (ty as u32, 0));
        let layer = model.open(name, &activation(bl_activation::BL_ACTIVATION_F32)).unwrap();
        assert_eq!((layer.shape(), layer.info().r#type.0), (shape, ty as u32));
        let want = if name == "c" { c.clone() } else { truth[name].f32() };
        assert_values(&layer.read(), &want, name);
        let x: Vec<f32> = (0..3 * shape[1]).map(|i| (i as f32 * 0.7).sin()).collect();
        check_float(&layer.forward(&x), &x, &want, None, name);
        check_int8(&model.open(name, &options()).unwrap().forward(&x), &x, &want, None, name);
    }
    // b, three bases, in integers: ascending, each fused.
    let layer = model.open("b", &options()).unwrap();
    let x: Vec<f32> = (0..8).map(|i| (i as f32 * 1.3).cos()).collect();
    check_int8(&layer.forward(&x), &x, &truth["b"].f32(), None, "b");
}

#[test]
fn int4_layouts() {
    let all = vectors("later_int4_layouts");
    let model = Model::golden("int4_layouts.safetensors");
    assert_eq!(names(&model).len(), 4);
    let x: Vec<f32> = (0..5 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let group_of_32 = bl_layer_options { group_size: 32, ..options() };
    for (name, ty, options, truth) in [
        ("gptq", bl_type::BL_TYPE_GPTQ, flags(BL_LAYER_GPTQ_V1), &all["dequantized"]),
        ("awq", bl_type::BL_TYPE_AWQ, options(), &all["dequantized"]),
        ("ct", bl_type::BL_TYPE_COMPRESSED_TENSORS, options(), &all["compressed_tensors"]["dequantized"]),
        ("mlx", bl_type::BL_TYPE_MLX, group_of_32, &all["mlx"]["dequantized"]),
    ] {
        let listed = model.named(name).unwrap().info;
        assert_eq!(listed.r#type.0, ty as u32, "{name}");
        let want = floats(truth);
        let float = bl_activation::BL_ACTIVATION_F32 as u32;
        let layer =
            model.open(name, &bl_layer_options { activation: ActivationArg(float), ..options }).unwrap();
        assert_eq!((layer.shape(), layer.info().r#type.0), ([16, 64], ty as u32));
        assert_values(&layer.read(), &want, name);
        check_float(&layer.forward(&x), &x, &want, None, name);
        let layer = model.open(name, &options).unwrap();
        assert_eq!(layer.info().activation.0, bl_activation::BL_ACTIVATION_INT8_GROUP as u32);
        check_int8(&layer.forward(&x), &x, &want, None, name);
    }
    // What the file alone does not tell.
    for (name, option) in [("gptq", "BL_LAYER_GPTQ_V1"), ("mlx", "group_size")] {
        let failure = model.refused(name, &options());
        assert_eq!(failure.0, bl_status::BL_ERROR_INVALID_ARGUMENT, "{failure:?}");
        assert!(failure.1.contains(option), "{failure:?}");
        assert_eq!(model.named(name).unwrap().info.status.0, failure.0 as u32);
    }
    let v2 = model.open("gptq", &flags(BL_LAYER_GPTQ_V2)).unwrap().read();
    assert_ne!(v2, floats(&all["dequantized"]));
}

#[test]
fn ruvllm() {
    let truth = npz("golden/ruvllm_t158_truth.npz");
    let model = Model::golden("ruvllm_t158_id30.gguf");
    assert_eq!(names(&model), ["layers.0.expert.0"]);
    let layer = model.open("layers.0.expert.0", &activation(bl_activation::BL_ACTIVATION_F32)).unwrap();
    assert_eq!(layer.info().r#type.0, bl_type::BL_TYPE_T158 as u32);
    let want = truth["dequant"].f32();
    assert_values(&layer.read(), &want, "t158");
    let x: Vec<f32> = (0..3 * 512).map(|i| (i as f32 * 0.11).sin()).collect();
    check_float(&layer.forward(&x), &x, &want, None, "t158");
    let layer = model.open("layers.0.expert.0", &options()).unwrap();
    check_int8(&layer.forward(&x), &x, &want, None, "t158");
}

/// The vectors of artifacts, as a file with decoder_x of two heads and an encoder.
#[test]
fn burn_dragon() {
    let mut seen = 0;
    for case in crate::data::cases("burn_dragon_artifact") {
        let Some(encoding) = case["encoding"].as_str() else { continue };
        let want = floats(&case["dequantized"]);
        let packed = crate::data::hex(&case["packed_hex"]);
        let n = want.len();
        if !n.is_multiple_of(2) {
            continue;
        }
        seen += 1;
        let scale = case["scale"].as_f64().unwrap() as f32;
        let artifact = |shape: &[usize]| {
            format!(
                "{{\"encoding\":\"{encoding}\",\"logical_shape\":{shape:?},\"scale\":{scale:?},\"packed\":{packed:?},\"len\":{n}}}"
            )
        };
        let text = format!(
            "{{\"decoder_x\":{},\"decoder_y\":null,\"encoder\":{}}}",
            artifact(&[2, 1, n / 2]),
            artifact(&[n / 2, 2])
        );
        let model = Model::memory(text.as_bytes(), 0).unwrap();
        assert_eq!(names(&model), ["decoder_x", "encoder"]);
        let listed = model.named("decoder_x").unwrap().info;
        assert_eq!((listed.slices, listed.out_features, listed.in_features), (2, n as i64 / 2, 1));
        assert_eq!(text_of(&listed), "decoder_x.scale");
        for head in 0..2 {
            let options = bl_layer_options { slice: head, ..options() };
            let layer = model.open("decoder_x", &options).unwrap();
            assert_values(&layer.read(), &want[head as usize * n / 2..][..n / 2], "a head");
        }
        let all = model.open("decoder_x", &flags(BL_LAYER_ALL_SLICES)).unwrap();
        assert_eq!(all.shape(), [n, 1]);
        assert_values(&all.read(), &want, "all heads");
        let encoder = model.open("encoder", &options()).unwrap();
        assert_eq!(encoder.shape(), [2, n / 2]);
        let turned: Vec<f32> = (0..n).map(|i| want[i % (n / 2) * 2 + i / (n / 2)]).collect();
        assert_values(&encoder.read(), &turned, "encoder");
        // A scale of the caller's in place of the file's.
        let two = [2.0f32];
        let given = bl_layer_options { scales: two.as_ptr(), scale_count: 1, ..options() };
        let scaled = model.open("encoder", &given).unwrap().read();
        assert!(scaled.iter().zip(&turned).all(|(a, b)| *a == (b / scale).round() * 2.0));
    }
    assert!(seen >= 6, "{seen} artifacts");
}

fn text_of(info: &bl_model_layer_info) -> String {
    text(info.scales)
}
