//! kernels/prebuilt holds what kernels/ gave when it was compiled last, and nothing else. Needs no compiler: the sums
//! in SHA256SUMS tell. What the compiler gives today is compared by `cargo xtask kernels --check`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// Names of files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn prebuilt_kernels_are_those_of_the_sources() {
    let prebuilt = kernels().join("prebuilt");
    let text = std::fs::read_to_string(prebuilt.join("SHA256SUMS")).unwrap();
    let sums: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once("  ").map(|(sum, name)| (name, sum)).expect("`sum  name`"))
        .collect();
    for (name, expected) in &sums {
        let bytes = std::fs::read(prebuilt.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            sum, *expected,
            "{name} is not what was compiled: run `cargo xtask kernels`, commit its result"
        );
    }
    let sources =
        names(&kernels()).into_iter().filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"));
    for file in sources.map(|name| format!("../{name}")).chain(names(&prebuilt)) {
        assert!(
            file == "SHA256SUMS" || sums.contains_key(&*file),
            "{file} is not in SHA256SUMS: run `cargo xtask kernels`, commit its result"
        );
    }
}
