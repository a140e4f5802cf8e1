//! Builds and runs the C programs of `c_tests/`, each in several ways. One program in one way is one
//! test: `cargo test --test c_harness forward`.

mod native;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use native::{files, fresh, functions, good, hooks, release, root, tool};

/// How a program is built and run.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Linked with the shared library.
    Plain,
    /// The same, with the C side's addresses, undefined behaviour and leaks checked.
    Sanitized,
    /// Linked with the static library.
    Static,
    /// Finds the functions in a library that it opens itself.
    Dlopen,
    /// Compiled as C++.
    Cpp,
    /// Plain, under valgrind's memcheck.
    Valgrind,
}

const WARNINGS: [&str; 8] = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Werror",
    "-Wconversion",
    "-Wshadow",
    "-Wundef",
    "-Wno-unused-parameter",
];

fn run(program: &str, way: Way) {
    let (compiler, standard) = if way == Way::Cpp { ("g++", "-std=c++17") } else { ("cc", "-std=c99") };
    let what = format!("c_tests/{program}.c");
    let Some(compiler) = tool(compiler, &what) else { return };
    let valgrind = match way {
        Way::Valgrind => match tool("valgrind", &what) {
            Some(valgrind) => Some(valgrind),
            None => return,
        },
        _ => None,
    };
    let binary = binaries().join(format!("{program}-{}", way as u32));
    let mut cc = Command::new(compiler);
    cc.args([standard, "-O1", "-g"]).args(WARNINGS);
    cc.arg("-I").arg(root().join("include")).arg("-I").arg(root().join("c_tests"));
    match way {
        Way::Cpp => cc.args(["-x", "c++"]),
        _ => cc.args(["-Wstrict-prototypes", "-Wmissing-prototypes"]),
    };
    if way == Way::Sanitized {
        cc.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]);
    }
    if way == Way::Dlopen {
        cc.arg("-DTEST_DLOPEN").arg("-I").arg(dlopen_table());
    }
    cc.arg(root().join(&what)).args(["-x", "none"]);
    match way {
        Way::Static => {
            cc.arg(release().join("libbitlinear.a")).args(["-lgcc_s", "-lutil", "-lrt", "-ldl"]);
        }
        Way::Dlopen => {}
        _ => {
            cc.arg("-L").arg(release()).arg("-lbitlinear");
            cc.arg(format!("-Wl,-rpath,{}", release().display()));
        }
    }
    cc.args(["-lpthread", "-lm", "-ldl", "-o"]).arg(&binary);
    good(&mut cc);

    let mut test = match valgrind {
        Some(valgrind) => {
            let mut test = Command::new(valgrind);
            test.args(["--quiet", "--error-exitcode=9", "--leak-check=full", "--num-callers=30"]);
            // Shells of handles are kept for ever, on purpose, and are reachable.
            test.arg("--errors-for-leak-kinds=definite,indirect,possible").arg(&binary);
            // The library would choose kernels that valgrind cannot run.
            test.env("BITLINEAR_ISA", "scalar");
            test
        }
        None => Command::new(&binary),
    };
    test.arg(root().join("tests/data/golden"));
    test.arg(release().join("libbitlinear.so"));
    test.arg(if NEEDS_HOOKS.contains(&program) { hooks().join("libbitlinear.so") } else { PathBuf::new() });
    test.env("TMPDIR", fresh(&format!("c-{program}-{}", way as u32)));
    test.env("ASAN_OPTIONS", "detect_leaks=1:detect_stack_use_after_return=1");
    let printed = good(&mut test);
    // A program that ends early would otherwise count as one that found nothing.
    assert!(printed.trim_end().ends_with("checks, 0 failed"), "{program}: {printed}");
}

/// Programs that are told the path of the build with `bl_test_fault`.
const NEEDS_HOOKS: [&str; 3] = ["faults", "silence", "two_builds"];

fn binaries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| fresh("c_tests"))
}

/// A header that turns every function of bitlinear.h into a pointer which `dlsym` fills.
fn dlopen_table() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = fresh("c_tests_dlopen");
        let mut text = String::from("/* Made by tests/c_harness.rs from include/bitlinear.h. */\n");
        let names = functions();
        for name in &names {
            text += &format!("static __typeof__({name}) *dl_{name};\n");
        }
        text += "static inline void dl_fill(void *library) {\n";
        for name in &names {
            text += &format!("  *(void **)(void *)&dl_{name} = dlsym(library, \"{name}\");\n");
            text += &format!("  CHECK(dl_{name} != NULL);\n");
        }
        text += "}\n";
        for name in &names {
            text += &format!("#define {name} (*dl_{name})\n");
        }
        std::fs::write(folder.join("dl_table.h"), text).unwrap();
        folder
    })
}

macro_rules! programs {
    ($($program:ident: $($way:ident)+;)*) => {
        const PROGRAMS: &[&str] = &[$(stringify!($program)),*];
        $(mod $program {
            $(#[test] #[allow(non_snake_case)]
            fn $way() { super::run(stringify!($program), super::Way::$way) })+
        })*
    };
}

// Sanitizers replace malloc and keep shadow memory below guard pages: programs that count allocations,
// limit memory or unload libraries run without them.
programs! {
    allocation: Plain Static Dlopen Cpp;
    arguments: Plain Sanitized Static Dlopen Cpp;
    bad_files: Plain Sanitized Static Dlopen Cpp Valgrind;
    concurrent: Plain Sanitized Static Dlopen Cpp;
    contexts: Plain Sanitized Static Dlopen Cpp;
    cuda: Plain Sanitized Static Dlopen Cpp Valgrind;
    environment: Plain Sanitized Static Dlopen Cpp;
    faults: Plain Sanitized Cpp;
    float_mode: Plain Sanitized Static Dlopen Cpp;
    forked: Plain Sanitized Static Dlopen Cpp;
    forward: Plain Sanitized Static Dlopen Cpp;
    guard_pages: Plain Sanitized Static Dlopen Cpp;
    handles: Plain Sanitized Static Dlopen Cpp Valgrind;
    idle: Plain Static;
    loading: Plain Sanitized Static Dlopen Cpp;
    low_bit: Plain Sanitized Static Dlopen Cpp Valgrind;
    messages: Plain Sanitized Static Dlopen Cpp;
    null_pointers: Plain Sanitized Static Dlopen Cpp;
    out_of_memory: Plain Static Dlopen Cpp;
    silence: Plain Sanitized Static Dlopen Cpp;
    structs: Plain Sanitized Static Dlopen Cpp;
    two_builds: Plain Cpp;
    unload: Plain Cpp;
    version: Plain Sanitized Static Dlopen Cpp;
}

#[test]
fn every_program_is_run() {
    let there: Vec<String> = files(root().join("c_tests"), "c")
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut listed = PROGRAMS.to_vec();
    listed.sort();
    assert_eq!(there, listed);
}

#[test]
fn every_function_gets_null_and_wrong_arguments() {
    let read = |name: &str| std::fs::read_to_string(root().join("c_tests").join(name)).unwrap();
    // The low-bit runtime has both in one program.
    let (null, wrong) = ["null_pointers.c", "arguments.c"].map(|name| read(name) + &read("low_bit.c")).into();
    for function in functions() {
        let call = format!("{function}(");
        assert!(null.contains(&call), "c_tests/null_pointers.c does not call {function}");
        // Nothing that these take can be wrong in another way.
        let takes_nothing =
            ["bl_version", "bl_build_info", "bl_status_name", "bl_free", "bl_memory", "bl_layer_describe"];
        assert!(
            wrong.contains(&call) || takes_nothing.contains(&&*function),
            "c_tests/arguments.c does not call {function}"
        );
    }
}
