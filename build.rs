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
    // A released crate has no repository, and then no commit; one that lies inside somebody's has not theirs.
    let own = first_line("git", &["rev-parse", "--show-toplevel"])
        .is_some_and(|top| std::fs::canonicalize(top).ok() == std::fs::canonicalize(".").ok());
    let git = |arguments: &[&str]| if own { first_line("git", arguments) } else { None };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    // The log of HEAD has a line for each commit and checkout; HEAD itself names a branch and stays as it is. (A path that is
    // not there would build everything again, every time.)
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rustc-env=BITLINEAR_COMMIT={}", commit.as_deref().unwrap_or("no commit"));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let rustc = first_line(&rustc, &["--version"]);
    println!("cargo::rustc-env=BITLINEAR_RUSTC={}", rustc.as_deref().unwrap_or("rustc"));
    println!("cargo::rustc-env=BITLINEAR_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").is_some();
    println!("cargo::rustc-env=BITLINEAR_FEATURES= cpu{}", if cuda { " cuda" } else { "" });
}
