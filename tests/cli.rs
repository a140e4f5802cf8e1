//! The command-line tool, as a shell runs it. Without the feature `cli` there is no tool, and these tests are
//! not built: `cargo test --features cli --test cli`.
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden/ggml_all_64x512.gguf");

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitlinear")).args(arguments).output().unwrap()
}

fn good(arguments: &[&str]) -> String {
    let output = tool(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&good(&[arguments, &["--json"]].concat())).unwrap()
}

/// Fails with that exit code, and says so on stderr.
fn bad(arguments: &[&str], code: i32, part: &str) {
    let output = tool(arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert!(text.contains(part), "{arguments:?}: {text}");
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

#[test]
fn a_model_is_looked_at_quantised_compared_and_verified() {
    let all = json(&["inspect", GOLDEN]);
    assert_eq!(all["container"], "GGUF");
    assert!(
        all["layers"].as_array().unwrap().iter().any(|l| l["name"] == "blk.0.f32" && l["in_features"] == 512)
    );
    assert!(good(&["inspect", GOLDEN, "--layers", "--tensors", "--metadata"]).contains("blk.0.q4_0"));

    for (ty, file) in [("q4_k", "a.gguf"), ("int4", "a.bl"), ("q8_0", "b.gguf")] {
        let target = scratch(file);
        let target = target.to_str().unwrap();
        let only = ["--only", "blk.0.f32"];
        // A packed file holds every layer there is: one of a type that is not read would stop it.
        let done = json(&[&["quantize", GOLDEN, target, "--type", ty][..], &only].concat());
        assert_eq!(done["quantized"], 1, "{ty}");
        assert!(good(&["verify", target]).contains("0 layers are bad"));
        let lost = json(&["compare", GOLDEN, target, "--only", "blk.0.f32"]);
        let layer = &lost["layers"][0];
        assert_eq!(layer["type"], ty);
        assert!(layer["cosine"].as_f64().unwrap() > 0.99 && layer["relative_error"].as_f64().unwrap() > 1e-4);
        assert!(layer["compression"].as_f64().unwrap() > 3.0);
        let strict = ["compare", GOLDEN, target, "--only", "blk.0.f32", "--at-most", "1e-6"];
        assert_eq!(tool(&strict).status.code(), Some(1));
    }
    let speeds = json(&["bench", GOLDEN, "--only", "blk.0.q4_0", "--rows", "1,4", "--time", "1"]);
    assert_eq!(speeds["layers"].as_array().unwrap().len(), 2);
    assert!(speeds["layers"][0]["kernel"].as_str().unwrap().contains("w4g_i8_"), "{speeds}");
    let speed = ["bench", GOLDEN, "--only", "blk.0.", "--rows", "1", "--time", "1", "--activation"];
    let floats = json(&[&speed[..], &["f32"]].concat());
    let kernels = |speeds: &Value| -> Vec<String> {
        let layers = speeds["layers"].as_array().unwrap().iter();
        layers.map(|l| l["kernel"].as_str().unwrap().to_string()).collect()
    };
    assert!(kernels(&floats).iter().all(|k| k.contains("_f32_")), "{floats}");
    // Plain floats meet no integers, and are named.
    let integers = tool(&[&speed[..], &["int8-row", "--json"]].concat());
    let told = String::from_utf8_lossy(&integers.stderr);
    assert!(told.contains("blk.0.f32: left out: ") && !told.contains("blk.0.q4_0"), "{told}");
    let integers: Value = serde_json::from_slice(&integers.stdout).unwrap();
    assert!(kernels(&integers).iter().all(|k| k.contains("_i8_")), "{integers}");
    assert!(kernels(&integers).len() < kernels(&floats).len(), "{integers}");
    bad(&[&speed[..], &["int7"]].concat(), 2, "auto, f32, int8-row, int8-group, int4");
    assert_eq!(all["metadata"]["general.architecture"], "llama");
}

/// A safetensors file of F32 layers: names, columns and weights.
fn layers(file: &str, layers: &[(&str, usize, Vec<f32>)]) -> String {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, columns, weights) in layers {
        let start = data.len();
        data.extend(weights.iter().flat_map(|w| w.to_le_bytes()));
        let shape = [weights.len() / columns, *columns];
        header.insert(
            format!("{name}.weight"),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(data);
    let path = scratch(file);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|k| (k as f32 * 0.37).sin()).collect()
}

#[test]
fn a_broken_model_is_within_no_bound() {
    let whole = layers("whole.safetensors", &[("a", 32, wave(128)), ("b", 32, wave(128))]);
    let less = layers("less.safetensors", &[("a", 32, wave(128))]);
    let mut weights = wave(128);
    weights[77] = f32::NAN;
    let nan = layers("nan.safetensors", &[("a", 32, weights), ("b", 32, wave(128))]);
    let code = |other: &str, most: &str| tool(&["compare", &whole, other, "--at-most", most]).status.code();
    assert_eq!(code(&whole, "0"), Some(0));
    assert_eq!(code(&nan, "1000"), Some(1));
    assert_eq!(code(&nan, "inf"), Some(1));
    bad(&["compare", &whole, &less, "--at-most", "1000"], 1, "b: not in ");
    // Without a bound it is no failure, but it is said.
    assert_eq!(json(&["compare", &whole, &less])["missing"], serde_json::json!(["b"]));
    assert_eq!(json(&["compare", &whole, &less, "--only", "a"])["missing"], serde_json::json!([]));
    for wrong in ["nan", "-1", "much"] {
        bad(&["compare", &whole, &whole, &format!("--at-most={wrong}")], 2, "a number of 0 or more expected");
    }
}

/// Exit code 1 and an object that says what is wrong, whether the file can be parsed or not.
#[test]
fn a_bad_file_is_an_answer() {
    let verdict = |path: &str| {
        let output = tool(&["verify", path, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{path}: {}", String::from_utf8_lossy(&output.stderr));
        bad(&["verify", path], 1, path);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        said["problem"].as_str().unwrap().to_owned()
    };
    let whole = layers("to-pack.safetensors", &[("a", 32, wave(4096))]);
    let packed = scratch("flipped.bl");
    let packed = packed.to_str().unwrap();
    good(&["quantize", &whole, packed, "--type", "int4"]);
    assert_eq!(json(&["verify", packed])["problem"], "");
    let mut bytes = std::fs::read(packed).unwrap();
    let last = bytes.len() - 300;
    bytes[last] ^= 1;
    std::fs::write(packed, bytes).unwrap();
    assert!(verdict(packed).contains("sum "), "{}", verdict(packed));

    let cut = scratch("cut-short.gguf");
    std::fs::write(&cut, &std::fs::read(GOLDEN).unwrap()[..9000]).unwrap();
    assert_ne!(verdict(cut.to_str().unwrap()), "");

    let folder = scratch("sharded");
    std::fs::create_dir_all(&folder).unwrap();
    let index = r#"{"weight_map": {"a.weight": "not-there.safetensors"}}"#;
    let path = folder.join("model.safetensors.index.json");
    std::fs::write(&path, index).unwrap();
    assert!(verdict(path.to_str().unwrap()).contains("not-there"));
    assert!(verdict(folder.to_str().unwrap()).contains("not-there"));
}

#[test]
fn what_is_wrong_is_said() {
    bad(&[], 2, "Usage");
    bad(&["quantize", GOLDEN, "x.gguf"], 2, "--type");
    bad(&["quantize", GOLDEN, "x.gguf", "--type", "q9"], 2, "no type is named `q9`");
    bad(&["quantize", GOLDEN, "x.gguf", "--type", "q4_0", "--compensate"], 2, "--calibration");
    bad(&["inspect", "/nowhere.gguf"], 2, "/nowhere.gguf");
    bad(
        &["quantize", GOLDEN, "/nowhere/x.gguf", "--type", "q4_0", "--only", "blk.0.f32"],
        2,
        "/nowhere/x.gguf",
    );
    bad(&["quantize", GOLDEN, "x.gguf", "--type", "q4_0", "--only", "q8_0"], 2, "q8_0 already");
    let cut = scratch("cut.gguf");
    std::fs::write(&cut, &std::fs::read(GOLDEN).unwrap()[..9000]).unwrap();
    bad(&["verify", cut.to_str().unwrap()], 1, "cut.gguf");
    bad(&["verify", "/nowhere.gguf"], 2, "/nowhere.gguf");
    bad(&["compare", GOLDEN, GOLDEN, "--only", "nothing"], 2, "no layer of one name with `nothing` in it");
    for threads in ["1025", "4294967297"] {
        bad(&["compare", GOLDEN, GOLDEN, "--threads", threads], 2, "0..=1024");
        bad(&["bench", GOLDEN, "--threads", threads], 2, "0..=1024");
    }
    // Those that work on one thread do not pretend to use more.
    for command in ["inspect", "verify"] {
        bad(&[command, GOLDEN, "--threads", "2"], 2, "--threads");
    }
    let quantize =
        |more: &[&'static str]| [&["quantize", GOLDEN, "x.gguf", "--type", "q8_0"][..], more].concat();
    bad(
        &quantize(&["--only", "blk.0.f32", "--only", "nothing"]),
        2,
        "--only: there is no layer with `nothing`",
    );
    bad(&quantize(&["--set", "nothing=q8_0"]), 2, "--set: there is no layer with `nothing`");
    bad(&quantize(&["--meta", "=x"]), 2, "the key is empty");
    bad(&quantize(&["--meta", "a=1", "--meta", "b=1", "--meta", "a=2"]), 2, "--meta a: given twice");
    let target = scratch("much-memory.gguf");
    let target = target.to_str().unwrap();
    let memory = (1u64 << 44) + 1;
    let memory = ["--only", "blk.0.f32", "--memory", &memory.to_string()];
    good(&[&["quantize", GOLDEN, target, "--type", "q8_0"][..], &memory].concat());
    bad(&["calibrate", GOLDEN, "-o", "x.cal", "--samples", "0"], 2, "--samples");
    let weights = scratch("weights.gguf");
    let weights = weights.to_str().unwrap();
    good(&["quantize", GOLDEN, weights, "--type", "q8_0", "--only", "blk.0.f32"]);
    bad(&["calibrate", weights, "-o", "x.cal"], 2, "rows of x are f32, f16 or bf16, not ");
    bad(&["bench", GOLDEN, "--only", "nothing"], 2, "no layer with `nothing` in its name");
    bad(&["bench", GOLDEN, "--rows", "0"], 2, "--rows: at least 1");
    bad(&["bench", GOLDEN, "--rows", "1,18446744073709551615"], 2, "--rows: at most 65536");
}

/// A name may be made to clear the screen, or to look like another line.
#[test]
fn a_terminal_gets_no_control_characters_of_a_file() {
    let name = "a\u{1b}[2J\nb\u{202e}c";
    let file = layers("control.safetensors", &[(name, 32, wave(64))]);
    let less = layers("no-control.safetensors", &[("a", 32, wave(64)), (name, 32, vec![f32::NAN; 64])]);
    for arguments in [
        &["inspect", &file, "--layers", "--tensors"][..],
        &["compare", &file, &file],
        &["bench", &file, "--rows", "1", "--time", "1"],
    ] {
        let text = good(arguments);
        assert!(text.contains(r"a\u{1b}[2J\nb\u{202e}c"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    }
    let output = tool(&["verify", &less]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(r"a\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
    assert_eq!(json(&["inspect", &file])["layers"][0]["name"], name);

    let target = scratch("control.gguf");
    let target = target.to_str().unwrap();
    good(&["quantize", GOLDEN, target, "--type", "q8_0", "--only", "blk.0.f32", "--meta", "k\u{1b}=v\u{1b}"]);
    let text = good(&["inspect", target, "--metadata"]);
    assert!(text.contains(r#"k\u{1b} = "v\u{1b}""#) && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn the_kind_of_a_file_follows_from_its_name_in_any_case() {
    for (file, kind) in [("up.GGUF", "GGUF"), ("up.SafeTensors", "safetensors"), ("up.bl", "bitlinear")] {
        let source = layers("case.safetensors", &[("a", 256, wave(4096))]);
        let target = scratch(file);
        let target = target.to_str().unwrap();
        good(&["quantize", &source, target, "--type", "f16"]);
        assert_eq!(json(&["inspect", target])["container"], kind);
    }
}

#[test]
fn help_teaches() {
    for (command, text) in [
        ("", "bitlinear compare model.gguf small.gguf"),
        ("quantize", "--type int4 --group 32 --calibration known.cal --compensate"),
        ("calibrate", "[rows, in_features]"),
        ("compare", "--at-most 0.1"),
        ("bench", "--rows 1,8,128"),
    ] {
        let arguments = [&[command][..], &["--help"]].concat();
        let arguments: Vec<&str> = arguments.into_iter().filter(|a| !a.is_empty()).collect();
        assert!(good(&arguments).contains(text), "{command}");
    }
}

/// `bitlinear inspect ... | head -1`: the reader goes away before all is written.
#[test]
#[cfg(unix)]
fn a_reader_that_stops_is_no_panic() {
    use std::io::Read;
    let mut child = Command::new(env!("CARGO_BIN_EXE_bitlinear"))
        .args(["inspect", GOLDEN, "--tensors", "--layers", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    assert_eq!(text, "");
}

/// What cannot be printed is an error, not a panic: a script must not take a cut table for a whole one.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_stdout_is_an_error() {
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [
        &["inspect", GOLDEN][..],
        &["inspect", GOLDEN, "--metadata"],
        &["inspect", GOLDEN, "--json"],
        &["verify", GOLDEN],
        &["compare", GOLDEN, GOLDEN, "--only", "blk.0.f32"],
        &["bench", GOLDEN, "--only", "blk.0.q4_0", "--rows", "1", "--time", "1"],
        &["--help"],
        &["--version"],
    ] {
        let run = |stderr: std::process::Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bitlinear"));
            command.args(arguments).stdout(full()).stderr(stderr).output().unwrap()
        };
        let output = run(std::process::Stdio::piped());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains("could not be written"), "{arguments:?}: {text}");
        assert_eq!(run(full().into()).status.code(), Some(2), "{arguments:?}");
    }
}

/// A folder with a model of many layers of zeros, which takes seconds to quantise.
#[cfg(unix)]
fn long_work(name: &str) -> PathBuf {
    const LAYERS: usize = 400;
    const BYTES: usize = 1024 * 1024 * 4;
    let folder = scratch(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let mut header = serde_json::Map::new();
    for k in 0..LAYERS {
        let offsets = [k * BYTES, (k + 1) * BYTES];
        header.insert(
            format!("l{k}.weight"),
            serde_json::json!({"dtype": "F32", "shape": [1024, 1024], "data_offsets": offsets}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    let path = folder.join("zeros.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    // A hole in the file: it takes no room.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + LAYERS * BYTES) as u64).unwrap();
    folder
}

#[cfg(unix)]
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_no_part_of_a_file() {
    let folder = long_work("stopped");
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitlinear"));
        // What a shell starts in the background ignores Ctrl-C, and these tests may be that.
        // SAFETY: signal() may be called between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut child = command
            .current_dir(&folder)
            .args(["quantize", "zeros.safetensors", "small.gguf", "--type", "q8_0", "--threads", "1"])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Part of the file is there.
        while names(&folder).len() < 2 {
            assert_eq!(child.try_wait().unwrap(), None, "it ended before it could be stopped");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // SAFETY: the process is a child that was not waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains("no file was written"), "{text}");
        assert_eq!(names(&folder), ["zeros.safetensors"]);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[cfg(unix)]
fn a_file_past_the_limit_of_the_shell_is_an_error() {
    let folder = scratch("limited");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let source = layers("limited.safetensors", &[("a", 256, wave(65536))]);
    let output = Command::new("sh")
        .current_dir(&folder)
        .args(["-c", "ulimit -f 8; exec \"$0\" quantize \"$1\" x.gguf --type q8_0"])
        .args([env!("CARGO_BIN_EXE_bitlinear"), &source])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("x.gguf"), "{text}");
    assert_eq!(names(&folder), [""; 0]);
}
