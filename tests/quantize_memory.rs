//! Quantising streams: beside the mapped source it holds far less than the largest tensor. Alone in its
//! process, so that what it measures is its own.
#![cfg(target_os = "linux")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bitlinear::container::{Access, Files, Kind, gguf};
use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::export::{Layers as Which, Options, Target, export};
use bitlinear::model::Layers;
use bitlinear::quantize::Kind as Rule;
use bitlinear::types::Type;

/// Bytes of anonymous memory that are resident.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn no_more_is_held_than_a_band_of_rows() {
    const ROWS: u64 = 8192;
    const COLUMNS: u64 = 2048;
    let folder = std::env::temp_dir().join(format!("bitlinear-memory-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let source = folder.join("source.gguf");
    let mut header = gguf::Header::new().unwrap();
    for name in ["a.weight", "b.weight"] {
        header.tensor(name.as_bytes(), Type::F32, &[ROWS, COLUMNS]).unwrap();
    }
    let data = header.data();
    {
        use std::io::Write;
        let mut file = std::io::BufWriter::new(std::fs::File::create(&source).unwrap());
        file.write_all(&header.finish().unwrap()).unwrap();
        for k in 0..data / 4 {
            file.write_all(&((k % 1009) as f32 / 500.0 - 1.0).to_le_bytes()).unwrap();
        }
    }
    let files = Files::open(&source, Access::Map).unwrap();
    let layers = Layers::of(&files).unwrap();
    let executor = Executor::with_threads(2).unwrap();
    for (ty, kind, search) in [
        (Type::Q8_0, Kind::Gguf, false),
        (Type::Q4K, Kind::Gguf, true),
        (Type::Ternary, Kind::Safetensors, false),
        (Type::Int4, Kind::Safetensors, true),
    ] {
        let options = Options {
            kind,
            target: Target { ty, group: 0, bases: 1, rule: Rule::Usual },
            fallback: None,
            layers: Which::All,
            patterns: &[],
            types: &[],
            rest: None,
            search,
            calibration: None,
            compensate: false,
            damping: 0.1,
            rotation: None,
            requantize: false,
            texts: &[],
            memory: 0,
        };
        let (done, most, before) = (AtomicBool::new(false), AtomicUsize::new(0), anonymous());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    most.fetch_max(anonymous(), Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
            let path = folder.join("target");
            export(&files, &layers, &path, &options, Isa::best(), &executor, &mut |_| true).unwrap();
            done.store(true, Ordering::Relaxed);
        });
        let held = most.into_inner().saturating_sub(before);
        let largest = (ROWS * COLUMNS * 4) as usize;
        println!("{}: {held} bytes, the largest tensor has {largest}", ty.name());
        // The bound is twice the largest tensor and 64 MiB; a tenth of that is enough.
        assert!(held < 16 << 20, "{}: {held} bytes", ty.name());
    }
    std::fs::remove_dir_all(folder).unwrap();
}
