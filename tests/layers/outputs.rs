//! The outputs of every golden, on every instruction set, x86 and arm64: one hash.

use std::process::Command;

use bitlinear::cpu::Isa;

use crate::c::*;
use crate::native::{good, say};

/// What the scalar kernels give, as recorded on x86-64.
const HASH: u64 = 0x4252_3e99_443f_1572;

const FILES: [&str; 9] = [
    "bitnet_i2s.gguf",
    "bitnet_i2s_arm_qk64.gguf",
    "cortex.safetensors",
    "ggml_all_64x512.gguf",
    "hf_autobitlinear",
    "hf_bitlinear",
    "hf_online",
    "int4_layouts.safetensors",
    "ruvllm_t158_id30.gguf",
];

/// FNV-1a over the bits of all outputs.
fn hash() -> (u64, usize) {
    let (mut hash, mut layers) = (0xcbf2_9ce4_8422_2325u64, 0);
    let mut add = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ *b as u64).wrapping_mul(0x100_0000_01b3);
        }
    };
    for file in FILES {
        let model = Model::golden(file);
        for listed in model.layers() {
            for activation in [
                bl_activation::BL_ACTIVATION_AUTO,
                bl_activation::BL_ACTIVATION_F32,
                bl_activation::BL_ACTIVATION_UINT8_POS,
            ] {
                // What a file leaves open is an error on every machine alike.
                let Ok(layer) = model.open(&listed.name, &crate::c::activation(activation)) else { continue };
                layers += 1;
                let columns = layer.shape()[1];
                for m in [1, 5] {
                    let x: Vec<f32> =
                        (0..m * columns).map(|i| ((i * 7919 + 17) % 2003) as f32 / 500.0 - 2.0).collect();
                    layer.forward(&x).iter().for_each(|y| add(&y.to_bits().to_le_bytes()));
                }
            }
        }
    }
    (hash, layers)
}

#[test]
fn are_the_same_everywhere() {
    let (hash, layers) = hash();
    assert!(layers > 60, "{layers} layers");
    assert_eq!(hash, HASH, "{hash:#018x}");
}

/// This program again, with an instruction set forced or under an emulator.
fn again(mut command: Command, what: &str) {
    good(command.args(["outputs::are_the_same_everywhere", "--exact"]));
    say(&format!("outputs of the goldens: the same {what}"));
}

#[test]
fn are_the_same_on_every_instruction_set() {
    for isa in Isa::ALL {
        if !isa.detected() {
            say(&format!("not run: outputs of the goldens on {} (this CPU lacks it)", isa.name()));
            continue;
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("BITLINEAR_ISA", isa.name());
        again(command, &format!("on {}", isa.name()));
    }
}

/// An instruction of AVX would be an illegal one here.
#[test]
#[cfg(target_arch = "x86_64")]
fn are_the_same_on_a_cpu_without_avx() {
    let Some(qemu) = crate::native::tool("qemu-x86_64-static", "a CPU without AVX") else { return };
    for cpu in ["Nehalem", "SandyBridge"] {
        let mut command = Command::new(&qemu);
        command.args(["-cpu", cpu]).arg(std::env::current_exe().unwrap());
        again(command, &format!("on an emulated {cpu}"));
    }
}
