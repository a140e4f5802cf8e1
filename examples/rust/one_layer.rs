//! `one_layer FILE TENSOR`: y = x Wᵀ for one layer of a GGUF or safetensors file, x all ones. Uses the
//! crate itself; the C boundary is not involved.

use std::path::Path;
use std::process::ExitCode;

use bitlinear::container::{Access, Files};
use bitlinear::cpu::Isa;
use bitlinear::error::{Result, Status};
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;
use bitlinear::model::{Layers, Request};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let [_, file, tensor] = &words[..] else {
        eprintln!("usage: one_layer FILE TENSOR");
        return ExitCode::from(2);
    };
    match one_layer(Path::new(file), tensor) {
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

fn one_layer(file: &Path, tensor: &str) -> Result<String> {
    let files = Files::open(file, Access::Map)?;
    let Some(found) = files.directory.tensor(tensor.as_bytes()) else {
        return Err(bitlinear::error::Error::new(
            Status::NotFound,
            format_args!("no tensor is named `{tensor}`"),
        ));
    };
    let plan = Layers::of(&files)?.plan_tensor(&files, found, &Request::default())?;
    let matrix = plan.matrix()?;
    let heap = Heap::default();
    let isa = Isa::from_environment()?;
    let layer = Linear::new(&*matrix, &Options::default(), isa, &heap, &mut |_| {})?;

    let x = vec![1.0; layer.in_features()];
    let mut y = vec![0.0; layer.out_features()];
    let executor = Executor::default();
    let (from, to) = (MatrixRef::of(&x, x.len()), MatrixMut::of(&mut y, layer.out_features()));
    layer.forward(1, from, to, None, &heap, &executor)?;

    let first: Vec<String> = y.iter().take(8).map(|v| format!("{v:.6}")).collect();
    let kernel = layer.plan(1, &executor).kernel.name();
    Ok(format!("{} x {}, {kernel}\ny = {}", layer.out_features(), layer.in_features(), first.join(" ")))
}
