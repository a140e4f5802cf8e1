//! Chores of the project: `cargo xtask header [--check]`, `cargo xtask kernels [--check] [--tools FOLDER]`,
//! `cargo xtask install [--prefix FOLDER] ...`.

mod install;
mod kernels;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["header"] => header(false),
        ["header", "--check"] => header(true),
        ["kernels", ..] => kernels::kernels(&words[1..]),
        ["install", ..] => install::install(&words[1..]),
        _ => Err("usage: cargo xtask header [--check]\n       cargo xtask kernels [--check | --raw FOLDER] [--tools FOLDER]\n       cargo xtask install [--prefix FOLDER] \
            [--destdir FOLDER] [--libdir FOLDER] [--includedir FOLDER]"
            .to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("xtask: {text}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files of src/capi whose names are kept.
const STABLE: [&str; 12] = [
    "enums",
    "types",
    "diagnostics",
    "context",
    "profile",
    "model",
    "layer",
    "forward",
    "device",
    "rotate",
    "save",
    "convert",
];
/// Those that may still change.
const UNSTABLE: [&str; 9] =
    ["quantize", "calibration", "compare", "low_bit", "codes", "heads", "train", "state", "runtime"];
const UNSTABLE_TEXT: &str = "
/*
 * UNSTABLE UNTIL 1.0: what stands below may change with any minor version. The rules at the top hold.
 */

";

/// Writes include/bitlinear.h from src/capi, or says that it is not what would be written.
fn header(check: bool) -> Result<(), String> {
    let root = root();
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let version = install::version()?;
    let parts: Vec<&str> = version.split('.').collect();
    let [major, minor, patch] = parts[..] else { return Err(format!("version {version} is not x.y.z")) };
    let text = config.after_includes.take().ok_or("cbindgen.toml has no after_includes")?;
    let text = text.replace("@MAJOR@", major).replace("@MINOR@", minor).replace("@PATCH@", patch);
    let unstable_config = cbindgen::Config {
        include_guard: None,
        sys_includes: Vec::new(),
        autogen_warning: None,
        cpp_compat: false,
        ..config.clone()
    };
    config.after_includes = Some(text);
    let generate = |config: cbindgen::Config, files: &[&str]| -> Result<String, String> {
        let mut builder = cbindgen::Builder::new().with_config(config);
        for file in files {
            builder = builder.with_src(root.join("src/capi").join(file).with_extension("rs"));
        }
        let mut bytes = Vec::new();
        builder.generate().map_err(|e| e.to_string())?.write(&mut bytes);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    // In the order in which the header is read.
    let stable = generate(config, &STABLE)?;
    let unstable = generate(unstable_config, &UNSTABLE)?;
    let end = "\n#ifdef __cplusplus\n}  // extern \"C\"";
    let (head, tail) = stable.rsplit_once(end).ok_or("the header does not end as expected")?;
    let header = format!("{head}{UNSTABLE_TEXT}{unstable}{end}{tail}");
    // rustdoc's heading for the contract of an unsafe function; in C that contract is the header.
    let safety = " *\n * # Safety\n * As the rules at the top of bitlinear.h say.\n";
    let bytes = one_line_comments(&header.replace(safety, "")).into_bytes();
    let path = root.join("include/bitlinear.h");
    if !check {
        return std::fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()));
    }
    if std::fs::read(&path).ok().as_deref() == Some(&bytes[..]) {
        return Ok(());
    }
    Err("include/bitlinear.h is not what src/capi says: run `cargo xtask header` and commit it".into())
}

/// `/**`, ` * text`, ` */` on three lines become `/** text */` on one where it fits.
fn one_line_comments(header: &str) -> String {
    let lines: Vec<&str> = header.lines().collect();
    let (mut out, mut i) = (String::with_capacity(header.len()), 0);
    while i < lines.len() {
        let indent = &lines[i][..lines[i].len() - lines[i].trim_start().len()];
        let text = lines.get(i + 1).and_then(|l| l.trim_start().strip_prefix("* "));
        match (lines[i].trim(), text, lines.get(i + 2).map(|l| l.trim())) {
            ("/**", Some(text), Some("*/")) if indent.len() + text.len() + 7 <= 100 => {
                out.push_str(&format!("{indent}/** {text} */\n"));
                i += 3;
            }
            _ => {
                out.push_str(lines[i]);
                out.push('\n');
                i += 1;
            }
        }
    }
    out
}
