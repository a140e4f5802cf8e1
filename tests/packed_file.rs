//! The packed file: what is saved is what is opened, bit for bit and in place; nothing else gets through.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bitlinear::container::{Access, Files, Kind, Source, packed};
use bitlinear::cpu::Isa;
use bitlinear::epilogue::Epilogue;
use bitlinear::error::{Result, Status};
use bitlinear::exec::Executor;
use bitlinear::layer::{Activation, Linear, Options};
use bitlinear::layout::packed::RowMatrix;
use bitlinear::layout::{Coded, Float, Layout, Matrix, Offset, Packed, Row, ScaleType, Scales, Values};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::{Block, Heap};
use bitlinear::model;
use bitlinear::save::{Named, save};
use bitlinear::types::Type;
use bitlinear::{norm, rotation};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn float(&mut self) -> f32 {
        (self.below(1 << 24) as f32 - 8_388_608.0) / 8_388_608.0
    }
}

/// Files that `saved` takes.
struct Held(Files);

impl std::ops::Deref for Held {
    type Target = Files;
    fn deref(&self) -> &Files {
        &self.0
    }
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bitlinear-packed-{}-{name}", std::process::id()))
}

/// Every width, scheme, scale type and number of bases; groups as short as they get.
fn layouts() -> Vec<Layout> {
    let tables = ["iq4", "e2m1"].map(|name| Values::Table(bitlinear::codec::tables::find(name).unwrap()));
    let mut all: Vec<Layout> = [Float::F32, Float::F16, Float::Bf16].map(Layout::Dense).into();
    let widths = [
        (1, Values::Sign),
        (2, Values::Offset(1)),
        (3, Values::Offset(4)),
        (4, Values::Offset(8)),
        (4, tables[0]),
        (4, tables[1]),
        (5, Values::Offset(16)),
        (6, Values::Offset(32)),
        (8, Values::Offset(128)),
    ];
    for (bits, values) in widths {
        let mut push = |scales, scale_type, bases, values| {
            all.push(Layout::Coded(Coded { bits, values, scales, scale_type, bases }));
        };
        push(Scales::Row, ScaleType::F32, 1, values);
        for (len, scale_type) in
            [(1, ScaleType::F32), (3, ScaleType::F16), (32, ScaleType::Bf16), (100, ScaleType::E8m0)]
        {
            push(Scales::Group { len, offset: Offset::None }, scale_type, 1, values);
        }
        push(Scales::Group { len: 32, offset: Offset::Minimum }, ScaleType::F16, 1, values);
        if matches!(values, Values::Offset(_)) {
            push(Scales::Group { len: 32, offset: Offset::Zero }, ScaleType::F16, 1, Values::Offset(0));
        }
        for len in [16, 32] {
            for minimum in [false, true] {
                push(Scales::TwoLevel { len, minimum }, ScaleType::F16, 1, values);
            }
        }
        if bits == 2 {
            for bases in [2, 3, 8] {
                push(Scales::Row, ScaleType::F32, bases, values);
            }
        }
    }
    all
}

/// A matrix whose columns stand in another order.
struct Permuted(RowMatrix, Option<Vec<u32>>);

impl Matrix for Permuted {
    fn layout(&self) -> Layout {
        self.0.layout()
    }
    fn out_features(&self) -> usize {
        self.0.out_features()
    }
    fn in_features(&self) -> usize {
        self.0.in_features()
    }
    fn read_row(&self, index: usize, row: &mut Row) -> Result<()> {
        self.0.read_row(index, row)
    }
    fn permutation(&self) -> Option<&[u32]> {
        self.1.as_deref()
    }
}

fn matrix(layout: Layout, n: usize, k: usize, random: &mut Random) -> RowMatrix {
    let mut rows = vec![];
    for _ in 0..n {
        let mut row = Row::new(layout, k).unwrap();
        let half = |v: f32| half::bf16::from_f32(half::f16::from_f32(v).to_f32()).to_f32();
        row.floats.iter_mut().for_each(|w| *w = half(random.float()));
        if let Layout::Coded(coded) = layout {
            row.codes.iter_mut().for_each(|c| *c = random.below(1 << coded.bits) as u8);
            let power = coded.scale_type == ScaleType::E8m0;
            let exponent = |random: &mut Random| 2f32.powi(random.below(20) as i32 - 10);
            row.scales
                .iter_mut()
                .for_each(|s| *s = if power { exponent(random) } else { half(random.float() * 0.1) });
            row.minimums.iter_mut().for_each(|s| *s = half(random.float()));
            row.zeros.iter_mut().for_each(|z| *z = random.below(1 << coded.bits) as u8);
            row.sub_scales.iter_mut().for_each(|s| *s = random.below(256) as u8 as i8);
            row.sub_minimums.iter_mut().for_each(|s| *s = random.below(64) as i8);
        }
        rows.push(row);
    }
    RowMatrix { layout, in_features: k, rows }
}

fn layer(matrix: &dyn Matrix, options: &Options<'_>) -> Linear {
    Linear::new(matrix, options, Isa::best(), &Heap::default()).unwrap()
}

fn forward(layer: &Linear, m: usize, x: &[f32]) -> Vec<u32> {
    let mut y = vec![0f32; m * layer.out_features()];
    let out = MatrixMut::of(&mut y, layer.out_features());
    let x = MatrixRef::of(x, layer.in_features());
    layer.forward(m, x, out, None, &Heap::default(), &Executor::Serial).unwrap();
    y.iter().map(|v| v.to_bits()).collect()
}

fn open(files: &Arc<Held>, name: &str) -> Result<(Linear, Type)> {
    let tensor = files.directory.tensor(name).unwrap();
    let saved = model::saved(files, tensor, &Heap::default())?.unwrap();
    Ok((Linear::of(saved.packed, &saved.settings.options(), Isa::best())?, saved.ty))
}

/// Two layers in memory: one with everything round it, one with nothing.
fn small(name: &str) -> (Vec<u8>, [Linear; 2]) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let groups = Layout::Coded(Coded {
        bits: 4,
        values: Values::Offset(0),
        scales: Scales::Group { len: 8, offset: Offset::Zero },
        scale_type: ScaleType::F16,
        bases: 1,
    });
    let columns = vec![5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6];
    let first = Permuted(matrix(groups, 5, 16, &mut random), Some(columns));
    let values: Vec<f32> = (0..16).map(|_| random.float()).collect();
    let signs: Vec<f32> = values.iter().map(|v| v.signum()).collect();
    let options = Options {
        activation: Activation::Int8Row,
        product_scale: Some(0.75),
        bias: Some(&values[..5]),
        norm: Some(norm::Spec {
            kind: norm::Kind::Layer,
            epsilon: 1e-6,
            weight: Some(&values),
            bias: Some(&signs),
        }),
        rotation: Some(rotation::Spec { block: 8, signs: Some(&signs) }),
        epilogue: Epilogue::Relu { threshold: 0.125 },
        activation_scale: Some(0.03),
    };
    let layers = [
        layer(&first, &options),
        layer(&matrix(Layout::rows(2, Values::Offset(1)), 3, 7, &mut random), &Options::default()),
    ];
    let path = temporary(name);
    let named = [
        Named { name: "a \"quoted\\\" näme\n", linear: &layers[0], ty: Type::Gptq },
        Named { name: "b", linear: &layers[1], ty: Type::Ternary },
    ];
    save(&path, &named, &[("key", "value \"\u{1}\" π"), ("empty", "")]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    (bytes, layers)
}

fn files(bytes: &[u8]) -> Result<Arc<Held>> {
    Files::of(Source::copy(bytes)?).map(|files| Arc::new(Held(files)))
}

#[test]
fn every_layout_comes_back_bit_for_bit() {
    let mut random = Random(88_172_645_463_325_252);
    let path = temporary("layouts");
    let (m, mut layers) = (3, vec![]);
    for (i, layout) in layouts().into_iter().enumerate() {
        let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
        let (n, k) = ([1, 17, 65, 130][i % 4], if two_level { 512 } else { [100, 133, 260][i % 3] });
        let mut order: Vec<u32> = (0..k as u32).collect();
        (1..k).for_each(|j| order.swap(j, random.below(j as u64 + 1) as usize));
        let matrix = Permuted(matrix(layout, n, k, &mut random), (i % 3 == 1).then_some(order));
        let bias: Vec<f32> = (0..n).map(|_| random.float()).collect();
        let options = Options { bias: (i % 2 == 0).then_some(&bias[..]), ..Options::default() };
        layers.push(layer(&matrix, &options));
        if !matches!(layout, Layout::Dense(_)) {
            layers.push(layer(&matrix, &Options { activation: Activation::F32, ..options }));
        }
    }
    let names: Vec<String> = (0..layers.len()).map(|i| format!("layer.{i}.weight")).collect();
    let named: Vec<Named<'_>> =
        names.iter().zip(&layers).map(|(name, linear)| Named { name, linear, ty: Type::Q4K }).collect();
    save(&path, &named, &[]).unwrap();
    for access in [Access::Map, Access::Read] {
        let files = Arc::new(Held(Files::open(&path, access).unwrap()));
        assert_eq!(files.directory.kind, Kind::Packed);
        assert_eq!(files.directory.tensors.len(), layers.len());
        packed::verify(&files.directory, files.sources[0].bytes()).unwrap();
        for (name, source) in names.iter().zip(&layers) {
            let (opened, ty) = open(&files, name).unwrap();
            assert!(opened.packed().is_kept() && opened.bytes_mapped() == source.packed().bytes());
            assert_eq!((ty, opened.activation()), (Type::Q4K, source.activation()));
            assert!(opened.packed().panels() == source.packed().panels());
            let x: Vec<f32> = (0..m * source.in_features()).map(|_| random.float()).collect();
            for m in [1, m] {
                assert_eq!(forward(&opened, m, &x), forward(source, m, &x), "{name}");
            }
            // What was opened in place is saved again as it was.
            assert!(opened.packed().permutation() == source.packed().permutation());
        }
    }
    println!("{} layers of {} layouts", layers.len(), layouts().len());
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_stands_around_comes_back() {
    let (bytes, layers) = small("around");
    let files = files(&bytes).unwrap();
    let texts = |key| files.directory.meta_text(key);
    assert_eq!((texts("key"), texts("empty")), (Some("value \"\u{1}\" π"), Some("")));
    let mut random = Random(7);
    for (name, source) in ["a \"quoted\\\" näme\n", "b"].iter().zip(&layers) {
        let x: Vec<f32> = (0..4 * source.in_features()).map(|_| random.float()).collect();
        let (opened, _) = open(&files, name).unwrap();
        assert_eq!(forward(&opened, 4, &x), forward(source, 4, &x));
    }
    // Saving what was opened gives the same file.
    let [a, b] = ["a \"quoted\\\" näme\n", "b"].map(|name| open(&files, name).unwrap());
    let path = temporary("again");
    let named = [
        Named { name: "a \"quoted\\\" näme\n", linear: &a.0, ty: a.1 },
        Named { name: "b", linear: &b.0, ty: b.1 },
    ];
    save(&path, &named, &[("key", "value \"\u{1}\" π"), ("empty", "")]).unwrap();
    assert!(std::fs::read(&path).unwrap() == bytes);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn bytes_at_any_address_are_read() {
    let (bytes, layers) = small("addresses");
    let mut room = vec![0u8; bytes.len() + 64];
    for shift in [0, 1, 4, 63] {
        room[shift..][..bytes.len()].copy_from_slice(&bytes);
        // SAFETY: `room` is neither changed nor freed before the files are gone.
        let source = unsafe { Source::borrow(room[shift..].as_ptr(), bytes.len()) };
        let files = Arc::new(Held(Files::of(source).unwrap()));
        let (opened, _) = open(&files, "b").unwrap();
        let x = [0.5, -1.0, 2.0, 0.25, -3.0, 1.5, 1.0];
        assert_eq!(forward(&opened, 1, &x), forward(&layers[1], 1, &x));
    }
}

/// Opens everything in a file that may be damaged, and uses it.
fn use_all(bytes: &[u8]) -> Result<Vec<Vec<u32>>> {
    let files = files(bytes)?;
    let mut found = vec![];
    for tensor in &files.directory.tensors {
        let name = String::from_utf8(files.directory.name(tensor).to_vec()).unwrap();
        if files.directory.kind != Kind::Packed {
            // As another kind of file its panels are bytes, which are no weights.
            let layers = model::Layers::of(&files).unwrap();
            let tensor = files.directory.tensor(&name).unwrap();
            if let Ok(plan) = layers.plan_tensor(&files, tensor, &model::Request::default()) {
                assert!(name.contains(".bitlinear."), "{name} opens as {}", plan.ty.name());
            }
            continue;
        }
        let (opened, _) = open(&files, &name)?;
        let x: Vec<f32> = (0..opened.in_features()).map(|k| k as f32 - 3.0).collect();
        found.push(forward(&opened, 1, &x));
    }
    Ok(found)
}

fn header_len(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn a_cut_file_is_refused() {
    let (bytes, _) = small("cut");
    for len in (0..header_len(&bytes) + 200).chain([bytes.len() - 1]) {
        let error = use_all(&bytes[..len]).map(drop).unwrap_err();
        assert_eq!(error.status(), Status::BadFile, "{len}: {error}");
    }
}

#[test]
fn a_flipped_header_is_refused() {
    let (bytes, _) = small("flip");
    let right = use_all(&bytes).unwrap();
    let (mut refused, mut others) = (0, 0);
    for bit in 0..8 * header_len(&bytes) {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match use_all(&bytes) {
            Err(_) => refused += 1,
            Ok(found) if found.is_empty() => others += 1,
            Ok(found) => assert_eq!(found, right, "bit {bit}"),
        }
    }
    println!("{refused} of {} flips refused, {others} another kind of file", 8 * header_len(&bytes));
    assert!(refused > 8 * header_len(&bytes) * 9 / 10);
}

#[test]
fn flipped_weights_are_found_on_request_and_harm_nobody() {
    let (bytes, _) = small("weights");
    let good = files(&bytes).unwrap();
    let ranges: Vec<_> = good
        .directory
        .layers
        .iter()
        .flat_map(|l| l.parts.iter().flatten().chain([&l.panels]).cloned().collect::<Vec<_>>())
        .collect();
    let mut random = Random(99);
    for byte in header_len(&bytes)..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[byte] ^= 1 << random.below(8);
        let files = files(&bytes).unwrap();
        let verified = packed::verify(&files.directory, files.sources[0].bytes());
        assert_eq!(verified.is_err(), ranges.iter().any(|range| range.contains(&byte)), "byte {byte}");
        let _ = use_all(&bytes); // a permutation that is none any more is refused; the rest computes
    }
}

/// A file with another header, whose sum is right.
fn with_header(bytes: &[u8], change: impl Fn(String) -> String) -> Vec<u8> {
    let len = header_len(bytes);
    let old = String::from_utf8(bytes[8..len].to_vec()).unwrap();
    let mut new = change(old.trim_end().to_owned());
    new += &" ".repeat((new.len() + 8).next_multiple_of(64) - new.len() - 8);
    let mut file = (new.len() as u64).to_le_bytes().to_vec();
    file.extend(new.as_bytes());
    let sum = format!("{:016x}", packed::header_sum(&file));
    let at = String::from_utf8_lossy(&file[8..]).find("bitlinear.header").unwrap() + 8 + 19;
    file[at..at + 16].copy_from_slice(sum.as_bytes());
    file.extend(&bytes[len..]);
    file
}

#[test]
fn hostile_headers_are_refused() {
    let (bytes, _) = small("hostile");
    assert!(use_all(&with_header(&bytes, |h| h)).unwrap() == use_all(&bytes).unwrap());
    for (from, to, status, says) in [
        ("\"bitlinear.format\":\"1\"", "\"bitlinear.format\":\"2\"", Status::Unsupported, "version"),
        ("\"little\"", "\"big\"", Status::BadFile, "endian"),
        ("rows=3 ", "rows=65 ", Status::BadFile, "bytes"),
        ("rows=3 ", "rows=0 ", Status::BadFile, ""),
        ("rows=3 ", "rows=99999999999999999999 ", Status::BadFile, "rows"),
        ("rows=3 ", "rows=2147483648 ", Status::BadFile, "bytes"),
        ("columns=7 ", "columns=9000000000 ", Status::BadFile, "features"),
        ("columns=7 ", "columns=17 ", Status::BadFile, "record"),
        ("columns=7 ", "columns=0 ", Status::BadFile, ""),
        ("codes:2:zero1:row:f32:1", "codes:2:zero4:row:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:7:zero1:row:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:sign:row:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:row:f32:9", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:row:f32:0", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:row:e8m0:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:group0:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:group8:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:super16:f32:1", Status::BadFile, "layout"),
        ("codes:2:zero1:row:f32:1", "codes:2:zero1:column:f32:1", Status::Unsupported, "layout"),
        ("codes:2:zero1:row:f32:1", "f8", Status::Unsupported, "layout"),
        ("unit=16 ", "unit=8 ", Status::BadFile, "unit"),
        ("activation=2 sum", "activation=77 sum", Status::Unsupported, "activation"),
        ("activation=2 sum", "activation=2 norm=9:00000000 sum", Status::Unsupported, "norm"),
        ("activation=2 sum", "activation=2 norm=2:ffffffff sum", Status::BadFile, "epsilon"),
        ("activation=2 sum", "activation=2 rotation=3 sum", Status::BadFile, "rotation"),
        ("activation=2 sum", "activation=2 epilogue=9:00000000 sum", Status::Unsupported, "epilogue"),
        ("activation=2 sum", "activation=2 epilogue=2:3f800000 sum", Status::BadFile, "epilogue"),
        ("activation=2 sum", "activation=2 activation_scale=7fc00000 sum", Status::BadFile, "scale"),
        ("activation=2 sum", "activation=2 later=1 sum", Status::BadFile, "sum="),
        ("type=ternary", "type=quinary", Status::Unsupported, "type"),
        ("b\":{\"dtype\":\"U8\"", "c\":{\"dtype\":\"U8\"", Status::BadFile, "no tensor"),
        ("norm=1:", "norn=1:", Status::BadFile, "sum"),
        (" norm=1:358637bd", "", Status::BadFile, "norm"),
        ("rotation=8 ", "", Status::BadFile, "rotation"),
    ] {
        let file = with_header(&bytes, |h| {
            assert!(h.contains(from), "{from} is not in {h}");
            h.replace(from, to)
        });
        let Err(error) = use_all(&file) else { panic!("{from} -> {to} is accepted") };
        assert!(error.status() == status && error.text().contains(says), "{from} -> {to}: {error:?}");
    }
    // A permutation that is none.
    let good = files(&bytes).unwrap();
    let at = good.directory.layers[0].parts[packed::Part::Permutation as usize].clone().unwrap().start;
    for value in [1u32, 16, u32::MAX] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = use_all(&bytes).map(drop).unwrap_err();
        assert!(error.status() == Status::BadFile && error.text().contains("permutation"), "{error}");
    }
    // A sign that is none.
    let rotated =
        good.directory.layers.iter().find_map(|l| l.parts[packed::Part::RotationSigns as usize].clone());
    let at = rotated.unwrap().start;
    let mut bytes = bytes.clone();
    bytes[at..at + 4].copy_from_slice(&2f32.to_le_bytes());
    let error = use_all(&bytes).map(drop).unwrap_err();
    assert!(error.status() == Status::BadFile && error.text().contains("rotation sign 0"), "{error:?}");
}

#[test]
fn any_panels_compute() {
    let mut random = Random(4711);
    for layout in layouts() {
        let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
        let (n, k) = (70, if two_level { 512 } else { 133 });
        layout.check(k).unwrap();
        let mut block = Heap::default().block(Packed::size(&layout, n, k).unwrap(), "test").unwrap();
        block.bytes_mut().iter_mut().for_each(|b| *b = random.next() as u8);
        let owner = Arc::new(block);
        for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
            for activation in [Activation::Auto, Activation::F32] {
                let panels = Block::kept(&owner, |block| block.bytes());
                let packed = Packed::of(layout, n, k, panels, None).unwrap();
                let options = Options { activation, ..Options::default() };
                let linear = Linear::of(packed, &options, isa).unwrap();
                for m in [1, 7] {
                    let x: Vec<f32> = (0..m * k).map(|_| random.float()).collect();
                    forward(&linear, m, &x);
                }
            }
        }
    }
}

#[test]
fn names_and_texts_that_cannot_be_are_refused() {
    let layer = layer(&matrix(Layout::Dense(Float::F32), 1, 1, &mut Random(1)), &Options::default());
    let path = temporary("names");
    let named = |name| Named { name, linear: &layer, ty: Type::F32 };
    let long = "x".repeat(70_000);
    for name in ["", "__metadata__", "bitlinear.pad.0", "a.bitlinear.bias", &long] {
        assert_eq!(save(&path, &[named(name)], &[]).unwrap_err().status(), Status::InvalidArgument);
    }
    for texts in [&[("", "")][..], &[("bitlinear.format", "9")], &[("a", ""), ("a", "")]] {
        assert_eq!(save(&path, &[named("a")], texts).unwrap_err().status(), Status::InvalidArgument);
    }
    assert_eq!(save(&path, &[named("a"), named("a")], &[]).unwrap_err().status(), Status::InvalidArgument);
    assert!(!path.exists());
    save(&path, &[], &[]).unwrap(); // nothing at all is a file too
    assert!(use_all(&std::fs::read(&path).unwrap()).unwrap().is_empty());
    std::fs::remove_file(&path).unwrap();
}

/// Files in a folder.
fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_failed_save_leaves_the_old_file_alone() {
    let layer = layer(&matrix(Layout::Dense(Float::F32), 64, 64, &mut Random(1)), &Options::default());
    let folder = temporary("folder");
    std::fs::create_dir_all(folder.join("taken")).unwrap();
    let named = [Named { name: "a", linear: &layer, ty: Type::F32 }];
    // A folder of that name: the rename fails when all else is done.
    assert_eq!(save(&folder.join("taken"), &named, &[]).unwrap_err().status(), Status::Io);
    assert_eq!(save(&folder.join("none/file"), &named, &[]).unwrap_err().status(), Status::Io);
    assert_eq!(save(Path::new("/"), &named, &[]).unwrap_err().status(), Status::Io);
    assert_eq!(names_in(&folder), ["taken"]);
    // Over a file that is in use: who has it mapped keeps it.
    let path = folder.join("file");
    save(&path, &named, &[("generation", "1")]).unwrap();
    let old = Arc::new(Held(Files::open(&path, Access::Map).unwrap()));
    save(&path, &named, &[("generation", "2")]).unwrap();
    assert_eq!(old.directory.meta_text("generation"), Some("1"));
    packed::verify(&old.directory, old.sources[0].bytes()).unwrap();
    let new = Files::open(&path, Access::Read).unwrap();
    assert_eq!(new.directory.meta_text("generation"), Some("2"));
    assert_eq!(names_in(&folder), ["file", "taken"]);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// In a process of its own, whose files may not grow beyond a page.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_file_alone() {
    const CHILD: &str = "BITLINEAR_TEST_FULL_DISK";
    let layer = layer(&matrix(Layout::Dense(Float::F32), 64, 64, &mut Random(1)), &Options::default());
    let named = [Named { name: "a", linear: &layer, ty: Type::F32 }];
    if let Some(path) = std::env::var_os(CHILD) {
        // SAFETY: settings of this process, which has nothing else to do.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let error = save(Path::new(&path), &named, &[]).unwrap_err();
        assert_eq!(error.status(), Status::Io);
        return;
    }
    let folder = temporary("full");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("file");
    save(&path, &named, &[]).unwrap();
    let before = std::fs::read(&path).unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_full_disk_leaves_the_old_file_alone", "--exact"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert_eq!(names_in(&folder), ["file"]);
    assert!(std::fs::read(&path).unwrap() == before);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Every matrix of the demo model, and of any other GGUF that BITLINEAR_TEST_GGUF names.
#[test]
fn the_demo_model() {
    let Some(gguf) = std::env::var_os("BITLINEAR_TEST_GGUF") else {
        println!("not run: BITLINEAR_TEST_GGUF names no model");
        return;
    };
    let begin = Instant::now();
    let source = Files::open(Path::new(&gguf), Access::Map).unwrap();
    let layers = model::Layers::of(&source).unwrap();
    let mut opened = vec![];
    for layer in layers.list() {
        let plan = layers.plan(&source, layer, &model::Request::default()).unwrap();
        let matrix = plan.matrix().unwrap();
        let linear = Linear::new(&*matrix, &Options::default(), Isa::best(), &Heap::default()).unwrap();
        opened.push((String::from_utf8(layers.name(layer).to_vec()).unwrap(), linear, plan.ty));
    }
    let from_gguf = begin.elapsed();
    let path = temporary("demo");
    let named: Vec<Named<'_>> =
        opened.iter().map(|(name, linear, ty)| Named { name, linear, ty: *ty }).collect();
    save(&path, &named, &[]).unwrap();
    let begin = Instant::now();
    let files = Arc::new(Held(Files::open(&path, Access::Map).unwrap()));
    let again: Vec<(Linear, Type)> = opened.iter().map(|(name, ..)| open(&files, name).unwrap()).collect();
    let from_packed = begin.elapsed();
    let mut random = Random(2024);
    for ((name, source, ty), (packed, packed_ty)) in opened.iter().zip(&again) {
        let x: Vec<f32> = (0..2 * source.in_features()).map(|_| random.float()).collect();
        assert!(forward(source, 2, &x) == forward(packed, 2, &x), "{name}");
        assert_eq!(ty, packed_ty);
    }
    println!(
        "{} layers, {} bytes: {from_gguf:?} from the GGUF, {from_packed:?} packed, {:.0} times as fast",
        opened.len(),
        std::fs::metadata(&path).unwrap().len(),
        from_gguf.as_secs_f64() / from_packed.as_secs_f64()
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
#[ignore = "writes and reads a gigabyte"]
fn a_gigabyte_opens_at_once() {
    let layout = Layout::groups(4, 8, 32, Offset::None);
    let (n, k, count) = (4096, 4096, 114);
    let mut random = Random(31);
    let size = Packed::size(&layout, n, k).unwrap();
    let mut block = Heap::default().block(size, "test").unwrap();
    block.bytes_mut().iter_mut().for_each(|b| *b = random.next() as u8 & 0x3b);
    let owner = Arc::new(block);
    let linear = {
        let panels = Block::kept(&owner, |block| block.bytes());
        Linear::of(Packed::of(layout, n, k, panels, None).unwrap(), &Options::default(), Isa::best()).unwrap()
    };
    let names: Vec<String> = (0..count).map(|i| format!("blk.{i}.weight")).collect();
    let named: Vec<Named<'_>> =
        names.iter().map(|name| Named { name, linear: &linear, ty: Type::Q4_0 }).collect();
    let path = temporary("gigabyte");
    let begin = Instant::now();
    save(&path, &named, &[]).unwrap();
    println!("saved {} bytes in {:?}", std::fs::metadata(&path).unwrap().len(), begin.elapsed());
    let x: Vec<f32> = (0..k).map(|_| random.float()).collect();
    let want = forward(&linear, 1, &x);
    for round in 0..3 {
        let begin = Instant::now();
        let files = Arc::new(Held(Files::open(&path, Access::Map).unwrap()));
        let (first, _) = open(&files, "blk.0.weight").unwrap();
        let opened = begin.elapsed();
        let got = forward(&first, 1, &x);
        println!("round {round}: opened in {opened:?}, with the first forward {:?}", begin.elapsed());
        let begin = Instant::now();
        let all: Vec<Linear> = names.iter().map(|name| open(&files, name).unwrap().0).collect();
        println!("         all {} layers in {:?}", all.len(), begin.elapsed());
        assert!(got == want);
    }
    let files = Files::open(&path, Access::Map).unwrap();
    let begin = Instant::now();
    packed::verify(&files.directory, files.sources[0].bytes()).unwrap();
    println!("verified in {:?}", begin.elapsed());
    std::fs::remove_file(&path).unwrap();
}
