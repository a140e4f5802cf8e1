//! Made-up layers for the benches.

use bitlinear::layout::{Coded, Float, Layout, Offset, ScaleType, Scales, Values};

#[path = "../common/synthetic.rs"]
mod synthetic;

pub use synthetic::synthetic;

/// Every layout that has kernels of its own, under the name of a format that has it.
pub fn layouts() -> Vec<(&'static str, Layout)> {
    let row = |bits, zero| Layout::rows(bits, Values::Offset(zero));
    let (groups, two_level) = (Layout::groups, Layout::two_level);
    let q1_0 = Layout::Coded(Coded {
        bits: 1,
        values: Values::Sign,
        scales: Scales::Group { len: 128, offset: Offset::None },
        scale_type: ScaleType::F16,
        bases: 1,
    });
    vec![
        ("sign", Layout::rows(1, Values::Sign)),
        ("q1_0", q1_0),
        ("ternary", row(2, 1)),
        ("q2_0", groups(2, 1, 64, Offset::None)),
        ("q2_k", two_level(2, 0, 16, true)),
        ("q3_k", two_level(3, 4, 16, false)),
        ("q4_0", groups(4, 8, 32, Offset::None)),
        ("q4_1", groups(4, 0, 32, Offset::Minimum)),
        ("gptq", groups(4, 0, 128, Offset::Zero)),
        ("q4_k", two_level(4, 0, 32, true)),
        ("q5_0", groups(5, 16, 32, Offset::None)),
        ("q5_1", groups(5, 0, 32, Offset::Minimum)),
        ("q5_k", two_level(5, 0, 32, true)),
        ("q6_k", two_level(6, 32, 16, false)),
        ("int8", row(8, 128)),
        ("q8_0", groups(8, 128, 32, Offset::None)),
        ("f16", Layout::Dense(Float::F16)),
        ("bf16", Layout::Dense(Float::Bf16)),
        ("f32", Layout::Dense(Float::F32)),
    ]
}
