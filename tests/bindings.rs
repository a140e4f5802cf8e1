//! The examples in other languages, built against an installed library as a stranger would, and run.

mod native;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use native::{bad, fresh, good, not_run, root, say, target, tool};

const FILE: &str = "tests/data/golden/ggml_all_64x512.gguf";
const LAYER: &str = "blk.0.q4_k";

/// Where the library was installed, once.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = fresh("bindings").join("prefix");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).env("CARGO_TARGET_DIR", target());
        cargo.args(["run", "--quiet", "--package", "xtask", "--", "install", "--prefix"]).arg(&prefix);
        good(&mut cargo);
        prefix
    })
}

fn lib() -> PathBuf {
    prefix().join("lib")
}

/// A model to try things with.
fn tiny() -> Option<PathBuf> {
    static TINY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let python = tool("python3", "a tiny model")?;
        let tiny = fresh("bindings-tiny").join("tiny.gguf");
        good(Command::new(python).arg("-B").arg(root().join("examples/models/tiny_llama.py")).arg(&tiny));
        Some(tiny)
    };
    TINY.get_or_init(make).clone()
}

/// The program that README.md begins with.
#[test]
fn the_program_of_the_readme() {
    let Some(tiny) = tiny() else { return };
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let program = readme.split("```c\n").nth(1).and_then(|text| text.split("```").next()).unwrap();
    let folder = fresh("bindings-readme");
    let (source, binary) = (folder.join("app.c"), folder.join("app"));
    std::fs::write(&source, program).unwrap();
    compile(Path::new("cc"), &["-std=c99"], &source, &binary);
    let run = |name: &str| good(Command::new(&binary).arg(&tiny).arg(name));
    assert!(run("blk.0.attn_q").starts_with("y[0] = "));
    assert_eq!(run("blk.0.attn_q"), run("blk.0.attn_q.weight"));
}

/// The lines of examples/README.md, in a folder that has what they name. That for Rust is `rust_example`, and there
/// is no Swift.
#[test]
fn the_lines_of_the_examples() {
    let Some(tiny) = tiny() else { return };
    let readme = std::fs::read_to_string(root().join("examples/README.md")).unwrap();
    let line = |language: &str| {
        let row = readme.lines().find_map(|l| l.strip_prefix(&format!("| {language} | `"))).unwrap();
        row.split('`').next().unwrap().to_owned()
    };
    let python = python().and_then(|p| Some(p.parent()?.to_path_buf()));
    let folder = fresh("bindings-lines");
    for name in ["examples", "tests"] {
        std::os::unix::fs::symlink(root().join(name), folder.join(name)).unwrap();
    }
    std::fs::copy(tiny, folder.join("tiny.gguf")).unwrap();
    let caches = target().join("tmp/go");
    for (language, tools) in [
        ("C", &["pkg-config"][..]),
        ("C++", &["pkg-config", "g++"]),
        ("Python", &[]),
        ("Go", &["go", "pkg-config"]),
        ("C#", &["mcs", "mono"]),
    ] {
        if tools.iter().any(|t| tool(t, &format!("{language} of examples/README.md")).is_none()) {
            continue;
        }
        let mut path = std::env::var_os("PATH").unwrap();
        match (&python, language) {
            (None, "Python") => continue,
            (Some(folder), _) => {
                let all = std::iter::once(folder.clone()).chain(std::env::split_paths(&path));
                path = std::env::join_paths(all).unwrap();
            }
            _ => {}
        }
        let mut shell = Command::new("sh");
        shell.current_dir(&folder).args(["-ec", &line(language)]).env("PATH", path);
        shell.env("PKG_CONFIG_PATH", lib().join("pkgconfig")).env("LD_LIBRARY_PATH", lib());
        shell
            .env("GOCACHE", caches.join("build"))
            .env("GOPATH", caches.join("path"))
            .env("GOFLAGS", "-mod=mod");
        shell.env("PYTHONDONTWRITEBYTECODE", "1");
        let printed = good(&mut shell);
        let wanted = if language == "Go" { "ok" } else { "64 x 64, " };
        assert!(printed.starts_with(wanted), "{language}: {printed}");
    }
}

/// `cc` with the installed library.
fn compile(compiler: &Path, flags: &[&str], source: &Path, binary: &Path) {
    let mut cc = Command::new(compiler);
    cc.args(flags).args(["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]);
    cc.arg("-I").arg(prefix().join("include")).arg(source).arg("-o").arg(binary);
    cc.arg("-L").arg(lib()).args(["-lbitlinear", "-lm"]).arg(format!("-Wl,-rpath,{}", lib().display()));
    good(&mut cc);
}

/// What the C example prints: shape and kernel, and the first values of y.
fn expected() -> &'static str {
    static PRINTED: OnceLock<String> = OnceLock::new();
    PRINTED.get_or_init(|| {
        let binary = fresh("bindings-c").join("one_layer");
        compile(Path::new("cc"), &["-std=c99"], &root().join("examples/c/one_layer.c"), &binary);
        refuses(&binary);
        good(Command::new(&binary).arg(root().join(FILE)).arg(LAYER))
    })
}

/// An example without arguments, without a file and without a layer: a message and a failure.
fn refuses(program: &Path) {
    assert!(bad(&mut Command::new(program)).contains("usage"));
    assert!(bad(Command::new(program).args(["/nowhere.gguf", LAYER])).contains("/nowhere.gguf"));
    assert!(bad(Command::new(program).arg(root().join(FILE)).arg("no-such")).contains("no-such"));
}

/// The same first line and, to six digits, the same numbers as C.
#[track_caller]
fn same_as_c(printed: &str) {
    let numbers = |text: &str| -> Vec<f64> {
        text.lines().nth(1).unwrap().split_whitespace().filter_map(|w| w.parse().ok()).collect()
    };
    assert_eq!(printed.lines().next(), expected().lines().next());
    let (is, want) = (numbers(printed), numbers(expected()));
    assert_eq!((is.len(), want.len()), (8, 8), "{printed}");
    for (a, b) in is.iter().zip(&want) {
        assert!((a - b).abs() <= 2e-6 * b.abs().max(1.0), "{printed}\n{}", expected());
    }
}

#[test]
fn c_example() {
    assert!(expected().starts_with("64 x 512, "));
    let lines = std::fs::read_to_string(root().join("examples/c/one_layer.c")).unwrap().lines().count();
    assert!(lines <= 40, "the promise is 40 lines; examples/c/one_layer.c has {lines}");
}

#[test]
fn cpp_example() {
    let Some(gpp) = tool("g++", "examples/cpp") else { return };
    let binary = fresh("bindings-cpp").join("one_layer");
    compile(
        &gpp,
        &["-std=c++17", "-Wold-style-cast", "-fno-exceptions", "-fno-rtti"],
        &root().join("examples/cpp/one_layer.cpp"),
        &binary,
    );
    same_as_c(&good(Command::new(&binary).arg(root().join(FILE)).arg(LAYER)));
    refuses(&binary);
}

/// bitlinear.hpp under both compilers and all later standards, and what it promises about ownership.
#[test]
fn cpp_header() {
    for compiler in ["g++", "clang++"] {
        let Some(path) = tool(compiler, "bitlinear.hpp") else { continue };
        for standard in ["c++17", "c++20", "c++2b"] {
            let binary = fresh(&format!("bindings-hpp-{compiler}-{standard}")).join("handles");
            compile(
                &path,
                &[&format!("-std={standard}"), "-O1", "-Wold-style-cast", "-fsanitize=address,undefined"],
                &root().join("tests/cpp/handles.cpp"),
                &binary,
            );
            good(Command::new(&binary).arg(root().join(FILE)).arg(LAYER));
        }
    }
}

#[test]
fn rust_example() {
    // What `make test` compiles: with other packages or features the library would be compiled again.
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", target());
    cargo.args(["build", "--quiet", "--workspace", "--profile", "test", "--example", "one_layer"]);
    if cfg!(feature = "cli") {
        cargo.args(["--features", "cli"]);
    }
    good(&mut cargo);
    let run = |arguments: &[&std::ffi::OsStr]| {
        let mut example = Command::new(target().join("debug/examples/one_layer"));
        example.current_dir(root()).args(arguments);
        example
    };
    same_as_c(&good(&mut run(&[FILE.as_ref(), LAYER.as_ref()])));
    assert!(bad(&mut run(&[FILE.as_ref(), "no-such".as_ref()])).contains("no-such"));
}

#[test]
fn go_example() {
    let Some(go) = tool("go", "examples/go") else { return };
    let caches = target().join("tmp/go");
    let test = |flags: &[&str]| {
        let mut command = Command::new(&go);
        command.current_dir(root().join("examples/go")).args(flags).arg("./...");
        command.env("PKG_CONFIG_PATH", lib().join("pkgconfig")).env("LD_LIBRARY_PATH", lib());
        command.env("BITLINEAR_MODEL", root().join(FILE));
        command.env("GOCACHE", caches.join("build")).env("GOPATH", caches.join("path"));
        command.env("GOFLAGS", "-mod=mod").env("GO111MODULE", "on").env("GOPROXY", "off");
        command.env("CGO_ENABLED", "1");
        // Passing a Go pointer that C may not keep is checked at its strictest.
        command.env("GODEBUG", "cgocheck=1");
        command
    };
    good(&mut test(&["vet"]));
    let printed = good(&mut test(&["test", "-race", "-count=1", "-v"]));
    assert!(printed.contains("--- PASS: TestForward") && printed.contains("--- PASS: TestFinalizers"));
    assert!(!printed.contains("SKIP"), "{printed}");
}

/// Tensor-parallel over MPI: gate and up by rows, down by columns, one allreduce for each block. The
/// program itself holds the sum against the whole layers' result.
#[test]
fn mpi_example() {
    let Some(mpicc) = tool("mpicc", "examples/c/mpi") else { return };
    let Some(mpirun) = tool("mpirun", "examples/c/mpi") else { return };
    let Some(tiny) = tiny() else { return };
    if !good(Command::new(&mpirun).arg("--version")).contains("Open MPI") {
        return not_run("examples/c/mpi: this mpirun is not Open MPI's, whose options the test uses");
    }
    let folder = fresh("bindings-mpi");
    let binary = folder.join("tensor_parallel");
    compile(&mpicc, &["-std=c11", "-O2"], &root().join("examples/c/mpi/tensor_parallel.c"), &binary);
    let run = |ranks: &str, model: &Path| {
        let mut command = Command::new(&mpirun);
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", ranks]).arg(&binary).arg(model);
        command
    };
    assert!(good(&mut run("1", &tiny)).starts_with("2 blocks on 1 ranks: 0 of 512 outputs differ"));
    assert!(good(&mut run("2", &tiny)).starts_with("2 blocks on 2 ranks: "));
    // 85 inner values are no whole groups for 3 ranks.
    assert!(bad(&mut run("3", &tiny)).contains("columns"));
    assert!(bad(&mut run("2", Path::new("/nowhere.gguf"))).contains("/nowhere.gguf"));
    match std::env::var_os("BITLINEAR_TEST_GGUF") {
        Some(model) => {
            let printed = good(&mut run("2", Path::new(&model)));
            assert!(printed.starts_with("30 blocks on 2 ranks: "), "{printed}");
            say(printed.trim_end());
        }
        None => not_run("examples/c/mpi on the demo model: BITLINEAR_TEST_GGUF is not set"),
    }
}

/// A Python with numpy: this one, or one of a venv in the target folder.
fn python() -> Option<PathBuf> {
    let python = tool("python3", "examples/python")?;
    let has_numpy =
        |p: &Path| Command::new(p).args(["-c", "import numpy"]).output().is_ok_and(|o| o.status.success());
    if has_numpy(&python) {
        return Some(python);
    }
    let venv = target().join("venv");
    let own = venv.join("bin/python3");
    if !has_numpy(&own) {
        let _ = Command::new(&python).args(["-m", "venv"]).arg(&venv).output();
        let _ = Command::new(&own).args(["-m", "pip", "install", "--quiet", "numpy"]).output();
    }
    if has_numpy(&own) {
        return Some(own);
    }
    not_run("examples/python: numpy could not be installed");
    None
}

#[test]
fn python_example() {
    let Some(python) = python() else { return };
    let run = |script: &str, arguments: &[&str]| {
        let mut command = Command::new(&python);
        command.current_dir(root()).arg("-B").arg(root().join("examples/python").join(script));
        command.args(arguments).env("BITLINEAR_LIBRARY", lib().join("libbitlinear.so.0"));
        command
    };
    same_as_c(&good(&mut run("one_layer.py", &[FILE, LAYER])));
    assert!(bad(&mut run("one_layer.py", &[])).contains("usage"));
    assert!(bad(&mut run("one_layer.py", &[FILE, "no-such"])).contains("BL_ERROR_NOT_FOUND"));
    assert!(good(&mut run("test_bitlinear.py", &[FILE, LAYER])).contains("python: good"));
}

#[test]
fn csharp_example() {
    let Some(mcs) = tool("mcs", "examples/csharp") else { return };
    let Some(mono) = tool("mono", "examples/csharp") else { return };
    let folder = fresh("bindings-csharp");
    let build = |program: &str| {
        let binary = folder.join("program.exe");
        let mut compiler = Command::new(&mcs);
        compiler.args(["-warnaserror", "-warn:4"]).arg(format!("-out:{}", binary.display()));
        good(compiler.arg(root().join("examples/csharp/Bitlinear.cs")).arg(root().join(program)));
        binary
    };
    let run = |binary: &Path, arguments: &[&str]| {
        let mut command = Command::new(&mono);
        command.current_dir(root()).arg(binary).args(arguments).env("LD_LIBRARY_PATH", lib());
        command
    };
    let binary = build("examples/csharp/OneLayer.cs");
    same_as_c(&good(&mut run(&binary, &[FILE, LAYER])));
    assert!(bad(&mut run(&binary, &[])).contains("usage"));
    assert!(bad(&mut run(&binary, &[FILE, "no-such"])).contains("no-such"));
    let binary = build("tests/csharp/Handles.cs");
    assert!(good(&mut run(&binary, &[FILE, LAYER])).contains("csharp: good"));
}

/// There is no Swift here. What can be checked is: clang, whose importer Swift uses, takes the module of
/// the example and knows every C name that the example uses.
#[test]
fn swift_example() {
    let Some(clang) = tool("clang", "the module map of examples/swift") else { return };
    not_run("examples/swift: no Swift; only its module map and the names it uses are checked");
    let swift = std::fs::read_to_string(root().join("examples/swift/Sources/OneLayer/main.swift")).unwrap();
    let mut names: Vec<&str> = swift
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| w.starts_with("bl_") || w.starts_with("BL_"))
        .collect();
    names.sort();
    names.dedup();
    assert!(names.len() > 8, "{names:?}");
    let folder = fresh("bindings-swift");
    let uses: String = names
        .iter()
        .map(|name| match functions().contains(&name.to_string()) || name.starts_with("BL_") {
            true => format!("  (void){name};\n"),
            false => format!("  {{ {name} value; (void)value; }}\n"),
        })
        .collect();
    let source = folder.join("use.m");
    std::fs::write(&source, format!("@import CBitlinear;\nvoid use(void) {{\n{uses}}}\n")).unwrap();
    let mut cc = Command::new(clang);
    cc.args(["-fmodules", "-fsyntax-only", "-Werror", "-Wall", "-Wno-missing-prototypes"]);
    cc.arg(format!("-fmodules-cache-path={}", folder.join("cache").display()));
    cc.arg("-I").arg(root().join("examples/swift/Sources/CBitlinear"));
    // The header alone, so that the module found is the example's.
    let include = folder.join("include");
    std::fs::create_dir(&include).unwrap();
    std::fs::copy(prefix().join("include/bitlinear.h"), include.join("bitlinear.h")).unwrap();
    good(cc.arg("-I").arg(include).arg(source));
}

fn functions() -> Vec<String> {
    native::functions()
}
