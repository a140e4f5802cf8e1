//! Files that were not there before: random tensors by the `gguf` package, and a whole model.
//!
//! `BITLINEAR_TEST_PYTHON` names a Python that has `gguf` (else `python3`), `BITLINEAR_TEST_GGUF` a model.
//! What is missing is said on standard error; with `BITLINEAR_TEST_REQUIRE` listing `gguf-py` or
//! `demo-model` it is a failure.

use std::process::Command;

use crate::c::*;
use crate::data::{Random, assert_bits};
use crate::files::Folder;

/// Says that a test was not run, or fails where it is required.
fn not_run(what: &str, why: &str) {
    let required = std::env::var("BITLINEAR_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word.trim() == what), "{what} is required: {why}");
    eprintln!("NOT RUN: {what}: {why}");
}

#[test]
fn what_gguf_py_writes_is_read_bit_for_bit() {
    let folder = Folder::new("fresh");
    let path = folder.path().join("fresh.gguf");
    let python = std::env::var("BITLINEAR_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/fresh_gguf.py");
    let run = match Command::new(&python).arg(script).arg(&path).output() {
        Ok(run) => run,
        Err(e) => return not_run("gguf-py", &format!("{python}: {e}")),
    };
    let errors = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        assert!(errors.contains("ModuleNotFoundError"), "{python} {script}: {errors}");
        return not_run("gguf-py", &format!("{python} has no gguf package"));
    }
    println!("{}", String::from_utf8_lossy(&run.stdout));
    let model = Model::path(&path).unwrap();
    let (mut compared, mut refused) = (Vec::new(), Vec::new());
    for name in model.layers().iter().map(|l| &l.name) {
        let layer = match model.open(name, &options()) {
            Ok(layer) => layer,
            Err(failure) => {
                assert_eq!(failure.0, bl_status::BL_ERROR_UNSUPPORTED, "{failure:?}");
                assert!(!name.starts_with("quantised"), "{failure:?}");
                refused.push(name.clone());
                continue;
            }
        };
        let truth = model.open(&format!("truth.{name}"), &options()).unwrap().read();
        let weights = layer.read();
        if name.starts_with("quantised") {
            // -0 and 0: a product of a scale and a code 0 has the scale's sign in both.
            assert!(weights.iter().zip(&truth).all(|(w, t)| w == t), "{name}");
        } else {
            // Random scales may be infinite or NaN.
            let same = |w: &f32, t: &f32| w == t || w.is_nan() && t.is_nan();
            let differ = weights.iter().zip(&truth).position(|(w, t)| !same(w, t));
            assert!(differ.is_none(), "{name}: {:?}", differ.map(|i| (i, weights[i], truth[i])));
        }
        compared.push(name.clone());
    }
    println!("equal: {compared:?}; refused: {refused:?}");
    let quantised = compared.iter().filter(|name| name.starts_with("quantised")).count();
    assert!(quantised >= 10, "{compared:?}");
}

#[test]
fn a_model_opened_in_three_ways_gives_the_same_bits() {
    let Ok(path) = std::env::var("BITLINEAR_TEST_GGUF") else {
        return not_run("demo-model", "BITLINEAR_TEST_GGUF names no file");
    };
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) => return not_run("demo-model", &format!("{path}: {e}")),
    };
    let mapped = Model::path(&path).unwrap();
    let others = [Model::memory(&bytes, 0).unwrap(), Model::memory(&bytes, BL_LOAD_BORROW).unwrap()];
    let layers = mapped.layers();
    assert!(!layers.is_empty());
    let mut random = Random::new(3);
    for listed in &layers {
        let layer = mapped.open(&listed.name, &options()).unwrap();
        let x = random.weights(2 * layer.shape()[1]);
        let y = layer.forward(&x);
        assert!(y.iter().all(|y| y.is_finite()));
        for other in &others {
            let other = other.open(&listed.name, &options()).unwrap();
            assert_eq!(other.shape(), layer.shape());
            assert_bits(&other.forward(&x), &y, &listed.name);
        }
    }
    println!("{} layers of {path}", layers.len());
}
