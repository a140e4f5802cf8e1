//! Rounding of weights: searches against ggml's own quantisers, fixed rules against formats' own tools,
//! calibration against plain rounding.

use bitlinear::codec;
use bitlinear::cpu::Isa;
use bitlinear::error::Result;
use bitlinear::exec::Executor;
use bitlinear::layout::{Float, Layout, Matrix, Row};
use bitlinear::quantize::{Method, Moments, PANEL_ROWS, Rounding};
use bitlinear::types::Type;
use serde_json::Value;

const COLUMNS: usize = 1024;

fn data(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quantize").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn halves(name: &str) -> Vec<f32> {
    let bytes = data(&format!("{name}.f16"));
    bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
}

fn importance() -> Vec<f32> {
    data("importance.f32").as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A matrix of floats in memory.
struct Floats<'a> {
    values: &'a [f32],
    columns: usize,
}

impl Matrix for Floats<'_> {
    fn layout(&self) -> Layout {
        Layout::Dense(Float::F32)
    }
    fn out_features(&self) -> usize {
        self.values.len() / self.columns
    }
    fn in_features(&self) -> usize {
        self.columns
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        row.floats.copy_from_slice(&self.values[index * self.columns..][..self.columns]);
        Ok(())
    }
}

/// Rounds, and gives the values that the codes stand for.
fn rounded(source: &dyn Matrix, method: &Method<'_>) -> Vec<f32> {
    let rounding = Rounding::new(Isa::best(), &Executor::Serial, source, method).unwrap();
    let (rows, columns, layout) = (source.out_features(), source.in_features(), rounding.layout());
    let mut out = Vec::with_capacity(rows * columns);
    for first in (0..rows).step_by(PANEL_ROWS) {
        rounding
            .panel(first, PANEL_ROWS.min(rows - first), &mut |_, row| {
                out.extend((0..columns).map(|k| row.weight(&layout, k)));
                Ok(())
            })
            .unwrap();
    }
    out
}

fn rmse(a: &[f32], b: &[f32], weights: &[f32]) -> f64 {
    let (mut sum, mut total) = (0.0, 0.0);
    for (k, (a, b)) in a.iter().zip(b).enumerate() {
        let w = weights[k % weights.len()] as f64;
        sum += w * (*a as f64 - *b as f64).powi(2);
        total += w;
    }
    (sum / total).sqrt()
}

const SEARCHED: [Type; 10] = [
    Type::Q2K,
    Type::Q3K,
    Type::Q4K,
    Type::Q5K,
    Type::Q6K,
    Type::Q4_0,
    Type::Q4_1,
    Type::Q5_0,
    Type::Q5_1,
    Type::Q8_0,
];

/// Search leaves at most 1.02 times the error of ggml's quantisers, plain and with importance.
#[test]
fn searches_leave_no_more_error_than_ggml() {
    let figures: Value = serde_json::from_slice(&data("ggml.json")).unwrap();
    let weights = importance();
    let mut moments = Moments::new(COLUMNS, 1).unwrap();
    moments.add(Isa::best(), &weights.iter().map(|w| w.sqrt()).collect::<Vec<_>>()).unwrap();
    moments.settle(Isa::best());
    let mut worst = Vec::new();
    for set in ["gaussian", "laplace", "minilm"] {
        let values = halves(set);
        let source = Floats { values: &values, columns: COLUMNS };
        for ty in SEARCHED {
            let plain = Method { search: true, ..Method::plain(ty) };
            for (key, method, weights) in [
                ("rmse", plain, &[1.0f32][..]),
                ("weighted_rmse", Method { moments: Some(&moments), ..plain }, &weights),
            ] {
                let ours = rmse(&rounded(&source, &method), &values, weights);
                let theirs = figures[key][set][ty.name()].as_f64().unwrap();
                if ours > 1.02 * theirs {
                    worst.push(format!(
                        "{set} {} {key}: {ours:.6} {theirs:.6} {:.4}",
                        ty.name(),
                        ours / theirs
                    ));
                }
                println!("{set} {} {key}: {:.4}", ty.name(), ours / theirs);
            }
        }
    }
    assert!(worst.is_empty(), "{worst:#?}");
}

/// Activations whose columns depend on one another, as those of networks do.
fn activations(count: usize, columns: usize) -> Vec<f32> {
    let noise = halves("gaussian");
    let (mut x, factors) = (vec![0.0f32; count * columns], 12);
    for r in 0..count {
        for k in 0..columns {
            let own = 10.0 * noise[(r * columns + k * 7 + 3) % noise.len()];
            let shared: f32 = (0..factors)
                .map(|f| {
                    noise[(f * columns + k) % noise.len()] * noise[(r * factors + f + 5000) % noise.len()]
                })
                .sum();
            x[r * columns + k] = (own + 1000.0 * shared) * if k % 50 == 7 { 5.0 } else { 1.0 };
        }
    }
    x
}

fn moments_of(x: &[f32], columns: usize, block: usize) -> Moments {
    let mut moments = Moments::new(columns, block).unwrap();
    x.chunks(columns).for_each(|row| moments.add(Isa::best(), row).unwrap());
    moments.settle(Isa::best());
    moments
}

/// Square error of the output x W^T on these rows of x, relative to the output.
fn output_error(x: &[f32], w: &[f32], rounded: &[f32], columns: usize) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for x in x.chunks(columns) {
        for (w, v) in w.chunks(columns).zip(rounded.chunks(columns)) {
            let dot = |w: &[f32]| x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum::<f64>();
            let (want, got) = (dot(w), dot(v));
            error += (want - got).powi(2);
            size += want * want;
        }
    }
    error / size
}

/// On activations that calibration has not seen, making up for errors leaves less than half of the
/// square error of the output that the same type leaves without, and the weighted search alone does
/// not make it worse.
#[test]
fn calibration_leaves_less_error_of_the_output() {
    let columns = 256;
    let x = activations(1200, columns);
    let (seen, unseen) = x.split_at(1000 * columns);
    let w = &halves("minilm")[..32 * columns];
    let source = Floats { values: w, columns };
    let full = moments_of(seen, columns, columns);
    let halved = moments_of(seen, columns, 128);
    let diagonal = moments_of(seen, columns, 1);
    for (ty, group) in [
        (Type::Ternary, 0),
        (Type::Ternary, 64),
        (Type::Int4, 32),
        (Type::Int8, 0),
        (Type::Binary, 0),
        (Type::Q4_0, 0),
        (Type::Q4_1, 0),
        (Type::Q5_0, 0),
        (Type::Q5_1, 0),
        (Type::Q8_0, 0),
        (Type::Q2K, 0),
        (Type::Q3K, 0),
        (Type::Q4K, 0),
        (Type::Q5K, 0),
        (Type::Q6K, 0),
        (Type::Tq2_0, 0),
        (Type::Tq1_0, 0),
        (Type::Q1_0, 0),
        (Type::Q2_0, 0),
        (Type::Pq2_0, 0),
    ] {
        let search = Method { group, search: true, ..Method::plain(ty) };
        let method = |moments, compensate| Method { moments: Some(moments), compensate, ..search };
        let error = |method: &Method<'_>| output_error(unseen, w, &rounded(&source, method), columns);
        let nearest = error(&search);
        let weighted = error(&method(&diagonal, false));
        let halves = error(&method(&halved, true));
        let whole = error(&method(&full, true));
        println!("{:8} {group:3}  {nearest:.3e} {weighted:.3e} {halves:.3e} {whole:.3e}", ty.name());
        assert!(weighted < 1.15 * nearest, "{}", ty.name());
        assert!(halves < 0.75 * nearest, "{}", ty.name());
        assert!(whole < 0.5 * nearest, "{}", ty.name());
    }
}

/// Codes and scales that a search found are what the codec writes and reads.
#[test]
fn what_was_found_can_be_stored() {
    let values = halves("laplace");
    let source = Floats { values: &values, columns: COLUMNS };
    let executor = Executor::Serial;
    for codec in codec::all() {
        let method = Method { search: true, ..Method::plain(codec.ty()) };
        let rounding = match Rounding::new(Isa::best(), &executor, &source, &method) {
            Ok(rounding) => rounding,
            Err(e) => {
                let names = ["f32", "f16", "bf16", "iq4_nl", "iq4_xs", "mxfp4", "iq1_s"];
                assert!(names.contains(&codec.ty().name()), "{}", e.text());
                continue;
            }
        };
        let mut bytes = vec![0xa5; codec.row_bytes(COLUMNS)];
        let mut back = Row::new(rounding.layout(), COLUMNS).unwrap();
        for first in [0, 16, 32] {
            rounding
                .panel(first, 16, &mut |_, row| {
                    codec.store_row(row, &mut bytes)?;
                    codec.decode_row(&bytes, &mut back)?;
                    assert_eq!(row, &back, "{}", codec.ty().name());
                    Ok(())
                })
                .unwrap();
        }
    }
}

/// Two and three bases leave less than one, by residual fitting and more so by search.
#[test]
fn bases_leave_less_and_less() {
    let values = halves("gaussian");
    let source = Floats { values: &values, columns: COLUMNS };
    let mut before = f64::INFINITY;
    for bases in 1..=4 {
        let plain = Method { bases, ..Method::plain(Type::Ternary) };
        let fixed = rmse(&rounded(&source, &plain), &values, &[1.0]);
        let found = rmse(&rounded(&source, &Method { search: true, ..plain }), &values, &[1.0]);
        assert!(found < fixed && fixed < before, "{bases}: {found} {fixed}");
        before = fixed;
    }
    // The residual of each base is what the ones before leave: base after base in f32.
    let plain = Method { bases: 2, ..Method::plain(Type::Ternary) };
    let mean = |w: &[f32]| (w.iter().map(|w| w.abs() as f64).sum::<f64>() / w.len() as f64) as f32;
    let q = |w: f32, s: f32| (w / s).round_ties_even().clamp(-1.0, 1.0);
    let first = mean(&values);
    let left: Vec<f32> = values.iter().map(|w| w - first * q(*w, first)).collect();
    let second = mean(&left);
    let want: Vec<f32> =
        values.iter().zip(&left).map(|(w, r)| q(*w, first) * first + q(*r, second) * second).collect();
    assert_eq!(rounded(&source, &plain), want);
}

/// A weight that is not finite is named by every method.
#[test]
fn what_is_not_finite_is_named() {
    let mut values = halves("gaussian");
    values[5 * COLUMNS + 77] = f32::NAN;
    values[6 * COLUMNS + 1] = f32::INFINITY;
    let source = Floats { values: &values, columns: COLUMNS };
    for ty in [Type::Ternary, Type::Int4, Type::Q4K, Type::Q8_0, Type::Binary, Type::Int8, Type::TernaryBlock]
    {
        for search in [false, true] {
            if search && ty == Type::TernaryBlock {
                continue; // it has its fixed rule only
            }
            let method = Method { search, ..Method::plain(ty) };
            let failed = Rounding::new(Isa::best(), &Executor::Serial, &source, &method)
                .and_then(|rounding| rounding.panel(0, 16, &mut |_, _| Ok(())));
            let text = failed.err().map(|e| e.text().to_string()).unwrap_or_default();
            assert!(text.contains("weight [5, 77] is NaN"), "{} {search}: {text}", ty.name());
        }
    }
}

/// The mean of many weights, and of weights whose sum is beyond f32, is their mean: every rule that takes one.
#[test]
fn means_of_large_tensors_and_of_large_weights() {
    use bitlinear::quantize::Kind;
    let columns = 4096;
    let mut seed = 1u32;
    let mut values: Vec<f32> = (0..columns << 10)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / 16_777_216.0 * 0.08 - 0.04
        })
        .collect();
    let tensor = |kind, ty| Method { kind, ..Method::plain(ty) };
    let methods = [
        tensor(Kind::Usual, Type::Ternary),
        tensor(Kind::Threshold, Type::Ternary),
        tensor(Kind::Tensor, Type::Binary),
        tensor(Kind::MeanRange, Type::Int8),
    ];
    for method in methods {
        let mean = values.iter().map(|w| w.abs() as f64).sum::<f64>() / values.len() as f64;
        let source = Floats { values: &values, columns };
        let largest = rounded(&source, &method).iter().fold(0.0f32, |a, w| a.max(w.abs())) as f64;
        let want = if method.target == Type::Int8 { 2.0 * mean } else { mean };
        assert!((largest - want).abs() < 1e-6 * want, "{:?}: {largest} {want}", method.kind);
    }
    values.truncate(2 * 256);
    values.fill(3e38);
    let groups = Method { group: 64, ..Method::plain(Type::Ternary) };
    let block = Method { group: 64, ..Method::plain(Type::TernaryBlock) };
    for method in methods.into_iter().chain([groups, block]) {
        let back = rounded(&Floats { values: &values, columns: 256 }, &method);
        // Half of twice the mean is code 63.5: 64.
        let within = if method.kind == Kind::MeanRange { 0.01 } else { 1e-5 };
        assert!(
            back.iter().all(|w| (w / 3e38 - 1.0).abs() < within),
            "{:?} {}: {}",
            method.kind,
            method.target.name(),
            back[0]
        );
    }
}

/// Scales by search do not depend on the size of the weights, and those that a format cannot store are refused.
#[test]
fn sizes_of_weights() {
    let values = halves("gaussian");
    let exact = |ty, factor: f32| {
        let scaled: Vec<f32> = values.iter().map(|v| v * factor).collect();
        let method = Method { search: true, ..Method::plain(ty) };
        let back = rounded(&Floats { values: &scaled, columns: COLUMNS }, &method);
        back.iter().map(|v| v / factor).collect::<Vec<_>>()
    };
    for ty in [Type::Int8, Type::Int4] {
        let usual = exact(ty, 1.0);
        for factor in [2f32.powi(-84), 2f32.powi(64)] {
            assert_eq!(exact(ty, factor), usual, "{} times {factor:e}", ty.name());
        }
    }
    for ty in SEARCHED.into_iter().chain([Type::Int8]) {
        let factor = if ty == Type::Int8 { 1e33 } else { 1e12 };
        let scaled: Vec<f32> = values.iter().map(|v| v * factor).collect();
        let source = Floats { values: &scaled, columns: COLUMNS };
        let method = Method { search: true, ..Method::plain(ty) };
        let rounding = Rounding::new(Isa::best(), &Executor::Serial, &source, &method).unwrap();
        let failed = rounding.panel(0, 16, &mut |_, _| Ok(())).unwrap_err();
        let want = if ty == Type::Int8 { "searched up to" } else { "beyond f16: the weights are too large" };
        assert!(failed.text().to_string().contains(want), "{}: {}", ty.name(), failed.text());
    }
}

fn cases(name: &str) -> Vec<Value> {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/vectors/{name}.json"));
    let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    all["cases"].as_array().unwrap().clone()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// The fixed rules of other tools, as those tools compute them: scales and codes show in the values.
#[test]
fn fixed_rules_are_those_of_their_tools() {
    use bitlinear::quantize::Kind;
    let mut seen = 0;
    for (file, filter) in
        [("cortex_ternary", "max"), ("burn_dragon_artifact", ""), ("ruvllm_ternary", ""), ("cortex_4bit", "")]
    {
        for case in cases(file) {
            let name = case["case"].as_str().unwrap();
            if case.get("input").is_none() || !name.ends_with(filter) {
                continue;
            }
            let input = floats(&case["input"]);
            let last = case.get("shape").and_then(|s| s.as_array()?.last()?.as_u64());
            let columns = last.map_or(input.len(), |n| n as usize);
            let source = Floats { values: &input, columns };
            let length = |key: &str| case[key].as_u64().unwrap() as usize;
            let method = match (file, case["encoding"].as_str()) {
                ("cortex_ternary", _) => Method { kind: Kind::Absmax, ..Method::plain(Type::Ternary) },
                (_, Some("binary1")) => Method { kind: Kind::Tensor, ..Method::plain(Type::Binary) },
                (_, Some("ternary2")) => Method::plain(Type::Ternary2),
                (_, Some(_)) => Method { kind: Kind::MeanRange, ..Method::plain(Type::Int8) },
                ("ruvllm_ternary", _) => {
                    Method { group: length("block_size"), ..Method::plain(Type::TernaryBlock) }
                }
                _ => Method { group: length("group_size"), ..Method::plain(Type::Int4) },
            };
            if file == "ruvllm_ternary" && columns == 6 {
                // One row in one block: the rule of groups aligned to rows is the same.
                let groups = Method { target: Type::Ternary, ..method };
                assert_eq!(rounded(&source, &groups), floats(&case["dequantized"]), "{name}");
            }
            assert_eq!(rounded(&source, &method), floats(&case["dequantized"]), "{file} {name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 4 + 18 + 7 + 7);
}
