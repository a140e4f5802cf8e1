//! Made-up layers for the benches.

use bitlinear::error::Result;
use bitlinear::layout::{Coded, Float, Layout, Matrix, Offset, Row, ScaleType, Scales, Values};

/// A matrix of pseudo-random codes, made row by row.
pub struct Synthetic {
    /// How it lies in memory.
    pub layout: Layout,
    /// Rows.
    pub out_features: usize,
    /// Columns.
    pub in_features: usize,
}

impl Matrix for Synthetic {
    fn layout(&self) -> Layout {
        self.layout
    }
    fn out_features(&self) -> usize {
        self.out_features
    }
    fn in_features(&self) -> usize {
        self.in_features
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        if let Layout::Coded(coded) = self.layout {
            let mask = ((1u16 << coded.bits) - 1) as u8;
            row.codes.iter_mut().for_each(|c| *c = (next() >> 32) as u8 & mask);
        }
        row.floats.iter_mut().for_each(|w| *w = (next() >> 48) as i16 as f32 / 65_536.0);
        row.scales.fill(0.007_812_5);
        row.minimums.fill(0.031_25);
        row.zeros.fill(8);
        row.sub_scales.fill(23);
        row.sub_minimums.fill(11);
        Ok(())
    }
}

/// Every layout that has kernels of its own, under the name of a format that has it.
pub fn layouts() -> Vec<(&'static str, Layout)> {
    let coded = |bits, values, scales, scale_type| {
        Layout::Coded(Coded { bits, values, scales, scale_type, bases: 1 })
    };
    let row = |bits, zero| {
        let values = if bits == 1 { Values::Sign } else { Values::Offset(zero) };
        coded(bits, values, Scales::Row, ScaleType::F32)
    };
    let groups = Layout::groups;
    let two_level = |bits, zero, len, minimum| {
        coded(bits, Values::Offset(zero), Scales::TwoLevel { len, minimum }, ScaleType::F16)
    };
    let sign_groups = Scales::Group { len: 128, offset: Offset::None };
    vec![
        ("sign", row(1, 0)),
        ("q1_0", coded(1, Values::Sign, sign_groups, ScaleType::F16)),
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
