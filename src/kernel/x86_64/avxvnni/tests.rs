//! What can be tested of AVX-VNNI on a CPU without it: its step against AVX2's in plain Rust, and all of
//! its text with AVX-512's encoding of the same instruction.

use crate::activation::{Activations, Codes, Shape};
use crate::kernel::x86_64::{avx2, ymm};
use crate::kernel::{Job, scalar};
use crate::layout::packed::RowMatrix;
use crate::layout::{Coded, Layout, Offset, Packed, QUAD, Row, ScaleType, Scales, TILE, Values};

/// The kernels with `vpdpbusd` as AVX-512 VL writes it.
mod evex {
    use crate::error::Result;
    use crate::kernel::Job;
    use crate::kernel::x86_64::ymm as vector;

    #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
    pub(super) fn one_row(job: &mut Job<'_>) -> Result<()> {
        gemv::run(job)
    }
    #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
    pub(super) fn several_rows(job: &mut Job<'_>) -> Result<()> {
        gemm::run(job)
    }

    mod gemm {
        crate::kernel::narrow::gemm!("avx2,fma,f16c,avx512vl,avx512vnni");
    }
    mod gemv {
        crate::kernel::narrow::gemv!("avx2,fma,f16c,avx512vl,avx512vnni");
    }
    mod multiply {
        crate::kernel::narrow::multiply!("avx2,fma,f16c,avx512vl,avx512vnni");
    }
    mod step {
        use core::arch::x86_64::*;

        use super::vector::{Bytes, Int, flipped};

        pub(super) type Part = Int;
        pub(super) const BIAS: i32 = crate::kernel::x86_64::avxvnni::step::BIAS;
        pub(super) const OTHER_WAY: bool = crate::kernel::x86_64::avxvnni::step::OTHER_WAY;

        #[inline]
        #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
        pub(super) fn begin(acc: Int) -> Part {
            acc
        }
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
        pub(super) fn step(part: Part, codes: Bytes, x: Bytes, wide: bool, _full: bool) -> Part {
            _mm256_dpbusd_epi32(part, if wide { flipped(codes) } else { codes }, x)
        }
        #[inline]
        #[target_feature(enable = "avx2,fma,f16c,avx512vl,avx512vnni")]
        pub(super) fn end(_acc: Int, part: Part, _full: bool) -> Int {
            part
        }
    }
}

/// A small generator, with a good share of extremes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn code(&mut self, least: i32, most: i32) -> i32 {
        match self.next() % 4 {
            0 => least,
            1 => most,
            _ => least + (self.next() % (most - least + 1) as u64) as i32,
        }
    }
}

/// The step as this instruction set defines it: unsigned codes times signed x, no saturation.
fn model(codes: [u8; 32], x: [i8; 32], wide: bool) -> [i32; 8] {
    std::array::from_fn(|lane| {
        let product = |j: usize| (codes[j] ^ if wide { 128 } else { 0 }) as i32 * x[j] as i32;
        let sum: i32 = (4 * lane..4 * lane + 4).map(product).sum();
        let bias = if wide { super::step::BIAS } else { 0 };
        sum - bias * (4 * lane..4 * lane + 4).map(|j| x[j] as i32).sum::<i32>()
    })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn avx2_step(codes: [u8; 32], x: [i8; 32], wide: bool, full: bool) -> [i32; 8] {
    let vector = |bytes: [u8; 32]| {
        let mut line = [0; 64];
        line[..32].copy_from_slice(&bytes);
        ymm::load(&line, 0)
    };
    let acc = ymm::ints(0);
    let part = avx2::step::begin(acc);
    let part = avx2::step::step(part, vector(codes), vector(x.map(|x| x as u8)), wide, full);
    let mut out = [0.0; 8];
    ymm::put_floats(&mut out, 0, ymm::as_floats(avx2::step::end(acc, part, wide && full)));
    out.map(|v| v.to_bits() as i32)
}

#[test]
fn the_step_is_that_of_avx2() {
    if !crate::cpu::Isa::Avx2.detected() {
        return println!("not run: this CPU lacks avx2");
    }
    let mut random = Random(1);
    for (wide, full) in [(false, false), (false, true), (true, false), (true, true)] {
        for n in 0..10_000 {
            let codes = std::array::from_fn(|_| {
                if wide { random.code(-128, 127) as u8 } else { random.code(0, 63) as u8 }
            });
            let lowest = if full { -128 } else { -127 };
            let mut x = std::array::from_fn(|_| random.code(lowest, 127) as i8);
            let mut codes: [u8; 32] = codes;
            if n == 0 {
                codes.fill(if wide { 128 } else { 63 });
                x.fill(lowest as i8);
            }
            // SAFETY: detected above.
            let got = unsafe { avx2_step(codes, x, wide, full) };
            assert_eq!(model(codes, x, wide), got, "{codes:?} {x:?} {full}");
        }
    }
}

static TABLE: [i8; 16] = [-128, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 127];

#[test]
fn the_text_equals_the_scalar_kernels() {
    if !crate::cpu::Isa::Avx512Vnni.detected() {
        return println!("not run: this CPU lacks avx512vnni");
    }
    let widths = [
        (1, Values::Sign),
        (2, Values::Offset(1)),
        (3, Values::Offset(4)),
        (4, Values::Offset(8)),
        (4, Values::Table(&TABLE)),
        (5, Values::Offset(16)),
        (6, Values::Offset(32)),
        (8, Values::Offset(128)),
    ];
    let schemes = [
        Scales::Row,
        Scales::Group { len: 32, offset: Offset::None },
        Scales::Group { len: 100, offset: Offset::Minimum },
        Scales::Group { len: 64, offset: Offset::Zero },
        Scales::TwoLevel { len: 16, minimum: false },
        Scales::TwoLevel { len: 32, minimum: true },
    ];
    let mut random = Random(2);
    for (bits, values) in widths {
        for scales in schemes {
            for n in [16, 33, 64] {
                let zero = matches!(scales, Scales::Group { offset: Offset::Zero, .. });
                if zero && !matches!(values, Values::Offset(_)) {
                    continue;
                }
                let values = if zero { Values::Offset(0) } else { values };
                let layout =
                    Layout::Coded(Coded { bits, values, scales, scale_type: ScaleType::F32, bases: 1 });
                compare(layout, n, 2304, &mut random);
            }
        }
    }
}

fn compare(layout: Layout, n: usize, k: usize, random: &mut Random) {
    let Layout::Coded(coded) = layout else { return };
    let top = (1 << coded.bits) - 1;
    let rows = (0..n)
        .map(|_| {
            let mut row = Row::new(layout, k).unwrap();
            row.codes.iter_mut().for_each(|c| *c = random.code(0, top) as u8);
            row.zeros.iter_mut().for_each(|c| *c = random.code(0, top) as u8);
            row.scales.iter_mut().for_each(|s| *s = random.code(-99, 99) as f32 / 64.0);
            row.minimums.iter_mut().for_each(|s| *s = random.code(-99, 99) as f32 / 64.0);
            row.sub_scales.iter_mut().for_each(|s| *s = random.code(-128, 127) as i8);
            row.sub_minimums.iter_mut().for_each(|s| *s = random.code(-128, 127) as i8);
            row
        })
        .collect();
    let packed = Packed::new(&RowMatrix { layout, in_features: k, rows }).unwrap();
    let shape = Shape::new(&layout, *packed.geometry());
    const M: usize = 4;
    let (quads, records, groups) = (shape.quads, shape.geometry.records, shape.groups);
    // Row by row, and with the four rows interleaved. Pads hold 0, as sums are of what is there.
    let (mut codes, mut sums) = (vec![0i8; M * quads * QUAD], vec![0i32; M * groups]);
    for m in 0..M {
        for column in 0..k {
            let q = if m == 0 { 127 } else { random.code(-127, 127) as i8 };
            codes[m * quads * QUAD + shape.geometry.position(column)] = q;
            let record = column / shape.geometry.record;
            let group = record * shape.record_groups + column % shape.geometry.record / shape.group;
            sums[m * groups + group] += q as i32;
        }
    }
    let scales: Vec<f32> = (0..M * records).map(|_| random.code(1, 99) as f32 / 512.0).collect();
    fn interleave<T: Copy>(rows: &[T], unit: usize) -> Vec<T> {
        let row = rows.len() / M;
        let at = |i: usize| i / (M * unit) * unit + i % unit + i / unit % M * row;
        (0..rows.len()).map(|i| rows[at(i)]).collect()
    }
    let panels = (interleave(&codes, QUAD), interleave(&scales, 1), interleave(&sums, 1));
    for tile in 0..packed.tiles() {
        let lanes = (n - tile * TILE).min(TILE);
        let mut outs = vec![];
        for kernel in 0..3 {
            let mut out = vec![f32::NAN; M * TILE];
            let scalar = (crate::kernel::scalar::KERNELS[0][1].scratch)(&packed, M);
            let mut scratch = vec![0; crate::kernel::narrow::gemm::scratch(&packed, M).max(scalar) + 64];
            let skip = scratch.as_ptr().align_offset(64).min(64);
            let x = match kernel {
                2 => Codes {
                    mr: M,
                    shape: &shape,
                    codes: &panels.0,
                    scales: &panels.1,
                    sums: &panels.2,
                    totals: &panels.2,
                    bias: 0,
                    weight_sums: &[],
                },
                _ => Codes {
                    mr: 1,
                    shape: &shape,
                    codes: &codes,
                    scales: &scales,
                    sums: &sums,
                    totals: &sums,
                    bias: 0,
                    weight_sums: &[],
                },
            };
            let mut job = Job {
                packed: &packed,
                tile,
                x: Activations::Integer(x),
                rows: M,
                out: &mut out,
                scratch: &mut scratch[skip..],
            };
            match kernel {
                // SAFETY: the scalar kernel needs nothing.
                0 => unsafe { (scalar::KERNELS[0][1].run)(&mut job) },
                // SAFETY: `avx512vnni` was detected, which asks for avx2 and avx512vl too.
                1 => unsafe { evex::one_row(&mut job) },
                // SAFETY: as above.
                _ => unsafe { evex::several_rows(&mut job) },
            }
            .unwrap();
            let rows = out.chunks(TILE).flat_map(|row| row[..lanes].iter().map(|v| v.to_bits()));
            outs.push(rows.collect::<Vec<u32>>());
        }
        assert_eq!(outs[1], outs[0], "{layout:?} n={n}, one row");
        assert_eq!(outs[2], outs[0], "{layout:?} n={n}, four rows");
    }
}
