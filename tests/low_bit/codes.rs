//! Activations and weights as codes.

use std::ptr::null;

use bitlinear::capi::codes::*;
use bitlinear::capi::low_bit::*;
use bl_low_bit::*;
use bl_status::*;

use crate::data::{cases, floats, hex, integers};
use crate::{Failure, TypeArg, bl_status, bl_type, call, close, generated, oracles, sized};

const F32: TypeArg = TypeArg(bl_type::BL_TYPE_F32 as u32);

struct Coded {
    of: bl_codes,
    codes: Vec<u8>,
    scales: Vec<f32>,
    columns: usize,
}

fn coded(format: bl_low_bit, range: u32, flags: u32, rows: usize, columns: usize) -> Coded {
    let row = match format {
        BL_LOW_BIT_FP16 => 2 * columns,
        BL_LOW_BIT_INT4 => columns.div_ceil(2),
        _ => columns,
    };
    let scales = match format {
        BL_LOW_BIT_FP16 => 0,
        _ if flags & BL_CODES_PER_TENSOR != 0 => 1,
        _ => rows,
    };
    let of = bl_codes { format: LowBitArg(format as u32), range: RangeArg(range), flags, ..sized!(bl_codes) };
    Coded { of, codes: vec![0xee; rows * row], scales: vec![9.0; scales], columns }
}

impl Coded {
    fn point(&mut self) -> bl_codes {
        let (codes, scales) = (self.codes.as_mut_ptr().cast(), self.scales.as_mut_ptr());
        bl_codes { codes, scales, scale_count: self.scales.len() as i64, ..self.of }
    }
    fn quantize(&mut self, x: &[f32]) -> Result<(), Failure> {
        let (of, columns) = (self.point(), self.columns as i64);
        let rows = x.len() as i64 / columns;
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_quantize(null(), rows, columns, x.as_ptr().cast(), F32, 0, &of, e) })
    }
    fn values(&mut self, rows: usize) -> Vec<f32> {
        let (of, columns) = (self.point(), self.columns as i64);
        let mut y = vec![9.0f32; rows * self.columns];
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_dequantize(null(), rows as i64, columns, &of, y.as_mut_ptr().cast(), F32, 0, e)
        })
        .unwrap();
        y
    }
}

#[test]
fn saved_activations_are_the_reference() {
    let oracles = oracles();
    for (name, format) in [
        ("saved_seed_int8", BL_LOW_BIT_INT8),
        ("saved_seed_u8", BL_LOW_BIT_UINT8_POS),
        ("saved_int4", BL_LOW_BIT_INT4),
        ("train_act_cache", BL_LOW_BIT_INT8),
    ] {
        let case = &oracles[name];
        let (x, want) = (floats(&case["values"]), integers(&case["codes"]));
        let mut c = coded(format, 1, BL_CODES_PER_TENSOR, 1, x.len());
        c.quantize(&x).unwrap();
        let got: Vec<i32> = (0..x.len())
            .map(|k| match format {
                BL_LOW_BIT_INT8 => c.codes[k] as i8 as i32,
                BL_LOW_BIT_INT4 => (c.codes[k / 2] >> (4 * (k % 2)) << 4) as i8 as i32 >> 4,
                _ => c.codes[k] as i32,
            })
            .collect();
        assert_eq!(got, want, "{name}");
        close(&c.scales, &[case["scale"].as_f64().unwrap() as f32], 1e-6, name);
        let restored = c.values(1);
        close(&restored, &floats(&case["restored"]), 1e-6, name);
        let max = x.iter().zip(&restored).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        close(&[max], &[case["max_abs"].as_f64().unwrap() as f32], 1e-6, name);
        // The reference counts a byte for each value of int4 too; here there are two in one.
        let bytes = c.codes.len() as u64 + 4;
        let half = if format == BL_LOW_BIT_INT4 { x.len() as u64 / 2 } else { 0 };
        assert_eq!(bytes + half, case["estimated_bytes"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn fake_quantisation_is_the_reference() {
    let oracles = oracles();
    for (name, format) in
        [("fq_ternary", BL_LOW_BIT_TERNARY158), ("fq_sign", BL_LOW_BIT_SIGN1), ("fq_int8", BL_LOW_BIT_INT8)]
    {
        let case = &oracles[name];
        let x = floats(&case["values"]);
        let mut y = vec![9.0; x.len()];
        let n = x.len() as i64;
        let (format, mean) = (LowBitArg(format as u32), RangeArg(1));
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_fake_quantize(null(), format, mean, BL_CODES_PER_TENSOR, n, n, x.as_ptr(), y.as_mut_ptr(), e)
        })
        .unwrap();
        close(&y, &floats(&case["out"]), 1e-6, name);
        // The gradient of a sum is ones.
        let (ones, mut dx) = (vec![1.0; x.len()], vec![0.5; x.len()]);
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_fake_quantize_backward(n, ones.as_ptr(), dx.as_mut_ptr(), e) }).unwrap();
        assert_eq!(dx, vec![1.5; x.len()]);
    }
}

#[test]
fn artifacts_are_the_reference() {
    for case in cases("burn_dragon_artifact") {
        let (ty, format) = match case["encoding"].as_str().unwrap() {
            "binary1" => (bl_type::BL_TYPE_BINARY, BL_LOW_BIT_SIGN1),
            "ternary2" => (bl_type::BL_TYPE_TERNARY2, BL_LOW_BIT_TERNARY158),
            _ => (bl_type::BL_TYPE_INT8, BL_LOW_BIT_INT8),
        };
        let (x, want) = (floats(&case["input"]), hex(&case["packed_hex"]));
        let scale = case["scale"].as_f64().unwrap() as f32;
        let ty = TypeArg(ty as u32);
        let n = x.len() as i64;
        let pack = |x: &[f32], flags: u32| {
            let (mut packed, mut scale) = (vec![0xee; want.len()], 9.0f32);
            let (len, to) = (packed.len(), packed.as_mut_ptr());
            // SAFETY: slices of those lengths.
            call(|e| unsafe { bl_pack_weights(ty, flags, n, x.as_ptr(), to, len, &mut scale, e) }).unwrap();
            (packed, scale)
        };
        assert_eq!(pack(&x, 0), (want.clone(), scale), "{}", case["case"]);
        let mut values = vec![9.0; x.len()];
        let (len, to) = (want.len(), values.as_mut_ptr());
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_unpack_weights(ty, want.as_ptr(), len, scale, n, to, e) }).unwrap();
        let stand_for: Vec<f32> = integers(&case["codes"]).iter().map(|q| *q as f32 * scale).collect();
        assert_eq!(values, stand_for, "{}", case["case"]);
        // Of values that were rounded before, signs and ternary codes and their scale come back.
        if format != BL_LOW_BIT_INT8 && values.iter().any(|v| *v != 0.0) {
            assert_eq!(pack(&values, BL_PACK_DEQUANTIZED), (want.clone(), scale), "{}", case["case"]);
        }
    }
    let (bad, mut out) = ([0b11u8], [5.0f32; 4]);
    // SAFETY: slices of those lengths.
    call(|e| unsafe {
        bl_unpack_weights(
            TypeArg(bl_type::BL_TYPE_TERNARY2 as u32),
            bad.as_ptr(),
            1,
            1.0,
            4,
            out.as_mut_ptr(),
            e,
        )
    })
    .unwrap_err()
    .says(BL_ERROR_INVALID_ARGUMENT, "code 3");
    assert_eq!(out, [5.0; 4]);
}

/// Every format, both ranges, per row and per tensor, against the formulas; rows with strides.
#[test]
fn formulas() {
    let (rows, columns) = (5usize, 37usize);
    let mut x = generated(&serde_json::json!([rows * columns, 3, 2.0]));
    x[2 * columns..3 * columns].fill(0.0);
    for format in [BL_LOW_BIT_INT8, BL_LOW_BIT_INT4, BL_LOW_BIT_UINT8_POS] {
        for (range, flags) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut c = coded(format, range, flags, rows, columns);
            c.quantize(&x).unwrap();
            let values = c.values(rows);
            let (limit, low) = match format {
                BL_LOW_BIT_INT8 => (127.0f32, -127.0f32),
                BL_LOW_BIT_INT4 => (7.0, -7.0),
                _ => (255.0, 0.0),
            };
            let own = |x: &[f32]| {
                let a: Vec<f32> = x.iter().map(|v| if low == 0.0 { v.max(0.0) } else { v.abs() }).collect();
                match range {
                    0 => a.iter().fold(0.0f32, |m, v| m.max(*v)) / limit,
                    _ => {
                        let mean = a.iter().map(|v| *v as f64).sum::<f64>() / a.len() as f64;
                        ((2.0 * mean as f32).max(1e-8) / limit).max(1e-8)
                    }
                }
            };
            for r in 0..rows {
                let row = &x[r * columns..][..columns];
                let want = if flags == 1 { own(&x) } else { own(row) };
                let s = c.scales[if flags == 1 { 0 } else { r }];
                assert!((s - want).abs() <= 1e-6 * want, "{format:?} {range} {flags}: {s} {want}");
                for (v, got) in row.iter().zip(&values[r * columns..]) {
                    let t = if s == 0.0 { 0.0 } else { (v / s).clamp(low, limit) };
                    assert!(
                        (got / s.max(1e-30) - t).abs() < 0.5001,
                        "{format:?} {range} {flags}: {v} {got} {s}"
                    );
                    let q = got / s.max(1e-30);
                    assert!((q - q.round()).abs() < 1e-4);
                }
            }
            // Codes under fixed scales: the same again.
            let mut again = coded(format, range, flags | BL_CODES_FIXED_SCALES, rows, columns);
            again.scales.copy_from_slice(&c.scales);
            again.quantize(&values).unwrap();
            assert_eq!(again.codes, c.codes, "{format:?} {range} {flags}");
            // fake_quantize is both in one.
            let mut y = vec![0.0; x.len()];
            let (f, r, n) = (LowBitArg(format as u32), RangeArg(range), x.len() as i64);
            // SAFETY: slices of those lengths.
            call(|e| unsafe {
                bl_fake_quantize(null(), f, r, flags, n, columns as i64, x.as_ptr(), y.as_mut_ptr(), e)
            })
            .unwrap();
            assert_eq!(y, values);
        }
    }
    let mut half = coded(BL_LOW_BIT_FP16, 0, 0, rows, columns);
    half.quantize(&x).unwrap();
    let want: Vec<f32> = x.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    assert_eq!(half.values(rows), want);
    assert_eq!(half.codes.len(), 2 * x.len());
}

/// A layer's codes are those of bl_quantize: what it computes is their sum.
#[test]
fn nothing_is_written_where_a_value_is_not_finite() {
    for (format, bad) in
        [(BL_LOW_BIT_INT8, f32::NAN), (BL_LOW_BIT_INT4, f32::INFINITY), (BL_LOW_BIT_FP16, 70000.0)]
    {
        let mut x = generated(&serde_json::json!([40, 3, 2.0]));
        x[39] = bad;
        let mut c = coded(format, 0, 0, 4, 10);
        c.quantize(&x).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, "");
        assert!(c.codes.iter().all(|b| *b == 0xee) && c.scales.iter().all(|s| *s == 9.0));
    }
}

/// Values at both ends of f32: none becomes what is not finite, and none so small that its scale has no inverse is a code.
#[test]
fn values_at_the_ends_of_f32() {
    for format in [BL_LOW_BIT_INT8, BL_LOW_BIT_INT4, BL_LOW_BIT_UINT8_POS] {
        for flags in [0, BL_CODES_PER_TENSOR] {
            let mut c = coded(format, 0, flags, 1, 4);
            c.quantize(&[1e-38, 0.0, 1e-38, 0.0]).unwrap();
            assert_eq!(c.values(1), [0.0; 4], "{format:?} {flags}");
            c.quantize(&[f32::MAX, 0.0, f32::MAX, 0.0]).unwrap();
            let values = c.values(1);
            assert!(
                values[0] > 3.4e38 && values[0].is_finite() && values[1] == 0.0,
                "{format:?}: {values:?}"
            );
        }
        // The mean of a row is added in f32; that of a tensor is not.
        let mut c = coded(format, 1, BL_CODES_PER_TENSOR, 1, 4);
        c.quantize(&[3e38; 4]).unwrap();
        assert!((c.values(1)[0] / 3e38 - 1.0).abs() < 0.15, "{format:?}"); // int4: 3.5 becomes 4
        let mut c = coded(format, 1, 0, 1, 4);
        c.quantize(&[3e38; 4]).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, "no mean range");
    }
}

const INT8: TypeArg = TypeArg(bl_type::BL_TYPE_INT8 as u32);

/// Weights are rounded alike whether they are kept as codes or taken back at once.
#[test]
fn fake_quantisation_of_weights_is_what_they_become() {
    for seed in 0..50 {
        let w = generated(&serde_json::json!([4097, 70 + seed, 0.5]));
        let (mut fake, mut packed, mut kept) = (vec![0.0f32; 4097], vec![0u8; 4097], vec![0.0f32; 4097]);
        let (f, r, n, mut scale) = (LowBitArg(BL_LOW_BIT_INT8 as u32), RangeArg(1), 4097, 0.0);
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_fake_quantize(null(), f, r, BL_CODES_PER_TENSOR, n, n, w.as_ptr(), fake.as_mut_ptr(), e)
        })
        .unwrap();
        // SAFETY: as above.
        call(|e| unsafe {
            bl_pack_weights(INT8, 0, n, w.as_ptr(), packed.as_mut_ptr(), packed.len(), &mut scale, e)
        })
        .unwrap();
        // SAFETY: as above.
        call(|e| unsafe {
            bl_unpack_weights(INT8, packed.as_ptr(), packed.len(), scale, n, kept.as_mut_ptr(), e)
        })
        .unwrap();
        assert_eq!(fake, kept, "{seed}");
    }
}

#[test]
fn differences() {
    let (a, b) = ([1.0f32, 2.0, 3.0, 4.0], [1.1f32, 1.9, 3.2, 3.8]);
    let mut info = sized!(bl_difference_info);
    // SAFETY: slices of those lengths.
    call(|e| unsafe { bl_compare(4, a.as_ptr(), b.as_ptr(), &mut info, e) }).unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    near(info.mean_error, 0.15);
    near(info.mean_square_error, 0.025);
    near(info.max_error, 0.2);
    near(info.rms_a, 7.5f64.sqrt());
    let sparse = [0.0f32, 1.0, 0.0, -1.0, 0.0, 2.0, 0.0, 0.0];
    // SAFETY: as above.
    call(|e| unsafe { bl_compare(8, sparse.as_ptr(), sparse.as_ptr(), &mut info, e) }).unwrap();
    near(info.nonzero_a, 0.375);
    // SAFETY: as above.
    call(|e| unsafe { bl_compare(0, a.as_ptr(), b.as_ptr(), &mut info, e) }).unwrap();
    assert_eq!((info.mean_error, info.nonzero_b), (0.0, 0.0));
}
