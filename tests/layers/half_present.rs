//! Layers that lack a part, or whose parts do not fit: refused with a sentence that says which.

use crate::c::*;
use crate::files::{Tensor, model, tensor, width};

/// A layer `p` of every format of several tensors, with the options that it needs; the first tensor holds
/// its weights. `free`: a dimension of the weights that nothing else fixes.
fn layers() -> Vec<(&'static str, Vec<Tensor>, bl_layer_options, Option<usize>)> {
    let t = |suffix: &str, dtype, shape: &[usize]| {
        let count = shape.iter().product::<usize>() * width(dtype);
        let bytes = match suffix {
            "g_idx" | "weight_g_idx" => (0..16).flat_map(|i| i32::to_le_bytes(i / 8)).collect(),
            "weight_shape" => [16i64; 2].iter().flat_map(|n| n.to_le_bytes()).collect(),
            _ => vec![0x11; count],
        };
        tensor(&format!("p.{suffix}"), dtype, shape, bytes)
    };
    vec![
        (
            "bitnet",
            vec![t("weight", "U8", &[2, 8]), t("weight_scale", "BF16", &[1]), t("bias", "F32", &[8])],
            flags(BL_LAYER_SCALE_MULTIPLIES),
            Some(1),
        ),
        (
            "ternary",
            vec![t("weight_packed", "U8", &[3, 2]), t("scales", "F32", &[1]), t("bias", "F32", &[3])],
            options(),
            Some(1),
        ),
        (
            "ternary of two bases",
            vec![t("weight_packed", "U8", &[3, 2, 2]), t("scales", "F32", &[2]), t("bias", "F32", &[3])],
            options(),
            Some(1),
        ),
        (
            "int4",
            vec![t("weight_4bit", "U8", &[4, 8]), t("scales_4bit", "F16", &[4, 2]), t("bias", "F16", &[4])],
            options(),
            None,
        ),
        (
            "gptq",
            vec![
                t("qweight", "I32", &[2, 16]),
                t("qzeros", "I32", &[2, 2]),
                t("scales", "F16", &[2, 16]),
                t("g_idx", "I32", &[16]),
                t("bias", "F16", &[16]),
            ],
            flags(BL_LAYER_GPTQ_V1),
            None,
        ),
        (
            "awq",
            vec![
                t("qweight", "I32", &[16, 2]),
                t("qzeros", "I32", &[2, 2]),
                t("scales", "F16", &[2, 16]),
                t("bias", "F16", &[16]),
            ],
            options(),
            None,
        ),
        (
            "compressed-tensors",
            vec![
                t("weight_packed", "I32", &[16, 2]),
                t("weight_scale", "BF16", &[16, 2]),
                t("weight_shape", "I64", &[2]),
                t("weight_zero_point", "I32", &[2, 2]),
                t("weight_g_idx", "I32", &[16]),
                t("bias", "BF16", &[16]),
            ],
            options(),
            None,
        ),
        (
            "mlx",
            vec![
                t("weight", "U32", &[16, 2]),
                t("scales", "F16", &[16, 2]),
                t("biases", "F16", &[16, 2]),
                t("bias", "F16", &[16]),
            ],
            bl_layer_options { group_size: 8, ..options() },
            None,
        ),
    ]
}

/// What a layer can do without.
fn is_optional(tensor: &Tensor) -> bool {
    ["p.bias", "p.g_idx", "p.weight_g_idx", "p.weight_zero_point"].contains(&&*tensor.name)
}

#[test]
fn whole_layers_open() {
    for (format, tensors, options, _) in layers() {
        let model = model(&tensors);
        let listed = model.layers();
        assert_eq!(listed.len(), 1, "{format}");
        assert_eq!(listed[0].name, "p");
        assert_eq!(text(listed[0].info.bias), "p.bias");
        let layer = model.open("p", &options).unwrap();
        let [_, columns] = layer.shape();
        let without = model.open("p", &bl_layer_options { bias: [0.0f32; 16].as_ptr(), ..options }).unwrap();
        let x = vec![0.0; columns];
        let stored = &tensors.last().unwrap();
        let bias = layer.forward(&x);
        assert!(bias.iter().all(|b| *b != 0.0), "{format}: the file's bias is there");
        assert_eq!(bias.len() * width(stored.dtype), stored.bytes.len());
        assert!(without.forward(&x).iter().all(|b| *b == 0.0), "{format}: a given bias replaces the file's");
    }
}

#[test]
fn a_missing_part_is_named() {
    for (format, tensors, options, _) in layers() {
        for missing in tensors.iter().filter(|t| !is_optional(t)) {
            let rest: Vec<Tensor> = tensors.iter().filter(|t| t.name != missing.name).cloned().collect();
            let model = model(&rest);
            let suffix = missing.name.strip_prefix("p.").unwrap();
            if format == "mlx" && suffix == "weight" {
                // `scales` goes with several formats: the text names the first, and the status is right.
                assert_eq!(model.refused("p", &options).0, bl_status::BL_ERROR_BAD_FILE);
                continue;
            }
            let failure = model.refused("p", &options);
            assert_eq!(failure.0, bl_status::BL_ERROR_BAD_FILE, "{format} without {suffix}: {failure:?}");
            assert!(failure.1.contains(suffix) && failure.1.contains("missing"), "{failure:?}");
            assert!(failure.1.contains("layer \"p\""), "{failure:?}");
            let listed = model.layers();
            assert_eq!(listed.len(), 1, "{format} without {suffix}");
            assert_eq!(listed[0].info.status.0, bl_status::BL_ERROR_BAD_FILE as u32);
            assert_eq!(listed[0].info.in_features, 0);
            assert_eq!(listed[0].info.weight.is_null(), missing.name == tensors[0].name);
        }
        for missing in tensors.iter().filter(|t| is_optional(t)) {
            let rest: Vec<Tensor> = tensors.iter().filter(|t| t.name != missing.name).cloned().collect();
            model(&rest).open("p", &options).unwrap();
        }
    }
}

fn resized(tensors: &[Tensor], which: usize, dtype: &'static str, shape: Vec<usize>) -> Vec<Tensor> {
    let mut tensors = tensors.to_vec();
    let t = &mut tensors[which];
    t.bytes.resize(shape.iter().product::<usize>() * width(dtype), 0x11);
    (t.dtype, t.shape) = (dtype, shape);
    tensors
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let mut count = 0;
    for (format, tensors, options, free) in layers() {
        for (which, t) in tensors.iter().enumerate() {
            for dim in (0..t.shape.len()).filter(|dim| which > 0 || free != Some(*dim)) {
                for size in [0, 1, t.shape[dim] - 1, t.shape[dim] + 1, 8 * t.shape[dim]] {
                    // A bias of 7 says that the eighth row is padding; int4 takes its groups as they come.
                    let fits = [
                        ("bitnet", "p.bias", 0, 7),
                        ("int4", "p.weight_4bit", 1, 64),
                        ("int4", "p.scales_4bit", 1, 1),
                        ("awq", "p.qweight", 0, 128),
                    ];
                    if size == t.shape[dim] || fits.contains(&(format, &t.name, dim, size)) {
                        continue;
                    }
                    let mut shape = t.shape.clone();
                    shape[dim] = size;
                    let model = model(&resized(&tensors, which, t.dtype, shape.clone()));
                    let failure = match model.open("p", &options) {
                        Ok(_) => panic!("{format}: {} of {shape:?} was opened", t.name),
                        Err(failure) => failure,
                    };
                    let expected = [
                        bl_status::BL_ERROR_BAD_FILE,
                        bl_status::BL_ERROR_UNSUPPORTED,
                        bl_status::BL_ERROR_INVALID_ARGUMENT,
                    ];
                    assert!(expected.contains(&failure.0), "{failure:?}");
                    assert!(failure.1.contains('p'), "{failure:?}");
                    count += 1;
                }
            }
            if which > 0 {
                let other = if t.dtype == "I64" { "F32" } else { "I64" };
                let model = model(&resized(&tensors, which, other, t.shape.clone()));
                assert_ne!(
                    model.refused("p", &options).0,
                    bl_status::BL_OK,
                    "{format}: {} of {other}",
                    t.name
                );
            }
        }
    }
    assert!(count > 100, "{count}");
}
