//! GGUF: what the formats' own tools wrote is read whole, and nothing else gets through.

#[path = "container_common/mod.rs"]
mod common;

use bitlinear::container::{Array, Directory, Item, Kind, Value, gguf};
use bitlinear::error::Status;
use bitlinear::types::Type;
use common::gguf_writer::{File, Kv};
use common::{check, golden, measure, refused};

#[global_allocator]
static COUNTING: common::Counting = common::Counting;

fn array(directory: &Directory, key: &str) -> Array {
    match directory.meta(key).map(|m| m.value) {
        Some(Value::Array(array)) => array,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn every_entry_of_the_golden_file_is_read() {
    let bytes = golden("ggml_all_64x512.gguf");
    let directory = gguf::read(&bytes).unwrap();
    assert_eq!(directory.kind, Kind::Gguf);
    assert_eq!(directory.metadata.len(), 20);
    let value = |key: &str| directory.meta(key).unwrap().value;
    assert_eq!(directory.meta_text("general.architecture"), Some("llama"));
    assert_eq!(value("t.uint8"), Value::U64(200));
    assert_eq!(value("t.int8"), Value::I64(-100));
    assert_eq!(value("t.uint16"), Value::U64(60_000));
    assert_eq!(value("t.int16"), Value::I64(-30_000));
    assert_eq!(value("t.uint32"), Value::U64(4_000_000_000));
    assert_eq!(value("t.int32"), Value::I64(-2_000_000_000));
    assert_eq!(value("t.float32"), Value::F64(1.5));
    assert_eq!(value("t.bool_true"), Value::Bool(true));
    assert_eq!(value("t.bool_false"), Value::Bool(false));
    assert_eq!(directory.meta_text("t.string"), Some("ternary é三値"));
    assert_eq!(value("t.uint64"), Value::U64(9_223_372_036_854_775_813));
    assert_eq!(value("t.int64"), Value::I64(-4_611_686_018_427_387_904));
    assert_eq!(value("t.float64"), Value::F64(-2.25e100));
    assert_eq!(value("general.file_type"), Value::U64(0));

    let items = |key: &str| -> Vec<Value> {
        let array = array(&directory, key);
        (0..array.count).map(|i| directory.item(&array, i, &bytes).unwrap()).collect()
    };
    assert_eq!(items("t.arr_i32"), [1, -2, 3].map(Value::I64));
    assert_eq!(items("t.arr_f32"), [0.5, -1.5].map(Value::F64));
    assert_eq!(items("t.arr_bool"), [true, false].map(Value::Bool));
    let strings = array(&directory, "t.arr_str");
    for (i, expected) in ["a", "", "ü"].iter().enumerate() {
        match directory.item(&strings, i as u64, &bytes) {
            Some(Value::String(s)) => assert_eq!(directory.texts.get(s), expected.as_bytes()),
            other => panic!("{other:?}"),
        }
    }
    let nested = array(&directory, "t.arr_nested");
    assert_eq!((nested.item, nested.count), (Item::Array, 2));
    assert_eq!(directory.item(&nested, 0, &bytes), None);
    assert_eq!(directory.item(&strings, 3, &bytes), None);
    assert!(directory.meta("t.nothing").is_none());
    assert!(directory.meta_text("t.uint8").is_none());
}

#[test]
fn every_tensor_of_the_golden_file_is_read() {
    let bytes = golden("ggml_all_64x512.gguf");
    let directory = gguf::read(&bytes).unwrap();
    let data = 1728; // the header's 1699 bytes, aligned
    let expected = [
        ("f32", Type::F32, 0, 131_072),
        ("f16", Type::F16, 131_072, 65_536),
        ("bf16", Type::Bf16, 196_608, 65_536),
        ("q4_0", Type::Q4_0, 262_144, 18_432),
        ("q4_1", Type::Q4_1, 280_576, 20_480),
        ("q5_0", Type::Q5_0, 301_056, 22_528),
        ("q5_1", Type::Q5_1, 323_584, 24_576),
        ("q8_0", Type::Q8_0, 348_160, 34_816),
        ("q2_k", Type::Q2K, 382_976, 10_752),
        ("q3_k", Type::Q3K, 393_728, 14_080),
        ("q4_k", Type::Q4K, 407_808, 18_432),
        ("q5_k", Type::Q5K, 426_240, 22_528),
        ("q6_k", Type::Q6K, 448_768, 26_880),
        ("tq1_0", Type::Tq1_0, 475_648, 6_912),
        ("tq2_0", Type::Tq2_0, 482_560, 8_448),
        ("iq1_s", Type::Iq1S, 491_008, 6_400),
        ("q1_0", Type::Q1_0, 497_408, 4_608),
    ];
    for (index, (name, ty, offset, size)) in expected.into_iter().enumerate() {
        let name = format!("blk.0.{name}.weight");
        let tensor = directory.tensor(&name).unwrap();
        assert_eq!(directory.name(tensor), name.as_bytes());
        assert_eq!(directory.name(directory.tensor_at(index as u64).unwrap()), name.as_bytes());
        assert_eq!((tensor.ty, tensor.offset, tensor.bytes), (ty, data + offset, size), "{name}");
        assert_eq!((tensor.dims, tensor.shape, tensor.source), (2, [64, 512, 1, 1], 0), "{name}");
    }
    let bias = directory.tensor("blk.0.bias").unwrap();
    assert_eq!((bias.dims, bias.shape, bias.bytes), (1, [64, 1, 1, 1], 256));
    assert_eq!(bias.offset + bias.bytes, bytes.len() as u64);
    assert_eq!(directory.tensors.len(), 18);
    assert!(directory.tensor_at(18).is_none() && directory.tensor_at(u64::MAX).is_none());
    assert!(directory.tensor("blk.0").is_none());
}

#[test]
fn the_other_golden_files_are_read() {
    for (file, ty) in [
        ("bitnet_i2s.gguf", Type::I2S),
        ("bitnet_i2s_arm_qk64.gguf", Type::I2S), // the file does not say: an option of the layer does
        ("ruvllm_t158_id30.gguf", Type::T158),
    ] {
        let bytes = golden(file);
        let directory = gguf::read(&bytes).unwrap();
        check(&directory, &[bytes.len()]);
        let tensor = directory.tensors.iter().find(|t| t.ty == ty).unwrap();
        assert_eq!((tensor.dims, tensor.shape), (2, [64, 512, 1, 1]), "{file}");
    }
}

#[test]
fn every_malformed_file_is_refused_in_its_own_words() {
    let files = common::bad("gguf");
    assert_eq!(files.len(), 18);
    common::distinct(files.iter().map(|(name, bytes)| (name.as_str(), refused(gguf::read(bytes)))));
}

#[test]
fn a_file_cut_anywhere_is_refused_or_lacks_only_padding() {
    for file in
        ["ggml_all_64x512.gguf", "bitnet_i2s.gguf", "bitnet_i2s_arm_qk64.gguf", "ruvllm_t158_id30.gguf"]
    {
        let bytes = golden(file);
        let whole = gguf::read(&bytes).unwrap();
        let used = whole.tensors.iter().map(|t| t.offset + t.bytes).max().unwrap();
        for len in 0..bytes.len() {
            match gguf::read(&bytes[..len]) {
                Ok(cut) => {
                    assert!(len as u64 >= used, "{file} cut to {len} of {used} bytes is read");
                    for (a, b) in cut.tensors.iter().zip(&whole.tensors) {
                        assert_eq!((a.ty, a.shape, a.offset, a.bytes), (b.ty, b.shape, b.offset, b.bytes));
                    }
                }
                Err(error) => {
                    assert!((len as u64) < used, "{file} cut to {len}: {error}");
                    assert!(!error.text().is_empty());
                }
            }
        }
    }
}

#[test]
fn any_flipped_bit_of_a_header_is_refused_or_stays_in_bounds() {
    for file in
        ["ggml_all_64x512.gguf", "bitnet_i2s.gguf", "bitnet_i2s_arm_qk64.gguf", "ruvllm_t158_id30.gguf"]
    {
        let mut bytes = golden(file);
        let whole = gguf::read(&bytes).unwrap();
        let header = whole.tensors.iter().map(|t| t.offset).min().unwrap() as usize;
        for bit in 0..header * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(directory) = gguf::read(&bytes) {
                check(&directory, &[bytes.len()]);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn memory_is_bounded_by_the_length_of_the_file() {
    for (name, bytes) in common::bad("gguf") {
        let peak = measure(|| gguf::read(&bytes).is_ok()).1;
        assert!(peak <= 64 * bytes.len() + 4096, "{name}: {peak} bytes for a file of {}", bytes.len());
    }
    let mut bytes = golden("bitnet_i2s.gguf");
    let header = gguf::read(&bytes).unwrap().tensors.iter().map(|t| t.offset).min().unwrap() as usize;
    bytes.truncate(header + 512);
    for bit in 0..header * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let peak = measure(|| gguf::read(&bytes).is_ok()).1;
        assert!(peak <= 64 * bytes.len() + 4096, "bit {bit}: {peak} bytes");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // The densest things a file can hold: entries, tensors and strings of nothing.
    for (what, bytes) in [
        ("strings", File::new().kv("a", Kv::Strings(vec![""; 100_000])).build()),
        ("entries", (0..20_000).fold(File::new(), |f, i| f.kv(&format!("{i:x}"), Kv::U8(0))).build()),
        ("tensors", (0..20_000).fold(File::new(), |f, i| f.tensor(&format!("{i:x}"), &[1], 24, 1)).build()),
    ] {
        let (read, peak) = measure(|| gguf::read(&bytes).map(drop));
        read.unwrap();
        assert!(peak <= 8 * bytes.len(), "{what}: {peak} bytes for a file of {}", bytes.len());
    }
}

#[test]
fn every_failing_allocation_is_an_error() {
    for file in ["ggml_all_64x512.gguf", "bitnet_i2s.gguf"] {
        let bytes = golden(file);
        let mut failures = 0;
        loop {
            match common::fail_after(failures, || gguf::read(&bytes).map(drop)) {
                Ok(()) => break,
                Err(error) => assert_eq!(error.status(), Status::OutOfMemory, "{error}"),
            }
            failures += 1;
        }
        assert!(failures > 5, "only {failures} allocations were seen");
    }
}

#[test]
fn versions_and_byte_orders() {
    let v3 = File::new().kv("k", Kv::U8(7)).tensor("t", &[4], 0, 16).build();
    let mut v2 = v3.clone();
    v2[4] = 2;
    assert_eq!(gguf::read(&v2).unwrap().meta("k").unwrap().value, Value::U64(7));
    let mut big = v3;
    big[4..8].copy_from_slice(&3u32.to_be_bytes());
    let error = refused(gguf::read(&big));
    assert!(error.contains("big-endian"), "{error}");
}

#[test]
fn names_must_survive_in_c_and_values_need_not() {
    let error = refused(gguf::read(&File::new().kv("a\0b", Kv::U8(1)).build()));
    assert!(error.contains("NUL"), "{error}");
    let error = refused(gguf::read(&File::new().tensor("a\0b", &[1], 0, 4).build()));
    assert!(error.contains("NUL"), "{error}");
    let file = File::new().kv("k", Kv::Bytes(b"a\0\xff".to_vec())).build();
    let directory = gguf::read(&file).unwrap();
    match directory.meta("k").unwrap().value {
        Value::String(s) => assert_eq!(directory.texts.get(s), b"a\0\xff"),
        other => panic!("{other:?}"),
    }
    assert_eq!(directory.meta_text("k"), None);
}

#[test]
fn names_and_keys_are_unique() {
    let error =
        refused(gguf::read(&File::new().kv("k", Kv::U8(1)).kv("j", Kv::U8(1)).kv("k", Kv::U8(2)).build()));
    assert_eq!(error, "metadata key \"k\" is there twice: entries 0 and 2");
    let error = refused(gguf::read(&File::new().tensor("t", &[1], 0, 4).tensor("t", &[1], 0, 4).build()));
    assert_eq!(error, "tensor name \"t\" is there twice: entries 0 and 1");
}

#[test]
fn errors_name_tensor_place_expected_and_found() {
    let mut file = File::new().tensor("one", &[64], 0, 256).tensor("two", &[64], 0, 256);
    file.tensors[1].offset = 128;
    assert_eq!(
        refused(gguf::read(&file.build())),
        "GGUF tensor \"one\": 256 bytes at offset 0 expected, but tensor \"two\" starts at offset 128"
    );
    let file = File::new().tensor("x", &[32], 77, 32).build();
    assert_eq!(refused(gguf::read(&file)), "GGUF tensor 0 of 1: \"x\": type id 77 at byte 45 is not known");
    for id in [4, 5, 9, 15, 31, 32, 33, 37] {
        let error = refused(gguf::read(&File::new().tensor("x", &[256], id, 512).build()));
        assert!(
            error.contains("\"x\"") && error.contains(&format!("type id {id} at byte 45 is ")),
            "{error}"
        );
    }
    let file = File::new().kv("general.alignment", Kv::U32(48)).build();
    assert_eq!(refused(gguf::read(&file)), "general.alignment: a power of two expected, found 48");
}

#[test]
fn alignment_is_the_files() {
    for alignment in [1, 2, 64, 4096] {
        let file = File::new().align(alignment).kv("general.alignment", Kv::U32(alignment));
        let bytes = file.tensor("a", &[3], 24, 3).tensor("b", &[5], 24, 5).build();
        let directory = gguf::read(&bytes).unwrap();
        for tensor in &directory.tensors {
            assert!(tensor.offset.is_multiple_of(alignment as u64));
        }
        check(&directory, &[bytes.len()]);
    }
    let huge = File::new().kv("general.alignment", Kv::U64(1 << 63));
    gguf::read(&huge.build()).unwrap(); // no tensors: nothing to align
    refused(gguf::read(&huge.tensor("t", &[1], 24, 1).build()));
}

#[test]
fn nested_arrays_are_skipped_to_a_depth() {
    for depth in 1..20 {
        let bytes = File::new().kv("deep", Kv::Nested(depth)).kv("after", Kv::U8(5)).build();
        match gguf::read(&bytes) {
            Ok(directory) => {
                assert!(depth <= 9, "{depth}");
                assert_eq!(directory.meta("after").unwrap().value, Value::U64(5));
            }
            Err(error) => assert!(depth > 8 && error.text().contains("nested"), "{depth}: {error}"),
        }
    }
}

#[test]
fn ids_of_recognised_types_are_listed_with_their_size() {
    for (id, ty, bytes) in [
        (16, Type::Iq2Xxs, 66),
        (17, Type::Iq2Xs, 74),
        (18, Type::Iq3Xxs, 98),
        (20, Type::Iq4Nl, 144),
        (21, Type::Iq3S, 110),
        (22, Type::Iq2S, 82),
        (23, Type::Iq4Xs, 136),
        (28, Type::F64, 2048),
        (27, Type::I64, 2048),
        (29, Type::Iq1M, 56),
        (40, Type::Nvfp4, 144),
        (142, Type::Pq2_0, 68),
        (143, Type::Ptq1_0, 56),
    ] {
        let file = File::new().tensor("t", &[256], id, bytes).build();
        let directory = gguf::read(&file).unwrap();
        assert_eq!((directory.tensors[0].ty, directory.tensors[0].bytes), (ty, bytes as u64));
    }
}

#[test]
fn id_42_is_told_by_the_room_of_its_tensors() {
    let ty = |file: &File| gguf::read(&file.build()).map(|d| d.tensor("b").unwrap().ty);
    let newer = File::new().tensor("a", &[256, 16], 42, 1152).tensor("b", &[256, 16], 42, 1152);
    assert_eq!(ty(&newer).unwrap(), Type::Q2_0);
    let older = File::new().tensor("a", &[256, 16], 42, 1088).tensor("b", &[256, 16], 42, 1088);
    assert_eq!(ty(&older).unwrap(), Type::Q2_0Legacy);
    // 128 weights take 36 or 34 bytes, 64 with padding: a larger tensor decides for them too.
    let small = File::new().tensor("b", &[128], 42, 36).tensor("c", &[1], 0, 4);
    let error = refused(ty(&small));
    assert!(error.contains("blocks of 64 or of 128"), "{error}");
    let small =
        File::new().tensor("b", &[128], 42, 34).tensor("a", &[256, 16], 42, 1088).tensor("c", &[1], 0, 4);
    assert_eq!(ty(&small).unwrap(), Type::Q2_0Legacy);
    let mixed = File::new().tensor("a", &[256, 16], 42, 1152).tensor("b", &[256, 16], 42, 1088);
    let error = refused(ty(&mixed));
    assert!(error.contains("\"a\"") && error.contains("\"b\""), "{error}");
    let narrow = File::new().tensor("b", &[64, 4], 42, 72).tensor("c", &[1], 0, 4);
    assert_eq!(ty(&narrow).unwrap(), Type::Q2_0);
}

#[test]
fn ids_of_bitnet_cpp_are_told_from_ggmls() {
    let ty = |arch: &str, id: u32, dims: &[u64], bytes: usize| {
        let file = File::new().kv("general.architecture", Kv::Bytes(arch.into()));
        let file = file.tensor("t", dims, id, bytes).tensor("u", &[1], 0, 4).build();
        gguf::read(&file).map(|d| d.tensor("t").unwrap().ty)
    };
    assert_eq!(ty("bitnet-b1.58", 36, &[512, 4], 512 + 32).unwrap(), Type::I2S);
    assert_eq!(ty("llama", 36, &[512, 4], 512 + 32).unwrap(), Type::I2S);
    assert_eq!(ty("bitnet", 38, &[512, 4], 512 + 32).unwrap(), Type::Tl1);
    for id in [36, 38] {
        let error = refused(ty("llama", id, &[512, 4], 512 * 4 / 32 * 18));
        assert!(error.contains("IQ4_NL"), "{error}");
    }
    assert_eq!(ty("llama", 39, &[512, 6], 512 * 6 / 32 * 17).unwrap(), Type::Mxfp4);
    let tl2 = (256 * 6 / 3 * 5 / 8 + 256 * 6 / 2 * 4 / 8usize).next_multiple_of(32) + 32;
    assert_eq!(ty("bitnet-b1.58", 39, &[512, 6], tl2).unwrap(), Type::Tl2);
    assert_eq!(ty("llama", 39, &[512, 6], tl2).unwrap(), Type::Tl2);
    let error = refused(ty("llama", 39, &[290, 6], tl2));
    assert!(error.contains("mxfp4: rows of a multiple of 32 expected, found 290"), "{error}");
    let error = refused(ty("bitnet-b1.58", 39, &[100, 6], tl2));
    assert!(error.contains("tl2: 100 columns"), "{error}");
}

#[test]
fn id_30_is_ruvllms_only_under_its_own_keys() {
    let file = |arch: &str, bytes: usize| {
        let file = File::new().kv("general.architecture", Kv::Bytes(arch.into()));
        let file = file.kv("craftsman.bitnet.weight_encoding", Kv::Bytes(b"absmean_ternary".to_vec()));
        file.tensor("t", &[4, 512], 30, bytes).tensor("u", &[1], 0, 4).build()
    };
    let read = |bytes: &[u8]| gguf::read(bytes).map(|d| (d.tensors[0].ty, d.tensors[0].shape));
    assert_eq!(read(&file("craftsman", 8 * 66)).unwrap(), (Type::T158, [4, 512, 1, 1]));
    assert_eq!(read(&file("craftsman", 4096)).unwrap(), (Type::Bf16, [4, 512, 1, 1]));
    assert_eq!(read(&file("llama", 4096)).unwrap(), (Type::Bf16, [512, 4, 1, 1]));
    assert!(read(&file("llama", 8 * 66)).is_err());
}

/// `BITLINEAR_TEST_GGUF=file cargo test --test container_gguf -- --nocapture real`: a real model, timed.
#[test]
fn a_real_file_where_one_is_given() {
    let Ok(path) = std::env::var("BITLINEAR_TEST_GGUF") else { return };
    let source = bitlinear::container::Source::map(path.as_ref()).unwrap();
    for _ in 0..3 {
        let start = std::time::Instant::now();
        let (directory, peak) = measure(|| gguf::read(source.bytes()).unwrap());
        println!(
            "{:?} for {} tensors and {} entries; {peak} bytes at the peak",
            start.elapsed(),
            directory.tensors.len(),
            directory.metadata.len()
        );
        check(&directory, &[source.bytes().len()]);
    }
}
