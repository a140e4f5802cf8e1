//! The header under every compiler that is here, and the library that is built from this tree: what it
//! exports, what it needs, how its types lie in memory.

mod native;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bitlinear::error::Status;
use bitlinear::types::TYPES;
use native::{bad, fresh, functions, good, hooks, release, root, tool, without_comments};

fn include() -> String {
    format!("-I{}", root().join("include").display())
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

// ---- the header ----

const C_MODES: [&str; 4] = ["c99", "c11", "c17", "c2x"];
const CPP_MODES: [&str; 5] = ["c++11", "c++14", "c++17", "c++20", "c++2b"];
const WARNINGS: [&str; 8] =
    ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wundef", "-Wconversion", "-Wshadow", "-fsyntax-only"];

/// The header alone, twice, and a use of it, in one language mode.
fn compiles(compiler: &str, modes: &[&str], more: &[&str], ending: &str, text: &str) {
    let Some(compiler_path) = tool(compiler, &format!("the header under {compiler}")) else { return };
    let folder = fresh(&format!("header-{compiler}"));
    let source = written(&folder, &format!("use.{ending}"), text);
    for mode in modes {
        let mut cc = Command::new(&compiler_path);
        cc.arg(format!("-std={mode}")).args(WARNINGS).args(more).arg(include()).arg(&source);
        good(&mut cc);
    }
}

const USE: &str = "#include <bitlinear.h>\n#include <bitlinear.h>\n\
    int use(void);\n\
    int use(void) { return bl_version() == BL_VERSION && bl_status_name(BL_OK) != 0 && BL_LOAD_COPY < BL_THREADS_ALL; }\n";
const USE_CPP: &str = "#include <bitlinear.h>\n#include <bitlinear.h>\n\
    static_assert(noexcept(bl_version()), \"no function throws\");\n\
    bool use();\n\
    bool use() { return bl_version() == BL_VERSION && bl_status_name(BL_OK) != nullptr && BL_LOAD_COPY < BL_THREADS_ALL; }\n";

#[test]
fn header_under_gcc() {
    compiles("gcc", &C_MODES, &["-Wstrict-prototypes", "-Wc++-compat"], "c", USE);
}
#[test]
fn header_under_clang() {
    compiles("clang", &C_MODES, &["-Wstrict-prototypes", "-Wdocumentation"], "c", USE);
}
#[test]
fn header_under_gpp() {
    compiles("g++", &CPP_MODES, &["-Wold-style-cast", "-Wzero-as-null-pointer-constant"], "cpp", USE_CPP);
}
#[test]
fn header_under_clangpp() {
    compiles("clang++", &CPP_MODES, &["-Wold-style-cast", "-Wzero-as-null-pointer-constant"], "cpp", USE_CPP);
}

/// Nothing lies between the fields of a struct: what `struct_size` counts is what is there, and a copy of
/// the bytes copies no rubbish.
#[test]
fn structs_have_no_padding() {
    let folder = fresh("padding");
    let padded = |text: &str| {
        let source = written(&folder, "padding.c", text);
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-Wpadded", "-Werror", "-fsyntax-only"]).arg(include()).arg(source);
        cc
    };
    good(&mut padded("#include <bitlinear.h>\n"));
    bad(&mut padded("struct hole { char c; double d; };\nstruct hole h;\n")); // the flag does what it says
}

#[test]
fn module_map() {
    let Some(clang) = tool("clang", "the module map") else { return };
    let folder = fresh("module");
    let source = written(
        &folder,
        "use.m",
        "@import CBitlinear;\nint use(void) { return bl_version() == BL_VERSION && BL_OK == 0; }\n",
    );
    let mut cc = Command::new(clang);
    cc.args(["-fmodules", "-fsyntax-only", "-Werror", "-Wall", "-Wno-missing-prototypes"]);
    cc.arg(format!("-fmodules-cache-path={}", folder.join("cache").display())).arg(include()).arg(source);
    good(&mut cc);
}

#[test]
fn header_is_what_the_source_says() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args(["run", "--quiet", "--package", "xtask", "--", "header", "--check"]);
    cargo.env("CARGO_TARGET_DIR", native::target());
    good(&mut cargo);
}

#[test]
fn macros_are_the_version() {
    let header = std::fs::read_to_string(root().join("include/bitlinear.h")).unwrap();
    let number = |name: &str| -> u32 {
        let line = header.lines().find_map(|l| l.strip_prefix(&format!("#define {name} "))).unwrap();
        line.trim().parse().unwrap()
    };
    let [major, minor, patch] = ["BL_VERSION_MAJOR", "BL_VERSION_MINOR", "BL_VERSION_PATCH"].map(number);
    assert_eq!(c_version(), major * 1_000_000 + minor * 1_000 + patch);
    assert_eq!(env!("CARGO_PKG_VERSION"), format!("{major}.{minor}.{patch}"));
}

fn c_version() -> u32 {
    bitlinear::capi::diagnostics::bl_version()
}

// ---- the library ----

fn library() -> PathBuf {
    release().join("libbitlinear.so")
}

fn readelf(flag: &str) -> String {
    good(Command::new("readelf").args(["--wide", flag]).arg(library()))
}

#[test]
fn exports_are_the_header() {
    let printed = good(Command::new("nm").args(["--dynamic", "--defined-only"]).arg(library()));
    let mut exported: Vec<&str> = printed.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
    let mut declared = functions();
    exported.sort();
    declared.sort();
    assert!(declared.len() >= 17);
    assert_eq!(exported, declared);
    assert!(declared.iter().all(|name| name.starts_with("bl_")));
}

/// The static library has the same functions, and no test hooks either.
#[test]
fn the_archive_has_the_header() {
    let archive = release().join("libbitlinear.a");
    let printed = good(Command::new("nm").args(["--defined-only", "--extern-only"]).arg(archive));
    let mut ours: Vec<&str> = printed
        .lines()
        .filter_map(|l| l.split_whitespace().nth(2))
        .filter(|n| n.starts_with("bl_"))
        .collect();
    let mut declared = functions();
    ours.sort();
    declared.sort();
    assert_eq!(ours, declared);
}

#[test]
fn shared_object() {
    let dynamic = readelf("--dynamic");
    assert!(dynamic.contains("Library soname: [libbitlinear.so.0]"), "{dynamic}");
    for flag in ["BIND_NOW", "NOW", "NODELETE"] {
        assert!(dynamic.contains(flag), "{flag}: {dynamic}");
    }
    assert!(!dynamic.contains("RPATH") && !dynamic.contains("RUNPATH"), "{dynamic}");
    assert!(!dynamic.contains("TEXTREL"), "{dynamic}");
    for line in dynamic.lines().filter(|l| l.contains("(NEEDED)")) {
        let name = line.split(['[', ']']).nth(1).unwrap();
        let system = ["libc.so.", "libm.so.", "libgcc_s.so.", "libpthread.so.", "libdl.so.", "ld-linux"];
        assert!(system.iter().any(|s| name.starts_with(s)), "needs {name}");
    }

    let segments = readelf("--program-headers");
    let stack = segments.lines().find(|l| l.contains("GNU_STACK")).expect("a GNU_STACK");
    assert!(stack.contains("RW ") && !stack.contains("RWE"), "{stack}");
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    assert!(!segments.lines().any(|l| l.contains("LOAD") && l.contains("RWE")), "{segments}");
}

/// What the library promises to be.
#[test]
fn size() {
    let bytes = std::fs::metadata(library()).unwrap().len();
    // 1.2 MB are kernels (written out for shifts by constants: docs/performance/kernels.md), 0.35 MB the standard
    // library (a third of that names functions in panics), 0.2 MB quantising, the rest compiled kernels for GPUs,
    // deflated (docs/cuda-testing.md).
    assert!(bytes <= 6_050_000, "libbitlinear.so has {bytes} bytes");
}

/// Where the builder's own folders lie is nobody's business, and would make builds differ. Paths of
/// sources in panic messages are relative to the crate.
#[test]
fn no_source_tree_in_the_library() {
    let bytes = std::fs::read(library()).unwrap();
    let here = root().to_str().unwrap().as_bytes();
    assert!(!bytes.windows(here.len()).any(|w| w == here), "{} is in the library", root().display());
}

// ---- how types lie in memory ----

/// What an ABI is, one fact a line: enum values, sizes and offsets as the C compiler sees them, and the
/// declarations of the functions.
fn facts() -> &'static str {
    static FACTS: OnceLock<String> = OnceLock::new();
    FACTS.get_or_init(compiled_facts)
}

fn compiled_facts() -> String {
    let header = std::fs::read_to_string(root().join("include/bitlinear.h")).unwrap();
    let code = without_comments(&header);
    let mut print = String::new();
    let mut body = code.as_str();
    while let Some(at) = body.find("typedef ") {
        let text = &body[at + "typedef ".len()..];
        body = text;
        let Some((open, rest)) = text.split_once('{') else { break };
        if !matches!(open.trim(), "enum" | "struct") {
            continue;
        }
        let (fields, rest) = rest.split_once('}').unwrap();
        let name = rest.split(';').next().unwrap().trim();
        writeln!(print, "  printf(\"{} {name} %zu\\n\", sizeof({name}));", open.trim()).unwrap();
        if open.trim() == "enum" {
            for value in fields.split(',').filter_map(|v| v.split('=').next()).map(str::trim) {
                if !value.is_empty() {
                    writeln!(print, "  printf(\"  {value} = %ld\\n\", (long){value});").unwrap();
                }
            }
        } else {
            for field in fields.split(';').map(str::trim).filter(|f| !f.is_empty()) {
                let words = field.split_whitespace().collect::<Vec<_>>().join(" ");
                let end = field.split('[').next().unwrap();
                let field = end.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                writeln!(
                    print,
                    "  printf(\"  {name}: {words} @%zu +%zu\\n\", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));"
                )
                .unwrap();
            }
        }
    }
    for line in code.lines().filter_map(|l| l.strip_prefix("#define ")) {
        if let Some((name, value)) = line.split_once(' ')
            && name.starts_with("BL_")
            && !name.starts_with("BL_VERSION")
            && value.trim().parse::<u64>().is_ok()
        {
            writeln!(print, "  printf(\"macro {name} = %lu\\n\", (unsigned long){name});").unwrap();
        }
    }
    let folder = fresh("abi");
    let program = format!(
        "#include <bitlinear.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{print}  return 0;\n}}\n"
    );
    let source = written(&folder, "facts.c", &program);
    let binary = folder.join("facts");
    good(
        Command::new("cc")
            .args(["-std=c99", "-Wall", "-Werror"])
            .arg(include())
            .arg(source)
            .arg("-o")
            .arg(&binary),
    );
    let mut facts = good(&mut Command::new(binary));
    // Declarations begin lines; the macro's own definition does not.
    for part in code.split("\nBL_API").skip(1) {
        let Some((declaration, _)) = part.split_once(';') else { continue };
        if declaration.contains('(') {
            let words = declaration.replace("BL_NOEXCEPT", "");
            let text = words.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(facts, "function {text}").unwrap();
        }
    }
    facts
}

/// `BITLINEAR_BLESS=1` writes what was added; a change of what was there needs `BITLINEAR_BLESS=break`,
/// a new number in the SONAME (build.rs) and a line in the change log.
#[test]
fn abi_is_what_it_was() {
    let golden = root().join("abi/bitlinear.0.txt");
    let now = facts();
    let before = std::fs::read_to_string(&golden).unwrap_or_default();
    if now == before {
        return;
    }
    // Structs may grow at their ends (then only their sizes change), all else may only be added to.
    let still: BTreeSet<&str> = now.lines().collect();
    let gone: Vec<&str> =
        before.lines().filter(|l| !l.starts_with("struct ") && !still.contains(l)).collect();
    match std::env::var("BITLINEAR_BLESS").as_deref() {
        Ok("1") if gone.is_empty() => std::fs::write(&golden, now).unwrap(),
        Ok("break") => std::fs::write(&golden, now).unwrap(),
        _ if gone.is_empty() => panic!(
            "the ABI has grown: BITLINEAR_BLESS=1 cargo test --test abi writes it to abi/; now it is\n{now}"
        ),
        _ => panic!("old programs break: changed, moved or gone are\n{}", gone.join("\n")),
    }
}

#[test]
fn rust_and_c_mean_the_same_numbers() {
    let facts = facts();
    let value: BTreeMap<&str, i64> = facts
        .lines()
        .filter_map(|l| l.strip_prefix("  ")?.split_once(" = "))
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();

    // Types: every named number is one of the table, and the table has no other.
    let mut named: Vec<i64> =
        value.iter().filter(|(n, v)| n.starts_with("BL_TYPE_") && **v != 0).map(|(_, v)| *v).collect();
    let mut table: Vec<i64> = TYPES.iter().map(|t| t.ty as i64).collect();
    named.sort();
    table.sort();
    assert_eq!(named, table);
    assert_eq!(value["BL_TYPE_AUTO"], 0);

    for (name, status) in [
        ("BL_ERROR_INVALID_ARGUMENT", Status::InvalidArgument),
        ("BL_ERROR_INVALID_HANDLE", Status::InvalidHandle),
        ("BL_ERROR_UNSUPPORTED", Status::Unsupported),
        ("BL_ERROR_OUT_OF_MEMORY", Status::OutOfMemory),
        ("BL_ERROR_BUFFER_TOO_SMALL", Status::BufferTooSmall),
        ("BL_ERROR_NOT_FOUND", Status::NotFound),
        ("BL_ERROR_IO", Status::Io),
        ("BL_ERROR_BAD_FILE", Status::BadFile),
        ("BL_ERROR_DEVICE", Status::Device),
        ("BL_ERROR_FORKED", Status::Forked),
        ("BL_ERROR_CANCELLED", Status::Cancelled),
        ("BL_ERROR_NO_DRIVER", Status::NoDriver),
        ("BL_ERROR_DRIVER_TOO_OLD", Status::DriverTooOld),
        ("BL_ERROR_NO_DEVICE", Status::NoDevice),
        ("BL_ERROR_UNSUPPORTED_DEVICE", Status::UnsupportedDevice),
        ("BL_ERROR_DEVICE_LOST", Status::DeviceLost),
        ("BL_ERROR_INTERNAL", Status::Internal),
    ] {
        assert_eq!(value[name], status as i64, "{name}");
    }
    assert_eq!(value["BL_OK"], 0);

    let mut sizes: BTreeMap<&str, usize> = facts
        .lines()
        .filter_map(|l| l.strip_prefix("struct ")?.split_once(' '))
        .map(|(name, size)| (name, size.parse().unwrap()))
        .collect();
    macro_rules! same {
        ($file:ident: $($name:ident),* $(,)?) => {$({
            use bitlinear::capi::$file as c;
            assert_eq!(sizes.remove(stringify!($name)), Some(size_of::<c::$name>()), stringify!($name));
        })*};
    }
    same!(
        types:
        bl_error,
        bl_context_options,
        bl_load_options,
        bl_layer_options,
        bl_run_options,
        bl_type_info,
        bl_model_info,
        bl_model_layer_info,
        bl_tensor_info,
        bl_meta_info,
        bl_layer_info,
        bl_plan_info,
        bl_memory_info,
        bl_device_info,
        bl_profile_entry,
        bl_named_layer,
        bl_named_text,
    );
    same!(
        runtime:
        bl_runtime_config,
        bl_runtime_info,
        bl_runtime_shape,
        bl_runtime_memory_info,
        bl_saved_tensor,
    );
    same!(codes: bl_codes, bl_difference_info);
    same!(heads: bl_heads_options, bl_heads_run, bl_heads_gradients, bl_heads_info);
    same!(train: bl_layer_gradients);
    same!(
        quantize:
        bl_quantize_target,
        bl_quantize_progress,
        bl_quantize_options,
        bl_quantize_report,
    );
    same!(calibration: bl_calibration_options, bl_calibration_info);
    same!(compare: bl_model_difference_info);
    same!(state: bl_state_options, bl_state_info, bl_gate_options);
    assert!(sizes.is_empty(), "structs that this test does not know: {sizes:?}");
}

/// Instructions of AVX stand only in functions that the detection of the CPU guards: another CPU would
/// die of them. (`outputs::are_the_same_on_a_cpu_without_avx` runs there.)
#[test]
#[cfg(target_arch = "x86_64")]
fn no_avx_outside_its_functions() {
    let Some(objdump) = tool("objdump", "instructions of the library") else { return };
    let library = hooks().join("libbitlinear.so");
    let text = good(Command::new(objdump).args(["-d", "-C", "--no-show-raw-insn"]).arg(library));
    let (mut function, mut inside, mut outside) = ("", 0, BTreeSet::new());
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|l| l.split_once('<')) {
            function = name.1;
        }
        let Some(instruction) = line.split('\t').nth(1) else { continue };
        // VEX- and EVEX-coded ones begin with v; of the others only verr and verw do.
        let vector = instruction.starts_with('v') && !instruction.starts_with("ver");
        if !vector && !instruction.contains("%ymm") && !instruction.contains("%zmm") {
            continue;
        }
        // The compiler's own fma asks the CPU first, and so does the GEMM crate.
        let guarded = ["kernel::x86_64::", "state::avx2::", "compiler_builtins::math", "matrixmultiply::"];
        if guarded.iter().any(|name| function.contains(name)) {
            inside += 1;
        } else {
            outside.insert(function);
        }
    }
    assert!(inside > 10_000, "{inside} instructions of AVX");
    assert!(outside.is_empty(), "AVX in {outside:#?}");
}
