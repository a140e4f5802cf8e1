//! Projections of heads, forward and backward.

use std::ptr::{null, null_mut};

use bitlinear::capi::codes::*;
use bitlinear::capi::context::{bl_context_create, bl_free};
use bitlinear::capi::heads::*;
use bitlinear::capi::low_bit::*;
use bl_heads_kind::*;
use bl_low_bit::*;
use bl_status::*;
use serde_json::Value;

use crate::data::floats;
use crate::{Failure, bl_context, bl_context_options, bl_status, call, close, generated, oracles, sized};

pub(crate) struct Heads(pub(crate) *mut bl_heads);

impl Drop for Heads {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

fn arg(format: bl_low_bit) -> LowBitArg {
    LowBitArg(format as u32)
}

fn weight_format(word: &str) -> LowBitArg {
    arg(match word {
        "int8" => BL_LOW_BIT_INT8,
        "sign1" => BL_LOW_BIT_SIGN1,
        "ternary158" | "ternary2" => BL_LOW_BIT_TERNARY158,
        other => panic!("{other}"),
    })
}

fn input_format(word: &str) -> LowBitArg {
    arg(match word {
        "fp16" => BL_LOW_BIT_FP16,
        "int8" => BL_LOW_BIT_INT8,
        "int4_exp" => BL_LOW_BIT_INT4,
        "uint8_pos_exp" => BL_LOW_BIT_UINT8_POS,
        other => panic!("{other}"),
    })
}

/// The reference's rule: one scale of the mean range for all of x.
fn options(kind: bl_heads_kind, [heads, latent, features]: [i64; 3]) -> bl_heads_options {
    bl_heads_options {
        kind: HeadsKindArg(kind as u32),
        heads,
        latent,
        features,
        weight_format: arg(BL_LOW_BIT_TERNARY158),
        input_format: arg(BL_LOW_BIT_INT8),
        input_range: RangeArg(bl_range::BL_RANGE_MEAN as u32),
        flags: BL_HEADS_PER_TENSOR,
        ..sized!(bl_heads_options)
    }
}

fn create_in(context: *const bl_context, options: &bl_heads_options, w: &[f32]) -> Result<Heads, Failure> {
    let mut heads = null_mut();
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_heads_create(context, options, w.as_ptr().cast(), w.len() * 4, &mut heads, e) })?;
    Ok(Heads(heads))
}

fn create(options: &bl_heads_options, w: &[f32]) -> Heads {
    create_in(null(), options, w).unwrap()
}

fn run(shape: [i64; 3], latent: i64) -> bl_heads_run {
    let [batch, input_heads, time] = shape;
    bl_heads_run { batch, input_heads, time, latent, ..sized!(bl_heads_run) }
}

impl Heads {
    fn info(&self) -> bl_heads_info {
        let mut info = sized!(bl_heads_info);
        // SAFETY: valid pointers.
        call(|e| unsafe { bl_heads_describe(self.0, &mut info, 0, e) }).unwrap();
        info
    }
    fn try_forward(&self, run: &bl_heads_run, x: &[f32], count: usize) -> Result<Vec<f32>, Failure> {
        let mut y = vec![7.0; count];
        // SAFETY: slices of those lengths.
        let result = call(|e| unsafe {
            bl_heads_forward(self.0, run, x.as_ptr(), x.len() as i64, y.as_mut_ptr(), count as i64, e)
        });
        assert!(result.is_ok() || y.iter().all(|y| *y == 7.0), "a failure that wrote");
        result.map(|()| y)
    }
    fn forward(&self, run: &bl_heads_run, x: &[f32], count: usize) -> Vec<f32> {
        self.try_forward(run, x, count).unwrap()
    }
    fn save(&self, run: &bl_heads_run, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
        let (mut bytes, mut count) = (0, 0);
        // SAFETY: NULL is allowed, then slices of those lengths.
        call(|e| unsafe {
            bl_heads_save(
                self.0,
                run,
                x.as_ptr(),
                x.len() as i64,
                null_mut(),
                &mut bytes,
                null_mut(),
                &mut count,
                e,
            )
        })
        .unwrap();
        let (mut codes, mut scales) = (vec![0; bytes as usize], vec![0.0; count as usize]);
        // SAFETY: as above.
        call(|e| unsafe {
            let (codes, scales) = (codes.as_mut_ptr(), scales.as_mut_ptr());
            bl_heads_save(self.0, run, x.as_ptr(), x.len() as i64, codes, &mut bytes, scales, &mut count, e)
        })
        .unwrap();
        (codes, scales)
    }
    /// Gradients of x and of the weights, which are added to `dw`.
    fn backward(
        &self,
        run: &bl_heads_run,
        mut g: bl_heads_gradients,
        x_count: usize,
        dw: &mut [f32],
    ) -> Vec<f32> {
        let mut dx = vec![7.0; x_count];
        (g.dx, g.dx_count) = (dx.as_mut_ptr(), x_count as i64);
        (g.dw, g.dw_count) = (dw.as_mut_ptr(), dw.len() as i64);
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_heads_backward(self.0, run, &g, e) }).unwrap();
        dx
    }
}

fn gradients(x: &[f32], dy: &[f32]) -> bl_heads_gradients {
    bl_heads_gradients {
        x: x.as_ptr(),
        x_count: x.len() as i64,
        dy: dy.as_ptr(),
        dy_count: dy.len() as i64,
        ..sized!(bl_heads_gradients)
    }
}

fn saved(codes: &[u8], scales: &[f32], dy: &[f32]) -> bl_heads_gradients {
    bl_heads_gradients {
        x: null(),
        x_count: 0,
        codes: codes.as_ptr(),
        code_bytes: codes.len() as i64,
        scales: scales.as_ptr(),
        scale_count: scales.len() as i64,
        ..gradients(&[], dy)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn dims(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect()
}

#[test]
fn lowrank_is_the_reference() {
    let oracles = oracles();
    let cases: Vec<_> =
        oracles.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("lowrank_")).collect();
    assert_eq!(cases.len(), 10);
    for (name, case) in cases {
        let (x, w, y) = (floats(&case["x"]), floats(&case["w"]), floats(&case["y"]));
        let (xs, ws) = (dims(&case["x_shape"]), dims(&case["w_shape"]));
        let activations = case["activation_format"].as_str().unwrap();
        let of = bl_heads_options {
            weight_format: weight_format(case["weight_format"].as_str().unwrap()),
            input_format: input_format(activations),
            ..options(BL_HEADS_LOWRANK, [ws[0], ws[2], ws[1]])
        };
        let heads = create(&of, &w);
        let scale = case["weight_scale"].as_f64().unwrap();
        assert!((heads.info().scale as f64 - scale).abs() < 1e-6 * scale, "{name}");
        let call = run([xs[0], xs[1], xs[2]], dims(&case["y_shape"])[3]);
        close(&heads.forward(&call, &x, y.len()), &y, 1e-6, name);
        if let Some(scale) = case["act_scale"].as_f64() {
            let (_, scales) = heads.save(&call, &x);
            assert!((scales[0] as f64 - scale).abs() < 1e-6 * scale, "{name}");
        }
    }
}

#[test]
fn the_tail_is_the_reference() {
    let oracles = oracles();
    let cases: Vec<_> =
        oracles.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("decoder_tail_")).collect();
    assert_eq!(cases.len(), 4);
    for (name, case) in cases {
        let of = |key: &str| match case[key].as_array() {
            Some(_) => floats(&case[key]),
            None => generated(&case[format!("{key}_gen").as_str()]),
        };
        let (x, w, y) = (of("y"), of("w"), floats(&case["out"]));
        let (xs, ws) = (dims(&case["y_shape"]), dims(&case["w_shape"]));
        let of = bl_heads_options {
            input_format: input_format(case["activation_format"].as_str().unwrap()),
            ..options(BL_HEADS_TAIL, [xs[1], ws[0] / xs[1], ws[1]])
        };
        let heads = create(&of, &w);
        for _ in 0..2 {
            // The second time the view of a prefix is there already.
            close(&heads.forward(&run([xs[0], xs[1], xs[2]], xs[3]), &x, y.len()), &y, 1e-6, name);
        }
    }
}

/// The weights' rounding as an artifact's bytes, and their scale.
fn packed(format: bl_low_bit, w: &[f32]) -> (crate::TypeArg, Vec<u8>, f32) {
    let (ty, per_byte) = match format {
        BL_LOW_BIT_INT8 => (crate::bl_type::BL_TYPE_INT8, 1),
        BL_LOW_BIT_SIGN1 => (crate::bl_type::BL_TYPE_BINARY, 8),
        _ => (crate::bl_type::BL_TYPE_TERNARY2, 4),
    };
    let (ty, mut scale) = (crate::TypeArg(ty as u32), 0.0);
    let mut packed = vec![0u8; w.len().div_ceil(per_byte)];
    // SAFETY: slices of those lengths.
    call(|e| unsafe {
        bl_pack_weights(ty, 0, w.len() as i64, w.as_ptr(), packed.as_mut_ptr(), packed.len(), &mut scale, e)
    })
    .unwrap();
    (ty, packed, scale)
}

/// What the weights stand for, through the library's own unpacking (which has tests of its own).
fn rounded(format: bl_low_bit, w: &[f32]) -> Vec<f32> {
    let (ty, packed, scale) = packed(format, w);
    let mut out = vec![0.0; w.len()];
    // SAFETY: slices of those lengths.
    call(|e| unsafe {
        bl_unpack_weights(ty, packed.as_ptr(), packed.len(), scale, w.len() as i64, out.as_mut_ptr(), e)
    })
    .unwrap();
    out
}

/// Large enough for whole tiles, ragged ones and prefixes; every format; plain sums in f64 are the truth.
#[test]
fn shapes_formats_and_prefixes() {
    let weights = [BL_LOW_BIT_INT8, BL_LOW_BIT_SIGN1, BL_LOW_BIT_TERNARY158, BL_LOW_BIT_PACKED2];
    let inputs = [BL_LOW_BIT_FP16, BL_LOW_BIT_INT8, BL_LOW_BIT_INT4, BL_LOW_BIT_UINT8_POS];
    let [b, h, t, latent, features] = [2usize, 3, 5, 100, 70];
    let w = generated(&serde_json::json!([h * latent * features, 91, 0.7]));
    for (kind, format, input, range, flags) in weights.iter().flat_map(|format| {
        inputs.iter().flat_map(move |input| {
            [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().flat_map(move |(range, flags)| {
                [BL_HEADS_LOWRANK, BL_HEADS_TAIL].map(|kind| (kind, *format, *input, range, flags))
            })
        })
    }) {
        let of = bl_heads_options {
            weight_format: arg(format),
            input_format: arg(input),
            input_range: RangeArg(range),
            flags,
            ..options(kind, [h as i64, latent as i64, features as i64])
        };
        let heads = create(&of, &w);
        let wr = rounded(format, &w);
        for l in [latent, 64, 33, 1] {
            let call = run([b as i64, h as i64, t as i64], l as i64);
            let what = format!("{kind:?} {format:?} {input:?} {range} {flags} {l}");
            let per_head = if kind == BL_HEADS_LOWRANK { features } else { l };
            let x = generated(&serde_json::json!([b * h * t * per_head, 17 + l, 1.5]));
            // What x stands for: from the saved codes, whose meaning is in the header.
            let (codes, scales) = heads.save(&call, &x);
            let columns = if kind == BL_HEADS_LOWRANK { features } else { l.div_ceil(32) * 32 * h };
            let rows = if kind == BL_HEADS_LOWRANK { b * h * t } else { b * t };
            let row_bytes = match input {
                BL_LOW_BIT_FP16 => columns * 2,
                BL_LOW_BIT_INT4 => columns.div_ceil(2),
                _ => columns,
            };
            assert_eq!(codes.len(), rows * row_bytes, "{what}");
            let value = |r: usize, k: usize| {
                let row = &codes[r * row_bytes..];
                let q = match input {
                    BL_LOW_BIT_FP16 => return None, // x as it is
                    BL_LOW_BIT_INT4 => (((row[k / 2] >> (4 * (k % 2))) << 4) as i8 >> 4) as f64,
                    BL_LOW_BIT_UINT8_POS => row[k] as f64,
                    _ => row[k] as i8 as f64,
                };
                Some(q * scales[if scales.len() == 1 { 0 } else { r }] as f64)
            };
            assert_eq!(scales.len(), if flags == 1 || input == BL_LOW_BIT_FP16 { 1 } else { rows }, "{what}");
            let x_at = |b: usize, head: usize, t_: usize, k: usize| {
                let plain = x[((b * h + head) * t + t_) * per_head + k] as f64;
                let (r, column) = match kind {
                    BL_HEADS_LOWRANK => ((b * h + head) * t + t_, k),
                    BL_HEADS_TAIL => (b * t + t_, k / 32 * 32 * h + head * 32 + k % 32),
                };
                value(r, column).unwrap_or(plain)
            };
            let mut want = Vec::new();
            match kind {
                BL_HEADS_LOWRANK => {
                    for (b, head, t) in
                        (0..b).flat_map(|b| (0..h).flat_map(move |h| (0..t).map(move |t| (b, h, t))))
                    {
                        for i in 0..l {
                            let sum: f64 = (0..features)
                                .map(|e| x_at(b, head, t, e) * wr[(head * features + e) * latent + i] as f64)
                                .sum();
                            want.push(sum as f32);
                        }
                    }
                }
                BL_HEADS_TAIL => {
                    for (b, t) in (0..b).flat_map(|b| (0..t).map(move |t| (b, t))) {
                        for d in 0..features {
                            let sum: f64 = (0..h * l)
                                .map(|i| {
                                    let (head, i) = (i / l, i % l);
                                    x_at(b, head, t, i) * wr[(head * latent + i) * features + d] as f64
                                })
                                .sum();
                            want.push(sum as f32);
                        }
                    }
                }
            }
            close(&heads.forward(&call, &x, want.len()), &want, 2e-5, &what);
        }
    }
}

#[test]
fn epilogues_calibration_and_counters() {
    let [h, l, e, t] = [2i64, 40, 32, 6];
    let w = generated(&serde_json::json!([h * l * e, 5, 1.0]));
    let x = generated(&serde_json::json!([t * e, 6, 1.0]));
    let count = (h * t * l) as usize;
    let of = options(BL_HEADS_LOWRANK, [h, l, e]);
    let mut context = null_mut();
    let profiled =
        bl_context_options { flags: crate::BL_CONTEXT_PROFILE, threads: 2, ..sized!(bl_context_options) };
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_context_create(&profiled, &mut context, e) }).unwrap();
    let heads = create_in(context, &of, &w).unwrap();
    let plain = run([1, 1, t], 0);
    let y = heads.forward(&plain, &x, count);
    let relu = bl_heads_run { flags: BL_HEADS_RELU, threshold: 0.25, ..plain };
    let want: Vec<f32> = y.iter().map(|y| (y - 0.25).max(0.0)).collect();
    assert_eq!(heads.forward(&relu, &x, count), want);
    let zero = bl_heads_run { flags: BL_HEADS_RELU, ..plain };
    assert_eq!(heads.forward(&zero, &x, count), y.iter().map(|y| y.max(0.0)).collect::<Vec<_>>());
    // The output in the input's format: one scale, twice the mean over 127.
    let quantized = heads.forward(&bl_heads_run { flags: BL_HEADS_QUANTIZE_OUTPUT, ..plain }, &x, count);
    let mean = y.iter().map(|y| y.abs() as f64).sum::<f64>() / count as f64;
    let s = 2.0 * mean as f32 / 127.0;
    let rounded: Vec<f32> = y.iter().map(|y| (y / s).round().clamp(-127.0, 127.0) * s).collect();
    close(&quantized, &rounded, 1e-6, "quantised output");

    let info = heads.info();
    assert_eq!((info.calls, info.scale_misses, info.scale_hits), (4, 4, 0));
    assert_eq!((info.peak_code_bytes, info.peak_output_bytes), ((t * e) as u64, 4 * count as u64));
    assert!(info.total_time > 0 && info.multiply_time > 0 && info.quantize_time > 0);
    assert!(info.pack_time > 0);
    // Another x's scale, kept.
    let wide: Vec<f32> = x.iter().map(|v| v * 3.0).collect();
    // SAFETY: a slice of that length.
    call(|e| unsafe { bl_heads_calibrate(heads.0, wide.as_ptr(), wide.len() as i64, e) }).unwrap();
    let fixed = heads.forward(&plain, &x, count);
    assert_ne!(fixed, y);
    let (codes, scales) = heads.save(&plain, &x);
    assert_eq!(scales, [heads.info().input_scale]);
    for (q, v) in codes.iter().zip(&x) {
        assert_eq!(*q as i8 as f32, (v / scales[0]).round().clamp(-127.0, 127.0));
    }
    assert_eq!((heads.info().scale_misses, heads.info().scale_hits), (4, 2));
    // SAFETY: NULL is allowed.
    call(|e| unsafe { bl_heads_calibrate(heads.0, null(), 0, e) }).unwrap();
    assert_eq!(heads.forward(&plain, &x, count), y);
    let mut info = sized!(bl_heads_info);
    // SAFETY: valid pointers.
    call(|e| unsafe { bl_heads_describe(heads.0, &mut info, 1, e) }).unwrap();
    assert_eq!((heads.info().calls, heads.info().multiply_time, heads.info().scale_misses), (0, 0, 0));
    // Without a profile no time is taken, and the bits are the same.
    let other = create(&of, &w);
    assert_eq!(bits(&other.forward(&plain, &x, count)), bits(&y));
    assert_eq!((other.info().calls, other.info().total_time, other.info().pack_time), (1, 0, 0));
    drop(heads);
    // SAFETY: a handle.
    unsafe { bl_free(context.cast()) };
}

/// Weights that were packed before, by either rule, and other ones.
#[test]
fn packed_weights_and_updates() {
    let [h, l, e, t] = [2i64, 5, 6, 3];
    let (w, v) = (generated(&serde_json::json!([60, 5, 1.0])), generated(&serde_json::json!([60, 8, 1.0])));
    let x = generated(&serde_json::json!([t * e, 6, 1.0]));
    for format in [BL_LOW_BIT_INT8, BL_LOW_BIT_SIGN1, BL_LOW_BIT_PACKED2] {
        let of = bl_heads_options { weight_format: arg(format), ..options(BL_HEADS_LOWRANK, [h, l, e]) };
        let heads = create(&of, &w);
        let (_, packed, scale) = packed(format, &w);
        let of_packed = bl_heads_options { flags: of.flags | BL_HEADS_PACKED, scale, ..of };
        let mut other = null_mut();
        // SAFETY: as above.
        call(|e| unsafe {
            bl_heads_create(null(), &of_packed, packed.as_ptr().cast(), packed.len(), &mut other, e)
        })
        .unwrap();
        let other = Heads(other);
        let (call_, count) = (run([1, 1, t], 0), (h * t * l) as usize);
        assert_eq!(other.forward(&call_, &x, count), heads.forward(&call_, &x, count));
        let before = heads.forward(&call_, &x, count);
        let mut bad = v.clone();
        bad[59] = f32::NAN;
        // SAFETY: slices of that length.
        call(|e| unsafe { bl_heads_update(heads.0, bad.as_ptr(), 60, e) })
            .unwrap_err()
            .says(BL_ERROR_INVALID_ARGUMENT, "NaN");
        assert_eq!(heads.forward(&call_, &x, count), before);
        // SAFETY: as above.
        call(|e| unsafe { bl_heads_update(heads.0, v.as_ptr(), 60, e) }).unwrap();
        assert_eq!(heads.forward(&call_, &x, count), create(&of, &v).forward(&call_, &x, count));
    }
}

#[test]
fn gradients_are_the_reference() {
    let oracles = oracles();
    let training = &oracles["training_lowrank"];
    let (x, w, dy) =
        (generated(&training["x_gen"]), generated(&training["w_gen"]), generated(&training["grad_out_gen"]));
    let (xs, ws) = (dims(&training["x_shape"]), dims(&training["w_shape"]));
    let cases = training["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 6);
    for (name, case) in cases {
        let mut words = name.split('_');
        let (_, format, _, threshold) =
            (words.next(), words.next().unwrap(), words.next(), words.next().unwrap());
        let of = bl_heads_options {
            weight_format: weight_format(format),
            ..options(BL_HEADS_LOWRANK, [ws[1], ws[3], ws[2]])
        };
        let heads = create(&of, &w);
        let mut call = run([xs[0], xs[1], xs[2]], 0);
        if threshold != "None" {
            (call.flags, call.threshold) = (BL_HEADS_RELU, threshold.parse().unwrap());
        }
        let y = heads.forward(&call, &x, dy.len());
        close(&y, &floats(&case["y"]), 1e-6, name);
        let (want_x, want_w) = (floats(&case["grad_input"]), floats(&case["grad_weight"]));
        let mut dw = vec![0.0; w.len()];
        let dx = heads.backward(&call, gradients(&x, &dy), x.len(), &mut dw);
        close(&dx, &want_x, 1e-5, name);
        close(&dw, &want_w, 1e-5, name);
        // With the y of the forward call, and from saved codes: the same bits.
        let (codes, scales) = heads.save(&call, &x);
        let with_y = bl_heads_gradients { y: y.as_ptr(), y_count: y.len() as i64, ..gradients(&x, &dy) };
        let saved_y =
            bl_heads_gradients { y: y.as_ptr(), y_count: y.len() as i64, ..saved(&codes, &scales, &dy) };
        for g in [with_y, saved(&codes, &scales, &dy), saved_y] {
            let mut again = vec![0.0; w.len()];
            assert_eq!(bits(&heads.backward(&call, g, x.len(), &mut again)), bits(&dx), "{name}");
            assert_eq!(bits(&again), bits(&dw), "{name}");
        }
        // Added to what is there.
        let mut twice = dw.clone();
        heads.backward(&call, gradients(&x, &dy), x.len(), &mut twice);
        assert!(twice.iter().zip(&dw).all(|(t, w)| (t - 2.0 * w).abs() <= 1e-6 * w.abs().max(0.1)), "{name}");
    }
    let tail = &oracles["training_decoder_tail"];
    let (x, w, dy) = (generated(&tail["y_gen"]), generated(&tail["w_gen"]), generated(&tail["grad_out_gen"]));
    let (xs, ws) = (dims(&tail["y_shape"]), dims(&tail["w_shape"]));
    let heads = create(&options(BL_HEADS_TAIL, [xs[1], ws[0] / xs[1], ws[1]]), &w);
    let call = run([xs[0], xs[1], xs[2]], xs[3]);
    close(&heads.forward(&call, &x, dy.len()), &floats(&tail["out"]), 1e-6, "tail");
    let mut dw = vec![0.0; w.len()];
    let dx = heads.backward(&call, gradients(&x, &dy), x.len(), &mut dw);
    close(&dx, &floats(&tail["grad_y"]), 1e-5, "tail");
    close(&dw, &floats(&tail["grad_w"]), 1e-5, "tail");
    let (codes, scales) = heads.save(&call, &x);
    let mut again = vec![0.0; w.len()];
    assert_eq!(bits(&heads.backward(&call, saved(&codes, &scales, &dy), x.len(), &mut again)), bits(&dx));
    assert_eq!(bits(&again), bits(&dw));
}

/// The network with its roundings held fixed is linear in x and in the weights: the loss changes by the
/// gradient times the step. Prefixes, heads that share x and heads that do not.
#[test]
fn gradients_are_differences() {
    let [b, h, t, latent, features] = [2usize, 3, 4, 37, 24];
    let w = generated(&serde_json::json!([h * latent * features, 31, 0.7]));
    let wr = rounded(BL_LOW_BIT_TERNARY158, &w);
    for (kind, input_heads, l) in [
        (BL_HEADS_LOWRANK, 1, latent),
        (BL_HEADS_LOWRANK, h, 20),
        (BL_HEADS_TAIL, h, latent),
        (BL_HEADS_TAIL, h, 33),
    ] {
        let of = bl_heads_options {
            input_format: arg(BL_LOW_BIT_FP16),
            flags: 0,
            ..options(kind, [h as i64, latent as i64, features as i64])
        };
        let heads = create(&of, &w);
        let mut call = run([b as i64, input_heads as i64, t as i64], l as i64);
        let lowrank = kind == BL_HEADS_LOWRANK;
        if lowrank {
            (call.flags, call.threshold) = (BL_HEADS_RELU, 0.05);
        }
        let (per_x, count) = if lowrank { (features, b * h * t * l) } else { (l, b * t * features) };
        let x = generated(&serde_json::json!([b * input_heads * t * per_x, 32, 1.0]));
        let dy = generated(&serde_json::json!([count, 33, 1.0]));
        // The loss sum(dy y) in f64, of any x and any (rounded) weights.
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            let mut loss = 0.0;
            for bt in 0..b * t {
                let (s, t_) = (bt / t, bt % t);
                if lowrank {
                    for (head, i) in (0..h).flat_map(|head| (0..l).map(move |i| (head, i))) {
                        let xh = if input_heads == 1 { 0 } else { head };
                        let row = &x[((s * input_heads + xh) * t + t_) * features..][..features];
                        let y: f64 = (0..features)
                            .map(|e| row[e] as f64 * w[(head * features + e) * latent + i] as f64)
                            .sum();
                        loss += dy[((s * h + head) * t + t_) * l + i] as f64 * (y - 0.05).max(0.0);
                    }
                } else {
                    for d in 0..features {
                        let y: f64 = (0..h * l)
                            .map(|j| {
                                let (head, i) = (j / l, j % l);
                                x[((s * h + head) * t + t_) * l + i] as f64
                                    * w[(head * latent + i) * features + d] as f64
                            })
                            .sum();
                        loss += dy[(s * t + t_) * features + d] as f64 * y;
                    }
                }
            }
            loss
        };
        let mut dw = vec![0.0; w.len()];
        let dx = heads.backward(&call, gradients(&x, &dy), x.len(), &mut dw);
        let base = loss(&x, &wr);
        const STEP: f32 = 1.0 / 65536.0;
        let mut changed = 0;
        for k in (0..x.len()).step_by(7) {
            let mut other = x.clone();
            other[k] += STEP;
            let difference = (loss(&other, &wr) - base) / (other[k] - x[k]) as f64;
            assert!((difference - dx[k] as f64).abs() < 2e-3, "{kind:?} {l} x {k}: {difference} {}", dx[k]);
            changed += (dx[k] != 0.0) as usize;
        }
        for k in (0..w.len()).step_by(41) {
            let mut other = wr.clone();
            other[k] += STEP;
            let difference = (loss(&x, &other) - base) / (other[k] - wr[k]) as f64;
            assert!((difference - dw[k] as f64).abs() < 2e-3, "{kind:?} {l} w {k}: {difference} {}", dw[k]);
            changed += (dw[k] != 0.0) as usize;
        }
        assert!(changed > 20, "gradients of nothing");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let [h, l, e] = [2i64, 5, 6];
    let w = generated(&serde_json::json!([60, 5, 1.0]));
    let of = options(BL_HEADS_LOWRANK, [h, l, e]);
    let heads = create(&of, &w);
    let x = generated(&serde_json::json!([36, 6, 1.0]));
    let refused = |run: &bl_heads_run, x: &[f32], count: usize, text: &str| {
        heads.try_forward(run, x, count).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, text)
    };
    refused(&run([1, 3, 3], 0), &x, 30, "3 heads");
    refused(&run([1, 1, 6], 6), &x, 60, "6 latent");
    refused(&run([1, 1, 5], 0), &x, 50, "36 values of x");
    refused(&run([1, 1, 6], 0), &x, 59, "59 of y");
    let mut bad = x.clone();
    bad[35] = f32::NEG_INFINITY;
    refused(&run([1, 1, 6], 0), &bad, 60, "value 35 of x");
    for format in [BL_LOW_BIT_FP16, BL_LOW_BIT_INT4, BL_LOW_BIT_UNSET] {
        let of = bl_heads_options { weight_format: arg(format), ..of };
        create_in(null(), &of, &w).err().unwrap().says(BL_ERROR_INVALID_ARGUMENT, "weights of");
    }
    let of = bl_heads_options { input_format: arg(BL_LOW_BIT_SIGN1), ..of };
    create_in(null(), &of, &w).err().unwrap().says(BL_ERROR_INVALID_ARGUMENT, "sign1");
}

/// The bytes that planning tells are those that projections then take.
#[test]
fn planned_bytes_are_the_real_ones() {
    use bitlinear::capi::runtime::*;
    for (h, latent, embd) in [(4i64, 64i64, 96i64), (3, 37, 50), (1, 100, 8)] {
        for format in [BL_LOW_BIT_INT8, BL_LOW_BIT_SIGN1, BL_LOW_BIT_TERNARY158] {
            let w = generated(&serde_json::json!([h * latent * embd, 1, 1.0]));
            let bytes = |kind| {
                let of = bl_heads_options { weight_format: arg(format), ..options(kind, [h, latent, embd]) };
                create(&of, &w).info().bytes_packed
            };
            let shape = bl_runtime_shape {
                batch: 1,
                time: 1,
                layers: 1,
                heads: h as u64,
                embd: embd as u64,
                latent: (h * latent) as u64,
                ..sized!(bl_runtime_shape)
            };
            let planned = |targets| {
                let config = bl_runtime_config {
                    flags: BL_CONFIG_ENABLE,
                    protocol: ProtocolArg(2),
                    targets,
                    weight_format: arg(format),
                    decoder_x_format: arg(format),
                    ..sized!(bl_runtime_config)
                };
                let mut info = sized!(bl_runtime_memory_info);
                // SAFETY: valid pointers.
                call(|e| unsafe { bl_runtime_memory(&config, &shape, &mut info, e) }).unwrap();
                info.exact_weights
            };
            assert_eq!(planned(BL_ROLE_X), bytes(BL_HEADS_LOWRANK));
            assert_eq!(planned(BL_ROLE_Y), bytes(BL_HEADS_LOWRANK));
            assert_eq!(planned(BL_ROLE_RESIDUAL), bytes(BL_HEADS_TAIL));
            assert_eq!(planned(7), 2 * bytes(BL_HEADS_LOWRANK) + bytes(BL_HEADS_TAIL));
        }
    }
}
