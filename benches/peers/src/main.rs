//! Measures bitlinear and its peers side by side. `make bench` in the project's root runs it; README.md
//! says how.

mod candle;
mod charts;
mod contestant;
mod files;
mod ggml;
mod limits;
mod measure;
mod onednn;
mod onnx;
mod ours;
mod programs;
mod report;
mod store;
mod targets;
mod weights;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures bitlinear and its peers side by side.")]
struct Line {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Products of one layer: limits, bitlinear and every peer, into a JSON file.
    Layers(measure::Arguments),
    /// A language model, whole: examples/c/llm and llama.cpp with the same file.
    Programs(programs::Arguments),
    /// Files that bitlinear quantised, in llama.cpp: both foretell the same text.
    Files(files::Arguments),
    /// Tables and charts of a JSON file.
    Report(report::Arguments),
}

fn main() {
    match Line::parse().what {
        What::Layers(arguments) => measure::run(&arguments),
        What::Programs(arguments) => programs::run(&arguments),
        What::Files(arguments) => files::run(&arguments),
        What::Report(arguments) => report::run(&arguments),
    }
}
