//! Quantised model files: what is in them, what of the source is kept, who reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitlinear::codec;
use bitlinear::container::{Access, Files, Kind, Value};
use bitlinear::cpu::Isa;
use bitlinear::error::{Result, Status};
use bitlinear::exec::Executor;
use bitlinear::export::{Layers as Which, Options, Progress, Report, Target, export};
use bitlinear::layout::{Matrix, Row};
use bitlinear::model::{Layers, Request};
use bitlinear::quantize::{Calibration, Kind as Rule};
use bitlinear::types::Type;

const GOLDEN: &str = "tests/data/golden/ggml_all_64x512.gguf";

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bitlinear-quantize-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn to(ty: Type) -> Target {
    Target { ty, group: 0, bases: 0, rule: Rule::Usual }
}

fn options(kind: Kind, target: Target) -> Options<'static> {
    Options {
        kind,
        target,
        fallback: None,
        layers: Which::Patterns,
        patterns: &["blk.0.f32"],
        types: &[],
        rest: None,
        search: false,
        calibration: None,
        compensate: false,
        damping: 0.01,
        rotation: None,
        requantize: false,
        texts: &[],
        memory: 0,
    }
}

fn run(source: &Files, path: &Path, options: &Options<'_>) -> Result<Report> {
    let layers = Layers::of(source).unwrap();
    let executor = Executor::with_threads(2).unwrap();
    export(source, &layers, path, options, Isa::best(), &executor, &mut |_| true)
}

fn open(path: &Path) -> Files {
    Files::open(path, Access::Read).unwrap()
}

/// All weights of a layer.
fn weights(files: &Files, layer: &str) -> Vec<f32> {
    let layers = Layers::of(files).unwrap();
    let found = layers.find(layer.as_bytes(), None).unwrap().unwrap_or_else(|| panic!("no layer {layer}"));
    let plan = layers.plan(files, found, &Request { all_slices: true, ..Request::default() }).unwrap();
    read(&*plan.matrix().unwrap())
}

fn read(matrix: &dyn Matrix) -> Vec<f32> {
    let (layout, columns) = (matrix.layout(), matrix.in_features());
    let mut row = Row::new(layout, columns).unwrap();
    let mut out = Vec::new();
    for index in 0..matrix.out_features() {
        matrix.read_row(index, &mut row).unwrap();
        out.extend((0..columns).map(|k| row.weight(&layout, k)));
    }
    out
}

/// Metadata as texts; arrays item by item.
fn metadata(files: &Files) -> BTreeMap<String, String> {
    let text = |s| String::from_utf8_lossy(files.directory.texts.get(s)).into_owned();
    let entry = |value: Value| match value {
        Value::String(s) => text(s),
        Value::Array(array) => {
            let items = (0..array.count).map(|i| match files.item(&array, i) {
                Some(Value::String(s)) => text(s),
                other => format!("{other:?}"),
            });
            format!("{:?} {:?}", array.item, items.collect::<Vec<_>>())
        }
        other => format!("{other:?}"),
    };
    files.directory.metadata.iter().map(|meta| (text(meta.key), entry(meta.value))).collect()
}

const GGUF: [Type; 24] = [
    Type::F32,
    Type::F16,
    Type::Bf16,
    Type::Q4_0,
    Type::Q4_1,
    Type::Q5_0,
    Type::Q5_1,
    Type::Q8_0,
    Type::Q2K,
    Type::Q3K,
    Type::Q4K,
    Type::Q5K,
    Type::Q6K,
    Type::Tq1_0,
    Type::Tq2_0,
    Type::Q1_0,
    Type::Q2_0,
    Type::Pq2_0,
    Type::Ptq1_0,
    Type::Mxfp4,
    Type::I2S,
    Type::Q4_0,
    Type::Q5_1,
    Type::Tq2_0,
];

/// Every type of GGUF files: the layer has the bytes of its rule, everything else is what it was.
#[test]
fn gguf_keeps_all_but_what_is_quantised() {
    let source = open(&golden(GOLDEN));
    let input = weights(&source, "blk.0.f32");
    for (n, ty) in GGUF.into_iter().enumerate() {
        let path = scratch(&format!("{n}.gguf"));
        let search = n >= 21 || matches!(ty, Type::Q2K | Type::Q3K | Type::Q4K | Type::Q5K | Type::Q6K);
        let options = Options { search, texts: &[("made.by", "a test")], ..options(Kind::Gguf, to(ty)) };
        let report = run(&source, &path, &options).unwrap();
        assert_eq!((report.quantized, report.weights), (1, 64 * 512));
        assert_eq!(report.bytes_written, std::fs::metadata(&path).unwrap().len());
        let made = open(&path);
        let names = |files: &Files| {
            let directory = &files.directory;
            directory.tensors.iter().map(|t| directory.name(t).to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(names(&made), names(&source), "tensors in their order");
        for tensor in &source.directory.tensors {
            let name = source.directory.name(tensor);
            let other = made.directory.tensor(name).unwrap();
            assert_eq!(other.shape, tensor.shape);
            if name == b"blk.0.f32.weight" {
                assert_eq!(other.ty, ty);
            } else {
                assert_eq!(other.ty, tensor.ty);
                assert_eq!(made.bytes(other), source.bytes(tensor));
            }
        }
        let (mut was, mut is) = (metadata(&source), metadata(&made));
        assert_eq!(is.remove("made.by").unwrap(), "a test");
        assert_eq!(is.remove("general.quantization_version").unwrap(), "U64(2)");
        let number = is.remove("general.file_type");
        let has_number = !matches!(ty, Type::Pq2_0 | Type::Ptq1_0);
        assert_eq!(number.is_some(), has_number, "{}", ty.name());
        for key in ["general.alignment", "general.quantization_version", "general.file_type"] {
            was.remove(key);
        }
        assert_eq!(is, was);
        // The bytes are those of the format's own rule.
        let tensor = made.directory.tensor("blk.0.f32.weight").unwrap();
        if !search && ty != Type::I2S {
            let codec = codec::find(ty).unwrap();
            let row_bytes = codec.row_bytes(512);
            for (w, bytes) in input.chunks(512).zip(made.bytes(tensor).chunks(row_bytes)) {
                let mut want = vec![0; row_bytes];
                codec.encode_row(w, &mut want).unwrap();
                assert_eq!(bytes, want, "{}", ty.name());
            }
        }
        let back = weights(&made, "blk.0.f32");
        let error = |back: &[f32]| input.iter().zip(back).map(|(a, b)| (a - b).powi(2) as f64).sum::<f64>();
        let size = error(&vec![0.0; input.len()]);
        assert!(error(&back) < 0.9 * size, "{}: {}", ty.name(), error(&back) / size);
        std::fs::remove_file(path).unwrap();
    }
}

/// Ternary codes of one rule are the same whatever file they are in.
#[test]
fn ternary_formats_hold_the_same_weights() {
    let source = open(&golden(GOLDEN));
    let mut found: Vec<Vec<f32>> = Vec::new();
    for (kind, ty) in [
        (Kind::Safetensors, Type::Ternary),
        (Kind::Safetensors, Type::BitnetHf),
        (Kind::Gguf, Type::I2S),
        (Kind::Packed, Type::Ternary),
    ] {
        let path = scratch(&format!("ternary-{}-{}", kind as u32, ty.name()));
        let mut options = options(kind, to(ty));
        if kind != Kind::Gguf {
            // Types that only GGUF has cannot be copied to safetensors.
            let one = scratch("one.gguf");
            only_f32(&source, &one);
            let report = run(&open(&one), &path, &options).unwrap();
            assert_eq!(report.quantized, 1);
        } else {
            options.texts = &[("general.architecture", "bitnet-b1.58")];
            run(&source, &path, &options).unwrap();
        }
        let made = open(&path);
        if kind == Kind::Packed {
            let files = std::sync::Arc::new(Kept(made));
            let tensor = files.directory.tensor("blk.0.f32").unwrap();
            let saved = bitlinear::model::saved(&files, tensor, &bitlinear::memory::Heap::default());
            found.push(read(&saved.unwrap().unwrap().packed));
        } else if ty == Type::BitnetHf {
            // What weight_scale means stands in config.json, or is said.
            let layers = Layers::of(&made).unwrap();
            let layer = layers.find(b"blk.0.f32", None).unwrap().unwrap();
            let meaning = Some(codec::bitnet_hf::WeightScale::Multiplies);
            let request = Request { weight_scale: meaning, ..Request::default() };
            found.push(read(&*layers.plan(&made, layer, &request).unwrap().matrix().unwrap()));
        } else {
            found.push(weights(&made, "blk.0.f32"));
        }
    }
    assert!(found.iter().all(|weights| weights == &found[0]));
    assert!(found[0].contains(&0.0) && found[0].iter().any(|w| *w > 0.0));
}

struct Kept(Files);
impl std::ops::Deref for Kept {
    type Target = Files;
    fn deref(&self) -> &Files {
        &self.0
    }
}

/// A GGUF of the golden file's f32 tensors alone.
fn only_f32(source: &Files, path: &Path) {
    let mut header = bitlinear::container::gguf::Header::new().unwrap();
    let mut data = Vec::new();
    for tensor in source.directory.tensors.iter().filter(|t| t.ty == Type::F32) {
        let shape = &tensor.shape[..tensor.dims as usize];
        let (at, bytes) = header.tensor(source.directory.name(tensor), tensor.ty, shape).unwrap();
        data.resize(at as usize, 0);
        data.extend_from_slice(source.bytes(tensor));
        assert_eq!(data.len() as u64, at + bytes);
    }
    let mut file = header.finish().unwrap();
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

/// Folded weights with their declaration are the weights that they were, but for rounding.
#[test]
fn rotated_files_declare_their_rotation() {
    let source = open(&golden(GOLDEN));
    for seed in [0, 7] {
        let path = scratch(&format!("rotated-{seed}.gguf"));
        let options = Options { rotation: Some((64, seed)), ..options(Kind::Gguf, to(Type::Q8_0)) };
        run(&source, &path, &options).unwrap();
        let made = open(&path);
        let layers = Layers::of(&made).unwrap();
        let layer = layers.find(b"blk.0.f32", None).unwrap().unwrap();
        let plan = layers.plan(&made, layer, &Request::default()).unwrap();
        let declared = plan.rotation.as_ref().expect("a rotation").spec();
        assert_eq!(declared.block, 64);
        assert_eq!(declared.signs.is_some(), seed != 0);
        let rotation = bitlinear::rotation::Rotation::new(&declared, 512).unwrap();
        let mut back = read(&*plan.matrix().unwrap());
        back.chunks_mut(512).for_each(|row| rotation.invert(Isa::best(), row));
        let want = weights(&source, "blk.0.f32");
        let worst = want.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 0.03, "{worst}");
        // Others are not rotated.
        let other = layers.find(b"blk.0.f16", None).unwrap().unwrap();
        assert!(layers.plan(&made, other, &Request::default()).unwrap().rotation.is_none());
        // A rotated file is not rotated again.
        let again = run(&made, &scratch("again.gguf"), &Options { requantize: true, ..options });
        assert!(again.is_err_and(|e| e.text().contains("rotated already")));
    }
}

/// Types by pattern, fallback, the precision of the rest, and what is refused.
#[test]
fn options_choose_what_becomes_of_each_layer() {
    let one = scratch("choose.gguf");
    only_f32(&open(&golden(GOLDEN)), &one);
    let source = open(&one);
    let path = scratch("chosen.gguf");
    let ty = |layer: &str| open(&path).directory.tensor(format!("{layer}.weight")).unwrap().ty;

    let base = options(Kind::Gguf, to(Type::Q8_0));
    run(&source, &path, &Options { layers: Which::All, patterns: &[], ..base }).unwrap();
    assert_eq!(ty("blk.0.f32"), Type::Q8_0);
    let base = options(Kind::Gguf, to(Type::Q8_0));
    run(&source, &path, &Options { layers: Which::Experts, patterns: &[], rest: Some(Type::F16), ..base })
        .unwrap();
    assert_eq!(ty("blk.0.f32"), Type::F16);
    let base = options(Kind::Gguf, to(Type::Q8_0));
    run(&source, &path, &Options { types: &[("f32", to(Type::Q5_1))], ..base }).unwrap();
    assert_eq!(ty("blk.0.f32"), Type::Q5_1);

    let refused = |options: Options<'_>, status: Status, part: &str| {
        let error = run(&source, &scratch("refused"), &options).unwrap_err();
        assert_eq!(error.status(), status, "{}", error.text());
        assert!(error.text().contains(part), "{part}: {}", error.text());
        assert!(!scratch("refused").exists());
    };
    let base = || options(Kind::Gguf, to(Type::Q8_0));
    refused(Options { patterns: &[], ..base() }, Status::InvalidArgument, "no pattern");
    refused(Options { layers: Which::All, ..base() }, Status::InvalidArgument, "not chosen by them");
    refused(Options { compensate: true, ..base() }, Status::InvalidArgument, "needs calibration");
    refused(Options { memory: 1000, ..base() }, Status::OutOfMemory, "blk.0.f32");
    refused(
        options(Kind::Safetensors, to(Type::Q4K)),
        Status::Unsupported,
        "q4_k is no format of safetensors",
    );
    refused(options(Kind::Gguf, to(Type::Ternary)), Status::Unsupported, "ternary is no format of GGUF");
    refused(options(Kind::Gguf, to(Type::Iq1S)), Status::Unsupported, "cannot be written");
    refused(options(Kind::Artifact, to(Type::Int8)), Status::NotFound, "decoder_x, decoder_y and encoder");
    let rotated = Options { rotation: Some((64, 1)), ..options(Kind::Safetensors, to(Type::Ternary)) };
    refused(rotated, Status::Unsupported, "no place for a rotation");
    let packed = open(&golden(GOLDEN));
    let error = run(
        &packed,
        &scratch("refused"),
        &Options { patterns: &["q4_0"], ..options(Kind::Gguf, to(Type::Q8_0)) },
    );
    assert!(error.is_err_and(|e| e.text().contains("q4_0 already")));

    // Stopped: there is no file, and the one that was there is whole.
    std::fs::write(scratch("stopped"), b"old").unwrap();
    let layers = Layers::of(&source).unwrap();
    let mut seen = 0;
    let stopped = export(
        &source,
        &layers,
        &scratch("stopped"),
        &options(Kind::Gguf, to(Type::Q8_0)),
        Isa::best(),
        &Executor::Serial,
        &mut |progress: &Progress<'_>| {
            seen += 1;
            assert_eq!(progress.done + 1, seen);
            progress.done + 1 < progress.total
        },
    );
    assert_eq!(stopped.unwrap_err().status(), Status::Cancelled);
    assert_eq!(std::fs::read(scratch("stopped")).unwrap(), b"old");
    let folder = scratch("stopped").parent().unwrap().to_path_buf();
    // Other tests write here too.
    let left = std::fs::read_dir(folder).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with("stopped") && name.ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

/// Calibration goes to a file and comes back; what it knows is used.
#[test]
fn calibration_is_kept_and_used() {
    let one = scratch("calibrated-source.gguf");
    only_f32(&open(&golden(GOLDEN)), &one);
    let source = open(&one);
    let x: Vec<f32> =
        (0..400 * 512).map(|k| ((k * 7919 + k / 512 * 31) % 1009) as f32 / 500.0 - 1.0).collect();
    let mut calibration = Calibration::new(128, u64::MAX, 1 << 24);
    for rows in x.chunks(100 * 512) {
        let read = |r: usize, out: &mut [f32]| out.copy_from_slice(&rows[r * 512..][..512]);
        calibration.add(Isa::best(), "blk.0.f32.weight", 512, 100, &read).unwrap();
    }
    let kept = scratch("calibration.safetensors");
    calibration.save(Isa::best(), &kept).unwrap();
    let again = Calibration::open(&kept).unwrap();
    let (a, b) = (calibration.find("blk.0.f32").unwrap(), again.find("blk.0.f32.weight").unwrap());
    assert_eq!((a.sums(), a.count(), a.block()), (b.sums(), 400, 128));

    let input = weights(&source, "blk.0.f32");
    let mut errors = Vec::new();
    for (calibration, compensate) in [(None, false), (Some(&again), true)] {
        let path = scratch("calibrated.gguf");
        let options =
            Options { search: true, calibration, compensate, ..options(Kind::Gguf, to(Type::Q4_0)) };
        let report = run(&source, &path, &options).unwrap();
        assert_eq!(report.calibrated, compensate as u64);
        let back = weights(&open(&path), "blk.0.f32");
        let mut error = 0.0;
        for x in x.chunks(512) {
            for (w, v) in input.chunks(512).zip(back.chunks(512)) {
                let dot: f32 = x.iter().zip(w.iter().zip(v)).map(|(x, (w, v))| x * (w - v)).sum();
                error += (dot as f64).powi(2);
            }
        }
        errors.push(error);
    }
    assert!(errors[1] < 0.8 * errors[0], "{errors:?}");

    let missing = Options {
        search: true,
        calibration: Some(&again),
        compensate: true,
        patterns: &["bias", "f32"],
        types: &[("none", to(Type::Q8_0))],
        ..options(Kind::Gguf, to(Type::Q4_0))
    };
    assert!(run(&source, &scratch("calibrated.gguf"), &missing).is_ok());
    let full = Calibration::new(2048, u64::MAX, 1000).add(Isa::best(), "x", 512, 1, &|_, out| out.fill(1.0));
    assert_eq!(full.unwrap_err().status(), Status::OutOfMemory);
    for cut in [0, 5, 100, std::fs::metadata(&kept).unwrap().len() as usize - 1] {
        let bytes = std::fs::read(&kept).unwrap();
        std::fs::write(scratch("cut"), &bytes[..cut]).unwrap();
        assert!(Calibration::open(&scratch("cut")).is_err(), "{cut}");
    }
}

/// gguf-py and safetensors read what is written: names, types, shapes, values.
#[test]
fn other_readers_read_what_is_written() {
    let Some(python) = std::env::var_os("BITLINEAR_TEST_PYTHON") else {
        let needed = std::env::var_os("BITLINEAR_REQUIRE_TOOLS").is_some_and(|v| v == "1");
        assert!(!needed, "BITLINEAR_TEST_PYTHON has to name a Python with gguf and safetensors");
        println!("not run: BITLINEAR_TEST_PYTHON names a Python with gguf and safetensors");
        return;
    };
    let one = scratch("others-source.gguf");
    only_f32(&open(&golden(GOLDEN)), &one);
    let source = open(&one);
    let mut files = Vec::new();
    let known = [
        "f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
        "tq1_0", "tq2_0", "mxfp4",
    ];
    for ty in GGUF.into_iter().take(20).filter(|ty| known.contains(&ty.name())) {
        let path = scratch(&format!("others-{}.gguf", ty.name()));
        let search = matches!(ty, Type::Q2K | Type::Q3K | Type::Q4K | Type::Q5K | Type::Q6K);
        run(&source, &path, &Options { search, ..options(Kind::Gguf, to(ty)) }).unwrap();
        files.push((
            path,
            "blk.0.f32.weight",
            weights(&open(&scratch(&format!("others-{}.gguf", ty.name()))), "blk.0.f32"),
        ));
    }
    assert_eq!(files.len(), known.len());
    for (ty, bases) in [(Type::Ternary, 1), (Type::Ternary, 3), (Type::Int4, 0), (Type::Bf16, 0)] {
        let path = scratch(&format!("others-{}-{bases}.safetensors", ty.name()));
        let target = Target { bases, ..to(ty) };
        run(&source, &path, &options(Kind::Safetensors, target)).unwrap();
        let values = weights(&open(&path), "blk.0.f32");
        files.push((path, "blk.0.f32", values));
    }
    let path = scratch("others-bitnet.safetensors");
    run(&source, &path, &options(Kind::Safetensors, to(Type::BitnetHf))).unwrap();
    files.push((path, "blk.0.f32", weights(&open(&scratch("others-ternary-1.safetensors")), "blk.0.f32")));
    let mut command = Command::new(python);
    command.arg(golden("tests/read_quantized.py"));
    for (path, name, values) in &files {
        let truth = path.with_extension("truth");
        std::fs::write(&truth, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        command.arg(path).arg(name).arg(truth);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().filter(|l| l.starts_with("same ")).count(), files.len(), "{text}");
}

/// The same through the C interface: calibrated, compensated, reported and compared.
#[test]
fn the_c_interface_does_all_of_it() {
    use bitlinear::capi::calibration::*;
    use bitlinear::capi::compare::*;
    use bitlinear::capi::context::bl_free;
    use bitlinear::capi::enums::{TypeArg, bl_status};
    use bitlinear::capi::model::bl_load;
    use bitlinear::capi::quantize::*;
    use bitlinear::capi::types::bl_error;
    use std::ffi::CString;
    use std::ptr::{null, null_mut};

    let source = CString::new(golden(GOLDEN).to_str().unwrap()).unwrap();
    let target = CString::new(scratch("c.gguf").to_str().unwrap()).unwrap();
    let layer = CString::new("blk.0.f32").unwrap();
    let x: Vec<f32> =
        (0..600 * 512u64).map(|k| ((k * 7919 + k / 512 * 31) % 1009) as f32 / 500.0 - 1.0).collect();
    // SAFETY: all zeros is a value of each struct; pointers are to locals, or what the library gave.
    unsafe {
        let mut error: bl_error = std::mem::zeroed();
        let check = |status: bl_status, error: &bl_error| {
            let text = std::ffi::CStr::from_ptr(error.message.as_ptr());
            assert_eq!(status, bl_status::BL_OK, "{}", text.to_string_lossy());
        };
        let (mut model, mut made, mut known) = (null_mut(), null_mut(), null_mut());
        check(bl_load(null(), source.as_ptr(), null(), &mut model, &mut error), &error);
        check(bl_calibration_create(null(), null(), &mut known, &mut error), &error);
        let ty = TypeArg(Type::F32 as u32);
        let rows = x.as_ptr().cast();
        check(bl_calibrate(known, layer.as_ptr(), 600, 512, rows, ty, 0, &mut error), &error);
        let patterns = [layer.as_ptr()];
        let mut options: bl_quantize_options = std::mem::zeroed();
        options.struct_size = size_of::<bl_quantize_options>() as u32;
        options.r#type = TypeArg(Type::Q4K as u32);
        options.layers = LayersArg(2);
        options.patterns = patterns.as_ptr();
        options.pattern_count = 1;
        options.calibration = known;
        options.flags = BL_QUANTIZE_COMPENSATE;
        let mut report: bl_quantize_report = std::mem::zeroed();
        report.struct_size = size_of::<bl_quantize_report>() as u32;
        check(bl_model_quantize(model, target.as_ptr(), &options, &mut report, &mut error), &error);
        assert_eq!((report.quantized, report.calibrated, report.fallback), (1, 1, 0));
        assert_eq!(report.bytes_written, std::fs::metadata(scratch("c.gguf")).unwrap().len());
        check(bl_load(null(), target.as_ptr(), null(), &mut made, &mut error), &error);
        let mut lost: bl_model_difference_info = std::mem::zeroed();
        lost.struct_size = size_of::<bl_model_difference_info>() as u32;
        check(bl_model_compare(model, made, layer.as_ptr(), &mut lost, &mut error), &error);
        assert_eq!((lost.bytes_reference, lost.bytes_other), (64 * 512 * 4, 64 * 2 * 144));
        assert!(lost.relative_error > 0.01 && lost.relative_error < 0.3 && lost.cosine > 0.95);
        assert!((lost.compression - 32.0 / 4.5).abs() < 1e-9);
        // Another layer is what it was.
        let other = CString::new("blk.0.q6_k").unwrap();
        check(bl_model_compare(model, made, other.as_ptr(), &mut lost, &mut error), &error);
        assert_eq!((lost.max_error, lost.relative_error, lost.compression), (0.0, 0.0, 1.0));
        bl_free(known.cast());
        bl_free(made.cast());
        bl_free(model.cast());
    }
}

/// A safetensors file of f32 arrays.
fn safetensors(arrays: &[(&str, Vec<u64>, Vec<f32>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in arrays {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.to_string(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The weights, bytes and scales of burn_dragon's own artifacts.
#[test]
fn artifacts_are_burn_dragons() {
    let text = std::fs::read_to_string(golden("tests/data/vectors/burn_dragon_artifact.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
    let case = |name: &str| vectors["cases"].as_array().unwrap().iter().find(|c| c["case"] == name).unwrap();
    let floats = |v: &serde_json::Value| -> Vec<f32> {
        v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let input = floats(&case("seed_cache_w_int8")["input"]);
    let other = vec![1.0f32; 4];
    let source = scratch("arrays.safetensors");
    let arrays = [
        ("decoder_x", vec![1, 3, 4], input.clone()),
        ("decoder_y", vec![2, 3, 2], input.clone()),
        ("encoder", vec![6, 2], input),
        ("embed", vec![2, 2], other),
    ];
    std::fs::write(&source, safetensors(&arrays)).unwrap();
    let (source, path) = (open(&source), scratch("artifact.json"));
    let types = [("decoder_x", to(Type::Int8)), ("decoder_y", to(Type::Binary))];
    let base =
        || Options { types: &types, patterns: &["encoder"], ..options(Kind::Artifact, to(Type::Ternary2)) };
    let report = run(&source, &path, &base()).unwrap();
    assert_eq!((report.quantized, report.weights), (3, 36));

    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report.bytes_written, std::fs::metadata(&path).unwrap().len());
    let read = open(&path);
    for (name, encoding, shape) in [
        ("decoder_x", "int8", vec![1, 3, 4]),
        ("decoder_y", "sign1", vec![2, 3, 2]),
        ("encoder", "ternary2", vec![6, 2]),
    ] {
        let want = case(&format!("seed_cache_w_{encoding}"));
        let hex = want["packed_hex"].as_str().unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let got = &written[name];
        assert_eq!(got["encoding"], want["encoding"], "{name}");
        assert_eq!(got["logical_shape"], serde_json::json!(shape), "{name}");
        assert_eq!(got["len"], 12, "{name}");
        assert_eq!(got["packed"], serde_json::json!(bytes), "{name}");
        let scale = |v: &serde_json::Value| v.as_f64().unwrap() as f32;
        assert_eq!(scale(&got["scale"]), scale(&want["scale"]), "{name}");
        assert_eq!(read.bytes(read.directory.tensor(name.as_bytes()).unwrap()), bytes, "{name}");
    }

    // What is not chosen is null, and is not read back.
    run(&source, &path, &Options { types: &[], ..base() }).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(written["decoder_x"].is_null() && written["encoder"].is_object());

    let refused = |options: Options<'_>, part: &str| {
        let error = run(&source, &scratch("refused.json"), &options).unwrap_err();
        assert!(error.text().contains(part), "{part}: {}", error.text());
        assert!(!scratch("refused.json").exists());
    };
    refused(Options { search: true, ..base() }, "fixed rules");
    refused(Options { rotation: Some((2, 0)), ..base() }, "no place for a rotation");
    refused(Options { target: to(Type::Ternary), ..base() }, "encoder: ternary is no encoding");
    refused(Options { target: Target { rule: Rule::Absmax, ..to(Type::Ternary2) }, ..base() }, "one rule");
    refused(Options { memory: 8, ..base() }, "decoder_x: 60 bytes are needed");
}

/// A file of calibration holds what it is given, or it is refused then.
#[test]
fn calibration_that_could_not_be_read_back_is_refused() {
    let isa = Isa::best();
    let folder = scratch("calibrations");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("kept.safetensors");
    let mut calibration = Calibration::new(4, u64::MAX, 1 << 20);
    let rows = |values: &'static [f32]| move |r: usize, out: &mut [f32]| out.fill(values[r]);
    let refused = |result: Result<()>, part: &str| {
        let error = result.unwrap_err();
        assert!(error.status() == Status::InvalidArgument && error.text().contains(part), "{error}");
    };
    calibration.add(isa, "a", 8, 1, &rows(&[1e18])).unwrap();
    // Squares beyond f32, of one row and of many; none of them is counted.
    refused(calibration.add(isa, "a", 8, 2, &rows(&[1.0, 2e19])), "row 1");
    refused(calibration.add(isa, "a", 8, 2, &rows(&[1.2e19, -1.2e19])), "scale x down");
    refused(calibration.add(isa, "new", 8, 1, &rows(&[2e19])), "scale x down");
    for _ in 0..100 {
        calibration.add(isa, "a", 8, 1, &rows(&[1e18])).unwrap();
    }
    assert_eq!(calibration.find("a").unwrap().count(), 101);
    refused(calibration.add(isa, "a", 8, 1, &rows(&[1.2e19])), "scale x down");
    // Keys of the file, and of other files.
    refused(calibration.add(isa, "calibration.format", 8, 1, &rows(&[1.0])), "calibration.format");
    refused(calibration.add(isa, "calibration.format.weight", 8, 1, &rows(&[1.0])), "calibration.format");
    calibration.add(isa, "bitlinear.0.weight", 8, 1, &rows(&[1.0])).unwrap();
    calibration.save(isa, &path).unwrap();
    // A model's files in the same folder say nothing about it.
    std::fs::write(folder.join("config.json"), "[1]").unwrap();
    let mut again = Calibration::open(&path).unwrap();
    assert_eq!(again.names().collect::<Vec<_>>(), ["a", "bitlinear.0"]);
    assert_eq!(again.find("a").unwrap().sums(), calibration.find("a").unwrap().sums());
    refused(again.add(isa, "a", 8, 1, &rows(&[1.2e19])), "scale x down");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Whoever is told of the progress may use the calibration meanwhile; the call keeps what it began with.
#[test]
fn calibration_may_be_used_while_it_quantises() {
    use bitlinear::capi::calibration::*;
    use bitlinear::capi::context::bl_free;
    use bitlinear::capi::enums::{TypeArg, bl_status};
    use bitlinear::capi::model::bl_load;
    use bitlinear::capi::quantize::*;
    use bitlinear::capi::types::bl_error;
    use std::ffi::{CString, c_void};
    use std::ptr::{null, null_mut};

    unsafe extern "C" fn progress(calibration: *mut c_void, _: *const bl_quantize_progress) -> i32 {
        let (layer, kept) = (c"blk.0.f32", CString::new(scratch("meanwhile").to_str().unwrap()).unwrap());
        let (calibration, x) = (calibration.cast::<bl_calibration>(), [3.0f32; 512]);
        // SAFETY: the calibration is alive; the others are locals.
        unsafe {
            let mut info: bl_calibration_info = std::mem::zeroed();
            info.struct_size = size_of::<bl_calibration_info>() as u32;
            let ty = TypeArg(Type::F32 as u32);
            [
                bl_calibration_describe(calibration, layer.as_ptr(), &mut info, null_mut()),
                bl_calibrate(calibration, layer.as_ptr(), 1, 512, x.as_ptr().cast(), ty, 0, null_mut()),
                bl_calibration_save(calibration, kept.as_ptr(), null_mut()),
            ]
            .iter()
            .any(|status| *status != bl_status::BL_OK)
            .into()
        }
    }

    let (done, is_done) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let source = CString::new(golden(GOLDEN).to_str().unwrap()).unwrap();
        let paths = ["meanwhile-0.gguf", "meanwhile-1.gguf"].map(scratch);
        let x: Vec<f32> = (0..40 * 512u64).map(|k| (k * 7919 % 1009) as f32 / 500.0 - 1.0).collect();
        // SAFETY: all zeros is a value of each struct; pointers are to locals, or what the library gave.
        unsafe {
            let (mut model, mut known) = (null_mut(), null_mut());
            let layer = c"blk.0.f32".as_ptr();
            let ty = TypeArg(Type::F32 as u32);
            let mut error: bl_error = std::mem::zeroed();
            assert_eq!(bl_load(null(), source.as_ptr(), null(), &mut model, &mut error), bl_status::BL_OK);
            let status = bl_calibration_create(null(), null(), &mut known, &mut error);
            assert_eq!(status, bl_status::BL_OK);
            let status = bl_calibrate(known, layer, 40, 512, x.as_ptr().cast(), ty, 0, &mut error);
            assert_eq!(status, bl_status::BL_OK);
            let mut options: bl_quantize_options = std::mem::zeroed();
            options.struct_size = size_of::<bl_quantize_options>() as u32;
            options.r#type = TypeArg(Type::Q4_0 as u32);
            options.layers = LayersArg(2);
            options.patterns = &layer;
            options.pattern_count = 1;
            options.calibration = known;
            options.progress_user = known.cast();
            for (path, call) in paths.iter().zip([None, Some(progress as unsafe extern "C" fn(_, _) -> _)]) {
                options.progress = call;
                let path = CString::new(path.to_str().unwrap()).unwrap();
                let status = bl_model_quantize(model, path.as_ptr(), &options, null_mut(), &mut error);
                assert_eq!(status, bl_status::BL_OK);
            }
            assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
            // The rows that came meanwhile are there, once for each tensor and at the end.
            let mut info: bl_calibration_info = std::mem::zeroed();
            info.struct_size = size_of::<bl_calibration_info>() as u32;
            assert_eq!(bl_calibration_describe(known, layer, &mut info, &mut error), bl_status::BL_OK);
            assert_eq!(info.samples, 40 + 1 + open(&paths[0]).directory.tensors.len() as u64);
            bl_free(known.cast());
            bl_free(model.cast());
        }
        done.send(()).unwrap();
    });
    let came_back = is_done.recv_timeout(std::time::Duration::from_secs(60));
    if matches!(came_back, Err(std::sync::mpsc::RecvTimeoutError::Timeout)) {
        panic!("a call on the calibration waits for the call that it is made in");
    }
    thread.join().unwrap();
}

/// Tensors without elements go with the others, whatever the rest becomes.
#[test]
fn empty_tensors_are_kept_or_converted_as_nothing() {
    let weights: Vec<f32> = (0..4 * 256).map(|k| (k % 7) as f32 - 3.0).collect();
    let shapes = [vec![4, 0], vec![0, 4], vec![0, 0], vec![2, 0, 3], vec![4, 4, 0], vec![0]];
    let names: Vec<String> = (0..shapes.len()).map(|i| format!("empty.{i}.weight")).collect();
    let mut arrays = vec![("a.weight", vec![4, 256], weights)];
    arrays.extend(names.iter().zip(&shapes).map(|(name, shape)| (name.as_str(), shape.clone(), Vec::new())));
    let source = scratch("empty-source.safetensors");
    std::fs::write(&source, safetensors(&arrays)).unwrap();
    let source = open(&source);
    let path = scratch("empty.safetensors");
    for rest in [None, Some(Type::F16)] {
        // Chosen or not.
        let layers = if rest.is_some() { Which::Patterns } else { Which::All };
        let patterns: &[&str] = if rest.is_some() { &["a"] } else { &[] };
        let base = options(Kind::Safetensors, to(Type::Int4));
        let report = run(&source, &path, &Options { layers, patterns, rest, ..base }).unwrap();
        assert_eq!((report.quantized, report.kept), (1, shapes.len() as u64));
        let made = open(&path);
        for (name, shape) in names.iter().zip(&shapes) {
            let tensor = made.directory.tensor(name).unwrap();
            let ty = rest.filter(|_| shape.len() > 1).unwrap_or(Type::F32);
            assert_eq!((tensor.ty, tensor.bytes), (ty, 0), "{name}");
            assert_eq!(&tensor.shape[..tensor.dims as usize], shape);
        }
    }
    // Packed files have layers alone.
    for patterns in [&["a"][..], &["a", "empty"]] {
        let base = Options { patterns, ..options(Kind::Packed, to(Type::Ternary)) };
        let report = run(&source, &path, &base).unwrap();
        assert_eq!((report.quantized, report.kept, open(&path).directory.tensors.len()), (1, 0, 1));
    }
    // A reader of GGUF refuses them.
    let base = options(Kind::Gguf, to(Type::Q4_0));
    let error = run(&source, &scratch("empty.gguf"), &Options { patterns: &["a"], ..base }).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported, "{error}");
    assert!(error.text().contains("no empty tensors") && !scratch("empty.gguf").exists(), "{error}");
}

/// What is written can be read: texts and names that would make another file are refused before.
#[test]
fn files_that_could_not_be_read_are_not_written() {
    let weights: Vec<f32> = (0..4 * 256).map(|k| (k % 7) as f32 - 3.0).collect();
    let arrays = [
        ("a.weight", vec![4, 256], weights),
        ("a.scales_4bit", vec![1], vec![1.0]),
        ("b.scales", vec![1], vec![1.0]),
    ];
    let source = scratch("names-source.safetensors");
    std::fs::write(&source, safetensors(&arrays)).unwrap();
    let source = open(&source);
    let path = scratch("unreadable");
    let refused = |options: Options<'_>, part: &str| {
        let error = run(&source, &path, &options).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        assert!(error.text().contains(part), "{part}: {error}");
        assert!(!path.exists());
    };
    let base = |kind, ty| Options { patterns: &["a"], ..options(kind, to(ty)) };
    for (kind, ty) in
        [(Kind::Safetensors, Type::Ternary), (Kind::Gguf, Type::Q4_0), (Kind::Packed, Type::Ternary)]
    {
        refused(Options { texts: &[("k", "1"), ("k", "2")], ..base(kind, ty) }, "two texts have the key `k`");
        refused(Options { texts: &[("", "1")], ..base(kind, ty) }, "key ``");
        refused(Options { texts: &[("bitlinear.format", "1")], ..base(kind, ty) }, "bitlinear.format");
        let texts = [("general.name", "x"), ("split", "x"), ("general.file_types", "x")];
        run(&source, &path, &Options { texts: &texts, ..base(kind, ty) }).unwrap();
        let found = metadata(&open(&path));
        for (key, value) in texts {
            assert_eq!(found[key], value);
        }
        std::fs::remove_file(&path).unwrap();
    }
    for key in [
        "general.alignment",
        "general.file_type",
        "general.quantization_version",
        "split.count",
        "prism.hadamard.version",
        "craftsman.bitnet.weight_encoding",
    ] {
        refused(Options { texts: &[(key, "3")], ..base(Kind::Gguf, Type::Q4_0) }, key);
    }
    let rotation = [("prism.hadamard.version", "1")];
    refused(Options { texts: &rotation, ..base(Kind::Safetensors, Type::Ternary) }, "prism.hadamard.version");
    refused(base(Kind::Safetensors, Type::Int4), "the name `a.scales_4bit`");
}

/// ruvllm's files have their dimensions the other way round, and a key that says so; what is written has not.
#[test]
fn what_was_ruvllms_is_read_as_it_was() {
    let source = open(&golden("tests/data/golden/ruvllm_t158_id30.gguf"));
    let tensor = source.directory.tensors.iter().find(|t| t.ty == Type::T158).unwrap();
    let name = str::from_utf8(source.directory.name(tensor)).unwrap().to_owned();
    let layer = name.strip_suffix(".weight").unwrap_or(&name);
    let path = scratch("ruvllm.gguf");
    let base = options(Kind::Gguf, to(Type::F32));
    run(&source, &path, &Options { layers: Which::Patterns, patterns: &[""], requantize: true, ..base })
        .unwrap();
    let made = open(&path);
    let other = made.directory.tensor(format!("{layer}.weight")).unwrap();
    assert_eq!((other.ty, other.shape), (Type::F32, tensor.shape));
    assert_eq!(weights(&made, layer), weights(&source, layer));
}

/// Layers that are not chosen are packed as they are, each under its own name.
#[test]
fn packed_files_keep_the_other_layers() {
    let names: Vec<String> = (0..40).map(|i| format!("layer.{i}.weight")).collect();
    let values = |i: usize| (0..32).map(|k| (i * 32 + k) as f32).collect::<Vec<_>>();
    let arrays: Vec<_> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), vec![4, 8], values(i))).collect();
    let (source, path) = (scratch("kept-source.safetensors"), scratch("kept"));
    std::fs::write(&source, safetensors(&arrays)).unwrap();
    let base = Options { patterns: &["layer.7"], ..options(Kind::Packed, to(Type::Ternary)) };
    let report = run(&open(&source), &path, &base).unwrap();
    assert_eq!((report.quantized, report.kept), (1, 39));
    let files = std::sync::Arc::new(Kept(open(&path)));
    for i in (0..40).filter(|i| *i != 7) {
        let tensor = files.directory.tensor(format!("layer.{i}")).unwrap();
        let saved = bitlinear::model::saved(&files, tensor, &bitlinear::memory::Heap::default());
        assert_eq!(read(&saved.unwrap().unwrap().packed), values(i), "{i}");
    }
}

/// A packed file that says its layers rotate x holds weights that were rotated, also where they keep their type.
#[test]
fn packed_files_hold_what_their_rotation_wants() {
    let source = open(&golden(GOLDEN));
    for (layer, ty) in [("blk.0.f32", Type::F32), ("blk.0.q8_0", Type::Q8_0)] {
        let path = scratch(&format!("rotated-{}", ty.name()));
        let (patterns, rotation) = ([layer], Some((64, 3)));
        let packed = options(Kind::Packed, to(ty));
        run(&source, &path, &Options { patterns: &patterns, rotation, requantize: true, ..packed }).unwrap();
        let files = std::sync::Arc::new(Kept(open(&path)));
        let tensor = files.directory.tensor(layer).unwrap();
        let saved = bitlinear::model::saved(&files, tensor, &bitlinear::memory::Heap::default());
        let saved = saved.unwrap().unwrap();
        let columns = saved.packed.in_features();
        let spec = bitlinear::rotation::Spec {
            block: saved.settings.rotation.expect("a rotation"),
            signs: saved.settings.rotation_signs.as_deref(),
        };
        let rotation = bitlinear::rotation::Rotation::new(&spec, columns).unwrap();
        let mut back = read(&saved.packed);
        back.chunks_mut(columns).for_each(|row| rotation.invert(Isa::best(), row));
        let wanted = weights(&source, layer);
        let power: f32 = wanted.iter().map(|w| w * w).sum();
        let error: f32 = wanted.iter().zip(&back).map(|(w, b)| (w - b) * (w - b)).sum();
        assert!(saved.ty == ty && error < 1e-4 * power, "{layer}: {error} of {power}");
    }
}
