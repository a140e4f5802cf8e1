//! `make install`, and programs outside the tree that find what it installed: with pkg-config and with
//! CMake, shared and static.

mod native;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use native::{bad, fresh, good, root, target, tool};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the library was installed, once: a prefix that programs see as it is.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = fresh("install").join("prefix");
        install(&[("PREFIX", &prefix)]);
        prefix
    })
}

fn install(variables: &[(&str, &Path)]) {
    let mut make = Command::new("make");
    make.current_dir(root()).arg("--silent").arg("install").env("CARGO_TARGET_DIR", target());
    make.arg(format!("CARGO={}", env!("CARGO")));
    for (name, value) in variables {
        make.arg(format!("{name}={}", value.display()));
    }
    good(&mut make);
}

fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => names.push(path.strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    names.sort();
    names
}

fn expected(libdir: &str) -> Vec<String> {
    let mut names: Vec<String> = [
        "include/bitlinear.h",
        "include/bitlinear.hpp",
        "include/module.modulemap",
        "LIB/cmake/bitlinear/bitlinearConfig.cmake",
        "LIB/cmake/bitlinear/bitlinearConfigVersion.cmake",
        "LIB/libbitlinear.a",
        "LIB/libbitlinear.so",
        "LIB/libbitlinear.so.0",
        "LIB/libbitlinear.so.VERSION",
        "LIB/pkgconfig/bitlinear-static.pc",
        "LIB/pkgconfig/bitlinear.pc",
        "share/licenses/bitlinear/LICENSE",
        "share/licenses/bitlinear/LICENSE-APACHE",
        "share/licenses/bitlinear/LICENSE-MIT",
    ]
    .map(|name| name.replace("LIB", libdir).replace("VERSION", VERSION))
    .into();
    names.sort();
    names
}

#[test]
fn what_is_installed() {
    assert_eq!(files(prefix()), expected("lib"));
    let link = |name: &str| std::fs::read_link(prefix().join("lib").join(name)).unwrap();
    assert_eq!(link("libbitlinear.so"), Path::new("libbitlinear.so.0"));
    assert_eq!(link("libbitlinear.so.0"), Path::new(&format!("libbitlinear.so.{VERSION}")));
}

/// What a distribution's package does: DESTDIR in front, libraries in a folder of the architecture.
#[test]
fn destdir_and_libdir() {
    let folder = fresh("install-destdir");
    // A prefix of the test's own: were DESTDIR forgotten, nothing of the machine's would be written.
    let (destdir, usr) = (folder.join("destdir"), folder.join("usr"));
    install(&[("PREFIX", &usr), ("DESTDIR", &destdir), ("LIBDIR", Path::new("lib/some-arch"))]);
    assert!(!usr.exists());
    let there = destdir.join(usr.strip_prefix("/").unwrap());
    assert_eq!(files(&there), expected("lib/some-arch"));
    let pc = std::fs::read_to_string(there.join("lib/some-arch/pkgconfig/bitlinear.pc")).unwrap();
    let places = format!(
        "prefix={}\nlibdir=${{prefix}}/lib/some-arch\nincludedir=${{prefix}}/include\n",
        usr.display()
    );
    assert!(pc.contains(&places), "{pc}");
    for file in files(&there).iter().filter(|f| f.ends_with(".pc") || f.ends_with(".cmake")) {
        let text = std::fs::read_to_string(there.join(file)).unwrap();
        assert!(!text.contains(destdir.to_str().unwrap()), "{file} names DESTDIR");
    }
}

/// Today's glibc has them all in one file, so that a program links without them too: rustc is asked what
/// a Rust library needs.
#[test]
fn static_programs_are_told_what_else_to_link() {
    let folder = fresh("native-static-libs");
    std::fs::write(folder.join("empty.rs"), "").unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.current_dir(&folder);
    rustc.args(["--crate-type", "staticlib", "--print", "native-static-libs=libs.txt", "empty.rs"]);
    good(&mut rustc);
    let wanted = std::fs::read_to_string(folder.join("libs.txt")).unwrap();
    let pc = std::fs::read_to_string(prefix().join("lib/pkgconfig/bitlinear.pc")).unwrap();
    let cmake = prefix().join("lib/cmake/bitlinear/bitlinearConfig.cmake");
    let cmake = std::fs::read_to_string(cmake).unwrap();
    let told = pc.lines().find_map(|l| l.strip_prefix("Libs.private:")).unwrap();
    for library in wanted.split_whitespace().filter(|l| *l != "-lc") {
        assert!(told.split_whitespace().any(|l| l == library), "{library} is not in {told}");
        let name = library.strip_prefix("-l").unwrap();
        assert!(cmake.split(['"', ';']).any(|l| l == name), "{name} is not in the CMake package");
    }
    assert!(wanted.contains("-lgcc_s"), "{wanted}");
    // The compiler links that one itself, under the name that the kind of program wants.
    let package = std::fs::read_to_string(prefix().join("lib/pkgconfig/bitlinear-static.pc")).unwrap();
    let linked = package.lines().find_map(|l| l.strip_prefix("Libs:")).unwrap();
    for library in told.split_whitespace().filter(|l| *l != "-lgcc_s") {
        assert!(linked.split_whitespace().any(|l| l == library), "{library} is not in {linked}");
    }
}

/// Runs the one-layer program; its answer is that of the program in the tree.
fn runs(program: &Path, shared: bool) {
    let mut command = Command::new(program);
    command.arg(root().join("tests/data/golden/ggml_all_64x512.gguf")).arg("blk.0.q4_0");
    if shared {
        command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    }
    let printed = good(&mut command);
    assert!(printed.starts_with("64 x 512, "), "{printed}");
    let needed = good(Command::new("readelf").args(["--dynamic", "--wide"]).arg(program));
    assert_eq!(needed.contains("[libbitlinear.so.0]"), shared, "{needed}");
}

/// A copy of the example, in a folder outside the tree's own.
fn elsewhere(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bitlinear-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(root().join("examples/c/one_layer.c"), folder.join("one_layer.c")).unwrap();
    folder
}

/// `cc [flags] one_layer.c $(pkg-config --cflags --libs PACKAGE)`, as README.md and docs/embedding.md say it.
fn pkg_config(package: &str, flags: &[&str], shared: bool) {
    let Some(pkg_config) = tool("pkg-config", "programs built with pkg-config") else { return };
    let mut ask = Command::new(pkg_config);
    ask.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(["--cflags", "--libs", package]);
    let said = good(&mut ask);
    let folder = elsewhere(&format!("pc-{package}{}", flags.concat()));
    let mut cc = Command::new("cc");
    cc.current_dir(&folder).args(["-std=c99", "-o", "one_layer"]).args(flags).arg("one_layer.c");
    good(cc.args(said.split_whitespace()));
    runs(&folder.join("one_layer"), shared);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn pkg_config_shared() {
    pkg_config("bitlinear", &[], true);
}
#[test]
fn pkg_config_static() {
    pkg_config("bitlinear-static", &[], false);
}
#[test]
fn pkg_config_static_with_libc() {
    pkg_config("bitlinear-static", &["-static"], false);
}
/// The static library beside another one of Rust's, in either order, as docs/embedding.md says it: each has the
/// symbols of Rust's runtime, so that all but bl_* are made local first.
#[test]
fn beside_another_static_library_of_rust() {
    let folder = fresh("two-of-rust");
    let run =
        |program: &str, arguments: &[&str]| good(Command::new(program).current_dir(&folder).args(arguments));
    let text = "#[unsafe(no_mangle)]\npub extern \"C\" fn other(n: usize) -> usize {\n    vec![1; n].iter().sum()\n}\n";
    std::fs::write(folder.join("other.rs"), text).unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    good(rustc.current_dir(&folder).args(["--edition", "2024", "--crate-type", "staticlib", "other.rs"]));
    let text = "#include <bitlinear.h>\nsize_t other(size_t);\n\
        int main(void) { return bl_version() == BL_VERSION && other(3) == 3 ? 0 : 1; }\n";
    std::fs::write(folder.join("two.c"), text).unwrap();
    let (include, archive) = (prefix().join("include"), prefix().join("lib/libbitlinear.a"));
    let (include, archive) = (format!("-I{}", include.display()), archive.display().to_string());

    let both = |library: &str| {
        let mut cc = Command::new("cc");
        cc.current_dir(&folder).args(["two.c", &include, "libother.a", library, "-lm", "-o", "two"]);
        cc
    };
    assert!(bad(&mut both(&archive)).contains("rust_eh_personality"), "the recipe is needed no more");
    run("ld", &["-r", "--force-group-allocation", "--whole-archive", &archive, "-o", "all.o"]);
    run("objcopy", &["--wildcard", "--keep-global-symbol=bl_*", "all.o", "bitlinear.o"]);
    good(&mut both("bitlinear.o"));
    run("./two", &[]);
    run("cc", &["two.c", &include, "bitlinear.o", "libother.a", "-lm", "-o", "two"]);
    run("./two", &[]);
}

#[test]
fn pkg_config_knows_the_version() {
    let Some(pkg_config) = tool("pkg-config", "the version in bitlinear.pc") else { return };
    let ask = |condition: &str| {
        let mut command = Command::new(&pkg_config);
        command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(["--print-errors", condition]);
        command
    };
    good(&mut ask(&format!("bitlinear = {VERSION}")));
    bad(&mut ask("bitlinear >= 99"));
}

fn cmake_project(folder: &Path, version: &str, library: &str) {
    let text = format!(
        "cmake_minimum_required(VERSION 3.10)\nproject(user C)\nfind_package(bitlinear {version} REQUIRED CONFIG)\n\
         add_executable(one_layer one_layer.c)\nset_property(TARGET one_layer PROPERTY C_STANDARD 99)\n\
         target_link_libraries(one_layer PRIVATE {library})\n"
    );
    std::fs::write(folder.join("CMakeLists.txt"), text).unwrap();
}

fn configure(cmake: &Path, folder: &Path, prefix: &Path) -> Command {
    let mut command = Command::new(cmake);
    command.current_dir(folder).args(["-S", ".", "-B", "build"]);
    command.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.display()));
    command
}

fn cmake(library: &str, shared: bool) {
    let Some(cmake) = tool("cmake", "programs built with CMake") else { return };
    let folder = elsewhere(library.split(':').next_back().unwrap());
    // An installed tree may be moved: the package is found from where it lies now.
    let moved = folder.join("moved");
    good(Command::new("cp").arg("-a").arg(prefix()).arg(&moved));
    let minor = VERSION.rsplit_once('.').unwrap().0;
    cmake_project(&folder, minor, library);
    good(&mut configure(&cmake, &folder, &moved));
    good(Command::new(&cmake).current_dir(&folder).args(["--build", "build"]));
    runs(&folder.join("build/one_layer"), shared);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn cmake_shared() {
    cmake("bitlinear::bitlinear", true);
}
#[test]
fn cmake_static() {
    cmake("bitlinear::static", false);
}

/// While the major is 0, another minor is another library; so is a patch that is newer than this.
#[test]
fn cmake_refuses_other_versions() {
    let Some(cmake) = tool("cmake", "the versions that CMake accepts") else { return };
    let parts: Vec<u32> = VERSION.split('.').map(|n| n.parse().unwrap()).collect();
    let [major, minor, patch] = parts[..] else { panic!("{VERSION}") };
    for (version, fits) in [
        (format!("{major}.{minor}"), true),
        (format!("{major}.{minor}.{patch}"), true),
        (String::new(), true),
        (format!("{major}.{}", minor + 1), false),
        (format!("{major}.{}", minor.wrapping_sub(1).min(98)), false),
        (format!("{major}.{minor}.{}", patch + 1), false),
        (format!("{}.{minor}", major + 1), false),
    ] {
        let folder = elsewhere(&format!("version-{version}"));
        cmake_project(&folder, &version, "bitlinear::bitlinear");
        let mut command = configure(&cmake, &folder, prefix());
        if fits {
            good(&mut command);
        } else {
            let said = bad(&mut command);
            assert!(said.contains("compatible with requested version"), "{said}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_relative_prefix_is_refused() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", target());
    cargo.args(["run", "--quiet", "--package", "xtask", "--", "install", "--prefix", "here"]);
    let said = bad(&mut cargo);
    assert!(said.contains("an absolute path is wanted"), "{said}");
}
