//! Planning: configurations, ways to run, memory.

use std::ptr::{null, null_mut};

use bitlinear::capi::low_bit::*;
use bitlinear::capi::runtime::*;
use bitlinear::plan::resolve::{Capabilities, Fallback, Runtime, resolve};
use bitlinear::plan::{Config, Inference, LowBit, Protocol, Training};
use bl_low_bit::*;
use serde_json::Value;

use crate::{Failure, bl_status, call, oracles, sized, text};

fn format(word: &Value) -> LowBitArg {
    let word = word.as_str().unwrap();
    let number = (1..8).find(|n| text(bl_low_bit_name(LowBitArg(*n))) == word);
    LowBitArg(number.unwrap_or_else(|| panic!("no format `{word}`")))
}

fn of(format: bl_low_bit) -> LowBitArg {
    LowBitArg(format as u32)
}

/// A configuration that is enabled and right.
fn enabled() -> bl_runtime_config {
    bl_runtime_config {
        flags: BL_CONFIG_ENABLE,
        protocol: ProtocolArg(bl_protocol::BL_PROTOCOL_BITNET_B158 as u32),
        ..sized!(bl_runtime_config)
    }
}

fn check(config: &bl_runtime_config) -> Result<(), Failure> {
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_runtime_check(config, e) })
}

fn plan(config: &bl_runtime_config, artifacts: u32, flags: u32) -> bl_runtime_info {
    let mut info = sized!(bl_runtime_info);
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_runtime_plan(null(), config, artifacts, flags, &mut info, e) }).unwrap();
    info
}

fn memory(config: &bl_runtime_config, shape: &bl_runtime_shape) -> bl_runtime_memory_info {
    let mut info = sized!(bl_runtime_memory_info);
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_runtime_memory(config, shape, &mut info, e) }).unwrap();
    info
}

fn saved(config: &bl_runtime_config, shape: &bl_runtime_shape) -> Vec<bl_saved_tensor> {
    let mut count = 9;
    // SAFETY: NULL is allowed.
    call(|e| unsafe { bl_runtime_saved(config, shape, null_mut(), 0, &mut count, e) }).unwrap();
    let empty = bl_saved_tensor { name: null(), shape: [0; 4], elements: 0, bytes: 0 };
    let mut tensors = vec![empty; count];
    // SAFETY: room for that many.
    call(|e| unsafe { bl_runtime_saved(config, shape, tensors.as_mut_ptr(), tensors.len(), &mut count, e) })
        .unwrap();
    tensors
}

fn saved_mode(word: &str) -> SavedModeArg {
    let words = ["disabled", "quantized_cache_exp", "quantized_cache_recompute_exp"];
    SavedModeArg(words.iter().position(|w| *w == word).unwrap() as u32)
}

#[test]
fn memory_is_what_the_reference_estimates() {
    let oracles = oracles();
    let cases = oracles["memory_estimates"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let (from, input) = (&case["config"], &case["input"]);
        let weights = &from["weights"];
        let mut config = enabled();
        for (role, bit) in [("x", BL_ROLE_X), ("y", BL_ROLE_Y), ("residual", BL_ROLE_RESIDUAL)] {
            if !weights[role].is_null() {
                config.targets |= bit;
                match role {
                    "x" => config.decoder_x_format = format(&weights[role]),
                    "y" => config.weight_format = format(&weights[role]),
                    _ => config.encoder_format = format(&weights[role]),
                }
            }
        }
        config.activation_format = format(&from["act"]);
        config.saved_mode = saved_mode(from["saved"].as_str().unwrap());
        config.saved_format = format(&from["saved_fmt"]);
        config.training_mode = TrainingModeArg((config.saved_mode.0 != 0) as u32);
        config.rho_compression = RhoCompressionArg(match case["rho"].as_str().unwrap() {
            "int8" => 2,
            "ternary" => 3,
            "binary" => 4,
            "bf16" => 0,
            other => panic!("{other}"),
        });
        let n = |key: &str| input[key].as_u64().unwrap();
        let shape = bl_runtime_shape {
            batch: n("batch_size"),
            time: n("time_steps"),
            layers: n("n_layer"),
            heads: n("n_head"),
            embd: n("n_embd"),
            latent: n("latent_total"),
            ..sized!(bl_runtime_shape)
        };
        let (got, want) = (memory(&config, &shape), &case["expected"]);
        for (got, key) in [
            (got.master_weights, "master_weight_bytes"),
            (got.execution_weights, "execution_weight_bytes"),
            (got.activation_shell, "activation_shell_bytes"),
            (got.saved_activations, "saved_activation_bytes"),
            (got.rho_state, "rho_state_bytes"),
            (got.workspace, "workspace_bytes"),
            (got.total, "total"),
        ] {
            assert_eq!(got, want[key].as_u64().unwrap(), "{} {key}", case["case"]);
        }
        assert_eq!(got.requires_rho_window_anchor == 1, config.saved_mode.0 == 2);
        let off = bl_runtime_config { flags: 0, saved_mode: SavedModeArg(0), ..config };
        assert_eq!(memory(&off, &shape).total, 0);
        // Sums and products stop at the end of u64.
        let huge = bl_runtime_shape { batch: u64::MAX, time: u64::MAX, latent: u64::MAX, ..shape };
        assert_eq!((memory(&config, &huge).total, memory(&config, &huge).exact_weights), (u64::MAX, 0));
    }
}

#[test]
fn the_inventory_is_the_reference() {
    let oracles = oracles();
    let case = &oracles["saved_activation_inventory_seed"];
    let config = bl_runtime_config {
        targets: BL_ROLE_X | BL_ROLE_Y | BL_ROLE_RESIDUAL,
        training_mode: TrainingModeArg(1),
        saved_mode: saved_mode(case["mode"].as_str().unwrap()),
        saved_format: format(&case["format"]),
        ..enabled()
    };
    let shape = bl_runtime_shape {
        batch: 2,
        time: 64,
        layers: 3,
        heads: 4,
        embd: 128,
        latent: 8192,
        ..sized!(bl_runtime_shape)
    };
    let info = plan(&config, 0, 0);
    assert_eq!(text(info.recompute_policy), case["recompute_policy"]);
    assert_eq!(text(info.saved_mode_name), case["mode"]);
    assert_eq!(
        memory(&config, &shape).requires_rho_window_anchor == 1,
        case["requires_rho_window_anchor"].as_bool().unwrap()
    );
    let tensors = saved(&config, &shape);
    let want = case["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), want.len());
    for (got, want) in tensors.iter().zip(want) {
        assert_eq!(text(got.name), want["name"]);
        let dims: Vec<u64> = want["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
        assert_eq!(got.shape[..], dims[..]);
        assert_eq!(got.elements, want["element_count"].as_u64().unwrap());
        assert_eq!(got.bytes, want["estimated_bytes"].as_u64().unwrap());
    }
    let cache = bl_runtime_config { saved_mode: SavedModeArg(1), ..config };
    assert_eq!(text(plan(&cache, 0, 0).recompute_policy), "quantized_cache_only");
    let off = bl_runtime_config { saved_mode: SavedModeArg(0), ..config };
    assert!(saved(&off, &shape).is_empty());
    assert_eq!(text(plan(&off, 0, 0).recompute_policy), "disabled");
    let one = bl_runtime_config { targets: BL_ROLE_RESIDUAL, ..config };
    assert_eq!(saved(&one, &shape).len(), 1);
}

/// Every mistake names its key.
#[test]
fn mistakes_name_their_key() {
    let saving = SavedModeArg(1);
    let wrong: [(&str, bl_runtime_config); 17] = [
        (
            "model.quant.saved_activations.mode needs model.quant.enable",
            bl_runtime_config { saved_mode: saving, ..sized!(bl_runtime_config) },
        ),
        ("model.quant.protocol", bl_runtime_config { protocol: ProtocolArg(0), ..enabled() }),
        (
            "model.quant.target_modules",
            bl_runtime_config { flags: BL_CONFIG_ENABLE | BL_CONFIG_STRICT, ..enabled() },
        ),
        ("model.quant.target_modules", bl_runtime_config { targets: 8, ..enabled() }),
        ("model.quant.act_grouping", bl_runtime_config { activation_grouping: GroupingArg(1), ..enabled() }),
        ("model.quant.act_grouping", bl_runtime_config { activation_grouping: GroupingArg(2), ..enabled() }),
        ("model.quant.weight_grouping", bl_runtime_config { weight_grouping: GroupingArg(1), ..enabled() }),
        (
            "model.quant.saved_activations.format",
            bl_runtime_config { saved_format: of(BL_LOW_BIT_UINT8_POS), ..enabled() },
        ),
        (
            "model.quant.saved_activations.format",
            bl_runtime_config { saved_format: of(BL_LOW_BIT_SIGN1), ..enabled() },
        ),
        ("model.quant.saved_activations.mode", bl_runtime_config { saved_mode: saving, ..enabled() }),
        (
            "model.quant.act_format",
            bl_runtime_config {
                activation_format: of(BL_LOW_BIT_UINT8_POS),
                targets: BL_ROLE_RESIDUAL | BL_ROLE_Y,
                ..enabled()
            },
        ),
        (
            "model.quant.act_format",
            bl_runtime_config { activation_format: of(BL_LOW_BIT_TERNARY158), ..enabled() },
        ),
        ("model.quant.weight_format", bl_runtime_config { weight_format: of(BL_LOW_BIT_INT4), ..enabled() }),
        (
            "model.quant.decoder_x_mode",
            bl_runtime_config { decoder_x_format: of(BL_LOW_BIT_UINT8_POS), ..enabled() },
        ),
        ("model.rho.precision", bl_runtime_config { rho_precision: RhoPrecisionArg(2), ..enabled() }),
        ("model.rho.compression", bl_runtime_config { rho_compression: RhoCompressionArg(1), ..enabled() }),
        (
            "model.rho.compression_interval",
            bl_runtime_config {
                rho_compression: RhoCompressionArg(4),
                rho_interval: RhoIntervalArg(1),
                ..enabled()
            },
        ),
    ];
    for (key, config) in wrong {
        check(&config).unwrap_err().says(bl_status::BL_ERROR_INVALID_ARGUMENT, key);
    }
    check(&enabled()).unwrap();
    check(&sized!(bl_runtime_config)).unwrap();
    for compression in [0, 2, 3, 4] {
        check(&bl_runtime_config { rho_compression: RhoCompressionArg(compression), ..enabled() }).unwrap();
    }
    let tail = bl_runtime_config {
        activation_format: of(BL_LOW_BIT_UINT8_POS),
        targets: BL_ROLE_RESIDUAL,
        ..enabled()
    };
    check(&tail).unwrap();
    check(&bl_runtime_config { saved_mode: saving, training_mode: TrainingModeArg(1), ..enabled() }).unwrap();
}

/// The reference's own case, and that x, y and residual take their formats from where they should.
#[test]
fn projections_have_their_own_formats() {
    let config = bl_runtime_config {
        targets: BL_ROLE_RESIDUAL | BL_ROLE_Y,
        weight_format: of(BL_LOW_BIT_TERNARY158),
        encoder_format: of(BL_LOW_BIT_INT8),
        activation_format: of(BL_LOW_BIT_INT4),
        ..enabled()
    };
    let info = plan(&config, 0, 0);
    let formats = |info: &bl_runtime_info| {
        [
            info.x_weights,
            info.x_activations,
            info.y_weights,
            info.y_activations,
            info.residual_weights,
            info.residual_activations,
        ]
        .map(|f| text(bl_low_bit_name(f)))
    };
    assert_eq!(formats(&info), ["unset", "unset", "ternary158", "int4_exp", "int8", "int4_exp"]);
    let all = bl_runtime_config { targets: 7, encoder_format: LowBitArg(0), ..config };
    assert_eq!(
        formats(&plan(&all, 0, 0)),
        ["fp16", "int4_exp", "ternary158", "int4_exp", "ternary158", "int4_exp"]
    );
    let off = bl_runtime_config { flags: 0, ..config };
    assert_eq!(formats(&plan(&off, 0, 0)), ["unset"; 6]);
    assert_eq!(text(bl_low_bit_name(LowBitArg(77))), "unknown");
}

/// Every input there is, against the reference's order of questions.
#[test]
fn ways_to_run() {
    let formats = [LowBit::Fp16, LowBit::Int8, LowBit::Sign1, LowBit::Ternary158, LowBit::Packed2];
    let mut seen = std::collections::BTreeSet::new();
    for choice in 0..1u32 << 7 {
        let [enable, offline, kernel, artifacts, training, reference, native] =
            std::array::from_fn(|bit| choice >> bit & 1 == 1);
        for targets in 0..8 {
            for (x, y) in formats.iter().flat_map(|x| formats.map(|y| (*x, y))) {
                let config = Config {
                    enable,
                    protocol: Protocol::B158,
                    inference: if offline { Inference::OfflinePack } else { Inference::RuntimeFakeQuant },
                    training: if kernel { Training::TrainKernel } else { Training::QatSte },
                    targets,
                    decoder_x: x,
                    weights: y,
                    ..Config::default()
                };
                let can = Capabilities {
                    packed_reference: reference,
                    native_projection: native,
                    ..Capabilities::default()
                };
                let fit = (targets & 1 == 0 || matches!(x, LowBit::Int8 | LowBit::Sign1))
                    && (targets & 6 == 0 || y != LowBit::Fp16);
                let want = if !enable {
                    (Runtime::FakeQuantReference, Some(Fallback::QuantDisabled))
                } else if training && kernel && native && fit {
                    (Runtime::PackedNativeTrainingForward, None)
                } else if offline && artifacts && native {
                    (Runtime::PackedNativeInference, None)
                } else if offline && artifacts && reference {
                    (Runtime::PackedReference, None)
                } else if offline && artifacts {
                    (Runtime::FakeQuantReference, Some(Fallback::NativeLowBitUnavailable))
                } else if offline {
                    (Runtime::FakeQuantReference, Some(Fallback::MissingPackedArtifacts))
                } else if kernel && native && fit {
                    (Runtime::PackedNativeTrainingForward, None)
                } else {
                    (Runtime::FakeQuantReference, None)
                };
                assert_eq!(resolve(&config, artifacts, training, &can), want);
                seen.insert((want.0.name(), want.1.map(Fallback::name)));
            }
        }
    }
    let seen: Vec<_> =
        seen.iter().map(|(r, f)| (r.to_str().unwrap(), f.map(|f| f.to_str().unwrap()))).collect();
    assert_eq!(
        seen,
        [
            ("fake_quant_reference", None),
            ("fake_quant_reference", Some("missing_packed_artifacts")),
            ("fake_quant_reference", Some("native_low_bit_unavailable")),
            ("fake_quant_reference", Some("quant_disabled")),
            ("packed_native_inference", None),
            ("packed_native_training_forward", None),
            ("packed_reference", None),
        ]
    );
}

/// Capabilities are asked of the kernel tables: a scalar context has none.
#[test]
fn capabilities_are_probed() {
    use bitlinear::cpu::Isa;
    let scalar = Capabilities::of(Isa::Scalar);
    assert_eq!(scalar, Capabilities { packed_reference: true, ..Capabilities::default() });
    assert!(!scalar.any_native());
    for &isa in Isa::ALL.iter().filter(|isa| isa.detected() && **isa != Isa::Scalar) {
        assert_eq!(Capabilities::of(isa).bits(), 31, "{}", isa.name());
    }
    let config = bl_runtime_config { targets: 2, weight_format: of(BL_LOW_BIT_PACKED2), ..enabled() };
    let info = plan(&config, BL_ROLE_Y, 0);
    let isa = Isa::from_environment().unwrap();
    assert_eq!(info.capabilities, Capabilities::of(isa).bits());
    let native = info.capabilities & BL_CAN_NATIVE_PROJECTION != 0;
    assert_eq!(text(info.runtime_name), if native { "packed_native_inference" } else { "packed_reference" });
    assert_eq!((text(info.fallback_name), info.packed_static_ready), ("", 1));
    let info = plan(&config, 0, 0);
    assert_eq!((text(info.fallback_name), info.packed_static_ready), ("missing_packed_artifacts", 0));
    assert_eq!(info.fallback.0, 2);
}
