//! Every kernel equals the scalar one, bit for bit: layouts x activations x instruction sets x shapes.
//!
//! `BITLINEAR_TEST_REQUIRE=avx2,avx512vnni` makes the tests fail where a listed instruction set was
//! not exercised, so that nothing is skipped silently. `BITLINEAR_TEST_EVERY=N` takes one in N of the
//! usual shapes, for emulators, and BITLINEAR_TEST_FIRST which of them. `BITLINEAR_TEST_RECORD=FILE` writes a hash of each result of the scalar
//! kernels; with `BITLINEAR_TEST_RECORDED=FILE` the others are compared with those, so that an emulator of
//! another architecture need not run the scalar ones; BITLINEAR_TEST_ONLY takes one instruction set, all of
//! whose kernels must then have run. BITLINEAR_TEST_BEST says which one must be found to be the best.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitlinear::activation::Kind;
use bitlinear::cpu::Isa;
use bitlinear::exec::Executor;
use bitlinear::kernel;
use bitlinear::layer::{Activation, Linear, Options, Target};
use bitlinear::layout::packed::RowMatrix;
use bitlinear::layout::{Coded, Float, Layout, Offset, Row, SUPER_BLOCK, ScaleType, Scales, Values};
use bitlinear::matrix::{MatrixMut, MatrixRef};
use bitlinear::memory::Heap;

/// A small generator of our own: the tests need speed and repeatability, not statistics.
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

static TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Layouts of every width, scheme and scale type.
fn layouts() -> Vec<(String, Layout)> {
    let mut all = vec![];
    for float in [Float::F32, Float::F16, Float::Bf16] {
        all.push((format!("{float:?}"), Layout::Dense(float)));
    }
    let widths: [(u8, Values); 8] = [
        (1, Values::Sign),
        (2, Values::Offset(1)),
        (3, Values::Offset(4)),
        (4, Values::Offset(8)),
        (4, Values::Table(&TABLE)),
        (5, Values::Offset(16)),
        (6, Values::Offset(32)),
        (8, Values::Offset(128)),
    ];
    for (bits, values) in widths {
        let mut push = |name: &str, scales, scale_type, bases, values| {
            let table = if matches!(values, Values::Table(_)) { "t" } else { "w" };
            let layout = Layout::Coded(Coded { bits, values, scales, scale_type, bases });
            all.push((format!("{table}{bits} {name} {scale_type:?}"), layout));
        };
        push("row", Scales::Row, ScaleType::F32, 1, values);
        for len in [32, 64, 6, 100] {
            push(
                &format!("group {len}"),
                Scales::Group { len, offset: Offset::None },
                ScaleType::F16,
                1,
                values,
            );
        }
        push("group 32", Scales::Group { len: 32, offset: Offset::None }, ScaleType::E8m0, 1, values);
        push("group 16", Scales::Group { len: 16, offset: Offset::None }, ScaleType::F32, 1, values);
        let minimum = Scales::Group { len: 32, offset: Offset::Minimum };
        push("group 32 minimum", minimum, ScaleType::F16, 1, values);
        push("group 32 minimum", minimum, ScaleType::Bf16, 1, values);
        if !matches!(values, Values::Table(_) | Values::Sign) {
            push(
                "group 32 zero",
                Scales::Group { len: 32, offset: Offset::Zero },
                ScaleType::F16,
                1,
                Values::Offset(0),
            );
        }
        for len in [16, 32] {
            for minimum in [false, true] {
                let name = format!("two-level {len} minimum {minimum}");
                push(&name, Scales::TwoLevel { len, minimum }, ScaleType::F16, 1, values);
                push(&name, Scales::TwoLevel { len, minimum }, ScaleType::F32, 1, values);
            }
        }
    }
    // As Q2_K, Q4_K and Q5_K have them: codes from 0 on, whose sums some kernels centre.
    let from_zero =
        [(2, 16, true), (3, 16, false), (4, 32, true), (4, 16, false), (5, 32, true), (5, 16, true)];
    for (bits, len, minimum) in from_zero {
        let scales = Scales::TwoLevel { len, minimum };
        let values = Values::Offset(0);
        let layout = Layout::Coded(Coded { bits, values, scales, scale_type: ScaleType::F16, bases: 1 });
        all.push((format!("w{bits} two-level {len} minimum {minimum} zero 0"), layout));
    }
    for bases in [2, 3, 8] {
        let layout = Layout::Coded(Coded {
            bits: 2,
            values: Values::Offset(1),
            scales: Scales::Row,
            scale_type: ScaleType::F32,
            bases,
        });
        all.push((format!("w2 row {bases} bases"), layout));
    }
    all
}

/// A matrix of random rows; row 0 has the largest codes, row 1 the smallest, row 2 zero scales.
fn matrix(layout: Layout, n: usize, k: usize, random: &mut Random) -> RowMatrix {
    let mut rows = vec![];
    // Every second matrix has sub-scales that kernels may multiply into codes, up to the largest: as in Q2_K and Q3_K.
    let small = random.below(2) == 0;
    for r in 0..n {
        let mut row = Row::new(layout, k).unwrap();
        let f16 = |v: f32| half::f16::from_f32(v).to_f32();
        match layout {
            Layout::Dense(float) => {
                for w in &mut row.floats {
                    *w = match float {
                        Float::F32 => random.float(),
                        Float::F16 => f16(random.float()),
                        Float::Bf16 => half::bf16::from_f32(random.float()).to_f32(),
                    };
                }
            }
            Layout::Coded(coded) => {
                let top = (1u64 << coded.bits) - 1;
                for c in &mut row.codes {
                    *c = match r {
                        0 => top as u8,
                        1 => 0,
                        _ => random.below(top + 1) as u8,
                    };
                }
                let scale = |random: &mut Random| match coded.scale_type {
                    ScaleType::F32 => random.float(),
                    ScaleType::F16 => f16(random.float() * 0.1),
                    ScaleType::Bf16 => half::bf16::from_f32(random.float()).to_f32(),
                    // Bytes 0 and 1 stand for subnormal powers.
                    ScaleType::E8m0 => match random.below(8) {
                        0 => 2f32.powi(-128),
                        1 => 2f32.powi(-127),
                        _ => 2f32.powi(random.below(20) as i32 - 10),
                    },
                };
                row.scales
                    .iter_mut()
                    .for_each(|s| *s = if r == 2 { scale(random) * 0.0 } else { scale(random) });
                if coded.scale_type == ScaleType::E8m0 {
                    row.scales.iter_mut().for_each(|s| *s = if *s == 0.0 { 2f32.powi(-126) } else { *s });
                }
                row.minimums.iter_mut().for_each(|s| *s = scale(random));
                row.zeros.iter_mut().for_each(|z| *z = random.below(top + 1) as u8);
                row.sub_scales.iter_mut().for_each(|s| {
                    *s = match coded.values {
                        Values::Offset(0) if small => random.below((255 / top).min(127) + 1) as i8,
                        _ if small => random.below(64) as i8 - 32,
                        _ => random.below(256) as u8 as i8,
                    }
                });
                row.sub_minimums.iter_mut().for_each(|s| *s = random.below(64) as i8);
            }
        }
        rows.push(row);
    }
    RowMatrix { layout, in_features: k, rows }
}

fn batch(m: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let mut x: Vec<f32> = (0..m * k).map(|_| random.float() * 3.0).collect();
    // Every second batch is as activations are, most of them far below the largest: kernels may count on that. The
    // largest are side by side, as none may count on their being apart.
    let steep = random.below(2) == 0;
    for (i, row) in x.chunks_mut(k).enumerate() {
        if steep {
            row.iter_mut().for_each(|v| *v = *v * *v * *v);
            row.iter_mut().take(2).for_each(|v| *v = if i % 2 == 0 { 27.0 } else { -27.0 });
        }
        match i % 11 {
            3 => row.fill(0.0),
            4 => row.fill(1e-40),
            5 => row[k / 2] = f32::NAN,
            6 => row[0] = f32::INFINITY,
            7 => row.fill(-2.5),
            8 => row.iter_mut().for_each(|v| *v *= 1e30),
            9 => row[k - 1] = 1e9,
            _ => {}
        }
    }
    x
}

fn forward(layer: &Linear, m: usize, x: &[f32]) -> Vec<u32> {
    let mut y = vec![0f32; m * layer.out_features()];
    let out = MatrixMut::of(&mut y, layer.out_features());
    layer
        .forward(m, MatrixRef::of(x, layer.in_features()), out, None, &Heap::default(), &Executor::Serial)
        .unwrap();
    y.iter().map(|v| v.to_bits()).collect()
}

const SIZES: [usize; 17] = [1, 3, 5, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 255, 256, 257, 300];

/// Shapes (n, k, m) in which every size occurs in every place and every pair of sizes at least once:
/// a Latin square, the one of 17 whose products are smallest, as the scalar kernels take the time.
fn shapes(full: bool) -> Vec<(usize, usize, usize)> {
    let s = SIZES.len();
    let mut all = vec![];
    for i in 0..s {
        for j in 0..s {
            if full {
                all.extend((0..s).map(|l| (SIZES[i], SIZES[j], SIZES[l])));
            } else {
                all.push((SIZES[i], SIZES[j], SIZES[(2 * s + 15 - i - j) % s]));
            }
        }
    }
    all
}

/// Cases run: layout (with its scales), activation, kernel.
type Seen = BTreeMap<(String, String, String), usize>;

/// Hashes of the scalar kernels' results, by case.
#[derive(Default)]
struct Records {
    /// From another machine.
    read: Option<BTreeMap<String, u64>>,
    /// To be written.
    made: Mutex<BTreeMap<String, u64>>,
}

impl Records {
    fn new() -> Records {
        let read = std::env::var_os("BITLINEAR_TEST_RECORDED").map(|path| {
            let text = std::fs::read_to_string(path).expect("BITLINEAR_TEST_RECORDED names a file");
            let entry = |line: &str| {
                let (case, hash) = line.rsplit_once(' ').expect("a case and a hash");
                (case.to_string(), u64::from_str_radix(hash, 16).expect("a hash"))
            };
            text.lines().map(entry).collect()
        });
        Records { read, ..Records::default() }
    }

    fn write(&self) {
        let Some(path) = std::env::var_os("BITLINEAR_TEST_RECORD") else { return };
        let made = self.made.lock().unwrap();
        let lines: String = made.iter().map(|(case, hash)| format!("{case} {hash:016x}\n")).collect();
        std::fs::write(path, lines).expect("BITLINEAR_TEST_RECORD can be written");
    }
}

/// FNV-1a over whole words.
fn hash(bits: &[u32]) -> u64 {
    bits.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ *b as u64).wrapping_mul(0x100_0000_01b3))
}

/// Compares on the shapes, each layout taking one in `every` of them, each another one; on all cores.
fn compare(shapes: &[(usize, usize, usize)], every: usize) {
    let first = number("BITLINEAR_TEST_FIRST").unwrap_or(0);
    let layouts: Vec<_> = layouts().into_iter().enumerate().collect();
    let (next, records) = (AtomicUsize::new(0), Records::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let seen: Seen = std::thread::scope(|scope| {
        let work = || {
            let mut seen = Seen::new();
            while let Some((l, (name, layout))) = layouts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let shapes =
                    shapes.iter().enumerate().filter(|(i, _)| (i + 5 * l + first).is_multiple_of(every));
                compare_layout(name, *layout, shapes.map(|(i, shape)| (i, *shape)), &records, &mut seen);
            }
            seen
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no case differs (see above)")).collect()
    });
    records.write();
    report(&seen);
}

/// Prints what ran, and fails where a required instruction set did not.
fn report(seen: &Seen) {
    let names: std::collections::BTreeSet<&str> = seen.keys().map(|(_, _, kernel)| kernel.as_str()).collect();
    let isa_of = |kernel: &str| kernel.rsplit('_').nth(1).unwrap_or_default().to_string();
    let mut isas: Vec<(String, &str)> = vec![];
    for name in &names {
        for kind in ["gemv", "gemm"] {
            let isa = isa_of(name);
            if !isas.iter().any(|(i, k)| *i == isa && *k == kind) {
                isas.push((isa, kind));
            }
        }
    }
    isas.sort();
    // Kernels for one row of x are `..._1x..`; the scalar ones are both.
    let kind_of = |kernel: &str| if kernel.ends_with("_1x64") { "gemv" } else { "gemm" };
    println!("cases equal to the scalar kernels, bit for bit:");
    let heads: Vec<String> = isas.iter().map(|(isa, kind)| format!("{isa} {kind}")).collect();
    println!("{:34} {:24} {}", "layout", "activation", heads.join(" | "));
    let rows: std::collections::BTreeSet<(&String, &String)> = seen.keys().map(|(l, a, _)| (l, a)).collect();
    for (layout, activation) in rows {
        let cells: Vec<String> = isas
            .iter()
            .zip(&heads)
            .map(|((isa, kind), head)| {
                let cases: usize = seen
                    .iter()
                    .filter(|((l, a, kernel), _)| {
                        l == layout && a == activation && isa_of(kernel) == *isa && kind_of(kernel) == *kind
                    })
                    .map(|(_, cases)| cases)
                    .sum();
                format!("{cases:>width$}", width = head.len())
            })
            .collect();
        println!("{layout:34} {activation:24} {}", cells.join(" | "));
    }
    for isa in Isa::ALL.iter().filter(|isa| !isa.detected()) {
        println!("not run: {} (this CPU lacks it)", isa.name());
    }
    if let Some(isa) = only() {
        let used = used(isa);
        let missed: Vec<_> = used.iter().filter(|(kernel, _)| !names.contains(*kernel)).collect();
        assert!(missed.is_empty(), "kernels that did not run, and a layout of each: {missed:?}");
        println!("all {} kernels of {} ran", used.len(), isa.name());
    }
    if let Ok(required) = std::env::var("BITLINEAR_TEST_REQUIRE") {
        for isa in required.split(',').filter(|isa| !isa.is_empty()) {
            assert!(names.iter().any(|k| k.contains(isa)), "{isa} is required and was not exercised");
        }
    }
}

fn compare_layout(
    name: &str,
    layout: Layout,
    shapes: impl Iterator<Item = (usize, (usize, usize, usize))>,
    records: &Records,
    seen: &mut Seen,
) {
    let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
    let seed = name.bytes().fold(88_172_645_463_325_252u64, |h, b| h.rotate_left(5) ^ b as u64);
    // To a kernel x is floats, signed codes or unsigned ones; the other rules of making codes take turns.
    let others = Activation::ALL
        .into_iter()
        .filter(|a| !matches!(a, Activation::Auto | Activation::F32 | Activation::Uint8Positive));
    let others: Vec<Activation> = others.collect();
    let only = only();
    for (i, (n, k, m)) in shapes {
        // A case is the same whichever others run.
        let mut random = Random(seed ^ (i as u64 + 1) << 40);
        // Two-level formats have whole super-blocks.
        let k = if two_level { SUPER_BLOCK * (1 + k % 3) } else { k };
        let weights = matrix(layout, n, k, &mut random);
        let x = batch(m, k, &mut random);
        let bias: Vec<f32> = (0..n).map(|_| random.float()).collect();
        for activation in [Activation::Auto, Activation::F32, Activation::Uint8Positive, others[i % 6]] {
            let options = Options { activation, bias: Some(&bias), ..Options::default() };
            let case = format!("{name}, {activation:?}, n={n} k={k} m={m}");
            let make = |isa| Linear::new(&weights, &options, isa, &Heap::default());
            let (want, recorded) = match &records.read {
                Some(read) => (vec![], read.get(&case).copied()),
                None => match make(Isa::Scalar) {
                    Ok(oracle) => (forward(&oracle, m, &x), None),
                    Err(_) => continue, // integer activations on plain floats, groups where there are none
                },
            };
            if records.read.is_none() {
                records.made.lock().unwrap().insert(case.clone(), hash(&want));
            }
            for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                if isa == Isa::Scalar && records.read.is_some() || only.is_some_and(|only| isa != only) {
                    continue;
                }
                let layer = match make(isa) {
                    Ok(layer) => layer,
                    Err(_) if records.read.is_some() && recorded.is_none() => continue, // as above
                    Err(error) => panic!("{case}: {}", error.text()),
                };
                assert!(records.read.is_none() || recorded.is_some(), "{case} was not recorded");
                let kernel = layer.plan(m, &Executor::Serial).kernel.name();
                let mut saw = |kernel: &str| {
                    let place = (name.to_string(), format!("{activation:?}"), kernel.to_string());
                    *seen.entry(place).or_default() += 1;
                };
                saw(kernel);
                let got = forward(&layer, m, &x);
                if let Some(recorded) = recorded {
                    assert_eq!(hash(&got), recorded, "{case}: {kernel} differs");
                }
                let at = got.iter().zip(&want).position(|(a, b)| a != b);
                assert!(
                    at.is_none(),
                    "{case}: {kernel} differs at {:?}: {:?} and {:?}",
                    at.map(|i| (i / n, i % n)),
                    at.map(|i| f32::from_bits(got[i])),
                    at.map(|i| f32::from_bits(want[i])),
                );
                // One row of the batch alone gives what it gives among the others.
                if m == 1 {
                    continue;
                }
                let i = m / 2;
                saw(layer.plan(1, &Executor::Serial).kernel.name());
                let alone = forward(&layer, 1, &x[i * k..][..k]);
                assert_eq!(
                    alone,
                    got[i * n..][..n],
                    "{name}, {activation:?}, {kernel}: row {i} of {m} alone"
                );
            }
        }
    }
}

/// The one instruction set that is compared, where only one is.
fn only() -> Option<Isa> {
    std::env::var("BITLINEAR_TEST_ONLY").ok().map(|isa| Isa::named(&isa).expect("BITLINEAR_TEST_ONLY"))
}

/// The kernels that layers of the tested layouts use where `isa` is the best instruction set.
fn used(isa: Isa) -> BTreeMap<&'static str, String> {
    let mut used = BTreeMap::new();
    for (name, layout) in layouts() {
        for kind in [Kind::Integer, Kind::Float] {
            if kind == Kind::Integer && matches!(layout, Layout::Dense(_)) {
                continue;
            }
            let choice = kernel::select(&layout, SUPER_BLOCK, kind, isa);
            used.insert(choice.gemv.name(), name.clone());
            if choice.few_rows > 0 {
                used.insert(choice.few.name(), name.clone());
            }
            if choice.few_rows < usize::MAX {
                used.insert(choice.gemm.name(), name.clone());
            }
        }
    }
    used
}

/// Which share of the usual shapes is taken: one in so many.
fn share() -> usize {
    number("BITLINEAR_TEST_EVERY").unwrap_or(1)
}

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// No layout falls back to another instruction set, which equal results would not show.
#[test]
fn every_instruction_set_has_its_kernels() {
    if let Ok(best) = std::env::var("BITLINEAR_TEST_BEST") {
        assert_eq!(Isa::best().name(), best, "the best instruction set of this CPU");
    }
    let mut random = Random(88_172_645_463_325_252);
    for (name, layout) in layouts() {
        let weights = matrix(layout, 3, 512, &mut random);
        for activation in [Activation::F32, Activation::Auto] {
            for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                let options = Options { activation, ..Options::default() };
                let layer = Linear::new(&weights, &options, isa, &Heap::default()).unwrap();
                for m in [1, 2] {
                    let kernel = layer.plan(m, &Executor::Serial).kernel;
                    let float = activation == Activation::F32 || matches!(layout, Layout::Dense(_));
                    let own = match isa {
                        _ if float => isa.float(),
                        // smmla wants several rows, and several bases take them one by one.
                        Isa::I8mm if m == 1 || name.contains("bases") => Isa::DotProd,
                        _ => isa,
                    };
                    assert_eq!(kernel.isa, own, "{name}, m={m}: {}", kernel.name());
                }
            }
        }
    }
}

/// Rows of several k-blocks: what rests in the output between them. (The usual shapes have one.)
#[test]
fn rows_of_several_blocks() {
    let mut random = Random(88_172_645_463_325_252);
    let rules = match only() {
        None => Activation::ALL.to_vec(),
        Some(_) => vec![Activation::Auto, Activation::F32, Activation::Uint8Positive],
    };
    for (l, (name, layout)) in layouts().into_iter().enumerate() {
        if l % share().min(5) != 0 {
            continue; // an emulator takes one in five, no fewer
        }
        let two_level = matches!(layout, Layout::Coded(Coded { scales: Scales::TwoLevel { .. }, .. }));
        let k = if two_level { 17 * SUPER_BLOCK } else { 4161 };
        // Whole tiles have kernels of their own, for one row of x too.
        for (n, m) in [(33, 7), (64, 1)] {
            let weights = matrix(layout, n, k, &mut random);
            let x = batch(m, k, &mut random);
            for &activation in &rules {
                let options = Options { activation, ..Options::default() };
                let Ok(oracle) = Linear::new(&weights, &options, Isa::Scalar, &Heap::default()) else {
                    continue;
                };
                let want = forward(&oracle, m, &x);
                for &isa in Isa::ALL.iter().filter(|isa| only().map_or(isa.detected(), |only| **isa == only))
                {
                    let layer = Linear::new(&weights, &options, isa, &Heap::default()).unwrap();
                    let case = format!("{name}, {activation:?}, {}, n={n}", isa.name());
                    assert!(forward(&layer, m, &x) == want, "{case}, m={m}");
                    assert!(forward(&layer, 1, &x) == want[..n], "{case}, m=1");
                }
            }
        }
    }
}

/// Rows and groups longer than an int32 sum can hold, with the largest products of either sign.
#[test]
fn sums_longer_than_int32() {
    let row = |bits, values, bases| {
        Layout::Coded(Coded { bits, values, scales: Scales::Row, scale_type: ScaleType::F32, bases })
    };
    let group = |bits, values, len, offset| {
        let scales = Scales::Group { len, offset };
        Layout::Coded(Coded { bits, values, scales, scale_type: ScaleType::F32, bases: 1 })
    };
    let cases = [
        (row(8, Values::Offset(128), 1), 65_504), // the longest that kernels for several rows take
        (row(8, Values::Offset(128), 1), 65_505),
        (row(8, Values::Offset(128), 1), 65_536),
        (row(8, Values::Offset(128), 1), 65_537),
        (row(8, Values::Offset(0), 1), 200_003),
        (row(4, Values::Table(&TABLE), 1), 131_072),
        (row(2, Values::Offset(1), 3), 70_000),
        (row(1, Values::Sign, 1), 66_000),
        (group(8, Values::Offset(128), 65_536, Offset::None), 131_080),
        (group(8, Values::Offset(0), 70_000, Offset::Zero), 140_001),
        (group(6, Values::Offset(32), 66_000, Offset::Minimum), 66_000),
    ];
    let mut random = Random(88_172_645_463_325_252);
    for (layout, k) in cases {
        let weights = matrix(layout, 19, k, &mut random);
        for m in [1, 3] {
            let mut x = batch(m, k, &mut random);
            x[..k].fill(1.0);
            if m > 1 {
                x[k..2 * k].fill(-1.0);
            }
            for activation in [Activation::Auto, Activation::F32] {
                let options = Options { activation, ..Options::default() };
                let layer = |isa| Linear::new(&weights, &options, isa, &Heap::default()).unwrap();
                let want = forward(&layer(Isa::Scalar), m, &x);
                for &isa in Isa::ALL.iter().filter(|isa| isa.detected()) {
                    let got = forward(&layer(isa), m, &x);
                    assert_eq!(got, want, "{layout:?}, {activation:?}, k={k}, m={m}, {}", isa.name());
                }
            }
        }
    }
}

#[test]
fn every_kernel_equals_the_scalar_one() {
    compare(&shapes(false), 12 * share());
}

/// `cargo test --profile sweep --test kernels every_pair -- --ignored --nocapture`.
#[test]
#[ignore = "every pair of sizes for every layout: minutes"]
fn every_kernel_equals_the_scalar_one_in_every_pair_of_sizes() {
    compare(&shapes(false), share());
}

#[test]
#[ignore = "the full product of sizes takes an hour"]
fn every_kernel_equals_the_scalar_one_in_every_shape() {
    compare(&shapes(true), 1);
}

#[test]
fn several_layers_at_once_give_what_each_gives_alone() {
    let mut random = Random(77);
    let heap = Heap::default();
    let pick = ["w4 group 32 F16", "w4 group 32 minimum F16", "w8 group 32 F16"];
    let layers: Vec<Linear> = layouts()
        .into_iter()
        .filter(|(name, _)| pick.iter().any(|p| name.contains(&p[1..])) || name.starts_with("w2 row"))
        .flat_map(|(_, layout)| [(layout, 96), (layout, 33)])
        .map(|(layout, n)| {
            let weights = matrix(layout, n, 320, &mut random);
            Linear::new(&weights, &Options::default(), Isa::best(), &heap).unwrap()
        })
        .collect();
    assert!(layers.len() >= 8);
    for threads in [1, 2, 5] {
        let executor = Executor::with_threads(threads).unwrap();
        for m in [1, 2, 7, 65] {
            let x = batch(m, 320, &mut random);
            let mut ys: Vec<Vec<f32>> = layers.iter().map(|l| vec![0.0; m * l.out_features()]).collect();
            let targets: Vec<Target> = layers
                .iter()
                .zip(&mut ys)
                .map(|(layer, y)| Target::new(layer, MatrixMut::of(y, layer.out_features())))
                .collect();
            bitlinear::layer::forward(&targets, m, MatrixRef::of(&x, 320), None, &heap, &executor).unwrap();
            for (layer, y) in layers.iter().zip(&ys) {
                let together: Vec<u32> = y.iter().map(|v| v.to_bits()).collect();
                assert_eq!(together, forward(layer, m, &x), "m={m}, {threads} threads");
            }
        }
    }
}

/// The rules of `bl_activation` said again in f64, on the weights as they are read back.
#[test]
fn activations_mean_what_the_header_says() {
    let mut random = Random(4_711);
    let wanted =
        ["w2 row F32", "w8 row F32", "w4 group 32 F16", "w4 group 32 minimum F16", "w8 group 32 zero F16"];
    let wanted = [
        &wanted[..],
        &["w6 two-level 16 minimum false F16", "w4 two-level 32 minimum true F16", "w2 row 3 bases"],
    ]
    .concat();
    let mut seen = 0;
    for (name, layout) in layouts() {
        if !wanted.contains(&name.as_str()) {
            continue;
        }
        seen += 1;
        let Layout::Coded(coded) = layout else { unreachable!("all of them are") };
        let (n, k, m) = (70, 512, 3);
        let weights = matrix(layout, n, k, &mut random);
        let x: Vec<f32> = (0..m * k).map(|_| random.float() * 3.0).collect();
        let dense: Vec<Vec<f64>> =
            weights.rows.iter().map(|row| (0..k).map(|c| row.weight(&layout, c) as f64).collect()).collect();
        let own = match coded.scales {
            Scales::Row => k,
            Scales::Group { len, .. } => len,
            Scales::TwoLevel { .. } => SUPER_BLOCK,
        };
        for (activation, low, high, mean) in [
            (Activation::Int8Row, -127.0, 127.0, false),
            (Activation::Int4, -7.0, 7.0, false),
            (Activation::Uint8Positive, 0.0, 255.0, false),
            (Activation::Int8MeanRange, -127.0, 127.0, true),
            (Activation::Int4MeanRange, -7.0, 7.0, true),
            (Activation::Uint8PositiveMeanRange, 0.0, 255.0, true),
        ] {
            let segment = if mean || activation == Activation::Int8Row { k } else { own };
            let mut taken = vec![];
            for x in x.chunks(segment) {
                let kept = |v: &f32| if low == 0.0 { v.max(0.0) as f64 } else { v.abs() as f64 };
                let span = match mean {
                    false => x.iter().map(kept).fold(0.0, f64::max),
                    true => 2.0 * x.iter().map(kept).sum::<f64>() / x.len() as f64,
                };
                let scale = span / high;
                let round = |v: f64| if mean { v.round() } else { v.round_ties_even() };
                taken.extend(x.iter().map(|&v| round(v as f64 / scale).clamp(low, high) * scale));
            }
            let options = Options { activation, ..Options::default() };
            for isa in [Isa::Scalar, Isa::best()] {
                let layer = Linear::new(&weights, &options, isa, &Heap::default()).unwrap();
                assert_eq!(layer.activation(), activation, "{name}");
                for (i, y) in forward(&layer, m, &x).iter().enumerate() {
                    let (row, weights) = (&taken[i / n * k..][..k], &dense[i % n]);
                    let want: f64 = row.iter().zip(weights).map(|(x, w)| x * w).sum();
                    let size: f64 = row.iter().zip(weights).map(|(x, w)| (x * w).abs()).sum();
                    let got = f32::from_bits(*y) as f64;
                    // A code at the edge of a rounding may differ by one from f64's: far less than this.
                    assert!(
                        (got - want).abs() <= 2e-5 * size + 1e-9,
                        "{name} {activation:?} {i}: {got} {want}"
                    );
                }
            }
        }
    }
    assert_eq!(seen, wanted.len());
    // Zero points of eight bits reach 255: no more than 32 768 products of that size fit an int32.
    let scales = Scales::Group { len: 40_000, offset: Offset::Zero };
    let coded = Coded { bits: 8, values: Values::Offset(0), scales, scale_type: ScaleType::F16, bases: 1 };
    let weights = matrix(Layout::Coded(coded), 2, 40_000, &mut random);
    let options = Options { activation: Activation::Uint8Positive, ..Options::default() };
    let refused = Linear::new(&weights, &options, Isa::Scalar, &Heap::default());
    assert!(refused.is_err_and(|e| e.text().contains("32768")));
}
