//! How near one row of x comes to a plain reader of memory.
//!
//! `cargo bench --bench one_row [-- NAME...]`; NAME is one of those that it prints. A ring of layers of 2560 x 2560, far
//! larger than any cache, and a block of memory take turns: a layer is multiplied by one row of x, then as many bytes of
//! the block as the layer's file would have are read, one after another, and so on. Each pair is one ratio, and the median
//! of some thousand is printed: a virtual machine reads 20 to 40 GB/s from minute to minute, but both of a pair have the
//! same minute. One thread; BITLINEAR_ISA is heeded.

#[path = "common/synthetic.rs"]
mod synthetic;

use std::hint::black_box;
use std::time::Instant;

use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::layer::{Linear, Options};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Buffer, Heap};

use synthetic::{Case, cases, synthetic};

const OUT: usize = 2560;
const IN: usize = 2560;
/// Bytes of the ring.
const RING: usize = 192 << 20;
const ROUNDS: usize = 12;

/// Reads bytes as fast as a compiler lets it.
fn read(bytes: &[u8]) -> u64 {
    let mut all = [0u64; 32];
    for line in bytes.as_chunks::<8>().0.as_chunks::<32>().0 {
        for (all, word) in all.iter_mut().zip(line) {
            *all |= u64::from_le_bytes(*word);
        }
    }
    all.iter().fold(0, |a, b| a | b)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let isa = Isa::from_environment().expect("BITLINEAR_ISA names an instruction set of this CPU");
    let heap = Heap::default();
    println!("{:<8} {:>11} {:>9} {:>9}  of a plain reader", "", "us a layer", "GMAC/s", "GB/s");
    let wanted = |case: &Case| names.is_empty() || names.iter().any(|name| name == case.name);
    for Case { name, layout, stored } in cases().into_iter().filter(wanted) {
        let layer = || {
            let matrix = synthetic(layout, OUT, IN, 1);
            Linear::new(&matrix, &Options::default(), isa, &heap).expect("a layer")
        };
        let first = layer();
        let bytes = (stored * (OUT * IN) as f64) as usize / 256 * 256;
        let layers: Vec<Linear> = (0..RING.div_ceil(bytes)).map(|_| layer()).collect();
        let block = {
            let mut block = Buffer::zeroed(bytes * layers.len(), "bench").expect("memory");
            block.bytes_mut().fill(1);
            block
        };
        let x: Vec<f32> = (0..IN).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let mut y = vec![0f32; OUT];
        let mut room =
            Buffer::zeroed(first.plan(1, &Executor::Serial).workspace + 64, "bench").expect("memory");
        let (mut ratios, mut times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (layer, part) in layers.iter().zip(block.bytes().chunks_exact(bytes)) {
                let begin = Instant::now();
                let (x, y) = (MatrixRef::of(black_box(&x), IN), MatrixMut::of(&mut y, OUT));
                layer.forward(1, x, y, Some(room.bytes_mut()), &heap, &Executor::Serial).expect("forward");
                let multiplied = begin.elapsed().as_secs_f64();
                let begin = Instant::now();
                black_box(read(black_box(part)));
                ratios.push(begin.elapsed().as_secs_f64() / multiplied);
                times.push(multiplied);
            }
        }
        let (ratio, time) = (median(&mut ratios), median(&mut times));
        let rate = |n: usize| n as f64 / time / 1e9;
        println!("{name:<8} {:>11.1} {:>9.1} {:>9.1}  {ratio:.2}", time * 1e6, rate(OUT * IN), rate(bytes));
    }
}
