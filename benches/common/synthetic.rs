//! Weights to measure with: pseudo-random matrices of any layout and shape, and the layouts of the usual formats.
#![allow(dead_code, unreachable_pub)] // every bench uses some of it

use bitlinear::error::Result;
use bitlinear::layout::{Coded, Float, Layout, Matrix, Offset, Row, ScaleType, Scales, Values};

/// A matrix of pseudo-random codes, made row by row.
struct Synthetic {
    layout: Layout,
    out_features: usize,
    in_features: usize,
    seed: u64,
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
        let mut state = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index as u64 + 1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        if let Layout::Coded(coded) = self.layout {
            let mask = ((1u16 << coded.bits) - 1) as u8;
            for codes in row.codes.chunks_mut(8) {
                for (c, b) in codes.iter_mut().zip(next().to_le_bytes()) {
                    *c = b & mask;
                }
            }
            // Ternary codes are 0..2.
            if coded.bits == 2 && coded.scales == Scales::Row {
                row.codes.iter_mut().for_each(|c| *c = (*c).min(2));
            }
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

/// Pseudo-random weights, which differ with the seed.
pub fn synthetic(layout: Layout, out_features: usize, in_features: usize, seed: u64) -> impl Matrix {
    Synthetic { layout, out_features, in_features, seed }
}

/// A layout, and the bytes of its stored format for a weight.
pub struct Case {
    pub name: &'static str,
    pub layout: Layout,
    pub stored: f64,
}

/// The layouts of the usual formats.
pub fn cases() -> Vec<Case> {
    let row = |bits, zero| Layout::rows(bits, Values::Offset(zero));
    let (groups, two_level) = (Layout::groups, Layout::two_level);
    let case = |name, layout, bits: f64| Case { name, layout, stored: bits / 8.0 };
    let q1_0 = Layout::Coded(Coded {
        bits: 1,
        values: Values::Sign,
        scales: Scales::Group { len: 128, offset: Offset::None },
        scale_type: ScaleType::F16,
        bases: 1,
    });
    vec![
        case("ternary", row(2, 1), 2.0),
        case("q2_0", groups(2, 1, 64, Offset::None), 2.25),
        case("pq2_0", groups(2, 1, 128, Offset::None), 2.125),
        case("tq2_0", groups(2, 1, 256, Offset::None), 2.0625),
        case("sign", Layout::rows(1, Values::Sign), 1.0),
        case("q1_0", q1_0, 1.125),
        case("q4_0", groups(4, 8, 32, Offset::None), 4.5),
        case("q4_1", groups(4, 0, 32, Offset::Minimum), 5.0),
        case("q4_k", two_level(4, 0, 32, true), 4.5),
        case("q5_k", two_level(5, 0, 32, true), 5.5),
        case("q6_k", two_level(6, 32, 16, false), 6.5625),
        case("q3_k", two_level(3, 4, 16, false), 3.4375),
        case("q2_k", two_level(2, 0, 16, true), 2.625),
        case("int8", row(8, 128), 8.0),
        case("q8_0", groups(8, 128, 32, Offset::None), 8.5),
        case("f16", Layout::Dense(Float::F16), 16.0),
    ]
}
