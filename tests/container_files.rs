//! Models in one file, in several, in folders and in memory.

#[path = "container_common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use bitlinear::container::{Access, Files, Kind, Source, Value};
use bitlinear::error::Status;
use bitlinear::types::Type;
use common::gguf_writer::{File, Kv};
use common::{check, golden, golden_path, refused};

#[global_allocator]
static COUNTING: common::Counting = common::Counting;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("bitlinear-files-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) -> Result<Files, bitlinear::error::Error> {
    let mapped = Files::open(path, Access::Map);
    let read = Files::open(path, Access::Read);
    match (&mapped, &read) {
        (Ok(a), Ok(b)) => {
            for (a, b) in [(a, b), (b, a)] {
                let lens: Vec<usize> = a.sources.iter().map(|s| s.bytes().len()).collect();
                check(&a.directory, &lens);
                for tensor in &a.directory.tensors {
                    let other = b.directory.tensor(a.directory.name(tensor)).unwrap();
                    assert_eq!(a.bytes(tensor), b.bytes(other));
                    assert_eq!(a.bytes(tensor).len() as u64, tensor.bytes);
                }
            }
        }
        (Err(a), Err(b)) => assert_eq!((a.status(), a.text()), (b.status(), b.text())),
        (a, b) => panic!("mapped {:?}, read {:?}", a.is_ok(), b.is_ok()),
    }
    mapped
}

/// A safetensors file of U8 tensors.
fn safetensors(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let mut header = "{\"__metadata__\":{\"format\":\"pt\"}".to_string();
    let mut data: Vec<u8> = Vec::new();
    for (name, bytes) in tensors {
        let (begin, end) = (data.len(), data.len() + bytes.len());
        header += &format!(
            ",\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{begin},{end}]}}",
            bytes.len()
        );
        data.extend(*bytes);
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn index(entries: &[(&str, &str)]) -> String {
    let entries: Vec<String> = entries.iter().map(|(t, f)| format!("\"{t}\": \"{f}\"")).collect();
    format!("{{\"metadata\": {{\"total_size\": 9}}, \"weight_map\": {{{}}}}}", entries.join(", "))
}

#[test]
fn a_folder_and_its_config_are_opened() {
    let files = open(&golden_path("hf_autobitlinear")).unwrap();
    assert_eq!((files.directory.kind, files.sources.len()), (Kind::Safetensors, 1));
    let config = files.config.as_ref().unwrap();
    assert!(config.is(&["quantization_config", "linear_class"], "autobitlinear"));
    assert!(config.is(&["quantization_config", "quant_method"], "bitnet"));
    assert!(!config.has(&["quantization_config", "modules_to_not_convert"])); // null
    assert_eq!(config.number(&["rms_norm_eps"]), Some(1e-5));
    assert_eq!(config.integer(&["hidden_size"]), Some(512));

    let files = open(&golden_path("hf_bitlinear/model.safetensors")).unwrap();
    let config = files.config.as_ref().unwrap();
    assert!(!config.has(&["quantization_config", "linear_class"]));
    assert!(open(&golden_path("cortex.safetensors")).unwrap().config.is_none());
    assert!(open(&golden_path("bitnet_i2s.gguf")).unwrap().config.is_none());
}

#[test]
fn a_config_that_is_no_json_is_an_error() {
    let folder = Folder::new("config");
    folder.put("model.safetensors", safetensors(&[("a", b"1")]));
    folder.put("config.json", "{\"a\": ");
    let error = refused(open(&folder.0));
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn an_older_gptq_config_stands_for_the_part_that_is_missing() {
    let folder = Folder::new("gptq");
    folder.put("model.safetensors", safetensors(&[("a", b"1")]));
    folder.put("quantize_config.json", "{\"bits\": 4, \"desc_act\": true}");
    let bits = || open(&folder.0).unwrap().config.unwrap().integer(&["quantization_config", "bits"]);
    assert_eq!(bits(), Some(4));
    folder.put("config.json", "{\"bits\": 2}");
    assert_eq!(bits(), Some(4));
    assert_eq!(open(&folder.0).unwrap().config.unwrap().integer(&["bits"]), Some(2));
    folder.put("config.json", "{\"quantization_config\": {\"bits\": 8}}");
    assert_eq!(bits(), Some(8));
}

#[test]
fn a_folder_with_no_model_is_an_error() {
    let folder = Folder::new("none");
    let error = open(&folder.0).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.text().contains("model.safetensors.index.json"), "{error}");
}

#[test]
fn shards_are_one_model() {
    let folder = Folder::new("shards");
    folder.put("model-00001-of-00002.safetensors", safetensors(&[("a", b"one"), ("c", b"three")]));
    folder.put("deeper/model-00002-of-00002.safetensors", safetensors(&[("b", b"two")]));
    let path = folder.put(
        "model.safetensors.index.json",
        index(&[
            ("a", "model-00001-of-00002.safetensors"),
            ("b", "deeper/model-00002-of-00002.safetensors"),
            ("c", "model-00001-of-00002.safetensors"),
        ]),
    );
    folder.put("config.json", "{\"x\": Infinity}");
    for path in [&folder.0, &path] {
        let files = open(path).unwrap();
        assert_eq!(files.sources.len(), 2);
        let bytes = |name: &str| files.bytes(files.directory.tensor(name).unwrap());
        assert_eq!((bytes("a"), bytes("b"), bytes("c")), (&b"one"[..], &b"two"[..], &b"three"[..]));
        assert_eq!(files.directory.meta_text("format"), Some("pt"));
        assert!(files.config.as_ref().unwrap().has(&["x"]));
    }
}

#[test]
fn shards_that_do_not_match_their_index_are_refused() {
    let folder = Folder::new("bad-shards");
    folder.put("one.safetensors", safetensors(&[("a", b"one")]));
    folder.put("two.safetensors", safetensors(&[("b", b"two")]));
    folder.put("again.safetensors", safetensors(&[("a", b"one")]));
    folder.put("cut.safetensors", &safetensors(&[("d", b"four")])[..40]);
    folder.put("text.safetensors", "not a model");
    for (entries, expected) in [
        (
            &[("a", "one.safetensors"), ("x", "two.safetensors")][..],
            "tensor \"x\" is not in shard \"two.safetensors\"",
        ),
        (
            &[("a", "two.safetensors"), ("b", "one.safetensors")],
            "tensor \"a\" expected in shard \"two.safetensors\"",
        ),
        (&[("a", "one.safetensors"), ("c", "three.safetensors")], "three.safetensors: No such file"),
        (&[("a", "one.safetensors"), ("b", "again.safetensors")], "\"a\" is there twice"),
        (&[("d", "cut.safetensors")], "shard \"cut.safetensors\""),
        (&[("d", "text.safetensors")], "shard \"text.safetensors\""),
        (&[("a", "../bad-shards/one.safetensors")], "plain file name"),
        (&[("a", "/etc/passwd")], "\"/etc/passwd\" is no plain"),
        (&[("a", "sub/../one.safetensors")], "plain file name"),
        (&[("a", "..\\one.safetensors")], "plain file name"),
        (&[("a", "C:one.safetensors")], "plain file name"),
        (&[("a", "")], "plain file name"),
        (&[("a", "..")], "plain file name"),
        (&[("a", "one\\u0000.safetensors")], "NUL"),
        (&[], "names no tensor"),
    ] {
        let path = folder.put("index.json", index(entries).replace("\\o", "\\\\o"));
        let error = open(&path).unwrap_err();
        assert!(matches!(error.status(), Status::BadFile | Status::Io), "{error:?}");
        assert!(error.text().contains(expected), "{expected}: {error}");
    }
    for text in
        ["{\"weight_map\": []}", "{\"weight_map\": {\"a\": 1}}", "{\"weight_map\": {}, \"weight_map\": {}}"]
    {
        refused(open(&folder.put("index.json", text)));
    }
}

fn part(number: u16, count: u16, total: Option<u32>, tensors: &[(&str, u8)]) -> Vec<u8> {
    let mut file = File::new().kv("split.no", Kv::U16(number)).kv("split.count", Kv::U16(count));
    if let Some(total) = total {
        file = file.kv("split.tensors.count", Kv::U32(total));
    }
    if number == 0 {
        file = file.kv("general.name", Kv::Bytes(b"whole".to_vec()));
    }
    for (name, byte) in tensors {
        file = file.tensor_of(name, &[40], 24, &[*byte; 40]);
    }
    file.build()
}

#[test]
fn parts_of_a_gguf_are_one_model() {
    let folder = Folder::new("splits");
    let first = folder.put("m-00001-of-00003.gguf", part(0, 3, Some(3), &[]));
    let second = folder.put("m-00002-of-00003.gguf", part(1, 3, Some(3), &[("a", 1), ("b", 2)]));
    folder.put("m-00003-of-00003.gguf", part(2, 3, Some(3), &[("c", 3)]));
    let files = open(&first).unwrap();
    assert_eq!(
        (files.directory.kind, files.sources.len(), files.directory.tensors.len()),
        (Kind::Gguf, 3, 3)
    );
    for (name, byte) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(files.bytes(files.directory.tensor(name).unwrap()), [byte; 40]);
    }
    assert_eq!(files.directory.meta_text("general.name"), Some("whole"));

    let error = refused(open(&second));
    assert!(error.ends_with("part 2 of 3: open the first, m-00001-of-00003.gguf"), "{error}");
    let error = refused(Files::of(Source::map(&second).unwrap()));
    assert!(error.contains("part 2 of 3"), "{error}");

    folder.put("m-00003-of-00003.gguf", part(2, 3, Some(3), &[("c", 3), ("d", 4)]));
    assert!(refused(open(&first)).contains("split.tensors.count: 3 expected, found 4"));
    folder.put("m-00003-of-00003.gguf", part(2, 3, Some(3), &[("a", 3)]));
    assert!(refused(open(&first)).contains("\"a\" is there twice"));
    folder.put("m-00003-of-00003.gguf", part(1, 3, Some(3), &[("c", 3)]));
    assert!(refused(open(&first)).contains("it says part 2 of 3"));
    folder.put("m-00003-of-00003.gguf", File::new().tensor("c", &[1], 24, 1).build());
    assert!(refused(open(&first)).contains("nothing of being a part"));
    folder.put("m-00003-of-00003.gguf", "GGUF");
    assert!(refused(open(&first)).contains("part 3 of 3"));
    std::fs::remove_file(folder.0.join("m-00003-of-00003.gguf")).unwrap();
    let error = open(&first).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.text().contains("part 3 of 3"), "{error}");
    let renamed = folder.put("renamed.gguf", part(0, 3, None, &[]));
    assert!(refused(open(&renamed)).contains("a name ending in -00001-of-00003.gguf expected"));
    let wrong = folder.put("w-00004-of-00003.gguf", part(3, 3, None, &[]));
    assert!(refused(open(&wrong)).contains("split.no: less than split.count 3 expected"));
    let whole = folder.put("whole.gguf", part(0, 1, Some(1), &[("a", 1)]));
    open(&whole).unwrap();
}

const ARTIFACT: &str = r#"{
    "decoder_x": {"encoding": "binary1", "logical_shape": [1, 2, 3], "scale": 0.60833335, "packed": [45], "len": 6},
    "decoder_y": null,
    "encoder": {"packed": [145, 9], "len": 6, "scale": 0.60833335, "encoding": "ternary2", "logical_shape": [2, 3], "x": {}}
}"#;

#[test]
fn artifacts_become_bytes() {
    let folder = Folder::new("artifact");
    let files = open(&folder.put("lowbit.json", ARTIFACT)).unwrap();
    let directory = &files.directory;
    assert_eq!((directory.kind, directory.tensors.len()), (Kind::Artifact, 4));
    let x = directory.tensor("decoder_x").unwrap();
    assert_eq!((x.ty, x.dims, x.shape), (Type::Binary, 3, [1, 2, 3, 1]));
    assert_eq!(files.bytes(x), [0x2d]);
    let encoder = directory.tensor("encoder").unwrap();
    assert_eq!((encoder.ty, encoder.dims, encoder.shape), (Type::Ternary2, 2, [2, 3, 1, 1]));
    assert_eq!(files.bytes(encoder), [0x91, 0x09]);
    let scale = directory.tensor("encoder.scale").unwrap();
    assert_eq!((scale.ty, scale.shape), (Type::F32, [1; 4]));
    assert_eq!(files.bytes(scale), 0.60833335f32.to_le_bytes());
    assert!(directory.tensors.iter().all(|t| t.offset.is_multiple_of(64)));

    let alone =
        r#"{"encoding":"int8","logical_shape":[6],"scale":0.00958005,"packed":[5,162,0,127,235,84],"len":6}"#;
    let files = Files::of(Source::copy(alone.as_bytes()).unwrap()).unwrap();
    let tensor = files.directory.tensor("artifact").unwrap();
    assert_eq!((tensor.ty, files.bytes(tensor)), (Type::Int8, &[5, 162, 0, 127, 235, 84][..]));
}

#[test]
fn artifacts_of_every_vector_are_read() {
    // The vectors have hex where an artifact has numbers: written again as burn_dragon's serde would.
    let text = std::fs::read_to_string(golden_path("../vectors/burn_dragon_artifact.json")).unwrap();
    let mut cases = 0;
    for case in text.split("{\"case\":").skip(1) {
        let field = |name: &str| {
            let rest = case.split_once(&format!("\"{name}\":")).unwrap().1;
            rest[..rest.find([',', '}']).unwrap()].trim_matches('"').to_string()
        };
        let hex = field("packed_hex");
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16).unwrap()).collect();
        let json = format!(
            "{{\"encoder\":{{\"encoding\":\"{}\",\"logical_shape\":[{len}],\"scale\":{},\"packed\":{bytes:?},\"len\":{len}}}}}",
            field("encoding"),
            field("scale"),
            len = field("len")
        );
        let files = Files::of(Source::copy(json.as_bytes()).unwrap()).unwrap();
        assert_eq!(files.bytes(files.directory.tensor("encoder").unwrap()), bytes);
        let scale: f32 = field("scale").parse().unwrap();
        assert_eq!(files.bytes(files.directory.tensor("encoder.scale").unwrap()), scale.to_le_bytes());
        cases += 1;
    }
    assert_eq!(cases, 18);
}

#[test]
fn artifacts_that_are_wrong_are_refused() {
    let read = |text: &str| Files::of(Source::copy(text.as_bytes()).unwrap());
    for (from, to) in [
        ("binary1", "binary3"),
        ("[1, 2, 3]", "[1, 2, 30]"),
        ("[1, 2, 3]", "[1, 2, 0]"),
        ("[1, 2, 3]", "[1, 1, 1, 2, 3]"),
        ("[1, 2, 3]", "[9223372036854775807, 2]"),
        ("[45]", "[45, 1]"),
        ("[45]", "[256]"),
        ("[45]", "[-1]"),
        ("[45]", "[]"),
        ("[45], ", "[45], \"packed\": [45], "),
        ("0.60833335", "1e99"),
        ("0.60833335", "null"),
        ("\"len\": 6", "\"len\": 7"),
        ("\"scale\": 0.60833335,", ""),
        ("\"decoder_y\": null", "\"decoder_x\": {}"),
        ("\"x\": {}}\n}", "\"x\": {}}"),
    ] {
        let text = ARTIFACT.replacen(from, to, 1);
        assert_ne!(text, ARTIFACT, "{from}");
        refused(read(&text));
    }
    refused(read("{}"));
    refused(read("{\"decoder_x\": null}"));
    // Many small ones must not outgrow the room that their text promises.
    let many = format!(
        "{{{}}}",
        vec![r#""encoder":{"encoding":"int8","logical_shape":[],"scale":1,"packed":[1]}"#; 99].join(",")
    );
    assert!(refused(read(&many)).contains("twice"));
    for len in 0..ARTIFACT.len() {
        refused(read(&ARTIFACT[..len]));
    }
    let mut bytes = ARTIFACT.as_bytes().to_vec();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(files) = Files::of(Source::copy(&bytes).unwrap()) {
            check(&files.directory, &[files.sources[0].bytes().len()]);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn single_files_open_from_memory() {
    for name in ["ggml_all_64x512.gguf", "cortex.safetensors", "hf_bitlinear/model.safetensors"] {
        let bytes = golden(name);
        // SAFETY: `bytes` outlives the files and is not written.
        let files = Files::of(unsafe { Source::borrow(bytes.as_ptr(), bytes.len()) }).unwrap();
        let other = open(&golden_path(name)).unwrap();
        for tensor in &files.directory.tensors {
            let same = other.directory.tensor(files.directory.name(tensor)).unwrap();
            assert_eq!(files.bytes(tensor), other.bytes(same));
        }
        assert!(files.config.is_none());
    }
    let error = refused(Files::of(Source::copy(index(&[("a", "b")]).as_bytes()).unwrap()));
    assert!(error.contains("folder"), "{error}");
    refused(Files::of(Source::copy(b"").unwrap()));
}

#[test]
fn items_of_arrays_are_read_from_the_first_source() {
    let files = open(&golden_path("ggml_all_64x512.gguf")).unwrap();
    match files.directory.meta("t.arr_i32").unwrap().value {
        Value::Array(array) => assert_eq!(files.item(&array, 1), Some(Value::I64(-2))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_failing_allocation_is_an_error() {
    let artifact = ARTIFACT.as_bytes();
    let mut failures = 0;
    while let Err(error) =
        common::fail_after(failures, || Source::copy(artifact).and_then(Files::of).map(drop))
    {
        assert_eq!(error.status(), Status::OutOfMemory, "{error}");
        failures += 1;
    }
    assert!(failures > 5, "only {failures} allocations were seen");
}
