//! safetensors: what its own library wrote is read whole, and nothing else gets through.

#[path = "container_common/mod.rs"]
mod common;

use bitlinear::container::{Kind, Value, read, safetensors};
use bitlinear::error::Status;
use bitlinear::types::Type;
use common::{check, golden, measure, refused};

#[global_allocator]
static COUNTING: common::Counting = common::Counting;

const GOLDEN: &[&str] = &[
    "cortex.safetensors",
    "int4_layouts.safetensors",
    "hf_bitlinear/model.safetensors",
    "hf_autobitlinear/model.safetensors",
    "hf_online/model.safetensors",
];

/// A file of that header and that many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0xa5);
    file
}

/// A file of one tensor "t".
fn one(fields: &str, data: usize) -> Vec<u8> {
    file(&format!("{{\"t\":{{{fields}}}}}"), data)
}

#[test]
fn golden_files_are_read() {
    let bytes = golden("hf_autobitlinear/model.safetensors");
    let directory = read(&bytes).unwrap();
    assert_eq!(directory.kind, Kind::Safetensors);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    for tensor in &directory.tensors {
        println!("{} {tensor:?}", String::from_utf8_lossy(directory.name(tensor)));
        assert!(tensor.offset >= header);
    }
    let packed = directory.tensors.iter().find(|t| t.ty == Type::U8).unwrap();
    assert_eq!((packed.dims, packed.shape, packed.bytes), (2, [16, 512, 1, 1], 8192));
    for name in GOLDEN {
        let bytes = golden(name);
        let directory = safetensors::read(&bytes).unwrap();
        check(&directory, &[bytes.len()]);
        let data: u64 = directory.tensors.iter().map(|t| t.bytes).sum();
        let first = directory.tensors.iter().map(|t| t.offset).min().unwrap();
        assert_eq!(first + data, bytes.len() as u64, "{name}");
    }
    let int4 = safetensors::read(&golden("int4_layouts.safetensors")).unwrap();
    assert!(int4.tensors.iter().any(|t| t.ty == Type::I32));
    assert!(int4.tensors.iter().any(|t| t.ty == Type::F16));
}

#[test]
fn every_malformed_file_is_refused_in_its_own_words() {
    let mut files = common::bad("safetensors");
    assert_eq!(files.len(), 7);
    files.extend(common::bad("gguf"));
    let text = |bytes: &[u8], name: &str| {
        refused(if name.ends_with("gguf") { read(bytes) } else { safetensors::read(bytes) })
    };
    common::distinct(files.iter().map(|(name, bytes)| (name.as_str(), text(bytes, name))));
    for (name, bytes) in &files {
        refused(read(bytes).map_err(|e| e.within(format_args!("{name}"))));
    }
}

#[test]
fn a_cut_file_is_refused_and_so_is_one_with_more() {
    for name in GOLDEN {
        let mut bytes = golden(name);
        for len in 0..bytes.len() {
            assert!(safetensors::read(&bytes[..len]).is_err(), "{name} cut to {len}");
            assert!(read(&bytes[..len]).is_err(), "{name} cut to {len}");
        }
        bytes.push(0);
        let error = refused(safetensors::read(&bytes));
        assert!(error.contains("bytes of data expected"), "{error}");
    }
}

#[test]
fn any_flipped_bit_of_a_header_is_refused_or_stays_in_bounds() {
    for name in GOLDEN {
        let mut bytes = golden(name);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for bit in 0..header * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (read, peak) = measure(|| read(&bytes));
            assert!(peak <= 64 * bytes.len() + 4096, "{name}, bit {bit}: {peak} bytes");
            if let Ok(directory) = read {
                check(&directory, &[bytes.len()]);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn memory_is_bounded_by_the_length_of_the_file() {
    for (name, bytes) in common::bad("safetensors") {
        let peak = measure(|| safetensors::read(&bytes).is_ok()).1;
        assert!(peak <= 64 * bytes.len() + 4096, "{name}: {peak} bytes for a file of {}", bytes.len());
    }
    let entries: Vec<String> = (0..50_000).map(|i| format!("\"{i:x}\":\"\"")).collect();
    let metadata = file(&format!("{{\"__metadata__\":{{{}}}}}", entries.join(",")), 0);
    let fields = "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    let entries: Vec<String> = (0..50_000).map(|i| format!("\"{i:x}\":{fields}")).collect();
    let tensors = file(&format!("{{{}}}", entries.join(",")), 0);
    for (what, bytes) in [("metadata", metadata), ("tensors", tensors)] {
        let (read, peak) = measure(|| safetensors::read(&bytes).map(drop));
        read.unwrap();
        assert!(peak <= 12 * bytes.len(), "{what}: {peak} bytes for a file of {}", bytes.len());
    }
}

#[test]
fn every_failing_allocation_is_an_error() {
    let bytes = golden("int4_layouts.safetensors");
    let mut failures = 0;
    while let Err(error) = common::fail_after(failures, || safetensors::read(&bytes).map(drop)) {
        assert_eq!(error.status(), Status::OutOfMemory, "{error}");
        failures += 1;
    }
    assert!(failures > 5, "only {failures} allocations were seen");
}

#[test]
fn dtypes_are_sized() {
    for (dtype, ty, bits) in [
        ("F32", Type::F32, 32),
        ("F16", Type::F16, 16),
        ("BF16", Type::Bf16, 16),
        ("F64", Type::F64, 64),
        ("U8", Type::U8, 8),
        ("I8", Type::I8, 8),
        ("I16", Type::I16, 16),
        ("U16", Type::U16, 16),
        ("I32", Type::I32, 32),
        ("U32", Type::U32, 32),
        ("I64", Type::I64, 64),
        ("U64", Type::U64, 64),
        ("BOOL", Type::Bool, 8),
        ("F8_E4M3", Type::F8E4M3, 8),
        ("F8_E5M2", Type::F8E5M2, 8),
        ("F8_E8M0", Type::Other, 8),
        ("F4", Type::Other, 4),
        ("F6_E2M3", Type::Other, 6),
        ("C64", Type::Other, 64),
    ] {
        let bytes = 8 * bits / 8;
        let fields = format!("\"dtype\":\"{dtype}\",\"shape\":[8],\"data_offsets\":[0,{bytes}]");
        let directory = safetensors::read(&one(&fields, bytes)).unwrap();
        assert_eq!((directory.tensors[0].ty, directory.tensors[0].bytes), (ty, bytes as u64), "{dtype}");
    }
    let error = refused(safetensors::read(&one("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]", 2)));
    assert!(error.contains("\"t\": 3 elements of 4 bits"), "{error}");
    let error = refused(safetensors::read(&one("\"dtype\":\"Q4\",\"shape\":[4],\"data_offsets\":[0,2]", 2)));
    assert_eq!(error, "safetensors tensor \"t\": dtype \"Q4\" is not known");
}

#[test]
fn shapes_of_any_number_of_dimensions_are_listed() {
    for (shape, dims, expected) in [
        ("", 0, [1, 1, 1, 1]),
        ("24", 1, [24, 1, 1, 1]),
        ("2,3,4", 3, [2, 3, 4, 1]),
        ("2,3,2,2", 4, [2, 3, 2, 2]),
        ("2,3,2,1,2", 4, [6, 2, 1, 2]),
        ("1,2,3,2,1,2", 4, [6, 2, 1, 2]),
        ("2,0,3,4,5", 4, [0, 3, 4, 5]),
    ] {
        let bytes: u64 = if dims == 0 { 1 } else { expected.iter().product() };
        let fields = format!("\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[0,{bytes}]");
        let directory = safetensors::read(&one(&fields, bytes as usize)).unwrap();
        assert_eq!((directory.tensors[0].dims, directory.tensors[0].shape), (dims, expected), "[{shape}]");
    }
}

#[test]
fn names_metadata_and_unknown_fields() {
    let header = concat!(
        r#"{"__metadata__":{"format":"pt","k\u00e9y":"a\u0000b"},"#,
        r#""b\"\ud83d\ude00":{"new":[{}],"shape":[2],"data_offsets":[4,6],"dtype":"U8"},"#,
        r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   "#
    );
    let directory = safetensors::read(&file(header, 6)).unwrap();
    assert_eq!(directory.meta_text("format"), Some("pt"));
    match directory.meta("kéy").unwrap().value {
        Value::String(s) => assert_eq!(directory.texts.get(s), b"a\0b"),
        other => panic!("{other:?}"),
    }
    let at = header.len() as u64 + 8;
    assert_eq!(directory.tensor("b\"😀").unwrap().offset, at + 4);
    assert_eq!(directory.tensor("a").unwrap().offset, at);
    assert_eq!(directory.name(&directory.tensors[0]), "b\"😀".as_bytes());
}

#[test]
fn headers_that_are_wrong_are_refused() {
    let good = r#""dtype":"U8","shape":[4],"data_offsets":[0,4]"#;
    safetensors::read(&one(good, 4)).unwrap();
    let empty = r#""dtype":"U8","shape":[0,9223372036854775807],"data_offsets":[0,0]"#;
    safetensors::read(&one(empty, 0)).unwrap();
    for fields in [
        r#""dtype":"U8","shape":[4]"#,
        r#""dtype":"U8","data_offsets":[0,4]"#,
        r#""shape":[4],"data_offsets":[0,4]"#,
        r#""dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[4],"data_offsets":[0]"#,
        r#""dtype":"U8","shape":[4],"data_offsets":[0,4,4]"#,
        r#""dtype":"U8","shape":[4],"data_offsets":[0,-4]"#,
        r#""dtype":"U8","shape":[4.0],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,4]"#,
        r#""dtype":"U8","shape":[9223372036854775807,9223372036854775807,0],"data_offsets":[0,0]"#,
        r#""dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]"#,
        r#""dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]"#,
        r#""dtype":"U8","shape":[4611686018427387904,4,0,1,1],"data_offsets":[0,0]"#,
        r#""dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,4]"#,
        r#""dtype":8,"shape":[4],"data_offsets":[0,4]"#,
        r#""dtype":null,"shape":[4],"data_offsets":[0,4]"#,
    ] {
        let error = refused(safetensors::read(&one(fields, 4)));
        assert!(error.contains("\"t\""), "{fields}: {error}");
    }
    for header in [
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}"#,
        r#"{"__metadata__":{"a":"1","a":"2"},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":{},"__metadata__":{},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":{"a":1},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        r#"{"a\u0000":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}"#,
        r#"{"a":[]}"#,
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}x"#,
        r#" {"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#,
        r#"[]"#,
    ] {
        refused(safetensors::read(&file(header, 4)));
    }
}

#[test]
fn what_is_neither_is_refused_by_what_it_is() {
    let expected = "a GGUF file, safetensors file or burn_dragon artifact expected, found an empty file";
    assert_eq!(refused(read(b"")), expected);
    assert!(refused(read(b"{\"a\": 1}")).ends_with("found JSON"));
    assert!(refused(read(b"PK\x03\x04rest of a zip")).contains("begins \"PK"));
}
