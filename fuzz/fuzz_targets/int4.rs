//! 4-bit groups of several tensors: any bytes, any shape, any order of columns.
#![no_main]

#[path = "../matrix.rs"]
mod matrix;

use bitlinear::codec::gptq::{Awq, Gptq, GptqVersion};
use bitlinear::codec::int4_rows::{CompressedTensors, Mlx};
use bitlinear::codec::{Floats, cortex};
use bitlinear::types::Type;
use libfuzzer_sys::fuzz_target;
use matrix::{Input, check};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let which = input.byte();
    let (rows, columns, group) = (input.size(), input.size(), input.size());
    let float = [Type::F32, Type::F16, Type::Bf16][which / 5 % 3];
    let groups = columns.checked_div(group).unwrap_or(0).saturating_add(1).min(1 << 16);
    let count = rows.saturating_mul(groups).min(1 << 16);
    // Sizes near what the formats want, off by what one more byte says.
    let wanted = |input: &mut Input<'_>, bytes: usize| (bytes + input.byte()).saturating_sub(2);
    let len = wanted(&mut input, count * if float == Type::F32 { 4 } else { 2 });
    let Ok(scales) = Floats::new(float, input.take(len)) else { return };
    let len = wanted(&mut input, count / 2);
    let zeros = input.take(len);
    let len = wanted(&mut input, columns.min(1 << 16) * 4);
    let order = input.take(len);
    let order = (which & 0x80 != 0).then_some(order);
    let packed = input.0;
    match which % 5 {
        0 => check(cortex::Int4::new(rows, columns, group, packed, scales)),
        1 => {
            let version = [GptqVersion::V1, GptqVersion::V2][which / 15 % 2];
            check(Gptq::new(version, rows, columns, group, packed, zeros, scales, order));
        }
        2 => check(Awq::new(rows, columns, group, packed, zeros, scales)),
        3 => {
            let zeros = (which & 0x40 != 0).then_some(zeros);
            check(CompressedTensors::new(rows, columns, group, packed, scales, zeros, order));
        }
        _ => {
            let Ok(biases) = Floats::new(float, zeros) else { return };
            check(Mlx::new(rows, columns, group, packed, scales, biases));
        }
    }
    let _ = cortex::int4_shape(rows, columns);
});
