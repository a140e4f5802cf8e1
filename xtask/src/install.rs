//! `cargo xtask install`: header, libraries and the files by which other build systems find them.

use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::root;

/// What the static library needs beside itself, as rustc's `--print native-static-libs` says on Linux. The first is
/// linked by compilers of C themselves, as libgcc_s or, into static programs, as libgcc_eh.
const PRIVATE: [&str; 6] = ["gcc_s", "util", "rt", "pthread", "m", "dl"];

/// Where things go. All but `destdir` is as programs will see it.
struct Places {
    destdir: Option<PathBuf>,
    prefix: PathBuf,
    libdir: PathBuf,
    includedir: PathBuf,
}

/// Builds the release library and installs it.
pub fn install(arguments: &[&str]) -> Result<(), String> {
    let places = Places::from(arguments)?;
    if !cfg!(target_os = "linux") {
        return Err("install is written for Linux; elsewhere copy the library and the headers".into());
    }
    let built = build()?;
    let version = version()?;
    let abi = abi()?;
    let (lib, include) = (places.real(&places.libdir), places.real(&places.includedir));
    let licenses = places.real(&places.prefix.join("share/licenses/bitlinear"));
    for folder in [&lib, &include, &lib.join("pkgconfig"), &lib.join("cmake/bitlinear"), &licenses] {
        std::fs::create_dir_all(folder).map_err(|e| said(folder, e))?;
    }
    for header in ["bitlinear.h", "bitlinear.hpp", "module.modulemap"] {
        copy(&root().join("include").join(header), &include.join(header), 0o644)?;
    }
    for license in ["LICENSE", "LICENSE-APACHE", "LICENSE-MIT"] {
        copy(&root().join(license), &licenses.join(license), 0o644)?;
    }
    copy(&built.join("libbitlinear.a"), &lib.join("libbitlinear.a"), 0o644)?;
    let real = format!("libbitlinear.so.{version}");
    copy(&built.join("libbitlinear.so"), &lib.join(&real), 0o755)?;
    link(&real, &lib.join(format!("libbitlinear.so.{abi}")))?;
    link(&format!("libbitlinear.so.{abi}"), &lib.join("libbitlinear.so"))?;

    let parts: Vec<&str> = version.split('.').collect();
    let below = |folder: &Path| match folder.strip_prefix(&places.prefix) {
        Ok(inside) => format!("${{prefix}}/{}", inside.display()),
        Err(_) => folder.display().to_string(),
    };
    let fill = |template: &str| -> Result<String, String> {
        let path = root().join("packaging").join(template);
        let mut text = std::fs::read_to_string(&path).map_err(|e| said(&path, e))?;
        for (name, value) in [
            ("PREFIX", places.prefix.display().to_string()),
            ("LIBDIR", below(&places.libdir)),
            ("INCLUDEDIR", below(&places.includedir)),
            ("TO_INCLUDEDIR", relative(&places.libdir.join("cmake/bitlinear"), &places.includedir)),
            ("VERSION", version.clone()),
            ("MAJOR", parts[0].to_owned()),
            ("MINOR", parts[1].to_owned()),
            ("ABI", abi.clone()),
            ("POINTER", size_of::<usize>().to_string()),
            ("PRIVATE", PRIVATE.map(|l| format!("-l{l}")).join(" ")),
            ("STATIC", PRIVATE[1..].iter().map(|l| format!("-l{l}")).collect::<Vec<_>>().join(" ")),
            ("PRIVATE_LIST", PRIVATE.join(";")),
        ] {
            text = text.replace(&format!("@{name}@"), &value);
        }
        match text.split('@').nth(1) {
            Some(left) => Err(format!("{}: @{left}@ is not filled in", path.display())),
            None => Ok(text),
        }
    };
    for name in ["bitlinear.pc", "bitlinear-static.pc"] {
        write(&lib.join("pkgconfig").join(name), &fill(&format!("{name}.in"))?)?;
    }
    for name in ["bitlinearConfig.cmake", "bitlinearConfigVersion.cmake"] {
        write(&lib.join("cmake/bitlinear").join(name), &fill(&format!("{name}.in"))?)?;
    }
    Ok(())
}

impl Places {
    fn from(arguments: &[&str]) -> Result<Places, String> {
        let (mut destdir, mut prefix) = (None, PathBuf::from("/usr/local"));
        let (mut libdir, mut includedir) = (PathBuf::from("lib"), PathBuf::from("include"));
        let mut rest = arguments.iter();
        while let Some(&name) = rest.next() {
            let value = rest.next().map(PathBuf::from).ok_or(format!("{name} wants a folder"))?;
            match name {
                // make passes those that nobody set, empty.
                _ if value.as_os_str().is_empty() => {}
                "--destdir" => destdir = Some(value),
                "--prefix" => prefix = value,
                "--libdir" => libdir = value,
                "--includedir" => includedir = value,
                _ => return Err(format!("install: {name} is unknown")),
            }
        }
        if !prefix.is_absolute() {
            return Err(format!("--prefix {}: an absolute path is wanted", prefix.display()));
        }
        // A relative folder is below the prefix; an absolute one stays as it is.
        let (libdir, includedir) = (prefix.join(libdir), prefix.join(includedir));
        Ok(Places { destdir, prefix, libdir, includedir })
    }

    /// Where a folder is while installing: below DESTDIR, for those who make packages.
    fn real(&self, folder: &Path) -> PathBuf {
        match &self.destdir {
            Some(destdir) => destdir.join(folder.strip_prefix("/").unwrap_or(folder)),
            None => folder.to_owned(),
        }
    }
}

/// The way from one absolute folder to another, with `/`.
fn relative(from: &Path, to: &Path) -> String {
    let parts = |p: &Path| -> Vec<String> {
        let names = p.components().filter(|c| matches!(c, Component::Normal(_)));
        names.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let (from, to) = (parts(from), parts(to));
    let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[same..].iter().map(|_| "..".to_owned());
    up.chain(to[same..].iter().cloned()).collect::<Vec<_>>().join("/")
}

/// Builds both libraries; the folder they are in.
fn build() -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root());
    // Not `cargo build`, which cannot run LTO while an rlib is among the outputs.
    build.args([
        "rustc",
        "--quiet",
        "--release",
        "--lib",
        "--features",
        "reserve",
        "--crate-type",
        "cdylib,staticlib",
    ]);
    match build.status() {
        Ok(status) if status.success() => {}
        Ok(status) => return Err(format!("building the library: {status}")),
        Err(e) => return Err(format!("building the library: {e}")),
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// The version of the library, as its manifest says.
pub fn version() -> Result<String, String> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).map_err(|e| e.to_string())?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .ok_or("Cargo.toml has no version")?;
    if version.split('.').filter(|n| n.parse::<u32>().is_ok()).count() != 3 {
        return Err(format!("version {version} is not x.y.z"));
    }
    Ok(version.to_owned())
}

/// The number in the SONAME, as build.rs says.
fn abi() -> Result<String, String> {
    let build = std::fs::read_to_string(root().join("build.rs")).map_err(|e| e.to_string())?;
    let line = build.lines().find_map(|line| line.strip_prefix("const ABI: &str = \"")?.strip_suffix("\";"));
    line.map(str::to_owned).ok_or_else(|| "build.rs has no ABI".into())
}

fn said(path: &Path, e: std::io::Error) -> String {
    format!("{}: {e}", path.display())
}

/// Copies through a new file: a program that runs with the old library keeps it.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let bytes = std::fs::read(from).map_err(|e| said(from, e))?;
    let _ = std::fs::remove_file(to);
    std::fs::write(to, bytes).map_err(|e| said(to, e))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode)).map_err(|e| said(to, e))
}

fn write(to: &Path, text: &str) -> Result<(), String> {
    let _ = std::fs::remove_file(to);
    std::fs::write(to, text).map_err(|e| said(to, e))
}

fn link(target: &str, at: &Path) -> Result<(), String> {
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(target, at).map_err(|e| said(at, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_between_folders() {
        let way = |from: &str, to: &str| relative(Path::new(from), Path::new(to));
        assert_eq!(way("/usr/lib/cmake/bitlinear", "/usr/include"), "../../../include");
        assert_eq!(way("/usr/lib/arch/cmake/bitlinear", "/usr/include"), "../../../../include");
        assert_eq!(way("/a/b", "/a/b/c"), "c");
    }

    #[test]
    fn folders() {
        let p = Places::from(&["--prefix", "/usr", "--libdir", "lib/arch", "--destdir", "/tmp/d"]).unwrap();
        assert_eq!(p.libdir, Path::new("/usr/lib/arch"));
        assert_eq!(p.real(&p.includedir), Path::new("/tmp/d/usr/include"));
        let p = Places::from(&["--destdir", "", "--libdir", "/opt/lib"]).unwrap();
        assert_eq!(p.real(&p.libdir), Path::new("/opt/lib"));
        assert!(Places::from(&["--prefix", "usr"]).is_err());
        assert!(Places::from(&["--prefix"]).is_err());
        assert!(Places::from(&["--nothing", "x"]).is_err());
    }
}
