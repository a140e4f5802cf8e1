//! `one_layer FILE LAYER`: y = x Wᵀ + b for one layer of a GGUF or safetensors file, x all ones. Uses the
//! crate itself; the C boundary is not involved.

use std::path::Path;
use std::process::ExitCode;

use bitlinear::container::{Access, Files};
use bitlinear::cpu::Isa;
use bitlinear::error::Result;
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::model::{Layers, Request};
use bitlinear::norm;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let [_, file, name] = &words[..] else {
        eprintln!("usage: one_layer FILE LAYER");
        return ExitCode::from(2);
    };
    match one_layer(Path::new(file), name) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error} ({:?})", error.status());
            ExitCode::FAILURE
        }
    }
}

fn one_layer(file: &Path, name: &str) -> Result<String> {
    let files = Files::open(file, Access::Map)?;
    let plan = Layers::of(&files)?.plan_named(&files, name.as_bytes(), &Request::default())?;
    let matrix = plan.matrix()?;
    let heap = Heap::default();
    let isa = Isa::from_environment()?;
    // What the file has beside the weights.
    let (bias, weight) = (plan.bias()?, plan.norm()?);
    let norm = |epsilon| norm::Spec { kind: norm::Kind::Rms, epsilon, weight: weight.as_deref(), bias: None };
    let options = Options {
        product_scale: plan.product_scale,
        bias: bias.as_deref(),
        norm: plan.norm_epsilon().map(norm),
        rotation: plan.rotation.as_ref().map(|rotation| rotation.spec()),
        ..Options::default()
    };
    let layer = Linear::new(&*matrix, &options, isa, &heap)?;

    let x = vec![1.0; layer.in_features()];
    let mut y = vec![0.0; layer.out_features()];
    let executor = Executor::default();
    let (from, to) = (MatrixRef::of(&x, x.len()), MatrixMut::of(&mut y, layer.out_features()));
    layer.forward(1, from, to, None, &heap, &executor)?;

    let first: Vec<String> = y.iter().take(8).map(|v| format!("{v:.6}")).collect();
    let kernel = layer.plan(1, &executor).kernel.name();
    Ok(format!("{} x {}, {kernel}\ny = {}", layer.out_features(), layer.in_features(), first.join(" ")))
}
