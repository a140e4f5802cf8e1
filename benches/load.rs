//! How fast stored weights become panels: GB of the stored format a second, on one thread and on all.
//!
//! `cargo bench --bench load [-- FILTER...]`: a filter keeps the formats whose name contains it.
//! `BITLINEAR_BENCH_SECONDS` is the time for a format (default 0.5), `BITLINEAR_ISA` narrows the
//! instruction set, `BITLINEAR_BENCH_SHAPE=14336x4096` chooses the shape (out x in).
//!
//! The source lies in memory, as a mapped file does after it was read once; every round packs into fresh
//! memory, so that the time of the system's pages is in it, as in a program that loads a model. One thread
//! and all threads take turns; the shortest round of each counts. Last comes a model of many small layers:
//! the demo's, 211 of them.

use std::time::Instant;

use bitlinear::codec::bitnet_hf::{BitnetHf, WeightScale};
use bitlinear::codec::{self, Floats, Matrix};
use bitlinear::cpu::{self, Isa};
use bitlinear::error::Result;
use bitlinear::exec::{Executor, available};
use bitlinear::layer::{Linear, Options, Packer};
use bitlinear::memory::Heap;
use bitlinear::types::Type;

/// Formats, and the bits of a byte that may be set: none makes a scale that is not finite, nor the code 3
/// that HF BitNet does not have.
const FORMATS: [(Type, u8); 17] = [
    (Type::F32, 0xbf),
    (Type::F16, 0xbf),
    (Type::Bf16, 0xbf),
    (Type::Q8_0, 0xbf),
    (Type::Q6K, 0xbf),
    (Type::Q5K, 0xbf),
    (Type::Q5_0, 0xbf),
    (Type::Q4K, 0xbf),
    (Type::Q4_1, 0xbf),
    (Type::Q4_0, 0xbf),
    (Type::Q3K, 0xbf),
    (Type::Q2K, 0xbf),
    (Type::Tq2_0, 0xbf),
    (Type::I2S, 0xbf),
    (Type::BitnetHf, 0x55),
    (Type::Tq1_0, 0xbf),
    (Type::Q1_0, 0xbf),
];

/// Pseudo-random bytes.
fn noise(bytes: &mut [u8], mask: u8) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.iter_mut().zip(state.to_le_bytes()).for_each(|(byte, random)| *byte = random & mask);
    }
}

/// Bytes of a matrix in that format.
fn stored(ty: Type, rows: usize, columns: usize) -> Result<usize> {
    if ty == Type::BitnetHf {
        return Ok(rows.div_ceil(4) * columns);
    }
    Ok(match codec::stored(ty, rows, columns)? {
        codec::Stored::Rows(bytes) => rows * bytes,
        codec::Stored::Whole(bytes) => bytes,
    })
}

fn open<'a>(ty: Type, rows: usize, columns: usize, bytes: &'a [u8]) -> Result<Box<dyn Matrix + 'a>> {
    let scale = 0.5f32.to_le_bytes();
    Ok(match ty {
        Type::BitnetHf => Box::new(BitnetHf::new(
            rows,
            columns,
            bytes,
            Floats::new(Type::F32, &scale)?,
            WeightScale::Multiplies,
        )?),
        _ => codec::open(ty, rows, columns, bytes)?,
    })
}

/// The shortest time of each way, in seconds; they take turns for `budget` seconds.
fn shortest(budget: f64, ways: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let begin = Instant::now();
    let (mut best, mut rounds) = (vec![f64::MAX; ways.len()], 0);
    while rounds < 3 || begin.elapsed().as_secs_f64() < budget {
        for (way, best) in ways.iter_mut().zip(&mut best) {
            let start = Instant::now();
            way();
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    best
}

fn main() -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let budget = variable("BITLINEAR_BENCH_SECONDS").and_then(|s| s.parse().ok()).unwrap_or(0.5);
    let shape = variable("BITLINEAR_BENCH_SHAPE").unwrap_or_else(|| "14336x4096".into());
    let shape = shape.split_once('x').and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
    let (rows, columns) = shape.expect("BITLINEAR_BENCH_SHAPE: out x in");
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let isa = Isa::from_environment().expect("BITLINEAR_ISA");
    let executors = [Executor::Serial, Executor::with_threads(available())?];
    let load = |matrix: &dyn Matrix, heap: &Heap, executor: &Executor| {
        Linear::load(matrix, &Options::default(), &Packer { isa, heap, executor }, &|_| {}).expect("a layer")
    };
    println!("machine: {}, {}; {rows} x {columns}", cpu::name(), isa.name());
    println!("{:10} {:>8} {:>10} {:>12}", "format", "MB", "1 thread", format!("{} threads", available()));
    for (ty, mask) in FORMATS.into_iter().filter(|(ty, _)| wanted(ty.name())) {
        let mut bytes = vec![0; stored(ty, rows, columns)?];
        noise(&mut bytes, mask);
        let matrix = open(ty, rows, columns, &bytes)?;
        let heap = Heap::default();
        let times = shortest(
            budget,
            &mut [&mut || drop(load(&*matrix, &heap, &executors[0])), &mut || {
                drop(load(&*matrix, &heap, &executors[1]))
            }],
        );
        let rate = |seconds: f64| format!("{:.2} GB/s", bytes.len() as f64 / seconds / 1e9);
        let size = bytes.len() as f64 / 1e6;
        println!("{:10} {size:>8.1} {:>10} {:>12}", ty.name(), rate(times[0]), rate(times[1]));
    }
    if wanted("model") {
        let shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
        let shapes: Vec<(usize, usize)> =
            std::iter::repeat_n(shapes, 30).flatten().chain([(49_152, 576)]).collect();
        let sizes: Vec<usize> =
            shapes.iter().map(|&(n, k)| stored(Type::Q4_1, n, k)).collect::<Result<_>>()?;
        let mut bytes = vec![0; sizes.iter().sum()];
        noise(&mut bytes, 0xbf);
        let all = |executor: &Executor| {
            let heap = Heap::default();
            let mut rest = &bytes[..];
            let layers: Vec<Linear> = shapes
                .iter()
                .zip(&sizes)
                .map(|(&(n, k), &size)| {
                    let (bytes, after) = rest.split_at(size);
                    rest = after;
                    load(&*open(Type::Q4_1, n, k, bytes).expect("a matrix"), &heap, executor)
                })
                .collect();
            drop(layers);
        };
        let times = shortest(budget, &mut [&mut || all(&executors[0]), &mut || all(&executors[1])]);
        let time = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        println!(
            "model: {} layers of q4_1, {:.1} MB: {} on 1 thread, {} on {}",
            shapes.len(),
            bytes.len() as f64 / 1e6,
            time(times[0]),
            time(times[1]),
            available()
        );
    }
    Ok(())
}
