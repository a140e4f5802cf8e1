//! Link settings of the shared library; the rlib and the staticlib do not see them.

/// The number in the SONAME. Raised only when the ABI check says that old programs break.
const ABI: &str = "0";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
