//! What the tests of the built library share: where it is, which tools there are, running programs.
#![allow(dead_code, unreachable_pub)] // every test binary uses some of it

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_path_buf()
}

/// An empty folder of that name for a test's own files.
pub fn fresh(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder of the library as it is released: `libbitlinear.so`, `.a` and `.so.0`.
pub fn release() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        build("release", &["--release", "--features", "reserve", "--crate-type", "cdylib,staticlib"])
    })
}

/// The folder of a second build, which has `bl_test_fault` and was compiled otherwise.
pub fn hooks() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        build("hooks", &["--profile", "hooks", "--features", "test-hooks,reserve", "--crate-type", "cdylib"])
    })
}

fn build(profile: &str, arguments: &[&str]) -> PathBuf {
    // Through `cargo rustc`, as `make library` does: plain `cargo build` cannot run LTO.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["rustc", "--quiet", "--lib"]).args(arguments);
    cargo.env("CARGO_TARGET_DIR", target());
    good(&mut cargo);
    let folder = target().join(profile);
    // The name that programs look for at run time.
    let _ = std::os::unix::fs::symlink("libbitlinear.so", folder.join("libbitlinear.so.0"));
    folder
}

/// Runs a command that must succeed; its standard output.
#[track_caller]
pub fn good(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command that must fail; what it printed.
#[track_caller]
pub fn bad(command: &mut Command) -> String {
    let output = output(command);
    assert!(!output.status.success(), "{command:?} should fail\n{}", both(&output));
    both(&output)
}

#[track_caller]
fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn both(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b).into_owned()).concat()
}

/// The tool, or `None` after saying that what needs it is not run. In CI a missing tool is installed
/// first; with BITLINEAR_REQUIRE_TOOLS=1 one that is still missing fails the test.
#[track_caller]
pub fn tool(name: &str, for_what: &str) -> Option<PathBuf> {
    if let Some(found) = find(name) {
        return Some(found);
    }
    let wanted = |variable: &str| std::env::var_os(variable).is_some_and(|v| !v.is_empty() && v != "0");
    if wanted("CI") || wanted("BITLINEAR_INSTALL_TOOLS") {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        let _ = Command::new("sh").current_dir(root()).args(["tests/tools.sh", name]).output();
        if let Some(found) = find(name) {
            return Some(found);
        }
    }
    not_run(&format!("{for_what}: no `{name}` here"));
    None
}

/// Says that something is not run.
#[track_caller]
pub fn not_run(what: &str) {
    assert!(std::env::var_os("BITLINEAR_REQUIRE_TOOLS").is_none_or(|v| v != "1"), "not run: {what}");
    say(&format!("not run: {what}"));
    if let Some(list) = std::env::var_os("BITLINEAR_NOT_RUN") {
        let mut list = std::fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        list.write_all(format!("{what}\n").as_bytes()).unwrap();
    }
}

/// A line for whoever reads the tests' output, past the harness's capture.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|p| p.join(name)).find(|p| p.is_file())
}

/// The functions of the header, in its order.
pub fn functions() -> Vec<String> {
    let header = std::fs::read_to_string(root().join("include/bitlinear.h")).unwrap();
    let code = without_comments(&header);
    let mut names = Vec::new();
    for part in code.split("BL_API").skip(1) {
        let declaration = part.split(';').next().unwrap();
        if let Some(before) = declaration.split_once('(').map(|(before, _)| before)
            && let Some(name) = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next()
            && name.starts_with("bl_")
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// C without its comments.
pub fn without_comments(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("/*") {
        out.push_str(&rest[..at]);
        rest = rest[at..].split_once("*/").map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The files of a folder with that ending, by name.
pub fn files(folder: impl AsRef<Path>, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new(ending)))
        .collect();
    found.sort();
    found
}

/// All files with that ending below a folder.
pub fn files_below(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = files(folder, ending);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, ending));
        }
    }
    found
}
