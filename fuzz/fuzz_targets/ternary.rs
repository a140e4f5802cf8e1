//! Ternary formats whose rows are spread over their tensors, and burn_dragon's: any bytes, any shape.
#![no_main]

#[path = "../matrix.rs"]
mod matrix;

use bitlinear::codec::bitnet_hf::{BitnetHf, BitnetOnline, WeightScale};
use bitlinear::codec::burn_dragon::{Artifact, View};
use bitlinear::codec::{Floats, cortex, i2_s, ruvllm};
use bitlinear::types::Type;
use libfuzzer_sys::fuzz_target;
use matrix::{Input, check};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let which = input.byte() % 9;
    let (rows, columns) = (input.size(), input.size());
    let float = [Type::F32, Type::F16, Type::Bf16][input.byte() % 3];
    let (a, b) = (input.byte(), input.byte());
    let scales = input.take(a);
    let Ok(scales) = Floats::new(float, scales) else { return };
    let data = input.0;
    match which {
        0..=2 => check(i2_s::I2S::new([Type::I2S, Type::I2SArm, Type::I2SRows][which], rows, columns, data)),
        3 => {
            let meaning = [WeightScale::Multiplies, WeightScale::Divides][b % 2];
            check(BitnetHf::new(rows, columns, data, scales, meaning));
        }
        4 => {
            let Ok(masters) = Floats::new(float, data) else { return };
            check(BitnetOnline::new(rows, columns, masters));
        }
        5 => {
            let stored = [Type::U8, Type::I8, Type::F32, Type::I64][b % 4];
            check(cortex::Ternary::new(rows, columns, stored, data, scales));
        }
        6 => check(ruvllm::Ternary::new(rows, columns, b, data, scales)),
        7 => check(ruvllm::Ternary::t158(rows, columns, data)),
        _ => {
            let ty = [Type::Binary, Type::Ternary2, Type::Int8][b % 3];
            let view = match a % 3 {
                0 => View::rows(rows, columns),
                1 => View::heads([a, rows, columns], b / 3, a / 3, columns.wrapping_sub(b)),
                _ => View::tail(a / 3, [rows, columns], b),
            };
            let Ok(view) = view else { return };
            check(Artifact::new(ty, view, data, scales.get(0)));
        }
    }
});
