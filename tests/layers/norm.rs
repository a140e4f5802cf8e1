//! The norm that a file has before a layer (`rms_norm.weight` of BitNet), and several layers behind one.

use std::ptr::null;

use crate::c::*;
use crate::files::{Folder, model, tensor};

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|k| ((k * 7919 + seed * 101) % 1009) as f32 / 500.0 - 1.0).collect()
}

/// RMS norm in f64.
fn normed(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f32> {
    let mean = x.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / x.len() as f64;
    let r = 1.0 / (mean + epsilon).sqrt();
    x.iter().zip(weight).map(|(x, w)| (*x as f64 * r * *w as f64) as f32).collect()
}

#[test]
fn a_norm_of_the_file_is_applied_unless_the_caller_does_it() {
    let (weights, gain, x) = (values(4 * 8, 1), values(8, 2), values(8, 3));
    let tensors = [
        tensor("p.weight", "F32", &[4, 8], bytes(&weights)),
        tensor("p.rms_norm.weight", "F32", &[8], bytes(&gain)),
    ];
    let files = model(&tensors);
    let layer = files.open("p", &options()).unwrap();
    assert_eq!(layer.info().norm.0, bl_norm::BL_NORM_RMS as u32);
    check_float(&layer.forward(&x), &normed(&x, &gain, 1e-6), &weights, None, "1e-6");
    let without = files.open("p", &flags(BL_LAYER_WITHOUT_NORM)).unwrap();
    assert_eq!(without.info().norm.0, 0);
    check_float(&without.forward(&x), &x, &weights, None, "without");
    // A tensor by its own name has nothing beside it.
    check_float(&files.open("p.weight", &options()).unwrap().forward(&x), &x, &weights, None, "tensor");

    let folder = Folder::new("norm");
    let config = r#"{"quantization_config": {"rms_norm_eps": 0.25}}"#;
    let layer = folder.model(&tensors, config).open("p", &options()).unwrap();
    check_float(&layer.forward(&x), &normed(&x, &gain, 0.25), &weights, None, "0.25");

    // Another norm only in place of the file's.
    let rms = |flags| bl_layer_options {
        norm: NormArg(bl_norm::BL_NORM_RMS as u32),
        norm_epsilon: 0.5,
        flags,
        ..options()
    };
    let refused = files.refused("p", &rms(0));
    assert!(refused.0 == bl_status::BL_ERROR_INVALID_ARGUMENT && refused.1.contains("WITHOUT_NORM"));
    let layer = files.open("p", &rms(BL_LAYER_WITHOUT_NORM)).unwrap();
    check_float(&layer.forward(&x), &normed(&x, &[1.0; 8], 0.5), &weights, None, "the caller's");

    let mut short = tensors.clone();
    short[1] = tensor("p.rms_norm.weight", "F32", &[7], bytes(&gain[..7]));
    let refused = model(&short).refused("p", &options());
    assert!(refused.0 == bl_status::BL_ERROR_BAD_FILE && refused.1.contains("rms_norm.weight"));
}

#[test]
fn several_layers_share_a_norm_only_where_it_is_the_same() {
    let (k, n) = (32, 5);
    let tensors: Vec<_> =
        (0..4).map(|i| tensor(&format!("p{i}.weight"), "F32", &[n, k], bytes(&values(n * k, i)))).collect();
    let files = model(&tensors);
    let (gain, other, x) = (values(k, 7), values(k, 8), values(3 * k, 9));
    let signs: Vec<f32> = (0..k).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
    let with = |gain: &[f32], rotation_block, rotation_signs, epilogue| bl_layer_options {
        norm: NormArg(bl_norm::BL_NORM_RMS as u32),
        norm_weight: gain.as_ptr(),
        rotation_block,
        rotation_signs,
        epilogue: EpilogueArg(epilogue),
        ..options()
    };
    let layers = [
        files.open("p0", &with(&gain, 16, null(), 0)).unwrap(),
        files.open("p1", &with(&gain, 16, null(), 3)).unwrap(),
        files.open("p2", &with(&gain, 16, signs.as_ptr(), 0)).unwrap(),
        files.open("p3", &with(&other, 16, signs.as_ptr(), 0)).unwrap(),
    ];
    let ys = forward_many(&layers, &x, 0.5, BL_RUN_ACCUMULATE);
    for (layer, y) in layers.iter().zip(&ys) {
        let alone: Vec<f32> = layer.forward(&x).iter().map(|v| 0.5 + v).collect();
        assert_eq!(&alone, y);
    }
}
