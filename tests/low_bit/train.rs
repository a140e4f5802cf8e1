//! Gradients of layers.

use std::ptr::{null, null_mut};

use bitlinear::capi::codes::*;
use bitlinear::capi::context::bl_free;
use bitlinear::capi::forward::bl_forward;
use bitlinear::capi::layer::{bl_layer_create, bl_layer_read, bl_layer_update};
use bitlinear::capi::low_bit::*;
use bitlinear::capi::train::*;
use bl_low_bit::*;
use bl_status::*;
use bl_type::*;

use crate::{
    ActivationArg, EpilogueArg, Failure, TypeArg, bl_activation, bl_layer, bl_layer_options, bl_status,
    bl_type, call, generated, sized,
};

const F32: TypeArg = TypeArg(BL_TYPE_F32 as u32);

struct Layer(*mut bl_layer);

impl Drop for Layer {
    fn drop(&mut self) {
        // SAFETY: a handle.
        unsafe { bl_free(self.0.cast()) }
    }
}

fn create(n: usize, k: usize, w: &[f32], options: &bl_layer_options) -> Layer {
    let mut layer = null_mut();
    // SAFETY: a slice of that length.
    call(|e| unsafe {
        bl_layer_create(null(), n as i64, k as i64, w.as_ptr().cast(), F32, 0, options, &mut layer, e)
    })
    .unwrap();
    Layer(layer)
}

impl Layer {
    fn forward(&self, m: usize, x: &[f32], n: usize) -> Vec<f32> {
        let mut y = vec![9.0f32; m * n];
        // SAFETY: slices of those lengths.
        call(|e| unsafe {
            bl_forward(self.0, m as i64, x.as_ptr().cast(), F32, 0, y.as_mut_ptr().cast(), F32, 0, null(), e)
        })
        .unwrap();
        y
    }
    fn weights(&self, n: usize, k: usize) -> Vec<f32> {
        let mut w = vec![9.0f32; n * k];
        // SAFETY: a slice of that length.
        call(|e| unsafe { bl_layer_read(self.0, 0, n as i64, w.as_mut_ptr().cast(), F32, 0, e) }).unwrap();
        w
    }
    fn backward(
        &self,
        m: usize,
        g: bl_layer_gradients,
        n: usize,
        k: usize,
    ) -> Result<[Vec<f32>; 3], Failure> {
        let (mut dx, mut dw, mut db) = (vec![9.0; m * k], vec![0.5; n * k], vec![0.25; n]);
        let g = bl_layer_gradients { dx: dx.as_mut_ptr(), dw: dw.as_mut_ptr(), db: db.as_mut_ptr(), ..g };
        // SAFETY: slices of those lengths.
        let result = call(|e| unsafe { bl_layer_backward(self.0, m as i64, &g, e) });
        let untouched =
            dx.iter().all(|v| *v == 9.0) && dw.iter().all(|v| *v == 0.5) && db.iter().all(|v| *v == 0.25);
        assert!(result.is_ok() || untouched, "a failure that wrote");
        result.map(|()| [dx, dw, db])
    }
}

fn of(x: &[f32], dy: &[f32]) -> bl_layer_gradients {
    bl_layer_gradients { x: x.as_ptr(), dy: dy.as_ptr(), ..sized!(bl_layer_gradients) }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Plain sums in f64 over what weights and activations stand for are the truth. Then the same from saved
/// codes: the same bits.
#[test]
fn gradients_of_every_format() {
    let (n, k, m) = (75usize, 96usize, 9usize);
    let w = generated(&serde_json::json!([n * k, 51, 0.5]));
    let bias = generated(&serde_json::json!([n, 52, 0.5]));
    let x = generated(&serde_json::json!([m * k, 53, 1.5]));
    let dy = generated(&serde_json::json!([m * n, 54, 1.0]));
    let types = [BL_TYPE_TERNARY, BL_TYPE_BINARY, BL_TYPE_INT8, BL_TYPE_INT4, BL_TYPE_Q4_0, BL_TYPE_F32];
    for (ty, number, relu) in types
        .iter()
        .flat_map(|ty| [0, 1, 2, 4, 5, 6, 7, 8].into_iter().flat_map(move |a| [0, 1].map(|r| (*ty, a, r))))
    {
        if ty == BL_TYPE_F32 && number > 1 {
            continue; // floats take floats
        }
        let options = bl_layer_options {
            r#type: TypeArg(ty as u32),
            activation: ActivationArg(number),
            bias: bias.as_ptr(),
            group_size: if ty == BL_TYPE_INT4 { 32 } else { 0 },
            epilogue: EpilogueArg(relu),
            epilogue_threshold: 0.125 * relu as f32,
            ..sized!(bl_layer_options)
        };
        let layer = create(n, k, &w, &options);
        let what = format!("{ty:?} activation {number} relu {relu}");
        let (wr, y) = (layer.weights(n, k), layer.forward(m, &x, n));
        // What x stands for: y of the identity would tell; a float layer of it does, as one row of x.
        let eye: Vec<f32> = (0..k * k).map(|i| (i / k == i % k) as u8 as f32).collect();
        let taken = match number {
            1 => x.clone(),
            _ if ty == BL_TYPE_F32 => x.clone(),
            _ => {
                let like = bl_layer_options {
                    bias: null(),
                    epilogue: EpilogueArg(0),
                    epilogue_threshold: 0.0,
                    ..options
                };
                let by_group = matches!(ty, BL_TYPE_INT4 | BL_TYPE_Q4_0);
                let ty = if by_group { ty } else { BL_TYPE_INT8 };
                let like = bl_layer_options { r#type: TypeArg(ty as u32), ..like };
                // Int8's identity is exact: 127 * (1 / 127) rounds to 1, or next to it.
                create(k, k, &eye, &like).forward(m, &x, k)
            }
        };
        let g: Vec<f64> =
            dy.iter().zip(&y).map(|(dy, y)| if relu == 1 && *y <= 0.0 { 0.0 } else { *dy as f64 }).collect();
        let [dx, dw, db] = layer.backward(m, of(&x, &dy), n, k).unwrap();
        let near = |got: f32, want: f64, scale: f64| {
            assert!((got as f64 - want).abs() < 1e-5 * scale, "{what}: {got} {want}")
        };
        for (r, c) in (0..m).flat_map(|r| (0..k).map(move |c| (r, c))) {
            near(dx[r * k + c], (0..n).map(|o| g[r * n + o] * wr[o * k + c] as f64).sum(), 10.0);
        }
        for (o, c) in (0..n).flat_map(|o| (0..k).map(move |c| (o, c))) {
            let want: f64 = (0..m).map(|r| g[r * n + o] * taken[r * k + c] as f64).sum();
            near(dw[o * k + c], 0.5 + want, 10.0);
        }
        for o in 0..n {
            near(db[o], 0.25 + (0..m).map(|r| g[r * n + o]).sum::<f64>(), 10.0);
        }
        // With y given; and from codes, with y and without.
        let strided = bl_layer_gradients { y: y.as_ptr(), y_stride: 4 * n as i64, ..of(&x, &dy) };
        assert_eq!(
            layer.backward(m, strided, n, k).unwrap().map(|v| bits(&v)),
            [&dx, &dw, &db].map(|v| bits(v))
        );
        let by_group = matches!(ty, BL_TYPE_INT4 | BL_TYPE_Q4_0) && matches!(number, 0 | 4 | 5);
        if number == 1 || ty == BL_TYPE_F32 || by_group {
            continue;
        }
        let (format, range) = match number {
            4 => (BL_LOW_BIT_INT4, 0),
            5 => (BL_LOW_BIT_UINT8_POS, 0),
            6 => (BL_LOW_BIT_INT8, 1),
            7 => (BL_LOW_BIT_INT4, 1),
            8 => (BL_LOW_BIT_UINT8_POS, 1),
            _ => (BL_LOW_BIT_INT8, 0),
        };
        let row = if format == BL_LOW_BIT_INT4 { k / 2 } else { k };
        let (mut codes, mut scales) = (vec![0u8; m * row], vec![0.0f32; m]);
        let kept = bl_codes {
            format: LowBitArg(format as u32),
            range: RangeArg(range),
            codes: codes.as_mut_ptr().cast(),
            scales: scales.as_mut_ptr(),
            scale_count: m as i64,
            ..sized!(bl_codes)
        };
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_quantize(null(), m as i64, k as i64, x.as_ptr().cast(), F32, 0, &kept, e) })
            .unwrap();
        let from_codes = bl_layer_gradients { x: null(), codes: &kept, ..of(&x, &dy) };
        for g in [from_codes, bl_layer_gradients { y: y.as_ptr(), ..from_codes }] {
            let got = layer.backward(m, g, n, k).unwrap().map(|v| bits(&v));
            assert!(got == [&dx, &dw, &db].map(|v| bits(v)), "{what}: codes");
        }
        let other = bl_codes { range: RangeArg(1 - range), ..kept };
        let g = bl_layer_gradients { codes: &other, ..from_codes };
        layer.backward(m, g, n, k).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, "another format or range");
    }
}

/// The loss of the rounded network by finite differences, where its roundings stand still: floats in, so
/// that only the weights are rounded, and their gradient that of the rounded ones.
#[test]
fn gradients_are_differences() {
    let (n, k, m) = (20usize, 40usize, 6usize);
    let w = generated(&serde_json::json!([n * k, 61, 0.5]));
    let x = generated(&serde_json::json!([m * k, 63, 1.5]));
    let dy = generated(&serde_json::json!([m * n, 64, 1.0]));
    let options = bl_layer_options {
        r#type: TypeArg(BL_TYPE_TERNARY as u32),
        activation: ActivationArg(bl_activation::BL_ACTIVATION_F32 as u32),
        epilogue: EpilogueArg(1),
        ..sized!(bl_layer_options)
    };
    let layer = create(n, k, &w, &options);
    let wr = layer.weights(n, k);
    let loss = |x: &[f32], w: &[f32]| -> f64 {
        let mut loss = 0.0;
        for (r, o) in (0..m).flat_map(|r| (0..n).map(move |o| (r, o))) {
            let y: f64 = (0..k).map(|c| x[r * k + c] as f64 * w[o * k + c] as f64).sum();
            loss += dy[r * n + o] as f64 * y.max(0.0);
        }
        loss
    };
    let [dx, dw, _] = layer.backward(m, of(&x, &dy), n, k).unwrap();
    let base = loss(&x, &wr);
    const STEP: f32 = 1.0 / 65536.0;
    for i in 0..x.len() {
        let mut other = x.clone();
        other[i] += STEP;
        let d = (loss(&other, &wr) - base) / (other[i] - x[i]) as f64;
        assert!((d - dx[i] as f64).abs() < 2e-3, "x {i}: {d} {}", dx[i]);
    }
    for i in 0..w.len() {
        let mut other = wr.clone();
        other[i] += STEP;
        let d = (loss(&x, &other) - base) / (other[i] - wr[i]) as f64;
        assert!((d - (dw[i] - 0.5) as f64).abs() < 2e-3, "w {i}: {d} {}", dw[i]);
    }
}

#[test]
fn calibration() {
    let (n, k, m) = (8usize, 64usize, 3usize);
    let w = generated(&serde_json::json!([n * k, 61, 0.5]));
    let x = generated(&serde_json::json!([m * k, 63, 1.5]));
    for (number, limit) in [(2, 127.0f32), (4, 7.0)] {
        let options = bl_layer_options { activation: ActivationArg(number), ..sized!(bl_layer_options) };
        let layer = create(n, k, &w, &options);
        let before = layer.forward(m, &x, n);
        // SAFETY: a slice of that length.
        call(|e| unsafe { bl_layer_calibrate(layer.0, m as i64, x.as_ptr().cast(), F32, 0, e) }).unwrap();
        let largest = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let fixed = bl_layer_options { activation_scale: largest / limit, ..options };
        let after = layer.forward(m, &x, n);
        assert_eq!(bits(&after), bits(&create(n, k, &w, &fixed).forward(m, &x, n)));
        assert_ne!(after, before);
        // SAFETY: NULL is allowed.
        call(|e| unsafe { bl_layer_calibrate(layer.0, 0, null(), F32, 0, e) }).unwrap();
        assert_eq!(layer.forward(m, &x, n), before);
        // The scale stays where weights change.
        // SAFETY: slices of those lengths.
        call(|e| unsafe { bl_layer_calibrate(layer.0, m as i64, x.as_ptr().cast(), F32, 0, e) }).unwrap();
        // SAFETY: as above.
        call(|e| unsafe { bl_layer_update(layer.0, w.as_ptr().cast(), F32, 0, e) }).unwrap();
        assert_eq!(layer.forward(m, &x, n), after);
    }
}

/// A scale is kept only where something was seen that it is for; all finite values give one that can be used and saved.
#[test]
fn calibration_with_nothing_and_with_extremes() {
    let (n, k) = (8usize, 64usize);
    let w = generated(&serde_json::json!([n * k, 61, 0.5]));
    for activation in [2, 4, 5, 6, 7, 8] {
        let options = bl_layer_options { activation: ActivationArg(activation), ..sized!(bl_layer_options) };
        let layer = create(n, k, &w, &options);
        let calibrate = |x: &[f32]| {
            // SAFETY: a slice of that length.
            call(|e| unsafe { bl_layer_calibrate(layer.0, 1, x.as_ptr().cast(), F32, 0, e) })
        };
        for x in [[0.0f32; 64], [1e-38; 64]] {
            calibrate(&x).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, "no value to calibrate with");
        }
        calibrate(&[3e38; 64]).unwrap();
        let y = layer.forward(1, &[1e37; 64], n);
        assert!(y.iter().all(|y| y.is_finite()), "{activation}: {y:?}");
    }
}

#[test]
fn what_has_no_gradient_is_refused() {
    let (n, k, m) = (4usize, 8usize, 2usize);
    let w = generated(&serde_json::json!([n * k, 61, 0.5]));
    let (x, dy) = (vec![1.0f32; m * k], vec![1.0f32; m * n]);
    let silu = bl_layer_options { epilogue: EpilogueArg(3), ..sized!(bl_layer_options) };
    let layer = create(n, k, &w, &silu);
    layer.backward(m, of(&x, &dy), n, k).unwrap_err().says(BL_ERROR_UNSUPPORTED, "Silu");
    let layer = create(n, k, &w, &sized!(bl_layer_options));
    for which in 0..2 {
        let (mut x, mut dy) = (x.clone(), dy.clone());
        *[&mut x[15], &mut dy[7]][which] = f32::NAN;
        let text = ["value 15 of x", "value 7 of dy"][which];
        layer.backward(m, of(&x, &dy), n, k).unwrap_err().says(BL_ERROR_INVALID_ARGUMENT, text);
    }
    assert_eq!(layer.backward(0, of(&x, &dy), n, k).unwrap()[1], vec![0.5; n * k]);
}
