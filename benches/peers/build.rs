//! Bindings of the project's own header, and the C++ that drives oneDNN where that is installed.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    let project = here.join("../..").canonicalize().expect("the project's root");

    // BITLINEAR_LIBRARY: another build of the library. At run time LD_LIBRARY_PATH goes first.
    println!("cargo:rerun-if-env-changed=BITLINEAR_LIBRARY");
    let library =
        env::var("BITLINEAR_LIBRARY").map_or_else(|_| project.join("target/release"), PathBuf::from);
    if !library.join("libbitlinear.so").exists() {
        panic!("{}: no libbitlinear.so; `make library` in the project's root makes it", library.display());
    }
    println!("cargo:rustc-link-search=native={}", library.display());
    println!("cargo:rustc-link-lib=dylib=bitlinear");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());

    let header = project.join("include/bitlinear.h");
    println!("cargo:rerun-if-changed={}", header.display());
    bindgen::Builder::default()
        .header(header.to_str().expect("UTF-8"))
        .allowlist_item("(bl|BL)_.*")
        .prepend_enum_name(false)
        .generate()
        .expect("bindings of bitlinear.h")
        .write_to_file(out.join("bitlinear.rs"))
        .expect("the bindings are written");

    println!("cargo:rustc-check-cfg=cfg(onednn)");
    println!("cargo:rerun-if-changed=src/onednn.cpp");
    if Path::new("/usr/include/oneapi/dnnl/dnnl.hpp").exists() {
        cc::Build::new().cpp(true).std("c++17").file("src/onednn.cpp").compile("peers_onednn");
        println!("cargo:rustc-link-lib=dylib=dnnl");
        println!("cargo:rustc-cfg=onednn");
    } else {
        println!("cargo:warning=oneDNN is not installed (Debian: libdnnl-dev): it will not be measured");
    }
}
