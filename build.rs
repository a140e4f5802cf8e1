//! Link settings of the shared library (the rlib and the staticlib do not see them), and what
//! `bl_build_info` says.

use std::process::Command;

/// The number in the SONAME. Raised only when the ABI check says that old programs break.
const ABI: &str = "0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    build_info();
    let arg = |text: &str| println!("cargo::rustc-cdylib-link-arg={text}");
    match std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default().as_str() {
        "linux" | "android" => {
            arg(&format!("-Wl,-soname,libbitlinear.so.{ABI}"));
            // nodelete: a thread of ours may be inside its own exit while a host calls dlclose.
            for flag in ["relro", "now", "noexecstack", "nodelete"] {
                arg(&format!("-Wl,-z,{flag}"));
            }
            // A sanitizer's symbols come from the program, not from the library.
            if ["SANITIZE", "FUZZING"]
                .iter()
                .all(|cfg| std::env::var_os(format!("CARGO_CFG_{cfg}")).is_none())
            {
                arg("-Wl,-z,defs");
            }
            arg("-Wl,--as-needed");
        }
        "macos" | "ios" => {
            arg(&format!("-Wl,-install_name,@rpath/libbitlinear.{ABI}.dylib"));
            arg("-Wl,-exported_symbol,_bl_*");
        }
        _ => {}
    }
}

fn build_info() {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    };
    // A released crate has no repository, and then no commit.
    let commit = first_line("git", &["rev-parse", "--short=12", "HEAD"]);
    // In a second worktree `.git` is a file: a path that is not there would build everything again, every time.
    if std::path::Path::new(".git/HEAD").exists() {
        println!("cargo::rerun-if-changed=.git/HEAD");
    }
    println!("cargo::rustc-env=BITLINEAR_COMMIT={}", commit.as_deref().unwrap_or("no commit"));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rustc = first_line(&rustc, &["--version"]);
    println!("cargo::rustc-env=BITLINEAR_RUSTC={}", rustc.as_deref().unwrap_or("rustc"));
    println!("cargo::rustc-env=BITLINEAR_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    println!("cargo::rustc-env=BITLINEAR_FEATURES= cpu{}", if cuda { " cuda" } else { "" });
}
