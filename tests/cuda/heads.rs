//! Projections of heads whose forward calls run on the device: the bits of the CPU, prefixes and all.

use bitlinear::capi::codes::{RangeArg, bl_range};
use bitlinear::capi::enums::bl_status;
use bitlinear::capi::heads::*;
use bitlinear::capi::low_bit::{LowBitArg, bl_low_bit};

use crate::shipped::*;
use crate::{attempt, emulated};

const HEADS: usize = 3;
const LATENT: usize = 40;
const FEATURES: usize = 72;

fn create(
    kind: u32,
    weights: bl_low_bit,
    input: bl_low_bit,
    range: u32,
    flags: u32,
    device: u32,
) -> Outcome<Handle> {
    // SAFETY: zeros are the defaults.
    let mut options: bl_heads_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<bl_heads_options>() as u32;
    options.kind = HeadsKindArg(kind);
    (options.heads, options.latent, options.features) = (HEADS as i64, LATENT as i64, FEATURES as i64);
    (options.weight_format, options.input_format) = (LowBitArg(weights as u32), LowBitArg(input as u32));
    (options.input_range, options.flags, options.device) = (RangeArg(range), flags, device);
    let masters = values(HEADS * LATENT * FEATURES, 3);
    let mut out = std::ptr::null_mut();
    let (address, bytes) = (masters.as_ptr().cast(), masters.len() * 4);
    attempt!(heads::bl_heads_create(std::ptr::null(), &options, address, bytes, &mut out))?;
    Ok(Handle(out.cast()))
}

fn run(heads: &Handle, kind: u32, input_heads: usize, latent: usize, relu: bool) -> Outcome<Vec<f32>> {
    let (batch, time) = (2usize, 5usize);
    // SAFETY: zeros are the defaults.
    let mut run: bl_heads_run = unsafe { std::mem::zeroed() };
    run.struct_size = size_of::<bl_heads_run>() as u32;
    (run.batch, run.input_heads, run.time, run.latent) =
        (batch as i64, input_heads as i64, time as i64, latent as i64);
    if relu {
        (run.flags, run.threshold) = (BL_HEADS_RELU, 0.0625);
    }
    let (x_count, y_count) = match kind {
        0 => (batch * input_heads * time * FEATURES, batch * HEADS * time * latent),
        _ => (batch * HEADS * time * latent, batch * time * FEATURES),
    };
    let (x, mut y) = (values(x_count, latent as u32), vec![0f32; y_count]);
    let heads = heads.get::<bl_heads>().cast_const();
    let y_at = y.as_mut_ptr();
    attempt!(heads::bl_heads_forward(heads, &run, x.as_ptr(), x_count as i64, y_at, y_count as i64))?;
    Ok(y)
}

#[test]
fn projections_give_the_bits_of_the_cpu() {
    if emulated::driver().is_none() {
        return;
    }
    let weights =
        [bl_low_bit::BL_LOW_BIT_INT8, bl_low_bit::BL_LOW_BIT_SIGN1, bl_low_bit::BL_LOW_BIT_TERNARY158];
    let inputs = [bl_low_bit::BL_LOW_BIT_FP16, bl_low_bit::BL_LOW_BIT_INT8, bl_low_bit::BL_LOW_BIT_INT4];
    let mean = bl_range::BL_RANGE_MEAN as u32;
    for kind in [0, 1] {
        for weight in weights {
            for input in inputs {
                for (range, flags) in [(0, 0), (mean, 0), (mean, BL_HEADS_PER_TENSOR)] {
                    if input == bl_low_bit::BL_LOW_BIT_FP16 && (range, flags) != (0, 0) {
                        continue;
                    }
                    let cpu = create(kind, weight, input, range, flags, 0).unwrap();
                    let device = create(kind, weight, input, range, flags, 1).unwrap();
                    let shared: &[usize] = if kind == 0 { &[HEADS, 1] } else { &[HEADS] };
                    for &input_heads in shared {
                        for (latent, relu) in [(LATENT, false), (LATENT, true), (17, true), (32, false)] {
                            let want = run(&cpu, kind, input_heads, latent, relu).unwrap();
                            let got = run(&device, kind, input_heads, latent, relu).unwrap();
                            let what = format!(
                                "kind {kind}, {weight:?}, {input:?}, range {range}, flags {flags}, \
                                 {input_heads} heads of x, latent {latent}"
                            );
                            same(&got, &want, &what);
                        }
                    }
                }
            }
        }
    }
}

/// What the device has no kernel for is said, not done elsewhere: a prefix of columns with unsigned codes.
#[test]
fn an_unsigned_prefix_of_a_tail_is_refused() {
    if emulated::driver().is_none() {
        return;
    }
    let (weights, input) = (bl_low_bit::BL_LOW_BIT_INT8, bl_low_bit::BL_LOW_BIT_UINT8_POS);
    let cpu = create(1, weights, input, 0, 0, 0).unwrap();
    let device = create(1, weights, input, 0, 0, 1).unwrap();
    same(
        &run(&device, 1, HEADS, LATENT, false).unwrap(),
        &run(&cpu, 1, HEADS, LATENT, false).unwrap(),
        "whole",
    );
    let (status, text) = run(&device, 1, HEADS, 17, false).unwrap_err();
    assert!(status == bl_status::BL_ERROR_UNSUPPORTED && text.contains("prefix"), "{text}");
}
